//! One pool's slots: what we use, what others use, what may still be in use.

use std::cmp::Ordering;

use crate::types::{Millis, Mono, Sample};

use super::index::{Entry, Kind, Standing};
use super::seats::{Place, Seat};
use super::{Grant, ModelIx, PoolCounts, PoolIx};

/// First ejection of a pool, and the longest (contract §3).
const FIRST_MS: Millis = 1_000;
const LONGEST_MS: Millis = 30_000;
/// First pause of a pool that asks for none: as long as the first retry at the same pool waits (contract §3).
const FIRST_PAUSE_MS: Millis = 250;
/// Shortest pause: an engine that asks to be asked again at once is asked soon.
const SHORTEST_PAUSE_MS: Millis = 100;

/// Twice as long each time.
fn doubled(first: Millis, times: u32) -> Millis {
    (first << times.min(7)).min(LONGEST_MS)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Quarantined {
    /// When its connection was closed.
    pub closed: Mono,
    /// When it counts as gone without anybody's word.
    pub until: Mono,
    pub weight: u32,
    /// Slots of it that the last reading, begun after the close, may still show.
    pub shown: u32,
}

impl Quarantined {
    pub fn new(closed: Mono, until: Mono, weight: u32) -> Self {
        Self {
            closed,
            until,
            weight,
            shown: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub models: Vec<ModelIx>,
    /// Its seats with them, in the same order.
    pub seats: Vec<Seat>,
    pub accepting: bool,
    pub prospective: bool,
    pub suspect: bool,
    /// Added, and not removed since.
    pub present: bool,
    /// Removed; the place is kept for the requests that still run.
    pub leaving: bool,
    pub slots_total: u32,
    /// As its models and the fleet's slots have it.
    pub entry: Option<Entry>,
    /// Context of one slot in tokens, 0 where it is unknown.
    pub ctx: u64,
    /// Slots of requests that run.
    pub ours: u32,
    /// Since when each of those requests runs, in no order: as many as fit into the slots.
    since: Vec<Mono>,
    pub quarantine: Vec<Quarantined>,
    /// The most that `ours` and the quarantine came to since the last reading.
    peak: u32,
    /// The most slots beyond one for each request since then: a reader counts requests.
    peak_extra: u32,
    /// Slots of requests that the engine has begun to answer, now and at the fewest since the last reading: those were
    /// busy throughout.
    answering: u32,
    answering_floor: u32,
    /// Slots others used at the last reading.
    external: u32,
    /// When that reading stops to count.
    pub sample_until: Mono,
    pub ejected_until: Option<Mono>,
    /// It refused connections, and was not shown to be back since.
    pub refuses: bool,
    /// Failures in a row.
    pub strikes: u32,
    pub ejections: u64,
    pub paused_until: Option<Mono>,
    /// Refusals in a row.
    refusals: u32,
    /// Its engine does not answer.
    pub hung_since: Option<Mono>,
    /// After an ejection or a pause one request goes first, and shows whether the pool is back: the one under way.
    probe: Option<u64>,
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

    pub fn is_paused(&self, now: Mono) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// It failed or refused, and has served nothing since.
    pub fn is_on_trial(&self) -> bool {
        self.strikes > 0 || self.refusals > 0
    }

    pub fn has_room(&self, now: Mono, weight: u32) -> bool {
        let free = self.slots_total - self.busy(now);
        self.accepting
            && self.hung_since.is_none()
            && self.probe.is_none()
            && !self.is_ejected(now)
            && !self.is_paused(now)
            && free >= weight.clamp(1, self.slots_total)
    }

    /// There will be room as soon as enough of our own requests have ended: nothing else stands in the way.
    pub fn will_have_room(&self, now: Mono, weight: u32) -> bool {
        let ever_free = self.slots_total - self.external(now).min(self.slots_total);
        ever_free >= weight.clamp(1, self.slots_total)
    }

    /// What its models are to have of it.
    pub fn to_entry(&self, now: Mono, ix: PoolIx) -> Option<Entry> {
        let place = || Place::new(self.busy(now), self.picked, ix);
        self.present.then(|| Entry {
            kind: self.kind(),
            standing: self.standing(now),
            place: self.has_room(now, 1).then(place),
        })
    }

    pub fn kind(&self) -> Kind {
        Kind {
            ctx: self.ctx,
            slots: self.slots_total,
            suspect: self.suspect,
        }
    }

    fn standing(&self, now: Mono) -> Standing {
        if !self.prospective {
            Standing::Gone
        } else if self.refuses {
            Standing::Refusing
        } else if self.is_ejected(now) {
            Standing::Ejected
        } else if !self.accepting {
            Standing::Coming
        } else if self.hung_since.is_some() {
            Standing::Hung
        } else {
            Standing::Taking
        }
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

    /// A request gets slots. True when it is the one that shows whether the pool is back.
    pub fn take(&mut self, now: Mono, weight: u32, pick: u64) -> bool {
        self.ours += weight;
        self.since.push(now);
        self.picked = pick;
        self.peak = self.peak.max(self.own());
        self.peak_extra = self.peak_extra.max(self.extra());
        let probe = self.is_on_trial();
        if probe {
            self.probe = Some(pick);
        }
        probe
    }

    /// Slots beyond one for each request.
    fn extra(&self) -> u32 {
        self.ours.saturating_sub(self.requests())
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
        if self.is_probed_by(grant) {
            self.probe = None;
        }
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
            self.quarantine.retain_mut(|q| {
                if q.closed >= begun {
                    return true;
                }
                q.shown = q.weight.min(unexplained);
                unexplained -= q.shown;
                q.shown > 0
            });
            if self.hung_since.is_some_and(|since| since <= begun) {
                // It answered its reader.
                self.hung_since = None;
            }
        }
        self.answering_floor = self.answering;
        let own = self.own();
        let ours = match sample.ours {
            Some(requests) => requests.saturating_add(self.peak_extra),
            None => self.peak.max(own),
        };
        self.peak = own;
        self.peak_extra = self.extra();
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
        let until = now.plus(doubled(FIRST_MS, self.strikes));
        self.strikes = self.strikes.saturating_add(1);
        self.ejections += 1;
        self.ejected_until = Some(until);
        self.probe = None;
        until
    }

    /// Gives the engine the time it asked for, or longer each time, and says until when. Refusals of requests that were
    /// there together are one, and the longest time asked for counts.
    pub fn pause(&mut self, now: Mono, asked: Option<Millis>) -> Mono {
        let asked = asked.map(|ms| ms.clamp(SHORTEST_PAUSE_MS, LONGEST_MS));
        let until = match self.paused_until.filter(|until| now < *until) {
            Some(until) => asked.map_or(until, |ms| until.max(now.plus(ms))),
            None => {
                let ms = asked.unwrap_or(doubled(FIRST_PAUSE_MS, self.refusals));
                self.refusals = self.refusals.saturating_add(1);
                self.probe = None;
                now.plus(ms)
            }
        };
        self.paused_until = Some(until);
        until
    }

    /// Whether this request is the one that shows that the pool is back.
    pub fn is_probed_by(&self, grant: Grant) -> bool {
        self.probe == Some(grant.pick)
    }

    /// Earlier failures and refusals say nothing any more.
    pub fn forgive(&mut self) {
        self.strikes = 0;
        self.refusals = 0;
        self.refuses = false;
        self.probe = None;
        self.ejected_until = None;
        self.paused_until = None;
    }

    /// Ends what ends by itself. True when slots count as taken by others from now on, for a time.
    pub fn expire(&mut self, now: Mono) -> bool {
        let mut shown = 0_u32;
        self.quarantine.retain(|q| {
            if q.until <= now {
                shown = shown.saturating_add(q.shown);
            }
            now < q.until
        });
        if !self.is_ejected(now) {
            self.ejected_until = None;
        }
        if !self.is_paused(now) {
            self.paused_until = None;
        }
        if self.sample_until <= now {
            self.external = 0;
        }
        // The last reading may still show them. It has a longer word than our patience: they are somebody's.
        let seen = shown > 0 && now < self.sample_until;
        if seen {
            self.external = self.external.saturating_add(shown);
            self.peak = self.peak.saturating_sub(shown).max(self.own());
        }
        seen
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
            hung: self.hung_since.is_some(),
            paused: self.is_paused(now),
            ejections: self.ejections,
        }
    }
}
