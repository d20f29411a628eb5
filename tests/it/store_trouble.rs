//! A store that cannot be written, read or understood: what is known goes on, nothing is half done, and no file is
//! touched that orchd does not understand.
//!
//! A full disk is played with the limit of a process on the size of its files, which can be lifted again from outside:
//! every write that makes a file longer fails, those of the log included.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::fake_control_plane::orchd;
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::http::{self, Response, written};
use crate::support::orchd::Orchd;
use crate::support::process::Running;
use crate::support::{eventually, free_address};

const JSON: (&str, &str) = ("content-type", "application/json");
const SOON: Duration = Duration::from_secs(10);
/// How long a start that must not succeed may take.
const START: Duration = Duration::from_secs(20);

fn ask(server: &Orchd, method: &str, path: &str, body: &Value) -> Response {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    http::send(
        server.address,
        &written(method, path, &[JSON], body.as_bytes()),
    )
    .expect("an answer")
}

/// The JSON of an answer that must have this status.
fn answer(server: &Orchd, status: u16, method: &str, path: &str, body: &Value) -> Value {
    let response = ask(server, method, path, body);
    let found = response.status;
    let body = match found {
        204 => Value::Null,
        _ => response.json(),
    };
    assert_eq!(found, status, "{method} {path}: {body}");
    body
}

fn registration(node_id: &str, version: &str) -> Value {
    json!({"node_id": node_id, "address": "http://10.0.0.1:9200", "version": version})
}

/// Lets a process make no file longer, or lifts that again.
fn limit_files(server: &Orchd, limited: bool) {
    let limit = if limited { "0:" } else { "unlimited:" };
    let status = Command::new("prlimit")
        .args([
            "--pid",
            &server.pid().to_string(),
            &format!("--fsize={limit}"),
        ])
        .status()
        .expect("prlimit is part of util-linux");
    assert!(status.success(), "{status}");
}

