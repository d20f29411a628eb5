//! What the fleet does over time, with the real binary: drains with a deadline, mass silence, a stopped checker, events
//! that can be followed, nodes without an agent.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, Begun, Events, Response, written};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);
const JSON: (&str, &str) = ("content-type", "application/json");
/// What one scheduling hiccup of a busy machine may add to a bound.
const SLACK: Duration = Duration::from_millis(500);

/// A control plane with a state of its own.
struct Fleet {
    orchd: Orchd,
    _state: TempDir,
}

impl Fleet {
    fn start(options: &[&str]) -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        Self {
            orchd: Orchd::serve_cloud(state.path(), options),
            _state: state,
        }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Response {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        http::send(
            self.orchd.address,
            &written(method, path, &[JSON], body.as_bytes()),
        )
        .expect("an answer")
    }

    fn json(&self, status: u16, method: &str, path: &str, body: &Value) -> Value {
        let response = self.ask(method, path, body);
        let found = response.status;
        let body = response.json();
        assert_eq!(found, status, "{method} {path}: {body}");
        body
    }

    fn get(&self, path: &str) -> Value {
        self.json(200, "GET", path, &Value::Null)
    }

    fn node(&self, node_id: &str) -> Value {
        self.get(&format!("/v2/nodes/{node_id}"))
    }

    fn register(&self, node_id: &str) {
        let body =
            json!({"node_id": node_id, "machine_id": node_id, "address": "http://127.0.0.1:9"});
        self.json(200, "POST", "/v2/nodes/register", &body);
    }

    fn beat(&self, node_id: &str, body: &Value) -> Value {
        self.json(200, "POST", &format!("/v2/nodes/{node_id}/heartbeat"), body)
    }

    /// A node that beats once, whose one pool is this engine, dialled directly.
    fn node_with(&self, node_id: &str, engine: &ScriptedEngine, slots: u32) {
        self.register(node_id);
        self.beat(node_id, &pool_of(engine, slots));
    }

    fn events(&self, query: &str, after: Option<&str>) -> Events {
        events_of(&self.orchd, query, after)
    }

    fn chat(&self) -> Begun {
        let body =
            json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
        let request = written(
            "POST",
            "/v1/chat/completions",
            &[JSON],
            body.to_string().as_bytes(),
        );
        http::begin(self.orchd.address, &request).expect("a connection")
    }
}

fn events_of(orchd: &Orchd, query: &str, after: Option<&str>) -> Events {
    let mut headers = vec![];
    if let Some(after) = after {
        headers.push(("last-event-id", after));
    }
    let request = written("GET", &format!("/v2/events{query}"), &headers, b"");
    let response = http::send(orchd.address, &request).expect("an answer");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    response.events()
}

fn pool_of(engine: &ScriptedEngine, slots: u32) -> Value {
    json!({"pools": [{
        "pool_id": "p", "ready": true, "slots_free": slots, "slots_total": slots, "engine": "llamacpp", "state": "ready",
        "models_available": ["m"], "url": engine.url(),
    }]})
}

/// The next frame of the event stream, as `(id, event, data)`; the last two are empty in one that is only a place.
fn frame(events: &mut Events) -> (String, String, Value) {
    let lines = events
        .frame()
        .expect("readable")
        .expect("the stream goes on");
    let field = |name: &str| {
        let found = lines
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default().to_owned()
    };
    let data = match field("data").as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}")),
    };
    (field("id"), field("event"), data)
}

/// Reads events up to one of this kind, and gives its id, its data and the kinds before it.
fn up_to(events: &mut Events, kind: &str) -> (String, Value, Vec<String>) {
    let begun = Instant::now();
    let mut before = Vec::new();
    loop {
        assert!(begun.elapsed() < SOON, "no {kind} came, but {before:?}");
        let (id, event, data) = frame(events);
        if event == kind {
            return (id, data, before);
        }
        if !event.is_empty() {
            before.push(event);
        }
    }
}

