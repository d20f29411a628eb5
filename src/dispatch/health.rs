//! Health by outcome: what failed, refused or does not answer is left out for a while.

use crate::types::{Millis, Mono};

use super::index::Standing;
use super::{Dispatch, Failure, Grant, ModelIx, PoolIx, Timer};

impl Dispatch {
    /// The pool failed: it is left out for a second, twice as long each time, at most 30 s.
    pub fn eject(&mut self, now: Mono, ix: PoolIx, failure: Failure) {
        self.lapse(now);
        let models = &self.pools[ix.0 as usize].models;
        if failure == Failure::Broken && models.iter().any(|model| self.is_last(*model, ix)) {
            return;
        }
        let pool = self.pool(ix);
        // Until it is shown to be back, nobody can be told that it may serve soon.
        pool.refuses |= failure == Failure::Refused;
        let until = pool.eject(now);
        self.changed(now, ix);
        self.arm(until, Timer::Pool(ix));
    }

    /// Whether no other pool of the model is left.
    fn is_last(&self, model: ModelIx, ix: PoolIx) -> bool {
        let is_left = |standing: Standing| standing >= Standing::Coming;
        let itself = (self.pools[ix.0 as usize].entry).is_some_and(|entry| is_left(entry.standing));
        let index = &self.models[model.0 as usize].index;
        index.count(0, Standing::Coming) == u32::from(itself)
    }

    /// Whether a pool of the model may serve soon: one that takes requests or may again, and does not refuse connections.
    #[must_use]
    pub fn is_hopeful(&self, model: ModelIx) -> bool {
        self.models[model.0 as usize].is_hopeful(0)
    }

    /// The engine is busy, not broken: nothing new goes there for as long as it asked for (between 100 ms and 30 s), or
    /// for 250 ms, twice as long each time, at most 30 s. It may serve soon all the same: whoever waits for it waits on.
    pub fn pause(&mut self, now: Mono, ix: PoolIx, asked: Option<Millis>) {
        let until = self.pool(ix).pause(now, asked);
        self.arm(until, Timer::Pool(ix));
        self.changed(now, ix);
    }

    /// Whether the pool failed or refused, and has not been shown to be back.
    #[must_use]
    pub fn is_on_trial(&self, ix: PoolIx) -> bool {
        self.pools[ix.0 as usize].is_on_trial()
    }

    /// The engine does not answer, or does so again. Until then nothing new goes there; whoever waits for it waits on.
    /// A reading begun after it was found silent shows as well that it answers.
    pub fn hang(&mut self, now: Mono, ix: PoolIx, hung: bool) {
        let pool = self.pool(ix);
        if hung {
            pool.hung_since.get_or_insert(now);
        } else {
            pool.hung_since = None;
        }
        self.changed(now, ix);
    }

    /// The pool served a request. When it is the one that was to show whether it is back, earlier failures and refusals
    /// are forgotten.
    pub fn vindicate(&mut self, now: Mono, grant: Grant) {
        let pool = self.pool(grant.pool);
        if pool.is_probed_by(grant) {
            pool.forgive();
            self.changed(now, grant.pool);
        }
    }
}
