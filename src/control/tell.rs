//! What is said of what has happened: a line in the log, an event for whoever follows.

use tracing::{info, warn};

use crate::registry::{Beat, Change, Edit, Intent, Moved, Node, PoolMoved, Speaker, Sweep};
use crate::types::{Event, EventKind, NodeId, NodeStatus, Now, PoolId, PoolState};

use super::Control;
use super::events::{Events, event};

impl Control {
    pub(super) fn tell(&self, event: Event) {
        self.events.log(event);
    }

    /// A reader of what happens: behind `after` (an id it was given), or from now on.
    #[must_use]
    pub fn events(&self, after: Option<&str>) -> Events {
        self.events.follow(after)
    }

    /// Ends every reader of events: they would keep a stopping process alive.
    pub fn close_events(&self) {
        self.events.close();
    }

    pub(super) fn tell_beat(&self, now: Now, node_id: &NodeId, node: &Node, beat: Beat) {
        let status = node.status();
        for PoolMoved {
            pool_id,
            from,
            to,
            detail,
        } in beat.pools
        {
            let kind = match (from, to) {
                (None, _) => EventKind::PoolAdded,
                (_, None) => EventKind::PoolRemoved,
                _ => EventKind::PoolState,
            };
            let word = |state: Option<PoolState>| state.map(|state| state.as_str().to_owned());
            self.tell(Event {
                pool_id: Some(pool_id),
                from: word(from),
                to: word(to),
                reason: detail,
                ..event(now.wall, kind, Some(node_id))
            });
        }
        let kind = match node.observed() {
            NodeStatus::Failed => EventKind::NodeFailed,
            _ => EventKind::NodeOnline,
        };
        let reason = match (&node.live.health, kind) {
            (Some(health), EventKind::NodeFailed) => {
                health.reasons.first().map(|reason| reason.message.clone())
            }
            _ if beat.turned.is_none() => Some("it is heard again".to_owned()),
            _ => None,
        };
        if let Some((from, to)) = beat.turned {
            log_move(node_id, from, to);
        }
        if beat.turned.is_some() || beat.trusted_again {
            let (from, to) = beat.turned.unwrap_or((status, status));
            self.tell(Event {
                from: Some(from.as_str().to_owned()),
                to: Some(to.as_str().to_owned()),
                reason,
                ..event(now.wall, kind, Some(node_id))
            });
        }
    }

    pub(super) fn tell_sweep(&self, now: Now, sweep: &Sweep) {
        if let Some(hold) = sweep.began {
            warn!(
                nodes = hold.nodes,
                "so many nodes fell silent at once that the fault may be on this side: none of them goes Offline for now"
            );
            self.tell(Event {
                reason: Some(format!("{} nodes fell silent at once", hold.nodes)),
                ..event(now.wall, EventKind::FleetHold, None)
            });
        }
        if let Some(hold) = sweep.ended {
            let why = if now.mono >= hold.ends {
                "it has lasted as long as it may"
            } else {
                "enough nodes are heard again"
            };
            info!(why, "the fleet hold has ended");
            self.tell(Event {
                reason: Some(why.to_owned()),
                ..event(now.wall, EventKind::FleetRelease, None)
            });
        }
        for (node_id, _) in sweep.held.iter().filter(|(_, held)| *held) {
            self.tell(Event {
                reason: Some("silent, and kept by a fleet hold".to_owned()),
                ..event(now.wall, EventKind::NodeSuspect, Some(node_id))
            });
        }
        for Moved { node_id, from, to } in &sweep.moved {
            log_move(node_id, *from, *to);
            let timeout_ms = self.settings.node_timeout_ms;
            let (kind, reason) = match to {
                NodeStatus::Offline => (
                    EventKind::NodeOffline,
                    format!("silent for longer than {timeout_ms} ms"),
                ),
                _ => (
                    EventKind::NodeRegistered,
                    format!("it registers, and has sent no heartbeat for {timeout_ms} ms"),
                ),
            };
            self.tell(Event {
                from: Some(from.as_str().to_owned()),
                to: Some(to.as_str().to_owned()),
                reason: Some(reason),
                ..event(now.wall, kind, Some(node_id))
            });
        }
    }
}

/// What an order is about to do to a node, kept until it is done.
pub(super) struct Told {
    before: Option<Before>,
    record_changed: bool,
    new_speaker: bool,
    drain: Edit<()>,
    /// Pools that go with it.
    pools: Vec<(PoolId, PoolState)>,
}

struct Before {
    departed: bool,
    drained: bool,
    seen: NodeStatus,
    word: NodeStatus,
}

