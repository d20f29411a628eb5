//! The HOME profile's fleet: one implicit node, whose engines this process reads itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::admission::Admission;
use crate::clock::Clock;
use crate::control::Control;
use crate::engines::{self, Engine, Reading};
use crate::types::{Capabilities, EngineRef, NodeId, PoolStatus, RegisterRequest};

/// How long the start waits for the first word of each engine (contract §1.1, `/readyz`).
const FIRST_WORD: Duration = Duration::from_secs(2);
/// Readings on their way: one a second from each engine, taken at once.
const READINGS: usize = 64;

/// Registers the implicit node and starts to read its engines. Returns when each has been read once, or after two
/// seconds.
pub(super) async fn watch(
    control: &Arc<Control>,
    admission: &Admission,
    clock: Clock,
    engines: Vec<Engine>,
) {
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
        engines: engines
            .iter()
            .map(|engine| EngineRef {
                pool_id: Some(engine.pool_id.clone()),
                url: engine.url.clone(),
            })
            .collect(),
    };
    if engines.is_empty() {
        warn!("no engines: name them with --engine, or there is nothing to serve");
        return;
    }
    if let Err(e) = control.register(request).await {
        error!(error = %e, "the local node cannot be registered; its engines are not served");
        return;
    }
    let (readings, inbox) = mpsc::channel(READINGS);
    for engine in engines.clone() {
        tokio::spawn(engines::watch(
            engine,
            clock,
            None,
            admission.early_closes(),
            readings.clone(),
        ));
    }
    drop(readings);
    let (first, mut read) = mpsc::channel(1);
    tokio::spawn(report(Arc::clone(control), engines, inbox, first));
    // Whether they answered or not: the server is ready to say so.
    let _ = tokio::time::timeout(FIRST_WORD, read.recv()).await;
}

/// Passes every reading on. `first` is dropped when each engine has been read once.
async fn report(
    control: Arc<Control>,
    engines: Vec<Engine>,
    mut inbox: mpsc::Receiver<Reading>,
    first: mpsc::Sender<()>,
) {
    let node_id = NodeId::local();
    let mut first = Some(first);
    let mut known: Vec<Option<PoolStatus>> = vec![None; engines.len()];
    while let Some(Reading { mut status, sample }) = inbox.recv().await {
        let Some(at) = engines
            .iter()
            .position(|engine| engine.pool_id == status.pool_id)
        else {
            continue;
        };
        // Dialled directly: there is no agent in between.
        status.url = Some(engines[at].url.clone());
        let fresh = sample.map(|sample| (status.pool_id.clone(), sample));
        known[at] = Some(status);
        let pools = known.iter().flatten().cloned().collect();
        if let Err(e) = control.report(&node_id, pools, fresh.as_slice()) {
            error!(error = %e, "a reading of the local engines was not taken");
        }
        if known.iter().all(Option::is_some) {
            first = None;
        }
    }
    drop(first);
}
