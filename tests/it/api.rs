//! The control API from outside: `orchd serve --cloud`, as the original system's clients, an operator and somebody who
//! gets everything wrong speak to it.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::fake_control_plane::orchd;
use crate::scripted_engine::ScriptedEngine;
use crate::support::http::{self, Response, written};
use crate::support::orchd::Orchd;
use crate::support::process::Running;
use crate::support::{eventually, free_address};

/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);
const JSON: (&str, &str) = ("content-type", "application/json");

/// The original system's example bodies, as they were printed.
const REGISTER: &str = r#"{
  "node_id": "gpu-node-1",
  "machine_id": "machine-alpha",
  "address": "http://192.168.1.100:9200",
  "pools": ["pool-0", "pool-1"],
  "capabilities": {
    "gpus": [
      { "device_id": 0, "name": "RTX 3090", "vram_total_bytes": 24000000000, "compute_capability": "8.6" }
    ],
    "cpu_cores": 16,
    "ram_total_bytes": 64000000000
  },
  "version": "0.1.0"
}"#;
const HEARTBEAT: &str = r#"{
  "timestamp": "2025-09-30T22:00:00Z",
  "pools": [
    {
      "pool_id": "pool-0",
      "ready": true,
      "draining": false,
      "slots_free": 3,
      "slots_total": 4,
      "vram_free_bytes": 18000000000,
      "engine": "llamacpp"
    }
  ]
}"#;

/// A control plane of a fleet, with a state of its own.
struct Fleet {
    orchd: Orchd,
    _state: TempDir,
}

fn fleet() -> Fleet {
    fleet_with(&[])
}

fn fleet_with(options: &[&str]) -> Fleet {
    let state = tempfile::tempdir().expect("a directory for the state");
    Fleet {
        orchd: Orchd::serve_cloud(state.path(), options),
        _state: state,
    }
}

impl Fleet {
    fn ask(&self, method: &str, path: &str, body: &str) -> Response {
        let request = written(method, path, &[JSON], body.as_bytes());
        http::send(self.orchd.address, &request).expect("an answer")
    }

    /// The JSON of an answer that must have this status.
    fn json(&self, status: u16, method: &str, path: &str, body: &str) -> Value {
        let response = self.ask(method, path, body);
        let found = response.status;
        assert!(response.header("x-orchd-version").is_some());
        let body = response.json();
        assert_eq!(found, status, "{method} {path}: {body}");
        body
    }

    fn register(&self, body: &Value) -> Value {
        self.json(200, "POST", "/v2/nodes/register", &body.to_string())
    }

    fn beat(&self, node_id: &str, body: &Value) -> Value {
        let path = format!("/v2/nodes/{node_id}/heartbeat");
        self.json(200, "POST", &path, &body.to_string())
    }

    fn node(&self, node_id: &str) -> Value {
        self.json(200, "GET", &format!("/v2/nodes/{node_id}"), "")
    }

    fn list(&self, query: &str) -> Value {
        self.json(200, "GET", &format!("/v2/nodes{query}"), "")
    }

    /// Waits until a node has this status, and says how long that took.
    fn wait_status(&self, node_id: &str, status: &str) -> Duration {
        let what = format!("{node_id} is {status}");
        let look = || match &self.node(node_id)["status"] {
            found if *found == status => Ok(()),
            found => Err(found.to_string()),
        };
        eventually(SOON, &what, look).1
    }
}

