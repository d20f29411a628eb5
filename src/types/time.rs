//! Time as plain numbers. The core is told what time it is; it never asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A length of time in whole milliseconds.
pub type Millis = u64;

/// A duration in whole milliseconds; saturates.
#[must_use]
pub fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A point on the monotonic clock: milliseconds since an origin of this process. The only time that decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// This point, moved later by `ms`; saturates.
    #[must_use]
    pub fn plus(self, ms: Millis) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long before this point `earlier` was, 0 when it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Millis {
        self.0.saturating_sub(earlier.0)
    }
}

/// Milliseconds since 1970-01-01 UTC. For people to read; nothing is decided from it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, Default,
)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Decides.
    pub mono: Mono,
    /// Is shown.
    pub wall: UnixMs,
}

/// Reads a duration as flags and files write it: a number and `ms`, `s`, `m` or `h`, such as `250ms` or `15m`.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => {
            return Err(format!(
                "{text:?} is not a duration; write a number and a unit, such as 250ms, 10s, 5m or 1h"
            ));
        }
    };
    let number: u64 = number.parse().map_err(|_| {
        format!("{text:?} is not a duration; it must begin with a whole number, as in 10s")
    })?;
    number
        .checked_mul(per_unit)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is longer than any duration orchd can hold"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "10 s",
            "1d",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
