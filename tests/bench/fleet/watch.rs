//! Those who watch the fleet: what an event costs, and how much of that each subscriber adds. None may miss one.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use super::server::{PATIENCE, Server, chunk, head};
use super::traffic::Beat;
use super::{POOLS, median};

/// Subscribers at a time, events of one part, and how often each part is repeated.
pub const SUBSCRIBERS: usize = 50;
const EVENTS: usize = 1_000;
const ROUNDS: usize = 5;

/// Processor time in µs: of an event, beyond that of the heartbeat that makes it; and of telling one subscriber of it.
pub struct Cost {
    pub event: f64,
    pub subscriber: f64,
}

/// Has nodes change their state, before nobody and before many.
pub fn cost(server: &mut Server, engine: std::net::SocketAddr) -> Cost {
    let beats = |state: &str| -> Vec<Beat> {
        let nodes = 0..EVENTS;
        nodes
            .map(|node| Beat::new(node, POOLS, engine, state))
            .collect()
    };
    let states = [beats("ready"), beats("busy")];
    let bytes = |which: usize| states[which].iter().map(|beat| beat.bytes.as_slice());
    let mut costs = Vec::new();
    server.connect_anew();
    server.send(bytes(0));
    for round in 0..=ROUNDS {
        let same = server.cost(bytes(0));
        let alone = server.cost(bytes(1));
        let all: Vec<Subscriber> = (0..SUBSCRIBERS).map(|_| Subscriber::new(server)).collect();
        let watched = {
            let before = server.processor();
            server.send(bytes(0));
            for subscriber in all {
                subscriber.join();
            }
            (server.processor() - before) * 1e6 / EVENTS as f64
        };
        // The first one warms up.
        if round > 0 {
            costs.push([alone - same, (watched - alone) / SUBSCRIBERS as f64]);
        }
    }
    let of = |which: usize| median(costs.iter().map(|cost| cost[which]));
    Cost {
        event: of(0),
        subscriber: of(1),
    }
}

/// Reads events until it has all of a part.
struct Subscriber {
    thread: JoinHandle<()>,
}

impl Subscriber {
    /// Returns when its stream has begun.
    fn new(server: &Server) -> Self {
        let mut connection = server.connect();
        let request = b"GET /v2/events HTTP/1.1\r\nhost: orchd\r\n\r\n";
        connection.get_mut().write_all(request).expect("it listens");
        assert_eq!(head(&mut connection), (200, None));
        let (begun, wait) = channel();
        let thread = std::thread::spawn(move || follow(connection, begun));
        begun_within(&wait);
        Self { thread }
    }

    fn join(self) {
        self.thread.join().expect("it got every event");
    }
}

fn begun_within(wait: &Receiver<()>) {
    wait.recv_timeout(PATIENCE).expect("it begins");
}

/// Reads a place to go on from, which is the first thing that is told, and then the events, whose numbers follow on each
/// other.
fn follow(mut connection: BufReader<TcpStream>, begun: std::sync::mpsc::Sender<()>) {
    let mut text = String::new();
    let mut last: Option<u64> = None;
    let mut events = 0;
    while events < EVENTS {
        let more = chunk(&mut connection);
        assert!(!more.is_empty(), "the end after {events} events");
        text += std::str::from_utf8(&more).expect("UTF-8");
        while let Some(end) = text.find("\n\n") {
            let frame: String = text.drain(..end + 2).collect();
            let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
            let Some(id) = field("id: ") else { continue };
            let (_, number) = id.rsplit_once('-').expect("an epoch and a number");
            let number: u64 = number.parse().expect("a number");
            if field("event: ").is_some() {
                assert_eq!(
                    last.map(|last| last + 1),
                    Some(number),
                    "an event is missing"
                );
                events += 1;
            } else {
                begun.send(()).expect("somebody waits");
            }
            last = Some(number);
        }
    }
}
