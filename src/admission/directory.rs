//! Names: which node has which pools, which pool serves which models. Identity only; numbers live in `dispatch`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::dispatch::{ModelIx, PoolCounts, PoolIx, PoolSpec};
use crate::types::{EngineKind, HttpUrl, Mono, NodeId, Origin, PoolId, PoolState};

use super::State;

/// One pool as `control` wants it routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRoute {
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Where to dial it.
    pub url: HttpUrl,
    /// Behind its node's own agent: it may be shown the token.
    pub trusted: bool,
    /// Model ids it serves.
    pub models: Vec<String>,
    /// Takes requests now.
    pub accepting: bool,
    /// Takes requests now or may soon.
    pub prospective: bool,
    /// To be used only when nothing better is left.
    pub suspect: bool,
    /// Slots in all; unknown is 1.
    pub slots_total: u32,
    /// Context of one slot, in tokens.
    pub n_ctx: Option<u64>,
    /// Its engine, such as `llamacpp`.
    pub engine: Option<String>,
    /// The engine's build.
    pub engine_version: Option<String>,
    /// What the engine is doing.
    pub state: PoolState,
}

/// A pool as it is dialled.
#[derive(Debug)]
pub struct Upstream {
    /// Its node.
    pub node_id: NodeId,
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Where it listens.
    pub origin: Origin,
    /// Behind its node's own agent: it may be shown the token.
    pub trusted: bool,
    /// Its engine is llama.cpp's.
    pub is_llamacpp: bool,
    pub(super) ix: PoolIx,
    /// Tells the requests that run there to end.
    pub(super) end: Arc<Notify>,
    url: HttpUrl,
}

/// A model as `GET /v1/models` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelView {
    /// Its id.
    pub id: Arc<str>,
    /// Smallest and largest context of a slot over its pools, in tokens; `None` while none of them tells.
    pub n_ctx: Option<(u64, u64)>,
    /// Slots of the pools that take requests.
    pub slots: u32,
    /// The best state any of its pools is in, to a request: `unreachable` when none may serve soon.
    pub state: PoolState,
}

#[derive(Debug, Default)]
struct KnownModel {
    ix: ModelIx,
    /// Pools that list it; without any it is not known, and keeps its number.
    pools: usize,
}

impl Default for ModelIx {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

#[derive(Debug)]
struct Entry {
    upstream: Arc<Upstream>,
    models: Vec<Arc<str>>,
    n_ctx: Option<u64>,
    state: PoolState,
    accepting: bool,
    prospective: bool,
    slots_total: u32,
}

impl Entry {
    /// What a request has of it: an engine that is ready on a node that takes nothing is out of its reach.
    fn state_for_requests(&self) -> PoolState {
        match self.state {
            PoolState::Misconfigured => PoolState::Misconfigured,
            _ if !self.prospective => PoolState::Unreachable,
            // As known from before a restart.
            PoolState::Unknown if self.accepting => PoolState::Ready,
            state => state,
        }
    }
}

/// One node's pools.
#[derive(Debug, Default)]
pub(super) struct NodeEntry {
    pools: Vec<Entry>,
    /// Pools it no longer has, on which requests may still run.
    gone: Vec<Arc<Upstream>>,
}

impl NodeEntry {
    pub fn pool(&self, pool_id: &PoolId) -> Option<&Arc<Upstream>> {
        self.pools
            .iter()
            .map(|entry| &entry.upstream)
            .find(|upstream| upstream.pool_id == *pool_id)
    }

    pub fn pools(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.pools.iter().map(|entry| &entry.upstream)
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    models: HashMap<Arc<str>, KnownModel>,
    nodes: HashMap<NodeId, NodeEntry>,
}

impl Directory {
    pub fn node(&self, node_id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(node_id)
    }

    pub fn model(&self, name: &str) -> Option<ModelIx> {
        self.models
            .get(name)
            .filter(|known| known.pools > 0)
            .map(|known| known.ix)
    }

    pub fn set_node(
        &mut self,
        state: &mut State,
        now: Mono,
        node_id: &NodeId,
        routes: &[PoolRoute],
    ) {
        let mut node = self.nodes.remove(node_id).unwrap_or_default();
        let mut old = std::mem::take(&mut node.pools);
        for route in routes {
            let models: Vec<Arc<str>> = route
                .models
                .iter()
                .map(|name| self.count_in(state, name))
                .collect();
            let spec = PoolSpec {
                models: models.iter().map(|name| self.models[name].ix).collect(),
                accepting: route.accepting,
                prospective: route.prospective,
                suspect: route.suspect,
                slots_total: route.slots_total,
                n_ctx: route.n_ctx,
            };
            let is_llamacpp = route.engine.as_deref() == Some(EngineKind::LlamaCpp.as_str());
            let same = old.iter().position(|e| {
                e.upstream.pool_id == route.pool_id
                    && e.upstream.url == route.url
                    && e.upstream.trusted == route.trusted
                    && e.upstream.is_llamacpp == is_llamacpp
            });
            let upstream = if let Some(at) = same {
                let entry = old.swap_remove(at);
                self.count_out(&entry.models);
                state.dispatch.update_pool(now, entry.upstream.ix, spec);
                entry.upstream
            } else {
                let ix = state.dispatch.add_pool(now, spec);
                let upstream = Arc::new(Upstream {
                    node_id: node_id.clone(),
                    pool_id: route.pool_id.clone(),
                    origin: route.url.origin(),
                    trusted: route.trusted,
                    is_llamacpp,
                    ix,
                    end: Arc::default(),
                    url: route.url.clone(),
                });
                place(&mut state.upstreams, &upstream);
                upstream
            };
            node.pools.push(Entry {
                upstream,
                models,
                n_ctx: route.n_ctx,
                state: route.state,
                accepting: route.accepting,
                prospective: route.prospective,
                slots_total: route.slots_total,
            });
        }
        for entry in old {
            self.count_out(&entry.models);
            let running = state.dispatch.counts(now, entry.upstream.ix).running;
            state.dispatch.remove_pool(now, entry.upstream.ix);
            if running > 0 {
                node.gone.push(entry.upstream);
            }
        }
        node.gone
            .retain(|upstream| still_running(state, now, upstream) > 0);
        if !(node.pools.is_empty() && node.gone.is_empty()) {
            self.nodes.insert(node_id.clone(), node);
        }
    }

