//! One node: what it registered as, what was asked of it, what has been heard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{
    Capabilities, EngineRef, Health, HealthStatus, HeartbeatRequest, HttpUrl, Millis, Mono, NodeId,
    NodeStatus, NodeView, Now, PoolDescriptor, PoolStatus, PoolStatusView, RegisterRequest, UnixMs,
};

use super::{Beat, Drain, Observed, PoolMoved, Restored};

/// A registration, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The machine that registered.
    pub machine_id: String,
    /// Announced by somebody who is not the machine.
    #[serde(default)]
    pub announced: bool,
    /// Where its agent listens.
    pub address: Option<HttpUrl>,
    /// Pool names as registered.
    pub pools: Vec<String>,
    /// What the machine has.
    pub capabilities: Capabilities,
    /// Its agent's version.
    pub version: Option<String>,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// The agent process.
    pub instance_id: Option<String>,
    /// Engines of an agentless node.
    pub engines: Vec<EngineRef>,
    /// When the node first registered.
    pub registered_at_ms: UnixMs,
    /// It has left, and is kept for what an operator asked of it.
    #[serde(default)]
    pub departed: bool,
}

impl Record {
    /// What a registration leaves behind.
    #[must_use]
    pub fn from_request(request: &RegisterRequest, registered_at_ms: UnixMs) -> Self {
        Self {
            machine_id: request.machine().to_owned(),
            announced: request.announced,
            address: request.address.clone(),
            pools: request.pools.clone(),
            capabilities: request.capabilities.clone(),
            version: request.version.clone(),
            labels: request.labels.clone(),
            instance_id: request.instance_id.clone(),
            engines: request.engines.clone(),
            registered_at_ms,
            departed: false,
        }
    }

    /// The same registration, ended.
    #[must_use]
    pub fn ended(&self) -> Self {
        Self {
            departed: true,
            ..self.clone()
        }
    }
}

/// What has been heard of a node. Never durable as a whole: times end with the process.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Liveness {
    /// When it was last heard by a heartbeat or a registration in this life of the process: its lease counts from then.
    pub heard: Option<Mono>,
    /// When it was last heard by a heartbeat.
    pub beat: Option<Mono>,
    /// The same for people, over restarts.
    pub last_heartbeat_ms: UnixMs,
    /// Whether it has sent a heartbeat since it registered.
    pub beaten: bool,
    /// Whether it was found silent and not heard since.
    pub offline: bool,
    /// Kept from going Offline by mass silence.
    pub held: bool,
    /// Highest heartbeat number of the agent process that numbers them.
    pub seq: Option<u64>,
    /// Which process that is; `None` for one that does not say.
    pub numbered_by: Option<String>,
    /// As last reported.
    pub health: Option<Health>,
}

impl Liveness {
    /// What its agent says of a node that cannot carry requests.
    #[must_use]
    pub fn failed(&self) -> Option<&Health> {
        let health = self.health.as_ref();
        health.filter(|health| health.status == HealthStatus::Failed)
    }

    /// What of it is durable, and worth a write when it changes: has beaten, Offline, Failed.
    #[must_use]
    pub fn durable(&self) -> (bool, bool, bool) {
        (self.beaten, self.offline, self.failed().is_some())
    }

    /// Another agent process speaks from now on.
    pub fn begin(&mut self) {
        *self = Self {
            last_heartbeat_ms: self.last_heartbeat_ms,
            heard: self.heard,
            ..Self::default()
        };
    }

    /// The lease starts now.
    fn touch(&mut self, now: Now) {
        self.heard = Some(now.mono);
        self.last_heartbeat_ms = now.wall;
        self.offline = false;
        self.held = false;
    }

    /// It registers, which starts its lease and is no heartbeat: one whose last is older than the timeout is Registering
    /// until the next.
    pub fn register(&mut self, now: Now, timeout_ms: Millis) {
        if self.offline || self.is_lapsed(now.mono, timeout_ms) {
            self.beaten = false;
        }
        self.touch(now);
    }

    /// Its last heartbeat is older than the timeout, whatever else was heard of it.
    #[must_use]
    pub fn is_lapsed(&self, now: Mono, timeout_ms: Millis) -> bool {
        let lapsed = |beat: Mono| now.since(beat) > timeout_ms;
        self.last_beat().is_some_and(lapsed)
    }

