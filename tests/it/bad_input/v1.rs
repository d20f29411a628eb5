//! The same for `/v1`: what no client of the OpenAI API would send.
//!
//! What is no request is refused in OpenAI's form; what is one, however odd, is the engine's to judge.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use proptest::prelude::{Strategy, any};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::gateway::{ANSWER, JSON, MODEL, SOON, body_of, embed, machine, ok, post, refusal, send};
use crate::scripted_engine::ScriptedEngine;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

use super::generated::runner;
use super::{memory, nested};

/// How much the server may grow under all of a test: a body of 64 MiB in each of two threads, and what an allocator keeps.
const GROWTH_BYTES: u64 = 192 << 20;
/// Where bodies go.
const PATHS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/responses",
    "/v1/messages",
    "/v1/made/up",
];
const SLOTS: usize = 4;

/// A gateway that is to survive, and its engine, which takes everything.
struct Face {
    engine: ScriptedEngine,
    orchd: Orchd,
    files: usize,
    grown_from: u64,
}

fn open_files(orchd: &Orchd) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", orchd.pid()));
    files.expect("it runs").count()
}

impl Face {
    fn start() -> Self {
        let (engine, orchd) = machine(SLOTS);
        engine.always(ok());
        Self {
            files: open_files(&orchd),
            grown_from: memory(&orchd),
            engine,
            orchd,
        }
    }

    fn post(&self, path: &str, body: &str) -> http::Response {
        send(&self.orchd, &post(path, body))
    }

    /// It goes on to the engine.
    fn takes(&self, path: &str, body: &str) {
        let response = self.post(path, body);
        let (status, text) = (response.status, response.text().expect("a whole body"));
        assert_eq!((status, &*text), (200, ANSWER), "{path}: {body:.200}");
    }

    /// It does not.
    fn refuses(&self, path: &str, body: &str, status: u16, code: &str) -> Value {
        let asked = self.engine.asked().len();
        let response = self.post(path, body);
        let found = response.status;
        assert_eq!(found, status, "{path}: {body:.200}");
        let error = refusal(response, status, code);
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        let message = error["message"].as_str().expect("a text");
        assert!(
            message.len() < 2_000,
            "a message of {} bytes",
            message.len()
        );
        assert_eq!(self.engine.asked().len(), asked, "{path}: {body:.200}");
        error
    }

    /// Ends the test: it is as well as it was, and holds on to nothing.
    fn must_be_well(mut self) {
        assert_eq!(body_of(send(&self.orchd, &embed("x"))), ANSWER);
        eventually(SOON, "nothing is held", || {
            let pools = http::get_json(self.orchd.address, "/v2/pools");
            let pool = &pools["pools"][0];
            let files = open_files(&self.orchd);
            let free = pool["running"] == 0 && pool["waiting"] == 0 && pool["slots_free"] == SLOTS;
            // The connection that asks, and one that is kept for the next request.
            let nothing = free && files <= self.files + 2;
            nothing
                .then_some(())
                .ok_or_else(|| format!("{files} of {} files, {pool}", self.files))
        });
        assert!(self.orchd.is_running());
        let log = self.orchd.log();
        assert!(!log.contains("panicked"), "{log}");
        let grown = memory(&self.orchd).saturating_sub(self.grown_from);
        assert!(grown < GROWTH_BYTES, "it grew by {grown} bytes");
    }
}

