//! Whether an upstream whose streams are silent still lives.
//!
//! An engine may die in a way that its connections do not tell: llama-server, asked to stop in mid-generation, sends
//! nothing more and closes nothing but its listener, and a stopped process does not even close that. So, once a stream was
//! silent for half a second, the engine is asked for its `/health` on a connection of its own. Any answer means that it
//! lives, however long its streams stay silent: a long prompt is silent, too.
//!
//! What relays pay for it: a plain counter per piece, and a look at their verdict when they have to wait. One task per
//! upstream compares the counters, and exists only while there are streams, or while the engine is known to hang. Made by
//! whoever knows the upstream; fed by [`super::send`] and [`super::RelayBody`].

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Method};
use slab::Slab;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::types::Origin;

use super::wire::Message;
use super::{Peer, connections, is_upstreams};

/// How often the counters are compared.
const TICK: Duration = Duration::from_millis(250);
/// So many ticks without a piece are a silence: 500 ms at least (contract §3).
const SILENT_TICKS: u32 = 2;
/// How long a living engine may take to answer: with the silence before it, two seconds, after which it gets no new work
/// (contract §3).
const PATIENCE: Duration = Duration::from_millis(1_200);
/// An engine is not asked more often than this.
const BETWEEN: Duration = Duration::from_secs(1);
/// One that hangs, and at which nothing runs any more, is asked for so long whether it is back. Whoever reads engines knows
/// by then.
const FORGET: Duration = Duration::from_mins(5);

/// Is told when an upstream begins to hang, and when it no longer does.
pub type Tell = Box<dyn Fn(bool) + Send + Sync>;

/// What is known of one upstream, shared by all who send to it.
pub struct Vitals {
    /// Where its health is asked for.
    origin: Origin,
    peer: Peer,
    hung_after: Duration,
    hung: AtomicBool,
    tell: Option<Tell>,
    /// A task compares the counters.
    watched: AtomicBool,
    running: Mutex<Slab<Running>>,
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals")
            .field("origin", &self.origin)
            .field("hung", &self.hung)
            .finish_non_exhaustive()
    }
}

/// Why a stream was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Died {
    /// It takes no connections any more.
    #[error("it is gone: it was silent, and refuses new connections")]
    Gone,
    /// It takes them, and has answered nothing for too long.
    #[error("it hangs: it was silent, and does not answer on new connections either")]
    Hung,
}

/// What a stream and the task that watches it share.
#[derive(Debug, Default)]
struct Pulse {
    /// Pieces so far. Written by the stream alone.
    beats: AtomicU32,
    died: OnceLock<Died>,
    /// Of a stream that waits for its engine.
    waker: AtomicWaker,
}

/// A stream as its watcher sees it.
#[derive(Debug)]
struct Running {
    pulse: Arc<Pulse>,
    /// What its counter was at the last tick; none before the first one.
    seen: Option<u32>,
    /// Ticks since it changed.
    silent: u32,
}

impl Running {
    fn is_silent(&self) -> bool {
        self.silent >= SILENT_TICKS
    }

    fn has_moved(&self) -> bool {
        self.seen != Some(self.pulse.beats.load(Ordering::Relaxed))
    }

    fn on_tick(&mut self) {
        if self.has_moved() {
            self.seen = Some(self.pulse.beats.load(Ordering::Relaxed));
            self.silent = 0;
        } else {
            self.silent = self.silent.saturating_add(1);
        }
    }
}

/// One exchange, from the moment it is sent to the end of its answer.
pub(super) struct Watched {
    /// Its place among those that run.
    place: usize,
    pulse: Arc<Pulse>,
    vitals: Arc<Vitals>,
}

impl Vitals {
    /// An upstream of which nothing bad is known. One that hangs for `hung_after` is given up. An agent is asked for its
    /// own health, and judges its engines itself.
    #[must_use]
    pub fn new(
        mut origin: Origin,
        peer: Peer,
        hung_after: Duration,
        tell: Option<Tell>,
    ) -> Arc<Self> {
        if peer == Peer::Agent {
            origin.base_path.clear();
        }
        Arc::new(Self {
            origin,
            peer,
            hung_after,
            hung: AtomicBool::new(false),
            tell,
            watched: AtomicBool::new(false),
            running: Mutex::default(),
        })
    }

    /// Whether new requests may be sent there: not while it hangs. One that refuses connections says so itself.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        !self.hung.load(Ordering::Relaxed)
    }

    fn set_hung(&self, hung: bool) {
        if self.hung.swap(hung, Ordering::Relaxed) != hung
            && let Some(tell) = &self.tell
        {
            tell(hung);
        }
    }

    /// An exchange begins.
    pub(super) fn enter(self: &Arc<Self>) -> Watched {
        let pulse = Arc::<Pulse>::default();
        let place = self.running().insert(Running {
            pulse: Arc::clone(&pulse),
            seen: None,
            silent: 0,
        });
        let watched = Watched {
            place,
            pulse,
            vitals: Arc::clone(self),
        };
        self.see_to_it();
        watched
    }

    fn running(&self) -> MutexGuard<'_, Slab<Running>> {
        // Nothing panics while it is held, and a list of streams is good as it is.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that somebody watches.
    fn see_to_it(self: &Arc<Self>) {
        if !self.watched.load(Ordering::Acquire) && !self.watched.swap(true, Ordering::AcqRel) {
            tokio::spawn(watch(Post(Arc::clone(self))));
        }
    }

    /// Compares the counters. How many streams there are, and whether one of them is silent.
    fn on_tick(&self) -> (usize, bool) {
        let mut running = self.running();
        let mut silent = false;
        for (_, stream) in running.iter_mut() {
            stream.on_tick();
            // Whoever was told of it is about to leave.
            silent |= stream.is_silent() && stream.pulse.died.get().is_none();
        }
        (running.len(), silent)
    }

    /// Ends the streams that are silent, and gives their number. A stream that still moves is not dead, whatever became of
    /// the listener: should it fall silent, it is the next question's.
    fn end(&self, why: Died) -> usize {
        let running = self.running();
        let dead = (running.iter().map(|(_, stream)| stream))
            .filter(|stream| stream.is_silent() && !stream.has_moved())
            // Each is told once.
            .filter(|stream| stream.pulse.died.set(why).is_ok());
        let ended: Vec<Arc<Pulse>> = dead.map(|stream| Arc::clone(&stream.pulse)).collect();
        drop(running);
        for pulse in &ended {
            pulse.waker.wake();
        }
        ended.len()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.vitals.running().remove(self.place);
    }
}

