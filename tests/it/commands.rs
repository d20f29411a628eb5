//! What holds for every command: exit codes, hints, mistakes; and the small verbs.

use std::io::Read as _;
use std::process::Stdio;

use orchd::cli::{EngineArg, name_engines};
use serde_json::json;

use crate::fake_control_plane::{Fake, LIST, Ran, orchd, refusal, run, silent_port, step};

#[test]
fn each_answer_of_a_control_plane_has_its_exit_code_and_hint() {
    let get = "POST /v2/nodes/gpu-1/drain";
    let cases = [
        (
            refusal(get, 404, "NODE_NOT_FOUND", "nothing is known of node gpu-1"),
            3,
            "error: nothing is known of node gpu-1\nhint: `orchd nodes list` shows the nodes there are\n",
        ),
        (
            refusal(
                get,
                503,
                "CLOUD_PROFILE_DISABLED",
                "this control plane serves one machine",
            ),
            4,
            "error: this control plane serves one machine (HOME) and keeps no nodes\nhint: start it with `orchd serve --cloud` \
             to manage a fleet; `orchd pools list` shows the engines of this machine\n",
        ),
        (
            refusal(get, 503, "STORE_UNAVAILABLE", "the disk is full"),
            4,
            "error: gpu-1: the disk is full\nhint: see the log of the control plane; nothing was changed\n",
        ),
        (
            refusal(get, 503, "SHUTTING_DOWN", "the process is stopping")
                .header("retry-after", "9"),
            4,
            "error: gpu-1: the process is stopping\nhint: try again in 9 s\n",
        ),
        (
            refusal(get, 400, "INVALID_REQUEST", "reason is too long"),
            4,
            "error: gpu-1: reason is too long\n",
        ),
        (
            refusal(get, 500, "INTERNAL", "a defect"),
            1,
            "error: gpu-1: a defect\nhint: see the log of the control plane\n",
        ),
        (
            refusal(get, 418, "TEAPOT_EMPTY", "no more tea"),
            1,
            "error: gpu-1: TEAPOT_EMPTY: no more tea\nhint: see the log of the control plane\n",
        ),
    ];
    for (step, exit, stderr) in cases {
        let fake = Fake::start([step]);
        let ran = fake.run(&["nodes", "drain", "gpu-1"]);
        assert_eq!(
            (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(exit), "", stderr)
        );
        fake.asked();
    }
}

