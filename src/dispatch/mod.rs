//! Slots, permits and queues: who may use which engine, and who waits.
//!
//! Purpose: hand every free slot to the request that has waited longest for a model it serves. Invariants: plain
//! integers, no names, no allocation per grant, no clock (every call is told `now`), no IO, no async; the permits given
//! out for a pool never exceed its slots; within a model nobody overtakes; a pool that accepts nothing is granted
//! nothing. Called by `admission` alone, under its lock.
//!
//! Every call that may free capacity is followed by [`Dispatch::pump`], which does what is due and says who is granted
//! what. What is due is also done before anything is placed or left out: nothing is decided by what has lapsed.
//!
//! **Who is next.** A pool serves the oldest waiting request that it is *for*, over all its models. It is for those whose
//! context it has, and whose slots it has in all: one that could never hold a request whole is no concern of that request,
//! as long as a pool with enough context does that takes requests and answers, and lets others pass. Suspect pools count
//! there only where no good one is left. Where none holds it whole, any pool with enough context is for it, and it is cut
//! to what that one has; it goes there at once, as a pool that only loads may be long in coming. Slots that
//! are taken let nobody pass: while the oldest needs more of them than are free, the pool keeps what is free for it, or
//! heavy requests would starve behind light ones. There is one exception, between models: where slots that others use
//! leave too few for the heavy one, whatever we do, younger requests of other models pass (those of its own never do).
//!
//! **Who is told.** A request waits for as long as the queue allows, and no longer than the no-pool wait once no pool with
//! enough context may serve soon: the hope that others of its model have is not its own.
//!
//! **Who is left out.** A pool that broke is *ejected*, and hopes of its models fall with it; one that refused because it
//! is busy is *paused*, and one that does not answer is *hung*: nothing new goes there, and whoever waits for it waits
//! on. After an ejection or a pause one request goes first, and the others follow when it was served.
//!
//! **What it costs.** Nothing that happens for each request or reading looks at every pool: `index` knows the best placed
//! pool of each kind, and the lines whose pools changed since the last pump are looked through from their fronts. Pools
//! are passed over one by one only where a request for several slots of another of their models has come before, and
//! they keep for it what it cannot use yet.

mod budget;
mod health;
mod hope;
mod index;
mod line;
mod model;
mod pace;
mod pool;
mod seats;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::types::{Millis, Mono};

use budget::RetryBudget;
use index::Entry;
use model::Model;
use pace::Pace;
use pool::Pool;

/// Periods and bounds that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Requests that may wait for one model.
    pub queue_capacity: usize,
    /// What happens when one more comes.
    pub policy: Policy,
    /// Bytes that the bodies of waiting requests may take, over all models.
    pub queue_bytes: u64,
    /// How long a request may wait in all.
    pub queue_timeout_ms: Millis,
    /// How long it may wait while no pool of its model may serve soon.
    pub no_pool_wait_ms: Millis,
    /// How long a reading of an engine's slots counts: two of its intervals.
    pub sample_ttl_ms: Millis,
}

/// Who gives way when the queue of a model is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Whoever comes.
    Reject,
    /// Whoever has waited longest for that model.
    DropLru,
}

/// A pool, by its place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolIx(pub u32);

/// A model, by its place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelIx(pub u32);

/// A request's arrival number: lower came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What placement needs to know of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Models it serves.
    pub models: Vec<ModelIx>,
    /// Takes requests now: its engine is ready and its node schedulable.
    pub accepting: bool,
    /// Takes requests now or may soon: a request may wait for it.
    pub prospective: bool,
    /// To be used only when nothing better is left.
    pub suspect: bool,
    /// Slots in all, at least 1.
    pub slots_total: u32,
    /// Context of one slot, in tokens, where it is known.
    pub n_ctx: Option<u64>,
}

/// Slots of a pool that a request holds. Every one is given back by `release`, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// For which model.
    pub model: ModelIx,
    /// Where.
    pub pool: PoolIx,
    /// How many slots.
    pub weight: u32,
    /// It is the one request that shows whether a pool is back after failures or refusals.
    pub probe: bool,
    /// Its number among all grants.
    pub pick: u64,
    /// When it was given.
    pub since: Mono,
}

/// A request's place in line, kept for as long as it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// When it came.
    pub ticket: Ticket,
    /// The same, on the clock.
    pub arrived: Mono,
    /// When it has waited long enough.
    pub deadline: Mono,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// For which model.
    pub model: ModelIx,
    /// How many slots.
    pub weight: u32,
    /// What its body takes while it waits.
    pub bytes: u64,
    /// Context that a slot must have, in tokens; 0 when any will do.
    pub min_ctx: u64,
    /// A pool to leave out while another has room: the one that was tried last, so this is not the first try.
    pub avoid: Option<PoolIx>,
}

