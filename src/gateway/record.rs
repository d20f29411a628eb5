//! What is told of one request: a line in the log, and its part of the metrics.
//!
//! Invariants: every request that is to be relayed is told of exactly once, when its record is dropped, however it ends;
//! nothing that a client wrote is told but the id it gave the request and the name of a model that is known.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;
use tracing::info;

use crate::metrics::{Course, Meter, Phase, Relayed, UNKNOWN_MODEL};
use crate::relay::End;
use crate::types::AccessLog;

use super::outlet::Outlet;

/// Of requests that went well, one in so many is told of when the log is a sample.
const SAMPLE: u64 = 100;

/// How a request ends that its engine refused.
pub(super) const ENGINE_ERROR: &str = "engine_error";

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
    /// When it asked for the slot that it waits for.
    asked: Option<Instant>,
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
            asked: None,
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

    /// The same, for the log.
    pub fn called(&self) -> impl Display {
        Word(self.id.to_str().unwrap_or_default())
    }

    /// It asks for a slot.
    pub fn asks(&mut self) {
        self.asked = Some(Instant::now());
        self.phase = Phase::Queue;
    }

    /// It has a slot: its wait is over. What it pauses after that is no wait for slots.
    pub fn has_waited(&mut self) {
        self.queued += (self.asked.take()).map_or(Duration::ZERO, |asked| asked.elapsed());
    }

    /// It is sent there.
    pub fn goes_to(&mut self, outlet: Arc<Outlet>) {
        self.attempts += 1;
        self.outlet = Some(outlet);
        self.phase = Phase::Prefill;
        self.whole = false;
        self.course.again();
    }

    /// How long it has waited for slots, in milliseconds.
    pub fn queue_ms(&self) -> u64 {
        // One that waits at this moment counts as well.
        let waits = self.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        u64::try_from((self.queued + waits).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it ever asked for a slot.
    pub fn has_asked(&self) -> bool {
        self.attempts > 0 || self.asked.is_some()
    }

    /// Where the answer was made that its client gets, when that is not where it was last.
    pub fn answered_by(&mut self, outlet: Option<Arc<Outlet>>) {
        self.outlet = outlet;
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
        if std::thread::panicking() {
            // The client is told that we failed.
            self.refused(StatusCode::INTERNAL_SERVER_ERROR, "internal_error");
        }
        let has_asked = self.has_asked();
        // A wait that ended without a slot is one all the same.
        self.has_waited();
        let book = Arc::clone(&self.book);
        let meter = self.meter.as_ref().unwrap_or_else(|| {
            book.unknown
                .get_or_init(|| book.relayed.meter(UNKNOWN_MODEL))
        });
        let outcome = match (self.outcome, self.status) {
            (Some(code), _) => code,
            (None, Some(status)) if self.whole && status.as_u16() < 400 => "ok",
            (None, Some(_)) if self.whole => ENGINE_ERROR,
            _ => "cancelled",
        };
        let is_well = outcome == "ok";
        if outcome == "cancelled" {
            self.book.relayed.cancelled(self.phase);
        }
        if let Some(status) = self.status {
            meter.answered(status.as_u16());
        }
        if has_asked {
            meter.waited(self.queued);
        }
        if outcome == ENGINE_ERROR {
            // A refusal has no tokens, and comes sooner than any.
            meter.ended(self.course.elapsed(), None);
        } else {
            self.course.tell(meter, is_well);
        }
        if !book.wants(is_well) {
            return;
        }
        let upstream = self.outlet.as_ref().map(|outlet| &outlet.upstream);
        let phase = (outcome == "cancelled").then(|| self.phase.as_str());
        info!(
            target: "orchd::access",
            id = %self.called(),
            model = %Word(meter.model()),
            node = upstream.map(|upstream| display(&upstream.node_id)),
            pool = upstream.map(|upstream| display(&upstream.pool_id)),
            status = self.status.map(|status| status.as_u16()),
            outcome = %outcome,
            phase = phase.map(display),
            queue_ms = has_asked.then(|| self.queue_ms()),
            ttft_ms = self.course.first_after().map(millis),
            total_ms = millis(self.course.elapsed()),
            tokens = self.course.tokens(),
            // Of nearly all there is one.
            attempts = Some(self.attempts).filter(|attempts| *attempts > 1),
            "request"
        );
    }
}

/// A name as a line of the log has it: in quotes where it could be taken for more than one word.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name) = self;
        let plain = |c: char| c.is_alphanumeric() || "-_.:/@+,~#".contains(c);
        if name.chars().all(plain) && !name.is_empty() {
            f.write_str(name)
        } else {
            write!(f, "{name:?}")
        }
    }
}

/// Milliseconds with as many digits as a first token is worth.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_one_plain_word_is_quoted() {
        for plain in ["qwen3-8b", "org/m:Q4_K_M", "modèle", "req-1f-7"] {
            assert_eq!(Word(plain).to_string(), plain);
        }
        for (name, told) in [
            ("", r#""""#),
            ("my id", r#""my id""#),
            ("m status=200", r#""m status=200""#),
            ("a\"b", r#""a\"b""#),
            ("a\u{202e}b", r#""a\u{202e}b""#),
        ] {
            assert_eq!(Word(name).to_string(), told);
        }
    }

    #[test]
    fn milliseconds_have_one_digit_behind_the_point() {
        for (micros, told) in [(0, "0.0"), (1_249, "1.2"), (123_456_789, "123456.8")] {
            assert_eq!(format!("{:?}", millis(Duration::from_micros(micros))), told);
        }
    }
}
