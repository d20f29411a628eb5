//! Requests that are tried again: which, where, when and how often.
//!
//! What an engine may do wrong, one after the other, is in `gateway`; here is what becomes of the request.

use std::time::Duration;

use serde_json::json;

use crate::gateway::{
    ANSWER, BUSY, MODEL, SOON, attempts, begin, body_of, chat, embed, machine, ok, pair, post,
    refusal, send, serve,
};
use crate::metrics;
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, Response};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

/// What llama-server says to a prompt that does not fit into so much context.
fn too_long(n_prompt_tokens: u64, n_ctx: u64) -> String {
    let message = "the request exceeds the available context size, try increasing it";
    json!({"error": {"code": 400, "message": message, "type": "exceed_context_size_error",
        "n_prompt_tokens": n_prompt_tokens, "n_ctx": n_ctx}})
    .to_string()
}

fn exceeds(n_prompt_tokens: u64, n_ctx: u64) -> Script {
    Script::whole(400, &too_long(n_prompt_tokens, n_ctx))
}

fn pool(response: &Response) -> String {
    response.header("x-orchd-pool").expect("known").to_owned()
}

/// What an agent says that does not pass a request on.
fn agent_refuses(status: u16, code: &str) -> Script {
    Script::whole_with(status, &[("X-Orchd-Refused", code)], BUSY)
}

fn asked(engines: &[&ScriptedEngine]) -> Vec<usize> {
    engines.iter().map(|engine| engine.asked().len()).collect()
}

#[test]
fn an_answer_that_another_try_would_not_better_is_passed_on_at_once() {
    let (a, b, orchd) = pair(2);
    for (number, status) in [
        400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 425, 451, 500, 501, 504, 507,
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!("{{\"error\":{{\"code\":{status},\"message\":\"no  {number}\"}}}}");
        let answer = Script::whole_with(status, &[("X-Of-The-Engine", "kept")], &body);
        a.always(answer.clone());
        b.always(answer);
        for request in [embed("x"), chat()] {
            let before = asked(&[&a, &b]).iter().sum::<usize>();
            let response = send(&orchd, &request);
            assert_eq!(response.status, status);
            assert_eq!(attempts(&response), Some("1"), "{status}");
            assert_eq!(response.header("x-of-the-engine"), Some("kept"));
            assert_eq!(response.text().expect("a whole body"), body);
            assert_eq!(
                asked(&[&a, &b]).iter().sum::<usize>(),
                before + 1,
                "{status}"
            );
        }
    }
}

#[test]
fn a_500_leaves_its_engine_out_unless_it_says_that_the_request_is_at_fault() {
    // As the real one words them.
    let of = |message: &str| {
        let error = json!({"code": 500, "message": message, "type": "server_error"});
        json!({"error": error}).to_string()
    };
    let ejected = |message: &str| {
        let (a, b, orchd) = pair(2);
        let body = of(message);
        for engine in [&a, &b] {
            engine.always(Script::whole(500, &body));
        }
        for request in [embed("x"), chat(), embed("x")] {
            let response = send(&orchd, &request);
            assert_eq!((response.status, attempts(&response)), (500, Some("1")));
            assert_eq!(response.text().expect("a whole body"), body);
        }
        let pools = http::get_json(orchd.address, "/v2/pools");
        let pools = pools["pools"].as_array().expect("a list").clone();
        pools.iter().filter(|pool| pool["ejected"] == true).count()
    };
    assert_eq!(ejected("Compute error."), 1, "all but the last");
    assert_eq!(
        ejected(
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
        ),
        0
    );
    assert_eq!(
        ejected("Failed to parse tools: Expected 'tools' to be an array, got 5; tools = 5"),
        0
    );
    assert_eq!(
        ejected("[json.exception.out_of_range.406] number overflow parsing '1e400'"),
        0
    );
}