impl Watched {
    /// Something came. Only its own stream counts, so that no two write.
    pub fn beat(&self) {
        let beats = self.pulse.beats.load(Ordering::Relaxed);
        self.pulse
            .beats
            .store(beats.wrapping_add(1), Ordering::Relaxed);
    }

    /// To be asked by a stream that has to wait: whether it waits in vain.
    pub fn poll_died(&self, cx: &mut Context<'_>) -> Poll<Died> {
        self.pulse.waker.register(cx.waker());
        self.vitals.see_to_it();
        match self.pulse.died.get() {
            Some(why) => Poll::Ready(*why),
            None => Poll::Pending,
        }
    }
}

/// The duty to watch. It lies on the runtime of the thread whose stream came first, and that thread may end before others
/// whose streams go on: its runtime then drops the task, and the task this. So the duty is laid down here, however the
/// task ends, and every stream that waits is woken: whichever is polled first takes it up on its own thread. One that does
/// not wait looks when it has to.
struct Post(Arc<Vitals>);

impl Drop for Post {
    fn drop(&mut self) {
        let vitals = &self.0;
        // What nobody asks any more is not known to hang.
        vitals.set_hung(false);
        vitals.watched.store(false, Ordering::Release);
        let mut left = Vec::new();
        left.extend((vitals.running().iter()).map(|(_, stream)| Arc::clone(&stream.pulse)));
        for pulse in left {
            pulse.waker.wake();
        }
    }
}

async fn watch(post: Post) {
    let vitals = &post.0;
    let at = vitals.origin.authority.as_str();
    let who = match vitals.peer {
        Peer::Engine => "engine",
        Peer::Agent => "agent",
    };
    let mut tick = interval(TICK);
    // When this process was the one that stood still, that was one tick.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut hung: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        tick.tick().await;
        let (streams, silent) = vitals.on_tick();
        let wanted =
            hung.is_some_and(|since| since.elapsed() < FORGET) && Arc::strong_count(vitals) > 1;
        if streams == 0 && !wanted {
            return;
        }
        let begun = Instant::now();
        if begun < next || !(silent || wanted) {
            continue;
        }
        next = begun + BETWEEN;
        match ask(&vitals.origin, vitals.peer).await {
            Finding::Alive => {
                if let Some(since) = hung.take() {
                    vitals.set_hung(false);
                    info!(at, after = ?since.elapsed(), "the {who} answers again");
                }
            }
            Finding::Gone => {
                hung = None;
                vitals.set_hung(false);
                let streams = vitals.end(Died::Gone);
                warn!(
                    at,
                    streams, "the {who} refuses connections; its silent streams end"
                );
            }
            Finding::Silent => {
                if hung.is_none() {
                    warn!(
                        at,
                        streams, "the {who} does not answer; it gets no new requests until it does"
                    );
                }
                vitals.set_hung(true);
                if hung.get_or_insert(begun).elapsed() >= vitals.hung_after {
                    let streams = vitals.end(Died::Hung);
                    if streams > 0 {
                        warn!(at, streams, after = ?vitals.hung_after, "the {who} still does not answer; its silent streams end");
                    }
                }
            }
            Finding::Unknown => {}
        }
    }
}

/// What asking an engine came to.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// It answers, whatever it says.
    Alive,
    /// It refuses connections.
    Gone,
    /// It says nothing that is HTTP.
    Silent,
    /// It could not be asked: no descriptor, no name service.
    Unknown,
}

async fn ask(origin: &Origin, peer: Peer) -> Finding {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset};
    match timeout(PATIENCE, health(origin, peer)).await {
        Ok(Ok(())) => Finding::Alive,
        Ok(Err(e)) => match e.kind() {
            ConnectionRefused | ConnectionReset => Finding::Gone,
            kind if is_upstreams(kind) => Finding::Silent,
            _ => Finding::Unknown,
        },
        Err(_) => Finding::Silent,
    }
}

/// Asks for `/health` on a new connection, which is closed again.
async fn health(origin: &Origin, peer: Peer) -> io::Result<()> {
    let (get, path) = (Method::GET, [origin.base_path.as_str(), "/health"]);
    let message = Message::new(&get, path, &origin.authority, &HeaderMap::new(), &[]);
    let mut lease = connections::dial(origin, peer).await?;
    // Whoever hangs up without a word has not answered, nor refused.
    let answered = lease.wire.ask(&message).await;
    answered.map(drop).map_err(|e| e.kind().into())
}

#[cfg(test)]
mod tests;
