//! Clients of the gateway before scripted engines, and nodes that a test plays: what a fault is tried under where there
//! are no agents and no real engines.
//!
//! Invariants: every request of a client is told with its end, which is all of the answer, an error that says what is
//! wrong, or a failure of the gateway; a node played here beats on time as long as it is not told to be silent, and what
//! its heartbeats are answered is checked. Used by `fleet` and `store`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, Begun, written};
use crate::support::load::Raised;
use crate::support::readings::Metrics;

/// The model that everybody asks for.
pub const MODEL: &str = "m";
/// A machine with little to spare may be late with anything that has no promised limit.
pub const SOON: Duration = Duration::from_secs(20);
/// What one scheduling hiccup of a busy machine may add to a bound.
pub const SLACK: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");
/// Events of a stream, and the time between two.
const EVENTS: usize = 6;
const PACE: Duration = Duration::from_millis(5);

/// An engine that answers every request of the clients, streams with [`EVENTS`] events, in so many slots.
pub fn engine(slots: usize) -> ScriptedEngine {
    let engine = ScriptedEngine::start(MODEL, slots);
    let stream = Script::stream().events(EVENTS, PACE);
    engine.always(stream.event("[DONE]").end());
    engine
}

/// The engine of a node that is drained: whatever is sent there has no script, and fails the fault.
pub fn engine_of_a_drained_node(slots: usize) -> ScriptedEngine {
    ScriptedEngine::start(MODEL, slots)
}

/// Drains a node. From the acknowledgement on nothing is sent there.
pub fn drain(address: SocketAddr, node_id: &str) {
    let path = format!("/v2/nodes/{node_id}/drain");
    let (status, node) = call(
        address,
        "POST",
        &path,
        &json!({"reason": "for the whole fault"}),
    );
    assert_eq!(status, 202, "{node}");
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Whole,
    /// An error that says which: its status and code.
    Told(u16, String),
    /// Anything else, which is a fault of orchd's.
    Broken(String),
}

/// A request and its end.
#[derive(Debug, Clone)]
pub struct Asked {
    pub begun: Instant,
    pub took: Duration,
    pub end: End,
}

/// Asks for a stream, and reads it to its end.
pub fn ask(address: SocketAddr) -> Asked {
    let begun = Instant::now();
    let end = stream(address).unwrap_or_else(|e| End::Broken(e.to_string()));
    Asked {
        begun,
        took: begun.elapsed(),
        end,
    }
}

fn stream(address: SocketAddr) -> std::io::Result<End> {
    let body = json!({"model": MODEL, "stream": true, "messages": []}).to_string();
    let headers = [JSON, ("connection", "close")];
    let request = written("POST", "/v1/chat/completions", &headers, body.as_bytes());
    let response = http::send(address, &request)?;
    let status = response.status;
    if status != 200 {
        let told = response.header("retry-after").is_some() || ![429, 503].contains(&status);
        let text = response.text()?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        return Ok(match value["error"]["code"].as_str() {
            Some(code) if told => End::Told(status, code.to_owned()),
            _ => End::Broken(format!("{status}, Retry-After {told}: {text}")),
        });
    }
    let mut events = response.events();
    let mut count = 0;
    while let Some(data) = events.next()? {
        let value: Value = serde_json::from_str(&data).unwrap_or_default();
        if let Some(code) = value["error"]["code"].as_str() {
            let more = events.next()?;
            return Ok(match more {
                None => End::Told(status, code.to_owned()),
                Some(more) => End::Broken(format!("{more} after {data}")),
            });
        }
        if data == "[DONE]" {
            let more = events.next()?;
            return Ok(if count == EVENTS && more.is_none() {
                End::Whole
            } else {
                End::Broken(format!("{count} events, then [DONE] and {more:?}"))
            });
        }
        count += 1;
        if data != format!("{{\"n\":{count}}}") {
            return Ok(End::Broken(format!("event {count} is {data}")));
        }
    }
    Ok(End::Broken(format!("the end after {count} events")))
}

