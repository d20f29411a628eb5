//! Agents whose server, or whose network, is away: they serve their engines meanwhile, and come back by themselves. And how
//! an agent ends, by order or because another took its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::fault::{Fault, FaultProxy};
use crate::support::http::{self, Response, written};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually};

/// The shortest there is, so that tests are short; the interval that follows from it, and the longest pause of an agent.
const TIMEOUT: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(333);
const LONGEST_PAUSE: Duration = Duration::from_secs(7);
/// How long a network that works again may go unused (contract §4: 3 s an attempt, 7 s between two).
const RECOVERY: Duration = Duration::from_secs(10);
/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);
/// What a busy machine may add to a bound.
const SLACK: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");
const CHAT: &[u8] =
    br#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello!"}]}"#;

/// A control plane with a state of its own, and an engine for all its agents.
struct Fleet {
    plane: Orchd,
    engine: ScriptedEngine,
    _state: TempDir,
}

impl Fleet {
    fn start() -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        // Some tests silence all nodes at once, which a hold would hide.
        let options = ["--node-timeout", "1s", "--fleet-hold-percent", "0"];
        Self {
            plane: Orchd::serve_cloud(state.path(), &options),
            engine: ScriptedEngine::start("m", 16),
            _state: state,
        }
    }

    fn agent(&self, server: &str, node_id: &str) -> Orchd {
        Orchd::agent(server, node_id, &[self.engine.url()])
    }

    fn nodes(&self) -> Vec<Value> {
        let list = http::get_json(self.plane.address, "/v2/nodes");
        list["nodes"].as_array().expect("a list").clone()
    }

    fn node(&self, node_id: &str) -> Result<Value, String> {
        let nodes = self.nodes();
        let found = nodes.iter().find(|node| node["node_id"] == node_id);
        found
            .cloned()
            .ok_or_else(|| format!("{node_id} is not among {nodes:?}"))
    }

    /// Waits until the node has this status and, unless it is Offline, was heard in this life of the server.
    fn wait_for(&self, node_id: &str, status: &str, limit: Duration) -> (Value, Duration) {
        eventually(limit, &format!("{node_id} is {status}"), || {
            let node = self.node(node_id)?;
            let heard = node["suspect"] == false && !node["last_heartbeat_age_ms"].is_null();
            if node["status"] == status && (heard || status == "Offline") {
                Ok(node)
            } else {
                Err(node.to_string())
            }
        })
    }
}

/// What of a node may not change because it was away.
fn identity(node: &Value) -> Value {
    [
        "node_id",
        "machine_id",
        "address",
        "instance_id",
        "registered_at_ms",
    ]
    .iter()
    .map(|key| node[key].clone())
    .collect()
}

/// An answer of an engine.
fn answer() -> Script {
    Script::whole(200, r#"{"choices":[{"message":{"content":"Hello!"}}]}"#)
}

/// Sends a chat to an agent's own door.
fn chat(agent: &Orchd) -> std::io::Result<Response> {
    let request = written("POST", "/pools/default/v1/chat/completions", &[JSON], CHAT);
    http::send(agent.address, &request)
}

/// Chats with an agent, one after the other and directly, until it is told that they are enough.
struct Traffic<'scope> {
    over: &'scope AtomicBool,
    asking: ScopedJoinHandle<'scope, Vec<Instant>>,
}

impl<'scope> Traffic<'scope> {
    fn begin(
        scope: &'scope Scope<'scope, '_>,
        agent: &'scope Orchd,
        over: &'scope AtomicBool,
    ) -> Self {
        let asking = scope.spawn(move || {
            let mut answered = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let text = chat(agent).and_then(|response| {
                    assert_eq!(response.status, 200, "an agent refuses a chat");
                    response.text()
                });
                let text = text.unwrap_or_else(|e| panic!("an agent's door: {e}"));
                assert!(text.contains("Hello!"), "{text}");
                answered.push(Instant::now());
                std::thread::sleep(Duration::from_millis(20));
            }
            answered
        });
        Self { over, asking }
    }

    /// How many were answered between the two moments, all of all having been answered well.
    fn end(self, from: Instant, to: Instant) -> usize {
        self.over.store(true, Ordering::Relaxed);
        let answered = self.asking.join().expect("every chat is answered");
        answered
            .iter()
            .filter(|at| (from..to).contains(*at))
            .count()
    }
}

