//! `orchd probe`, with the real binary: what somebody who sets up a host is shown.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_control_plane::{Ran, orchd};
use crate::scripted_engine::ScriptedEngine;
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;

const H100: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpu/h100.json");
const LOST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpu/lost.json");

fn probe(runtime: &TempDir, options: &[&str]) -> Ran {
    let dir = runtime.path().to_str().expect("UTF-8");
    let always = ["probe", "--runtime-dir", dir, "--node-id", "n1"];
    let ran = orchd(&[&always, options].concat()).output().expect("runs");
    ran.into()
}

fn runtime() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn what_is_found_is_shown_with_what_is_passed_over_and_why() {
    let runtime = runtime();
    let write = |name: &str, handoff: &Value| {
        fs::write(runtime.path().join(name), handoff.to_string()).expect("writes");
    };
    let engine = ScriptedEngine::start("m", 2);
    write(
        "a.json",
        &json!({"url": engine.url(), "pool_id": "a", "device_mask": "0"}),
    );
    write(
        "b.json",
        &json!({"url": "http://127.0.0.1:9", "pool_id": "a"}),
    );
    write(
        "dead.json",
        &json!({"url": "http://127.0.0.1:8", "pool_id": "dead", "pid": u32::MAX, "model": "x"}),
    );
    fs::write(runtime.path().join("half.json"), "{").expect("writes");

    let ran = probe(&runtime, &["--gpu-fixture", H100, "-o", "json"]);
    assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
    let found: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(found["node_id"], "n1");
    assert_eq!(found["health"]["status"], "ok");
    assert_eq!(found["gpus"][0]["gpu"]["name"], "NVIDIA H100 80GB HBM3");
    assert_eq!(found["gpus"][0]["vram_free_bytes"], 85_017_493_504_u64);
    assert_eq!(
        found["capabilities"]["gpus"][0]["vram_total_bytes"],
        85_520_809_984_u64
    );
    let pools = found["pools"].as_array().expect("a list");
    assert_eq!(pools.len(), 2, "{pools:?}");
    let a = &pools[0];
    assert_eq!(
        (&a["pool_id"], &a["state"], &a["from"]),
        (&json!("a"), &json!("ready"), &json!("a.json"))
    );
    assert_eq!(
        (&a["slots_free"], &a["slots_total"], &a["models_available"]),
        (&json!(2), &json!(2), &json!(["m"]))
    );
    assert_eq!(
        (&a["url"], &a["vram_free_bytes"]),
        (&json!(engine.url()), &json!(85_017_493_504_u64))
    );
    let dead = &pools[1];
    assert_eq!(
        (&dead["ready"], &dead["models_available"]),
        (&json!(false), &json!(["x"]))
    );
    assert!(
        dead["detail"]
            .as_str()
            .is_some_and(|why| why.contains("has ended"))
    );
    let passed_over: Vec<&Value> = found["passed_over"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|p| &p["file"])
        .collect();
    assert_eq!(passed_over, ["b.json", "half.json"]);

    let text = probe(&runtime, &["--gpu-fixture", H100]).stdout;
    for said in [
        "NVIDIA H100 80GB HBM3",
        "125/700W",
        "half.json: it is not a handoff file",
        "b.json: the pool a is already that of a.json",
        "No GPUs",
    ] {
        assert_eq!(
            text.contains(said),
            said != "No GPUs",
            "{said:?} in\n{text}"
        );
    }
}

#[test]
fn trouble_with_a_gpu_is_said_and_is_no_failure() {
    let runtime = runtime();
    let ran = probe(&runtime, &["--gpu-fixture", LOST]);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("degraded") && ran.stdout.contains("GPU_LOST"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("No engines."));
    assert!(
        ran.stderr.contains("hint: name an engine with --engine"),
        "{}",
        ran.stderr
    );
}

#[test]
fn settings_of_a_real_engine_that_cost_its_users_are_named() {
    let engine = Engine::start(Model::Counting, 2, 4_096);
    let ran = probe(
        &runtime(),
        &[
            "--gpu-fixture",
            H100,
            "--engine",
            &engine.url(),
            "-o",
            "yaml",
        ],
    );
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("each of its 2 slots has a context of 2048 tokens"),
        "{}",
        ran.stdout
    );
    let bad = probe(&runtime(), &["--gpu-fixture", "/nowhere.json"]);
    assert_eq!(bad.exit, Some(1));
    assert!(bad.stderr.contains("/nowhere.json"), "{}", bad.stderr);
}

#[test]
fn a_directory_that_cannot_be_read_is_said_after_all_else() {
    let runtime = runtime();
    let file = runtime.path().join("file");
    fs::write(&file, "").expect("writes");
    let file = file.to_str().expect("UTF-8");
    let engine = ScriptedEngine::start("m", 2);
    let ran = crate::fake_control_plane::run(&[
        "probe",
        "--runtime-dir",
        file,
        "--gpu-fixture",
        H100,
        "--engine",
        &engine.url(),
    ]);
    assert_eq!(ran.exit, Some(1), "{}", ran.stderr);
    assert!(ran.stdout.contains(&engine.url()), "{}", ran.stdout);
    let said = format!("error: cannot read the directory of handoff files {file}: Not a directory");
    assert!(
        ran.stderr.contains(&said) && ran.stderr.contains("hint: "),
        "{}",
        ran.stderr
    );
    // One that is not there yet is an empty one.
    fs::remove_file(file).expect("removes");
    let later = ["probe", "--runtime-dir", file, "--gpu-fixture", H100];
    let ran = crate::fake_control_plane::run(&later);
    assert_eq!(ran.exit, Some(0), "{}", ran.stderr);
}

#[test]
fn an_orchd_is_no_engine_with_a_token_or_without() {
    let engine = ScriptedEngine::start("m", 2);
    let open = Orchd::serve_home(&[engine.url()], &[]);
    let guarded = Orchd::serve_home_guarded(&[engine.url()], "0123456789abcdef0123456789abcdef");
    let agent = Orchd::agent(&open.url(), "n", &[engine.url()]);
    let behind = format!("{}/pools/default", agent.url());
    for (url, is_orchd) in [
        (open.url(), true),
        (guarded.url(), true),
        (format!("{}/v1", open.url()), true),
        (agent.url(), true),
        (behind, false),
    ] {
        let options = ["--gpu-fixture", H100, "--engine", &url, "-o", "json"];
        let found: Value = serde_json::from_str(&probe(&runtime(), &options).stdout).expect("JSON");
        let pool = &found["pools"][0];
        let state = if is_orchd { "misconfigured" } else { "ready" };
        assert_eq!(pool["state"], state, "{url}: {pool}");
        let detail = pool["detail"].as_str().unwrap_or_default();
        assert_eq!(
            detail.contains("this is orchd itself"),
            is_orchd,
            "{url}: {pool}"
        );
    }
}

#[test]
fn a_machine_without_a_gpu_is_well_and_one_without_its_driver_is_not() {
    let fixture = |name: &str| {
        let path = format!(
            "{}/tests/fixtures/gpu/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        probe(&runtime(), &["--gpu-fixture", &path]).stdout
    };
    let none = fixture("no_gpu");
    assert!(
        none.contains("Health:  ok") && none.contains("no NVIDIA GPU on its PCI bus"),
        "{none}"
    );
    let undriven = fixture("no_driver");
    assert!(
        undriven.contains("degraded") && undriven.contains("NO_DRIVER: 2 NVIDIA GPUs are on"),
        "{undriven}"
    );
}
