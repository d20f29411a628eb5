//! What an answer says: that it is a control plane's, and whether it is a good one.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use serde::Deserialize;

use crate::fetch::{self, FetchError};
use crate::types::{ErrorBody, ErrorCode, HttpUrl, VERSION_HEADER};

use super::{ClientError, MAX_ANSWER_BYTES};

/// How much of an unexpected answer an error message shows, in characters.
const EXCERPT: usize = 120;

/// All of an answer's body.
pub(super) async fn read(
    server: &HttpUrl,
    response: reqwest::Response,
    most: usize,
) -> Result<Vec<u8>, ClientError> {
    fetch::whole(response, most).await.map_err(|e| match e {
        FetchError::Http(source) => unreachable(server, source),
        e @ FetchError::TooLarge { .. } => ClientError::NotOrchd {
            server: server.clone(),
            what: e.to_string(),
        },
    })
}

pub(super) fn unreachable(server: &HttpUrl, source: reqwest::Error) -> ClientError {
    ClientError::Unreachable {
        server: server.clone(),
        source: source.without_url(),
    }
}

/// The answer, if it is a control plane's and a good one.
pub(super) async fn accepted(
    server: &HttpUrl,
    response: reqwest::Response,
) -> Result<reqwest::Response, ClientError> {
    let status = response.status();
    if !response.headers().contains_key(VERSION_HEADER) {
        return Err(ClientError::NotOrchd {
            server: server.clone(),
            what: format!("it answers {status} without the header {VERSION_HEADER}"),
        });
    }
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
    let body = read(server, response, MAX_ANSWER_BYTES).await?;
    let refusal = refusal(status, &body);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ClientError::Unauthorized {
            server: server.clone(),
            status: status.as_u16(),
            message: refusal.message,
        },
        _ => ClientError::Refused {
            server: server.clone(),
            status: status.as_u16(),
            body: Box::new(refusal),
            retry_after,
        },
    })
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    value
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// Reads the body of a refusal. A control plane of another version may have a code that this one does not know: then
/// the status tells the kind, and the word goes into the message rather than being lost.
fn refusal(status: StatusCode, body: &[u8]) -> ErrorBody {
    #[derive(Deserialize)]
    struct Loose {
        code: Option<String>,
        message: Option<String>,
    }

    /// The gateway answers in the form of OpenAI's API.
    #[derive(Deserialize)]
    struct OpenAi {
        error: OpenAiError,
    }
    #[derive(Deserialize)]
    struct OpenAiError {
        message: String,
    }

    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        return body;
    }
    let code = match status.as_u16() {
        400 => ErrorCode::InvalidRequest,
        401 => ErrorCode::Unauthorized,
        403 => ErrorCode::Forbidden,
        404 => ErrorCode::NotFound,
        405 => ErrorCode::MethodNotAllowed,
        413 => ErrorCode::PayloadTooLarge,
        415 => ErrorCode::UnsupportedMediaType,
        503 => ErrorCode::StoreUnavailable,
        // Among them 409: over what there is a conflict only a code says, and agents end themselves over some.
        _ => ErrorCode::Internal,
    };
    if let Ok(OpenAi { error }) = serde_json::from_slice(body) {
        return ErrorBody::new(code, error.message);
    }
    let message = match serde_json::from_slice::<Loose>(body) {
        Ok(Loose {
            code: Some(word),
            message: Some(text),
        }) => format!("{word}: {text}"),
        Ok(
            Loose {
                code: Some(text), ..
            }
            | Loose {
                message: Some(text),
                ..
            },
        ) => text,
        _ => {
            let text = String::from_utf8_lossy(body);
            let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let excerpt: String = line.chars().take(EXCERPT).collect();
            if excerpt.is_empty() {
                format!("it answers {status}")
            } else {
                format!("it answers {status}: {excerpt}")
            }
        }
    };
    ErrorBody::new(code, message)
}
