//! The journey of a fleet: a control plane, two agents and four engines, all real, through everything that is promised
//! to happen to them.
//!
//! Each step prints what it measured. The limits asserted are the promised ones; where nothing is promised they are wide.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::chat::{COUNT, Stream, ring};
use crate::support::engine::{Engine, Model};
use crate::support::orchd::Orchd;
use crate::support::{STEP, at_once, eventually, http};

const NODES: [&str; 2] = ["gpu-1", "gpu-2"];
/// Slots of each engine.
const SLOTS: u64 = 4;
/// Silence after which a node is Offline, and how much later at most that is found.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
const FOUND_WITHIN: Duration = Duration::from_secs(1);
/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(10);
/// Some seconds of counting.
const LONG: usize = 1_500;

/// Everything that runs. What depends on another is ended before it.
struct Fleet {
    agents: [Orchd; 2],
    plane: Orchd,
    /// One that counts to forty and one that counts in a ring, for each node.
    engines: [[Engine; 2]; 2],
    _state: TempDir,
}

#[test]
fn journey_cloud_a_fleet_serves_drains_loses_and_regains_its_nodes() {
    let mut fleet = Fleet::start();
    fleet.shows_its_nodes_as_they_are();
    fleet.counts_to_forty_on_both_nodes();
    fleet.drains_a_node_without_cutting_anybody_off();
    fleet.loses_the_agent_of_the_other_node_and_regains_it();
    fleet.survives_the_death_of_its_control_plane();
    fleet.takes_a_drained_node_back();
    fleet.lets_an_agent_go_in_good_order();
}

#[test]
fn journey_cloud_after_a_restart_a_node_serves_before_it_is_heard() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let engine = Engine::start(Model::Counting, 4, 8_192);
    // Heartbeats every ten seconds: the first one after the restart is far away.
    let mut plane = Orchd::serve_cloud(state.path(), &["--node-timeout", "30s"]);
    let _agent = Orchd::agent(
        &plane.url(),
        "gpu-1",
        &[format!("counting={}", engine.url())],
    );
    eventually(SOON, "it serves", || COUNT.streamed(plane.address));
    // What it knows of a pool is on disk within a second of its coming to know it; nothing shows when.
    std::thread::sleep(Duration::from_millis(1_500));

    plane.kill9();
    plane.start_again();
    let ready = Instant::now();
    let answer = COUNT.streamed(plane.address);
    let answered = ready.elapsed();
    let node = http::get_json(plane.address, "/v2/nodes/gpu-1");
    let heard = &node["last_heartbeat_age_ms"];
    eprintln!(
        "restart: answered {answered:?} after it was ready again, by a node last heard {heard} ms ago"
    );
    assert_eq!(answer.as_deref(), Ok("gpu-1"));
    assert!(
        heard.is_null(),
        "the answer had to wait for a heartbeat: {node}"
    );
    assert_eq!(
        (&node["status"], &node["suspect"]),
        (&"Online".into(), &true.into()),
        "{node}"
    );
}

