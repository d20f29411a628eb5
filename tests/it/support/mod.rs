//! What the journeys stand on: the real engine, the real `orchd`, and a plain HTTP client, all of them processes and
//! sockets of their own.
//!
//! Invariants: nothing here waits by sleeping for a guessed time, everything that is waited for has a limit; whatever
//! is started ends with the test that started it, and shows the end of its log when that test fails. Used by
//! `journey_home` and `journey_cloud`.

pub mod chat;
pub mod counting;
pub mod engine;
pub mod fault;
pub mod http;
pub mod in_band;
pub mod load;
pub mod orchd;
pub mod process;
pub mod readings;
pub mod secure;
pub mod seed;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// How often [`eventually`] looks.
pub const STEP: Duration = Duration::from_millis(15);

/// Looks again and again until there is something to see, and gives it with the time that took. What `look` saw
/// instead, it says as its error; the last such word is shown when the limit is reached.
pub fn eventually<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(seen) => return (seen, begun.elapsed()),
            Err(last) if begun.elapsed() >= limit => {
                panic!("not within {limit:?}: {what}; last seen: {last}")
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Does the same in `count` threads that begin at one moment, and gives their results in order.
pub fn at_once<T: Send>(count: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(count);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (start, act) = (&start, &act);
                scope.spawn(move || {
                    start.wait();
                    act(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("its panic is shown above"))
            .collect()
    })
}

/// Ports that the system gives nobody who asks for any: below the range it takes those from (32768 on, by default).
const OWN_PORTS: std::ops::Range<u16> = 10_000..30_000;

/// An address on loopback for a process that is still to be started. It is this test's own until the test ends: every
/// test process that takes one, of whatever run on this machine, holds a lock on a file of its name. With a port that was
/// merely free, one test's process was found to listen where another test looked for its own.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let directory = std::env::temp_dir().join("orchd-test-ports");
    fs::create_dir_all(&directory).expect("a directory for the locks");
    let range = u32::from(OWN_PORTS.end - OWN_PORTS.start);
    for _ in 0..range {
        let offset = (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % range;
        let port = OWN_PORTS.start + u16::try_from(offset).expect("the range is of ports");
        let file = File::create(directory.join(port.to_string())).expect("a lock can be made");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if file.try_lock().is_ok() && TcpListener::bind(address).is_ok() {
            HELD.lock().expect("not poisoned").push(file);
            return address;
        }
    }
    panic!("none of so many ports is free");
}