#[test]
fn with_a_full_disk_what_is_known_goes_on_and_nothing_new_is_half_done() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let mut server = Orchd::serve_cloud(state.path(), &[]);
    let engine = ScriptedEngine::start("m", 1);
    engine.always(Script::whole(200, "{\"object\":\"list\"}"));
    let beat = json!({"pools": [{
        "pool_id": "p", "ready": true, "slots_free": 1, "slots_total": 1, "url": engine.url(), "state": "ready",
        "models_available": ["m"],
    }]});
    let register = "/v2/nodes/register";
    for node in ["n1", "n2", "left"] {
        answer(&server, 200, "POST", register, &registration(node, "1"));
        answer(
            &server,
            200,
            "POST",
            &format!("/v2/nodes/{node}/heartbeat"),
            &beat,
        );
    }
    let why = json!({"reason": "new kernel"});
    answer(&server, 202, "POST", "/v2/nodes/n2/drain", &why);
    answer(&server, 202, "POST", "/v2/nodes/left/drain", &why);
    answer(&server, 204, "DELETE", "/v2/nodes/left", &Value::Null);
    let all = |server: &Orchd| {
        ["/v2/nodes", "/v2/nodes?departed=true"].map(|path| {
            let mut list = http::get_json(server.address, path);
            for node in list["nodes"].as_array_mut().expect("a list") {
                // These pass while nothing happens.
                node["last_heartbeat_age_ms"] = Value::Null;
                node["last_heartbeat_ms"] = Value::Null;
            }
            list
        })
    };

    limit_files(&server, true);
    let before = all(&server);
    // What must be durable before it is acknowledged is refused, and leaves no trace.
    let node = "/v2/nodes/n1";
    for (method, path, body) in [
        ("POST", register, registration("n3", "1")),
        ("POST", register, registration("left", "1")),
        ("POST", "/v2/nodes/n1/drain", why.clone()),
        ("POST", "/v2/nodes/n2/drain", json!({"reason": "another"})),
        ("DELETE", "/v2/nodes/n2/drain", Value::Null),
        ("DELETE", "/v2/nodes/left/drain", Value::Null),
        ("DELETE", node, Value::Null),
        ("DELETE", "/v2/nodes/n1?forget=true", Value::Null),
        ("DELETE", "/v2/nodes/n2?forget=true", Value::Null),
        ("DELETE", "/v2/nodes/left?forget=true", Value::Null),
    ] {
        let response = ask(&server, method, path, &body);
        let (status, retry_after) = (response.status, response.header("retry-after").is_some());
        let refusal = response.json();
        assert_eq!(status, 503, "{method} {path}: {refusal}");
        assert!(retry_after, "{method} {path}: {refusal}");
        assert_eq!(refusal["code"], "STORE_UNAVAILABLE", "{method} {path}");
        assert_eq!(refusal["retryable"], true);
        assert_eq!(refusal["error"], refusal["message"]);
    }
    assert_eq!(all(&server), before, "something was half done");
    // What changes nothing needs no store.
    let same = answer(&server, 200, "POST", register, &registration("n1", "1"));
    assert_eq!(same["durable"], true, "{same}");
    answer(&server, 202, "POST", "/v2/nodes/n2/drain", &why);
    answer(&server, 200, "DELETE", "/v2/nodes/n1/drain", &Value::Null);
    // The fleet goes on: nodes are heard, describe themselves, and are routed to.
    let changed = answer(&server, 200, "POST", register, &registration("n1", "2"));
    assert_eq!(changed["durable"], false, "{changed}");
    assert_eq!(
        answer(&server, 200, "GET", node, &Value::Null)["version"],
        "2"
    );
    answer(&server, 200, "POST", "/v2/nodes/n1/heartbeat", &beat);
    let request = json!({"model": "m", "input": "x"});
    answer(&server, 200, "POST", "/v1/embeddings", &request);

    // It can be written again: nobody has to do anything for it.
    limit_files(&server, false);
    eventually(SOON, "the drain is acknowledged", || {
        match ask(&server, "POST", "/v2/nodes/n1/drain", &why).status {
            202 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    answer(&server, 200, "POST", register, &registration("n3", "1"));
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    // One line when it is over, however much was tried meanwhile; that it began could not be logged here.
    let over = "the store can be written again";
    assert_eq!(log.matches(over).count(), 1, "{log}");
    server.kill9();
    server.start_again();
    let node = answer(&server, 200, "GET", node, &Value::Null);
    assert_eq!(node["drain"]["reason"], "new kernel");
    assert_eq!(
        node["version"], "2",
        "taken while the disk was full, written since"
    );
    answer(&server, 200, "GET", "/v2/nodes/n3", &Value::Null);
}

#[test]
fn a_registration_taken_while_the_disk_was_full_is_written_when_it_no_longer_is() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let register = "/v2/nodes/register";
    answer(&server, 200, "POST", register, &registration("n1", "1"));
    limit_files(&server, true);
    let reply = answer(&server, 200, "POST", register, &registration("n1", "2"));
    assert_eq!(reply["durable"], false, "{reply}");
    limit_files(&server, false);
    let store = Connection::open(state.path().join("orchd.db")).expect("opens");
    eventually(SOON, "the registration is on disk", || {
        let query = "SELECT record FROM nodes WHERE node_id = 'n1'";
        let record: String = store
            .query_row(query, [], |row| row.get(0))
            .map_err(|e| e.to_string())?;
        let record: Value = serde_json::from_str(&record).expect("JSON");
        (record["version"] == "2")
            .then_some(())
            .ok_or(record.to_string())
    });
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let address = free_address();
    let listen = address.to_string();
    let state_dir = state.path().to_str().expect("UTF-8");
    let mut command = orchd(&[
        "serve",
        "--cloud",
        "--state-dir",
        state_dir,
        "--listen",
        &listen,
    ]);
    let full = fs::File::options().write(true).open("/dev/full");
    let mut child = command
        .env("HOME", state.path())
        .stdout(Stdio::null())
        .stderr(full.expect("Linux has /dev/full"))
        .spawn()
        .expect("orchd runs");
    let post = |path: &str, body: &Value| match http::post(address, path, body) {
        Ok(response) => Ok(response.status),
        Err(e) => Err(e.to_string()),
    };
    let register = || post("/v2/nodes/register", &registration("n1", "1"));
    let ready =
        || register().and_then(|status| (status == 200).then_some(()).ok_or(status.to_string()));
    let result = std::panic::catch_unwind(|| {
        eventually(SOON, "it serves", ready);
        // Each of these is a line in the log.
        assert_eq!(post("/v2/nodes/n1/drain", &json!({})), Ok(202));
        assert_eq!(
            post("/v2/nodes/n1/heartbeat", &json!({"pools": []})),
            Ok(200)
        );
        assert_eq!(register(), Ok(200));
    });
    let ended = child.try_wait().expect("it is this test's own child");
    child.kill().expect("it is this test's own child");
    child.wait().expect("it is this test's own child");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(ended, None, "it ended");
}

/// Every file of a directory that holds something. The lock says who looked at it last, the index of SQLite's log is
/// made again by whoever reads it, and an empty log is as good as none.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(directory)
        .expect("it is there")
        .map(|entry| entry.expect("it is readable").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().expect("it has a name").to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("it is readable"))
        })
        .filter(|(name, content)| {
            let is_log = name == "orchd.db-wal";
            !["lock", "orchd.db-shm"].contains(&name.as_str()) && (!is_log || !content.is_empty())
        })
        .collect()
}

