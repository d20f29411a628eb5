//! What the API shows: the registry's facts and admission's counts, put together at one moment.

use std::collections::BTreeMap;

use crate::dispatch::PoolCounts;
use crate::registry::Node;
use crate::types::{
    Availability, AvailableModel, FleetHold, NodeId, NodeList, NodeStatus, NodeView, Now, PoolId,
    PoolState, PoolView, listed_model_id,
};

use super::{Control, ControlError, Refusal};

/// Which nodes a list is to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFilter {
    /// Any of these words; all when empty.
    pub status: Vec<NodeStatus>,
    /// All of these labels.
    pub labels: Vec<(String, String)>,
    /// Those that left but still hold intent, instead of those that are registered.
    pub departed: bool,
    /// Names after this one.
    pub after: Option<NodeId>,
    /// At most so many.
    pub limit: usize,
}

impl NodeFilter {
    fn matches(&self, node: &Node) -> bool {
        let has = |(key, value): &(String, String)| node.record.labels.get(key) == Some(value);
        node.record.departed == self.departed
            && (self.status.is_empty() || self.status.contains(&node.status()))
            && self.labels.iter().all(has)
    }
}

impl Control {
    pub(super) fn show(&self, now: Now, node_id: &NodeId, node: &Node) -> NodeView {
        let counts = self.admission.counts(node_id);
        let mut view = node.view(now, self.settings.node_timeout_ms, node_id, |pool| {
            running(&counts, &pool.pool_id)
        });
        if let Some(drain) = &mut view.drain {
            // Pools that are gone carry requests, too.
            drain.in_flight = self.admission.running(node_id);
            let oldest = self.admission.oldest(node_id);
            drain.oldest_ms = oldest.map(|since| now.mono.since(since));
        }
        view
    }

    /// Which nodes a list holds, sorted by name, and everything in it but them.
    #[must_use]
    pub fn listing(&self, filter: &NodeFilter) -> (Vec<NodeId>, NodeList) {
        let registry = self.registry();
        let now = self.clock.both();
        let mut matching: Vec<&NodeId> = registry
            .nodes()
            .filter(|(_, node)| filter.matches(node))
            .map(|(node_id, _)| node_id)
            .collect();
        matching.sort_unstable();
        let start = filter.after.as_ref().map_or(0, |after| {
            matching.partition_point(|node_id| *node_id <= after)
        });
        let page = &matching[start..];
        let more = page.len() > filter.limit;
        let page = &page[..page.len().min(filter.limit)];
        let list = NodeList {
            nodes: Vec::new(),
            count: page.len(),
            total: matching.len(),
            next: page
                .last()
                .filter(|_| more)
                .map(|node_id| (*node_id).clone()),
            fleet_hold: registry.hold().map(|hold| FleetHold {
                since_ms: now.mono.since(hold.since),
                nodes: hold.nodes,
                ends_in_ms: hold.ends.since(now.mono),
            }),
        };
        (page.iter().map(|&node_id| node_id.clone()).collect(), list)
    }

    /// Some nodes of a [`listing`](Self::listing), at one moment. What has left it meanwhile is left out. Heartbeats wait
    /// until it is made: ask for a few at a time.
    #[must_use]
    pub fn listed(&self, filter: &NodeFilter, node_ids: &[NodeId]) -> Vec<NodeView> {
        let registry = self.registry();
        let now = self.clock.both();
        let nodes = node_ids
            .iter()
            .filter_map(|node_id| Some((node_id, registry.node(node_id)?)));
        nodes
            .filter(|(_, node)| filter.matches(node))
            .map(|(node_id, node)| self.show(now, node_id, node))
            .collect()
    }

    /// One registered node.
    ///
    /// # Errors
    /// It is not registered.
    pub fn node(&self, node_id: &NodeId) -> Result<NodeView, ControlError> {
        let registry = self.registry();
        let registered = registry.node(node_id).filter(|node| !node.record.departed);
        let node = registered.ok_or_else(|| Refusal::UnknownNode {
            node_id: node_id.clone(),
        })?;
        Ok(self.show(self.clock.both(), node_id, node))
    }

    /// Every node there is anything to say of, sorted by name.
    #[must_use]
    pub fn node_ids(&self) -> Vec<NodeId> {
        let registry = self.registry();
        let mut node_ids: Vec<NodeId> = registry.nodes().map(|(id, _)| id.clone()).collect();
        drop(registry);
        node_ids.sort_unstable();
        node_ids
    }

