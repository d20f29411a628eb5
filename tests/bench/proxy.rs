//! What the agent's proxy adds to the time to the first token, beside nginx in front of the same engine.
//!
//! `cargo bench --bench proxy [-- PAIRS]` sends 100 streaming chats a second (open loop, kept connections, TCP_NODELAY) to
//! an engine of its own: for one round of 5 s directly, for one through `orchd agent`, and for one through nginx with as
//! many workers as the agent has threads, no buffering and kept connections; then again in another order, 8 times over
//! unless told otherwise. The engine answers with 32 tokens, the first at once and each further one 5 ms later, so that
//! its timers say nothing about the first. What came in the first half second of a round opens connections and is left
//! out. A round's added time is the difference of its median (or 99th percentile) to that of the direct round beside it;
//! the median of those is shown, and the bar holds for the median of the differences between agent and nginx. Nothing
//! else should be busy meanwhile. Needs nginx (Debian: `apt-get install nginx-light`). Exits with 1 when the bar is missed,
//! and with 2 without nginx.
//!
//! | added time to first token | bar | predicted before it was first measured | measured, two cores, 8 pairs twice |
//! |---|---|---|---|
//! | nginx, median | | 0.15 ms: two more wake-ups, and who wakes shares two cores with everybody else | 0.11–0.13 ms |
//! | agent, median | nginx + 0.1 ms | nginx + 0.03 ms: the same system calls, some more of our own time | nginx + 0.03–0.05 ms |
//! | agent, 99th percentile | | nginx + 0.3 ms | nginx + 0.08 ms |
//!
//! One pair alone says little: from one to the next the agent was between 0.03 ms faster than nginx and 0.13 ms slower.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior};

const PAIRS: usize = 8;
/// Requests a second, how long a round takes, and how much of its beginning does not count.
const RATE: u32 = 100;
const ROUND: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_millis(500);
const TOKENS: usize = 32;
const PACE: Duration = Duration::from_millis(5);
/// Slots the engine tells of: more than are ever used.
const SLOTS: usize = 64;
/// What a start, or the end of a round, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The agent's time to the first token, at most so much above nginx's, in ms.
const BAR: f64 = 0.1;
/// The argument by which this program becomes the engine.
const ENGINE: &str = "--engine-on";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, port, ..] = arguments.as_slice()
        && flag == ENGINE
    {
        engine(port.parse().expect("a port"));
    }
    let pairs = arguments.iter().find_map(|argument| argument.parse().ok());
    let pairs: usize = pairs.unwrap_or(PAIRS);
    let found = Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        eprintln!("nginx was not found, on Debian: apt-get install nginx-light");
        return ExitCode::from(2);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Process::start(
        Command::new(std::env::current_exe().expect("it runs")),
        |command, address| {
            command.args([ENGINE, &address.port().to_string()]);
        },
    );
    let agent = Process::start(
        Command::new(env!("CARGO_BIN_EXE_orchd")),
        |command, address| {
            let engine = format!("http://{}", engine.address);
            // There is no control plane: it serves all the same, and asks every few seconds.
            command
                .args([
                    "agent",
                    "--node-id",
                    "bench",
                    "--server",
                    "http://127.0.0.1:1",
                ])
                .args(["--engine", &engine, "--listen", &address.to_string()])
                .env_clear()
                .env("HOME", dir.path())
                .env("ORCHD_CONFIG", "/dev/null")
                .env("ORCHD_LOG", "error")
                .current_dir(dir.path());
        },
    );
    let nginx = Process::start(Command::new("nginx"), |command, address| {
        let config = nginx_config(dir.path(), address, engine.address);
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).expect("the directory can be written to");
        command.arg("-p").arg(dir.path()).arg("-c").arg(file);
        command.args(["-e", "stderr"]).stderr(Stdio::null());
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let targets = [
        Target::new("direct", engine.address, ""),
        Target::new("agent", agent.address, "/pools/default"),
        Target::new("nginx", nginx.address, ""),
    ];
    let mut rounds: Vec<[Round; 3]> = Vec::new();
    for pair in 0..pairs {
        let mut round = [Round::default(); 3];
        for turn in 0..3 {
            // Each comes after each other one equally often.
            let who = if pair % 2 == 0 {
                (pair + turn) % 3
            } else {
                (pair + 3 - turn) % 3
            };
            round[who] = LocalSet::new().block_on(&runtime, targets[who].load());
        }
        let [direct, agent, nginx] = round;
        println!(
            "{:>3} direct {:.3} ms, agent + {:.3} ms, nginx + {:.3} ms",
            pair + 1,
            direct.median,
            agent.median - direct.median,
            nginx.median - direct.median,
        );
        rounds.push(round);
    }
    let of = |a: usize, b: usize, what: fn(&Round) -> f64| {
        median(
            rounds
                .iter()
                .map(|round| what(&round[a]) - what(&round[b]))
                .collect(),
        )
    };
    println!("added time to first token over {pairs} pairs, {RATE} requests a second:");
    println!("          median      99th percentile");
    for (name, a, b) in [("agent", 1, 0), ("nginx", 2, 0), ("agent - nginx", 1, 2)] {
        let (middle, high) = (of(a, b, |round| round.median), of(a, b, |round| round.p99));
        println!("{name:<15} {middle:>7.3} ms {high:>7.3} ms");
    }
    let difference = of(1, 2, |round| round.median);
    if difference > BAR {
        println!("MISSED: the agent adds {difference:.3} ms more than nginx, at most {BAR} ms");
        return ExitCode::FAILURE;
    }
    println!("ok: the agent adds {difference:.3} ms more than nginx, at most {BAR} ms");
    ExitCode::SUCCESS
}

