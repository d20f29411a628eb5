//! `orchd nodes list --watch`: into a pipe, and on a real terminal.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};

use crate::fake_control_plane::{
    DEPARTED, EVENTS, Fake, LIST, Ran, Step, drain, events, interrupt, list, node, orchd, refusal,
    step,
};

fn listed(nodes: &[Value]) -> Step {
    step(LIST, 200, &list(nodes))
}

/// A control plane that tells no events.
fn no_events() -> Step {
    refusal(EVENTS, 404, "NOT_FOUND", "there is no /v2/events here")
}

#[test]
fn a_watch_into_a_pipe_writes_the_list_and_then_a_line_per_change() {
    let busy = json!({"pool_status": [{"pool_id": "default", "ready": true, "slots_free": 0, "slots_total": 8,
        "vram_free_bytes": 1, "models_available": ["qwen3-8b"], "running": 8}], "last_heartbeat_age_ms": 1});
    let fake = Fake::start([
        listed(&[node("a", &json!({})), node("b", &json!({}))]),
        no_events(),
        // Slots and ages are no news.
        listed(&[node("a", &busy), node("b", &json!({}))]),
        refusal(LIST, 503, "SHUTTING_DOWN", "the process is stopping"),
        listed(&[
            node("a", &busy),
            node("b", &drain("drained", 0, &json!({}))),
            node(
                "new",
                &json!({"status": "Registering", "online": false, "pool_status": []}),
            ),
        ]),
        listed(&[node("a", &busy), node("new", &json!({}))]),
        refusal(
            LIST,
            401,
            "UNAUTHORIZED",
            "the token is not accepted any more",
        ),
    ]);
    let ran = fake.run(&["nodes", "list", "-w"]);
    assert_eq!(ran.exit, Some(7), "{}", ran.stderr);
    let words: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    assert_eq!(
        words,
        [
            ["NAME", "STATUS"],
            ["a", "Online"],
            ["b", "Online"],
            ["b", "Drained"],
            ["new", "Registering"],
            ["b", "Gone,drained"],
            ["new", "Online"],
        ]
    );
    assert!(!ran.stdout.contains('\u{1b}'), "{}", ran.stdout);
    assert!(
        ran.stderr.starts_with(
            "the process is stopping; asking again\nthe control plane answers again\n"
        ),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn a_watch_reads_the_list_anew_when_an_event_comes() {
    let event = "id: e-1\nevent: node.offline\ndata: {\"at_ms\":1,\"type\":\"node.offline\",\"node_id\":\"a\"}\n\n";
    let fake = Fake::start([
        listed(&[]),
        events(EVENTS, event).open(),
        listed(&[node("a", &json!({}))]),
        refusal(
            LIST,
            401,
            "UNAUTHORIZED",
            "the token is not accepted any more",
        ),
    ]);
    let ran = fake.run(&["nodes", "list", "-w", "-o", "name"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(7), "a\n"));
    fake.asked();
}

#[test]
fn a_watch_into_a_pipe_ends_quietly_by_ctrl_c_and_when_its_reader_has_gone() {
    let fake = Fake::start([
        listed(&[node("a", &json!({}))]),
        step(DEPARTED, 200, &list(&[])),
        events(EVENTS, "").open(),
        listed(&[]).again(),
    ]);
    let mut child = fake.spawn(&["nodes", "list", "-w", "--all"]);
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    interrupt(&child);
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(130), ""));

    let fake = Fake::start([listed(&[node("a", &json!({}))])]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = orchd(&["nodes", "list", "-w", "--server", fake.url().as_str()])
        .stdout(writer)
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    fake.asked();
}

#[test]
fn a_watch_for_programs_is_another_command() {
    for format in ["json", "yaml"] {
        let fake = Fake::start([]);
        let ran = fake.run(&["nodes", "list", "-w", "-o", format]);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""));
        assert!(
            ran.stderr
                .ends_with("hint: for programs there is `orchd events -o json`\n")
        );
        fake.asked();
    }
}

