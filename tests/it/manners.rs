//! A service among others: what the service manager is told, signals that are no reason to end, and visitors in numbers.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::fake_control_plane::orchd;
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, written};
use crate::support::process::Running;
use crate::support::secure::{Authority, Process, SOON};
use crate::support::{eventually, free_address};

/// A service manager, as far as its services know it.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        socket
            .set_read_timeout(Some(SOON))
            .expect("a socket has timeouts");
        Self { socket, dir }
    }

    fn path(&self) -> String {
        let path = self.dir.path().join("notify");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// The next thing it is told.
    fn told(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.socket.recv(&mut buffer).expect("it is told something");
        String::from_utf8_lossy(&buffer[..length])
            .trim_end()
            .to_owned()
    }

    /// The next thing it is told that is not about the watchdog.
    fn told_news(&self) -> String {
        loop {
            let told = self.told();
            if told != "WATCHDOG=1" {
                return told;
            }
        }
    }
}

fn lives_as_a_service(arguments: &[&str], health: &str) {
    let manager = Manager::new();
    let mut orchd = Process::start(
        arguments,
        &[
            ("NOTIFY_SOCKET", &manager.path()),
            ("WATCHDOG_USEC", "400000"),
        ],
    );
    assert_eq!(manager.told_news(), "READY=1");
    let begun = Instant::now();
    for _ in 0..4 {
        assert_eq!(manager.told(), "WATCHDOG=1");
    }
    // The first comes at once, the others at half the manager's patience; a busy machine may be late.
    let taken = begun.elapsed();
    assert!(
        taken > Duration::from_millis(400),
        "four times within {taken:?}"
    );

    for _ in 0..2 {
        orchd.signal(Signal::SIGHUP);
        let reloading = manager.told_news();
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(
            usec.is_some_and(|usec| usec.parse::<u64>().is_ok()),
            "{reloading}"
        );
        assert_eq!(manager.told_news(), "READY=1");
    }
    let response = http::get(orchd.address, health).expect("it still answers");
    assert_eq!(response.status, 200);
    assert_eq!(
        orchd.log().matches("SIGHUP: ").count(),
        2,
        "{}",
        orchd.log()
    );

    orchd.signal(Signal::SIGTERM);
    assert_eq!(manager.told_news(), "STOPPING=1");
    assert_eq!(orchd.wait(), Some(0));
}

#[test]
fn serve_tells_the_service_manager_how_it_is_and_survives_a_sighup() {
    lives_as_a_service(&["serve"], "/readyz");
}

#[test]
fn an_agent_tells_the_service_manager_how_it_is_and_survives_a_sighup() {
    // It has nobody to register with: that does not make it any less alive.
    let server = crate::fake_control_plane::silent_port();
    lives_as_a_service(
        &["agent", "--node-id", "gpu-1", "--server", server.as_str()],
        "/health",
    );
}

/// Asks for something over a connection of its own, and says how long that took.
fn ask(orchd: &Process) -> Duration {
    let begun = Instant::now();
    let response = http::get(orchd.address, "/v1/models").expect("an answer");
    assert_eq!(response.status, 200);
    begun.elapsed()
}

/// A thousand connections that say nothing, and some that begin a request and never finish it.
fn crowd(orchd: &Process) -> Vec<TcpStream> {
    // Shells start programs with a limit that is just too low for this.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit it may be set");
    let mut crowd: Vec<TcpStream> = (0..1_000)
        .map(|_| TcpStream::connect(orchd.address).expect("a connection"))
        .collect();
    crowd.extend((0..20).map(|_| {
        let begun = http::begin(
            orchd.address,
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ",
        );
        begun.expect("a connection").into_stream()
    }));
    crowd
}

#[test]
fn a_thousand_idle_connections_stop_nobody() {
    let orchd = Process::start(&["serve"], &[]);
    let _crowd = crowd(&orchd);
    let slowest = (0..20).map(|_| ask(&orchd)).max();
    eprintln!("the slowest of 20 requests beside 1020 idle connections: {slowest:?}");
    assert!(slowest < Some(Duration::from_secs(2)));
}