#[test]
fn the_same_engine_is_tried_again_after_a_quarter_of_a_second_and_then_after_one() {
    let failures = [
        Script::new().close(),
        Script::new().reset(),
        Script::whole(502, BUSY),
        Script::stream().close(),
        Script::whole(503, BUSY),
        Script::whole(429, BUSY),
    ];
    at_once(failures.len(), |number| {
        let (engine, orchd) = machine(1);
        let failure = &failures[number];
        engine.script([failure.clone(), failure.clone(), ok()]);
        let response = send(&orchd, &embed("x"));
        assert_eq!(attempts(&response), Some("3"), "{number}");
        // Pauses are no wait for a slot. While an engine says that it is busy there is none.
        let is_busy = number >= 4;
        let queue_ms = response.header("x-orchd-queue-ms").expect("always there");
        let queue_ms: u64 = queue_ms.parse().expect("a number");
        assert!(is_busy || queue_ms < 1_000, "{number}: {queue_ms}");
        assert_eq!(body_of(response), ANSWER);
        let asked = engine.asked();
        let gap = |n: usize| asked[n + 1].arrived - asked[n].arrived;
        assert!(
            gap(0) >= Duration::from_millis(250),
            "{number}: {:?}",
            gap(0)
        );
        assert!(gap(1) >= Duration::from_secs(1), "{number}: {:?}", gap(1));
        // A fresh one each time, as the last may be the trouble.
        let connections: Vec<usize> = asked.iter().map(|asked| asked.connection).collect();
        assert!(
            connections.windows(2).all(|two| two[0] != two[1]),
            "{connections:?}"
        );
    });
}

#[test]
fn another_engine_is_tried_at_once() {
    let failures = [
        Script::new().close(),
        Script::whole(502, BUSY),
        Script::whole(503, BUSY),
        agent_refuses(502, "engine_unreachable"),
        agent_refuses(404, "unknown_pool"),
        agent_refuses(401, "unauthorized"),
        agent_refuses(503, "stopping"),
        agent_refuses(503, "crowded"),
    ];
    at_once(failures.len(), |number| {
        let (a, b, orchd) = pair(1);
        let failure = &failures[number];
        a.script([failure.clone()]);
        a.always(ok());
        b.always(ok());
        let mut response = send(&orchd, &embed("x"));
        if a.asked().is_empty() {
            response = send(&orchd, &embed("x"));
        }
        assert_eq!(attempts(&response), Some("2"), "{number}");
        assert_eq!(pool(&response), "b");
        assert_eq!(response.header("x-orchd-refused"), None);
        assert_eq!(body_of(response), ANSWER);
        let first = a.asked()[0].arrived;
        let second = b.asked().last().expect("it was asked").arrived;
        let gap = second - first;
        assert!(gap < Duration::from_millis(200), "{number}: {gap:?}");
    });
}

#[test]
fn the_log_has_a_line_when_a_pool_is_left_out_and_one_when_it_serves_again() {
    for (failure, line) in [
        (Script::whole(503, BUSY), "a pool says that it is busy"),
        (agent_refuses(503, "crowded"), "a pool says that it is busy"),
        (Script::whole(502, BUSY), "a pool failed"),
    ] {
        let (a, b, orchd) = pair(1);
        b.always(ok());
        a.script([failure.clone(), failure, ok()]);
        a.always(ok());
        eventually(SOON, "the pool was left out twice and has served", || {
            body_of(send(&orchd, &embed("x")));
            let asked = a.asked().len();
            (asked > 3).then_some(()).ok_or_else(|| asked.to_string())
        });
        let log = orchd.log();
        for line in [line, "a pool serves again"] {
            let lines: Vec<&str> = log.lines().filter(|told| told.contains(line)).collect();
            assert_eq!(lines.len(), 1, "{line}: {log}");
            assert!(lines[0].contains("pool_id=a"), "{}", lines[0]);
        }
    }
}

