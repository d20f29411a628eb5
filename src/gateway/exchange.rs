//! One request on its way: as many attempts as it takes, until there is an answer that is the client's.
//!
//! Invariants: an attempt that failed has sent the client nothing; the slots of an attempt are given back before the next
//! one asks for some; whatever drops an exchange closes its upstream.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tracing::info;

use crate::admission::{Ask, EndSignal, Failure, ModelIx, Permit, Refused};
use crate::relay::{self, Broken, End, Load, Outgoing, RelayBody, SendError};
use crate::types::{Millis, REFUSED_HEADER};

use super::answer::is_event_stream;
use super::record::Record;
use super::{Gateway, GatewayError};

/// Attempts in all: one and two retries (contract §3).
const MAX_ATTEMPTS: u32 = 3;
/// Pauses before the same pool is tried again (contract §3).
const SAME_POOL_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// Longest answer that is read whole where a stream was asked for, or a refusal is looked into; those have a few hundred
/// bytes.
const WHOLE_BYTES: usize = 16 << 20;
/// What an agent says that is being stopped: nobody's failure.
const STOPPING: &str = "stopping";

/// What an exchange carries along while it is at a pool.
pub(super) struct Carried {
    /// Given back as soon as the engine has finished and its answer is judged.
    permit: Option<Permit>,
    end: Option<EndSignal>,
    record: Box<Record>,
    judged: bool,
}

impl Carried {
    fn new(mut permit: Permit, end: Option<EndSignal>, record: Box<Record>) -> Self {
        permit.sent();
        Self {
            permit: Some(permit),
            end,
            record,
            judged: false,
        }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it is ended by the process's own end.
    pub fn is_shutdown(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_shutdown)
    }

    /// The client is given an answer of this status.
    pub fn answers(&mut self, status: StatusCode) {
        self.record.answers(status);
    }

    /// What the client gets of it is cut short.
    pub fn cut(&mut self, code: &'static str) {
        self.record.cut(code);
        self.settle();
    }

    /// What the answer says of its pool is said.
    fn judge(&mut self, say: impl FnOnce(&mut Permit)) {
        if let Some(permit) = &mut self.permit {
            say(permit);
        }
    }

    /// Nothing more is to be said of the pool.
    fn settle(&mut self) {
        self.judged = true;
        if self.permit.as_ref().is_some_and(Permit::is_done) {
            self.permit = None;
        }
    }
}

impl Load for Carried {
    fn answering(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.answering();
        }
        self.record.began();
    }

    fn passing(&mut self, bytes: &Bytes) {
        self.record.passing(bytes);
    }

    fn done(&mut self, end: End) {
        self.record.done(end);
        if let Some(permit) = &mut self.permit {
            // One that breaks off in the middle is a failure like any other.
            if self.judged && end == End::Broken {
                permit.failed(Failure::Broken);
            } else {
                permit.done();
            }
        }
        if self.judged {
            self.permit = None;
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.end {
            Some(end) => end.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// An answer that was read whole.
pub(super) struct Whole {
    pub parts: Parts,
    pub bytes: Bytes,
    pub record: Box<Record>,
}

/// An answer that is the client's.
#[expect(
    clippy::large_enum_variant,
    reason = "handed on at once, and one allocation less for each request that is relayed"
)]
pub(super) enum Reply {
    /// Comes piece by piece.
    Coming {
        parts: Parts,
        body: RelayBody<Carried>,
    },
    /// Is all there.
    Whole(Whole),
}

/// There is no answer.
pub(super) struct Failed {
    pub error: GatewayError,
    pub record: Box<Record>,
}

/// One request, read.
pub(super) struct Exchange {
    pub gateway: Arc<Gateway>,
    pub outgoing: Outgoing,
    pub model: ModelIx,
    pub weight: u32,
}

/// What an attempt came to.
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart at once, and one allocation less for each request that is relayed"
)]
enum Attempt {
    Reply(Reply),
    /// It may be tried again.
    Fault(Fault, Box<Record>),
    /// It may not.
    Failed(Failed),
}

/// Why an answer is not yet the client's.
struct Fault {
    why: Why,
    /// What the engine said, in case nobody says anything better.
    answer: Option<(Parts, Bytes)>,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Nobody took the connection.
    Connect,
    /// The connection broke.
    Reset,
    /// A kept connection was just being closed.
    Raced,
    /// The engine was found dead.
    Dead,
    /// The engine is busy or loading: 429, 503.
    Busy,
    /// 502.
    BadGateway,
    /// Its agent refused it.
    Agent,
    /// Its agent is being stopped.
    Stopping,
    /// Its prompt is too long for this pool, and not for another.
    Context,
}