/// Checks that an answer is a refusal as the contract has it, and gives its body.
fn refusal(response: Response, status: u16, code: &str) -> Value {
    let header = |name: &str| response.header(name).map(str::to_owned);
    let (version, kind) = (header("x-orchd-version"), header("content-type"));
    let retry_after = header("retry-after");
    let found = response.status;
    let text = response.text().expect("a whole body");
    assert_eq!(found, status, "{text}");
    assert_eq!(kind.as_deref(), Some("application/json"), "{text}");
    assert_eq!(version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(body["code"], code, "{body}");
    let message = body["message"].as_str().expect("a message");
    assert!(message.len() > 10, "{body}");
    assert_eq!(body["error"], message, "{body}");
    let retryable = body["retryable"].as_bool().expect("yes or no");
    assert_eq!(retryable, code == "NODE_ID_CONFLICT", "{body}");
    let seconds = retry_after.as_deref().map(str::parse::<u32>);
    match seconds {
        Some(Ok(1..)) => assert!(retryable, "{body}"),
        None => assert!(!retryable, "{body}"),
        other => panic!("retry-after: {other:?}"),
    }
    body
}

fn contains(body: &Value, parts: &[&str]) {
    let message = body["message"].as_str().expect("a message");
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
}

/// A small registration: `changes` over a name and an address.
fn registration(node_id: &str, changes: &Value) -> Value {
    let mut body = json!({"node_id": node_id, "address": format!("http://{node_id}.test:9200")});
    merge(&mut body, changes);
    body
}

/// A heartbeat with one pool: `changes` over a ready one with four free slots and the model `m`.
fn beat(changes: &Value) -> Value {
    let mut pool = json!({
        "pool_id": "p", "ready": true, "draining": false, "slots_free": 4, "slots_total": 4, "engine": "llamacpp",
        "state": "ready", "models_available": ["m"], "n_ctx": 2_048,
    });
    merge(&mut pool, changes);
    json!({"pools": [pool]})
}

fn merge(into: &mut Value, changes: &Value) {
    for (key, value) in changes.as_object().expect("an object") {
        into[key] = value.clone();
    }
}

fn ids(list: &Value) -> Vec<&str> {
    let nodes = list["nodes"].as_array().expect("a list");
    nodes
        .iter()
        .map(|node| node["node_id"].as_str().expect("a name"))
        .collect()
}

// The original system's clients.

#[test]
fn the_four_calls_of_the_original_system_answer_as_they_did() {
    let fleet = fleet();
    let reply = fleet.json(200, "POST", "/v2/nodes/register", REGISTER);
    assert_eq!(reply["success"], true);
    assert!(reply["message"].is_string());
    assert_eq!(reply["node_id"], "gpu-node-1");
    assert_eq!(reply["heartbeat_interval_ms"], 10_000);
    assert_eq!(reply["node_timeout_ms"], 30_000);
    assert_eq!(reply["durable"], true);
    let node = fleet.node("gpu-node-1");
    assert_eq!(node["status"], "Registering");
    assert_eq!(node["online"], false);
    let at = |field: &str| node[field].as_u64().expect("a number");
    let apart = at("last_heartbeat_ms") - at("registered_at_ms");
    assert!(apart < 1_000, "the registration counts as heard");

    let path = "/v2/nodes/gpu-node-1/heartbeat";
    let reply = fleet.json(200, "POST", path, HEARTBEAT);
    let expected = json!({
        "success": true, "next_heartbeat_ms": 10_000, "node_timeout_ms": 30_000, "status": "Online", "drain": null,
    });
    assert_eq!(reply, expected);

    let list = fleet.list("");
    assert_eq!((&list["count"], &list["total"]), (&json!(1), &json!(1)));
    assert_eq!(list["next"], Value::Null);
    assert_eq!(list["fleet_hold"], Value::Null);
    let node = &list["nodes"][0];
    let registered: Value = serde_json::from_str(REGISTER).expect("JSON");
    for field in [
        "node_id",
        "machine_id",
        "address",
        "pools",
        "capabilities",
        "version",
    ] {
        assert_eq!(node[field], registered[field], "{field}");
    }
    let reported: Value = serde_json::from_str(HEARTBEAT).expect("JSON");
    let (pool, reported) = (&node["pool_status"][0], &reported["pools"][0]);
    for (field, value) in reported.as_object().expect("an object") {
        assert_eq!(pool[field], *value, "{field}");
    }
    assert_eq!(pool["running"], 0);
    assert_eq!(node["status"], "Online");
    for (field, value) in [
        ("online", json!(true)),
        ("schedulable", json!(true)),
        ("suspect", json!(false)),
        ("labels", json!({})),
        ("drain", Value::Null),
    ] {
        assert_eq!(node[field], value, "{field}");
    }
    let at = |field: &str| node[field].as_u64().expect("a number");
    assert!(at("registered_at_ms") <= at("last_heartbeat_ms"));
    assert!(at("last_heartbeat_age_ms") < 10_000);
    for field in ["instance_id", "health"] {
        assert_eq!(node.get(field), Some(&Value::Null), "{field}");
    }

    let gone = fleet.ask("DELETE", "/v2/nodes/gpu-node-1", "");
    assert_eq!(gone.status, 204);
    assert!(gone.header("x-orchd-version").is_some());
    assert_eq!(gone.header("content-length"), None);
    assert_eq!(gone.header("transfer-encoding"), None);
    assert_eq!(fleet.list("")["nodes"], json!([]));
    let body = refusal(fleet.ask("POST", path, HEARTBEAT), 404, "NODE_NOT_FOUND");
    assert_eq!(body["success"], false);
    assert_eq!(body["next_heartbeat_ms"], 10_000);
    for method in ["DELETE", "GET"] {
        let again = fleet.ask(method, "/v2/nodes/gpu-node-1", "");
        contains(&refusal(again, 404, "NODE_NOT_FOUND"), &["gpu-node-1"]);
    }
}

#[test]
fn original_clients_may_leave_out_what_they_used_to_leave_out() {
    let fleet = fleet();
    let address = "http://h:9200";
    for (number, capabilities) in [
        json!({"gpus": []}),
        json!({}),
        json!({"gpus": [{"device_id": 0, "name": "A", "vram_total_bytes": 1}]}),
        json!({"gpus": [{}], "cpu_cores": 1}),
    ]
    .into_iter()
    .enumerate()
    {
        let node_id = format!("n{number}");
        fleet.register(&json!({
            "node_id": node_id, "machine_id": "m", "address": address, "pools": [], "capabilities": capabilities,
        }));
        let node = fleet.node(&node_id);
        assert_eq!(node["version"], Value::Null);
    }
    // The least there is. The machine is the node then.
    fleet.register(&json!({"node_id": "least", "address": address}));
    let node = fleet.node("least");
    assert_eq!(node["machine_id"], "least");
    assert_eq!(node["pools"], json!([]));
    // What this version does not know, it ignores.
    let more = json!({"node_id": "more", "address": address, "future": {"a": [1]}, "capabilities": {"npus": 2}});
    fleet.register(&more);
    fleet.beat(
        "more",
        &json!({"pools": [{"pool_id": "p", "ready": true, "future": 1}], "future": null}),
    );
    assert_eq!(fleet.node("more")["status"], "Online");
    // An original heartbeat without pools, and one that claims more free slots than there are.
    fleet.beat("least", &json!({"timestamp": "yesterday", "pools": []}));
    fleet.beat("least", &beat(&json!({"slots_free": 9})));
    assert_eq!(fleet.node("least")["pool_status"][0]["slots_free"], 4);
}

#[test]
fn a_registration_may_be_repeated() {
    let fleet = fleet();
    let first = registration("n", &json!({"labels": {"rack": "b2"}, "instance_id": "i1"}));
    fleet.register(&first);
    fleet.beat("n", &beat(&json!({})));
    let before = fleet.node("n");
    fleet.register(&first);
    let mut again = first.clone();
    merge(
        &mut again,
        &json!({"labels": {"rack": "b3"}, "version": "2"}),
    );
    fleet.register(&again);
    let after = fleet.node("n");
    for field in ["registered_at_ms", "pool_status", "instance_id", "status"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(after["labels"], json!({"rack": "b3"}));
    assert_eq!(after["version"], "2");

    // Another process of the agent begins anew.
    merge(&mut again, &json!({"instance_id": "i2"}));
    fleet.register(&again);
    let anew = fleet.node("n");
    assert_eq!(anew["registered_at_ms"], before["registered_at_ms"]);
    assert_eq!(anew["status"], "Registering");
    assert_eq!(anew["pool_status"], json!([]));
}

// Refusals.

#[test]
fn the_home_profile_refuses_every_node_call_whatever_it_holds() {
    let orchd = Orchd::serve_home(&[], &[]);
    let large = "x".repeat(200_000);
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        for path in [
            "/v2/nodes",
            "/v2/nodes?status=nonsense",
            "/v2/nodes/",
            "/v2/nodes/register",
            "/v2/nodes/n",
            "/v2/nodes/n/heartbeat",
            "/v2/nodes/n/drain",
            "/v2/nodes/n/what/ever",
            "/v2/nodes/%FF",
        ] {
            for (headers, body) in [
                (&[][..], ""),
                (&[JSON][..], REGISTER),
                (&[JSON][..], "{broken"),
                (&[("content-type", "text/plain")][..], large.as_str()),
            ] {
                let request = written(method, path, headers, body.as_bytes());
                let response = http::send(orchd.address, &request).expect("an answer");
                let body = refusal(response, 503, "CLOUD_PROFILE_DISABLED");
                contains(&body, &["--cloud", "ORCHESTRATORD_CLOUD_PROFILE"]);
            }
        }
    }
    for path in ["/v2/pools", "/v2/catalog/availability", "/v2/meta/version"] {
        http::get_json(orchd.address, path);
    }
    let health = http::get_json(orchd.address, "/health");
    assert_eq!(health["status"], "ok");
    assert_eq!(health["profile"], "home");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn unknown_routes_and_methods_are_named() {
    let fleet = fleet();
    for path in [
        "/",
        "/v2",
        "/v2/",
        "/v2/node",
        "/v2/nodes/",
        "/v2/nodes/a/b",
        "/v2/nodes/a/heartbeat/b",
        "/v2/nodesx",
        "/v3/nodes",
        "/V2/nodes",
        "//v2/nodes",
        "/v2/nodes/../pools",
        "/favicon.ico",
    ] {
        contains(
            &refusal(fleet.ask("GET", path, ""), 404, "NOT_FOUND"),
            &[path],
        );
    }
    for (method, path) in [
        ("GET", "/v2/nodes/register"),
        ("DELETE", "/v2/nodes/register"),
        ("POST", "/v2/nodes"),
        ("PUT", "/v2/nodes/n"),
        ("POST", "/v2/nodes/n"),
        ("GET", "/v2/nodes/n/heartbeat"),
        ("GET", "/v2/nodes/n/drain"),
        ("PUT", "/v2/nodes/n/drain"),
        ("POST", "/v2/pools"),
        ("DELETE", "/v2/catalog/availability"),
        ("POST", "/health"),
        ("BREW", "/v2/nodes"),
    ] {
        let response = fleet.ask(method, path, "{broken");
        assert!(response.header("allow").is_some(), "{method} {path}");
        let body = refusal(response, 405, "METHOD_NOT_ALLOWED");
        contains(&body, &[method, path]);
    }
}

#[test]
fn refusals_come_in_one_order() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let fleet = fleet_with(&["--api-token", TOKEN]);
    let bearer = format!("Bearer {TOKEN}");
    let token = ("authorization", &*bearer);
    let text = ("content-type", "text/plain");
    let large = "x".repeat((1 << 20) + 1);
    let register = "/v2/nodes/register";
    let unknown = "/v2/nodes/nobody/heartbeat";
    let conflict = registration("n", &json!({"machine_id": "another"})).to_string();
    let first = registration("n", &json!({})).to_string();
    let send = |method, path, headers: &[(&str, &str)], body: &str| {
        let request = written(method, path, headers, body.as_bytes());
        http::send(fleet.orchd.address, &request).expect("an answer")
    };
    assert_eq!(send("POST", register, &[token], &first).status, 200);
    for (method, path, headers, body, status, code) in [
        // Everything is wrong with it: who asks comes first.
        (
            "POST",
            "/v2/nodes/a/b",
            &[text][..],
            &*large,
            401,
            "UNAUTHORIZED",
        ),
        ("PUT", register, &[text], &large, 401, "UNAUTHORIZED"),
        // Then the route.
        (
            "POST",
            "/v2/nodes/a/b",
            &[token, text],
            &large,
            404,
            "NOT_FOUND",
        ),
        (
            "PUT",
            register,
            &[token, text],
            &large,
            405,
            "METHOD_NOT_ALLOWED",
        ),
        // Then the size, the type, the content.
        (
            "POST",
            register,
            &[token, text],
            &large,
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "POST",
            unknown,
            &[token, text],
            &large,
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "POST",
            register,
            &[token, text],
            "{broken",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            unknown,
            &[token, text],
            "{broken",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            "/v2/nodes/nobody/drain",
            &[token, text],
            "{}",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            "POST",
            register,
            &[token],
            "{broken",
            400,
            "INVALID_REQUEST",
        ),
        ("POST", unknown, &[token], "{broken", 400, "INVALID_REQUEST"),
        (
            "POST",
            "/v2/nodes/nobody/drain",
            &[token],
            "{broken",
            400,
            "INVALID_REQUEST",
        ),
        // Then what is known.
        (
            "POST",
            register,
            &[token],
            &conflict,
            409,
            "NODE_ID_CONFLICT",
        ),
        ("POST", unknown, &[token], HEARTBEAT, 404, "NODE_NOT_FOUND"),
        (
            "POST",
            "/v2/nodes/nobody/drain",
            &[token],
            "{}",
            404,
            "NODE_NOT_FOUND",
        ),
        (
            "DELETE",
            "/v2/nodes/nobody/drain",
            &[token],
            "",
            404,
            "NODE_NOT_FOUND",
        ),
    ] {
        refusal(send(method, path, headers, body), status, code);
    }
}

#[test]
fn a_body_may_have_1_mib_and_any_json_type_or_none() {
    let fleet = fleet();
    let mut body = registration("n", &json!({})).to_string();
    body += &" ".repeat((1 << 20) - body.len());
    for headers in [
        &[][..],
        &[JSON],
        &[("content-type", "application/json; charset=utf-8")],
        &[("content-type", "Application/JSON")],
        &[("content-type", "application/vnd.orchd+json")],
    ] {
        let request = written("POST", "/v2/nodes/register", headers, body.as_bytes());
        let response = http::send(fleet.orchd.address, &request).expect("an answer");
        assert_eq!(response.status, 200, "{headers:?}");
    }
    // However far above, and however much of it was sent before the answer came.
    for more in [1, 16 << 20] {
        let body = format!("{body}{}", " ".repeat(more));
        let request = written("POST", "/v2/nodes/register", &[JSON], body.as_bytes());
        let mut client = http::begin(fleet.orchd.address, b"").expect("a connection");
        let sent = client.more(&request);
        let response = client
            .answer()
            .unwrap_or_else(|e| panic!("sending: {sent:?}; the answer: {e}"));
        let body = refusal(response, 413, "PAYLOAD_TOO_LARGE");
        assert_eq!(body["success"], false);
        contains(&body, &["1048576"]);
    }
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "",
    ] {
        let headers = [("content-type", kind)];
        let request = written("POST", "/v2/nodes/register", &headers, REGISTER.as_bytes());
        let response = http::send(fleet.orchd.address, &request).expect("an answer");
        refusal(response, 415, "UNSUPPORTED_MEDIA_TYPE");
    }
}

