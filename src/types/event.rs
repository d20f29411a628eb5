//! What happens to the fleet, as `GET /v2/events` tells it.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{NodeId, PoolId, UnixMs};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum EventKind {
    /// A node appeared, or another agent process or machine took its name.
    #[serde(rename = "node.registered")]
    NodeRegistered,
    /// A node described itself anew.
    #[serde(rename = "node.updated")]
    NodeUpdated,
    /// A node is Online.
    #[serde(rename = "node.online")]
    NodeOnline,
    /// A node is Offline.
    #[serde(rename = "node.offline")]
    NodeOffline,
    /// A node's agent says that it cannot carry requests.
    #[serde(rename = "node.failed")]
    NodeFailed,
    /// A node is routed to only when nothing better is left.
    #[serde(rename = "node.suspect")]
    NodeSuspect,
    /// A node left.
    #[serde(rename = "node.departed")]
    NodeDeparted,
    /// A drain was asked for.
    #[serde(rename = "drain.started")]
    DrainStarted,
    /// A drain was asked for again, with another deadline or reason.
    #[serde(rename = "drain.updated")]
    DrainUpdated,
    /// Nothing runs on a draining node any more.
    #[serde(rename = "drain.done")]
    DrainDone,
    /// An operator ended a drain.
    #[serde(rename = "drain.ended")]
    DrainEnded,
    /// A pool appeared.
    #[serde(rename = "pool.added")]
    PoolAdded,
    /// A pool's state is another one.
    #[serde(rename = "pool.state")]
    PoolState,
    /// A pool is gone.
    #[serde(rename = "pool.removed")]
    PoolRemoved,
    /// So many nodes fell silent at once that none of them goes Offline for now.
    #[serde(rename = "fleet.hold")]
    FleetHold,
    /// The hold has ended.
    #[serde(rename = "fleet.release")]
    FleetRelease,
}

impl EventKind {
    /// The word as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeRegistered => "node.registered",
            Self::NodeUpdated => "node.updated",
            Self::NodeOnline => "node.online",
            Self::NodeOffline => "node.offline",
            Self::NodeFailed => "node.failed",
            Self::NodeSuspect => "node.suspect",
            Self::NodeDeparted => "node.departed",
            Self::DrainStarted => "drain.started",
            Self::DrainUpdated => "drain.updated",
            Self::DrainDone => "drain.done",
            Self::DrainEnded => "drain.ended",
            Self::PoolAdded => "pool.added",
            Self::PoolState => "pool.state",
            Self::PoolRemoved => "pool.removed",
            Self::FleetHold => "fleet.hold",
            Self::FleetRelease => "fleet.release",
        }
    }
}

/// One event: the `data` of its SSE frame. The frame's `id` is `<store epoch>-<seq>`, its `event` is the kind's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, for people.
    pub at_ms: UnixMs,
    /// What.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The node it happened to; `local` in the HOME profile.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_local"
    )]
    pub node_id: Option<NodeId>,
    /// The pool it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<PoolId>,
    /// The word before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The word now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

fn or_local<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NodeId>, D::Error> {
    let name: Option<Cow<'_, str>> = Option::deserialize(from)?;
    let name = name.map(|name| NodeId::new_or_local(&name));
    name.transpose().map_err(D::Error::custom)
}

/// The `event` of a frame that says: what happened between the id you gave and the next frame is not known any more;
/// read the lists anew.
pub const RESYNC: &str = "resync";