#[test]
fn a_crowded_agent_that_is_the_only_one_is_waited_for() {
    let (engine, orchd) = machine(1);
    engine.script([agent_refuses(503, "crowded")]);
    engine.always(ok());
    let response = send(&orchd, &embed("x"));
    assert_eq!(attempts(&response), Some("2"));
    assert_eq!(body_of(response), ANSWER);
    assert!(!orchd.log().contains("a pool failed"), "{}", orchd.log());
}

#[test]
fn what_an_engine_says_twice_of_a_length_ends_where_it_ends_and_the_next_answer_is_its_own() {
    let (engine, orchd) = machine(1);
    let both = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\
                Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    engine.script([Script::new().bytes(both)]);
    engine.always(ok());
    let response = send(&orchd, &embed("x"));
    assert_ne!(response.header("content-length"), Some("3"));
    assert_eq!(body_of(response), "{}");
    assert_eq!(body_of(send(&orchd, &embed("x"))), ANSWER);
}

#[test]
fn an_engine_that_was_lost_is_read_soon_whichever_of_several_it_is() {
    let a = ScriptedEngine::start(MODEL, 1);
    let b = ScriptedEngine::start("another", 1);
    let orchd = serve(&[a.named("a"), b.named("b")], &[]);
    for (engine, model) in [(&a, MODEL), (&b, "another")] {
        engine.script(std::iter::repeat_n(Script::new().reset(), 3));
        // Idle, it is read every five seconds, and was so just now.
        eventually(SOON, "it is read", || {
            let probed = engine.probes().last().map(|probe| probe.arrived.elapsed());
            (probed < Some(Duration::from_millis(500)))
                .then_some(())
                .ok_or_else(|| format!("{probed:?}"))
        });
        let body = json!({"model": model, "input": "x"}).to_string();
        let lost = begin(&orchd, &post("/v1/embeddings", &body));
        let first = engine.wait_for(1).arrived;
        let (read, _) = eventually(SOON, "it is read again", || {
            let again = (engine.probes().into_iter())
                .find(|probe| probe.target == "/health" && probe.arrived > first);
            again.ok_or_else(|| "not yet".to_owned())
        });
        let after = read.arrived - first;
        eprintln!("{model}: read {after:?} after it was lost");
        assert!(after < Duration::from_secs(3), "{after:?}");
        let answer = lost.answer().expect("an answer");
        refusal(answer, 502, "upstream_failed");
    }
}

#[test]
fn a_redirection_or_another_protocol_is_no_answer() {
    let elsewhere = |status| {
        let headers = [("Location", "http://10.0.0.9/v1"), ("Upgrade", "websocket")];
        Script::whole_with(status, &headers, "<html>")
    };
    for status in [101, 300, 301, 302, 304, 307, 308] {
        let (a, b, orchd) = pair(1);
        // One of several: another is asked.
        a.always(elsewhere(status));
        b.always(ok());
        for _ in 0..2 {
            assert_eq!(body_of(send(&orchd, &embed("x"))), ANSWER, "{status}");
        }
        assert!(!a.asked().is_empty(), "{status}");
        drop((a, b, orchd));

        let (engine, orchd) = machine(1);
        engine.always(elsewhere(status));
        let response = send(&orchd, &embed("x"));
        assert_eq!(attempts(&response), Some("3"), "{status}");
        for header in ["location", "upgrade"] {
            assert_eq!(response.header(header), None, "{status}");
        }
        let error = refusal(response, 502, "upstream_failed");
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(&status.to_string()), "{message}");
    }
}

