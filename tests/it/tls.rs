//! TLS from one end to the other: control plane, agent, commands, engines.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, written};
use crate::support::secure::{
    Authority, Issued, Process, SOON, command, https, https_begin, write,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const BEARER: (&str, &str) = ("authorization", "Bearer 0123456789abcdef0123456789abcdef");
const CLOSE: (&str, &str) = ("connection", "close");

/// A directory with an authority's certificate in `ca.pem`, and one it issued in `cert.pem` and `key.pem`.
pub struct Files {
    dir: tempfile::TempDir,
    authority: Authority,
    ca: String,
    cert: String,
    key: String,
}

impl Files {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("orchd tests");
        let issued = authority.issue();
        Self {
            ca: write(dir.path(), "ca.pem", &authority.pem()),
            cert: write(dir.path(), "cert.pem", &issued.cert),
            key: write(dir.path(), "key.pem", &issued.key),
            authority,
            dir,
        }
    }

    fn show(&self, cert: &str, key: &str) {
        write(self.dir.path(), "cert.pem", cert);
        write(self.dir.path(), "key.pem", key);
    }

    fn issued(&self, issued: &Issued) {
        self.show(&issued.cert, &issued.key);
    }

    pub fn environment(&self) -> [(&str, &str); 4] {
        [
            ("ORCHD_TLS_CERT", &self.cert),
            ("ORCHD_TLS_KEY", &self.key),
            ("ORCHD_CA", &self.ca),
            ("ORCHD_API_TOKEN", TOKEN),
        ]
    }

    /// Sends a request over TLS and reads the first bytes of the answer. Dropping it is leaving.
    fn begin(
        &self,
        address: SocketAddr,
        request: &[u8],
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let mut stream =
            https_begin(address, &self.authority.pem(), request).expect("a connection");
        stream.read_exact(&mut [0]).expect("an answer");
        stream
    }

    /// GET over TLS; status line, headers and body as they came.
    fn get(&self, address: SocketAddr, path: &str) -> String {
        let request = written("GET", path, &[BEARER, CLOSE], b"");
        https(address, &self.authority.pem(), &request).expect("an answer")
    }
}

fn body(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

#[test]
fn a_fleet_speaks_tls_on_every_hop() {
    let files = Files::new();
    let engine = ScriptedEngine::start("m", 2);
    let state = files.dir.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let mut plane = Process::start(
        &[
            "serve",
            "--cloud",
            "--node-timeout",
            "1500ms",
            "--state-dir",
            state,
        ],
        &files.environment(),
    );
    plane.logged("listening on https://");
    let server = format!("https://{}", plane.address);
    let mut agent = Process::start(
        &[
            "agent",
            "--node-id",
            "gpu-1",
            "--server",
            &server,
            "--engine",
            &engine.named("a"),
        ],
        &files.environment(),
    );
    agent.logged("listening on https://");
    eventually(SOON, "the pool is ready", || {
        let pools = body(&files.get(plane.address, "/v2/pools"));
        if pools["pools"][0]["ready"] == true {
            Ok(())
        } else {
            Err(pools.to_string())
        }
    });

    // A stream through both hops, byte for byte.
    engine.script([Script::stream()
        .events(3, Duration::from_millis(20))
        .event("[DONE]")
        .end()]);
    let chat = json!({"model": "m", "stream": true, "messages": []}).to_string();
    let json = ("content-type", "application/json");
    let request = written(
        "POST",
        "/v1/chat/completions",
        &[BEARER, CLOSE, json],
        chat.as_bytes(),
    );
    let answer = https(plane.address, &files.authority.pem(), &request).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("x-orchd-node: gpu-1\r\n"), "{answer}");
    let seen: Vec<_> = [
        "{\"n\":1}",
        "{\"n\":2}",
        "{\"n\":3}",
        "[DONE]",
        "\r\n0\r\n\r\n",
    ]
    .map(|part| answer.find(part))
    .into_iter()
    .collect();
    assert!(
        seen.iter().all(Option::is_some) && seen.is_sorted(),
        "{answer}"
    );

    // A client that leaves in the middle is gone for the engine as well, at once.
    engine.script([Script::stream().event("1").silence()]);
    let begun = files.begin(plane.address, &request);
    engine.wait_for(2);
    let left = Instant::now();
    drop(begun);
    let found = engine.wait_left(1).saturating_duration_since(left);
    eprintln!("the engine saw the client leave {found:?} after it did");
    assert!(found < Duration::from_secs(2), "after {found:?}");

    // An operator, by the authority's file.
    let list = ["nodes", "list", "--server", &server, "-o", "json"];
    let with = |ca: &str| {
        command(
            &[&list[..], &["--ca", ca]].concat(),
            &[("ORCHD_API_TOKEN", TOKEN)],
        )
    };
    let ran = with(&files.ca);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    let nodes: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let node = &nodes["nodes"][0];
    assert_eq!(node["status"], "Online", "{nodes}");
    assert_eq!(
        node["address"],
        format!("https://{}", agent.address),
        "{nodes}"
    );

    // By another's, by none at all, by another name, without TLS.
    let other = write(
        files.dir.path(),
        "other.pem",
        &Authority::new("somebody else").pem(),
    );
    let ran = with(&other);
    assert_eq!(ran.exit, Some(6), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("name its CA with --ca"),
        "{}",
        ran.stderr
    );
    let by_name = server.replace("127.0.0.1", "localhost");
    let ran = command(
        &["nodes", "list", "--server", &by_name, "--ca", &files.ca],
        &[("ORCHD_API_TOKEN", TOKEN)],
    );
    assert_eq!(ran.exit, Some(6), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("not for localhost, but for 127.0.0.1;"),
        "{}",
        ran.stderr
    );
    let plain = server.replace("https://", "http://");
    let ran = command(
        &["nodes", "list", "--server", &plain],
        &[("ORCHD_API_TOKEN", TOKEN)],
    );
    assert_ne!(ran.exit, Some(0));
    assert!(
        ran.stderr.contains("this port speaks TLS: use https://"),
        "{}",
        ran.stderr
    );
    let hint = format!("hint: say --server {server}, or set ORCHD_SERVER to it\n");
    assert!(ran.stderr.ends_with(&hint), "{}", ran.stderr);
}

