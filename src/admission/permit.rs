//! The right to use slots of one pool.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::futures::OwnedNotified;

use crate::dispatch::{Failure, Grant, PoolIx, Quarantine, Turn};
use crate::types::Millis;

use super::{Admission, Standing, Upstream};

/// How long the slot of a request whose connection was closed early counts as busy without the engine's word: the
/// engine frees it at its next token, in prefill only after the batch it computes (contract §3; measured up to 10 s).
const QUARANTINE_STREAMING_MS: Millis = 1_000;
const QUARANTINE_PREFILL_MS: Millis = 15_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The engine knows nothing of it.
    Unused,
    /// The request is on its way or being read.
    Sent,
    /// The engine has begun to answer.
    Answering,
    /// The answer has ended.
    Done,
    /// The engine refused it, or failed.
    Unserved,
}

/// Slots of one pool. Dropping it gives them back: at once when the engine has finished with them, after a quarantine
/// when the connection was closed early.
pub struct Permit {
    admission: Arc<Admission>,
    upstream: Arc<Upstream>,
    standing: Standing,
    grant: Grant,
    phase: Phase,
    /// The engine has begun to answer at some time.
    answered: bool,
    end: Option<EndSignal>,
}

/// Is ready when a request is to end because its node is emptied, or because the process is.
pub type EndSignal = Pin<Box<OwnedNotified>>;

impl Permit {
    pub(super) fn new(
        admission: Arc<Admission>,
        upstream: Arc<Upstream>,
        standing: Standing,
        grant: Grant,
    ) -> Self {
        // From this moment on: permits are given under the same lock under which their end is told.
        let end = Some(Box::pin(Arc::clone(&upstream.end).notified_owned()));
        Self {
            admission,
            upstream,
            standing,
            grant,
            phase: Phase::Unused,
            answered: false,
            end,
        }
    }

    /// Where to dial.
    #[must_use]
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The pool, for [`Ask::avoid`](super::Ask::avoid).
    #[must_use]
    pub fn pool(&self) -> PoolIx {
        self.grant.pool
    }

    /// The request's place in line, for [`Ask::turn`](super::Ask::turn).
    #[must_use]
    pub fn turn(&self) -> Turn {
        self.standing.turn
    }

    /// What tells the request to end. There is one; whoever takes it waits for it.
    #[must_use]
    pub fn end_signal(&mut self) -> Option<EndSignal> {
        self.end.take()
    }

    /// The request goes out.
    pub fn sent(&mut self) {
        self.phase = Phase::Sent;
    }

    /// The pool could not serve the request, of which nothing is there any more; it is left out for a while.
    pub fn failed(&mut self, failure: Failure) {
        self.phase = Phase::Unserved;
        self.admission.eject(self.grant.pool, failure);
    }

    /// The engine refused the request because it is busy, and nothing of it is there any more: nothing new goes there for
    /// as long as it asked for, or for 250 ms and longer each time.
    pub fn busy(&mut self, retry_after: Option<Millis>) {
        self.phase = Phase::Unserved;
        self.admission.pause(self.grant.pool, retry_after);
    }

    /// The pool serves the request: earlier failures and refusals are forgotten.
    pub fn served(&mut self) {
        if self.grant.probe {
            self.admission.vindicate(self.grant);
        }
    }

    /// The first bytes of an answer came.
    pub fn answering(&mut self) {
        self.phase = Phase::Answering;
        self.answered = true;
        self.admission.answering(self.grant);
    }

    /// The answer has ended, or the connection broke: the engine has finished with it.
    pub fn done(&mut self) {
        if self.phase != Phase::Unserved {
            self.phase = Phase::Done;
        }
    }

    /// Whether the engine has finished with it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Unserved)
    }

    /// Whether it is to end because the process does, and not because its node is emptied.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.admission.has_ended()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let quarantine = match self.phase {
            Phase::Unused | Phase::Done => Quarantine::No,
            Phase::Unserved => Quarantine::Unserved,
            Phase::Sent => Quarantine::For(QUARANTINE_PREFILL_MS),
            Phase::Answering => Quarantine::For(QUARANTINE_STREAMING_MS),
        };
        self.admission.give_back(
            &self.upstream.node_id,
            self.grant,
            self.standing.again,
            self.answered,
            quarantine,
        );
    }
}
