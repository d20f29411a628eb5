//! Refusals as they are sent.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::control::{ControlError, Refusal};
use crate::types::{ErrorBody, ErrorCode, Millis};

/// When to come back after a refusal whose end cannot be foreseen.
const UNFORESEEN_MS: Millis = 1_000;

/// A refusal under `/v2`.
#[derive(Debug, Clone)]
pub struct ApiError {
    body: ErrorBody,
    retry_after_ms: Option<Millis>,
}

impl ApiError {
    /// A refusal without the original's extra fields.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            body: ErrorBody::new(code, message.into()),
            retry_after_ms: code.retryable().then_some(UNFORESEEN_MS),
        }
    }

    /// As the original system refused a registration.
    #[must_use]
    pub fn of_register(mut self, node_id: String) -> Self {
        self.body.success = Some(false);
        self.body.node_id = Some(node_id);
        self
    }

    /// As the original system refused a heartbeat.
    #[must_use]
    pub fn of_heartbeat(mut self, next_heartbeat_ms: Millis) -> Self {
        self.body.success = Some(false);
        self.body.next_heartbeat_ms = Some(next_heartbeat_ms);
        self
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::Refused(Refusal::UnknownNode { .. }) => {
                Self::new(ErrorCode::NodeNotFound, message)
            }
            ControlError::Refused(Refusal::HeldByAnotherMachine { retry_after_ms, .. }) => Self {
                retry_after_ms: Some(retry_after_ms),
                ..Self::new(ErrorCode::NodeIdConflict, message)
            },
            ControlError::Refused(Refusal::Superseded { .. }) => {
                Self::new(ErrorCode::Superseded, message)
            }
            ControlError::Refused(Refusal::NoAddress { .. }) => {
                Self::new(ErrorCode::InvalidRequest, message)
            }
            ControlError::Store(_) => Self::new(ErrorCode::StoreUnavailable, message),
            ControlError::Stopping => Self::new(ErrorCode::ShuttingDown, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.body.code.status()).expect("the table holds statuses");
        let code = self.body.code;
        let mut response = (status, Json(self.body)).into_response();
        // For whoever counts refusals.
        response.extensions_mut().insert(code);
        if let Some(ms) = self.retry_after_ms {
            response.headers_mut().insert(
                header::RETRY_AFTER,
                HeaderValue::from(ms.div_ceil(1_000).max(1)),
            );
        }
        response
    }
}
