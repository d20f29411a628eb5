//! What `/metrics` of the control plane shows: counters of what has happened, gauges of what is.
//!
//! Purpose: the names, their words and their text form in one place. Invariants: counters only ever grow and sit here;
//! gauges are no second copy of anything but read off a [`Fleet`], which `control` fills at each scrape; every word of a
//! closed enum has its series from the start, with 0; a node's name is a label only while it is registered. Called by
//! `control`, which counts and describes, and by `api`, which counts calls and serves the text.

mod collect;
mod course;
mod host;
mod outcome;
mod relayed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

pub use collect::{About, Fleet, NodeSample, PoolSample};
pub use course::Course;
pub use host::{GpuSample, Host};
pub use outcome::{Call, DrainStep, Outcome};
pub use relayed::{Meter, Phase, Relayed, UNKNOWN_MODEL};

/// What [`expose`] writes: OpenMetrics, which Prometheus asks for by this name.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything the control plane counts. Counts begin with the process.
#[derive(Debug, Default)]
pub struct Counters {
    calls: [[Counter; Outcome::ALL.len()]; Call::ALL.len()],
    drains: [Counter; DrainStep::ALL.len()],
    cut: Counter,
    store_errors: Counter,
    store_failing: AtomicBool,
}

impl Counters {
    /// A call of an agent was answered.
    pub fn called(&self, call: Call, outcome: Outcome) {
        self.calls[call as usize][outcome as usize].inc();
    }

    /// A drain began, or nothing runs under it any more, or it ended.
    pub fn drain(&self, step: DrainStep) {
        self.drains[step as usize].inc();
    }

    /// The time of a drain was over, and so many requests were ended.
    pub fn cut(&self, cut: u32) {
        self.cut.inc_by(u64::from(cut));
    }

    /// The store was asked to write.
    pub fn wrote(&self, worked: bool) {
        if !worked {
            self.store_errors.inc();
        }
        self.store_failing.store(!worked, Ordering::Relaxed);
    }
}

/// Counters and a fleet at one moment, as a registry of its own.
#[must_use]
pub fn scrape(counters: &Arc<Counters>, fleet: Fleet, about: About) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collect::Scrape {
        counters: Arc::clone(counters),
        fleet,
        about,
    }));
    registry
}

/// The text of these registries, in their order. No family may be in two of them.
#[must_use]
pub fn expose(registries: &[&Registry]) -> String {
    let mut text = String::new();
    for registry in registries {
        text::encode_registry(&mut text, registry).expect("a string takes everything");
    }
    text::encode_eof(&mut text).expect("a string takes everything");
    text
}

#[cfg(test)]
mod tests;
