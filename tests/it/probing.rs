//! What an engine is asked by whoever watches it: nothing that keeps a sleeper from its sleep, and with its key.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{eventually, free_address, http};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(15);

fn pool(orchd: &Orchd) -> Value {
    let pools = http::get_json(orchd.address, "/v2/pools");
    pools["pools"].get(0).cloned().unwrap_or_default()
}

/// Waits until the one pool is in this state.
fn becomes(orchd: &Orchd, state: &str) -> Value {
    let look = || {
        let pool = pool(orchd);
        if pool["state"] == state {
            Ok(pool)
        } else {
            Err(pool.to_string())
        }
    };
    eventually(SOON, &format!("it is {state}"), look).0
}

/// Answers of an engine of one slot that tells whether it sleeps, and what it was asked.
#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    /// Requests that are answered when the test says so.
    working: AtomicUsize,
    looks: AtomicUsize,
    healths: AtomicUsize,
    may_end: Mutex<bool>,
    told: Condvar,
}

impl Sleeper {
    fn start() -> (Arc<Self>, String) {
        let address = free_address();
        let (listener, _) = eventually(SOON, "the port is this test's own", || {
            TcpListener::bind(address).map_err(|e| e.to_string())
        });
        let sleeper = Arc::new(Self::default());
        let served = Arc::clone(&sleeper);
        // Ends with the process of this test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || served.serve(stream));
            }
        });
        (sleeper, format!("http://{address}"))
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut buffer = vec![0; 65_536];
        let Ok(read @ 1..) = stream.read(&mut buffer) else {
            return;
        };
        let head = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let asleep = self.asleep.load(Ordering::SeqCst);
        let body = match head.split(' ').nth(1).unwrap_or_default() {
            "/health" => {
                self.healths.fetch_add(1, Ordering::SeqCst);
                json!({"status": "ok"})
            }
            "/props" => json!({"total_slots": 1, "is_sleeping": asleep, "endpoint_slots": true,
                "endpoint_metrics": false, "default_generation_settings": {"n_ctx": 8192}}),
            "/v1/models" => json!({"data": [{"id": "m"}]}),
            "/slots" => {
                self.looks.fetch_add(1, Ordering::SeqCst);
                json!([{"is_processing": self.working.load(Ordering::SeqCst) > 0}])
            }
            _ => {
                self.working.fetch_add(1, Ordering::SeqCst);
                let mut may_end = self.may_end.lock().expect("not poisoned");
                while !*may_end {
                    may_end = self.told.wait(may_end).expect("not poisoned");
                }
                self.working.fetch_sub(1, Ordering::SeqCst);
                json!({"choices": []})
            }
        };
        let body = body.to_string();
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }

    fn end(&self) {
        *self.may_end.lock().expect("not poisoned") = true;
        self.told.notify_all();
    }

    /// Waits for so many more rounds.
    fn rounds(&self, count: usize) {
        let before = self.healths.load(Ordering::SeqCst);
        eventually(SOON, "it is read again", || {
            let healths = self.healths.load(Ordering::SeqCst);
            if healths >= before + count {
                Ok(())
            } else {
                Err(format!("{} of {count} rounds", healths - before))
            }
        });
    }

    fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }
}

#[test]
fn a_sleeper_is_left_alone_until_it_works_and_its_work_for_this_orchd_is_seen() {
    let (engine, url) = Sleeper::start();
    engine.asleep.store(true, Ordering::SeqCst);
    let state = tempfile::tempdir().expect("a directory for the state");
    // A node without an agent is read at least every third of the time-out.
    let orchd = Orchd::serve_cloud(state.path(), &["--node-timeout", "3s"]);
    let registered = orchd.command(&["nodes", "register", "n1", "--engine", &url]);
    assert_eq!(registered.exit, Some(0), "{}", registered.stderr);
    let pool = becomes(&orchd, "sleeping");
    assert_eq!(pool["ready"], true, "{pool}");
    assert_eq!(engine.looks(), 0);

    // Somebody woke it, and is done.
    engine.asleep.store(false, Ordering::SeqCst);
    becomes(&orchd, "ready");
    let looks = engine.looks();
    assert_eq!(looks, 1, "who woke it might be at work");
    engine.rounds(2);
    assert_eq!(engine.looks(), looks, "it may fall asleep again");

    // Its one slot works for this orchd, which is no reason to leave it alone.
    let address = orchd.address;
    let asked = std::thread::spawn(move || {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hello!"}]});
        http::post(address, "/v1/chat/completions", &body).map(|answer| answer.status)
    });
    let pool = becomes(&orchd, "busy");
    assert_eq!(
        (&pool["external"], &pool["slots_free"]),
        (&json!(0), &json!(0))
    );
    engine.end();
    let _ = asked.join().expect("no panic");
    becomes(&orchd, "ready");
    // On a busy machine a look or two that were due before come only now.
    let left_alone = (0..5).any(|_| {
        let looks = engine.looks();
        engine.rounds(2);
        engine.looks() == looks
    });
    assert!(left_alone, "idle again, it may fall asleep again");
    let looks = engine.looks();
    engine.rounds(4);
    assert_eq!(engine.looks(), looks);
}

#[test]
fn a_real_engine_that_wants_a_key_is_said_to_want_it_and_is_used_once_it_is_shown() {
    let engine = Engine::start_with(Model::Counting, 2, 16_384, &["--api-key", "sesame"]);
    let runtime = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(runtime.path().join(name), text).expect("writes");
    };
    let url = engine.url();
    write("e.json", &json!({"url": url}).to_string());
    let path = runtime.path().to_str().expect("a path in UTF-8");
    let orchd = Orchd::serve_home(&[], &["--runtime-dir", path]);
    let pool = becomes(&orchd, "misconfigured");
    assert_eq!(pool["ready"], false);
    let log = orchd.log();
    assert!(
        log.contains("it wants a key (--api-key): name the file"),
        "{log}"
    );

    write("key", "open");
    write(
        "e.json",
        &json!({"url": url, "api_key_file": "key"}).to_string(),
    );
    eventually(SOON, "the wrong key is said to be wrong", || {
        let log = orchd.log();
        if log.contains("it refuses the key that is shown to it") {
            Ok(())
        } else {
            Err(log)
        }
    });
    write("key", "sesame");
    let pool = becomes(&orchd, "ready");
    assert_eq!(pool["models"], json!(["counting"]));
    assert_eq!(pool["slots_total"], 2);
}
