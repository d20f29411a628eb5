//! One drain: asked by an operator, done when nothing runs and somebody's word says so.

use serde::{Deserialize, Serialize};

use crate::types::{DrainAck, DrainOrder, DrainRequest, DrainState, DrainView, UnixMs};

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
    #[serde(skip)]
    progress: Progress,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Progress {
    /// The agent's own count, once it has acknowledged this drain.
    acknowledged: Option<u32>,
    /// Heartbeats answered with this drain's id so far.
    beats_answered: u32,
    done: bool,
    unverified: bool,
}

impl Drain {
    /// A new one.
    #[must_use]
    pub fn asked(
        now: UnixMs,
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
            started_at_ms: now,
            in_flight_at_start: running,
            progress: Progress::default(),
        }
    }

    /// The same drain after a repeated order: it keeps its id, its start and what it does not say again.
    #[must_use]
    pub fn asked_again(&self, request: &DrainRequest) -> Self {
        let mut again = self.clone();
        if request.reason.is_some() {
            again.reason.clone_from(&request.reason);
        }
        if request.requested_by.is_some() {
            again.requested_by.clone_from(&request.requested_by);
        }
        again
    }

    /// Whether nothing runs any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.progress.done
    }

    /// What the agent is told in the reply to a heartbeat.
    #[must_use]
    pub fn order(&self) -> DrainOrder {
        DrainOrder {
            id: self.id.clone(),
            remaining_ms: None,
            force: false,
        }
    }

    /// A heartbeat came, with or without a word on this drain. Its reply carries the order.
    pub fn on_beat(&mut self, ack: Option<&DrainAck>) {
        match ack {
            Some(ack) if ack.id == self.id => self.progress.acknowledged = Some(ack.in_flight),
            _ => self.progress.beats_answered = self.progress.beats_answered.saturating_add(1),
        }
    }

    /// Done when the gateway counts nothing, and the agent says 0, or never says, or is gone. True when it became so.
    pub fn settle(&mut self, running: u32, gone: bool) -> bool {
        if self.progress.done || running > 0 {
            return false;
        }
        let (done, unverified) = match self.progress.acknowledged {
            Some(0) => (true, false),
            _ if gone => (true, true),
            // The count includes this beat's own reply, hence "more than": three were answered before it.
            None => (self.progress.beats_answered > UNACKNOWLEDGED_BEATS, true),
            Some(_) => (false, false),
        };
        self.progress.done = done;
        self.progress.unverified = done && unverified;
        done
    }

    /// As the API shows it, with the control plane's own count of requests there.
    #[must_use]
    pub fn view(&self, running: u32) -> DrainView {
        DrainView {
            id: self.id.clone(),
            state: if self.progress.done {
                DrainState::Drained
            } else {
                DrainState::Draining
            },
            reason: self.reason.clone(),
            requested_by: self.requested_by.clone(),
            started_at_ms: self.started_at_ms,
            remaining_ms: None,
            in_flight: running,
            in_flight_at_start: self.in_flight_at_start,
            cut: 0,
            unverified: self.progress.unverified,
        }
    }
}