/// Lists of so many entries.
fn many(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..count).map(entry).collect()
}

#[test]
fn a_registration_that_does_not_fit_is_refused_and_changes_nothing() {
    let fleet = fleet();
    let deep = format!(
        r#"{{"node_id":"n","address":"http://h:1","labels":{}{}}}"#,
        r#"{"a":"#.repeat(50_000),
        "}".repeat(50_000)
    );
    let broken = [
        "",
        " ",
        "null",
        "[]",
        "\"n\"",
        "{",
        &REGISTER[..REGISTER.len() - 1],
        &REGISTER[..REGISTER.len() / 2],
        "{} {}",
        "\u{feff}{}",
        &deep,
        r#"{"node_id":"n","address":"http://h:1","node_id":"n"}"#,
    ];
    let labels = |count| {
        let labels = (0..count).map(|n| (format!("l{n}"), "v".into()));
        Value::Object(labels.collect())
    };
    let gpu = |n| json!({"device_id": n, "name": "G", "vram_total_bytes": 1});
    let mut ill_fitting: Vec<Value> = [
        json!({"node_id": 1}),
        json!({"node_id": null}),
        json!({"node_id": ["n"]}),
        json!({"address": null}),
        json!({"address": 9200}),
        json!({"machine_id": 1}),
        json!({"pools": "pool-0"}),
        json!({"pools": [1]}),
        json!({"pools": [null]}),
        json!({"labels": {"a": null}}),
        json!({"capabilities": {"gpus": [null]}}),
        json!({"engines": [null]}),
        json!({"capabilities": {"gpus": {}}}),
        json!({"capabilities": {"gpus": [{"device_id": -1}]}}),
        json!({"capabilities": {"gpus": [{"vram_total_bytes": "24 GB"}]}}),
        json!({"capabilities": {"cpu_cores": 1.5}}),
        json!({"labels": ["a"]}),
        json!({"labels": {"a": 1}}),
        json!({"instance_id": 1}),
        json!({"version": 1}),
        json!({"pools": many(1_025, |n| json!(format!("p{n}")))}),
        json!({"capabilities": {"gpus": many(65, gpu)}}),
        json!({"labels": labels(65)}),
    ]
    .into();
    for node_id in [
        "",
        "a/b",
        "a b",
        ".",
        "..",
        ".hidden",
        "-n",
        "_n",
        "nœud",
        "模型",
        "a\u{0}b",
        "a\nb",
        "a%2Fb",
        "local",
        "register",
        &"n".repeat(129),
    ] {
        ill_fitting.push(json!({"node_id": node_id}));
    }
    for address in [
        "",
        "h:9200",
        "/path",
        "http://",
        "http://:9200",
        "http://h:99999",
        "http://h h",
        "http://user@h",
        "http://user:secret@h",
        "http://h?x=1",
        "http://h#x",
        "ftp://h",
        "file:///etc/passwd",
        "unix:/run/x.sock",
        "javascript:alert(1)",
    ] {
        ill_fitting.push(json!({"address": address}));
    }
    let ill_fitting: Vec<String> = ill_fitting
        .iter()
        .map(|changes| registration("n", changes).to_string())
        .collect();
    let without = [r#"{"node_id":"n"}"#, r#"{"address":"http://h:1"}"#, "{}"];
    let all = broken
        .into_iter()
        .chain(ill_fitting.iter().map(String::as_str))
        .chain(without);
    for body in all {
        let response = fleet.ask("POST", "/v2/nodes/register", body);
        assert_eq!(response.status, 400, "{body:.300}");
        let refused = refusal(response, 400, "INVALID_REQUEST");
        assert_eq!(refused["success"], false, "{body:.300}");
        assert!(refused["node_id"].is_string(), "{body:.300}");
        let message = refused["message"].as_str().expect("a message");
        assert!(message.len() < 1_000, "{message:.300}");
        assert!(!message.contains("secret"), "{message}");
    }
    let refused = fleet.ask(
        "POST",
        "/v2/nodes/register",
        r#"{"node_id":"a/b","address":"http://h"}"#,
    );
    assert_eq!(refusal(refused, 400, "INVALID_REQUEST")["node_id"], "a/b");
    assert_eq!(fleet.list("")["total"], 0);

    // What just fits.
    fleet.register(&json!({
        "node_id": "n".repeat(128), "address": "https://[::1]:9200/base/", "labels": labels(64),
        "pools": many(1_024, |n| json!(format!("p{n}"))), "capabilities": {"gpus": many(64, gpu)},
    }));
    fleet.register(&registration("0.x_y-Z", &json!({})));
    assert_eq!(fleet.list("")["total"], 2);
}

#[test]
fn a_heartbeat_that_does_not_fit_is_refused_and_changes_nothing() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    fleet.beat("n", &beat(&json!({})));
    let before = fleet.node("n");
    let pool = |n: usize| json!({"pool_id": format!("p{n}"), "ready": true});
    let with = |changes: Value| {
        let mut body = json!({"pools": [pool(0)]});
        merge(&mut body, &changes);
        body.to_string()
    };
    let with_pool = |changes: Value| {
        let mut one = pool(0);
        merge(&mut one, &changes);
        json!({"pools": [one]}).to_string()
    };
    let bodies = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        HEARTBEAT[..HEARTBEAT.len() - 1].into(),
        "[".repeat(100_000),
        with(json!({"pools": null})),
        with(json!({"pools": {}})),
        with(json!({"pools": ["p"]})),
        with(json!({"pools": [{"pool_id": "p"}]})),
        with(json!({"pools": [{"ready": true}]})),
        with(json!({"pools": [pool(1), pool(2), pool(1)]})),
        with(json!({"pools": many(1_025, pool)})),
        with(json!({"seq": -1})),
        with(json!({"seq": "1"})),
        with(json!({"health": {"status": "fine"}})),
        with(json!({"health": "ok"})),
        with(json!({"drain_ack": {"id": "x"}})),
        with_pool(json!({"pool_id": "a/b"})),
        with_pool(json!({"pool_id": ""})),
        with_pool(json!({"pool_id": "p".repeat(129)})),
        with_pool(json!({"ready": "yes"})),
        with_pool(json!({"slots_total": -1})),
        with_pool(json!({"slots_free": 1.5})),
        with_pool(json!({"slots_total": 5_000_000_000_u64})),
        with_pool(json!({"url": "ftp://h"})),
        with_pool(json!({"url": "http://u:secret@h"})),
        with_pool(json!({"models_available": "m"})),
        with_pool(json!({"models_available": [""]})),
        with_pool(json!({"models_available": ["a\nb"]})),
        with_pool(json!({"models_available": ["x".repeat(513)]})),
    ];
    for body in &bodies {
        let response = fleet.ask("POST", "/v2/nodes/n/heartbeat", body);
        assert_eq!(response.status, 400, "{body:.300}");
        let refused = refusal(response, 400, "INVALID_REQUEST");
        assert_eq!(refused["success"], false, "{body:.300}");
        assert_eq!(refused["next_heartbeat_ms"], 10_000, "{body:.300}");
        let message = refused["message"].as_str().expect("a message");
        assert!(!message.contains("secret"), "{message}");
    }
    let after = fleet.node("n");
    assert_eq!(after["pool_status"], before["pool_status"]);
    assert_eq!(after["last_heartbeat_ms"], before["last_heartbeat_ms"]);

    let fits = with(json!({"pools": many(1_024, pool)}));
    fleet.json(200, "POST", "/v2/nodes/n/heartbeat", &fits);
    let odd =
        with_pool(json!({"models_available": ["org/m:Q4", "模型"], "state": "of a newer version"}));
    fleet.json(200, "POST", "/v2/nodes/n/heartbeat", &odd);
}

