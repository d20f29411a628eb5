//! A node as the API shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Capabilities, Health, HttpUrl, Millis, NodeId, PoolStatus, UnixMs};

/// The one word for a node; the first that holds, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum NodeStatus {
    /// Silent longer than the timeout. Never terminal: a heartbeat ends it.
    Offline,
    /// Its agent says that it cannot carry requests.
    Failed,
    /// An operator asked for a drain, which runs or is done.
    Draining,
    /// Has sent a heartbeat since it registered, within the timeout.
    Online,
    /// Registered, no heartbeat yet.
    Registering,
}

impl NodeStatus {
    /// All of them, for parsers and help texts.
    pub const ALL: [Self; 5] = [
        Self::Offline,
        Self::Failed,
        Self::Draining,
        Self::Online,
        Self::Registering,
    ];

    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "Offline",
            Self::Failed => "Failed",
            Self::Draining => "Draining",
            Self::Online => "Online",
            Self::Registering => "Registering",
        }
    }
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    /// No new requests; some still run, or nobody has confirmed that none does.
    Draining,
    /// Nothing runs.
    Drained,
}

/// A drain as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainView {
    /// Tells this drain from an earlier one of the same node.
    pub id: String,
    /// How far it has come.
    pub state: DrainState,
    /// Why, as the operator put it.
    pub reason: Option<String>,
    /// Who asked, as they put it.
    pub requested_by: Option<String>,
    /// When it was asked for.
    pub started_at_ms: UnixMs,
    /// What is left until running requests are ended; null without a deadline and once drained.
    #[schema(value_type = Option<u64>)]
    pub remaining_ms: Option<Millis>,
    /// Requests the control plane still has there.
    pub in_flight: u32,
    /// How long the oldest of them has been running; null when there is none.
    #[schema(value_type = Option<u64>)]
    #[serde(default)]
    pub oldest_ms: Option<Millis>,
    /// Requests it had there when the drain began.
    pub in_flight_at_start: u32,
    /// Requests ended by the deadline or by force.
    pub cut: u32,
    /// True when it counts as drained without the agent's word.
    pub unverified: bool,
}

/// One pool of a node: what was last reported, and the control plane's own count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatusView {
    /// As reported.
    #[serde(flatten)]
    pub status: PoolStatus,
    /// Requests of this control plane that run there.
    pub running: u32,
}

/// A node as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub node_id: NodeId,
    /// The machine that registered it.
    pub machine_id: String,
    /// Where its agent listens; null for an agentless node.
    pub address: Option<HttpUrl>,
    /// Pool names as registered; only `pool_status` routes.
    pub pools: Vec<String>,
    /// What the machine has.
    pub capabilities: Capabilities,
    /// The one word.
    pub status: NodeStatus,
    /// When it first registered.
    pub registered_at_ms: UnixMs,
    /// When it last sent a heartbeat or registered.
    pub last_heartbeat_ms: UnixMs,
    /// Its agent's version.
    pub version: Option<String>,
    /// Heard by a heartbeat within the timeout, whatever the word.
    pub online: bool,
    /// Whether new requests may go there: Online and not draining.
    pub schedulable: bool,
    /// Routable only when nothing better is left.
    pub suspect: bool,
    /// Monotonic; null when it was last heard in an earlier life of the server.
    #[schema(value_type = Option<u64>)]
    pub last_heartbeat_age_ms: Option<Millis>,
    /// As registered.
    pub labels: BTreeMap<String, String>,
    /// The agent process that registered it.
    pub instance_id: Option<String>,
    /// As last reported.
    pub health: Option<Health>,
    /// As last reported.
    pub pool_status: Vec<PoolStatusView>,
    /// What an operator asked of it.
    pub drain: Option<DrainView>,
}
