//! Who is let in where, and how a token is exchanged without anybody noticing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, Response, written};
use crate::support::secure::{Process, SOON, command, write};

const OLD: &str = "old-0123456789abcdef0123456789abcdef";
const NEW: &str = "new-0123456789abcdef0123456789abcdef";
const CLIENT: &str = "client-0123456789abcdef0123456789";
const ANSWER: &str = r#"{"object":"list","data":[1]}"#;

fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![
        ("content-type", "application/json"),
        ("connection", "close"),
    ];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    http::send(address, &written(method, path, &headers, body.as_bytes())).expect("an answer")
}

fn status(address: SocketAddr, path: &str, token: Option<&str>) -> u16 {
    send(address, "GET", path, token, "").status
}

/// Waits until a path answers a token with this status.
fn becomes(address: SocketAddr, path: &str, token: &str, wanted: u16) {
    eventually(SOON, &format!("{path} answers {wanted}"), || {
        match status(address, path, Some(token)) {
            found if found == wanted => Ok(()),
            found => Err(found.to_string()),
        }
    });
}

fn embed() -> String {
    json!({"model": "m", "input": "x"}).to_string()
}

#[test]
fn a_clients_token_opens_v1_and_nothing_else() {
    let engine = ScriptedEngine::start("m", 2);
    engine.always(Script::whole(200, ANSWER));
    let dir = tempfile::tempdir().expect("a directory");
    let clients =
        format!("# the people of team one\n{CLIENT}\n\n# and of team two\n{CLIENT}-two\n");
    let clients = write(dir.path(), "clients", &clients);
    let orchd = Process::start(
        &[
            "serve",
            "--engine",
            &engine.named("a"),
            "--client-token-file",
            &clients,
        ],
        &[("ORCHD_API_TOKEN", OLD)],
    );
    let at = orchd.address;
    let two = format!("{CLIENT}-two");
    // Without a token; the operators'; a client's; something else.
    let table = [
        ("/v1/models", [401, 200, 200, 401]),
        ("/v2/pools", [401, 200, 403, 401]),
        ("/v2/catalog/availability", [401, 200, 403, 401]),
        ("/v2/nodes", [401, 503, 403, 401]),
        ("/v2/no-such-thing", [401, 404, 403, 401]),
        ("/no-such-thing", [401, 404, 403, 401]),
        ("/health", [200; 4]),
        ("/livez", [200; 4]),
        ("/readyz", [200; 4]),
    ];
    for (path, wanted) in table {
        let found =
            [None, Some(OLD), Some(two.as_str()), Some(NEW)].map(|token| status(at, path, token));
        assert_eq!(found, wanted, "{path}");
    }
    // Scrapers have no token either, whether or not there is something to scrape.
    assert!(![401, 403].contains(&status(at, "/metrics", None)));
    assert_eq!(
        send(at, "POST", "/v1/embeddings", Some(CLIENT), &embed()).status,
        200
    );
    let key = [("x-api-key", CLIENT), ("connection", "close")];
    let response = http::send(at, &written("GET", "/v2/pools", &key, b"")).expect("an answer");
    assert_eq!(response.status, 403);
    let body = response.json();
    assert_eq!(
        (&body["code"], &body["retryable"]),
        (&json!("FORBIDDEN"), &json!(false))
    );
    assert_eq!(body["error"], body["message"]);
    // Old clients find what they know in a refusal as well.
    for (path, field) in [
        ("/v2/nodes/register", "node_id"),
        ("/v2/nodes/x/heartbeat", "next_heartbeat_ms"),
    ] {
        for token in [None, Some(CLIENT), Some(OLD)] {
            let body = send(at, "POST", path, token, "{}").json();
            assert_eq!(body["success"], false, "{body}");
            assert!(!body[field].is_null(), "{body}");
        }
    }
    // A command with a client's token is told so.
    let server = format!("http://{at}");
    let ran = command(
        &["nodes", "list"],
        &[("ORCHD_SERVER", &server), ("LLORCH_API_TOKEN", CLIENT)],
    );
    assert_eq!(ran.exit, Some(7), "{}", ran.stderr);
    assert!(ran.stderr.contains("a client's token"), "{}", ran.stderr);
    // No token is ever written down; its fingerprint is.
    let log = orchd.log();
    assert!(log.contains("api=\"") && log.contains("client=\""), "{log}");
    for secret in [OLD, CLIENT] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// A control plane, an agent and an engine; each of the first two has a token file of its own.
struct Fleet {
    plane: Process,
    agent: Process,
    plane_file: String,
    agent_file: String,
    dir: tempfile::TempDir,
}

impl Fleet {
    fn start(engine: &ScriptedEngine) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let plane_file = write(dir.path(), "plane", OLD);
        let agent_file = write(dir.path(), "agent", OLD);
        let state = dir.path().join("state");
        let plane = Process::start(
            &[
                "serve",
                "--cloud",
                "--node-timeout",
                "1500ms",
                "--state-dir",
                state.to_str().expect("UTF-8"),
            ],
            &[
                ("ORCHD_API_TOKEN_FILE", &plane_file),
                ("ORCHD_CLIENT_TOKEN", CLIENT),
            ],
        );
        let server = format!("http://{}", plane.address);
        let engine = engine.named("a");
        let agent = Process::start(
            &[
                "agent",
                "--node-id",
                "gpu-1",
                "--server",
                &server,
                "--engine",
                &engine,
            ],
            &[("ORCHD_API_TOKEN_FILE", &agent_file)],
        );
        let fleet = Self {
            plane,
            agent,
            plane_file,
            agent_file,
            dir,
        };
        eventually(SOON, "a request is served", || match fleet.ask() {
            200 => Ok(()),
            other => Err(other.to_string()),
        });
        fleet
    }

    fn ask(&self) -> u16 {
        send(
            self.plane.address,
            "POST",
            "/v1/embeddings",
            Some(CLIENT),
            &embed(),
        )
        .status
    }

    fn write(&self, file: &str, lines: &[&str]) {
        let name = Path::new(file)
            .file_name()
            .expect("a name")
            .to_str()
            .expect("UTF-8");
        write(self.dir.path(), name, &lines.join("\n"));
    }

    fn node(&self, token: &str) -> Value {
        let response = send(
            self.plane.address,
            "GET",
            "/v2/nodes/gpu-1",
            Some(token),
            "",
        );
        assert_eq!(response.status, 200);
        response.json()
    }
}

