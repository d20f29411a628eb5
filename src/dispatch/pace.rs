//! How fast slots come back, for a `Retry-After`.
//!
//! Measured is how long requests hold their slots, not how often one ends: an idle minute says nothing of the rate, and
//! by Little's law as many slots come back in a time as are held, divided by how long each is held.

use std::collections::VecDeque;

use crate::types::{Millis, Mono};

use super::Grant;

/// Ended requests from which the rate is measured.
const WINDOW: usize = 32;
/// Bounds of a `Retry-After` (contract §3).
const RETRY_AFTER_MIN_MS: Millis = 1_000;
const RETRY_AFTER_MAX_MS: Millis = 60_000;

/// Slots held now, and for how long others were held.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Slots held by requests that run.
    held: u64,
    /// When the last of those began: all of them run for so long at least.
    last_grant: Option<Mono>,
    /// The last requests that ended: their slots, and how long they held them.
    ended: VecDeque<(u32, Millis)>,
}

impl Pace {
    pub fn granted(&mut self, now: Mono, weight: u32) {
        self.held += u64::from(weight);
        self.last_grant = Some(now);
    }

    /// What never began to be answered is not counted: failures are fast, and no sign of room.
    pub fn released(&mut self, now: Mono, grant: Grant, answered: bool) {
        self.held = self.held.saturating_sub(u64::from(grant.weight));
        if answered {
            if self.ended.len() == WINDOW {
                self.ended.pop_front();
            }
            self.ended.push_back((grant.weight, now.since(grant.since)));
        }
    }

    /// How long a slot is held on average, where one was.
    fn mean(&self) -> Option<Millis> {
        let sum = |of: fn(u64, Millis) -> u64| {
            (self.ended.iter())
                .map(|(weight, ms)| of(u64::from(*weight), *ms))
                .fold(0, u64::saturating_add)
        };
        sum(|weight, ms| weight.saturating_mul(ms)).checked_div(sum(|weight, _| weight))
    }

    /// How long until so many more slots have been given.
    pub fn until_served(&self, now: Mono, slots: u64) -> Millis {
        // When all that runs has done so for longer than is usual, what is usual has changed. Before the first has
        // ended, that is all there is to go by: as long again as it took so far.
        let so_far = self.last_grant.map(|last| now.since(last));
        let Some(each) = self.mean().max(so_far) else {
            return RETRY_AFTER_MAX_MS;
        };
        (slots.max(1).saturating_mul(each) / self.held.max(1))
            .clamp(RETRY_AFTER_MIN_MS, RETRY_AFTER_MAX_MS)
    }
}
