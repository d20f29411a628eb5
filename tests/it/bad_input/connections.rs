//! Connections: those that lie about what they send, dawdle, hang about, or send everything at once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;

use crate::support::http::{self, written};

use super::{JSON, Server, calls, heartbeat, registration};

/// Within which a client that dawdles over its request is answered or cut off.
const DAWDLE: Duration = Duration::from_secs(40);
/// How long anybody else may have to wait meanwhile.
const PROMPT: Duration = Duration::from_secs(1);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_nodelay(true).expect("a socket option");
    stream
        .set_read_timeout(Some(DAWDLE))
        .expect("a socket option");
    stream
        .set_write_timeout(Some(DAWDLE))
        .expect("a socket option");
    stream
}

/// Everything that comes until the connection ends, a reset being an end as well.
fn all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() != ErrorKind::ConnectionReset => {
            panic!("{e} after {:?}", String::from_utf8_lossy(&bytes))
        }
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// The statuses of the answers in what came.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|answer| answer.get(..3)?.parse().ok())
        .collect()
}

/// Sends these bytes, says that there are no more, and gives the statuses of what comes back.
fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = connect(address);
    // It may have heard enough before all is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    statuses(&all(&mut stream))
}

#[test]
fn requests_that_are_not_http_are_refused_and_end_their_connection() {
    let server = Server::start();
    let post =
        "POST /v2/nodes/n1/heartbeat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let long = "a".repeat(1 << 20);
    let many: String = (0..1_000).map(|n| format!("h{n}: x\r\n")).collect();
    let requests = [
        "\r\n\r\n\r\n".to_owned(),
        "\0\0\0\0".to_owned(),
        "hello\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /v2/nodes\r\n\r\n".to_owned(),
        "GET /v2/nodes HTTP/9.9\r\n\r\n".to_owned(),
        "GET  /v2/nodes HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v2/no des HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v2/nodes HTTP/1.1\r\nno colon\r\n\r\n".to_owned(),
        "GET /v2/nodes HTTP/1.1\r\n: x\r\n\r\n".to_owned(),
        "GET /v2/nodes HTTP/1.1\r\na b: x\r\n\r\n".to_owned(),
        "GET /v2/nodes HTTP/1.1\r\nx: a\0b\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET /v2/nodes HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"),
        format!("GET /v2/nodes HTTP/1.1\r\n{many}\r\n"),
        format!("{long}{long}"),
        format!("{post}content-length: -1\r\n\r\n{{}}"),
        format!("{post}content-length: x\r\n\r\n{{}}"),
        format!("{post}content-length: 1, 2\r\n\r\n{{}}"),
        format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
        format!("{post}content-length: 99999999999999999999999\r\n\r\n{{}}"),
        // Fewer bytes than were promised, and then the end.
        format!("{post}content-length: 100\r\n\r\n{{}}"),
        format!("{post}content-length: 99999999999\r\n\r\n{{}}"),
        // More: what is left is no request.
        format!("{post}content-length: 2\r\n\r\n{{}}garbage\r\n\r\n"),
        format!("{post}content-length: 2\r\ntransfer-encoding: gzip\r\n\r\n{{}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nx\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\n-1\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2\r\n{{}}garbage"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{{}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffff\r\n{{}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2;{long}\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\nt: {long}\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n"),
    ];
    for request in requests {
        let begun = Instant::now();
        let found = raw(server.address(), request.as_bytes());
        assert!(
            found.iter().all(|status| (400..500).contains(status)),
            "{request:.100}: {found:?}"
        );
        assert!(begun.elapsed() < PROMPT * 5, "{request:.100}");
    }
    // Two lengths that differ are how requests are smuggled past a proxy: there must be one answer at most.
    let smuggled = format!(
        "{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/nodes HTTP/1.1\r\nhost: x\r\n\r\n"
    );
    let found = raw(server.address(), smuggled.as_bytes());
    assert!(found.len() <= 1, "{found:?}");
    server.must_be_well();
}

#[test]
fn requests_in_a_row_without_waiting_are_answered_in_their_order() {
    let server = Server::start();
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    for n in 0..100 {
        let (status, request) = match n % 5 {
            0 => (200, written("GET", "/v2/nodes/n1", &[], b"")),
            1 => (404, written("GET", "/v2/nodes/nobody", &[], b"")),
            2 => (
                400,
                written("POST", "/v2/nodes/n1/heartbeat", &[JSON], b"{"),
            ),
            3 => (405, written("PUT", "/v2/nodes", &[], b"")),
            _ => {
                let body = heartbeat().to_string();
                let request = written("POST", "/v2/nodes/n1/heartbeat", &[JSON], body.as_bytes());
                (200, request)
            }
        };
        expected.push(status);
        bytes.extend(request);
    }
    // Who closes its half has left, and is not answered for certain: the last request asks for the end instead.
    bytes.extend(written("GET", "/livez", &[("connection", "close")], b""));
    expected.push(200);
    let mut stream = connect(server.address());
    stream.write_all(&bytes).expect("it reads");
    assert_eq!(statuses(&all(&mut stream)), expected);
    server.must_be_well();
}

#[test]
fn a_body_that_says_that_it_is_too_large_is_not_waited_for() {
    let server = Server::start();
    for (path, length, expect) in [
        ("/v2/nodes/register", 999_999_999_999_u64, ""),
        ("/v1/chat/completions", 999_999_999_999, ""),
        (
            "/v2/nodes/register",
            999_999_999_999,
            "expect: 100-continue\r\n",
        ),
        ("/v2/nodes/register", 20 << 20, ""),
    ] {
        let begun = Instant::now();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{expect}\r\n"
        );
        assert_eq!(raw(server.address(), head.as_bytes()), [413], "{head}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{head}");
    }
    server.must_be_well();
}

/// Sends one byte a second until it is answered or cut off: the statuses it got, and how long that took.
fn dawdle(address: SocketAddr, at_once: &[u8], slowly: &[u8]) -> (Vec<u16>, Duration) {
    let begun = Instant::now();
    let mut stream = connect(address);
    stream.write_all(at_once).expect("it listens");
    let pace = Duration::from_secs(1);
    stream
        .set_read_timeout(Some(pace))
        .expect("a socket option");
    let mut answer = Vec::new();
    for byte in slowly.iter().cycle() {
        if begun.elapsed() > DAWDLE || stream.write_all(&[*byte]).is_err() {
            break;
        }
        let mut buffer = [0; 4_096];
        // Reading is what the pace comes from.
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    (statuses(&String::from_utf8_lossy(&answer)), begun.elapsed())
}

#[test]
fn a_client_that_sends_a_byte_a_second_is_cut_off_and_holds_nobody_up() {
    let server = Server::start();
    let address = server.address();
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}\r\n")
    };
    let length = "content-length: 100000\r\n";
    let register = post("/v2/nodes/register", length);
    let beat = post("/v2/nodes/n1/heartbeat", length);
    let chat = post("/v1/chat/completions", length);
    let chunked = post("/v2/nodes/n1/drain", "transfer-encoding: chunked\r\n");
    let not_there = post("/v2/nothing", length);
    let slow: [(&str, &str); 6] = [
        ("GET /v2/nodes HTTP/1.1\r\nx: ", "a"),
        (&register, " "),
        (&beat, " "),
        (&chat, " "),
        (&chunked, "1\r\n \r\n"),
        (&not_there, " "),
    ];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .flat_map(|_| slow)
            .map(|(at_once, slowly)| {
                scope.spawn(move || {
                    (
                        at_once,
                        dawdle(address, at_once.as_bytes(), slowly.as_bytes()),
                    )
                })
            })
            .collect();
        let others = scope.spawn(|| {
            let beat = heartbeat().to_string();
            let beat = written("POST", "/v2/nodes/n1/heartbeat", &[JSON], beat.as_bytes());
            let mut longest = Duration::ZERO;
            let mut count = 0;
            let mut connection = http::begin(address, &[]).expect("it listens");
            while !over.load(Ordering::Acquire) {
                let begun = Instant::now();
                let response = connection.ask(&beat).expect("an answer");
                assert_eq!(response.status, 200);
                response.json();
                longest = longest.max(begun.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            (count, longest)
        });
        let slow: Vec<_> = threads.into_iter().map(ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Release);
        for ended in slow {
            let (request, (found, took)) = ended.expect("its panic is shown above");
            assert!(took < DAWDLE, "{request}: never cut off");
            assert!(
                found.iter().all(|status| (400..500).contains(status)),
                "{request}: {found:?}"
            );
        }
        let (count, longest) = others.join().expect("its panic is shown above");
        assert!(
            count > 100 && longest < PROMPT,
            "{count} answers, the slowest after {longest:?}"
        );
    });
    server.must_be_well();
}

