//! One pool's slots: what we use, what others use, what may still be in use.

use std::cmp::Ordering;

use crate::types::{Millis, Mono, Sample};

use super::{Grant, ModelIx, PoolCounts};

/// First ejection of a pool, and the longest (contract §3).
const EJECT_FIRST_MS: Millis = 1_000;
const EJECT_LONGEST_MS: Millis = 30_000;

#[derive(Debug, Clone, Copy)]
pub(super) struct Quarantined {
    /// When its connection was closed.
    pub closed: Mono,
    /// When it counts as gone without anybody's word.
    pub until: Mono,
    pub weight: u32,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub models: Vec<ModelIx>,
    pub accepting: bool,
    pub prospective: bool,
    pub suspect: bool,
    /// Counted among its models' pools that may serve soon.
    pub hopeful: bool,
    /// Gone; the place is kept for the requests that still run.
    pub removed: bool,
    pub slots_total: u32,
    /// Slots of requests that run.
    pub ours: u32,
    /// Since when each of those requests runs, in no order: as many as fit into the slots.
    since: Vec<Mono>,
    pub quarantine: Vec<Quarantined>,
    /// The most that `ours` and the quarantine came to since the last reading.
    peak: u32,
    /// Slots of requests that the engine has begun to answer, now and at the fewest since the last reading: those were
    /// busy throughout.
    answering: u32,
    answering_floor: u32,
    /// Slots others used at the last reading.
    external: u32,
    /// When that reading stops to count.
    pub sample_until: Mono,
    pub ejected_until: Option<Mono>,
    /// Failures in a row.
    pub strikes: u32,
    /// After an ejection one request goes first, and shows whether the pool is back: it is under way.
    pub probing: bool,
    picked: u64,
}

impl Pool {
    /// Requests that run.
    pub fn requests(&self) -> u32 {
        u32::try_from(self.since.len()).unwrap_or(u32::MAX)
    }

    pub fn quarantined(&self) -> u32 {
        self.quarantine.iter().map(|q| q.weight).sum()
    }

    /// Slots of requests that run, and of those that may still be there.
    fn own(&self) -> u32 {
        self.ours.saturating_add(self.quarantined())
    }

    fn external(&self, now: Mono) -> u32 {
        if now < self.sample_until {
            self.external
        } else {
            0
        }
    }

    fn busy(&self, now: Mono) -> u32 {
        // What a heartbeat says is bounded by its type alone.
        self.external(now)
            .saturating_add(self.own())
            .min(self.slots_total)
    }

    pub fn is_ejected(&self, now: Mono) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    pub fn has_room(&self, now: Mono, weight: u32) -> bool {
        let free = self.slots_total - self.busy(now);
        self.accepting
            && !self.is_ejected(now)
            && !self.probing
            && free >= weight.clamp(1, self.slots_total)
    }

    /// Smaller is better placed.
    pub fn rank(&self, now: Mono, other: &Self) -> Ordering {
        let share = u64::from(self.busy(now)) * u64::from(other.slots_total);
        let other_share = u64::from(other.busy(now)) * u64::from(self.slots_total);
        self.suspect
            .cmp(&other.suspect)
            .then(share.cmp(&other_share))
            .then(self.picked.cmp(&other.picked))
    }

    pub fn take(&mut self, now: Mono, weight: u32, pick: u64) {
        self.ours += weight;
        self.since.push(now);
        self.picked = pick;
        self.probing = self.strikes > 0;
        self.peak = self.peak.max(self.own());
    }

    /// The engine has begun to answer a request.
    pub fn answers(&mut self, weight: u32) {
        self.answering += weight;
    }

    /// A request has ended.
    pub fn end(&mut self, grant: Grant, answering: bool) {
        self.ours = self
            .ours
            .checked_sub(grant.weight)
            .expect("a grant is given back once");
        let mut running = self.since.iter();
        let at = running.position(|since| *since == grant.since);
        self.since
            .swap_remove(at.expect("a grant is given back once"));
        self.probing &= !grant.probe;
        if answering {
            self.answering = self
                .answering
                .checked_sub(grant.weight)
                .expect("what answered ends once");
            self.answering_floor = self.answering_floor.min(self.answering);
        }
    }

    /// Takes a reading. True when slots are taken by others, which counts only for a time.
    pub fn observe(&mut self, now: Mono, sample: Sample, ttl_ms: Millis) -> bool {
        if let Some(begun) = sample.begun {
            // Busy slots that are not certainly those of running requests may still be those that were closed early.
            let mut unexplained = sample.busy.saturating_sub(self.answering_floor);
            self.quarantine.retain(|q| {
                let held = q.closed >= begun || unexplained > 0;
                if q.closed < begun {
                    unexplained = unexplained.saturating_sub(q.weight);
                }
                held
            });
        }
        self.answering_floor = self.answering;
        let now_ours = self.own();
        let ours = sample.ours.unwrap_or(self.peak.max(now_ours));
        self.peak = now_ours;
        self.slots_total = sample.slots_total.max(1);
        self.external = sample.busy.saturating_sub(ours);
        self.sample_until = now.plus(ttl_ms);
        self.external > 0
    }

    /// Leaves the pool out for a time, and says until when. Failures of requests that were there together are one.
    pub fn eject(&mut self, now: Mono) -> Mono {
        if let Some(until) = self.ejected_until.filter(|until| now < *until) {
            return until;
        }
        let longer = EJECT_FIRST_MS << self.strikes.min(5);
        let until = now.plus(longer.min(EJECT_LONGEST_MS));
        self.strikes = self.strikes.saturating_add(1);
        self.ejected_until = Some(until);
        until
    }

    /// Earlier failures say nothing any more.
    pub fn forgive(&mut self) {
        self.strikes = 0;
        self.probing = false;
        self.ejected_until = None;
    }

    pub fn expire(&mut self, now: Mono) {
        self.quarantine.retain(|q| now < q.until);
        if !self.is_ejected(now) {
            self.ejected_until = None;
        }
    }

    pub fn counts(&self, now: Mono) -> PoolCounts {
        PoolCounts {
            slots_total: self.slots_total,
            slots_free: self.slots_total - self.busy(now),
            external: self.external(now),
            running: self.requests(),
            oldest: self.since.iter().min().copied(),
            quarantined: self.quarantined(),
            ejected: self.is_ejected(now),
        }
    }
}