impl Why {
    const ALL: [Self; 9] = [
        Self::Connect,
        Self::Reset,
        Self::Raced,
        Self::Dead,
        Self::Busy,
        Self::BadGateway,
        Self::Agent,
        Self::Stopping,
        Self::Context,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Raced => "kept_connection",
            Self::Dead => "dead",
            Self::Busy => "busy",
            Self::BadGateway => "bad_gateway",
            Self::Agent => "agent",
            Self::Stopping => "stopping",
            Self::Context => "context",
        }
    }

    /// Whether trying again says nothing of the fleet's health, and so is not counted against its budget.
    fn is_free(self) -> bool {
        matches!(self, Self::Raced | Self::Stopping | Self::Context)
    }
}

/// The words for what makes the gateway try again.
pub(super) fn reasons() -> [&'static str; Why::ALL.len()] {
    Why::ALL.map(Why::as_str)
}

impl Exchange {
    /// Runs it. Dropping the future gives everything back.
    pub async fn run(mut self, mut record: Box<Record>) -> Result<Reply, Failed> {
        let mut ask = Ask {
            model: self.model,
            weight: self.weight,
            bytes: self.outgoing.body.len() as u64,
            turn: None,
            avoid: None,
            min_ctx: 0,
        };
        // When the last attempt failed; none when there is nothing to wait for.
        let mut failed: Option<Instant> = None;
        loop {
            record.asks();
            let mut permit = match self.gateway.admission.acquire(ask).await {
                Ok(permit) => permit,
                Err(refused) => {
                    let error = refused.into();
                    return Err(Failed { error, record });
                }
            };
            let mut end = permit.end_signal();
            let same = ask.avoid == Some(permit.pool());
            if let Some(failed) = failed.filter(|_| same) {
                let pause = SAME_POOL_PAUSES[(record.attempts as usize).clamp(1, 2) - 1];
                if ends_before(failed + pause, &mut end).await {
                    let error = if permit.is_shutdown() {
                        Refused::ShuttingDown.into()
                    } else {
                        GatewayError::DrainDeadline
                    };
                    return Err(Failed { error, record });
                }
            }
            ask.turn = Some(permit.turn());
            ask.avoid = Some(permit.pool());
            let (fault, so_far) = match self.attempt(permit, end, record, &mut ask).await {
                Attempt::Reply(reply) => return Ok(reply),
                Attempt::Failed(failed) => return Err(failed),
                Attempt::Fault(fault, record) => (fault, record),
            };
            record = so_far;
            self.log(&fault, &record);
            let again = record.attempts < MAX_ATTEMPTS
                && (fault.why.is_free() || self.gateway.admission.may_retry());
            if !again {
                return self.give_up(fault, record);
            }
            record.retried(fault.why.as_str());
            failed = (fault.why != Why::Raced).then(Instant::now);
        }
    }

    fn log(&self, fault: &Fault, record: &Record) {
        let Some(outlet) = record.outlet() else {
            return;
        };
        let (node_id, pool_id) = (&outlet.upstream.node_id, &outlet.upstream.pool_id);
        let (attempt, fault) = (record.attempts, &fault.detail);
        info!(%node_id, %pool_id, attempt, fault, "a pool could not serve a request");
    }

    /// The last attempt has failed: what the engine said is the answer, if it said anything.
    fn give_up(&self, fault: Fault, record: Box<Record>) -> Result<Reply, Failed> {
        match fault.answer {
            Some((parts, bytes)) => Ok(Reply::Whole(Whole {
                parts,
                bytes,
                record,
            })),
            None => {
                let error = GatewayError::Upstream {
                    detail: fault.detail,
                    attempts: record.attempts,
                };
                Err(Failed { error, record })
            }
        }
    }

    async fn attempt(
        &mut self,
        permit: Permit,
        end: Option<EndSignal>,
        mut record: Box<Record>,
        ask: &mut Ask,
    ) -> Attempt {
        let gateway = Arc::clone(&self.gateway);
        let outlet = gateway.outlet(&permit);
        record.goes_to(Arc::clone(&outlet));
        let headers = &mut self.outgoing.headers;
        match gateway.shown(&outlet.upstream) {
            Some(bearer) => drop(headers.insert(header::AUTHORIZATION, bearer)),
            None => drop(headers.remove(header::AUTHORIZATION)),
        }
        self.outgoing.fresh = record.attempts > 1;
        let sent = relay::send(
            &outlet.upstream.origin,
            outlet.peer,
            Some(&outlet.vitals),
            &self.outgoing,
            Carried::new(permit, end, record),
        )
        .await;
        match sent {
            Ok(response) => self.judge(response, ask).await,
            Err((error, carried)) => unanswered(error, carried),
        }
    }