    /// Its last heartbeat. One that beat before this process began and has registered since is given the benefit of the
    /// doubt.
    fn last_beat(&self) -> Option<Mono> {
        self.beat.or(self.heard).filter(|_| self.beaten)
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// As registered.
    pub record: Record,
    /// Intent: no new requests.
    pub drain: Option<Drain>,
    /// Observed.
    pub live: Liveness,
    /// Its pools, as last reported, or as last described before this process began.
    pub pools: Vec<PoolStatus>,
    /// The pools of its former agent process, until the new one reports: their models are still worth waiting for.
    pub former: Vec<PoolStatus>,
}

impl Node {
    pub(super) fn restored(now: Mono, restored: Restored) -> Self {
        let observed = restored.observed;
        let described = observed.pools.iter();
        let pools = described.map(PoolDescriptor::assumed_status).collect();
        // One that has not reported in its present life is not routed to by what its former one served.
        let (pools, former) = if observed.beaten {
            (pools, Vec::new())
        } else {
            (Vec::new(), pools)
        };
        Self {
            live: Liveness {
                beaten: observed.beaten,
                offline: observed.offline || restored.record.departed,
                health: observed.failed,
                last_heartbeat_ms: (observed.last_heartbeat_ms)
                    .unwrap_or(restored.record.registered_at_ms),
                ..Liveness::default()
            },
            record: restored.record,
            drain: restored.drain.map(|drain| drain.resumed(now)),
            pools,
            former,
        }
    }

    /// What is durable of what is observed of it.
    #[must_use]
    pub fn durable(&self) -> Observed {
        Observed {
            beaten: self.live.beaten,
            offline: self.live.offline,
            failed: self.live.failed().cloned(),
            last_heartbeat_ms: Some(self.live.last_heartbeat_ms),
            pools: (self.known_pools().iter())
                .map(PoolStatus::descriptor)
                .collect(),
        }
    }

    /// Its pools; those of its former agent process until the new one has reported, for what they served is still known.
    #[must_use]
    pub fn known_pools(&self) -> &[PoolStatus] {
        if self.pools.is_empty() {
            &self.former
        } else {
            &self.pools
        }
    }

    /// A node nobody has heard.
    pub(super) fn new(record: Record) -> Self {
        Self {
            record,
            drain: None,
            live: Liveness::default(),
            pools: Vec::new(),
            former: Vec::new(),
        }
    }

    /// Another agent process speaks from now on; `same_machine` keeps what the former one was known for.
    pub(super) fn begin(&mut self, same_machine: bool) {
        self.live.begin();
        let former = std::mem::take(&mut self.pools);
        if !same_machine {
            self.former.clear();
        } else if !former.is_empty() {
            self.former = former;
        }
    }

    /// A registration follows; one that ends takes what was observed with it, and what was asked stays.
    pub(super) fn set_record(&mut self, record: Record) {
        if record.departed {
            self.live = Liveness {
                offline: true,
                heard: self.live.heard,
                last_heartbeat_ms: self.live.last_heartbeat_ms,
                ..Liveness::default()
            };
            self.pools.clear();
            self.former.clear();
        }
        self.record = record;
    }

    /// Takes a heartbeat that is this node's.
    pub(super) fn beat(&mut self, now: Now, request: HeartbeatRequest) -> Beat {
        let same_process = self.live.numbered_by == request.instance_id;
        if let (Some(seq), Some(last)) = (request.seq, self.live.seq)
            && same_process
            && seq <= last
        {
            return Beat::default();
        }
        let before = self.words();
        let durable_before = self.live.durable();
        let suspect_before = self.suspect();
        self.live.touch(now);
        self.live.beat = Some(now.mono);
        self.live.beaten = true;
        if same_process {
            self.live.seq = request.seq.or(self.live.seq);
        } else {
            self.live.seq = request.seq;
            self.live.numbered_by = request.instance_id;
        }
        self.live.health = request.health;
        if let Some(drain) = &mut self.drain {
            drain.on_beat(request.drain_ack.as_ref());
        }
        let mut beat = self.report(request.pools);
        beat.liveness_changed = durable_before != self.live.durable();
        beat.turned = turned(before, self.words());
        beat.trusted_again = suspect_before && !self.suspect();
        beat.routes_changed |= beat.turned.is_some() || beat.trusted_again;
        beat
    }

