//! What the gateway tells of its requests: metrics, a line each in the log, ids; and what it must never tell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::gateway::{
    ANSWER, BUSY, JSON, MODEL, SOON, begin, body_of, chat, embed, last_event, machine,
    machine_with, ok, post, refusal, send, wait_waiting,
};
use crate::metrics::{read, scrape};
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;
use crate::support::secure::Process;

/// What llama-server says to a request that it does not understand.
const BAD: &str =
    r#"{"error":{"code":400,"message":"\"messages\" is missing","type":"invalid_request_error"}}"#;

fn event(word: &str) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": word}}]}).to_string()
}

/// A stream of so many words, one after each pause, and the engine's own count of them.
fn counted(words: u64, pace: Duration) -> Script {
    let usage = json!({"choices": [], "usage": {"completion_tokens": words, "prompt_tokens": 7, "total_tokens": 7 + words}});
    (0..words)
        .fold(Script::stream(), |script, n| {
            let script = if n == 0 { script } else { script.pause(pace) };
            script.event(&event(" word"))
        })
        .event(&usage.to_string())
        .event("[DONE]")
        .end()
}

// Metrics.

/// Series of the gateway by their names, without the prefix they share and without the buckets.
fn gateway(orchd: &Orchd) -> BTreeMap<String, f64> {
    read(&scrape(orchd.address))
        .into_iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("orchd_gateway_")?.to_owned(), value)))
        .filter(|(key, _)| !key.contains("_bucket"))
        .collect()
}

/// Waits until these series have these values.
fn wait_for(orchd: &Orchd, wanted: &[(&str, f64)]) {
    eventually(SOON, &format!("{wanted:?}"), || {
        let found = gateway(orchd);
        let all = (wanted.iter()).all(|(key, value)| found.get(*key) == Some(value));
        all.then_some(()).ok_or(format!("{found:#?}"))
    });
}

