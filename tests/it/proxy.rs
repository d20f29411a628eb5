//! The agent's door to its engines, with a scripted engine behind it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::fake_control_plane::silent_port;
use crate::gateway::wait_read;
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;
use crate::support::secure::{Process, SOON};
use crate::tls::Files;

const CHAT: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

fn agent(engine: &str, more: &[&str], environment: &[(&str, &str)]) -> Process {
    let server = silent_port();
    let arguments = ["agent", "--server", server.as_str(), "--engine", engine];
    Process::start(&[&arguments, more].concat(), environment)
}

fn chat(headers: &[(&str, &str)]) -> Vec<u8> {
    written("POST", "/pools/a/v1/chat/completions", headers, CHAT)
}

#[test]
fn what_is_a_clients_own_is_kept_from_the_engine() {
    let engine = ScriptedEngine::start("m", 1);
    let agent = agent(&engine.named("a"), &[], &[]);
    engine.script([Script::whole(200, "{}")]);
    let headers = [
        ("Authorization", "Bearer secret"),
        ("X-Api-Key", "secret"),
        ("Cookie", "session=secret"),
        ("X-Request-Id", "mine"),
    ];
    let response = http::send(agent.address, &chat(&headers)).expect("an answer");
    assert_eq!(response.status, 200);
    let asked = engine.wait_for(1);
    assert_eq!(asked.header("x-request-id").as_deref(), Some("mine"));
    for name in ["authorization", "x-api-key", "cookie"] {
        assert_eq!(asked.header(name), None, "{name}");
    }
}

#[test]
fn a_kept_connection_that_the_engine_was_just_closing_is_nobodys_failure() {
    let engine = ScriptedEngine::start("m", 1);
    let agent = agent(&engine.named("a"), &[], &[]);
    let whole = || Script::whole(200, "{}");
    engine.script([whole(), Script::new().close(), whole()]);
    // One connection, so that both requests are on one thread, which keeps its connection to the engine.
    let mut connection = http::begin(agent.address, b"").expect("a connection");
    for _ in 0..2 {
        let answer = connection.ask(&chat(&[])).expect("an answer");
        assert_eq!(answer.status, 200);
        answer.text().expect("its body");
    }
    engine.wait_for(3);
}

#[test]
fn streams_on_every_connection_keep_no_health_check_from_an_agent() {
    const LIMIT: usize = 16;
    let engine = ScriptedEngine::start("m", 2 * LIMIT);
    engine.always(Script::stream().event("1").silence());
    let limit = LIMIT.to_string();
    let mut agent = agent(&engine.named("a"), &["--max-connections", &limit], &[]);
    let running: Vec<_> = (0..LIMIT - LIMIT / 8)
        .map(|number| {
            let answer = http::send(agent.address, &chat(&[])).expect("an answer");
            assert_eq!(answer.status, 200, "{number}");
            answer
        })
        .collect();
    let refused = http::send(agent.address, &chat(&[])).expect("an answer");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("x-orchd-refused"), Some("crowded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("connection"), Some("close"));
    for path in ["/health", "/metrics"] {
        let response = http::get(agent.address, path).expect("an answer");
        assert_eq!(response.status, 200, "{path}");
    }
    agent.logged("requests are in hand on nearly all connections");
    drop(running);
}

#[test]
fn an_agent_that_does_not_answer_is_not_taken_for_its_engine() {
    let engine = ScriptedEngine::start("m", 1);
    engine.script([Script::stream().event("1").silence()]);
    let state = tempfile::tempdir().expect("a directory");
    let plane = Orchd::serve_cloud(state.path(), &[]);
    let agent = Orchd::agent(&plane.url(), "gpu-1", &[engine.named("a")]);
    wait_read(&plane, 1);
    let asked = written("POST", "/v1/chat/completions", &[], CHAT);
    let mut events = http::send(plane.address, &asked)
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));
    agent.signal(Signal::SIGSTOP);
    eventually(SOON, "the log says who does not answer", || {
        let log = plane.log();
        (log.contains("the agent does not answer; it gets no new requests"))
            .then_some(())
            .ok_or(log)
    });
    agent.signal(Signal::SIGCONT);
    assert!(!plane.log().contains("the engine does not"));
}

