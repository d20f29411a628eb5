//! Engines that close a connection after an answer, as llama-server does after every stream: under load, when the next
//! request is there at that moment.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::at_once;
use crate::support::http::{self, written};
use crate::support::load::{retries, under_load};
use crate::support::orchd::Orchd;

use super::{ring_engine, wait_ready};

const MODEL: &str = "m";
const CLIENTS: usize = 12;
const REQUESTS: usize = 600;

/// How often requests were tried that an engine of two slots answers so, for many clients at a time. All must be served.
fn attempts_under_load(stream: bool, script: Script) -> Vec<u32> {
    let engine = ScriptedEngine::start(MODEL, 2);
    engine.always(script);
    let orchd = Orchd::serve_home(&[engine.named("a")], &["--access-log", "off"]);
    wait_ready(&orchd, 1);
    let body = json!({"model": MODEL, "stream": stream, "input": "x"}).to_string();
    let json = ("content-type", "application/json");
    let request = written("POST", "/v1/embeddings", &[json], body.as_bytes());
    let left = AtomicUsize::new(REQUESTS);
    let take = |left: usize| left.checked_sub(1);
    let attempts = at_once(CLIENTS, |_| {
        let mut attempts = Vec::new();
        let mut client = http::begin(orchd.address, b"").expect("a connection");
        while (left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)).is_ok() {
            let answer = client.ask(&request).expect("an answer");
            let tried = answer.header("x-orchd-attempts").map(str::parse);
            let status = answer.status;
            let text = answer.text().expect("a whole body");
            assert_eq!(status, 200, "{text}");
            attempts.push(tried.expect("it says so").expect("a number"));
        }
        attempts
    });
    let attempts = attempts.concat();
    let of = |wanted| attempts.iter().filter(|&&tried| tried == wanted).count();
    eprintln!(
        "{REQUESTS} requests to an engine that closes after each answer, streaming: {stream}: {} were tried once, {} twice, {} \
         three times",
        of(1),
        of(2),
        of(3)
    );
    attempts
}

#[test]
fn a_connection_that_was_just_closed_costs_no_request_more_than_one_attempt() {
    let attempts = attempts_under_load(false, Script::whole(200, "{}").close());
    assert!(attempts.iter().all(|&tried| tried <= 2));
}

#[test]
fn a_stream_leaves_no_connection_for_the_next_request_to_lose() {
    let attempts = attempts_under_load(true, Script::stream().event("1").end().close());
    assert!(attempts.iter().all(|&tried| tried == 1));
}

#[test]
fn a_healthy_engine_under_load_is_asked_once_for_each_request() {
    let engine = ring_engine();
    let orchd = Orchd::serve_home(&[format!("a={}", engine.url())], &[]);
    wait_ready(&orchd, 1);
    let ((), told) = under_load(orchd.address, &["local/a"], |load| load.go_on(60));
    let tried: Vec<u32> = (told.iter())
        .map(|told| told.head.as_ref().map_or(0, |head| head.attempts))
        .collect();
    eprintln!(
        "{} requests to a healthy engine: {:?}",
        tried.len(),
        retries(orchd.address)
    );
    assert!(tried.iter().all(|&tried| tried == 1), "{tried:?}");
}
