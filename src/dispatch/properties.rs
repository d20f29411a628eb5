//! What holds after any history.

mod history;
mod holds;

use std::collections::BTreeMap;

use proptest::prelude::*;

use self::history::{Described, End, Step, described, step};
use super::*;
use crate::types::Sample;

const MODELS: usize = 3;
const POOLS: usize = 12;
const QUARANTINE_MS: Millis = 3_000;
const SETTINGS: Settings = Settings {
    queue_capacity: 64,
    policy: Policy::Reject,
    queue_bytes: 40,
    queue_timeout_ms: 20_000,
    no_pool_wait_ms: 5_000,
    sample_ttl_ms: 4_000,
};

#[derive(Debug, Clone, Copy)]
struct Running {
    turn: Turn,
    want: Want,
    grant: Grant,
    answered: bool,
}

/// A pool as it should be.
#[derive(Debug)]
struct Seen {
    spec: PoolSpec,
    /// Until when it may be left out at the latest.
    back_by: Mono,
    hung: Option<Mono>,
    /// It failed or refused and has served nothing since; the request that is to show whether it is back.
    trial: bool,
    /// It refused a connection, and has served nothing since.
    refuses: bool,
    probe: Option<u64>,
    /// Until when something may be quarantined there.
    quarantine: Mono,
}

/// Dispatch, and what it should know.
struct World {
    dispatch: Dispatch,
    capacity: usize,
    policy: Policy,
    now: Mono,
    models: Vec<ModelIx>,
    pools: BTreeMap<PoolIx, Seen>,
    running: Vec<Running>,
    waiting: BTreeMap<Ticket, (Turn, Want)>,
    /// Of those, since when nothing may serve them.
    hopeless: BTreeMap<Ticket, Mono>,
    out: Vec<(Ticket, Verdict)>,
}