#[test]
fn at_the_deadline_of_a_drain_what_runs_is_ended_in_band_and_counted() {
    let engine = ScriptedEngine::start("m", 2);
    let fleet = Fleet::start(&[]);
    fleet.node_with("n", &engine, 2);
    engine.script([
        Script::stream().event("one").silence(),
        Script::new().silence(),
    ]);
    let mut streaming = fleet.chat().answer().expect("an answer").events();
    assert!(streaming.next().expect("readable").is_some(), "it streams");
    let unanswered = fleet.chat();
    engine.wait_for(2);

    let asked = Instant::now();
    let node = fleet.json(
        202,
        "POST",
        "/v2/nodes/n/drain",
        &json!({"deadline_ms": 600, "reason": "kernel"}),
    );
    assert_eq!(node["status"], "Draining");
    assert_eq!(node["drain"]["in_flight"], 2);
    let oldest = node["drain"]["oldest_ms"].as_u64();
    assert!(oldest.is_some_and(|ms| ms < 10_000), "{node}");
    assert!(
        node["drain"]["remaining_ms"]
            .as_u64()
            .is_some_and(|ms| (400..=600).contains(&ms)),
        "{node}"
    );
    let order = fleet.beat("n", &pool_of(&engine, 2))["drain"].clone();
    assert!(
        order["remaining_ms"].as_u64().is_some_and(|ms| ms <= 600),
        "{order}"
    );

    let last = streaming
        .next()
        .expect("a proper end")
        .expect("a last event");
    let took = asked.elapsed();
    assert!(last.contains("drain_deadline"), "{last}");
    assert_eq!(
        streaming.next().expect("a proper end"),
        None,
        "and no [DONE]"
    );
    assert!(
        took >= Duration::from_millis(600) && took < Duration::from_millis(1_600) + SLACK,
        "{took:?}"
    );
    let refused = unanswered.answer().expect("an answer");
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(refused.json()["error"]["code"], "drain_deadline");
    for number in [0, 1] {
        engine.wait_left(number);
    }
    let acknowledged = json!({"pools": [], "drain_ack": {"id": order["id"], "in_flight": 0}});
    fleet.beat("n", &acknowledged);
    let drain = fleet.node("n")["drain"].clone();
    assert_eq!(
        (&drain["state"], &drain["cut"]),
        (&json!("drained"), &json!(2)),
        "{drain}"
    );
    assert_eq!(
        (&drain["remaining_ms"], &drain["in_flight_at_start"]),
        (&Value::Null, &json!(2))
    );
    assert_eq!(drain["oldest_ms"], Value::Null);
}

#[test]
fn force_ends_what_runs_at_once_and_a_repeated_order_keeps_the_drain() {
    let engine = ScriptedEngine::start("m", 1);
    let fleet = Fleet::start(&[]);
    fleet.node_with("n", &engine, 1);
    engine.script([Script::stream().event("one").silence()]);
    let mut streaming = fleet.chat().answer().expect("an answer").events();
    assert!(streaming.next().expect("readable").is_some(), "it streams");
    let first = fleet.json(
        202,
        "POST",
        "/v2/nodes/n/drain",
        &json!({"deadline_ms": 60_000}),
    );
    let again = fleet.json(202, "POST", "/v2/nodes/n/drain", &json!({"reason": "now"}));
    assert_eq!(again["drain"]["id"], first["drain"]["id"]);
    assert!(
        again["drain"]["remaining_ms"]
            .as_u64()
            .is_some_and(|ms| ms > 50_000),
        "none leaves it: {again}"
    );
    let shorter = fleet.json(
        202,
        "POST",
        "/v2/nodes/n/drain",
        &json!({"deadline_ms": 30_000}),
    );
    assert!(
        shorter["drain"]["remaining_ms"]
            .as_u64()
            .is_some_and(|ms| ms <= 30_000),
        "{shorter}"
    );
    let asked = Instant::now();
    fleet.json(202, "POST", "/v2/nodes/n/drain", &json!({"force": true}));
    let last = streaming
        .next()
        .expect("a proper end")
        .expect("a last event");
    assert!(
        last.contains("drain_deadline") && asked.elapsed() < Duration::from_secs(1) + SLACK,
        "{last}"
    );
    eventually(SOON, "it is counted", || {
        match &fleet.node("n")["drain"]["cut"] {
            cut if *cut == 1 => Ok(()),
            cut => Err(cut.to_string()),
        }
    });
    fleet.json(200, "DELETE", "/v2/nodes/n/drain", &Value::Null);
    assert_eq!(fleet.node("n")["drain"], Value::Null);
}

