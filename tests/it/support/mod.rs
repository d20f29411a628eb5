//! What the journeys stand on: the real engine, the real `orchd`, and a plain HTTP client, all of them processes and
//! sockets of their own.
//!
//! Invariants: nothing here waits by sleeping for a guessed time, everything that is waited for has a limit; whatever
//! is started ends with the test that started it, and shows the end of its log when that test fails. Used by
//! `journey_home` and `journey_cloud`.

pub mod chat;
pub mod counting;
pub mod engine;
pub mod http;
pub mod orchd;
pub mod process;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Barrier;
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

/// An address on loopback that was free a moment ago. Somebody may take it before it is used: whoever starts a process
/// on it tries once more then.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound")
}