#[test]
fn metrics_agree_with_what_clients_saw() {
    let (engine, orchd) = machine(4);
    engine.script([
        ok(),
        ok().held(),
        counted(5, Duration::ZERO),
        Script::whole(400, BAD),
        Script::stream().event(&event("x")).silence(),
        Script::stream().event(&event("x")).close(),
        Script::whole(503, BUSY),
        ok(),
    ]);
    assert_eq!(body_of(send(&orchd, &embed("x"))), ANSWER);
    let slow = begin(&orchd, &embed("x"));
    engine.wait_for(2);
    wait_for(
        &orchd,
        &[("in_flight{node_id=\"local\",pool_id=\"a\"}", 1.0)],
    );
    std::thread::sleep(Duration::from_millis(300));
    engine.go(1);
    body_of(slow.answer().expect("an answer"));
    body_of(send(&orchd, &chat()));
    assert_eq!(send(&orchd, &chat()).status, 400);
    let mut left = send(&orchd, &chat()).events();
    assert!(left.next().expect("no break").is_some());
    drop(left);
    engine.wait_left(4);
    let text = body_of(send(&orchd, &chat()));
    assert_eq!(last_event(&text).1["error"]["code"], "worker_reset");
    body_of(send(&orchd, &embed("x")));
    for name in ["made-up-1", "made-up-2"] {
        let body = json!({"model": name}).to_string();
        refusal(
            send(&orchd, &post("/v1/embeddings", &body)),
            404,
            "model_not_found",
        );
    }
    refusal(
        send(&orchd, &post("/v1/embeddings", "{")),
        400,
        "invalid_json",
    );
    refusal(
        send(&orchd, &written("GET", "/v1/embeddings", &[], b"")),
        405,
        "method_not_allowed",
    );
    // Asking what there is is no request to a model.
    http::get_json(orchd.address, "/v1/models");
    http::get_json(orchd.address, "/v1/models/m");

    wait_for(
        &orchd,
        &[
            ("requests_total{model=\"m\",code=\"200\"}", 6.0),
            ("requests_total{model=\"m\",code=\"400\"}", 1.0),
            ("requests_total{model=\"unknown\",code=\"400\"}", 1.0),
            ("requests_total{model=\"unknown\",code=\"404\"}", 2.0),
            ("requests_total{model=\"unknown\",code=\"405\"}", 1.0),
            ("rejected_total{reason=\"model_not_found\"}", 2.0),
            ("rejected_total{reason=\"invalid_json\"}", 1.0),
            ("rejected_total{reason=\"method_not_allowed\"}", 1.0),
            ("retries_total{reason=\"busy\"}", 1.0),
            ("cancelled_total{phase=\"queue\"}", 0.0),
            ("cancelled_total{phase=\"prefill\"}", 0.0),
            ("cancelled_total{phase=\"stream\"}", 1.0),
            ("queue_seconds_count{model=\"m\"}", 7.0),
            ("request_seconds_count{model=\"m\"}", 7.0),
            // Of a refusal there is no first token.
            ("time_to_first_token_seconds_count{model=\"m\"}", 6.0),
            ("time_per_token_seconds_count{model=\"m\"}", 1.0),
            ("waiting{model=\"m\"}", 0.0),
            ("in_flight{node_id=\"local\",pool_id=\"a\"}", 0.0),
            ("quarantined{node_id=\"local\",pool_id=\"a\"}", 0.0),
            ("ejections_total{node_id=\"local\",pool_id=\"a\"}", 0.0),
        ],
    );
    let values = gateway(&orchd);
    let of = |name: &str| values[&format!("{name}_sum{{model=\"m\"}}")];
    let (first, whole) = (of("time_to_first_token_seconds"), of("request_seconds"));
    assert!((0.3..5.0).contains(&first), "{first}");
    assert!((first..10.0).contains(&whole), "{whole}");
    let total = |name: &str| -> f64 {
        let of = |key: &&String| key.starts_with(&format!("{name}_total{{"));
        values.keys().filter(of).map(|key| values[key]).sum()
    };
    assert!((total("rejected") - 4.0).abs() < 0.1, "{values:#?}");
    assert!((total("retries") - 1.0).abs() < 0.1, "{values:#?}");
    let models: BTreeSet<&str> = (values.keys())
        .filter_map(|key| key.split_once("model=\"")?.1.split_once('"'))
        .map(|(model, _)| model)
        .collect();
    assert_eq!(models, BTreeSet::from([MODEL, "unknown"]));
}

#[test]
fn metrics_show_who_waits_and_how_long_it_took() {
    let (engine, orchd) = machine_with(1, &["--queue-timeout", "2s"]);
    engine.script([ok().held(), ok()]);
    let running = begin(&orchd, &embed("x"));
    engine.wait_for(1);
    let waits = begin(&orchd, &embed("x"));
    wait_waiting(&orchd, 1);
    let leaver = begin(&orchd, &chat());
    wait_waiting(&orchd, 2);
    wait_for(
        &orchd,
        &[
            ("waiting{model=\"m\"}", 2.0),
            ("in_flight{node_id=\"local\",pool_id=\"a\"}", 1.0),
        ],
    );
    drop(leaver);
    wait_for(
        &orchd,
        &[
            ("waiting{model=\"m\"}", 1.0),
            ("cancelled_total{phase=\"queue\"}", 1.0),
        ],
    );
    std::thread::sleep(Duration::from_millis(300));
    engine.go(0);
    for client in [running, waits] {
        body_of(client.answer().expect("an answer"));
    }
    wait_for(
        &orchd,
        &[
            ("queue_seconds_count{model=\"m\"}", 3.0),
            ("waiting{model=\"m\"}", 0.0),
        ],
    );
    let waited = gateway(&orchd)["queue_seconds_sum{model=\"m\"}"];
    assert!((0.3..2.0).contains(&waited), "{waited}");
}

#[test]
fn a_client_that_leaves_after_a_retry_has_left_and_was_not_served() {
    let (engine, orchd) = machine(1);
    engine.script([
        Script::whole(503, BUSY),
        Script::stream().event(&event(" one")).silence(),
    ]);
    let client = send(&orchd, &chat());
    engine.wait_for(2);
    drop(client);
    wait_for(&orchd, &[("cancelled_total{phase=\"stream\"}", 1.0)]);
}

