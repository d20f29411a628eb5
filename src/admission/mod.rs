//! The shell round `dispatch`: one short lock, names resolved before it, waiters woken after it.
//!
//! Purpose: `acquire(model)` waits its turn and returns a [`Permit`] for a pool. Invariants: a permit gives its slots
//! back exactly once, when it is dropped, for whatever reason; nothing is allocated by name and nobody is woken under
//! the lock. Called by `gateway` (acquire) and by `control` (which pools there are, what their readings say).

mod directory;
mod permit;
mod views;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::{Notify, oneshot, watch};

use crate::clock::Clock;
use crate::dispatch::{
    Dispatch, Grant, Offer, PoolCounts, Quarantine, Ticket, Turn, Verdict, Want,
};
use crate::types::{Alias, Millis, Mono, NodeId, PoolId, Sample};

pub use crate::dispatch::{Failure, ModelIx, Policy, PoolIx, Settings};
pub use directory::{PoolRoute, Upstream};
pub use permit::{EndSignal, Permit};
pub use views::{ModelState, ModelView, Variant};

use directory::Directory;

/// Why a request gets no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may.
    #[error("the queue of this model is full")]
    QueueFull {
        /// When those who wait now are likely to have been served.
        retry_after_ms: Millis,
    },
    /// The bodies of those who wait take all the room there is for them.
    #[error("the bodies of waiting requests take as many bytes as they may")]
    NoRoom {
        /// When those who wait now are likely to have been served.
        retry_after_ms: Millis,
    },
    /// It waited longest when the queue was full, and the policy is that such a request gives way.
    #[error(
        "the queue of this model was full, and this request, which had waited longest, gave way to a later one"
    )]
    Dropped {
        /// When those who wait now are likely to have been served.
        retry_after_ms: Millis,
    },
    /// It waited as long as it may.
    #[error("no slot became free in time")]
    QueueTimeout,
    /// No pool of its model may serve soon.
    #[error("no pool serves this model now")]
    NoReadyPool,
    /// The process is stopping.
    #[error("the server is stopping")]
    ShuttingDown,
}

/// Pools whose numbers are read under one lock.
const POOLS_AT_A_TIME: usize = 256;

type Outcome = Result<Permit, Refused>;

/// A request's place in line, and whether it was tried before.
#[derive(Debug, Clone, Copy)]
struct Standing {
    turn: Turn,
    again: bool,
}

/// Somebody who waits.
struct Waiter {
    standing: Standing,
    tell: oneshot::Sender<Outcome>,
}

struct State {
    dispatch: Dispatch,
    waiters: HashMap<Ticket, Waiter>,
    /// By `PoolIx`.
    upstreams: Vec<Arc<Upstream>>,
    verdicts: Vec<(Ticket, Verdict)>,
    /// When the driver wakes next.
    armed: Option<Mono>,
    closed: bool,
}

/// Who may use which engine now. Shared by every thread that serves.
pub struct Admission {
    clock: Clock,
    state: Mutex<State>,
    directory: RwLock<Directory>,
    rearm: Notify,
    /// Everything that runs was told to end.
    ended: AtomicBool,
    /// Whoever reads the engines of a node itself, to be told when a look is worth it.
    readers: RwLock<HashMap<NodeId, watch::Sender<()>>>,
}

/// A request in line: its place, kept through retries.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// For which model.
    pub model: ModelIx,
    /// How many slots.
    pub weight: u32,
    /// Length of its body, which takes memory while it waits.
    pub bytes: u64,
    /// Context that a slot must have for it, in tokens; 0 when any will do. Other than 0 for a request that was told that
    /// its prompt is too long.
    pub min_ctx: u64,
    /// The place it got on its first try.
    pub turn: Option<Turn>,
    /// A pool to leave out while another has room.
    pub avoid: Option<PoolIx>,
}

impl Admission {
    /// No pools, nobody waiting.
    #[must_use]
    pub fn new(clock: Clock, settings: Settings) -> Arc<Self> {
        Self::with_aliases(clock, settings, &[])
    }

    /// The same, and models can be asked for by other names, too.
    #[must_use]
    pub fn with_aliases(clock: Clock, settings: Settings, aliases: &[Alias]) -> Arc<Self> {
        let mut dispatch = Dispatch::new(settings);
        let directory = Directory::new(&mut dispatch, settings.no_pool_wait_ms, aliases);
        let state = State {
            dispatch,
            waiters: HashMap::new(),
            upstreams: Vec::new(),
            verdicts: Vec::new(),
            armed: None,
            closed: false,
        };
        Arc::new(Self {
            clock,
            state: Mutex::new(state),
            directory: RwLock::new(directory),
            rearm: Notify::new(),
            ended: AtomicBool::new(false),
            readers: RwLock::default(),
        })
    }