/// How a pool failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there.
    Refused,
    /// It broke while it worked. The last pool of a model is used all the same: it may be the request.
    Broken,
}

/// Whether slots that come back can be used at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quarantine {
    /// The engine has finished with them.
    No,
    /// The engine may still be working on them: they count as busy for so long, or until a reading begun after now shows
    /// them gone.
    For(Millis),
    /// The engine refused the request, or failed: they can be used at once, and how soon they came back says nothing of how
    /// long requests take.
    Unserved,
}

/// The answer to a request that asks for slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It has them.
    Granted(Grant),
    /// It waits; `pump` or `expire` will name its ticket.
    Queued,
    /// The queue is full.
    Full {
        /// When those who wait now are likely to have been served. A place is free before that, and taken by whoever
        /// comes first; at that time there are as many as the queue has, for all who were refused meanwhile.
        retry_after_ms: Millis,
    },
    /// Its body does not fit beside those of the requests that wait.
    NoRoom {
        /// When those who wait now, for any model, are likely to have been served.
        retry_after_ms: Millis,
    },
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// With slots.
    Granted(Grant),
    /// It waited for longer than the queue allows.
    QueueTimeout,
    /// No pool of its model may serve soon.
    NoReadyPool,
    /// It gave way to a later request.
    Dropped {
        /// When those who wait now are likely to have been served.
        retry_after_ms: Millis,
    },
}

/// A pool's numbers, for views.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    /// Slots in all.
    pub slots_total: u32,
    /// Slots that may still be granted.
    pub slots_free: u32,
    /// Slots somebody else uses.
    pub external: u32,
    /// Requests of ours.
    pub running: u32,
    /// Since when the oldest of them runs.
    pub oldest: Option<Mono>,
    /// Slots of requests whose connection was closed early and that the engine may still be working on.
    pub quarantined: u32,
    /// Left out after failures.
    pub ejected: bool,
    /// Its engine does not answer.
    pub hung: bool,
    /// Left out because it said that it is busy.
    pub paused: bool,
    /// How often it was left out after failures since it was added.
    pub ejections: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The oldest waiting request of a model may have waited too long.
    Queue(ModelIx),
    /// Something about a pool ends: a quarantine, an ejection, a reading's worth.
    Pool(PoolIx),
}

/// The state of all pools and queues.
#[derive(Debug)]
pub struct Dispatch {
    settings: Settings,
    pools: Vec<Pool>,
    /// Places in `pools` that may be taken again.
    vacant: Vec<PoolIx>,
    models: Vec<Model>,
    /// Lazily checked: a timer that fires too early finds nothing to do.
    timers: BinaryHeap<Reverse<(Mono, Timer)>>,
    /// Models with somebody in line who may find room since the last pump.
    stirred: Vec<ModelIx>,
    /// Waits that have ended since the last pump, but for those that were granted.
    ended: Vec<(Ticket, Verdict)>,
    /// Bytes of the bodies of all that wait.
    waiting_bytes: u64,
    /// Slots that all of them will take.
    waiting_slots: u64,
    /// How fast slots come back, over all models.
    pace: Pace,
    /// Slots of all pools.
    fleet_slots: u64,
    budget: RetryBudget,
    picks: u64,
    arrivals: u64,
}