impl Told {
    pub fn of(before: Option<&Node>, change: &Change) -> Self {
        // Those of a new process of the same machine are compared once it has reported.
        let goes = change.speaker == Speaker::NewMachine
            || match &change.record {
                Edit::Clear => true,
                Edit::Set(record) => record.departed,
                Edit::Keep => false,
            };
        let pools = before.filter(|_| goes).map(Node::known_pools);
        Self {
            pools: (pools.into_iter().flatten())
                .map(|pool| (pool.pool_id.clone(), pool.state))
                .collect(),
            before: before.map(|node| Before {
                departed: node.record.departed,
                drained: node.drain.is_some(),
                seen: node.observed(),
                word: node.status(),
            }),
            record_changed: !change.record.is_keep(),
            new_speaker: change.speaker != Speaker::Same,
            drain: match change.drain {
                Edit::Keep => Edit::Keep,
                Edit::Set(_) => Edit::Set(()),
                Edit::Clear => Edit::Clear,
            },
        }
    }
}

impl Control {
    /// An order was carried out. `node` is as it is now, or as it was when it went with this order.
    pub(super) fn tell_order(&self, now: Now, intent: &Intent, told: &Told, node: &Node) {
        let node_id = intent.node_id();
        if *node_id == NodeId::local() {
            return;
        }
        let was_there = told.before.as_ref().is_some_and(|before| !before.departed);
        let was_drained = told.before.as_ref().is_some_and(|before| before.drained);
        let plain = |kind| event(now.wall, kind, Some(node_id));
        for (pool_id, state) in &told.pools {
            self.tell(Event {
                pool_id: Some(pool_id.clone()),
                from: Some(state.as_str().to_owned()),
                ..plain(EventKind::PoolRemoved)
            });
        }
        match intent {
            Intent::Register(_) => {
                if !was_there || told.new_speaker {
                    info!(
                        node_id = node_id.as_str(),
                        machine_id = node.record.machine_id,
                        "node registered"
                    );
                    self.tell(Event {
                        to: Some(node.status().as_str().to_owned()),
                        ..plain(EventKind::NodeRegistered)
                    });
                } else {
                    if told.record_changed {
                        info!(node_id = node_id.as_str(), "node described itself anew");
                        self.tell(plain(EventKind::NodeUpdated));
                    }
                    self.tell_return(now, node_id, told, node);
                }
                if was_drained && told.drain == Edit::Clear {
                    self.tell(Event {
                        reason: Some("another machine has this name now".to_owned()),
                        ..plain(EventKind::DrainEnded)
                    });
                }
            }
            Intent::Deregister { forget, .. } => {
                if was_there {
                    info!(node_id = node_id.as_str(), forget, "node left");
                    self.tell(plain(EventKind::NodeDeparted));
                }
                if was_drained && *forget {
                    self.tell(plain(EventKind::DrainEnded));
                }
            }
            Intent::Drain { request, .. } if told.drain != Edit::Keep => {
                let kind = if was_drained {
                    EventKind::DrainUpdated
                } else {
                    EventKind::DrainStarted
                };
                let drain = node.drain.as_ref();
                let (reason, by) = (
                    drain.and_then(|drain| drain.reason.clone()),
                    drain.and_then(|drain| drain.requested_by.clone()),
                );
                info!(
                    node_id = node_id.as_str(),
                    reason = reason.as_deref().unwrap_or("none given"),
                    by = by.as_deref().unwrap_or("somebody"),
                    deadline_ms = request.deadline_ms,
                    force = request.force,
                    "drain asked for"
                );
                self.tell(Event {
                    reason,
                    by,
                    ..plain(kind)
                });
            }
            Intent::Undrain { .. } if was_drained => {
                info!(node_id = node_id.as_str(), "drain ended");
                self.tell(plain(EventKind::DrainEnded));
            }
            Intent::Drain { .. } | Intent::Undrain { .. } => {}
        }
    }

    /// A node whose heartbeats had stopped is back by a registration that brought nothing else.
    fn tell_return(&self, now: Now, node_id: &NodeId, told: &Told, node: &Node) {
        if let Some(before) = &told.before
            && before.seen != node.observed()
        {
            log_move(node_id, before.word, node.status());
            self.tell(Event {
                from: Some(before.word.as_str().to_owned()),
                to: Some(node.status().as_str().to_owned()),
                reason: Some("it has registered again".to_owned()),
                ..event(now.wall, EventKind::NodeRegistered, Some(node_id))
            });
        }
    }
}

fn log_move(node_id: &NodeId, from: NodeStatus, to: NodeStatus) {
    // The implicit node of HOME is nobody's news; its engines have lines of their own.
    if *node_id != NodeId::local() {
        let (node_id, from, to) = (node_id.as_str(), from.as_str(), to.as_str());
        info!(node_id, from, to, "node changed");
    }
}
