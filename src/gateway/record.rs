//! What is told of one request: a line in the log, and its part of the metrics.
//!
//! Invariants: every request is told of exactly once, when its record is dropped, however it ends; nothing that a client
//! wrote is told but the id it gave the request and the name of a model that is known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;
use tracing::info;

use crate::metrics::{Course, Meter, Phase, Relayed, UNKNOWN_MODEL};
use crate::relay::End;

use super::outlet::Outlet;

/// Of requests that went well, one in so many is told of when the log is a sample.
const SAMPLE: u64 = 100;

/// Which requests have a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Each.
    On,
    /// Each that did not go well, and one in a hundred of the others.
    Sampled,
}

/// Where records are told.
#[derive(Debug)]
pub(super) struct Book {
    pub relayed: Relayed,
    pub log: AccessLog,
    /// Of models that are not known.
    unknown: OnceLock<Arc<Meter>>,
    /// Requests that went well.
    went_well: AtomicU64,
}

impl Book {
    pub fn new(relayed: Relayed, log: AccessLog) -> Arc<Self> {
        Arc::new(Self {
            relayed,
            log,
            unknown: OnceLock::new(),
            went_well: AtomicU64::new(0),
        })
    }

    fn wants(&self, is_well: bool) -> bool {
        match self.log {
            AccessLog::Off => false,
            AccessLog::On => true,
            AccessLog::Sampled => {
                !is_well || (self.went_well.fetch_add(1, Ordering::Relaxed)).is_multiple_of(SAMPLE)
            }
        }
    }
}

/// One request.
pub(super) struct Record {
    book: Arc<Book>,
    id: HeaderValue,
    /// Of its model; none while that is not known.
    meter: Option<Arc<Meter>>,
    course: Course,
    /// When it asked for a slot for the last time.
    asked: Instant,
    /// How long it has waited for slots.
    queued: Duration,
    pub attempts: u32,
    outlet: Option<Arc<Outlet>>,
    phase: Phase,
    /// Of the answer, once the client has it.
    status: Option<StatusCode>,
    /// How it ended, where that needs a word.
    outcome: Option<&'static str>,
    /// All of the answer was there.
    whole: bool,
}

impl Record {
    pub fn new(book: &Arc<Book>, id: HeaderValue) -> Self {
        Self {
            book: Arc::clone(book),
            id,
            meter: None,
            course: Course::new(),
            asked: Instant::now(),
            queued: Duration::ZERO,
            attempts: 0,
            outlet: None,
            phase: Phase::Queue,
            status: None,
            outcome: None,
            whole: false,
        }
    }

    /// Its model is a known one.
    pub fn model(&mut self, meter: Option<Arc<Meter>>) {
        self.meter = meter;
    }

    /// What the request is called.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// It asks for a slot.
    pub fn asks(&mut self) {
        self.asked = Instant::now();
        self.phase = Phase::Queue;
    }

    /// It has a slot there.
    pub fn goes_to(&mut self, outlet: Arc<Outlet>) {
        self.queued += self.asked.elapsed();
        self.attempts += 1;
        self.outlet = Some(outlet);
        self.phase = Phase::Prefill;
        self.course.again();
    }

    /// How long it has waited for slots, in milliseconds.
    pub fn queue_ms(&self) -> u64 {
        u64::try_from(self.queued.as_millis()).unwrap_or(u64::MAX)
    }

    /// Where it is or was last.
    pub fn outlet(&self) -> Option<&Arc<Outlet>> {
        self.outlet.as_ref()
    }

    pub fn retried(&self, reason: &'static str) {
        self.book.relayed.retried(reason);
    }

    /// The first bytes of an answer are here.
    pub fn began(&mut self) {
        self.phase = Phase::Stream;
        self.course.began();
    }

    pub fn passing(&mut self, bytes: &[u8]) {
        self.course.pass(bytes);
    }

    /// The engine has finished.
    pub fn done(&mut self, end: End) {
        self.whole = end == End::Whole;
    }

    /// The client is given an answer of this status.
    pub fn answers(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The client is refused.
    pub fn refused(&mut self, status: StatusCode, code: &'static str) {
        // A stream that was begun early has its status.
        self.status.get_or_insert(status);
        self.outcome = Some(code);
        self.book.relayed.rejected(code);
    }

    /// The answer is cut short.
    pub fn cut(&mut self, code: &'static str) {
        self.outcome = Some(code);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let book = Arc::clone(&self.book);
        let meter = self.meter.as_ref().unwrap_or_else(|| {
            book.unknown
                .get_or_init(|| book.relayed.meter(UNKNOWN_MODEL))
        });
        let outcome = match (self.outcome, self.status) {
            (Some(code), _) => code,
            (None, Some(status)) if self.whole && status.as_u16() < 400 => "ok",
            (None, Some(_)) if self.whole => "engine_error",
            _ => "cancelled",
        };
        let is_well = outcome == "ok";
        if outcome == "cancelled" {
            self.book.relayed.cancelled(self.phase);
        }
        if let Some(status) = self.status {
            meter.answered(status.as_u16());
        }
        if self.outlet.is_some() {
            meter.waited(self.queued);
        }
        self.course.tell(meter, is_well);
        if !book.wants(is_well) {
            return;
        }
        let upstream = self.outlet.as_ref().map(|outlet| &outlet.upstream);
        info!(
            target: "orchd::access",
            id = self.id.to_str().unwrap_or("?"),
            model = %meter.model(),
            node = upstream.map(|upstream| upstream.node_id.as_str()),
            pool = upstream.map(|upstream| upstream.pool_id.as_str()),
            queue_ms = upstream.map(|_| self.queue_ms()),
            ttft_ms = self.course.first_after().map(millis),
            ms = millis(self.course.elapsed()),
            tokens = self.course.tokens(),
            attempts = self.attempts,
            status = self.status.map(|status| status.as_u16()),
            phase = (outcome == "cancelled").then(|| self.phase.as_str()),
            outcome,
            "request"
        );
    }
}

/// Milliseconds with as many digits as a first token is worth.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
