//! Journeys on one machine: `orchd serve --engine`, in front of a real engine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::chat::{COUNT, ring};
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually, http};

const SLOTS: u32 = 4;

/// An engine of four slots, and orchd in front of it.
fn machine(model: Model, context: u32) -> (Engine, Orchd) {
    let engine = Engine::start(model, SLOTS, context);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    (engine, orchd)
}

#[test]
fn journey_home_the_engine_is_listed_and_counts_to_forty() {
    let (engine, orchd) = machine(Model::Counting, 8_192);

    let models = http::get_json(orchd.address, "/v1/models");
    let data = models["data"].as_array().expect("a list");
    assert_eq!(data.len(), 1, "{models}");
    assert_eq!(data[0]["id"], "counting");
    let meta = &data[0]["meta"];
    assert_eq!(meta["n_ctx"], 2_048, "what a slot has, of {models}");
    assert_eq!(meta["n_ctx_max"], 2_048);
    assert_eq!(meta["slots"], SLOTS);
    assert_eq!(meta["state"], "ready");
    let one = http::get_json(orchd.address, "/v1/models/counting");
    assert_eq!(one, data[0]);

    let begun = Instant::now();
    assert_eq!(COUNT.whole(orchd.address).as_deref(), Ok("local"));
    let whole = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(COUNT.streamed(orchd.address).as_deref(), Ok("local"));
    let streamed = begun.elapsed();
    eprintln!("count to forty: {whole:?}, streaming {streamed:?}");

    let body = json!({"model": "no-such-model", "messages": []});
    let response = http::post(orchd.address, "/v1/chat/completions", &body).expect("an answer");
    assert_eq!(response.status, 404);
    let error = response.text().expect("a whole body");
    let error: Value = serde_json::from_str(&error).expect("JSON");
    let error = &error["error"];
    assert_eq!(error["code"], "model_not_found");
    assert_eq!(error["param"], "model");
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("no-such-model") && message.contains("there is: counting"),
        "{message}"
    );
    assert_eq!(engine.slots_busy(), 0);
}

#[test]
fn journey_home_a_client_that_leaves_frees_its_slot_within_half_a_second() {
    let (engine, orchd) = machine(Model::Ring, 32_768);
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let mut stream = ring(4_000).stream(orchd.address).expect("a stream");
        stream.read(30).expect("words");
        assert_eq!(engine.slots_busy(), 1, "the stream runs");
        drop(stream);
        slowest = slowest.max(idle(&engine));
    }
    eprintln!(
        "a client leaves in mid-stream, five times: the slot was idle after at most {slowest:?}"
    );
}

#[test]
fn journey_home_a_slot_that_a_client_leaves_goes_to_who_waits_for_one() {
    let (engine, orchd) = machine(Model::Ring, 32_768);
    let address = orchd.address;
    let mut streams: Vec<_> = (0..SLOTS)
        .map(|_| ring(6_000).stream(address).expect("a stream"))
        .collect();
    for stream in &mut streams {
        stream.read(10).expect("words");
    }
    let fifth = std::thread::spawn(move || ring(20).streamed(address).map(|_| Instant::now()));
    eventually(Duration::from_secs(5), "the fifth waits", || {
        orchd.waiting(1)
    });
    assert!(!fifth.is_finished(), "there was no slot for the fifth");
    assert_eq!(engine.metric("requests_deferred"), 0.0, "it waits at orchd");

    let left = Instant::now();
    drop(streams.pop());
    let answered = fifth.join().expect("no panic").expect("a whole answer");
    let took = answered - left;
    eprintln!(
        "who waited for a slot was answered {took:?} after one of four was left in mid-stream"
    );
    // The engine frees the slot at its next token. It is seen free by the second reading at the latest, which begins 150 ms
    // after the close.
    assert!(took < Duration::from_millis(500), "{took:?}");
    drop(streams);
    idle(&engine);
}

/// Waits until no slot works, no longer than the half second that is promised.
fn idle(engine: &Engine) -> Duration {
    eventually(Duration::from_millis(500), "all slots are idle", || {
        engine.idle()
    })
    .1
}

#[test]
fn journey_home_twelve_clients_share_four_slots_and_none_waits_inside_the_engine() {
    let (engine, orchd) = machine(Model::Ring, 32_768);
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let (answers, load) = std::thread::scope(|scope| {
        let load = scope.spawn(|| watch(&engine, &over));
        let answers = at_once(12, |number| {
            // Of different lengths, so that slots change hands one by one.
            let answer = ring(150 + 10 * number).streamed(orchd.address);
            (number, answer)
        });
        over.store(true, Ordering::Relaxed);
        (answers, load.join().expect("no panic"))
    });
    let took = begun.elapsed();
    eprintln!(
        "twelve clients, four slots: all answered in {took:?}; {} readings of the engine: at most {} busy, {} deferred",
        load.readings, load.busy, load.deferred
    );
    for (number, answer) in answers {
        assert_eq!(answer.as_deref(), Ok("local"), "client {number}");
    }
    assert!(load.readings >= 20, "{} readings", load.readings);
    assert_eq!(load.deferred, 0.0, "orchd queues, not the engine");
    assert_eq!(load.busy, f64::from(SLOTS), "all slots were used");
}