/// Raises a flag however its scope is left, so that a failed assertion does not wait for those who wait for the flag.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn agents_serve_while_their_server_is_away_and_are_back_within_an_interval_and_a_pause() {
    let mut fleet = Fleet::start();
    fleet.engine.always(answer());
    let names = ["a", "b", "c"];
    let agents = names.map(|name| fleet.agent(&fleet.plane.url(), name));
    let before = names.map(|name| identity(&fleet.wait_for(name, "Online", SOON).0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Raised(&over);
        let traffic: Vec<_> = agents
            .iter()
            .map(|agent| Traffic::begin(scope, agent, &over))
            .collect();
        fleet.plane.kill9();
        let killed = Instant::now();
        // Not waiting: so long is it away.
        std::thread::sleep(3 * TIMEOUT);
        fleet.plane.start_again();
        let back = Instant::now();
        for (name, before) in names.iter().zip(&before) {
            let left = (INTERVAL + LONGEST_PAUSE + SLACK).saturating_sub(back.elapsed());
            let (node, _) = fleet.wait_for(name, "Online", left);
            eprintln!("{name} was back {:?} after the server", back.elapsed());
            assert_eq!(identity(&node), *before);
            assert_eq!(node["schedulable"], true, "{node}");
        }
        for traffic in traffic {
            let answered = traffic.end(killed, back);
            assert!(answered >= 20, "{answered} chats while the server was away");
        }
    });
    assert_eq!(fleet.nodes().len(), names.len(), "nobody is there twice");
}

/// How often an agent's log says that it was taken.
fn times_registered(agent: &Orchd) -> usize {
    agent.log().matches("registered server=").count()
}

/// Sees an agent through a fault that lasts for three timeouts at least, and back.
fn survives(fleet: &Fleet, name: &str, fault: Fault) {
    let network = FaultProxy::start(fleet.plane.address, Fault::Pass);
    let agent = fleet.agent(&network.url(), name);
    let before = identity(&fleet.wait_for(name, "Online", SOON).0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Raised(&over);
        let traffic = Traffic::begin(scope, &agent, &over);
        network.set(fault);
        let cut = Instant::now();
        // One that is heard without hearing is taken for Offline between its attempts only.
        fleet.wait_for(name, "Offline", SOON);
        let offline = cut.elapsed();
        std::thread::sleep((3 * TIMEOUT).saturating_sub(cut.elapsed()));
        if fault != Fault::Refuse {
            // The worst moment: it has just begun an attempt, which is lost.
            let struck = network.struck();
            eventually(LONGEST_PAUSE + SLACK, "it tries again", || {
                match network.struck() {
                    now if now > struck => Ok(()),
                    now => Err(format!("{now} connections lost something")),
                }
            });
        }
        let connections = network.connections();
        let registered = times_registered(&agent);
        network.set(Fault::Pass);
        let healed = Instant::now();
        // Online by what came late says nothing of whether the agent knows.
        eventually(RECOVERY, &format!("{name} is back after {fault:?}"), || {
            if times_registered(&agent) > registered {
                Ok(())
            } else {
                Err(agent.log())
            }
        });
        let (node, _) = fleet.wait_for(name, "Online", RECOVERY.saturating_sub(healed.elapsed()));
        let back = healed.elapsed();
        eprintln!("{fault:?}: Offline after {offline:?}, back after {back:?}");
        assert!(back <= RECOVERY, "{fault:?}: back after {back:?}");
        assert_eq!(identity(&node), before, "{fault:?}");
        assert!(network.connections() > connections, "{fault:?}");
        let answered = traffic.end(cut, healed);
        assert!(answered >= 20, "{fault:?}: {answered} chats meanwhile");
    });
    let log = agent.log();
    // A status, and not the digits of a time.
    for word in [" 409", "another agent", "another machine"] {
        assert!(!log.contains(word), "{fault:?}: {log}");
    }
}

#[test]
fn whatever_way_the_network_is_cut_agents_serve_and_are_back_within_ten_seconds_of_it() {
    let fleet = Fleet::start();
    fleet.engine.always(answer());
    let faults = [
        ("cut", Fault::Cut),
        ("to-server", Fault::ToServer),
        ("to-client", Fault::ToClient),
        ("refuse", Fault::Refuse),
        ("late", Fault::Delay(Duration::from_secs(4))),
    ];
    at_once(faults.len(), |at| {
        survives(&fleet, faults[at].0, faults[at].1)
    });
    let mut names: Vec<String> = fleet
        .nodes()
        .iter()
        .map(|node| node["node_id"].to_string())
        .collect();
    names.dedup();
    assert_eq!(
        names.len(),
        faults.len(),
        "nobody is there twice: {names:?}"
    );
}