    // A panic elsewhere leaves plain numbers behind, each consistent in itself: the locks are used all the same.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under the lock, then gives out what became free and wakes, outside the lock, whom it concerns.
    fn locked<T>(self: &Arc<Self>, change: impl FnOnce(&mut State, Mono) -> T) -> T {
        let mut deliveries = Vec::new();
        let (result, rearm) = {
            let mut state = self.state();
            // Asked under the lock: `dispatch` is never told of an earlier time than before.
            let now = self.clock.now();
            let result = change(&mut state, now);
            let mut verdicts = std::mem::take(&mut state.verdicts);
            state.dispatch.pump(now, &mut verdicts);
            for (ticket, verdict) in verdicts.drain(..) {
                let waiter = state
                    .waiters
                    .remove(&ticket)
                    .expect("whoever is in a queue waits");
                let outcome = self.outcome(&state, waiter.standing, verdict);
                deliveries.push((waiter.tell, outcome));
            }
            state.verdicts = verdicts;
            let next = state.dispatch.next_deadline();
            let earlier = next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed));
            if earlier {
                state.armed = next;
            }
            (result, earlier)
        };
        for (waiter, outcome) in deliveries {
            // Whoever left meanwhile drops its permit here, and with it gives the slots to the next.
            drop(waiter.send(outcome));
        }
        if rearm {
            self.rearm.notify_one();
        }
        result
    }

    fn outcome(self: &Arc<Self>, state: &State, standing: Standing, verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Granted(grant) => Ok(self.permit(state, standing, grant)),
            Verdict::QueueTimeout => Err(Refused::QueueTimeout),
            Verdict::NoReadyPool => Err(Refused::NoReadyPool),
            Verdict::Dropped { retry_after_ms } => Err(Refused::Dropped { retry_after_ms }),
        }
    }

    fn permit(self: &Arc<Self>, state: &State, standing: Standing, grant: Grant) -> Permit {
        Permit::new(
            Arc::clone(self),
            Arc::clone(&state.upstreams[grant.pool.0 as usize]),
            standing,
            grant,
        )
    }

    /// Waits for slots. Dropping the future gives the place in line up at once.
    ///
    /// # Errors
    /// Why it gets none.
    pub async fn acquire(self: &Arc<Self>, ask: Ask) -> Outcome {
        let offered = self.locked(|state, now| {
            if state.closed {
                return Err(Refused::ShuttingDown);
            }
            let again = ask.turn.is_some();
            let turn = ask.turn.unwrap_or_else(|| state.dispatch.arrive(now));
            let standing = Standing { turn, again };
            let want = Want {
                model: ask.model,
                weight: ask.weight,
                bytes: ask.bytes,
                min_ctx: ask.min_ctx,
                avoid: ask.avoid,
            };
            match state.dispatch.offer(now, turn, want) {
                Offer::Granted(grant) => Ok(Ok(self.permit(state, standing, grant))),
                Offer::Full { retry_after_ms } => Err(Refused::QueueFull { retry_after_ms }),
                Offer::NoRoom { retry_after_ms } => Err(Refused::NoRoom { retry_after_ms }),
                Offer::Queued => {
                    let (tell, outcome) = oneshot::channel();
                    state.waiters.insert(turn.ticket, Waiter { standing, tell });
                    Ok(Err((turn.ticket, outcome)))
                }
            }
        });
        let (ticket, outcome) = match offered? {
            Ok(permit) => return Ok(permit),
            Err(queued) => queued,
        };
        let place = Place {
            admission: self,
            model: ask.model,
            ticket,
        };
        let outcome = outcome.await.unwrap_or(Err(Refused::ShuttingDown));
        std::mem::forget(place);
        outcome
    }

    /// Fires what ends by itself: waits, quarantines, ejections. Runs until the process ends.
    pub async fn drive(self: Arc<Self>) {
        loop {
            let armed = self.state().armed;
            match armed {
                None => self.rearm.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(self.clock.instant(at)) => {}
                        () = self.rearm.notified() => continue,
                    }
                    // What is due is done after every change.
                    self.locked(|state, _| state.armed = None);
                }
            }
        }
    }

    /// Refuses everybody from now on, those who wait included.
    pub fn close(self: &Arc<Self>) {
        let waiters = self.locked(|state, _| {
            state.closed = true;
            state.dispatch.close();
            std::mem::take(&mut state.waiters)
        });
        for (_, waiter) in waiters {
            drop(waiter.tell.send(Err(Refused::ShuttingDown)));
        }
    }

    /// Tells everything that runs to end: the process does. To be called after [`close`](Self::close).
    pub fn end_all(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // Those of pools that are gone, too: their places are not another's while something runs there.
        for upstream in &self.state().upstreams {
            upstream.end.notify_waiters();
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn answering(self: &Arc<Self>, grant: Grant) {
        self.locked(|state, _| state.dispatch.answering(grant));
    }

    fn give_back(
        self: &Arc<Self>,
        grant: Grant,
        again: bool,
        answering: bool,
        quarantine: Quarantine,
    ) {
        self.locked(|state, now| {
            state.dispatch.release(now, grant, answering, quarantine);
            // Once for each request.
            if !again {
                state.dispatch.finished();
            }
        });
    }

    /// The engines of this node are to be read soon.
    fn hurry(&self, node_id: &NodeId) {
        let readers = self.readers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers.get(node_id) {
            reader.send_replace(());
        }
    }

    fn eject(self: &Arc<Self>, pool: PoolIx, failure: Failure) -> bool {
        self.judge(pool, |dispatch, now| dispatch.eject(now, pool, failure))
    }

    fn pause(self: &Arc<Self>, pool: PoolIx, asked: Option<Millis>) -> bool {
        self.judge(pool, |dispatch, now| dispatch.pause(now, pool, asked))
    }

    fn vindicate(self: &Arc<Self>, grant: Grant) -> bool {
        self.judge(grant.pool, |dispatch, now| dispatch.vindicate(now, grant))
    }

    /// True when the pool is on trial from now on and was not before, or the other way round.
    fn judge(self: &Arc<Self>, pool: PoolIx, judgement: impl FnOnce(&mut Dispatch, Mono)) -> bool {
        self.locked(|State { dispatch, .. }, now| {
            let before = dispatch.is_on_trial(pool);
            judgement(dispatch, now);
            dispatch.is_on_trial(pool) != before
        })
    }

    /// An engine does not answer, or does so again: whoever says the one says the other. Until then its pool is granted
    /// nothing, and those who wait for it wait on. Nothing happens when the pool is gone.
    pub fn set_hung(self: &Arc<Self>, upstream: &Upstream, hung: bool) {
        self.locked(|state, now| {
            // Its place in the table may be another's by now.
            if std::ptr::eq(
                &raw const *state.upstreams[upstream.ix.0 as usize],
                upstream,
            ) {
                state.dispatch.hang(now, upstream.ix, hung);
            }
        });
    }

    /// Whether a pool that serves the model now or may soon has at least so much context.
    #[must_use]
    pub fn has_context(&self, model: ModelIx, min_ctx: u64) -> bool {
        self.state().dispatch.has_context(model, min_ctx)
    }

    /// Whether a pool of the model may serve soon.
    #[must_use]
    pub fn is_hopeful(&self, model: ModelIx) -> bool {
        self.state().dispatch.is_hopeful(model)
    }

    /// Whether one more request may be tried again; if so, that is counted.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        self.state().dispatch.take_retry()
    }

    /// Changes when a reading of this node's engines is worth it before its time: a request was closed early, so that it
    /// tells whether the slot is free; or one was lost, so that it tells whether the engine is gone, or another.
    #[must_use]
    pub fn wants_reading(&self, node_id: &NodeId) -> watch::Receiver<()> {
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|_, reader| reader.receiver_count() > 0);
        let reader = readers.entry(node_id.clone()).or_default();
        reader.subscribe()
    }

    /// A node's pools, as they are to be routed from now on. Running requests of a pool that is gone end by themselves.
    pub fn set_node(self: &Arc<Self>, node_id: &NodeId, routes: &[PoolRoute]) {
        let mut directory = self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.locked(|state, now| directory.set_node(state, now, node_id, routes));
    }

    /// Readings of a node's engines.
    pub fn observe<'a>(
        self: &Arc<Self>,
        node_id: &NodeId,
        samples: impl Iterator<Item = (&'a PoolId, Sample)>,
    ) {
        let directory = self.directory();
        let Some(node) = directory.node(node_id) else {
            return;
        };
        self.locked(|state, now| {
            for (pool_id, sample) in samples {
                if let Some(upstream) = node.pool(pool_id) {
                    state.dispatch.observe(now, upstream.ix, sample);
                }
            }
        });
    }

    /// The number under which a known model is scheduled.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<ModelIx> {
        let directory = self.directory();
        directory.model(self.clock.now(), name)
    }

    /// Every known model, sorted by name.
    #[must_use]
    pub fn models(&self) -> Vec<ModelView> {
        views::all(&self.directory())
    }

    /// One known model, by its name or the path of its file.
    #[must_use]
    pub fn model_view(&self, name: &str) -> Option<ModelView> {
        views::one(&self.directory(), name)
    }

    /// What a model is called.
    #[must_use]
    pub fn model_name(&self, ix: ModelIx) -> Option<Arc<str>> {
        self.directory().name(ix)
    }

    /// The only known model, when there is just one.
    #[must_use]
    pub fn only_model(&self) -> Option<ModelIx> {
        let directory = self.directory();
        directory.only_model(self.clock.now())
    }

    /// Names of known models, at most so many, sorted.
    #[must_use]
    pub fn model_names(&self, most: usize) -> Vec<Arc<str>> {
        self.directory().names(most)
    }

    /// A node's pools and their numbers.
    #[must_use]
    pub fn counts(&self, node_id: &NodeId) -> Vec<(PoolId, PoolCounts)> {
        let directory = self.directory();
        let Some(node) = directory.node(node_id) else {
            return Vec::new();
        };
        let state = self.state();
        let now = self.clock.now();
        node.pools()
            .map(|u| (u.pool_id.clone(), state.dispatch.counts(now, u.ix)))
            .collect()
    }

    /// Requests that run on a node, those on pools that are gone included.
    #[must_use]
    pub fn running(&self, node_id: &NodeId) -> u32 {
        let directory = self.directory();
        let state = self.state();
        directory.running(&state, self.clock.now(), node_id)
    }

    /// Since when the oldest request on a node runs.
    #[must_use]
    pub fn oldest(&self, node_id: &NodeId) -> Option<Mono> {
        let directory = self.directory();
        let state = self.state();
        directory.oldest(&state, self.clock.now(), node_id)
    }

    /// Tells the requests that run on a node to end, and says how many they are.
    #[must_use]
    pub fn end_running(&self, node_id: &NodeId) -> u32 {
        let directory = self.directory();
        let state = self.state();
        directory.end_running(&state, self.clock.now(), node_id)
    }

    /// Every pool that can be routed to and its numbers, in no order. `visit` runs outside the lock, which is held for a
    /// few pools at a time.
    pub fn each_pool(&self, mut visit: impl FnMut(&Upstream, PoolCounts)) {
        let mut some = Vec::with_capacity(POOLS_AT_A_TIME);
        let mut from = 0;
        loop {
            {
                let state = self.state();
                let now = self.clock.now();
                let upstreams = state.upstreams.iter().skip(from).take(POOLS_AT_A_TIME);
                from += upstreams.len();
                some.extend(
                    upstreams
                        .filter(|upstream| state.dispatch.is_present(upstream.ix))
                        .map(|upstream| {
                            let counts = state.dispatch.counts(now, upstream.ix);
                            (Arc::clone(upstream), counts)
                        }),
                );
                if from >= state.upstreams.len() && some.is_empty() {
                    return;
                }
            }
            for (upstream, counts) in some.drain(..) {
                visit(&upstream, counts);
            }
        }
    }

    /// How many requests wait for each known model, in no order.
    #[must_use]
    pub fn waiting_by_model(&self) -> Vec<(Arc<str>, usize)> {
        let directory = self.directory();
        let state = self.state();
        // Somebody may wait for one that went just now.
        (directory.all())
            .map(|(name, ix, listed)| (name, state.dispatch.waiting(ix), listed))
            .filter(|(_, waiting, listed)| *listed || *waiting > 0)
            .map(|(name, waiting, _)| (Arc::clone(name), waiting))
            .collect()
    }

    /// Requests that wait for a model.
    #[must_use]
    pub fn waiting(&self, model: ModelIx) -> usize {
        self.state().dispatch.waiting(model)
    }

    /// Requests that wait for any of these models, whatever name they ask for them by.
    #[must_use]
    pub fn waiting_for(&self, names: &[String]) -> usize {
        let directory = self.directory();
        let models = directory.with_aliases(names.iter().map(String::as_str));
        let state = self.state();
        models.map(|model| state.dispatch.waiting(model)).sum()
    }
}

/// A place in line, given up when it is dropped.
struct Place<'a> {
    admission: &'a Arc<Admission>,
    model: ModelIx,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.locked(|state, _| {
            state.waiters.remove(&self.ticket);
            state.dispatch.cancel(self.model, self.ticket);
        });
    }
}

#[cfg(test)]
mod tests;
