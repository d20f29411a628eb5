//! The one lane of intent: orders are decided in the order they came, persisted together, committed together.
//!
//! A thread, not a task: it waits for a disk. A batch holds at most one order per node, so every order is decided on
//! exactly what it will be committed to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{error, info};

use crate::registry::{Change, Edit, Intent, Node, Speaker};
use crate::store::{Store, StoreError, Write};
use crate::types::{Millis, Mono, NodeId};

use super::tell::Told;
use super::{COALESCE_MS, Control, ControlError, Done, SOON_MS, Unwritten};

/// Orders that are persisted in one transaction at most (DESIGN: one lane for intent).
const BATCH: usize = 256;

pub(super) type Reply = oneshot::Sender<Result<Done, ControlError>>;

pub(super) enum Order {
    Intent(Intent, Reply),
    /// There is something to write behind, within so many milliseconds.
    Observed {
        within_ms: Millis,
    },
    Stop,
}

/// Says that the lane has ended, however it does.
struct LastWord(Arc<Control>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.lane_ended.notify_one();
    }
}

struct Lane {
    control: Arc<Control>,
    inbox: Receiver<Order>,
    waiting: VecDeque<(Intent, Reply)>,
    store: Box<dyn Store>,
    revision: u64,
    /// Nodes whose registration was taken while the store could not be written: it is to be written as soon as it can.
    undurable: BTreeSet<NodeId>,
    /// When observed changes are to be written.
    flush_at: Option<Mono>,
    /// The store took nothing when it was last asked to.
    failing: bool,
    stopping: bool,
}

pub(super) fn spawn(
    control: Arc<Control>,
    inbox: Receiver<Order>,
    store: Box<dyn Store>,
    revision: u64,
) -> JoinHandle<()> {
    let lane = Lane {
        control,
        inbox,
        waiting: VecDeque::new(),
        store,
        revision,
        undurable: BTreeSet::new(),
        flush_at: None,
        failing: false,
        stopping: false,
    };
    std::thread::Builder::new()
        .name("orchd-lane".to_owned())
        .spawn(move || {
            let _last_word = LastWord(Arc::clone(&lane.control));
            lane.run();
        })
        .expect("a thread can be started at the start of the process")
}

impl Lane {
    fn run(mut self) {
        while !self.stopping || !self.waiting.is_empty() {
            self.receive();
            let batch = self.next_batch();
            if !batch.is_empty() {
                self.carry_out(batch);
            }
            if self
                .flush_at
                .is_some_and(|at| at <= self.control.clock.now())
            {
                self.flush();
            }
        }
        self.flush();
    }