#[test]
fn a_name_in_a_path_that_cannot_be_a_node_is_not_found() {
    let fleet = fleet();
    let long = "n".repeat(129);
    let longer = "n".repeat(20_000);
    for name in [
        "..",
        ".",
        "%2e%2e",
        "a%2Fb",
        "a%20b",
        "n%C5%93ud",
        "%00",
        "a%0Ab",
        "local",
        "-n",
        "'",
        "a;b",
        "a%25b",
        &long,
        &longer,
    ] {
        for (method, rest, body) in [
            ("GET", "", ""),
            ("DELETE", "", ""),
            ("POST", "/heartbeat", HEARTBEAT),
            ("POST", "/drain", "{}"),
            ("DELETE", "/drain", ""),
        ] {
            let path = format!("/v2/nodes/{name}{rest}");
            refusal(fleet.ask(method, &path, body), 404, "NODE_NOT_FOUND");
        }
    }
}

// The list.

#[test]
fn the_list_is_sorted_filtered_and_paged() {
    let fleet = fleet();
    for (node_id, labels) in [
        ("c", json!({"rack": "1", "gpu": "h100"})),
        ("a", json!({"rack": "1"})),
        ("B", json!({"rack": "2", "gpu": "h100"})),
        ("a-1", json!({"rack": "1", "empty": ""})),
        ("10", json!({"k": "a=b"})),
        ("9", json!({})),
    ] {
        fleet.register(&registration(node_id, &json!({"labels": labels})));
    }
    for node_id in ["a", "c", "B"] {
        fleet.beat(node_id, &beat(&json!({})));
    }
    let drained = fleet.ask("POST", "/v2/nodes/B/drain", "");
    assert_eq!(drained.status, 202);

    for (query, expected) in [
        ("", &["10", "9", "B", "a", "a-1", "c"][..]),
        ("?nonsense=1", &["10", "9", "B", "a", "a-1", "c"]),
        ("?status=Online", &["a", "c"]),
        ("?status=Online,Draining", &["B", "a", "c"]),
        ("?status=Online&status=Draining", &["B", "a", "c"]),
        ("?status=Registering", &["10", "9", "a-1"]),
        ("?status=Offline", &[]),
        ("?label=rack=1", &["a", "a-1", "c"]),
        ("?label=rack=1&label=gpu=h100", &["c"]),
        ("?label=rack%3D2", &["B"]),
        ("?label=k=a=b", &["10"]),
        ("?label=empty=", &["a-1"]),
        ("?label=rack=3", &[]),
        ("?label=rack=1&status=Online", &["a", "c"]),
        ("?departed=true", &[]),
        ("?departed=false", &["10", "9", "B", "a", "a-1", "c"]),
        ("?after=zzz", &[]),
        ("?after=aa", &["c"]),
    ] {
        let list = fleet.list(query);
        assert_eq!(ids(&list), expected, "{query}");
        assert_eq!(list["count"], expected.len(), "{query}");
        assert_eq!(list["next"], Value::Null, "{query}");
        assert!(list.get("fleet_hold").is_some(), "{query}");
    }

    // Pages, of all and of some.
    for (filter, total, pages) in [
        (
            "limit=2",
            6,
            &[&["10", "9"][..], &["B", "a"], &["a-1", "c"]][..],
        ),
        ("limit=4", 6, &[&["10", "9", "B", "a"], &["a-1", "c"]]),
        ("limit=6", 6, &[&["10", "9", "B", "a", "a-1", "c"]]),
        ("limit=1&label=rack=1", 3, &[&["a"], &["a-1"], &["c"]]),
    ] {
        let mut after = String::new();
        for (number, page) in pages.iter().enumerate() {
            let list = fleet.list(&format!("?{filter}{after}"));
            assert_eq!(ids(&list), *page, "{filter}");
            assert_eq!(list["count"], page.len(), "{filter}");
            assert_eq!(list["total"], total, "{filter}");
            if number + 1 < pages.len() {
                assert_eq!(list["next"], page[page.len() - 1], "{filter}");
                after = format!("&after={}", page[page.len() - 1]);
            } else {
                assert_eq!(list["next"], Value::Null, "{filter}");
            }
        }
    }

    for (query, part) in [
        ("?limit=0", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=many", "limit"),
        ("?limit=99999999999999999999", "limit"),
        ("?limit=", "limit"),
        ("?status=online", "Registering"),
        ("?status=Online,Gone", "Gone"),
        ("?label=rack", "KEY=VALUE"),
        ("?after=a/b", "after"),
        ("?departed=maybe", "departed"),
    ] {
        let response = fleet.ask("GET", &format!("/v2/nodes{query}"), "");
        contains(&refusal(response, 400, "INVALID_REQUEST"), &[part]);
    }
}

#[test]
fn a_node_that_left_is_gone_and_what_was_asked_of_it_stays() {
    let fleet = fleet();
    let node = registration("n", &json!({"machine_id": "m1"}));
    fleet.register(&node);
    fleet.ask("POST", "/v2/nodes/n/drain", r#"{"reason":"fans"}"#);
    assert_eq!(fleet.ask("DELETE", "/v2/nodes/n", "").status, 204);
    assert_eq!(fleet.list("")["total"], 0);
    assert_eq!(ids(&fleet.list("?departed=true")), ["n"]);
    refusal(
        fleet.ask("DELETE", "/v2/nodes/n", ""),
        404,
        "NODE_NOT_FOUND",
    );
    refusal(
        fleet.ask("POST", "/v2/nodes/n/heartbeat", HEARTBEAT),
        404,
        "NODE_NOT_FOUND",
    );
    // It holds again when the same machine comes back.
    fleet.register(&node);
    let reply = fleet.beat("n", &beat(&json!({})));
    assert_eq!(reply["status"], "Draining");
    assert!(reply["drain"]["id"].is_string(), "{reply}");
    assert_eq!(fleet.node("n")["drain"]["reason"], "fans");
    // Until it is forgotten.
    assert_eq!(
        fleet.ask("DELETE", "/v2/nodes/n?forget=true", "").status,
        204
    );
    assert_eq!(fleet.list("?departed=true")["total"], 0);
    fleet.register(&node);
    assert_eq!(fleet.node("n")["drain"], Value::Null);
    // A departed one can be forgotten or undrained, too; then nothing is known of it.
    for (method, path, status) in [
        ("DELETE", "/v2/nodes/n?forget=true", 204),
        ("DELETE", "/v2/nodes/n/drain", 200),
    ] {
        fleet.register(&node);
        assert_eq!(fleet.ask("POST", "/v2/nodes/n/drain", "").status, 202);
        assert_eq!(fleet.ask("DELETE", "/v2/nodes/n", "").status, 204);
        assert_eq!(
            fleet.ask(method, path, "").status,
            status,
            "{method} {path}"
        );
        refusal(fleet.ask(method, path, ""), 404, "NODE_NOT_FOUND");
        assert_eq!(fleet.list("?departed=true")["total"], 0);
    }
}

#[test]
fn a_drain_is_acknowledged_with_the_node_and_ended_by_undrain() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    fleet.beat("n", &beat(&json!({})));
    // Not draining is fine, too.
    let node = fleet.json(200, "DELETE", "/v2/nodes/n/drain", "");
    assert_eq!(node["node_id"], "n");
    assert_eq!(node["drain"], Value::Null);

    let path = "/v2/nodes/n/drain";
    let node = fleet.json(202, "POST", path, "");
    let drain = &node["drain"];
    assert_eq!(node["status"], "Draining");
    assert_eq!(node["schedulable"], false);
    assert_eq!(node["online"], true);
    assert!(drain["id"].as_str().is_some_and(|id| !id.is_empty()));
    for (field, value) in [
        ("state", json!("draining")),
        ("reason", Value::Null),
        ("requested_by", Value::Null),
        ("remaining_ms", Value::Null),
        ("in_flight", json!(0)),
        ("in_flight_at_start", json!(0)),
        ("cut", json!(0)),
        ("unverified", json!(false)),
    ] {
        assert_eq!(drain[field], value, "{field}");
    }
    assert!(drain["started_at_ms"].as_u64().is_some_and(|at| at > 0));

    // Asked again it is the same drain, with what is said now.
    for body in [
        "{}",
        r#"{"reason":"fans","requested_by":"ada@host","deadline_ms":null,"force":false}"#,
    ] {
        let again = fleet.json(202, "POST", path, body);
        assert_eq!(again["drain"]["id"], drain["id"]);
        assert_eq!(again["drain"]["started_at_ms"], drain["started_at_ms"]);
    }
    let node = fleet.node("n");
    assert_eq!(node["drain"]["reason"], "fans");
    assert_eq!(node["drain"]["requested_by"], "ada@host");

    // The agent is told, and its word ends it.
    let reply = fleet.beat("n", &beat(&json!({})));
    let expected = json!({"id": drain["id"], "remaining_ms": null, "force": false});
    assert_eq!(reply["drain"], expected);
    assert_eq!(reply["status"], "Draining");
    let mut word = beat(&json!({}));
    word["drain_ack"] = json!({"id": drain["id"], "in_flight": 1});
    fleet.beat("n", &word);
    assert_eq!(fleet.node("n")["drain"]["state"], "draining");
    word["drain_ack"]["in_flight"] = json!(0);
    fleet.beat("n", &word);
    let node = fleet.node("n");
    assert_eq!(node["drain"]["state"], "drained");
    assert_eq!(node["drain"]["unverified"], false);
    assert_eq!(node["status"], "Draining");

    for _ in 0..2 {
        let node = fleet.json(200, "DELETE", path, "");
        assert_eq!(node["status"], "Online");
        assert_eq!(node["schedulable"], true);
    }
    let anew = fleet.json(202, "POST", path, "{}");
    assert_ne!(anew["drain"]["id"], drain["id"], "another drain");
}

#[test]
fn a_drain_whose_body_does_not_fit_is_refused() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    for body in [
        "1",
        r#"{"reason":1}"#,
        r#"{"deadline_ms":"5m"}"#,
        r#"{"force":"yes"}"#,
        "{",
    ] {
        let response = fleet.ask("POST", "/v2/nodes/n/drain", body);
        refusal(response, 400, "INVALID_REQUEST");
        assert_eq!(
            fleet.node("n")["drain"],
            Value::Null,
            "nothing half-applied"
        );
    }
}

