//! Values of the settings of the queues: sizes in bytes, and what happens at a full queue.
//!
//! Invariants: as for every other value, flags and files carry a unit (`64MiB`) and variables a bare number of bytes.
//! Called by the definition of the command line, next door.

use clap::builder::TypedValueParser;

use super::value::{Word, reader};

/// Units of a size, largest first.
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];
/// What `--admission-policy` takes.
pub(super) const POLICIES: &[Word<AdmissionPolicy>] = &[
    (
        "reject",
        AdmissionPolicy::Reject,
        "The request that comes is refused",
    ),
    (
        "drop-lru",
        AdmissionPolicy::DropLru,
        "The request that has waited longest for that model gives way",
    ),
];

/// A number of bytes that is written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl std::fmt::Display for ByteSize {
    /// As flags take it, in the largest unit that shows it exactly.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (unit, bytes) = UNITS
            .into_iter()
            .find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

/// Who gives way when the queue of a model is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionPolicy {
    /// Whoever comes.
    Reject,
    /// Whoever has waited longest for that model.
    DropLru,
}

fn read_size(text: &str, from_env: bool, max: ByteSize) -> Result<ByteSize, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let accepted = || {
        if from_env {
            format!(
                "must be a whole number of bytes, 0 to {}, without a unit",
                max.0
            )
        } else {
            format!(
                "must be a whole number and a unit (B, KiB, MiB or GiB), such as 64MiB, 0B to {max}"
            )
        }
    };
    let per_unit = if from_env {
        unit.is_empty().then_some(1)
    } else {
        UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, bytes)| bytes)
    };
    per_unit
        .and_then(|per_unit| number.parse::<u64>().ok()?.checked_mul(per_unit))
        .map(ByteSize)
        .filter(|size| *size <= max)
        .ok_or_else(accepted)
}

/// Reads a size from 0 to `max`.
pub(super) fn size(max: ByteSize) -> impl TypedValueParser<Value = ByteSize> {
    reader(move |text: &str, from_env| read_size(text, from_env, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_a_unit_in_flags_and_none_in_variables_and_show_as_they_are_written() {
        let max = ByteSize(1 << 40);
        for (text, bytes) in [
            ("0B", 0),
            ("1B", 1),
            ("3KiB", 3 << 10),
            ("64MiB", 64 << 20),
            ("1024GiB", 1 << 40),
        ] {
            let size = read_size(text, false, max).expect("good");
            assert_eq!((size.0, size.to_string().as_str()), (bytes, text));
            assert_eq!(read_size(&bytes.to_string(), true, max), Ok(size));
        }
        for bad in [
            "",
            "64",
            "MiB",
            "64MB",
            "64mib",
            "1.5MiB",
            "-1B",
            "1 MiB",
            "1025GiB",
            "99999999999GiB",
        ] {
            assert!(read_size(bad, false, max).is_err(), "{bad:?}");
        }
        for bad in ["", "64MiB", "-1", "1099511627777"] {
            assert!(read_size(bad, true, max).is_err(), "{bad:?}");
        }
    }
}
