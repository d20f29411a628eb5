//! How each endpoint's streams carry an error.

use bytes::Bytes;
use serde_json::{Value, json};

use super::GatewayError;

/// The form of an endpoint's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Chat and completions: `data: {"error":{…}}`.
    OpenAi,
    /// `/v1/responses`: `event: error` with the error's own fields.
    Responses,
    /// `/v1/messages`: `event: error` with an error object.
    Messages,
}

/// An error in the middle of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct InBand<'a> {
    pub message: &'a str,
    /// OpenAI's word for its kind.
    pub kind: &'a str,
    pub code: &'a str,
}

impl Dialect {
    pub fn of(path: &str) -> Self {
        match path {
            _ if path.starts_with("/v1/responses") => Self::Responses,
            _ if path.starts_with("/v1/messages") => Self::Messages,
            _ => Self::OpenAi,
        }
    }

    /// The event of an error of ours.
    pub fn error(self, error: InBand<'_>) -> Bytes {
        let InBand {
            message,
            kind,
            code,
        } = error;
        let event = match self {
            Self::OpenAi => format!("data: {}", GatewayError::body(message, kind, code, None)),
            Self::Responses => {
                let event =
                    json!({"type": "error", "code": code, "message": message, "param": null});
                format!("event: error\ndata: {event}")
            }
            Self::Messages => {
                let error = json!({"type": "api_error", "message": message, "code": code});
                let event = json!({"type": "error", "error": error});
                format!("event: error\ndata: {event}")
            }
        };
        format!("{event}\n\n").into()
    }

    /// The event of an answer that the engine gave instead of a stream, after the client was told that it gets one: its own
    /// error, or whatever else it said.
    pub fn answer(self, status: http::StatusCode, body: &[u8]) -> Bytes {
        let said: Option<Value> = serde_json::from_slice(body).ok();
        let error = said.as_ref().and_then(|said| said.get("error"));
        match (self, said.as_ref(), error) {
            // As it is, on one line.
            (Self::OpenAi, Some(said), Some(_)) => format!("data: {said}\n\n").into(),
            (_, Some(said), None) if status.is_success() => format!("data: {said}\n\n").into(),
            (_, _, Some(error)) => {
                let word = |name: &str| error.get(name).and_then(Value::as_str);
                self.error(InBand {
                    message: word("message").unwrap_or("the engine refused the request"),
                    kind: word("type").unwrap_or("server_error"),
                    code: word("type").unwrap_or("upstream_failed"),
                })
            }
            _ => self.error(InBand {
                message: &format!("the engine answered {status} instead of a stream"),
                kind: "server_error",
                code: "upstream_failed",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_own_error_keeps_its_words_in_every_dialect() {
        let said = r#"{"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error",
            "n_ctx": 4}}"#;
        let status = http::StatusCode::BAD_REQUEST;
        let event = |path: &str| {
            let bytes = Dialect::of(path).answer(status, said.as_bytes());
            String::from_utf8(bytes.to_vec()).expect("text")
        };
        assert_eq!(
            event("/v1/chat/completions"),
            "data: {\"error\":{\"code\":400,\"message\":\"too long\",\"n_ctx\":4,\"type\":\"exceed_context_size_error\"}}\n\n"
        );
        assert_eq!(
            event("/v1/responses"),
            "event: error\ndata: {\"code\":\"exceed_context_size_error\",\"message\":\"too long\",\"param\":null,\"type\":\"error\"}\n\n"
        );
        assert_eq!(
            event("/v1/messages"),
            "event: error\ndata: {\"error\":{\"code\":\"exceed_context_size_error\",\"message\":\"too long\",\"type\":\"api_error\"},\"type\":\"error\"}\n\n"
        );
    }

    #[test]
    fn what_is_no_error_object_is_told_by_its_status() {
        let bytes = Dialect::OpenAi.answer(http::StatusCode::BAD_GATEWAY, b"<html>");
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        assert!(
            text.contains("502 Bad Gateway") && text.contains("upstream_failed"),
            "{text}"
        );
        let bytes = Dialect::OpenAi.answer(http::StatusCode::OK, b"{\n \"a\": 1 }");
        assert_eq!(bytes, "data: {\"a\":1}\n\n");
    }
}