impl Dispatch {
    /// No pools, nobody waiting.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pools: Vec::new(),
            vacant: Vec::new(),
            models: Vec::new(),
            timers: BinaryHeap::new(),
            stirred: Vec::new(),
            ended: Vec::new(),
            waiting_bytes: 0,
            waiting_slots: 0,
            pace: Pace::default(),
            fleet_slots: 0,
            budget: RetryBudget::default(),
            picks: 0,
            arrivals: 0,
        }
    }

    /// A place for one more model.
    pub fn add_model(&mut self) -> ModelIx {
        let ix =
            ModelIx(u32::try_from(self.models.len()).expect("fewer models than fit into memory"));
        self.models.push(Model::default());
        ix
    }

    /// A place for one more pool.
    pub fn add_pool(&mut self, now: Mono, spec: PoolSpec) -> PoolIx {
        let ix = self.vacant.pop().unwrap_or_else(|| {
            let ix =
                PoolIx(u32::try_from(self.pools.len()).expect("fewer pools than fit into memory"));
            self.pools.push(Pool::default());
            ix
        });
        *self.pool(ix) = Pool::default();
        self.update_pool(now, ix, spec);
        ix
    }

    /// A pool is described anew. Permits and readings stay.
    pub fn update_pool(&mut self, now: Mono, ix: PoolIx, spec: PoolSpec) {
        if self.pool(ix).models != spec.models {
            self.withdraw(now, ix);
            let pool = self.pool(ix);
            pool.seats = vec![0; spec.models.len()];
            pool.models = spec.models;
        }
        let pool = self.pool(ix);
        if spec.accepting && !pool.accepting {
            // Its reader saw it come back.
            pool.forgive();
            pool.hung_since = None;
        }
        pool.accepting = spec.accepting;
        pool.prospective = spec.prospective;
        pool.suspect = spec.suspect;
        pool.ctx = spec.n_ctx.unwrap_or(0);
        pool.present = true;
        pool.slots_total = spec.slots_total.max(1);
        self.changed(now, ix);
    }

    /// A pool is gone. Its running requests end by themselves; its place is taken again after the last one.
    pub fn remove_pool(&mut self, now: Mono, ix: PoolIx) {
        self.withdraw(now, ix);
        let pool = self.pool(ix);
        pool.accepting = false;
        pool.prospective = false;
        pool.leaving = true;
        self.vacate_if_unused(ix);
    }

    /// A pool serves none of its models any more.
    fn withdraw(&mut self, now: Mono, ix: PoolIx) {
        self.pool(ix).present = false;
        self.changed(now, ix);
        self.pool(ix).models.clear();
    }

    fn vacate_if_unused(&mut self, ix: PoolIx) {
        let pool = self.pool(ix);
        if pool.leaving && pool.ours == 0 && pool.quarantined() == 0 {
            pool.leaving = false;
            self.vacant.push(ix);
        }
    }

    /// A pool is not what it was: it is counted as what it is, and those who wait for its models may find room.
    fn changed(&mut self, now: Mono, ix: PoolIx) {
        self.reindex(now, ix);
        for at in 0..self.pools[ix.0 as usize].models.len() {
            self.stir(self.pools[ix.0 as usize].models[at]);
        }
    }

    /// Brings what is kept of a pool elsewhere up to what it is.
    fn reindex(&mut self, now: Mono, ix: PoolIx) {
        let pool = self.pool(ix);
        let entry = pool.to_entry(now, ix);
        let was = std::mem::replace(&mut pool.entry, entry);
        if was == entry {
            return;
        }
        let slots = |entry: Option<Entry>| entry.map_or(0, |entry| entry.kind.slots);
        self.fleet_slots = self.fleet_slots - u64::from(slots(was)) + u64::from(slots(entry));
        for at in 0..self.pools[ix.0 as usize].models.len() {
            let Self { pools, models, .. } = self;
            let pool = &mut pools[ix.0 as usize];
            let ix = pool.models[at];
            let model = &mut models[ix.0 as usize];
            model.largest = model.largest.max(slots(entry));
            if model.index.update(&mut pool.seats[at], was, entry) {
                model.hope.set(now, model.index.most_ctx());
                self.rearm_line(ix);
                // Which pools are whose has changed, too.
                self.stir_all();
            }
        }
    }

    /// Somebody in the line of a model may find room.
    fn stir(&mut self, ix: ModelIx) {
        let model = self.model(ix);
        if !model.stirred && !model.queue.is_empty() {
            model.stirred = true;
            self.stirred.push(ix);
        }
    }

    /// Somebody in any line may.
    fn stir_all(&mut self) {
        for at in 0..self.models.len() {
            self.stir(ModelIx(at as u32));
        }
    }

    /// A pool's numbers.
    #[must_use]
    pub fn counts(&self, now: Mono, ix: PoolIx) -> PoolCounts {
        self.pools[ix.0 as usize].counts(now)
    }

    /// Requests that wait for a model.
    #[must_use]
    pub fn waiting(&self, model: ModelIx) -> usize {
        self.models[model.0 as usize].queue.len()
    }

    /// Bytes that the bodies of waiting requests take, over all models.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Whether a place in the table is a pool's that can be routed to: one that was added, and not removed since.
    #[must_use]
    pub fn is_present(&self, ix: PoolIx) -> bool {
        self.pools[ix.0 as usize].present
    }

    /// Whether a pool that serves the model now or may soon has at least so much context.
    #[must_use]
    pub fn has_context(&self, model: ModelIx, min_ctx: u64) -> bool {
        self.models[model.0 as usize].has_context(min_ctx)
    }

    /// A request has finished, however often it was tried.
    pub fn finished(&mut self) {
        self.budget.refill(self.fleet_slots);
    }

    /// Whether one more request may be tried again; if so, that is counted.
    pub fn take_retry(&mut self) -> bool {
        self.budget.take(self.fleet_slots)
    }

    fn pool(&mut self, ix: PoolIx) -> &mut Pool {
        &mut self.pools[ix.0 as usize]
    }

    fn model(&mut self, ix: ModelIx) -> &mut Model {
        &mut self.models[ix.0 as usize]
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod scan;
#[cfg(test)]
mod tests;