impl Fleet {
    fn start() -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        let engines = NODES.map(|_| {
            [
                Engine::start(Model::Counting, 4, 8_192),
                Engine::start(Model::Ring, 4, 32_768),
            ]
        });
        let plane = Orchd::serve_cloud(state.path(), &["--node-timeout", "3s"]);
        let begun = Instant::now();
        let agents = [0, 1].map(|at| {
            let named: [String; 2] = [0, 1].map(|engine| {
                let name = [Model::Counting, Model::Ring][engine].alias();
                format!("{name}={}", engines[at][engine].url())
            });
            Orchd::agent(&plane.url(), NODES[at], &named)
        });
        let fleet = Self {
            agents,
            plane,
            engines,
            _state: state,
        };
        eventually(SOON, "both nodes are Online with ready pools", || {
            fleet.all_ready(&NODES)
        });
        eprintln!(
            "start: both nodes are Online with ready pools {:?} after the first agent was started",
            begun.elapsed()
        );
        fleet
    }

    /// Where clients ask.
    fn address(&self) -> SocketAddr {
        self.plane.address
    }

    fn node(&self, node_id: &str) -> Value {
        http::get_json(self.address(), &format!("/v2/nodes/{node_id}"))
    }

    /// Whether there are these nodes and no others, each Online, heard, and with both pools ready.
    fn all_ready(&self, wanted: &[&str]) -> Result<(), String> {
        let list = http::get_json(self.address(), "/v2/nodes");
        let nodes = list["nodes"].as_array().expect("a list");
        let ready = |node: &Value| {
            let pools = node["pool_status"].as_array().expect("a list");
            node["status"] == "Online"
                && node["suspect"] == false
                && pools.len() == 2
                && pools.iter().all(|pool| pool["ready"] == true)
        };
        let ids: Vec<_> = nodes.iter().map(|node| &node["node_id"]).collect();
        if ids == wanted && nodes.iter().all(ready) {
            Ok(())
        } else {
            Err(list.to_string())
        }
    }

    fn shows_its_nodes_as_they_are(&self) {
        let list = http::get_json(self.address(), "/v2/nodes");
        assert_eq!((&list["count"], &list["total"]), (&2.into(), &2.into()));
        assert!(list["fleet_hold"].is_null(), "{list}");
        for (at, node) in list["nodes"].as_array().expect("a list").iter().enumerate() {
            assert_eq!(node["node_id"], NODES[at]);
            assert_eq!(node["address"], self.agents[at].url());
            assert_eq!(
                (&node["online"], &node["schedulable"]),
                (&true.into(), &true.into())
            );
            assert!(node["drain"].is_null(), "{node}");
            for (model, n_ctx) in [(Model::Counting, 2_048), (Model::Ring, 8_192)] {
                let pool = pool(node, model);
                assert_eq!(pool["slots_total"], SLOTS, "{pool}");
                assert_eq!(pool["slots_free"], SLOTS, "{pool}");
                assert_eq!(pool["n_ctx"], n_ctx, "{pool}");
                assert_eq!(pool["models_available"], Value::from(vec![model.alias()]));
                assert_eq!(pool["state"], "ready", "{pool}");
            }
        }

        let ran = self.plane.command(&["nodes", "list", "-o", "json"]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
        let printed: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let printed: Vec<_> = printed["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|node| {
                (
                    &node["node_id"],
                    &node["status"],
                    node["pool_status"][0]["slots_total"].as_u64(),
                )
            })
            .collect();
        let [first, second] = NODES.map(Value::from);
        let online = Value::from("Online");
        assert_eq!(
            printed,
            [
                (&first, &online, Some(SLOTS)),
                (&second, &online, Some(SLOTS))
            ]
        );

        let rows = self.table();
        assert_eq!(rows.len(), 3, "a head and two nodes: {rows:?}");
        for (row, node) in rows[1..].iter().zip(NODES) {
            assert_eq!(row[..2], [node, "Online"], "{rows:?}");
        }

        let models = http::get_json(self.address(), "/v1/models");
        for model in models["data"].as_array().expect("a list") {
            assert_eq!(model["meta"]["slots"], 2 * SLOTS, "of both nodes: {models}");
        }
        eprintln!(
            "nodes: shown by /v2/nodes, `nodes list -o json`, the table and /v1/models as they are"
        );
    }

    /// `orchd nodes list`, in words.
    fn table(&self) -> Vec<Vec<String>> {
        let ran = self.plane.command(&["nodes", "list"]);
        assert_eq!((ran.exit, ran.stderr.as_str()), (Some(0), ""));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        ran.stdout.lines().map(words).collect()
    }

    fn counts_to_forty_on_both_nodes(&self) {
        let begun = Instant::now();
        let answers = at_once(20, |_| COUNT.streamed(self.address()));
        let took = begun.elapsed();
        let served = by_node(answers);
        eprintln!("twenty streams at once: all counted to forty in {took:?}, {served:?}");
        assert_eq!(served.values().sum::<usize>(), 20);
        assert!(
            NODES.iter().all(|node| served.contains_key(*node)),
            "{served:?}"
        );
        for engines in &self.engines {
            eventually(SOON, "the engines are idle", || engines[0].idle());
        }
    }

    fn drains_a_node_without_cutting_anybody_off(&mut self) {
        let [drained, other] = NODES;
        let long = self.long_streams(4);
        let running = long.iter().filter(|long| long.node == drained).count();
        assert!(
            (1..4).contains(&running),
            "both nodes have some of the four streams"
        );

        let over = AtomicBool::new(false);
        let address = self.address();
        let (drain, asked) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| ask_until(address, &over)))
                .collect();
            let _over = Raised(&over);
            let drain = Drain::run(&self.plane, drained);
            over.store(true, Ordering::Relaxed);
            let asked: Vec<Asked> = clients
                .into_iter()
                .flat_map(|client| client.join().expect("no panic"))
                .collect();
            (drain, asked)
        });

        // Who ran there finished, and the command had waited for them.
        let mut last = drain.acknowledged;
        for long in long {
            let (node, finished) = long.finish();
            if node == drained {
                last = last.max(finished);
            }
        }
        let waited = last - drain.acknowledged;
        assert!(
            waited > Duration::from_millis(100),
            "the streams were to outlast the acknowledgement: {waited:?}"
        );
        assert!(
            drain.ended + Duration::from_millis(100) > last,
            "it ended before the last stream did"
        );
        assert!(drain.status.success(), "{drain:?}");

        // New requests went elsewhere, from the acknowledgement on, and all were answered.
        let mut before = BTreeMap::new();
        let mut after = BTreeMap::new();
        for asked in &asked {
            let count = if asked.at >= drain.acknowledged {
                &mut after
            } else {
                &mut before
            };
            let node = asked
                .answer
                .as_deref()
                .unwrap_or_else(|e| panic!("a request during the drain: {e}"));
            *count.entry(node).or_insert(0_usize) += 1;
        }
        eprintln!(
            "drain: {running} running streams finished, the last one {waited:?} after the acknowledgement; the command \
             ended {:?} after it; new requests meanwhile: {before:?} before, {after:?} after the acknowledgement",
            drain.ended.saturating_duration_since(last),
        );
        assert_eq!(after.keys().collect::<Vec<_>>(), [&other], "{after:?}");
        assert!(after[other] >= 20, "{after:?}");

        // It says how many: the streams, and what else was there at that moment of the requests that came all the time.
        let node = self.node(drained);
        let at_start = node["drain"]["in_flight_at_start"]
            .as_u64()
            .expect("a number");
        let requests = if at_start == 1 { "request" } else { "requests" };
        assert_eq!(
            drain.stdout,
            format!("{drained} drained: {at_start} {requests} finished, 0 cut\n")
        );
        let running = running as u64;
        assert!(
            (running..=running + 2).contains(&at_start),
            "{at_start} of {running}"
        );
        self.is_drained().expect("the command had waited for it");
    }

    /// The first node is drained, says why, and takes nothing.
    fn is_drained(&self) -> Result<(), String> {
        let node = self.node(NODES[0]);
        self.is_draining(&node);
        let drain = &node["drain"];
        assert_eq!(
            (&drain["in_flight"], &drain["cut"]),
            (&0.into(), &0.into()),
            "{node}"
        );
        if drain["state"] != "drained" {
            return Err(node.to_string());
        }
        assert_eq!(drain["unverified"], false, "{node}");
        let rows = self.table();
        assert_eq!(rows[1][..2], [NODES[0], "Drained"], "{rows:?}");
        Ok(())
    }

    /// A node still knows what was asked of it.
    fn is_draining(&self, node: &Value) {
        assert_eq!(node["status"], "Draining", "{node}");
        assert_eq!(node["schedulable"], false, "{node}");
        assert_eq!(node["drain"]["reason"], "test", "{node}");
    }

    /// Streams that run for some seconds, each read by a thread of its own.
    fn long_streams(&self, count: usize) -> Vec<Long> {
        (0..count)
            .map(|_| {
                let mut stream = ring(LONG).stream(self.address()).expect("a stream");
                stream.read(5).expect("words");
                Long::read(stream)
            })
            .collect()
    }

    fn loses_the_agent_of_the_other_node_and_regains_it(&mut self) {
        let node_id = NODES[1];
        let mut stream = ring(LONG).stream(self.address()).expect("a stream");
        stream.read(20).expect("words");
        assert_eq!(stream.node, node_id);

        self.agents[1].kill9();
        let killed = Instant::now();
        // Whoever was being answered is told at once, and the engine works for nobody any more.
        let told = stream.finish_lost().expect("an error in-band");
        let told_after = killed.elapsed();
        assert_eq!(told, "worker_reset");
        assert!(told_after < Duration::from_secs(2), "{told_after:?}");
        let (_, idle) = eventually(Duration::from_millis(500), "the engine is idle", || {
            self.engines[1][1].idle()
        });

        let limit = NODE_TIMEOUT + FOUND_WITHIN + STEP;
        eventually(
            limit.saturating_sub(killed.elapsed()),
            "it is Offline",
            || self.has_status(node_id, "Offline"),
        );
        let offline = killed.elapsed();
        eprintln!(
            "agent killed: its client was told after {told_after:?}, the engine idle {idle:?} later, the node Offline \
             {offline:?} after the kill (timeout {NODE_TIMEOUT:?})"
        );
        assert!(offline <= limit, "{offline:?}");

        // Nobody serves now. Who asks waits for the agent to return.
        let address = self.address();
        let waiting = std::thread::spawn(move || (COUNT.streamed(address), Instant::now()));
        let started = Instant::now();
        self.agents[1].start_again();
        eventually(SOON, "it is Online again", || {
            self.has_status(node_id, "Online")
        });
        let online = started.elapsed();
        let (answer, answered) = waiting.join().expect("no panic");
        assert_eq!(answer.as_deref(), Ok(node_id));
        eprintln!(
            "agent started again: Online after {online:?}; who had waited for it was answered after {:?}",
            answered - started
        );
        let served = by_node(at_once(8, |_| COUNT.streamed(address)));
        assert_eq!(served.keys().collect::<Vec<_>>(), [node_id], "{served:?}");
    }

    fn has_status(&self, node_id: &str, wanted: &str) -> Result<(), String> {
        let node = self.node(node_id);
        if node["status"] == wanted {
            Ok(())
        } else {
            Err(node.to_string())
        }
    }

    fn survives_the_death_of_its_control_plane(&mut self) {
        self.plane.kill9();
        let started = Instant::now();
        self.plane.start_again();
        let ready = started.elapsed();

        let list = http::get_json(self.address(), "/v2/nodes");
        let nodes = list["nodes"].as_array().expect("a list");
        let ids: Vec<_> = nodes.iter().map(|node| &node["node_id"]).collect();
        assert_eq!(ids, NODES, "{list}");
        assert_eq!(nodes[1]["status"], "Online", "its word is kept: {list}");
        self.is_draining(&nodes[0]);

        // By what it remembers of the pools, before anybody was heard.
        let address = self.address();
        let mut refused = 0;
        let (node, _) = eventually(Duration::from_secs(5), "a chat is answered", || {
            COUNT.streamed(address).inspect_err(|_| refused += 1)
        });
        let answered = started.elapsed();
        assert_eq!(node, NODES[1]);
        eventually(SOON, "the node was heard again", || {
            let node = self.node(NODES[1]);
            match node["suspect"] == false {
                true => Ok(()),
                false => Err(node.to_string()),
            }
        });
        let heard = started.elapsed();
        eprintln!(
            "control plane killed and started again: ready after {ready:?}, a chat answered after {answered:?} \
             ({refused} refused before), the node heard after {heard:?}"
        );
        assert_eq!(refused, 0, "it knew where the model was");
        let served = by_node(at_once(8, |_| COUNT.streamed(address)));
        assert_eq!(served.keys().collect::<Vec<_>>(), [NODES[1]], "{served:?}");
        eventually(SOON, "the drain is done as before", || self.is_drained());
    }

    fn takes_a_drained_node_back(&self) {
        let begun = Instant::now();
        let ran = self.plane.command(&["nodes", "undrain", NODES[0]]);
        assert_eq!(ran.exit, Some(0), "{ran:?}");
        assert_eq!(
            ran.stdout,
            format!("{} undrained, takes new requests\n", NODES[0])
        );
        eventually(SOON, "both nodes are ready", || self.all_ready(&NODES));
        let took = begun.elapsed();
        let served = by_node(at_once(20, |_| COUNT.streamed(self.address())));
        eprintln!("undrain: both nodes are ready after {took:?}, {served:?}");
        assert!(served.contains_key(NODES[0]), "{served:?}");
    }

    fn lets_an_agent_go_in_good_order(&mut self) {
        let [stays, goes] = NODES;
        let long = self.long_streams(4);
        let running = long.iter().filter(|long| long.node == goes).count();
        assert!(
            (1..4).contains(&running),
            "both nodes have some of the four streams"
        );

        let over = AtomicBool::new(false);
        let address = self.address();
        let (stopped, last, ended, asked) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| ask_until(address, &over)))
                .collect();
            let _over = Raised(&over);
            self.agents[1].terminate();
            let stopped = Instant::now();
            eventually(SOON, "it refuses new work", || self.refuses_work(1));
            assert!(self.agents[1].is_running(), "its streams have not ended");
            let mut last = stopped;
            for long in long {
                let (node, finished) = long.finish();
                if node == goes {
                    last = last.max(finished);
                }
            }
            assert_eq!(self.agents[1].wait(SOON), Some(0), "the exit code");
            let ended = Instant::now();
            self.all_ready(&[stays])
                .expect("it left the list before it ended");
            over.store(true, Ordering::Relaxed);
            let asked: Vec<Asked> = clients
                .into_iter()
                .flat_map(|client| client.join().expect("no panic"))
                .collect();
            (stopped, last, ended, asked)
        });

        // Nobody noticed: whoever came upon the agent's refusal was passed on to the other node.
        let mut after = BTreeMap::new();
        for asked in &asked {
            let node = asked
                .answer
                .as_deref()
                .unwrap_or_else(|e| panic!("a request during the stop: {e}"));
            if asked.at > stopped {
                *after.entry(node).or_insert(0_usize) += 1;
            }
        }
        eprintln!(
            "SIGTERM of an agent: {running} running streams finished, the last one after {:?}; it left and ended {:?} \
             later; new requests after the signal: {after:?}",
            last - stopped,
            ended.saturating_duration_since(last),
        );
        assert!(after[stays] >= 20, "{after:?}");
        let served = by_node(at_once(8, |_| COUNT.streamed(address)));
        assert_eq!(served.keys().collect::<Vec<_>>(), [stays], "{served:?}");
    }

    /// Whether an agent refuses new work in its shutdown.
    fn refuses_work(&self, at: usize) -> Result<(), String> {
        let path = "/pools/counting/v1/models";
        match http::get(self.agents[at].address, path) {
            Ok(response) if response.status == 503 => {
                assert_eq!(response.header("x-orchd-refused"), Some("stopping"));
                Ok(())
            }
            Ok(response) => Err(format!("it answers {}", response.status)),
            Err(e) => panic!("its running streams need it, and it is gone: {e}"),
        }
    }
}

