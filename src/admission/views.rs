//! Models as `GET /v1/models` shows them: what their pools are to somebody who asks for one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::dispatch::ModelIx;
use crate::types::PoolState;

use super::directory::{Directory, Entry};

/// How a model can be had, in one word: the best that any of its pools offers. Better news come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelState {
    /// Requests run.
    Ready,
    /// Every slot is taken: requests wait their turn.
    Busy,
    /// The next request wakes it.
    Sleeping,
    /// Being read; requests wait.
    Loading,
    /// It may serve soon, and nobody says more.
    Unknown,
    /// Its nodes are being drained, or have been: somebody wants it so.
    Draining,
    /// Its engines answer, but not as orchd can use them.
    Misconfigured,
    /// Its engines do not answer, or their nodes are not heard.
    Unreachable,
    /// It is an alias, and no engine has what it stands for.
    Absent,
}

impl ModelState {
    /// What a request has of a pool: an engine that is ready on a node that takes nothing is out of its reach.
    fn of(pool: &Entry) -> Self {
        match pool.state {
            PoolState::Misconfigured => Self::Misconfigured,
            PoolState::Unreachable => Self::Unreachable,
            _ if !pool.prospective && pool.draining => Self::Draining,
            _ if !pool.prospective => Self::Unreachable,
            PoolState::Loading => Self::Loading,
            PoolState::Ready => Self::Ready,
            PoolState::Busy => Self::Busy,
            PoolState::Sleeping => Self::Sleeping,
            // As known from before a restart, or from an agent that tells no more.
            PoolState::Unknown if pool.accepting => Self::Ready,
            PoolState::Unknown => Self::Unknown,
        }
    }

    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Sleeping => "sleeping",
            Self::Loading => "loading",
            Self::Unknown => "unknown",
            Self::Draining => "draining",
            Self::Misconfigured => "misconfigured",
            Self::Unreachable => "unreachable",
            Self::Absent => "absent",
        }
    }
}

/// One of the ways in which a model is served: pools that are alike to whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Their engine, such as `llamacpp`.
    pub engine: Option<String>,
    /// Its build.
    pub engine_version: Option<String>,
    /// Context of one slot, in tokens.
    pub n_ctx: Option<u64>,
    /// How many pools.
    pub pools: u32,
    /// Slots of those that take requests.
    pub slots: u32,
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
    /// The best state any of its pools is in, to a request.
    pub state: ModelState,
    /// The ways in which its pools serve it, sorted.
    pub variants: Vec<Variant>,
    /// Aliases that stand for it, sorted.
    pub aliases: Vec<Arc<str>>,
    /// What it stands for, when it is an alias, in the order in which that was said.
    pub alias_of: Vec<Arc<str>>,
}

/// What makes two pools alike: engine, version, context.
type Way<'a> = (Option<&'a str>, Option<&'a str>, Option<u64>);

/// What is known of a model from the pools looked at so far.
struct Gathered<'a> {
    n_ctx: Option<(u64, u64)>,
    slots: u32,
    state: ModelState,
    /// Pools, and slots of those that take requests.
    ways: BTreeMap<Way<'a>, (u32, u32)>,
}

impl<'a> Gathered<'a> {
    fn new() -> Self {
        Self {
            n_ctx: None,
            slots: 0,
            state: ModelState::Absent,
            ways: BTreeMap::new(),
        }
    }

    fn add(&mut self, pool: &'a Entry) {
        let slots = if pool.accepting { pool.slots_total } else { 0 };
        self.slots = self.slots.saturating_add(slots);
        self.state = self.state.min(ModelState::of(pool));
        if let Some(n_ctx) = pool.n_ctx {
            let (least, most) = self.n_ctx.unwrap_or((n_ctx, n_ctx));
            self.n_ctx = Some((least.min(n_ctx), most.max(n_ctx)));
        }
        let version = pool.engine_version.as_deref();
        let way = (pool.engine.as_deref(), version, pool.n_ctx);
        let (pools, all) = self.ways.entry(way).or_default();
        *pools += 1;
        *all = all.saturating_add(slots);
    }

    fn view(self, directory: &Directory, name: &str) -> Option<ModelView> {
        let (id, known) = directory.listed(name)?;
        let mut aliases = known.aliases.clone();
        aliases.sort_unstable();
        let variants = self.ways.into_iter().map(|(way, (pools, slots))| Variant {
            engine: way.0.map(str::to_owned),
            engine_version: way.1.map(str::to_owned),
            n_ctx: way.2,
            pools,
            slots,
        });
        Some(ModelView {
            id: Arc::clone(id),
            n_ctx: self.n_ctx,
            slots: self.slots,
            state: self.state,
            variants: variants.collect(),
            aliases,
            alias_of: known.alias_of.clone(),
        })
    }
}

/// Every model there is, sorted by name.
pub(super) fn all(directory: &Directory) -> Vec<ModelView> {
    // By number, which is found without comparing names: there may be many pools.
    let mut models: HashMap<ModelIx, (&Arc<str>, Gathered<'_>)> = HashMap::new();
    for (ix, name) in directory.aliases() {
        models.insert(ix, (name, Gathered::new()));
    }
    for pool in directory.pools() {
        for (ix, name) in &pool.names {
            let model = models.entry(*ix);
            model.or_insert_with(|| (name, Gathered::new())).1.add(pool);
        }
    }
    let mut views: Vec<ModelView> = models
        .into_values()
        .filter_map(|(name, gathered)| gathered.view(directory, name))
        .collect();
    views.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    views
}

/// One of the models there are.
pub(super) fn one(directory: &Directory, name: &str) -> Option<ModelView> {
    let (_, known) = directory.listed(name)?;
    let mut gathered = Gathered::new();
    for pool in directory.pools() {
        if pool.names.iter().any(|(ix, _)| *ix == known.ix) {
            gathered.add(pool);
        }
    }
    gathered.view(directory, name)
}
