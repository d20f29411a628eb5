//! The fleet as it is: every node beats once in its interval, one after the other, while clients ask as fast as they are
//! served.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::seed::Random;
use super::server::{Server, good};
use super::traffic::asked;

/// What nodes are told with the default settings.
const INTERVAL: Duration = Duration::from_secs(10);
/// Heartbeats that are sent together: so many are never late because one is.
const TOGETHER: usize = 8;
/// Clients that ask, each one thing after the other.
pub const CLIENTS: usize = 8;

/// What was seen.
pub struct Seen {
    /// Share of one processor that the server took.
    pub processor: f64,
    pub beats_per_second: f64,
    pub requests_per_second: f64,
    /// How long heartbeats and requests took, sorted, in ms.
    pub beats: Vec<f64>,
    pub requests: Vec<f64>,
}

/// One interval of the fleet, with or without clients.
pub fn interval(server: &mut Server, with_clients: bool, random: &mut Random) -> Seen {
    let mut beats = std::mem::take(&mut server.beats);
    let over = AtomicBool::new(false);
    let before = server.processor();
    let begun = Instant::now();
    let (mut took, mut requests) = std::thread::scope(|scope| {
        let (over, shared) = (&over, &*server);
        let clients: Vec<_> = (0..if with_clients { CLIENTS } else { 0 })
            .map(|number| scope.spawn(move || client(shared, number % 2 == 0, over)))
            .collect();
        let mut connections: Vec<_> = (0..TOGETHER).map(|_| shared.connect()).collect();
        let mut took = Vec::with_capacity(beats.len());
        let count = beats.len();
        for (at, together) in beats.chunks_mut(TOGETHER).enumerate() {
            let due = INTERVAL.mul_f64((at * TOGETHER) as f64 / count as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let sent = Instant::now();
            for (connection, beat) in connections.iter_mut().zip(together.iter_mut()) {
                beat.walk(random);
                connection
                    .get_mut()
                    .write_all(&beat.bytes)
                    .expect("it listens");
            }
            for (connection, beat) in connections.iter_mut().zip(together.iter()) {
                good(connection, &beat.bytes);
                took.push(sent.elapsed().as_secs_f64() * 1e3);
            }
        }
        over.store(true, Ordering::Relaxed);
        let requests = clients
            .into_iter()
            .flat_map(|client| client.join().expect("served"));
        (took, requests.collect::<Vec<f64>>())
    });
    let wall = begun.elapsed().as_secs_f64();
    let processor = (server.processor() - before) / wall;
    server.beats = beats;
    took.sort_by(f64::total_cmp);
    requests.sort_by(f64::total_cmp);
    Seen {
        processor,
        beats_per_second: took.len() as f64 / wall,
        requests_per_second: requests.len() as f64 / wall,
        beats: took,
        requests,
    }
}

fn client(server: &Server, stream: bool, over: &AtomicBool) -> Vec<f64> {
    let mut connection = server.connect();
    let request = asked(stream);
    let mut took = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        connection
            .get_mut()
            .write_all(&request)
            .expect("it listens");
        good(&mut connection, &request);
        took.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    took
}

/// The value below which this share of a sorted list lies.
pub fn below(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
