//! Numbers, times and counts as people read them. Called by the commands that show tables and progress.

use std::time::Duration;

use crate::types::{Millis, UnixMs};

/// What stands where there is nothing to say.
pub(super) const NOTHING: &str = "-";

/// The text, or a sign that there is none.
pub(super) fn or_nothing(text: String) -> String {
    if text.is_empty() {
        NOTHING.to_owned()
    } else {
        text
    }
}

/// A length of time in one unit, rounded down; two of a unit before the next one begins, so that 90 s do not show as
/// 1 m.
pub(super) fn age(ms: Millis) -> String {
    match ms / 1_000 {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// A size in MiB below one GiB, else in GiB, with one decimal below ten.
pub(super) fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        0..GIB => format!("{} MiB", bytes / MIB),
        _ if bytes < 10 * GIB => {
            let tenths = bytes * 10 / GIB;
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
        _ => format!("{} GiB", bytes / GIB),
    }
}

/// How long a person has been waiting, or still may have to: `42s`, `7m05s`, `2h07m05s`.
pub(super) fn stopwatch(elapsed: Duration) -> String {
    let s = elapsed.as_secs();
    match (s / 3_600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, s) => format!("{h}h{m:02}m{s:02}s"),
    }
}

/// A moment, to the second: `2026-01-31T07:05:09Z`.
pub(super) fn stamp(at: UnixMs) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or(NOTHING.to_owned(), |at| {
            at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        })
}

/// The wall clock, for ages of what happened at a wall-clock time.
pub(super) fn wall_clock() -> UnixMs {
    UnixMs(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default())
}

/// `1 request`, `2 requests`.
pub(super) fn requests(count: u32) -> String {
    counted(count as usize, "request")
}

/// `1 node`, `2 nodes`.
pub(super) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_stay_in_one_unit_until_two_of_the_next_are_full() {
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (7_199_999, "119m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn sizes_show_one_decimal_only_where_it_matters() {
        for (bytes, text) in [
            (0, "0 MiB"),
            (512 << 20, "512 MiB"),
            (1 << 30, "1.0 GiB"),
            ((75 << 30) / 10, "7.5 GiB"),
            ((10 << 30) - 1, "9.9 GiB"),
            (61 << 30, "61 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_stopwatch_shows_seconds_to_the_end() {
        for (s, text) in [(0, "0s"), (59, "59s"), (425, "7m05s"), (7_625, "2h07m05s")] {
            assert_eq!(stopwatch(Duration::from_secs(s)), text);
        }
    }

    #[test]
    fn moments_are_shown_in_utc_to_the_second() {
        assert_eq!(stamp(UnixMs(1_000_999)), "1970-01-01T00:16:40Z");
        assert_eq!(stamp(UnixMs(u64::MAX)), "-");
    }
}
