//! The other side of comparisons: a bare handler of heartbeats, and an engine that answers at once. Each is this program
//! again, in a process of its own.

use std::net::{Ipv4Addr, TcpListener};

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use orchd::types::{HeartbeatReply, HeartbeatRequest, NodeStatus, Object};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The argument by which this program becomes the bare handler.
pub const HANDLER: &str = "--bare-handler";
/// The argument by which it becomes the engine of every pool.
pub const ENGINE: &str = "--engine";
/// Events of a stream, with the last one.
pub const EVENTS: usize = 8;

/// Becomes what the arguments say, if they do, and then never returns.
pub fn become_one() {
    for (name, serve) in [(HANDLER, handler as fn(u16) -> !), (ENGINE, engine)] {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        if let (Some(_), Some(port)) = (arguments.next(), arguments.next()) {
            serve(port.parse().expect("a port"));
        }
    }
}

/// Serves heartbeats as orchd does, a runtime for each thread, and does nothing with them. Never returns.
fn handler(port: u16) -> ! {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    listener.set_nonblocking(true).expect("a socket option");
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let serve = |listener: TcpListener| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let beat =
                async |Path(_): Path<String>,
                       Json(Object(request)): Json<Object<HeartbeatRequest>>| {
                    std::hint::black_box(request);
                    Json(HeartbeatReply {
                        success: true,
                        next_heartbeat_ms: 10_000,
                        node_timeout_ms: 30_000,
                        status: NodeStatus::Online,
                        drain: None,
                    })
                };
            let app = Router::new()
                .route("/readyz", get(async || "ready\n"))
                .route("/v2/nodes/{id}/heartbeat", post(beat));
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket option");
                let service = TowerToHyperService::new(app.clone());
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let listener = listener.try_clone().expect("a descriptor is free");
            scope.spawn(move || serve(listener));
        }
    });
    unreachable!("the threads serve for ever")
}

/// Answers every request at once: `stream` in its body asks for a stream of [`EVENTS`] events, everything else gets a
/// small object. One thread is enough for it.
fn engine(port: u16) -> ! {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    listener.set_nonblocking(true).expect("a socket option");
    let whole = {
        let body =
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,0.25]}]}"#;
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let stream = {
        let frame = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
        let frames = frame(r#"{"choices":[{"index":0,"delta":{"content":" word"}}]}"#);
        let frames = frames.repeat(EVENTS - 1) + &frame("[DONE]");
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{frames}0\r\n\r\n"
        )
    };
    let answers: &'static [String; 2] = Box::leak(Box::new([whole, stream]));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            tokio::spawn(answer(stream, answers));
        }
    })
}

async fn answer(mut stream: tokio::net::TcpStream, answers: &[String; 2]) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
        while buffer.len() < head + length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = &buffer[head..head + length];
        let streams = body.windows(13).any(|part| part == b"\"stream\":true");
        buffer.drain(..head + length);
        let written = stream
            .write_all(answers[usize::from(streams)].as_bytes())
            .await;
        if written.is_err() {
            return;
        }
    }
}
