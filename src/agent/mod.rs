//! `orchd agent`: one GPU host, its engines, and its life in a fleet.
//!
//! Purpose: the thin shell round [`machine`]: it makes the calls that are due, tells what they came to, and keeps the
//! proxy and the readers of the engines running meanwhile. Invariants: nothing here waits for the control plane except
//! the one call in progress; the engines are served whether or not there is a control plane. Called by
//! `commands::agent`.

mod inventory;
pub mod machine;
mod proxy;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use crate::auth::Guard;
use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::engines::{self, Engine, InFlight, Reading};
use crate::listen::{self, Workers};
use crate::types::{
    DrainAck, ErrorCode, Health, HeartbeatRequest, HttpUrl, NodeId, PoolId, PoolStatus,
    RegisterRequest, UrlError, VERSION,
};

pub use inventory::FixtureError;
pub use machine::End;

use inventory::Inventory;
use machine::{Call, Machine, Next, Outcome};
use proxy::{Door, Proxy, Shared};

/// Readings on their way: one a second from each engine, taken at once.
const READINGS: usize = 64;

/// All of `orchd agent`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The control planes to talk to.
    pub client: Client,
    /// Who may use the proxy.
    pub guard: Guard,
    /// The node's name.
    pub node_id: NodeId,
    /// The machine's.
    pub machine_id: String,
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// How a gateway reaches the proxy, when that is not where it listens.
    pub advertise: Option<HttpUrl>,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// Engines of this machine.
    pub engines: Vec<Engine>,
    /// A file that stands in for NVML.
    pub gpu_fixture: Option<PathBuf>,
    /// How long running requests may go on after a stop.
    pub shutdown_grace: Duration,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The stand-in for NVML.
    #[error(transparent)]
    Fixture(#[from] FixtureError),
    /// A thread, a signal handler or a descriptor.
    #[error("the system refuses what an agent needs: {0}")]
    System(#[source] io::Error),
}

/// Runs until it is told to stop, or until its name belongs to somebody else.
///
/// # Errors
/// Why it did not start.
pub async fn run(settings: Settings) -> Result<End, AgentError> {
    let address = settings.listen;
    let listener = listen::bind(address).map_err(|source| AgentError::Bind { address, source })?;
    let address = listener.local_addr().map_err(AgentError::System)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::System)?;
    let fixture = settings.gpu_fixture.clone();
    let looked = tokio::task::spawn_blocking(move || inventory::look(fixture.as_deref())).await;
    let inventory = looked.map_err(|e| AgentError::System(io::Error::other(e)))??;

    let clock = Clock::new();
    let (readings, mut inbox) = mpsc::channel(READINGS);
    let mut doors = std::collections::HashMap::new();
    for engine in settings.engines.clone() {
        let in_flight = Arc::new(InFlight::default());
        let door = Door {
            origin: engine.url.origin(),
            in_flight: Arc::clone(&in_flight),
        };
        doors.insert(engine.pool_id.clone(), door);
        tokio::spawn(engines::watch(
            engine,
            clock,
            Some(in_flight),
            readings.clone(),
        ));
    }
    drop(readings);
    let shared = Arc::new(Shared {
        node_id: settings.node_id.clone(),
        doors,
        guard: settings.guard.clone(),
        stopping: AtomicBool::new(false),
        quiet: Notify::new(),
    });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let proxy = Proxy(Arc::clone(&shared));
    let workers =
        Workers::spawn("orchd-proxy", &listener, threads, &proxy).map_err(AgentError::System)?;
    drop(listener);
    info!(version = VERSION, node_id = %settings.node_id, "listening on http://{address}");
    if settings.engines.is_empty() {
        warn!("no engines: name them with --engine, or this node has nothing to serve");
    }

    let grace = settings.shutdown_grace;
    let mut node = Node::new(settings, address, clock, inventory, shared);
    let mut engines_gone = false;
    let mut grace_ends = None;
    let end = loop {
        let due = match node.machine.next(clock.now()) {
            Next::End(end) => break end,
            Next::Call(call) => {
                node.call(call).await;
                continue;
            }
            Next::Wait(due) => clock.instant(due),
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            reading = inbox.recv(), if !engines_gone => match reading {
                Some(reading) => node.take(reading),
                None => engines_gone = true,
            },
            () = node.shared.quiet.notified() => node.quiet(),
            () = at(grace_ends), if grace_ends.is_some() => {
                warn!(in_flight = node.shared.in_flight(), "the grace has ended; ending what still runs");
                grace_ends = None;
                node.machine.on_quiet(clock.now());
            }
            _ = terminate.recv() => if stop(&mut node, &mut grace_ends, grace) { break End::Stopped },
            _ = interrupt.recv() => if stop(&mut node, &mut grace_ends, grace) { break End::Stopped },
        }
    };
    // What was to finish has finished, or its time is over.
    let stopped = tokio::task::spawn_blocking(move || workers.stop(Duration::ZERO)).await;
    if let Err(e) = stopped {
        warn!(error = %e, "the serving threads did not end in good order");
    }
    info!("stopped");
    Ok(end)
}