// Who holds a name.

#[test]
fn another_machine_does_not_get_a_name_whose_holder_is_alive() {
    let fleet = fleet();
    let of = |machine: &str| registration("n", &json!({"machine_id": machine}));
    fleet.register(&of("machine-a"));
    let response = fleet.ask("POST", "/v2/nodes/register", &of("machine-b").to_string());
    let seconds: Option<u64> = response.header("retry-after").and_then(|s| s.parse().ok());
    assert!(
        matches!(seconds, Some(25..=30)),
        "what is left of the lease: {seconds:?}"
    );
    let body = refusal(response, 409, "NODE_ID_CONFLICT");
    assert_eq!(body["success"], false);
    assert_eq!(body["node_id"], "n");
    contains(&body, &["machine-a", "machine-b"]);
    assert_eq!(fleet.node("n")["machine_id"], "machine-a");
    // One that has left holds nothing.
    assert_eq!(fleet.ask("DELETE", "/v2/nodes/n", "").status, 204);
    fleet.register(&of("machine-b"));
    assert_eq!(fleet.node("n")["machine_id"], "machine-b");
}

#[test]
fn an_agent_process_that_was_replaced_is_told_so() {
    let fleet = fleet();
    for instance in ["old", "new"] {
        fleet.register(&registration("n", &json!({"instance_id": instance})));
    }
    let from = |instance: &str, seq: u64, ready: bool| {
        let mut body = beat(&json!({"ready": ready}));
        merge(&mut body, &json!({"instance_id": instance, "seq": seq}));
        body
    };
    fleet.beat("n", &from("new", 1, true));
    let late = from("old", 9, false).to_string();
    let body = refusal(
        fleet.ask("POST", "/v2/nodes/n/heartbeat", &late),
        409,
        "SUPERSEDED",
    );
    assert_eq!(body["success"], false);
    assert_eq!(body["next_heartbeat_ms"], 10_000);
    let leave = "/v2/nodes/n?instance_id=old";
    refusal(fleet.ask("DELETE", leave, ""), 409, "SUPERSEDED");
    let node = fleet.node("n");
    assert_eq!(node["instance_id"], "new");
    assert_eq!(node["pool_status"][0]["ready"], true);
    // An original client knows no instances, and is heard.
    fleet.beat("n", &beat(&json!({"ready": false})));
    assert_eq!(fleet.node("n")["pool_status"][0]["ready"], false);
    let leave = fleet.ask("DELETE", "/v2/nodes/n?instance_id=new", "");
    assert_eq!(leave.status, 204);
}

