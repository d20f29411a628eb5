//! Names: which node has which pools, which pool serves which models. Identity only; numbers live in `dispatch`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::dispatch::{Dispatch, ModelIx, PoolCounts, PoolIx, PoolSpec};
use crate::types::{
    Alias, EngineKind, HttpUrl, LOCAL_NODE, Millis, Mono, NodeId, Origin, PoolId, PoolState,
    listed_model_id,
};

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
    /// Takes none because somebody asked for that: it is being drained, or has been.
    pub draining: bool,
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

#[derive(Debug)]
pub(super) struct KnownModel {
    pub ix: ModelIx,
    /// Pools that list it; without any it is not known, unless it is an alias, and keeps its number.
    pools: usize,
    /// Since when none of this machine's own engines lists it any more.
    missed: Option<Mono>,
    /// The aliases that stand for it.
    pub aliases: Vec<Arc<str>>,
    /// What it stands for, when it is an alias.
    pub alias_of: Vec<Arc<str>>,
}

impl KnownModel {
    /// Whether it is one of those there are (contract §3).
    fn is_listed(&self) -> bool {
        self.pools > 0 || !self.alias_of.is_empty()
    }
}

/// A model's number and its name.
pub(super) type Name = (ModelIx, Arc<str>);

/// A pool as it was last described.
#[derive(Debug)]
pub(super) struct Entry {
    upstream: Arc<Upstream>,
    /// What may be asked of it: the models it lists, and then their aliases, each once.
    pub names: Vec<Name>,
    /// How many of those it lists itself.
    listed: usize,
    pub engine: Option<String>,
    pub engine_version: Option<String>,
    pub n_ctx: Option<u64>,
    pub state: PoolState,
    pub accepting: bool,
    pub prospective: bool,
    pub draining: bool,
    pub slots_total: u32,
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

#[derive(Debug)]
pub(super) struct Directory {
    models: HashMap<Arc<str>, KnownModel>,
    aliases: Vec<Arc<str>>,
    nodes: HashMap<NodeId, NodeEntry>,
    /// How long requests for a model still wait after the last pool of this machine that listed it.
    patience_ms: Millis,
}

impl Directory {
    /// No pools; of the models, those that `aliases` name.
    pub fn new(dispatch: &mut Dispatch, patience_ms: Millis, aliases: &[Alias]) -> Self {
        let mut directory = Self {
            models: HashMap::new(),
            aliases: Vec::with_capacity(aliases.len()),
            nodes: HashMap::new(),
            patience_ms,
        };
        for alias in aliases {
            let name = directory.model_of(dispatch, alias.name()).0;
            for model in alias.models() {
                let (model, known) = directory.model_of(dispatch, model);
                known.aliases.push(Arc::clone(&name));
                let known = directory.model_of(dispatch, &name).1;
                known.alias_of.push(model);
            }
            directory.aliases.push(name);
        }
        directory
    }

    pub fn node(&self, node_id: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(node_id)
    }

    /// All pools.
    pub fn pools(&self) -> impl Iterator<Item = &Entry> {
        self.nodes.values().flat_map(|node| &node.pools)
    }

    /// The aliases there are.
    pub fn aliases(&self) -> impl Iterator<Item = (ModelIx, &Arc<str>)> {
        let aliases = self.aliases.iter();
        aliases.map(|name| (self.models[name].ix, name))
    }

    /// What is known of one of the models there are, with its name as it is listed.
    pub fn listed(&self, name: &str) -> Option<(&Arc<str>, &KnownModel)> {
        let found = self.models.get_key_value(listed_model_id(name));
        found.filter(|(_, known)| known.is_listed())
    }

    /// The number of a model for which requests may wait, by its name or the path of its file.
    pub fn model(&self, now: Mono, name: &str) -> Option<ModelIx> {
        self.models
            .get(listed_model_id(name))
            .filter(|known| known.is_listed() || self.is_missed(now, known))
            .map(|known| known.ix)
    }

    /// Whether a model went just now. Whatever keeps an engine running may replace its handoff file by deleting it and
    /// writing it anew: to those who ask in between, its model is one that will be back, and not one that never was. That
    /// holds for this machine's own engines alone: what a node no longer reports, or takes along when it leaves, is gone.
    fn is_missed(&self, now: Mono, known: &KnownModel) -> bool {
        let missed = known.missed.filter(|_| known.pools == 0);
        missed.is_some_and(|since| now.since(since) < self.patience_ms)
    }