    /// Takes what has come, and waits for something when there is nothing to do.
    fn receive(&mut self) {
        if self.waiting.is_empty() && !self.stopping {
            let first = match self.flush_at {
                None => self
                    .inbox
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    let left = Duration::from_millis(at.since(self.control.clock.now()));
                    self.inbox.recv_timeout(left)
                }
            };
            match first {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
        while let Ok(order) = self.inbox.try_recv() {
            self.take(order);
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Intent(intent, reply) => self.waiting.push_back((intent, reply)),
            Order::Observed { within_ms } => {
                // A store that takes nothing is not asked more often because more happens.
                let least_ms = if self.failing { COALESCE_MS } else { 0 };
                let at = self.control.clock.now().plus(within_ms.max(least_ms));
                self.flush_at = Some(self.flush_at.map_or(at, |earlier| earlier.min(at)));
            }
            Order::Stop => self.stopping = true,
        }
    }

    /// The next orders, up to the second one about the same node.
    fn next_batch(&mut self) -> Vec<(Intent, Reply)> {
        let mut names: BTreeSet<NodeId> = BTreeSet::new();
        let mut batch = Vec::new();
        while let Some((intent, _)) = self.waiting.front() {
            if batch.len() == BATCH || !names.insert(intent.node_id().clone()) {
                break;
            }
            batch.extend(self.waiting.pop_front());
        }
        batch
    }

    fn carry_out(&mut self, orders: Vec<(Intent, Reply)>) {
        let mut decided: Vec<(Intent, Change, Reply)> = Vec::with_capacity(orders.len());
        let mut batch: Vec<Write> = Vec::new();
        {
            let registry = self.control.registry();
            let now = self.control.clock.both();
            for (mut intent, reply) in orders {
                if let Intent::Drain {
                    node_id, running, ..
                } = &mut intent
                {
                    *running = self.control.admission.running(node_id);
                }
                match registry.decide(now, &intent) {
                    Ok(mut change) => {
                        let known = registry.node(&change.node_id);
                        if change.record.is_keep()
                            && self.undurable.contains(&change.node_id)
                            && let Some(node) = known
                        {
                            change.record = Edit::Set(node.record.clone());
                        }
                        batch.extend(writes(&change, known));
                        decided.push((intent, change, reply));
                    }
                    Err(refusal) => answer(reply, Err(refusal.into())),
                }
            }
        }
        let stored = self.write(&batch);
        for (intent, change, reply) in decided {
            let durable = stored.is_ok() || !change.is_durable();
            if durable && !change.record.is_keep() {
                self.undurable.remove(&change.node_id);
            }
            match &stored {
                Err(e) if !durable && !self.goes_on_from_memory(&intent) => {
                    answer(reply, Err(ControlError::Store(e.to_string())));
                }
                _ => {
                    if !durable {
                        self.undurable.insert(change.node_id.clone());
                        self.take(Order::Observed {
                            within_ms: COALESCE_MS,
                        });
                    }
                    let done = self.commit(&intent, change, durable);
                    answer(reply, done);
                }
            }
        }
    }

    /// Writes a batch, all of it or nothing.
    fn write(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let stored = self.store.apply(batch, self.revision);
        self.control.counters.wrote(stored.is_ok());
        match &stored {
            // It is the same story for as long as it lasts.
            Err(e) if !self.failing => {
                error!(error = %e, "the store cannot be written: known nodes go on from memory, what must be durable is refused");
            }
            Ok(_) if self.failing => info!("the store can be written again"),
            _ => {}
        }
        self.failing = stored.is_err();
        self.revision = stored?;
        Ok(())
    }

    /// Without a working store, nodes that are known go on describing themselves.
    fn goes_on_from_memory(&self, intent: &Intent) -> bool {
        let Intent::Register(request) = intent else {
            return false;
        };
        let registry = self.control.registry();
        registry.node(&request.node_id).is_some_and(|node| {
            !node.record.departed && node.record.machine_id == request.machine()
        })
    }

    fn commit(&self, intent: &Intent, change: Change, durable: bool) -> Result<Done, ControlError> {
        let node_id = change.node_id.clone();
        let control = &self.control;
        let mut registry = control.registry();
        let now = control.clock.both();
        let before = registry.node(&node_id).cloned();
        let told = Told::of(before.as_ref(), &change);
        registry.commit(now, change);
        let drained = before.as_ref().and_then(|node| node.drain.as_ref());
        let drains = registry.node(&node_id).and_then(|node| node.drain.as_ref());
        control.count_drains(drained, drains);
        control.publish(&registry, &node_id);
        if let Some(node) = registry.node(&node_id).or(before.as_ref()) {
            control.tell_order(now, intent, &told, node);
        }
        control.settle(&mut registry, now, &node_id);
        let probed = |node: Option<&Node>| node.is_some_and(Node::is_agentless);
        if probed(before.as_ref()) || probed(registry.node(&node_id)) {
            control.agentless.notify_one();
        }
        let node = match (registry.node(&node_id).cloned(), before) {
            (Some(node), before) => {
                if before.is_some_and(|before| before.live.durable() != node.live.durable()) {
                    control.write_behind(&node_id, SOON_MS);
                }
                node
            }
            // It went with this order: shown as it was, without what was asked of it.
            (None, Some(before)) => Node {
                drain: None,
                ..before
            },
            (None, None) => return Err(ControlError::Stopping),
        };
        let view = control.show(now, &node_id, &node);
        Ok(Done { view, durable })
    }

    fn unwritten<T>(&self, take: impl FnOnce(&mut Unwritten) -> T) -> T {
        let unwritten = self.control.unwritten.lock();
        take(&mut unwritten.unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what was observed of the nodes that changed, and what was registered while nothing could be written.
    fn flush(&mut self) {
        self.flush_at = None;
        let names = self.unwritten(std::mem::take).nodes;
        let batch: Vec<Write> = {
            let registry = self.control.registry();
            let now = self.control.clock.now();
            let registered = self.undurable.iter().filter_map(|node_id| {
                let node = registry.node(node_id)?;
                Some(Write::Record(node_id.clone(), Some(node.record.clone())))
            });
            // What was observed of those was not written either.
            let nodes = names
                .union(&self.undurable)
                .filter_map(|node_id| Some((node_id, registry.node(node_id)?)));
            registered
                .chain(nodes.flat_map(|(node_id, node)| behind(now, node_id, node)))
                .collect()
        };
        match self.write(&batch) {
            Ok(()) => self.undurable.clear(),
            Err(_) => {
                self.unwritten(|unwritten| {
                    unwritten.nodes.extend(names);
                    unwritten.within_ms = COALESCE_MS;
                });
                self.flush_at = Some(self.control.clock.now().plus(COALESCE_MS));
            }
        }
    }
}

/// What is written behind the replies of a node: what was observed of it, and how far its drain has come.
fn behind(now: Mono, node_id: &NodeId, node: &Node) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(drain) = &node.drain {
        writes.push(Write::Drain(node_id.clone(), Some(drain.as_of(now))));
    }
    if node.record.departed {
        return writes;
    }
    writes.push(Write::Observed(node_id.clone(), Some(node.durable())));
    writes
}

/// Whoever asked may have left; what was done stays done.
fn answer(reply: Reply, result: Result<Done, ControlError>) {
    drop(reply.send(result));
}

/// What an order writes; `known` is its node before it.
fn writes(change: &Change, known: Option<&Node>) -> Vec<Write> {
    let id = || change.node_id.clone();
    let mut writes = Vec::new();
    let gone = matches!(change.record, Edit::Clear);
    match &change.record {
        Edit::Keep => {}
        Edit::Set(record) => writes.push(Write::Record(id(), Some(record.clone()))),
        Edit::Clear => writes.push(Write::Record(id(), None)),
    }
    match &change.drain {
        Edit::Keep => {}
        Edit::Set(drain) => writes.push(Write::Drain(id(), Some(drain.clone()))),
        Edit::Clear => writes.push(Write::Drain(id(), None)),
    }
    let ended = matches!(&change.record, Edit::Set(record) if record.departed);
    if gone || ended || change.speaker == Speaker::NewMachine {
        writes.push(Write::Observed(id(), None));
    } else if change.speaker == Speaker::NewProcess
        && let Some(node) = known
    {
        let observed = node.durable().begun_anew();
        writes.push(Write::Observed(id(), Some(observed)));
    }
    writes
}