#[test]
fn a_token_is_exchanged_under_load_and_nobody_notices() {
    const POOL: &str = "/pools/a/health";
    let engine = ScriptedEngine::start("m", 4);
    engine.always(Script::whole(200, ANSWER));
    let fleet = Fleet::start(&engine);
    let (plane, agent) = (fleet.plane.address, fleet.agent.address);
    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(fleet.ask(), 200);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let rotate = || {
            // Both accept the new one; both go on sending the old one.
            fleet.write(&fleet.plane_file, &[OLD, NEW]);
            fleet.write(&fleet.agent_file, &[OLD, NEW]);
            becomes(plane, "/v2/pools", NEW, 200);
            becomes(agent, POOL, NEW, 200);
            assert_eq!(status(plane, "/v2/pools", Some(OLD)), 200);
            // Both send the new one.
            fleet.write(&fleet.agent_file, &[NEW, OLD]);
            fleet.write(&fleet.plane_file, &[NEW, OLD]);
            fleet.agent_says("the tokens were exchanged", 2);
            fleet.plane_says("the tokens were exchanged", 2);
            // The old one is gone.
            fleet.write(&fleet.plane_file, &[NEW]);
            fleet.write(&fleet.agent_file, &[NEW]);
            becomes(plane, "/v2/pools", OLD, 401);
            becomes(agent, POOL, OLD, 401);
            // The agent is heard all the same.
            let heard = |node: &Value| node["last_heartbeat_ms"].as_u64().expect("a time");
            let then = heard(&fleet.node(NEW));
            eventually(SOON, "the agent is heard with its new token", || {
                let node = fleet.node(NEW);
                if heard(&node) > then + 1_500 && node["status"] == "Online" {
                    Ok(())
                } else {
                    Err(node.to_string())
                }
            });
        };
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(rotate));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("every request was served");
        }
        rotated.expect("the token was exchanged");
    });
    eprintln!(
        "{} requests were served meanwhile",
        served.load(Ordering::Relaxed)
    );
    // A file without a token changes nothing, and is told once.
    fleet.write(&fleet.plane_file, &["# soon"]);
    fleet.plane_says("the tokens in the file are not taken", 1);
    assert_eq!(status(plane, "/v2/pools", Some(NEW)), 200);
    for log in [fleet.plane.log(), fleet.agent.log()] {
        assert!(!log.contains(OLD) && !log.contains(NEW), "{log}");
    }
}

