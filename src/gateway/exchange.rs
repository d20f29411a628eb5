//! One request on its way: as many attempts as it takes, until there is an answer that is the client's.
//!
//! Invariants: an attempt that failed has sent the client nothing; the slots of an attempt are given back before the next
//! one asks for some; a request that pauses before it goes to the same pool again does so with its slots in hand, since
//! nobody overtakes it; whatever drops an exchange closes its upstream.

mod carried;
mod judge;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::response::Parts;
use tokio::time::Instant;
use tracing::info;

use crate::admission::{Ask, EndSignal, ModelIx, Permit, Refused};
use crate::relay::{self, Outgoing, RelayBody};

use super::answer::is_event_stream;
use super::outlet::Outlet;
use super::peek::Peek;
use super::record::Record;
use super::{Gateway, GatewayError};

pub(super) use carried::Carried;

/// Attempts in all: one and two retries (contract §3).
const MAX_ATTEMPTS: u32 = 3;
/// Pauses before the same pool is tried again (contract §3).
const SAME_POOL_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// Longest answer that is read whole where a stream was asked for, or a refusal is looked into; those have a few hundred
/// bytes.
const WHOLE_BYTES: usize = 16 << 20;

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

impl Failed {
    /// No engine answered.
    fn upstream(detail: String, record: Box<Record>) -> Self {
        let attempts = record.attempts;
        let error = GatewayError::Upstream { detail, attempts };
        Self { error, record }
    }
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
                // What an engine said is a better answer than that nobody else was found.
                Err(Refused::QueueTimeout | Refused::NoReadyPool) if said.is_some() => {
                    return give_up(said, String::new(), record);
                }
                Err(refused) => {
                    let error = refused.into();
                    return Err(Failed { error, record });
                }
            };
            record.has_waited();
            let mut end = permit.end_signal();
            let same = ask.avoid == Some(permit.pool());
            if let Some(failed) = failed.filter(|_| same) {
                let pause = SAME_POOL_PAUSES[(record.attempts as usize).clamp(1, 2) - 1];
                if ends_before(failed + pause, &mut end).await {
                    let error = GatewayError::ended(permit.is_shutdown());
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
            let answer = fault.answer.take();
            said = answer
                .map(|answer| (answer, record.outlet().cloned()))
                .or(said);
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
            Err((error, carried)) => judge::unanswered(error, carried),
        }
    }
}

/// An engine's refusal, and where it was made.
type Said = ((Parts, Bytes), Option<Arc<Outlet>>);

/// The last attempt has failed: what an engine said is the answer, if one said anything.
fn give_up(said: Option<Said>, detail: String, mut record: Box<Record>) -> Result<Reply, Failed> {
    match said {
        Some(((parts, bytes), outlet)) => {
            record.answered_by(outlet);
            Ok(Reply::Whole(Whole {
                parts,
                bytes,
                record,
            }))
        }
        None => Err(Failed::upstream(detail, record)),
    }
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
