//! Engines that this process reads itself: those of the HOME profile's one implicit node, and of agentless nodes.
//!
//! Invariants: each node has its readers for exactly as long as its registration names its engines; a reading of an
//! engine that answers counts as a heartbeat of its node, one of an engine that does not only says so.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::admission::Admission;
use crate::clock::Clock;
use crate::control::Control;
use crate::engines::{self, Engine, EngineKeys, Http, Known, KnownEngine, News};
use crate::types::{
    Capabilities, EngineRef, NodeId, PoolId, PoolState, PoolStatus, RegisterRequest, name_engines,
};

/// How long the start waits for the first word of each engine (contract §1.1, `/readyz`).
const FIRST_WORD: Duration = Duration::from_secs(2);

/// What a reader needs.
#[derive(Clone)]
pub(super) struct Probing {
    pub control: Arc<Control>,
    pub admission: Arc<Admission>,
    pub clock: Clock,
    /// What engines are read with.
    pub http: Http,
    /// What the engines of this machine want to be shown.
    pub keys: Arc<EngineKeys>,
    /// An engine is read at least so often.
    pub at_least: Duration,
}

impl Probing {
    /// Keeps a reader for every engine of every agentless node. Runs until the process ends.
    pub async fn run(self) {
        let mut readers: HashMap<NodeId, (Vec<EngineRef>, JoinHandle<()>)> = HashMap::new();
        loop {
            let wanted: HashMap<NodeId, Vec<EngineRef>> =
                self.control.agentless_nodes().into_iter().collect();
            readers.retain(|node_id, (engines, task)| {
                let stays = wanted.get(node_id) == Some(engines) && !task.is_finished();
                if !stays {
                    task.abort();
                }
                stays
            });
            for (node_id, engines) in wanted {
                readers.entry(node_id.clone()).or_insert_with(|| {
                    let task = tokio::spawn(self.clone().read(node_id, engines.clone()));
                    (engines, task)
                });
            }
            self.control.agentless_changed().await;
        }
    }

    /// Reads the engines of one node until the task is dropped, and its readers with it.
    async fn read(self, node_id: NodeId, engines: Vec<EngineRef>) {
        let named = match name_engines(&engines) {
            Ok(named) => named,
            Err(e) => {
                error!(node_id = node_id.as_str(), error = %e, "the engines of this node cannot be told apart; they are not read");
                return;
            }
        };
        let configured = named
            .into_iter()
            .map(|(pool_id, url)| Engine::new(pool_id, url));
        self.follow(&node_id, configured.collect(), None, || {})
            .await;
    }

    /// Reports the engines of one node as they come, change and go. `once_read` is called when each of those that there
    /// are at the start has been read.
    async fn follow(
        &self,
        node_id: &NodeId,
        configured: Vec<Engine>,
        runtime_dir: Option<PathBuf>,
        once_read: impl FnOnce(),
    ) {
        let dir = runtime_dir.clone();
        let settings = engines::Settings {
            configured,
            runtime_dir,
            counts: false,
            hurry: self.admission.early_closes(node_id),
            http: self.http.clone(),
            at_least: self.at_least,
        };
        let mut events = engines::spawn_watch(settings, self.clock);
        let mut once_read = Some(once_read);
        let mut known = Known::default();
        while let Some(event) = events.recv().await {
            let (fresh, heard) = match known.on(event) {
                Some(News::Engines { .. }) => {
                    self.on_engines(node_id, &known, dir.as_deref());
                    (None, false)
                }
                Some(News::Reading {
                    pool_id,
                    before,
                    now,
                    sample,
                }) => {
                    let heard = now.state != PoolState::Unreachable;
                    if !heard && before.as_ref() == Some(&now) {
                        // It is as unreachable as it was.
                        continue;
                    }
                    (sample.map(|sample| (pool_id, sample)), heard)
                }
                None => continue,
            };
            self.tell_in_flight(node_id, &known);
            if let Err(e) = self
                .control
                .report(node_id, dialled(&known), fresh.as_slice(), heard)
            {
                // It has left at this moment, and its readers go with it.
                warn!(node_id = node_id.as_str(), error = %e, "a reading was not taken");
            }
            if known.are_all_read()
                && let Some(once_read) = once_read.take()
            {
                once_read();
            }
        }
    }

    fn on_engines(&self, node_id: &NodeId, known: &Known, dir: Option<&Path>) {
        if known.iter().next().is_none()
            && let Some(dir) = dir
        {
            warn!(
                "no engines: name them with --engine, or put handoff files into {}; until then there is nothing to serve",
                dir.display()
            );
        }
        if *node_id == NodeId::local() {
            let engines = known.iter().map(|known| known.watched.engine.as_ref());
            self.keys.set(engines);
        }
    }

    /// Tells the readers what the gateway has at their engines: one that works may be looked at without keeping it awake.
    fn tell_in_flight(&self, node_id: &NodeId, known: &Known) {
        let counts: HashMap<PoolId, u32> = (self.admission.counts(node_id).into_iter())
            .map(|(pool_id, counts)| (pool_id, counts.running + counts.quarantined))
            .collect();
        for KnownEngine { watched, .. } in known.iter() {
            let count = counts.get(&watched.engine.pool_id);
            watched.in_flight.tell(count.copied().unwrap_or(0));
        }
    }

    /// Keeps the implicit node of the HOME profile, with its readers. Returns when each of its engines has been read once,
    /// or after two seconds.
    pub async fn home(self, configured: Vec<Engine>, runtime_dir: PathBuf) -> JoinHandle<()> {
        let request = RegisterRequest {
            node_id: NodeId::local(),
            machine_id: None,
            address: None,
            pools: Vec::new(),
            capabilities: Capabilities::default(),
            version: None,
            labels: BTreeMap::new(),
            instance_id: None,
            announced: false,
            engines: Vec::new(),
        };
        let (told, read) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Err(e) = self.control.register(request).await {
                error!(error = %e, "the local node cannot be registered; its engines are not served");
                return;
            }
            let once_read = || {
                // Nobody waits any longer.
                let _ = told.send(());
            };
            self.follow(&NodeId::local(), configured, Some(runtime_dir), once_read)
                .await;
        });
        // Whether they answered or not: the server is ready to say so.
        let _ = tokio::time::timeout(FIRST_WORD, read).await;
        task
    }
}

/// The states of engines that are dialled directly: there is no agent in between.
fn dialled(known: &Known) -> Vec<PoolStatus> {
    let dialled = known.iter().filter_map(|known| {
        Some(PoolStatus {
            url: Some(known.watched.engine.url.clone()),
            ..PoolStatus::clone(known.status.as_ref()?)
        })
    });
    dialled.collect()
}
