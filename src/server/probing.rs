//! Engines that this process reads itself: those of the HOME profile's one implicit node, and of agentless nodes.
//!
//! Invariants: each node has its readers for exactly as long as its registration names its engines; a reading of an
//! engine that answers counts as a heartbeat of its node, one of an engine that does not only says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::admission::Admission;
use crate::clock::Clock;
use crate::control::Control;
use crate::engines::{self, Engine, Reading};
use crate::types::{
    Capabilities, EngineRef, NodeId, PoolState, PoolStatus, RegisterRequest, name_engines,
};

/// How long the start waits for the first word of each engine (contract §1.1, `/readyz`).
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How often it looks whether they have come.
const FIRST_WORD_LOOK: Duration = Duration::from_millis(10);
/// Readings on their way: one a second from each engine, taken at once.
const READINGS: usize = 64;

/// What a reader needs.
#[derive(Clone)]
pub(super) struct Probing {
    pub control: Arc<Control>,
    pub admission: Arc<Admission>,
    pub clock: Clock,
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
        let (readings, mut inbox) = mpsc::channel(READINGS);
        for (pool_id, url) in &named {
            let engine = Engine::new(pool_id.clone(), url.clone());
            tokio::spawn(engines::watch(
                engine,
                self.clock,
                None,
                self.admission.early_closes(),
                self.at_least,
                readings.clone(),
            ));
        }
        drop(readings);
        let mut known: Vec<Option<PoolStatus>> = vec![None; named.len()];
        while let Some(Reading { mut status, sample }) = inbox.recv().await {
            let Some(at) = named
                .iter()
                .position(|(pool_id, _)| *pool_id == status.pool_id)
            else {
                continue;
            };
            // Dialled directly: there is no agent in between.
            status.url = Some(named[at].1.clone());
            let heard = status.state != PoolState::Unreachable;
            let fresh = sample.map(|sample| (status.pool_id.clone(), sample));
            known[at] = Some(status);
            let pools = known.iter().flatten().cloned().collect();
            if let Err(e) = self
                .control
                .report(&node_id, pools, fresh.as_slice(), heard)
            {
                // It has left at this moment, and its readers go with it.
                warn!(node_id = node_id.as_str(), error = %e, "a reading was not taken");
            }
        }
    }
}

/// Registers the implicit node of the HOME profile. Returns when each of its engines has been read once, or after two
/// seconds.
pub(super) async fn home(control: &Control, engines: Vec<Engine>) {
    if engines.is_empty() {
        warn!("no engines: name them with --engine, or there is nothing to serve");
        return;
    }
    let request = RegisterRequest {
        node_id: NodeId::local(),
        machine_id: None,
        address: None,
        pools: engines
            .iter()
            .map(|engine| engine.pool_id.to_string())
            .collect(),
        capabilities: Capabilities::default(),
        version: None,
        labels: std::collections::BTreeMap::new(),
        instance_id: None,
        announced: false,
        engines: engines
            .iter()
            .map(|engine| EngineRef {
                pool_id: Some(engine.pool_id.clone()),
                url: engine.url.clone(),
            })
            .collect(),
    };
    if let Err(e) = control.register(request).await {
        error!(error = %e, "the local node cannot be registered; its engines are not served");
        return;
    }
    // Whether they answered or not: the server is ready to say so.
    let _ = tokio::time::timeout(FIRST_WORD, async {
        while control.pools(&control.node_ids()).len() < engines.len() {
            tokio::time::sleep(FIRST_WORD_LOOK).await;
        }
    })
    .await;
}
