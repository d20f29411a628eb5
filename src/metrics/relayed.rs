//! What a relay to engines counts: the gateway's names, for whoever relays.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Label of a model that is not among the known ones: names that clients make up must not become series.
pub const UNKNOWN_MODEL: &str = "unknown";
/// Bounds of histograms, in seconds: from the first token of a small model to the end of a long answer.
const BOUNDS: [f64; 14] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
/// Bounds for one token: from 1,000 a second to one that nobody would wait for.
const TOKEN_BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// When a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// While it waited for a slot.
    Queue,
    /// Before the engine's first bytes.
    Prefill,
    /// After them.
    Stream,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Queue, Self::Prefill, Self::Stream];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Stream => "stream",
        }
    }
}

/// One label whose name is fixed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct One(&'static str, String);

impl EncodeLabelSet for One {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [(self.0, self.1.as_str())].encode(encoder)
    }
}

/// Model and HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Answered {
    model: String,
    code: u16,
}

impl EncodeLabelSet for Answered {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let code = self.code.to_string();
        [("model", self.model.as_str()), ("code", &code)].encode(encoder)
    }
}

#[derive(Debug, Clone)]
struct Seconds(&'static [f64]);

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<One, Histogram, Seconds>;

/// Requests relayed to engines. A clone counts the same.
#[derive(Debug, Clone)]
pub struct Relayed {
    answered: Family<Answered, Counter>,
    rejected: Family<One, Counter>,
    retries: Family<One, Counter>,
    cancelled: Family<One, Counter>,
    queue: Histograms,
    first: Histograms,
    token: Histograms,
    whole: Histograms,
    meters: Arc<RwLock<HashMap<Arc<str>, Arc<Meter>>>>,
}

/// What is counted of one model. Made once for each, so that no request looks up each series by its labels.
#[derive(Debug)]
pub struct Meter {
    answered: Family<Answered, Counter>,
    model: Arc<str>,
    ok: Counter,
    queue: Histogram,
    first: Histogram,
    token: Histogram,
    whole: Histogram,
}

impl Meter {
    /// The model, as the metrics call it.
    #[must_use]
    pub fn model(&self) -> &Arc<str> {
        &self.model
    }

    /// A request has its answer's status.
    pub fn answered(&self, code: u16) {
        if code == 200 {
            self.ok.inc();
        } else {
            let model = self.model.to_string();
            self.answered.get_or_create(&Answered { model, code }).inc();
        }
    }

    /// A request was given a slot, after having waited so long for it in all.
    pub fn waited(&self, so_long: Duration) {
        self.queue.observe(so_long.as_secs_f64());
    }

    /// The first bytes of an answer are here, so long after the request.
    pub fn began(&self, after: Duration) {
        self.first.observe(after.as_secs_f64());
    }

    /// An answer has ended, so long after the request; `each` is what a token after the first took.
    pub fn ended(&self, after: Duration, each: Option<Duration>) {
        self.whole.observe(after.as_secs_f64());
        if let Some(each) = each {
            self.token.observe(each.as_secs_f64());
        }
    }
}

impl Relayed {
    /// Nothing so far. `reasons` are the words of all refusals, `retries` those of what makes somebody try again: each has
    /// its series from the start.
    #[must_use]
    pub fn new(reasons: &[&'static str], retries: &[&'static str]) -> Self {
        let seconds = || Family::new_with_constructor(Seconds(&BOUNDS));
        let new = Self {
            answered: Family::default(),
            rejected: Family::default(),
            retries: Family::default(),
            cancelled: Family::default(),
            queue: seconds(),
            first: seconds(),
            token: Family::new_with_constructor(Seconds(&TOKEN_BOUNDS)),
            whole: seconds(),
            meters: Arc::default(),
        };
        for (family, words) in [(&new.rejected, reasons), (&new.retries, retries)] {
            for &word in words {
                drop(family.get_or_create(&One("reason", word.to_owned())));
            }
        }
        for phase in Phase::ALL {
            let phase = One("phase", phase.as_str().to_owned());
            drop(new.cancelled.get_or_create(&phase));
        }
        new
    }

    /// A request was refused here.
    pub fn rejected(&self, reason: &'static str) {
        let reason = One("reason", reason.to_owned());
        self.rejected.get_or_create(&reason).inc();
    }

    /// A request was tried again.
    pub fn retried(&self, reason: &'static str) {
        let reason = One("reason", reason.to_owned());
        self.retries.get_or_create(&reason).inc();
    }

    /// What is counted of a model.
    #[must_use]
    pub fn meter(&self, model: &str) -> Arc<Meter> {
        let known = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = known.get(model) {
            return Arc::clone(meter);
        }
        drop(known);
        let mut known = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(self.new_meter(model));
        Arc::clone(known.entry(model.into()).or_insert_with(new))
    }

    fn new_meter(&self, model: &str) -> Meter {
        let label = One("model", model.to_owned());
        let answered = Answered {
            model: model.to_owned(),
            code: 200,
        };
        Meter {
            answered: self.answered.clone(),
            model: model.into(),
            ok: self.answered.get_or_create(&answered).clone(),
            queue: self.queue.get_or_create(&label).clone(),
            first: self.first.get_or_create(&label).clone(),
            token: self.token.get_or_create(&label).clone(),
            whole: self.whole.get_or_create(&label).clone(),
        }
    }

    /// A client left.
    pub fn cancelled(&self, phase: Phase) {
        let phase = One("phase", phase.as_str().to_owned());
        self.cancelled.get_or_create(&phase).inc();
    }

    /// All of it, as a registry.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("orchd_gateway");
        registry.register(
            "requests",
            "Requests answered, by the status of the answer",
            self.answered.clone(),
        );
        let help = "Requests refused here, by the reason";
        registry.register("rejected", help, self.rejected.clone());
        let help = "Requests that were tried again, by what had gone wrong";
        registry.register("retries", help, self.retries.clone());
        let help = "Requests whose client left, by what was being done for it";
        registry.register("cancelled", help, self.cancelled.clone());
        registry.register_with_unit(
            "queue",
            "How long a request waited for a slot",
            Unit::Seconds,
            self.queue.clone(),
        );
        registry.register_with_unit(
            "time_per_token",
            "From one token of an answer to the next, on average over the answer",
            Unit::Seconds,
            self.token.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From the request to the first bytes of its answer",
            Unit::Seconds,
            self.first.clone(),
        );
        registry.register_with_unit(
            "request",
            "From the request to the end of its answer",
            Unit::Seconds,
            self.whole.clone(),
        );
        registry
    }
}
