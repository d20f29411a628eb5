//! Input that no client of ours would send: broken, absurd, endless, slow, and very much of it.
//!
//! Whatever comes, the answer is a success or a refusal that says what is wrong, never a 500; the server lives, has not
//! panicked, has not grown much, and serves everybody else meanwhile. Requests that are not HTTP are refused by the
//! protocol's own library, with a status and without a body. `ORCHD_TEST_SEED` repeats a run of the generated tests.

mod bodies;
mod connections;
mod endless;
mod generated;
mod paths;
mod v1;

use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http::{self, Response, written};
use crate::support::orchd::Orchd;

const JSON: (&str, &str) = ("content-type", "application/json");
/// How much the server may grow under all of a test: a few bodies at once, and what an allocator keeps.
const GROWTH_BYTES: u64 = 64 << 20;

/// A control plane that is to survive.
struct Server {
    orchd: Orchd,
    grown_from: u64,
    _state: TempDir,
}

impl Server {
    /// With one node, `n1`, that has sent a heartbeat.
    fn start() -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        let orchd = Orchd::serve_cloud(state.path(), &[]);
        let grown_from = memory(&orchd);
        let server = Self {
            orchd,
            grown_from,
            _state: state,
        };
        let register = server.post("/v2/nodes/register", registration().to_string().as_bytes());
        assert_eq!(register.status, 200);
        let beat = server.post("/v2/nodes/n1/heartbeat", heartbeat().to_string().as_bytes());
        assert_eq!(beat.status, 200);
        server
    }

    fn address(&self) -> SocketAddr {
        self.orchd.address
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        http::send(self.address(), &written(method, path, &[JSON], body))
    }

    fn post(&self, path: &str, body: &[u8]) -> Response {
        self.ask("POST", path, body).expect("an answer")
    }

    /// Ends the test: it is as well as it was.
    fn must_be_well(mut self) {
        let health = http::get_json(self.address(), "/health");
        assert_eq!(health["status"], "ok");
        let node = http::get_json(self.address(), "/v2/nodes/n1");
        assert_eq!(node["node_id"], "n1");
        assert!(self.orchd.is_running());
        let log = self.orchd.log();
        assert!(!log.contains("panicked"), "{log}");
        let grown = memory(&self.orchd).saturating_sub(self.grown_from);
        assert!(grown < GROWTH_BYTES, "it grew by {grown} bytes");
    }
}

/// What a process holds in memory, in bytes.
fn memory(orchd: &Orchd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", orchd.pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("Linux tells it in KiB") * 1_024
}

fn registration() -> Value {
    json!({
        "node_id": "n1", "machine_id": "m1", "address": "http://10.0.0.1:9200", "pools": ["p"], "version": "1",
        "labels": {"rack": "a"}, "instance_id": "i1",
        "capabilities": {"gpus": [{"device_id": 0, "name": "RTX 3090", "vram_total_bytes": 24_000_000_000_u64,
            "compute_capability": "8.6"}], "cpu_cores": 16, "ram_total_bytes": 64_000_000_000_u64},
    })
}

fn heartbeat() -> Value {
    json!({
        "timestamp": "2025-09-30T22:00:00Z", "instance_id": "i1", "health": {"status": "ok", "reasons": []},
        "pools": [{"pool_id": "p", "ready": true, "draining": false, "slots_free": 3, "slots_total": 4,
            "vram_free_bytes": 1, "engine": "llamacpp", "url": "http://127.0.0.1:9", "state": "ready",
            "models_available": ["m"], "engine_version": "b1", "n_ctx": 2_048, "in_flight": 0, "detail": "fine"}],
    })
}

/// The calls that take a body, and a good one for each.
fn calls() -> [(&'static str, Value); 3] {
    [
        ("/v2/nodes/register", registration()),
        ("/v2/nodes/n1/heartbeat", heartbeat()),
        (
            "/v2/nodes/n1/drain",
            json!({"reason": "new kernel", "requested_by": "ada"}),
        ),
    ]
}

/// A refusal under `/v2` has everything the contract says. Gives its code.
fn refused(what: &str, status: u16, text: &str) -> String {
    let body: Value =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{what}: {status}: {e}: {text:?}"));
    let message = body["message"].as_str().unwrap_or_default();
    assert!(message.len() > 10, "{what}: {body}");
    assert!(
        message.len() < 2_000,
        "{what}: a message of {} bytes",
        message.len()
    );
    assert_eq!(body["error"], body["message"], "{what}: {body}");
    assert!(body["retryable"].is_boolean(), "{what}: {body}");
    let code = body["code"].as_str().unwrap_or_default();
    assert!(
        !code.is_empty() && code.chars().all(|c| c == '_' || c.is_ascii_uppercase()),
        "{what}: {body}"
    );
    code.to_owned()
}

/// An answer that must be a refusal of this status and code.
fn must_refuse(what: &str, response: Response, status: u16, code: &str) {
    let what = &what[..what.len().min(300)];
    let (found, signed) = (
        response.status,
        response.header("x-orchd-version").is_some(),
    );
    let text = response.text().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(found, status, "{what}: {text}");
    assert!(signed, "{what}");
    assert_eq!(refused(what, found, &text), code, "{what}: {text}");
}

/// An answer that is a success or a refusal of the client; its status.
fn may_refuse(what: &str, response: Response) -> u16 {
    let what: String = what.chars().take(300).collect();
    let status = response.status;
    assert!(status < 500, "{what}: {status}");
    if status >= 400 {
        let text = response.text().unwrap_or_else(|e| panic!("{what}: {e}"));
        refused(&what, status, &text);
    }
    status
}

fn nested(open: &str, close: &str, levels: usize) -> String {
    format!("{}{}", open.repeat(levels), close.repeat(levels))
}

/// The place of every value in it that is not an object or a list of something.
fn leaves(value: &Value, here: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(n, v)| (n.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    if entries.is_empty() {
        found.push(here.clone());
    }
    for (name, value) in entries {
        here.push(name);
        leaves(value, here, found);
        here.pop();
    }
}

fn at<'a>(value: &'a mut Value, place: &[String]) -> &'a mut Value {
    place.iter().fold(value, |value, name| match value {
        Value::Array(items) => &mut items[name.parse::<usize>().expect("a number")],
        other => &mut other[name.as_str()],
    })
}
