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
use super::assemble::{AssembleError, Assembler};
use super::peek::Peek;
use super::record::Record;
use super::{Gateway, GatewayError, NO_BUFFERING};

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
    gateway: Arc<Gateway>,
    /// What is sent, with the body that suits the pool.
    outgoing: Outgoing,
    model: ModelIx,
    peek: Peek,
    /// The body as it came.
    body: Bytes,
    /// Its answer is put together from a stream, where the engine is llama.cpp's.
    assembles: bool,
    /// The body that asks for that stream, once it was needed.
    streamed: Option<Bytes>,
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
    pub fn new(
        gateway: &Arc<Gateway>,
        outgoing: Outgoing,
        model: ModelIx,
        peek: Peek,
        assembles: bool,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            body: outgoing.body.clone(),
            outgoing,
            model,
            peek,
            assembles,
            streamed: None,
        }
    }

    /// Whether the client asks for a stream.
    pub fn is_stream(&self) -> bool {
        self.peek.stream
    }

    /// The path that it is for.
    pub fn path(&self) -> &str {
        &self.outgoing.path
    }

    /// Runs it. Dropping the future gives everything back.
    pub async fn run(mut self, mut record: Box<Record>) -> Result<Reply, Failed> {
        let mut ask = Ask {
            model: self.model,
            weight: self.peek.weight,
            bytes: self.body.len() as u64,
            turn: None,
            avoid: None,
            min_ctx: 0,
        };
        // When the last attempt failed; none when there is nothing to wait for.
        let mut failed: Option<Instant> = None;
        // What an engine said, in case nobody says anything better; and attempts that found nobody where nobody else is.
        let mut said = None;
        let mut in_vain = 0;
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
            let (mut fault, so_far) = match self.attempt(permit, end, record, &mut ask).await {
                Attempt::Reply(reply) => return Ok(reply),
                Attempt::Failed(failed) => return Err(failed),
                Attempt::Fault(fault, record) => (fault, record),
            };
            record = so_far;
            self.log(&fault, &record);
            said = fault.answer.take().or(said);
            let admission = &self.gateway.admission;
            // It waits for a pool like everybody else who came, and is told so when the wait is over.
            let waits = fault.why == Why::Connect && !admission.is_hopeful(self.model);
            if waits {
                in_vain += 1;
            }
            let again = waits
                || record.attempts < MAX_ATTEMPTS + in_vain
                    && (fault.why.is_free() || admission.may_retry());
            if !again {
                return give_up(said, fault.detail, record);
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
        let id = record.called();
        info!(%id, %node_id, %pool_id, attempt, fault, "a pool could not serve a request");
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
        let assembles = self.assembles && outlet.upstream.is_llamacpp;
        self.outgoing.body = if assembles {
            let Self {
                streamed,
                peek,
                body,
                ..
            } = self;
            streamed.get_or_insert_with(|| peek.streamed(body)).clone()
        } else {
            self.body.clone()
        };
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
            Ok(response) => self.judge(response, ask, assembles).await,
            Err((error, carried)) => unanswered(error, carried),
        }
    }

    /// 4xx and 501 say nothing of a pool, 429 and 503 that it is busy, other 5xx that it is broken; 429, 502 and 503 are
    /// tried again (contract §3).
    async fn judge(
        &self,
        response: Response<RelayBody<Carried>>,
        ask: &mut Ask,
        assembles: bool,
    ) -> Attempt {
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
        let Some(why) = why else {
            carried.settle();
            if assembles && is_event_stream(status, &parts.headers) {
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

/// Whether a 500 says that the request is at fault. llama-server words some mistakes of clients so (measured: an image for
/// a model that sees none, tools that are no list, a number beyond all numbers); one client that makes them again and
/// again must not have every engine but the last left out.
fn blames_request(refusal: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: Said,
    }
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    const WORDS: [&str; 5] = [
        "[json.exception.",
        "Failed to parse ",
        "image input is not supported",
        "audio input is not supported",
        "video input is not supported",
    ];
    serde_json::from_slice(refusal)
        .is_ok_and(|Refusal { error }| WORDS.iter().any(|words| error.message.starts_with(words)))
}

/// The last attempt has failed: what an engine said is the answer, if one said anything.
fn give_up(
    said: Option<(Parts, Bytes)>,
    detail: String,
    record: Box<Record>,
) -> Result<Reply, Failed> {
    match said {
        Some((parts, bytes)) => Ok(Reply::Whole(Whole {
            parts,
            bytes,
            record,
        })),
        None => {
            let attempts = record.attempts;
            let error = GatewayError::Upstream { detail, attempts };
            Err(Failed { error, record })
        }
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
        SendError::Ended => return ended(carried),
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
async fn collect(mut body: RelayBody<Carried>) -> Result<(Bytes, Carried), Attempt> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Err(broken) => return Err(broken_off(&broken, body.into_load())),
        }
        if bytes.len() > WHOLE_BYTES {
            let record = body.into_load().record;
            let detail = format!("its answer is longer than {WHOLE_BYTES} bytes");
            return Err(failed(detail, record));
        }
    }
    Ok((bytes.freeze(), body.into_load()))
}

/// Reads a stream to its end, and makes of it the answer that was asked for.
async fn assemble(mut parts: Parts, mut body: RelayBody<Carried>) -> Attempt {
    let mut assembler = Assembler::default();
    let mut assembled = Ok(());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                assembled = assembler.push(data);
            }
            Err(broken) => return broken_off(&broken, body.into_load()),
        }
        if assembled.is_err() {
            break;
        }
    }
    let mut carried = body.into_load();
    let bytes = match assembled.and_then(|()| assembler.finish()) {
        Ok(bytes) => bytes,
        Err(AssembleError::Engine { status, body }) => {
            parts.status = status;
            body
        }
        Err(error @ AssembleError::TooLarge) => return failed(error.to_string(), carried.record),
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
    // What was said of the stream is not true of the answer.
    for name in [header::CACHE_CONTROL, header::CONTENT_LENGTH, NO_BUFFERING] {
        parts.headers.remove(name);
    }
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    parts.headers.insert(header::CONTENT_TYPE, kind);
    Attempt::Reply(Reply::Whole(Whole {
        parts,
        bytes,
        record: carried.record,
    }))
}

/// There will be no answer, whoever is asked.
fn failed(detail: String, record: Box<Record>) -> Attempt {
    let attempts = record.attempts;
    let error = GatewayError::Upstream { detail, attempts };
    Attempt::Failed(Failed { error, record })
}

/// Whoever owns the exchange has ended it. The engine may still be at it: the permit says so when it is dropped.
fn ended(carried: Carried) -> Attempt {
    let error = if carried.is_shutdown() {
        Refused::ShuttingDown.into()
    } else {
        GatewayError::DrainDeadline
    };
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
            Err(Attempt::Fault(fault, record)) => {
                let attempts = record.attempts;
                let detail = fault.detail;
                let error = GatewayError::Upstream { detail, attempts };
                Err(Failed { error, record })
            }
            Err(Attempt::Reply(reply)) => Ok(reply),
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
