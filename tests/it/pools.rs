//! `orchd pools list`: the table against golden copies, the rest by the real binary.

use orchd::commands::pools::{Layout, pool_table};
use serde_json::{Value, json};

use crate::fake_control_plane::{Fake, step};

pub const POOLS: &str = "GET /v2/pools";

pub const PLAIN: Layout = Layout {
    wide: false,
    headers: true,
    width: None,
    color: false,
};

pub fn pool(node: &str, pool: &str, changes: &Value) -> Value {
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
