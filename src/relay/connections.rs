//! Upstream connections of one serving thread: made on first use, kept for a while, never shared between threads, so
//! that the client's connection, the dispatch and the upstream of a request live on one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::types::Origin;
use crate::{socket, tls};

use super::Peer;
use super::wire::{Socket, Wire};

/// How often a thread that keeps connections looks for those that were idle for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// An engine that has left a connection open for so long behind a stream does so for good. llama-server closes it in the
/// moment of the last chunk, without a word before: whoever used it next would be lost.
const TRIAL: Duration = Duration::from_secs(1);
/// How long that is remembered behind the last stream, unless a kept connection turns out to be closed: another engine may
/// listen there by then.
const REMEMBERED: Duration = Duration::from_mins(1);

/// An open connection, used by one exchange. Dropping it closes the connection; [`Lease::park`] keeps it.
pub(super) struct Lease {
    pub wire: Wire<Box<dyn Socket>>,
    authority: String,
    https: bool,
    peer: Peer,
    /// Its answer is a stream of an engine.
    streams: bool,
}

struct Idle {
    wire: Wire<Box<dyn Socket>>,
    since: Instant,
    until: Instant,
}

impl Idle {
    fn is_good(&mut self, now: Instant) -> bool {
        now < self.until && self.wire.is_quiet()
    }
}

/// What is kept of one upstream.
#[derive(Default)]
struct Site {
    idle: Vec<Idle>,
    /// It leaves connections open behind streams: it was seen to, and is remembered for so long.
    keeps: Option<Instant>,
    /// One behind a stream that shows whether it does.
    trial: Option<Idle>,
}

impl Site {
    /// Whether a connection is to be kept behind a stream. Takes it for the trial when there is none.
    fn keeps(&mut self, now: Instant, idle: Idle) -> Option<Idle> {
        if let Some(until) = &mut self.keeps {
            *until = now + REMEMBERED;
            return Some(idle);
        }
        self.trial.take_if(|trial| !trial.is_good(now));
        match self.trial.take_if(|trial| now >= trial.since + TRIAL) {
            Some(trial) => {
                self.keeps = Some(now + REMEMBERED);
                self.idle.push(trial);
                Some(idle)
            }
            None => {
                self.trial.get_or_insert(idle);
                None
            }
        }
    }

    /// Takes the connection that was used last, if any is still good.
    fn take(&mut self, now: Instant) -> Option<Idle> {
        while let Some(mut idle) = self.idle.pop() {
            if idle.is_good(now) {
                return Some(idle);
            }
            self.lost(now, &idle);
        }
        None
    }

    /// One is no longer good. When its time was not over the other side has closed it.
    fn lost(&mut self, now: Instant, idle: &Idle) {
        self.keeps.take_if(|_| now < idle.until);
    }

    fn sweep(&mut self, now: Instant) {
        let gone: Vec<Idle> = self
            .idle
            .extract_if(.., |idle| !idle.is_good(now))
            .collect();
        gone.iter().for_each(|idle| self.lost(now, idle));
        self.trial.take_if(|trial| !trial.is_good(now));
        self.keeps.take_if(|until| now >= *until);
    }

    fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.trial.is_none() && self.keeps.is_none()
    }
}

/// What is kept, by authority; connections with TLS are not those without.
#[derive(Default)]
struct Kept {
    plain: HashMap<String, Site>,
    tls: HashMap<String, Site>,
}

impl Kept {
    fn of(&mut self, https: bool) -> &mut HashMap<String, Site> {
        if https {
            &mut self.tls
        } else {
            &mut self.plain
        }
    }
}

thread_local! {
    static IDLE: RefCell<Kept> = RefCell::default();
    /// A task looks after them.
    static SWEPT: Cell<bool> = const { Cell::new(false) };
}

impl Lease {
    /// What it carries is a stream of an engine's: see [`TRIAL`].
    pub fn streams(&mut self) {
        self.streams = true;
    }

    /// Keeps the connection for the next exchange. Only for one whose answer has ended.
    pub fn park(mut self) {
        if !self.wire.is_reusable() {
            return;
        }
        self.wire.rest();
        let since = Instant::now();
        let idle = Idle {
            wire: self.wire,
            since,
            until: since + self.peer.idle(),
        };
        IDLE.with_borrow_mut(|kept| {
            let site = kept.of(self.https).entry(self.authority).or_default();
            let idle = if self.streams {
                site.keeps(since, idle)
            } else {
                Some(idle)
            };
            site.idle.extend(idle);
        });
        see_to_sweeping();
    }
}

/// The connection that was used last, if it is still good.
pub(super) fn reuse(origin: &Origin, peer: Peer) -> Option<Lease> {
    let now = Instant::now();
    IDLE.with_borrow_mut(|kept| {
        let site = kept.of(origin.https).get_mut(&origin.authority)?;
        let idle = site.take(now)?;
        Some(Lease::new(idle.wire, origin, peer))
    })
}

/// Closes what is kept of an upstream.
pub(super) fn forget(origin: &Origin) {
    IDLE.with_borrow_mut(|kept| drop(kept.of(origin.https).remove(&origin.authority)));
}

/// Closes what was idle for too long, at every upstream: where nobody asks any more, nobody else would. True when nothing
/// is left.
fn sweep() -> bool {
    let now = Instant::now();
    IDLE.with_borrow_mut(|kept| {
        for sites in [&mut kept.plain, &mut kept.tls] {
            sites.retain(|_, site| {
                site.sweep(now);
                !site.is_empty()
            });
        }
        kept.plain.is_empty() && kept.tls.is_empty()
    })
}

/// The duty to sweep, laid down however its task ends.
struct Broom;

impl Drop for Broom {
    fn drop(&mut self) {
        // When the thread itself ends, so do its connections.
        let _ = SWEPT.try_with(|swept| swept.set(false));
    }
}

/// Sees to it that what is kept does not stay for ever because nothing more is asked: some upstreams never close what is
/// idle. One task for each thread, and only while there is something to look after.
fn see_to_sweeping() {
    if SWEPT.replace(true) {
        return;
    }
    let broom = Broom;
    tokio::spawn(async move {
        let _broom = broom;
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            if sweep() {
                return;
            }
        }
    });
}

impl Lease {
    fn new(wire: Wire<Box<dyn Socket>>, origin: &Origin, peer: Peer) -> Self {
        Self {
            wire,
            authority: origin.authority.clone(),
            https: origin.https,
            peer,
            streams: false,
        }
    }
}

/// A new connection.
pub(super) async fn dial(origin: &Origin, peer: Peer) -> io::Result<Lease> {
    let stream = socket::connect(&origin.host, origin.port).await?;
    let socket: Box<dyn Socket> = if origin.https {
        Box::new(tls::connect(origin, stream).await?)
    } else {
        Box::new(stream)
    };
    Ok(Lease::new(Wire::new(socket), origin, peer))
}
