//! What has happened, numbered, for whoever wants to follow it.
//!
//! Invariants: an event is logged under the lock of what it tells, so that its order is the order of what happened; the
//! last ones are kept, and a reader who fell behind them is told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::types::{Event, EventKind, NodeId, UnixMs};

/// Events that are kept (contract §1.4).
const KEPT: usize = 10_000;
/// Events that are handed to a reader at once.
const PAGE: usize = 256;

/// The event log of one life of the process.
#[derive(Debug)]
pub(super) struct EventLog {
    epoch: String,
    kept: Mutex<VecDeque<Arc<Event>>>,
    /// Number of the last event; the first is 1.
    last: watch::Sender<u64>,
    closed: watch::Sender<bool>,
}

/// A place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventId {
    epoch: String,
    seq: u64,
}

impl EventId {
    /// Reads `<epoch>-<seq>`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, seq) = text.rsplit_once('-')?;
        Some(Self {
            epoch: epoch.to_owned(),
            seq: seq.parse().ok()?,
        })
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

impl EventLog {
    pub fn new(epoch: String) -> Self {
        Self {
            epoch,
            kept: Mutex::new(VecDeque::new()),
            last: watch::Sender::new(0),
            closed: watch::Sender::new(false),
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn log(&self, event: Event) {
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::new(event));
        self.last.send_modify(|last| *last += 1);
    }

    /// Ends every reader once it has read what there is.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// A reader that goes on behind `after`, or begins with what happens from now on.
    pub fn follow(self: &Arc<Self>, after: Option<&str>) -> Events {
        let last = *self.last.borrow();
        let known = after
            .map(|text| EventId::parse(text).filter(|id| id.epoch == self.epoch && id.seq <= last));
        let (seq, resync) = match known {
            None => (last, false),
            Some(Some(id)) => (id.seq, false),
            Some(None) => (0, true),
        };
        Events {
            last: self.last.subscribe(),
            closed: self.closed.subscribe(),
            log: Arc::clone(self),
            seq,
            resync,
        }
    }

    /// What a reader at `seq` has before it: whether something is missing, where it begins, and a page of it.
    fn page(&self, seq: u64) -> (bool, u64, Vec<Arc<Event>>) {
        let kept = self.kept();
        let last = *self.last.borrow();
        let oldest = last - kept.len() as u64;
        let from = seq.max(oldest);
        let skip = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        let page = kept.iter().skip(skip).take(PAGE).cloned().collect();
        (from > seq, from, page)
    }
}

/// What a reader is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(EventId, Arc<Event>),
    /// What happened between the reader's place and the next event is not known any more.
    Resync(EventId),
}

/// A reader of the log.
#[derive(Debug)]
pub struct Events {
    log: Arc<EventLog>,
    last: watch::Receiver<u64>,
    closed: watch::Receiver<bool>,
    seq: u64,
    resync: bool,
}

impl Events {
    /// The place of the reader: everything up to it has been told.
    #[must_use]
    pub fn place(&self) -> EventId {
        EventId {
            epoch: self.log.epoch.clone(),
            seq: self.seq,
        }
    }

    /// What comes next, at most a page of it. Waits for something to happen; `None` when nothing will any more.
    pub async fn next(&mut self) -> Option<Vec<Told>> {
        loop {
            self.last.mark_unchanged();
            let (missed, from, page) = self.log.page(self.seq);
            let mut told = Vec::with_capacity(page.len() + 1);
            if missed || self.resync {
                self.resync = false;
                self.seq = from;
                told.push(Told::Resync(self.place()));
            }
            for event in page {
                self.seq += 1;
                told.push(Told::Event(self.place(), event));
            }
            if !told.is_empty() {
                return Some(told);
            }
            if *self.closed.borrow() {
                return None;
            }
            tokio::select! {
                changed = self.last.changed() => changed.ok()?,
                changed = self.closed.changed() => changed.ok()?,
            }
        }
    }
}

/// An event about a node, or about the fleet, with nothing more to say.
pub(super) fn event(at_ms: UnixMs, kind: EventKind, node_id: Option<&NodeId>) -> Event {
    Event {
        at_ms,
        kind,
        node_id: node_id.cloned(),
        pool_id: None,
        from: None,
        to: None,
        reason: None,
        by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(count: u64) -> Arc<EventLog> {
        let log = Arc::new(EventLog::new("e1".into()));
        for n in 0..count {
            log.log(event(UnixMs(n), EventKind::NodeOnline, None));
        }
        log
    }

    fn ids(told: &[Told]) -> Vec<String> {
        told.iter()
            .map(|told| match told {
                Told::Event(id, _) => id.to_string(),
                Told::Resync(id) => format!("resync {id}"),
            })
            .collect()
    }

    #[tokio::test]
    async fn a_reader_goes_on_where_it_was_and_a_new_one_begins_with_what_happens_now() {
        let log = log(3);
        let mut again = log.follow(Some("e1-1"));
        assert_eq!(ids(&again.next().await.expect("open")), ["e1-2", "e1-3"]);
        let mut new = log.follow(None);
        assert_eq!(new.place().to_string(), "e1-3");
        log.log(event(UnixMs(9), EventKind::NodeOffline, None));
        for reader in [&mut again, &mut new] {
            assert_eq!(ids(&reader.next().await.expect("open")), ["e1-4"]);
        }
        log.close();
        assert_eq!(new.next().await, None);
    }

    #[tokio::test]
    async fn an_unknown_or_pruned_place_is_told_so_first() {
        let log = log(2);
        for unknown in ["e0-1", "e1-3", "nonsense", "e1-x", ""] {
            let told = log.follow(Some(unknown)).next().await.expect("open");
            assert_eq!(ids(&told), ["resync e1-0", "e1-1", "e1-2"], "{unknown}");
        }
        let kept = KEPT as u64;
        for n in 0..kept {
            log.log(event(UnixMs(n), EventKind::NodeOnline, None));
        }
        let told = log.follow(Some("e1-1")).next().await.expect("open");
        assert_eq!(ids(&told[..2]), ["resync e1-2", "e1-3"]);
        let told = log.follow(Some("e1-2")).next().await.expect("open");
        assert_eq!(ids(&told[..1]), ["e1-3"]);
    }
}
