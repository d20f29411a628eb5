//! `orchd nodes drain` and `undrain`, by the real binary.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake_control_plane::{
    DEPARTED, DRAIN, Fake, LIST, NODE, Ran, drain, interrupt, list, node, orchd, refusal, step,
};

#[test]
fn drain_waits_and_tells_each_change_once_when_piped() {
    let draining = |n| node("gpu-1", &drain("draining", n, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining(7)),
        step(NODE, 200, &draining(7)),
        step(NODE, 200, &draining(7)),
        step(NODE, 200, &draining(1)),
        step(NODE, 200, &draining(0)),
        step(
            NODE,
            200,
            &node("gpu-1", &drain("drained", 0, &json!({"cut": 2}))),
        ),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--reason", "driver update"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 drained: 5 requests finished, 2 cut\n")
    );
    let said: Vec<&str> = ran
        .stderr
        .lines()
        .map(|line| line.split(", after ").next().expect("a first part"))
        .collect();
    assert_eq!(
        said,
        [
            "gpu-1: 7 of 7 requests left",
            "gpu-1: 1 of 7 requests left",
            "gpu-1: no requests left, waiting for the agent to confirm",
        ]
    );
    let asked = fake.asked();
    assert_eq!(asked[0].body["reason"], "driver update");
    let by = asked[0].body["requested_by"].as_str().expect("who asks");
    assert!(by == "ada" || by.starts_with("ada@"), "{by}");
}

#[test]
fn a_piped_line_of_progress_has_the_times_at_the_change() {
    let draining = |n: u32, left: u32| {
        let oldest = (n > 0).then(|| 725_000 - left);
        let changes = json!({"remaining_ms": left, "oldest_ms": oldest});
        node("gpu-1", &drain("draining", n, &changes))
    };
    let done = json!({"unverified": true});
    let drained = node("gpu-1", &drain("drained", 0, &done));
    let fake = Fake::start([
        step(DRAIN, 202, &draining(2, 600_000)),
        step(NODE, 200, &draining(2, 599_000)),
        // Less time is no news.
        step(NODE, 200, &draining(2, 598_000)),
        step(NODE, 200, &draining(1, 500_000)),
        step(NODE, 200, &draining(0, 499_000)),
        step(NODE, 200, &drained),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--deadline", "10m"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (
            Some(0),
            "gpu-1 drained: 7 requests finished, 0 cut; unverified: its agent did not confirm it\n"
        )
    );
    let said: Vec<&str> = ran
        .stderr
        .lines()
        .map(|line| line.split(", after ").next().expect("a first part"))
        .collect();
    assert_eq!(
        said,
        [
            "gpu-1: 2 of 7 requests left (oldest 2m06s), cut off in 9m59s",
            "gpu-1: 1 of 7 requests left (oldest 3m45s), cut off in 8m20s",
            "gpu-1: no requests left, waiting for the agent to confirm",
        ]
    );
    fake.asked();
}

