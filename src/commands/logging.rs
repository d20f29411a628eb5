//! The log of `serve` and `agent`: lines on stderr, for people and for the journal.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use super::failure::{Exit, Failure};

/// Checks what [`start`] will be told.
///
/// # Errors
/// `ORCHD_LOG` is no filter.
pub(super) fn check() -> Result<(), Failure> {
    wanted().map(drop)
}

fn wanted() -> Result<EnvFilter, Failure> {
    let wanted = std::env::var("ORCHD_LOG").unwrap_or_default();
    filter(&wanted).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("ORCHD_LOG={wanted:?} is no filter"))
            .hint("use error, warn, info, debug or trace, or name a part: orchd::gateway=debug")
    })
}

/// Starts the log. `ORCHD_LOG` chooses what is in it: a level (`debug`), which is orchd's own, or a filter with targets
/// (`orchd::gateway=debug`).
///
/// # Errors
/// It is neither.
pub(super) fn start() -> Result<(), Failure> {
    let filter = wanted()?;
    let colour =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(colour)
        .with_target(false)
        // Its own word on a line that cannot be written would go to the same place, and panic there: a full disk under
        // the log must not end the process.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn filter(wanted: &str) -> Option<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if wanted.is_empty() {
        return Some(EnvFilter::new("warn,orchd=info"));
    }
    if LEVELS.contains(&wanted.to_ascii_lowercase().as_str()) {
        return EnvFilter::try_new(format!("warn,orchd={wanted}")).ok();
    }
    // A lone word would be taken for the name of a target, and silence everything.
    let has_levels = wanted
        .split(',')
        .all(|part| part.contains('=') || LEVELS.contains(&part));
    EnvFilter::try_new(wanted).ok().filter(|_| has_levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_named_parts_are_a_filter_and_a_lone_word_is_none() {
        for good in [
            "",
            "debug",
            "WARN",
            "orchd::gateway=debug",
            "warn,orchd=trace",
        ] {
            assert!(filter(good).is_some(), "{good:?}");
        }
        for bad in ["verbose", "orchd", "orchd=loud"] {
            assert!(filter(bad).is_none(), "{bad:?}");
        }
    }
}
