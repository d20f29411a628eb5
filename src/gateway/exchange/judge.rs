//! What an answer, or the want of one, says of its pool and of the request.

use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body;

use crate::admission::{Ask, Failure, Permit};
use crate::relay::{self, RelayBody, SendError};
use crate::types::{AGENT_CROWDED, AGENT_STOPPING, Millis, REFUSED_HEADER};

use super::whole::{assemble, collect, ended};
use super::{Attempt, Carried, Exchange, Fault, Reply, Whole, Why, is_event_stream};

impl Exchange {
    /// 4xx and 501 say nothing of a pool, 429 and 503 that it is busy, other 5xx that it is broken; 429, 502 and 503 are
    /// tried again (contract §3), and so is what no engine says: 3xx.
    pub(super) async fn judge(
        &self,
        response: Response<RelayBody<Carried>>,
        ask: &mut Ask,
        assembles: bool,
    ) -> Attempt {
        let (mut parts, mut body) = response.into_parts();
        let status = parts.status;
        let refused = parts.headers.remove(REFUSED_HEADER);
        relay::end_to_end(&mut parts.headers, &[]);
        let carried = body.load_mut();
        if let Some(code) = refused {
            let why = match code.to_str() {
                Ok(AGENT_CROWDED) => Why::Busy,
                Ok(AGENT_STOPPING) => Why::Stopping,
                _ => Why::Agent,
            };
            let pause = retry_after(&parts.headers);
            carried.judge(|permit| match why {
                Why::Busy => permit.busy(pause),
                // A stopping agent and an unreachable engine are both gone for the moment.
                _ => permit.failed(Failure::Refused),
            });
            let fault = Fault {
                why,
                answer: None,
                detail: format!(
                    "its agent refused: {}",
                    String::from_utf8_lossy(code.as_bytes())
                ),
            };
            return Attempt::Fault(fault, body.into_load().record);
        }
        if status.is_redirection() {
            // Where else to ask is nothing that a client is to be told: it would go there past the queue.
            carried.judge(|permit| permit.failed(Failure::Broken));
            let fault = Fault {
                why: Why::BadGateway,
                answer: None,
                detail: format!("it answered {status}, as no engine does; is its URL right?"),
            };
            return Attempt::Fault(fault, body.into_load().record);
        }
        let why = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let pause = retry_after(&parts.headers);
                carried.judge(|permit| permit.busy(pause));
                Some(Why::Busy)
            }
            StatusCode::BAD_GATEWAY => {
                carried.judge(|permit| permit.failed(Failure::Broken));
                Some(Why::BadGateway)
            }
            StatusCode::BAD_REQUEST => {
                carried.judge(Permit::served);
                Some(Why::Context)
            }
            // Judged by its words.
            StatusCode::INTERNAL_SERVER_ERROR => {
                return internal_error(parts, body).await;
            }
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                carried.judge(|permit| permit.failed(Failure::Broken));
                None
            }
            _ => {
                carried.judge(Permit::served);
                None
            }
        };
        let is_stream = is_event_stream(status, &parts.headers);
        if is_stream && body.is_end_stream() {
            body.load_mut()
                .judge(|permit| permit.failed(Failure::Broken));
            let fault = Fault {
                why: Why::Reset,
                answer: None,
                detail: format!("it answered {status} with a stream of nothing"),
            };
            return Attempt::Fault(fault, body.into_load().record);
        }
        let carried = body.load_mut();
        let Some(why) = why else {
            carried.settle();
            if assembles && is_stream {
                return assemble(parts, body).await;
            }
            return Attempt::Reply(Reply::Coming { parts, body });
        };
        let (bytes, Carried { record, .. }) = match collect(body).await {
            Ok(whole) => whole,
            Err(attempt) => return attempt,
        };
        let detail = format!("it answered {status}");
        if why == Why::Context {
            match wants_more_context(&bytes) {
                // Once: whoever asked for more was told so before.
                Some(min_ctx)
                    if ask.min_ctx == 0
                        && self.gateway.admission.has_context(self.model, min_ctx) =>
                {
                    ask.min_ctx = min_ctx;
                }
                _ => {
                    return Attempt::Reply(Reply::Whole(Whole {
                        parts,
                        bytes,
                        record,
                    }));
                }
            }
        }
        let answer = Some((parts, bytes));
        Attempt::Fault(
            Fault {
                why,
                answer,
                detail,
            },
            record,
        )
    }
}

/// A 500 of an engine that is well, or of one that is not. It is not tried again either way (contract §3).
async fn internal_error(parts: Parts, body: RelayBody<Carried>) -> Attempt {
    let (bytes, mut carried) = match collect(body).await {
        Ok(whole) => whole,
        Err(attempt) => return attempt,
    };
    carried.judge(|permit| {
        if blames_request(&bytes) {
            permit.served();
        } else {
            permit.failed(Failure::Broken);
        }
    });
    Attempt::Reply(Reply::Whole(Whole {
        parts,
        bytes,
        record: carried.record,
    }))
}