#[test]
fn a_heartbeat_that_comes_twice_or_late_is_acknowledged_and_ignored() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({"instance_id": "i"})));
    let numbered = |seq: u64, free: u64| {
        let mut body = beat(&json!({"slots_free": free}));
        merge(&mut body, &json!({"instance_id": "i", "seq": seq}));
        body
    };
    fleet.beat("n", &numbered(5, 1));
    let heard = fleet.node("n")["last_heartbeat_ms"].clone();
    eventually(
        SOON,
        "some time has passed",
        || match fleet.node("n")["last_heartbeat_age_ms"].as_u64() {
            Some(20..) => Ok(()),
            age => Err(format!("{age:?}")),
        },
    );
    for seq in [5, 4, 0] {
        let reply = fleet.beat("n", &numbered(seq, 3));
        assert_eq!(reply["success"], true);
        assert_eq!(reply["status"], "Online");
    }
    let node = fleet.node("n");
    assert_eq!(node["pool_status"][0]["slots_free"], 1);
    assert_eq!(node["last_heartbeat_ms"], heard);
    assert!(
        node["last_heartbeat_age_ms"]
            .as_u64()
            .is_some_and(|age| age >= 20)
    );
    fleet.beat("n", &numbered(6, 2));
    let node = fleet.node("n");
    assert_eq!(node["pool_status"][0]["slots_free"], 2);
    // Another process counts from the beginning.
    fleet.register(&registration("n", &json!({"instance_id": "j"})));
    let mut first = numbered(1, 4);
    first["instance_id"] = json!("j");
    fleet.beat("n", &first);
    assert_eq!(fleet.node("n")["pool_status"][0]["slots_free"], 4);
}

// Silence.

#[test]
fn a_silent_node_is_offline_in_time_and_online_again_when_it_is_heard() {
    let timeout = Duration::from_secs(1);
    let fleet = fleet_with(&["--node-timeout", "1s", "--stale-check-interval", "60s"]);
    let begun = Instant::now();
    let reply = fleet.register(&registration("beats", &json!({"machine_id": "m1"})));
    assert_eq!(reply["node_timeout_ms"], 1_000);
    assert_eq!(reply["heartbeat_interval_ms"], 333);
    fleet.register(&registration("never-beats", &json!({})));
    let reply = fleet.beat("beats", &beat(&json!({})));
    assert_eq!(reply["next_heartbeat_ms"], 333);
    let heard = Instant::now();
    assert_eq!(fleet.ask("POST", "/v2/nodes/beats/drain", "").status, 202);

    fleet.wait_status("never-beats", "Offline");
    let silent = begun.elapsed();
    fleet.wait_status("beats", "Offline");
    let (least, most) = (heard.elapsed(), begun.elapsed());
    eprintln!("offline after {silent:?} without a heartbeat, {least:?} after one");
    assert!(silent > timeout && most > timeout, "{silent:?} {most:?}");
    let late = timeout + Duration::from_secs(1);
    assert!(silent < late && least < late, "{silent:?} {least:?}");
    let node = fleet.node("beats");
    assert_eq!(node["online"], false);
    assert_eq!(node["schedulable"], false);

    // Heard again it is what it was, and what was asked of it holds.
    let reply = fleet.beat("never-beats", &beat(&json!({})));
    assert_eq!(reply["status"], "Online");
    let reply = fleet.beat("beats", &beat(&json!({})));
    assert_eq!(reply["status"], "Draining");
    assert_eq!(
        fleet.json(200, "DELETE", "/v2/nodes/beats/drain", "")["status"],
        "Online"
    );

    // A silent one is taken over by another machine, without what was asked of the first.
    assert_eq!(fleet.ask("POST", "/v2/nodes/beats/drain", "").status, 202);
    fleet.wait_status("beats", "Offline");
    fleet.register(&registration("beats", &json!({"machine_id": "m2"})));
    let node = fleet.node("beats");
    assert_eq!(node["machine_id"], "m2");
    assert_eq!(node["status"], "Registering");
    assert_eq!(node["drain"], Value::Null);
    assert_eq!(node["pool_status"], json!([]));
}

// Starts that fail.

/// Runs `orchd serve` with these arguments, which must not start: its exit code and what it said.
fn fails_to_start(arguments: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a directory for the log");
    let log = dir.path().join("orchd.log");
    let mut all = vec!["serve"];
    all.extend(arguments);
    let mut command = orchd(&all);
    command.env("HOME", dir.path()).current_dir(dir.path());
    let mut running = Running::spawn("orchd serve", &mut command, &log);
    let code = running.wait(SOON);
    (code, fs::read_to_string(&log).expect("its log"))
}

