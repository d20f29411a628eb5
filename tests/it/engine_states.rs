//! What orchd says of the real `llama-server` when that is started, stopped, killed, put to sleep or used past orchd,
//! and how soon.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted_engine::ScriptedEngine;
use crate::support::chat::{COUNT, Stream, ring};
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{STEP, eventually, free_address, http};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(10);
/// An engine that does nothing is read so often (contract §4).
const IDLE: Duration = Duration::from_secs(5);
/// How soon one is seen that is there again: it is read every second, and twice that is promised.
const BACK: Duration = Duration::from_secs(2);
/// What a busy machine may add to a limit.
const SLACK: Duration = Duration::from_secs(1);
/// A context that is shifted as it fills: a stream goes on for as long as it is wanted.
const ENDLESS: &[&str] = &["--context-shift"];
/// More than is ever read.
const FOREVER: usize = 1_000_000;

/// A ring with so many slots, whose streams do not end.
fn endless(slots: u32) -> Engine {
    Engine::start_with(Model::Ring, slots, 4_096 * slots, ENDLESS)
}

/// Begins a stream that goes on until it is dropped, and has its first words.
fn stream(address: SocketAddr) -> Stream {
    let mut stream = ring(FOREVER).stream(address).expect("a stream");
    stream.read(3).expect("words");
    stream
}

/// The pools, in order.
fn pools(orchd: &Orchd) -> Vec<Value> {
    let mut list = http::get_json(orchd.address, "/v2/pools");
    serde_json::from_value(list["pools"].take()).expect("a list")
}

/// The one pool.
fn pool(orchd: &Orchd) -> Value {
    let mut pools = pools(orchd);
    assert_eq!(pools.len(), 1, "{pools:?}");
    pools.remove(0)
}