    /// 4xx and 501 say nothing of a pool, 429 and 503 that it is busy, other 5xx that it is broken; 429, 502 and 503 are
    /// tried again (contract §3).
    async fn judge(&self, response: Response<RelayBody<Carried>>, ask: &mut Ask) -> Attempt {
        let (mut parts, mut body) = response.into_parts();
        let status = parts.status;
        let refused = parts.headers.remove(REFUSED_HEADER);
        relay::end_to_end(&mut parts.headers);
        let carried = body.load_mut();
        if let Some(code) = refused {
            // A stopping agent and an unreachable engine are both gone for the moment.
            carried.judge(|permit| permit.failed(Failure::Refused));
            let stops = code == STOPPING;
            let fault = Fault {
                why: if stops { Why::Stopping } else { Why::Agent },
                answer: None,
                detail: format!(
                    "its agent refused: {}",
                    String::from_utf8_lossy(code.as_bytes())
                ),
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
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                carried.judge(|permit| permit.failed(Failure::Broken));
                None
            }
            _ => {
                carried.judge(Permit::served);
                None
            }
        };
        let Some(why) = why else {
            carried.settle();
            return Attempt::Reply(Reply::Coming { parts, body });
        };
        let (whole, record) = collect(body).await;
        let bytes = match whole {
            Ok(bytes) => bytes,
            Err(partial) => {
                let fault = Fault {
                    why: Why::Reset,
                    answer: None,
                    detail: format!("it answered {status}, and {partial}"),
                };
                return Attempt::Fault(fault, record);
            }
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

/// What a missing answer says of its pool, and of the request.
fn unanswered(error: SendError, mut carried: Carried) -> Attempt {
    let (why, failure) = match &error {
        SendError::Connect { source, .. } => {
            (Why::Connect, is_theirs(source).then_some(Failure::Refused))
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
        SendError::Ended => {
            let error = if carried.is_shutdown() {
                Refused::ShuttingDown.into()
            } else {
                GatewayError::DrainDeadline
            };
            // The engine may still be at it: the permit says so when it is dropped.
            let record = carried.record;
            return Attempt::Failed(Failed { error, record });
        }
        SendError::Request(_) => (Why::Reset, None),
    };
    carried.judge(|permit| match failure {
        Some(failure) => permit.failed(failure),
        None => permit.done(),
    });
    let fault = Fault {
        why,
        answer: None,
        detail: error.to_string(),
    };
    Attempt::Fault(fault, carried.record)
}

/// Waits until this moment. True when the request is to end before.
async fn ends_before(moment: Instant, end: &mut Option<EndSignal>) -> bool {
    match end {
        Some(end) => tokio::time::timeout_at(moment, end).await.is_ok(),
        None => {
            tokio::time::sleep_until(moment).await;
            false
        }
    }
}

/// Whether a failed connection is the upstream's doing, and not for want of descriptors or ports here.
fn is_theirs(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, InvalidData, NetworkUnreachable,
        TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | TimedOut
            // A certificate that cannot be trusted.
            | InvalidData
    )
}

/// Why an answer cannot be had as a whole.
#[derive(Debug, thiserror::Error)]
enum Partial {
    #[error("its answer broke off: {0}")]
    Broken(#[from] Broken),
    #[error("its answer is longer than {WHOLE_BYTES} bytes")]
    TooLong,
}

/// Reads an answer to its end.
async fn collect(mut body: RelayBody<Carried>) -> (Result<Bytes, Partial>, Box<Record>) {
    let mut bytes = BytesMut::new();
    let whole = loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                if bytes.len() > WHOLE_BYTES {
                    break Err(Partial::TooLong);
                }
            }
            Some(Err(broken)) => break Err(broken.into()),
            None => break Ok(bytes.freeze()),
        }
    };
    (whole, body.into_load().record)
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
        let (whole, record) = collect(body).await;
        match whole {
            Ok(bytes) => Ok(Self::Whole(Whole {
                parts,
                bytes,
                record,
            })),
            Err(partial) => {
                let error = GatewayError::Upstream {
                    detail: partial.to_string(),
                    attempts: record.attempts,
                };
                Err(Failed { error, record })
            }
        }
    }
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
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: Said,
    }
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        n_prompt_tokens: u64,
        #[serde(default)]
        n_ctx: u64,
    }
    let Refusal { error } = serde_json::from_slice(refusal).ok()?;
    // Room for the prompt, and for a token of the answer.
    let more = error.n_prompt_tokens.max(error.n_ctx).saturating_add(1);
    (error.kind == "exceed_context_size_error").then_some(more)
}
