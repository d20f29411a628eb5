//! The engine behind every router of the bench: it answers as llama-server does, costs little, and is never short of
//! slots.
//!
//! It keeps its connections, sets TCP_NODELAY, and writes each event of a stream by itself. A request says in `pace_ms`
//! how long it lets pass before each token but the first. Runs in a process of its own.

use std::net::Ipv4Addr;
use std::time::Duration;

use memchr::memmem;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Events of a stream with a word in them.
pub const TOKENS: usize = 32;
/// Numbers of an embedding: those of all-MiniLM-L6-v2, which people run for this.
const DIMENSIONS: u32 = 384;
/// Slots it tells of: more than are ever used.
const SLOTS: usize = 512;
const NO_PACE: Duration = Duration::ZERO;

/// Answers until it is told to end.
pub fn run(port: u16) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.expect("the port is free");
        let terminated = tokio::signal::unix::SignalKind::terminate();
        let mut terminated = tokio::signal::unix::signal(terminated).expect("a signal handler");
        let answers: &'static Answers = Box::leak(Box::new(Answers::new()));
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.expect("a connection");
                    stream.set_nodelay(true).expect("a socket option");
                    // A client that leaves is none of its business.
                    tokio::spawn(async move { drop(serve(stream, answers).await) });
                }
                _ = terminated.recv() => break,
            }
        }
    });
    std::process::exit(0)
}

/// All it ever says, ready to be sent.
struct Answers {
    embedding: String,
    whole: String,
    /// Head and first event, then an event each; the last holds the end.
    stream: Vec<String>,
    props: String,
    slots: String,
    models: String,
    health: String,
    off: String,
}

impl Answers {
    fn new() -> Self {
        let embedding: Vec<f64> = (0..DIMENSIONS)
            .map(|at| f64::from(at * 7_919 % 1_000).mul_add(0.000_137, -0.068))
            .collect();
        let usage = json!({
            "completion_tokens": TOKENS, "prompt_tokens": 80, "total_tokens": TOKENS + 80,
            "prompt_tokens_details": {"cached_tokens": 0},
        });
        let timings = json!({
            "cache_n": 0, "prompt_n": 80, "prompt_ms": 160.321, "prompt_per_token_ms": 2.004, "prompt_per_second": 499.0,
            "predicted_n": TOKENS, "predicted_ms": 160.287, "predicted_per_token_ms": 5.009, "predicted_per_second": 199.6,
        });
        let id = "chatcmpl-y4bEHO1gvBxqzL0e4TWQwGgAcN2DE3VW";
        let words = " word".repeat(TOKENS);
        let whole = json!({
            "choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": words}}],
            "created": 1_795_419_434, "model": "m", "system_fingerprint": "b1-7e4c0a9", "object": "chat.completion",
            "usage": usage, "id": id, "timings": timings,
        });
        let event = |choices: serde_json::Value| {
            json!({
                "choices": choices, "created": 1_795_419_434, "id": id, "model": "m",
                "system_fingerprint": "b1-7e4c0a9", "object": "chat.completion.chunk",
            })
        };
        let delta = |reason: Option<&str>, delta: serde_json::Value| {
            event(json!([{"finish_reason": reason, "index": 0, "delta": delta}]))
        };
        let mut events = vec![delta(None, json!({"role": "assistant", "content": null}))];
        events.extend((0..TOKENS).map(|_| delta(None, json!({"content": " word"}))));
        events.push(delta(Some("stop"), json!({})));
        let mut last = event(json!([]));
        last["usage"] = usage;
        last["timings"] = timings;
        events.push(last);
        let mut stream = vec![
            "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n\
             Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
                .to_owned(),
        ];
        for (at, event) in events.iter().enumerate() {
            let chunk = chunk(&format!("data: {event}\n\n"));
            // The head and the role go with the first word: that is when a client has something to show.
            if at <= 1 {
                stream[0] += &chunk;
            } else {
                stream.push(chunk);
            }
        }
        stream.push(chunk("data: [DONE]\n\n") + "0\r\n\r\n");
        let slots = (0..SLOTS)
            .map(|id| json!({"id": id, "n_ctx": 4_096, "speculative": false, "is_processing": false}))
            .collect::<serde_json::Value>();
        let props = json!({
            "default_generation_settings": {"n_ctx": 4_096}, "total_slots": SLOTS, "model_alias": "m",
            "model_path": "/models/bench.gguf", "endpoint_slots": true, "endpoint_metrics": false,
            "build_info": "b1-7e4c0a9", "is_sleeping": false,
        });
        let models =
            json!({"object": "list", "data": [{"id": "m", "aliases": ["m"], "object": "model"}]});
        let off = json!({"error": {"code": 501, "message": "off", "type": "not_supported_error"}});
        Self {
            embedding: told(
                "200 OK",
                &json!({
                    "model": "m", "object": "list", "usage": {"prompt_tokens": 9, "total_tokens": 9},
                    "data": [{"embedding": embedding, "index": 0, "object": "embedding"}],
                }),
            ),
            whole: told("200 OK", &whole),
            stream,
            props: told("200 OK", &props),
            slots: told("200 OK", &slots),
            models: told("200 OK", &models),
            health: told("200 OK", &json!({"status": "ok"})),
            off: told("501 Not Implemented", &off),
        }
    }
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn told(status: &str, body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n\
         Content-Length: {}\r\nKeep-Alive: timeout=5, max=100\r\n\r\n{body}",
        body.len()
    )
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(8 << 10);
    loop {
        let head = loop {
            if let Some(at) = memmem::find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let end = head + length.unwrap_or(0);
        while buffer.len() < end {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let target = text.split(' ').nth(1).unwrap_or_default();
        // Its endpoints may lie under any path, so that it can stand for many.
        let target = target.find("/v1/").map_or(target, |at| &target[at..]);
        let body = &buffer[head..end];
        match target {
            "/v1/embeddings" => stream.write_all(answers.embedding.as_bytes()).await?,
            "/v1/chat/completions" if memmem::find(body, b"\"stream\":true").is_some() => {
                write_stream(&mut stream, &answers.stream, pace(body)).await?;
            }
            "/v1/chat/completions" => stream.write_all(answers.whole.as_bytes()).await?,
            "/props" => stream.write_all(answers.props.as_bytes()).await?,
            "/slots" => stream.write_all(answers.slots.as_bytes()).await?,
            "/v1/models" => stream.write_all(answers.models.as_bytes()).await?,
            "/health" => stream.write_all(answers.health.as_bytes()).await?,
            _ => stream.write_all(answers.off.as_bytes()).await?,
        }
        buffer.drain(..end);
    }
}

fn pace(body: &[u8]) -> Duration {
    let name = b"\"pace_ms\":";
    let Some(at) = memmem::find(body, name) else {
        return NO_PACE;
    };
    let digits = body[at + name.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    Duration::from_millis(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

async fn write_stream(
    stream: &mut TcpStream,
    events: &[String],
    pace: Duration,
) -> std::io::Result<()> {
    let mut next = Instant::now();
    for (at, event) in events.iter().enumerate() {
        // What comes after the last word comes with it.
        if pace > NO_PACE && (1..TOKENS).contains(&at) {
            next += pace;
            tokio::time::sleep_until(next).await;
        }
        stream.write_all(event.as_bytes()).await?;
    }
    Ok(())
}
