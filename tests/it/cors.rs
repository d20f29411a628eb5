//! Web pages as clients: what browsers ask before they let a page read an answer, and what llama-server answers them.

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, Response, written};
use crate::support::orchd::Orchd;

const TOKEN: &str = "pages-0123456789abcdef0123456789abcdef";
const PAGE: &str = "https://chat.example";
const ORIGIN: (&str, &str) = ("Origin", PAGE);
const BEARER: (&str, &str) = (
    "Authorization",
    "Bearer pages-0123456789abcdef0123456789abcdef",
);
const CHAT: &str = "/v1/chat/completions";
const WANTED: &str = "authorization,content-type,x-stainless-os";
const ALLOWED: &str = "access-control-allow-origin";

fn ask(orchd: &Orchd, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let request = written(method, path, headers, body.as_bytes());
    http::send(orchd.address, &request).expect("an answer")
}

/// What a browser asks before a page of [`PAGE`] may send this method with [`WANTED`].
fn preflight(orchd: &Orchd, path: &str, method: &str) -> Response {
    let headers = [
        ORIGIN,
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", WANTED),
    ];
    ask(orchd, "OPTIONS", path, &headers, "")
}

/// An engine that says of pages what llama-server says without `Origin`, and orchd in front of it.
fn machine(options: &[&str]) -> (ScriptedEngine, Orchd) {
    let engine = ScriptedEngine::start("m", 1);
    let headers = [
        ("Access-Control-Allow-Origin", ""),
        ("Access-Control-Allow-Credentials", "true"),
    ];
    engine.always(Script::whole_with(200, &headers, "{}"));
    let orchd = Orchd::serve_home(&[engine.named("a")], options);
    (engine, orchd)
}

#[test]
fn a_page_is_told_before_it_sends_its_token_that_it_may() {
    let (engine, orchd) = machine(&["--cors-origins", "*", "--api-token", TOKEN]);
    for (path, method, allow) in [
        (CHAT, "POST", "POST, OPTIONS"),
        ("/v1/what/ever", "POST", "POST, OPTIONS"),
        ("/v1/models", "GET", "GET, HEAD, OPTIONS"),
        ("/v1/models/m", "GET", "GET, HEAD, OPTIONS"),
    ] {
        let response = preflight(&orchd, path, method);
        assert_eq!(response.status, 200, "{path}");
        for (name, value) in [
            (ALLOWED, Some(PAGE)),
            ("access-control-allow-methods", Some(allow)),
            ("access-control-allow-headers", Some(WANTED)),
            ("access-control-allow-credentials", None),
            ("vary", Some("Origin")),
            ("content-length", Some("0")),
        ] {
            assert_eq!(response.header(name), value, "{path} {name}");
        }
    }
    assert_eq!(engine.asked().len(), 0);
}

#[test]
fn every_answer_under_v1_can_be_read_by_a_page_whatever_its_engine_says() {
    let (_engine, orchd) = machine(&["--cors-origins", "*", "--api-token", TOKEN]);
    let good = r#"{"model":"m","stream":true}"#;
    for (what, method, path, headers, body, status) in [
        ("an answer", "POST", CHAT, &[ORIGIN, BEARER][..], good, 200),
        ("models", "GET", "/v1/models", &[ORIGIN, BEARER], "", 200),
        ("no token", "POST", CHAT, &[ORIGIN], good, 401),
        ("no JSON", "POST", CHAT, &[ORIGIN, BEARER], "{", 400),
        ("a model", "GET", "/v1/models/x", &[ORIGIN, BEARER], "", 404),
        ("a method", "DELETE", CHAT, &[ORIGIN, BEARER], "", 405),
    ] {
        let response = ask(&orchd, method, path, headers, body);
        assert_eq!(response.status, status, "{what}");
        assert_eq!(response.header(ALLOWED), Some(PAGE), "{what}");
        let credentials = response.header("access-control-allow-credentials");
        assert_eq!(credentials, None, "{what}");
        assert!(
            response.header("access-control-expose-headers").is_some(),
            "{what}"
        );
    }
    // To whoever is no page, nothing is said of pages.
    let response = ask(&orchd, "POST", CHAT, &[BEARER], good);
    assert_eq!(response.status, 200);
    assert_eq!(response.header(ALLOWED), None);
}

#[test]
fn a_page_that_is_not_among_those_allowed_is_told_nothing() {
    for (setting, told) in [
        ("none", None),
        ("localhost", None),
        ("https://other.example", None),
        ("https://other.example,https://chat.example", Some(PAGE)),
    ] {
        let (_engine, orchd) = machine(&["--cors-origins", setting]);
        let asked = preflight(&orchd, CHAT, "POST");
        assert_eq!(asked.status, 200, "{setting}");
        assert_eq!(asked.header(ALLOWED), told, "{setting}");
        let methods = asked.header("access-control-allow-methods");
        assert_eq!(methods.is_some(), told.is_some(), "{setting}");
        let answer = ask(&orchd, "GET", "/v1/models", &[ORIGIN], "");
        assert_eq!(answer.status, 200, "{setting}");
        assert_eq!(answer.header(ALLOWED), told, "{setting}");
    }
}

#[test]
fn pages_of_this_machine_may_read_answers_unless_told_otherwise_and_others_may_not() {
    let (_engine, orchd) = machine(&[]);
    for (origin, may) in [
        ("http://localhost:3000", true),
        ("http://127.0.0.1:8000", true),
        ("https://chat.example", false),
        ("http://localhost.example", false),
    ] {
        let answer = ask(&orchd, "GET", "/v1/models", &[("origin", origin)], "");
        assert_eq!(answer.header(ALLOWED), may.then_some(origin), "{origin}");
    }
}

#[test]
fn no_page_may_read_anything_but_v1() {
    let (_engine, orchd) = machine(&["--cors-origins", "*"]);
    for path in ["/v2/pools", "/v2/nodes", "/health", "/metrics"] {
        let asked = preflight(&orchd, path, "GET");
        assert_ne!(asked.status, 200, "{path}");
        assert_eq!(asked.header(ALLOWED), None, "{path}");
        let answer = ask(&orchd, "GET", path, &[ORIGIN], "");
        assert_eq!(answer.header(ALLOWED), None, "{path}");
    }
}