/// What a terminal of 24 rows and 80 columns is sent until the command ends.
fn on_terminal(fake: &Fake, environment: &[(&str, &str)], until: &str) -> (Option<i32>, String) {
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).expect("a terminal");
    let mut child = orchd(&["nodes", "list", "-w", "--server", fake.url().as_str()])
        .env("TERM", "xterm-256color")
        .envs(environment.iter().copied())
        .stdout(Stdio::from(terminal.slave))
        .stderr(Stdio::null())
        .spawn()
        .expect("orchd runs");
    let mut screen = std::fs::File::from(terminal.master);
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let mut interrupted = false;
    // The terminal of a process that ended cannot be read.
    while let Ok(count @ 1..) = screen.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        if !interrupted && String::from_utf8_lossy(&seen).contains(until) {
            interrupt(&child);
            interrupted = true;
        }
    }
    let exit = child.wait().expect("it ends").code();
    (exit, String::from_utf8(seen).expect("UTF-8"))
}

#[test]
fn a_watch_on_a_terminal_is_redrawn_in_place_and_ctrl_c_brings_back_what_was_there() {
    let names: Vec<String> = (0..50).map(|n| format!("n{n:02}")).collect();
    let mut fleet: Vec<Value> = names.iter().map(|name| node(name, &json!({}))).collect();
    fleet[40] = node("n40", &json!({"status": "Offline", "online": false}));
    let fake = Fake::start([listed(&fleet), no_events().again(), listed(&fleet).again()]);
    let (exit, seen) = on_terminal(&fake, &[], "more nodes");
    assert_eq!(exit, Some(130));
    assert!(seen.starts_with("\u{1b}[?1049h\u{1b}[?25l"), "{seen:?}");
    assert!(seen.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{seen:?}");
    assert!(
        !seen.contains("\u{1b}[2J"),
        "nothing is cleared before it is drawn"
    );
    let picture = anstream::adapter::strip_str(&seen).to_string();
    let lines: Vec<&str> = picture.split("\r\n").collect();
    assert!(
        lines[0].contains("50 nodes: 49 Online, 1 Offline"),
        "{picture}"
    );
    assert!(
        lines[2].starts_with("NAME") && lines[3].starts_with("n40   Offline"),
        "{picture}"
    );
    assert!(lines[23].contains("… and 30 more nodes"), "{picture}");
    fake.asked();
}

#[test]
fn a_watch_on_a_terminal_shows_all_of_a_fleet_hold() {
    let mut held = list(&[node("a", &json!({}))]);
    held["fleet_hold"] = json!({"since_ms": 12_000, "nodes": 42, "ends_in_ms": 540_000});
    let fake = Fake::start([
        step(LIST, 200, &held),
        no_events().again(),
        step(LIST, 200, &held).again(),
    ]);
    let (_, seen) = on_terminal(&fake, &[], "qwen3-8b");
    let picture = anstream::adapter::strip_str(&seen).to_string();
    let lines: Vec<&str> = picture.split("\r\n").map(str::trim).collect();
    assert_eq!(
        lines[1..4].join(" "),
        "fleet hold for 12s: none of 42 silent nodes goes Offline for another 9m, because so many fell silent at once: \
         more likely the fault is on the control plane's side (its network, perhaps) than on theirs"
    );
    assert!(
        lines[1].contains("none of 42 silent nodes goes Offline for another 9m"),
        "{picture}"
    );
}

#[test]
fn a_watch_on_a_terminal_has_no_colours_against_no_color() {
    let fleet = [node("a", &json!({}))];
    for (environment, colored) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let fake = Fake::start([listed(&fleet), no_events().again(), listed(&fleet).again()]);
        let (_, seen) = on_terminal(&fake, environment, "qwen3-8b");
        assert_eq!(
            seen.contains("\u{1b}[32mOnline\u{1b}[0m"),
            colored,
            "{seen:?}"
        );
        assert_eq!(seen.contains("\u{1b}[1m"), colored, "{seen:?}");
    }
}
