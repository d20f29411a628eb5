//! `orchd demo`, as people run it: a fleet that can be talked to, drained and killed, and of which nothing is left.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::fake_control_plane::{Ran, orchd};
use crate::support::chat::COUNT;
use crate::support::engine::{Engine, Model};
use crate::support::http::{self, Response};
use crate::support::process::Running;
use crate::support::secure::command;
use crate::support::{at_once, eventually, free_address};

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// What the page ends with.
const READY: &str = "Here is what happens meanwhile:";

/// A demo, in a directory for temporary files of its own.
struct Demo {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
    dir: TempDir,
}

impl Demo {
    fn start() -> Self {
        Self::start_with(&[], &[])
    }

    fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let address = free_address();
        let mut child = orchd(&["demo", "--listen", &address.to_string()])
            .args(arguments)
            .env("TMPDIR", dir.path())
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("orchd runs");
        let said = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                for line in lines.map_while(Result::ok) {
                    *said.lock().expect("not poisoned") += &(line + "\n");
                }
            }
        });
        let demo = Self {
            child,
            address,
            said,
            dir,
        };
        demo.says(READY);
        demo
    }

    /// All it has said so far.
    fn said(&self) -> String {
        self.said.lock().expect("not poisoned").clone()
    }

    /// Waits until it has said something, and gives the rest of the line behind.
    fn says(&self, text: &str) -> String {
        let (rest, _) = eventually(SOON, &format!("the demo says {text:?}"), || {
            let said = self.said();
            let rest = said
                .split_once(text)
                .and_then(|(_, rest)| rest.split_once('\n'));
            rest.map(|(line, _)| line.to_owned()).ok_or(said)
        });
        rest
    }

    /// The ids of all its parts, as the page tells them: the control plane's first, then of each node the agent's and the
    /// engine's.
    fn pids(&self) -> Vec<i32> {
        let page = self.said();
        let page = page.split("To try").next().expect("there is a beginning");
        page.split(" pid ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .collect()
    }

    /// Where a node's engine listens.
    fn engine(&self, node: &str) -> SocketAddr {
        let page = self.said();
        let line = page
            .lines()
            .find(|line| line.trim_start().starts_with(node));
        let words: Vec<&str> = line
            .expect("it is on the page")
            .split_whitespace()
            .collect();
        words[4].parse().expect("an address")
    }

    fn chat(&self, max_tokens: u32) -> Response {
        let body = json!({"stream": true, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": "Hello!"}]});
        http::post(self.address, "/v1/chat/completions", &body).expect("an answer")
    }

    fn node(&self, name: &str) -> Value {
        http::get_json(self.address, &format!("/v2/nodes/{name}"))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("ids of processes are small");
        kill(Pid::from_raw(pid), signal).expect("it is this test's own child");
    }

    fn wait(&mut self) -> Option<i32> {
        eventually(SOON, "the demo ends", || {
            let ended = self.child.try_wait().expect("it is this test's own child");
            ended
                .map(|status| status.code())
                .ok_or("it runs".to_owned())
        })
        .0
    }

    /// What lies in its directory for temporary files.
    fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("it is there");
        entries.map(|entry| entry.expect("read").path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the demo said:\n{}", self.said());
        }
    }
}

/// Whether a process runs; one that has ended and that nobody has waited for does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

fn none_runs(pids: &[i32]) -> Result<(), String> {
    let left: Vec<_> = pids.iter().filter(|&&pid| runs(pid)).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("{left:?} run"))
    }
}

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is a part of this test's demo");
}

/// The tokens of a stream, to its proper end.
fn tokens(response: Response) -> Vec<String> {
    let mut events = response.events();
    let mut tokens = Vec::new();
    loop {
        let data = events
            .next()
            .expect("an event")
            .expect("no end without [DONE]");
        if data == "[DONE]" {
            assert_eq!(events.next().expect("the end"), None);
            return tokens;
        }
        let frame: Value = serde_json::from_str(&data).expect("JSON");
        assert!(frame["error"].is_null(), "{frame}");
        if let Some(token) = frame["choices"][0]["delta"]["content"].as_str() {
            tokens.push(token.to_owned());
        }
    }
}