#[test]
fn an_engine_behind_https_that_hangs_is_found_out_and_taken_back() {
    let files = Files::new();
    let engine = ScriptedEngine::start("m", 2);
    // What an agent relays is, to another one, an engine that speaks https.
    let tls = files.environment();
    let inner = agent(&engine.named("a"), &[], &tls[..2]);
    let named = format!("a=https://{}/pools/a", inner.address);
    let mut outer = agent(&named, &["--hung-after", "3s"], &[tls[2]]);
    engine.script([
        // Silent, and alive all the while.
        Script::stream()
            .event("1")
            .pause(Duration::from_secs(4))
            .event("2")
            .end(),
        Script::stream().event("1").silence(),
        Script::stream().event("1").end(),
    ]);

    let mut events = http::send(outer.address, &chat(&[]))
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));
    assert_eq!(events.next().expect("an event").as_deref(), Some("2"));
    assert_eq!(events.next().expect("the end"), None);

    let mut events = http::send(outer.address, &chat(&[]))
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));
    inner.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    outer.logged("the engine does not answer; it gets no new requests");
    let refused = http::send(outer.address, &chat(&[])).expect("an answer");
    assert_eq!(refused.status, 502);
    assert_eq!(
        refused.header("x-orchd-refused"),
        Some("engine_unreachable")
    );
    events.next().expect_err("it is given up");
    let took = stopped.elapsed();
    assert!(
        Duration::from_secs(3) < took && took < Duration::from_secs(8),
        "{took:?}"
    );

    inner.signal(Signal::SIGCONT);
    eventually(SOON, "it is used again", || {
        let response = http::send(outer.address, &chat(&[])).expect("an answer");
        if response.status == 200 {
            return Ok(());
        }
        Err(response.status.to_string())
    });
}

#[test]
fn the_agent_tells_prometheus_of_its_gpus_its_engines_and_what_it_relays() {
    let engine = ScriptedEngine::start("m", 2);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpu/h100.json");
    let options = ["--node-id", "n1", "--gpu-fixture", fixture];
    let agent = agent(&engine.named("a"), &options, &[]);
    let metrics = || {
        let response = http::get(agent.address, "/metrics").expect("an answer");
        let kind = response.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        response.text().expect("text")
    };
    let has = |line: &str| {
        eventually(SOON, line, || {
            let text = metrics();
            let found = text.lines().any(|found| found == line);
            if found { Ok(()) } else { Err(text) }
        });
    };
    has("orchd_engine_up{node_id=\"n1\",pool_id=\"a\"} 1");
    has("orchd_engine_slots{node_id=\"n1\",pool_id=\"a\",state=\"free\"} 2");
    has("orchd_gpu_memory_total_bytes{node_id=\"n1\",gpu=\"0\"} 85520809984.0");
    has("orchd_gpu_memory_used_bytes{node_id=\"n1\",gpu=\"0\"} 503316480.0");
    has("orchd_gpu_utilization_ratio{node_id=\"n1\",gpu=\"0\"} 0.0");
    has("orchd_gpu_temperature_celsius{node_id=\"n1\",gpu=\"0\"} 37.0");
    has("orchd_gpu_power_watts{node_id=\"n1\",gpu=\"0\"} 124.681");
    engine.script([
        Script::whole(200, "{}"),
        Script::stream().event("1").silence(),
        Script::new().silence(),
    ]);
    let whole = http::send(agent.address, &chat(&[])).expect("an answer");
    whole.text().expect("a body");
    has("orchd_gateway_requests_total{model=\"m\",code=\"200\"} 1");
    has("orchd_gateway_request_seconds_count{model=\"m\"} 1");
    let mut stream = http::send(agent.address, &chat(&[]))
        .expect("a stream")
        .events();
    assert_eq!(stream.next().expect("an event").as_deref(), Some("1"));
    has("orchd_gateway_in_flight{node_id=\"n1\",pool_id=\"a\"} 1");
    drop(stream);
    has("orchd_gateway_cancelled_total{phase=\"stream\"} 1");
    let waiting = http::begin(agent.address, &chat(&[])).expect("a connection");
    engine.wait_for(3);
    drop(waiting);
    has("orchd_gateway_cancelled_total{phase=\"prefill\"} 1");
    has("orchd_gateway_time_to_first_token_seconds_count{model=\"m\"} 2");
    let nobody = written("POST", "/pools/b/v1/chat/completions", &[], CHAT);
    assert_eq!(
        http::send(agent.address, &nobody)
            .expect("an answer")
            .status,
        404
    );
    has("orchd_gateway_rejected_total{reason=\"unknown_pool\"} 1");
    has("orchd_gateway_in_flight{node_id=\"n1\",pool_id=\"a\"} 0");
}