    /// The numbers of these models, and of the aliases that stand for them, each once.
    pub fn with_aliases<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> impl Iterator<Item = ModelIx> {
        let mut models = Vec::new();
        for name in names {
            let Some(known) = self.models.get(listed_model_id(name)) else {
                continue;
            };
            models.push(known.ix);
            let aliases = known.aliases.iter();
            models.extend(aliases.filter_map(|alias| Some(self.models.get(alias)?.ix)));
        }
        models.sort_unstable();
        models.dedup();
        models.into_iter()
    }

    pub fn set_node(
        &mut self,
        state: &mut State,
        now: Mono,
        node_id: &NodeId,
        routes: &[PoolRoute],
    ) {
        let mut node = self.nodes.remove(node_id).unwrap_or_default();
        let missed = (node_id.as_str() == LOCAL_NODE).then_some(now);
        let mut old = std::mem::take(&mut node.pools);
        for route in routes {
            let (names, listed) = self.count_in(&mut state.dispatch, &route.models);
            let spec = PoolSpec {
                models: names.iter().map(|(ix, _)| *ix).collect(),
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
                // What it no longer lists it does not have: that is its own word.
                self.count_out(None, &entry);
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
                names,
                listed,
                engine: route.engine.clone(),
                engine_version: route.engine_version.clone(),
                n_ctx: route.n_ctx,
                state: route.state,
                accepting: route.accepting,
                prospective: route.prospective,
                draining: route.draining,
                slots_total: route.slots_total,
            });
        }
        for entry in old {
            self.count_out(missed, &entry);
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

    /// The entry of a model, which is made when there is none.
    fn model_of(&mut self, dispatch: &mut Dispatch, name: &str) -> (Arc<str>, &mut KnownModel) {
        let name = match self.models.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None => name.into(),
        };
        let known = self.models.entry(Arc::clone(&name));
        let known = known.or_insert_with(|| KnownModel {
            ix: dispatch.add_model(),
            pools: 0,
            missed: None,
            aliases: Vec::new(),
            alias_of: Vec::new(),
        });
        (name, known)
    }

    /// The [names](Entry::names) of a pool, and how many of them it lists itself.
    fn count_in(&mut self, dispatch: &mut Dispatch, models: &[String]) -> (Vec<Name>, usize) {
        let mut aliases: Vec<Arc<str>> = Vec::new();
        let mut names: Vec<Name> = Vec::with_capacity(models.len());
        for model in models {
            let (name, known) = self.model_of(dispatch, listed_model_id(model));
            aliases.extend(known.aliases.iter().cloned());
            names.push((known.ix, name));
        }
        names.sort_unstable_by_key(|(ix, _)| *ix);
        names.dedup_by_key(|(ix, _)| *ix);
        for (_, name) in &names {
            self.model_of(dispatch, name).1.pools += 1;
        }
        let mut also: Vec<Name> = aliases
            .into_iter()
            .map(|name| (self.models[&name].ix, name))
            .filter(|(ix, _)| names.binary_search_by_key(ix, |(ix, _)| *ix).is_err())
            .collect();
        also.sort_unstable_by_key(|(ix, _)| *ix);
        also.dedup_by_key(|(ix, _)| *ix);
        let listed = names.len();
        names.append(&mut also);
        (names, listed)
    }

    /// A pool no longer lists what it listed. `missed` is since when that is worth remembering.
    fn count_out(&mut self, missed: Option<Mono>, entry: &Entry) {
        for (_, name) in &entry.names[..entry.listed] {
            if let Some(known) = self.models.get_mut(name) {
                known.pools = known.pools.saturating_sub(1);
                if known.pools == 0 {
                    known.missed = missed;
                }
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

    /// The only model there is; while there is none, the only one that went just now.
    pub fn only_model(&self, now: Mono) -> Option<ModelIx> {
        let mut listed = self.models.values().filter(|known| known.is_listed());
        match (listed.next(), listed.next()) {
            (None, _) => {
                let models = self.models.values();
                let mut missed = models.filter(|known| self.is_missed(now, known));
                let first = missed.next()?;
                missed.next().is_none().then_some(first.ix)
            }
            (Some(only), None) => Some(only.ix),
            (Some(_), Some(_)) => None,
        }
    }

    /// Every model that there is or was, and whether it is listed.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, ModelIx, bool)> {
        (self.models.iter()).map(|(name, known)| (name, known.ix, known.is_listed()))
    }

    pub fn name(&self, ix: ModelIx) -> Option<Arc<str>> {
        let named =
            |(name, known): (&Arc<str>, &KnownModel)| (known.ix == ix).then(|| Arc::clone(name));
        self.models.iter().find_map(named)
    }

    pub fn names(&self, most: usize) -> Vec<Arc<str>> {
        let listed = self.models.iter().filter(|(_, known)| known.is_listed());
        let mut names: Vec<Arc<str>> = listed.map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        names.truncate(most);
        names
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