#[test]
fn one_command_is_a_fleet_that_streams_and_drains_without_cutting_anybody_off() {
    // Settings of a real fleet have no say in it.
    let demo = Demo::start_with(
        &[],
        &[
            ("ORCHD_API_TOKEN", "secret"),
            ("ORCHD_STATE_DIR", "/nowhere"),
        ],
    );
    let list = http::get_json(demo.address, "/v2/nodes");
    let nodes: Vec<_> = (list["nodes"].as_array().expect("a list").iter())
        .map(|node| {
            (
                node["node_id"].as_str().unwrap_or_default(),
                &node["status"],
                &node["health"]["status"],
            )
        })
        .collect();
    let (online, ok) = (&json!("Online"), &json!("ok"));
    assert_eq!(
        nodes,
        [
            ("node-1", online, ok),
            ("node-2", online, ok),
            ("node-3", online, ok)
        ]
    );

    let stream = demo.chat(80);
    let node = stream.header("x-orchd-node").expect("a node").to_owned();
    let drain = http::post(demo.address, &format!("/v2/nodes/{node}/drain"), &json!({}));
    assert_eq!(drain.expect("an answer").status, 202);
    demo.says(&format!("{node} is draining"));
    // Its first words are here, and it still runs: they come as they are made.
    let drain = &demo.node(&node)["drain"];
    assert_eq!(
        (&drain["state"], &drain["in_flight"]),
        (&json!("draining"), &json!(1))
    );
    let others = at_once(4, |_| {
        let other = demo.chat(1);
        let by = other.header("x-orchd-node").expect("a node").to_owned();
        assert_eq!(tokens(other).len(), 1);
        by
    });
    assert!(!others.contains(&node), "{others:?}");

    let said = tokens(stream);
    assert_eq!(said.len(), 80);
    let text = said.concat();
    let beginning = format!(
        "I am the built-in engine of orchd's demo, on {node}, and not a language model. You said: “Hello!”."
    );
    assert!(text.starts_with(&beginning), "{text}");
    demo.says(&format!("{node} is drained"));
    assert_eq!(demo.node(&node)["drain"]["cut"], 0);
}

#[test]
fn a_killed_agent_goes_offline_is_not_missed_and_comes_back_by_the_command_that_is_shown() {
    let demo = Demo::start();
    let agent = demo.pids()[3];
    kill9(agent);
    let begun = Instant::now();
    demo.says("the agent of node-2 ended: killed by signal 9");
    demo.says("node-2 is Offline: ");
    eprintln!("a killed agent was Offline after {:?}", begun.elapsed());
    assert_eq!(demo.node("node-2")["status"], "Offline");
    for _ in 0..4 {
        let stream = demo.chat(2);
        assert_ne!(stream.header("x-orchd-node"), Some("node-2"));
        assert_eq!(tokens(stream).len(), 2);
    }
    let said = demo.said();
    let command = said.lines().find(|line| line.contains(" agent --config "));
    let command = command.expect("it says how to start it again");
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).env_clear();
    let mut again = Running::spawn("the agent", &mut command, &demo.dir.path().join("log"));
    demo.says("node-2 is Online");
    again.terminate();
    assert_eq!(again.wait(SOON), Some(0));
    demo.says("node-2 has left");
}

#[test]
fn a_killed_engine_is_told_and_the_others_answer() {
    let demo = Demo::start();
    kill9(demo.pids()[2]);
    demo.says("the engine of node-1 ended: killed by signal 9");
    for _ in 0..4 {
        assert_eq!(tokens(demo.chat(2)).len(), 2);
    }
    demo.says("node-1's engine does not answer");
}

