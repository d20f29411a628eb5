//! The shared words: what crosses a process boundary, and what every layer calls things.
//!
//! Purpose: one place for ids, wire bodies, error codes and time units, so that the server, the agent, the command
//! line and their tests cannot disagree. Invariants: no IO, no clock, no async; a value of one of these types has
//! already passed its validation. Called by everybody.

mod access_log;
mod alias;
mod code;
mod cors;
mod engines;
mod event;
mod handoff;
mod ids;
mod model;
mod node;
mod object;
mod pool;
mod schema;
mod time;
mod url;
mod wire;

pub use access_log::AccessLog;
pub use alias::{Alias, AliasClash, AliasError, check_aliases};
pub use code::{ErrorBody, ErrorCode};
pub use cors::{CorsError, CorsOrigins};
pub use engines::{EngineClash, name_engines};
pub use event::{Event, EventKind, RESYNC};
pub use handoff::{Handoff, HandoffError};
pub use ids::{IdError, NodeId, PoolId, RESERVED_NODE_IDS, check_model_id};
pub use model::listed_model_id;
pub use node::{DrainState, DrainView, NodeStatus, NodeView, PoolStatusView};
pub use object::Object;
pub use pool::{Declared, EngineKind, PoolDescriptor, PoolState, PoolStatus, Sample};
pub use time::{Millis, Mono, Now, UnixMs, millis, parse_duration};
pub use url::{HttpUrl, Origin, UrlError};
pub use wire::{
    Availability, AvailableModel, Capabilities, DrainAck, DrainOrder, DrainRequest, EngineRef,
    FleetHold, Gpu, Health, HealthReason, HealthStatus, HeartbeatReply, HeartbeatRequest, MAX_GPUS,
    MAX_LABELS, MAX_POOLS, NodeList, PoolList, PoolView, RegisterReply, RegisterRequest, Version,
};

/// Name of the implicit node that carries the engines of the HOME profile.
pub const LOCAL_NODE: &str = "local";
/// Response header on every answer of the control plane: the version that answered.
pub const VERSION_HEADER: &str = "x-orchd-version";
/// What a port that speaks TLS answers to plain HTTP.
pub const SPEAKS_TLS: &str = "this port speaks TLS: use https://";
/// Response header with which an agent's proxy marks a refusal as its own, never the engine's. Its value is the code.
pub const REFUSED_HEADER: &str = "x-orchd-refused";
/// There: the agent is being stopped, which is nobody's failure.
pub const AGENT_STOPPING: &str = "stopping";
/// There: the agent has as much in hand as it may; its engines are well.
pub const AGENT_CROWDED: &str = "crowded";
/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