#[test]
fn drain_asks_every_node_before_it_waits_for_any() {
    let of =
        |name: &str, state: &str, n: u32, changes: &Value| node(name, &drain(state, n, changes));
    let none = json!({});
    let fake = Fake::start([
        step(
            "POST /v2/nodes/b/drain",
            202,
            &of("b", "draining", 1, &none),
        ),
        refusal(
            "POST /v2/nodes/ghost/drain",
            404,
            "NODE_NOT_FOUND",
            "nothing is known of node ghost",
        ),
        step(
            "POST /v2/nodes/a/drain",
            202,
            &of("a", "draining", 1, &none),
        ),
        step("GET /v2/nodes/b", 200, &of("b", "draining", 1, &none)),
        step(
            "GET /v2/nodes/a",
            200,
            &of(
                "a",
                "drained",
                0,
                &json!({"unverified": true, "in_flight_at_start": 1}),
            ),
        ),
        step(
            "GET /v2/nodes/b",
            200,
            &of("b", "drained", 0, &json!({"in_flight_at_start": 0})),
        ),
    ]);
    let ran = fake.run(&["nodes", "drain", "b", "ghost", "a", "b"]);
    assert_eq!(ran.exit, Some(3), "the first failure is the exit code");
    assert_eq!(
        ran.stdout,
        "a drained: 1 request finished, 0 cut; unverified: its agent did not confirm it\n\
         b drained: 0 requests finished, 0 cut\n"
    );
    assert!(
        ran.stderr
            .contains("error: nothing is known of node ghost\n"),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn drain_detached_asks_and_returns() {
    let fake = Fake::start([step(
        DRAIN,
        202,
        &node("gpu-1", &drain("draining", 3, &json!({}))),
    )]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--detach"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 draining, 3 requests in flight\n")
    );
    assert_eq!(
        ran.stderr,
        "hint: wait for it with `orchd nodes drain gpu-1`\n"
    );
    fake.asked();
}

#[test]
fn drain_gives_up_after_its_timeout_and_says_that_the_drain_goes_on() {
    let draining = node("gpu-1", &drain("draining", 3, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining),
        step(NODE, 200, &draining).again(),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--timeout", "600ms"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(5), ""));
    assert!(
        ran.stderr.ends_with(
            "error: not drained within 600ms: gpu-1 (3 requests in flight); the drain goes on\n\
             hint: wait again with `orchd nodes drain gpu-1`\n"
        ),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn ctrl_c_detaches_from_a_drain_and_says_so() {
    let draining = node("gpu-1", &drain("draining", 3, &json!({})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining),
        step(NODE, 200, &draining).again(),
    ]);
    let child = orchd(&["nodes", "drain", "gpu-1", "--server", fake.url().as_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("orchd runs");
    fake.wait_for(NODE);
    interrupt(&child);
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(130), ""));
    assert!(
        ran.stderr.ends_with(
            "error: interrupted: gpu-1 (3 requests in flight); the drain goes on\n\
             hint: wait again with `orchd nodes drain gpu-1`\n"
        ),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn a_drain_that_somebody_ends_fails_and_a_node_that_leaves_does_not() {
    let fake = Fake::start([
        step(
            DRAIN,
            202,
            &node("gpu-1", &drain("draining", 3, &json!({}))),
        ),
        step(NODE, 200, &node("gpu-1", &json!({}))),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        ran.stderr,
        "error: gpu-1: somebody ended the drain before it was done\n"
    );
    fake.asked();

    // A node that leaves still drains, and may still run requests.
    let draining = |n| node("gpu-1", &drain("draining", n, &json!({})));
    let unknown = || {
        let message = "nothing is known of node gpu-1";
        refusal(NODE, 404, "NODE_NOT_FOUND", message)
    };
    let drained = node("gpu-1", &drain("drained", 0, &json!({"unverified": true})));
    let fake = Fake::start([
        step(DRAIN, 202, &draining(2)),
        unknown(),
        step(DEPARTED, 200, &list(&[draining(1)])),
        unknown(),
        step(DEPARTED, 200, &list(&[drained])),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (
            Some(0),
            "gpu-1 drained: 7 requests finished, 0 cut; unverified: its agent did not confirm it\n"
        )
    );
    assert!(
        ran.stderr.contains("1 of 7 requests left"),
        "{}",
        ran.stderr
    );
    fake.asked();

    let fake = Fake::start([
        step(DRAIN, 202, &draining(2)),
        unknown(),
        step(DEPARTED, 200, &list(&[])),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(1),
            "",
            "error: gpu-1: somebody removed the node before its drain was done\n"
        )
    );
    fake.asked();
}

#[test]
fn a_control_plane_that_goes_away_for_a_moment_does_not_end_the_waiting() {
    let stopping = || refusal(NODE, 503, "SHUTTING_DOWN", "the process is stopping");
    let fake = Fake::start([
        step(
            DRAIN,
            202,
            &node("gpu-1", &drain("draining", 3, &json!({}))),
        ),
        stopping(),
        stopping(),
        step(NODE, 200, &node("gpu-1", &drain("drained", 0, &json!({})))),
    ]);
    let ran = fake.run(&["nodes", "drain", "gpu-1"]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str()),
        (Some(0), "gpu-1 drained: 7 requests finished, 0 cut\n")
    );
    assert!(
        ran.stderr
            .starts_with("gpu-1: the process is stopping; the drain goes on, asking again, after "),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr.lines().count(), 1);
    fake.asked();
}

#[test]
fn undrain_says_whether_the_node_takes_requests_again() {
    let unknown = |request: &str| {
        let message = "nothing is known of node c";
        refusal(request, 404, "NODE_NOT_FOUND", message)
    };
    let draining = node("a", &drain("draining", 3, &json!({})));
    let fake = Fake::start([
        step("GET /v2/nodes/a", 200, &draining),
        step("DELETE /v2/nodes/a/drain", 200, &node("a", &json!({}))),
        step("GET /v2/nodes/b", 200, &node("b", &json!({}))),
        step(
            "DELETE /v2/nodes/b/drain",
            200,
            &node("b", &json!({"status": "Offline", "schedulable": false})),
        ),
        unknown("GET /v2/nodes/c"),
        unknown("DELETE /v2/nodes/c/drain"),
    ]);
    let ran = fake.run(&["nodes", "undrain", "a", "b", "c"]);
    assert_eq!(ran.exit, Some(3));
    assert_eq!(
        ran.stdout,
        "a undrained, takes new requests\nb was not draining, takes no requests: it is Offline\n"
    );
    assert!(
        ran.stderr
            .starts_with("error: nothing is known of node c\n"),
        "{}",
        ran.stderr
    );
    fake.asked();
}

#[test]
fn drain_by_label_takes_what_the_list_says_and_passes_on_deadline_and_force() {
    let listed = "GET /v2/nodes?limit=1000&label=rack%3Db2&label=zone%3Deu";
    let drained = |name: &str| {
        node(
            name,
            &drain("drained", 0, &json!({"in_flight_at_start": 2, "cut": 1})),
        )
    };
    let fake = Fake::start([
        step(
            listed,
            200,
            &list(&[node("a", &json!({})), node("b", &json!({}))]),
        ),
        step("POST /v2/nodes/a/drain", 202, &drained("a")),
        step("POST /v2/nodes/b/drain", 202, &drained("b")),
        step("GET /v2/nodes/a", 200, &drained("a")),
        step("GET /v2/nodes/b", 200, &drained("b")),
    ]);
    let ran = fake.run(&[
        "nodes",
        "drain",
        "-l",
        "rack=b2",
        "-l",
        "zone=eu",
        "--deadline",
        "15m",
    ]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "a drained: 1 request finished, 1 cut\nb drained: 1 request finished, 1 cut\n",
            "2 nodes drained: 2 requests finished, 2 cut\n"
        )
    );
    let asked = fake.asked();
    assert_eq!(asked[1].body["deadline_ms"], 900_000);
    assert_eq!(asked[1].body.get("force"), None);

    let fake = Fake::start([step(DRAIN, 202, &drained("gpu-1"))]);
    let ran = fake.run(&["nodes", "drain", "gpu-1", "--force", "--detach"]);
    assert_eq!(ran.exit, Some(0));
    assert_eq!(fake.asked()[0].body["force"], true);
}

#[test]
fn labels_that_no_node_has_exit_3() {
    for verb in ["drain", "undrain"] {
        let fake = Fake::start([step(
            "GET /v2/nodes?limit=1000&label=rack%3Dzz",
            200,
            &list(&[]),
        )]);
        let ran = fake.run(&["nodes", verb, "-l", "rack=zz"]);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(3), ""));
        assert_eq!(
            ran.stderr,
            "error: no node has the label rack=zz\nhint: `orchd nodes list -o wide` shows the labels of nodes\n"
        );
        fake.asked();
    }
}

#[test]
fn many_drains_are_followed_by_the_list_and_named_in_short() {
    let names: Vec<String> = (0..12).map(|n| format!("n{n:02}")).collect();
    let all = |state: &str, n: u32| -> Vec<Value> {
        names
            .iter()
            .map(|name| node(name, &drain(state, n, &json!({}))))
            .collect()
    };
    let mut steps: Vec<_> = names
        .iter()
        .zip(all("draining", 1))
        .map(|(name, view)| step(&format!("POST /v2/nodes/{name}/drain"), 202, &view))
        .collect();
    steps.push(step(LIST, 200, &list(&all("draining", 1))).again());
    let fake = Fake::start(steps);
    let mut args = vec!["nodes", "drain", "--timeout", "700ms"];
    args.extend(names.iter().map(String::as_str));
    let ran = fake.run(&args);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(5), ""));
    assert!(
        ran.stderr
            .contains("n07 (1 request in flight), and 4 more; the drain goes on\n")
            && ran
                .stderr
                .ends_with("hint: wait again with the same command\n"),
        "{}",
        ran.stderr
    );
    fake.asked();
}
