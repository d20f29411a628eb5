//! What `/metrics` shows of the fleet, read off at the moment of the scrape.

use prometheus_client::registry::Registry;

use crate::metrics::{self, About, Counters, DrainStep, Fleet, NodeSample, PoolSample};
use crate::registry::{Drain, Node};
use crate::types::NodeId;

use super::Control;

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
        metrics::scrape(&self.counters, self.fleet(), about)
    }

    /// Copied under the lock, sorted and written without it.
    fn fleet(&self) -> Fleet {
        let mut fleet = Fleet::default();
        {
            let registry = self.registry();
            let now = self.clock.now();
            fleet.hold = registry.hold().map(|hold| hold.nodes);
            for (node_id, node) in registry.nodes() {
                if let Some(drain) = node.drain.as_ref().map(|drain| drain.view(now, 0)) {
                    fleet.drains.push(drain.state);
                }
                fleet.pools_available += pools_available(node);
                if !node.record.departed && *node_id != NodeId::local() {
                    fleet.nodes.push(NodeSample {
                        node_id: node_id.clone(),
                        status: node.status(),
                        online: node.online(now, self.settings.node_timeout_ms),
                        age_ms: node.live.heard.map(|heard| now.since(heard)),
                    });
                }
            }
        }
        fleet.nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        self.admission.each_pool(|upstream, counts| {
            fleet.pools.push(PoolSample {
                node_id: upstream.node_id.clone(),
                pool_id: upstream.pool_id.clone(),
                in_flight: counts.running,
                quarantined: counts.quarantined,
                ejections: counts.ejections,
            });
        });
        fleet.pools.sort_unstable();
        fleet.waiting = self.admission.waiting_by_model();
        fleet.waiting.sort_unstable();
        fleet
    }

    /// Counts what an order has done to a node's drain.
    pub(super) fn count_drains(&self, before: Option<&Drain>, after: Option<&Drain>) {
        if before.map(|drain| &drain.id) == after.map(|drain| &drain.id) {
            return;
        }
        if before.is_some() {
            self.counters.drain(DrainStep::Ended);
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