#[test]
fn a_thousand_idle_connections_keep_nobody_from_being_served() {
    // Ours and theirs are in two processes; this one needs more than the thousand that most shells start with.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the system tells it");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4_096)), hard).expect("it may be raised");
    let server = Server::start();
    let mut idle: Vec<TcpStream> = (0..1_000).map(|_| connect(server.address())).collect();
    // Some have begun to say something.
    for stream in idle.iter_mut().step_by(3) {
        stream.write_all(b"GET /v2/no").expect("it listens");
    }
    for (path, body) in calls() {
        for _ in 0..20 {
            let begun = Instant::now();
            let response = server.post(path, body.to_string().as_bytes());
            assert!(response.status < 300, "{path}: {}", response.status);
            assert!(
                begun.elapsed() < PROMPT,
                "{path}: after {:?}",
                begun.elapsed()
            );
        }
    }
    // And they are still there to be answered.
    for (n, stream) in idle.iter_mut().enumerate().step_by(100) {
        let begun = if n % 3 == 0 { "" } else { "GET /v2/no" };
        let rest = format!("{begun}des HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(rest.as_bytes()).expect("it listens");
        assert_eq!(statuses(&all(stream)), [200], "connection {n}");
    }
    server.must_be_well();
}

#[test]
fn clients_that_leave_in_the_middle_of_everything_leave_nothing_behind() {
    let server = Server::start();
    let body = registration().to_string();
    let request = written("POST", "/v2/nodes/register", &[JSON], body.as_bytes());
    for end in (0..request.len()).step_by(3) {
        let mut stream = connect(server.address());
        stream.write_all(&request[..end]).expect("it listens");
        if end % 2 == 0 {
            drop(stream);
        } else {
            let left: io::Result<()> = stream.shutdown(std::net::Shutdown::Both);
            left.expect("it is connected");
        }
    }
    server.must_be_well();
}
