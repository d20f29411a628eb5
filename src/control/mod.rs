//! decide → persist → commit → publish, for everything that happens to the fleet.
//!
//! Purpose: the one owner of the registry. Invariants: intent is persisted before it is committed, and committed before
//! it is acknowledged; what is committed is routed by in the same breath; heartbeats write nothing to disk; the profile
//! is data (HOME is a fleet of the one implicit node `local` with a store in memory). Called by `api`, `server` and the
//! probers it starts.

mod events;
mod lane;
mod observe;
mod tell;
mod views;

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tracing::info;

use crate::admission::{Admission, PoolRoute};
use crate::clock::Clock;
use crate::metrics::{Counters, DrainStep};
use crate::random;
use crate::registry::{self, Intent, Moved, Node, Registry};
use crate::store::{Store, StoreError};
use crate::types::{
    DrainRequest, EngineRef, EventKind, HeartbeatReply, HeartbeatRequest, Millis, Mono, NodeId,
    NodeStatus, NodeView, Now, PoolId, PoolState, RegisterReply, RegisterRequest, Sample, UnixMs,
};

use events::{EventLog, event};
use lane::Order;

pub use crate::registry::{HoldSettings, Refusal};
pub use events::{EventId, Events, Told};
pub use views::{Catalog, NodeFilter};

/// Periods of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which a node is Offline.
    pub node_timeout_ms: Millis,
    /// What agents are told to beat at.
    pub heartbeat_interval_ms: Millis,
    /// How often the fleet is looked through even if nothing is due.
    pub stale_check_interval_ms: Millis,
    /// How long after a start nodes that were alive before it may stay unheard.
    pub restart_grace_ms: Millis,
    /// When mass silence keeps nodes from going Offline.
    pub hold: HoldSettings,
}

/// A wake-up later than this is more than a timer's own inaccuracy on a busy machine.
const JITTER_MS: Millis = 50;
/// One later than this means that the process was stopped (a suspended laptop, SIGSTOP), not merely busy.
const PAUSE_MS: Millis = 500;
/// How often the reaper wakes at least. A stop is seen to be at most so much longer than it was, and a short one at most so
/// much shorter, which the shortest timeout (1 s) with heartbeats at a third of it can bear.
const TICK_MS: Millis = 250;
/// How often a drain that is not done is looked at.
const DRAIN_POLL_MS: Millis = 100;
/// How often the clocks of drains are written down: twice within the 30 s that the contract (§1.3) allows.
const KEEP_CLOCKS_MS: Millis = 15_000;

/// How long changed pool descriptors may wait to be written together (contract §1.2, rule 5).
const COALESCE_MS: Millis = 1_000;
/// The same of the word of a node, which it keeps over a restart only if it was written: long enough to gather what
/// changes at the same moment.
const SOON_MS: Millis = 10;

/// Nodes of which something observed is to be written.
#[derive(Debug, Default)]
struct Unwritten {
    nodes: BTreeSet<NodeId>,
    /// What was promised for them.
    within_ms: Millis,
}

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The registry says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store cannot take it; nothing was applied.
    #[error(
        "the change could not be stored, so it was not made: {0}; try again when the store can be written"
    )]
    Store(String),
    /// The process is stopping.
    #[error("the control plane is stopping; try again in a moment")]
    Stopping,
}

/// What an order left behind.
#[derive(Debug, Clone)]
struct Done {
    /// The node as it is now, or as it was when it went.
    view: NodeView,
    /// Whether it is on disk.
    durable: bool,
}

/// The control plane.
pub struct Control {
    clock: Clock,
    settings: Settings,
    admission: Arc<Admission>,
    registry: Mutex<Registry>,
    orders: Mutex<Sender<Order>>,
    lane: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// What is to be written behind.
    unwritten: Mutex<Unwritten>,
    /// The reaper has something new to look at.
    nudge: Notify,
    events: Arc<EventLog>,
    /// Which nodes are agentless, or their engines, may have changed.
    agentless: Notify,
    /// The lane has ended, in good order or in a panic.
    lane_ended: Notify,
    counters: Arc<Counters>,
    started_at: UnixMs,
}