impl World {
    fn new(drop_lru: bool) -> Self {
        let (capacity, policy) = if drop_lru {
            (3, Policy::DropLru)
        } else {
            (SETTINGS.queue_capacity, Policy::Reject)
        };
        let mut dispatch = Dispatch::new(Settings {
            queue_capacity: capacity,
            policy,
            ..SETTINGS
        });
        let models = (0..MODELS).map(|_| dispatch.add_model()).collect();
        Self {
            dispatch,
            capacity,
            policy,
            now: Mono(1_000),
            models,
            pools: BTreeMap::new(),
            running: Vec::new(),
            waiting: BTreeMap::new(),
            hopeless: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    fn spec(&self, described: &Described) -> PoolSpec {
        let served = |nth: &usize| described.models & (1 << nth) != 0;
        PoolSpec {
            models: (0..MODELS)
                .filter(served)
                .map(|nth| self.models[nth])
                .collect(),
            accepting: described.accepting,
            prospective: described.prospective,
            suspect: described.suspect,
            slots_total: described.slots,
            n_ctx: described.n_ctx,
        }
    }

    fn pool(&self, nth: usize) -> Option<PoolIx> {
        let count = self.pools.len().max(1);
        self.pools.keys().nth(nth % count).copied()
    }

    fn seen(&mut self, ix: PoolIx) -> &mut Seen {
        self.pools.get_mut(&ix).expect("present")
    }

    fn add(&mut self, described: &Described) {
        let spec = self.spec(described);
        let ix = self.dispatch.add_pool(self.now, spec.clone());
        assert!(
            self.running.iter().all(|r| r.grant.pool != ix),
            "the place is another's"
        );
        let seen = Seen {
            spec,
            back_by: self.now,
            hung: None,
            trial: false,
            refuses: false,
            probe: None,
            quarantine: self.now,
        };
        assert!(self.pools.insert(ix, seen).is_none(), "the place is taken");
    }

    fn describe(&mut self, ix: PoolIx, spec: PoolSpec) {
        self.dispatch.update_pool(self.now, ix, spec.clone());
        let seen = self.seen(ix);
        if spec.accepting && !seen.spec.accepting {
            (seen.trial, seen.probe, seen.hung) = (false, None, None);
            seen.refuses = false;
        }
        seen.spec = spec;
    }

    fn offer(&mut self, turn: Turn, want: Want) {
        let full = self.dispatch.waiting(want.model) >= self.capacity;
        let bytes = self.dispatch.waiting_bytes() + want.bytes;
        match self.dispatch.offer(self.now, turn, want) {
            Offer::Granted(grant) => self.granted(turn, want, grant),
            Offer::Queued => drop(self.waiting.insert(turn.ticket, (turn, want))),
            Offer::Full { retry_after_ms } => {
                assert!(full && self.policy == Policy::Reject && want.avoid.is_none());
                assert!((1_000..=60_000).contains(&retry_after_ms));
            }
            Offer::NoRoom { retry_after_ms } => {
                assert!(bytes > SETTINGS.queue_bytes && want.avoid.is_none());
                assert!((1_000..=60_000).contains(&retry_after_ms));
            }
        }
    }

    fn granted(&mut self, turn: Turn, want: Want, grant: Grant) {
        let counts = self.dispatch.counts(self.now, grant.pool);
        let seen = self
            .pools
            .get_mut(&grant.pool)
            .expect("granted what is not there");
        let Seen {
            spec,
            trial,
            probe,
            hung,
            ..
        } = seen;
        assert!(
            spec.accepting && spec.models.contains(&want.model),
            "granted what does not serve it"
        );
        assert!(
            hung.is_none() && !counts.ejected && !counts.paused,
            "granted what is left out"
        );
        assert!(
            want.min_ctx <= spec.n_ctx.unwrap_or(0),
            "granted too little context"
        );
        assert_eq!(grant.weight, want.weight.clamp(1, counts.slots_total));
        assert_eq!((grant.probe, *probe), (*trial, None), "one goes first");
        if grant.probe {
            *probe = Some(grant.pick);
        }
        let spec = spec.clone();
        assert!(
            self.is_for(&want, &spec, counts.slots_total),
            "a larger pool could hold it"
        );
        let overtaken = self.waiting.values().find(|(older, waits)| {
            older.ticket < turn.ticket
                && waits.model == want.model
                && self.is_for(waits, &spec, counts.slots_total)
        });
        assert!(overtaken.is_none(), "{turn:?} overtook {overtaken:?}");
        self.running.push(Running {
            turn,
            want,
            grant,
            answered: false,
        });
        // Only a pool that shrank has more to do than it has slots.
        let here = self.running.iter().filter(|r| r.grant.pool == grant.pool);
        let ours: u32 = here.map(|r| r.grant.weight).sum();
        assert!(
            ours + counts.quarantined <= counts.slots_total,
            "over-committed"
        );
    }

    fn end(&mut self, nth: usize, end: End) {
        let Running {
            turn,
            want,
            grant,
            answered,
        } = self.running.swap_remove(nth);
        let (now, ix) = (self.now, grant.pool);
        let present = self.pools.contains_key(&ix);
        let before = self.dispatch.counts(now, ix);
        let quarantine = match end {
            End::ClosedEarly => Quarantine::For(QUARANTINE_MS),
            _ => Quarantine::No,
        };
        match end {
            End::Busy(asked) => self.dispatch.pause(now, ix, asked),
            End::Broken => self.dispatch.eject(now, ix, Failure::Broken),
            End::Unreachable => self.dispatch.eject(now, ix, Failure::Refused),
            End::Done | End::ClosedEarly | End::TooLong => {}
        }
        let after = self.dispatch.counts(now, ix);
        if let Some(seen) = self.pools.get_mut(&ix) {
            seen.refuses |= matches!(end, End::Unreachable);
            let left_out = after.ejected && !before.ejected || after.paused && !before.paused;
            if left_out {
                (seen.trial, seen.probe) = (true, None);
            }
            if left_out || matches!(end, End::Busy(_)) {
                seen.back_by = now.plus(30_000);
            }
            if quarantine != Quarantine::No {
                seen.quarantine = now.plus(QUARANTINE_MS);
            }
            if seen.probe == Some(grant.pick) {
                seen.probe = None;
            }
        }
        self.dispatch.release(now, grant, answered, quarantine);
        let again = match end {
            End::Done | End::ClosedEarly => return,
            End::Busy(_) | End::Broken | End::Unreachable => want,
            End::TooLong if present => Want {
                min_ctx: self.pools[&ix].spec.n_ctx.unwrap_or(0) + 1,
                ..want
            },
            End::TooLong => return,
        };
        self.settle();
        self.offer(
            turn,
            Want {
                avoid: Some(ix),
                ..again
            },
        );
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        let running = self.running.len().max(1);
        match step {
            Step::Ask {
                model,
                weight,
                min_ctx,
            } => {
                let turn = self.dispatch.arrive(now);
                let model = self.models[model];
                let bytes = u64::from(weight);
                self.offer(
                    turn,
                    Want {
                        model,
                        weight,
                        bytes,
                        min_ctx,
                        avoid: None,
                    },
                );
            }
            Step::Answer(nth) => {
                if let Some(running) = self.running.get_mut(nth % running)
                    && !std::mem::replace(&mut running.answered, true)
                {
                    self.dispatch.answering(running.grant);
                }
            }
            Step::End(nth, end) if !self.running.is_empty() => self.end(nth % running, end),
            Step::Served(nth) if !self.running.is_empty() => {
                let grant = self.running[nth % running].grant;
                self.dispatch.vindicate(now, grant);
                if let Some(seen) = self.pools.get_mut(&grant.pool)
                    && seen.probe == Some(grant.pick)
                {
                    (seen.trial, seen.probe) = (false, None);
                    seen.refuses = false;
                }
            }
            Step::Leave(nth) if !self.waiting.is_empty() => {
                let ticket = *self
                    .waiting
                    .keys()
                    .nth(nth % self.waiting.len())
                    .expect("one of them");
                let (_, want) = self.waiting.remove(&ticket).expect("waits");
                assert!(self.dispatch.cancel(want.model, ticket));
                assert!(!self.dispatch.cancel(want.model, ticket), "it left");
            }
            Step::Add(described) if self.pools.len() < POOLS => self.add(&described),
            Step::Describe(nth, described) => {
                if let Some(ix) = self.pool(nth) {
                    self.describe(ix, self.spec(&described));
                }
            }
            Step::Remove(nth) => {
                if let Some(ix) = self.pool(nth) {
                    self.dispatch.remove_pool(now, ix);
                    self.pools.remove(&ix);
                }
            }
            Step::Read {
                pool,
                busy,
                ours,
                begun,
                slots,
            } => {
                if let Some(ix) = self.pool(pool) {
                    let begun = begun.map(|ago| Mono(now.0 - ago));
                    let slots_total = slots.unwrap_or(self.dispatch.counts(now, ix).slots_total);
                    let sample = Sample {
                        slots_total,
                        busy,
                        ours,
                        begun,
                    };
                    self.dispatch.observe(now, ix, sample);
                    let hung = &mut self.seen(ix).hung;
                    *hung = hung.filter(|since| begun.is_none_or(|begun| begun < *since));
                }
            }
            Step::Hang(nth, hung) => {
                if let Some(ix) = self.pool(nth) {
                    self.dispatch.hang(now, ix, hung);
                    let since = &mut self.seen(ix).hung;
                    *since = hung.then(|| since.unwrap_or(now));
                }
            }
            Step::Advance(ms) => self.advance(now.plus(ms)),
            _ => {}
        }
        self.settle();
        self.despair();
        self.check();
    }

    /// As the driver does: whatever is due is done when it is due.
    fn advance(&mut self, then: Mono) {
        while let Some(next) = self.dispatch.next_deadline().filter(|next| *next <= then) {
            self.now = self.now.max(next);
            self.settle();
        }
        self.now = then;
    }

    fn settle(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        self.dispatch.pump(self.now, &mut out);
        for (ticket, verdict) in out.drain(..) {
            let (turn, want) = self
                .waiting
                .remove(&ticket)
                .expect("a verdict for one who waits");
            match verdict {
                Verdict::Granted(grant) => self.granted(turn, want, grant),
                Verdict::QueueTimeout => assert!(turn.deadline <= self.now),
                Verdict::NoReadyPool => {
                    let hope = self.pools.iter().find(|(_, seen)| {
                        seen.spec.prospective
                            && seen.spec.models.contains(&want.model)
                            && want.min_ctx <= seen.spec.n_ctx.unwrap_or(0)
                            && !seen.refuses
                    });
                    assert!(hope.is_none(), "{hope:?} may serve soon");
                }
                Verdict::Dropped { .. } => assert_eq!(self.policy, Policy::DropLru),
            }
        }
        self.out = out;
    }

    /// Nothing comes and nothing ends any more: everybody's wait does.
    fn wait_out(&mut self) {
        for _ in 0..10_000 {
            let Some(next) = self.dispatch.next_deadline() else {
                break;
            };
            self.advance(self.now.max(next));
            self.check();
        }
        assert_eq!(self.dispatch.next_deadline(), None);
        assert!(self.waiting.is_empty(), "{:?} wait for ever", self.waiting);
    }

    /// Every pool that accepts is back: one goes first where it failed, and then all its slots are given.
    fn come_back(&mut self, ix: PoolIx) {
        for (other, spec) in self
            .pools
            .iter()
            .map(|(ix, seen)| (*ix, seen.spec.clone()))
            .collect::<Vec<_>>()
        {
            if other != ix {
                self.describe(
                    other,
                    PoolSpec {
                        accepting: false,
                        ..spec
                    },
                );
            }
        }
        let seen = &self.pools[&ix];
        let (accepting, trial) = (seen.spec.accepting, seen.trial);
        let Some(model) = seen.spec.models.first().copied().filter(|_| accepting) else {
            return;
        };
        let slots = self.dispatch.counts(self.now, ix).slots_total;
        assert_eq!(
            self.dispatch.counts(self.now, ix).slots_free,
            slots,
            "all slots came back"
        );
        let want = Want {
            model,
            weight: 1,
            bytes: 0,
            min_ctx: 0,
            avoid: None,
        };
        for nth in 0..slots {
            let turn = self.dispatch.arrive(self.now);
            self.offer(turn, want);
            if trial && nth == 0 {
                assert_eq!(self.running.len(), 1);
                self.step(Step::Served(0));
            }
        }
        assert_eq!(self.running.len(), slots as usize);
        while !self.running.is_empty() {
            self.step(Step::End(0, End::Done));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_order_and_slots_and_everybodys_wait_ends(
        drop_lru in any::<bool>(),
        pools in proptest::collection::vec(described(), 1..8),
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(drop_lru);
        for pool in &pools {
            world.add(pool);
        }
        for step in steps {
            world.step(step);
        }
        world.wait_out();
        assert_eq!(world.dispatch.waiting_bytes(), 0);
        while !world.running.is_empty() {
            world.step(Step::End(0, End::Done));
        }
        for ix in world.pools.keys().copied().collect::<Vec<_>>() {
            world.dispatch.hang(world.now, ix, false);
            world.seen(ix).hung = None;
        }
        for ix in world.pools.keys().copied().collect::<Vec<_>>() {
            world.come_back(ix);
        }
    }
}
