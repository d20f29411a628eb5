//! Request and reply bodies of the control API. Unknown request fields are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::object;
use super::{HttpUrl, Millis, NodeId, NodeStatus, NodeView, PoolId, PoolState, PoolStatus};

/// Most pools of a node, in a registration and in a heartbeat (contract §1.1).
pub const MAX_POOLS: usize = 1_024;
/// Most GPUs of a node.
pub const MAX_GPUS: usize = 64;
/// Most labels of a node.
pub const MAX_LABELS: usize = 64;

/// `POST /v2/nodes/register`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegisterRequest {
    /// The name it asks for.
    pub node_id: NodeId,
    /// The machine; without it the node id stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Where its agent listens. Only an agentless node, one with `engines`, may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<HttpUrl>,
    /// Names of its pools.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(max_items = 1024, nullable)]
    pub pools: Vec<String>,
    /// What the machine has.
    #[serde(default, deserialize_with = "object::one_or_default")]
    #[schema(nullable)]
    pub capabilities: Capabilities,
    /// The agent's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// For people and selectors.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "object::or_default"
    )]
    #[schema(schema_with = super::schema::labels)]
    pub labels: BTreeMap<String, String>,
    /// Random per agent process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Sent by somebody who is not the machine, ahead of its agent: the first machine that registers under this name is
    /// it.
    #[serde(
        default,
        skip_serializing_if = "std::ops::Not::not",
        deserialize_with = "object::or_default"
    )]
    #[schema(nullable)]
    pub announced: bool,
    /// Engines of an agentless node.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "object::list_or_default"
    )]
    #[schema(max_items = 1024, nullable)]
    pub engines: Vec<EngineRef>,
}

impl RegisterRequest {
    /// The machine id in force.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.machine_id.as_deref().unwrap_or(self.node_id.as_str())
    }
}

/// An engine the control plane is to probe itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EngineRef {
    /// Its pool name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<PoolId>,
    /// Where it listens.
    pub url: HttpUrl,
}

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, Default)]
pub struct Capabilities {
    /// Its GPUs.
    #[serde(default, deserialize_with = "object::list_or_default")]
    #[schema(max_items = 64, nullable)]
    pub gpus: Vec<Gpu>,
    /// Logical processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// Main memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_total_bytes: Option<u64>,
}

/// One GPU. Every value but its index may be absent: cards lack some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, Default)]
pub struct Gpu {
    /// NVML's index.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(nullable)]
    pub device_id: u32,
    /// Marketing name.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(nullable)]
    pub name: String,
    /// Memory of the card.
    #[serde(default, deserialize_with = "object::or_default")]
    #[schema(nullable)]
    pub vram_total_bytes: u64,
    /// `major.minor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// NVML's stable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Driver of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// The newest CUDA that driver can run, `major.minor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// Whether it is split into instances (MIG).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<bool>,
    /// Whether it has no memory of its own but shares the machine's, which `vram_total_bytes` then is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified_memory: Option<bool>,
}

/// `POST /v2/nodes/register`, 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegisterReply {
    /// Always true.
    pub success: bool,
    /// A sentence.
    pub message: String,
    /// The name it has now.
    pub node_id: NodeId,
    /// How often to send a heartbeat.
    #[schema(value_type = u64)]
    pub heartbeat_interval_ms: Millis,
    /// After how long a silence it counts as Offline.
    #[schema(value_type = u64)]
    pub node_timeout_ms: Millis,
    /// Whether the registration is on disk.
    pub durable: bool,
}

/// `POST /v2/nodes/{id}/heartbeat`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatRequest {
    /// ISO 8601, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Replaces the node's pool status.
    #[serde(deserialize_with = "object::list")]
    #[schema(max_items = 1024)]
    pub pools: Vec<PoolStatus>,
    /// The agent process that speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Counts up within an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// How the machine is.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::maybe"
    )]
    pub health: Option<Health>,
    /// Says that the agent knows of a drain, and how much still runs.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::maybe"
    )]
    pub drain_ack: Option<DrainAck>,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// In one word.
    #[serde(deserialize_with = "object::word")]
    pub status: HealthStatus,
    /// Why.
    #[serde(default, deserialize_with = "object::list_or_default")]
    #[schema(nullable)]
    pub reasons: Vec<HealthReason>,
}

