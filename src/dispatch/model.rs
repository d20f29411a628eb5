//! One model's queue: first come, first served.

use std::collections::VecDeque;

use crate::types::{Millis, Mono};

use super::Ticket;
use super::hope::Hope;
use super::index::{Index, Kind, Standing};
use super::pace::Pace;

#[derive(Debug)]
pub(super) struct Waiting {
    pub ticket: Ticket,
    pub weight: u32,
    /// What is likely to become of that: no pool had more when it came.
    pub slots: u32,
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
    pub index: Index,
    /// In order of arrival.
    pub queue: VecDeque<Waiting>,
    /// Slots that those in it will take, in all.
    pub waiting_slots: u64,
    /// The most slots that a pool of it has had: no request takes more.
    pub largest: u32,
    /// How fast its slots come back.
    pub pace: Pace,
    pub hope: Hope,
    /// When the queue's timer fires.
    pub armed: Option<Mono>,
    /// Somebody in the queue may find room now.
    pub stirred: bool,
}

impl Model {
    /// When a waiting request is told that it waits no longer, whatever it is then told.
    pub fn ends_at(&self, waiting: &Waiting, no_pool_wait_ms: Millis) -> Mono {
        let hopeless = hopeless_at(&self.hope, waiting, no_pool_wait_ms);
        hopeless.map_or(waiting.deadline, |at| at.min(waiting.deadline))
    }

    /// Slots that a request of this weight is likely to take.
    pub fn slots_for(&self, weight: u32) -> u32 {
        weight.clamp(1, self.largest.max(1))
    }

    pub fn enqueue(&mut self, waiting: Waiting) {
        // A request that is tried again keeps its arrival number, hence its place.
        let at = self.queue.partition_point(|w| w.ticket < waiting.ticket);
        self.waiting_slots += u64::from(waiting.slots);
        self.queue.insert(at, waiting);
    }

    pub fn dequeue(&mut self, ticket: Ticket) -> Option<Waiting> {
        let at = self
            .queue
            .binary_search_by_key(&ticket, |w| w.ticket)
            .ok()?;
        let waiting = self.queue.remove(at)?;
        self.waiting_slots -= u64::from(waiting.slots);
        Some(waiting)
    }

    /// Takes everybody out whose wait is over at `now`, and says of each whether there was no hope.
    pub fn dequeue_over(
        &mut self,
        now: Mono,
        no_pool_wait_ms: Millis,
        mut over: impl FnMut(&Waiting, bool),
    ) {
        let Self {
            queue,
            hope,
            waiting_slots,
            ..
        } = self;
        queue.retain(|waiting| {
            let late = waiting.deadline <= now;
            let stays =
                !late && hopeless_at(hope, waiting, no_pool_wait_ms).is_none_or(|at| at > now);
            if !stays {
                *waiting_slots -= u64::from(waiting.slots);
                over(waiting, !late);
            }
            stays
        });
    }

    /// Whether pools of this kind are for a request of this weight: they have the context, and hold it whole unless no pool
    /// does that counts (`Index::most_slots`).
    pub fn suits(&self, weight: u32, min_ctx: u64, kind: Kind) -> bool {
        min_ctx <= kind.ctx && (weight <= kind.slots || weight > self.index.most_slots(min_ctx))
    }

    /// The first in line of those whom a pool of this kind is for.
    pub fn first_for(&self, kind: Kind) -> Option<&Waiting> {
        let mut queue = self.queue.iter();
        queue.find(|waiting| self.suits(waiting.weight, waiting.min_ctx, kind))
    }

    /// The first in line after `tried` who is also the first for a pool with a slot free.
    pub fn first_after(&self, tried: Ticket) -> Option<&Waiting> {
        let kinds = self.index.free(0);
        let firsts = kinds.filter_map(|(kind, _)| self.first_for(kind));
        let untried = firsts.filter(|waiting| waiting.ticket > tried);
        untried.min_by_key(|waiting| waiting.ticket)
    }

    /// Whether a pool may serve soon that has so much context.
    pub fn is_hopeful(&self, min_ctx: u64) -> bool {
        self.hope.lost_since(min_ctx).is_none()
    }

    /// Whether a pool that serves it now or may again has so much context.
    pub fn has_context(&self, min_ctx: u64) -> bool {
        self.index.count(min_ctx, Standing::Refusing) > 0
    }

    /// How long until those who wait now have been served, and one more of this weight.
    pub fn retry_after(&self, now: Mono, weight: u32) -> Millis {
        let slots = self.waiting_slots + u64::from(self.slots_for(weight));
        self.pace.until_served(now, slots)
    }
}

/// When a waiting request is told that no pool may serve it, or `None` while one may.
fn hopeless_at(hope: &Hope, waiting: &Waiting, no_pool_wait_ms: Millis) -> Option<Mono> {
    let since = hope.lost_since(waiting.min_ctx)?;
    Some(waiting.arrived.max(since).plus(no_pool_wait_ms))
}