#[test]
fn an_error_within_a_stream_that_is_put_together_is_the_engines_and_not_the_clients() {
    let (engine, orchd) = machine(1);
    let error = r#"{"error":{"code":500,"message":"Compute error.","type":"server_error"}}"#;
    engine.script([Script::stream().event(&event(" one")).event(error).end()]);
    let whole = post(
        "/v1/chat/completions",
        r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
    );
    let response = send(&orchd, &whole);
    assert_eq!(response.status, 500);
    assert_eq!(response.text().expect("a whole body"), error);
    let answered = format!("requests_total{{model=\"{MODEL}\",code=\"500\"}}");
    wait_for(&orchd, &[(&answered, 1.0)]);
    let found = gateway(&orchd);
    assert!(found["cancelled_total{phase=\"stream\"}"].abs() < f64::EPSILON);
    let log = orchd.log();
    assert!(log.contains("outcome=engine_error"), "{log}");
}

#[test]
fn metrics_tell_the_time_of_a_token() {
    let (engine, orchd) = machine(1);
    engine.script([counted(30, Duration::from_millis(20))]);
    let mut events = send(&orchd, &chat()).events();
    let mut seen = Vec::new();
    while let Some(data) = events.next().expect("no break") {
        seen.push((Instant::now(), data));
    }
    let pace = (seen[29].0 - seen[0].0).as_secs_f64() / 29.0;
    wait_for(
        &orchd,
        &[("time_per_token_seconds_count{model=\"m\"}", 1.0)],
    );
    let told = gateway(&orchd)["time_per_token_seconds_sum{model=\"m\"}"];
    assert!((told / pace - 1.0).abs() < 0.3, "{told} told, {pace} seen");
}

// The log.

/// The words of one line of the log by their names.
type Line = BTreeMap<String, String>;

/// The lines that are told of requests, in order.
fn lines(log: &str) -> Vec<Line> {
    let told = log
        .lines()
        .filter_map(|line| line.split_once(" INFO request id="));
    told.map(|(_, words)| words_of(&format!("id={words}")))
        .collect()
}

/// `name=value` or `name="a value"`, one after the other.
fn words_of(text: &str) -> Line {
    let mut line = Line::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').unwrap_or_else(|| panic!("{text}"));
        let end = match value.strip_prefix('"') {
            Some(quoted) => quoted.find('"').expect("the other quote") + 2,
            None => value.find(' ').unwrap_or(value.len()),
        };
        let twice = line.insert(name.to_owned(), value[..end].trim_matches('"').to_owned());
        assert_eq!(twice, None, "{text}");
        rest = value[end..].trim_start();
    }
    line
}