    /// Takes a new list of pools.
    pub(super) fn report(&mut self, pools: Vec<PoolStatus>) -> Beat {
        let mut beat = Beat {
            counted: true,
            ..Beat::default()
        };
        beat.descriptors_changed = self.pools.len() != pools.len()
            || self
                .pools
                .iter()
                .zip(&pools)
                .any(|(old, new)| !old.same_descriptor(new));
        beat.routes_changed = beat.descriptors_changed
            || !self.former.is_empty()
            || self.pools.iter().zip(&pools).any(|(old, new)| {
                (old.ready, old.draining, old.state) != (new.ready, new.draining, new.state)
            });
        if beat.routes_changed {
            beat.pools = moved(self.known_pools(), &pools);
        }
        self.former.clear();
        if beat.descriptors_changed {
            self.pools = pools;
        } else {
            // What is known already stays where it is: to let it go for an equal copy would touch, and scatter, memory of
            // a fleet that no cache holds.
            for (known, new) in self.pools.iter_mut().zip(pools) {
                known.take_reading(new);
            }
        }
        beat
    }

    /// What is left of its lease at `now`; `None` once it has ended. A node unheard since the start of this process has
    /// what is left of the restart grace; one that is Offline has none.
    #[must_use]
    pub fn lease_left(&self, now: Mono, timeout_ms: Millis, grace_until: Mono) -> Option<Millis> {
        if self.live.offline {
            return None;
        }
        let ends = match self.live.heard {
            Some(heard) => heard.plus(timeout_ms),
            None => grace_until,
        };
        // "Silent longer than the timeout": at the very end it still holds.
        (now <= ends).then(|| ends.since(now).max(1))
    }

    /// When what is observed of it changes if nothing is heard: the first moment at which it is silent for as long as it
    /// may be, or at which its last heartbeat is as old as it may be. `None` for one that is Offline.
    #[must_use]
    pub fn turns_at(&self, now: Mono, timeout_ms: Millis, grace_until: Mono) -> Option<Mono> {
        if self.live.offline {
            return None;
        }
        let lease = self.lease_left(now, timeout_ms, grace_until).unwrap_or(0);
        let lapse = self
            .live
            .last_beat()
            .map(|beat| beat.plus(timeout_ms).max(now));
        Some(lapse.map_or(now.plus(lease), |at| at.min(now.plus(lease))))
    }

