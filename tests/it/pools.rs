//! `orchd pools list` and `orchd models list`: the tables against golden copies, the rest by the real binary.

use orchd::commands::pools::{Layout, joined, model_table, pool_table};
use serde_json::{Value, json};

use crate::fake_control_plane::{Fake, step};

const POOLS: &str = "GET /v2/pools";
const MODELS: &str = "GET /v1/models";
const AVAILABILITY: &str = "GET /v2/catalog/availability";

const PLAIN: Layout = Layout {
    wide: false,
    headers: true,
    width: None,
    color: false,
};

fn pool(node: &str, pool: &str, changes: &Value) -> Value {
    let mut value = json!({"node_id": node, "pool_id": pool, "engine": "llamacpp", "engine_version": "b10434",
        "models": ["qwen3-8b"], "state": "ready", "ready": true, "draining": false, "ejected": false, "slots_total": 8,
        "slots_free": 5, "external": 1, "running": 2, "waiting": 0, "vram_free_bytes": 65_498_251_264u64, "n_ctx": 8192,
        "url": format!("http://{node}:9200/pools/{pool}")});
    for (key, change) in changes.as_object().expect("an object") {
        value[key] = change.clone();
    }
    value
}

fn pools() -> Value {
    let pools = [
        pool("gpu-1", "default", &json!({})),
        pool(
            "gpu-1",
            "embed",
            &json!({"state": "unreachable", "ready": false, "ejected": true, "models": [], "n_ctx": null,
                "vram_free_bytes": null, "engine_version": null, "slots_total": 1, "slots_free": 1}),
        ),
        pool(
            "gpu-2.a-rather-long-name.example.org",
            "default",
            &json!({"state": "busy", "draining": true, "waiting": 12, "slots_free": 0,
                "models": ["qwen3-8b", "Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF"]}),
        ),
    ];
    json!({"pools": pools, "count": 3})
}

#[test]
fn the_table_of_pools_fits_80_and_shows_every_column_at_160() {
    let pools: orchd::types::PoolList = serde_json::from_value(pools()).expect("pools");
    let draw = |width| {
        let text = pool_table(
            &pools.pools,
            Layout {
                width: Some(width),
                ..PLAIN
            },
        );
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= width.into()),
            "{text}"
        );
        format!("\n{text}")
    };
    assert_eq!(
        draw(80),
        "
NODE                  POOL     STATE                SLOTS  WAITING  MODELS
gpu-1                 default  ready                  3/8        0  qwen3-8b
gpu-1                 embed    unreachable,ejected    0/1        0  -
gpu-2.a-rather-long…  default  busy,draining          8/8       12  qwen3-8b,Qw…
"
    );
    assert_eq!(
        draw(160),
        "
NODE                                  POOL     STATE                SLOTS  WAITING  MODELS                                             CTX  VRAM-FREE  ENGINE
gpu-1                                 default  ready                  3/8        0  qwen3-8b                                          8192     61 GiB  llamacpp
gpu-1                                 embed    unreachable,ejected    0/1        0  -                                                    -          -  llamacpp
gpu-2.a-rather-long-name.example.org  default  busy,draining          8/8       12  qwen3-8b,Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF  8192     61 GiB  llamacpp
"
    );
}

#[test]
fn pools_list_prints_names_json_and_the_pools_of_one_node() {
    let fake = Fake::start((0..4).map(|_| step(POOLS, 200, &pools())));
    let ran = fake.run(&["pools", "list", "-o", "name"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "gpu-1/default\ngpu-1/embed\ngpu-2.a-rather-long-name.example.org/default\n",
            ""
        )
    );
    let ran = fake.run(&["pools", "list", "--node", "gpu-1", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        seen,
        json!({"pools": &pools()["pools"].as_array().expect("a list")[..2], "count": 2})
    );
    let ran = fake.run(&["pools", "list", "--node", "local", "--no-headers"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "", "no pools on local\n")
    );
    let ran = fake.run(&["pools", "list", "-o", "wide", "--no-headers"]);
    assert!(
        ran.stdout.starts_with("gpu-1 ")
            && ran.stdout.contains("http://gpu-1:9200/pools/default\n"),
        "{}",
        ran.stdout
    );
    fake.asked();
}

fn known() -> Value {
    json!({"object": "list", "data": [
        {"id": "qwen3-8b", "object": "model", "created": 1, "owned_by": "orchd",
            "meta": {"n_ctx": 4096, "n_ctx_max": 8192, "slots": 16, "state": "ready"}},
        {"id": "sleeper", "object": "model", "created": 1, "owned_by": "orchd",
            "meta": {"n_ctx": 2048, "n_ctx_max": 2048, "slots": 4, "state": "sleeping"}},
    ]})
}

fn available() -> Value {
    json!({"models": [
        {"model_id": "new", "nodes": ["gpu-2"], "total_nodes": 1, "total_capacity": 1},
        {"model_id": "qwen3-8b", "nodes": ["gpu-1", "gpu-2"], "total_nodes": 2, "total_capacity": 16},
    ]})
}

#[test]
fn the_table_of_models_joins_what_is_known_with_what_takes_requests() {
    let rows = joined(
        serde_json::from_value(known()).expect("models"),
        serde_json::from_value(available()).expect("availability"),
    );
    assert_eq!(
        format!(
            "\n{}",
            model_table(
                &rows,
                Layout {
                    wide: true,
                    ..PLAIN
                }
            )
        ),
        "
MODEL     STATE     NODES  SLOTS        CTX  ON
new       ready         1      1          -  gpu-2
qwen3-8b  ready         2     16  4096-8192  gpu-1,gpu-2
sleeper   sleeping      0      0       2048  -
"
    );
}

#[test]
fn models_list_prints_names_and_json_and_says_when_there_are_none() {
    let none = json!({"object": "list", "data": []});
    let fake = Fake::start([
        step(MODELS, 200, &known()),
        step(AVAILABILITY, 200, &available()),
        step(MODELS, 200, &known()),
        step(AVAILABILITY, 200, &available()),
        step(MODELS, 200, &none),
        step(AVAILABILITY, 200, &json!({"models": []})),
    ]);
    let ran = fake.run(&["models", "list", "-o", "name"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "new\nqwen3-8b\nsleeper\n")
    );
    let ran = fake.run(&["models", "list", "-o", "json"]);
    let seen: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&seen["count"], &seen["models"][1]),
        (
            &json!(3),
            &json!({"model_id": "qwen3-8b", "nodes": ["gpu-1", "gpu-2"], "total_nodes": 2, "total_capacity": 16,
                "meta": {"n_ctx": 4096, "n_ctx_max": 8192, "slots": 16, "state": "ready"}})
        )
    );
    let ran = fake.run(&["models", "list"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "",
            "no models\nhint: `orchd pools list` shows the engines and what they are doing\n"
        )
    );
    fake.asked();
}

#[test]
fn models_list_tells_a_refusal_in_the_gateways_form_as_other_verbs_tell_theirs() {
    let message = "this takes a token: send `Authorization: Bearer TOKEN`, or `x-api-key: TOKEN`";
    let error = json!({"error": {"message": message, "type": "authentication_error", "param": null, "code": "unauthorized"}});
    let fake = Fake::start([step("GET /v1/models", 401, &error)]);
    let ran = fake.run(&["models", "list"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(7), ""));
    let server = fake.url();
    assert_eq!(
        ran.stderr,
        format!(
            "error: {server} does not accept this request: {message}\n\
             hint: put the control plane's token into ORCHD_API_TOKEN\n"
        )
    );
    fake.asked();
}
