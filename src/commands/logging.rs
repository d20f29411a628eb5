//! The log of `serve` and `agent`: lines on stderr, for people and for the journal.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Starts the log. `ORCHD_LOG` chooses what is in it, such as `debug` or `orchd::gateway=debug`.
pub(super) fn start() {
    let filter = EnvFilter::try_from_env("ORCHD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}