impl Fleet {
    fn plane_says(&self, words: &str, times: usize) {
        says(&self.plane, words, times);
    }

    fn agent_says(&self, words: &str, times: usize) {
        says(&self.agent, words, times);
    }
}

fn says(process: &Process, words: &str, times: usize) {
    eventually(SOON, &format!("{times} times {words:?}"), || {
        let log = process.log();
        if log.matches(words).count() >= times {
            Ok(())
        } else {
            Err(log)
        }
    });
}

/// Arguments, environment, and words of the refusal.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn what_cannot_be_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str, text: &str| write(dir.path(), name, text);
    let (good, short, empty) = (
        path("good", OLD),
        path("short", "s3cret\n"),
        path("empty", "# none\n"),
    );
    let bad = path("bad", &format!("{OLD}\nto ken\n"));
    let missing = dir
        .path()
        .join("missing")
        .to_str()
        .expect("UTF-8")
        .to_owned();
    let table: [Case; 16] = [
        (
            &["serve", "--api-token", OLD, "--api-token-file", &good],
            &[],
            "both a token (flag --api-token) and a file of tokens (flag --api-token-file)",
        ),
        (
            &["serve"],
            &[("LLORCH_API_TOKEN", OLD), ("ORCHD_API_TOKEN_FILE", &good)],
            "both a token (env LLORCH_API_TOKEN) and a file of tokens (env ORCHD_API_TOKEN_FILE)",
        ),
        (
            &["agent"],
            &[("ORCHD_API_TOKEN", OLD), ("ORCHD_API_TOKEN_FILE", &good)],
            "both a token (env ORCHD_API_TOKEN)",
        ),
        (
            &["nodes", "list"],
            &[("ORCHD_API_TOKEN", OLD), ("ORCHD_API_TOKEN_FILE", &good)],
            "both a token",
        ),
        (
            &["serve"],
            &[
                ("ORCHD_CLIENT_TOKEN", CLIENT),
                ("ORCHD_CLIENT_TOKEN_FILE", &good),
            ],
            "both a token (env ORCHD_CLIENT_TOKEN)",
        ),
        (&["serve", "--api-token-file", &missing], &[], "cannot read"),
        (
            &["serve", "--api-token-file", &empty],
            &[],
            "it holds no token",
        ),
        (&["serve", "--api-token-file", &bad], &[], "line 2"),
        (
            &["nodes", "list", "--api-token-file", &missing],
            &[],
            "cannot read",
        ),
        (
            &["serve", "--listen", "0.0.0.0:0", "--api-token-file", &short],
            &[],
            "shorter than 32",
        ),
        (
            &[
                "serve",
                "--listen",
                "0.0.0.0:0",
                "--api-token-file",
                &good,
                "--client-token-file",
                &short,
            ],
            &[],
            "shorter than 32",
        ),
        (
            &["agent", "--listen", "0.0.0.0:0"],
            &[("ORCHD_API_TOKEN", "s3cret")],
            "shorter than 32",
        ),
        (&["serve", "--tls-cert", &good], &[], "without --tls-key"),
        (&["agent", "--tls-key", &good], &[], "without --tls-cert"),
        (
            &["serve", "--tls-cert", &good, "--tls-key", &good],
            &[],
            "holds no certificate",
        ),
        (
            &["nodes", "list", "--ca", &empty],
            &[],
            "holds no certificate",
        ),
    ];
    for (arguments, environment, words) in table {
        let ran = command(arguments, environment);
        assert_eq!(ran.exit, Some(2), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
        for secret in [OLD, CLIENT, "s3cret"] {
            assert!(!ran.stderr.contains(secret), "{}", ran.stderr);
        }
    }
}

