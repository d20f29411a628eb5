//! Streams that wait, with a clock that is moved by hand: what the client is told, and when.

use std::sync::Arc;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::*;
use crate::admission::{self, Admission, Ask, Permit, Policy, PoolRoute};
use crate::auth::{Guard, Tokens};
use crate::clock::Clock;
use crate::engines::EngineKeys;
use crate::gateway::{Gateway, Settings, relayed};
use crate::types::{AccessLog, NodeId, PoolId, PoolState, UnixMs};

const COMMIT: Duration = Duration::from_secs(10);
const QUEUE_TIMEOUT: Duration = Duration::from_mins(5);
const SECOND: Duration = Duration::from_secs(1);

/// A gateway before an engine of one slot, whose health is good and whose requests come out here.
struct Bench {
    gateway: Arc<Gateway>,
    admission: Arc<Admission>,
    requests: UnboundedReceiver<TcpStream>,
}

async fn bench() -> Bench {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, requests) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.expect("a request");
                if head[..read].starts_with(b"GET /health") {
                    let alive = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(alive).await.expect("it is read");
                } else if read > 0 {
                    // The test may have ended.
                    let _ = sender.send(stream);
                }
            });
        }
    });
    let clock = Clock::new();
    let settings = admission::Settings {
        queue_capacity: 10,
        policy: Policy::Reject,
        queue_bytes: 1 << 20,
        queue_timeout_ms: 300_000,
        no_pool_wait_ms: 5_000,
        sample_ttl_ms: 20_000,
    };
    let admission = Admission::new(clock, settings);
    tokio::spawn(Arc::clone(&admission).drive());
    let route = PoolRoute {
        pool_id: PoolId::new("p").expect("good"),
        url: url.parse().expect("good"),
        trusted: false,
        models: vec!["m".into()],
        accepting: true,
        prospective: true,
        draining: false,
        suspect: false,
        slots_total: 1,
        n_ctx: None,
        engine: None,
        engine_version: None,
        state: PoolState::Ready,
    };
    admission.set_node(&NodeId::new("n").expect("good"), &[route]);
    let settings = Settings {
        assemble: false,
        sse_commit: COMMIT,
        hung_after: Duration::from_hours(1),
        access_log: AccessLog::Off,
        cors_origins: crate::types::CorsOrigins::Localhost,
    };
    let gateway = Gateway::new(
        UnixMs(0),
        settings,
        Arc::clone(&admission),
        Guard::new(Tokens::default()),
        Arc::new(EngineKeys::default()),
        relayed(),
    );
    Bench {
        gateway,
        admission,
        requests,
    }
}

impl Bench {
    /// Takes the only slot.
    async fn occupied(&self) -> Permit {
        let ask = Ask {
            model: self.admission.model("m").expect("known"),
            weight: 1,
            bytes: 1,
            min_ctx: 0,
            turn: None,
            avoid: None,
        };
        self.admission.acquire(ask).await.expect("it is free")
    }