async fn at(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A signal to stop. True for the second one, which ends the agent at once.
fn stop(node: &mut Node, grace_ends: &mut Option<tokio::time::Instant>, grace: Duration) -> bool {
    if node.shared.stopping.swap(true, Ordering::AcqRel) {
        warn!("a second signal: ending at once");
        return true;
    }
    let in_flight = node.shared.in_flight();
    info!(
        in_flight,
        grace_s = grace.as_secs(),
        "stopping: no new requests; running ones may finish"
    );
    *grace_ends = Some(tokio::time::Instant::now() + grace);
    node.machine.on_stop(node.clock.now());
    node.quiet();
    false
}

/// This node, as it is and as it was told.
struct Node {
    settings: Settings,
    listening: SocketAddr,
    clock: Clock,
    inventory: Inventory,
    shared: Arc<Shared>,
    machine: Machine,
    instance_id: String,
    seq: u64,
    pools: BTreeMap<PoolId, PoolStatus>,
    /// What the log said last of the control plane.
    was_up: Option<bool>,
}

impl Node {
    fn new(
        settings: Settings,
        listening: SocketAddr,
        clock: Clock,
        inventory: Inventory,
        shared: Arc<Shared>,
    ) -> Self {
        let machine = Machine::new(clock.now());
        let instance_id = format!("{:08x}{:08x}", roll(), roll());
        Self {
            settings,
            listening,
            clock,
            inventory,
            shared,
            machine,
            instance_id,
            seq: 0,
            pools: BTreeMap::new(),
            was_up: None,
        }
    }

    fn take(&mut self, reading: Reading) {
        let status = reading.status;
        let known = self.pools.get(&status.pool_id);
        let news = known.is_none_or(|old| {
            old.state != status.state || old.ready != status.ready || !old.same_descriptor(&status)
        });
        self.pools.insert(status.pool_id.clone(), status);
        if news {
            self.machine.on_change(self.clock.now());
        }
    }

    /// The last request has ended, perhaps.
    fn quiet(&mut self) {
        if self.shared.in_flight() > 0 {
            return;
        }
        if self.machine.drain().is_some() {
            self.machine.on_change(self.clock.now());
        }
        self.machine.on_quiet(self.clock.now());
    }

    async fn call(&mut self, call: Call) {
        let result = match call {
            Call::Register => self.register().await,
            Call::Beat => self.beat().await,
            Call::Deregister => {
                let node_id = &self.settings.node_id;
                self.settings
                    .client
                    .deregister(node_id, Some(&self.instance_id), false)
                    .await
                    .map(|()| Outcome::Left)
            }
        };
        let outcome = result.unwrap_or_else(|error| self.failed(call, &error));
        self.machine
            .on_outcome(self.clock.now(), call, outcome, roll());
        let up = self.machine.is_up();
        if up && self.was_up != Some(true) {
            info!(server = %self.settings.client.server(), "registered");
        }
        self.was_up = Some(up);
    }

    async fn register(&mut self) -> Result<Outcome, ClientError> {
        let address = match advertised(&self.settings, self.listening) {
            Ok(address) => address,
            Err(error) => {
                if self.was_up != Some(false) {
                    warn!(%error, "cannot tell which address of this machine the control plane would reach; say it with --advertise");
                }
                return Ok(Outcome::Failed);
            }
        };
        let request = RegisterRequest {
            node_id: self.settings.node_id.clone(),
            machine_id: Some(self.settings.machine_id.clone()),
            address: Some(address),
            pools: self
                .settings
                .engines
                .iter()
                .map(|engine| engine.pool_id.to_string())
                .collect(),
            capabilities: self.inventory.capabilities.clone(),
            version: Some(VERSION.to_owned()),
            labels: self.settings.labels.clone(),
            instance_id: Some(self.instance_id.clone()),
            engines: Vec::new(),
        };
        let reply = self.settings.client.register(&request).await?;
        Ok(Outcome::Registered {
            interval_ms: reply.heartbeat_interval_ms,
            timeout_ms: reply.node_timeout_ms,
        })
    }

    async fn beat(&mut self) -> Result<Outcome, ClientError> {
        self.seq += 1;
        let in_flight = self.shared.in_flight();
        let stopping = self.shared.stopping.load(Ordering::Acquire);
        let health: Health = self.inventory.health.clone();
        let request = HeartbeatRequest {
            timestamp: Some(jiff::Timestamp::now().to_string()),
            pools: self
                .pools
                .values()
                .map(|pool| PoolStatus {
                    draining: stopping,
                    ..pool.clone()
                })
                .collect(),
            instance_id: Some(self.instance_id.clone()),
            seq: Some(self.seq),
            health: Some(health),
            drain_ack: self.machine.drain().map(|drain| DrainAck {
                id: drain.id.clone(),
                in_flight,
            }),
        };
        let reply = self
            .settings
            .client
            .heartbeat(&self.settings.node_id, &request)
            .await?;
        match (&reply.drain, self.machine.drain()) {
            (Some(drain), None) => {
                info!(drain_id = drain.id, in_flight, "this node is being drained")
            }
            (None, Some(_)) => info!("the drain has ended"),
            _ => {}
        }
        Ok(Outcome::Beaten {
            interval_ms: reply.next_heartbeat_ms,
            drain: reply.drain,
        })
    }

    /// What a failure means for the node's life, and one line about it when it is news.
    fn failed(&self, call: Call, error: &ClientError) -> Outcome {
        let outcome = match error {
            ClientError::Unauthorized { .. } => Outcome::Unauthorized,
            ClientError::Refused {
                body, retry_after, ..
            } => match body.code {
                ErrorCode::NodeNotFound => Outcome::Unknown,
                ErrorCode::Superseded => Outcome::Superseded,
                ErrorCode::NodeIdConflict => {
                    let after = retry_after.unwrap_or(Duration::from_secs(1));
                    Outcome::NameTaken {
                        retry_after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                    }
                }
                _ => Outcome::Failed,
            },
            _ => Outcome::Failed,
        };
        if self.was_up == Some(false) && outcome == Outcome::Failed {
            debug!(?call, %error, "the control plane still does not take this node");
        } else {
            warn!(?call, %error, "the control plane does not take this node now; its engines are served all the same");
        }
        outcome
    }
}

/// How a gateway reaches this agent: as told, else where it listens; a wildcard is replaced by the address this machine
/// uses towards the control plane.
fn advertised(settings: &Settings, listening: SocketAddr) -> Result<HttpUrl, AdvertiseError> {
    if let Some(url) = &settings.advertise {
        return Ok(url.clone());
    }
    let mut address = listening;
    if address.ip().is_unspecified() {
        address.set_ip(source_towards(settings.client.server())?);
    }
    Ok(HttpUrl::new(&format!("http://{address}"))?)
}

#[derive(Debug, thiserror::Error)]
enum AdvertiseError {
    #[error(transparent)]
    Route(#[from] io::Error),
    #[error(transparent)]
    Url(#[from] UrlError),
}

/// The source address of packets to a server. Nothing is sent: connecting a datagram socket only chooses a route.
fn source_towards(server: &HttpUrl) -> io::Result<IpAddr> {
    let origin = server.origin();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in std::net::ToSocketAddrs::to_socket_addrs(&(origin.host.as_str(), origin.port))? {
        let any: SocketAddr = if address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        match UdpSocket::bind(any)
            .and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()))
        {
            Ok(local) => return Ok(local.ip()),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A random number.
fn roll() -> u32 {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes).expect("the system has randomness to give");
    u32::from_ne_bytes(bytes)
}
