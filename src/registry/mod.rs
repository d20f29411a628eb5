//! The fleet as two axes: *liveness*, which is observed, and *intent*, which an operator asked for.
//!
//! Purpose: decide what every node is, from registrations, heartbeats, silence and orders. Invariants: no clock, no IO,
//! no async (every call is told `now`); `decide` changes nothing; only `commit` sets intent, and only with a [`Change`]
//! that was persisted first; liveness never touches intent, because it is handed none of it. Called by `control` alone.

mod change;
mod drain;
mod lease;
mod node;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use crate::types::{
    DrainRequest, Health, HeartbeatRequest, LOCAL_NODE, Millis, Mono, NodeId, NodeStatus, Now,
    PoolDescriptor, PoolId, PoolState, PoolStatus, RegisterRequest, UnixMs,
};

pub use change::{Change, Edit, Intent, Refusal, Speaker};
pub use drain::Drain;
use drain::Witness;
pub use lease::{Hold, HoldSettings, Moved, Sweep};
pub use node::{Node, Record};

/// Periods that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which a node is Offline.
    pub node_timeout_ms: Millis,
    /// How long after a start nodes that were alive before it may stay unheard.
    pub restart_grace_ms: Millis,
    /// When mass silence keeps nodes from going Offline.
    pub hold: HoldSettings,
}

/// What the store gave back: a node as it was known before this process began.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// Its name.
    pub node_id: NodeId,
    /// Its registration.
    pub record: Record,
    /// What was asked of it.
    pub drain: Option<Drain>,
    /// What had been observed of it.
    pub observed: Observed,
}

/// What is durable of what is observed: enough to give every node its word back, and to route to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Whether it has sent a heartbeat since it registered.
    pub beaten: bool,
    /// Whether it was found silent.
    pub offline: bool,
    /// What its agent said of a node that cannot carry requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Health>,
    /// When it was last heard, as of when this was written: heartbeats that bring nothing new are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_ms: Option<UnixMs>,
    /// Its pools as last described.
    pub pools: Vec<PoolDescriptor>,
}

impl Observed {
    /// The same of a node for which another agent process of its machine speaks, which has not reported yet: what the
    /// former one served is still known.
    #[must_use]
    pub fn begun_anew(self) -> Self {
        Self {
            beaten: false,
            offline: false,
            failed: None,
            ..self
        }
    }
}

/// What a heartbeat did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beat {
    /// The pool list, or a pool's routing facts, differ from before: routes must be rebuilt.
    pub routes_changed: bool,
    /// A durable descriptor differs from before.
    pub descriptors_changed: bool,
    /// Its durable liveness (Offline, has beaten, Failed) differs from before.
    pub liveness_changed: bool,
    /// The words before and now, when what is observed of it is another.
    pub turned: Option<(NodeStatus, NodeStatus)>,
    /// It was suspect until now.
    pub trusted_again: bool,
    /// Pools that came, went or changed their state.
    pub pools: Vec<PoolMoved>,
    /// False for a repeated or late `seq`, which is acknowledged and ignored.
    pub counted: bool,
}

/// A pool that came, went or changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMoved {
    /// Which.
    pub pool_id: PoolId,
    /// The state before; `None` for one that is new.
    pub from: Option<PoolState>,
    /// The state now; `None` for one that is gone.
    pub to: Option<PoolState>,
    /// What its reader says of the state.
    pub detail: Option<String>,
}

/// Every node of which anything is known.
#[derive(Debug)]
pub struct Registry {
    settings: Settings,
    nodes: HashMap<NodeId, Node>,
    /// Restored nodes may stay unheard until then.
    grace_until: Mono,
    /// When this life of the process began.
    began: Mono,
    /// Mass silence.
    hold: Option<Hold>,
}