#[test]
fn a_gateway_sends_nothing_to_an_agent_that_it_cannot_verify() {
    let files = Files::new();
    let engine = ScriptedEngine::start("m", 2);
    let state = files.dir.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let mut plane = Process::start(
        &[
            "serve",
            "--cloud",
            "--no-pool-wait",
            "100ms",
            "--state-dir",
            state,
        ],
        &files.environment(),
    );
    let server = format!("https://{}", plane.address);
    files.issued(&Authority::new("somebody else").issue());
    let agent = Process::start(
        &[
            "agent",
            "--node-id",
            "gpu-1",
            "--server",
            &server,
            "--engine",
            &engine.named("a"),
        ],
        &files.environment(),
    );
    eventually(SOON, "the model is known", || {
        let models = body(&files.get(plane.address, "/v1/models"));
        if models["data"][0]["id"] == "m" {
            Ok(())
        } else {
            Err(models.to_string())
        }
    });
    let json = ("content-type", "application/json");
    let request = written(
        "POST",
        "/v1/embeddings",
        &[BEARER, CLOSE, json],
        br#"{"model":"m","input":"x"}"#,
    );
    let answer = https(plane.address, &files.authority.pem(), &request).expect("an answer");
    let refused = answer.starts_with("HTTP/1.1 503 ") || answer.starts_with("HTTP/1.1 502 ");
    assert!(refused, "{answer}");
    plane.logged("name its CA with --ca");
    drop(agent);
    // An engine that is asked for something it has no script for fails the test.
}

#[test]
fn a_certificate_is_exchanged_without_a_restart_and_a_bad_one_is_not_taken() {
    let files = Files::new();
    let mut orchd = Process::start(&["serve"], &files.environment());
    let at = orchd.address;
    let server = format!("https://{at}");
    let list = |words: &str| {
        let run = || {
            command(
                &["nodes", "list", "--server", &server],
                &[("ORCHD_API_TOKEN", TOKEN), ("ORCHD_CA", &files.ca)],
            )
        };
        eventually(SOON, words, || {
            let ran = run();
            if ran.stderr.contains(words) {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        });
    };
    // A HOME control plane answers, which takes a handshake.
    list("HOME");
    files.issued(&files.authority.issue_for("127.0.0.1", 2020));
    list("its certificate has expired");
    // The key of another certificate: what there was stays.
    let good = files.authority.issue();
    files.show(&good.cert, &files.authority.issue().key);
    orchd.logged("the certificate is not taken; the one from before stays in use");
    list("its certificate has expired");
    files.issued(&good);
    list("HOME");
    assert!(files.get(at, "/health").starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_engine_behind_https_is_read_and_used_and_one_that_cannot_be_verified_is_not() {
    let files = Files::new();
    let engine = ScriptedEngine::start("m", 2);
    engine.always(Script::whole(200, r#"{"object":"list","data":[1]}"#));
    // What an agent relays is, to somebody else, an engine that speaks https.
    let tls = files.environment();
    let agent = Process::start(
        &[
            "agent",
            "--node-id",
            "gpu-1",
            "--engine",
            &engine.named("a"),
        ],
        &tls[..2],
    );
    let url = format!("https://{}/pools/a", agent.address);
    let trusting = Process::start(&["serve", "--engine", &url], &[tls[2]]);
    let ready = |at: SocketAddr| http::get_json(at, "/v2/pools")["pools"][0]["ready"] == true;
    eventually(SOON, "the engine is read", || {
        if ready(trusting.address) {
            Ok(())
        } else {
            Err("not ready".to_owned())
        }
    });
    let body = json!({"model": "m", "input": "x"});
    let response = http::post(trusting.address, "/v1/embeddings", &body).expect("an answer");
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["data"], json!([1]));

    let other = write(
        files.dir.path(),
        "other.pem",
        &Authority::new("somebody else").pem(),
    );
    let mut wary = Process::start(&["serve", "--engine", &url, "--ca", &other], &[]);
    wary.logged("name its CA with --ca");
    assert!(!ready(wary.address));
}
