//! What a relay to engines counts: the gateway's names, for whoever relays.

use std::fmt;
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

/// When a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the engine's first bytes.
    Prefill,
    /// After them.
    Stream,
}

impl Phase {
    const ALL: [Self; 2] = [Self::Prefill, Self::Stream];

    fn as_str(self) -> &'static str {
        match self {
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
struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BOUNDS)
    }
}

type Histograms = Family<One, Histogram, Seconds>;

/// Requests relayed to engines. A clone counts the same.
#[derive(Debug, Clone)]
pub struct Relayed {
    answered: Family<Answered, Counter>,
    rejected: Family<One, Counter>,
    cancelled: Family<One, Counter>,
    first: Histograms,
    whole: Histograms,
}

impl Relayed {
    /// Nothing so far. `reasons` are the words of all refusals, each of which has its series from the start.
    #[must_use]
    pub fn new(reasons: &[&'static str]) -> Self {
        let new = Self {
            answered: Family::default(),
            rejected: Family::default(),
            cancelled: Family::default(),
            first: Family::new_with_constructor(Seconds),
            whole: Family::new_with_constructor(Seconds),
        };
        for &reason in reasons {
            drop(
                new.rejected
                    .get_or_create(&One("reason", reason.to_owned())),
            );
        }
        for phase in Phase::ALL {
            let phase = One("phase", phase.as_str().to_owned());
            drop(new.cancelled.get_or_create(&phase));
        }
        new
    }

    /// A request has its answer's status.
    pub fn answered(&self, model: &str, code: u16) {
        let model = model.to_owned();
        self.answered.get_or_create(&Answered { model, code }).inc();
    }

    /// A request was refused here.
    pub fn rejected(&self, reason: &'static str) {
        let reason = One("reason", reason.to_owned());
        self.rejected.get_or_create(&reason).inc();
    }

    /// A client left.
    pub fn cancelled(&self, phase: Phase) {
        let phase = One("phase", phase.as_str().to_owned());
        self.cancelled.get_or_create(&phase).inc();
    }

    /// The first bytes of an answer are here, so long after the request.
    pub fn began(&self, model: &str, after: Duration) {
        let model = One("model", model.to_owned());
        self.first
            .get_or_create(&model)
            .observe(after.as_secs_f64());
    }

    /// An answer has ended, so long after the request.
    pub fn ended(&self, model: &str, after: Duration) {
        let model = One("model", model.to_owned());
        self.whole
            .get_or_create(&model)
            .observe(after.as_secs_f64());
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
        let help = "Requests whose client left, by what the engine was doing";
        registry.register("cancelled", help, self.cancelled.clone());
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
