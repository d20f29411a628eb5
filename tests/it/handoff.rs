//! Handoff files, with the real binary: engines come, move and go by them, in the HOME profile and behind an agent.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::chat::COUNT;
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{eventually, http};

/// What a change of a handoff file may take to be seen (contract §4).
const SEEN: Duration = Duration::from_secs(2);
/// How often an engine that idles is read (contract §4).
const IDLE: Duration = Duration::from_secs(5);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(2);

/// A directory of handoff files.
struct Runtime(TempDir);

impl Runtime {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a path in UTF-8")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, handoff: &Value) {
        fs::write(self.file(name), handoff.to_string()).expect("writes");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("removes");
    }
}

/// `NAME STATE READY URL` of each pool.
fn pools(orchd: &Orchd) -> Vec<String> {
    let list = http::get_json(orchd.address, "/v2/pools");
    let pools = list["pools"].as_array().expect("a list");
    let line = |pool: &Value| {
        let text = |field: &str| pool[field].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {}",
            text("pool_id"),
            text("state"),
            pool["ready"],
            text("url")
        )
    };
    pools.iter().map(line).collect()
}

fn seen(orchd: &Orchd, what: &str, wanted: &[String]) {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    let (_, took) = eventually(SEEN + SLACK, what, || {
        let pools = pools(orchd);
        if pools == wanted {
            Ok(())
        } else {
            Err(format!("{pools:?} instead of {wanted:?}"))
        }
    });
    eprintln!("{what}: after {took:?}");
}

fn ready(name: &str, url: &str) -> String {
    format!("{name} ready true {url}")
}

#[test]
fn engines_of_one_machine_come_move_and_go_by_their_handoff_files() {
    let runtime = Runtime::new();
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", runtime.path()]);
    let (a, b) = (ScriptedEngine::start("m", 2), ScriptedEngine::start("m", 2));
    assert_eq!(pools(&orchd), [""; 0]);

    runtime.write("a.json", &json!({"url": a.url()}));
    seen(&orchd, "a file that comes", &[ready("default", &a.url())]);
    a.script([Script::stream().event("[DONE]").end()]);
    assert_eq!(chat(&orchd), 200);

    runtime.write(
        "b.json",
        &json!({"url": b.url(), "pool_id": "b", "replica_id": "r1"}),
    );
    let both = [ready("default", &a.url()), ready("b-r1", &b.url())];
    seen(&orchd, "a second one", &both);

    runtime.remove("a.json");
    seen(&orchd, "a file that goes", &both[1..]);

    runtime.write(
        "b.json",
        &json!({"url": a.url(), "pool_id": "b", "replica_id": "r1"}),
    );
    seen(
        &orchd,
        "a file that is rewritten",
        &[ready("b-r1", &a.url())],
    );
    a.script([Script::stream().event("[DONE]").end()]);
    assert_eq!(chat(&orchd), 200);
}

#[test]
fn a_model_stays_known_while_its_engine_moves_or_gets_another_name() {
    let runtime = Runtime::new();
    let (a, b) = (ScriptedEngine::start("m", 4), ScriptedEngine::start("m", 4));
    let options = ["--runtime-dir", runtime.path()];
    let home = Orchd::serve_home(&[], &options);
    let state = tempfile::tempdir().expect("a directory");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let _agent = Orchd::agent_with(&server.url(), "n1", &[], &options);
    for engine in [&a, &b] {
        engine.always(Script::stream().event("[DONE]").end());
    }
    let put = |name: &str, url: String| {
        runtime.write(".new", &json!({"url": url, "pool_id": name}));
        fs::rename(runtime.file(".new"), runtime.file("a.json")).expect("renames");
    };
    put("p", a.url());
    for orchd in [&home, &server] {
        eventually(SEEN + SLACK, "it is served", || match chat(orchd) {
            200 => Ok(()),
            status => Err(status.to_string()),
        });
    }
    for (round, (name, engine)) in [("p", &b), ("p", &a), ("q", &a), ("q", &b)]
        .into_iter()
        .enumerate()
    {
        put(name, engine.url());
        // Far more than it takes to be seen.
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(600) {
            assert_eq!((chat(&home), chat(&server)), (200, 200), "in round {round}");
        }
    }
}

fn chat(orchd: &Orchd) -> u16 {
    let body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let response = http::post(orchd.address, "/v1/chat/completions", &body).expect("an answer");
    let status = response.status;
    response.text().expect("a whole answer");
    status
}

