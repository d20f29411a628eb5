//! Pools: engines as the control plane schedules them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::object;
use super::{HttpUrl, Mono, PoolId};

/// What an engine is doing, as its reader saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Reading its model; answers 503.
    Loading,
    /// Takes requests.
    Ready,
    /// Takes requests, every slot is taken.
    Busy,
    /// Gave its memory back; the next request wakes it.
    Sleeping,
    /// Does not answer; `detail` says how.
    Unreachable,
    /// Answers, but not as an engine orchd can use; `detail` says why.
    Misconfigured,
    /// Not told, or a word of a newer version.
    #[default]
    #[serde(other)]
    Unknown,
}

impl PoolState {
    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Sleeping => "sleeping",
            Self::Unreachable => "unreachable",
            Self::Misconfigured => "misconfigured",
            Self::Unknown => "unknown",
        }
    }
}

/// The inference server behind a pool. Free text on the wire; these are the words orchd itself writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// llama.cpp's `llama-server`.
    LlamaCpp,
}

impl EngineKind {
    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llamacpp",
        }
    }
}

/// One pool in a heartbeat. The first seven fields are the original system's, the others may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Whether it takes requests now.
    pub ready: bool,
    /// Whether its node says that it takes no new ones.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(nullable)]
    pub draining: bool,
    /// Slots not processing anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_free: Option<u32>,
    /// Slots in all; unknown counts as 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_total: Option<u32>,
    /// Free memory of its devices, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_free_bytes: Option<u64>,
    /// Its engine, such as `llamacpp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How the gateway reaches the engine; without it `{address}/pools/{pool_id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<HttpUrl>,
    /// What the engine is doing.
    #[serde(default, deserialize_with = "object::word_or_default")]
    #[schema(nullable)]
    pub state: PoolState,
    /// Model ids it serves.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(schema_with = super::schema::model_ids_or_null)]
    pub models_available: Vec<String>,
    /// The engine's build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Context of one slot, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_ctx: Option<u64>,
    /// Requests the reader itself had at the engine during the reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// A sentence about the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl PoolStatus {
    /// The part that changes seldom, and that routing needs again after a restart.
    #[must_use]
    pub fn descriptor(&self) -> PoolDescriptor {
        PoolDescriptor {
            pool_id: self.pool_id.clone(),
            url: self.url.clone(),
            engine: self.engine.clone(),
            engine_version: self.engine_version.clone(),
            models: self.models_available.clone(),
            slots_total: self.slots_total,
            n_ctx: self.n_ctx,
        }
    }

    /// Whether [`descriptor`](Self::descriptor) of both would be equal, without building either.
    #[must_use]
    pub fn same_descriptor(&self, other: &Self) -> bool {
        self.pool_id == other.pool_id
            && self.url == other.url
            && self.engine == other.engine
            && self.engine_version == other.engine_version
            && self.models_available == other.models_available
            && self.slots_total == other.slots_total
            && self.n_ctx == other.n_ctx
    }

    /// Takes over everything but the [`descriptor`](Self::descriptor), which is the [same](Self::same_descriptor).
    pub fn take_reading(&mut self, new: Self) {
        let Self {
            pool_id: _,
            ready,
            draining,
            slots_free,
            slots_total: _,
            vram_free_bytes,
            engine: _,
            url: _,
            state,
            models_available: _,
            engine_version: _,
            n_ctx: _,
            in_flight,
            detail,
        } = new;
        self.ready = ready;
        self.draining = draining;
        self.slots_free = slots_free;
        self.vram_free_bytes = vram_free_bytes;
        self.state = state;
        self.in_flight = in_flight;
        self.detail = detail;
    }

    /// The reading of slots in it, or `None` when it tells none.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        let total = self.slots_total?;
        let busy = total - self.slots_free?.min(total);
        Some(Sample {
            slots_total: total,
            busy,
            ours: self.in_flight,
            begun: None,
        })
    }
}

/// What whoever started an engine said of it, in a handoff file. All of it gives way to what the engine says itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Declared {
    /// Its build.
    pub engine_version: Option<String>,
    /// Slots in all.
    pub slots_total: Option<u32>,
    /// Slots not processing anything.
    pub slots_free: Option<u32>,
    /// Model ids it is going to serve, as they are listed.
    pub models: Vec<String>,
}

/// What of a pool is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDescriptor {
    /// Its name within the node.
    pub pool_id: PoolId,
    /// How the gateway reaches it.
    pub url: Option<HttpUrl>,
    /// Its engine.
    pub engine: Option<String>,
    /// The engine's build.
    pub engine_version: Option<String>,
    /// Model ids it serves.
    pub models: Vec<String>,
    /// Slots in all.
    pub slots_total: Option<u32>,
    /// Context of one slot, in tokens.
    pub n_ctx: Option<u64>,
}

impl PoolDescriptor {
    /// The pool as it is routed after a restart, until its node is heard: by its last descriptor, taken to be ready.
    #[must_use]
    pub fn assumed_status(&self) -> PoolStatus {
        PoolStatus {
            pool_id: self.pool_id.clone(),
            ready: true,
            draining: false,
            slots_free: self.slots_total,
            slots_total: self.slots_total,
            vram_free_bytes: None,
            engine: self.engine.clone(),
            url: self.url.clone(),
            state: PoolState::Unknown,
            models_available: self.models.clone(),
            engine_version: self.engine_version.clone(),
            n_ctx: self.n_ctx,
            in_flight: None,
            detail: None,
        }
    }
}

/// One reading of an engine's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Slots in all.
    pub slots_total: u32,
    /// Slots that were processing something.
    pub busy: u32,
    /// The highest number of requests its reader had there meanwhile; `None` when the reader does not say.
    pub ours: Option<u32>,
    /// When the reading began, on this process's clock; `None` for a reading made elsewhere.
    pub begun: Option<Mono>,
}
