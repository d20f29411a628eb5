//! One model's queue: first come, first served.

use std::collections::VecDeque;

use crate::types::{Millis, Mono};

use super::pace::Pace;
use super::{PoolIx, Ticket};

#[derive(Debug)]
pub(super) struct Waiting {
    pub ticket: Ticket,
    pub weight: u32,
    /// Context that a slot must have for it.
    pub min_ctx: u64,
    /// Length of its body.
    pub bytes: u64,
    /// When it came, however often it was tried since.
    pub arrived: Mono,
    pub deadline: Mono,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub pools: Vec<PoolIx>,
    /// In order of arrival.
    pub queue: VecDeque<Waiting>,
    /// The most slots that a pool of it has had: no request takes more.
    pub largest: u32,
    /// How fast its slots come back.
    pub pace: Pace,
    /// Pools that serve now or may soon.
    pub hopeful: u32,
    /// When the last of them was lost.
    hopeless_since: Mono,
    /// When the queue's timer fires.
    pub armed: Option<Mono>,
}

impl Model {
    pub fn lose_hope(&mut self, now: Mono) {
        self.hopeful = self
            .hopeful
            .checked_sub(1)
            .expect("a pool is counted out once");
        if self.hopeful == 0 {
            self.hopeless_since = now;
        }
    }

    /// When a waiting request is told that no pool may serve it, or `None` while one may.
    pub fn hopeless_at(&self, waiting: &Waiting, no_pool_wait_ms: Millis) -> Option<Mono> {
        (self.hopeful == 0).then(|| {
            waiting
                .arrived
                .max(self.hopeless_since)
                .plus(no_pool_wait_ms)
        })
    }

    pub fn enqueue(&mut self, waiting: Waiting) {
        // A request that is tried again keeps its arrival number, hence its place.
        let at = self.queue.partition_point(|w| w.ticket < waiting.ticket);
        self.queue.insert(at, waiting);
    }

    pub fn dequeue(&mut self, ticket: Ticket) -> Option<Waiting> {
        let at = self
            .queue
            .binary_search_by_key(&ticket, |w| w.ticket)
            .ok()?;
        self.queue.remove(at)
    }

    /// The first in line of those to whom a slot with so much context will do.
    pub fn first_for(&self, ctx: u64) -> Option<&Waiting> {
        self.queue.iter().find(|waiting| waiting.min_ctx <= ctx)
    }

    /// The least context that will do for one of those before `ticket`: a pool with as much is theirs first.
    pub fn least_ctx_before(&self, ticket: Ticket) -> Option<u64> {
        let mut least = None;
        for waiting in &self.queue {
            // Nearly always the first one settles it.
            if waiting.ticket >= ticket || least == Some(0) {
                break;
            }
            least = Some(least.map_or(waiting.min_ctx, |least: u64| least.min(waiting.min_ctx)));
        }
        least
    }

    /// Slots that those who wait will take, in all.
    pub fn waiting_slots(&self) -> u64 {
        (self.queue.iter())
            .map(|waiting| u64::from(waiting.weight.clamp(1, self.largest.max(1))))
            .sum()
    }

    /// How long until those who wait now have been served, and one more that takes so many slots.
    pub fn retry_after(&self, now: Mono, weight: u32) -> Millis {
        let one_more = u64::from(weight.clamp(1, self.largest.max(1)));
        self.pace
            .until_served(now, self.waiting_slots().saturating_add(one_more))
    }
}