#[test]
fn a_stream_outlives_the_file_of_its_engine() {
    let runtime = Runtime::new();
    let engine = ScriptedEngine::start("m", 1);
    runtime.write("a.json", &json!({"url": engine.url()}));
    let state = tempfile::tempdir().expect("a directory");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let options = ["--runtime-dir", runtime.path()];
    let agent = Orchd::agent_with(&server.url(), "n1", &[], &options);
    let url = format!("{}/pools/default", agent.url());
    seen(&server, "an engine of an agent", &[ready("default", &url)]);

    engine.script([Script::stream().event("1").hold().event("[DONE]").end()]);
    let body = json!({"model": "m", "stream": true, "messages": []});
    let stream = http::post(server.address, "/v1/chat/completions", &body).expect("a stream");
    let mut events = stream.events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));
    runtime.remove("a.json");
    seen(&server, "it goes", &[]);
    let direct = http::post(agent.address, "/pools/default/v1/chat/completions", &body);
    let direct = direct.expect("an answer");
    assert_eq!(
        (direct.status, direct.header("x-orchd-refused")),
        (404, Some("unknown_pool"))
    );
    engine.go(0);
    assert_eq!(events.next().expect("an event").as_deref(), Some("[DONE]"));
    assert_eq!(events.next().expect("its end"), None);
}

#[test]
fn an_engine_whose_process_is_dead_is_not_ready_and_the_file_of_another_takes_its_place() {
    let runtime = Runtime::new();
    let engine = ScriptedEngine::start("m", 1);
    let mut process = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .expect("starts");
    let pid = process.id();
    runtime.write(
        "old.json",
        &json!({"url": engine.url(), "pid": pid, "model": "m"}),
    );
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", runtime.path()]);
    seen(&orchd, "alive", &[ready("default", &engine.url())]);
    process.kill().expect("ends");
    process.wait().expect("ends");
    let dead = format!("default unreachable false {}", engine.url());
    seen(&orchd, "dead", &[dead]);
    runtime.write(
        "new.json",
        &json!({"url": engine.url(), "pid": std::process::id()}),
    );
    seen(&orchd, "another", &[ready("default", &engine.url())]);
    assert_eq!(
        orchd.log().matches("a handoff file is not used").count(),
        1,
        "{}",
        orchd.log()
    );
}

#[test]
fn the_same_name_twice_is_warned_about_once_and_the_first_keeps_it() {
    let runtime = Runtime::new();
    let (a, b) = (ScriptedEngine::start("m", 1), ScriptedEngine::start("m", 1));
    let orchd = Orchd::serve_home(&[a.url()], &["--runtime-dir", runtime.path()]);
    let first = [ready("default", &a.url())];
    runtime.write("b.json", &json!({"url": b.url()}));
    eventually(SEEN + SLACK, "a warning", || {
        let log = orchd.log();
        let warned = log.contains("the pool default is already that of --engine");
        if warned { Ok(()) } else { Err(log) }
    });
    seen(&orchd, "the first", &first);
    // Looked at again and again, it is still no news.
    runtime.write("c.json", &json!({"url": b.url(), "pool_id": "c"}));
    seen(
        &orchd,
        "another name",
        &[first[0].clone(), ready("c", &b.url())],
    );
    assert_eq!(orchd.log().matches("is already that of").count(), 1);
}

#[test]
fn a_real_engine_that_is_killed_and_comes_back_elsewhere_is_followed_by_its_rewritten_file() {
    let runtime = Runtime::new();
    let state = tempfile::tempdir().expect("a directory");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let options = ["--runtime-dir", runtime.path()];
    let agent = Orchd::agent_with(&server.url(), "n1", &[], &options);
    let url = format!("{}/pools/default", agent.url());
    let mut first = Engine::start(Model::Counting, 2, 4_096);
    runtime.write("engine.json", &json!({"url": first.url()}));
    seen(&server, "a real engine", &[ready("default", &url)]);
    assert_eq!(COUNT.streamed(server.address).as_deref(), Ok("n1"));
    first.kill9();
    // One that idles is read every five seconds.
    let gone = [format!("default unreachable false {url}")];
    eventually(IDLE + SLACK, "killed", || match pools(&server) {
        pools if pools == gone => Ok(()),
        pools => Err(format!("{pools:?}")),
    });
    let second = Engine::start(Model::Counting, 2, 4_096);
    assert_ne!(first.address, second.address);
    runtime.write("engine.json", &json!({"url": second.url()}));
    seen(&server, "back elsewhere", &[ready("default", &url)]);
    assert_eq!(COUNT.streamed(server.address).as_deref(), Ok("n1"));
}