#[test]
fn v1_bodies_that_are_no_request_are_refused_wherever_they_are_sent() {
    let face = Face::start();
    let open = "[".repeat(100_000);
    let deep = nested("[", "]", 100_000);
    let objects = "{\"a\":".repeat(100_000);
    let in_model = format!("{{\"model\":{open}");
    let whole_in_model = format!("{{\"model\":{deep}}}");
    let broken = [
        "",
        "\0",
        "{",
        "[]",
        "[{\"model\":\"m\"}]",
        "null",
        "\"m\"",
        "1e999",
        "model=m&prompt=x",
        "{\"model\":\"m\"",
        "{\"model\":\"m\"}}",
        "{\"model\":\"m\",\"x\":tru}",
        "{\"model\":\"m\",\"x\":1e}",
        "{\"model\":\"m\",\"x\":\"\t\"}",
        "{\"model\":\"m\",\"model\":\"n\"}",
        "{\"model\":\"m\",\"stream\":true,\"stream\":false}",
        "{\"n\":1,\"model\":\"m\",\"n\":1}",
        "{\"model\":\"m\",\"prompt\":\"a\",\"prompt\":\"a\"}",
        "{\"model\":\"m\",\"x\":\"\\ud800\"}",
        "{\"model\":\"\\udc00\"}",
        "{\"\\ud800\":1,\"model\":\"m\"}",
        "{\"model\":\"m\",\"x\":\"\\u12\"}",
        &open,
        &deep,
        &objects,
        &in_model,
    ];
    for path in PATHS {
        for body in broken {
            face.refuses(path, body, 400, "invalid_json");
        }
        for body in [
            "{\"model\":0}",
            "{\"model\":-1e999}",
            "{\"model\":false}",
            "{\"model\":[]}",
            "{\"model\":{\"id\":\"m\"}}",
            "{\"model\":\"\"}",
            "{\"model\":\"m\\n\"}",
            "{\"model\":\"\\u0000\"}",
            "{\"model\":\"\\u007f\"}",
            "{\"model\":\"\\u0085\"}",
            &whole_in_model,
        ] {
            let error = face.refuses(path, body, 400, "invalid_model");
            assert_eq!(error["param"], "model");
        }
    }
    let long = "m".repeat(513);
    face.refuses(
        PATHS[0],
        &format!("{{\"model\":\"{long}\"}}"),
        400,
        "invalid_model",
    );
    face.must_be_well();
}

#[test]
fn v1_names_of_models_that_nobody_has_are_not_found_whatever_they_are() {
    let face = Face::start();
    let longest = "é".repeat(256);
    for name in [
        "M",
        " m",
        "m ",
        "m/",
        "/m",
        "m:",
        "../m",
        "m\\",
        "..",
        "m.gguf.",
        "%6d",
        "m?x",
        "m#",
        "\"m\"",
        "{{m}}",
        "$(m)",
        "';--",
        "модель",
        "模型/é:😀",
        "m\u{200b}",
        "\u{202e}m",
        "\u{feff}m",
        "ｍ",
        "null",
        &longest,
    ] {
        let body = json!({"model": name}).to_string();
        let error = face.refuses(PATHS[0], &body, 404, "model_not_found");
        let message = error["message"].as_str().expect("a text");
        assert!(message.ends_with("there is: m"), "{message}");
        assert!(
            !message.contains(['\u{202e}', '\u{200b}', '\u{feff}']),
            "{message:?}"
        );
        let path: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let response = send(
            &face.orchd,
            &written("GET", &format!("/v1/models/{path}"), &[], b""),
        );
        refusal(response, 404, "model_not_found");
    }
    face.must_be_well();
}

#[test]
fn v1_requests_with_odd_fields_are_the_engines_to_judge() {
    let face = Face::start();
    let huge = format!("1{}", "0".repeat(100_000));
    let deep = nested("[", "]", 100_000);
    let objects = format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let many = format!("[{}\"x\"]", "\"x\",".repeat(100_000));
    let values = [
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1.5",
        "1e9",
        "1e400",
        "-1e400",
        "4294967296",
        "18446744073709551616",
        "\"\"",
        "\"true\"",
        "\"3\"",
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "[[[1]]]",
        "[{}]",
        "[1,\"x\",[2]]",
        "\"\\u0000\"",
        &huge,
        &deep,
        &objects,
        &many,
    ];
    for field in [
        "stream",
        "n",
        "n_cmpl",
        "prompt",
        "input",
        "messages",
        "stream_options",
        "tools",
    ] {
        for value in values {
            if field == "stream" && value == "true" {
                continue;
            }
            face.takes(
                "/v1/made/up",
                &format!("{{\"model\":\"m\",\"{field}\":{value}}}"),
            );
        }
    }
    for body in [
        "{}",
        "{\"model\":null}",
        " \r\n\t{\"model\" : \"\\u006d\"}\n",
        "{\"model\":\"m\",\"a\":1,\"a\":2}",
        "{\"Model\":\"x\",\"MODEL\":1}",
        "{\"x\":{\"model\":\"x\",\"stream\":true,\"n\":9}}",
        "{\"n\":1e9,\"prompt\":[\"a\",\"b\"],\"n_cmpl\":2}",
    ] {
        face.takes("/v1/made/up", body);
    }
    // What it is called is not what it is.
    for kind in [
        "",
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "\u{fe}",
    ] {
        for headers in [&[][..], &[("content-type", kind)]] {
            let request = written("POST", "/v1/embeddings", headers, b"{\"model\":\"m\"}");
            assert_eq!(body_of(send(&face.orchd, &request)), ANSWER);
        }
    }
    face.must_be_well();
}

