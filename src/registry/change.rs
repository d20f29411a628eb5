//! Orders, what they change, and why they are refused.

use crate::types::{DrainRequest, Millis, NodeId, RegisterRequest};

use super::{Drain, Record};

/// Something that must be durable before it is acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub enum Intent {
    /// A node appears, or describes itself again.
    Register(Box<RegisterRequest>),
    /// A node leaves.
    Deregister {
        /// Which.
        node_id: NodeId,
        /// The agent process that asks; `None` for an operator or an old client.
        instance_id: Option<String>,
        /// Drop what an operator asked of it, too.
        forget: bool,
    },
    /// No new requests to a node.
    Drain {
        /// Which.
        node_id: NodeId,
        /// As the operator put it.
        request: DrainRequest,
        /// A new drain gets this id.
        drain_id: String,
        /// The control plane's own count of its requests there.
        running: u32,
    },
    /// The end of a drain.
    Undrain {
        /// Which.
        node_id: NodeId,
    },
}

impl Intent {
    /// The node it is about.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        match self {
            Self::Register(request) => &request.node_id,
            Self::Deregister { node_id, .. }
            | Self::Drain { node_id, .. }
            | Self::Undrain { node_id } => node_id,
        }
    }
}

/// What happens to one durable field.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit<T> {
    /// It stays.
    Keep,
    /// It becomes this.
    Set(T),
    /// It goes.
    Clear,
}

impl<T> Edit<T> {
    /// Whether the field stays as it is.
    #[must_use]
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

/// Who speaks for a node after an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Whoever did before.
    Same,
    /// Another agent process of the same machine: pool status and heartbeat count begin anew, and what the machine was
    /// known for is kept until it reports.
    NewProcess,
    /// Another machine, or the first: nothing of what was known before is its own.
    NewMachine,
}

/// A decided order: each durable field by name, and what follows for liveness once it is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Whose.
    pub node_id: NodeId,
    /// The registration.
    pub record: Edit<Record>,
    /// The drain.
    pub drain: Edit<Drain>,
    /// Who speaks for the node from now on.
    pub speaker: Speaker,
    /// The lease starts now.
    pub touch: bool,
}

impl Change {
    /// A change that changes nothing.
    #[must_use]
    pub fn nothing(node_id: &NodeId) -> Self {
        Self {
            node_id: node_id.clone(),
            record: Edit::Keep,
            drain: Edit::Keep,
            speaker: Speaker::Same,
            touch: false,
        }
    }

    /// Whether there is anything to write before it may be acknowledged.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !(self.record.is_keep() && self.drain.is_keep())
    }
}

/// Why an order or a heartbeat is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is known of it.
    #[error("no node {node_id} is registered")]
    UnknownNode {
        /// Which.
        node_id: NodeId,
    },
    /// Another machine holds the name and is alive.
    #[error(
        "node {node_id} belongs to machine {holder:?}, which is alive; machine {asking:?} cannot take it over: give one \
         of them another --node-id, or wait until the first has been silent for the timeout"
    )]
    HeldByAnotherMachine {
        /// Which.
        node_id: NodeId,
        /// The machine that holds it.
        holder: String,
        /// The machine that asks.
        asking: String,
        /// What is left of its lease.
        retry_after_ms: Millis,
    },
    /// A newer agent process of the same machine has registered.
    #[error(
        "another agent process has registered as node {node_id} since; this one is no longer it"
    )]
    Superseded {
        /// Which.
        node_id: NodeId,
    },
    /// Nothing says how to reach it.
    #[error(
        "node {node_id} gives neither `address` nor `engines`: one of them must say how to reach it"
    )]
    NoAddress {
        /// Which.
        node_id: NodeId,
    },
}