/// The pool of a node that has a model; each is named after its model.
fn pool(node: &Value, model: Model) -> &Value {
    let pools = node["pool_status"].as_array().expect("a list");
    let found = pools.iter().find(|pool| pool["pool_id"] == model.alias());
    found.unwrap_or_else(|| panic!("no pool {}: {node}", model.alias()))
}

/// How many answers each node gave. All must be there.
fn by_node(answers: Vec<Result<String, String>>) -> BTreeMap<String, usize> {
    let mut served = BTreeMap::new();
    for (number, answer) in answers.into_iter().enumerate() {
        let node = answer.unwrap_or_else(|e| panic!("client {number}: {e}"));
        *served.entry(node).or_default() += 1;
    }
    served
}

/// A stream that is read to its end elsewhere.
struct Long {
    node: String,
    reader: JoinHandle<(Result<(), String>, Instant)>,
}

impl Long {
    fn read(stream: Stream) -> Self {
        Self {
            node: stream.node.clone(),
            reader: std::thread::spawn(move || (stream.finish(), Instant::now())),
        }
    }

    /// Waits until it is complete. Gives its node and the moment.
    fn finish(self) -> (String, Instant) {
        let (result, at) = self.reader.join().expect("no panic");
        result.unwrap_or_else(|e| panic!("a running stream on {}: {e}", self.node));
        (self.node, at)
    }
}