/// What an engine was seen to do.
#[derive(Default)]
struct Seen {
    readings: u32,
    busy: f64,
    deferred: f64,
}

fn watch(engine: &Engine, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        seen.readings += 1;
        seen.busy = seen.busy.max(engine.metric("requests_processing"));
        seen.deferred = seen.deferred.max(engine.metric("requests_deferred"));
        std::thread::sleep(Duration::from_millis(2));
    }
    seen
}

#[test]
fn journey_home_an_engine_that_dies_is_told_in_its_streams_and_served_again_when_it_is_back() {
    let mut engine = Engine::start(Model::Ring, SLOTS, 32_768);
    let orchd = Orchd::serve_home(&[engine.url()], &["--no-pool-wait", "1s"]);
    let address = orchd.address;
    let mut stream = ring(4_000).stream(address).expect("a stream");
    stream.read(30).expect("words");

    engine.kill9();
    let killed = Instant::now();
    let told = stream.finish_lost().expect("an error in-band");
    let told_after = killed.elapsed();
    assert_eq!(told, "worker_reset");
    assert!(told_after < Duration::from_secs(2), "{told_after:?}");

    let refused = ring(5).whole(address).expect_err("nobody is there");
    let refused_after = killed.elapsed();
    assert!(
        refused.starts_with("503") && refused.contains("no_ready_pool"),
        "{refused}"
    );

    engine.start_again();
    let (_, served) = eventually(Duration::from_secs(10), "it serves again", || {
        ring(5).whole(address)
    });
    eprintln!(
        "engine killed: its client was told after {told_after:?}, the next one refused after {refused_after:?}; served \
         again {served:?} after the engine was back"
    );
}

#[test]
fn journey_home_a_stop_lets_a_running_stream_finish() {
    let (engine, mut orchd) = machine(Model::Ring, 32_768);
    let mut stream = ring(1_200).stream(orchd.address).expect("a stream");
    stream.read(50).expect("words");

    let stopped = Instant::now();
    orchd.terminate();
    let (seen, closed) = eventually(Duration::from_secs(1), "it is not ready any more", || {
        not_ready(orchd.address)
    });
    assert_eq!(engine.slots_busy(), 1, "the stream still runs");
    assert!(orchd.is_running());
    stream
        .finish()
        .expect("every word after the stop as before");
    let finished = stopped.elapsed();
    let code = orchd.wait(Duration::from_secs(5));
    let ended = stopped.elapsed();
    eprintln!(
        "SIGTERM: {seen} after {closed:?}, the stream finished after {finished:?}, the process ended after {ended:?}"
    );
    assert_eq!(code, Some(0));
    assert!(
        ended - finished < Duration::from_secs(1),
        "nothing was left to wait for"
    );
}

/// How it says that it takes no more requests.
fn not_ready(address: SocketAddr) -> Result<String, String> {
    match http::get(address, "/readyz") {
        Ok(response) if response.status == 503 => Ok("/readyz was 503".to_owned()),
        Ok(response) => Err(format!("/readyz is {}", response.status)),
        Err(e) => Err(format!("no answer ({})", e.kind())),
    }
}

#[test]
fn journey_home_who_connects_while_it_stops_is_answered() {
    let engine = Engine::start(Model::Ring, SLOTS, 32_768);
    let mut seen = BTreeMap::new();
    for _ in 0..20 {
        let orchd = Orchd::serve_home(&[engine.url()], &[]);
        let mut stream = ring(1_000).stream(orchd.address).expect("a stream");
        stream.read(10).expect("words");
        orchd.terminate();
        eventually(Duration::from_secs(2), "it answers 503", || {
            let outcome = match http::get(orchd.address, "/readyz") {
                Ok(response) => response.status.to_string(),
                Err(e) => e.kind().to_string(),
            };
            *seen.entry(outcome.clone()).or_insert(0_usize) += 1;
            match outcome.as_str() {
                "503" => Ok(()),
                _ => Err(outcome),
            }
        });
    }
    eprintln!("twenty stops, who connected meanwhile: {seen:?}");
    seen.retain(|outcome, _| !["200", "503"].contains(&outcome.as_str()));
    assert!(seen.is_empty(), "refused or cut off: {seen:?}");
}