impl Control {
    /// Reads the store, gives every node its word back, and starts the lane that writes.
    ///
    /// # Errors
    /// What the store says.
    pub fn start(
        clock: Clock,
        settings: Settings,
        admission: Arc<Admission>,
        mut store: Box<dyn Store>,
    ) -> Result<Arc<Self>, StoreError> {
        let loaded = store.load()?;
        let registry_settings = registry::Settings {
            node_timeout_ms: settings.node_timeout_ms,
            restart_grace_ms: settings.restart_grace_ms,
            hold: settings.hold,
        };
        let names: Vec<NodeId> = loaded
            .nodes
            .iter()
            .map(|node| node.node_id.clone())
            .collect();
        let registry = Registry::restore(registry_settings, clock.both(), loaded.nodes);
        let (orders, inbox) = mpsc::channel();
        let control = Arc::new(Self {
            clock,
            settings,
            admission,
            registry: Mutex::new(registry),
            orders: Mutex::new(orders),
            lane: Mutex::new(None),
            unwritten: Mutex::default(),
            nudge: Notify::new(),
            events: Arc::new(EventLog::new(random::name())),
            agentless: Notify::new(),
            lane_ended: Notify::new(),
            counters: Arc::default(),
            started_at: clock.wall(),
        });
        {
            let registry = control.registry();
            for node_id in &names {
                control.publish(&registry, node_id);
            }
        }
        let lane = lane::spawn(Arc::clone(&control), inbox, store, loaded.revision);
        *control.lane.lock().unwrap_or_else(PoisonError::into_inner) = Some(lane);
        Ok(control)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, order: Order) -> Result<(), ControlError> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send(order).map_err(|_| ControlError::Stopping)
    }

    async fn order(&self, intent: Intent) -> Result<Done, ControlError> {
        let (reply, done) = oneshot::channel();
        self.send(Order::Intent(intent, reply))?;
        done.await.unwrap_or(Err(ControlError::Stopping))
    }

    /// A node appears, or describes itself again.
    ///
    /// # Errors
    /// Another live machine holds the name; a new node cannot be stored.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterReply, ControlError> {
        let node_id = request.node_id.clone();
        let done = self.order(Intent::Register(Box::new(request))).await?;
        Ok(RegisterReply {
            success: true,
            message: format!("node {node_id} is registered"),
            node_id,
            heartbeat_interval_ms: self.settings.heartbeat_interval_ms,
            node_timeout_ms: self.settings.node_timeout_ms,
            durable: done.durable,
        })
    }

    /// A node leaves. What an operator asked of it stays, unless `forget`.
    ///
    /// # Errors
    /// Nothing is known of it; another agent process has taken its place; it cannot be stored.
    pub async fn deregister(
        &self,
        node_id: NodeId,
        instance_id: Option<String>,
        forget: bool,
    ) -> Result<(), ControlError> {
        self.order(Intent::Deregister {
            node_id,
            instance_id,
            forget,
        })
        .await
        .map(|_| ())
    }

    /// No new requests to a node from the moment this returns.
    ///
    /// # Errors
    /// Nothing is known of it; it cannot be stored.
    pub async fn drain(
        &self,
        node_id: NodeId,
        request: DrainRequest,
    ) -> Result<NodeView, ControlError> {
        let drain_id = random::name();
        // The lane counts what runs at the moment it decides.
        let intent = Intent::Drain {
            node_id,
            request,
            drain_id,
            running: 0,
        };
        let done = self.order(intent).await?;
        self.nudge.notify_one();
        Ok(done.view)
    }

    /// The end of a drain, also when there was none.
    ///
    /// # Errors
    /// Nothing is known of it; it cannot be stored.
    pub async fn undrain(&self, node_id: NodeId) -> Result<NodeView, ControlError> {
        self.order(Intent::Undrain { node_id })
            .await
            .map(|done| done.view)
    }

    /// Takes a heartbeat.
    ///
    /// # Errors
    /// It is not registered; another agent process has taken its place.
    pub fn beat(
        &self,
        node_id: &NodeId,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatReply, ControlError> {
        let samples: Vec<(PoolId, Sample)> = request
            .pools
            .iter()
            .filter_map(|p| p.sample().map(|s| (p.pool_id.clone(), s)))
            .collect();
        self.hear(node_id, request, &samples, true)
    }

    /// Takes a report on a node whose engines are probed by this process: all pools as they are, and the readings that
    /// are new. `heard` says whether an engine answered: then it counts as a heartbeat.
    ///
    /// # Errors
    /// As [`beat`](Self::beat).
    pub fn report(
        &self,
        node_id: &NodeId,
        pools: Vec<crate::types::PoolStatus>,
        fresh: &[(PoolId, Sample)],
        heard: bool,
    ) -> Result<(), ControlError> {
        let request = HeartbeatRequest {
            timestamp: None,
            pools,
            instance_id: None,
            seq: None,
            health: None,
            drain_ack: None,
        };
        self.hear(node_id, request, fresh, heard).map(|_| ())
    }

    fn hear(
        &self,
        node_id: &NodeId,
        request: HeartbeatRequest,
        samples: &[(PoolId, Sample)],
        heard: bool,
    ) -> Result<HeartbeatReply, ControlError> {
        let mut registry = self.registry();
        let now = self.clock.both();
        let beat = if heard {
            registry.beat(now, node_id, request)?
        } else {
            registry.report(node_id, request.pools)?
        };
        if beat.routes_changed {
            self.publish(&registry, node_id);
        }
        if beat.counted {
            self.admission.observe(
                node_id,
                samples.iter().map(|(pool_id, sample)| (pool_id, *sample)),
            );
        }
        if beat.liveness_changed {
            self.write_behind(node_id, SOON_MS);
        } else if beat.descriptors_changed {
            self.write_behind(node_id, COALESCE_MS);
        }
        if beat.trusted_again && registry.hold().is_some() {
            self.nudge.notify_one();
        }
        let unknown = || Refusal::UnknownNode {
            node_id: node_id.clone(),
        };
        self.tell_beat(
            now,
            node_id,
            registry.node(node_id).ok_or_else(unknown)?,
            beat,
        );
        self.settle(&mut registry, now, node_id);
        let node = registry.node(node_id).ok_or_else(unknown)?;
        let status = node.status();
        Ok(HeartbeatReply {
            success: true,
            next_heartbeat_ms: self.settings.heartbeat_interval_ms,
            node_timeout_ms: self.settings.node_timeout_ms,
            status,
            drain: node.drain.as_ref().map(|drain| drain.order(now.mono)),
        })
    }

    fn settle(&self, registry: &mut Registry, now: Now, node_id: &NodeId) {
        if registry
            .node(node_id)
            .is_none_or(|node| node.drain.is_none())
        {
            return;
        }
        if registry.settle(node_id, self.admission.running(node_id)) {
            self.counters.drain(DrainStep::Done);
            info!(
                node_id = node_id.as_str(),
                "drained: nothing runs there any more"
            );
            self.write_behind(node_id, SOON_MS);
            self.tell(event(now.wall, EventKind::DrainDone, Some(node_id)));
        }
    }

    /// What is observed of a node is to be written within so many milliseconds.
    fn write_behind(&self, node_id: &NodeId, within_ms: Millis) {
        let mut unwritten = self
            .unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let first = unwritten.nodes.is_empty();
        unwritten.nodes.insert(node_id.clone());
        let sooner = first || within_ms < unwritten.within_ms;
        if sooner {
            unwritten.within_ms = within_ms;
        }
        drop(unwritten);
        if sooner {
            // A lane that has ended wrote everything when it did; what comes after it is this process's last breath.
            let _ = self.send(Order::Observed { within_ms });
        }
    }

    /// Makes the gateway route by what the registry says now. Called with the registry locked, so that two changes
    /// cannot arrive in the wrong order.
    fn publish(&self, registry: &Registry, node_id: &NodeId) {
        let routes = registry.node(node_id).map(routes).unwrap_or_default();
        self.admission.set_node(node_id, &routes);
    }

    /// Finds silence, and ends drains. Runs until the process ends.
    pub async fn reap(self: Arc<Self>) {
        let mut clocks_kept = self.clock.now();
        loop {
            self.sleep_until(self.next_look()).await;
            self.sweep();
            if self.clock.now().since(clocks_kept) >= KEEP_CLOCKS_MS {
                clocks_kept = self.clock.now();
                self.keep_clocks();
            }
        }
    }

    /// When the fleet is to be looked at next, if nothing happens before.
    fn next_look(&self) -> Mono {
        let registry = self.registry();
        let now = self.clock.both();
        let sweep = self
            .settings
            .stale_check_interval_ms
            .min(self.settings.node_timeout_ms);
        let latest = if registry.draining().next().is_some() {
            now.mono.plus(sweep.min(DRAIN_POLL_MS))
        } else {
            now.mono.plus(sweep)
        };
        // One millisecond later than the lease ends: until then it is not yet longer than the timeout.
        let expiry = registry.next_expiry(now).map(|at| at.plus(1));
        expiry.map_or(latest, |at| at.min(latest))
    }

    /// Returns at `due`, or when there is something new to look at. Wakes often meanwhile, so that a stop of this process
    /// shows as a gap, however far away `due` is.
    async fn sleep_until(&self, due: Mono) {
        loop {
            let from = self.clock.now();
            let wake = due.min(from.plus(TICK_MS));
            let nudged = tokio::select! {
                () = tokio::time::sleep_until(self.clock.instant(wake)) => false,
                () = self.nudge.notified() => true,
            };
            self.allow_for_pause(from, wake);
            if nudged || self.clock.now() >= due {
                return;
            }
        }
    }

    /// Moves every deadline by as much as this process was stopped, which shows in waking up later than at `wake`.
    fn allow_for_pause(&self, from: Mono, wake: Mono) {
        // Before the lock is waited for: whoever holds it for long does not stop this process.
        let now = self.clock.both();
        let late_ms = now.mono.since(wake);
        if late_ms <= JITTER_MS {
            return;
        }
        // A stop may have begun at any moment since `from`. A machine that is merely busy is a little late every time, and
        // still has to come to its deadlines.
        let stopped = late_ms > PAUSE_MS;
        let gap_ms = if stopped {
            now.mono.since(from)
        } else {
            late_ms
        };
        if stopped {
            info!(
                gap_ms,
                "this process was stopped for a while; every deadline is moved by as much"
            );
        }
        self.registry().paused(now, gap_ms);
    }

    /// Moves what silence and deadlines have moved.
    fn sweep(&self) {
        let mut registry = self.registry();
        let now = self.clock.both();
        let sweep = registry.expire(now);
        for (node_id, _) in &sweep.held {
            self.publish(&registry, node_id);
        }
        for Moved { node_id, .. } in &sweep.moved {
            self.publish(&registry, node_id);
            self.write_behind(node_id, SOON_MS);
        }
        self.tell_sweep(now, &sweep);
        for node_id in registry.over(now) {
            let count = self.admission.end_running(&node_id);
            registry.cut(&node_id, count);
            self.counters.cut(count);
            info!(
                node_id = node_id.as_str(),
                count, "the time of this drain is over; ended what still ran"
            );
            self.write_behind(&node_id, SOON_MS);
        }
        let draining: Vec<NodeId> = registry.draining().cloned().collect();
        for node_id in draining {
            self.settle(&mut registry, now, &node_id);
        }
    }

    /// Clocks of drains are written down, so that a restart does not give them back what has passed.
    fn keep_clocks(&self) {
        let registry = self.registry();
        let timed = registry
            .nodes()
            .filter(|(_, node)| node.drain.as_ref().is_some_and(registry::Drain::is_timed));
        for (node_id, _) in timed {
            self.write_behind(node_id, SOON_MS);
        }
    }

    /// Nodes whose engines are to be read by this process, and these engines, by name.
    #[must_use]
    pub fn agentless_nodes(&self) -> Vec<(NodeId, Vec<EngineRef>)> {
        let registry = self.registry();
        let mut nodes: Vec<(NodeId, Vec<EngineRef>)> = registry
            .nodes()
            .filter(|(_, node)| node.is_agentless())
            .map(|(node_id, node)| (node_id.clone(), node.record.engines.clone()))
            .collect();
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        nodes
    }

    /// Waits until [`agentless_nodes`](Self::agentless_nodes) may be others.
    pub async fn agentless_changed(&self) {
        self.agentless.notified().await;
    }

    /// Waits until the lane ends. Nothing can be ordered from then on.
    pub async fn lane_ended(&self) {
        self.lane_ended.notified().await;
    }

    /// Writes what is still to be written and ends the lane. Orders are refused from now on. Blocks until it is done.
    pub fn stop(&self) {
        let lane = self
            .lane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(lane) = lane
            && self.send(Order::Stop).is_ok()
            && lane.join().is_err()
        {
            tracing::error!("the lane that writes the store ended in a panic");
        }
    }

    /// How often agents beat.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.settings.heartbeat_interval_ms)
    }
}