/// One word for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// All as it should be.
    Ok,
    /// Something is wrong; requests still work.
    Degraded,
    /// It cannot carry requests.
    Failed,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReason {
    /// `UPPER_SNAKE`.
    pub code: String,
    /// A sentence.
    pub message: String,
}

/// An agent's word on a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainAck {
    /// Which drain.
    pub id: String,
    /// Requests its proxy still carries.
    pub in_flight: u32,
}

/// `POST /v2/nodes/{id}/heartbeat`, 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatReply {
    /// Always true.
    pub success: bool,
    /// The interval in force.
    #[schema(value_type = u64)]
    pub next_heartbeat_ms: Millis,
    /// After how long a silence it counts as Offline.
    #[schema(value_type = u64)]
    pub node_timeout_ms: Millis,
    /// Its word now.
    pub status: NodeStatus,
    /// The drain it is under.
    pub drain: Option<DrainOrder>,
}

/// A drain as an agent is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainOrder {
    /// Which drain.
    pub id: String,
    /// What is left until running requests are ended.
    #[schema(value_type = Option<u64>)]
    pub remaining_ms: Option<Millis>,
    /// Whether they are ended now.
    pub force: bool,
}

/// `POST /v2/nodes/{id}/drain`. Every field is optional, an empty body is fine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct DrainRequest {
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When to end what still runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub deadline_ms: Option<Millis>,
    /// End what runs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
}

/// `GET /v2/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// Sorted by name.
    pub nodes: Vec<NodeView>,
    /// How many are on this page.
    pub count: usize,
    /// How many match.
    pub total: usize,
    /// Give this as `after` for the next page; null on the last.
    pub next: Option<NodeId>,
    /// Set while mass silence keeps nodes from going Offline; null otherwise.
    #[serde(default)]
    pub fleet_hold: Option<FleetHold>,
}

/// Mass silence: so many nodes fell silent at once that the fault is more likely on this side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetHold {
    /// How long it has lasted.
    #[schema(value_type = u64)]
    pub since_ms: Millis,
    /// How many nodes it keeps.
    pub nodes: usize,
    /// When it ends at the latest.
    #[schema(value_type = u64)]
    pub ends_in_ms: Millis,
}

/// `GET /v2/pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// Sorted by node, then by name.
    pub pools: Vec<PoolView>,
    /// How many.
    pub count: usize,
}

/// A pool as the gateway sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Its node; `local` in the HOME profile.
    pub node_id: String,
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Its engine.
    pub engine: Option<String>,
    /// The engine's build.
    pub engine_version: Option<String>,
    /// Model ids it serves.
    #[schema(schema_with = super::schema::model_ids)]
    pub models: Vec<String>,
    /// What the engine is doing.
    pub state: PoolState,
    /// Whether it takes requests.
    pub ready: bool,
    /// Whether its node is being drained.
    pub draining: bool,
    /// Left out of placement after failures.
    pub ejected: bool,
    /// Slots in all.
    pub slots_total: u32,
    /// Slots the gateway may still use.
    pub slots_free: u32,
    /// Slots taken by somebody else.
    pub external: u32,
    /// Requests of this control plane that run there.
    pub running: u32,
    /// Requests that wait for one of its models.
    pub waiting: u32,
    /// Free memory of its devices.
    pub vram_free_bytes: Option<u64>,
    /// Context of one slot, in tokens.
    pub n_ctx: Option<u64>,
    /// Where the gateway dials it.
    pub url: Option<HttpUrl>,
}

/// `GET /v2/catalog/availability`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Availability {
    /// Sorted by model.
    pub models: Vec<AvailableModel>,
}

/// Where a model can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AvailableModel {
    /// Its id.
    pub model_id: String,
    /// Nodes with a routable pool of it.
    pub nodes: Vec<String>,
    /// How many.
    pub total_nodes: usize,
    /// Slots of those pools.
    pub total_capacity: u64,
}

/// `GET /v2/meta/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Of the package.
    pub version: String,
    /// `home` or `cloud`.
    pub profile: String,
}
