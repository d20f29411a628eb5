//! What the control plane acknowledged is there after `kill -9`, at whatever moment.
//!
//! Clients change nodes of their own as fast as they can and note every answer; the server is killed, started again on
//! the same directory, and asked for everything. Only the one request that each client had under way may or may not have
//! happened, and then it has happened whole.
//!
//! `ORCHD_TEST_ROUNDS` sets how many kills there are, `ORCHD_TEST_SEED` repeats a run that failed (its seed is in its
//! output; the order of events within the server is not part of it).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::{self, Begun, Response, written};
use crate::support::orchd::Orchd;
use crate::support::seed::{Random, setting};

const JSON: (&str, &str) = ("content-type", "application/json");
/// Kills in a normal run.
const ROUNDS: u64 = 30;
const CLIENTS: usize = 4;
/// Few, so that changes of one node follow each other closely.
const NODES_OF_A_CLIENT: usize = 5;

/// What deadlines are multiples of: longer than the test takes, so that what is left of one tells which it was.
const DEADLINE_UNIT_MS: u64 = 10_000_000;

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    /// Everything in a registration follows from these two numbers.
    Register {
        machine: u64,
        revision: u64,
    },
    Drain {
        reason: u64,
        deadline: Option<u64>,
        force: bool,
    },
    Undrain,
    Leave {
        forget: bool,
    },
    /// By an agent process that is not the current one.
    LeaveAsAnother,
    /// Changes nothing durable but what is written behind.
    Beat,
}

/// What the control plane must know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    machine: u64,
    revision: u64,
    departed: bool,
    drain: Option<Drain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Drain {
    /// Unknown while the drain's acknowledgement has not come.
    id: Option<String>,
    reason: u64,
    /// In units of [`DEADLINE_UNIT_MS`], rounded up.
    deadline: Option<u64>,
    force: bool,
}

/// The status and the node that the contract has for an order, given what is known before it.
fn outcome(order: &Order, before: Option<&Node>) -> (u16, Option<Node>) {
    let live = before.filter(|node| !node.departed);
    match (order, before) {
        (&Order::Register { machine, revision }, _) => {
            if live.is_some_and(|node| node.machine != machine) {
                return (409, before.cloned());
            }
            // What was asked of a node belongs to its machine.
            let drain = before.filter(|node| node.machine == machine);
            let node = Node {
                machine,
                revision,
                departed: false,
                drain: drain.and_then(|node| node.drain.clone()),
            };
            (200, Some(node))
        }
        (
            &Order::Drain {
                reason,
                deadline,
                force,
            },
            Some(node),
        ) if live.is_some() => {
            // The same drain, described anew: what is not said again stays.
            let known = node.drain.as_ref();
            let drain = Some(Drain {
                id: known.and_then(|drain| drain.id.clone()),
                reason,
                deadline: deadline.or(known.and_then(|drain| drain.deadline)),
                force: force || known.is_some_and(|drain| drain.force),
            });
            let drained = Node {
                drain,
                ..node.clone()
            };
            (202, Some(drained))
        }
        (Order::Undrain, Some(node)) => {
            let undrained = Node {
                drain: None,
                ..node.clone()
            };
            (200, Some(undrained).filter(|node| !node.departed))
        }
        (Order::Leave { forget: true }, Some(_)) => (204, None),
        (Order::Leave { forget: false }, Some(node)) if live.is_some() => {
            let left = Node {
                departed: true,
                ..node.clone()
            };
            (204, Some(left).filter(|node| node.drain.is_some()))
        }
        (Order::LeaveAsAnother, Some(_)) if live.is_some() => (409, before.cloned()),
        (Order::Beat, Some(_)) if live.is_some() => (200, before.cloned()),
        _ => (404, before.cloned()),
    }
}

