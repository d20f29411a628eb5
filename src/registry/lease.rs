//! Silence: who goes Offline, when, and when so many fall silent at once that nobody does.

use crate::types::{Millis, Mono, NodeId, NodeStatus, Now};

use super::node::turned;
use super::{Node, Registry};

/// How often a hold is looked at: it ends by heartbeats, each of which also asks for a look.
const HOLD_LOOK_MS: Millis = 1_000;

/// When mass silence keeps nodes from going Offline (contract §1.2, rule 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldSettings {
    /// Silent nodes from which on it may begin.
    pub min: u32,
    /// The share of silent nodes above which it begins, in percent; 0 turns it off.
    pub percent: u32,
    /// How long it may last.
    pub max_ms: Millis,
}

/// Mass silence: so many nodes fell silent at once that the fault is more likely on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// When it began.
    pub since: Mono,
    /// When it ends at the latest.
    pub ends: Mono,
    /// How many nodes it keeps.
    pub nodes: usize,
}

/// A node that silence or time has moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub node_id: NodeId,
    /// The word before.
    pub from: NodeStatus,
    /// The word now.
    pub to: NodeStatus,
}

/// What a look at the fleet found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Nodes that went Offline, or back to Registering, by name.
    pub moved: Vec<Moved>,
    /// Nodes that are kept by a hold since this look, or no longer are, by name: routes must be rebuilt.
    pub held: Vec<(NodeId, bool)>,
    /// A hold began.
    pub began: Option<Hold>,
    /// A hold ended, and what was known of it.
    pub ended: Option<Hold>,
}

/// The nodes that a hold is decided by.
struct Census {
    /// Not Offline, have sent a heartbeat, silent for more than half the timeout.
    silent: usize,
    /// Heard within half the timeout.
    heard: usize,
    /// Somebody's lease has ended, or their last heartbeat is too old.
    due: bool,
}

impl Registry {
    /// Moves nodes that were silent too long to Offline, unless too many are silent at once, and says what moved. Call
    /// it at [`next_expiry`](Self::next_expiry).
    pub fn expire(&mut self, now: Now) -> Sweep {
        let now = now.mono;
        let mut sweep = Sweep::default();
        let census = self.census(now);
        let massive = self.is_massive(&census);
        match self.hold {
            Some(hold) if !massive || now >= hold.ends => {
                sweep.ended = Some(hold);
                self.hold = None;
            }
            Some(ref mut hold) => hold.nodes = census.silent,
            None if census.due && massive => {
                let hold = Hold {
                    since: now,
                    ends: now.plus(self.settings.hold.max_ms),
                    nodes: census.silent,
                };
                sweep.began = Some(hold);
                self.hold = Some(hold);
            }
            None if !census.due => return sweep,
            None => {}
        }
        let holds = self.hold.is_some();
        let (timeout_ms, grace_until, began) =
            (self.settings.node_timeout_ms, self.grace_until, self.began);
        for (node_id, node) in &mut self.nodes {
            if node.live.offline {
                continue;
            }
            let held = holds && is_silent(node, now, timeout_ms, began);
            if node.live.held != held {
                node.live.held = held;
                sweep.held.push((node_id.clone(), held));
            }
            let before = node.words();
            if held {
                continue;
            } else if node.lease_left(now, timeout_ms, grace_until).is_none() {
                node.live.offline = true;
                node.live.held = false;
            } else if node.live.is_lapsed(now, timeout_ms) {
                // It goes on registering, which is no heartbeat.
                node.live.beaten = false;
            } else {
                continue;
            }
            if let Some((from, to)) = turned(before, node.words()) {
                sweep.moved.push(Moved {
                    node_id: node_id.clone(),
                    from,
                    to,
                });
            }
        }
        sweep.moved.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        sweep.held.sort();
        sweep
    }

    fn census(&self, now: Mono) -> Census {
        let timeout_ms = self.settings.node_timeout_ms;
        let mut census = Census {
            silent: 0,
            heard: 0,
            due: false,
        };
        for node in self.nodes.values().filter(|node| !node.live.offline) {
            if is_silent(node, now, timeout_ms, self.began) {
                census.silent += 1;
            } else if node
                .live
                .heard
                .is_some_and(|heard| now.since(heard) <= timeout_ms / 2)
            {
                census.heard += 1;
            }
            census.due |= node.lease_left(now, timeout_ms, self.grace_until).is_none()
                || node.live.is_lapsed(now, timeout_ms);
        }
        census
    }

    fn is_massive(&self, census: &Census) -> bool {
        let hold = self.settings.hold;
        let all = census.silent + census.heard;
        hold.percent > 0
            && census.silent >= hold.min as usize
            && census.silent * 100 > hold.percent as usize * all
    }

    /// The hold that is on.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// When to look again if nobody is heard until then.
    #[must_use]
    pub fn next_expiry(&self, now: Now) -> Option<Mono> {
        let now = now.mono;
        let lease = self
            .nodes
            .values()
            .filter(|node| !node.live.held)
            .filter_map(|node| node.turns_at(now, self.settings.node_timeout_ms, self.grace_until))
            .min();
        let hold = self.hold.map(|hold| hold.ends.min(now.plus(HOLD_LOOK_MS)));
        [lease, hold].into_iter().flatten().min()
    }

    /// This process was stopped for `gap_ms` (a suspended laptop, a debugger): nobody could have been heard meanwhile,
    /// so every deadline moves by the gap.
    pub fn paused(&mut self, now: Now, gap_ms: Millis) {
        self.grace_until = self.grace_until.plus(gap_ms);
        self.began = self.began.plus(gap_ms).min(now.mono);
        if let Some(hold) = &mut self.hold {
            hold.ends = hold.ends.plus(gap_ms);
        }
        for node in self.nodes.values_mut() {
            for at in [&mut node.live.heard, &mut node.live.beat] {
                *at = at.map(|at| at.plus(gap_ms).min(now.mono));
            }
            if let Some(drain) = &mut node.drain {
                drain.paused(gap_ms);
            }
        }
    }
}

/// Whether a node counts as silent for the hold: not Offline, has sent a heartbeat since it registered, and has been
/// silent for more than half the timeout. One unheard in this life of the process is silent since it `began`.
fn is_silent(node: &Node, now: Mono, timeout_ms: Millis, began: Mono) -> bool {
    node.live.beaten
        && !node.live.offline
        && now.since(node.live.heard.unwrap_or(began)) > timeout_ms / 2
}
