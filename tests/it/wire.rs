//! What travelled in the first release is still understood: `tests/wire/` holds it as it was recorded then, and nobody
//! rewrites it.
//!
//! The name of a file says who gets it and what it is. What goes `to-server` is sent to the real binary in the order of
//! a table, and its answers must have all that the recorded ones had, in the same words; what goes `to-client` is read by
//! the types of the client and must come out whole; what goes `to-agent` is laid into the directory of handoff files.
//! Everything is tried twice, the second time with a field of a later release in each object.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchd::client::EventsQuery;
use orchd::types::{
    Availability, ErrorBody, Event, HeartbeatReply, NodeList, NodeView, Object, PoolList, RESYNC,
    RegisterReply, Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fake_control_plane::{EVENTS, Fake, events};
use crate::support::eventually;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;

const SOON: Duration = Duration::from_secs(10);
/// Stands in recorded requests for the id of the drain that was last asked for.
const DRAIN_ID: &str = "DRAIN_ID";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire")
}

fn recorded(name: &str) -> String {
    let path = directory().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The middle parts of the names of all files that begin and end so, sorted.
fn names(begin: &str, end: &str) -> BTreeSet<String> {
    fs::read_dir(directory())
        .expect("it is there")
        .map(|entry| entry.expect("it is readable").file_name())
        .filter_map(|name| {
            let name = name.to_str().expect("UTF-8");
            Some(name.strip_prefix(begin)?.strip_suffix(end)?.to_owned())
        })
        .collect()
}

/// Puts a field that only a later release has into every object.
fn of_a_later_release(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(of_a_later_release);
            fields.insert("of_a_later_release".to_owned(), "?".into());
        }
        Value::Array(values) => values.iter_mut().for_each(of_a_later_release),
        _ => {}
    }
}

/// Asserts that an answer has everything that the recorded one had: every field, in the same words but for what differs
/// from run to run.
fn has_all_of(old: &Value, new: &Value, place: &str) {
    let differs = |place: &str| {
        let field = place.rsplit('.').next().unwrap_or_default();
        field.ends_with("_ms") || ["id", "message", "error", "version", "created"].contains(&field)
    };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (field, old) in old {
                let place = format!("{place}.{field}");
                let new = new.get(field).unwrap_or_else(|| panic!("{place} is gone"));
                has_all_of(old, new, &place);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len(), "{place}");
            for (at, (old, new)) in old.iter().zip(new).enumerate() {
                has_all_of(old, new, &format!("{place}[{at}]"));
            }
        }
        (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_))
            if differs(place) => {}
        (old, new) => assert_eq!(old, new, "{place}"),
    }
}

/// What was sent to the control plane, in this order, the status of each answer, and the answer where it was recorded.
const EXCHANGES: &[(&str, u16, Option<&str>)] = &[
    ("register.original", 200, Some("register-reply")),
    ("register.least", 200, None),
    ("register.agent", 200, None),
    ("register.nulls", 200, None),
    ("register.without-gpus", 200, None),
    ("register.announced", 200, None),
    ("register.invalid", 400, Some("refusal.register")),
    ("heartbeat.original", 200, Some("heartbeat-reply")),
    ("register.conflict", 409, Some("refusal.conflict")),
    ("heartbeat.agent", 200, None),
    ("heartbeat.failed", 200, Some("heartbeat-reply.failed")),
    ("heartbeat.degraded", 200, None),
    ("heartbeat.every-state", 200, None),
    ("heartbeat.state-changed", 200, None),
    ("register.changed", 200, None),
    ("heartbeat.no-pools", 200, None),
    ("heartbeat.unknown-node", 404, Some("refusal.heartbeat")),
    ("heartbeat.superseded", 409, Some("refusal.superseded")),
    ("drain.nobody-says-why", 202, Some("node.draining")),
    ("drain.full", 202, None),
    ("drain.again", 202, None),
    ("heartbeat.draining", 200, Some("heartbeat-reply.draining")),
    ("heartbeat.drain-ack", 200, None),
    ("node.drained", 200, Some("node.drained")),
    ("nodes", 200, Some("node-list")),
    ("nodes.chosen", 200, None),
    ("pools", 200, Some("pool-list")),
    ("availability", 200, Some("availability")),
    ("version", 200, Some("version")),
    ("health", 200, Some("health")),
    ("models", 200, Some("models")),
    ("undrain", 200, Some("node")),
    ("deregister.agent", 204, None),
    ("nodes.departed", 200, Some("node-list.departed")),
    ("forget", 204, None),
    ("deregister", 204, None),
    ("node.unknown", 404, Some("refusal")),
    // The control plane reads its engine itself: what is seen of it is a matter of time, so it comes last.
    ("register.agentless", 200, None),
];

