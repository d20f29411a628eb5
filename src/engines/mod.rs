//! Readers of inference servers.
//!
//! Purpose: say, again and again, what an engine is and how many of its slots are taken, as a [`PoolStatus`] and a
//! [`Sample`]. Invariants: a reader never wakes a sleeping engine and never holds a slot; an engine that answers late
//! because it works is busy, not broken; every round says something. Called by `agent`, and by `server` for the engines
//! of the HOME profile.

mod handoff;
mod journal;
mod known;
mod llamacpp;
mod probe;
mod reader;
mod roster;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::types::{Declared, HttpUrl, Origin, PoolId, PoolState, PoolStatus, Sample};

pub use known::{Known, KnownEngine, News};
pub use llamacpp::Http;
pub use probe::{Found, probe};
pub use roster::{PassedOver, Source};
pub use watch::{Event, Settings, Watched, spawn_watch};

/// The longest pause between two readings, of an engine that idles (contract §4).
pub const IDLE: Duration = Duration::from_secs(5);
/// An engine to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Where it listens.
    pub url: HttpUrl,
    /// What was said of it by whoever started it; holds while the engine itself does not tell.
    pub declared: Declared,
    /// The GPUs it runs on, as `CUDA_VISIBLE_DEVICES` names them; all of the machine's when absent.
    pub device_mask: Option<String>,
    /// What it wants to be shown: `Bearer KEY`, marked as sensitive.
    pub key: Option<HeaderValue>,
    /// It was started to fall asleep when nothing is asked of it.
    pub sleeps: bool,
    /// What of its handoff file is passed over, a sentence each.
    pub ignored: Vec<String>,
    /// Why it is not worth asking. Such an engine is reported as this says, and not read.
    pub fault: Option<Fault>,
}

impl Engine {
    /// An engine of which nothing is known but where it listens.
    #[must_use]
    pub fn new(pool_id: PoolId, url: HttpUrl) -> Self {
        Self {
            pool_id,
            url,
            declared: Declared::default(),
            device_mask: None,
            key: None,
            sleeps: false,
            ignored: Vec::new(),
            fault: None,
        }
    }
}

/// What is wrong with an engine, as far as it can be told without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is reported as.
    pub state: PoolState,
    /// A sentence.
    pub why: String,
}

/// The requests that this process itself has at an engine. Counted by whoever sends them, read by the prober.
#[derive(Debug, Default)]
pub struct InFlight {
    /// Somebody else counts them, and tells the number now and then: it says whether something runs, and no more.
    hearsay: bool,
    now: AtomicU32,
    peak: AtomicU32,
}

impl InFlight {
    /// A number that is only [told](Self::tell).
    #[must_use]
    pub fn hearsay() -> Self {
        Self {
            hearsay: true,
            ..Self::default()
        }
    }

    /// So many there are, by the count of somebody else.
    pub fn tell(&self, now: u32) {
        self.now.store(now, Ordering::SeqCst);
    }

    /// One more, until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlightGuard {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::AcqRel);
        InFlightGuard(Arc::clone(self))
    }

    /// How many there are.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.now.load(Ordering::SeqCst)
    }

    /// A reading begins: the highest number is counted from here.
    fn begin(&self) {
        self.peak.store(self.now(), Ordering::Release);
    }

    /// The highest number since the reading began; `None` where it is not counted here.
    fn peak(&self) -> Option<u32> {
        (!self.hearsay).then(|| self.peak.load(Ordering::Acquire))
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct InFlightGuard(Arc<InFlight>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one round of reading an engine found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The pool as it is to be reported.
    pub status: PoolStatus,
    /// Its slots, when they could be read.
    pub sample: Option<Sample>,
    /// What of the engine's configuration costs its users something: what, why, and what to do. First, what of its handoff
    /// file is passed over.
    pub advice: Vec<String>,
}

/// What engines that this process dials itself want to be shown, by where they listen. Never leaves the process but to
/// them.
#[derive(Debug, Default)]
pub struct EngineKeys(ArcSwap<Vec<(Origin, HeaderValue)>>);

impl EngineKeys {
    /// The keys of these engines, and no others.
    pub fn set<'a>(&self, engines: impl Iterator<Item = &'a Engine>) {
        let keys = engines.filter_map(|engine| Some((engine.url.origin(), engine.key.clone()?)));
        self.0.store(Arc::new(keys.collect()));
    }

    /// The key of the engine that listens there.
    #[must_use]
    pub fn of(&self, origin: &Origin) -> Option<HeaderValue> {
        let keys = self.0.load();
        let (_, key) = keys.iter().find(|(engine, _)| engine == origin)?;
        Some(key.clone())
    }
}
