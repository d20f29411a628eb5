//! What must hold after each step.

use std::collections::HashMap;

use super::{SETTINGS, Seen, World};
use crate::dispatch::{ModelIx, PoolIx, PoolSpec, Ticket, Want};

impl World {
    /// Whether a pool is for a request: it has the context; and the slots, or else no good pool that takes requests and
    /// answers has them, nor, where there is no such pool, a suspect one.
    pub(super) fn is_for(&self, want: &Want, spec: &PoolSpec, slots: u32) -> bool {
        let has_context = |spec: &PoolSpec| want.min_ctx <= spec.n_ctx.unwrap_or(0);
        let takes: Vec<(bool, u32)> = (self.pools.iter())
            .filter(|(_, other)| other.spec.models.contains(&want.model))
            .filter(|(_, other)| has_context(&other.spec) && other.spec.accepting)
            .filter(|(_, other)| !other.refuses && other.hung.is_none())
            .map(|(ix, other)| (other.spec.suspect, self.dispatch.counts(self.now, *ix)))
            .filter(|(_, counts)| !counts.ejected)
            .map(|(suspect, counts)| (suspect, counts.slots_total))
            .collect();
        let trust = takes.iter().map(|(suspect, _)| *suspect).min();
        let counted = takes.iter().filter(|(suspect, _)| Some(*suspect) == trust);
        let holds_it = counted.into_iter().any(|(_, slots)| want.weight <= *slots);
        has_context(spec) && (want.weight <= slots || !holds_it)
    }

    /// Remembers since when those who wait have nothing to wait for.
    pub(super) fn despair(&mut self) {
        let mut hopeless = std::mem::take(&mut self.hopeless);
        hopeless.retain(|ticket, _| self.waiting.contains_key(ticket));
        for (ticket, (_, want)) in &self.waiting {
            let may_serve = self.pools.values().any(|seen| {
                seen.spec.prospective
                    && !seen.refuses
                    && seen.spec.models.contains(&want.model)
                    && want.min_ctx <= seen.spec.n_ctx.unwrap_or(0)
            });
            if may_serve {
                hopeless.remove(ticket);
            } else {
                hopeless.entry(*ticket).or_insert(self.now);
            }
        }
        self.hopeless = hopeless;
    }

    pub(super) fn check(&self) {
        let now = self.now;
        self.dispatch.assert_indexed(now);
        for (ticket, since) in &self.hopeless {
            let waits = self.waiting.contains_key(ticket);
            assert!(
                !waits || now < since.plus(SETTINGS.no_pool_wait_ms),
                "hopes in vain"
            );
        }
        let mut slots = 0;
        for (ix, seen) in &self.pools {
            let counts = self.dispatch.counts(now, *ix);
            let here = || self.running.iter().filter(|r| r.grant.pool == *ix);
            let ours: u32 = here().map(|r| r.grant.weight).sum();
            assert_eq!(counts.running as usize, here().count());
            assert!(
                counts.slots_free + ours + counts.quarantined
                    <= counts.slots_total.max(ours + counts.quarantined)
            );
            if seen.quarantine <= now {
                assert_eq!(counts.quarantined, 0, "a quarantine ends");
            }
            if seen.back_by <= now {
                assert!(!counts.ejected && !counts.paused, "comes back");
            }
            slots += u64::from(counts.slots_total);
            assert_eq!(
                self.idle(*ix, seen),
                None,
                "is first in line, and {ix:?} has room for it"
            );
        }
        assert_eq!(self.dispatch.fleet_slots, slots);
        let bytes: u64 = self.waiting.values().map(|(_, want)| want.bytes).sum();
        assert_eq!(self.dispatch.waiting_bytes(), bytes);
        let mut waiting: HashMap<ModelIx, usize> = HashMap::new();
        for (turn, want) in self.waiting.values() {
            *waiting.entry(want.model).or_default() += 1;
            assert!(turn.deadline > now, "waits for too long");
        }
        for model in &self.models {
            assert_eq!(
                self.dispatch.waiting(*model),
                waiting.get(model).copied().unwrap_or(0)
            );
        }
    }

    /// A request that this pool could serve now and does not.
    fn idle(&self, ix: PoolIx, seen: &Seen) -> Option<Ticket> {
        let counts = self.dispatch.counts(self.now, ix);
        let left_out =
            counts.ejected || counts.paused || seen.hung.is_some() || seen.probe.is_some();
        if left_out || !seen.spec.accepting {
            return None;
        }
        let mut passed: Vec<ModelIx> = Vec::new();
        for (ticket, (_, want)) in &self.waiting {
            let fits = self.is_for(want, &seen.spec, counts.slots_total);
            if !fits || !seen.spec.models.contains(&want.model) || passed.contains(&want.model) {
                continue;
            }
            let weight = want.weight.clamp(1, counts.slots_total);
            if weight <= counts.slots_free {
                return Some(*ticket);
            }
            if weight <= counts.slots_total.saturating_sub(counts.external) {
                return None;
            }
            passed.push(want.model);
        }
        None
    }
}
