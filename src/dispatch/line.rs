//! The lines: who asks, waits, is granted, gives back and gives up.

use std::cmp::{Ordering, Reverse};

use crate::types::{Mono, Sample};

use super::model::Waiting;
use super::pool::Quarantined;
use super::{
    Dispatch, Grant, ModelIx, Offer, Policy, PoolIx, Quarantine, Settings, Ticket, Timer, Turn,
    Verdict, Want,
};

/// A request that a pool is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub model: ModelIx,
    pub ticket: Ticket,
    pub weight: u32,
    pub min_ctx: u64,
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
        self.lapse(now);
        let claim = Claim {
            model,
            ticket,
            weight,
            min_ctx,
        };
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
        let waiting = Waiting {
            ticket,
            weight,
            slots: self.model(model).slots_for(weight),
            min_ctx,
            bytes,
            arrived,
            deadline,
        };
        self.waiting_bytes += bytes;
        self.waiting_slots += u64::from(waiting.slots);
        let no_pool_wait_ms = self.settings.no_pool_wait_ms;
        let line = self.model(model);
        let ends = line.ends_at(&waiting, no_pool_wait_ms);
        line.enqueue(waiting);
        self.arm_line(model, ends);
        if is_new || weight == 1 {
            // Whoever gave way for it may have kept what it can use.
            self.stir(model);
        } else {
            // It comes before others of its line again, and may be too heavy for what was kept for them.
            self.stir_all();
        }
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
            let retry_after_ms = self.pace.until_served(now, self.waiting_slots + 1);
            return Err(Offer::NoRoom { retry_after_ms });
        }
        if let Some((ticket, _)) = gives_way {
            let retry_after_ms = self.model(ix).retry_after(now, weight);
            self.cancel(ix, ticket);
            self.ended
                .push((ticket, Verdict::Dropped { retry_after_ms }));
        }
        Ok(())
    }

    /// Takes a request out of its queue.
    fn dequeue(&mut self, model: ModelIx, ticket: Ticket) -> Option<Waiting> {
        let found = self.model(model).dequeue(ticket);
        if let Some(waiting) = &found {
            self.left(waiting.bytes, waiting.slots.into(), waiting.weight);
        }
        found
    }

    /// Somebody waits no longer. A heavy one may have kept slots from others; a light one found none itself.
    fn left(&mut self, bytes: u64, slots: u64, weight: u32) {
        self.waiting_bytes -= bytes;
        self.waiting_slots -= slots;
        if weight > 1 {
            self.stir_all();
        }
    }

    /// Sends everybody who waits away. Nobody is granted anything for it.
    pub fn close(&mut self) {
        for model in &mut self.models {
            model.queue.clear();
            model.waiting_slots = 0;
        }
        self.waiting_bytes = 0;
        self.waiting_slots = 0;
    }

    /// A waiting request gives up its place. False when it has none, because its wait has ended already.
    pub fn cancel(&mut self, model: ModelIx, ticket: Ticket) -> bool {
        self.dequeue(model, ticket).is_some()
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
        self.changed(now, grant.pool);
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
        self.changed(now, ix);
    }

    /// Does what is due, and gives free slots to those who wait, longest first. Appends whose wait has ended, and how.
    pub fn pump(&mut self, now: Mono, out: &mut Vec<(Ticket, Verdict)>) {
        self.lapse(now);
        out.append(&mut self.ended);
        // Whatever becomes of somebody, it makes no room for those who came earlier.
        let mut tried = Ticket(0);
        while let Some(claim) = self.next_after(tried) {
            tried = claim.ticket;
            let Some(pool) = self.place(now, claim, None) else {
                continue;
            };
            self.dequeue(claim.model, claim.ticket);
            let grant = self.grant(now, claim.model, pool, claim.weight);
            out.push((claim.ticket, Verdict::Granted(grant)));
        }
        while let Some(model) = self.stirred.pop() {
            self.model(model).stirred = false;
        }
    }

    /// Of those in line who may find room now and are the first for a pool that has a slot free, the oldest after `tried`.
    fn next_after(&self, tried: Ticket) -> Option<Claim> {
        let firsts = self.stirred.iter().filter_map(|model| {
            let first = self.models[model.0 as usize].first_after(tried)?;
            Some(Claim {
                model: *model,
                ticket: first.ticket,
                weight: first.weight,
                min_ctx: first.min_ctx,
            })
        });
        firsts.min_by_key(|claim| claim.ticket)
    }

    /// Ends what ends by itself until `now`: waits that lasted too long, quarantines, ejections, readings.
    pub(super) fn lapse(&mut self, now: Mono) {
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
                    self.changed(now, ix);
                }
                // Another time means that an earlier timer has taken this one's place.
                Timer::Queue(model) if self.model(model).armed == Some(at) => {
                    self.expire_queue(now, model);
                }
                Timer::Queue(_) => {}
            }
        }
    }

    fn expire_queue(&mut self, now: Mono, ix: ModelIx) {
        let no_pool_wait_ms = self.settings.no_pool_wait_ms;
        let Self { models, ended, .. } = self;
        let model = &mut models[ix.0 as usize];
        model.armed = None;
        let (mut bytes, mut slots, mut heaviest) = (0, 0, 0);
        model.dequeue_over(now, no_pool_wait_ms, |waiting, hopeless| {
            let verdict = if hopeless {
                Verdict::NoReadyPool
            } else {
                Verdict::QueueTimeout
            };
            ended.push((waiting.ticket, verdict));
            bytes += waiting.bytes;
            slots += u64::from(waiting.slots);
            heaviest = heaviest.max(waiting.weight);
        });
        self.left(bytes, slots, heaviest);
        self.rearm_line(ix);
    }

    /// When something is due next, at the earliest: [`pump`](Self::pump) does it.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn arm(&mut self, at: Mono, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    /// Somebody's wait in the line of a model ends at this time.
    fn arm_line(&mut self, ix: ModelIx, at: Mono) {
        let model = self.model(ix);
        if model.armed.is_none_or(|armed| at < armed) {
            model.armed = Some(at);
            self.arm(at, Timer::Queue(ix));
        }
    }

    /// The waits in the line of a model end at other times than before.
    pub(super) fn rearm_line(&mut self, ix: ModelIx) {
        let model = &self.models[ix.0 as usize];
        let ends = |waiting| model.ends_at(waiting, self.settings.no_pool_wait_ms);
        if let Some(at) = model.queue.iter().map(ends).min() {
            self.arm_line(ix, at);
        }
    }

    /// Good before suspect, then the lowest busy share of slots, then the least recently picked; of those that are for the
    /// request, and nobody else's first.
    fn place(&self, now: Mono, claim: Claim, avoid: Option<PoolIx>) -> Option<PoolIx> {
        let model = &self.models[claim.model.0 as usize];
        let best_of_each_kind = model.index.free(claim.min_ctx).filter_map(|(kind, pools)| {
            let is_its_turn = model.suits(claim.weight, claim.min_ctx, kind)
                && (model.first_for(kind)).is_none_or(|first| first.ticket >= claim.ticket);
            let most_busy = kind.slots - claim.weight.clamp(1, kind.slots);
            let is_for_it = |ix| Some(ix) != avoid && !self.is_kept(now, claim, ix);
            is_its_turn
                .then(|| pools.seats.first(most_busy, is_for_it))
                .flatten()
        });
        let best = best_of_each_kind.min_by(|a, b| self.rank(now, *a, *b));
        #[cfg(test)]
        assert_eq!(best, self.scan(now, claim, avoid));
        best
    }

    pub(super) fn rank(&self, now: Mono, a: PoolIx, b: PoolIx) -> Ordering {
        let [one, other] = [a, b].map(|ix| &self.pools[ix.0 as usize]);
        one.rank(now, other).then(a.cmp(&b))
    }

    /// Whether a pool is kept for somebody who came earlier and asks for another of its models.
    fn is_kept(&self, now: Mono, claim: Claim, ix: PoolIx) -> bool {
        let pool = &self.pools[ix.0 as usize];
        let others = pool.models.iter().filter(|model| **model != claim.model);
        let firsts =
            others.filter_map(|model| self.models[model.0 as usize].first_for(pool.kind()));
        let mut earlier = firsts.filter(|first| first.ticket < claim.ticket);
        earlier.any(|first| pool.will_have_room(now, first.weight))
    }

    fn grant(&mut self, now: Mono, model: ModelIx, ix: PoolIx, weight: u32) -> Grant {
        self.picks += 1;
        let pick = self.picks;
        let pool = self.pool(ix);
        let weight = weight.clamp(1, pool.slots_total);
        let probe = pool.take(now, weight, pick);
        self.reindex(now, ix);
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
