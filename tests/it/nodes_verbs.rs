//! `orchd nodes get`, `remove`, `wait`, `register`, and what `list` can do beyond its table, by the real binary.

use orchd::commands::nodes::get::detail;
use orchd::commands::nodes::list::{Entry, Layout, table};
use orchd::types::{NodeView, UnixMs};
use serde_json::{Value, json};

use crate::fake_control_plane::{
    DEPARTED, Fake, LIST, NODE, Ran, Step, drain, interrupt, list, node, refusal, step,
};

const NOW: UnixMs = UnixMs(90_115_000);

fn entry(value: &Value) -> Entry {
    serde_json::from_value::<NodeView>(value.clone())
        .expect("a node")
        .into()
}

fn unknown() -> Step {
    refusal(
        NODE,
        404,
        "NODE_NOT_FOUND",
        "nothing is known of node gpu-1",
    )
}

fn troubled() -> Value {
    let drain = drain(
        "draining",
        2,
        &json!({"reason": "new kernel", "remaining_ms": 65_000, "cut": 1}),
    );
    node(
        "gpu-1",
        &json!({
            "status": "Draining", "schedulable": false, "drain": drain["drain"], "labels": {"rack": "b2", "zone": "eu"},
            "capabilities": {"cpu_cores": 64, "ram_total_bytes": 549_755_813_888u64, "gpus": [
                {"device_id": 0, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": 85_899_345_920u64, "driver_version": "570.86",
                    "cuda_version": "12.8", "mig": true},
                {"device_id": 1, "name": "NVIDIA GB10", "vram_total_bytes": 128_849_018_880u64, "unified_memory": true, "mig": false},
            ]},
            "health": {"status": "degraded", "reasons": [{"code": "GPU_LOST", "message": "GPU 1 is off the bus"}]},
            "pool_status": [
                {"pool_id": "default", "ready": true, "slots_free": 5, "slots_total": 8, "vram_free_bytes": 65_498_251_264u64,
                    "engine": "llamacpp", "engine_version": "b10434", "state": "busy", "n_ctx": 8192,
                    "models_available": ["qwen3-8b"], "running": 1},
                {"pool_id": "embed", "ready": false, "state": "misconfigured", "detail": "it answers /props with 404",
                    "models_available": [], "running": 0},
            ],
        }),
    )
}

#[test]
fn get_shows_all_that_is_known_of_a_node() {
    let text = detail(&entry(&troubled()), NOW, Some(80), false);
    assert_eq!(
        format!("\n{text}"),
        "
Name:         gpu-1
Status:       Draining,degraded
Because:      draining: new kernel, by ada@host, since 1970-01-01T00:00:00Z (25h
              ago), 2 requests left, cut off in 1m05s, 1 cut
              degraded: GPU 1 is off the bus (GPU_LOST)
              pool embed misconfigured: it answers /props with 404
Last heard:   3s ago
Registered:   1970-01-01T00:16:40Z (24h ago)
Address:      http://gpu-1:9200
Machine:      m-gpu-1
Version:      0.1.0
Labels:       rack=b2, zone=eu
Hardware:     64 processors, 512 GiB of memory
GPUs:         0  NVIDIA H100 80GB HBM3, 80 GiB, driver 570.86, CUDA 12.8, MIG
              1  NVIDIA GB10, 120 GiB shared with the machine
Health:       degraded
Pools:
  POOL     STATE          SLOTS   CTX  VRAM-FREE  MODELS    ENGINE
  default  busy             3/8  8192     61 GiB  qwen3-8b  llamacpp b10434
  embed    misconfigured    0/1     -          -  -         -
"
    );
    let new = node(
        "new",
        &json!({"status": "Registering", "online": false, "pool_status": [], "capabilities": {"gpus": []},
            "address": null, "health": null, "version": null}),
    );
    let text = detail(&entry(&new), NOW, None, false);
    assert!(
        text.contains("Address:      none: the control plane probes its engines\n")
            && text.contains(
                "Because:      registered 1970-01-01T00:16:40Z (24h ago), no heartbeat yet\n"
            )
            && text.ends_with("Health:       not told\nPools:        none\n"),
        "{text}"
    );
}

