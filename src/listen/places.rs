//! The connections of one serving thread, and which of them may be closed to make room.
//!
//! The limit is one for all threads: which of them takes a connection in is chance, and nobody is to give way to that. Who
//! gives way is each thread's own affair; one that has nobody takes no more in until another, which does, has made room.
//! An eighth of the places is a reserve: a request that arrives while only those are left is marked [`Crowded`], and whoever
//! answers it refuses what may take long, so that requests that wait for a slot never keep out a heartbeat or a health check.
//! Which of the two a connection brings is not known before its request is read: so both are let in, and told apart then.
//! Invariants: only a connection on which no request is in hand is asked to leave, the longest idle of its thread first;
//! nothing is counted twice, and nothing is locked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::Id;
use tracing::{info, warn};

/// The part of all places that is kept for requests that are answered at once.
const RESERVE: usize = 8;

/// An extension of a request that arrived while only the reserve of places was left: what may keep its connection busy for
/// long is to be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

/// How many connections there may be over all threads, and are. Cloned into every thread.
#[derive(Debug, Clone)]
pub(super) struct House {
    limit: usize,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    all: AtomicUsize,
    /// Those that have not been asked to leave.
    staying: AtomicUsize,
    /// Requests in hand.
    in_hand: AtomicUsize,
    /// Only the reserve is left, as the log was told.
    crowded: AtomicBool,
}

/// Connections of one thread.
#[derive(Debug)]
pub(super) struct Places {
    house: House,
    all: HashMap<Id, Arc<Place>>,
    /// The one that came last: it is given the time to say what it wants.
    newest: Option<Id>,
    /// Counts the moments at which connections became idle: their order is all that matters.
    moments: Arc<AtomicU64>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Place {
    house: House,
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

impl House {
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            count: Arc::default(),
        }
    }

    /// How many requests may be in hand while there is room for more than the reserve.
    fn unreserved(&self) -> usize {
        self.limit - self.limit / RESERVE
    }

    /// A request is in hand. True when it has one of the places of the reserve.
    fn begin(&self) -> bool {
        let count = &self.count;
        let crowded = count.in_hand.fetch_add(1, Ordering::Relaxed) >= self.unreserved();
        if crowded && !count.crowded.swap(true, Ordering::Relaxed) {
            warn!(
                limit = self.limit,
                "requests are in hand on nearly all connections; more for engines are refused, so that heartbeats and \
                 health checks find room; --max-connections allows more"
            );
        }
        crowded
    }

    fn end(&self) {
        let count = &self.count;
        let left = count.in_hand.fetch_sub(1, Ordering::Relaxed) - 1;
        // Not for a moment only: one line for a crowd, however it comes and goes.
        if count.crowded.load(Ordering::Relaxed)
            && left <= self.unreserved() / 2
            && count.crowded.swap(false, Ordering::Relaxed)
        {
            info!("there is room for requests to engines again");
        }
    }

    fn enter(&self) {
        self.count.all.fetch_add(1, Ordering::Relaxed);
        self.count.staying.fetch_add(1, Ordering::Relaxed);
    }

    /// Claims that somebody has to give way. Of threads that look at the same moment, each claims another one.
    fn claim(&self) -> bool {
        let fewer = |staying| (staying > self.limit).then(|| staying - 1);
        let staying = &self.count.staying;
        staying
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
            .is_ok()
    }

    /// Nobody here can.
    fn disclaim(&self) {
        self.count.staying.fetch_add(1, Ordering::Relaxed);
    }