#[test]
fn an_interrupt_ends_all_of_it_and_nothing_is_left() {
    let mut demo = Demo::start();
    let pids = demo.pids();
    assert_eq!(pids.len(), 7);
    assert!(pids.iter().all(|&pid| runs(pid)), "{pids:?}");
    // Also with a chat in hand.
    let _stream = demo.chat(1_000);
    let begun = Instant::now();
    demo.signal(Signal::SIGINT);
    // Its proper end, as that of `serve` and `agent`: nothing that somebody asked for was interrupted. The help says so.
    assert_eq!(demo.wait(), Some(0));
    let help = orchd(&["demo", "--help"]).output().expect("orchd runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("the exit status is 0 then"), "{help}");
    eprintln!(
        "the demo with a chat in hand ended after {:?}",
        begun.elapsed()
    );
    assert_eq!(none_runs(&pids), Ok(()));
    let left = demo.left();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_killed_demo_leaves_no_process_and_the_next_one_removes_its_files() {
    let mut demo = Demo::start();
    let pids = demo.pids();
    assert_eq!(pids.len(), 7);
    demo.signal(Signal::SIGKILL);
    demo.wait();
    eventually(Duration::from_secs(2), "nothing of it runs", || {
        none_runs(&pids)
    });
    assert_eq!(demo.left().len(), 1);
    let next = orchd(&[
        "demo",
        "--nodes",
        "1",
        "--listen",
        &demo.address.to_string(),
    ])
    .env("TMPDIR", demo.dir.path())
    .stdout(Stdio::null())
    .spawn();
    let mut next = next.expect("orchd runs");
    let old = demo.left().remove(0);
    eventually(SOON, "the old files are gone", || {
        if old.exists() {
            Err("they are there".to_owned())
        } else {
            Ok(())
        }
    });
    next.kill().expect("it is this test's own child");
    next.wait().expect("it is this test's own child");
}

#[test]
fn a_taken_address_and_one_that_others_reach_are_refused_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let run = |arguments: &[&str]| -> Ran {
        let ran = orchd(arguments).output().expect("orchd runs");
        ran.into()
    };
    let ran = run(&["demo", "--listen", &address]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        ran.stderr,
        format!(
            "error: {address} is taken: another program listens there\n\
             hint: stop that one, or choose another address, such as --listen 127.0.0.1:9000\n"
        )
    );
    let ran = run(&["demo", "--listen", "0.0.0.0:8080"]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr.contains("listens on loopback only"),
        "{}",
        ran.stderr
    );
    let ran = run(&["demo", "--model", "/dev/null"]);
    assert_eq!(ran.exit, Some(2));
    assert!(
        ran.stderr.contains("no llama-server on the path"),
        "{}",
        ran.stderr
    );
}

/// The built-in engine by itself.
fn engine(dir: &Path) -> (Running, SocketAddr) {
    let address = free_address();
    let arguments = [
        "demo",
        "engine",
        "--node",
        "node-1",
        "--listen",
        &address.to_string(),
    ];
    let mut running = Running::spawn("the engine", &mut orchd(&arguments), &dir.join("log"));
    let ready = running.ready(address, "/health", SOON);
    ready.unwrap_or_else(|not_ready| not_ready.panic());
    (running, address)
}

/// The keys of an object and of those in it, with the kinds of their values.
fn shape(value: &Value, path: &str, keys: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(items) => {
            for item in items {
                shape(item, &format!("{path}[]"), keys);
            }
            "array"
        }
        Value::Object(object) => {
            for (key, value) in object {
                shape(value, &format!("{path}.{key}"), keys);
            }
            "object"
        }
    };
    keys.insert(path.to_owned(), kind);
}

fn shape_of(text: &str) -> BTreeMap<String, &'static str> {
    let mut keys = BTreeMap::new();
    let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    shape(&value, "", &mut keys);
    keys
}

