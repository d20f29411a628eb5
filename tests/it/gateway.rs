//! The gateway from outside: `orchd serve --engine` before engines that do what a test says.
//!
//! Bodies that must arrive unchanged are those of streams and of endpoints other than chat and text completion, which
//! the contract lets orchd turn into streams. The journeys do the same with the real engine; `gateway_waits`,
//! `gateway_retries` and `gateway_tells` use what is here.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted_engine::{N_CTX, Script, ScriptedEngine};
use crate::support::http::{self, Begun, Response, written};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

pub const MODEL: &str = "m";
/// How long a test waits for something that happens at once.
pub const SOON: Duration = Duration::from_secs(10);
pub const JSON: (&str, &str) = ("content-type", "application/json");
/// What engines answer.
pub const ANSWER: &str = r#"{"object":"list","data":[1,2.50,"\u00e9"]}"#;
/// What a busy one answers.
pub const BUSY: &str =
    r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;

/// orchd in front of these engines, each `NAME=URL`, once it has read all of them. On a machine with much else to do
/// that may be later than it says that it is ready, which it does after two seconds in any case.
pub fn serve(engines: &[String], options: &[&str]) -> Orchd {
    let orchd = Orchd::serve_home(engines, options);
    wait_read(&orchd, engines.len());
    orchd
}

/// The same with engines that are called `e0`, `e1` and so on.
pub fn serve_all<E: Borrow<ScriptedEngine>>(engines: &[E], options: &[&str]) -> Orchd {
    let named = (engines.iter().enumerate())
        .map(|(number, engine)| engine.borrow().named(&format!("e{number}")));
    serve(&named.collect::<Vec<_>>(), options)
}

/// Waits until so many engines are read and ready.
pub fn wait_read(orchd: &Orchd, engines: usize) {
    eventually(SOON, "every engine is read", || {
        let pools = http::get_json(orchd.address, "/v2/pools");
        let all = pools["pools"].as_array().expect("a list");
        if all.iter().filter(|pool| pool["ready"] == true).count() == engines {
            Ok(())
        } else {
            Err(pools.to_string())
        }
    });
}

/// An engine with so many slots, and orchd in front of it.
pub fn machine(slots: usize) -> (ScriptedEngine, Orchd) {
    machine_with(slots, &[])
}

pub fn machine_with(slots: usize, options: &[&str]) -> (ScriptedEngine, Orchd) {
    let engine = ScriptedEngine::start(MODEL, slots);
    let orchd = serve(&[engine.named("a")], options);
    (engine, orchd)
}

/// Two engines with the same model, pools `a` and `b`, and orchd in front of them.
pub fn pair(slots: usize) -> (ScriptedEngine, ScriptedEngine, Orchd) {
    let a = ScriptedEngine::start(MODEL, slots);
    let b = ScriptedEngine::start(MODEL, slots);
    let orchd = serve(&[a.named("a"), b.named("b")], &[]);
    (a, b, orchd)
}

pub fn ok() -> Script {
    Script::whole(200, ANSWER)
}

pub fn post(target: &str, body: &str) -> Vec<u8> {
    written("POST", target, &[JSON], body.as_bytes())
}

/// A request for embeddings, which nothing rewrites.
pub fn embed(input: &str) -> Vec<u8> {
    let body = json!({"model": MODEL, "input": input});
    post("/v1/embeddings", &body.to_string())
}

/// A request for a stream of chat.
pub fn chat() -> Vec<u8> {
    let body =
        json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    post("/v1/chat/completions", &body.to_string())
}

pub fn send(orchd: &Orchd, request: &[u8]) -> Response {
    http::send(orchd.address, request).expect("an answer")
}

pub fn begin(orchd: &Orchd, request: &[u8]) -> Begun {
    http::begin(orchd.address, request).expect("a connection")
}

/// The body of an answer that must be 200.
pub fn body_of(response: Response) -> String {
    let status = response.status;
    let text = response.text().expect("a whole body");
    assert_eq!(status, 200, "{text}");
    text
}

pub fn attempts(response: &Response) -> Option<&str> {
    response.header("x-orchd-attempts")
}

/// Checks that an answer is a refusal of ours in OpenAI's form, and gives its error object.
pub fn refusal(response: Response, status: u16, code: &str) -> Value {
    let header = |name: &str| response.header(name).map(str::to_owned);
    let (kind, version, id) = (
        header("content-type"),
        header("x-orchd-version"),
        header("x-request-id"),
    );
    let retry_after = header("retry-after");
    let found = response.status;
    let body = response.json();
    assert_eq!(found, status, "{body}");
    assert_eq!(kind.as_deref(), Some("application/json"), "{body}");
    assert!(version.is_some() && id.is_some(), "{version:?} {id:?}");
    let error = &body["error"];
    assert_eq!(error["code"], code, "{body}");
    let keys: BTreeSet<&str> = error
        .as_object()
        .expect("an error object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, BTreeSet::from(["code", "message", "param", "type"]));
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.len() > 10),
        "{body}"
    );
    if matches!(status, 429 | 503) {
        let seconds = retry_after.as_deref().and_then(|s| s.parse::<u32>().ok());
        assert!(
            seconds.is_some_and(|s| (1..=60).contains(&s)),
            "retry-after: {retry_after:?}"
        );
    }
    error.clone()
}

/// Waits until so many requests wait for a slot.
pub fn wait_waiting(orchd: &Orchd, wanted: u64) {
    eventually(SOON, &format!("{wanted} wait for a slot"), || {
        orchd.waiting(wanted)
    });
}

// What goes on to the engine.