#[test]
fn get_as_json_is_one_node_or_a_list_of_them() {
    let other = "GET /v2/nodes/gpu-2";
    let fake = Fake::start([
        step(NODE, 200, &troubled()),
        step(NODE, 200, &troubled()),
        step(other, 200, &node("gpu-2", &json!({}))),
        step(NODE, 200, &troubled()),
    ]);
    let ran = fake.run(&["nodes", "get", "gpu-1", "-o", "json"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    let one: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(one["drain"], troubled()["drain"]);
    let ran = fake.run(&["nodes", "get", "gpu-1", "gpu-2", "gpu-1", "-o", "yaml"]);
    let several: Value = yaml_serde::from_str(&ran.stdout).expect("YAML");
    assert_eq!(
        (
            several[0]["node_id"].as_str(),
            several[1]["node_id"].as_str()
        ),
        (Some("gpu-1"), Some("gpu-2"))
    );
    let ran = fake.run(&["nodes", "get", "gpu-1", "-o", "name"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), "gpu-1\n"));
    fake.asked();
}

#[test]
fn get_finds_a_node_that_left_and_of_which_a_drain_is_still_asked() {
    let fake = Fake::start([
        unknown(),
        step(
            DEPARTED,
            200,
            &list(&[node("gpu-1", &drain("draining", 0, &json!({})))]),
        ),
        unknown(),
        step(DEPARTED, 200, &list(&[])),
    ]);
    let ran = fake.run(&["nodes", "get", "gpu-1"]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("Status:       Departed,draining\nBecause:      left the fleet; what is asked of it holds again"),
        "{}",
        ran.stdout
    );
    let ran = fake.run(&["nodes", "get", "gpu-1"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(3), ""));
    fake.asked();
}

#[test]
fn remove_forgets_and_warns_of_an_agent_that_will_come_back() {
    let forget = "DELETE /v2/nodes/gpu-1?forget=true";
    let offline = json!({"status": "Offline", "online": false});
    let agentless = json!({"address": null});
    for (view, warned) in [(&json!({}), true), (&offline, false), (&agentless, false)] {
        let fake = Fake::start([
            step(NODE, 200, &node("gpu-1", view)),
            step(forget, 204, &Value::Null),
        ]);
        let ran = fake.run(&["nodes", "remove", "gpu-1"]);
        assert_eq!(
            (ran.exit, ran.stdout.as_str()),
            (Some(0), "gpu-1 removed\n")
        );
        assert_eq!(
            ran.stderr
                .starts_with("warning: gpu-1 has a running agent, which registers it again"),
            warned,
            "{}",
            ran.stderr
        );
        fake.asked();
    }
    // One that left cannot be looked at, and is forgotten all the same; one that nobody knows exits 3.
    let gone = |request| {
        refusal(
            request,
            404,
            "NODE_NOT_FOUND",
            "nothing is known of node gpu-1",
        )
    };
    let fake = Fake::start([
        unknown(),
        step(forget, 204, &Value::Null),
        unknown(),
        gone(forget),
    ]);
    let ran = fake.run(&["nodes", "remove", "gpu-1"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    let ran = fake.run(&["nodes", "remove", "gpu-1"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(3), ""));
    fake.asked();
}

#[test]
fn wait_ends_when_the_node_is_as_wanted() {
    let offline = json!({"status": "Offline", "online": false});
    let draining = drain("draining", 1, &json!({}));
    let drained = drain("drained", 0, &json!({}));
    let seen = |view: &Value| step(NODE, 200, &node("gpu-1", view));
    let left = |departed: &[Value]| [unknown(), step(DEPARTED, 200, &list(departed))];
    let cases: [(&str, Vec<Step>); 5] = [
        // An agent that restarts leaves and comes back.
        (
            "online",
            std::iter::once(seen(&offline))
                .chain(left(&[]))
                .chain([seen(&json!({}))])
                .collect(),
        ),
        ("offline", vec![seen(&json!({})), seen(&offline)]),
        ("drained", vec![seen(&draining), seen(&drained)]),
        (
            "gone",
            std::iter::once(seen(&json!({}))).chain(left(&[])).collect(),
        ),
        // What is still asked of it does not make it a node of the fleet.
        ("gone", left(&[node("gpu-1", &drained)]).into()),
    ];
    for (wanted, steps) in cases {
        let fake = Fake::start(steps);
        let ran = fake.run(&["nodes", "wait", "gpu-1", "--for", wanted]);
        assert_eq!(
            (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(0), format!("gpu-1 {wanted}\n").as_str(), "")
        );
        fake.asked();
    }
}

#[test]
fn wait_gives_up_in_time_and_does_not_wait_for_what_cannot_come() {
    let fake = Fake::start([step(NODE, 200, &node("gpu-1", &json!({}))).again()]);
    let ran = fake.run(&[
        "nodes",
        "wait",
        "gpu-1",
        "--for",
        "offline",
        "--timeout",
        "3s",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(5), ""));
    assert_eq!(ran.stderr, "error: not offline within 3s: gpu-1 (Online)\n");
    fake.asked();

    // A mistyped name.
    let fake = Fake::start([unknown(), step(DEPARTED, 200, &list(&[]))]);
    let ran = fake.run(&["nodes", "wait", "gpu-1", "--for", "online"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(3), ""));
    fake.asked();

    // One that leaves under a drain is drained when the control plane says so of it.
    let drained = node("gpu-1", &drain("drained", 0, &json!({"unverified": true})));
    let fake = Fake::start([
        step(NODE, 200, &node("gpu-1", &drain("draining", 1, &json!({})))),
        unknown(),
        step(DEPARTED, 200, &list(&[drained])),
    ]);
    let ran = fake.run(&["nodes", "wait", "gpu-1", "--for", "drained"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 drained\n")
    );
    fake.asked();

    // One that was removed will not be.
    let fake = Fake::start([
        step(NODE, 200, &node("gpu-1", &drain("draining", 1, &json!({})))),
        unknown(),
        step(DEPARTED, 200, &list(&[])),
    ]);
    let ran = fake.run(&["nodes", "wait", "gpu-1", "--for", "drained"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(3), ""));
    assert_eq!(
        ran.stderr,
        "error: gpu-1 left the fleet and will not be drained\n"
    );
    fake.asked();
}

#[test]
fn wait_outlives_a_restart_of_the_control_plane_and_ctrl_c_ends_it() {
    let fake = Fake::start([
        refusal(NODE, 503, "SHUTTING_DOWN", "the process is stopping"),
        step(NODE, 200, &node("gpu-1", &json!({}))),
    ]);
    let ran = fake.run(&["nodes", "wait", "gpu-1", "--for", "online"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), "gpu-1 online\n"));
    assert_eq!(
        ran.stderr,
        "the process is stopping; asking again\nthe control plane answers again\n"
    );
    fake.asked();

    let fake = Fake::start([step(NODE, 200, &node("gpu-1", &json!({}))).again()]);
    let child = fake.spawn(&["nodes", "wait", "gpu-1", "--for", "gone"]);
    fake.wait_for(NODE);
    fake.wait_for(NODE);
    interrupt(&child);
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert_eq!(
        (ran.exit, ran.stderr.as_str()),
        (Some(130), "error: interrupted: gpu-1 (Online)\n")
    );
    fake.asked();
}

#[test]
fn register_with_engines_makes_a_node_without_an_agent_and_can_wait_for_it() {
    let reply = json!({"success": true, "message": "registered", "node_id": "gpu-1", "heartbeat_interval_ms": 10_000,
        "node_timeout_ms": 30_000, "durable": true});
    let register = || step("POST /v2/nodes/register", 200, &reply);
    let registering = json!({"status": "Registering", "online": false});
    let fake = Fake::start([
        register(),
        step(NODE, 200, &node("gpu-1", &registering)),
        step(NODE, 200, &node("gpu-1", &json!({}))),
    ]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-1",
        "--engine",
        "http://10.0.0.7:8081",
        "--engine",
        "big=http://10.0.0.7:8082",
        "--wait",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), "gpu-1\n"));
    assert_eq!(
        ran.stderr,
        "gpu-1 is registered: the control plane probes its engines, and it goes Online when one of them answers, Offline \
         when none has for 30s\n"
    );
    let body = &fake.asked()[0].body;
    assert_eq!(
        body["engines"],
        json!([{"pool_id": "default", "url": "http://10.0.0.7:8081"}, {"pool_id": "big", "url": "http://10.0.0.7:8082"}])
    );
    assert_eq!(body.get("address"), None);

    let fake = Fake::start([
        register(),
        step(NODE, 200, &node("gpu-1", &registering)).again(),
    ]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-1",
        "--address",
        "http://10.0.0.7:9200",
        "--wait",
        "--timeout",
        "400ms",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(5), "gpu-1\n"));
    assert!(
        ran.stderr.ends_with(
            "error: not online within 400ms: gpu-1 (Registering); the node stays registered\n"
        ),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn list_asks_by_label_and_with_all_marks_those_that_left() {
    let fake = Fake::start([
        step(
            "GET /v2/nodes?limit=1000&label=rack%3Db2",
            200,
            &list(&[node("b", &json!({}))]),
        ),
        step(
            "GET /v2/nodes?limit=1000&label=rack%3Db2&departed=true",
            200,
            &list(&[
                node("a", &drain("draining", 0, &json!({}))),
                node("b", &json!({})),
            ]),
        ),
    ]);
    let ran = fake.run(&["nodes", "list", "-l", "rack=b2", "--all", "--no-headers"]);
    let words: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    assert_eq!(words, [["a", "Departed,draining"], ["b", "Online"]]);
    fake.asked();

    let fake = Fake::start([
        step(LIST, 200, &list(&[node("b", &json!({}))])),
        step(DEPARTED, 200, &list(&[node("a", &json!({}))])),
    ]);
    let ran = fake.run(&["nodes", "list", "--all", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(seen["count"], 2);
    assert_eq!(
        (&seen["nodes"][0]["departed"], &seen["nodes"][1]["departed"]),
        (&json!(true), &json!(false))
    );
    fake.asked();
}

#[test]
fn a_fleet_hold_is_a_warning_beside_the_table_and_data_in_json() {
    let mut held = list(&[node("gpu-1", &json!({"suspect": true}))]);
    held["fleet_hold"] = json!({"since_ms": 12_000, "nodes": 42, "ends_in_ms": 540_000});
    let fake = Fake::start([step(LIST, 200, &held), step(LIST, 200, &held)]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!(ran.exit, Some(0));
    assert_eq!(
        ran.stderr,
        "warning: fleet hold for 12s: none of 42 silent nodes goes Offline for another 9m, because so many fell silent at \
         once: more likely the fault is on the control plane's side (its network, perhaps) than on theirs\n"
    );
    assert_eq!(ran.stdout.lines().count(), 2);
    let ran = fake.run(&["nodes", "list", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&seen["fleet_hold"]["nodes"], ran.stderr.as_str()),
        (&json!(42), "")
    );
    fake.asked();
}

#[test]
fn reasons_say_why_by_whom_and_since_when() {
    let offline = json!({"status": "Offline", "online": false, "schedulable": false});
    let fleet = [
        node("fine", &json!({})),
        troubled(),
        node(
            "restart",
            &json!({"suspect": true, "last_heartbeat_age_ms": null}),
        ),
        node("silent", &{
            let mut silent = offline.clone();
            silent["last_heartbeat_age_ms"] = json!(7_300_000);
            silent
        }),
        node("unheard", &{
            let mut unheard = offline;
            unheard["last_heartbeat_age_ms"] = Value::Null;
            unheard["drain"] = drain("drained", 0, &json!({"unverified": true}))["drain"].clone();
            unheard
        }),
    ]
    .map(|value| entry(&value));
    let layout = Layout {
        wide: false,
        headers: false,
        width: Some(60),
        color: false,
        reasons: true,
    };
    assert_eq!(
        format!("\n{}", table(&fleet, NOW, layout)),
        "
fine     Online             3/8  qwen3-8b  3s ago
gpu-1    Draining,degraded  3/9  qwen3-8b  3s ago
    draining: new kernel, by ada@host, since
      1970-01-01T00:00:00Z (25h ago), 2 requests left, cut
      off in 1m05s, 1 cut
    degraded: GPU 1 is off the bus (GPU_LOST)
    pool embed misconfigured: it answers /props with 404
restart  Online,suspect     3/8  qwen3-8b  -
    suspect: not heard since the control plane started;
      routed by what was last known of it
silent   Offline            -/8  qwen3-8b  2h ago
    silent since 1970-01-01T23:00:15Z (2h ago)
unheard  Offline,drained    -/8  qwen3-8b  -
    silent since 1970-01-02T01:00:00Z (115s ago)
    drained: no reason given, by ada@host, since
      1970-01-01T00:00:00Z (25h ago), not confirmed by its
      agent
"
    );
}

#[test]
fn in_home_every_verb_of_nodes_exits_4_with_one_hint() {
    let verbs: [(&str, &[&str]); 6] = [
        (LIST, &["list"]),
        (NODE, &["get", "gpu-1"]),
        (NODE, &["wait", "gpu-1", "--for", "online"]),
        ("POST /v2/nodes/gpu-1/drain", &["drain", "gpu-1"]),
        (NODE, &["undrain", "gpu-1"]),
        (
            "POST /v2/nodes/register",
            &["register", "gpu-1", "--engine", "http://10.0.0.7:8081"],
        ),
    ];
    for (request, verb) in verbs {
        let fake = Fake::start([refusal(
            request,
            503,
            "CLOUD_PROFILE_DISABLED",
            "this is a HOME control plane: start it with `orchd serve --cloud`",
        )]);
        let ran = fake.run(&[&["nodes"], verb].concat());
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(4), ""), "{verb:?}");
        assert_eq!(
            ran.stderr,
            "error: this control plane serves one machine (HOME) and keeps no nodes\nhint: start it with `orchd serve \
             --cloud` to manage a fleet; `orchd pools list` shows the engines of this machine\n"
        );
        fake.asked();
    }
}