#[test]
fn beyond_the_limit_the_longest_idle_give_way_and_nobody_who_is_served() {
    let engine = ScriptedEngine::start("m", 2);
    let orchd = Process::start(
        &[
            "serve",
            "--max-connections",
            "32",
            "--engine",
            &engine.named("a"),
        ],
        &[],
    );
    engine.script([Script::stream().event("1").hold().event("2").end()]);
    let mut events = http::send(orchd.address, &chat())
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));

    let mut crowd = crowd(&orchd);
    let slowest = (0..20).map(|_| ask(&orchd)).max();
    eprintln!("the slowest of 20 requests beside a crowd thirty times too large: {slowest:?}");
    assert!(slowest < Some(Duration::from_secs(2)));
    // The first ones are gone.
    let first = &mut crowd[0];
    first
        .set_read_timeout(Some(SOON))
        .expect("a socket has timeouts");
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0);
    // Whoever was being served still is.
    engine.go(0);
    assert_eq!(events.next().expect("an event").as_deref(), Some("2"));
    assert_eq!(events.next().expect("the end"), None);
}

#[test]
fn requests_that_wait_on_every_connection_keep_out_neither_heartbeats_nor_health_checks() {
    const LIMIT: usize = 16;
    let engine = ScriptedEngine::start("m", 1);
    let mut orchd = Process::start(
        &[
            "serve",
            "--max-connections",
            &LIMIT.to_string(),
            "--engine",
            &engine.named("a"),
        ],
        &[],
    );
    engine.script([Script::stream().event("1").hold().event("2").end()]);
    let mut running = http::send(orchd.address, &chat())
        .expect("an answer")
        .events();
    assert_eq!(running.next().expect("an event").as_deref(), Some("1"));

    // One runs, the others wait for its slot, until only an eighth of the places is left.
    let asked: Vec<_> = (0..3 * LIMIT)
        .map(|_| http::begin(orchd.address, &chat()).expect("a connection"))
        .collect();
    let room = LIMIT - LIMIT / 8 - 1;
    // On a connection of its own each time, as whoever has lost the one it kept.
    let address = orchd.address;
    let counted = |waiting: usize, refused: usize| {
        let wanted = [
            format!(r#"orchd_gateway_waiting{{model="m"}} {waiting}"#),
            format!(r#"orchd_gateway_rejected_total{{reason="queue_full"}} {refused}"#),
        ];
        eventually(SOON, "so many wait and were refused", || {
            let metrics = http::get(address, "/metrics").and_then(http::Response::text);
            let metrics = metrics.map_err(|e| e.to_string())?;
            let told = |wanted| metrics.lines().any(|line| line == wanted);
            (wanted.iter().all(told)).then_some(()).ok_or(metrics)
        });
    };
    counted(room, 3 * LIMIT - room);
    for path in ["/health", "/readyz", "/v2/pools", "/v1/models"] {
        let response = http::get(orchd.address, path).expect("an answer");
        assert_eq!(response.status, 200, "{path}");
    }
    let beat = written("POST", "/v2/nodes/n/heartbeat", &[], b"{}");
    let beat = http::send(orchd.address, &beat).expect("an answer");
    assert_eq!(beat.json()["code"], "CLOUD_PROFILE_DISABLED");
    let another = http::send(orchd.address, &chat()).expect("an answer");
    assert_eq!(another.status, 429);
    assert_eq!(another.header("retry-after"), Some("1"));
    assert_eq!(another.header("connection"), Some("close"));
    assert!(another.header("x-request-id").is_some());
    assert_eq!(another.json()["error"]["code"], "queue_full");
    orchd.logged("requests are in hand on nearly all connections");

    // They leave, and there is room.
    drop(asked);
    counted(0, 3 * LIMIT - room + 1);
    let waits = http::begin(orchd.address, &chat()).expect("a connection");
    counted(1, 3 * LIMIT - room + 1);
    orchd.logged("there is room for requests to engines again");
    drop(waits);
    counted(0, 3 * LIMIT - room + 1);
    engine.go(0);
    assert_eq!(running.next().expect("an event").as_deref(), Some("2"));
    assert_eq!(running.next().expect("the end"), None);
}

const CHAT: &[u8] = br#"{"model":"m","stream":true,"messages":[]}"#;

fn chat() -> Vec<u8> {
    let json = ("content-type", "application/json");
    written("POST", "/v1/chat/completions", &[json], CHAT)
}

/// A load balancer: asks again and again whether it is ready, over a connection of its own each time.
fn probe(orchd: &Process) -> impl Iterator<Item = String> {
    std::iter::repeat_with(|| {
        std::thread::sleep(Duration::from_millis(20));
        match http::get(orchd.address, "/readyz") {
            Ok(response) => response.status.to_string(),
            Err(e) => e.kind().to_string(),
        }
    })
}

/// Waits until it is being stopped, as whoever connects only now is told.
fn not_ready(orchd: &Process) {
    eventually(SOON, "it is not ready any more", || {
        let response = http::get(orchd.address, "/readyz").map_err(|e| e.to_string())?;
        match response.status {
            503 => Ok(()),
            other => Err(other.to_string()),
        }
    });
}

#[test]
fn who_connects_during_a_stop_is_answered_and_does_not_prolong_it() {
    let engine = ScriptedEngine::start("m", 2);
    let mut orchd = Process::start(&["serve", "--engine", &engine.named("a")], &[]);
    engine.script([Script::stream().event("1").hold().event("2").end()]);
    let mut events = http::send(orchd.address, &chat())
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));

    orchd.signal(Signal::SIGTERM);
    not_ready(&orchd);
    // For longer than an idle connection is given after a stop.
    let seen: Vec<_> = probe(&orchd).take(30).collect();
    assert!(seen.iter().all(|outcome| outcome == "503"), "{seen:?}");
    for (path, status) in [
        ("/health", 200),
        ("/livez", 200),
        ("/metrics", 200),
        ("/v2/pools", 200),
    ] {
        let response = http::get(orchd.address, path).expect("an answer");
        assert_eq!(response.status, status, "{path}");
    }
    let refused = http::send(orchd.address, &chat()).expect("an answer");
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    // Whoever keeps connections open learns that there is no next request on this one.
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");

    // Connections that were made during the stop and say nothing, or not all of it, keep nobody.
    let _idle = TcpStream::connect(orchd.address).expect("a connection");
    let _slow = http::begin(orchd.address, b"GET /readyz HTTP/1.1\r\nhost: ").expect("begun");
    let finished = std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let orchd = &orchd;
        scope.spawn(move || {
            // Until nobody listens any more, and nobody is there to be told.
            for outcome in probe(orchd).take_while(|outcome| outcome == "503") {
                drop(tell.send(outcome));
            }
        });
        for _ in 0..3 {
            told.recv().expect("it is probed");
        }
        engine.go(0);
        assert_eq!(events.next().expect("an event").as_deref(), Some("2"));
        assert_eq!(events.next().expect("the end"), None);
        Instant::now()
    });
    assert_eq!(orchd.wait(), Some(0));
    let took = finished.elapsed();
    eprintln!("the process ended {took:?} after the last stream did");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_stop_with_nothing_in_hand_ends_at_once() {
    let mut orchd = Process::start(&["serve"], &[]);
    let mut kept = http::begin(orchd.address, b"").expect("a connection");
    let request = written("GET", "/livez", &[], b"");
    assert_eq!(kept.ask(&request).expect("an answer").status, 200);
    let begun = Instant::now();
    orchd.signal(Signal::SIGTERM);
    assert_eq!(orchd.wait(), Some(0));
    let took = begun.elapsed();
    eprintln!("the process ended {took:?} after it was told to");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn half_a_request_from_before_a_stop_keeps_nobody() {
    let mut orchd = Process::start(&["serve"], &[]);
    let mut kept = http::begin(orchd.address, b"").expect("a connection");
    let request = written("GET", "/livez", &[], b"");
    assert_eq!(kept.ask(&request).expect("an answer").status, 200);
    let _half = http::begin(orchd.address, b"GET /v2/nod").expect("a connection");
    // Every thread has looked at its connections since.
    for _ in 0..20 {
        ask(&orchd);
    }
    let begun = Instant::now();
    orchd.signal(Signal::SIGTERM);
    assert_eq!(orchd.wait(), Some(0));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn when_nobody_can_be_taken_in_the_log_says_so() {
    let mut orchd = Process::start(&["serve", "--max-connections", "16"], &[]);
    let follow = written("GET", "/v2/events", &[], b"");
    let _followers: Vec<_> = (0..40)
        .map(|_| http::begin(orchd.address, &follow).expect("a connection"))
        .collect();
    orchd.logged("no more connections can be taken in for now");
}

#[test]
fn who_connects_to_an_agent_during_its_stop_is_told_so() {
    let engine = ScriptedEngine::start("m", 2);
    let server = crate::fake_control_plane::silent_port();
    let mut agent = Process::start(
        &[
            "agent",
            "--node-id",
            "gpu-1",
            "--server",
            server.as_str(),
            "--engine",
            &engine.named("a"),
        ],
        &[],
    );
    engine.script([Script::stream().event("1").hold().event("2").end()]);
    let json = ("content-type", "application/json");
    let chat = written("POST", "/pools/a/v1/chat/completions", &[json], CHAT);
    let mut events = http::send(agent.address, &chat)
        .expect("an answer")
        .events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));

    agent.signal(Signal::SIGTERM);
    agent.logged("stopping: ");
    let refused = http::send(agent.address, &chat).expect("an answer");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("x-orchd-refused"), Some("stopping"));
    let health = http::get(agent.address, "/health").expect("an answer");
    assert_eq!(health.status, 200);
    engine.go(0);
    assert_eq!(events.next().expect("an event").as_deref(), Some("2"));
    assert_eq!(events.next().expect("the end"), None);
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn a_head_that_is_too_large_is_told_so() {
    let orchd = Process::start(&["serve"], &[]);
    let large = "x".repeat(80 << 10);
    let response = http::send(
        orchd.address,
        &written("GET", "/health", &[("x-large", &large)], b""),
    )
    .expect("an answer");
    assert_eq!(response.status, 431);
    let ample = "x".repeat(32 << 10);
    let response = http::send(
        orchd.address,
        &written("GET", "/health", &[("x-ample", &ample)], b""),
    )
    .expect("an answer");
    assert_eq!(response.status, 200);
    eventually(SOON, "it serves others", || {
        http::get(orchd.address, "/health")
            .map(drop)
            .map_err(|e| e.to_string())
    });
}

