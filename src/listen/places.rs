//! The connections of one serving thread, and which of them may be closed to make room.
//!
//! Invariants: only a connection on which no request is in hand is asked to leave, the longest idle first; nothing is
//! counted twice, and nothing is locked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::task::Id;

/// Connections of one thread.
#[derive(Debug, Default)]
pub(super) struct Places {
    all: HashMap<Id, Arc<Place>>,
    /// The one that came last: it is given the time to say what it wants.
    newest: Option<Id>,
    /// How many of them have been asked to leave.
    leaving: usize,
    /// Counts the moments at which connections became idle: their order is all that matters.
    moments: Arc<AtomicU64>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Place {
    /// Requests in hand: one, or for a moment two, when the next of a connection is there before the last is put away.
    in_hand: AtomicU32,
    /// The moment at which it became idle, while it is.
    idle_since: AtomicU64,
    moments: Arc<AtomicU64>,
    /// It has been asked to leave.
    asked: AtomicBool,
    /// It has had a request.
    served: AtomicBool,
    leave: Notify,
}

impl Places {
    /// A new connection, which is idle until its first request is there.
    pub fn take(&self) -> Arc<Place> {
        let place = Place {
            in_hand: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            moments: Arc::clone(&self.moments),
            asked: AtomicBool::new(false),
            served: AtomicBool::new(false),
            leave: Notify::new(),
        };
        place.rest();
        Arc::new(place)
    }

    pub fn add(&mut self, id: Id, place: Arc<Place>) {
        self.all.insert(id, place);
        self.newest = Some(id);
    }

    pub fn remove(&mut self, id: Id) {
        let gone = self.all.remove(&id);
        if gone.is_some_and(|place| place.asked.load(Ordering::Relaxed)) {
            self.leaving -= 1;
        }
    }

    /// Everybody who is here.
    pub fn ids(&self) -> HashSet<Id> {
        self.all.keys().copied().collect()
    }

    /// Asks so many connections to leave that `limit` stay, those that are idle for the longest time first. False when
    /// nobody else can be taken in all the same: everybody works, or too many are still on their way out.
    pub fn make_room(&mut self, limit: usize) -> bool {
        while self.all.len() - self.leaving > limit {
            if !self.ask_one_to_leave() {
                return false;
            }
        }
        self.all.len() <= limit + (limit / 8).max(1)
    }

    fn ask_one_to_leave(&mut self) -> bool {
        let idle = self
            .all
            .iter()
            .filter(|(id, place)| {
                let just_came = self.newest == Some(**id) && !place.has_served();
                place.is_idle() && !just_came && !place.asked.load(Ordering::Relaxed)
            })
            .map(|(_, place)| place)
            .min_by_key(|place| place.idle_since.load(Ordering::Relaxed));
        let Some(place) = idle else { return false };
        place.asked.store(true, Ordering::Relaxed);
        place.leave.notify_one();
        self.leaving += 1;
        true
    }
}

impl Place {
    /// A request is in hand until the guard is dropped.
    pub fn work(self: &Arc<Self>) -> InHand {
        self.served.store(true, Ordering::Relaxed);
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(Arc::clone(self))
    }

    fn rest(&self) {
        let now = self.moments.fetch_add(1, Ordering::Relaxed);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    pub fn is_idle(&self) -> bool {
        self.in_hand.load(Ordering::Relaxed) == 0
    }

    /// Whether the last bytes of an answer may still be on their way.
    pub fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until the place is needed for somebody else.
    pub async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct InHand(Arc<Place>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.rest();
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Crowd = (Places, Vec<(Id, Arc<Place>)>, tokio::task::JoinSet<()>);

    /// So many connections, each of a task that never ends.
    fn crowd(count: usize) -> Crowd {
        let mut places = Places::default();
        let mut tasks = tokio::task::JoinSet::new();
        let all = (0..count)
            .map(|_| {
                let place = places.take();
                let id = tasks.spawn(std::future::pending::<()>()).id();
                places.add(id, Arc::clone(&place));
                (id, place)
            })
            .collect();
        (places, all, tasks)
    }

    fn asked(all: &[(Id, Arc<Place>)]) -> Vec<bool> {
        all.iter()
            .map(|(_, place)| place.asked.load(Ordering::Relaxed))
            .collect()
    }

    #[tokio::test]
    async fn the_longest_idle_leaves_first_and_nobody_with_a_request() {
        let (mut places, all, _tasks) = crowd(4);
        // The first has had a request since, the second has one: the third is idle for the longest time.
        drop(all[0].1.work());
        let in_hand = all[1].1.work();
        assert!(places.make_room(4));
        assert_eq!(asked(&all), [false; 4]);
        assert!(places.make_room(3));
        assert_eq!(asked(&all), [false, false, true, false]);
        all[2].1.asked_to_leave().await;
        // Too many are on their way out, until one has gone.
        assert!(!places.make_room(2));
        assert_eq!(asked(&all), [true, false, true, false]);
        places.remove(all[2].0);
        assert!(places.make_room(2));
        // What is left works, or has just come.
        assert!(!places.make_room(1));
        drop(in_hand);
        places.remove(all[0].0);
        assert!(places.make_room(1));
        assert!(asked(&all)[1]);
    }

    #[tokio::test]
    async fn whoever_came_last_is_not_sent_away_before_it_could_ask() {
        let (mut places, all, _tasks) = crowd(2);
        let _in_hand = all[0].1.work();
        assert!(!places.make_room(1));
        drop(all[1].1.work());
        assert!(places.make_room(1));
        assert_eq!(asked(&all), [false, true]);
    }
}
