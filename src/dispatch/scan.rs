//! What the index is to find, by looking at every pool and everybody in line: slow, and plain.

use super::index::Index;
use super::line::Claim;
use super::model::{Model, Waiting};
use super::pool::Pool;
use super::*;

impl Dispatch {
    /// The pool that is to be given.
    pub(super) fn scan(&self, now: Mono, claim: Claim, avoid: Option<PoolIx>) -> Option<PoolIx> {
        let serves = |ix: &PoolIx| {
            let pool = &self.pools[ix.0 as usize];
            pool.present
                && pool.models.contains(&claim.model)
                && self.is_for(claim.model, claim.weight, claim.min_ctx, pool)
                && pool.has_room(now, claim.weight)
                && Some(*ix) != avoid
                && !pool.models.iter().any(|model| {
                    self.first_there(*model, pool).is_some_and(|first| {
                        let is_its_own = *model == claim.model;
                        first.ticket < claim.ticket
                            && (is_its_own || pool.will_have_room(now, first.weight))
                    })
                })
        };
        let all = (0..self.pools.len()).map(|at| PoolIx(at as u32));
        all.filter(serves).min_by(|a, b| self.rank(now, *a, *b))
    }

    fn first_there(&self, model: ModelIx, pool: &Pool) -> Option<&Waiting> {
        let Model { queue, .. } = &self.models[model.0 as usize];
        queue
            .iter()
            .find(|waiting| self.is_for(model, waiting.weight, waiting.min_ctx, pool))
    }

    /// Enough context; and as many slots as the request takes, unless it takes more than any pool has that takes requests:
    /// any good one, where there is one.
    fn is_for(&self, model: ModelIx, weight: u32, min_ctx: u64, pool: &Pool) -> bool {
        let takes = |pool: &&Pool| {
            (pool.present && pool.models.contains(&model) && pool.ctx >= min_ctx)
                && (pool.accepting && pool.prospective && pool.hung_since.is_none())
                && (!pool.refuses && pool.ejected_until.is_none())
        };
        let all = || self.pools.iter().filter(takes);
        let none_is_good = all().all(|pool| pool.suspect);
        let counted = all().filter(|pool| none_is_good || !pool.suspect);
        let most = counted.map(|pool| pool.slots_total).max().unwrap_or(0);
        pool.ctx >= min_ctx && (weight <= pool.slots_total || weight > most)
    }

    /// What is kept of the pools is what comes of building it anew.
    pub(super) fn assert_indexed(&self, now: Mono) {
        let mut anew: Vec<Index> = self.models.iter().map(|_| Index::default()).collect();
        for (at, pool) in self.pools.iter().enumerate() {
            let entry = pool.to_entry(now, PoolIx(at as u32));
            for model in &pool.models {
                anew[model.0 as usize].update(&mut 0, None, entry);
            }
        }
        for (model, anew) in self.models.iter().zip(anew) {
            assert_eq!(model.index.contents(), anew.contents());
            let slots = |waiting: &Waiting| u64::from(waiting.slots);
            assert_eq!(
                model.waiting_slots,
                model.queue.iter().map(slots).sum::<u64>()
            );
        }
        let waiting = self.models.iter().map(|model| model.waiting_slots);
        assert_eq!(self.waiting_slots, waiting.sum::<u64>());
    }
}
