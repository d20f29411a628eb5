//! One drain: asked by an operator, done when nothing runs and somebody's word says so.

use serde::{Deserialize, Serialize};

use crate::types::{
    DrainAck, DrainOrder, DrainRequest, DrainState, DrainView, Millis, Mono, Now, UnixMs,
};

/// Heartbeats answered with a drain's id, none of which acknowledged it, after which the agent counts as an old client
/// that never will (contract §1.3).
const UNACKNOWLEDGED_BEATS: u32 = 3;

/// A drain. What is serialised is durable; the rest is what has been seen of it in this life of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Tells this drain from an earlier one of the same node.
    pub id: String,
    /// The machine it was asked of.
    pub machine_id: String,
    /// Why, as the operator put it.
    pub reason: Option<String>,
    /// Who asked, as they put it.
    pub requested_by: Option<String>,
    /// When it was asked for.
    pub started_at_ms: UnixMs,
    /// Requests the control plane had there then.
    pub in_flight_at_start: u32,
    /// What was left until running requests are ended when this was written; a process that is down does not count.
    #[serde(default)]
    left_ms: Option<Millis>,
    /// Running requests are ended at once.
    #[serde(default)]
    force: bool,
    /// Requests ended by the deadline or by force.
    #[serde(default)]
    cut: u32,
    /// Nothing runs any more.
    #[serde(default)]
    done: bool,
    /// Done without the agent's word.
    #[serde(default)]
    unverified: bool,
    #[serde(skip)]
    progress: Progress,
}

/// Who could say that nothing runs, besides the gateway's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// The node's agent.
    Agent,
    /// The agent, which is Offline or has departed.
    Gone,
    /// The node has no agent: the gateway dials its engines itself, and its count is all there is.
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Progress {
    /// When running requests are ended.
    ends: Option<Mono>,
    /// They have been.
    ended: bool,
    /// The agent's own count, once it has acknowledged this drain.
    acknowledged: Option<u32>,
    /// Heartbeats answered with this drain's id so far.
    beats_answered: u32,
}

impl Drain {
    /// A new one.
    #[must_use]
    pub fn asked(
        now: Now,
        machine_id: String,
        request: &DrainRequest,
        id: &str,
        running: u32,
    ) -> Self {
        Self {
            id: id.to_owned(),
            machine_id,
            reason: request.reason.clone(),
            requested_by: request.requested_by.clone(),
            started_at_ms: now.wall,
            in_flight_at_start: running,
            left_ms: None,
            force: false,
            cut: 0,
            done: false,
            unverified: false,
            progress: Progress::default(),
        }
        .with_end(now.mono, request)
    }

    /// The same drain after a repeated order: it keeps its id, its start and what it does not say again.
    #[must_use]
    pub fn asked_again(&self, now: Mono, request: &DrainRequest) -> Self {
        let mut again = self.clone();
        if request.reason.is_some() {
            again.reason.clone_from(&request.reason);
        }
        if request.requested_by.is_some() {
            again.requested_by.clone_from(&request.requested_by);
        }
        again.with_end(now, request)
    }

    fn with_end(mut self, now: Mono, request: &DrainRequest) -> Self {
        if let Some(left_ms) = request.deadline_ms {
            self.left_ms = Some(left_ms);
            self.progress.ends = Some(now.plus(left_ms));
        }
        self.force |= request.force == Some(true);
        self
    }

    /// The drain as it is to be written at `now`.
    #[must_use]
    pub fn as_of(&self, now: Mono) -> Self {
        Self {
            left_ms: self
                .progress
                .ends
                .map(|ends| ends.since(now))
                .or(self.left_ms),
            ..self.clone()
        }
    }

    /// The drain as it was written, going on at `now`.
    #[must_use]
    pub fn resumed(mut self, now: Mono) -> Self {
        self.progress.ends = self.left_ms.map(|left_ms| now.plus(left_ms));
        self
    }

    /// The same drain, of another machine.
    #[must_use]
    pub fn of_machine(&self, machine_id: &str) -> Self {
        Self {
            machine_id: machine_id.to_owned(),
            ..self.clone()
        }
    }

    /// This order, and what has come of the same drain while the order was being written.
    pub(super) fn going_on(self, live: &Self) -> Self {
        Self {
            cut: live.cut,
            done: live.done,
            unverified: live.unverified,
            progress: Progress {
                ends: self.progress.ends,
                ..live.progress.clone()
            },
            ..self
        }
    }

    /// The process was stopped for `gap_ms`, which does not count.
    pub(super) fn paused(&mut self, gap_ms: Millis) {
        self.progress.ends = self.progress.ends.map(|ends| ends.plus(gap_ms));
    }

    /// Whether nothing runs any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether a clock runs that is to be written down now and then.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.progress.ends.is_some() && !self.done
    }

    /// Whether what still runs is to be ended now, and has not been.
    #[must_use]
    pub fn is_over(&self, now: Mono) -> bool {
        !self.done
            && !self.progress.ended
            && (self.force || self.progress.ends.is_some_and(|ends| ends <= now))
    }

    /// So many running requests were ended.
    pub(super) fn on_cut(&mut self, count: u32) {
        self.progress.ended = true;
        self.cut = self.cut.saturating_add(count);
    }

    /// What the agent is told in the reply to a heartbeat.
    #[must_use]
    pub fn order(&self, now: Mono) -> DrainOrder {
        DrainOrder {
            id: self.id.clone(),
            remaining_ms: self.remaining(now),
            force: self.force,
        }
    }

    /// What is left until running requests are ended; `None` without a deadline and once nothing runs.
    fn remaining(&self, now: Mono) -> Option<Millis> {
        self.progress
            .ends
            .filter(|_| !self.done)
            .map(|ends| ends.since(now))
    }

    /// A heartbeat came, with or without a word on this drain. Its reply carries the order.
    pub fn on_beat(&mut self, ack: Option<&DrainAck>) {
        match ack {
            Some(ack) if ack.id == self.id => self.progress.acknowledged = Some(ack.in_flight),
            _ => self.progress.beats_answered = self.progress.beats_answered.saturating_add(1),
        }
    }

    /// Done when the gateway counts nothing, and the agent says 0, or never says, or is gone, or there is none. True when
    /// it became so.
    pub(super) fn settle(&mut self, running: u32, witness: Witness) -> bool {
        if self.done || running > 0 {
            return false;
        }
        let (done, unverified) = match (witness, self.progress.acknowledged) {
            (Witness::Nobody, _) | (_, Some(0)) => (true, false),
            (Witness::Gone, _) => (true, true),
            // The reply to this one is among them.
            (Witness::Agent, None) => (self.progress.beats_answered >= UNACKNOWLEDGED_BEATS, true),
            (Witness::Agent, Some(_)) => (false, false),
        };
        self.done = done;
        self.unverified = done && unverified;
        done
    }

    /// As the API shows it, with the control plane's own count of requests there.
    #[must_use]
    pub fn view(&self, now: Mono, running: u32) -> DrainView {
        DrainView {
            id: self.id.clone(),
            state: if self.done {
                DrainState::Drained
            } else {
                DrainState::Draining
            },
            reason: self.reason.clone(),
            requested_by: self.requested_by.clone(),
            started_at_ms: self.started_at_ms,
            remaining_ms: self.remaining(now),
            in_flight: running,
            oldest_ms: None,
            in_flight_at_start: self.in_flight_at_start,
            cut: self.cut,
            unverified: self.unverified,
        }
    }
}
