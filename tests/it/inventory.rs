//! What an agent tells of its GPUs, with the real binary and a file that stands in for the driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_control_plane::run;
use crate::scripted_engine::ScriptedEngine;
use crate::support::http::get_json;
use crate::support::orchd::Orchd;
use crate::support::{eventually, free_address};

/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);

/// The driver, played by the test.
struct Driver {
    path: PathBuf,
    _dir: TempDir,
}

impl Driver {
    fn answering(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let driver = Self {
            path: dir.path().join("gpus.json"),
            _dir: dir,
        };
        driver.answers(name);
        driver
    }

    /// From now on it answers as in this file, and is read often.
    fn answers(&self, name: &str) {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/gpu/{name}.json"));
        let text = fs::read_to_string(path).expect("the fixture is there");
        let mut value: Value = serde_json::from_str(&text).expect("it is JSON");
        value["period_ms"] = json!(50);
        value["deadline_ms"] = json!(200);
        let beside = self.path.with_extension("new");
        fs::write(&beside, value.to_string()).expect("it is written");
        fs::rename(&beside, &self.path).expect("it takes the old one's place");
    }
}

/// Waits until the control plane says this of a node: its reasons, and the indices of its GPUs. Gives all it says.
fn until(plane: &Orchd, codes: &[&str], gpus: &[u64]) -> Value {
    let wanted = (json!(codes), json!(gpus));
    let (node, _) = eventually(SOON, &format!("n has {wanted:?}"), || {
        let list = get_json(plane.address, "/v2/nodes");
        let node = &list["nodes"][0];
        let each = |list: &Value, key: &str| -> Value {
            let entries = list.as_array().into_iter().flatten();
            entries.map(|entry| entry[key].clone()).collect()
        };
        let found = (
            each(&node["health"]["reasons"], "code"),
            each(&node["capabilities"]["gpus"], "device_id"),
        );
        if node["online"] == true && found == wanted {
            Ok(node.clone())
        } else {
            Err(node.to_string())
        }
    });
    node
}

#[test]
fn a_lost_gpu_degrades_the_node_and_whatever_changes_is_registered_without_a_restart() {
    let state = tempfile::tempdir().expect("a directory for the state");
    // Heartbeats every ten seconds: nothing below may wait for one.
    let plane = Orchd::serve_cloud(state.path(), &[]);
    let engine = ScriptedEngine::start("m", 2);
    let driver = Driver::answering("lost");
    let agent = Orchd::agent_with(
        &plane.url(),
        "n",
        &[engine.url()],
        &["--gpu-fixture", driver.path.to_str().expect("UTF-8")],
    );
    let node = until(&plane, &["GPU_LOST"], &[0, 2]);
    assert_eq!(node["health"]["status"], "degraded", "{node}");
    assert_eq!(
        (&node["status"], &node["schedulable"]),
        (&json!("Online"), &json!(true)),
        "it serves all the same: {node}"
    );
    let one = get_json(plane.address, "/v2/nodes/n");
    assert_eq!(one["health"], node["health"]);
    let gpu = &one["capabilities"]["gpus"][0];
    assert_eq!(
        (&gpu["cuda_version"], &gpu["mig"], &gpu["driver_version"]),
        (&json!("13.0"), &json!(false), &json!("580.159.04")),
        "{gpu}"
    );
    let pool = &one["pool_status"][0];
    assert_eq!(pool["vram_free_bytes"], 2 * 85_017_493_504_u64, "{pool}");
    let shown = plane.command(&["nodes", "get", "n"]);
    assert!(
        shown.stdout.contains("GPU 1 has fallen off the bus"),
        "{}",
        shown.stdout
    );

    driver.answers("h100x8");
    let after = until(&plane, &[], &[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(after["health"]["status"], "ok", "{after}");
    for key in ["registered_at_ms", "instance_id", "status"] {
        assert_eq!(after[key], node[key], "{key}: {after}");
    }
    driver.answers("no_driver");
    until(&plane, &["NO_DRIVER"], &[]);
    driver.answers("ecc");
    until(&plane, &["ECC_ERRORS"], &[0, 1]);

    // One line for each thing that came or went, however often it was read.
    let log = agent.log();
    for (code, lines) in [("GPU_LOST", 2), ("NO_DRIVER", 2), ("ECC_ERRORS", 1)] {
        assert_eq!(log.matches(code).count(), lines, "{code}:\n{log}");
    }
    assert_eq!(log.matches(" registered server=").count(), 1, "{log}");
}

#[test]
fn a_driver_that_hangs_keeps_no_node_from_being_heard() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let plane = Orchd::serve_cloud(state.path(), &["--node-timeout", "1s"]);
    let driver = Driver::answering("hang");
    let mut agent = Orchd::agent_with(
        &plane.url(),
        "n",
        &[],
        &["--gpu-fixture", driver.path.to_str().expect("UTF-8")],
    );
    until(&plane, &["NVML_TIMEOUT"], &[]);
    driver.answers("h100");
    until(&plane, &[], &[0]);
    driver.answers("hang");
    let beats = |node: &Value| node["last_heartbeat_ms"].as_u64().expect("a time");
    let node = until(&plane, &["NVML_TIMEOUT"], &[0]);
    eventually(SOON, "it beats on for longer than its lease", || {
        let now = get_json(plane.address, "/v2/nodes/n");
        assert_eq!(now["status"], "Online", "{now}");
        if beats(&now) > beats(&node) + 1_500 {
            Ok(())
        } else {
            Err(now.to_string())
        }
    });
    agent.terminate();
    assert_eq!(agent.wait(SOON), Some(0), "nor from ending in good order");
}

#[test]
fn a_file_that_cannot_stand_in_for_the_driver_ends_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gpus.json");
    let path = path.to_str().expect("a path in UTF-8");
    let listen = free_address().to_string();
    let start = || {
        run(&[
            "agent",
            "--node-id",
            "n",
            "--listen",
            &listen,
            "--gpu-fixture",
            path,
        ])
    };
    for text in [None, Some("{")] {
        if let Some(text) = text {
            fs::write(path, text).expect("it is written");
        }
        let ran = start();
        assert_eq!(ran.exit, Some(1), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("cannot read the GPU fixture") && ran.stderr.contains("gpus.json"),
            "{}",
            ran.stderr
        );
    }
}
