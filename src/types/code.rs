//! What a refusal under `/v2` says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Every reason for which the control API refuses. The word is the contract; the status beside it is its only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The body or a parameter does not parse or fit.
    InvalidRequest,
    /// It takes a token, and brought none or another one.
    Unauthorized,
    /// It brought a client's token, which opens `/v1` only.
    Forbidden,
    /// No route of this name.
    NotFound,
    /// A node id of which nothing is known.
    NodeNotFound,
    /// The route has other methods.
    MethodNotAllowed,
    /// Another machine holds this node id and is alive.
    NodeIdConflict,
    /// A newer agent process has taken this node id.
    Superseded,
    /// The body is larger than the call accepts.
    PayloadTooLarge,
    /// A content type is present and is not JSON.
    UnsupportedMediaType,
    /// The node API belongs to the CLOUD profile.
    CloudProfileDisabled,
    /// The store cannot take the change; nothing was applied.
    StoreUnavailable,
    /// The process is stopping.
    ShuttingDown,
    /// A defect of ours.
    Internal,
}

impl ErrorCode {
    /// The HTTP status this code travels with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound | Self::NodeNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NodeIdConflict | Self::Superseded => 409,
            Self::PayloadTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Internal => 500,
            Self::CloudProfileDisabled | Self::StoreUnavailable | Self::ShuttingDown => 503,
        }
    }

    /// Whether the same request may succeed later, unchanged.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::NodeIdConflict | Self::StoreUnavailable | Self::ShuttingDown | Self::Internal
        )
    }
}

/// The body of every refusal under `/v2`. `success`, `node_id` and `next_heartbeat_ms` appear where the original
/// system's bodies had them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The reason, as a word.
    pub code: ErrorCode,
    /// The reason, as a sentence: what, why, what next.
    pub message: String,
    /// Repeats `message`.
    pub error: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// `false` on register and heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// On register: the id that was asked for, empty when the body held none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// On heartbeat: the interval in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_heartbeat_ms: Option<u64>,
}

impl ErrorBody {
    /// A refusal without the original's extra fields.
    #[must_use]
    pub fn new(code: ErrorCode, message: String) -> Self {
        Self {
            code,
            error: message.clone(),
            message,
            retryable: code.retryable(),
            success: None,
            node_id: None,
            next_heartbeat_ms: None,
        }
    }
}
