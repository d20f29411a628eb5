//! One heartbeat, read and decided, again and again: for counting instructions.
//!
//! `heartbeat BEATS` reads so many heartbeats of four pools, in a fleet of a hundred nodes, and has the control plane
//! decide them, as the API does for each; `tests/bench/instructions` runs it twice under callgrind and takes the
//! difference. Without a number (`cargo bench`) it only shows that it works.
//!
//! Predicted before it was first measured: 25,000 instructions, two thirds of them for reading 1 KiB of JSON.

use std::hint::black_box;
use std::sync::Arc;

use orchd::admission::{self, Admission};
use orchd::clock::Clock;
use orchd::control::{self, Control};
use orchd::store::MemoryStore;
use orchd::types::{HeartbeatRequest, NodeId, NodeStatus, Object, RegisterRequest};
use serde_json::json;

const NODES: usize = 100;

fn body(node: usize) -> Vec<u8> {
    let pools: Vec<_> = (0..4)
        .map(|pool| {
            json!({
                "pool_id": format!("pool-{pool}"), "ready": true, "draining": false, "slots_free": pool, "slots_total": 4,
                "vram_free_bytes": 18_000_000_000_u64, "engine": "llamacpp", "state": "ready", "engine_version": "b6000-abcdef",
                "models_available": [format!("model-{pool}"), "qwen3-8b"], "n_ctx": 8_192, "in_flight": 0,
            })
        })
        .collect();
    let beat = json!({
        "timestamp": "2025-09-30T22:00:00Z", "instance_id": format!("instance-{node}"), "pools": pools,
        "health": {"status": "ok", "reasons": []},
    });
    beat.to_string().into_bytes()
}

fn read(body: &[u8]) -> HeartbeatRequest {
    let Object(request) = serde_json::from_slice(body).expect("a heartbeat");
    request
}

fn main() {
    let beats = std::env::args().find_map(|argument| argument.parse().ok());
    let beats: usize = beats.unwrap_or(NODES);
    let clock = Clock::new();
    let admission = Admission::new(
        clock,
        admission::Settings {
            queue_capacity: 1_024,
            policy: admission::Policy::Reject,
            queue_bytes: 1 << 28,
            queue_timeout_ms: 300_000,
            no_pool_wait_ms: 5_000,
            sample_ttl_ms: 20_000,
        },
    );
    let settings = control::Settings {
        node_timeout_ms: 3_600_000,
        heartbeat_interval_ms: 10_000,
        stale_check_interval_ms: 10_000,
        restart_grace_ms: 30_000,
        hold: control::HoldSettings {
            min: 5,
            percent: 30,
            max_ms: 600_000,
        },
    };
    let store = Box::new(MemoryStore::default());
    let control =
        Control::start(clock, settings, Arc::clone(&admission), store).expect("memory is there");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let nodes: Vec<(NodeId, Vec<u8>)> = (0..NODES)
        .map(|node| {
            let node_id = format!("gpu-node-{node}");
            let request: RegisterRequest = serde_json::from_value(json!({
                "node_id": node_id, "address": "http://10.0.0.1:9200", "instance_id": format!("instance-{node}"),
            }))
            .expect("a registration");
            runtime
                .block_on(control.register(request))
                .expect("it registers");
            (NodeId::new(&node_id).expect("a name"), body(node))
        })
        .collect();
    // What is new is written behind; what follows is not.
    for (node_id, body) in &nodes {
        control.beat(node_id, read(body)).expect("it is known");
    }
    for (node_id, body) in nodes.iter().cycle().take(beats) {
        let request = read(black_box(body));
        let reply = control.beat(node_id, request).expect("it is known");
        assert_eq!(black_box(reply).status, NodeStatus::Online);
    }
    control.stop();
    println!(
        "{beats} heartbeats of {} bytes were read and decided",
        nodes[0].1.len()
    );
}