#[test]
fn what_an_engine_said_last_is_the_answer_and_nothing_else_is_invented() {
    let last = r#"{"error":{"code":429,"message":"too  many"}}"#;
    let limited = || Script::whole_with(429, &[("Retry-After", "9"), ("X-Odd", "kept")], last);
    let (engine, orchd) = machine(1);
    engine.script([Script::new().close(), Script::new().reset(), limited()]);
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.status, 429);
    assert_eq!(attempts(&response), Some("3"));
    assert_eq!(response.header("retry-after"), Some("9"));
    assert_eq!(response.header("x-odd"), Some("kept"));
    assert_eq!(response.text().expect("a whole body"), last);
    drop(orchd);

    // Also when those after it said nothing.
    let (engine, orchd) = machine(1);
    engine.script([
        Script::whole(502, BUSY),
        Script::new().close(),
        Script::new().close(),
    ]);
    let response = send(&orchd, &embed("x"));
    assert_eq!((response.status, attempts(&response)), (502, Some("3")));
    assert_eq!(response.text().expect("a whole body"), BUSY);
    drop(orchd);

    // What an agent says is nobody's answer.
    let (engine, orchd) = machine(1);
    engine.always(agent_refuses(502, "engine_unreachable"));
    let response = send(&orchd, &embed("x"));
    assert_eq!(response.header("x-orchd-refused"), None);
    let status = response.status;
    let code = if status == 502 {
        "upstream_failed"
    } else {
        "no_ready_pool"
    };
    refusal(response, status, code);
}