    /// The pools of these nodes, each node's sorted by name. Heartbeats wait until they are there: ask for a few nodes at a
    /// time.
    #[must_use]
    pub fn pools(&self, node_ids: &[NodeId]) -> Vec<PoolView> {
        let registry = self.registry();
        let mut pools = Vec::new();
        for node_id in node_ids {
            // It may have gone meanwhile.
            let Some(node) = registry.node(node_id) else {
                continue;
            };
            let counts = self.admission.counts(node_id);
            let first = pools.len();
            let views = node.pools.iter();
            pools.extend(views.map(|pool| self.show_pool(node_id, node, pool, &counts)));
            pools[first..].sort_by(|a, b| a.pool_id.cmp(&b.pool_id));
        }
        pools
    }

    fn show_pool(
        &self,
        node_id: &NodeId,
        node: &Node,
        pool: &crate::types::PoolStatus,
        counts: &[(PoolId, PoolCounts)],
    ) -> PoolView {
        let counts = counts
            .iter()
            .find(|(pool_id, _)| *pool_id == pool.pool_id)
            .map(|(_, c)| *c)
            .unwrap_or_default();
        let waiting = self.admission.waiting_for(&pool.models_available);
        let seen = node.observed();
        let is_carrying = seen == NodeStatus::Online;
        PoolView {
            node_id: node_id.to_string(),
            pool_id: pool.pool_id.clone(),
            engine: pool.engine.clone(),
            engine_version: pool.engine_version.clone(),
            models: listed(&pool.models_available),
            // What a silent node last said of its engines holds no more, nor what one that hangs showed before.
            state: if seen == NodeStatus::Offline || counts.hung {
                PoolState::Unreachable
            } else {
                pool.state
            },
            ready: pool.ready && is_carrying && !counts.hung,
            draining: pool.draining || node.drain.is_some(),
            ejected: counts.ejected,
            slots_total: counts.slots_total,
            slots_free: if is_carrying && !counts.hung {
                counts.slots_free
            } else {
                0
            },
            external: counts.external,
            running: counts.running,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            vram_free_bytes: pool.vram_free_bytes,
            n_ctx: pool.n_ctx,
            url: node.pool_url(pool),
        }
    }

    /// Adds what these nodes serve. Heartbeats wait meanwhile: a few nodes at a time.
    pub fn add_to_catalog(&self, node_ids: &[NodeId], catalog: &mut Catalog) {
        let registry = self.registry();
        let nodes = node_ids
            .iter()
            .filter_map(|node_id| Some((node_id, registry.node(node_id)?)));
        for (node_id, node) in nodes.filter(|(_, node)| node.schedulable()) {
            let pools = node.pools.iter();
            for pool in pools.filter(|pool| pool.ready && !pool.draining) {
                for model in &pool.models_available {
                    catalog.add(
                        listed_model_id(model),
                        node_id,
                        pool.slots_total.unwrap_or(1),
                    );
                }
            }
        }
    }
}

/// Where each model can be had: nodes, and slots of their pools that take requests.
#[derive(Debug, Default)]
pub struct Catalog(BTreeMap<String, (Vec<String>, u64)>);

impl Catalog {
    fn add(&mut self, model: &str, node_id: &NodeId, slots: u32) {
        let (nodes, all) = self.0.entry(model.to_owned()).or_default();
        // Pools come node by node: it is the last one, or not there yet.
        if nodes.last().is_none_or(|last| last != node_id.as_str()) {
            nodes.push(node_id.to_string());
        }
        *all += u64::from(slots);
    }

    /// As the API shows it, nodes in the order in which they were added.
    #[must_use]
    pub fn availability(self) -> Availability {
        let models = self
            .0
            .into_iter()
            .map(|(model_id, (nodes, total_capacity))| AvailableModel {
                model_id,
                total_nodes: nodes.len(),
                nodes,
                total_capacity,
            });
        Availability {
            models: models.collect(),
        }
    }
}

/// Names of models as they are listed, whatever the agent that told them makes of paths.
fn listed(models: &[String]) -> Vec<String> {
    let models = models.iter();
    models.map(|id| listed_model_id(id).to_owned()).collect()
}

fn running(counts: &[(PoolId, PoolCounts)], pool_id: &PoolId) -> u32 {
    counts
        .iter()
        .find(|(id, _)| id == pool_id)
        .map_or(0, |(_, counts)| counts.running)
}