fn nginx_config(dir: &Path, listen: SocketAddr, engine: SocketAddr) -> String {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let dir = dir.display();
    format!(
        "daemon off; worker_processes {workers}; pid {dir}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off; error_log stderr crit; tcp_nodelay on;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000;
    upstream engine {{ server {engine}; keepalive {SLOTS}; keepalive_requests 1000000; }}
    server {{
        listen {listen} reuseport;
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
        }}
    }}
}}
"
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 50)
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

/// A process that answers on a port of its own.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(mut command: Command, prepare: impl FnOnce(&mut Command, SocketAddr)) -> Self {
        // Nobody else asks for ports meanwhile.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        prepare(&mut command, address);
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        let process = Self { child, address };
        let begun = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not start: {command:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx ends its workers when it is asked to, and not when it is killed.
        let pid = i32::try_from(self.child.id()).expect("ids of processes are small");
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Times to the first token in one round, in ms.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    median: f64,
    p99: f64,
}

/// What is asked.
struct Target {
    name: &'static str,
    address: SocketAddr,
    request: Rc<Vec<u8>>,
}

impl Target {
    fn new(name: &'static str, address: SocketAddr, prefix: &str) -> Self {
        let body = json!({
            "model": "m", "stream": true,
            "messages": [{"role": "user", "content": "Write thirty-two words about whatever you like. ".repeat(8)}],
        })
        .to_string();
        let length = body.len();
        let request = format!(
            "POST {prefix}/v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        Self {
            name,
            address,
            request: Rc::new(request.into_bytes()),
        }
    }

    async fn load(&self) -> Round {
        let idle: Rc<std::cell::RefCell<Vec<TcpStream>>> = Rc::default();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begun = Instant::now();
        let mut asked = Vec::new();
        while begun.elapsed() < ROUND {
            ticks.tick().await;
            let counts = begun.elapsed() >= WARM_UP;
            let (idle, address) = (Rc::clone(&idle), self.address);
            let request = Rc::clone(&self.request);
            asked.push(tokio::task::spawn_local(async move {
                let kept = idle.borrow_mut().pop();
                let mut stream = match kept {
                    Some(stream) => stream,
                    None => {
                        let stream = TcpStream::connect(address).await.expect("it listens");
                        stream.set_nodelay(true).expect("a socket option");
                        stream
                    }
                };
                let first = ask(&mut stream, &request).await;
                idle.borrow_mut().push(stream);
                counts.then_some(first)
            }));
        }
        let mut times = Vec::with_capacity(asked.len());
        for asked in asked {
            let answered = tokio::time::timeout(PATIENCE, asked).await;
            let first = answered.unwrap_or_else(|_| panic!("{} does not end a stream", self.name));
            let first = first.unwrap_or_else(|e| panic!("{}: {e}", self.name));
            times.extend(first.map(|first| first.as_secs_f64() * 1e3));
        }
        Round {
            median: percentile(&mut times, 50),
            p99: percentile(&mut times, 99),
        }
    }
}