/// Starts a server on this state, which must fail: what it says.
fn refuses(state: &Path) -> String {
    let dir = tempfile::tempdir().expect("a directory for the log");
    let address = free_address().to_string();
    let state = state.to_str().expect("UTF-8");
    let mut command = orchd(&[
        "serve",
        "--cloud",
        "--state-dir",
        state,
        "--listen",
        &address,
    ]);
    command.env("HOME", dir.path()).current_dir(dir.path());
    let mut running = Running::spawn("orchd serve", &mut command, &dir.path().join("log"));
    let code = running.wait(START);
    let log = running.log();
    assert_eq!(code, Some(1), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    log
}

/// The state of a server that was killed with `nodes` registered: its last changes are in the log beside the file.
fn killed(nodes: usize) -> tempfile::TempDir {
    let state = tempfile::tempdir().expect("a directory for the state");
    let mut server = Orchd::serve_cloud(state.path(), &[]);
    for n in 0..nodes {
        let body = registration(&format!("n{n}"), "1");
        answer(&server, 200, "POST", "/v2/nodes/register", &body);
    }
    answer(&server, 202, "POST", "/v2/nodes/n0/drain", &json!({}));
    server.kill9();
    assert!(
        state.path().join("orchd.db-wal").exists(),
        "there is something to lose"
    );
    state
}

/// Changes a database as if its server had been killed right after: the change is in the log, not in the file.
fn change(state: &Path, sql: &str) {
    let path = state.join("orchd.db");
    let copy = tempfile::tempdir().expect("a directory");
    let store = Connection::open(&path).expect("opens");
    store.execute_batch(sql).expect("changes");
    for name in ["orchd.db", "orchd.db-wal"] {
        fs::copy(state.join(name), copy.path().join(name)).expect("copies");
    }
    drop(store);
    for name in ["orchd.db", "orchd.db-wal"] {
        fs::copy(copy.path().join(name), state.join(name)).expect("copies");
    }
    let _ = fs::remove_file(state.join("orchd.db-shm"));
}

#[test]
fn a_store_that_is_not_understood_is_named_and_not_touched() {
    let a_file = |content: &[u8]| {
        let state = tempfile::tempdir().expect("a directory for the state");
        fs::write(state.path().join("orchd.db"), content).expect("writes");
        state
    };
    let changed = |sql: &str| {
        let state = killed(2);
        change(state.path(), sql);
        state
    };
    let foreign = tempfile::tempdir().expect("a directory for the state");
    Connection::open(foreign.path().join("orchd.db"))
        .and_then(|store| store.execute_batch("CREATE TABLE songs (title TEXT)"))
        .expect("another program writes");
    let emptied = killed(2);
    fs::write(emptied.path().join("orchd.db"), b"").expect("writes");
    // All of it in the file, which then loses its end, or a page in its middle.
    let whole = killed(300);
    let store = Connection::open(whole.path().join("orchd.db")).expect("opens");
    store
        .execute_batch("PRAGMA journal_mode = DELETE")
        .expect("checkpoints");
    drop(store);
    let whole = fs::read(whole.path().join("orchd.db")).expect("reads");
    assert!(whole.len() > 10 * 4_096, "several pages");
    let mut overwritten = whole.clone();
    overwritten[4 * 4_096..6 * 4_096].fill(0xa5);

    for (what, state, says) in [
        (
            "text",
            a_file(b"these are not the bytes you are looking for"),
            "damaged",
        ),
        ("zeros", a_file(&[0; 8_192]), "damaged"),
        ("a head alone", a_file(b"SQLite format 3\0"), "damaged"),
        (
            "half of it",
            a_file(&whole[..whole.len() / 2 / 4_096 * 4_096]),
            "damaged",
        ),
        ("a page overwritten", a_file(&overwritten), "damaged"),
        ("another program's", foreign, "damaged"),
        ("nothing, beside its log", emptied, "damaged"),
        (
            "a newer schema",
            changed("PRAGMA user_version = 99"),
            "newer orchd (schema 99, this one knows",
        ),
        (
            "an older one that never was",
            changed("PRAGMA user_version = -1"),
            "damaged",
        ),
        (
            "no JSON",
            changed("UPDATE nodes SET record = '{' WHERE node_id = 'n1'"),
            "\"n1\"",
        ),
        (
            "not a registration",
            changed("UPDATE nodes SET record = '{}' WHERE node_id = 'n1'"),
            "\"n1\"",
        ),
        (
            "not a drain",
            changed("UPDATE drains SET drain = '[]'"),
            "\"n0\"",
        ),
        (
            "not a name",
            changed("UPDATE nodes SET node_id = '../n1' WHERE node_id = 'n1'"),
            "../n1",
        ),
        ("a table is gone", changed("DROP TABLE drains"), "damaged"),
        (
            "a column is gone",
            changed("ALTER TABLE nodes RENAME COLUMN record TO recording"),
            "damaged",
        ),
        ("no revision", changed("DELETE FROM meta"), "damaged"),
    ] {
        let before = files(state.path());
        let log = refuses(state.path());
        let error = log.lines().find(|line| line.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("{what}: no error in\n{log}"));
        let path = state.path().join("orchd.db");
        for part in [
            says,
            path.to_str().expect("UTF-8"),
            "move",
            "not been touched",
        ] {
            assert!(error.contains(part), "{what}: {part:?} in {error}");
        }
        let after = files(state.path());
        let names = |files: &BTreeMap<String, Vec<u8>>| -> Vec<(String, usize)> {
            let entries = files.iter();
            entries
                .map(|(name, bytes)| (name.clone(), bytes.len()))
                .collect()
        };
        assert_eq!(names(&after), names(&before), "{what}");
        assert!(after == before, "{what}: it was touched");
    }
}

#[test]
fn a_store_that_is_deleted_under_its_server_takes_nothing_more() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let register = "/v2/nodes/register";
    answer(&server, 200, "POST", register, &registration("n1", "1"));
    for name in ["orchd.db", "orchd.db-wal", "orchd.db-shm"] {
        fs::remove_file(state.path().join(name)).expect("it is there");
    }
    let refused = answer(&server, 503, "POST", register, &registration("n2", "1"));
    let told = refused["message"].as_str().unwrap_or_default();
    assert!(told.contains("no longer the file"), "{refused}");
    answer(&server, 503, "POST", "/v2/nodes/n1/drain", &json!({}));
    let known = answer(&server, 200, "POST", register, &registration("n1", "2"));
    assert_eq!(known["durable"], false, "{known}");
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("state");
    fs::write(&file, "a file").expect("writes");
    let log = refuses(&file);
    assert!(
        log.contains(file.to_str().expect("UTF-8")) && log.contains("--state-dir"),
        "{log}"
    );
    assert_eq!(fs::read(&file).expect("reads"), b"a file");

    let file = place.path().join("taken");
    fs::create_dir_all(file.join("orchd.db")).expect("makes");
    let log = refuses(&file);
    assert!(log.contains(file.to_str().expect("UTF-8")), "{log}");
}

#[test]
fn a_server_on_a_full_disk_says_so_when_it_starts() {
    let place = tempfile::tempdir().expect("a directory");
    let state = place.path().join("state");
    let address = free_address().to_string();
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -f 0; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_orchd"),
        ])
        .args(["serve", "--cloud", "--listen", &address, "--state-dir"])
        .arg(&state)
        .env_clear()
        .env("HOME", place.path());
    let output = command.output().expect("sh runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}: {log}", output.status);
    assert!(
        log.contains("error: ") && log.contains(state.to_str().expect("UTF-8")),
        "{log}"
    );
}
