//! Refusals of the gateway, in OpenAI's form, and the one table from reason to status.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::admission::Refused;
use crate::auth::Denied;
use crate::listen::CollectError;
use crate::types::Millis;

use super::GatewayBody;

const BACKOFF_MS: HeaderName = HeaderName::from_static("x-backoff-ms");
/// When to come back after a refusal whose end cannot be foreseen.
const UNFORESEEN_MS: Millis = 1_000;

/// Why a request under `/v1` is refused.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body is not a JSON object.
    #[error("the request body is not valid JSON: {detail}")]
    NotJson {
        /// What is wrong, and where.
        detail: String,
    },
    /// The body could not be read.
    #[error(transparent)]
    Body(#[from] CollectError),
    /// `model` is not a model id.
    #[error("`model` is not a model id: {detail}")]
    BadModel {
        /// What is wrong.
        detail: String,
    },
    /// `model` is missing and there is more than one, or none.
    #[error("the request names no `model`; {}", list(known))]
    NoModel {
        /// What there is.
        known: Vec<Arc<str>>,
    },
    /// No pool has it.
    #[error("the model {wanted:?} does not exist; {}", list(known))]
    UnknownModel {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<Arc<str>>,
    },
    /// There is nothing at this path.
    #[error("there is no such endpoint; a path goes on after /v1/, and has no segment `.` or `..`")]
    UnknownPath,
    /// The path is known with another method.
    #[error("this path takes {allowed} only")]
    Method {
        /// That method.
        allowed: &'static str,
    },
    /// It takes a token.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No slot.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too many requests are in hand, whatever they wait for.
    #[error(
        "the control plane has as many requests in hand as its connections allow; try again later"
    )]
    Crowded,
    /// No pool answered.
    #[error("no engine answered this request; the last attempt: {detail}")]
    Upstream {
        /// What went wrong.
        detail: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Its node is being emptied, and the time for that is over.
    #[error(
        "the node that worked on this request is being drained, and its time is over; send the request again"
    )]
    DrainDeadline,
    /// The process is stopping, and the time for that is over.
    #[error(
        "the server is stopping, and its time for running requests is over; send the request again"
    )]
    ShutDown,
    /// A defect of ours.
    #[error("the gateway failed while it handled this request; its log says more")]
    Internal,
}

fn list(known: &[Arc<str>]) -> String {
    match known {
        [] => "no engine has told its models yet".to_owned(),
        known => format!("there is: {}", known.join(", ")),
    }
}

impl GatewayError {
    /// A request that ran was ended from outside.
    pub(super) fn ended(by_shutdown: bool) -> Self {
        if by_shutdown {
            Self::ShutDown
        } else {
            Self::DrainDeadline
        }
    }

    /// Every code of the table, for metrics.
    pub(super) const CODES: [&str; 18] = [
        "invalid_json",
        "request_too_large",
        "incomplete_body",
        "invalid_model",
        "missing_model",
        "model_not_found",
        "unknown_path",
        "method_not_allowed",
        "forbidden",
        "invalid_api_key",
        "queue_full",
        "queue_dropped",
        "queue_timeout",
        "no_ready_pool",
        "shutting_down",
        "upstream_failed",
        "drain_deadline",
        "internal_error",
    ];

    /// Status, OpenAI's `type`, and our `code`.
    pub(super) fn table(&self) -> (StatusCode, &'static str, &'static str) {
        let invalid = "invalid_request_error";
        match self {
            Self::NotJson { .. } => (StatusCode::BAD_REQUEST, invalid, "invalid_json"),
            Self::Body(CollectError::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, invalid, "request_too_large")
            }
            Self::Body(_) => (StatusCode::BAD_REQUEST, invalid, "incomplete_body"),
            Self::BadModel { .. } => (StatusCode::BAD_REQUEST, invalid, "invalid_model"),
            Self::NoModel { .. } => (StatusCode::BAD_REQUEST, invalid, "missing_model"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, invalid, "model_not_found"),
            Self::UnknownPath => (StatusCode::NOT_FOUND, invalid, "unknown_path"),
            Self::Method { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                invalid,
                "method_not_allowed",
            ),
            Self::Denied(Denied::Forbidden) => {
                (StatusCode::FORBIDDEN, "permission_error", "forbidden")
            }
            Self::Denied(_) => (StatusCode::UNAUTHORIZED, invalid, "invalid_api_key"),
            Self::Crowded | Self::Refused(Refused::QueueFull { .. } | Refused::NoRoom { .. }) => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "queue_full",
            ),
            Self::Refused(Refused::Dropped { .. }) => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "queue_dropped",
            ),
            Self::Refused(Refused::QueueTimeout) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "queue_timeout",
            ),
            Self::Refused(Refused::NoReadyPool) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "no_ready_pool",
            ),
            Self::ShutDown | Self::Refused(Refused::ShuttingDown) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "shutting_down",
            ),
            Self::Upstream { .. } => (StatusCode::BAD_GATEWAY, "server_error", "upstream_failed"),
            Self::DrainDeadline => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "drain_deadline",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                "internal_error",
            ),
        }
    }

    /// When to come back, where that helps.
    fn retry_after_ms(&self) -> Option<Millis> {
        match self {
            Self::Refused(
                Refused::QueueFull { retry_after_ms }
                | Refused::NoRoom { retry_after_ms }
                | Refused::Dropped { retry_after_ms },
            ) => Some(*retry_after_ms),
            Self::Crowded | Self::Refused(_) | Self::DrainDeadline | Self::ShutDown => {
                Some(UNFORESEEN_MS)
            }
            _ => None,
        }
    }

    /// OpenAI's error object.
    pub(super) fn body(message: &str, kind: &str, code: &str, param: Option<&str>) -> String {
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
            .to_string()
    }

    /// The refusal as it is sent.
    #[must_use]
    pub fn response(&self) -> Response<GatewayBody> {
        let (status, kind, code) = self.table();
        let param = matches!(
            self,
            Self::BadModel { .. } | Self::NoModel { .. } | Self::UnknownModel { .. }
        );
        let body = Self::body(&self.to_string(), kind, code, param.then_some("model"));
        let mut response = Response::new(GatewayBody::whole(body.into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(ms) = self.retry_after_ms() {
            headers.insert(header::RETRY_AFTER, ms.div_ceil(1_000).into());
            headers.insert(BACKOFF_MS, ms.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 15.5.2.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::Crowded = self {
            // Its connection is needed for others.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::Method { allowed } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}