#[test]
fn a_client_that_has_stopped_reading_holds_up_no_forced_drain() {
    let engine = ScriptedEngine::start("m", 1);
    let fleet = Fleet::start(&[]);
    fleet.node_with("n", &engine, 1);
    engine.script([Script::stream().flood(60_000)]);
    let unread = fleet.chat();
    engine.wait_for(1);
    engine.wait_stuck(0);
    let asked = Instant::now();
    fleet.json(202, "POST", "/v2/nodes/n/drain", &json!({"force": true}));
    let took = engine.wait_left(0).duration_since(asked);
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    eventually(SOON, "nothing runs there any more", || {
        match &fleet.node("n")["drain"]["in_flight"] {
            none if *none == 0 => Ok(()),
            some => Err(some.to_string()),
        }
    });
    // Whoever reads on after all is told.
    let mut events = unread.answer().expect("an answer").events();
    let mut last = String::new();
    while let Some(event) = events.next().expect("a proper end") {
        last = event;
    }
    assert!(last.contains("drain_deadline"), "{:.200}", last);
}

#[test]
fn an_answer_that_cannot_carry_an_error_breaks_off_when_it_is_ended() {
    let engine = ScriptedEngine::start("m", 1);
    let fleet = Fleet::start(&[]);
    fleet.node_with("n", &engine, 1);
    engine.script([Script::chunked("application/json")
        .chunk("{\"a\":")
        .silence()]);
    let body = json!({"model": "m", "input": "x"}).to_string();
    let request = written("POST", "/v1/embeddings", &[JSON], body.as_bytes());
    let answer = http::send(fleet.orchd.address, &request).expect("an answer");
    assert_eq!(answer.status, 200);
    fleet.json(202, "POST", "/v2/nodes/n/drain", &json!({"force": true}));
    let read = answer.text();
    assert!(
        read.is_err(),
        "half an answer looks like a whole one: {read:?}"
    );
    engine.wait_left(0);
}

#[test]
fn what_is_left_of_a_drain_survives_a_kill_and_so_does_a_drain_that_is_done() {
    let mut fleet = Fleet::start(&[]);
    for node_id in ["done", "timed"] {
        fleet.register(node_id);
        fleet.beat(node_id, &json!({"pools": []}));
    }
    fleet.json(
        202,
        "POST",
        "/v2/nodes/timed/drain",
        &json!({"deadline_ms": 500_000}),
    );
    let drain = fleet.json(202, "POST", "/v2/nodes/done/drain", &Value::Null)["drain"].clone();
    fleet.beat(
        "done",
        &json!({"pools": [], "drain_ack": {"id": drain["id"], "in_flight": 0}}),
    );
    assert_eq!(fleet.node("done")["drain"]["state"], "drained");
    // What is not acknowledged to anybody may take a second to be written.
    std::thread::sleep(Duration::from_millis(1_500));
    fleet.orchd.kill9();
    fleet.orchd.start_again();
    let left = fleet.node("timed")["drain"]["remaining_ms"]
        .as_u64()
        .expect("a number");
    assert!((400_000..=500_000).contains(&left), "{left}");
    assert_eq!(fleet.node("done")["drain"]["state"], "drained");
}

#[test]
fn silence_is_found_within_a_second_of_the_timeout_however_rare_the_sweep_is() {
    let fleet = Fleet::start(&["--node-timeout", "1s", "--stale-check-interval", "60s"]);
    fleet.register("n");
    let heard = Instant::now();
    fleet.beat("n", &json!({"pools": []}));
    eventually(SOON, "it is Offline", || match &fleet.node("n")["status"] {
        status if *status == "Offline" => Ok(()),
        status => Err(status.to_string()),
    });
    let took = heard.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(2) + SLACK,
        "{took:?}"
    );
    eprintln!("silent for {took:?} with a timeout of 1 s and a sweep of 60 s: Offline");
}

#[test]
fn the_pools_of_a_node_that_leaves_are_told_to_be_gone() {
    let engine = ScriptedEngine::start("m", 2);
    let fleet = Fleet::start(&[]);
    fleet.node_with("n", &engine, 2);
    let mut events = fleet.events("?node_id=n", None);
    let left = fleet.ask("DELETE", "/v2/nodes/n", &Value::Null);
    assert_eq!(left.status, 204);
    let (_, removed, before) = up_to(&mut events, "pool.removed");
    assert_eq!(
        (&removed["pool_id"], &removed["from"]),
        (&json!("p"), &json!("ready"))
    );
    assert_eq!(before, Vec::<String>::new());
    let (_, _, between) = up_to(&mut events, "node.departed");
    assert_eq!(between, Vec::<String>::new());
}