    /// The one word: the first that holds.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        match self.observed() {
            seen @ (NodeStatus::Offline | NodeStatus::Failed) => seen,
            _ if self.drain.is_some() => NodeStatus::Draining,
            seen => seen,
        }
    }

    /// The word without regard to what was asked of it.
    #[must_use]
    pub fn observed(&self) -> NodeStatus {
        if self.live.offline {
            NodeStatus::Offline
        } else if self.live.failed().is_some() {
            NodeStatus::Failed
        } else if self.live.beaten {
            NodeStatus::Online
        } else {
            NodeStatus::Registering
        }
    }

    /// Its word, and the word without regard to what was asked of it.
    pub(super) fn words(&self) -> (NodeStatus, NodeStatus) {
        (self.status(), self.observed())
    }

    /// Whether new requests may go there.
    #[must_use]
    pub fn schedulable(&self) -> bool {
        !self.record.departed && self.status() == NodeStatus::Online
    }

    /// Heard by a heartbeat within the timeout, whatever the word. One unheard in this life of the process counts as
    /// heard for as long as it keeps its word.
    #[must_use]
    pub fn online(&self, now: Mono, timeout_ms: Millis) -> bool {
        self.live.beaten && !self.live.offline && !self.live.is_lapsed(now, timeout_ms)
    }

    /// Routable only when nothing better is left: alive before this process began and not heard since, or kept by a
    /// hold.
    #[must_use]
    pub fn suspect(&self) -> bool {
        !self.live.offline && (self.live.held || self.live.heard.is_none())
    }

    /// Whether the engines are to be read by the control plane itself.
    #[must_use]
    pub fn is_agentless(&self) -> bool {
        !self.record.engines.is_empty() && !self.record.departed
    }

    /// A node that was announced, and that nobody has spoken for: the first machine that comes is it.
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        !self.record.departed && self.record.announced && !self.live.beaten
    }

    /// Whether a pool is behind this node's own agent, so that it may be shown the token.
    #[must_use]
    pub fn is_behind_agent(&self, pool: &PoolStatus) -> bool {
        let Some(address) = &self.record.address else {
            return false;
        };
        pool.url.as_ref().is_none_or(|url| {
            let (url, address) = (url.origin(), address.origin());
            (url.https, url.authority) == (address.https, address.authority)
        })
    }

    /// How the gateway reaches a pool: by its own url, else through the agent's proxy.
    #[must_use]
    pub fn pool_url(&self, pool: &PoolStatus) -> Option<HttpUrl> {
        if let Some(url) = &pool.url {
            return Some(url.clone());
        }
        let address = self.record.address.as_ref()?;
        HttpUrl::new(&address.join(&format!("/pools/{}", pool.pool_id))).ok()
    }

    /// As the API shows it; `running` is the control plane's own count of its requests in a pool.
    #[must_use]
    pub fn view(
        &self,
        now: Now,
        timeout_ms: Millis,
        node_id: &NodeId,
        running: impl Fn(&PoolStatus) -> u32,
    ) -> NodeView {
        let record = &self.record;
        let pool_status: Vec<PoolStatusView> = self
            .pools
            .iter()
            .map(|status| {
                let mut status = status.clone();
                status.slots_free = status
                    .slots_free
                    .map(|free| free.min(status.slots_total.unwrap_or(free)));
                PoolStatusView {
                    running: running(&status),
                    status,
                }
            })
            .collect();
        let in_flight = pool_status.iter().map(|p| p.running).sum();
        NodeView {
            node_id: node_id.clone(),
            machine_id: record.machine_id.clone(),
            address: record.address.clone(),
            pools: record.pools.clone(),
            capabilities: record.capabilities.clone(),
            status: self.status(),
            registered_at_ms: record.registered_at_ms,
            last_heartbeat_ms: self.live.last_heartbeat_ms,
            version: record.version.clone(),
            online: self.online(now.mono, timeout_ms),
            schedulable: self.schedulable(),
            suspect: self.suspect(),
            last_heartbeat_age_ms: self.live.heard.map(|heard| now.mono.since(heard)),
            labels: record.labels.clone(),
            instance_id: record.instance_id.clone(),
            health: self.live.health.clone(),
            pool_status,
            drain: self
                .drain
                .as_ref()
                .map(|drain| drain.view(now.mono, in_flight)),
        }
    }
}

/// The words before and after, when what is observed is another: those that people see, or what is behind them where a
/// drain hides the difference.
pub(super) fn turned(
    before: (NodeStatus, NodeStatus),
    after: (NodeStatus, NodeStatus),
) -> Option<(NodeStatus, NodeStatus)> {
    let words = if before.0 == after.0 {
        (before.1, after.1)
    } else {
        (before.0, after.0)
    };
    (before.1 != after.1).then_some(words)
}

/// The pools that came, went or changed their state between two lists.
fn moved(before: &[PoolStatus], now: &[PoolStatus]) -> Vec<PoolMoved> {
    let find = |pools: &[PoolStatus], pool: &PoolStatus| {
        pools
            .iter()
            .find(|other| other.pool_id == pool.pool_id)
            .map(|other| other.state)
    };
    let mut moved: Vec<PoolMoved> = now
        .iter()
        .map(|pool| PoolMoved {
            pool_id: pool.pool_id.clone(),
            from: find(before, pool),
            to: Some(pool.state),
            detail: pool.detail.clone(),
        })
        .filter(|moved| moved.from != moved.to)
        .collect();
    moved.extend(
        before
            .iter()
            .filter(|pool| find(now, pool).is_none())
            .map(|pool| PoolMoved {
                pool_id: pool.pool_id.clone(),
                from: Some(pool.state),
                to: None,
                detail: None,
            }),
    );
    moved
}
