//! Answers that are read to their end before anything of them is the client's.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderValue, header};
use http_body_util::BodyExt;

use crate::admission::Failure;
use crate::gateway::assemble::{AssembleError, Assembler};
use crate::gateway::{GatewayError, NO_BUFFERING};
use crate::relay::{Broken, End, Load, RelayBody};

use super::{Attempt, Carried, Failed, Fault, Reply, WHOLE_BYTES, Whole, Why, is_event_stream};

/// How long the end of a stream may come after its last event.
const LAST_CHUNK: Duration = Duration::from_millis(100);

/// An answer that cannot be had as a whole.
fn broken_off(broken: &Broken, mut carried: Carried) -> Attempt {
    let why = match broken {
        Broken::Ended => return ended(carried),
        Broken::Died(_) => Why::Dead,
        Broken::Connection(_) => Why::Reset,
    };
    carried.judge(|permit| permit.failed(Failure::Broken));
    let fault = Fault {
        why,
        answer: None,
        detail: format!("its answer broke off: {broken}"),
    };
    Attempt::Fault(fault, carried.record)
}

/// Reads an answer to its end.
pub(super) async fn collect(mut body: RelayBody<Carried>) -> Result<(Bytes, Carried), Attempt> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Err(broken) => return Err(broken_off(&broken, body.into_load())),
        }
        if bytes.len() > WHOLE_BYTES {
            let record = body.into_load().record;
            let detail = format!("its answer is longer than {WHOLE_BYTES} bytes");
            // Whoever is asked: it is not tried again.
            return Err(Attempt::Failed(Failed::upstream(detail, record)));
        }
    }
    Ok((bytes.freeze(), body.into_load()))
}

/// Reads a stream to its end, and makes of it the answer that was asked for.
pub(super) async fn assemble(mut parts: Parts, mut body: RelayBody<Carried>) -> Attempt {
    let mut assembler = Assembler::default();
    let mut assembled = Ok(());
    while assembled.is_ok() {
        let next = if assembler.is_done() {
            // All is there but the end of the stream, which may keep a connection for the next request.
            tokio::time::timeout(LAST_CHUNK, body.frame()).await.ok()
        } else {
            Some(body.frame().await)
        };
        match next.flatten() {
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                assembled = assembler.push(data);
            }
            Some(Err(broken)) if !assembler.is_done() => {
                return broken_off(&broken, body.into_load());
            }
            Some(Err(_)) | None => break,
        }
    }
    // What was said of the stream is not true of the answer.
    for name in [header::CACHE_CONTROL, header::CONTENT_LENGTH, NO_BUFFERING] {
        parts.headers.remove(name);
    }
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    parts.headers.insert(header::CONTENT_TYPE, kind);
    let mut carried = body.into_load();
    if assembler.is_done() {
        carried.done(End::Whole);
    }
    let bytes = match assembled.and_then(|()| assembler.finish()) {
        Ok(bytes) => bytes,
        Err(AssembleError::Engine { status, body }) => {
            // As if it had said so before it began.
            let why = carried.judge_error(status, &body);
            carried.done(End::Whole);
            parts.status = status;
            if let Some(why) = why {
                let fault = Fault {
                    why,
                    answer: Some((parts, body)),
                    detail: format!("it answered {status} within its stream"),
                };
                return Attempt::Fault(fault, carried.record);
            }
            body
        }
        Err(error @ AssembleError::TooLarge) => {
            return Attempt::Failed(Failed::upstream(error.to_string(), carried.record));
        }
        Err(error @ (AssembleError::Incomplete | AssembleError::Malformed { .. })) => {
            carried.judge(|permit| permit.failed(Failure::Broken));
            let fault = Fault {
                why: Why::Reset,
                answer: None,
                detail: error.to_string(),
            };
            return Attempt::Fault(fault, carried.record);
        }
    };
    Attempt::Reply(Reply::Whole(Whole {
        parts,
        bytes,
        record: carried.record,
    }))
}

/// Whoever owns the exchange has ended it. The engine may still be at it: the permit says so when it is dropped.
pub(super) fn ended(carried: Carried) -> Attempt {
    let error = GatewayError::ended(carried.is_shutdown());
    let record = carried.record;
    Attempt::Failed(Failed { error, record })
}

impl Reply {
    /// The same, with an answer that is no stream read whole: its client was promised one.
    pub async fn into_stream(self) -> Result<Self, Failed> {
        let (parts, body) = match self {
            Self::Coming { parts, body } if !is_event_stream(parts.status, &parts.headers) => {
                (parts, body)
            }
            other => return Ok(other),
        };
        match collect(body).await {
            Ok((bytes, Carried { record, .. })) => Ok(Self::Whole(Whole {
                parts,
                bytes,
                record,
            })),
            Err(Attempt::Failed(failed)) => Err(failed),
            Err(Attempt::Fault(fault, record)) => Err(Failed::upstream(fault.detail, record)),
            Err(Attempt::Reply(reply)) => Ok(reply),
        }
    }
}