/// A short request: when it was sent, and which node answered.
struct Asked {
    at: Instant,
    answer: Result<String, String>,
}

/// Raises a flag however its scope is left, so that a failed assertion does not wait for those who wait for the flag.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One short request after the other, for the pools where the long streams run and for the others.
fn ask_until(address: SocketAddr, over: &AtomicBool) -> Vec<Asked> {
    let mut asked = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let at = Instant::now();
        let answer = match asked.len() % 3 {
            0 => COUNT.streamed(address),
            1 => COUNT.whole(address),
            _ => ring(3).streamed(address),
        };
        asked.push(Asked { at, answer });
        std::thread::sleep(Duration::from_millis(10));
    }
    asked
}

/// `orchd nodes drain NODE --reason test`, in a pipe and to its end.
#[derive(Debug)]
struct Drain {
    /// When it said that the drain was accepted.
    acknowledged: Instant,
    ended: Instant,
    status: ExitStatus,
    stdout: String,
}

impl Drain {
    fn run(plane: &Orchd, node_id: &str) -> Self {
        let mut command = plane.spawn_command(&["nodes", "drain", node_id, "--reason", "test"]);
        let progress = command.stderr.take().expect("it is a pipe");
        let mut progress = BufReader::new(progress);
        let mut first = String::new();
        progress.read_line(&mut first).expect("UTF-8");
        let acknowledged = Instant::now();
        assert!(
            first.contains("requests left"),
            "progress of the drain: {first:?}"
        );
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            progress.read_to_string(&mut rest).map(|_| rest)
        });
        let mut stdout = String::new();
        let mut pipe = command.stdout.take().expect("it is a pipe");
        pipe.read_to_string(&mut stdout).expect("UTF-8");
        let status = command.wait().expect("it is this process's own child");
        let ended = Instant::now();
        let rest = rest.join().expect("no panic").expect("UTF-8");
        eprint!("{first}{rest}");
        Self {
            acknowledged,
            ended,
            status,
            stdout,
        }
    }
}