/// Whether a process does not leave SIGTERM to the system: bit 14 of what it catches (proc(5)).
fn catches_sigterm(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    caught.is_some_and(|bits| bits & (1 << 14) != 0)
}

#[test]
fn a_stop_that_comes_before_anything_was_done_is_one_in_good_order() {
    let authority = Authority::new("orchd test").pem();
    for arguments in [&["agent", "--node-id", "n"][..], &["serve"]] {
        let dir = tempfile::tempdir().expect("a directory");
        // A start that reads from a pipe goes no further until the test lets it.
        let pipe = dir.path().join("ca.pem");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("runs").success());
        let listen = free_address().to_string();
        let ca = pipe.to_str().expect("UTF-8");
        let options = [arguments, &["--listen", &listen, "--ca", ca]].concat();
        let mut command = orchd(&options);
        command.env("HOME", dir.path()).current_dir(dir.path());
        let mut running = Running::spawn(arguments[0], &mut command, &dir.path().join("log"));
        eventually(SOON, "it hears signals", || {
            if catches_sigterm(running.pid()) {
                Ok(())
            } else {
                Err(running.log())
            }
        });
        running.terminate();
        std::fs::write(&pipe, &authority).expect("it is read");
        assert_eq!(running.wait(SOON), Some(0), "{}", running.log());
    }
}