#[test]
fn nothing_is_shown_as_ready_that_takes_no_requests() {
    let engine = ScriptedEngine::start("m", 2);
    let fleet = Fleet::start(&["--node-timeout", "1s"]);
    fleet.node_with("n", &engine, 2);
    let shown = || {
        let pools = fleet.get("/v2/pools");
        let pool = &pools["pools"][0];
        let models = fleet.get("/v1/models");
        let meta = &models["data"][0]["meta"];
        let of_pool = ["state", "ready", "draining", "slots_free"].map(|key| pool[key].clone());
        (json!(of_pool), json!([meta["state"], meta["slots"]]))
    };
    let ready = (json!(["ready", true, false, 2]), json!(["ready", 2]));
    assert_eq!(shown(), ready);
    fleet.json(202, "POST", "/v2/nodes/n/drain", &Value::Null);
    let draining = (json!(["ready", true, true, 2]), json!(["draining", 0]));
    assert_eq!(shown(), draining);
    fleet.json(200, "DELETE", "/v2/nodes/n/drain", &Value::Null);
    let failed = json!({"status": "failed", "reasons": []});
    let mut beat = pool_of(&engine, 2);
    beat["health"] = failed;
    fleet.beat("n", &beat);
    let useless = (json!(["ready", false, false, 0]), json!(["unreachable", 0]));
    assert_eq!(shown(), useless);
    fleet.beat("n", &pool_of(&engine, 2));
    assert_eq!(shown(), ready);
    let offline = (
        json!(["unreachable", false, false, 0]),
        json!(["unreachable", 0]),
    );
    eventually(SOON, "it is Offline", || match shown() {
        now if now == offline => Ok(()),
        now => Err(format!("{now:?}")),
    });
}

#[test]
fn a_stopped_control_plane_takes_nobody_for_dead() {
    let fleet = Fleet::start(&["--node-timeout", "1s"]);
    let nodes = ["n0", "n1", "n2"];
    let beat_all = || {
        for node_id in nodes {
            fleet.beat(node_id, &json!({"pools": []}));
        }
    };
    for node_id in nodes {
        fleet.register(node_id);
    }
    beat_all();
    let mut events = fleet.events("", None);
    // Heartbeats come every third of the timeout, wherever between two of them the stop falls, and however long it is.
    let third = Duration::from_millis(333);
    for (stopped, after_beat) in [
        (3_000, 0),
        (1_500, 150),
        (700, 300),
        (2_000, 300),
        (4_000, 200),
    ] {
        for _ in 0..3 {
            std::thread::sleep(third);
            beat_all();
        }
        std::thread::sleep(Duration::from_millis(after_beat));
        fleet.orchd.signal(Signal::SIGSTOP);
        // Nothing can be waited for in a process that is stopped.
        std::thread::sleep(Duration::from_millis(stopped));
        fleet.orchd.signal(Signal::SIGCONT);
        for node_id in nodes {
            let status = fleet.node(node_id)["status"].clone();
            assert_eq!(status, "Online", "before it is heard again");
        }
        std::thread::sleep(third);
        beat_all();
    }
    fleet.json(202, "POST", "/v2/nodes/n0/drain", &Value::Null);
    let (_, _, before) = up_to(&mut events, "drain.started");
    assert_eq!(
        before,
        Vec::<String>::new(),
        "nobody went Offline meanwhile"
    );
}