/// Waits for so many lines.
fn wait_lines(log: impl Fn() -> String, count: usize) -> Vec<Line> {
    let (found, _) = eventually(SOON, &format!("{count} lines"), || {
        let log = log();
        let found = lines(&log);
        (found.len() >= count).then_some(found).ok_or(log)
    });
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

/// Checks a line: these words, and those whose value no test can know.
fn says(line: &Line, expected: &[(&str, &str)], measured: &[&str]) {
    for (name, value) in expected {
        assert_eq!(
            line.get(*name).map(String::as_str),
            Some(*value),
            "{name}: {line:?}"
        );
    }
    for name in measured {
        let value: f64 = line[*name]
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {line:?}"));
        assert!((0.0..10_000.0).contains(&value), "{name}: {line:?}");
        let digits = line[*name]
            .split_once('.')
            .map_or(0, |(_, digits)| digits.len());
        assert!(digits <= 1, "{name}: {line:?}");
    }
    let names: BTreeSet<&str> = expected
        .iter()
        .map(|(name, _)| *name)
        .chain(measured.iter().copied())
        .collect();
    let found: BTreeSet<&str> = line.keys().map(String::as_str).collect();
    assert_eq!(found, names, "{line:?}");
}

/// The same request with an id.
fn called(id: &str, request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(request.to_vec()).expect("text");
    text.replacen("\r\n", &format!("\r\nx-request-id: {id}\r\n"), 1)
        .into_bytes()
}

#[test]
fn each_request_has_one_line_that_says_how_it_went() {
    let (engine, orchd) = machine(1);
    let log = || orchd.log();
    let at = [("model", MODEL), ("node", "local"), ("pool", "a")];
    let all = |words: &[(&'static str, &'static str)]| [&at, words].concat();
    let (reached, refused) = (&["queue_ms", "ttft_ms", "total_ms"][..], &["total_ms"][..]);
    let mut count = 0;
    let mut next = || {
        count += 1;
        wait_lines(log, count).pop().expect("there is one")
    };

    engine.script([counted(40, Duration::ZERO)]);
    body_of(send(&orchd, &called("ok-1", &chat())));
    let words = [
        ("id", "ok-1"),
        ("tokens", "40"),
        ("status", "200"),
        ("outcome", "ok"),
    ];
    says(&next(), &all(&words), reached);

    engine.script([ok()]);
    body_of(send(&orchd, &called("my id/42", &embed("x"))));
    let words = [("id", "my id/42"), ("status", "200"), ("outcome", "ok")];
    says(&next(), &all(&words), reached);

    engine.script([Script::whole(
        200,
        r#"{"usage":{"completion_tokens":12,"prompt_tokens":3}}"#,
    )]);
    body_of(send(&orchd, &called("ok-2", &embed("x"))));
    let words = [
        ("id", "ok-2"),
        ("tokens", "12"),
        ("status", "200"),
        ("outcome", "ok"),
    ];
    says(&next(), &all(&words), reached);

    engine.script([Script::whole(400, BAD)]);
    assert_eq!(send(&orchd, &called("bad", &chat())).status, 400);
    let words = [
        ("id", "bad"),
        ("status", "400"),
        ("outcome", "engine_error"),
    ];
    says(&next(), &all(&words), reached);

    engine.script([Script::whole(503, BUSY), Script::new().close(), ok()]);
    body_of(send(&orchd, &called("again", &embed("x"))));
    let words = [
        ("id", "again"),
        ("attempts", "3"),
        ("status", "200"),
        ("outcome", "ok"),
    ];
    says(&next(), &all(&words), reached);

    engine.script([Script::stream()
        .event(&event("x"))
        .event(&event("y"))
        .close()]);
    body_of(send(&orchd, &called("cut", &chat())));
    let words = [
        ("id", "cut"),
        ("tokens", "2"),
        ("status", "200"),
        ("outcome", "worker_reset"),
    ];
    says(&next(), &all(&words), reached);

    let unknown = post("/v1/embeddings", r#"{"model":"made-up"}"#);
    send(&orchd, &called("who", &unknown));
    let words = [
        ("id", "who"),
        ("model", "unknown"),
        ("status", "404"),
        ("outcome", "model_not_found"),
    ];
    says(&next(), &words, refused);

    // Those who leave: in mid-stream, in the prefill, in line.
    engine.script([Script::stream().event(&event("x")).silence()]);
    let mut events = send(&orchd, &called("left-1", &chat())).events();
    assert!(events.next().expect("no break").is_some());
    drop(events);
    let words = [
        ("id", "left-1"),
        ("tokens", "1"),
        ("status", "200"),
        ("outcome", "cancelled"),
        ("phase", "stream"),
    ];
    says(&next(), &all(&words), reached);

    engine.script([Script::new().silence()]);
    let client = begin(&orchd, &called("left-2", &chat()));
    engine.wait_for(10);
    drop(client);
    let words = [
        ("id", "left-2"),
        ("outcome", "cancelled"),
        ("phase", "prefill"),
    ];
    says(&next(), &all(&words), &["queue_ms", "total_ms"]);

    engine.script([ok().held()]);
    let running = begin(&orchd, &called("last", &embed("x")));
    engine.wait_for(11);
    let waits = begin(&orchd, &called("left-3", &chat()));
    wait_waiting(&orchd, 1);
    drop(waits);
    let words = [
        ("id", "left-3"),
        ("model", MODEL),
        ("outcome", "cancelled"),
        ("phase", "queue"),
    ];
    says(&next(), &words, &["queue_ms", "total_ms"]);
    engine.go(10);
    body_of(running.answer().expect("an answer"));
    assert_eq!(next()["id"], "last");

    // Without an id of their own they are told apart all the same, by the id that their client was told.
    engine.script([ok()]);
    let response = send(&orchd, &embed("x"));
    let id = response.header("x-request-id").map(str::to_owned);
    body_of(response);
    assert_eq!(next().get("id"), id.as_ref());
    http::get_json(orchd.address, "/v1/models");
    let log = orchd.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(lines(&log).len(), 12, "no line is of anything else");
}

#[test]
fn the_log_is_off_or_a_sample_where_that_is_asked_for() {
    let run = |word: &str| {
        let (engine, orchd) = machine_with(1, &["--access-log", word]);
        engine.always(ok());
        let mut client = begin(&orchd, b"");
        for _ in 0..101 {
            body_of(client.ask(&embed("x")).expect("an answer"));
        }
        engine.always(Script::whole(400, BAD));
        for _ in 0..3 {
            assert_eq!(send(&orchd, &embed("x")).status, 400);
        }
        wait_for(&orchd, &[("request_seconds_count{model=\"m\"}", 104.0)]);
        orchd.log()
    };
    assert_eq!(lines(&run("off")).len(), 0);
    let sampled = lines(&run("sampled"));
    let of = |outcome: &str| {
        sampled
            .iter()
            .filter(|line| line["outcome"] == outcome)
            .count()
    };
    // One in a hundred of those that went well, and all others.
    assert_eq!((of("ok"), of("engine_error")), (2, 3), "{sampled:#?}");
    assert_eq!(lines(&run("on")).len(), 104);
}

#[test]
fn no_secret_no_prompt_and_no_made_up_name_is_ever_logged() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let engine = ScriptedEngine::start(MODEL, 1);
    let engines = engine.named("a");
    let mut orchd = Process::start(
        &["serve", "--engine", &engines, "--queue-timeout", "300ms"],
        // All that there is to be said.
        &[("ORCHD_API_TOKEN", TOKEN), ("ORCHD_LOG", "trace")],
    );
    let bearer = format!("Bearer {TOKEN}");
    let ask = |path: &str, body: &str, more: &[(&str, &str)]| {
        let headers = [
            &[
                JSON,
                ("Authorization", &*bearer),
                ("Cookie", "session=SECRET-1"),
                ("X-Odd", "SECRET-2"),
            ],
            more,
        ]
        .concat();
        let sent = http::send(
            orchd.address,
            &written("POST", path, &headers, body.as_bytes()),
        );
        let response = sent.expect("an answer");
        let status = response.status;
        let _ = response.text();
        status
    };
    engine.always(ok());
    eventually(SOON, "its engine is read", || {
        let status = ask("/v1/embeddings", r#"{"model":"m","input":"SECRET-3"}"#, &[]);
        (status != 404).then_some(()).ok_or(status.to_string())
    });
    let prompt = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"SECRET-4"}],"user":"SECRET-5"}"#;
    for path in [
        "/v1/chat/completions?key=SECRET-6",
        "/v1/SECRET-7/x",
        "/v1/../SECRET-8",
    ] {
        ask(path, prompt, &[("traceparent", "SECRET-9")]);
    }
    for script in [
        Script::stream().event("{\"content\":\"SECRET-10\"}").end(),
        Script::stream()
            .event("{\"content\":\"SECRET-11\"}")
            .reset(),
        Script::whole(
            400,
            r#"{"error":{"message":"SECRET-12","type":"SECRET-13"}}"#,
        ),
        Script::whole(500, "SECRET-14"),
        Script::new().bytes("SECRET-15\r\n\r\n").close(),
        Script::whole_with(503, &[("Retry-After", "SECRET-16")], "SECRET-17"),
    ] {
        engine.always(script);
        ask("/v1/chat/completions", prompt, &[]);
    }
    for body in [
        r#"{"model":"SECRET-18"}"#,
        r#"{"model":"SECRET-19\u0000"}"#,
        r#"{"model":["SECRET-20"]}"#,
        r#"{"model":"m","SECRET-21"}"#,
        r#"{"model":"m","x":"SECRET-22\ud800"}"#,
        "SECRET-23",
    ] {
        assert!(ask("/v1/embeddings", body, &[]) < 500, "{body}");
    }
    // Those who are not let in.
    for header in [
        ("Authorization", "Bearer SECRET-24"),
        ("X-Api-Key", "SECRET-25"),
        ("Authorization", "Basic SECRET-26"),
    ] {
        for path in ["/v1/embeddings", "/v1/models", "/v1/models/SECRET-27"] {
            let request = written("POST", path, &[JSON, header], prompt.as_bytes());
            let status = http::send(orchd.address, &request)
                .expect("an answer")
                .status;
            assert_eq!(status, 401, "{path}");
        }
    }
    let key = [("X-Api-Key", TOKEN), ("X-Request-Id", "SÉCRET-28")];
    let request = written("POST", "/v1/embeddings", &key, b"{}");
    http::send(orchd.address, &request).expect("an answer");
    orchd.logged("model_not_found");
    orchd.logged("invalid_api_key");
    let log = orchd.log();
    for secret in ["SECRET", "CRET-28", TOKEN, &TOKEN[..12], "session="] {
        let found: Vec<&str> = log.lines().filter(|line| line.contains(secret)).collect();
        assert!(found.is_empty(), "{secret}: {found:#?}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

// Ids.

#[test]
fn an_id_is_kept_when_it_can_be_shown_and_made_otherwise() {
    let (engine, orchd) = machine(4);
    engine.always(ok());
    let longest = "x".repeat(200);
    let (longer, long) = ("x".repeat(201), "x".repeat(5_000));
    let mut number = 0;
    let mut ask = |ids: &[&str]| {
        let mut headers = vec![
            JSON,
            ("traceparent", "00-1-2-03"),
            ("X-Api-Key", "k"),
            ("Cookie", "c"),
        ];
        headers.extend(ids.iter().map(|id| ("X-Request-Id", *id)));
        let body = format!("{{\"model\":\"{MODEL}\"}}");
        let request = written("POST", "/v1/embeddings", &headers, body.as_bytes());
        let response = send(&orchd, &request);
        let id = response.header("x-request-id").expect("an id").to_owned();
        body_of(response);
        number += 1;
        let asked = engine.wait_for(number);
        assert_eq!(
            asked.header("x-request-id").as_ref(),
            Some(&id),
            "one id everywhere"
        );
        assert_eq!(asked.header("traceparent").as_deref(), Some("00-1-2-03"));
        for name in ["authorization", "x-api-key", "cookie", "accept-encoding"] {
            assert_eq!(asked.header(name), None, "{name}");
        }
        id
    };
    for id in [
        "x",
        "my id/42",
        "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
        &longest,
    ] {
        assert_eq!(ask(&[id]), id);
    }
    let mut made = BTreeSet::new();
    for id in ["", &longer, &long, "é", "a\tb", "模型", "\u{1f600}"] {
        let new = ask(&[id]);
        assert!(new.starts_with("req-") && new.len() < 40, "{new}");
        assert!(made.insert(new), "two of one id");
    }
    // Of several it is the first.
    assert_eq!(ask(&["one", "two"]), "one");
    let log = orchd.log();
    assert!(!log.contains(&longer[..]) && !log.contains('é'), "{log}");
    // Refusals have one as well.
    let odd = written(
        "POST",
        "/v1/embeddings",
        &[JSON, ("X-Request-Id", "odd")],
        b"{",
    );
    assert_eq!(send(&orchd, &odd).header("x-request-id"), Some("odd"));
    let models = written("GET", "/v1/models", &[("X-Request-Id", &long)], b"");
    let response = send(&orchd, &models);
    assert!(
        response
            .header("x-request-id")
            .is_some_and(|id| id.starts_with("req-"))
    );
}