fn registration(node_id: &str, machine: u64, revision: u64) -> Value {
    json!({
        "node_id": node_id, "machine_id": format!("m{machine}"), "address": format!("http://10.0.0.1:{}", 1 + revision % 60_000),
        "version": format!("{revision}"), "labels": {"revision": format!("{revision}")}, "pools": [format!("p{revision}")],
        "instance_id": format!("i{revision}"),
        "capabilities": {"gpus": [{"device_id": 0, "name": "RTX 3090", "vram_total_bytes": revision}]},
    })
}

fn request(node_id: &str, order: &Order) -> Vec<u8> {
    let path = format!("/v2/nodes/{node_id}");
    let (method, path, body) = match order {
        Order::Register { machine, revision } => {
            let body = registration(node_id, *machine, *revision);
            ("POST", "/v2/nodes/register".to_owned(), Some(body))
        }
        Order::Drain {
            reason,
            deadline,
            force,
        } => {
            let reason = format!("r{reason}");
            let mut body = json!({"requested_by": reason, "reason": reason, "force": force});
            if let Some(deadline) = deadline {
                body["deadline_ms"] = json!(deadline * DEADLINE_UNIT_MS);
            }
            ("POST", format!("{path}/drain"), Some(body))
        }
        Order::Undrain => ("DELETE", format!("{path}/drain"), None),
        Order::Leave { forget: false } => ("DELETE", path, None),
        Order::Leave { forget: true } => ("DELETE", format!("{path}?forget=true"), None),
        Order::LeaveAsAnother => ("DELETE", format!("{path}?instance_id=another"), None),
        Order::Beat => {
            let body = json!({"pools": [{"pool_id": "p", "ready": true, "slots_total": 4, "slots_free": 4}]});
            ("POST", format!("{path}/heartbeat"), Some(body))
        }
    };
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    written(method, &path, &[JSON], body.as_bytes())
}

/// A node as the server shows it, with what its store holds of its drain and no answer tells once it is done; panics when
/// its parts do not belong together.
fn shown(view: &Value, departed: bool, drains: &BTreeMap<String, Value>) -> Node {
    let text = |value: &Value| {
        let text = value.as_str();
        text.unwrap_or_else(|| panic!("no text in {view}"))
            .to_owned()
    };
    let number = |value: &Value| {
        let text = text(value);
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits
            .parse::<u64>()
            .unwrap_or_else(|_| panic!("{text:?} in {view}"))
    };
    let (machine, revision) = (number(&view["machine_id"]), number(&view["version"]));
    let whole = registration(&text(&view["node_id"]), machine, revision);
    for (field, value) in whole.as_object().expect("it is an object") {
        assert_eq!(view[field], *value, "{field} is of another registration");
    }
    let drain = view["drain"].as_object().map(|drain| {
        let reason = number(&drain["reason"]);
        assert_eq!(number(&drain["requested_by"]), reason, "half a drain");
        let stored = &drains[view["node_id"].as_str().expect("a name")];
        assert_eq!(stored["id"], drain["id"], "{stored}");
        let left = stored["left_ms"].as_u64();
        Drain {
            id: Some(text(&drain["id"])),
            reason,
            deadline: left.map(|left| left.div_ceil(DEADLINE_UNIT_MS)),
            force: stored["force"].as_bool().expect("yes or no"),
        }
    });
    assert!(drain.is_some() || !departed, "nothing keeps {view}");
    Node {
        machine,
        revision,
        departed,
        drain,
    }
}

/// A client and its nodes.
struct Client {
    random: Random,
    nodes: Vec<(String, Option<Node>)>,
    revision: u64,
    /// The order that was not answered: for which node, and what it would have left.
    under_way: Option<(usize, Order)>,
}

impl Client {
    fn new(seed: u64, number: usize) -> Self {
        let nodes = (0..NODES_OF_A_CLIENT).map(|n| (format!("c{number}-n{n}"), None));
        Self {
            random: Random(seed.wrapping_add(number as u64)),
            nodes: nodes.collect(),
            revision: 0,
            under_way: None,
        }
    }