#[test]
fn the_built_in_engine_answers_in_the_shape_of_the_real_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_running, ours) = engine(dir.path());
    let real = Engine::start(Model::Counting, 2, 8_192);
    let ask = |address, path: &str, body: &Value| {
        let answer = http::post(address, path, body).expect("an answer");
        let kind = answer.header("content-type").map(str::to_owned);
        let closes = answer.header("connection") == Some("close");
        (
            answer.status,
            kind,
            closes,
            answer.text().expect("all of it"),
        )
    };
    let messages = json!([{"role": "user", "content": "Count!"}]);
    let chat = "/v1/chat/completions";
    for (path, body) in [
        (chat, json!({"messages": messages, "max_tokens": 3})),
        (
            "/v1/completions",
            json!({"prompt": "Count!", "max_tokens": 3}),
        ),
        (chat, json!({})),
        (chat, json!({"messages": "x"})),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/v1/nope", json!({})),
    ] {
        let (theirs, ours) = (ask(real.address, path, &body), ask(ours, path, &body));
        assert_eq!((ours.0, &ours.1), (theirs.0, &theirs.1), "{path} {body}");
        assert_eq!(shape_of(&ours.3), shape_of(&theirs.3), "{path} {body}");
        if ours.0 != 200 {
            assert!(ours.2, "an error closes its connection");
        }
    }
    for (path, body) in [
        (
            chat,
            json!({"messages": messages, "max_tokens": 3, "stream": true}),
        ),
        (
            chat,
            json!({"messages": messages, "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "Count!", "max_tokens": 3, "stream": true}),
        ),
    ] {
        let frames = |address| {
            let mut events = http::post(address, path, &body)
                .expect("an answer")
                .events();
            let data = std::iter::from_fn(|| events.next().expect("an event"));
            data.map(|data| match data.as_str() {
                "[DONE]" => BTreeMap::from([(data, "end")]),
                frame => shape_of(frame),
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(frames(ours), frames(real.address), "{path} {body}");
    }
    // What orchd and its users read of it is there, and of the same kind.
    for path in ["/health", "/props", "/slots", "/v1/models"] {
        let theirs = shape_of(&http::get_json(real.address, path).to_string());
        let ours = shape_of(&http::get_json(ours, path).to_string());
        for (key, kind) in &ours {
            assert_eq!(theirs.get(key), Some(kind), "{path}: {key}");
        }
    }
}

#[test]
fn the_built_in_engine_queues_beyond_its_slots_and_frees_that_of_a_client_who_leaves() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_running, address) = engine(dir.path());
    let ask = || {
        let body = json!({"messages": [], "stream": true});
        http::post(address, "/v1/chat/completions", &body).expect("an answer")
    };
    let busy = || {
        let slots = http::get_json(address, "/slots");
        let slots = slots.as_array().expect("a list").clone();
        slots
            .iter()
            .filter(|slot| slot["is_processing"] == true)
            .count()
    };
    let (first, second) = (ask(), ask());
    assert_eq!(busy(), 2);
    let full = http::get(address, "/slots?fail_on_no_slot=1").expect("an answer");
    assert_eq!(full.status, 503);
    let third = std::thread::scope(|scope| {
        let third = scope.spawn(ask);
        eventually(SOON, "the third waits", || {
            let metrics = http::get(address, "/metrics").and_then(Response::text);
            let metrics = metrics.expect("an answer");
            let waits = metrics.contains("\nllamacpp:requests_deferred 1\n");
            if waits { Ok(()) } else { Err(metrics) }
        });
        drop(first);
        third.join().expect("it is answered")
    });
    drop((second, third));
    eventually(
        Duration::from_secs(2),
        "all slots are free",
        || match busy() {
            0 => Ok(()),
            busy => Err(format!("{busy} are busy")),
        },
    );
}

#[test]
fn a_probe_finds_nothing_amiss_with_the_built_in_engine() {
    let demo = Demo::start_with(&["--nodes", "1"], &[]);
    let url = format!("http://{}", demo.engine("node-1"));
    let ran: Ran = orchd(&["probe", "--node-id", "n", "--engine", &url, "-o", "json"])
        .current_dir(demo.dir.path())
        .output()
        .expect("orchd runs")
        .into();
    let found: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let pool = &found["pools"][0];
    assert_eq!(
        (
            &pool["state"],
            &pool["slots_total"],
            &pool["models_available"],
            &pool["n_ctx"]
        ),
        (
            &json!("ready"),
            &json!(2),
            &json!(["orchd-demo"]),
            &json!(4_096)
        ),
        "{found:#}"
    );
    assert!(
        pool["advice"].as_array().is_none_or(Vec::is_empty),
        "{found:#}"
    );
    assert!(pool["detail"].is_null(), "{found:#}");
}

#[test]
fn a_demo_that_has_nowhere_to_put_its_files_says_where_it_wanted_to() {
    let listen = free_address().to_string();
    let ran = command(&["demo", "--listen", &listen], &[("TMPDIR", "/not/there")]);
    assert_eq!(ran.exit, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("/not/there"), "{}", ran.stderr);
}

#[test]
fn with_a_llama_server_and_a_model_the_answers_are_the_models() {
    let home = std::env::var("ORCHD_TEST_ENGINE_DIR").expect("as the other journeys need it");
    let home = Path::new(&home).canonicalize().expect("it is there");
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let libraries = text(home.join("bin"));
    let mut demo = Demo::start_with(
        &[
            "--nodes",
            "2",
            "--llama-server",
            &text(home.join("bin/llama-server")),
            "--model",
            &text(home.join("counting.gguf")),
            "--",
            "-ngl",
            "0",
            "--device",
            "none",
            "-t",
            "1",
        ],
        &[("LD_LIBRARY_PATH", &libraries)],
    );
    let by = at_once(4, |_| COUNT.streamed(demo.address).expect("forty words"));
    assert!(
        by.contains(&"node-1".to_owned()) && by.contains(&"node-2".to_owned()),
        "{by:?}"
    );
    let pids = demo.pids();
    assert_eq!(pids.len(), 5);
    demo.signal(Signal::SIGKILL);
    demo.wait();
    eventually(Duration::from_secs(2), "nothing of it runs", || {
        none_runs(&pids)
    });
}
