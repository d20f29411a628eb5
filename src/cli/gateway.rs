//! Options of what relays requests to engines.

use std::time::Duration;

use clap::Args;

use super::HOUR;
use super::value::{Unit, Word, duration, text, words};
use crate::types::{AccessLog, CorsOrigins};

/// What `--assemble` takes.
const ASSEMBLE: &[Word<Assemble>] = &[
    (
        "on",
        Assemble::On,
        "A client that leaves frees its slot at once",
    ),
    ("off", Assemble::Off, "The engine answers as it was asked"),
];
/// What `--access-log` takes.
const ACCESS_LOGS: &[Word<AccessLog>] = &[
    ("off", AccessLog::Off, "None"),
    ("on", AccessLog::On, "Each"),
    (
        "sampled",
        AccessLog::Sampled,
        "Each that did not go well, and one in a hundred of the others",
    ),
];

/// Whether answers are put together from streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assemble {
    /// Where that can be done.
    On,
    /// Nowhere.
    Off,
}

/// What the gateway of `serve` does with answers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Gateway")]
pub struct GatewayArgs {
    /// Whether llama-server is made to stream what was not asked for as a stream, and its answer put together here: it
    /// works on without a client otherwise
    #[arg(
        long,
        value_name = "WORD",
        env = "ORCHD_ASSEMBLE",
        default_value = "on",
        value_parser = words(ASSEMBLE)
    )]
    pub assemble: Assemble,

    /// How long a client that asked for a stream waits for its first byte: then the answer begins with a comment, and
    /// errors come within the stream (0s to 1h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_SSE_COMMIT_MS",
        default_value = "10s",
        value_parser = duration(Unit::Millis, Duration::ZERO, HOUR)
    )]
    pub sse_commit: Duration,

    /// Which requests have a line in the log, at its level info
    #[arg(
        long,
        value_name = "WORD",
        env = "ORCHD_ACCESS_LOG",
        default_value = "on",
        value_parser = words(ACCESS_LOGS)
    )]
    pub access_log: AccessLog,

    /// Which web pages may read answers under /v1, with a token where one is needed: `*` any, `localhost` those of this
    /// machine, `none`, or origins such as `https://chat.example` with a comma between them
    #[arg(
        long,
        value_name = "ORIGINS",
        env = "ORCHD_CORS_ORIGINS",
        default_value = "localhost",
        value_parser = text::<CorsOrigins>()
    )]
    pub cors_origins: CorsOrigins,
}

/// When an engine that does not answer is given up.
#[derive(Debug, Clone, Args)]
pub struct HungArgs {
    /// How long an engine may answer nothing at all before its streams are ended (1s to 1h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_HUNG_AFTER_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::from_secs(1), HOUR)
    )]
    pub hung_after: Duration,
}