    fn count_in(&mut self, state: &mut State, name: &str) -> Arc<str> {
        if let Some((name, _)) = self.models.get_key_value(name) {
            let name = Arc::clone(name);
            self.models.entry(Arc::clone(&name)).or_default().pools += 1;
            return name;
        }
        let name: Arc<str> = name.into();
        self.models.insert(
            Arc::clone(&name),
            KnownModel {
                ix: state.dispatch.add_model(),
                pools: 1,
            },
        );
        name
    }

    fn count_out(&mut self, models: &[Arc<str>]) {
        for name in models {
            if let Some(known) = self.models.get_mut(name) {
                known.pools = known.pools.saturating_sub(1);
            }
        }
    }

    pub fn running(&self, state: &State, now: Mono, node_id: &NodeId) -> u32 {
        let Some(node) = self.nodes.get(node_id) else {
            return 0;
        };
        node.pools()
            .chain(&node.gone)
            .map(|upstream| still_running(state, now, upstream))
            .sum()
    }

    /// Since when the oldest request on a node runs.
    pub fn oldest(&self, state: &State, now: Mono, node_id: &NodeId) -> Option<Mono> {
        let node = self.nodes.get(node_id)?;
        let upstreams = node.pools().chain(&node.gone);
        upstreams
            .filter_map(|upstream| counts(state, now, upstream).oldest)
            .min()
    }

    /// Tells everything that runs on a node to end, and says how many requests that are.
    pub fn end_running(&self, state: &State, now: Mono, node_id: &NodeId) -> u32 {
        let Some(node) = self.nodes.get(node_id) else {
            return 0;
        };
        let upstreams = node.pools().chain(&node.gone);
        upstreams
            .map(|upstream| {
                let running = still_running(state, now, upstream);
                upstream.end.notify_waiters();
                running
            })
            .sum()
    }

    pub fn only_model(&self) -> Option<ModelIx> {
        let mut known = self.models.values().filter(|known| known.pools > 0);
        known
            .next()
            .filter(|_| known.next().is_none())
            .map(|known| known.ix)
    }

    /// Every known model and its number.
    pub fn known(&self) -> impl Iterator<Item = (&Arc<str>, ModelIx)> {
        let known = self.models.iter().filter(|(_, known)| known.pools > 0);
        known.map(|(name, known)| (name, known.ix))
    }

    pub fn names(&self, most: usize) -> Vec<Arc<str>> {
        let known = self.models.iter().filter(|(_, known)| known.pools > 0);
        let mut names: Vec<Arc<str>> = known.map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        names.truncate(most);
        names
    }

    pub fn models(&self) -> Vec<ModelView> {
        let mut views: BTreeMap<&Arc<str>, ModelView> = BTreeMap::new();
        for entry in self.nodes.values().flat_map(|node| &node.pools) {
            for name in &entry.models {
                let view = views.entry(name).or_insert_with(|| ModelView {
                    id: Arc::clone(name),
                    n_ctx: None,
                    slots: 0,
                    state: PoolState::Unknown,
                });
                if entry.accepting {
                    view.slots = view.slots.saturating_add(entry.slots_total);
                }
                let state = entry.state_for_requests();
                if let Some(n_ctx) = entry.n_ctx {
                    let (least, most) = view.n_ctx.unwrap_or((n_ctx, n_ctx));
                    view.n_ctx = Some((least.min(n_ctx), most.max(n_ctx)));
                }
                if preference(state) < preference(view.state) {
                    view.state = state;
                }
            }
        }
        views.into_values().collect()
    }
}

/// Which of several pools' states tells most about what a request may expect; smaller is better news.
fn preference(state: PoolState) -> u8 {
    match state {
        PoolState::Ready => 0,
        PoolState::Busy => 1,
        PoolState::Sleeping => 2,
        PoolState::Loading => 3,
        PoolState::Misconfigured => 4,
        PoolState::Unreachable => 5,
        PoolState::Unknown => 6,
    }
}

fn place(upstreams: &mut Vec<Arc<Upstream>>, upstream: &Arc<Upstream>) {
    let at = upstream.ix.0 as usize;
    if at == upstreams.len() {
        upstreams.push(Arc::clone(upstream));
    } else {
        upstreams[at] = Arc::clone(upstream);
    }
}

/// Requests on a pool.
fn still_running(state: &State, now: Mono, upstream: &Arc<Upstream>) -> u32 {
    counts(state, now, upstream).running
}

/// A pool's numbers: nothing once its place in the table is another's.
fn counts(state: &State, now: Mono, upstream: &Arc<Upstream>) -> PoolCounts {
    let holder = &state.upstreams[upstream.ix.0 as usize];
    if Arc::ptr_eq(holder, upstream) {
        state.dispatch.counts(now, upstream.ix)
    } else {
        PoolCounts::default()
    }
}
