//! Streams that wait: what their clients see before an engine has answered, and how they are told that none will.
//!
//! The rhythm of the pings is tested with a clock that is moved by hand, beside the body of the gateway's answers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::gateway::{
    ANSWER, MODEL, SOON, attempts, begin, body_of, chat, embed, last_event, machine_with, ok, post,
    refusal, send, wait_waiting,
};
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, Events, Response};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

/// Streams are promised after so long.
const COMMIT: Duration = Duration::from_millis(200);
const COMMITS: [&str; 2] = ["--sse-commit", "200ms"];
/// The endpoints whose streams have a form of their own.
const ENDPOINTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
];
const PING: &str = ": ping\n\n";
const WHOLE: &str = "data: {\"n\":1}\n\ndata: {\"n\":2}\n\ndata: [DONE]\n\n";
/// What llama-server says to a prompt that does not fit.
const TOO_LONG: &str = r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":2048}}"#;

fn stream() -> Script {
    Script::stream()
        .events(2, Duration::ZERO)
        .event("[DONE]")
        .end()
}

/// A request for a stream at this endpoint.
fn stream_of(endpoint: &str) -> Vec<u8> {
    let body = json!({"model": MODEL, "stream": true});
    post(endpoint, &body.to_string())
}

/// The answer of a stream that was promised before anybody knew who would write it; it has just been pinged.
fn promised(response: Response) -> Events {
    assert_eq!(response.status, 200);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("x-accel-buffering", "no"),
        ("transfer-encoding", "chunked"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    assert!(response.header("x-request-id").is_some());
    for name in [
        "content-length",
        "x-orchd-node",
        "x-orchd-pool",
        "x-orchd-attempts",
        "x-orchd-queue-ms",
    ] {
        assert_eq!(response.header(name), None, "{name} is not known yet");
    }
    let mut events = response.events();
    let first = events.frame().expect("no break");
    assert_eq!(first, Some(vec![": ping".to_owned()]));
    events
}

/// What comes after the ping.
fn rest(mut events: Events) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(data) = events.next().expect("the end chunk") {
        all.push(data);
    }
    all
}

fn is_whole(events: Events) {
    assert_eq!(rest(events), ["{\"n\":1}", "{\"n\":2}", "[DONE]"]);
}

#[test]
fn a_stream_that_waits_for_a_slot_begins_with_a_ping_and_comes_whole() {
    let (engine, orchd) = machine_with(1, &COMMITS);
    engine.script([ok().held(), stream()]);
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    let begun = Instant::now();
    let events = promised(send(&orchd, &chat()));
    let took = begun.elapsed();
    assert!(took >= COMMIT && took < COMMIT * 5, "{took:?}");
    wait_waiting(&orchd, 1);
    engine.go(0);
    assert_eq!(body_of(running.answer().expect("an answer")), ANSWER);
    is_whole(events);
    assert_eq!(engine.asked().len(), 2);
}

#[test]
fn a_stream_that_waits_for_a_prefill_begins_with_a_ping_and_comes_whole() {
    let (engine, orchd) = machine_with(1, &COMMITS);
    // An engine that says nothing at all, and one whose head comes before its prefill.
    engine.script([stream().held(), Script::stream().hold().chunk(WHOLE).end()]);
    for number in 0..2 {
        let events = promised(send(&orchd, &chat()));
        engine.go(number);
        is_whole(events);
    }
}

#[test]
fn a_stream_that_waits_for_a_load_begins_with_a_ping_and_comes_whole() {
    let (engine, orchd) = machine_with(1, &COMMITS);
    let loading = r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
    // Found out by the request.
    engine.script([Script::whole(503, loading), stream()]);
    is_whole(promised(send(&orchd, &chat())));
    // Known before.
    let is_state = |wanted: &str| {
        eventually(SOON, wanted, || {
            let pools = http::get_json(orchd.address, "/v2/pools");
            let state = &pools["pools"][0]["state"];
            (state == wanted).then_some(()).ok_or(state.to_string())
        });
    };
    engine.script([stream()]);
    engine.loading(true);
    is_state("loading");
    let events = promised(send(&orchd, &chat()));
    assert_eq!(engine.asked().len(), 2, "it is not sent to one that loads");
    engine.loading(false);
    is_whole(events);
}

