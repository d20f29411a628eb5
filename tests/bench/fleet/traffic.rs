//! What a fleet says on the wire: registrations, heartbeats whose slots move, and requests of clients.

use std::net::SocketAddr;

use serde_json::json;

use super::seed::Random;

/// The model that every pool has, beside one of fifty others.
const MODEL: &str = "qwen3-8b";
/// Slots of a pool: fewer than ten, so that the free ones are one digit.
const SLOTS: u8 = 4;

fn node_id(node: usize) -> String {
    format!("gpu-node-{node:05}")
}

/// A node with so many pools registers.
pub fn registration(node: usize, pools: usize) -> Vec<u8> {
    let pools: Vec<String> = (0..pools).map(|pool| format!("pool-{pool}")).collect();
    let gpus: Vec<_> = (0..pools.len())
        .map(|gpu| {
            json!({"device_id": gpu, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": 85_899_345_920_u64,
                "compute_capability": "9.0", "uuid": format!("GPU-{node:08x}-{gpu:04x}-4000-8000-000000000000")})
        })
        .collect();
    let address = format!(
        "http://10.{}.{}.{}:9200",
        node >> 16,
        (node >> 8) & 255,
        node & 255
    );
    let body = json!({
        "node_id": node_id(node), "machine_id": format!("machine-{node:05}"), "address": address, "pools": pools,
        "capabilities": {"gpus": gpus, "cpu_cores": 64, "ram_total_bytes": 540_000_000_000_u64}, "version": "0.1.0",
        "labels": {"rack": format!("r{}", node % 100), "zone": "a"}, "instance_id": format!("instance-{node:016x}"),
    });
    request("/v2/nodes/register", &body.to_string())
}

/// A node's heartbeat, whose slots can move.
#[derive(Clone)]
pub struct Beat {
    pub bytes: Vec<u8>,
    /// Where the free slots of each pool stand in it.
    free: Vec<usize>,
}

impl Beat {
    /// Its pools are all at this engine; the first one is in this state.
    pub fn new(node: usize, pools: usize, engine: SocketAddr, state: &str) -> Self {
        let pools: Vec<_> = (0..pools)
            .map(|pool| {
                json!({
                    "pool_id": format!("pool-{pool}"), "ready": true, "draining": false,
                    "slots_free": (node + pool) % usize::from(SLOTS + 1), "slots_total": SLOTS,
                    "vram_free_bytes": 18_000_000_000_u64 + node as u64, "engine": "llamacpp",
                    "state": if pool == 0 { state } else { "ready" }, "engine_version": "b6000-abcdef",
                    "models_available": [format!("model-{}", (node + pool) % 50), MODEL], "n_ctx": 8_192, "in_flight": 0,
                    "url": format!("http://{engine}/{}/pool-{pool}", node_id(node)),
                })
            })
            .collect();
        let body = json!({
            "timestamp": "2025-09-30T22:00:00Z", "pools": pools, "instance_id": format!("instance-{node:016x}"),
            "health": {"status": "ok", "reasons": []},
        });
        let path = format!("/v2/nodes/{}/heartbeat", node_id(node));
        let bytes = request(&path, &body.to_string());
        let field = b"\"slots_free\":";
        let places = bytes.windows(field.len()).enumerate();
        let free = places
            .filter(|(_, part)| part == field)
            .map(|(at, _)| at + field.len())
            .collect();
        Self { bytes, free }
    }

    /// In each pool, a request that came past the gateway begins or ends, or neither does.
    pub fn walk(&mut self, random: &mut Random) {
        for &at in &self.free {
            let digit = &mut self.bytes[at];
            *digit = match random.below(3) {
                0 => (*digit + 1).min(b'0' + SLOTS),
                1 => (*digit - 1).max(b'0'),
                _ => *digit,
            };
        }
    }
}

/// A request that is passed through as it is, or one for a short stream.
pub fn asked(stream: bool) -> Vec<u8> {
    if stream {
        let body = json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
        request("/v1/chat/completions", &body.to_string())
    } else {
        let body = json!({"model": MODEL, "input": "hi"});
        request("/v1/embeddings", &body.to_string())
    }
}

fn request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: orchd\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