#[test]
fn v1_paths_that_lead_nowhere_or_outside_are_not_found_and_other_methods_are_told() {
    let face = Face::start();
    let body = json!({"model": MODEL}).to_string();
    for path in [
        "/v1",
        "/v1/",
        "/v1?x",
        "/v1/..",
        "/v1/../slots/0?action=erase",
        "/v1/./embeddings",
        "/v1/embeddings/..",
        "/v1/x/../../slots",
        "/v1/..%2f..%2fslots",
        "/v1/%2e%2e/slots",
        "/v1/x/.%2E/y",
        "/v1/..%5cslots",
        "/v1/..\\slots",
    ] {
        face.refuses(path, &body, 404, "unknown_path");
        let response = send(&face.orchd, &written("GET", path, &[], b""));
        refusal(response, 404, "unknown_path");
    }
    // Nothing of ours, and nothing of the engine's that is not under `/v1`.
    for path in [
        "/v1x",
        "/V1/embeddings",
        "//v1/embeddings",
        "/v1%2fembeddings",
        "/slots",
        "/props",
    ] {
        let response = face.post(path, &body);
        assert_eq!(response.status, 404, "{path}");
        assert_eq!(response.json()["retryable"], false, "{path}");
    }
    assert_eq!(face.engine.asked().len(), 0);
    for path in [
        "/v1/x",
        "/v1/x/",
        "/v1//x",
        "/v1/x;a=..",
        "/v1/...",
        "/v1/%ff%00",
        "/v1/x?a=/../b#",
    ] {
        face.takes(path, &body);
    }
    let asked = face.engine.asked().len();
    for method in ["GET", "PUT", "PATCH", "DELETE", "TRACE", "BREW"] {
        for path in PATHS {
            let response = send(
                &face.orchd,
                &written(method, path, &[JSON], body.as_bytes()),
            );
            assert_eq!(response.header("allow"), Some("POST"), "{method} {path}");
            refusal(response, 405, "method_not_allowed");
        }
    }
    let models = send(&face.orchd, &written("GET", "/v1/models/", &[], b""));
    refusal(models, 404, "model_not_found");
    assert_eq!(face.engine.asked().len(), asked);
    face.must_be_well();
}

