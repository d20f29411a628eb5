//! A scripted control plane, nodes as they look on the wire, and the real binary as users run it.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt as _;
use orchd::client::Client;
use orchd::types::{HttpUrl, NodeId, VERSION_HEADER};
use serde_json::{Value, json};

/// One expected request and its answer.
pub struct Step {
    /// `METHOD /path?query`.
    pub request: String,
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    /// Answers every further request of this kind, too, and need not be asked at all.
    pub again: bool,
    /// Does not end its body.
    pub open: bool,
}

pub fn step(request: &str, status: u16, body: &Value) -> Step {
    Step {
        request: request.to_owned(),
        status,
        headers: vec![(VERSION_HEADER, "0.1.0".to_owned())],
        body: if body.is_null() {
            String::new()
        } else {
            body.to_string()
        },
        again: false,
        open: false,
    }
}

/// A stream of events that ends after these frames.
pub fn events(request: &str, frames: &str) -> Step {
    Step {
        body: frames.to_owned(),
        ..step(request, 200, &Value::Null).header("content-type", "text/event-stream")
    }
}

pub fn refusal(request: &str, status: u16, code: &str, message: &str) -> Step {
    step(
        request,
        status,
        &json!({"code": code, "message": message, "error": message, "retryable": false}),
    )
}

impl Step {
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    pub fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub authorization: Option<String>,
    pub last_event_id: Option<String>,
    pub body: Value,
}

#[derive(Default)]
pub struct Script {
    steps: VecDeque<Step>,
    asked: Vec<Asked>,
    unexpected: Vec<String>,
}

/// A control plane that answers from a script, and holds it against what it was asked.
pub struct Fake {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    heard: mpsc::Receiver<String>,
}

impl Fake {
    pub fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let script = Arc::new(Mutex::new(Script {
            steps: steps.into_iter().collect(),
            ..Script::default()
        }));
        let (say, heard) = mpsc::channel();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener
            .set_nonblocking(true)
            .expect("sockets can be non-blocking");
        let address = listener.local_addr().expect("it is bound");
        let shared = script.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let app = axum::Router::new()
                    .fallback(move |request: Request| answer(shared.clone(), say.clone(), request));
                loop {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    let service = hyper_util::service::TowerToHyperService::new(app.clone());
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    // A client that hangs up early is its own affair.
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(stream, service),
                    );
                }
            });
        });
        Self {
            address,
            script,
            heard,
        }
    }

    pub fn url(&self) -> HttpUrl {
        HttpUrl::new(&format!("http://{}", self.address)).expect("an address is a URL")
    }

    pub fn client(&self) -> Client {
        client(vec![self.url()], None)
    }

    /// Everything it was asked, after making sure that this was what the script says, no less and no more.
    pub fn asked(&self) -> Vec<Asked> {
        let script = self.script.lock().expect("no test panics with it");
        assert_eq!(
            script.unexpected,
            Vec::<String>::new(),
            "requests that the script does not have"
        );
        let left: Vec<&str> = script
            .steps
            .iter()
            .filter(|s| !s.again)
            .map(|s| s.request.as_str())
            .collect();
        assert_eq!(left, Vec::<&str>::new(), "requests that never came");
        script.asked.clone()
    }

    /// Waits until it is asked for something.
    pub fn wait_for(&self, request: &str) {
        loop {
            let heard = self
                .heard
                .recv_timeout(Duration::from_secs(20))
                .expect("it is asked in time");
            if heard == request {
                return;
            }
        }
    }

    /// Starts a command against it, its output in pipes.
    pub fn spawn(&self, args: &[&str]) -> std::process::Child {
        orchd(args)
            .env("ORCHD_SERVER", self.url().as_str())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("orchd runs")
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::from(
            orchd(args)
                .env("ORCHD_SERVER", self.url().as_str())
                .output()
                .expect("orchd runs"),
        )
    }
}