/// A node's pools as the gateway is to route them.
fn routes(node: &Node) -> Vec<PoolRoute> {
    let schedulable = node.schedulable();
    // A node that is registering or suspect may serve soon; one that is draining or Offline will not.
    let hopeful = matches!(node.status(), NodeStatus::Online | NodeStatus::Registering)
        && !node.record.departed;
    // Pools of a former agent process are routed to no more, but what they served is still known.
    let reported = node.pools.iter().map(|pool| (pool, schedulable));
    let former = node.former.iter().map(|pool| (pool, false));
    reported
        .chain(former)
        .filter_map(|(pool, schedulable)| {
            let may_serve = !matches!(
                pool.state,
                PoolState::Unreachable | PoolState::Misconfigured
            ) && !pool.draining;
            Some(PoolRoute {
                pool_id: pool.pool_id.clone(),
                url: node.pool_url(pool)?,
                trusted: node.is_behind_agent(pool),
                models: pool.models_available.clone(),
                accepting: schedulable && pool.ready && !pool.draining,
                prospective: hopeful && may_serve,
                draining: match node.status() {
                    NodeStatus::Draining => true,
                    _ => hopeful && pool.draining,
                },
                suspect: node.suspect(),
                slots_total: pool.slots_total.unwrap_or(1),
                n_ctx: pool.n_ctx,
                engine: pool.engine.clone(),
                engine_version: pool.engine_version.clone(),
                state: pool.state,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