/// Asks for a stream and reads it to its end. Gives the time until the first token was here.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Duration {
    let mut answer: Vec<u8> = Vec::with_capacity(16 << 10);
    let begun = Instant::now();
    stream.write_all(request).await.expect("it is connected");
    let mut first = None;
    loop {
        let read = stream.read_buf(&mut answer).await.expect("it is connected");
        let now = begun.elapsed();
        let text = || String::from_utf8_lossy(&answer);
        assert!(read > 0, "a stream broke off: {}", text());
        if first.is_none() && answer.windows(6).any(|six| six == b"data: ") {
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", text());
            first = Some(now);
        }
        if answer.ends_with(b"0\r\n\r\n") {
            let tokens = text().matches("data: {").count();
            assert_eq!(tokens, TOKENS, "{}", text());
            return first.expect("a stream has a first token");
        }
    }
}

/// Answers as an engine that is never short of slots. Never returns.
fn engine(port: u16) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.expect("the port is free");
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .expect("a signal handler");
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.expect("a connection");
                    stream.set_nodelay(true).expect("a socket option");
                    tokio::spawn(serve(stream));
                }
                _ = terminate.recv() => break,
            }
        }
    });
    std::process::exit(0)
}

async fn serve(mut stream: TcpStream) {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !stream
                .read_buf(&mut buffer)
                .await
                .is_ok_and(|read| read > 0)
            {
                return;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let end = head + length.unwrap_or(0);
        while buffer.len() < end {
            if !stream
                .read_buf(&mut buffer)
                .await
                .is_ok_and(|read| read > 0)
            {
                return;
            }
        }
        buffer.drain(..end);
        let target = text.split(' ').nth(1).unwrap_or_default();
        let answered = if text.starts_with("post ") {
            write_stream(&mut stream).await
        } else {
            stream.write_all(told(target).as_bytes()).await
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn write_stream(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut next = Instant::now();
    for token in 0..TOKENS {
        let event = json!({
            "choices": [{"finish_reason": null, "index": 0, "delta": {"content": " word"}}], "created": 1_795_419_433,
            "id": "chatcmpl-y4bEHO1gvBxqzL0e4TWQ", "model": "m", "object": "chat.completion.chunk", "n": token,
        });
        let event = format!("data: {event}\n\n");
        let mut text = String::new();
        if token == 0 {
            text += "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n\
                     Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n";
        } else {
            next += PACE;
            tokio::time::sleep_until(next).await;
        }
        text += &format!("{:x}\r\n{event}\r\n", event.len());
        stream.write_all(text.as_bytes()).await?;
    }
    let done = "data: [DONE]\n\n";
    let text = format!("{:x}\r\n{done}\r\n0\r\n\r\n", done.len());
    stream.write_all(text.as_bytes()).await
}

/// What a prober is told.
fn told(target: &str) -> String {
    let (status, body) = match target {
        "/health" => ("200 OK", json!({"status": "ok"})),
        "/props" => (
            "200 OK",
            json!({
                "default_generation_settings": {"n_ctx": 4_096}, "total_slots": SLOTS, "model_alias": "m",
                "model_path": "/models/bench.gguf", "endpoint_slots": true, "endpoint_metrics": false,
                "build_info": "b1-7e4c0a9", "is_sleeping": false,
            }),
        ),
        "/slots" => (
            "200 OK",
            (0..SLOTS)
                .map(|id| json!({"id": id, "n_ctx": 4_096, "speculative": false, "is_processing": false}))
                .collect(),
        ),
        "/v1/models" => (
            "200 OK",
            json!({"object": "list", "data": [{"id": "m", "aliases": ["m"], "object": "model"}]}),
        ),
        _ => (
            "501 Not Implemented",
            json!({"error": {"code": 501, "message": "off", "type": "not_supported_error"}}),
        ),
    };
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n\
         Content-Length: {}\r\nKeep-Alive: timeout=5, max=100\r\n\r\n{body}",
        body.len()
    )
}