fn says(log: &str, parts: &[&str]) {
    for part in parts {
        assert!(log.contains(part), "{part:?} in:\n{log}");
    }
}

#[test]
fn a_second_server_on_the_same_state_says_who_has_it() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let _first = Orchd::serve_cloud(state.path(), &[]);
    let directory = state.path().to_str().expect("UTF-8");
    let address = free_address().to_string();
    let arguments = ["--cloud", "--state-dir", directory, "--listen", &address];
    let (code, log) = fails_to_start(&arguments);
    assert_eq!(code, Some(1), "{log}");
    says(&log, &["error: ", directory]);
    // By the number of its process, which has the directory on its command line.
    let error = log.lines().find(|line| line.starts_with("error: "));
    let numbers = error
        .into_iter()
        .flat_map(|line| line.split(|c: char| !c.is_ascii_digit()));
    let named = numbers
        .filter_map(|number| fs::read_to_string(format!("/proc/{number}/cmdline")).ok())
        .any(|command| command.contains(directory));
    assert!(named, "no process that has it:\n{log}");
}

#[test]
fn a_port_that_is_taken_is_refused_with_who_has_it() {
    let first = Orchd::serve_home(&[], &[]);
    let engine = ScriptedEngine::start("m", 1);
    let other = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    for (address, who) in [
        (first.address, "another orchd"),
        (engine.address, "a llama-server"),
        (other.local_addr().expect("it is bound"), "another program"),
    ] {
        let state = tempfile::tempdir().expect("a directory for the state");
        let directory = state.path().to_str().expect("UTF-8");
        let address = address.to_string();
        for profile in [&[][..], &["--cloud", "--state-dir", directory]] {
            let mut arguments = vec!["--listen", &*address];
            arguments.extend(profile);
            let (code, log) = fails_to_start(&arguments);
            assert_eq!(code, Some(1), "{log}");
            says(&log, &["error: ", &address, who, "hint: ", "--listen"]);
        }
    }
}

#[test]
fn what_cannot_be_started_is_a_matter_of_usage() {
    for (arguments, parts) in [
        (
            &["--listen", "0.0.0.0:0"][..],
            &["0.0.0.0:0", "ORCHD_API_TOKEN"][..],
        ),
        (&["--listen", "[::]:0"], &["ORCHD_API_TOKEN"]),
        (
            &["--listen", "0.0.0.0:0", "--api-token", "short"],
            &["32 characters"],
        ),
        (
            &["--cloud", "--engine", "http://127.0.0.1:1"],
            &["--engine", "HOME", "orchd agent"],
        ),
    ] {
        let (code, log) = fails_to_start(arguments);
        assert_eq!(code, Some(2), "{log}");
        says(&log, &["error: ", "hint: "]);
        says(&log, parts);
        assert!(!log.contains("listening on"), "{log}");
    }
}

// What is shown of pools.

#[test]
fn pools_and_the_catalog_show_what_the_last_heartbeat_said() {
    let fleet = fleet();
    let empty = fleet.json(200, "GET", "/v2/pools", "");
    assert_eq!(empty, json!({"pools": [], "count": 0}));
    let empty = fleet.json(200, "GET", "/v2/catalog/availability", "");
    assert_eq!(empty, json!({"models": []}));

    for node_id in ["n2", "n1"] {
        fleet.register(&registration(node_id, &json!({})));
    }
    let mut two = beat(&json!({
        "pool_id": "b", "slots_free": 1, "models_available": ["m", "org/x:Q4"], "vram_free_bytes": 7,
        "engine_version": "b1-7e4c0a9", "url": "http://127.0.0.1:8081",
    }));
    let other = beat(&json!({"pool_id": "a", "ready": false, "state": "loading"}));
    two["pools"]
        .as_array_mut()
        .expect("a list")
        .push(other["pools"][0].clone());
    fleet.beat("n1", &two);
    fleet.beat("n2", &beat(&json!({"slots_total": 8, "slots_free": 8})));

    let pools = fleet.json(200, "GET", "/v2/pools", "");
    assert_eq!(pools["count"], 3);
    let names: Vec<(&Value, &Value)> = pools["pools"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|pool| (&pool["node_id"], &pool["pool_id"]))
        .collect();
    let expected = [("n1", "a"), ("n1", "b"), ("n2", "p")].map(|(n, p)| (json!(n), json!(p)));
    let expected: Vec<(&Value, &Value)> = expected.iter().map(|(n, p)| (n, p)).collect();
    assert_eq!(names, expected, "sorted");
    let shown = json!({
        "node_id": "n1", "pool_id": "b", "engine": "llamacpp", "engine_version": "b1-7e4c0a9",
        "models": ["m", "org/x:Q4"], "state": "ready", "ready": true, "draining": false, "ejected": false,
        "slots_total": 4, "slots_free": 1, "external": 3, "running": 0, "waiting": 0, "vram_free_bytes": 7,
        "n_ctx": 2_048, "url": "http://127.0.0.1:8081",
    });
    assert_eq!(pools["pools"][1], shown);
    assert_eq!(pools["pools"][0]["state"], "loading");
    assert_eq!(pools["pools"][0]["ready"], false);
    // Without a url of its own a pool is reached through its agent.
    assert_eq!(pools["pools"][2]["url"], "http://n2.test:9200/pools/p");
    let keys = |pool: &Value| -> BTreeSet<String> {
        pool.as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    for pool in pools["pools"].as_array().expect("a list") {
        assert_eq!(keys(pool), keys(&shown), "every pool has every field");
    }

    let availability = || fleet.json(200, "GET", "/v2/catalog/availability", "");
    let of = |model: &str, nodes: &[&str], capacity: u64| json!({"model_id": model, "nodes": nodes, "total_nodes": nodes.len(), "total_capacity": capacity});
    let expected = [of("m", &["n1", "n2"], 12), of("org/x:Q4", &["n1"], 4)];
    assert_eq!(availability(), json!({"models": expected}));

    // A node that drains offers nothing, nor does a pool that is gone.
    fleet.json(202, "POST", "/v2/nodes/n1/drain", "");
    assert_eq!(availability(), json!({"models": [of("m", &["n2"], 8)]}));
    let pools = fleet.json(200, "GET", "/v2/pools", "");
    assert_eq!(pools["pools"][1]["draining"], true);
    fleet.json(200, "DELETE", "/v2/nodes/n1/drain", "");
    fleet.beat("n2", &json!({"pools": []}));
    let expected = [of("m", &["n1"], 4), of("org/x:Q4", &["n1"], 4)];
    assert_eq!(availability(), json!({"models": expected}));
    assert_eq!(fleet.json(200, "GET", "/v2/pools", "")["count"], 2);
    assert_eq!(fleet.ask("DELETE", "/v2/nodes/n1", "").status, 204);
    assert_eq!(availability(), json!({"models": []}));
    let version = fleet.json(200, "GET", "/v2/meta/version", "");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["profile"], "cloud");
}

// What only looks right.

