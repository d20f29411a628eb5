//! `orchd agent`: one GPU host, its engines, and its life in a fleet.
//!
//! Purpose: the thin shell round [`machine`]: it makes the calls that are due, tells what they came to, and keeps the
//! proxy and the readers of the engines running meanwhile. Invariants: nothing here waits for the control plane except
//! the one call in progress; the engines are served whether or not there is a control plane. Called by
//! `commands::agent`.

pub mod inventory;
pub mod machine;
mod metrics;
mod node;
mod proxy;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use crate::client::Client;
use crate::clock::Clock;
use crate::engines::{self, Engine};
use crate::listen::{self, Workers};
use crate::metrics::{About, Relayed};
use crate::secrets::Secrets;
use crate::service::{self, Signals};
use crate::types::{HttpUrl, NodeId, VERSION};

pub use inventory::FixtureError;
pub use machine::End;

use machine::Next;
use node::{Answer, Node};
use proxy::{Proxy, Shared};

/// How long the registration waits for the first reading of each engine, and of the GPUs: a driver that is cold or sick
/// takes longer, and is told of when it has answered.
const FIRST_READINGS: Duration = Duration::from_secs(1);
/// How long the last bytes of answers may take to be written when the agent ends.
const FLUSH: Duration = Duration::from_secs(1);

/// All of `orchd agent`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The control planes to talk to.
    pub client: Client,
    /// Connections at one time.
    pub max_connections: usize,
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
    /// Where others are announced by handoff files.
    pub runtime_dir: PathBuf,
    /// A file that stands in for NVML.
    pub gpu_fixture: Option<PathBuf>,
    /// How long an engine may give no answer before its streams end.
    pub hung_after: Duration,
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
    /// A thread or a descriptor.
    #[error("the system refuses what an agent needs: {0}")]
    System(#[source] io::Error),
}

/// Runs until `signals` tell it to stop, or until its name belongs to somebody else. `secrets` say who may use the proxy, and
/// what is shown to them.
///
/// # Errors
/// Why it did not start.
pub async fn run(
    settings: Settings,
    secrets: Secrets,
    signals: Signals,
) -> Result<End, AgentError> {
    let (mut stop, hangup) = signals.split();
    let address = settings.listen;
    let listener = listen::bind(address).map_err(|source| AgentError::Bind { address, source })?;
    let address = listener.local_addr().map_err(AgentError::System)?;
    let mut inventory = inventory::start(settings.gpu_fixture.clone()).await?;

    let clock = Clock::new();
    let hurry = watch::Sender::new(());
    let mut events = engines::spawn_watch(
        engines::Settings {
            configured: settings.engines.clone(),
            runtime_dir: Some(settings.runtime_dir.clone()),
            counts: true,
            hurry: hurry.subscribe(),
            http: engines::Http::default(),
            at_least: engines::IDLE,
        },
        clock,
    );
    let shared = Arc::new(Shared {
        node_id: settings.node_id.clone(),
        doors: ArcSwap::default(),
        all: Arc::default(),
        hurry,
        guard: secrets.guard(),
        stopping: AtomicBool::new(false),
        quiet: Notify::new(),
        pools: ArcSwap::default(),
        report: ArcSwap::new(Arc::clone(&inventory.borrow())),
        relayed: Relayed::new(&proxy::refusals(), &[]),
        about: About {
            profile: "agent",
            started_at: clock.wall(),
        },
    });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let proxy = Proxy(Arc::clone(&shared));
    let entrance = listen::Settings {
        tls: secrets.acceptor(),
        max_connections: settings.max_connections,
    };
    let scheme = entrance.scheme();
    let report = Arc::clone(&inventory.borrow_and_update());
    let mut node = Node::new(settings, (scheme, address), clock, report, shared);
    // Whoever is let in finds the engines that are named: they are told at once, before any is read.
    if let Ok(Some(event)) = tokio::time::timeout(FIRST_READINGS, events.recv()).await {
        node.on_event(event);
    }
    let workers = Workers::spawn("orchd-proxy", &listener, threads, &entrance, &proxy)
        .map_err(AgentError::System)?;
    drop(listener);
    info!(version = VERSION, node_id = %node.shared.node_id, "listening on {scheme}://{address}");

    let secrets = tokio::spawn(secrets.watch(hangup));
    service::ready();
    let pulse = workers.pulse();
    // It runs where the node's own life does: while that one is stuck, so is this.
    let watchdog = tokio::spawn(service::watchdog(async move || pulse.felt().await));

    // So that the first heartbeat, which follows the registration at once, already tells what this node serves.
    let mut reported = false;
    let _ = tokio::time::timeout(FIRST_READINGS, async {
        while !reported || !node.has_read_all() {
            tokio::select! {
                Some(event) = events.recv() => node.on_event(event),
                changed = inventory.changed(), if !reported => {
                    reported = true;
                    if changed.is_ok() {
                        node.on_report(Arc::clone(&inventory.borrow_and_update()));
                    }
                }
                else => break,
            }
        }
    })
    .await;
    let mut in_progress: Option<JoinHandle<Answer>> = None;
    let mut grace_ends = None;
    let end = loop {
        // One call at a time, beside everything else: a control plane that does not answer delays nothing here.
        let due = match node.machine.next(clock.now()) {
            Next::End(end) => break end,
            Next::Call(call) => {
                if in_progress.is_none() {
                    in_progress = Some(tokio::spawn(node.prepare(call)));
                }
                None
            }
            Next::Wait(due) => Some(clock.instant(due)),
        };
        tokio::select! {
            answer = answered(&mut in_progress) => {
                in_progress = None;
                node.on_answer(answer);
            }
            () = at(due), if in_progress.is_none() => {}
            Some(event) = events.recv() => node.on_event(event),
            Ok(()) = inventory.changed() => {
                let report = Arc::clone(&inventory.borrow_and_update());
                node.on_report(report);
            }
            () = node.shared.quiet.notified() => node.on_quiet(),
            () = at(grace_ends) => {
                warn!(in_flight = node.shared.in_flight(), "the grace has ended; ending what still runs");
                grace_ends = None;
                node.machine.on_quiet(clock.now());
            }
            () = stop.asked() => match grace_ends {
                None => {
                    secrets.abort();
                    service::stopping();
                    grace_ends = Some(tokio::time::Instant::now() + node.on_stop());
                }
                Some(_) => {
                    warn!("a second signal: ending at once");
                    break End::Stopped;
                }
            },
        }
    };
    // What was to finish has finished, or its time is over; last bytes may still be on their way to the gateway. An agent
    // whose name went to another process still owes its streams their end.
    let patience = match end {
        End::Stopped => FLUSH,
        End::Superseded | End::NameTaken => node.on_stop(),
    };
    let stopped = tokio::task::spawn_blocking(move || workers.stop(patience)).await;
    if let Err(e) = stopped {
        warn!(error = %e, "the serving threads did not end in good order");
    }
    watchdog.abort();
    info!("stopped");
    Ok(end)
}

async fn at(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The answer to the call in progress; never, while there is none.
async fn answered(in_progress: &mut Option<JoinHandle<Answer>>) -> Result<Answer, JoinError> {
    match in_progress {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}