    fn next_order(&mut self) -> Order {
        self.revision += 1;
        match self.random.below(20) {
            0..8 => Order::Register {
                machine: self.random.below(8) / 7,
                revision: self.revision,
            },
            8..12 => Order::Drain {
                reason: self.revision,
                deadline: Some(1 + self.random.below(100)).filter(|deadline| deadline % 2 == 0),
                force: self.random.below(4) == 0,
            },
            12..14 => Order::Undrain,
            14..16 => Order::Leave { forget: false },
            16 => Order::Leave { forget: true },
            17 => Order::LeaveAsAnother,
            _ => Order::Beat,
        }
    }

    /// Changes its nodes until the connection breaks.
    fn run(&mut self, address: SocketAddr, answered: &AtomicUsize) -> io::Error {
        let mut connection = match http::begin(address, &[]) {
            Ok(connection) => connection,
            Err(e) => return e,
        };
        loop {
            let at = usize::try_from(self.random.below(NODES_OF_A_CLIENT as u64)).expect("small");
            let order = self.next_order();
            self.under_way = Some((at, order.clone()));
            match self.carry_out(&mut connection, at, &order) {
                Ok(after) => self.nodes[at].1 = after,
                Err(e) => return e,
            }
            self.under_way = None;
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn carry_out(
        &self,
        connection: &mut Begun,
        at: usize,
        order: &Order,
    ) -> io::Result<Option<Node>> {
        let (node_id, before) = &self.nodes[at];
        let (status, mut after) = outcome(order, before.as_ref());
        let response = connection.ask(&request(node_id, order))?;
        let found = response.status;
        let body = body(response)?;
        assert_eq!(found, status, "{node_id} {order:?} of {before:?}: {body}");
        if let Order::Register { .. } = order {
            assert_eq!(body["durable"].as_bool(), (status == 200).then_some(true));
        }
        if let (202, Some(drain)) = (status, after.as_mut().and_then(|node| node.drain.as_mut())) {
            let id = body["drain"]["id"].as_str().expect("a drain has an id");
            drain.id = Some(id.to_owned());
        }
        Ok(after)
    }

    /// Holds what it was told against what there is, and goes on from there.
    fn check(&mut self, there: &mut BTreeMap<String, Node>) {
        let under_way = self.under_way.take();
        for (at, (node_id, acknowledged)) in self.nodes.iter_mut().enumerate() {
            let found = there.remove(node_id);
            let asked = under_way.as_ref().filter(|(node, _)| *node == at);
            let perhaps = asked.map(|(_, order)| outcome(order, acknowledged.as_ref()).1);
            let possible = std::iter::once(&*acknowledged).chain(&perhaps);
            assert!(
                possible
                    .clone()
                    .any(|node| same(node.as_ref(), found.as_ref())),
                "{node_id} is\n{found:?}\nbut was acknowledged as\n{acknowledged:?}\nand asked for, without an answer: \
                 {asked:?}"
            );
            *acknowledged = found;
        }
    }
}

/// Whether what was found is this node; the id of a drain that was never acknowledged is not known.
fn same(expected: Option<&Node>, found: Option<&Node>) -> bool {
    let (Some(expected), Some(found)) = (expected, found) else {
        return expected.is_none() && found.is_none();
    };
    let mut expected = expected.clone();
    if let (Some(drain), Some(other)) = (&mut expected.drain, &found.drain)
        && drain.id.is_none()
    {
        drain.id.clone_from(&other.id);
    }
    expected == *found
}

/// The JSON of an answer, null for one without a body.
fn body(response: Response) -> io::Result<Value> {
    if response.status == 204 {
        return Ok(Value::Null);
    }
    let text = response.text()?;
    serde_json::from_str(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Everything the server knows.
fn everything(address: SocketAddr, store: &Connection) -> BTreeMap<String, Node> {
    let drains: BTreeMap<String, Value> = store
        .prepare("SELECT node_id, drain FROM drains")
        .expect("it has this table")
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
        .expect("it can be read")
        .map(|row| row.expect("two texts"))
        .map(|(node_id, drain)| (node_id, serde_json::from_str(&drain).expect("JSON")))
        .collect();
    let mut there = BTreeMap::new();
    for departed in [false, true] {
        let list = http::get_json(address, &format!("/v2/nodes?departed={departed}"));
        assert_eq!(list["next"], Value::Null);
        for view in list["nodes"].as_array().expect("a list") {
            let node_id = view["node_id"].as_str().expect("a name").to_owned();
            let twice = there.insert(node_id, shown(view, departed, &drains));
            assert_eq!(twice, None, "registered and departed: {view}");
        }
    }
    there
}

/// The store's file, to look into and not to touch.
fn open(state: &Path) -> Connection {
    Connection::open_with_flags(state.join("orchd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the store can be read beside its server")
}

fn count(store: &Connection, query: &str) -> i64 {
    store
        .query_row(query, [], |row| row.get(0))
        .expect("it has these tables")
}

#[test]
fn durability_nothing_acknowledged_is_lost_or_half_done_when_the_server_is_killed() {
    let rounds = setting("ORCHD_TEST_ROUNDS").unwrap_or(ROUNDS);
    let mut random = Random::seeded();
    println!("ORCHD_TEST_ROUNDS={rounds}");
    let state = tempfile::tempdir().expect("a directory for the state");
    // An hour: this is not about silence.
    let mut server = Orchd::serve_cloud(state.path(), &["--node-timeout", "1h"]);
    let address = server.address;
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::new(random.next(), number))
        .collect();
    let mut in_all = 0;
    for round in 0..rounds {
        // Sometimes in the middle of a start's first orders, sometimes later.
        let kill_after = 1 + random.below(150);
        let kill_delay = Duration::from_micros(random.below(3_000));
        let answered = AtomicUsize::new(0);
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in &mut clients {
                let (answered, killed) = (&answered, &killed);
                scope.spawn(move || {
                    let e = client.run(address, answered);
                    let killed = killed.load(Ordering::Acquire);
                    assert!(killed, "it left its client without being killed: {e}");
                });
            }
            let what = format!("{kill_after} changes are acknowledged");
            eventually(Duration::from_secs(20), &what, || {
                match answered.load(Ordering::Relaxed) {
                    enough if enough as u64 >= kill_after => Ok(()),
                    few => Err(format!("{few}")),
                }
            });
            std::thread::sleep(kill_delay);
            killed.store(true, Ordering::Release);
            server.kill9();
        });
        in_all += answered.into_inner();
        server.start_again();
        let store = open(state.path());
        let mut there = everything(address, &store);
        println!("round {round}: {} nodes, {in_all} answers", there.len());
        for client in &mut clients {
            client.check(&mut there);
        }
        assert!(there.is_empty(), "nobody registered {there:?}");
        for table in ["drains", "observed"] {
            let orphans = format!(
                "SELECT count(*) FROM {table} WHERE node_id NOT IN (SELECT node_id FROM nodes)"
            );
            assert_eq!(count(&store, &orphans), 0, "{table} of nodes nobody knows");
        }
    }
}

#[test]
fn durability_a_node_keeps_its_word_over_a_kill_a_moment_after_its_first_heartbeat() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let mut server = Orchd::serve_cloud(state.path(), &[]);
    let failed = json!({"status": "failed", "reasons": [{"code": "NO_ENGINE", "message": "no engine answers"}]});
    let beats = [
        ("beats", Some(json!({"pools": []}))),
        ("fails", Some(json!({"pools": [], "health": failed}))),
        ("silent", None),
    ];
    for (node_id, beat) in &beats {
        let path = format!("/v2/nodes/{node_id}/heartbeat");
        let register = registration(node_id, 1, 1);
        http::post(server.address, "/v2/nodes/register", &register).expect("an answer");
        if let Some(beat) = beat {
            http::post(server.address, &path, beat).expect("an answer");
        }
    }
    let store = open(state.path());
    let words = "SELECT count(*) FROM observed WHERE observed LIKE '%\"beaten\":true%'";
    eventually(
        Duration::from_secs(10),
        "both are on disk",
        || match count(&store, words) {
            2 => Ok(()),
            rows => Err(format!("{rows} rows")),
        },
    );
    server.kill9();
    server.start_again();
    let list = http::get_json(server.address, "/v2/nodes");
    let words: Vec<&Value> = (list["nodes"].as_array().expect("a list").iter())
        .map(|node| &node["status"])
        .collect();
    assert_eq!(words, ["Online", "Failed", "Registering"], "{list}");
    assert_eq!(list["nodes"][1]["health"], failed);
}

#[test]
fn durability_pools_that_a_heartbeat_described_are_on_disk_within_a_second_and_known_after_a_kill()
{
    let state = tempfile::tempdir().expect("a directory for the state");
    let mut server = Orchd::serve_cloud(state.path(), &[]);
    let address = server.address;
    let post = |path: &str, body: &Value| {
        let response = http::post(address, path, body).expect("an answer");
        assert_eq!(response.status, 200);
        response.json()
    };
    let beat = |slots_free: u32| {
        json!({"pools": [{
            "pool_id": "p", "ready": true, "slots_free": slots_free, "slots_total": 4, "engine": "llamacpp", "engine_version": "b1",
            "url": "http://127.0.0.1:9", "models_available": ["org/m:Q4", "m"], "n_ctx": 2_048, "state": "ready",
        }]})
    };
    post("/v2/nodes/register", &registration("n1", 1, 1));
    let store = open(state.path());
    post("/v2/nodes/n1/heartbeat", &beat(4));
    let (_, took) = eventually(
        Duration::from_secs(10),
        "the pools are on disk",
        || match count(
            &store,
            "SELECT count(*) FROM observed WHERE observed LIKE '%org/m:Q4%'",
        ) {
            1 => Ok(()),
            rows => Err(format!("{rows} rows")),
        },
    );
    assert!(
        took < Duration::from_millis(2_000),
        "written behind after {took:?}"
    );

    // What changes with every heartbeat is not worth a write.
    let revision = || count(&store, "SELECT value FROM meta WHERE key = 'revision'");
    let before = revision();
    for slots_free in [3, 2, 1, 0] {
        post("/v2/nodes/n1/heartbeat", &beat(slots_free));
    }
    // Written together with, or before, what comes after them.
    let mut last = beat(0);
    last["pools"][0]["n_ctx"] = json!(4_096);
    post("/v2/nodes/n1/heartbeat", &last);
    eventually(
        Duration::from_secs(10),
        "the context is on disk",
        || match count(
            &store,
            "SELECT count(*) FROM observed WHERE observed LIKE '%4096%'",
        ) {
            1 => Ok(()),
            rows => Err(format!("{rows} rows")),
        },
    );
    assert_eq!(
        revision(),
        before + 1,
        "heartbeats that describe nothing new were written"
    );

    server.kill9();
    server.start_again();
    let node = http::get_json(address, "/v2/nodes/n1");
    assert_eq!(
        node["suspect"], true,
        "alive before the kill and not heard since"
    );
    assert_eq!(node["status"], "Online");
    assert_eq!(node["last_heartbeat_age_ms"], Value::Null);
    let pools = http::get_json(address, "/v2/pools");
    let pool = &pools["pools"][0];
    let described = json!({
        "pool_id": "p", "engine": "llamacpp", "engine_version": "b1", "models": ["org/m:Q4", "m"], "slots_total": 4,
        "n_ctx": 4_096, "url": "http://127.0.0.1:9",
    });
    for (field, value) in described.as_object().expect("it is an object") {
        assert_eq!(pool[field], *value, "{field}");
    }
    assert_eq!(pools["count"], 1);
    let models = http::get_json(address, "/v1/models");
    assert_eq!(models["data"].as_array().map(Vec::len), Some(2), "{models}");
}