#[test]
fn a_stream_that_begins_in_time_says_where_it_is_made_and_has_no_ping() {
    let (engine, orchd) = machine_with(1, &["--sse-commit", "5s"]);
    engine.script([stream(), Script::new().pause(COMMIT).then_all(stream())]);
    for _ in 0..2 {
        let response = send(&orchd, &chat());
        assert_eq!(response.header("x-orchd-node"), Some("local"));
        assert_eq!(response.header("x-orchd-pool"), Some("a"));
        assert_eq!(attempts(&response), Some("1"));
        let queued = response.header("x-orchd-queue-ms").map(str::parse::<u64>);
        assert!(matches!(queued, Some(Ok(_))), "{queued:?}");
        assert_eq!(response.header("x-accel-buffering"), Some("no"));
        assert_eq!(body_of(response), WHOLE);
    }
}

#[test]
fn what_is_no_stream_is_never_pinged() {
    let (engine, orchd) = machine_with(1, &["--sse-commit", "100ms", "--assemble", "off"]);
    engine.always(Script::new().pause(COMMIT * 3).then_all(ok()));
    let body = json!({"model": MODEL, "messages": [], "stream": false}).to_string();
    for request in [embed("x"), post("/v1/chat/completions", &body)] {
        let response = send(&orchd, &request);
        assert_eq!(attempts(&response), Some("1"));
        let length = response.header("content-length").map(str::to_owned);
        assert_eq!(body_of(response), ANSWER);
        assert_eq!(length, Some(ANSWER.len().to_string()));
    }
}

#[test]
fn what_asks_for_a_stream_and_is_answered_otherwise_is_not_held_back() {
    let (engine, orchd) = machine_with(1, &["--sse-commit", "5s"]);
    let slow = Script::chunked("application/json")
        .chunk("{\"a\":")
        .hold()
        .chunk("1}")
        .end();
    engine.script([slow, Script::whole(400, TOO_LONG)]);
    let response = send(&orchd, &chat());
    assert_eq!(response.header("content-type"), Some("application/json"));
    // It has begun before its engine has finished.
    engine.go(0);
    assert_eq!(body_of(response), "{\"a\":1}");
    let response = send(&orchd, &chat());
    assert_eq!(response.status, 400);
    assert_eq!(response.text().expect("a whole body"), TOO_LONG);
}

#[test]
fn a_client_that_leaves_a_promised_stream_leaves_its_place_in_line_and_its_engine() {
    let (engine, orchd) = machine_with(1, &COMMITS);
    engine.script([ok().held(), Script::new().silence(), stream()]);
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    let waits = promised(send(&orchd, &chat()));
    wait_waiting(&orchd, 1);
    drop(waits);
    wait_waiting(&orchd, 0);
    engine.go(0);
    body_of(running.answer().expect("an answer"));
    let prefills = promised(send(&orchd, &chat()));
    engine.wait_for(2);
    let left = Instant::now();
    drop(prefills);
    let took = engine.wait_left(1).duration_since(left);
    assert!(took < Duration::from_millis(100), "{took:?}");
    // Perhaps promised: its slot is free when a reading shows it.
    is_whole(send(&orchd, &chat()).events());
}

/// Checks that a promised stream of this endpoint ends with an error, in the endpoint's own form and properly; gives its
/// data.
fn ends_with(endpoint: &str, text: &str, code: &str) -> Value {
    let before = text.split("data: ").next().unwrap_or_default();
    let before = before.strip_suffix("event: error\n").unwrap_or(before);
    assert!(
        !before.is_empty() && before.replace(PING, "").is_empty(),
        "{endpoint}: {text:?}"
    );
    assert!(!text.contains("[DONE]"), "{endpoint}: {text:?}");
    assert_eq!(text.matches("data: ").count(), 1, "{endpoint}: {text:?}");
    let (name, data) = last_event(text);
    let named = (!endpoint.contains("completions")).then_some("error");
    assert_eq!(name, named, "{endpoint}: {text:?}");
    let error = match endpoint {
        "/v1/responses" => {
            assert_eq!(data["type"], "error", "{data}");
            assert!(data["param"].is_null(), "{data}");
            &data
        }
        "/v1/messages" => {
            assert_eq!(data["type"], "error", "{data}");
            assert_eq!(data["error"]["type"], "api_error", "{data}");
            &data["error"]
        }
        _ => &data["error"],
    };
    assert!(error["message"].is_string(), "{endpoint}: {data}");
    if code == "exceed_context_size_error" && endpoint.contains("completions") {
        let said: Value = serde_json::from_str(TOO_LONG).expect("JSON");
        assert_eq!(data, said, "as the engine said it");
    } else {
        assert_eq!(error["code"], code, "{endpoint}: {data}");
    }
    data
}

