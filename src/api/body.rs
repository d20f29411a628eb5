//! Reading request bodies: size, then type, then content.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::listen::{self, CollectError};
use crate::types::{ErrorCode, Object};

use super::ApiError;

/// Largest body under `/v2` (contract §1.1).
const MAX_BODY_BYTES: usize = 1 << 20;

/// A client that sends nothing of its body for so long is not going to.
const BODY_IDLE: Duration = Duration::from_secs(10);

/// All of a body, within its bounds and of a type that may be JSON.
pub(super) async fn collect(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let bytes = listen::collect(body, MAX_BODY_BYTES, BODY_IDLE)
        .await
        .map_err(|e| {
            let code = match e {
                CollectError::TooLarge { .. } => ErrorCode::PayloadTooLarge,
                CollectError::Stalled { .. } | CollectError::Broken(_) => ErrorCode::InvalidRequest,
            };
            ApiError::new(code, e.to_string())
        })?;
    if let Some(kind) = headers.get(header::CONTENT_TYPE)
        && !is_json(kind.to_str().unwrap_or_default())
    {
        let message =
            format!("the content type {kind:?} is not JSON; send application/json, or none");
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    Ok(bytes)
}

fn is_json(kind: &str) -> bool {
    let essence = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The body as a JSON object. What the reader of a field does not know what to make of, it calls bad syntax: whoever sent
/// valid JSON is not told to look for a comma.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map(|Object(value)| value)
        .map_err(|e| {
            let what = if e.is_data() || is_valid_json(bytes) {
                "the body does not fit"
            } else {
                "the body is not valid JSON"
            };
            ApiError::new(ErrorCode::InvalidRequest, format!("{what}: {e}"))
        })
}

fn is_valid_json(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_several_names() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "text/json+x", "application/jsonp"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
