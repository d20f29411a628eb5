//! `orchd events`, by the real binary.

use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::{Value, json};

use crate::fake_control_plane::{
    EVENTS, Fake, Ran, events, interrupt, orchd, refusal, silent_port,
};

fn frame(id: &str, data: &Value) -> String {
    let kind = data["type"].as_str().expect("a type");
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}

fn offline(id: &str) -> String {
    frame(
        id,
        &json!({"at_ms": 1_000_000, "type": "node.offline", "node_id": "gpu-1", "from": "Online", "to": "Offline",
            "reason": "silent for 30s"}),
    )
}

/// Ends a command that would follow for ever.
fn the_end() -> crate::fake_control_plane::Step {
    refusal(
        EVENTS,
        401,
        "UNAUTHORIZED",
        "the token is not accepted any more",
    )
}

#[test]
fn each_event_is_a_line_with_time_type_node_and_what_changed() {
    let frames = [
        ": hello\n\n".to_owned(),
        offline("e-1"),
        frame(
            "e-2",
            &json!({"at_ms": 1_001_000, "type": "drain.started", "node_id": "gpu-2", "reason": "new kernel", "by": "ada@host"}),
        ),
        frame(
            "e-3",
            &json!({"at_ms": 1_002_000, "type": "pool.state", "node_id": "gpu-2", "pool_id": "big", "from": "loading",
                "to": "ready"}),
        ),
        frame("e-4", &json!({"at_ms": 1_003_000, "type": "fleet.hold"})),
        frame("e-5", &json!({"type": "node.renamed", "new": "x\u{1b}[2J"})),
    ];
    let fake = Fake::start([events(EVENTS, &frames.concat()), the_end()]);
    let ran = fake.run(&["events"]);
    assert_eq!(ran.exit, Some(7), "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "1970-01-01T00:16:40Z  node.offline     gpu-1  Online -> Offline, silent for 30s\n\
         1970-01-01T00:16:41Z  drain.started    gpu-2  new kernel, by ada@host\n\
         1970-01-01T00:16:42Z  pool.state       gpu-2  pool big, loading -> ready\n\
         1970-01-01T00:16:43Z  fleet.hold       -\n\
         -                     node.renamed     {\"new\":\"x\\u001b[2J\",\"type\":\"node.renamed\"}\n"
    );
    fake.asked();
}

#[test]
fn a_lost_stream_is_followed_again_from_where_it_ended_and_gaps_are_told() {
    let resync = "id: f-0\nevent: resync\ndata: {}\n\n";
    let fake = Fake::start([
        events(EVENTS, &offline("e-1")),
        refusal(EVENTS, 503, "SHUTTING_DOWN", "the process is stopping"),
        events(EVENTS, &format!("{resync}{}", offline("f-1"))),
        the_end(),
    ]);
    let ran = fake.run(&["events", "-o", "json", "--since", "e-0"]);
    assert_eq!(ran.exit, Some(7));
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect();
    let ids: Vec<&Value> = lines.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, ["e-1", "f-1"]);
    assert_eq!(lines[0]["reason"], "silent for 30s");
    let said: Vec<&str> = ran.stderr.lines().collect();
    let url = fake.url();
    let lost = format!("lost the events of {url}: it ended the stream of events; connecting again");
    assert_eq!(said[..2], [lost.as_str(), "connected again"]);
    assert!(
        said[2].starts_with("warning: events are missing here"),
        "{}",
        said[2]
    );
    assert_eq!(said[3], lost);
    let asked: Vec<Option<String>> = fake
        .asked()
        .into_iter()
        .map(|asked| asked.last_event_id)
        .collect();
    assert_eq!(
        asked,
        ["e-0", "e-1", "e-1", "f-1"].map(|id| Some(id.to_owned()))
    );
}

#[test]
fn ctrl_c_ends_events_quietly_and_lines_come_as_they_happen() {
    let request = "GET /v2/events?node_id=gpu-1";
    let fake = Fake::start([events(request, &offline("e-1")).open()]);
    let mut child = fake.spawn(&["events", "--node", "gpu-1"]);
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert!(line.contains("node.offline"), "{line}");
    interrupt(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("UTF-8");
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert_eq!(
        (ran.exit, rest.as_str(), ran.stderr.as_str()),
        (Some(130), "", "")
    );
    fake.asked();
}

#[test]
fn the_node_of_one_machine_can_be_followed_by_name() {
    let request = "GET /v2/events?node_id=local";
    let added = frame(
        "e-1",
        &json!({"at_ms": 1_000_000, "type": "pool.added", "node_id": "local", "pool_id": "a"}),
    );
    let fake = Fake::start([
        events(request, &added),
        refusal(request, 401, "UNAUTHORIZED", "a token is needed"),
    ]);
    let ran = fake.run(&["events", "--node", "local"]);
    assert_eq!(ran.exit, Some(7), "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "1970-01-01T00:16:40Z  pool.added       local  pool a\n"
    );
    fake.asked();
    let ran = fake.run(&["events", "--node", "register"]);
    assert_eq!(ran.exit, Some(2), "{}", ran.stderr);
}

#[test]
fn a_control_plane_that_is_not_there_ends_events_at_once() {
    let server = silent_port();
    let output = orchd(&["events", "--server", server.as_str()])
        .output()
        .expect("orchd runs");
    assert_eq!(Ran::from(output).exit, Some(6));
}

#[test]
fn a_reader_of_events_who_has_gone_ends_them_without_an_error() {
    let frames: String = (0..3).map(|n| offline(&format!("e-{n}"))).collect();
    let fake = Fake::start([events(EVENTS, &frames).open()]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = orchd(&["events", "--server", fake.url().as_str()])
        .stdout(writer)
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    fake.asked();
}