/// Has a stream of each endpoint fail after it was promised, at a machine of its own.
fn each_endpoint(
    code: &str,
    options: &[&str],
    fail: impl Fn(&ScriptedEngine, &Orchd, &[u8]) -> Response + Sync,
) {
    at_once(ENDPOINTS.len(), |number| {
        let endpoint = ENDPOINTS[number];
        let (engine, orchd) = machine_with(1, &[&["--sse-commit", "100ms"], options].concat());
        let response = fail(&engine, &orchd, &stream_of(endpoint));
        assert_eq!(response.status, 200, "{endpoint}");
        let text = response.text().expect("the end chunk");
        ends_with(endpoint, &text, code);
        eventually(SOON, "nothing is left of it", || {
            let pools = http::get_json(orchd.address, "/v2/pools");
            let pool = &pools["pools"][0];
            let nothing = pool["running"] == 0 && pool["waiting"] == 0;
            nothing.then_some(()).ok_or(pool.to_string())
        });
    });
}

/// Waits until a request has been refused so.
fn wait_refused(orchd: &Orchd, code: &str) {
    eventually(SOON, code, || {
        let metrics = http::get(orchd.address, "/metrics").and_then(Response::text);
        let metrics = metrics.map_err(|e| e.to_string())?;
        let told = format!("orchd_gateway_rejected_total{{reason=\"{code}\"}} 1\n");
        metrics.contains(&told).then_some(()).ok_or(metrics)
    });
}

#[test]
fn a_promised_stream_whose_wait_lasts_too_long_is_told_in_its_own_form() {
    each_endpoint(
        "queue_timeout",
        &["--queue-timeout", "400ms"],
        |engine, orchd, request| {
            engine.script([ok().held()]);
            let running = begin(orchd, &embed("x"));
            engine.wait_for(1);
            let response = send(orchd, request);
            wait_refused(orchd, "queue_timeout");
            engine.go(0);
            body_of(running.answer().expect("an answer"));
            response
        },
    );
}

#[test]
fn a_promised_stream_without_a_pool_is_told_in_its_own_form() {
    each_endpoint(
        "no_ready_pool",
        &["--no-pool-wait", "500ms"],
        |engine, orchd, request| {
            engine.kill();
            send(orchd, request)
        },
    );
}

#[test]
fn a_promised_stream_that_no_engine_answers_is_told_in_its_own_form() {
    each_endpoint("upstream_failed", &[], |engine, orchd, request| {
        let fails = || Script::new().pause(Duration::from_millis(150)).close();
        engine.script([fails(), fails(), fails()]);
        send(orchd, request)
    });
}

#[test]
fn a_promised_stream_that_gives_way_is_told_in_its_own_form() {
    let options = [
        "--admission-capacity",
        "1",
        "--admission-policy",
        "drop-lru",
    ];
    each_endpoint("queue_dropped", &options, |engine, orchd, request| {
        engine.script([ok().held(), ok()]);
        let running = begin(orchd, &embed("x"));
        engine.wait_for(1);
        let dropped = send(orchd, request);
        let later = begin(orchd, &embed("x"));
        wait_refused(orchd, "queue_dropped");
        engine.go(0);
        for client in [running, later] {
            body_of(client.answer().expect("an answer"));
        }
        dropped
    });
}

#[test]
fn a_promised_stream_is_told_what_its_engine_says_instead() {
    each_endpoint(
        "exceed_context_size_error",
        &[],
        |engine, orchd, request| {
            let slow = Script::new().pause(Duration::from_millis(250));
            engine.script([slow.then_all(Script::whole(400, TOO_LONG))]);
            send(orchd, request)
        },
    );
}

#[test]
fn before_a_stream_is_promised_the_same_errors_are_answers() {
    let (engine, orchd) = machine_with(1, &["--sse-commit", "5s", "--queue-timeout", "300ms"]);
    engine.script([ok().held()]);
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    for endpoint in ENDPOINTS {
        refusal(send(&orchd, &stream_of(endpoint)), 503, "queue_timeout");
    }
    engine.go(0);
    body_of(running.answer().expect("an answer"));
}
