//! The lines: who asks, waits, is granted, gives back and gives up.

use std::cmp::Reverse;

use crate::types::{Mono, Sample};

use super::model::{Model, Waiting};
use super::pool::Quarantined;
use super::{
    Dispatch, Grant, ModelIx, Offer, Policy, PoolIx, Quarantine, Settings, Ticket, Timer, Turn,
    Verdict, Want,
};

/// A request that a pool is looked for.
#[derive(Debug, Clone, Copy)]
struct Claim {
    model: ModelIx,
    ticket: Ticket,
    weight: u32,
    min_ctx: u64,
    /// Pools with at least so much context are for somebody before it, if there is anybody.
    below: Option<u64>,
}

impl Dispatch {
    /// The next place in line. A request keeps its own for as long as it is tried.
    pub fn arrive(&mut self, now: Mono) -> Turn {
        self.arrivals += 1;
        Turn {
            ticket: Ticket(self.arrivals),
            arrived: now,
            deadline: now.plus(self.settings.queue_timeout_ms),
        }
    }

    /// A request asks for slots. It is granted a pool other than the one to avoid while there is one with room.
    pub fn offer(&mut self, now: Mono, turn: Turn, want: Want) -> Offer {
        let Turn {
            ticket,
            arrived,
            deadline,
        } = turn;
        let Want {
            model,
            weight,
            bytes,
            min_ctx,
            avoid,
        } = want;
        let claim = self.claim(model, ticket, weight, min_ctx);
        let pool = self
            .place(now, claim, avoid)
            .or_else(|| avoid.and_then(|_| self.place(now, claim, None)));
        if let Some(pool) = pool {
            return Offer::Granted(self.grant(now, model, pool, weight));
        }
        // Whoever is tried again was admitted before.
        let is_new = avoid.is_none();
        if is_new && let Err(refusal) = self.make_room(now, want) {
            return refusal;
        }
        self.waiting_bytes += bytes;
        self.model(model).enqueue(Waiting {
            ticket,
            weight,
            min_ctx,
            bytes,
            arrived,
            deadline,
        });
        self.arm_queue(model);
        Offer::Queued
    }

    /// Finds a place in the queue of `model`, as the policy has it. Nobody gives way unless that makes the place.
    fn make_room(&mut self, now: Mono, want: Want) -> Result<(), Offer> {
        let Want {
            model: ix,
            weight,
            bytes,
            ..
        } = want;
        let Settings {
            queue_capacity,
            policy,
            queue_bytes,
            ..
        } = self.settings;
        let model = self.model(ix);
        let full = model.queue.len() >= queue_capacity;
        // Nobody waits where nobody may.
        let longest = model.queue.front().map(|head| (head.ticket, head.bytes));
        let gives_way = match policy {
            _ if !full => None,
            Policy::DropLru if longest.is_some() => longest,
            Policy::DropLru | Policy::Reject => {
                let retry_after_ms = model.retry_after(now, weight);
                return Err(Offer::Full { retry_after_ms });
            }
        };
        let freed = gives_way.map_or(0, |(_, bytes)| bytes);
        if (self.waiting_bytes - freed).saturating_add(bytes) > queue_bytes {
            let waiting: u64 = self.models.iter().map(Model::waiting_slots).sum();
            let retry_after_ms = self.pace.until_served(now, waiting.saturating_add(1));
            return Err(Offer::NoRoom { retry_after_ms });
        }
        if let Some((ticket, _)) = gives_way {
            let retry_after_ms = self.model(ix).retry_after(now, weight);
            self.cancel(ix, ticket);
            self.dropped
                .push((ticket, Verdict::Dropped { retry_after_ms }));
        }
        Ok(())
    }

    /// Takes a request out of its queue.
    fn dequeue(&mut self, model: ModelIx, ticket: Ticket) -> Option<Waiting> {
        let found = self.model(model).dequeue(ticket);
        self.waiting_bytes -= found.as_ref().map_or(0, |waiting| waiting.bytes);
        found
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
        let found = self.dequeue(model, ticket);
        if let Some(waiting) = &found {
            self.left(model, waiting.weight);
        }
        found.is_some()
    }

    /// Somebody left the line of `model`. A heavy one may have kept slots from others; a light one finds none itself.
    fn left(&mut self, model: ModelIx, weight: u32) {
        if weight > 1 {
            let Self { models, grown, .. } = self;
            grown.extend_from_slice(&models[model.0 as usize].pools);
        }
    }

    /// The engine has begun to answer: its slots are certainly busy from here on.
    pub fn answering(&mut self, grant: Grant) {
        self.pool(grant.pool).answers(grant.weight);
    }

