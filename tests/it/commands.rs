//! The typed client, and the commands by the real binary, against a scripted control plane.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use orchd::cli::{EngineArg, name_engines};
use orchd::client::{Client, ClientError, NodesQuery};
use orchd::commands::nodes::list::{Layout, table};
use orchd::types::{
    DrainRequest, ErrorCode, HttpUrl, NodeId, NodeStatus, NodeView, UnixMs, VERSION_HEADER,
};
use serde_json::{Value, json};

/// One expected request and its answer.
struct Step {
    /// `METHOD /path?query`.
    request: String,
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    /// Answers every further request of this kind, too, and need not be asked at all.
    again: bool,
}

fn step(request: &str, status: u16, body: &Value) -> Step {
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
    }
}

fn refusal(request: &str, status: u16, code: &str, message: &str) -> Step {
    step(
        request,
        status,
        &json!({"code": code, "message": message, "error": message, "retryable": false}),
    )
}

impl Step {
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
struct Asked {
    authorization: Option<String>,
    body: Value,
}

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    asked: Vec<Asked>,
    unexpected: Vec<String>,
}

/// A control plane that answers from a script, and holds it against what it was asked.
struct Fake {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    heard: mpsc::Receiver<String>,
}

impl Fake {
    fn start(steps: impl IntoIterator<Item = Step>) -> Self {
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

    fn url(&self) -> HttpUrl {
        HttpUrl::new(&format!("http://{}", self.address)).expect("an address is a URL")
    }

    fn client(&self) -> Client {
        client(vec![self.url()], None)
    }

    /// Everything it was asked, after making sure that this was what the script says, no less and no more.
    fn asked(&self) -> Vec<Asked> {
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
    fn wait_for(&self, request: &str) {
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

    fn run(&self, args: &[&str]) -> Ran {
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
    script.asked.push(Asked {
        authorization: head
            .headers
            .get("authorization")
            .map(|value| value.to_str().expect("ASCII").to_owned()),
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
    let response = response
        .body(Body::from(step.body.clone()))
        .expect("a response");
    if !step.again {
        script.steps.pop_front();
    }
    response
}

fn client(servers: Vec<HttpUrl>, token: Option<&str>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(servers, token.map(str::to_owned), Duration::from_secs(5)).expect("a client")
}

/// A port on which nobody listens.
fn silent_port() -> HttpUrl {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    HttpUrl::new(&format!("http://{address}")).expect("an address is a URL")
}

fn orchd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchd"));
    command
        .args(args)
        .env_clear()
        .env("USER", "ada")
        .stdin(Stdio::null());
    command
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    exit: Option<i32>,
    stdout: String,
    stderr: String,
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

fn run(args: &[&str]) -> Ran {
    Ran::from(orchd(args).output().expect("orchd runs"))
}

fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("a good name")
}

/// A node on the wire: `changes` over a plain Online one.
fn node(name: &str, changes: &Value) -> Value {
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

fn drain(state: &str, in_flight: u32, changes: &Value) -> Value {
    let mut drain = json!({
        "id": "d1", "state": state, "reason": null, "requested_by": "ada@host", "started_at_ms": 1, "remaining_ms": null,
        "in_flight": in_flight, "in_flight_at_start": 7, "cut": 0, "unverified": false,
    });
    merge(&mut drain, changes);
    json!({"status": "Draining", "schedulable": false, "drain": drain})
}

fn list(nodes: &[Value]) -> Value {
    json!({"nodes": nodes, "count": nodes.len(), "total": nodes.len(), "next": null, "fleet_hold": null})
}

const LIST: &str = "GET /v2/nodes?limit=1000";

fn fleet() -> Vec<Value> {
    vec![
        node("gpu-1", &json!({})),
        node(
            "gpu-2",
            &json!({"status": "Draining", "schedulable": false, "drain": drain("drained", 0, &json!({}))["drain"],
                "last_heartbeat_age_ms": 900, "labels": {"rack": "b2", "zone": "eu"}}),
        ),
        node(
            "gpu-3",
            &json!({"status": "Offline", "online": false, "schedulable": false, "last_heartbeat_age_ms": 7_300_000,
                "drain": drain("draining", 2, &json!({}))["drain"], "version": null}),
        ),
        node(
            "gpu-4-with-a-rather-long-name.example.org",
            &json!({"suspect": true, "last_heartbeat_age_ms": null, "capabilities": {"gpus": []}, "pool_status": [
                {"pool_id": "a", "ready": true, "slots_total": 4, "slots_free": 4, "vram_free_bytes": 1_073_741_824u64,
                    "models_available": ["qwen3-8b", "Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF"], "running": 2},
                {"pool_id": "b", "ready": false, "vram_free_bytes": 536_870_912u64, "state": "loading",
                    "models_available": ["smollm2"], "running": 0},
            ]}),
        ),
        node(
            "new",
            &json!({"status": "Registering", "online": false, "schedulable": false, "pool_status": [],
            "capabilities": {"gpus": []}, "address": null, "last_heartbeat_age_ms": 15_000, "registered_at_ms": 90_100_000}),
        ),
        node(
            "sick",
            &json!({"health": {"status": "degraded", "reasons": []}}),
        ),
    ]
}

fn draw(nodes: &[Value], layout: Layout) -> String {
    let nodes: Vec<NodeView> = nodes
        .iter()
        .map(|node| serde_json::from_value(node.clone()).expect("a node"))
        .collect();
    format!("\n{}", table(&nodes, UnixMs(90_115_000), layout))
}

const PLAIN: Layout = Layout {
    wide: false,
    headers: true,
    width: None,
    color: false,
};

#[test]
fn the_table_of_nodes_leaves_out_columns_until_it_fits_80() {
    let text = draw(
        &fleet(),
        Layout {
            width: Some(80),
            ..PLAIN
        },
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert_eq!(
        text,
        "
NAME                          STATUS            SLOTS  MODELS            SEEN
gpu-1                         Online              3/8  qwen3-8b          3s ago
gpu-2                         Drained             3/8  qwen3-8b          0s ago
gpu-3                         Offline,draining    3/8  qwen3-8b          2h ago
gpu-4-with-a-rather-long-na…  Online,suspect      2/5  Qwen/Qwen3-235B…  -
new                           Registering           -  -                 15s ago
sick                          Online,degraded     3/8  qwen3-8b          3s ago
"
    );
}

#[test]
fn the_table_of_nodes_shows_every_column_at_160() {
    let text = draw(
        &fleet(),
        Layout {
            width: Some(160),
            ..PLAIN
        },
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 160),
        "{text}"
    );
    assert_eq!(text, "
NAME                                STATUS            GPUS               VRAM-FREE  POOLS        SLOTS  MODELS                             SEEN     AGE  VERSION
gpu-1                               Online            2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                           3s ago   24h  0.1.0
gpu-2                               Drained           2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                           0s ago   24h  0.1.0
gpu-3                               Offline,draining  2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                           2h ago   24h  -
gpu-4-with-a-rather-long-name.exa…  Online,suspect    -                    1.0 GiB  2 (1 ready)    2/5  Qwen/Qwen3-235B-A22B-Instruct-25…  -        24h  0.1.0
new                                 Registering       -                          -  0                -  -                                  15s ago  15s  0.1.0
sick                                Online,degraded   2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                           3s ago   24h  0.1.0
");
}

#[test]
fn the_wide_table_of_nodes_shows_everything_at_any_width() {
    let wide = Layout {
        wide: true,
        width: Some(80),
        ..PLAIN
    };
    assert_eq!(draw(&fleet(), wide), "
NAME                                       STATUS            GPUS               VRAM-FREE  POOLS        SLOTS  MODELS                                                    SEEN     AGE  VERSION  ADDRESS                                                MACHINE                                      LABELS
gpu-1                                      Online            2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                                                  3s ago   24h  0.1.0    http://gpu-1:9200                                      m-gpu-1                                      -
gpu-2                                      Drained           2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                                                  0s ago   24h  0.1.0    http://gpu-2:9200                                      m-gpu-2                                      rack=b2,zone=eu
gpu-3                                      Offline,draining  2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                                                  2h ago   24h  -        http://gpu-3:9200                                      m-gpu-3                                      -
gpu-4-with-a-rather-long-name.example.org  Online,suspect    -                    1.0 GiB  2 (1 ready)    2/5  Qwen/Qwen3-235B-A22B-Instruct-2507-GGUF,qwen3-8b,smollm2  -        24h  0.1.0    http://gpu-4-with-a-rather-long-name.example.org:9200  m-gpu-4-with-a-rather-long-name.example.org  -
new                                        Registering       -                          -  0                -  -                                                         15s ago  15s  0.1.0    -                                                      m-new                                        -
sick                                       Online,degraded   2× H100 80GB HBM3     61 GiB  1              3/8  qwen3-8b                                                  3s ago   24h  0.1.0    http://sick:9200                                       m-sick                                       -
");
}

#[test]
fn a_very_narrow_terminal_still_gets_names_and_statuses() {
    let text = draw(
        &fleet()[..2],
        Layout {
            width: Some(20),
            ..PLAIN
        },
    );
    assert_eq!(
        text,
        "
NAME   STATUS   SLOTS
gpu-1  Online     3/8
gpu-2  Drained    3/8
"
    );
}

#[test]
fn colours_follow_the_news_and_do_not_move_the_columns() {
    let plain = draw(&fleet(), PLAIN);
    let colored = draw(
        &fleet(),
        Layout {
            color: true,
            ..PLAIN
        },
    );
    assert!(
        colored.contains("\u{1b}[38;5;10mOnline\u{1b}[39m"),
        "{colored:?}"
    );
    let stripped: String = anstream::adapter::strip_str(&colored).to_string();
    assert_eq!(stripped, plain);
}

#[test]
fn nodes_list_prints_a_plain_table_with_all_columns_into_a_pipe() {
    let fake = Fake::start([step(LIST, 200, &list(&[node("gpu-1", &json!({}))]))]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        [
            "NAME",
            "STATUS",
            "GPUS",
            "VRAM-FREE",
            "POOLS",
            "SLOTS",
            "MODELS",
            "SEEN",
            "AGE",
            "VERSION"
        ]
    );
    assert!(
        lines[1].starts_with("gpu-1  Online  2× H100 80GB HBM3"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains('\u{1b}'), "no colour in a pipe");
    fake.asked();

    let fake = Fake::start([step(LIST, 200, &list(&[node("gpu-1", &json!({}))]))]);
    let ran = fake.run(&["nodes", "list", "--no-headers", "-o", "wide"]);
    assert!(ran.stdout.starts_with("gpu-1  Online"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("http://gpu-1:9200  m-gpu-1"),
        "{}",
        ran.stdout
    );
}

#[test]
fn nodes_list_as_json_and_yaml_is_the_answer_of_the_control_plane() {
    let wanted = list(&[
        node("gpu-1", &json!({})),
        node("gpu-2", &json!({"suspect": true})),
    ]);
    let contains = |got: &Value| {
        for key in ["count", "total", "next"] {
            assert_eq!(got[key], wanted[key]);
        }
        assert_eq!(got["nodes"][1]["suspect"], true);
        assert_eq!(
            got["nodes"][0]["capabilities"],
            wanted["nodes"][0]["capabilities"]
        );
        assert_eq!(
            got["nodes"][0]["pool_status"],
            wanted["nodes"][0]["pool_status"]
        );
    };
    let fake = Fake::start([step(LIST, 200, &wanted), step(LIST, 200, &wanted)]);
    let ran = fake.run(&["nodes", "list", "-o", "json"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    contains(&serde_json::from_str(&ran.stdout).expect("JSON"));
    let ran = fake.run(&["nodes", "list", "-o", "yaml"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    contains(&yaml_serde::from_str(&ran.stdout).expect("YAML"));
    fake.asked();
}

#[test]
fn nodes_list_asks_for_statuses_in_any_case_and_prints_names() {
    let request = "GET /v2/nodes?limit=1000&status=Online%2COffline%2CFailed";
    let fake = Fake::start([step(
        request,
        200,
        &list(&[node("a", &json!({})), node("b", &json!({}))]),
    )]);
    let ran = fake.run(&[
        "nodes",
        "list",
        "--status",
        "online,OFFLINE",
        "--status",
        "Failed",
        "-o",
        "name",
    ]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "a\nb\n", "")
    );
    fake.asked();
}

#[test]
fn an_empty_fleet_is_said_on_stderr_with_the_next_step() {
    let fake = Fake::start([step(LIST, 200, &list(&[]))]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), ""));
    assert_eq!(
        ran.stderr,
        format!(
            "no nodes\nhint: on a GPU host: orchd agent --server {} --engine http://127.0.0.1:8081\n",
            fake.url()
        )
    );

    let fake = Fake::start([step(
        "GET /v2/nodes?limit=1000&status=Failed",
        200,
        &list(&[]),
    )]);
    let ran = fake.run(&["nodes", "list", "--status", "failed"]);
    assert_eq!(
        (ran.exit, ran.stderr.as_str()),
        (Some(0), "no nodes that are Failed\n")
    );
}

#[test]
fn a_reader_who_has_gone_is_not_an_error() {
    let fake = Fake::start([step(LIST, 200, &list(&fleet()))]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = orchd(&[
        "nodes",
        "list",
        "-o",
        "json",
        "--server",
        fake.url().as_str(),
    ])
    .stdout(writer)
    .output()
    .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    fake.asked();
}

#[test]
fn each_answer_of_a_control_plane_has_its_exit_code_and_hint() {
    let get = "POST /v2/nodes/gpu-1/drain";
    let cases = [
        (
            refusal(get, 404, "NODE_NOT_FOUND", "nothing is known of node gpu-1"),
            3,
            "error: nothing is known of node gpu-1\nhint: `orchd nodes list` shows the nodes there are\n",
        ),
        (
            refusal(
                get,
                503,
                "CLOUD_PROFILE_DISABLED",
                "this control plane serves one machine",
            ),
            4,
            "error: this control plane serves one machine\nhint: this control plane serves one machine; start it with \
             `orchd serve --cloud` to manage a fleet\n",
        ),
        (
            refusal(get, 503, "STORE_UNAVAILABLE", "the disk is full"),
            4,
            "error: gpu-1: the disk is full\nhint: see the log of the control plane; nothing was changed\n",
        ),
        (
            refusal(get, 503, "SHUTTING_DOWN", "the process is stopping")
                .header("retry-after", "9"),
            4,
            "error: gpu-1: the process is stopping\nhint: try again in 9 s\n",
        ),
        (
            refusal(get, 400, "INVALID_REQUEST", "reason is too long"),
            4,
            "error: gpu-1: reason is too long\n",
        ),
        (
            refusal(get, 500, "INTERNAL", "a defect"),
            1,
            "error: gpu-1: a defect\nhint: see the log of the control plane\n",
        ),
        (
            refusal(get, 418, "TEAPOT_EMPTY", "no more tea"),
            1,
            "error: gpu-1: TEAPOT_EMPTY: no more tea\nhint: see the log of the control plane\n",
        ),
    ];
    for (step, exit, stderr) in cases {
        let fake = Fake::start([step]);
        let ran = fake.run(&["nodes", "drain", "gpu-1"]);
        assert_eq!(
            (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(exit), "", stderr)
        );
        fake.asked();
    }
}

#[test]
fn a_missing_or_weak_token_exits_7_and_is_never_shown() {
    let fake = Fake::start([refusal(LIST, 401, "UNAUTHORIZED", "a token is needed")]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!(ran.exit, Some(7));
    assert_eq!(
        ran.stderr,
        format!(
            "error: {} does not accept this request: UNAUTHORIZED: a token is needed\n\
             hint: put the control plane's token into ORCHD_API_TOKEN\n",
            fake.url()
        )
    );

    let fake = Fake::start([refusal(LIST, 403, "FORBIDDEN", "clients may only use /v1")]);
    let output = orchd(&["nodes", "list", "--server", fake.url().as_str()])
        .env("ORCHD_API_TOKEN", "sesame")
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!(ran.exit, Some(7));
    assert!(!ran.stderr.contains("sesame"), "{}", ran.stderr);
    assert_eq!(
        fake.asked()[0].authorization.as_deref(),
        Some("Bearer sesame")
    );

    let output = orchd(&["nodes", "list"])
        .env("ORCHD_API_TOKEN", "ses\name")
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!(ran.exit, Some(2));
    assert!(
        !ran.stderr.contains("ame\n") && ran.stderr.contains("token"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_server_that_cannot_be_reached_exits_6_with_its_address() {
    let server = silent_port();
    let ran = run(&["nodes", "list", "--server", server.as_str()]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(6), ""));
    assert_eq!(
        ran.stderr,
        format!(
            "error: cannot reach the control plane at {server}: Connection refused\n\
             hint: start one with `orchd serve`, or say where it is with --server or ORCHD_SERVER\n"
        )
    );
}

#[test]
fn something_else_on_the_port_exits_6_and_is_told_apart() {
    let mut stranger = step(LIST, 404, &json!({"error": {"message": "File Not Found"}}));
    stranger.headers.clear();
    let fake = Fake::start([stranger]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!(ran.exit, Some(6));
    assert_eq!(
        ran.stderr,
        format!(
            "error: {} is not an orchd control plane: it answers 404 Not Found without the header x-orchd-version\n\
             hint: say where the control plane is with --server or ORCHD_SERVER\n",
            fake.url()
        )
    );
    fake.asked();
}

#[test]
fn mistakes_on_the_command_line_exit_2_with_the_name_the_value_and_what_is_accepted() {
    let cases: [(&[&str], &str); 12] = [
        (
            &["serve", "--queue-timeout", "30"],
            "'30' for '--queue-timeout <DURATION>': a duration needs its unit here, such as 30s or 30ms",
        ),
        (
            &["serve", "--node-timeout", "2h"],
            "'2h' for '--node-timeout <DURATION>': must be 1s to 1h",
        ),
        (
            &["serve", "--stale-check-interval", "500ms"],
            "must be 1s to 1m",
        ),
        (
            &["serve", "--listen", "localhost:80"],
            "must be an IP address and a port, such as 127.0.0.1:8080",
        ),
        (&["serve", "--cloud=maybe"], "must be true, false, 1 or 0"),
        (
            &["serve", "--cloud", "--engine", "http://a:1"],
            "hint: run `orchd agent --engine URL` on the host of the engine",
        ),
        (
            &["serve", "--heartbeat-interval", "11s"],
            "set it to 10s or less",
        ),
        (
            &[
                "serve",
                "--engine",
                "http://a",
                "--engine",
                "default=http://b",
            ],
            "would both be called default",
        ),
        (&["agent", "--label", "rack"], "a label is KEY=VALUE"),
        (&["nodes", "drain"], "required arguments"),
        (&["nodes", "drain", "local"], "\"local\" is a reserved name"),
        (
            &["nodes", "drain", "a", "--detach", "--timeout", "5s"],
            "cannot be used with",
        ),
    ];
    for (args, text) in cases {
        let ran = run(args);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(
            ran.stderr.starts_with("error: ") && ran.stderr.contains(text),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_bad_variable_is_named_itself_and_takes_bare_numbers_only() {
    let cases = [
        (
            "ORCHD_QUEUE_TIMEOUT_MS",
            "30s",
            "this variable takes a whole number of milliseconds, without a unit",
        ),
        (
            "ORCHESTRATORD_NODE_TIMEOUT_MS",
            "999",
            "must be 1000 to 3600000 milliseconds",
        ),
        (
            "ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS",
            "61",
            "must be 1 to 60 seconds",
        ),
        (
            "ORCHESTRATORD_CLOUD_PROFILE",
            "yes",
            "must be true, false, 1 or 0",
        ),
        (
            "ORCHD_ADMISSION_CAPACITY",
            "many",
            "must be a whole number, 0 to 1000000",
        ),
        ("ORCHD_ADDR", "8080", "must be an IP address and a port"),
    ];
    for (name, value, text) in cases {
        let output = orchd(&["serve"])
            .env(name, value)
            .output()
            .expect("orchd runs");
        let ran = Ran::from(output);
        assert_eq!(ran.exit, Some(2), "{name}");
        let wanted = format!("error: invalid value '{value}' for '{name}': {text}");
        assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
    }
}

#[test]
fn engines_are_named_as_given_else_default_else_by_host_and_port() {
    let name = |engines: &[&str]| -> Result<Vec<String>, String> {
        let engines: Vec<EngineArg> = engines
            .iter()
            .map(|text| text.parse().expect("an engine"))
            .collect();
        name_engines(&engines)
            .map(|specs| specs.iter().map(|spec| spec.name.to_string()).collect())
            .map_err(|error| error.message)
    };
    let names = name(&[
        "http://127.0.0.1:8081",
        "big=http://127.0.0.1:8082",
        "http://gpu-1.example",
        "http://[::1]:81/base",
    ]);
    assert_eq!(
        names.expect("good"),
        ["default", "big", "gpu-1.example-80", "1-81"]
    );
    assert_eq!(
        name(&["big=http://a", "http://b"]).expect("good"),
        ["big", "default"]
    );
    assert_eq!(
        name(&["http://a", "default=http://b"]),
        Err("the engines http://a and http://b would both be called default".to_owned())
    );
    assert_eq!(
        name(&["http://a", "x=http://a:80/"]),
        Err("the engine http://a:80/ is given twice, the first time as default".to_owned())
    );
    for bad in ["a b=http://x", "=http://x", "name=", "x", "http://x?a=b"] {
        assert!(bad.parse::<EngineArg>().is_err(), "{bad}");
    }
}

#[test]
fn register_announces_a_node_and_says_what_comes_next() {
    let reply = json!({"success": true, "message": "registered", "node_id": "gpu-7", "heartbeat_interval_ms": 10_000,
        "node_timeout_ms": 30_000, "durable": true});
    let fake = Fake::start([step("POST /v2/nodes/register", 200, &reply)]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-7",
        "--address",
        "http://10.0.0.7:9200",
        "--machine-id",
        "m7",
        "--label",
        "rack=b2",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), "gpu-7\n"));
    assert_eq!(
        ran.stderr,
        format!(
            "gpu-7 is announced: it goes Online when its agent comes, and Offline when none has come within 30s\n\
             hint: start it there: orchd agent --node-id gpu-7 --server {}\n",
            fake.url()
        )
    );
    assert_eq!(
        fake.asked()[0].body,
        json!({"node_id": "gpu-7", "machine_id": "m7", "address": "http://10.0.0.7:9200", "pools": [],
            "capabilities": {"gpus": []}, "labels": {"rack": "b2"}})
    );
}

#[test]
fn register_passes_on_a_conflict_with_the_time_to_wait() {
    let fake = Fake::start([refusal(
        "POST /v2/nodes/register",
        409,
        "NODE_ID_CONFLICT",
        "gpu-7 is held by machine m1, not m2",
    )
    .header("retry-after", "21")]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-7",
        "--address",
        "http://10.0.0.7:9200",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(4), ""));
    assert_eq!(
        ran.stderr,
        "error: gpu-7 is held by machine m1, not m2\nhint: try again in 21 s\n"
    );
    fake.asked();
}

const DRAIN: &str = "POST /v2/nodes/gpu-1/drain";
const NODE: &str = "GET /v2/nodes/gpu-1";

#[test]
fn drain_waits_and_tells_each_change_once_when_piped() {
    let draining = |n| node("gpu-1", &drain("draining", n, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining(7)),
        step(NODE, 200, &draining(7)),
        step(NODE, 200, &draining(7)),
        step(NODE, 200, &draining(1)),
        step(NODE, 200, &draining(0)),
        step(
            NODE,
            200,
            &node("gpu-1", &drain("drained", 0, &json!({"cut": 2}))),
        ),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--reason", "driver update"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 drained: 5 requests finished, 2 cut\n")
    );
    let said: Vec<&str> = ran
        .stderr
        .lines()
        .map(|line| line.split(", after ").next().expect("a first part"))
        .collect();
    assert_eq!(
        said,
        [
            "gpu-1: 7 requests in flight, 7 at start",
            "gpu-1: 1 request in flight, 7 at start",
            "gpu-1: no requests left, waiting for the agent to confirm",
        ]
    );
    let asked = fake.asked();
    assert_eq!(asked[0].body["reason"], "driver update");
    let by = asked[0].body["requested_by"].as_str().expect("who asks");
    assert!(by == "ada" || by.starts_with("ada@"), "{by}");
}

#[test]
fn drain_asks_every_node_before_it_waits_for_any() {
    let of =
        |name: &str, state: &str, n: u32, changes: &Value| node(name, &drain(state, n, changes));
    let none = json!({});
    let fake = Fake::start([
        step(
            "POST /v2/nodes/b/drain",
            202,
            &of("b", "draining", 1, &none),
        ),
        refusal(
            "POST /v2/nodes/ghost/drain",
            404,
            "NODE_NOT_FOUND",
            "nothing is known of node ghost",
        ),
        step(
            "POST /v2/nodes/a/drain",
            202,
            &of("a", "draining", 1, &none),
        ),
        step("GET /v2/nodes/b", 200, &of("b", "draining", 1, &none)),
        step(
            "GET /v2/nodes/a",
            200,
            &of(
                "a",
                "drained",
                0,
                &json!({"unverified": true, "in_flight_at_start": 1}),
            ),
        ),
        step(
            "GET /v2/nodes/b",
            200,
            &of("b", "drained", 0, &json!({"in_flight_at_start": 0})),
        ),
    ]);
    let ran = fake.run(&["nodes", "drain", "b", "ghost", "a", "b"]);
    assert_eq!(ran.exit, Some(3), "the first failure is the exit code");
    assert_eq!(
        ran.stdout,
        "a drained: 1 request finished, 0 cut; unverified: its agent did not confirm it\n\
         b drained: 0 requests finished, 0 cut\n"
    );
    assert!(
        ran.stderr
            .contains("error: nothing is known of node ghost\n"),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn drain_detached_asks_and_returns() {
    let fake = Fake::start([step(
        DRAIN,
        202,
        &node("gpu-1", &drain("draining", 3, &json!({}))),
    )]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--detach"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 draining, 3 requests in flight\n")
    );
    assert_eq!(
        ran.stderr,
        "hint: wait for it with `orchd nodes drain gpu-1`\n"
    );
    fake.asked();
}

#[test]
fn drain_gives_up_after_its_timeout_and_says_that_the_drain_goes_on() {
    let draining = node("gpu-1", &drain("draining", 3, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining),
        step(NODE, 200, &draining).again(),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--timeout", "600ms"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(5), ""));
    let last: Vec<&str> = ran.stderr.lines().skip(1).collect();
    assert_eq!(
        last,
        [
            "error: not drained within 600ms: gpu-1 (3 requests in flight); the drain goes on",
            "hint: wait again with `orchd nodes drain gpu-1`",
        ]
    );
    fake.asked();
}

#[test]
fn ctrl_c_detaches_from_a_drain_and_says_so() {
    let draining = node("gpu-1", &drain("draining", 3, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining),
        step(NODE, 200, &draining).again(),
    ]);
    let child = orchd(&["nodes", "drain", "gpu-1", "--server", fake.url().as_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("orchd runs");
    fake.wait_for(NODE);
    interrupt(&child);
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(130), ""));
    assert!(
        ran.stderr.ends_with(
            "error: interrupted: gpu-1 (3 requests in flight); the drain goes on\n\
             hint: wait again with `orchd nodes drain gpu-1`\n"
        ),
        "{}",
        ran.stderr
    );
    fake.asked();
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is running");
}

#[test]
fn a_drain_that_somebody_ends_fails_and_a_node_that_leaves_does_not() {
    let fake = Fake::start([
        step(
            DRAIN,
            202,
            &node("gpu-1", &drain("draining", 3, &json!({}))),
        ),
        step(NODE, 200, &node("gpu-1", &json!({}))),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        ran.stderr,
        "error: gpu-1: somebody ended the drain before it was done\n"
    );
    fake.asked();

    let fake = Fake::start([
        step(
            DRAIN,
            202,
            &node("gpu-1", &drain("draining", 0, &json!({}))),
        ),
        refusal(
            NODE,
            404,
            "NODE_NOT_FOUND",
            "nothing is known of node gpu-1",
        ),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "gpu-1 left the fleet while it drained; the drain holds if it returns\n",
            ""
        )
    );
    fake.asked();
}

#[test]
fn a_control_plane_that_goes_away_for_a_moment_does_not_end_the_waiting() {
    let stopping = || refusal(NODE, 503, "SHUTTING_DOWN", "the process is stopping");
    let fake = Fake::start([
        step(
            DRAIN,
            202,
            &node("gpu-1", &drain("draining", 3, &json!({}))),
        ),
        stopping(),
        stopping(),
        step(NODE, 200, &node("gpu-1", &drain("drained", 0, &json!({})))),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 drained: 7 requests finished, 0 cut\n")
    );
    assert!(
        ran.stderr
            .starts_with("gpu-1: the process is stopping; the drain goes on, asking again, after "),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr.lines().count(), 1);
    fake.asked();
}

#[test]
fn undrain_says_whether_the_node_takes_requests_again() {
    let fake = Fake::start([
        step("DELETE /v2/nodes/a/drain", 200, &node("a", &json!({}))),
        step(
            "DELETE /v2/nodes/b/drain",
            200,
            &node("b", &json!({"status": "Offline", "schedulable": false})),
        ),
        refusal(
            "DELETE /v2/nodes/c/drain",
            404,
            "NODE_NOT_FOUND",
            "nothing is known of node c",
        ),
    ]);
    let ran = fake.run(&["nodes", "undrain", "a", "b", "c"]);
    assert_eq!(ran.exit, Some(3));
    assert_eq!(
        ran.stdout,
        "a undrained, takes new requests\nb undrained, takes no requests: it is Offline\n"
    );
    assert!(
        ran.stderr
            .starts_with("error: nothing is known of node c\n"),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn completions_and_man_print_to_stdout_and_man_writes_a_directory() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("undrain"), "{shell}");
    }
    let ran = run(&["man"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains(".TH \"orchd\" \"1\""), "{}", ran.stdout);

    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("new/man1");
    let ran = run(&["man", "--dir", dir.to_str().expect("UTF-8")]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "", "")
    );
    assert!(dir.join("orchd-nodes-list.1").exists());

    let ran = run(&["man", "--dir", "/dev/null/x"]);
    assert_eq!(ran.exit, Some(1));
    assert!(
        ran.stderr
            .starts_with("error: cannot make the directory /dev/null/x: "),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn the_client_gathers_all_pages_of_the_list() {
    let page = |names: &[&str], next: Value| {
        let nodes: Vec<Value> = names.iter().map(|name| node(name, &json!({}))).collect();
        json!({"nodes": nodes, "count": nodes.len(), "total": 3, "next": next})
    };
    let fake = Fake::start([
        step(
            "GET /v2/nodes?limit=1000&status=Online",
            200,
            &page(&["a", "b"], json!("b")),
        ),
        step(
            "GET /v2/nodes?limit=1000&status=Online&after=b",
            200,
            &page(&["c"], Value::Null),
        ),
    ]);
    let query = NodesQuery {
        status: vec![NodeStatus::Online],
    };
    let all = fake.client().nodes(&query).await.expect("a list");
    let names: Vec<&str> = all.nodes.iter().map(|node| node.node_id.as_str()).collect();
    assert_eq!(
        (names, all.count, all.total, all.next),
        (vec!["a", "b", "c"], 3, 3, None)
    );
    fake.asked();

    let endless = Fake::start([
        step(LIST, 200, &page(&["a", "b"], json!("b"))),
        step(
            "GET /v2/nodes?limit=1000&after=b",
            200,
            &page(&["a", "b"], json!("b")),
        ),
    ]);
    let error = endless
        .client()
        .nodes(&NodesQuery::default())
        .await
        .expect_err("no end");
    assert!(matches!(error, ClientError::NotOrchd { .. }), "{error}");
    endless.asked();
}

#[tokio::test]
async fn the_client_tries_its_servers_in_turn_and_remembers_who_answered() {
    let mut stranger = step(
        "DELETE /v2/nodes/a?instance_id=i1&forget=true",
        200,
        &json!({}),
    );
    stranger.headers.clear();
    let stranger = Fake::start([stranger]);
    let good = Fake::start([
        step(
            "DELETE /v2/nodes/a?instance_id=i1&forget=true",
            204,
            &Value::Null,
        ),
        step("DELETE /v2/nodes/a", 204, &Value::Null),
    ]);
    let client = client(
        vec![silent_port(), stranger.url(), good.url()],
        Some("sesame"),
    );
    client
        .deregister(&node_id("a"), Some("i1"), true)
        .await
        .expect("the third one answers");
    assert_eq!(client.server(), &good.url());
    client
        .deregister(&node_id("a"), None, false)
        .await
        .expect("asked first now");
    stranger.asked();
    let authorized = good
        .asked()
        .iter()
        .all(|asked| asked.authorization.as_deref() == Some("Bearer sesame"));
    assert!(authorized);
}

#[tokio::test]
async fn the_client_names_every_server_when_none_answers() {
    let mut stranger = step(LIST, 200, &json!({}));
    stranger.headers.clear();
    let stranger = Fake::start([stranger]);
    let silent = silent_port();
    let error = client(vec![silent.clone(), stranger.url()], None)
        .nodes(&NodesQuery::default())
        .await
        .expect_err("nobody answers");
    assert_eq!(
        error.to_string(),
        format!(
            "none of the 2 control planes answers: {silent}: Connection refused; {}: it answers 200 OK without the \
             header x-orchd-version",
            stranger.url()
        )
    );
}

#[tokio::test]
async fn the_client_gives_an_answer_that_never_comes_its_time_and_no_more() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Accepts in its backlog, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let server =
        HttpUrl::new(&format!("http://{}", listener.local_addr().expect("bound"))).expect("a URL");
    let client =
        Client::new(vec![server.clone()], None, Duration::from_millis(50)).expect("a client");
    let error = client.node(&node_id("a")).await.expect_err("no answer");
    assert_eq!(
        error.to_string(),
        format!("cannot reach the control plane at {server}: no answer in time")
    );
    assert!(matches!(error, ClientError::Unreachable { .. }));
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_with_code_and_time_to_wait() {
    let fake = Fake::start([
        refusal(DRAIN, 503, "STORE_UNAVAILABLE", "the disk is full").header("retry-after", "2"),
        step(NODE, 200, &json!({"node_id": "gpu-1"})),
    ]);
    let client = fake.client();
    let error = client
        .drain(&node_id("gpu-1"), &DrainRequest::default())
        .await
        .expect_err("refused");
    let ClientError::Refused {
        status,
        body,
        retry_after,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (status, body.code, body.message.as_str(), retry_after),
        (
            503,
            ErrorCode::StoreUnavailable,
            "the disk is full",
            Some(Duration::from_secs(2))
        )
    );
    let error = client
        .node(&node_id("gpu-1"))
        .await
        .expect_err("half a node");
    assert!(matches!(error, ClientError::NotOrchd { .. }), "{error}");
    assert_eq!(
        fake.asked()[0].body,
        json!({}),
        "an empty request is an empty object"
    );
}

#[test]
fn help_is_data_and_does_not_depend_on_a_running_control_plane() {
    let mut child = orchd(&["nodes", "drain", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("orchd runs");
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("UTF-8");
    assert!(child.wait().expect("it ends").success());
    assert!(
        text.contains("Examples:\n  orchd nodes drain gpu-7"),
        "{text}"
    );
}