#[test]
fn a_body_goes_on_byte_for_byte_to_the_same_path_and_query() {
    let (engine, orchd) = machine(4);
    engine.always(ok());
    let big = format!(
        r#"{{"model":"m","input":"{}"}}"#,
        "0123456789".repeat(100_000)
    );
    let bodies: [(&str, &str); 9] = [
        ("/v1/embeddings", r#"{"model":"m","input":"plain"}"#),
        (
            "/v1/embeddings?x=1&y=%20a&z",
            " \t\r\n{ \"model\" :\t\"m\" ,\n\n\"input\"\r\n: [ 1,2 , 3 ] } \n\n",
        ),
        (
            "/v1/rerank",
            r#"{"\u006dodel":"\u006d","query":"\u00e9\ud83d\ude00\/\b","documents":[]}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"stream": true ,"messages":[],"model":"m","seed":123456789012345678901234567890,"x":1.50e+0400,"y":-0.0}"#,
        ),
        (
            "/v1/completions",
            r#"{"model":"m","stream":true,"prompt":"é 模型 😀","again":1,"again":2}"#,
        ),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":1,"messages":[]}"#,
        ),
        (
            "/v1/responses",
            r#"{"model":"m","input":"x","nested":{"model":"another","n":7}}"#,
        ),
        ("/v1/what/ever.else/%2F..;a=b?c", r#"{"model":"m"}"#),
        ("/v1/embeddings", &big),
    ];
    for (number, (target, body)) in bodies.into_iter().enumerate() {
        assert_eq!(body_of(send(&orchd, &post(target, body))), ANSWER);
        let asked = engine.wait_for(number + 1);
        assert_eq!((&*asked.method, &*asked.target), ("POST", target));
        assert!(
            asked.body == body.as_bytes(),
            "of {} bytes sent came {}: {:.300}",
            body.len(),
            asked.body.len(),
            asked.text()
        );
    }

    // In chunks, as clients send whose body is a stream itself.
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = "7\r\n{\"model\r\n1\r\n\"\r\nD\r\n:\"m\",\"x\":[] }\r\n0\r\n\r\n";
    let response = send(&orchd, format!("{head}{chunks}").as_bytes());
    assert_eq!(body_of(response), ANSWER);
    let asked = engine.wait_for(10);
    assert_eq!(asked.text(), r#"{"model":"m","x":[] }"#);
}

#[test]
fn a_clients_secrets_stay_here_and_its_other_headers_go_on() {
    let (engine, orchd) = machine(4);
    engine.always(ok());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        JSON,
        ("Authorization", "Bearer sk-of-the-client"),
        ("X-Api-Key", "key-of-the-client"),
        ("Cookie", "session=1"),
        ("cookie", "more=2"),
        ("X-Request-Id", "my id/42"),
        ("traceparent", trace),
        ("tracestate", "a=b"),
        ("anthropic-version", "2023-06-01"),
        ("Accept", "text/event-stream"),
        ("Connection", "keep-alive, X-Of-This-Hop"),
        ("X-Of-This-Hop", "1"),
        ("Keep-Alive", "timeout=9"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "Basic x"),
        ("Upgrade", "h2c"),
    ];
    let request = written("POST", "/v1/embeddings", &headers, br#"{"model":"m"}"#);
    let response = send(&orchd, &request);
    assert_eq!(response.header("x-request-id"), Some("my id/42"));
    body_of(response);
    let asked = engine.wait_for(1);
    for (name, value) in [
        ("x-request-id", "my id/42"),
        ("traceparent", trace),
        ("tracestate", "a=b"),
        ("anthropic-version", "2023-06-01"),
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
        ("content-length", "13"),
        ("host", &engine.address.to_string()),
    ] {
        assert_eq!(asked.header(name).as_deref(), Some(value), "{name}");
    }
    for name in [
        "authorization",
        "x-api-key",
        "cookie",
        "x-of-this-hop",
        "keep-alive",
        "te",
        "proxy-authorization",
        "upgrade",
    ] {
        assert_eq!(asked.header(name), None, "{name}");
    }

    // Without an id of its own, a request is given one.
    let mut made = BTreeSet::new();
    for number in 2..=3 {
        let response = send(&orchd, &embed("x"));
        let id = response.header("x-request-id").map(str::to_owned);
        body_of(response);
        assert_eq!(engine.wait_for(number).header("x-request-id"), id);
        assert!(made.insert(id.expect("an id")), "two of one id");
    }
}

#[test]
fn a_client_that_waits_to_be_told_to_continue_is_told() {
    let (engine, orchd) = machine(1);
    engine.script([ok()]);
    let body = r#"{"model":"m"}"#;
    let headers = [("Expect", "100-continue"), ("Content-Length", "13")];
    let mut client = begin(&orchd, b"");
    let head = written("PUT", "/v1/embeddings", &headers, b"");
    let head = [b"POST", &head[3..]].concat();
    let go_on = client.ask(&head).expect("an interim answer");
    assert_eq!(go_on.status, 100);
    client.more(body.as_bytes()).expect("it is read");
    assert_eq!(body_of(client.answer().expect("an answer")), ANSWER);
    let asked = engine.wait_for(1);
    assert_eq!(asked.text(), body);
    assert_eq!(asked.header("expect"), None);
}

// What comes back.

#[test]
fn an_answer_with_a_length_keeps_it_and_says_where_it_was_made() {
    let (engine, orchd) = machine(4);
    let headers = [
        ("Connection", "keep-alive, X-Of-This-Hop"),
        ("X-Of-This-Hop", "1"),
        ("Proxy-Authenticate", "Basic"),
        ("X-Orchd-Node", "made-up"),
        ("X-Of-The-Engine", "kept"),
    ];
    engine.script([Script::whole_with(200, &headers, ANSWER), ok()]);
    let response = send(&orchd, &embed("x"));
    for (name, value) in [
        ("x-orchd-node", "local"),
        ("x-orchd-pool", "a"),
        ("x-orchd-attempts", "1"),
        ("x-of-the-engine", "kept"),
        ("server", "llama.cpp"),
        ("content-type", "application/json; charset=utf-8"),
        ("content-length", &ANSWER.len().to_string()),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    for name in [
        "transfer-encoding",
        "keep-alive",
        "x-of-this-hop",
        "proxy-authenticate",
        "x-accel-buffering",
    ] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert!(response.header("x-orchd-version").is_some());
    let names: Vec<&str> = response
        .headers()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let different: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(different.len(), names.len(), "each once: {names:?}");
    let queued = response.header("x-orchd-queue-ms").map(str::parse::<u64>);
    assert!(
        matches!(queued, Some(Ok(ms)) if ms < 1_000),
        "queue-ms: {queued:?}"
    );
    assert_eq!(body_of(response), ANSWER);

    assert_eq!(body_of(send(&orchd, &embed("x"))), ANSWER);
}

#[test]
fn an_answer_whose_head_comes_slowly_is_passed_on() {
    let (engine, orchd) = machine(1);
    let pause = Duration::from_millis(40);
    let drip = [
        "HTTP/1.1 2",
        "00 OK\r\nContent-Type: application/j",
        "son\r\nContent-Length: 4\r",
        "\n\r",
        "\n{",
        "\"\"}",
    ];
    let slow = drip.into_iter().fold(Script::new(), |script, part| {
        script.bytes(part).pause(pause)
    });
    engine.script([slow]);
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.header("content-length"), Some("4"));
    assert_eq!(body_of(response), "{\"\"}");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_passed_on_with_a_proper_end() {
    let (engine, orchd) = machine(1);
    let whole = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":";
    let part = || Script::new().bytes(whole).pause(Duration::from_millis(20));
    let empty = Script::whole(200, "");
    engine.script([part().bytes("1}").close(), empty, ok()]);
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    assert_eq!(body_of(response), "{\"a\":1}");
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.header("content-length"), Some("0"));
    assert_eq!(body_of(response), "");
    assert_eq!(body_of(send(&orchd, &embed("x"))), ANSWER);
}

#[test]
fn a_stream_is_passed_on_event_by_event() {
    let (engine, orchd) = machine(1);
    let stream = Script::stream()
        .event("1")
        .hold()
        .chunk("data: 2\n")
        .hold()
        .chunk("\n: a comment\n\ndata: 3\n\n")
        .hold()
        .event("[DONE]")
        .end();
    engine.script([stream]);
    let response = send(&orchd, &chat());
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("x-accel-buffering"), Some("no"));
    assert_eq!(response.header("x-orchd-node"), Some("local"));
    assert_eq!(response.header("x-orchd-pool"), Some("a"));
    assert_eq!(attempts(&response), Some("1"));
    // The engine goes on only after the client has seen what it sent before.
    let mut events = response.events();
    let mut next = || events.next().expect("no break");
    assert_eq!(next().as_deref(), Some("1"));
    engine.go(0);
    engine.go(0);
    assert_eq!(next().as_deref(), Some("2"));
    assert_eq!(next().as_deref(), Some("3"));
    engine.go(0);
    assert_eq!(next().as_deref(), Some("[DONE]"));
    assert_eq!(next(), None, "the proper end");
}

#[test]
fn the_text_of_a_stream_is_not_touched() {
    let (engine, orchd) = machine(1);
    let parts = [
        "data: {\"a\":  1}\n\n\n\ndata:no space\n\n",
        ": comment\n",
        "event: x\r\nid: 7\r\ndata: \u{fffd}é\r\n\r\n",
        "data: ",
        "[DONE]\n\n",
        "data: after the end",
    ];
    let stream = parts
        .iter()
        .fold(Script::stream(), |script, part| script.chunk(part))
        .end();
    engine.script([stream]);
    assert_eq!(body_of(send(&orchd, &chat())), parts.concat());
}

#[test]
fn an_engines_own_refusals_pass_unchanged_and_are_not_repeated() {
    let (engine, orchd) = machine(1);
    // 501 and 500 included: the first is an engine without embeddings, the second one that choked on this request.
    let statuses = [400, 401, 404, 409, 413, 422, 500, 501];
    for (number, status) in statuses.into_iter().enumerate() {
        let body = format!("{{\"error\":{{\"code\":{status},\"message\":\"so  it is\"}} }}\n");
        engine.script([Script::whole_with(status, &[("X-Why", "because")], &body)]);
        let response = send(&orchd, &embed("x"));
        assert_eq!(response.status, status);
        assert_eq!(response.header("x-why"), Some("because"));
        assert_eq!(response.header("x-orchd-pool"), Some("a"));
        assert_eq!(attempts(&response), Some("1"), "{status}");
        assert_eq!(response.text().expect("a whole body"), body);
        assert_eq!(engine.asked().len(), number + 1, "after {status}");
    }
}

// Which model.

#[test]
fn a_request_without_a_model_goes_to_the_only_one() {
    let (engine, orchd) = machine(1);
    engine.always(ok());
    for (number, body) in ["{}", r#"{"model":null}"#, r#"{"model": null ,"n":1}"#]
        .into_iter()
        .enumerate()
    {
        assert_eq!(body_of(send(&orchd, &post("/v1/embeddings", body))), ANSWER);
        assert_eq!(engine.wait_for(number + 1).text(), body, "not rewritten");
    }
}

#[test]
fn with_two_models_a_request_must_name_one_and_is_told_which_there_are() {
    let small = ScriptedEngine::start("small", 1);
    let big = ScriptedEngine::start("org/big:Q4", 2);
    let orchd = serve(&[small.named("s"), big.named("b")], &[]);
    let listed = http::get_json(orchd.address, "/v1/models");
    let ids: Vec<&str> = listed["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|model| model["id"].as_str())
        .collect();
    assert_eq!(ids, ["org/big:Q4", "small"]);
    assert_eq!(listed["object"], "list");
    assert_eq!(listed["data"][0]["object"], "model");
    assert_eq!(listed["data"][0]["meta"]["slots"], 2);
    assert_eq!(listed["data"][0]["meta"]["n_ctx"], N_CTX);
    for path in ["/v1/models/org/big:Q4", "/v1/models/org%2Fbig%3AQ4"] {
        assert_eq!(http::get_json(orchd.address, path), listed["data"][0]);
    }

    for (body, status, code) in [
        ("{}", 400, "missing_model"),
        (r#"{"model":null}"#, 400, "missing_model"),
        (r#"{"model":"medium"}"#, 404, "model_not_found"),
        (r#"{"model":"Small"}"#, 404, "model_not_found"),
        (r#"{"model":"small "}"#, 404, "model_not_found"),
        (r#"{"model":"big:Q4"}"#, 404, "model_not_found"),
        (r#"{"model":"mödel/模型 😀"}"#, 404, "model_not_found"),
    ] {
        let error = refusal(send(&orchd, &post("/v1/embeddings", body)), status, code);
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], "model");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains("org/big:Q4") && message.contains("small"),
            "{body}: {message}"
        );
    }
    let unknown = http::get(orchd.address, "/v1/models/m%C3%B6del").expect("an answer");
    let error = refusal(unknown, 404, "model_not_found");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("mödel"), "{message}");

    big.script([ok()]);
    let body = r#"{"model":"org\/big\u003aQ4"}"#;
    let response = send(&orchd, &post("/v1/embeddings", body));
    assert_eq!(response.header("x-orchd-pool"), Some("b"));
    body_of(response);
    assert_eq!(big.wait_for(1).text(), body);
}

#[test]
fn model_names_of_any_letters_are_found_however_they_are_written() {
    let mut name = "org/mödel:模型 \"q\" \\ 😀".to_owned();
    name += &"x".repeat(512 - name.len());
    let engine = ScriptedEngine::start(&name, 1);
    let orchd = serve(&[engine.url()], &[]);
    engine.always(ok());
    let plain = json!({"model": name}).to_string();
    let escaped: String = plain
        .chars()
        .map(|c| match c {
            ' '..='~' => c.to_string(),
            c => {
                let mut units = [0; 2];
                let units = c.encode_utf16(&mut units);
                units.iter().map(|unit| format!("\\u{unit:04X}")).collect()
            }
        })
        .collect();
    assert_ne!(plain, escaped);
    for body in [&plain, &escaped] {
        assert_eq!(body_of(send(&orchd, &post("/v1/embeddings", body))), ANSWER);
    }
    let listed = http::get_json(orchd.address, "/v1/models");
    assert_eq!(listed["data"][0]["id"], *name);
}

#[test]
fn what_is_not_a_request_is_refused_in_openais_form() {
    let (engine, orchd) = machine(1);
    let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(513));
    let bodies: [(&str, &str); 26] = [
        ("", "invalid_json"),
        (" \n", "invalid_json"),
        ("hello", "invalid_json"),
        ("[]", "invalid_json"),
        ("null", "invalid_json"),
        ("\"m\"", "invalid_json"),
        (r#"[{"model":"m"}]"#, "invalid_json"),
        (r#"{"model":"m""#, "invalid_json"),
        (r#"{"model":"m",}"#, "invalid_json"),
        (r#"{"model":"m"} x"#, "invalid_json"),
        (r#"{"model":"m"}{"model":"m"}"#, "invalid_json"),
        (r#"{model:"m"}"#, "invalid_json"),
        (r#"{'model':'m'}"#, "invalid_json"),
        (r#"{"model":"m","x":NaN}"#, "invalid_json"),
        (r#"{"model":"m","x":01}"#, "invalid_json"),
        ("{\"model\":\"m\",\"x\":\"a\nb\"}", "invalid_json"),
        ("\u{feff}{\"model\":\"m\"}", "invalid_json"),
        (r#"{"model":"m","model":"m"}"#, "invalid_json"),
        (r#"{"model":"m","\u006dodel":"m"}"#, "invalid_json"),
        (r#"{"model":1}"#, "invalid_model"),
        (r#"{"model":["m"]}"#, "invalid_model"),
        (r#"{"model":{"id":"m"}}"#, "invalid_model"),
        (r#"{"model":true}"#, "invalid_model"),
        (r#"{"model":""}"#, "invalid_model"),
        (r#"{"model":"a\u0000b"}"#, "invalid_model"),
        (&long, "invalid_model"),
    ];
    for (body, code) in bodies {
        let error = refusal(send(&orchd, &post("/v1/embeddings", body)), 400, code);
        assert_eq!(error["type"], "invalid_request_error", "{body:.60}");
        if code == "invalid_model" {
            assert_eq!(error["param"], "model", "{body:.60}");
        }
    }
    assert_eq!(engine.asked().len(), 0, "none of them goes on");

    // JSON that is deep or odd is the engine's to judge, as long as it is JSON.
    engine.always(ok());
    let deep = format!(
        r#"{{"model":"m","x":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for body in [
        &*deep,
        r#"{"model":"m","n":"many","prompt":{"a":[]},"stream":"yes"}"#,
    ] {
        assert_eq!(body_of(send(&orchd, &post("/v1/embeddings", body))), ANSWER);
    }
}

#[test]
fn another_method_is_told_which_one_a_path_takes() {
    let (engine, orchd) = machine(1);
    for (method, path, allowed) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/v1/embeddings?x=1", "POST"),
        ("DELETE", "/v1/messages", "POST"),
        ("PUT", "/v1/responses", "POST"),
        ("PATCH", "/v1/what/ever", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
    ] {
        let response = send(&orchd, &written(method, path, &[JSON], b"{}"));
        assert_eq!(response.header("allow"), Some(allowed), "{method} {path}");
        refusal(response, 405, "method_not_allowed");
    }
    // Whoever may GET may ask for the head alone.
    for path in ["/v1/models", "/v1/models/m"] {
        assert_eq!(send(&orchd, &written("HEAD", path, &[], b"")).status, 200);
    }
    assert_eq!(engine.asked().len(), 0);
}

// Bodies that are too large, or do not come.

/// A request for embeddings whose body has this length.
fn embed_of(length: usize) -> Vec<u8> {
    let (begin, end) = (br#"{"model":"m","input":""#, br#""}"#);
    let mut body = begin.to_vec();
    body.resize(length - end.len(), b'x');
    body.extend_from_slice(end);
    written("POST", "/v1/embeddings", &[JSON], &body)
}

#[test]
fn a_body_may_have_64_mib_and_no_byte_more() {
    const LIMIT: usize = 64 << 20;
    let (engine, orchd) = machine(1);
    engine.script([ok()]);
    assert_eq!(body_of(send(&orchd, &embed_of(LIMIT))), ANSWER);
    assert_eq!(engine.wait_for(1).body.len(), LIMIT);
    let error = refusal(send(&orchd, &embed_of(LIMIT + 1)), 413, "request_too_large");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(&LIMIT.to_string()), "{message}");
}

#[test]
fn a_client_that_sends_far_too_much_is_told_so_all_the_same() {
    let (_engine, orchd) = machine(1);
    let mut client = begin(&orchd, b"");
    // As every client does: it sends until it cannot, and then looks for an answer.
    let sent = client.more(&embed_of(96 << 20));
    let response = client
        .answer()
        .unwrap_or_else(|e| panic!("sending: {sent:?}; the answer: {e}"));
    refusal(response, 413, "request_too_large");
}

#[test]
fn requests_that_stop_half_way_hold_up_nobody() {
    let (engine, orchd) = machine(2);
    engine.always(ok());
    let request = embed("x");
    let stalled: Vec<Begun> = (0..40)
        .map(|number| {
            // Within the head, at its end, within the body.
            let part = [20, request.len() - 27, request.len() - 5][number % 3];
            begin(&orchd, &request[..part])
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(body_of(send(&orchd, &request)), ANSWER);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(engine.asked().len(), 5);
    // One that goes on after all is answered.
    let mut late = stalled.into_iter().nth(2).expect("40 of them");
    late.more(&request[request.len() - 5..])
        .expect("it is read");
    assert_eq!(body_of(late.answer().expect("an answer")), ANSWER);
}

// Engines that fail before they have answered.

/// Two engines, one of which answers one request so and all others well: the answer of the request that met it.
fn meet(bad: Script) -> (ScriptedEngine, ScriptedEngine, Response) {
    let (a, b, orchd) = pair(4);
    a.script([bad]);
    a.always(ok());
    b.always(ok());
    // The pool that was used least recently comes first, so that the second request meets what the first did not.
    let mut response = send(&orchd, &embed("x"));
    if a.asked().is_empty() {
        assert_eq!(attempts(&response), Some("1"));
        response = send(&orchd, &embed("x"));
    }
    assert_eq!(a.asked().len(), 1);
    (a, b, response)
}

#[test]
fn what_an_engine_fails_to_answer_goes_to_another_one() {
    let half_head = Script::new().bytes("HTTP/1.1 200 OK\r\nContent-Le");
    let only_head = Script::new().bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    let cases = [
        ("closes at once", Script::new().close()),
        ("resets at once", Script::new().reset()),
        ("closes within the head", half_head.clone().close()),
        ("resets within the head", half_head.reset()),
        ("closes after the head", only_head.clone().close()),
        ("resets after the head", only_head.reset()),
        (
            "closes after the head of a stream",
            Script::stream().close(),
        ),
        ("answers 429", Script::whole(429, BUSY)),
        ("answers 502", Script::whole(502, BUSY)),
        ("answers 503", Script::whole(503, BUSY)),
    ];
    let met = at_once(cases.len(), |number| {
        let (name, bad) = &cases[number];
        let (_a, b, response) = meet(bad.clone());
        let found = (
            attempts(&response).map(str::to_owned),
            response.header("x-orchd-pool").map(str::to_owned),
        );
        assert_eq!(body_of(response), ANSWER, "{name}");
        let asked = b.asked();
        let last = asked.last().expect("it was asked");
        assert_eq!(last.json(), json!({"model": "m", "input": "x"}), "{name}");
        (*name, found)
    });
    for (name, found) in met {
        let expected = (Some("2".to_owned()), Some("b".to_owned()));
        assert_eq!(found, expected, "the engine {name}");
    }
}

#[test]
fn an_engine_that_is_gone_is_left_out_after_the_first_refused_connection() {
    let (a, b, orchd) = pair(4);
    b.always(ok());
    a.kill();
    let tries: Vec<String> = (0..6)
        .map(|_| {
            let response = send(&orchd, &embed("x"));
            assert_eq!(response.header("x-orchd-pool"), Some("b"));
            let tries = attempts(&response).expect("they are counted").to_owned();
            body_of(response);
            tries
        })
        .collect();
    let twice = tries.iter().filter(|tries| *tries == "2").count();
    let once = tries.iter().filter(|tries| *tries == "1").count();
    assert_eq!((once, twice), (5, 1), "{tries:?}");
    let pools = http::get_json(orchd.address, "/v2/pools");
    assert_eq!(pools["pools"][0]["ejected"], true, "{pools}");
    assert_eq!(pools["pools"][1]["ejected"], false, "{pools}");
}

#[test]
fn an_engine_that_takes_no_more_connections_finishes_what_it_runs() {
    let (a, b, orchd) = pair(4);
    a.always(ok().held());
    b.always(ok());
    // One of two goes to a.
    let clients = [embed("x"), embed("x")].map(|request| begin(&orchd, &request));
    a.wait_for(1);
    b.wait_for(1);
    a.refuse();
    for _ in 0..4 {
        let response = send(&orchd, &embed("x"));
        assert_eq!(response.header("x-orchd-pool"), Some("b"));
        body_of(response);
    }
    a.go(0);
    for client in clients {
        assert_eq!(body_of(client.answer().expect("an answer")), ANSWER);
    }
    assert_eq!((a.asked().len(), b.asked().len()), (1, 5));
}

#[test]
fn after_three_attempts_the_engines_own_answer_is_passed_on() {
    let (engine, orchd) = machine(2);
    let last = r#"{"error":{"code":503,"message":"still  loading"}}"#;
    engine.script([
        Script::whole(503, BUSY),
        Script::whole(503, BUSY),
        Script::whole_with(503, &[("Retry-After", "7")], last),
    ]);
    let begun = Instant::now();
    let response = send(&orchd, &embed("x"));
    let took = begun.elapsed();
    assert_eq!(response.status, 503);
    assert_eq!(attempts(&response), Some("3"));
    assert_eq!(response.header("retry-after"), Some("7"));
    assert_eq!(response.text().expect("a whole body"), last);
    let asked = engine.asked();
    assert_eq!(asked.len(), 3);
    // The same engine again, not before a quarter of a second and then a second. It said that it is busy, so that it is even
    // left alone for one second and then for two.
    let gaps: Vec<Duration> = asked
        .windows(2)
        .map(|two| two[1].arrived - two[0].arrived)
        .collect();
    assert!(
        gaps[0] >= Duration::from_millis(250) && gaps[1] >= Duration::from_secs(1),
        "{gaps:?}"
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    let ids: BTreeSet<_> = asked
        .iter()
        .map(|asked| asked.header("x-request-id"))
        .collect();
    assert_eq!(ids.len(), 1, "one request, one id");
}

#[test]
fn after_three_attempts_without_an_answer_the_client_is_told() {
    let (a, b, orchd) = pair(2);
    a.always(Script::new().close());
    b.always(Script::new().reset());
    let response = send(&orchd, &embed("x"));
    let error = refusal(response, 502, "upstream_failed");
    assert_eq!(error["type"], "server_error");
    let seen = (a.asked().len(), b.asked().len());
    assert!(matches!(seen, (1, 2) | (2, 1)), "{seen:?}");
}

#[test]
fn connections_that_an_engine_closes_after_its_answer_lose_nothing() {
    let (engine, orchd) = machine(1);
    engine.always(ok().close());
    let mut client = begin(&orchd, b"");
    for number in 1..=50 {
        let response = client.ask(&embed("x")).expect("an answer");
        // Two when it was written at the very moment at which the engine closed the connection.
        let tries = attempts(&response);
        assert!(
            matches!(tries, Some("1" | "2")),
            "request {number}: {tries:?}"
        );
        assert_eq!(body_of(response), ANSWER);
    }
    assert_eq!(engine.asked().len(), 50, "each once");
}

#[test]
fn a_connection_is_used_again_by_the_next_request() {
    let (engine, orchd) = machine(1);
    engine.always(ok());
    let mut client = begin(&orchd, b"");
    for _ in 0..20 {
        body_of(client.ask(&embed("x")).expect("an answer"));
    }
    let used: BTreeSet<usize> = engine.asked().iter().map(|a| a.connection).collect();
    assert_eq!(used.len(), 1, "{used:?}");
}

// Engines that fail in mid-answer.

/// The last event of a text: its name and its data.
pub fn last_event(text: &str) -> (Option<&str>, Value) {
    let text = text
        .strip_suffix("\n\n")
        .unwrap_or_else(|| panic!("no event at the end of {text:?}"));
    let event = text.rsplit("\n\n").next().expect("split gives something");
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    let data = field("data: ").unwrap_or_else(|| panic!("no data in {event:?}"));
    let data = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
    (field("event: "), data)
}

#[test]
fn a_stream_whose_engine_is_lost_ends_in_an_error_event_and_properly() {
    let (engine, orchd) = machine(1);
    let two = || Script::stream().events(2, Duration::from_millis(5));
    let complete = "data: {\"n\":1}\n\ndata: {\"n\":2}\n\n";
    let cases = [
        (two().close(), complete),
        (two().reset(), complete),
        // Within a chunk, of which nothing can be passed on but what came.
        (two().bytes("40\r\n: a comment\n").close(), complete),
        // Within an event: what has begun of it is not passed on.
        (two().chunk("data: {\"n\":").close(), complete),
        (two().chunk("data: {\"n\":3}\n").reset(), complete),
    ];
    for endpoint in ["/v1/chat/completions", "/v1/completions"] {
        for (number, (script, complete)) in cases.iter().enumerate() {
            engine.script([script.clone()]);
            let body = json!({"model": MODEL, "stream": true}).to_string();
            let response = send(&orchd, &post(endpoint, &body));
            assert_eq!(attempts(&response), Some("1"), "it had begun");
            let text = response.text().expect("the end chunk");
            let error = text.strip_prefix(complete);
            let error = error.unwrap_or_else(|| panic!("{number}: {text:?}"));
            assert!(error.starts_with("data: {\"error\":"), "{number}: {text:?}");
            let (name, data) = last_event(&text);
            assert_eq!(name, None, "{number}: {text:?}");
            assert_eq!(data["error"]["code"], "worker_reset", "{number}: {text:?}");
            assert!(data["error"]["message"].is_string(), "{text:?}");
            assert!(!text.contains("[DONE]"), "{text:?}");
        }
    }

    engine.script([two().close()]);
    let body = json!({"model": MODEL, "stream": true}).to_string();
    let text = body_of(send(&orchd, &post("/v1/messages", &body)));
    assert!(text.starts_with(complete), "{text:?}");
    let (name, data) = last_event(&text);
    assert_eq!(name, Some("error"), "{text:?}");
    assert_eq!(data["type"], "error", "{text:?}");
    assert_eq!(data["error"]["code"], "worker_reset", "{text:?}");
    assert_eq!(engine.asked().len(), 11, "none of them is repeated");
}

#[test]
fn a_whole_answer_that_breaks_off_is_never_taken_for_a_short_one() {
    let (engine, orchd) = machine(1);
    let begun =
        || Script::new().bytes("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"begun\":");
    let chunked = Script::new()
        .bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n");
    for script in [begun().close(), begun().reset(), chunked.close()] {
        engine.script([script]);
        // Before or after the head has come to the client.
        let body = http::send(orchd.address, &embed("x")).and_then(Response::text);
        assert!(body.is_err(), "the client took it for complete: {body:?}");
    }
}

// Clients that leave.

/// Lets the client leave in twenty rounds, and checks how long it takes until the engine sees it.
fn leave(what: &str, engine: &ScriptedEngine, round: impl Fn(usize) -> Begun) {
    let mut took: Vec<Duration> = (0..20)
        .map(|number| {
            let client = round(number);
            let left = Instant::now();
            drop(client);
            engine.wait_left(number).duration_since(left)
        })
        .collect();
    took.sort_unstable();
    let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
    eprintln!(
        "{what}, {} rounds: the engine sees it after {median:?} (median), {max:?} (max)",
        took.len()
    );
    assert!(max < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_client_that_leaves_in_mid_stream_is_gone_at_the_engine_within_100_ms() {
    let (engine, orchd) = machine(32);
    // Silent after its first event, so that no write can show who has left.
    engine.always(Script::stream().event("1").silence());
    leave("a client leaves in mid-stream", &engine, |_| {
        let mut client = begin(&orchd, b"");
        let response = client.ask(&chat()).expect("an answer");
        let first = response.events().next().expect("no break");
        assert_eq!(first.as_deref(), Some("1"));
        client
    });
}

#[test]
fn a_client_that_leaves_before_the_answer_is_gone_at_the_engine_within_100_ms() {
    let (engine, orchd) = machine(32);
    engine.always(Script::new().silence());
    leave("a client leaves before the answer", &engine, |number| {
        let request = if number % 2 == 0 { chat() } else { embed("x") };
        let client = begin(&orchd, &request);
        engine.wait_for(number + 1);
        client
    });
}

#[test]
fn a_client_that_leaves_while_it_waits_is_never_sent_and_the_next_is_served() {
    let (engine, orchd) = machine(1);
    engine.always(ok().held());
    let running = begin(&orchd, &embed("running"));
    engine.wait_for(1);
    let leaver = begin(&orchd, &embed("leaver"));
    wait_waiting(&orchd, 1);
    let next = begin(&orchd, &embed("next"));
    wait_waiting(&orchd, 2);
    drop(leaver);
    wait_waiting(&orchd, 1);
    engine.go(0);
    assert_eq!(body_of(running.answer().expect("an answer")), ANSWER);
    assert_eq!(engine.wait_for(2).json()["input"], "next");
    engine.go(1);
    assert_eq!(body_of(next.answer().expect("an answer")), ANSWER);
    assert_eq!(engine.asked().len(), 2);
}

// The queue.

#[test]
fn those_who_wait_are_served_in_order_of_arrival() {
    const WAITING: u64 = 8;
    let (engine, orchd) = machine(1);
    engine.always(ok().held());
    let first = begin(&orchd, &embed("0"));
    engine.wait_for(1);
    let waiting: Vec<Begun> = (1..=WAITING)
        .map(|number| {
            let client = begin(&orchd, &embed(&number.to_string()));
            wait_waiting(&orchd, number);
            client
        })
        .collect();
    let begun = Instant::now();
    let clients = std::iter::once(first).chain(waiting);
    for (number, client) in clients.enumerate() {
        let asked = engine.wait_for(number + 1);
        assert_eq!(asked.json()["input"], number.to_string());
        assert_eq!(engine.asked().len(), number + 1, "one at a time");
        engine.go(number);
        let response = client.answer().expect("an answer");
        let queued: u64 = response
            .header("x-orchd-queue-ms")
            .and_then(|ms| ms.parse().ok())
            .expect("a number");
        assert!(queued > 0 || number == 0, "request {number}: {queued} ms");
        assert_eq!(body_of(response), ANSWER);
    }
    eprintln!("nine requests one after the other: {:?}", begun.elapsed());
}

#[test]
fn all_slots_are_used_and_never_more() {
    let (engine, orchd) = machine(3);
    engine.always(
        Script::stream()
            .events(3, Duration::from_millis(5))
            .event("[DONE]")
            .end(),
    );
    let answers = at_once(24, |_| body_of(send(&orchd, &chat())));
    assert!(
        answers
            .iter()
            .all(|text| text.ends_with("data: [DONE]\n\n"))
    );
    assert_eq!(engine.asked().len(), 24);
    assert_eq!(engine.peak(), 3);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let (engine, orchd) = machine_with(1, &["--admission-capacity", "2"]);
    engine.always(ok().held());
    let mut clients = Vec::new();
    for number in 0..3 {
        clients.push(begin(&orchd, &embed("x")));
        if number == 0 {
            engine.wait_for(1);
        } else {
            wait_waiting(&orchd, number);
        }
    }
    for request in [embed("x"), chat()] {
        let response = send(&orchd, &request);
        let backoff = response.header("x-backoff-ms").map(str::parse::<u64>);
        let seconds = response.header("retry-after").map(str::parse::<u64>);
        let (Some(Ok(backoff)), Some(Ok(seconds))) = (&backoff, &seconds) else {
            panic!("{backoff:?} {seconds:?}");
        };
        assert!((1_000..=60_000).contains(backoff), "{backoff}");
        assert_eq!(*seconds, backoff.div_ceil(1_000));
        let error = refusal(response, 429, "queue_full");
        assert_eq!(error["type"], "rate_limit_error");
    }
    for (number, client) in clients.into_iter().enumerate() {
        engine.wait_for(number + 1);
        engine.go(number);
        assert_eq!(body_of(client.answer().expect("an answer")), ANSWER);
    }
}

#[test]
fn with_drop_lru_a_new_request_takes_the_place_of_the_one_that_waited_longest() {
    let options = [
        "--admission-capacity",
        "2",
        "--admission-policy",
        "drop-lru",
    ];
    let (engine, orchd) = machine_with(1, &options);
    engine.always(ok().held());
    let running = begin(&orchd, &embed("running"));
    engine.wait_for(1);
    let longest = begin(&orchd, &embed("longest"));
    wait_waiting(&orchd, 1);
    let second = begin(&orchd, &embed("second"));
    wait_waiting(&orchd, 2);
    let new = begin(&orchd, &embed("new"));

    let response = longest.answer().expect("an answer");
    let number = |name: &str| response.header(name).map(str::parse::<u64>);
    let (Some(Ok(backoff)), Some(Ok(seconds))) = (number("x-backoff-ms"), number("retry-after"))
    else {
        panic!("both headers say when to come back");
    };
    assert!((1_000..=60_000).contains(&backoff), "{backoff}");
    assert_eq!(seconds, backoff.div_ceil(1_000));
    let error = refusal(response, 429, "queue_dropped");
    assert_eq!(error["type"], "rate_limit_error");

    for (number, client) in [running, second, new].into_iter().enumerate() {
        engine.wait_for(number + 1);
        engine.go(number);
        assert_eq!(body_of(client.answer().expect("an answer")), ANSWER);
    }
    let inputs: Vec<Value> = engine
        .asked()
        .iter()
        .map(|asked| asked.json()["input"].clone())
        .collect();
    assert_eq!(inputs, ["running", "second", "new"]);
}

#[test]
fn a_body_too_large_to_wait_is_refused_and_one_that_need_not_wait_is_served() {
    let (engine, orchd) = machine_with(1, &["--admission-bytes", "1KiB"]);
    engine.always(ok().held());
    let running = begin(&orchd, &embed(&"x".repeat(2_000)));
    engine.wait_for(1);
    let response = send(&orchd, &embed(&"y".repeat(1_100)));
    assert!(response.header("x-backoff-ms").is_some());
    let error = refusal(response, 429, "queue_full");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("bodies")),
        "{error}"
    );
    let small = begin(&orchd, &embed(&"z".repeat(800)));
    wait_waiting(&orchd, 1);
    refusal(send(&orchd, &embed(&"z".repeat(800))), 429, "queue_full");
    for (number, client) in [running, small].into_iter().enumerate() {
        engine.wait_for(number + 1);
        engine.go(number);
        assert_eq!(body_of(client.answer().expect("an answer")), ANSWER);
    }
}

#[test]
fn without_a_queue_a_free_slot_is_still_given() {
    let (engine, orchd) = machine_with(1, &["--admission-capacity", "0"]);
    engine.always(ok().held());
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    refusal(send(&orchd, &embed("x")), 429, "queue_full");
    engine.go(0);
    body_of(running.answer().expect("an answer"));
}

#[test]
fn a_wait_ends_after_the_queue_timeout() {
    let (engine, orchd) = machine_with(1, &["--queue-timeout", "300ms"]);
    engine.script([ok().held()]);
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    let begun = Instant::now();
    let response = send(&orchd, &embed("x"));
    let took = begun.elapsed();
    let error = refusal(response, 503, "queue_timeout");
    assert_eq!(error["type"], "server_error");
    assert!((300..1_300).contains(&took.as_millis()), "{took:?}");
    engine.go(0);
    assert_eq!(body_of(running.answer().expect("an answer")), ANSWER);
}

#[test]
fn a_model_whose_only_engine_is_gone_is_waited_for_and_then_refused() {
    let (engine, orchd) = machine_with(1, &["--no-pool-wait", "500ms"]);
    engine.always(Script::stream().event("1").silence());
    let running = send(&orchd, &chat());
    let waiting = begin(&orchd, &chat());
    wait_waiting(&orchd, 1);
    let gone = Instant::now();
    engine.kill();
    let text = running.text().expect("a proper end");
    assert_eq!(last_event(&text).1["error"]["code"], "worker_reset");
    for client in [waiting, begin(&orchd, &embed("x"))] {
        let error = refusal(client.answer().expect("an answer"), 503, "no_ready_pool");
        assert_eq!(error["type"], "server_error");
    }
    let took = gone.elapsed();
    assert!((500..3_000).contains(&took.as_millis()), "{took:?}");
    // It is known all the same.
    let listed = http::get_json(orchd.address, "/v1/models");
    assert_eq!(listed["data"][0]["id"], MODEL);
    let missing = post("/v1/embeddings", r#"{"model":"x"}"#);
    refusal(send(&orchd, &missing), 404, "model_not_found");
}

#[test]
fn whoever_asks_for_a_model_whose_only_engine_refuses_waits_five_seconds_from_the_first_refusal() {
    let (engine, orchd) = machine(1);
    let began = Instant::now();
    engine.kill();
    let first = begin(&orchd, &embed("x"));
    let second = begin(&orchd, &embed("x"));
    for client in [first, second] {
        refusal(client.answer().expect("an answer"), 503, "no_ready_pool");
        let took = began.elapsed();
        assert!((4_900..6_500).contains(&took.as_millis()), "{took:?}");
    }
}

// Requests that take several slots.

#[test]
fn a_request_for_three_answers_takes_three_slots_and_nobody_overtakes_it() {
    let three_answers = post(
        "/v1/chat/completions",
        r#"{"model":"m","stream":true,"n":3}"#,
    );
    let three_prompts = post(
        "/v1/completions",
        r#"{"model":"m","stream":true,"prompt":["a","b","c"]}"#,
    );
    let (engine, orchd) = machine(4);
    let stream = Script::stream().event("1").hold().event("[DONE]").end();
    engine.always(stream);
    for (round, (first, second)) in [
        (&three_answers, &three_prompts),
        (&three_prompts, &three_answers),
    ]
    .into_iter()
    .enumerate()
    {
        let before = 3 * round;
        let first = send(&orchd, first);
        let second = begin(&orchd, second);
        wait_waiting(&orchd, 1);
        // There is a slot for this one, and it is not its turn.
        let small = begin(&orchd, &embed("small"));
        wait_waiting(&orchd, 2);
        assert_eq!(engine.asked().len(), before + 1);
        engine.go(before);
        assert!(body_of(first).ends_with("data: [DONE]\n\n"));
        // Now there is room for both of them.
        engine.wait_for(before + 3);
        engine.go(before + 1);
        engine.go(before + 2);
        for client in [second, small] {
            let text = body_of(client.answer().expect("an answer"));
            assert!(text.ends_with("data: [DONE]\n\n"));
        }
    }
    assert_eq!(engine.peak(), 4);
}

#[test]
fn a_request_for_more_than_all_slots_waits_for_all_of_them() {
    let (engine, orchd) = machine(2);
    engine.always(ok().held());
    let small = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    let large = begin(&orchd, &post("/v1/embeddings", r#"{"model":"m","n":9}"#));
    wait_waiting(&orchd, 1);
    assert_eq!(engine.asked().len(), 1);
    engine.go(0);
    body_of(small.answer().expect("an answer"));
    engine.wait_for(2);
    engine.go(1);
    body_of(large.answer().expect("an answer"));
}

// Tokens.

#[test]
fn with_a_token_everything_needs_it_and_no_engine_sees_it() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let engine = ScriptedEngine::start(MODEL, 1);
    let orchd = Orchd::serve_home_guarded(&[engine.named("a")], TOKEN);
    engine.always(ok());
    let bearer = format!("Bearer {TOKEN}");
    let with = |method: &str, path: &str, more: &[(&str, &str)]| {
        let mut headers = vec![JSON];
        headers.extend_from_slice(more);
        let body: &[u8] = if method == "POST" {
            br#"{"model":"m"}"#
        } else {
            b""
        };
        send(&orchd, &written(method, path, &headers, body))
    };
    let v1 = [
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
    ];
    let v2 = [
        ("GET", "/v2/pools"),
        ("GET", "/v2/catalog/availability"),
        ("GET", "/v2/meta/version"),
    ];
    let wrong: [&[(&str, &str)]; 6] = [
        &[],
        &[("authorization", "Bearer 0123456789abcdef0123456789abcdeF")],
        &[("authorization", TOKEN)],
        &[("authorization", "Bearer ")],
        &[("x-api-key", "")],
        &[("cookie", TOKEN)],
    ];
    for headers in wrong {
        for (method, path) in v1 {
            let error = refusal(with(method, path, headers), 401, "invalid_api_key");
            assert_eq!(error["type"], "invalid_request_error");
        }
        for (method, path) in v2 {
            let response = with(method, path, headers);
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
            assert_eq!(response.status, 401, "{path} {headers:?}");
            let body = response.json();
            assert_eq!(body["code"], "UNAUTHORIZED");
            assert_eq!(body["error"], body["message"]);
        }
    }
    // Who asks comes before what is asked for.
    for (method, path) in [
        ("POST", "/v1/models"),
        ("GET", "/v2/nodes"),
        ("GET", "/v2/x"),
        ("PUT", "/v2/pools"),
    ] {
        assert_eq!(with(method, path, &[]).status, 401, "{path}");
    }
    eventually(SOON, "the engine is read", || {
        match with("GET", "/v1/models/m", &[("x-api-key", TOKEN)]).status {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    for right in [
        ("authorization", &*bearer),
        ("Authorization", &format!("bearer {TOKEN}")),
        ("x-api-key", TOKEN),
    ] {
        for (method, path) in v1.into_iter().chain(v2) {
            let response = with(method, path, &[right]);
            assert_eq!(response.status, 200, "{method} {path}");
        }
    }
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(with("GET", path, &[]).status, 200, "{path}");
    }
    assert_eq!(engine.asked().len(), 3);
    for asked in engine.asked().iter().chain(&engine.probes()) {
        let told = asked
            .headers()
            .iter()
            .find(|(_, value)| value.contains(TOKEN));
        assert_eq!(told, None, "{} {}", asked.method, asked.target);
        assert!(!asked.text().contains(TOKEN) && !asked.target.contains(TOKEN));
    }
}

// What is easily got wrong.

/// How many of six requests reach pool `a`, after it has answered a few so, while `b` answers well.
fn still_asked_after(bad: &Script) -> usize {
    let (a, b, orchd) = pair(4);
    a.always(bad.clone());
    b.always(ok());
    let ask = || drop(send(&orchd, &embed("x")).text().expect("a whole body"));
    eventually(SOON, "its turn comes", || {
        ask();
        a.asked().first().map(drop).ok_or_else(String::new)
    });
    let before = a.asked().len();
    for _ in 0..6 {
        ask();
    }
    a.asked().len() - before
}

/// Those of the answers after which the pool is asked further, and how often.
fn asked_further<'a>(answers: &[(&'a str, Script)]) -> Vec<(&'a str, usize)> {
    let counts = answers
        .iter()
        .map(|(name, bad)| (*name, still_asked_after(bad)));
    counts.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_pool_that_breaks_off_or_fails_is_left_out_for_a_while() {
    let found = asked_further(&[
        ("closes before the answer", Script::new().close()),
        ("resets before the answer", Script::new().reset()),
        ("answers 500", Script::whole(500, BUSY)),
    ]);
    assert_eq!(found, [], "of six requests each");
}

#[test]
fn whatever_takes_several_slots_is_given_as_many() {
    let (engine, orchd) = machine(4);
    engine.always(ok().held());
    let bodies = [
        (
            "/v1/chat/completions",
            r#"{"model":"m","stream":true,"n":3.0}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"m","stream":true,"n":3e0}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"m","stream":true,"n_cmpl":3}"#,
        ),
        (
            "/v1/completions",
            r#"{"model":"m","stream":true,"prompt":[{"prompt_string":"a"},{"prompt_string":"b"},{"prompt_string":"c"}]}"#,
        ),
        ("/v1/embeddings", r#"{"model":"m","input":["a","b","c"]}"#),
    ];
    let mut over = Vec::new();
    for (target, body) in bodies {
        let before = engine.asked().len();
        let clients = [post(target, body), post(target, body)].map(|r| begin(&orchd, &r));
        eventually(SOON, "each waits or runs", || {
            let pools = http::get_json(orchd.address, "/v2/pools");
            let pool = &pools["pools"][0];
            match (&pool["running"], &pool["waiting"]) {
                (running, waiting) if *running == 1 && *waiting == 1 => Ok(()),
                (running, _) if *running == 2 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        engine.wait_for(before + 1);
        if http::get_json(orchd.address, "/v2/pools")["pools"][0]["waiting"] == 0 {
            over.push(body);
            engine.wait_for(before + 2);
        }
        engine.go(before);
        engine.wait_for(before + 2);
        engine.go(before + 1);
        for client in clients {
            body_of(client.answer().expect("an answer"));
        }
    }
    assert_eq!(
        over,
        Vec::<&str>::new(),
        "two of them at a time in four slots"
    );
}

#[test]
fn three_attempts_are_all_on_kept_connections_too() {
    const CLIENTS: usize = 8;
    let (engine, orchd) = machine(CLIENTS);
    // Each is answered on a connection of its own, and all of those are kept.
    engine.always(ok().held());
    let mut clients: Vec<Begun> = (0..CLIENTS).map(|_| begin(&orchd, b"")).collect();
    for client in &mut clients {
        client.more(&embed("warm")).expect("it is read");
    }
    engine.wait_for(CLIENTS);
    // In which order they reached the engine is not known.
    (0..CLIENTS).for_each(|number| engine.go(number));
    for client in &mut clients {
        body_of(client.ask(b"").expect("an answer"));
    }
    engine.always(Script::new().close());
    let response = clients[0].ask(&embed("x")).expect("an answer");
    refusal(response, 502, "upstream_failed");
    assert_eq!(engine.asked().len() - CLIENTS, 3, "attempts at one request");
}

#[test]
fn a_request_that_an_engine_saw_twice_was_attempted_twice() {
    let (engine, orchd) = machine(1);
    let mut client = begin(&orchd, b"");
    engine.script([ok(), Script::new().close(), ok()]);
    body_of(client.ask(&embed("warm")).expect("an answer"));
    let response = client.ask(&embed("x")).expect("an answer");
    assert_eq!(engine.asked().len(), 3, "it was sent twice");
    assert_eq!(attempts(&response), Some("2"));
}

#[test]
fn a_request_that_failed_says_how_often_it_was_tried() {
    let (engine, orchd) = machine(1);
    engine.always(Script::new().close());
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.status, 502);
    assert_eq!(attempts(&response), Some("3"));
}

#[test]
fn a_body_that_is_not_utf_8_is_not_json() {
    let (engine, orchd) = machine(1);
    engine.always(ok());
    for body in [
        &b"{\"model\":\"m\",\"input\":\"\xff\"}"[..],
        b"{\"model\":\"m\",\"\xff\":1}",
    ] {
        let request = written("POST", "/v1/embeddings", &[JSON], body);
        refusal(send(&orchd, &request), 400, "invalid_json");
    }
    assert_eq!(engine.asked().len(), 0);
}

#[test]
fn responses_is_told_of_a_lost_engine_in_its_own_form() {
    let (engine, orchd) = machine(1);
    engine.script([Script::stream().event("{}").close()]);
    let body = json!({"model": MODEL, "stream": true}).to_string();
    let text = body_of(send(&orchd, &post("/v1/responses", &body)));
    let (name, data) = last_event(&text);
    assert_eq!(name, Some("error"), "{text:?}");
    assert_eq!(data["type"], "error", "{text:?}");
    // The event's own fields there, not those of an object in it.
    assert_eq!(data["code"], "worker_reset", "{text:?}");
    assert!(data["message"].is_string(), "{text:?}");
}
