//! One model's queue: first come, first served.

use std::collections::VecDeque;

use crate::types::{Millis, Mono};

use super::{PoolIx, Ticket};

/// Releases from which the rate is measured.
const RATE_WINDOW: usize = 32;
/// Bounds of a `Retry-After` (contract §3).
const RETRY_AFTER_MIN_MS: Millis = 1_000;
const RETRY_AFTER_MAX_MS: Millis = 60_000;

#[derive(Debug)]
pub(super) struct Waiting {
    pub ticket: Ticket,
    pub weight: u32,
    /// Length of its body.
    pub bytes: u64,
    /// When it joined this queue.
    pub arrived: Mono,
    pub deadline: Mono,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub pools: Vec<PoolIx>,
    /// In order of arrival.
    pub queue: VecDeque<Waiting>,
    /// Pools that serve now or may soon.
    pub hopeful: u32,
    /// When the last of them was lost.
    hopeless_since: Mono,
    /// When the queue's timer fires.
    pub armed: Option<Mono>,
    releases: VecDeque<Mono>,
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

    pub fn released(&mut self, now: Mono) {
        if self.releases.len() == RATE_WINDOW {
            self.releases.pop_front();
        }
        self.releases.push_back(now);
    }

    /// How long until as many requests as wait now have been served, at the rate of the last releases.
    pub fn retry_after(&self, now: Mono) -> Millis {
        let Some(first) = self.releases.front() else {
            return RETRY_AFTER_MAX_MS;
        };
        let each = now.since(*first) / self.releases.len() as u64;
        (each * self.queue.len() as u64).clamp(RETRY_AFTER_MIN_MS, RETRY_AFTER_MAX_MS)
    }
}