fn exchange_all(change: fn(&mut Value)) {
    let state = tempfile::tempdir().expect("a directory for the state");
    let server = Orchd::serve_cloud(state.path(), &[]);
    let mut drain = Value::Null;
    for &(name, status, answer) in EXCHANGES {
        let text = recorded(&format!("to-server.{name}.http"));
        let (head, body) = text.split_once('\n').expect("a line with the call");
        let (method, target) = head.split_once(' ').expect("a method and a target");
        let mut body = body.trim().to_owned();
        if !body.is_empty() {
            let mut value: Value = serde_json::from_str(&body).expect("JSON");
            if value["drain_ack"]["id"] == DRAIN_ID {
                value["drain_ack"]["id"] = drain.clone();
            }
            change(&mut value);
            body = value.to_string();
        }
        let kind = [("content-type", "application/json")];
        let headers = if body.is_empty() { &[][..] } else { &kind };
        let request = written(method, target, headers, body.as_bytes());
        let response = http::send(server.address, &request).expect("an answer");
        let found = response.status;
        assert!(response.header("x-orchd-version").is_some(), "{name}");
        let text = match found {
            // It has no body, and the connection is kept.
            204 => String::new(),
            _ => response.text().expect("a whole body"),
        };
        assert_eq!(found, status, "{name}: {text}");
        if found == 204 {
            continue;
        }
        let new: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        if name.starts_with("drain.") {
            drain = new["drain"]["id"].clone();
        }
        if let Some(answer) = answer {
            let old = recorded(&format!("to-client.{answer}.json"));
            let old: Value = serde_json::from_str(&old).expect("JSON");
            // Labels are the client's own: with one more sent, one more comes back.
            has_all_of(&old, &new, answer);
        }
    }
}

#[test]
fn clients_and_agents_of_the_first_release_are_understood_and_get_what_they_got() {
    exchange_all(|_| {});
}

#[test]
fn clients_and_agents_of_a_later_release_are_understood_too() {
    exchange_all(of_a_later_release);
}

#[test]
fn every_recorded_request_is_sent() {
    let sent: BTreeSet<String> = EXCHANGES.iter().map(|e| e.0.to_owned()).collect();
    assert_eq!(sent, names("to-server.", ".http"));
}

/// Reads an answer as the client does, and writes it again.
fn read<T: DeserializeOwned + Serialize>(answer: &Value) -> Value {
    let Object(read): Object<T> = serde_json::from_value(answer.clone()).expect("it is read");
    serde_json::to_value(read).expect("it is written")
}

/// Reads an answer, and gives what it has understood.
type Reader = fn(&Value) -> Value;

/// What answers are read as, by the first part of the names of their files. Nothing of orchd's own reads the other two.
const READERS: &[(&str, Option<Reader>)] = &[
    ("availability", Some(read::<Availability>)),
    ("health", None),
    ("heartbeat-reply", Some(read::<HeartbeatReply>)),
    ("models", None),
    ("node", Some(read::<NodeView>)),
    ("node-list", Some(read::<NodeList>)),
    ("pool-list", Some(read::<PoolList>)),
    ("refusal", Some(read::<ErrorBody>)),
    ("register-reply", Some(read::<RegisterReply>)),
    ("version", Some(read::<Version>)),
];