#[test]
fn a_slow_network_is_no_silence() {
    let fleet = Fleet::start();
    let network = FaultProxy::start(
        fleet.plane.address,
        Fault::Delay(Duration::from_millis(100)),
    );
    let _agent = fleet.agent(&network.url(), "n");
    fleet.wait_for("n", "Online", SOON);
    let begun = Instant::now();
    while begun.elapsed() < 3 * TIMEOUT {
        let node = fleet.node("n").expect("it is there");
        assert_eq!(node["status"], "Online", "{node}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_agent_with_two_servers_uses_whichever_answers() {
    let fleet = Fleet::start();
    let first = FaultProxy::start(fleet.plane.address, Fault::Cut);
    let second = FaultProxy::start(fleet.plane.address, Fault::Pass);
    let begun = Instant::now();
    let agent = fleet.agent(&format!("{},{}", first.url(), second.url()), "n");
    let (node, _) = fleet.wait_for("n", "Online", RECOVERY);
    eprintln!("past a black hole in {:?}", begun.elapsed());
    let before = identity(&node);
    let lost = first.connections();
    assert!(lost > 0, "it is asked first");

    // Whoever answered is asked first from then on: nobody waits for the black hole again.
    let used = second.connections();
    eventually(SOON, "it beats", || match second.connections() {
        now if now >= used + 3 => Ok(()),
        now => Err(format!("{now} connections")),
    });
    assert_eq!(first.connections(), lost);

    for (from, to) in [(&second, &first), (&first, &second)] {
        let used = to.connections();
        to.set(Fault::Pass);
        from.set(Fault::Cut);
        let moved = Instant::now();
        eventually(RECOVERY, "it beats at the other server", || {
            match to.connections() {
                now if now >= used + 3 => Ok(()),
                now => Err(format!("{now} connections, {used} before\n{}", agent.log())),
            }
        });
        let (node, _) = fleet.wait_for("n", "Online", RECOVERY.saturating_sub(moved.elapsed()));
        eprintln!("at the other server after {:?}", moved.elapsed());
        assert_eq!(identity(&node), before);
    }
    assert_eq!(fleet.nodes().len(), 1);
}

#[test]
fn an_agent_whose_first_server_has_no_address_registers_with_the_next() {
    let fleet = Fleet::start();
    // Too long for a name: no resolver is asked.
    let nowhere = "x".repeat(64);
    let servers = format!("http://{nowhere}:8080,{}", fleet.plane.url());
    let agent = fleet.agent(&servers, "n");
    let (node, _) = fleet.wait_for("n", "Online", SOON);
    assert_eq!(node["address"], agent.url());
}

#[test]
fn an_agent_started_twice_the_second_wins_and_the_first_finishes_and_says_why_it_ends() {
    let fleet = Fleet::start();
    fleet
        .engine
        .script([Script::stream().event("1").hold().event("2").end()]);
    let mut first = fleet.agent(&fleet.plane.url(), "n");
    let (before, _) = fleet.wait_for("n", "Online", SOON);
    let mut events = chat(&first).expect("an answer").events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));

    let mut second = fleet.agent(&fleet.plane.url(), "n");
    eventually(SOON, "the first takes no more work", || {
        let response = list_models(&first)?;
        if response.header("x-orchd-refused") == Some("stopping") {
            Ok(())
        } else {
            Err(response.status.to_string())
        }
    });
    fleet.engine.go(0);
    assert_eq!(events.next().expect("an event").as_deref(), Some("2"));
    assert_eq!(events.next().expect("the end"), None);
    assert_eq!(first.wait(SOON), Some(4));
    let log = first.log();
    assert!(
        log.contains("another agent has registered as node n since"),
        "{log}"
    );
    assert!(log.contains("hint: run one agent per node"), "{log}");

    let (node, _) = fleet.wait_for("n", "Online", SOON);
    assert_eq!(node["address"], second.url());
    assert_ne!(node["instance_id"], before["instance_id"]);
    assert_eq!(node["registered_at_ms"], before["registered_at_ms"]);
    assert_eq!(fleet.nodes().len(), 1);
    assert!(second.is_running());
}

/// Asks at an agent's own door for what an engine answers whoever watches it.
fn list_models(agent: &Orchd) -> Result<Response, String> {
    http::get(agent.address, "/pools/default/v1/models").map_err(|e| e.to_string())
}

#[test]
fn a_second_signal_ends_an_agent_at_once_whatever_runs() {
    let fleet = Fleet::start();
    fleet.engine.script([Script::stream().event("1").silence()]);
    let mut agent = fleet.agent(&fleet.plane.url(), "n");
    fleet.wait_for("n", "Online", SOON);
    let mut events = chat(&agent).expect("an answer").events();
    assert_eq!(events.next().expect("an event").as_deref(), Some("1"));
    agent.terminate();
    eventually(SOON, "it refuses new work", || {
        let response = list_models(&agent)?;
        match response.header("x-orchd-refused") {
            Some("stopping") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(agent.is_running(), "the stream has its grace");
    let signalled = Instant::now();
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(SOON), Some(0));
    let took = signalled.elapsed();
    eprintln!("ended {took:?} after the second signal");
    // The grace is 30 s.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(events.next().is_err(), "what ran is cut");
    fleet.engine.wait_left(0);
}
