use std::sync::{Arc, Mutex};

use http::HeaderValue;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::types::HttpUrl;

/// Says what happened to it.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    pub fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().expect("not poisoned"))
    }
}

impl Load for Log {
    fn answering(&mut self) {
        self.0.lock().expect("not poisoned").push("answering");
    }

    fn passing(&mut self, bytes: &Bytes) {
        assert!(!bytes.is_empty());
    }

    fn done(&mut self, end: End) {
        self.0.lock().expect("not poisoned").push(match end {
            End::Whole => "whole",
            End::Broken => "broken",
        });
    }
}

pub(super) async fn upstream() -> (TcpListener, Origin) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url =
        HttpUrl::new(&format!("http://{}", listener.local_addr().expect("bound"))).expect("good");
    (listener, url.origin())
}

/// Reads one request's head and its body of `len` bytes.
pub(super) async fn read_request(stream: &mut TcpStream, len: usize) -> String {
    let mut seen = Vec::new();
    loop {
        let mut chunk = [0; 1024];
        let n = stream.read(&mut chunk).await.expect("reads");
        assert!(n > 0, "the connection ended within a request");
        seen.extend_from_slice(&chunk[..n]);
        if let Some(head) = seen.windows(4).position(|w| w == b"\r\n\r\n")
            && seen.len() >= head + 4 + len
        {
            return String::from_utf8(seen).expect("text");
        }
    }
}

pub(super) fn outgoing(body: &'static str) -> Outgoing {
    Outgoing {
        method: Method::POST,
        path: "/v1/chat/completions".into(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
        fresh: false,
    }
}

pub(super) const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn an_answer_is_passed_on_and_its_connection_used_again() {
    let (listener, origin) = upstream().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        for _ in 0..2 {
            let request = read_request(&mut stream, 2).await;
            assert!(
                request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n")
                    && request.ends_with("{}"),
                "{request}"
            );
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
                .await
                .expect("writes");
        }
    });
    for _ in 0..2 {
        let log = Log::default();
        let response = send(&origin, Peer::Engine, None, &outgoing("{}"), log.clone())
            .await
            .map_err(|(e, _)| e)
            .expect("answers");
        assert_eq!(response.body().size_hint().exact(), Some(5));
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes(),
            "hello"
        );
        assert_eq!(log.take(), ["answering", "whole"]);
    }
    server.await.expect("one connection served both");
}

#[tokio::test]
async fn dropping_the_body_closes_the_upstream_at_once() {
    let (listener, origin) = upstream().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        read_request(&mut stream, 2).await;
        stream.write_all(CHUNKED).await.expect("writes");
        stream.write_all(b"5\r\ndata:\r\n").await.expect("writes");
        let mut rest = [0; 1];
        tokio::time::timeout(Duration::from_millis(100), stream.read(&mut rest))
            .await
            .expect("sees the end in time")
    });
    let log = Log::default();
    let mut response = send(&origin, Peer::Engine, None, &outgoing("{}"), log.clone())
        .await
        .map_err(|(e, _)| e)
        .expect("answers");
    let first = response
        .body_mut()
        .frame()
        .await
        .expect("bytes")
        .expect("good");
    assert_eq!(first.into_data().expect("data"), "data:");
    drop(response);
    assert!(matches!(server.await.expect("ran"), Ok(0) | Err(_)));
    assert_eq!(
        log.take(),
        ["answering"],
        "the engine was not seen to finish"
    );
}

#[tokio::test]
async fn nobody_there_and_a_connection_that_ends_early_are_told_apart() {
    let (listener, origin) = upstream().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        read_request(&mut stream, 2).await;
        stream.write_all(CHUNKED).await.expect("writes");
    });
    let log = Log::default();
    let reset = send(&origin, Peer::Engine, None, &outgoing("{}"), log.clone()).await;
    assert!(
        matches!(reset, Err((SendError::Reset { .. }, _))),
        "headers alone are no answer"
    );
    server.await.expect("ran");
    assert_eq!(log.take(), ["broken"]);
    let refused = send(&origin, Peer::Engine, None, &outgoing("{}"), log.clone()).await;
    assert!(matches!(refused, Err((SendError::Connect { .. }, _))));
    assert_eq!(log.take(), [""; 0]);
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_closed_costs_nobody_a_request() {
    let (listener, origin) = upstream().await;
    let server = tokio::spawn(async move {
        for _ in 0..5 {
            let (mut stream, _) = listener.accept().await.expect("a client");
            read_request(&mut stream, 2).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .expect("writes");
        }
    });
    for _ in 0..5 {
        let log = Log::default();
        let response = send(&origin, Peer::Engine, None, &outgoing("{}"), log)
            .await
            .map_err(|(e, _)| e)
            .expect("answers");
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes(),
            "ok"
        );
    }
    server.await.expect("served all");
}

#[test]
fn headers_of_the_connection_stay_with_it() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "close, x-mine"),
        ("keep-alive", "timeout=5"),
        ("x-mine", "1"),
        ("accept", "*/*"),
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    end_to_end(&mut headers, &[]);
    assert_eq!(
        headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["accept"]
    );
}

#[tokio::test]
async fn a_stream_is_not_sent_behind_another_before_the_engine_has_shown_that_it_leaves_connections_open()
 {
    let (listener, origin) = upstream().await;
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer = [CHUNKED, b"5\r\ndata:\r\n0\r\n\r\n"].concat();
                    stream.write_all(&answer).await.expect("writes");
                }
            });
        }
    });
    let ask = async || {
        let sent = send(&origin, Peer::Engine, None, &outgoing("{}"), Log::default()).await;
        let response = sent.map_err(|(e, _)| e).expect("answers");
        response.into_body().collect().await.expect("a body");
    };
    let connections = || count.load(std::sync::atomic::Ordering::Relaxed);
    for asked in 1..=3 {
        ask().await;
        assert_eq!(connections(), asked, "each has one of its own");
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(1_050)).await;
    tokio::time::resume();
    // The first one is still open: from here on they are kept.
    ask().await;
    let so_far = connections();
    for _ in 0..3 {
        ask().await;
    }
    assert_eq!(connections(), so_far);
    // And so is the next one, when nothing was sent for so long that those are closed.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    for _ in 0..3 {
        ask().await;
    }
    assert_eq!(connections(), so_far + 1);
    // It is not remembered for ever.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(70)).await;
    tokio::time::resume();
    for _ in 0..3 {
        ask().await;
    }
    assert_eq!(connections(), so_far + 4);
    server.abort();
}
