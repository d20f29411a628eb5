//! The pools of one model, in the order in which requests are given them.
//!
//! Pools fall into *kinds*: those with the same context, the same number of slots and the same trust. Of two of a kind the
//! one with the lower busy share has more slots free, so either the best placed of a kind has room for a request or none
//! of them has. A placement looks at that one pool of each kind: what it costs grows with how differently engines are set
//! up, not with how many there are. The exception are pools that are kept for an earlier request of another of their models:
//! those are passed over one by one, all of them where all are kept. Invariant: every pool is in here as what it was when it last changed, under each of its
//! models. Called by `Dispatch` alone, whenever a pool changes and whenever one is looked for.

use super::seats::{Place, Seat, Seats};

/// What makes pools alike to every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Context of one slot in tokens, 0 where it is unknown.
    pub ctx: u64,
    pub slots: u32,
    pub suspect: bool,
}

/// What may be hoped for of a pool. Each is also all that stand before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It serves nobody any more.
    Gone,
    /// It may serve, once it no longer refuses connections.
    Refusing,
    /// It may serve soon: it is left out for a while.
    Ejected,
    /// It may serve soon.
    Coming,
    /// It would take requests, but does not answer.
    Hung,
    /// It takes requests, though it may be busy.
    Taking,
}

/// All that is kept of a pool here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    pub standing: Standing,
    /// Where it takes requests now and has a slot free.
    pub place: Option<Place>,
}

/// The pools of one kind.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// How many stand how.
    standing: [u32; 6],
    /// The most slots of a pool that takes requests and is of this kind or of one after it: of a good one, where there is one.
    most_slots: u32,
    pub seats: Seats,
}

impl Pools {
    /// How many stand at least so well.
    fn count(&self, least: Standing) -> u32 {
        self.standing[least as usize..].iter().sum()
    }

    /// Whether any may serve soon, and whether any takes requests.
    fn prospects(&self) -> [bool; 2] {
        [Standing::Ejected, Standing::Taking].map(|least| self.count(least) > 0)
    }
}

/// All pools of a model.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Sorted; kinds that no pool is of are not here.
    kinds: Vec<(Kind, Pools)>,
}

impl Index {
    /// A pool is now what it is `now`, and no longer what it was. Whether that changes what waiting requests may hope for.
    pub fn update(&mut self, seat: &mut Seat, was: Option<Entry>, now: Option<Entry>) -> bool {
        if let (Some(was), Some(now)) = (was, now)
            && (was.kind, was.standing) == (now.kind, now.standing)
        {
            self.of(now.kind).seats.set(*seat, now.place);
            return false;
        }
        let left = was.is_some_and(|was| self.remove(*seat, was));
        let came = now.is_some_and(|now| self.add(seat, now));
        left || came
    }

    fn add(&mut self, seat: &mut Seat, entry: Entry) -> bool {
        let pools = self.of(entry.kind);
        let before = pools.prospects();
        pools.standing[entry.standing as usize] += 1;
        *seat = pools.seats.add();
        pools.seats.set(*seat, entry.place);
        let changed = before != pools.prospects();
        self.measure();
        changed
    }

    fn remove(&mut self, seat: Seat, entry: Entry) -> bool {
        let pools = self.of(entry.kind);
        let before = pools.prospects();
        pools.standing[entry.standing as usize] -= 1;
        pools.seats.remove(seat);
        let changed = before != pools.prospects();
        if pools.count(Standing::Gone) == 0 {
            self.kinds.retain(|(kind, _)| *kind != entry.kind);
        }
        self.measure();
        changed
    }

    /// Finds anew how many slots a request can get at most.
    fn measure(&mut self) {
        let (mut good, mut suspect) = (0, 0);
        for at in (0..self.kinds.len()).rev() {
            let (kind, pools) = &self.kinds[at];
            if pools.count(Standing::Taking) > 0 {
                let most = if kind.suspect {
                    &mut suspect
                } else {
                    &mut good
                };
                *most = kind.slots.max(*most);
            }
            self.kinds[at].1.most_slots = if good > 0 { good } else { suspect };
        }
    }

    fn of(&mut self, kind: Kind) -> &mut Pools {
        let found = self.kinds.binary_search_by_key(&kind, |(kind, _)| *kind);
        let at = found.unwrap_or_else(|at| {
            self.kinds.insert(at, (kind, Pools::default()));
            at
        });
        &mut self.kinds[at].1
    }

    /// The kinds with at least so much context.
    fn from(&self, min_ctx: u64) -> &[(Kind, Pools)] {
        let from = (self.kinds).partition_point(|(kind, _)| kind.ctx < min_ctx);
        &self.kinds[from..]
    }

    /// Those of them that have a slot free somewhere.
    pub fn free(&self, min_ctx: u64) -> impl Iterator<Item = (Kind, &Pools)> {
        let kinds = self.from(min_ctx).iter();
        let free = kinds.filter(|(_, pools)| !pools.seats.are_busy());
        free.map(|(kind, pools)| (*kind, pools))
    }

    /// How many pools with so much context stand at least so well.
    pub fn count(&self, min_ctx: u64, least: Standing) -> u32 {
        let kinds = self.from(min_ctx).iter();
        kinds.map(|(_, pools)| pools.count(least)).sum()
    }

    /// The most context of a pool that may serve soon.
    pub fn most_ctx(&self) -> Option<u64> {
        let mut kinds = self.kinds.iter().rev();
        let most = kinds.find(|(_, pools)| pools.count(Standing::Ejected) > 0);
        most.map(|(kind, _)| kind.ctx)
    }

    /// The most slots that a request can get of a pool that takes requests and has so much context: of a good one, where
    /// there is one. 0 when there is none at all.
    pub fn most_slots(&self, min_ctx: u64) -> u32 {
        let first = self.from(min_ctx).first();
        first.map_or(0, |(_, pools)| pools.most_slots)
    }
}

#[cfg(test)]
impl Index {
    /// All there is to know, in order.
    pub fn contents(&self) -> Vec<(Kind, [u32; 6], u32, Vec<Place>)> {
        let kinds = self.kinds.iter();
        kinds
            .map(|(kind, pools)| {
                let places = pools.seats.places();
                (*kind, pools.standing, pools.most_slots, places)
            })
            .collect()
    }
}