    async fn ask(&self, path: &str, stream: bool) -> Response<GatewayBody> {
        let body = format!(r#"{{"model":"m","stream":{stream}}}"#);
        let request = Request::post(path).body(Full::new(Bytes::from(body)));
        self.gateway.handle(request.expect("good")).await
    }

    /// A stream that its engine has begun with this: its engine, and the answer.
    async fn begun(&mut self, said: &str) -> (TcpStream, Response<GatewayBody>) {
        let engine = async {
            let mut engine = self.requests.recv().await.expect("a request");
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            engine.write_all(head.as_bytes()).await.expect("it is read");
            say(&mut engine, said).await;
            engine
        };
        let gateway = Arc::clone(&self.gateway);
        let request =
            Request::post(CHAT).body(Full::new(Bytes::from(r#"{"model":"m","stream":true}"#)));
        let (engine, answer) = tokio::join!(engine, gateway.handle(request.expect("good")));
        (engine, answer)
    }
}

/// An engine writes a chunk.
async fn say(engine: &mut TcpStream, text: &str) {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    let written = engine.write_all(chunk.as_bytes()).await;
    written.expect("it is read");
}

const CHAT: &str = "/v1/chat/completions";

/// The next bytes, and how long they took; none at the proper end.
async fn next(body: &mut GatewayBody) -> (Option<String>, Duration) {
    let begun = Instant::now();
    let frame = body.frame().await;
    let data = frame.map(|frame| frame.expect("no break").into_data().expect("data"));
    let text = data.map(|data| String::from_utf8(data.to_vec()).expect("text"));
    (text, begun.elapsed())
}

fn is_promised(headers: &HeaderMap) {
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("x-accel-buffering", "no"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(headers[name], value);
    }
    for name in ["x-orchd-node", "x-orchd-attempts", "content-length"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_is_told_so_at_once_and_then_every_15_seconds_until_its_wait_ends() {
    let bench = bench().await;
    let _held = bench.occupied().await;
    let begun = Instant::now();
    let response = bench.ask(CHAT, true).await;
    // Timers are a millisecond coarse.
    let took = begun.elapsed();
    assert!(took >= COMMIT && took < COMMIT + SECOND, "{took:?}");
    assert_eq!(response.status(), 200);
    is_promised(response.headers());
    let mut body = response.into_body();
    let (first, took) = next(&mut body).await;
    assert_eq!(
        (first.as_deref(), took),
        (Some(": ping\n\n"), Duration::ZERO)
    );
    let mut pings = 0;
    let error = loop {
        let (text, took) = next(&mut body).await;
        let text = text.expect("an error before the end");
        if text != ": ping\n\n" {
            break text;
        }
        assert!(took >= PING_EVERY && took < PING_EVERY + SECOND, "{took:?}");
        pings += 1;
    };
    assert_eq!(pings, 19, "from 10 s to 300 s");
    let took = begun.elapsed();
    assert!(
        took >= QUEUE_TIMEOUT && took < QUEUE_TIMEOUT + SECOND,
        "{took:?}"
    );
    assert!(
        error.starts_with("data: {\"error\":{") && error.contains("\"code\":\"queue_timeout\""),
        "{error}"
    );
    assert!(error.ends_with("}\n\n"), "{error}");
    assert_eq!(next(&mut body).await.0, None, "the proper end");
    assert!(body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_stream_is_not_answered_before_its_engine_has() {
    let bench = bench().await;
    let held = bench.occupied().await;
    let waits = bench.ask("/v1/embeddings", false);
    tokio::pin!(waits);
    assert!(timeout(QUEUE_TIMEOUT / 2, &mut waits).await.is_err());
    drop(held);
    assert!(
        timeout(SECOND, &mut waits).await.is_err(),
        "its engine is silent"
    );
}

#[tokio::test(start_paused = true)]
async fn pings_come_between_events_and_only_when_nothing_else_does() {
    let mut bench = bench().await;
    let (mut engine, response) = bench.begun("data: 1\n\n").await;
    assert!(response.headers().contains_key("x-orchd-node"), "in time");
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.0.as_deref(), Some("data: 1\n\n"));

    let is_ping = async |body: &mut GatewayBody| {
        let (text, took) = next(body).await;
        assert_eq!(text.as_deref(), Some(": ping\n\n"));
        // What moves is looked after every 15 s.
        assert!(took < PING_EVERY * 2 + SECOND, "{took:?}");
        took
    };
    is_ping(&mut body).await;
    let took = is_ping(&mut body).await;
    assert!(took >= PING_EVERY, "{took:?}");

    // Not while it moves.
    for n in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        let event = format!("data: {n}\n\n");
        say(&mut engine, &event).await;
        assert_eq!(next(&mut body).await.0, Some(event));
    }
    // What has begun of an event is kept back until its end is there, and nothing of ours comes within it.
    for parts in [
        vec!["data: 2\n", ": a comment\r\n", "\r", "\n"],
        vec!["data: 3", "\n", "\n"],
        vec!["data: 4\r\n", "\r\n"],
        vec!["data: 5\r", "\r"],
    ] {
        let (last, before) = parts.split_last().expect("some");
        for part in before {
            say(&mut engine, part).await;
            is_ping(&mut body).await;
        }
        say(&mut engine, last).await;
        assert_eq!(next(&mut body).await.0, Some(parts.concat()));
    }
    // Those before it are not.
    say(&mut engine, "data: 6\n\ndata: 7\n\ndata: 8").await;
    let (two, _) = next(&mut body).await;
    assert_eq!(two.as_deref(), Some("data: 6\n\ndata: 7\n\n"));
    // One without an end is passed on as it comes once it is too long, without anything of ours within it.
    is_too_long(&mut engine, &mut body).await;
    let silence = timeout(PING_EVERY * 3, next(&mut body)).await;
    assert!(silence.is_err(), "{silence:?}");
    for n in 0..3 {
        say(&mut engine, &n.to_string()).await;
        assert_eq!(next(&mut body).await.0.expect("as it comes").len(), 1);
    }
    for end in ["\r\n", "\r", "\n"] {
        say(&mut engine, end).await;
    }
    let mut rest = String::new();
    while !rest.ends_with("12\r\n\r\n") {
        rest += &next(&mut body).await.0.expect("more of it");
    }
    is_ping(&mut body).await;
    // Behind the last one no empty line need be.
    say(&mut engine, "data: 9").await;
    engine.write_all(b"0\r\n\r\n").await.expect("it is read");
    assert_eq!(next(&mut body).await.0.as_deref(), Some("data: 9"));
    assert_eq!(next(&mut body).await.0, None, "the proper end");
}

/// An engine writes what is too long to be kept back until its end is there.
async fn is_too_long(engine: &mut TcpStream, body: &mut GatewayBody) {
    let text = format!("data: {}", "x".repeat(MOST_HELD_BYTES));
    say(engine, &text).await;
    let mut passed = 0;
    while passed + LONGEST_END <= text.len() {
        passed += next(body).await.0.expect("more of it").len();
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_behind_an_event_that_was_too_long_to_be_kept_back_is_one_of_its_own() {
    let mut bench = bench().await;
    let (mut engine, response) = bench.begun("data: 1\n\n").await;
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.0.as_deref(), Some("data: 1\n\n"));
    is_too_long(&mut engine, &mut body).await;
    drop(engine);
    let (error, _) = next(&mut body).await;
    let error = error.expect("an error");
    assert!(error.starts_with("\n\ndata: {\"error\":{"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn of_an_event_that_breaks_off_the_client_gets_nothing_but_the_error() {
    let mut bench = bench().await;
    let said = "data: {\"a\":1}\n\ndata: {\"choices";
    let (engine, response) = bench.begun(said).await;
    let mut body = response.into_body();
    let (first, _) = next(&mut body).await;
    assert_eq!(first.as_deref(), Some("data: {\"a\":1}\n\n"));
    drop(engine);
    let (error, _) = next(&mut body).await;
    let error = error.expect("an error");
    assert!(
        error.starts_with("data: {\"error\":{") && error.ends_with("}\n\n"),
        "{error}"
    );
    assert_eq!(next(&mut body).await.0, None, "the proper end");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_promised_goes_on_as_its_engine_writes_it() {
    let mut bench = bench().await;
    let held = bench.occupied().await;
    let mut body = bench.ask(CHAT, true).await.into_body();
    assert_eq!(next(&mut body).await.0.as_deref(), Some(": ping\n\n"));
    drop(held);
    let engine = async {
        let mut engine = bench.requests.recv().await.expect("a request");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 1\n\n";
        engine.write_all(head.as_bytes()).await.expect("it is read");
        engine
    };
    let (_engine, (text, _)) = tokio::join!(engine, next(&mut body));
    assert_eq!(text.as_deref(), Some("data: 1\n\n"));
    assert_eq!(next(&mut body).await.0, None);
}

/// A body at which whoever reads it fails.
struct Defect;

impl Body for Defect {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("a defect, as this test has it");
    }
}

#[tokio::test]
async fn a_request_that_we_fail_at_is_told_so_as_every_other_is_told_its_answer() {
    let Bench { gateway, .. } = bench().await;
    let request = Request::post("/v1/chat/completions")
        .header("x-request-id", "mine")
        .header("origin", "http://localhost:3000")
        .body(Defect)
        .expect("good");
    let response = gateway.handle(request).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers();
    assert_eq!(headers["x-request-id"], "mine");
    let page = &headers["access-control-allow-origin"];
    assert_eq!(page, "http://localhost:3000");
    let body = response.into_body().collect().await.expect("whole");
    let body: serde_json::Value = serde_json::from_slice(&body.to_bytes()).expect("JSON");
    assert_eq!(body["error"]["code"], "internal_error");
}