    /// Slots come back. `answering` is whether the engine had begun to answer.
    pub fn release(&mut self, now: Mono, grant: Grant, answering: bool, quarantine: Quarantine) {
        let served = answering && quarantine != Quarantine::Unserved;
        self.model(grant.model).pace.released(now, grant, served);
        self.pace.released(now, grant, served);
        let pool = self.pool(grant.pool);
        pool.end(grant, answering);
        if let Quarantine::For(ms) = quarantine {
            let until = now.plus(ms);
            pool.quarantine
                .push(Quarantined::new(now, until, grant.weight));
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
        self.resized(ix);
        self.grown.push(ix);
    }

    /// Gives free slots to those who wait, longest first. Appends who is granted what, after those who gave way.
    pub fn pump(&mut self, now: Mono, out: &mut Vec<(Ticket, Verdict)>) {
        out.append(&mut self.dropped);
        while let Some(ix) = self.grown.pop() {
            while let Some(claim) = self.next_for(now, ix) {
                // The pool with room for the oldest need not be this one: a better placed may have room as well.
                let pool = self.place(now, claim, None).unwrap_or(ix);
                self.dequeue(claim.model, claim.ticket);
                let grant = self.grant(now, claim.model, pool, claim.weight);
                self.left(claim.model, claim.weight);
                out.push((claim.ticket, Verdict::Granted(grant)));
            }
        }
    }

    /// Who is next for this pool (see the module's rule), if the pool has room for it.
    fn next_for(&self, now: Mono, ix: PoolIx) -> Option<Claim> {
        let pool = &self.pools[ix.0 as usize];
        let mut after = None;
        loop {
            let (model, next) = (pool.models.iter())
                .filter_map(|model| {
                    Some((*model, self.models[model.0 as usize].first_for(pool.ctx)?))
                })
                .filter(|(_, waiting)| after.is_none_or(|after| waiting.ticket > after))
                .min_by_key(|(_, waiting)| waiting.ticket)?;
            if pool.has_room(now, next.weight) {
                return Some(self.claim(model, next.ticket, next.weight, next.min_ctx));
            }
            if pool.will_have_room(now, next.weight) {
                return None;
            }
            after = Some(next.ticket);
        }
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
                    let pool = self.pool(ix);
                    if pool.expire(now) {
                        let stale = pool.sample_until;
                        self.arm(stale, Timer::Pool(ix));
                    }
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
        let (mut freed, mut heaviest) = (0, 0);
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
            heaviest = heaviest.max(head.weight);
            out.push((head.ticket, verdict));
            model.queue.pop_front();
        }
        self.waiting_bytes -= freed;
        self.arm_queue(ix);
        self.left(ix, heaviest);
    }

    /// When `expire` has something to do next, at the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn arm(&mut self, at: Mono, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    pub(super) fn arm_queue(&mut self, ix: ModelIx) {
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

    fn claim(&self, model: ModelIx, ticket: Ticket, weight: u32, min_ctx: u64) -> Claim {
        Claim {
            model,
            ticket,
            weight,
            min_ctx,
            below: self.models[model.0 as usize].least_ctx_before(ticket),
        }
    }

    /// Good before suspect, then the lowest busy share of slots, then the least recently picked; of those that are nobody
    /// else's first.
    fn place(&self, now: Mono, claim: Claim, avoid: Option<PoolIx>) -> Option<PoolIx> {
        // Whoever is next in line for every context is so for each pool.
        if claim.below == Some(0) {
            return None;
        }
        self.models[claim.model.0 as usize]
            .pools
            .iter()
            .copied()
            .filter(|ix| Some(*ix) != avoid && self.suits(now, claim, *ix))
            .min_by(|a, b| self.pools[a.0 as usize].rank(now, &self.pools[b.0 as usize]))
    }

    /// Whether a pool has room for a request, and nobody comes before it there.
    fn suits(&self, now: Mono, claim: Claim, ix: PoolIx) -> bool {
        let pool = &self.pools[ix.0 as usize];
        let comes_first = |model: &ModelIx| {
            (self.models[model.0 as usize].first_for(pool.ctx)).is_some_and(|first| {
                first.ticket < claim.ticket && pool.will_have_room(now, first.weight)
            })
        };
        pool.has_room(now, claim.weight)
            && claim.min_ctx <= pool.ctx
            && claim.below.is_none_or(|below| pool.ctx < below)
            && (pool.models.len() == 1 || !pool.models.iter().any(comes_first))
    }

    fn grant(&mut self, now: Mono, model: ModelIx, ix: PoolIx, weight: u32) -> Grant {
        self.picks += 1;
        let pick = self.picks;
        let pool = self.pool(ix);
        let weight = weight.clamp(1, pool.slots_total);
        let probe = pool.take(now, weight, pick);
        self.model(model).pace.granted(now, weight);
        self.pace.granted(now, weight);
        Grant {
            model,
            pool: ix,
            weight,
            probe,
            pick,
            since: now,
        }
    }
}