/// Clients that ask one thing after the other, until the act is over.
pub struct Clients {
    over: AtomicBool,
    asked: Mutex<Vec<Asked>>,
}

impl Clients {
    /// Those that ended so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    /// Waits until so many more that begin from now on are served.
    pub fn served(&self, count: usize) {
        let from = Instant::now();
        eventually(SOON, "clients are served", || {
            let asked = self.asked();
            let served = asked
                .iter()
                .filter(|a| a.begun >= from && a.end == End::Whole);
            match served.count() {
                enough if enough >= count => Ok(()),
                few => Err(format!("{few} of {count}, {:?}", asked.last())),
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something while so many clients ask, with a pause between two requests of one, and gives that and the ends of all.
pub fn under_load<T>(
    address: SocketAddr,
    count: usize,
    act: impl FnOnce(&Clients) -> T,
) -> (T, Vec<Asked>) {
    let clients = Clients {
        over: AtomicBool::new(false),
        asked: Mutex::default(),
    };
    let shared = &clients;
    let done = std::thread::scope(|scope| {
        let over = Raised(&shared.over);
        for _ in 0..count {
            scope.spawn(move || {
                while !shared.over.load(Ordering::Relaxed) {
                    let asked = ask(address);
                    lock(&shared.asked).push(asked);
                    std::thread::sleep(PACE * 2);
                }
            });
        }
        shared.served(count);
        let done = act(shared);
        drop(over);
        done
    });
    let asked = clients.asked.into_inner();
    (done, asked.unwrap_or_else(PoisonError::into_inner))
}

/// What clients saw, in words, after checking that each got all of an answer or an error of one of these codes.
pub fn seen(asked: &[Asked], codes: &[&str]) -> String {
    let mut whole = 0;
    let mut slowest = Duration::ZERO;
    let mut told = 0;
    let mut kinds = BTreeSet::new();
    for asked in asked {
        match &asked.end {
            End::Whole => {
                whole += 1;
                slowest = slowest.max(asked.took);
            }
            End::Told(_, code) if codes.contains(&code.as_str()) => {
                told += 1;
                kinds.insert(code.as_str());
            }
            other => panic!("a client saw {other:?} after {:?}", asked.took),
        }
    }
    let mut words = format!("{whole} requests served, the slowest in {}", ms(slowest));
    if told > 0 {
        let kinds: Vec<&str> = kinds.into_iter().collect();
        words += &format!("; {told} told {}", kinds.join(", "));
    }
    words
}

/// Checks that `/metrics` tells of as many requests, by status, as the clients saw since this server started, and that
/// nothing of them is left there.
pub fn agrees(address: SocketAddr, asked: &[Asked]) {
    eventually(SOON, "nothing is left of the requests", || {
        Metrics::read(address).at_rest()
    });
    let metrics = Metrics::read(address);
    let name = "orchd_gateway_requests_total";
    assert_eq!(metrics.total(name), asked.len() as f64, "requests in all");
    let whole = asked.iter().filter(|a| match &a.end {
        End::Told(status, _) => *status == 200,
        end => *end == End::Whole,
    });
    let counted = metrics.sum(name, "code=\"200\"");
    assert_eq!(counted, whole.count() as f64, "requests answered with 200");
}

/// A duration, in words.
pub fn ms(duration: Duration) -> String {
    match duration.as_secs_f64() * 1e3 {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1e3),
    }
}

/// The status and the JSON of an answer of the control API; null when there is no body.
pub fn call(address: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut begun = http::begin(address, b"").expect("it listens");
    over(&mut begun, method, path, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// The same on a connection that is kept.
pub fn over(
    connection: &mut Begun,
    method: &str,
    path: &str,
    body: &Value,
) -> std::io::Result<(u16, Value)> {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let response = connection.ask(&written(method, path, &[JSON], body.as_bytes()))?;
    let status = response.status;
    let value = match status {
        204 => Value::Null,
        _ => response.json(),
    };
    Ok((status, value))
}

/// A registration of a node that a test plays.
pub fn registration(node_id: &str) -> Value {
    json!({"node_id": node_id, "machine_id": node_id, "address": "http://127.0.0.1:9", "version": "0.1.0"})
}

/// A heartbeat with a pool of this engine, dialled directly, or without any.
pub fn heartbeat(engine: Option<(&ScriptedEngine, u32)>) -> Value {
    let pools: Vec<Value> = engine
        .iter()
        .map(|(engine, slots)| {
            json!({
                "pool_id": "p", "ready": true, "slots_free": slots, "slots_total": slots, "engine": "llamacpp",
                "state": "ready", "models_available": [MODEL], "url": engine.url(), "in_flight": 0,
            })
        })
        .collect();
    json!({"pools": pools})
}

/// One node of [`Nodes`].
struct Node {
    node_id: String,
    beat: Value,
    silent: bool,
}

struct Fleet {
    /// The nodes, and when their last round of heartbeats began.
    nodes: Mutex<(Vec<Node>, Instant)>,
    over: AtomicBool,
}

/// Nodes that beat at an interval, each as long as it is not silent. A heartbeat that is not answered with 200 is a panic
/// of the thread that beats, which [`Nodes::end`] passes on.
pub struct Nodes {
    fleet: Arc<Fleet>,
    thread: Option<JoinHandle<usize>>,
}

impl Nodes {
    /// Registers them, has each beat once, and goes on with that.
    pub fn start(address: SocketAddr, interval: Duration, nodes: Vec<(String, Value)>) -> Self {
        let mut connection = http::begin(address, b"").expect("it listens");
        for (node_id, beat) in &nodes {
            let body = registration(node_id);
            let answer = over(&mut connection, "POST", "/v2/nodes/register", &body);
            assert_eq!(answer.expect("an answer").0, 200, "{node_id} registers");
            send_beat(&mut connection, node_id, beat);
        }
        let node = |(node_id, beat)| Node {
            node_id,
            beat,
            silent: false,
        };
        let fleet = Arc::new(Fleet {
            nodes: Mutex::new((nodes.into_iter().map(node).collect(), Instant::now())),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&fleet);
        let thread = std::thread::spawn(move || {
            let mut beats = 0;
            while !shared.over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let mut all = lock(&shared.nodes);
                all.1 = begun;
                for node in all.0.iter().filter(|node| !node.silent) {
                    send_beat(&mut connection, &node.node_id, &node.beat);
                    beats += 1;
                }
                drop(all);
                std::thread::sleep(interval.saturating_sub(begun.elapsed()));
            }
            beats
        });
        Self {
            fleet,
            thread: Some(thread),
        }
    }

    /// The first so many are silent from now on, and all others are not. Gives a moment after which each of them was heard.
    pub fn silence(&self, count: usize) -> Instant {
        let mut all = lock(&self.fleet.nodes);
        for (at, node) in all.0.iter_mut().enumerate() {
            node.silent = at < count;
        }
        all.1
    }

    /// Ends them, and gives how many heartbeats there were.
    pub fn end(mut self) -> usize {
        self.fleet.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("every heartbeat was answered")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.fleet.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic is shown already.
            let _ = thread.join();
        }
    }
}

fn send_beat(connection: &mut Begun, node_id: &str, beat: &Value) {
    let path = format!("/v2/nodes/{node_id}/heartbeat");
    let answer = over(connection, "POST", &path, beat).expect("an answer");
    assert_eq!(answer.0, 200, "heartbeat of {node_id}: {}", answer.1);
}

/// The word for each node, sorted by name, as the list has it; the pages are put together.
pub fn statuses(address: SocketAddr) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let list = http::get_json(address, &format!("/v2/nodes?limit=1000{after}"));
        for node in list["nodes"].as_array().expect("a list") {
            let word = |field: &str| node[field].as_str().expect("a word").to_owned();
            found.push((word("node_id"), word("status")));
        }
        match list["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}