async fn answer(
    script: Arc<Mutex<Script>>,
    say: mpsc::Sender<String>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let text = format!("{} {}", head.method, head.uri);
    let body = to_bytes(body, 1 << 20).await.expect("a small body");
    let mut script = script.lock().expect("no test panics with it");
    let header = |name: &str| {
        let value = head.headers.get(name);
        value.map(|value| value.to_str().expect("ASCII").to_owned())
    };
    script.asked.push(Asked {
        authorization: header("authorization"),
        last_event_id: header("last-event-id"),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    });
    let _ = say.send(text.clone());
    // A step that repeats gives way to the one behind it as soon as that one is asked for.
    if script
        .steps
        .front()
        .is_some_and(|s| s.again && s.request != text)
    {
        script.steps.pop_front();
    }
    let mut response = Response::builder();
    let Some(step) = script.steps.front().filter(|s| s.request == text) else {
        script.unexpected.push(text);
        return response
            .status(599)
            .body(Body::empty())
            .expect("a response");
    };
    response = response.status(step.status);
    for (name, value) in &step.headers {
        response = response.header(*name, value);
    }
    let body = if step.open {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(step.body.clone())]);
        Body::from_stream(first.chain(futures_util::stream::pending()))
    } else {
        Body::from(step.body.clone())
    };
    let response = response.body(body).expect("a response");
    if !step.again {
        script.steps.pop_front();
    }
    response
}

pub fn client(servers: Vec<HttpUrl>, token: Option<&str>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(servers, token.map(str::to_owned), Duration::from_secs(5)).expect("a client")
}

/// Ctrl-C.
pub fn interrupt(child: &std::process::Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is running");
}

/// A port on which nobody listens.
pub fn silent_port() -> HttpUrl {
    let address = crate::support::free_address();
    HttpUrl::new(&format!("http://{address}")).expect("an address is a URL")
}

pub fn orchd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchd"));
    command
        .args(args)
        .env_clear()
        // Nor does a file of the machine that runs the tests.
        .env("ORCHD_CONFIG", "/dev/null")
        .env("USER", "ada")
        .stdin(Stdio::null());
    command
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

pub fn run(args: &[&str]) -> Ran {
    Ran::from(orchd(args).output().expect("orchd runs"))
}

pub fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("a good name")
}

/// A node on the wire: `changes` over a plain Online one.
pub fn node(name: &str, changes: &Value) -> Value {
    let mut node = json!({
        "node_id": name, "machine_id": format!("m-{name}"), "address": format!("http://{name}:9200"), "pools": ["default"],
        "capabilities": {"gpus": [
            {"device_id": 0, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": 85_899_345_920u64},
            {"device_id": 1, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": 85_899_345_920u64},
        ]},
        "status": "Online", "registered_at_ms": 1_000_000, "last_heartbeat_ms": 90_000_000, "version": "0.1.0",
        "online": true, "schedulable": true, "suspect": false, "last_heartbeat_age_ms": 3_400, "labels": {},
        "instance_id": "i1", "health": {"status": "ok", "reasons": []},
        "pool_status": [{"pool_id": "default", "ready": true, "draining": false, "slots_free": 5, "slots_total": 8,
            "vram_free_bytes": 65_498_251_264u64, "engine": "llamacpp", "state": "ready",
            "models_available": ["qwen3-8b"], "running": 1}],
        "drain": null,
    });
    merge(&mut node, changes);
    node
}

fn merge(into: &mut Value, changes: &Value) {
    let (Some(into), Some(changes)) = (into.as_object_mut(), changes.as_object()) else {
        return;
    };
    for (key, value) in changes {
        into.insert(key.clone(), value.clone());
    }
}

pub fn drain(state: &str, in_flight: u32, changes: &Value) -> Value {
    let mut drain = json!({
        "id": "d1", "state": state, "reason": null, "requested_by": "ada@host", "started_at_ms": 1, "remaining_ms": null,
        "in_flight": in_flight, "oldest_ms": null, "in_flight_at_start": 7, "cut": 0, "unverified": false,
    });
    merge(&mut drain, changes);
    json!({"status": "Draining", "schedulable": false, "drain": drain})
}

pub fn list(nodes: &[Value]) -> Value {
    json!({"nodes": nodes, "count": nodes.len(), "total": nodes.len(), "next": null, "fleet_hold": null})
}

/// Listing the nodes that left.
pub const DEPARTED: &str = "GET /v2/nodes?limit=1000&departed=true";
/// Following events.
pub const EVENTS: &str = "GET /v2/events";
/// Listing all nodes.
pub const LIST: &str = "GET /v2/nodes?limit=1000";

/// Asking for a drain of `gpu-1`.
pub const DRAIN: &str = "POST /v2/nodes/gpu-1/drain";
/// Looking at `gpu-1`.
pub const NODE: &str = "GET /v2/nodes/gpu-1";