#[test]
fn v1_bodies_that_are_too_large_are_refused_with_and_without_a_length() {
    const SIZE: usize = 65 << 20;
    let face = Face::start();
    let begin = "{\"model\":\"m\",\"input\":\"";
    let mut body = begin.to_owned().into_bytes();
    body.resize(SIZE, b'x');
    let with_length = written("POST", "/v1/embeddings", &[JSON], &body);
    let mut chunked =
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(1 << 20) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    drop(body);
    for request in [with_length, chunked] {
        let error = refusal(send(&face.orchd, &request), 413, "request_too_large");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert_eq!(face.engine.asked().len(), 0);
    face.must_be_well();
}

#[test]
fn v1_uploads_that_stall_are_ended_and_hold_up_nobody() {
    let face = Face::start();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    let stalls = [
        "transfer-encoding: chunked\r\n\r\n5\r\n{\"mod",
        "transfer-encoding: chunked\r\n\r\n5\r\n{\"",
        "transfer-encoding: chunked\r\n\r\nffff",
        "transfer-encoding: chunked\r\n\r\n",
        "content-length: 100\r\n\r\n{\"model\":",
        "content-length: 60000000\r\n\r\n{",
    ];
    let clients: Vec<_> = (0..60)
        .map(|n| {
            let text = format!("{head}{}", stalls[n % stalls.len()]);
            let begun = http::begin(face.orchd.address, text.as_bytes());
            begun.expect("a connection").into_stream()
        })
        .collect();
    for _ in 0..20 {
        let begun = Instant::now();
        face.takes("/v1/embeddings", "{\"model\":\"m\"}");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    // Half of them leave, the others are told.
    let (leave, stay): (Vec<_>, Vec<_>) = clients
        .into_iter()
        .enumerate()
        .partition(|(n, _)| n % 2 == 0);
    drop(leave);
    at_once(stay.len(), |number| {
        let mut stream = &stay[number].1;
        stream
            .set_read_timeout(Some(Duration::from_secs(45)))
            .expect("a socket option");
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        assert!(read.is_ok() || read.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
        assert!(text.starts_with("HTTP/1.1 400 "), "{number}: {text}");
        assert!(
            text.contains("\"code\":\"incomplete_body\""),
            "{number}: {text}"
        );
    });
    face.must_be_well();
}

#[test]
fn v1_heads_that_are_too_large_are_refused_and_large_ones_are_not() {
    let face = Face::start();
    let body = "{\"model\":\"m\"}";
    for (count, length) in [(1, 1 << 20), (1_000, 10), (100_000, 1), (90, 2_000)] {
        let value = "x".repeat(length);
        let names: Vec<String> = (0..count).map(|n| format!("x-{n}")).collect();
        let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, &*value)).collect();
        let request = written("POST", "/v1/embeddings", &headers, body.as_bytes());
        let begun = http::begin(face.orchd.address, b"").expect("a connection");
        let mut stream = begun.into_stream();
        // It may have heard enough before all is sent, and its word be lost with the connection.
        let _ = stream.write_all(&request);
        let mut first = [0; 12];
        if stream.read_exact(&mut first).is_ok() {
            assert_eq!(&first, b"HTTP/1.1 431", "{count} of {length}");
        }
    }
    let values: Vec<(String, String)> = (0..60)
        .map(|n| (format!("x-{n}"), "y".repeat(900)))
        .collect();
    let headers: Vec<(&str, &str)> = values
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let request = written("POST", "/v1/embeddings", &headers, body.as_bytes());
    assert_eq!(body_of(send(&face.orchd, &request)), ANSWER);
    let asked = face.engine.asked();
    assert_eq!(asked.len(), 1, "none of the others goes on");
    assert_eq!(asked[0].header("x-59").map(|value| value.len()), Some(900));
    face.must_be_well();
}

#[test]
fn v1_bodies_that_were_damaged_on_their_way_are_answered() {
    let face = Face::start();
    let good = r#"{"model":"m","n":2,"prompt":["a","bé"],"messages":[{"role":"user","content":"\ud83d\ude00"}],"x":[1.5e3,null]}"#;
    let client =
        std::cell::RefCell::new(http::begin(face.orchd.address, b"").expect("a connection"));
    let damage = (0..4_usize, 0..good.len(), any::<u8>(), 0..20_usize);
    let damaged = proptest::collection::vec(damage, 1..4).prop_map(|damages| {
        damages.into_iter().fold(
            good.as_bytes().to_vec(),
            |mut body, (how, at, byte, length)| {
                let at = at.min(body.len());
                let end = (at + length).min(body.len());
                match how {
                    0 => body[at..end].fill(byte),
                    1 => body.truncate(at),
                    2 => drop(body.drain(at..end)),
                    _ => body.extend_from_within(at..end),
                }
                body
            },
        )
    });
    let tried = runner("v1").run(&damaged, |body| {
        let request = written("POST", "/v1/made/up", &[JSON], &body);
        let response = client.borrow_mut().ask(&request).expect("an answer");
        let status = response.status;
        let text = response.text().expect("a whole body");
        let what = String::from_utf8_lossy(&body);
        assert!(matches!(status, 200 | 400 | 404), "{status}: {what}");
        if status != 200 {
            let said: Value = serde_json::from_str(&text).expect("JSON");
            assert!(said["error"]["code"].is_string(), "{said}");
        }
        Ok(())
    });
    tried.unwrap_or_else(|e| panic!("{e}"));
    face.must_be_well();
}