/// Waits until the one pool is as `is` says, and gives the time that took.
fn becomes(orchd: &Orchd, limit: Duration, what: &str, is: impl Fn(&Value) -> bool) -> Duration {
    let (_, took) = eventually(limit, what, || match pools(orchd).as_slice() {
        [pool] if is(pool) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eprintln!("{what}: after {took:?}");
    took
}

/// Looks again and again for so long, and fails when the one pool is not as `is` says.
fn stays(orchd: &Orchd, time: Duration, what: &str, is: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    let mut looks = 0;
    while begun.elapsed() < time {
        let pool = pool(orchd);
        assert!(is(&pool), "{what}, and after {:?}: {pool}", begun.elapsed());
        looks += 1;
        std::thread::sleep(STEP);
    }
    eprintln!("{what}: {looks} times in {time:?}");
}

fn state(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |pool| pool["state"] == wanted
}

fn is_ready(pool: &Value) -> bool {
    pool["state"] == "ready" && pool["ready"] == true
}

fn is_unreachable(pool: &Value) -> bool {
    pool["state"] == "unreachable" && pool["ready"] == false
}

#[test]
fn an_engine_that_is_started_after_orchd_is_ready_within_two_seconds() {
    let address = free_address();
    let orchd = Orchd::serve_home(&[format!("http://{address}")], &[]);
    let started = Instant::now();
    becomes(&orchd, SOON, "nobody there", |pool| {
        is_unreachable(pool) && started.elapsed() >= Duration::from_secs(1)
    });
    let _engine = Engine::start_at(address, Model::Counting, 2, 8_192);
    becomes(&orchd, BACK, "its engine is there", is_ready);
    COUNT.streamed(orchd.address).expect("it serves");
}

#[test]
fn an_engine_that_loads_slowly_is_loading_and_then_ready_within_two_seconds() {
    let engine = ScriptedEngine::start("m", 2);
    engine.loading(true);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    becomes(&orchd, BACK, "it loads", |pool| {
        pool["state"] == "loading" && pool["ready"] == false
    });
    stays(&orchd, BACK, "it goes on loading", state("loading"));
    engine.loading(false);
    becomes(&orchd, BACK, "it has loaded", |pool| {
        is_ready(pool) && pool["slots_total"] == 2
    });
}

#[test]
fn an_engine_that_is_stopped_at_its_work_is_unreachable_within_three_readings() {
    let engine = endless(1);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let _stream = stream(orchd.address);
    // Seen at its work, it is read every second.
    becomes(&orchd, IDLE + SLACK, "seen at its work", state("busy"));
    engine.signal(Signal::SIGSTOP);
    let limit = Duration::from_secs(3) + SLACK;
    becomes(&orchd, limit, "stopped at its work", is_unreachable);
    engine.signal(Signal::SIGCONT);
    becomes(&orchd, BACK, "it goes on", |pool| {
        (pool["state"] == "busy" || pool["state"] == "ready") && pool["ready"] == true
    });
}

#[test]
fn an_idle_engine_that_is_stopped_is_unreachable_within_eight_seconds() {
    let engine = Engine::start(Model::Ring, 2, 8_192);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    becomes(&orchd, BACK, "idle", is_ready);
    engine.signal(Signal::SIGSTOP);
    let limit = IDLE + Duration::from_secs(3);
    becomes(&orchd, limit, "stopped while idle", is_unreachable);
    engine.signal(Signal::SIGCONT);
    becomes(&orchd, BACK, "it goes on", is_ready);
    ring(5).streamed(orchd.address).expect("it serves");
}

/// Whether so much of two slots is taken by others.
fn external(busy: u64) -> impl Fn(&Value) -> bool {
    move |pool| {
        pool["slots_total"] == 2 && pool["external"] == busy && pool["slots_free"] == 2 - busy
    }
}

/// A stream past orchd, seen and seen to be gone.
fn a_direct_stream_is_seen(engine: &Engine, orchd: &Orchd, within: Duration) {
    becomes(orchd, SOON, "nothing to do", external(0));
    let direct = stream(engine.address);
    becomes(orchd, within, "a direct stream", external(1));
    drop(direct);
    let gone = Duration::from_secs(3);
    becomes(orchd, gone, "its client left", external(0));
}

/// A stream through orchd is never taken for one past it, for long enough that it is read of the engine.
fn its_own_stream_is_not_external(orchd: &Orchd) {
    let _own = stream(orchd.address);
    stays(orchd, IDLE + SLACK, "a stream of its own", |pool| {
        pool["running"] == 1 && pool["external"] == 0 && pool["slots_free"] == 1
    });
}

#[test]
fn work_past_orchd_is_external_and_its_own_is_not() {
    let engine = endless(2);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    a_direct_stream_is_seen(&engine, &orchd, IDLE + SLACK);
    its_own_stream_is_not_external(&orchd);
}

#[test]
fn work_past_an_agent_is_external_and_its_own_is_not() {
    let dir = tempfile::tempdir().expect("a directory for the state");
    let engine = endless(2);
    // Heartbeats come every second, and carry what was read last.
    let server = Orchd::serve_cloud(dir.path(), &["--node-timeout", "3s"]);
    let _agent = Orchd::agent(&server.url(), "n1", &[format!("ring={}", engine.url())]);
    a_direct_stream_is_seen(&engine, &server, IDLE + SLACK);
    its_own_stream_is_not_external(&server);
}

#[test]
fn without_slots_work_past_orchd_is_seen_by_the_metrics() {
    const NO_SLOTS: &[&str] = &["--context-shift", "--no-slots"];
    let engine = Engine::start_with(Model::Ring, 2, 8_192, NO_SLOTS);
    let slots = http::get(engine.address, "/slots").expect("an answer");
    assert_eq!(slots.status, 501);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    becomes(&orchd, BACK, "without /slots", |pool| {
        is_ready(pool) && pool["slots_total"] == 2 && pool["slots_free"] == 2
    });
    a_direct_stream_is_seen(&engine, &orchd, IDLE + SLACK);
}

#[test]
fn an_engine_that_hangs_when_asked_to_stop_is_unreachable_within_three_seconds() {
    let mut engine = endless(2);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let direct = stream(engine.address);
    becomes(&orchd, IDLE + SLACK, "a direct stream", external(1));
    engine.signal(Signal::SIGTERM);
    let limit = Duration::from_secs(3);
    becomes(&orchd, limit, "SIGTERM in mid-stream", is_unreachable);
    eprintln!("its process was still there: {}", engine.is_running());
    drop(direct);
}

#[test]
fn an_engine_that_is_killed_and_started_again_is_ready_within_two_seconds() {
    let mut engine = Engine::start(Model::Counting, 2, 8_192);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    becomes(&orchd, BACK, "it is there", is_ready);
    engine.kill9();
    becomes(&orchd, IDLE + SLACK, "killed", is_unreachable);
    engine.start_again();
    becomes(&orchd, BACK, "started again", is_ready);
    COUNT.streamed(orchd.address).expect("it serves");
}

#[test]
fn each_of_two_engines_of_a_machine_gets_the_requests_for_its_model() {
    let dir = tempfile::tempdir().expect("a directory for the state");
    let counting = Engine::start(Model::Counting, 2, 8_192);
    let circle = Engine::start(Model::Ring, 1, 4_096);
    let server = Orchd::serve_cloud(dir.path(), &[]);
    let engines = [
        format!("counting={}", counting.url()),
        format!("ring={}", circle.url()),
    ];
    let _agent = Orchd::agent(&server.url(), "n1", &engines);
    let (_, took) = eventually(SOON, "both are ready", || {
        let seen: Vec<_> = pools(&server)
            .iter()
            .map(|pool| {
                let name = pool["pool_id"].clone();
                (
                    name,
                    pool["models"].clone(),
                    pool["slots_total"].clone(),
                    is_ready(pool),
                )
            })
            .collect();
        let wanted = [("counting", 2), ("ring", 1)]
            .map(|(name, slots)| (json!(name), json!([name]), json!(slots), true));
        if seen == wanted {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    eprintln!("two engines of an agent: after {took:?}");
    for _ in 0..3 {
        COUNT.streamed(server.address).expect("the one that ends");
        // The other engine would end at forty.
        let round = ring(60).streamed(server.address);
        round.expect("the one that goes on");
    }
    let written = [&counting, &circle].map(|engine| engine.metric("tokens_predicted_total"));
    eprintln!("tokens of either: {written:?}");
    assert!(
        written[0] < 130.0 && (180.0..190.0).contains(&written[1]),
        "{written:?}"
    );
}

#[test]
fn an_engine_falls_asleep_although_it_is_watched_and_a_request_wakes_it() {
    // More than an idle engine is left alone: one whose slots were asked for every time would never fall asleep.
    const SLEEPER: &[&str] = &["--sleep-idle-seconds", "7"];
    let runtime = tempfile::tempdir().expect("a directory");
    let engine = Engine::start_with(Model::Counting, 2, 8_192, SLEEPER);
    let handoff = json!({"url": engine.url(), "pid": engine.pid()});
    fs::write(runtime.path().join("a.json"), handoff.to_string()).expect("writes");
    let path = runtime.path().to_str().expect("a path in UTF-8");
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", path]);
    becomes(&orchd, BACK + SLACK, "awake", is_ready);
    let asleep = |pool: &Value| pool["state"] == "sleeping" && pool["ready"] == true;
    becomes(&orchd, Duration::from_secs(15), "it fell asleep", asleep);
    stays(&orchd, Duration::from_secs(4), "it sleeps on", |pool| {
        asleep(pool) && engine.is_asleep()
    });
    let asked = Instant::now();
    COUNT.streamed(orchd.address).expect("it wakes");
    eprintln!("woken and answered in {:?}", asked.elapsed());
    assert!(!engine.is_asleep());
}
