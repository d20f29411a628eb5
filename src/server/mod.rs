//! `orchd serve`: bind, open the store, serve, stop.
//!
//! Purpose: put the faces in front of the control plane and keep them there. Invariants: the port is bound before
//! anything else happens; `/readyz` is 200 only while everything is open; a stop refuses new work first and cuts nobody
//! off within the grace. Called by `commands::serve`.

mod face;
mod probing;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::admission::{self, Admission};
use crate::api::{Api, Profile, Readiness};
use crate::clock::Clock;
use crate::control::{self, Control};
use crate::engines::{self, Engine, EngineKeys};
use crate::gateway::{self, Gateway};
use crate::listen::{self, Pulse, Workers};
use crate::secrets::Secrets;
use crate::service::{self, Signals};
use crate::store::{MemoryStore, SqliteStore, Store, StoreError};
use crate::types::{Alias, NodeId, VERSION};

use face::Face;
use probing::Probing;

/// What the process is for, and what that takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setup {
    /// One machine: its engines.
    Home {
        /// Watched by this process.
        engines: Vec<Engine>,
        /// Where others are announced by handoff files.
        runtime_dir: PathBuf,
    },
    /// A fleet.
    Cloud {
        /// Where the store is.
        state_dir: PathBuf,
    },
}

/// All of `orchd serve`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The profile.
    pub setup: Setup,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Connections at one time.
    pub max_connections: usize,
    /// Periods of the control plane.
    pub control: control::Settings,
    /// Periods and bounds of the queues.
    pub admission: admission::Settings,
    /// What the gateway does with what it relays.
    pub gateway: gateway::Settings,
    /// Other names of models.
    pub aliases: Vec<Alias>,
    /// How long running requests may go on after a stop.
    pub shutdown_grace: Duration,
}

/// How long those that run at the end of the grace have to tell their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the server does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of ours.
    #[error("{part} has failed; the log says more")]
    Failed {
        /// Which part.
        part: &'static str,
    },
    /// A thread, a signal handler or a descriptor.
    #[error("the system refuses what a server needs: {0}")]
    System(#[source] io::Error),
}

/// Serves until `signals` tell it to stop, then lets what runs finish. `secrets` say who is let in, and what is shown to
/// them.
///
/// # Errors
/// Why it did not start.
pub async fn run(settings: Settings, secrets: Secrets, signals: Signals) -> Result<(), ServeError> {
    let (mut stop, hangup) = signals.split();
    let address = settings.listen;
    let listener = listen::bind(address).map_err(|source| ServeError::Bind { address, source })?;
    let address = listener.local_addr().map_err(ServeError::System)?;
    // A write beyond the limit on the size of files is an error like a full disk, and not the end of the process: the
    // signal that would be it is heard and passed over, here and after the stream of it is gone.
    let _too_large =
        signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).map_err(ServeError::System)?;

    let (profile, store): (Profile, Box<dyn Store>) = match &settings.setup {
        Setup::Home { .. } => (Profile::Home, Box::new(MemoryStore::default())),
        Setup::Cloud { state_dir } => (Profile::Cloud, Box::new(SqliteStore::open(state_dir)?)),
    };
    let clock = Clock::new();
    let admission = Admission::with_aliases(clock, settings.admission, &settings.aliases);
    let control = Control::start(clock, settings.control, Arc::clone(&admission), store)?;
    let driver = tokio::spawn(Arc::clone(&admission).drive());
    let reaper = tokio::spawn(Arc::clone(&control).reap());

    let guard = secrets.guard();
    let door = listen::Settings {
        tls: secrets.acceptor(),
        max_connections: settings.max_connections,
    };
    let readiness = Arc::new(Readiness::default());
    let relayed = gateway::relayed();
    let api = Api {
        clock,
        control: Arc::clone(&control),
        profile,
        readiness: Arc::clone(&readiness),
        guard: guard.clone(),
        relayed: relayed.clone(),
    };
    let keys = Arc::new(EngineKeys::default());
    let gateway = Gateway::new(
        clock.wall(),
        settings.gateway,
        Arc::clone(&admission),
        guard,
        Arc::clone(&keys),
        relayed,
    );
    let face = Face::new(api.router(), gateway);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = Workers::spawn("orchd-serve", &listener, threads, &door, &face)
        .map_err(ServeError::System)?;
    drop(listener);
    let probing = Probing {
        control: Arc::clone(&control),
        admission: Arc::clone(&admission),
        clock,
        keys,
        http: engines::Http::default(),
        // Contract §1.1: at least every third of the timeout.
        at_least: engines::IDLE.min(Duration::from_millis(settings.control.node_timeout_ms / 3)),
    };
    let probing = match settings.setup {
        Setup::Home {
            engines,
            runtime_dir,
        } => probing.home(engines, runtime_dir).await,
        Setup::Cloud { .. } => tokio::spawn(probing.run()),
    };
    readiness.set(true);
    info!(
        version = VERSION,
        profile = profile.as_str(),
        "listening on {}://{address}",
        door.scheme()
    );
    let secrets = tokio::spawn(secrets.watch(hangup));
    service::ready();
    let pulse = workers.pulse();
    let watchdog = tokio::spawn(service::watchdog({
        let admission = Arc::clone(&admission);
        async move || is_alive(&pulse, &admission).await
    }));

    // Without any of these three the process would look alive and be wrong.
    let failed = tokio::select! {
        () = stop.asked() => None,
        _ = driver => Some("the driver of the queues"),
        _ = probing => Some("the reader of engines"),
        _ = reaper => Some("the reaper of silent nodes"),
        () = control.lane_ended() => Some("the lane that writes the store"),
    };
    if let Some(part) = failed {
        error!(
            part,
            "a part of this process has failed; it ends, so that whoever watches it starts it again"
        );
        return Err(ServeError::Failed { part });
    }
    info!(
        grace = ?settings.shutdown_grace,
        "stopping: running requests may finish; another signal ends them"
    );
    readiness.set(false);
    secrets.abort();
    service::stopping();
    admission.close();
    control.close_events();
    let grace = settings.shutdown_grace;
    let mut stopped = tokio::task::spawn_blocking(move || workers.stop(grace + LAST_WORDS));
    let in_time = tokio::select! {
        _ = &mut stopped => true,
        () = tokio::time::sleep(grace) => {
            warn!("the grace has ended; what still runs is ended");
            false
        }
        () = stop.asked() => {
            warn!("a second signal: what still runs is ended");
            false
        }
    };
    if !in_time {
        // Their clients are told, and the connections end by themselves.
        admission.end_all();
        drop(tokio::time::timeout(LAST_WORDS, stopped).await);
    }
    watchdog.abort();
    // The lane blocks on the disk; nothing else is left to run meanwhile.
    control.stop();
    info!("stopped");
    Ok(())
}

/// Whether every serving thread answers, and the scheduling they share can be had.
async fn is_alive(pulse: &Pulse, admission: &Arc<Admission>) -> bool {
    let admission = Arc::clone(admission);
    // On a thread of its own: a lock that is never given back must not stop the one who finds out.
    let locks = tokio::task::spawn_blocking(move || admission.running(&NodeId::local()));
    pulse.felt().await && locks.await.is_ok()
}
