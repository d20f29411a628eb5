//! From what went wrong to what the user sees: one table of exit codes and hints.
//!
//! Invariants: scripts may rely on the codes; a hint is there only when there is a next step. Called by `commands::run`
//! for every command, `serve` and `agent` included, which may return a [`Failure`] of their own, a
//! [`UsageError`], a [`ClientError`] or any other error (exit code 1).

use std::process::ExitCode;
use std::time::Duration;

use super::output;
use crate::cli::UsageError;
use crate::client::ClientError;
use crate::config::ConfigError;
use crate::types::{ErrorCode, SPEAKS_TLS};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// What it is about does not exist.
    NotFound = 3,
    /// The control plane refuses.
    Refused = 4,
    /// The time to wait is over; what was asked for goes on.
    GaveUp = 5,
    /// No control plane answers, or something else does.
    Unreachable = 6,
    /// The token is missing or not good enough.
    Unauthorized = 7,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure with its exit code, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How to exit.
    pub exit: Exit,
    /// What went wrong, as a sentence without a full stop.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Finds out what an error means for the exit code, and what the next step is.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        if let Some(failure) = error.downcast_ref::<Self>() {
            failure.clone()
        } else if let Some(usage) = error.downcast_ref::<UsageError>() {
            Self {
                exit: Exit::Usage,
                message: usage.message.clone(),
                hint: usage.hint.clone(),
            }
        } else if let Some(config) = error.downcast_ref::<ConfigError>() {
            Self {
                exit: Exit::Usage,
                message: config.to_string(),
                hint: config.hint().map(str::to_owned),
            }
        } else if let Some(client) = error.downcast_ref::<ClientError>() {
            client.into()
        } else {
            Self::new(Exit::Failed, whole(error))
        }
    }
}

/// An error with what it comes from. Some say that themselves, and it is not said twice.
fn whole(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

impl From<&ClientError> for Failure {
    fn from(error: &ClientError) -> Self {
        let (exit, hint) = judge(error);
        let message = if error.code() == Some(ErrorCode::CloudProfileDisabled) {
            // The control plane says what to do as well, for those who have no command; here the hint does.
            "this control plane serves one machine (HOME) and keeps no nodes".to_owned()
        } else {
            error.to_string()
        };
        Self {
            exit,
            message,
            hint,
        }
    }
}

/// The table: what each answer of a control plane, or the lack of one, means for a command.
fn judge(error: &ClientError) -> (Exit, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    match error {
        // It says itself what is to be done.
        error if error.is_tls() => (Exit::Unreachable, None),
        ClientError::Unreachable { .. } | ClientError::NoneAnswered { .. } => (
            Exit::Unreachable,
            hint(
                "start one with `orchd serve --cloud`, or say where it is with --server or ORCHD_SERVER",
            ),
        ),
        ClientError::EventsLost { .. } => (Exit::Unreachable, None),
        ClientError::BadEventId => (
            Exit::Usage,
            hint("`orchd events -o json` shows the ids of events"),
        ),
        ClientError::NotOrchd { .. } => (
            Exit::Unreachable,
            hint("say where the control plane is with --server or ORCHD_SERVER"),
        ),
        ClientError::Unauthorized { status: 401, .. } => (
            Exit::Unauthorized,
            hint("put the control plane's token into ORCHD_API_TOKEN"),
        ),
        ClientError::Unauthorized { .. } => (
            Exit::Unauthorized,
            hint("this takes the operators' token, in ORCHD_API_TOKEN"),
        ),
        ClientError::BadToken => (
            Exit::Usage,
            hint("check ORCHD_API_TOKEN for line breaks and other control characters"),
        ),
        ClientError::NoServer => (Exit::Usage, hint("name one with --server or ORCHD_SERVER")),
        ClientError::Tls(_) => (Exit::Unreachable, None),
        ClientError::Setup { .. } => (
            Exit::Failed,
            hint(
                "https needs the system's root certificates: install them (ca-certificates), or name a file of them in \
                 SSL_CERT_FILE",
            ),
        ),
        // A port with TLS says so in plain HTTP to whoever speaks that.
        ClientError::Refused { server, body, .. }
            if body.message == SPEAKS_TLS && !server.origin().https =>
        {
            let url = server.as_str().replacen("http://", "https://", 1);
            (
                Exit::Refused,
                Some(format!("say --server {url}, or set ORCHD_SERVER to it")),
            )
        }
        ClientError::Refused {
            body, retry_after, ..
        } => match body.code {
            ErrorCode::NodeNotFound => (
                Exit::NotFound,
                hint("`orchd nodes list` shows the nodes there are"),
            ),
            ErrorCode::CloudProfileDisabled => (
                Exit::Refused,
                hint(
                    "start it with `orchd serve --cloud` to manage a fleet; `orchd pools list` shows the engines of this machine",
                ),
            ),
            ErrorCode::NotFound | ErrorCode::MethodNotAllowed => (
                Exit::Failed,
                hint(
                    "the control plane may be of another version than this command; compare `orchd --version`",
                ),
            ),
            ErrorCode::StoreUnavailable => (
                Exit::Refused,
                hint("see the log of the control plane; nothing was changed"),
            ),
            ErrorCode::ShuttingDown | ErrorCode::NodeIdConflict => {
                (Exit::Refused, retry_after.map(try_again))
            }
            ErrorCode::InvalidRequest
            | ErrorCode::Superseded
            | ErrorCode::Unauthorized
            | ErrorCode::Forbidden
            | ErrorCode::PayloadTooLarge
            | ErrorCode::UnsupportedMediaType => (Exit::Refused, None),
            ErrorCode::Internal => (Exit::Failed, hint("see the log of the control plane")),
        },
    }
}

fn try_again(after: Duration) -> String {
    format!("try again in {} s", after.as_secs().max(1))
}

/// Shows an error on stderr and says how to exit.
#[must_use]
pub fn report(error: &anyhow::Error) -> ExitCode {
    // Help and the version come this way as well, and go to stdout; clap knows best how its own words look.
    if let Some(ConfigError::CommandLine(error)) = error.downcast_ref() {
        // A reader who has gone is no failure, and there is nobody left to tell of any other.
        let _ = error.print();
        return u8::try_from(error.exit_code()).map_or(Exit::Usage.into(), ExitCode::from);
    }
    show(&Failure::of(error))
}

/// Shows a failure on stderr and says how to exit.
#[must_use]
pub fn show(failure: &Failure) -> ExitCode {
    output::error(&failure.message);
    if let Some(hint) = &failure.hint {
        output::hint(hint);
    }
    failure.exit.into()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn what_an_error_comes_from_is_said_once() {
        let cause = || std::io::Error::other("the disk is full");
        let twice = Err::<(), _>(cause())
            .context("cannot write x: the disk is full; choose another")
            .expect_err("it is one");
        let message = "cannot write x: the disk is full; choose another";
        assert_eq!(Failure::of(&twice).message, message);
        let once = Err::<(), _>(cause())
            .context("cannot write x")
            .expect_err("it is one");
        assert_eq!(
            Failure::of(&once).message,
            "cannot write x: the disk is full"
        );
    }
}
