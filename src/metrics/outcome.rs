//! The closed sets of words that are labels.

use crate::types::ErrorCode;

/// Calls that agents make, each with a counter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `POST /v2/nodes/register`.
    Registration,
    /// `POST /v2/nodes/{id}/heartbeat`.
    Heartbeat,
    /// `DELETE /v2/nodes/{id}`.
    Deregistration,
}

impl Call {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Registration, Self::Heartbeat, Self::Deregistration];

    /// The name of its counter, without `_total`, and what it says.
    pub(super) fn family(self) -> (&'static str, &'static str) {
        match self {
            Self::Registration => (
                "orchd_node_registrations",
                "Registrations answered, by outcome",
            ),
            Self::Heartbeat => ("orchd_node_heartbeats", "Heartbeats answered, by outcome"),
            Self::Deregistration => (
                "orchd_node_deregistrations",
                "Deregistrations answered, by outcome",
            ),
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Ok,
    /// The body or a parameter does not parse or fit.
    Invalid,
    /// No token, or another one.
    Unauthorized,
    /// The token opens other doors.
    Forbidden,
    /// Another machine holds the node id and is alive.
    Conflict,
    /// A newer agent process has taken the node id.
    Superseded,
    /// Nothing is known of the node.
    UnknownNode,
    /// The body is too large.
    TooLarge,
    /// The content type is not JSON.
    UnsupportedMediaType,
    /// The profile has no nodes.
    CloudProfileDisabled,
    /// The store cannot take it.
    StoreUnavailable,
    /// The process is stopping.
    ShuttingDown,
    /// A defect of ours.
    Internal,
    /// The client left before it was answered; whether the call had an effect is not known.
    Abandoned,
}

impl Outcome {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::Invalid,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Conflict,
        Self::Superseded,
        Self::UnknownNode,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::CloudProfileDisabled,
        Self::StoreUnavailable,
        Self::ShuttingDown,
        Self::Internal,
        Self::Abandoned,
    ];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Conflict => "conflict",
            Self::Superseded => "superseded",
            Self::UnknownNode => "unknown_node",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::CloudProfileDisabled => "cloud_profile_disabled",
            Self::StoreUnavailable => "store_unavailable",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
            Self::Abandoned => "abandoned",
        }
    }
}

impl From<ErrorCode> for Outcome {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidRequest | ErrorCode::NotFound | ErrorCode::MethodNotAllowed => {
                Self::Invalid
            }
            ErrorCode::Unauthorized => Self::Unauthorized,
            ErrorCode::Forbidden => Self::Forbidden,
            ErrorCode::NodeNotFound => Self::UnknownNode,
            ErrorCode::NodeIdConflict => Self::Conflict,
            ErrorCode::Superseded => Self::Superseded,
            ErrorCode::PayloadTooLarge => Self::TooLarge,
            ErrorCode::UnsupportedMediaType => Self::UnsupportedMediaType,
            ErrorCode::CloudProfileDisabled => Self::CloudProfileDisabled,
            ErrorCode::StoreUnavailable => Self::StoreUnavailable,
            ErrorCode::ShuttingDown => Self::ShuttingDown,
            ErrorCode::Internal => Self::Internal,
        }
    }
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// An operator asked for it.
    Started,
    /// Nothing runs any more.
    Done,
    /// It was ended or forgotten, done or not.
    Ended,
}

impl DrainStep {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Started, Self::Done, Self::Ended];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Ended => "ended",
        }
    }
}