impl Registry {
    /// An empty fleet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            nodes: HashMap::new(),
            grace_until: Mono(0),
            began: Mono(0),
            hold: None,
        }
    }

    /// A fleet as it was known before this process began, at its start. Nodes keep their word; those not Offline are
    /// suspect until they are heard or the grace ends.
    #[must_use]
    pub fn restore(settings: Settings, now: Now, restored: Vec<Restored>) -> Self {
        let nodes = restored
            .into_iter()
            .map(|r| (r.node_id.clone(), Node::restored(now.mono, r)))
            .collect();
        Self {
            settings,
            nodes,
            grace_until: now.mono.plus(settings.restart_grace_ms),
            began: now.mono,
            hold: None,
        }
    }

    /// Says what an order would change, and changes nothing.
    ///
    /// # Errors
    /// The reason for which it is refused.
    pub fn decide(&self, now: Now, intent: &Intent) -> Result<Change, Refusal> {
        match intent {
            Intent::Register(request) => self.decide_register(now, request),
            Intent::Deregister {
                node_id,
                instance_id,
                forget,
            } => self.decide_deregister(node_id, instance_id.as_deref(), *forget),
            Intent::Drain {
                node_id,
                request,
                drain_id,
                running,
            } => self.decide_drain(now, node_id, request, drain_id, *running),
            Intent::Undrain { node_id } => {
                let node = self.known(node_id)?;
                let mut change = Change::nothing(node_id);
                if node.drain.is_some() {
                    change.drain = Edit::Clear;
                }
                if node.record.departed {
                    change.record = Edit::Clear;
                }
                Ok(change)
            }
        }
    }

    fn known(&self, node_id: &NodeId) -> Result<&Node, Refusal> {
        self.nodes.get(node_id).ok_or_else(|| Refusal::UnknownNode {
            node_id: node_id.clone(),
        })
    }

    fn registered(&self, node_id: &NodeId) -> Result<&Node, Refusal> {
        self.known(node_id)
            .and_then(|node| match node.record.departed {
                false => Ok(node),
                true => Err(Refusal::UnknownNode {
                    node_id: node_id.clone(),
                }),
            })
    }

    fn decide_register(&self, now: Now, request: &RegisterRequest) -> Result<Change, Refusal> {
        // The node of the HOME profile is this process's own machine: each of its pools has an address itself.
        let reachable = request.address.is_some()
            || !request.engines.is_empty()
            || request.node_id.as_str() == LOCAL_NODE;
        if !reachable {
            return Err(Refusal::NoAddress {
                node_id: request.node_id.clone(),
            });
        }
        let mut change = Change::nothing(&request.node_id);
        change.touch = true;
        let known = self.nodes.get(&request.node_id);
        let mut registered_at_ms = now.wall;
        if let Some(node) = known.filter(|node| !node.record.departed) {
            let record = &node.record;
            if record.machine_id == request.machine() || node.is_announcement() {
                registered_at_ms = record.registered_at_ms;
                if request.instance_id.is_some() && request.instance_id != record.instance_id {
                    change.speaker = Speaker::NewProcess;
                }
            } else if let Some(left_ms) =
                node.lease_left(now.mono, self.settings.node_timeout_ms, self.grace_until)
            {
                return Err(Refusal::HeldByAnotherMachine {
                    node_id: request.node_id.clone(),
                    holder: record.machine_id.clone(),
                    asking: request.machine().to_owned(),
                    retry_after_ms: left_ms,
                });
            } else {
                change.speaker = Speaker::NewMachine;
            }
        } else {
            change.speaker = Speaker::NewMachine;
        }
        // An order belongs to a machine: another one that takes the name over starts without it.
        if let Some(node) = known
            && let Some(drain) = &node.drain
            && drain.machine_id != request.machine()
        {
            let asked_of_announcement =
                node.is_announcement() && drain.machine_id == node.record.machine_id;
            change.drain = if asked_of_announcement {
                Edit::Set(drain.of_machine(request.machine()).as_of(now.mono))
            } else if request.announced {
                // Whoever announces it is not the machine: the order waits for the one that comes.
                Edit::Keep
            } else {
                Edit::Clear
            };
        }
        let record = Record::from_request(request, registered_at_ms);
        if known.map(|node| &node.record) != Some(&record) {
            change.record = Edit::Set(record);
        }
        Ok(change)
    }

    fn decide_deregister(
        &self,
        node_id: &NodeId,
        instance_id: Option<&str>,
        forget: bool,
    ) -> Result<Change, Refusal> {
        let node = if forget {
            self.known(node_id)?
        } else {
            self.registered(node_id)?
        };
        refuse_superseded(node_id, &node.record, instance_id)?;
        let mut change = Change::nothing(node_id);
        change.record = match node.drain {
            Some(_) if !forget => Edit::Set(node.record.ended()),
            _ => Edit::Clear,
        };
        if forget && node.drain.is_some() {
            change.drain = Edit::Clear;
        }
        Ok(change)
    }

    fn decide_drain(
        &self,
        now: Now,
        node_id: &NodeId,
        request: &DrainRequest,
        drain_id: &str,
        running: u32,
    ) -> Result<Change, Refusal> {
        let node = self.registered(node_id)?;
        let machine_id = node.record.machine_id.clone();
        let mut change = Change::nothing(node_id);
        let drain = match &node.drain {
            Some(drain) => drain.asked_again(now.mono, request),
            None => Drain::asked(now, machine_id, request, drain_id, running),
        };
        if node.drain.as_ref() != Some(&drain) {
            change.drain = Edit::Set(drain.as_of(now.mono));
        }
        Ok(change)
    }

    /// Applies a change that is durable. The only way intent and registrations are set.
    pub fn commit(&mut self, now: Now, change: Change) {
        let Change {
            node_id,
            record,
            drain,
            speaker,
            touch,
        } = change;
        let node = match (record, self.nodes.entry(node_id)) {
            (Edit::Keep, Entry::Occupied(known)) => known.into_mut(),
            (Edit::Set(record), Entry::Occupied(known)) => {
                let node = known.into_mut();
                node.set_record(record);
                node
            }
            (Edit::Set(record), Entry::Vacant(place)) => place.insert(Node::new(record)),
            (Edit::Clear, Entry::Occupied(known)) => {
                known.remove();
                return;
            }
            (Edit::Keep | Edit::Clear, Entry::Vacant(_)) => return,
        };
        match drain {
            Edit::Keep => {}
            Edit::Set(drain) => {
                let amended = match &node.drain {
                    Some(live) if live.id == drain.id => drain.going_on(live),
                    _ => drain,
                };
                node.drain = Some(amended);
            }
            Edit::Clear => node.drain = None,
        }
        if speaker != Speaker::Same {
            node.begin(speaker == Speaker::NewProcess);
        }
        if touch {
            if node.record.instance_id.is_none() {
                // It does not say whether it is a new process, which would number from the start.
                node.live.seq = None;
            }
            node.live.register(now, self.settings.node_timeout_ms);
        }
    }

    /// Takes a heartbeat. Renews the lease, replaces the pool status; touches no intent.
    ///
    /// # Errors
    /// `UnknownNode` for one that is not registered, `Superseded` for an agent process that is not the current one.
    pub fn beat(
        &mut self,
        now: Now,
        node_id: &NodeId,
        request: HeartbeatRequest,
    ) -> Result<Beat, Refusal> {
        let unknown = || Refusal::UnknownNode {
            node_id: node_id.clone(),
        };
        let node = self.nodes.get_mut(node_id).ok_or_else(unknown)?;
        if node.record.departed {
            return Err(unknown());
        }
        if let Err(superseded) =
            refuse_superseded(node_id, &node.record, request.instance_id.as_deref())
        {
            // What was restored may be older than the process that speaks: only one that was heard since supersedes it,
            // and else it is told to say who it is.
            return Err(if node.live.heard.is_some() {
                superseded
            } else {
                unknown()
            });
        }
        Ok(node.beat(now, request))
    }

    /// Takes what the readers of an agentless node say of its engines while none of them answers: its pools, and nothing
    /// that would renew its lease.
    ///
    /// # Errors
    /// `UnknownNode` for one that is not registered.
    pub fn report(&mut self, node_id: &NodeId, pools: Vec<PoolStatus>) -> Result<Beat, Refusal> {
        match self.nodes.get_mut(node_id) {
            Some(node) if !node.record.departed => Ok(node.report(pools)),
            _ => Err(Refusal::UnknownNode {
                node_id: node_id.clone(),
            }),
        }
    }

    /// Draining nodes on which what still runs is to be ended now.
    #[must_use]
    pub fn over(&self, now: Now) -> Vec<NodeId> {
        self.nodes
            .iter()
            .filter(|(_, node)| {
                node.drain
                    .as_ref()
                    .is_some_and(|drain| drain.is_over(now.mono))
            })
            .map(|(node_id, _)| node_id.clone())
            .collect()
    }

    /// So many requests that ran on a draining node were ended.
    pub fn cut(&mut self, node_id: &NodeId, count: u32) {
        if let Some(drain) = self
            .nodes
            .get_mut(node_id)
            .and_then(|node| node.drain.as_mut())
        {
            drain.on_cut(count);
        }
    }

    /// Marks a drain done once nothing runs and somebody's word says so. True when it became so now.
    pub fn settle(&mut self, node_id: &NodeId, running: u32) -> bool {
        let Some(node) = self.nodes.get_mut(node_id) else {
            return false;
        };
        let witness = if node.record.departed || node.live.offline {
            Witness::Gone
        } else if node.is_agentless() {
            Witness::Nobody
        } else {
            Witness::Agent
        };
        node.drain
            .as_mut()
            .is_some_and(|drain| drain.settle(running, witness))
    }

    /// Nodes with a drain that is not done.
    pub fn draining(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes
            .iter()
            .filter(|(_, n)| n.drain.as_ref().is_some_and(|d| !d.is_done()))
            .map(|(id, _)| id)
    }

    /// The node of this name, registered or departed.
    #[must_use]
    pub fn node(&self, node_id: &NodeId) -> Option<&Node> {
        self.nodes.get(node_id)
    }

    /// All of them, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }
}

fn refuse_superseded(
    node_id: &NodeId,
    record: &Record,
    instance_id: Option<&str>,
) -> Result<(), Refusal> {
    // Without an instance id it is an old client's, which cannot know better.
    let Some(asking) = instance_id else {
        return Ok(());
    };
    match &record.instance_id {
        Some(current) if current != asking => Err(Refusal::Superseded {
            node_id: node_id.clone(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