#[test]
fn a_missing_or_weak_token_exits_7_and_is_never_shown() {
    let fake = Fake::start([refusal(LIST, 401, "UNAUTHORIZED", "a token is needed")]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!(ran.exit, Some(7));
    assert_eq!(
        ran.stderr,
        format!(
            "error: {} does not accept this request: a token is needed\n\
             hint: put the control plane's token into ORCHD_API_TOKEN\n",
            fake.url()
        )
    );

    let fake = Fake::start([refusal(LIST, 403, "FORBIDDEN", "clients may only use /v1")]);
    let output = orchd(&["nodes", "list", "--server", fake.url().as_str()])
        .env("ORCHD_API_TOKEN", "sesame")
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!(ran.exit, Some(7));
    assert!(!ran.stderr.contains("sesame"), "{}", ran.stderr);
    assert_eq!(
        fake.asked()[0].authorization.as_deref(),
        Some("Bearer sesame")
    );

    let output = orchd(&["nodes", "list"])
        .env("ORCHD_API_TOKEN", "ses\name")
        .output()
        .expect("orchd runs");
    let ran = Ran::from(output);
    assert_eq!(ran.exit, Some(2));
    assert!(
        !ran.stderr.contains("ame\n") && ran.stderr.contains("token"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_server_that_cannot_be_reached_exits_6_with_its_address() {
    let server = silent_port();
    let ran = run(&["nodes", "list", "--server", server.as_str()]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(6), ""));
    assert_eq!(
        ran.stderr,
        format!(
            "error: cannot reach the control plane at {server}: Connection refused\n\
             hint: start one with `orchd serve --cloud`, or say where it is with --server or ORCHD_SERVER\n"
        )
    );
}

#[test]
fn something_else_on_the_port_exits_6_and_is_told_apart() {
    let mut stranger = step(LIST, 404, &json!({"error": {"message": "File Not Found"}}));
    stranger.headers.clear();
    let fake = Fake::start([stranger]);
    let ran = fake.run(&["nodes", "list"]);
    assert_eq!(ran.exit, Some(6));
    assert_eq!(
        ran.stderr,
        format!(
            "error: {} is not an orchd control plane: it answers 404 Not Found without the header x-orchd-version\n\
             hint: say where the control plane is with --server or ORCHD_SERVER\n",
            fake.url()
        )
    );
    fake.asked();
}

#[test]
fn mistakes_on_the_command_line_exit_2_with_the_name_the_value_and_what_is_accepted() {
    let cases: [(&[&str], &str); 12] = [
        (
            &["serve", "--queue-timeout", "30"],
            "'30' for '--queue-timeout <DURATION>': a duration needs its unit here, such as 30s or 30ms",
        ),
        (
            &["serve", "--node-timeout", "2h"],
            "'2h' for '--node-timeout <DURATION>': must be 1s to 1h",
        ),
        (
            &["serve", "--stale-check-interval", "500ms"],
            "must be 1s to 1m",
        ),
        (
            &["serve", "--listen", "localhost:80"],
            "must be an IP address and a port, such as 127.0.0.1:8080",
        ),
        (&["serve", "--cloud=maybe"], "must be true, false, 1 or 0"),
        (
            &["serve", "--cloud", "--engine", "http://a:1"],
            "hint: run `orchd agent --engine URL` on the host of the engine",
        ),
        (
            &["serve", "--heartbeat-interval", "11s"],
            "set it to 10s or less",
        ),
        (
            &[
                "serve",
                "--engine",
                "http://a",
                "--engine",
                "default=http://b",
            ],
            "would both be called default",
        ),
        (&["agent", "--label", "rack"], "a label is KEY=VALUE"),
        (&["nodes", "drain"], "required arguments"),
        (&["nodes", "drain", "local"], "\"local\" is a reserved name"),
        (
            &["nodes", "drain", "a", "--detach", "--timeout", "5s"],
            "cannot be used with",
        ),
    ];
    for (args, text) in cases {
        let ran = run(args);
        assert_eq!((ran.exit, ran.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(
            ran.stderr.starts_with("error: ") && ran.stderr.contains(text),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_bad_variable_is_named_itself_and_takes_bare_numbers_only() {
    let cases = [
        (
            "ORCHD_QUEUE_TIMEOUT_MS",
            "30s",
            "this variable takes a whole number of milliseconds, without a unit",
        ),
        (
            "ORCHESTRATORD_NODE_TIMEOUT_MS",
            "999",
            "must be 1000 to 3600000 milliseconds",
        ),
        (
            "ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS",
            "61",
            "must be 1 to 60 seconds",
        ),
        (
            "ORCHESTRATORD_CLOUD_PROFILE",
            "yes",
            "must be true, false, 1 or 0",
        ),
        (
            "ORCHD_ADMISSION_CAPACITY",
            "many",
            "must be a whole number, 0 to 1000000",
        ),
        ("ORCHD_ADDR", "8080", "must be an IP address and a port"),
    ];
    for (name, value, text) in cases {
        let output = orchd(&["serve"])
            .env(name, value)
            .output()
            .expect("orchd runs");
        let ran = Ran::from(output);
        assert_eq!(ran.exit, Some(2), "{name}");
        let wanted = format!("error: invalid value '{value}' for '{name}': {text}");
        assert!(ran.stderr.starts_with(&wanted), "{}", ran.stderr);
    }
}

#[test]
fn a_usage_shows_what_has_to_be_given_whatever_variables_are_set() {
    let variables = [
        ("ORCHD_SERVER", "http://10.0.0.1:8080"),
        ("ORCHD_API_TOKEN", "t"),
    ];
    for (arguments, usage) in [
        (&["nodes", "get"][..], "orchd nodes get <NODE>..."),
        (
            &["nodes", "get", "a", "--nonsense"],
            "orchd nodes get <NODE>...",
        ),
        (
            &["nodes", "wait", "a"],
            "orchd nodes wait --for <STATE> <NODE>...",
        ),
    ] {
        let output = orchd(arguments).envs(variables).output();
        let ran = Ran::from(output.expect("orchd runs"));
        assert_eq!(ran.exit, Some(2), "{}", ran.stderr);
        let shown = format!("\nUsage: {usage}\n");
        assert!(ran.stderr.contains(&shown), "{}", ran.stderr);
    }
}

#[test]
fn engines_are_named_as_given_else_default_else_by_host_and_port() {
    let name = |engines: &[&str]| -> Result<Vec<String>, String> {
        let engines: Vec<EngineArg> = engines
            .iter()
            .map(|text| text.parse().expect("an engine"))
            .collect();
        name_engines(&engines)
            .map(|specs| specs.iter().map(|spec| spec.name.to_string()).collect())
            .map_err(|error| error.message)
    };
    let names = name(&[
        "http://127.0.0.1:8081",
        "big=http://127.0.0.1:8082",
        "http://gpu-1.example",
        "http://[::1]:81/base",
    ]);
    assert_eq!(
        names.expect("good"),
        ["default", "big", "gpu-1.example-80", "1-81"]
    );
    assert_eq!(
        name(&["big=http://a", "http://b"]).expect("good"),
        ["big", "default"]
    );
    assert_eq!(
        name(&["http://a", "default=http://b"]),
        Err("the engines http://a and http://b would both be called default".to_owned())
    );
    assert_eq!(
        name(&["http://a", "x=http://a:80/"]),
        Err("the engine http://a:80/ is given twice, the first time as default".to_owned())
    );
    for bad in ["a b=http://x", "=http://x", "name=", "x", "http://x?a=b"] {
        assert!(bad.parse::<EngineArg>().is_err(), "{bad}");
    }
}

#[test]
fn register_announces_a_node_and_says_what_comes_next() {
    let reply = json!({"success": true, "message": "registered", "node_id": "gpu-7", "heartbeat_interval_ms": 10_000,
        "node_timeout_ms": 30_000, "durable": true});
    let fake = Fake::start([step("POST /v2/nodes/register", 200, &reply)]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-7",
        "--address",
        "http://10.0.0.7:9200",
        "--machine-id",
        "m7",
        "--label",
        "rack=b2",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(0), "gpu-7\n"));
    assert_eq!(
        ran.stderr,
        format!(
            "gpu-7 is announced: it goes Online when its agent comes, and Offline when none has come within 30s\n\
             hint: start it there: orchd agent --node-id gpu-7 --server {} --listen 10.0.0.7:9200 --machine-id m7 --label \
             rack=b2\n",
            fake.url()
        )
    );
    assert_eq!(
        fake.asked()[0].body,
        json!({"node_id": "gpu-7", "machine_id": "m7", "address": "http://10.0.0.7:9200", "pools": [],
            "capabilities": {"gpus": []}, "labels": {"rack": "b2"}})
    );
}

#[test]
fn register_passes_on_a_conflict_with_the_time_to_wait() {
    let fake = Fake::start([refusal(
        "POST /v2/nodes/register",
        409,
        "NODE_ID_CONFLICT",
        "gpu-7 is held by machine m1, not m2",
    )
    .header("retry-after", "21")]);
    let ran = fake.run(&[
        "nodes",
        "register",
        "gpu-7",
        "--address",
        "http://10.0.0.7:9200",
    ]);
    assert_eq!((ran.exit, ran.stdout.as_str()), (Some(4), ""));
    assert_eq!(
        ran.stderr,
        "error: gpu-7 is held by machine m1, not m2\nhint: try again in 21 s\n"
    );
    fake.asked();
}

#[test]
fn completions_and_man_print_to_stdout_and_man_writes_a_directory() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("COMPLETE"), "{shell}: {}", ran.stdout);
    }
    let ran = run(&["man"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains(".TH \"orchd\" \"1\""), "{}", ran.stdout);

    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("new/man1");
    let ran = run(&["man", "--dir", dir.to_str().expect("UTF-8")]);
    assert_eq!(
        (ran.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "", "")
    );
    assert!(dir.join("orchd-nodes-list.1").exists());

    let ran = run(&["man", "--dir", "/dev/null/x"]);
    assert_eq!(ran.exit, Some(1));
    assert!(
        ran.stderr
            .starts_with("error: cannot make the directory /dev/null/x: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn help_is_data_and_does_not_depend_on_a_running_control_plane() {
    let mut child = orchd(&["nodes", "drain", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("orchd runs");
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("UTF-8");
    assert!(child.wait().expect("it ends").success());
    assert!(
        text.contains("Examples:\n  orchd nodes drain gpu-7"),
        "{text}"
    );
}