#[test]
fn a_short_token_is_warned_of_on_loopback() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "token", "s3cret\n");
    let mut orchd = Process::start(&["serve", "--api-token-file", &file], &[]);
    orchd.logged("shorter than 32 characters");
    assert_eq!(status(orchd.address, "/v2/pools", Some("s3cret")), 200);
    // The other name of the variable works as well, and an empty one is none.
    let none = [
        "ORCHD_API_TOKEN",
        "ORCHD_API_TOKEN_FILE",
        "ORCHD_TLS_CERT",
        "ORCHD_CA",
    ];
    let mut environment = none.map(|name| (name, "")).to_vec();
    environment.push(("LLORCH_API_TOKEN", OLD));
    let orchd = Process::start(&["serve"], &environment);
    assert_eq!(status(orchd.address, "/v2/pools", Some(OLD)), 200);
    assert_eq!(status(orchd.address, "/v2/pools", None), 401);
}

#[test]
fn a_short_token_is_warned_of_when_it_comes_later_and_a_file_that_is_gone_was_not_read_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "token", OLD);
    let mut orchd = Process::start(&["serve", "--api-token-file", &file], &[]);
    orchd.logged("a token is needed");
    assert!(!orchd.log().contains("shorter than 32"), "{}", orchd.log());
    write(dir.path(), "token", "s3cret\n");
    orchd.signal(Signal::SIGHUP);
    orchd.logged("shorter than 32 characters");
    orchd.logged("SIGHUP: tokens and certificates were read again");
    std::fs::remove_file(&file).expect("it is there");
    orchd.signal(Signal::SIGHUP);
    orchd.logged("are not taken; those from before stay in force");
    // What is said of a signal is said by the time that the next one is heard.
    write(dir.path(), "token", OLD);
    orchd.signal(Signal::SIGHUP);
    says(&orchd, "the tokens were exchanged", 2);
    says(&orchd, "SIGHUP: ", 2);
    assert_eq!(orchd.log().matches("SIGHUP: ").count(), 2);
}

#[test]
fn a_command_shows_the_first_token_of_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let plane = Process::start(
        &["serve", "--cloud", "--state-dir", state],
        &[("ORCHD_API_TOKEN", NEW)],
    );
    let server = format!("http://{}", plane.address);
    for (lines, exit) in [([NEW, OLD], 0), ([OLD, NEW], 7)] {
        let file = write(dir.path(), "token", &lines.join("\n"));
        let ran = command(
            &[
                "nodes",
                "list",
                "--server",
                &server,
                "--api-token-file",
                &file,
            ],
            &[],
        );
        assert_eq!(ran.exit, Some(exit), "{}", ran.stderr);
    }
}