    fn left(&self, place: &Place) {
        self.count.all.fetch_sub(1, Ordering::Relaxed);
        if !place.asked.load(Ordering::Relaxed) {
            self.count.staying.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether another one can be taken in: those who are on their way out are not without number.
    fn has_room(&self) -> bool {
        self.count.all.load(Ordering::Relaxed) <= self.limit + (self.limit / 8).max(1)
    }
}

impl Places {
    pub fn new(house: House) -> Self {
        Self {
            house,
            all: HashMap::new(),
            newest: None,
            moments: Arc::default(),
        }
    }

    /// How many connections there may be, over all threads.
    pub fn limit(&self) -> usize {
        self.house.limit
    }

    /// A new connection, which is idle until its first request is there.
    pub fn take(&self) -> Arc<Place> {
        let place = Place {
            house: self.house.clone(),
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
        self.house.enter();
        self.all.insert(id, place);
        self.newest = Some(id);
    }

    pub fn remove(&mut self, id: Id) {
        if let Some(place) = self.all.remove(&id) {
            self.house.left(&place);
        }
    }

    /// Everybody who is here.
    pub fn ids(&self) -> HashSet<Id> {
        self.all.keys().copied().collect()
    }

    /// Asks so many connections to leave that as many stay as there may be, those that are idle for the longest time
    /// first. False when nobody else can be taken in here all the same: everybody here works, or too many are still on
    /// their way out.
    pub fn make_room(&mut self) -> bool {
        while self.house.claim() {
            if !self.ask_one_to_leave() {
                self.house.disclaim();
                return false;
            }
        }
        self.house.has_room()
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
        true
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // A thread that ends leaves its places to the others.
        self.all.values().for_each(|place| self.house.left(place));
    }
}

impl Place {
    /// A request is in hand until the guard is dropped.
    pub fn work(self: &Arc<Self>) -> InHand {
        self.served.store(true, Ordering::Relaxed);
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand {
            crowded: self.house.begin(),
            place: Arc::clone(self),
        }
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

    /// Waits until the place is needed for somebody else. Whoever was asked once stays asked.
    pub async fn asked_to_leave(&self) {
        while !self.asked.load(Ordering::Relaxed) {
            self.leave.notified().await;
        }
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct InHand {
    place: Arc<Place>,
    crowded: bool,
}

impl InHand {
    /// Whether only the reserve of places was left when it came.
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.place.rest();
        self.place.in_hand.fetch_sub(1, Ordering::Relaxed);
        self.place.house.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Crowd = (Places, Vec<(Id, Arc<Place>)>, tokio::task::JoinSet<()>);

    /// So many connections, each of a task that never ends.
    fn crowd(house: &House, count: usize) -> Crowd {
        let mut places = Places::new(house.clone());
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

    /// The same house with another limit.
    fn allow(house: &House, limit: usize) -> House {
        House {
            limit,
            ..house.clone()
        }
    }

    #[tokio::test]
    async fn the_longest_idle_leaves_first_and_nobody_with_a_request() {
        let house = House::new(4);
        let (mut places, all, _tasks) = crowd(&house, 4);
        // The first has had a request since, the second has one: the third is idle for the longest time.
        drop(all[0].1.work());
        let in_hand = all[1].1.work();
        assert!(places.make_room());
        assert_eq!(asked(&all), [false; 4]);
        places.house = allow(&house, 3);
        assert!(places.make_room());
        assert_eq!(asked(&all), [false, false, true, false]);
        all[2].1.asked_to_leave().await;
        // Too many are on their way out, until one has gone.
        places.house = allow(&house, 2);
        assert!(!places.make_room());
        assert_eq!(asked(&all), [true, false, true, false]);
        places.remove(all[2].0);
        assert!(places.make_room());
        // What is left works, or has just come.
        places.house = allow(&house, 1);
        assert!(!places.make_room());
        drop(in_hand);
        places.remove(all[0].0);
        assert!(places.make_room());
        assert!(asked(&all)[1]);
    }

    #[tokio::test]
    async fn whoever_came_last_is_not_sent_away_before_it_could_ask() {
        let (mut places, all, _tasks) = crowd(&House::new(1), 2);
        let _in_hand = all[0].1.work();
        assert!(!places.make_room());
        drop(all[1].1.work());
        assert!(places.make_room());
        assert_eq!(asked(&all), [false, true]);
    }

    #[tokio::test]
    async fn the_limit_is_one_for_all_threads_however_they_share_the_connections() {
        let house = House::new(10);
        let (mut many, crowded, _tasks) = crowd(&house, 9);
        let (mut few, others, _tasks) = crowd(&house, 1);
        assert!(many.make_room() && few.make_room());
        assert_eq!(asked(&crowded), [false; 9]);
        // One too many, where nobody can give way: no more come in there, until the other thread has made room.
        let _in_hand = others[0].1.work();
        let (mut third, newest, _tasks) = crowd(&house, 1);
        assert!(!few.make_room() && !third.make_room());
        assert!(many.make_room());
        assert_eq!(asked(&crowded).iter().filter(|asked| **asked).count(), 1);
        assert!(asked(&crowded)[0], "the longest idle");
        assert!(few.make_room() && third.make_room());
        assert_eq!((asked(&others), asked(&newest)), (vec![false], vec![false]));
        // A thread that ends leaves its places, whoever was on the way out.
        drop(many);
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        assert_eq!(count(&house.count.all), 2);
        assert_eq!(count(&house.count.staying), 2);
    }

    #[tokio::test]
    async fn an_eighth_of_the_places_is_kept_for_what_is_answered_at_once() {
        let house = House::new(16);
        let (_few, some, _tasks) = crowd(&house, 6);
        let (_many, others, _tasks) = crowd(&house, 10);
        let all = || some.iter().chain(&others).map(|(_, place)| place);
        let mut in_hand: Vec<InHand> = all().map(Place::work).collect();
        let crowded = |in_hand: &[InHand]| in_hand.iter().filter(|one| one.is_crowded()).count();
        assert_eq!(crowded(&in_hand), 2, "whichever thread they are of");
        assert!(in_hand[14].is_crowded() && in_hand[15].is_crowded());
        // There is room again as soon as those have gone, and the log says so once most have.
        let again = |in_hand: &mut Vec<InHand>| {
            drop(in_hand.pop());
            some[0].1.work().is_crowded()
        };
        assert!(again(&mut in_hand));
        assert!(again(&mut in_hand));
        assert!(!again(&mut in_hand));
        let told = || house.count.crowded.load(Ordering::Relaxed);
        in_hand.truncate(8);
        assert!(told());
        in_hand.truncate(7);
        assert!(!told());
    }

    #[tokio::test]
    async fn who_was_asked_to_leave_stays_asked() {
        let (mut places, all, _tasks) = crowd(&House::new(1), 2);
        assert!(places.make_room());
        all[0].1.asked_to_leave().await;
        // A handshake was let go on: what comes after it hears of it, too.
        all[0].1.asked_to_leave().await;
    }

    #[tokio::test]
    async fn who_never_says_anything_gives_way_to_whoever_comes() {
        let house = House::new(4);
        let (mut places, all, mut tasks) = crowd(&house, 4);
        for silent in &all {
            let place = places.take();
            let id = tasks.spawn(std::future::pending::<()>()).id();
            places.add(id, Arc::clone(&place));
            assert!(places.make_room());
            assert!(silent.1.asked.load(Ordering::Relaxed));
            places.remove(silent.0);
        }
    }
}