#[test]
fn the_key_of_an_engine_is_shown_to_it_and_to_nobody_else() {
    let runtime = Runtime::new();
    fs::write(runtime.file("key"), "sesame\n").expect("writes");
    let engine = ScriptedEngine::start("m", 1);
    runtime.write(
        "a.json",
        &json!({"url": engine.url(), "api_key_file": "key"}),
    );
    let home = Orchd::serve_home(&[], &["--runtime-dir", runtime.path()]);
    let state = tempfile::tempdir().expect("a directory");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let options = ["--runtime-dir", runtime.path()];
    let agent = Orchd::agent_with(&server.url(), "n1", &[], &options);
    for orchd in [&home, &server] {
        eventually(SEEN + SLACK, "ready", || match pools(orchd) {
            pools if pools.len() == 1 => Ok(()),
            pools => Err(format!("{pools:?}")),
        });
        engine.script([Script::stream().event("[DONE]").end()]);
        assert_eq!(chat(orchd), 200);
        let asked = engine.asked();
        let shown = asked.last().expect("a request").header("authorization");
        assert_eq!(shown.as_deref(), Some("Bearer sesame"));
    }
    // Whatever an engine turns into is told at once, not with the next heartbeat.
    fs::remove_file(runtime.file("key")).expect("removes");
    let url = format!("{}/pools/default", agent.url());
    seen(
        &server,
        "no key",
        &[format!("default misconfigured false {url}")],
    );
    for orchd in [&home, &server, &agent] {
        assert!(!orchd.log().contains("sesame"));
    }
    let shown = http::get(server.address, "/v2/nodes/n1").expect("an answer");
    assert!(!shown.text().expect("a body").contains("sesame"));
}

#[test]
fn what_is_no_news_is_not_said_again_when_a_file_is_rewritten() {
    let runtime = Runtime::new();
    let engine = ScriptedEngine::start("m", 1);
    let put = |handoff: &Value| {
        runtime.write(".new", handoff);
        fs::rename(runtime.file(".new"), runtime.file("a.json")).expect("renames");
    };
    put(&json!({"url": engine.url(), "pid": -1, "device_mask": "0"}));
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", runtime.path()]);
    seen(&orchd, "a file", &[ready("default", &engine.url())]);
    for mask in ["1", "2", "3"] {
        let before = engine.probes().len();
        put(&json!({"url": engine.url(), "pid": -1, "device_mask": mask}));
        // Sooner than one that idles is read by itself: its reader has begun anew.
        eventually(SEEN + SLACK, "it is read again", || {
            match engine.probes().len() {
                read if read > before + 3 => Ok(()),
                read => Err(format!("{read} questions after {before}")),
            }
        });
    }
    // Whatever was read before this is told after it.
    put(&json!({"url": engine.url(), "pool_id": "b"}));
    seen(&orchd, "another name", &[ready("b", &engine.url())]);
    let log = orchd.log();
    for said in [
        "pool_id=default url=",
        "an engine was handed over pool_id=default",
        "it has one slot",
        "/metrics is off",
        "the pid -1 of its handoff file",
    ] {
        let lines = log.lines().filter(|line| line.contains(said));
        let lines = lines.filter(|line| !line.contains("pool_id=b"));
        let wanted = if said == "pool_id=default url=" { 2 } else { 1 };
        assert_eq!(lines.count(), wanted, "{said}:\n{log}");
    }
}

#[test]
fn an_engine_by_another_name_of_its_machine_is_passed_over() {
    let runtime = Runtime::new();
    let engine = ScriptedEngine::start("m", 1);
    let orchd = Orchd::serve_home(&[engine.url()], &["--runtime-dir", runtime.path()]);
    let localhost = engine.url().replace("127.0.0.1", "localhost");
    assert_ne!(localhost, engine.url());
    runtime.write("b.json", &json!({"url": localhost, "pool_id": "b"}));
    eventually(SEEN + SLACK, "a warning", || {
        let log = orchd.log();
        let warned = log.contains("is already the pool default: its slots would be counted twice");
        if warned { Ok(()) } else { Err(log) }
    });
    seen(&orchd, "the first", &[ready("default", &engine.url())]);
}
