//! What `/metrics` shows of the fleet, read off at the moment of the scrape.

use prometheus_client::registry::Registry;

use crate::metrics::{self, About, Counters, DrainStep, Fleet, NodeSample};
use crate::registry::{Drain, Node};
use crate::types::{FleetHold, NodeId};

use super::{Control, NodeFilter};

impl Control {
    /// What has been counted since the process started.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Everything `/metrics` shows of the control plane, as of now. `profile` is the word for what the process is for.
    #[must_use]
    pub fn scrape(&self, profile: &'static str) -> Registry {
        let about = About {
            profile,
            started_at: self.started_at,
        };
        let fleet = Fleet {
            hold: self.fleet_hold().map(|hold| hold.nodes),
            ..self.fleet()
        };
        metrics::scrape(&self.counters, fleet, about)
    }

    /// The hold as the list of nodes tells it. Asked for nodes that left, the list looks at few.
    fn fleet_hold(&self) -> Option<FleetHold> {
        let filter = NodeFilter {
            departed: true,
            ..NodeFilter::default()
        };
        self.nodes(&filter).fleet_hold
    }

    /// Copied under the lock, sorted and written without it.
    fn fleet(&self) -> Fleet {
        let mut fleet = Fleet::default();
        {
            let registry = self.registry();
            let now = self.clock.now();
            for (node_id, node) in registry.nodes() {
                if let Some(drain) = node.drain.as_ref().map(|drain| drain.view(0)) {
                    fleet.drains.push(drain.state);
                    fleet.cut += u64::from(drain.cut);
                }
                fleet.pools_available += pools_available(node);
                if !node.record.departed && *node_id != NodeId::local() {
                    fleet.nodes.push(NodeSample {
                        node_id: node_id.clone(),
                        status: node.status(),
                        online: node.online(),
                        age_ms: node.live.heard.map(|heard| now.since(heard)),
                    });
                }
            }
        }
        fleet.nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        fleet
    }

    /// Counts what an order has done to a node's drain. Called with the registry locked, so that the requests a drain
    /// has cut are never missing from the sum.
    pub(super) fn count_drains(&self, before: Option<Drain>, after: Option<Drain>) {
        let id = |drain: &Option<Drain>| drain.as_ref().map(|drain| drain.id.clone());
        if id(&before) == id(&after) {
            return;
        }
        if let Some(drain) = before {
            self.counters.drain(DrainStep::Ended);
            self.counters.drain_gone(drain.view(0).cut);
        }
        if after.is_some() {
            self.counters.drain(DrainStep::Started);
        }
    }
}

fn pools_available(node: &Node) -> u64 {
    if !node.schedulable() {
        return 0;
    }
    let takes = |pool: &&crate::types::PoolStatus| pool.ready && !pool.draining;
    u64::try_from(node.pools.iter().filter(takes).count()).unwrap_or(u64::MAX)
}