impl Carried {
    /// What an error says of its pool that came within a stream; whether it may be tried again.
    pub(super) fn judge_error(&mut self, status: StatusCode, body: &[u8]) -> Option<Why> {
        let failure = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.judge(|permit| permit.busy(None));
                return Some(Why::Busy);
            }
            StatusCode::BAD_GATEWAY => Some(Why::BadGateway),
            status if !status.is_server_error() || blames_request(body) => return None,
            _ => None,
        };
        self.judge(|permit| permit.failed(Failure::Broken));
        failure
    }
}

/// What llama-server says of a request that it refuses.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Said {
    message: String,
    #[serde(rename = "type")]
    kind: String,
    n_prompt_tokens: u64,
    n_ctx: u64,
}

impl Said {
    fn of(refusal: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Refusal {
            error: Said,
        }
        let refusal: Refusal = serde_json::from_slice(refusal).ok()?;
        Some(refusal.error)
    }
}

/// Whether a 500 says that the request is at fault. llama-server words some mistakes of clients so (measured: an image for
/// a model that sees none, tools that are no list, a number beyond all numbers); one client that makes them again and
/// again must not have every engine but the last left out.
fn blames_request(refusal: &[u8]) -> bool {
    const WORDS: [&str; 5] = [
        "[json.exception.",
        "Failed to parse ",
        "image input is not supported",
        "audio input is not supported",
        "video input is not supported",
    ];
    Said::of(refusal)
        .is_some_and(|error| WORDS.iter().any(|words| error.message.starts_with(words)))
}

/// What a missing answer says of its pool, and of the request.
pub(super) fn unanswered(error: SendError, mut carried: Carried) -> Attempt {
    let (why, failure) = match &error {
        SendError::Connect { source, .. } => {
            let theirs = relay::is_upstreams(source.kind());
            (Why::Connect, theirs.then_some(Failure::Refused))
        }
        SendError::Reset { kept: false, .. } => (Why::Reset, Some(Failure::Broken)),
        SendError::Reset { kept: true, .. } => (Why::Raced, None),
        SendError::Died { source, .. } => (
            Why::Dead,
            Some(match source {
                relay::Died::Gone => Failure::Refused,
                relay::Died::Hung => Failure::Broken,
            }),
        ),
        SendError::Ended => return ended(carried),
        SendError::Path(_) => (Why::Reset, None),
    };
    carried.judge(|permit| match failure {
        Some(failure) => permit.failed(failure),
        None => {
            permit.done();
            permit.lost();
        }
    });
    let fault = Fault {
        why,
        answer: None,
        detail: error.to_string(),
    };
    Attempt::Fault(fault, carried.record)
}

/// `Retry-After` in seconds; a date is passed over, as no engine is known to send one.
fn retry_after(headers: &HeaderMap<HeaderValue>) -> Option<Millis> {
    let seconds: u64 = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(seconds.saturating_mul(1_000))
}

/// How much context a request needs whose prompt was too long for its pool; `None` when that is not what the engine said.
fn wants_more_context(refusal: &[u8]) -> Option<u64> {
    let error = Said::of(refusal)?;
    // Room for the prompt, and for a token of the answer.
    let more = error.n_prompt_tokens.max(error.n_ctx).saturating_add(1);
    (error.kind == "exceed_context_size_error").then_some(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_of_the_fleet_is_tried_again_whatever_its_budget() {
        let free: Vec<&str> = (Why::ALL.into_iter())
            .filter(|why| why.is_free())
            .map(Why::as_str)
            .collect();
        assert_eq!(free, ["kept_connection", "stopping", "context"]);
    }

    #[test]
    fn only_a_prompt_that_is_too_long_wants_more_context() {
        let said = br#"{"error":{"code":400,"type":"exceed_context_size_error","message":"x","n_prompt_tokens":9,"n_ctx":4}}"#;
        assert_eq!(wants_more_context(said), Some(10));
        let bare = br#"{"error":{"type":"exceed_context_size_error"}}"#;
        assert_eq!(wants_more_context(bare), Some(1));
        for other in [
            &br#"{"error":{"type":"invalid_request_error","n_prompt_tokens":9,"n_ctx":4}}"#[..],
            br#"{"error":"exceed_context_size_error"}"#,
            br#"{"type":"exceed_context_size_error"}"#,
            b"exceed_context_size_error",
            b"",
        ] {
            assert_eq!(wants_more_context(other), None);
        }
    }

    #[test]
    fn a_500_that_blames_the_request_is_told_from_one_that_does_not() {
        let said = |message: &str| {
            let error =
                serde_json::json!({"code": 500, "message": message, "type": "server_error"});
            blames_request(serde_json::json!({"error": error}).to_string().as_bytes())
        };
        for message in [
            "[json.exception.out_of_range.406] number overflow parsing '1e400'",
            "Failed to parse tools: Expected 'tools' to be an array, got 5; tools = 5",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        ] {
            assert!(said(message), "{message}");
        }
        for message in ["Compute error.", "failed to decode", ""] {
            assert!(!said(message), "{message}");
        }
        assert!(!blames_request(b"Internal Server Error"));
        assert!(!blames_request(b"{\"error\":\"Failed to parse \"}"));
    }

    #[test]
    fn a_pause_is_told_in_seconds() {
        let told = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(told(" 7 "), Some(7_000));
        assert_eq!(told("99999999999999999999"), None);
        assert_eq!(told("18446744073709551615"), Some(u64::MAX));
        assert_eq!(told("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(told("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
