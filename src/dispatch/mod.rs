//! Slots, permits and queues: who may use which engine, and who waits.
//!
//! Purpose: hand every free slot to the request that has waited longest for a model it serves. Invariants: plain
//! integers, no names, no allocation per grant, no clock (every call is told `now`), no IO, no async; the permits given
//! out for a pool never exceed its slots; within a model nobody overtakes; a pool that accepts nothing is granted
//! nothing. Called by `admission` alone, under its lock.
//!
//! Every call that may free capacity is followed by [`Dispatch::pump`], which says who is granted what.

mod model;
mod pool;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::types::{Millis, Mono, Sample};

use model::{Model, Waiting};
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
    /// It is the one request that shows whether a pool is back after failures.
    pub probe: bool,
    /// When it was given.
    pub since: Mono,
}

/// A request's place in line, kept for as long as it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// When it came.
    pub ticket: Ticket,
    /// When it has waited long enough.
    pub deadline: Mono,
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
        /// When a place is likely to be free, from the rate at which slots were released.
        retry_after_ms: Millis,
    },
    /// Its body does not fit beside those of the requests that wait.
    NoRoom {
        /// When a place is likely to be free, as above.
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
        /// When a place is likely to be free, from the rate at which slots were released.
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
    /// Pools whose free slots may have grown since the last pump.
    grown: Vec<PoolIx>,
    /// Waiting requests that gave way since the last pump.
    dropped: Vec<(Ticket, Verdict)>,
    /// Bytes of the bodies of all that wait.
    waiting_bytes: u64,
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
            grown: Vec::new(),
            dropped: Vec::new(),
            waiting_bytes: 0,
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
        let old = std::mem::take(&mut self.pool(ix).models);
        if old != spec.models {
            self.detach(now, ix, &old);
            for model in &spec.models {
                self.model(*model).pools.push(ix);
            }
            self.pool(ix).hopeful = false;
        }
        let pool = self.pool(ix);
        pool.slots_total = spec.slots_total.max(1);
        if spec.accepting && !pool.accepting {
            // Its reader saw it come back.
            pool.forgive();
        }
        pool.accepting = spec.accepting;
        pool.prospective = spec.prospective;
        pool.suspect = spec.suspect;
        pool.models = spec.models;
        self.recount(now, ix);
        self.grown.push(ix);
    }

    /// A pool is gone. Its running requests end by themselves; its place is taken again after the last one.
    pub fn remove_pool(&mut self, now: Mono, ix: PoolIx) {
        let models = std::mem::take(&mut self.pool(ix).models);
        self.detach(now, ix, &models);
        let pool = self.pool(ix);
        pool.hopeful = false;
        pool.accepting = false;
        pool.prospective = false;
        pool.removed = true;
        self.vacate_if_unused(ix);
    }

    fn detach(&mut self, now: Mono, ix: PoolIx, models: &[ModelIx]) {
        let hopeful = self.pool(ix).hopeful;
        for model in models {
            let model = self.model(*model);
            model.pools.retain(|pool| *pool != ix);
            if hopeful {
                model.lose_hope(now);
            }
        }
        for model in models {
            self.arm_queue(*model);
        }
    }

    fn vacate_if_unused(&mut self, ix: PoolIx) {
        let pool = self.pool(ix);
        if pool.removed && pool.ours == 0 && pool.quarantined() == 0 {
            pool.removed = false;
            self.vacant.push(ix);
        }
    }

    /// Counts the pool in or out among those of its models that may serve soon.
    fn recount(&mut self, now: Mono, ix: PoolIx) {
        let pool = self.pool(ix);
        let hopeful = pool.prospective && !pool.is_ejected(now);
        if hopeful == pool.hopeful {
            return;
        }
        pool.hopeful = hopeful;
        for at in 0..self.pools[ix.0 as usize].models.len() {
            let model = self.pools[ix.0 as usize].models[at];
            if hopeful {
                self.model(model).hopeful += 1;
            } else {
                self.model(model).lose_hope(now);
                self.arm_queue(model);
            }
        }
    }

    /// The next place in line. A request keeps its own for as long as it is tried.
    pub fn arrive(&mut self, now: Mono) -> Turn {
        self.arrivals += 1;
        Turn {
            ticket: Ticket(self.arrivals),
            deadline: now.plus(self.settings.queue_timeout_ms),
        }
    }

    /// A request asks for `weight` slots of `model`; while it waits, its body takes `bytes`. It is granted a pool other
    /// than `avoid` while there is one with room.
    pub fn offer(
        &mut self,
        now: Mono,
        turn: Turn,
        model: ModelIx,
        weight: u32,
        bytes: u64,
        avoid: Option<PoolIx>,
    ) -> Offer {
        let Turn { ticket, deadline } = turn;
        let first = self
            .model(model)
            .queue
            .front()
            .is_none_or(|head| ticket < head.ticket);
        if first {
            let pool = self
                .place(now, model, weight, avoid)
                .or_else(|| self.place(now, model, weight, None));
            if let Some(pool) = pool {
                return Offer::Granted(self.grant(now, model, pool, weight));
            }
        }
        // Whoever is tried again was admitted before.
        let is_new = avoid.is_none();
        if is_new && let Err(refusal) = self.make_room(now, model, bytes) {
            return refusal;
        }
        self.waiting_bytes += bytes;
        self.model(model).enqueue(Waiting {
            ticket,
            weight,
            bytes,
            arrived: now,
            deadline,
        });
        self.arm_queue(model);
        Offer::Queued
    }

    /// Finds a place in the queue of `model`, as the policy has it. Nobody gives way unless that makes the place.
    fn make_room(&mut self, now: Mono, ix: ModelIx, bytes: u64) -> Result<(), Offer> {
        let Settings {
            queue_capacity,
            policy,
            queue_bytes,
            ..
        } = self.settings;
        let waiting_bytes = self.waiting_bytes;
        let model = self.model(ix);
        let retry_after_ms = model.retry_after(now);
        let full = model.queue.len() >= queue_capacity;
        let gives_way = match (full, policy) {
            (false, _) => None,
            (true, Policy::Reject) => return Err(Offer::Full { retry_after_ms }),
            // Nobody waits where nobody may.
            (true, Policy::DropLru) => match model.queue.front() {
                Some(head) => Some((head.ticket, head.bytes)),
                None => return Err(Offer::Full { retry_after_ms }),
            },
        };
        let freed = gives_way.map_or(0, |(_, bytes)| bytes);
        if (waiting_bytes - freed).saturating_add(bytes) > queue_bytes {
            return Err(Offer::NoRoom { retry_after_ms });
        }
        if let Some((ticket, _)) = gives_way {
            self.cancel(ix, ticket);
            self.dropped
                .push((ticket, Verdict::Dropped { retry_after_ms }));
        }
        Ok(())
    }

    /// Takes a request out of its queue. False when it is in none.
    fn dequeue(&mut self, model: ModelIx, ticket: Ticket) -> bool {
        let found = self.model(model).dequeue(ticket);
        self.waiting_bytes -= found.as_ref().map_or(0, |waiting| waiting.bytes);
        found.is_some()
    }

    /// Sends everybody who waits away. Nobody is granted anything for it.
    pub fn close(&mut self) {
        for model in &mut self.models {
            model.queue.clear();
        }
        self.waiting_bytes = 0;
    }

    /// A waiting request gives up its place. False when it has none, because its wait has ended already.
    pub fn cancel(&mut self, model: ModelIx, ticket: Ticket) -> bool {
        let was_first = self
            .model(model)
            .queue
            .front()
            .is_some_and(|head| head.ticket == ticket);
        let found = self.dequeue(model, ticket);
        if found && was_first {
            // What the first one was too heavy for may fit the next.
            let Self { models, grown, .. } = self;
            grown.extend_from_slice(&models[model.0 as usize].pools);
        }
        found
    }

    /// The engine has begun to answer: its slots are certainly busy from here on.
    pub fn answering(&mut self, grant: Grant) {
        self.pool(grant.pool).answers(grant.weight);
    }

    /// Slots come back. `answering` is whether the engine had begun to answer.
    pub fn release(&mut self, now: Mono, grant: Grant, answering: bool, quarantine: Quarantine) {
        self.model(grant.model).released(now);
        let pool = self.pool(grant.pool);
        pool.end(grant, answering);
        if let Quarantine::For(ms) = quarantine {
            let until = now.plus(ms);
            pool.quarantine.push(pool::Quarantined {
                closed: now,
                until,
                weight: grant.weight,
            });
            self.arm(until, Timer::Pool(grant.pool));
        }
        self.grown.push(grant.pool);
        self.vacate_if_unused(grant.pool);
    }

    /// A reading of an engine's slots.
    pub fn observe(&mut self, now: Mono, ix: PoolIx, sample: Sample) {
        let ttl = self.settings.sample_ttl_ms;
        let pool = self.pool(ix);
        if pool.observe(now, sample, ttl) {
            let stale = pool.sample_until;
            self.arm(stale, Timer::Pool(ix));
        }
        self.grown.push(ix);
    }

    /// The pool failed: it is left out for a second, twice as long each time, at most 30 s.
    pub fn eject(&mut self, now: Mono, ix: PoolIx, failure: Failure) {
        let is_last = |model: &ModelIx| self.models[model.0 as usize].hopeful <= 1;
        if failure == Failure::Broken && self.pools[ix.0 as usize].models.iter().any(is_last) {
            return;
        }
        let until = self.pool(ix).eject(now);
        self.recount(now, ix);
        self.arm(until, Timer::Pool(ix));
    }

    /// The pool served a request: earlier failures are forgotten.
    pub fn vindicate(&mut self, now: Mono, ix: PoolIx) {
        let pool = self.pool(ix);
        if pool.strikes > 0 {
            pool.forgive();
            self.recount(now, ix);
            self.grown.push(ix);
        }
    }

    /// Gives free slots to those who wait, longest first. Appends who is granted what, after those who gave way.
    pub fn pump(&mut self, now: Mono, out: &mut Vec<(Ticket, Verdict)>) {
        out.append(&mut self.dropped);
        while let Some(ix) = self.grown.pop() {
            while let Some((model, ticket, weight)) = self.next_for(now, ix) {
                // The pool with room for the oldest need not be this one: a better placed may have room as well.
                let pool = self.place(now, model, weight, None).unwrap_or(ix);
                self.dequeue(model, ticket);
                let grant = self.grant(now, model, pool, weight);
                out.push((ticket, Verdict::Granted(grant)));
            }
        }
    }

    /// The oldest of those first in line for one of this pool's models that the pool has room for.
    fn next_for(&self, now: Mono, ix: PoolIx) -> Option<(ModelIx, Ticket, u32)> {
        let pool = &self.pools[ix.0 as usize];
        pool.models
            .iter()
            .filter_map(|model| {
                self.models[model.0 as usize]
                    .queue
                    .front()
                    .map(|head| (*model, head.ticket, head.weight))
            })
            .filter(|(_, _, weight)| pool.has_room(now, *weight))
            .min_by_key(|(_, ticket, _)| *ticket)
    }

    /// Ends waits that lasted too long, and everything else that ends by itself.
    pub fn expire(&mut self, now: Mono, out: &mut Vec<(Ticket, Verdict)>) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Pool(ix) => {
                    self.pool(ix).expire(now);
                    self.vacate_if_unused(ix);
                    self.recount(now, ix);
                    self.grown.push(ix);
                }
                // Another time means that an earlier timer has taken this one's place.
                Timer::Queue(model) if self.model(model).armed == Some(at) => {
                    self.expire_queue(now, model, out)
                }
                Timer::Queue(_) => {}
            }
        }
        self.pump(now, out);
    }

    fn expire_queue(&mut self, now: Mono, ix: ModelIx, out: &mut Vec<(Ticket, Verdict)>) {
        let no_pool_wait_ms = self.settings.no_pool_wait_ms;
        let mut freed = 0;
        let model = self.model(ix);
        model.armed = None;
        while let Some(head) = model.queue.front() {
            let verdict = if head.deadline <= now {
                Verdict::QueueTimeout
            } else if model
                .hopeless_at(head, no_pool_wait_ms)
                .is_some_and(|at| at <= now)
            {
                Verdict::NoReadyPool
            } else {
                break;
            };
            freed += head.bytes;
            out.push((head.ticket, verdict));
            model.queue.pop_front();
        }
        self.waiting_bytes -= freed;
        self.arm_queue(ix);
        let Self { models, grown, .. } = self;
        grown.extend_from_slice(&models[ix.0 as usize].pools);
    }

    /// When `expire` has something to do next, at the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn arm(&mut self, at: Mono, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    fn arm_queue(&mut self, ix: ModelIx) {
        let no_pool_wait_ms = self.settings.no_pool_wait_ms;
        let model = self.model(ix);
        let Some(head) = model.queue.front() else {
            return;
        };
        let at = model
            .hopeless_at(head, no_pool_wait_ms)
            .map_or(head.deadline, |at| at.min(head.deadline));
        if model.armed.is_none_or(|armed| at < armed) {
            model.armed = Some(at);
            self.arm(at, Timer::Queue(ix));
        }
    }

    /// Good before suspect, then the lowest busy share of slots, then the least recently picked.
    fn place(
        &self,
        now: Mono,
        model: ModelIx,
        weight: u32,
        avoid: Option<PoolIx>,
    ) -> Option<PoolIx> {
        self.models[model.0 as usize]
            .pools
            .iter()
            .copied()
            .filter(|ix| Some(*ix) != avoid)
            .filter(|ix| self.pools[ix.0 as usize].has_room(now, weight))
            .min_by(|a, b| self.pools[a.0 as usize].rank(now, &self.pools[b.0 as usize]))
    }

    fn grant(&mut self, now: Mono, model: ModelIx, ix: PoolIx, weight: u32) -> Grant {
        self.picks += 1;
        let picks = self.picks;
        let pool = self.pool(ix);
        let weight = weight.clamp(1, pool.slots_total);
        pool.take(now, weight, picks);
        Grant {
            model,
            pool: ix,
            weight,
            probe: pool.probing,
            since: now,
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

    fn pool(&mut self, ix: PoolIx) -> &mut Pool {
        &mut self.pools[ix.0 as usize]
    }

    fn model(&mut self, ix: ModelIx) -> &mut Model {
        &mut self.models[ix.0 as usize]
    }
}

#[cfg(test)]
mod tests;