#[test]
fn the_fleets_token_goes_to_the_registered_address_and_nowhere_else() {
    let (agent, stranger) = (ScriptedEngine::start("m", 4), ScriptedEngine::start("m", 4));
    for engine in [&agent, &stranger] {
        engine.always(Script::whole(200, ANSWER));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let plane = Process::start(
        &[
            "serve",
            "--cloud",
            "--state-dir",
            state.to_str().expect("UTF-8"),
        ],
        &[("ORCHD_API_TOKEN", OLD), ("ORCHD_CLIENT_TOKEN", CLIENT)],
    );
    let at = plane.address;
    let tell = |path: &str, body: &Value| {
        let response = send(at, "POST", path, Some(OLD), &body.to_string());
        assert_eq!(response.status, 200, "{path}");
    };
    tell(
        "/v2/nodes/register",
        &json!({"node_id": "n", "address": agent.url()}),
    );
    let pool = |pool_id: &str, url: Option<String>| {
        json!({"pool_id": pool_id, "ready": true, "slots_free": 1, "slots_total": 1, "models_available": [pool_id],
            "url": url})
    };
    let same_origin = format!("{}/elsewhere", agent.url());
    let pools = [
        pool("default", None),
        pool("same", Some(same_origin)),
        pool("other", Some(stranger.url())),
    ];
    tell("/v2/nodes/n/heartbeat", &json!({"pools": pools}));
    for model in ["default", "same", "other"] {
        let body = json!({"model": model, "input": "x"}).to_string();
        let response = send(at, "POST", "/v1/embeddings", Some(CLIENT), &body);
        assert_eq!(response.status, 200, "{model}");
    }
    let seen = |engine: &ScriptedEngine| -> Vec<(String, Option<String>)> {
        let asked = engine.asked().into_iter();
        asked
            .map(|asked| (asked.target.clone(), asked.header("authorization")))
            .collect()
    };
    let token = Some(format!("Bearer {OLD}"));
    assert_eq!(
        seen(&agent),
        [
            ("/pools/default/v1/embeddings".to_owned(), token.clone()),
            ("/elsewhere/v1/embeddings".to_owned(), token),
        ]
    );
    assert_eq!(
        seen(&stranger),
        [("/v1/embeddings".to_owned(), None)],
        "a port of the same host is another origin"
    );
    for asked in stranger.asked().iter().chain(&stranger.probes()) {
        let secret = asked
            .headers()
            .iter()
            .find(|(_, value)| value.contains(OLD) || value.contains(CLIENT));
        assert_eq!(secret, None, "{}", asked.target);
    }
}

#[test]
fn an_agent_turns_a_large_request_away_so_that_it_is_understood() {
    let engine = ScriptedEngine::start("m", 1);
    let agent = Process::start(
        &[
            "agent",
            "--node-id",
            "gpu-1",
            "--engine",
            &engine.named("a"),
        ],
        &[("ORCHD_API_TOKEN", OLD)],
    );
    let body = "x".repeat(4 << 20);
    let table = [
        ("/pools/a/v1/embeddings", NEW, 401, "unauthorized"),
        ("/pools/b/v1/embeddings", OLD, 404, "unknown_pool"),
        ("/else", NEW, 401, "unauthorized"),
    ];
    for (path, token, status, code) in table {
        let response = send(agent.address, "POST", path, Some(token), &body);
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.header("x-orchd-refused"), Some(code), "{path}");
        assert_eq!(response.json()["error"]["code"], code, "{path}");
    }
    assert_eq!(status(agent.address, "/health", None), 200);
}

#[test]
fn an_agent_tells_a_token_that_is_missing_from_one_that_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().to_str().expect("UTF-8");
    let plane = Process::start(
        &["serve", "--cloud", "--state-dir", state],
        &[("ORCHD_API_TOKEN", OLD), ("ORCHD_CLIENT_TOKEN", CLIENT)],
    );
    let server = format!("http://{}", plane.address);
    let agent = |token: &[(&str, &str)], words: &str| {
        let mut agent = Process::start(&["agent", "--node-id", "n", "--server", &server], token);
        agent.logged(words);
        agent.log()
    };
    let missing = "wants a token and was shown none";
    let wrong = "does not take the token it was shown";
    let log = agent(&[], missing);
    assert!(!log.contains(wrong) && !log.contains("client="), "{log}");
    for token in [NEW, CLIENT] {
        let log = agent(&[("ORCHD_API_TOKEN", token)], wrong);
        assert!(!log.contains(missing) && !log.contains(token), "{log}");
        // A field that would be empty is left out.
        assert!(log.contains("api=\"") && !log.contains("client="), "{log}");
    }
}
