//! What an agent costs a host on which nothing runs. `tests/bench/idle` measures the same for longer, and system calls, too.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted_engine::ScriptedEngine;
use crate::support::orchd::Orchd;
use crate::support::secure::Process;
use crate::support::{eventually, http};

/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(15);
/// Two rounds of a prober that finds its engine idle.
const MEASURED: Duration = Duration::from_secs(10);
/// In a minute: three times what was measured, for what a busy machine may add. Raise it only with a reason.
const MOST_WAKE_UPS: u64 = 1_000;
/// Its own memory, in MB: 2.6 were measured. The pages of the program itself, which may be dropped and are twice as many
/// without optimisation, are left out.
const MOST_ANONYMOUS: f64 = 10.0;

/// A file of /proc, as fields by name.
fn fields(path: &str) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    Some(
        fields
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
    )
}

/// Voluntary context switches so far, by thread.
fn wake_ups(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let count = |thread: fs::DirEntry| {
        let name = thread.file_name().into_string().expect("a number");
        // It may have ended since.
        let fields = fields(&format!("/proc/{pid}/task/{name}/status"))?;
        let count = fields["voluntary_ctxt_switches"].parse().expect("a number");
        Some((name, count))
    };
    threads
        .filter_map(|thread| count(thread.expect("it is readable")))
        .collect()
}

#[test]
fn an_agent_of_eight_gpus_and_four_idle_engines_sleeps_and_is_small() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let plane = Orchd::serve_cloud(state.path(), &[]);
    let engines: Vec<_> = (0..4)
        .map(|number| ScriptedEngine::start(&format!("m{number}"), 4))
        .collect();
    let gpus: Value = (0..8)
        .map(|gpu| {
            json!({"device_id": gpu, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": 85_899_345_920_u64,
                "compute_capability": "9.0", "uuid": format!("GPU-00000000-0000-4000-8000-00000000000{gpu}")})
        })
        .collect();
    let fixture = state.path().join("gpus.json");
    fs::write(&fixture, gpus.to_string()).expect("the directory can be written to");
    let fixture = fixture.to_str().expect("a path in UTF-8");
    let server = plane.url();
    let mut arguments = vec!["agent", "--node-id", "idle", "--server", &server];
    arguments.extend(["--gpu-fixture", fixture]);
    let named: Vec<String> = (0..4)
        .map(|at| engines[at].named(&format!("e{at}")))
        .collect();
    arguments.extend(named.iter().flat_map(|engine| ["--engine", engine]));
    let agent = Process::start(&arguments, &[]);
    eventually(SOON, "the node has four pools and eight GPUs", || {
        let nodes = http::get_json(plane.address, "/v2/nodes");
        let node = &nodes["nodes"][0];
        let pools = node["pool_status"].as_array().map_or(0, Vec::len);
        let gpus = node["capabilities"]["gpus"].as_array().map_or(0, Vec::len);
        if (pools, gpus) == (4, 8) {
            Ok(())
        } else {
            Err(nodes.to_string())
        }
    });
    // What a start takes is over with the second round.
    eventually(SOON, "every engine was read twice", || {
        let rounds = |engine: &ScriptedEngine| {
            let probes = engine.probes();
            probes
                .iter()
                .filter(|asked| asked.target == "/health")
                .count()
        };
        let read: Vec<usize> = engines.iter().map(rounds).collect();
        if read.iter().all(|rounds| *rounds >= 2) {
            Ok(())
        } else {
            Err(format!("{read:?}"))
        }
    });

    let before = wake_ups(agent.pid());
    let begun = Instant::now();
    // Not waiting: this is what is measured.
    std::thread::sleep(MEASURED);
    let after = wake_ups(agent.pid());
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let count: u64 = after
        .iter()
        .map(|(thread, count)| count - before.get(thread).unwrap_or(&0))
        .sum();
    let a_minute = (count as f64 / minutes) as u64;
    let status = fields(&format!("/proc/{}/status", agent.pid())).expect("it runs");
    let megabytes = |name: &str| {
        let kib = status[name].strip_suffix(" kB").expect("Linux says kB");
        kib.parse::<f64>().expect("a number") * 1_024.0 / 1e6
    };
    let (resident, anonymous) = (megabytes("VmRSS"), megabytes("RssAnon"));
    eprintln!(
        "idle: {a_minute} wake-ups a minute of {} threads, {resident:.1} MB resident, {anonymous:.1} MB of its own",
        after.len()
    );
    assert!(a_minute <= MOST_WAKE_UPS, "{a_minute} wake-ups a minute");
    assert!(anonymous <= MOST_ANONYMOUS, "{anonymous} MB of its own");
}
