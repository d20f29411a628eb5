//! The load under which faults are tried: at each place a long stream and a long answer, and clients that ask one thing
//! after the other. What became of every request is kept.
//!
//! Used by `gateway_faults` and `gateway_drain`; [`Raised`] by the fault suite as well.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::chat::{Told, ring};
use super::{eventually, http};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(20);
/// Words of what still runs when a fault begins.
const LONG: usize = 2_000;
/// Clients that go on asking: two of three for a stream.
const CLIENTS: usize = 9;

/// What was asked for so far.
pub struct Load {
    address: SocketAddr,
    over: AtomicBool,
    told: Mutex<Vec<Told>>,
}

/// Raises a flag however its scope is left, so that a failed assertion does not wait for those who wait for the flag.
pub struct Raised<'a>(pub &'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    fn told(&self) -> MutexGuard<'_, Vec<Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, told: Told) {
        self.told().push(told);
    }

    /// Whether at least so many requests run at each of these places, `NODE/POOL`.
    pub fn running(&self, places: &[&str], wanted: u64) -> Result<(), String> {
        let pools = http::get_json(self.address, "/v2/pools");
        let all = pools["pools"].as_array().expect("a list");
        let running = |place: &str| {
            let (node, name) = place.split_once('/').expect("a node and a pool");
            let mut all = all.iter();
            let pool = all.find(|pool| pool["node_id"] == node && pool["pool_id"] == name);
            pool.and_then(|pool| pool["running"].as_u64())
                .unwrap_or_default()
        };
        if places.iter().all(|place| running(place) >= wanted) {
            Ok(())
        } else {
            Err(pools.to_string())
        }
    }

    /// Goes on until `count` more requests have ended.
    pub fn go_on(&self, count: usize) {
        let before = self.told().len();
        eventually(SOON, "others are served", || {
            let more = self.told().len() - before;
            if more >= count {
                Ok(())
            } else {
                Err(format!("{more} of {count}"))
            }
        });
    }

    /// Goes on until a request that was sent after this moment was served at that place, and says when that was.
    pub fn served_at(&self, place: &str, after: Instant) -> Instant {
        let served = |told: &&Told| {
            told.begun >= after && told.head.as_ref().is_some_and(|head| head.place == place)
        };
        let look = || {
            let told = self.told();
            let first = told.iter().find(served);
            first
                .map(|told| told.begun)
                .ok_or_else(|| format!("{} others", told.len()))
        };
        eventually(SOON, &format!("{place} serves again"), look).0
    }
}

/// Why requests were tried again, and how often, as the metrics of orchd tell it.
pub fn retries(address: SocketAddr) -> Vec<String> {
    let metrics = http::get(address, "/metrics").expect("an answer").text();
    let metrics = metrics.expect("all of it");
    let lines = metrics.lines();
    lines
        .filter_map(|line| line.strip_prefix("orchd_gateway_retries_total{reason=\""))
        .filter(|line| !line.ends_with(" 0"))
        .map(|line| line.replace("\"}", ""))
        .collect()
}

/// Does something while there is load on these places, and gives that and what became of every request.
pub fn under_load<T>(
    address: SocketAddr,
    places: &[&str],
    act: impl FnOnce(&Load) -> T,
) -> (T, Vec<Told>) {
    let load = Load {
        address,
        over: AtomicBool::new(false),
        told: Mutex::default(),
    };
    let shared = &load;
    let done = std::thread::scope(|scope| {
        let over = Raised(&shared.over);
        // Each goes to the place where the least runs.
        for _ in places {
            let begun = Instant::now();
            let mut stream = ring(LONG).stream(address).expect("a stream");
            stream.read(3).expect("words");
            scope.spawn(move || shared.note(stream.follow(begun)));
        }
        for _ in places {
            scope.spawn(move || shared.note(ring(LONG).told(address, false)));
        }
        eventually(SOON, "each place has a stream and another answer", || {
            shared.running(places, 2)
        });
        for number in 0..CLIENTS {
            scope.spawn(move || {
                while !shared.over.load(Ordering::Relaxed) {
                    let told = ring(60 + 5 * number).told(address, number % 3 > 0);
                    shared.note(told);
                }
            });
        }
        eventually(SOON, "each place has some of the load", || {
            shared.running(places, 3)
        });
        let done = act(shared);
        drop(over);
        done
    });
    let told = load.told.into_inner();
    (done, told.unwrap_or_else(PoisonError::into_inner))
}