#[test]
fn answers_of_the_first_release_and_of_a_later_one_are_read_whole() {
    let mut kinds = BTreeSet::new();
    for name in names("to-client.", ".json") {
        let kind = name.split('.').next().unwrap_or_default().to_owned();
        let reader = READERS.iter().find(|(known, _)| *known == kind);
        let (_, reader) = reader.unwrap_or_else(|| panic!("{name}: nobody reads it"));
        kinds.insert(kind);
        let Some(reader) = reader else { continue };
        let old = recorded(&format!("to-client.{name}.json"));
        let old: Value = serde_json::from_str(&old).expect("JSON");
        assert_same(&old, &reader(&old), &name);
        let mut later = old.clone();
        of_a_later_release(&mut later);
        assert_same(&old, &reader(&later), &name);
    }
    assert_eq!(kinds.len(), READERS.len(), "{kinds:?}");
}

/// Asserts that everything of an answer came through. What is null may be left out.
fn assert_same(old: &Value, read: &Value, place: &str) {
    match (old, read) {
        (Value::Object(old), Value::Object(read)) => {
            for (field, old) in old {
                let place = format!("{place}.{field}");
                assert_same(old, read.get(field).unwrap_or(&Value::Null), &place);
            }
        }
        (Value::Array(old), Value::Array(read)) => {
            assert_eq!(old.len(), read.len(), "{place}");
            for (at, (old, read)) in old.iter().zip(read).enumerate() {
                assert_same(old, read, &format!("{place}[{at}]"));
            }
        }
        (old, read) => assert_eq!(old, read, "{place}"),
    }
}

#[test]
fn events_of_the_first_release_are_followed() {
    let text = recorded("to-client.events.sse");
    let fake = Fake::start([events(EVENTS, &text)]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut kinds = BTreeSet::new();
    let mut last = None;
    runtime.block_on(async {
        let mut stream = (fake.client().events(&EventsQuery::default()).await).expect("a stream");
        while let Ok(frame) = stream.next().await {
            last = frame.id.or_else(|| last.take());
            if !frame.event.is_empty() && frame.event != RESYNC {
                let event: Event = serde_json::from_str(&frame.data)
                    .unwrap_or_else(|e| panic!("{e}: {}", frame.data));
                assert_eq!(event.kind.as_str(), frame.event);
            }
            kinds.insert(frame.event);
        }
    });
    kinds.remove("");
    let lines = |begin: &'static str| {
        text.lines()
            .filter_map(move |line| line.strip_prefix(begin))
    };
    let told: BTreeSet<String> = lines("event: ").map(str::to_owned).collect();
    assert_eq!(kinds, told);
    assert_eq!(
        last.as_deref(),
        lines("id: ").next_back(),
        "where to go on from"
    );
    fake.asked();
}

#[test]
fn handoff_files_of_the_first_release_and_of_a_later_one_are_read() {
    let directory = tempfile::tempdir().expect("a directory for the handoff files");
    let files = names("to-agent.handoff.", ".json");
    for change in [|_: &mut Value| {}, of_a_later_release] {
        for name in &files {
            let text = recorded(&format!("to-agent.handoff.{name}.json"));
            let mut value: Value = serde_json::from_str(&text).expect("JSON");
            change(&mut value);
            let file = directory.path().join(format!("{name}.json"));
            fs::write(file, value.to_string()).expect("it can be written");
        }
        fs::write(directory.path().join("key"), "secret\n").expect("it can be written");
        let path = directory.path().to_str().expect("UTF-8");
        let server = Orchd::serve_home(&[], &["--runtime-dir", path]);
        let wanted = ["big-r1", "default", "nulls"];
        eventually(SOON, "every file is a pool", || {
            let list = http::get_json(server.address, "/v2/pools");
            let pools = list["pools"].as_array().expect("a list");
            let names: Vec<_> = pools.iter().map(|p| &p["pool_id"]).collect();
            if names == wanted {
                Ok(())
            } else {
                Err(list.to_string())
            }
        });
        assert_eq!(files.len(), wanted.len(), "each file was looked for");
    }
}