#[test]
fn mass_silence_holds_the_fleet_shows_it_and_ends() {
    let fleet = Fleet::start(&["--node-timeout", "1s", "--fleet-hold-max", "3s"]);
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    for name in &names {
        fleet.register(name);
        fleet.beat(name, &json!({"pools": []}));
    }
    let mut events = fleet.events("", None);
    let quiet = |list: &Value| -> Vec<String> {
        let nodes = list["nodes"].as_array().expect("a list");
        let suspect = nodes.iter().filter(|node| node["suspect"] == true);
        suspect
            .map(|node| node["node_id"].as_str().expect("a name").to_owned())
            .collect()
    };
    let beat_half = || {
        names[..5]
            .iter()
            .for_each(|name| drop(fleet.beat(name, &json!({"pools": []}))))
    };
    let (list, _) = eventually(SOON, "the fleet is held", || {
        beat_half();
        match fleet.get("/v2/nodes") {
            list if list["fleet_hold"].is_object() => Ok(list),
            list => Err(list["fleet_hold"].to_string()),
        }
    });
    assert_eq!(list["fleet_hold"]["nodes"], 5, "{list}");
    assert!(
        list["fleet_hold"]["ends_in_ms"]
            .as_u64()
            .is_some_and(|ms| ms <= 3_000)
    );
    assert_eq!(quiet(&list), names[5..]);
    for name in &names {
        assert_eq!(fleet.node(name)["status"], "Online", "{name}");
    }
    let (_, _, before) = up_to(&mut events, "fleet.hold");
    assert_eq!(before, Vec::<String>::new());
    eventually(
        SOON,
        "one that was not heard within the timeout says so",
        || {
            beat_half();
            match &fleet.node("n9")["online"] {
                online if *online == false => Ok(()),
                online => Err(online.to_string()),
            }
        },
    );
    // One of them is heard: four are too few for a hold, and they are Offline at once.
    beat_half();
    fleet.beat("n5", &json!({"pools": []}));
    let (_, _, before) = up_to(&mut events, "fleet.release");
    assert_eq!(before[..5], vec!["node.suspect"; 5], "{before:?}");
    eventually(SOON, "the others are Offline", || {
        beat_half();
        fleet.beat("n5", &json!({"pools": []}));
        let offline = fleet.get("/v2/nodes?status=Offline");
        if offline["total"] == 4 && offline["fleet_hold"].is_null() {
            Ok(())
        } else {
            Err(offline["total"].to_string())
        }
    });
    // All are heard, and all fall silent for good: held, and let go after the longest time.
    names
        .iter()
        .for_each(|name| drop(fleet.beat(name, &json!({"pools": []}))));
    let silent = Instant::now();
    let (_, data, _) = up_to(&mut events, "fleet.hold");
    assert!(
        data["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("10 nodes")),
        "{data}"
    );
    up_to(&mut events, "fleet.release");
    let took = silent.elapsed();
    assert!(
        took >= Duration::from_millis(3_900) && took < Duration::from_millis(5_000) + SLACK,
        "{took:?}"
    );
    up_to(&mut events, "node.offline");
    eventually(SOON, "all are Offline", || {
        match &fleet.get("/v2/nodes?status=Offline")["total"] {
            total if *total == 10 => Ok(()),
            total => Err(total.to_string()),
        }
    });
}

#[test]
fn what_happens_can_be_followed_and_resumed() {
    let engine = ScriptedEngine::start("m", 1);
    let mut fleet = Fleet::start(&[]);
    let mut events = fleet.events("", None);
    let (place, _, _) = frame(&mut events);
    assert!(place.ends_with("-0"), "{place}");
    fleet.node_with("n", &engine, 1);
    fleet.register("m");
    let (registered, data, _) = up_to(&mut events, "node.registered");
    assert_eq!(
        (&data["type"], &data["node_id"]),
        (&json!("node.registered"), &json!("n"))
    );
    assert!(data["at_ms"].is_u64());
    let (_, data, before) = up_to(&mut events, "node.online");
    assert_eq!(
        (&data["from"], &data["to"]),
        (&json!("Registering"), &json!("Online"))
    );
    assert_eq!(before, ["pool.added"]);
    let drain = json!({"reason": "kernel", "requested_by": "me@host"});
    fleet.json(202, "POST", "/v2/nodes/n/drain", &drain);
    fleet.json(202, "POST", "/v2/nodes/n/drain", &drain);
    fleet.json(200, "DELETE", "/v2/nodes/n/drain", &Value::Null);
    fleet.json(200, "DELETE", "/v2/nodes/n/drain", &Value::Null);
    let busy = json!({"pools": [{"pool_id": "p", "ready": false, "state": "loading", "models_available": ["m"]}]});
    fleet.beat("n", &busy);
    fleet.ask("DELETE", "/v2/nodes/n", &Value::Null);
    let (last, _, before) = up_to(&mut events, "node.departed");
    assert_eq!(
        before,
        [
            "node.registered",
            "drain.started",
            "drain.ended",
            "pool.state",
            "pool.removed"
        ],
        "each once"
    );

    let mut again = fleet.events("", Some(&registered));
    let (_, _, before) = up_to(&mut again, "node.departed");
    assert_eq!(
        before,
        [
            "pool.added",
            "node.online",
            "node.registered",
            "drain.started",
            "drain.ended",
            "pool.state",
            "pool.removed"
        ],
    );
    let mut only = fleet.events("?node_id=m", Some(&place));
    let (_, data, before) = up_to(&mut only, "node.registered");
    assert_eq!((data["node_id"].as_str(), before.len()), (Some("m"), 0));
    let refused = fleet.ask("GET", "/v2/events?node_id=a/b", &Value::Null);
    assert_eq!(refused.status, 400);

    fleet.orchd.kill9();
    fleet.orchd.start_again();
    let mut after = fleet.events("", Some(&last));
    let (id, data, before) = up_to(&mut after, "resync");
    assert!(before.is_empty() && id != last, "{id}");
    assert_eq!(data["type"], "resync");
    assert!(data["at_ms"].is_u64(), "{data}");
    fleet.beat("m", &json!({"pools": []}));
    let (_, data, _) = up_to(&mut after, "node.online");
    assert_eq!(data["node_id"], "m");
    // A reader does not keep a stopping server alive.
    let stopped = Instant::now();
    fleet.orchd.terminate();
    assert_eq!(fleet.orchd.wait(SOON), Some(0));
    assert!(
        stopped.elapsed() < Duration::from_secs(3),
        "{:?}",
        stopped.elapsed()
    );
}

#[test]
fn a_drain_asked_for_anew_and_a_failed_machine_are_told_with_what_was_said() {
    let fleet = Fleet::start(&[]);
    fleet.register("n");
    fleet.beat("n", &json!({"pools": []}));
    let mut events = fleet.events("?node_id=n", None);
    let first = json!({"reason": "kernel", "requested_by": "ada@host"});
    fleet.json(202, "POST", "/v2/nodes/n/drain", &first);
    let (_, data, _) = up_to(&mut events, "drain.started");
    assert_eq!(
        (&data["reason"], &data["by"]),
        (&json!("kernel"), &json!("ada@host"))
    );
    let again = json!({"reason": "disk", "requested_by": "bob@host", "deadline_ms": 600_000});
    fleet.json(202, "POST", "/v2/nodes/n/drain", &again);
    let (_, data, before) = up_to(&mut events, "drain.updated");
    assert_eq!(
        (&data["node_id"], &data["reason"], &data["by"]),
        (&json!("n"), &json!("disk"), &json!("bob@host")),
        "{data}"
    );
    assert_eq!(before, Vec::<String>::new());

    fleet.json(200, "DELETE", "/v2/nodes/n/drain", &Value::Null);
    let health = |status: &str, reasons: Value| json!({"pools": [], "health": {"status": status, "reasons": reasons}});
    let lost = json!([{"code": "GPU_LOST", "message": "GPU 0 has fallen off the bus"}]);
    fleet.beat("n", &health("failed", lost));
    let (_, data, before) = up_to(&mut events, "node.failed");
    assert_eq!(
        (&data["node_id"], &data["from"], &data["to"]),
        (&json!("n"), &json!("Online"), &json!("Failed")),
        "{data}"
    );
    let reason = data["reason"].as_str().expect("a reason");
    assert!(reason.contains("GPU 0 has fallen off the bus"), "{reason}");
    assert_eq!(before, ["drain.ended"]);
    fleet.beat("n", &health("ok", json!([])));
    let (_, data, before) = up_to(&mut events, "node.online");
    assert_eq!(data["from"], "Failed", "{data}");
    assert_eq!(before, Vec::<String>::new());
}

#[test]
fn another_machine_under_the_name_of_a_drained_node_that_left_has_no_drain() {
    let fleet = Fleet::start(&[]);
    let of = |machine: &str| json!({"node_id": "n", "machine_id": machine, "address": "http://127.0.0.1:9"});
    fleet.json(200, "POST", "/v2/nodes/register", &of("a"));
    let drain = json!({"reason": "kernel"});
    fleet.json(202, "POST", "/v2/nodes/n/drain", &drain);
    let leave = |fleet: &Fleet| {
        let left = fleet.ask("DELETE", "/v2/nodes/n", &Value::Null);
        assert_eq!(left.status, 204);
    };
    // The same machine is bound by what was asked of it.
    leave(&fleet);
    fleet.json(200, "POST", "/v2/nodes/register", &of("a"));
    assert_eq!(fleet.node("n")["drain"]["reason"], "kernel");
    leave(&fleet);
    assert_eq!(fleet.get("/v2/nodes?departed=true")["total"], 1);
    fleet.json(200, "POST", "/v2/nodes/register", &of("b"));
    let reply = fleet.beat("n", &json!({"pools": []}));
    assert_eq!(reply["drain"], Value::Null, "{reply}");
    let node = fleet.node("n");
    assert_eq!(
        (&node["machine_id"], &node["status"], &node["drain"]),
        (&json!("b"), &json!("Online"), &Value::Null),
        "{node}"
    );
    assert_eq!(fleet.get("/v2/nodes?departed=true")["total"], 0);
}

#[test]
fn a_page_of_nodes_has_a_thousand_unless_told_otherwise_and_says_where_the_next_begins() {
    const CONNECTIONS: usize = 8;
    let fleet = Fleet::start(&[]);
    let name = |n: usize| format!("n{n:04}");
    at_once(CONNECTIONS, |first| {
        let mut connection = http::begin(fleet.orchd.address, b"").expect("a connection");
        for n in (first..1_001).step_by(CONNECTIONS) {
            let body = json!({"node_id": name(n), "address": "http://127.0.0.1:9"}).to_string();
            let request = written("POST", "/v2/nodes/register", &[JSON], body.as_bytes());
            let response = connection.ask(&request).expect("an answer");
            assert_eq!(response.status, 200);
            response.text().expect("a whole body");
        }
    });
    let page = fleet.get("/v2/nodes");
    assert_eq!(
        (&page["count"], &page["total"], &page["next"]),
        (&json!(1_000), &json!(1_001), &json!(name(999)))
    );
    let nodes = page["nodes"].as_array().expect("a list");
    assert_eq!(nodes.len(), 1_000);
    assert_eq!(
        (&nodes[0]["node_id"], &nodes[999]["node_id"]),
        (&json!(name(0)), &json!(name(999)))
    );
    let rest = fleet.get(&format!("/v2/nodes?after={}", name(999)));
    assert_eq!(
        (&rest["count"], &rest["next"], &rest["nodes"][0]["node_id"]),
        (&json!(1), &Value::Null, &json!(name(1_000)))
    );
}

#[test]
fn the_events_of_one_machine_are_those_of_its_node_local() {
    let engine = ScriptedEngine::start("m", 1);
    let home = Orchd::serve_home(&[engine.url()], &[]);
    // From the beginning, as whoever gives an id that is not known.
    let mut events = events_of(&home, "?node_id=local", Some("?"));
    let (_, data, _) = up_to(&mut events, "pool.added");
    assert_eq!(data["node_id"], "local", "{data}");
    let fleet = Fleet::start(&[]);
    fleet.events("?node_id=local", None);
    let refused = fleet.ask("GET", "/v2/events?node_id=register", &Value::Null);
    assert_eq!(refused.status, 400);
}

#[test]
fn a_node_without_an_agent_is_read_by_the_control_plane_itself() {
    let a = ScriptedEngine::start("m", 2);
    let b = ScriptedEngine::start("m", 3);
    let mut fleet = Fleet::start(&["--node-timeout", "1s"]);
    let body = json!({"node_id": "bare", "engines": [{"url": a.url()}, {"url": b.url(), "pool_id": "big"}]});
    fleet.json(200, "POST", "/v2/nodes/register", &body);
    let ready = |fleet: &Fleet, slots: u64| {
        eventually(SOON, "its engines are read", || {
            let capacity =
                fleet.get("/v2/catalog/availability")["models"][0]["total_capacity"].clone();
            if capacity == slots {
                Ok(())
            } else {
                Err(capacity.to_string())
            }
        });
    };
    ready(&fleet, 5);
    let node = fleet.node("bare");
    assert_eq!(
        (&node["status"], &node["address"]),
        (&json!("Online"), &Value::Null)
    );
    let pools: Vec<&Value> = node["pool_status"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|p| &p["pool_id"])
        .collect();
    assert_eq!(pools, ["default", "big"]);
    b.script([Script::stream().event("[DONE]").end()]);
    a.script([Script::stream().event("[DONE]").end()]);
    for _ in 0..2 {
        let text = fleet
            .chat()
            .answer()
            .expect("an answer")
            .text()
            .expect("whole");
        assert!(text.contains("[DONE]"), "{text}");
    }
    // Read often enough to stay Online with a timeout of one second, and again after a restart.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(fleet.node("bare")["status"], "Online");
    fleet.orchd.kill9();
    fleet.orchd.start_again();
    ready(&fleet, 5);
    // One engine is enough to be heard; with none, it is silent like any other node.
    a.kill();
    eventually(SOON, "the engine is unreachable", || {
        match &fleet.node("bare")["pool_status"][0]["state"] {
            state if *state == "unreachable" => Ok(()),
            state => Err(state.to_string()),
        }
    });
    assert_eq!(fleet.node("bare")["status"], "Online");
    b.kill();
    eventually(
        SOON,
        "it is Offline",
        || match &fleet.node("bare")["status"] {
            status if *status == "Offline" => Ok(()),
            status => Err(status.to_string()),
        },
    );
    let same =
        json!({"node_id": "bare", "engines": [{"url": a.url()}, {"url": a.url(), "pool_id": "x"}]});
    let refused = fleet.json(400, "POST", "/v2/nodes/register", &same);
    assert!(
        refused["message"]
            .as_str()
            .is_some_and(|text| text.contains("twice")),
        "{refused}"
    );
    fleet.ask("DELETE", "/v2/nodes/bare", &Value::Null);
    assert_eq!(fleet.get("/v2/pools")["count"], 0);
}

#[test]
fn an_announced_node_is_whichever_machine_comes_first() {
    let fleet = Fleet::start(&[]);
    let announced =
        fleet
            .orchd
            .command(&["nodes", "register", "n", "--address", "http://127.0.0.1:9"]);
    assert_eq!(announced.exit, Some(0), "{}", announced.stderr);
    fleet.json(202, "POST", "/v2/nodes/n/drain", &json!({"reason": "new"}));
    let of = |machine: &str| json!({"node_id": "n", "machine_id": machine, "instance_id": machine, "address": "http://127.0.0.1:9"});
    fleet.json(200, "POST", "/v2/nodes/register", &of("a"));
    fleet.json(409, "POST", "/v2/nodes/register", &of("b"));
    let node = fleet.node("n");
    assert_eq!(
        (&node["machine_id"], &node["drain"]["reason"]),
        (&json!("a"), &json!("new"))
    );
}

#[test]
fn a_drain_is_kept_over_a_killed_server_and_an_agent_that_stops_and_returns() {
    let engine = ScriptedEngine::start("m", 1);
    let mut fleet = Fleet::start(&["--node-timeout", "3s"]);
    let status = |fleet: &Fleet, wanted: &str| {
        eventually(SOON, &format!("it is {wanted}"), || {
            match &fleet.ask("GET", "/v2/nodes/n", &Value::Null).json()["status"] {
                status if *status == wanted => Ok(()),
                status => Err(status.to_string()),
            }
        });
    };
    let mut agent = Orchd::agent(&fleet.orchd.url(), "n", &[engine.url()]);
    status(&fleet, "Online");
    let drained = fleet
        .orchd
        .command(&["nodes", "drain", "n", "--reason", "kernel"]);
    assert_eq!(drained.exit, Some(0), "{}", drained.stderr);
    fleet.orchd.kill9();
    fleet.orchd.start_again();
    status(&fleet, "Draining");
    agent.terminate();
    assert_eq!(agent.wait(SOON), Some(0), "it leaves in good order");
    assert_eq!(fleet.get("/v2/nodes")["total"], 0);
    let departed = fleet.get("/v2/nodes?departed=true");
    assert_eq!(
        departed["nodes"][0]["drain"]["reason"], "kernel",
        "{departed}"
    );
    fleet.orchd.kill9();
    fleet.orchd.start_again();
    agent.start_again();
    status(&fleet, "Draining");
    // That it was done may not have been written when the server was killed; the agent says so again.
    eventually(SOON, "the same drain is done", || {
        match &fleet.node("n")["drain"] {
            drain if drain["reason"] == "kernel" && drain["state"] == "drained" => Ok(()),
            drain => Err(drain.to_string()),
        }
    });
    assert_eq!(fleet.get("/v2/catalog/availability")["models"], json!([]));
    let undrained = fleet.orchd.command(&["nodes", "undrain", "n"]);
    assert_eq!(undrained.exit, Some(0), "{}", undrained.stderr);
    status(&fleet, "Online");
}
