//! Journeys of engines that die without a word: real ones, behind a real agent's proxy and a gateway.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::fake_control_plane::silent_port;
use crate::support::chat::{Ask, ring};
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{eventually, http};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(10);
/// How soon a stream of a dead engine ends (contract §3).
const FOUND: Duration = Duration::from_secs(2);

fn engine() -> Engine {
    Engine::start(Model::Ring, 4, 32_768)
}

/// An agent that has no control plane, in front of an engine.
fn agent(engine: &Engine) -> Orchd {
    let server = silent_port();
    let agent = Orchd::agent(
        server.as_str(),
        "gpu-1",
        &[format!("ring={}", engine.url())],
    );
    eventually(SOON, "it relays", || proxied(3).streamed(agent.address));
    agent
}

/// So many words, asked for at the agent's door.
fn proxied(words: usize) -> Ask {
    ring(words).under("/pools/ring")
}

#[test]
fn journey_dead_an_engine_asked_to_stop_in_mid_stream_ends_its_streams_at_the_proxy() {
    let mut engine = engine();
    let agent = agent(&engine);
    let mut streams = [(); 3].map(|()| {
        let stream = proxied(6_000).stream(agent.address);
        stream.expect("a stream")
    });
    // Keeps the engine from ending.
    let mut witness = ring(6_000).stream(engine.address).expect("a stream");
    for stream in streams.iter_mut().chain([&mut witness]) {
        stream.read(300).expect("words");
    }

    // Now and then it does close its connections; mostly it goes on silently, for as long as its clients stay.
    engine.signal(Signal::SIGTERM);
    let stopped = Instant::now();
    let ended = streams.map(|stream| {
        let lost = stream.finish().expect_err("it has no end");
        assert!(lost.contains("the connection ended"), "{lost}");
        stopped.elapsed()
    });
    let took = ended[2];
    assert!(took < FOUND, "{ended:?}");
    let running = engine.is_running();
    let body = proxied(3).stream(agent.address);
    let refused = body.err().expect("nobody serves");
    let at_once = stopped.elapsed() - took;
    eprintln!(
        "SIGTERM of an engine in mid-stream: its streams had ended after {ended:?}, while its process was there: {running}; the \
         next request was refused in {at_once:?}"
    );
    assert!(
        refused.starts_with("502") && refused.contains("engine_unreachable"),
        "{refused}"
    );
    assert!(at_once < Duration::from_secs(1), "{at_once:?}");
}

#[test]
fn journey_dead_a_stopped_engine_gets_no_work_and_goes_on_where_it_was() {
    let engine = engine();
    let agent = agent(&engine);
    let mut stream = proxied(1_000).stream(agent.address).expect("a stream");
    stream.read(30).expect("words");

    engine.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let (_, took) = eventually(SOON, "the agent has found out", || {
        let log = agent.log();
        match log.contains("the engine does not answer; it gets no new requests") {
            true => Ok(()),
            false => Err(log),
        }
    });
    assert!(took > FOUND / 2, "it is given time to answer: {took:?}");
    assert!(took < FOUND + Duration::from_millis(500), "{took:?}");
    let asked = Instant::now();
    let refused = http::get(agent.address, "/pools/ring/v1/models").expect("an answer");
    let at_once = asked.elapsed();
    assert_eq!(refused.status, 502);
    assert_eq!(
        refused.header("x-orchd-refused"),
        Some("engine_unreachable")
    );
    assert!(at_once < Duration::from_millis(500), "{at_once:?}");

    engine.signal(Signal::SIGCONT);
    let (_, back) = eventually(SOON, "it is used again", || {
        proxied(3).streamed(agent.address)
    });
    stream.finish().expect("every word");
    eprintln!(
        "SIGSTOP of an engine: no new work after {took:?}, refused in {at_once:?}; served again {back:?} after SIGCONT, \
         and the stream that waited was whole after {:?}",
        stopped.elapsed()
    );
}

#[test]
fn journey_dead_a_fleet_ends_the_streams_of_a_dead_engine_and_serves_on() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let engines = [engine(), engine()];
    let plane = Orchd::serve_cloud(state.path(), &[]);
    let nodes = ["gpu-1", "gpu-2"];
    let _agents = [0, 1].map(|at| {
        let engine = format!("ring={}", engines[at].url());
        Orchd::agent(&plane.url(), nodes[at], &[engine])
    });
    eventually(SOON, "both nodes serve", || {
        let pools = http::get_json(plane.address, "/v2/pools");
        let pools = pools["pools"].as_array().expect("a list");
        let ready = pools.iter().filter(|pool| pool["ready"] == true).count();
        if ready == 2 {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    });
    let mut stream = ring(6_000).stream(plane.address).expect("a stream");
    stream.read(30).expect("words");
    let at = usize::from(stream.node == nodes[1]);
    let mut witness = ring(6_000).stream(engines[at].address).expect("a stream");
    witness.read(30).expect("words");

    engines[at].signal(Signal::SIGTERM);
    let stopped = Instant::now();
    let told = stream.finish_lost().expect("an error in-band");
    let took = stopped.elapsed();
    assert_eq!(told, "worker_reset");
    assert!(took < FOUND, "{took:?}");
    let mut slowest = Duration::ZERO;
    for _ in 0..6 {
        let asked = Instant::now();
        let served = ring(5).streamed(plane.address);
        assert_eq!(served.as_deref(), Ok(nodes[1 - at]));
        slowest = slowest.max(asked.elapsed());
    }
    eprintln!(
        "SIGTERM of an engine of a fleet: its client was told after {took:?}; the other node served the next six, each \
         within {slowest:?}"
    );
}