#[test]
fn once_a_byte_of_the_body_was_sent_nobody_else_is_asked() {
    let (a, b, orchd) = pair(1);
    let begun = Script::stream().event("1").close();
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{";
    let whole = Script::new()
        .bytes(length)
        .pause(Duration::from_millis(50))
        .reset();
    for (request, script) in [(chat(), begun), (embed("x"), whole)] {
        let before: usize = asked(&[&a, &b]).iter().sum();
        a.always(script.clone());
        b.always(script);
        let response = send(&orchd, &request);
        assert_eq!(attempts(&response), Some("1"));
        let text = response.text();
        assert!(text.is_err() || text.is_ok_and(|text| text.contains("worker_reset")));
        assert_eq!(asked(&[&a, &b]).iter().sum::<usize>(), before + 1);
    }
}

// Prompts that are too long.

/// Pools `small` and `large`, by the context of their slots.
fn small_and_large(small: u64, large: u64) -> (ScriptedEngine, ScriptedEngine, Orchd) {
    let small = ScriptedEngine::start(MODEL, 1).with_context(small);
    let large = ScriptedEngine::start(MODEL, 1).with_context(large);
    let orchd = serve(&[small.named("small"), large.named("large")], &[]);
    (small, large, orchd)
}

#[test]
fn a_prompt_that_is_too_long_for_one_engine_is_tried_at_one_with_more_context() {
    let (small, large, orchd) = small_and_large(1_024, 4_096);
    small.always(exceeds(2_000, 1_024));
    large.always(ok());
    let mut tries = Vec::new();
    for request in [embed("x"), chat(), embed("x"), chat()] {
        let response = send(&orchd, &request);
        assert_eq!(pool(&response), "large");
        tries.push(attempts(&response).expect("counted").to_owned());
        assert_eq!(body_of(response), ANSWER);
    }
    let small = small.asked().len();
    assert!(small > 0, "{tries:?}");
    assert_eq!(
        tries.iter().filter(|tries| *tries == "2").count(),
        small,
        "{tries:?}"
    );
    assert_eq!(large.asked().len(), 4);
}

#[test]
fn a_prompt_that_is_too_long_for_every_engine_is_told_so_at_once() {
    // As large, and larger but not large enough.
    for (large, n_prompt_tokens) in [(1_024, 1_500), (4_096, 5_000)] {
        let (a, b, orchd) = small_and_large(1_024, large);
        a.always(exceeds(n_prompt_tokens, 1_024));
        b.always(exceeds(n_prompt_tokens, large));
        for number in 1..=2 {
            let response = send(&orchd, &embed("x"));
            assert_eq!(attempts(&response), Some("1"));
            let said = match &*pool(&response) {
                "small" => too_long(n_prompt_tokens, 1_024),
                _ => too_long(n_prompt_tokens, large),
            };
            assert_eq!(response.status, 400);
            assert_eq!(response.text().expect("a whole body"), said);
            assert_eq!(asked(&[&a, &b]).iter().sum::<usize>(), number);
        }
    }
}

#[test]
fn a_prompt_that_is_too_long_again_is_not_tried_a_third_time() {
    let sizes = [1_024, 2_048, 4_096];
    let engines = sizes.map(|n_ctx| ScriptedEngine::start(MODEL, 1).with_context(n_ctx));
    let names: Vec<String> = (engines.iter().zip(sizes))
        .map(|(engine, n_ctx)| engine.named(&format!("p{n_ctx}")))
        .collect();
    let orchd = serve(&names, &[]);
    for (engine, n_ctx) in engines.iter().zip(sizes) {
        // Each says that a little more would do.
        engine.always(exceeds(n_ctx + 1, n_ctx));
    }
    let mut most = 0;
    for _ in 0..4 {
        let before: usize = engines.iter().map(|engine| engine.asked().len()).sum();
        let response = send(&orchd, &embed("x"));
        assert_eq!(response.status, 400);
        let tries: usize = attempts(&response)
            .expect("counted")
            .parse()
            .expect("a number");
        let n_ctx: u64 = pool(&response)[1..].parse().expect("a number");
        assert_eq!(
            response.text().expect("a whole body"),
            too_long(n_ctx + 1, n_ctx)
        );
        let after: usize = engines.iter().map(|engine| engine.asked().len()).sum();
        assert_eq!(after - before, tries);
        most = most.max(tries);
    }
    assert_eq!(most, 2);
}

#[test]
fn another_400_is_not_tried_where_there_is_more_context() {
    let (small, large, orchd) = small_and_large(1_024, 4_096);
    for body in [
        r#"{"error":{"code":400,"message":"exceed_context_size_error","type":"invalid_request_error"}}"#,
        r#"{"error":"exceed_context_size_error"}"#,
        "exceed_context_size_error",
        "",
    ] {
        small.always(Script::whole(400, body));
        large.always(Script::whole(400, body));
        for _ in 0..2 {
            let response = send(&orchd, &embed("x"));
            assert_eq!((response.status, attempts(&response)), (400, Some("1")));
            assert_eq!(response.text().expect("a whole body"), body);
        }
    }
    assert_eq!(asked(&[&small, &large]).iter().sum::<usize>(), 8);
}

// The budget.

#[test]
fn retries_are_bounded_when_everything_fails() {
    const CLIENTS: usize = 16;
    const EACH: usize = 20;
    // As many slots in all as the smallest bucket has retries.
    let (a, b, orchd) = pair(25);
    a.always(Script::whole(502, BUSY));
    b.always(Script::whole(502, BUSY));
    let tries: Vec<usize> = at_once(CLIENTS, |_| {
        let one = |_| {
            let response = send(&orchd, &embed("x"));
            assert_eq!(response.status, 502);
            let tries = attempts(&response).expect("counted").parse::<usize>();
            assert_eq!(response.text().expect("a whole body"), BUSY);
            tries.expect("a number")
        };
        (0..EACH).map(one).sum()
    });
    let finished = CLIENTS * EACH;
    let tries: usize = tries.iter().sum();
    assert_eq!(
        asked(&[&a, &b]).iter().sum::<usize>(),
        tries,
        "each is told of"
    );
    let retries = tries - finished;
    // Each request brings a tenth back, once, however often it is tried.
    let most = 50 + finished / 10;
    eprintln!("{finished} requests, all of which fail: {retries} retries");
    assert!(
        (50..=most).contains(&retries),
        "{retries} of at most {most}"
    );
    let values = metrics::read(&metrics::scrape(orchd.address));
    let told: Vec<(&String, &f64)> = (values.iter())
        .filter(|(key, value)| key.starts_with("orchd_gateway_retries_total") && **value > 0.0)
        .collect();
    let key = "orchd_gateway_retries_total{reason=\"bad_gateway\"}".to_owned();
    assert_eq!(told, [(&key, &(retries as f64))]);
}