#[test]
fn a_list_is_not_taken_for_an_object() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    let accepted: Vec<&str> = [
        ("/v2/nodes/n/drain", "[]"),
        ("/v2/nodes/n/drain", r#"["why"]"#),
        ("/v2/nodes/register", r#"["m",null,"http://h:9200"]"#),
        (
            "/v2/nodes/register",
            r#"{"node_id":"m","address":"http://h:9200","capabilities":[]}"#,
        ),
        ("/v2/nodes/n/heartbeat", r#"[null,[["p",true]]]"#),
        ("/v2/nodes/n/heartbeat", r#"{"pools":[["p",true]]}"#),
    ]
    .into_iter()
    .filter(|(path, body)| fleet.ask("POST", path, body).status != 400)
    .map(|(_, body)| body)
    .collect();
    assert_eq!(accepted, Vec::<&str>::new());
    assert_eq!(fleet.node("n")["drain"], Value::Null);
}

/// Every place of an object within a value, as a pointer to it.
fn fields(value: &Value, here: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let place = format!("{here}/{name}");
                fields(value, &place, found);
                found.push(place);
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                fields(value, &format!("{here}/{at}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn null_for_what_may_be_left_out_is_as_good_as_leaving_it_out() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    let gpu = json!({"device_id": 1, "name": "G", "vram_total_bytes": 1, "compute_capability": "8.6", "uuid": "u",
        "driver_version": "d", "cuda_version": "13.0", "mig": false, "unified_memory": false});
    let register = json!({
        "node_id": "m", "machine_id": "m", "address": "http://h:1", "pools": ["p"], "version": "1", "instance_id": "i",
        "labels": {}, "announced": false, "engines": [],
        "capabilities": {"gpus": [gpu], "cpu_cores": 1, "ram_total_bytes": 1},
    });
    let agentless = json!({"node_id": "a", "address": null, "engines": [{"url": "http://127.0.0.1:9", "pool_id": "p"}]});
    let beat = json!({
        "timestamp": "t", "instance_id": null, "seq": null,
        "health": {"status": "ok", "reasons": [{"code": "C", "message": "m"}]}, "drain_ack": {"id": "d", "in_flight": 0},
        "pools": [{"pool_id": "p", "ready": true, "draining": false, "slots_free": 1, "slots_total": 1,
            "vram_free_bytes": 1, "engine": "llamacpp", "url": "http://h:1", "state": "ready", "models_available": ["m"],
            "engine_version": "1", "n_ctx": 1, "in_flight": 0, "detail": "d"}],
    });
    let drain = json!({"reason": "r", "deadline_ms": 60_000, "force": false, "requested_by": "me"});
    let needed = [
        "/node_id",
        "/address",
        "/engines/0/url",
        "/pools/0/pool_id",
        "/pools/0/ready",
        "/health/status",
        "/health/reasons/0/code",
        "/health/reasons/0/message",
        "/drain_ack/id",
        "/drain_ack/in_flight",
    ];
    for (path, whole, needed_here) in [
        ("/v2/nodes/register", &register, &needed[..]),
        (
            "/v2/nodes/register",
            &agentless,
            &["/node_id", "/engines", "/engines/0/url"],
        ),
        (
            "/v2/nodes/n/heartbeat",
            &beat,
            &[&["/pools"][..], &needed[..]].concat(),
        ),
        ("/v2/nodes/n/drain", &drain, &[]),
    ] {
        let mut places = Vec::new();
        fields(whole, "", &mut places);
        assert!(places.len() > 3, "{whole}");
        for place in places {
            let mut body = whole.clone();
            *body.pointer_mut(&place).expect("it is there") = Value::Null;
            let response = fleet.ask("POST", path, &body.to_string());
            let taken = response.status < 300;
            let needs = needed_here.contains(&place.as_str());
            let said = response.text().expect("a whole body");
            assert_eq!(taken, !needs, "{path}: {place} is null: {said}");
            assert!(!said.contains("not valid JSON"), "{said}");
        }
    }
    // It is what it would be if it were not there.
    let nulls = json!({"node_id": "m", "address": "http://h:1", "pools": null, "labels": null, "engines": null,
        "capabilities": {"gpus": [{"name": null, "vram_total_bytes": null, "device_id": null}]}});
    fleet.register(&nulls);
    let node = fleet.node("m");
    assert_eq!(
        (&node["pools"], &node["labels"]),
        (&json!([]), &json!({})),
        "{node}"
    );
    let gpu = &node["capabilities"]["gpus"][0];
    assert_eq!(
        (&gpu["name"], &gpu["vram_total_bytes"]),
        (&json!(""), &json!(0)),
        "{node}"
    );
    fleet.beat(
        "m",
        &json!({"pools": [{"pool_id": "p", "ready": true, "state": null, "models_available": null, "draining": null}]}),
    );
    let pool = &fleet.node("m")["pool_status"][0];
    assert_eq!(
        (&pool["state"], &pool["models_available"], &pool["draining"]),
        (&json!("unknown"), &json!([]), &json!(false)),
        "{pool}"
    );
}

#[test]
fn json_that_does_not_fit_is_not_called_invalid_json() {
    let fleet = fleet();
    fleet.register(&registration("n", &json!({})));
    let beat = |pool: &str| format!(r#"{{"pools":[{{"pool_id":"p","ready":true,{pool}}}]}}"#);
    let (fits_not, invalid) = ("the body does not fit: ", "the body is not valid JSON: ");
    for (body, words) in [
        (beat(r#""state":5"#), fits_not),
        (beat(r#""state":["ready"]"#), fits_not),
        (beat(r#""n_ctx":1e400"#), fits_not),
        (r#"{"pools":[],"health":{"status":5}}"#.to_owned(), fits_not),
        (
            r#"{"pools":[],"health":{"status":"well"}}"#.to_owned(),
            fits_not,
        ),
        (r#"{"pools":null}"#.to_owned(), fits_not),
        ("[]".to_owned(), fits_not),
        (beat(r#""state":nul"#), invalid),
        (r#"{"pools":[]"#.to_owned(), invalid),
        (r#"{"pools":[]} x"#.to_owned(), invalid),
        (String::new(), invalid),
    ] {
        let response = fleet.ask("POST", "/v2/nodes/n/heartbeat", &body);
        let refused = refusal(response, 400, "INVALID_REQUEST");
        let message = refused["message"].as_str().expect("a message");
        assert!(message.starts_with(words), "{body}: {message}");
    }
    let refused = fleet.ask("POST", "/v2/nodes/n/heartbeat", &beat(r#""state":5"#));
    let message = refused.json()["message"].to_string();
    assert!(message.contains("expected a word"), "{message}");
}

#[test]
fn an_address_is_a_url_and_not_what_a_browser_makes_of_one() {
    let fleet = fleet();
    let accepted: Vec<&str> = [
        "http:///path",
        "http:h",
        "http:/h",
        "http:\\\\h",
        " http://h",
        "http://h\n",
        "ht\ntp://h",
        "http://h/\u{1b}[31m",
    ]
    .into_iter()
    .filter(|address| {
        let body = registration("n", &json!({"address": address})).to_string();
        fleet.ask("POST", "/v2/nodes/register", &body).status != 400
    })
    .collect();
    assert_eq!(accepted, Vec::<&str>::new());
}

#[test]
fn a_name_that_is_not_utf_8_is_refused_in_json_too() {
    let fleet = fleet();
    for (method, path) in [
        ("GET", "/v2/nodes/%FF"),
        ("DELETE", "/v2/nodes/%C3%28"),
        ("POST", "/v2/nodes/%FF/heartbeat"),
    ] {
        let response = fleet.ask(method, path, "");
        let kind = response.header("content-type");
        assert_eq!(kind, Some("application/json"), "{method} {path}");
        assert!(matches!(response.status, 400 | 404), "{method} {path}");
        let body = response.json();
        assert!(body["code"].is_string(), "{body}");
    }
}
