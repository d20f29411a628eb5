//! The fleet that faults befall: a control plane, and three nodes with an agent and two engines each: a real one that counts
//! in a circle, and a scripted one that counts to forty and takes a second for it.
//!
//! Invariants: whatever depends on another ends before it; a scripted engine fails the fault when it ever had more to do
//! than it has slots. Used by all faults of processes and networks.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::counting::{FORTY, word};
use crate::support::engine::{Engine, Model};
use crate::support::fault::{Fault, FaultProxy};
use crate::support::orchd::Orchd;
use crate::support::{at_once, eventually, free_address, http};

use crate::watch::{Fact, TIMEOUT, Watch};

/// A machine with little to spare may be late with anything that has no promised limit.
pub const SOON: Duration = Duration::from_secs(30);
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// The pools of each, and their slots.
const RING: &str = "ring";
const RING_SLOTS: u32 = 4;
const COUNT: &str = "count";
const COUNT_SLOTS: usize = 3;
/// From one word of a scripted engine to the next: forty take a second.
const PACE: Duration = Duration::from_millis(25);
/// How long an engine, or a node, may answer nothing at all before its streams are ended.
pub const HUNG_AFTER: Duration = Duration::from_secs(1);

/// When the control plane was away, by a moment before and one after it.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    pub from: Instant,
    pub until: Instant,
    /// It had no say in it: whatever was under way is lost.
    pub killed: bool,
    /// So long was its log when it came back.
    pub log: usize,
}

/// The networks of one node, each a proxy.
pub struct Networks {
    /// Between its agent and the control plane.
    pub to_plane: FaultProxy,
    /// Between the gateway and its agent's door.
    pub to_node: FaultProxy,
}

/// See above.
pub struct Scene {
    pub agents: Vec<Orchd>,
    /// None where nodes and control plane have no network between them that could fail.
    pub networks: Vec<Networks>,
    pub plane: Orchd,
    pub outages: Vec<Outage>,
    pub engines: Vec<Engine>,
    pub scripted: Vec<ScriptedEngine>,
    _state: TempDir,
}

/// Counts to forty as llama-server does: in a stream, which is what the gateway asks for in any case.
fn counts() -> Script {
    let frame = |delta: Value, finish: Value| {
        json!({
            "choices": [{"finish_reason": finish, "index": 0, "delta": delta}], "created": 1_795_419_434,
            "id": "chatcmpl-scripted", "model": Model::Counting.alias(), "system_fingerprint": "b1-7e4c0a9",
            "object": "chat.completion.chunk",
        })
        .to_string()
    };
    let first = frame(json!({"role": "assistant", "content": null}), Value::Null);
    let words = (1..=FORTY).fold(Script::stream().event(&first), |script, number| {
        let delta = json!({"content": format!(" {}", word(number))});
        script.pause(PACE).event(&frame(delta, Value::Null))
    });
    words
        .event(&frame(json!({}), json!("stop")))
        .event("[DONE]")
        .end()
}

impl Scene {
    /// Nodes and control plane reach each other directly: a process that ends is seen as such.
    pub fn direct() -> Self {
        Self::start(false)
    }

    /// The networks between them can fail.
    pub fn networked() -> Self {
        Self::start(true)
    }

    fn start(networked: bool) -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        let engines = at_once(NODES.len(), |_| {
            Engine::start(Model::Ring, RING_SLOTS, RING_SLOTS * 2_048)
        });
        let scripted: Vec<ScriptedEngine> = (NODES.iter())
            .map(|_| {
                let engine = ScriptedEngine::start(Model::Counting.alias(), COUNT_SLOTS);
                engine.always(counts());
                engine
            })
            .collect();
        let timeout = format!("{}ms", TIMEOUT.as_millis());
        let hung = format!("{}ms", HUNG_AFTER.as_millis());
        let plane = Orchd::serve_cloud(
            state.path(),
            &["--node-timeout", &timeout, "--hung-after", &hung],
        );
        let networks = RefCell::new(Vec::new());
        let agents = (0..NODES.len()).map(|at| {
            let pools = [
                format!("{RING}={}", engines[at].url()),
                scripted[at].named(COUNT),
            ];
            let more = ["--hung-after", &hung];
            if !networked {
                return Orchd::agent_with(&plane.url(), NODES[at], &pools, &more);
            }
            // Its door is where its network is; what lies behind that is known when it is there.
            let door = free_address();
            let advertised = format!("http://{door}");
            let to_plane = FaultProxy::start(plane.address, Fault::Pass);
            let more = [&more[..], &["--advertise", &advertised]].concat();
            let agent = Orchd::agent_with(&to_plane.url(), NODES[at], &pools, &more);
            let to_node = FaultProxy::start_at(door, agent.address, Fault::Pass);
            networks.borrow_mut().push(Networks { to_plane, to_node });
            agent
        });
        let agents = agents.collect();
        let scene = Self {
            agents,
            networks: networks.into_inner(),
            plane,
            outages: Vec::new(),
            engines,
            scripted,
            _state: state,
        };
        for node in NODES {
            scene.wait_serves(node, SOON);
        }
        scene
    }

    /// The scripted engine of a node.
    pub fn scripted_of(&self, node: &str) -> &ScriptedEngine {
        let at = NODES.iter().position(|name| *name == node);
        &self.scripted[at.expect("one of these")]
    }

    /// Begins to watch it.
    pub fn watch(&self) -> Watch {
        let slots = [(RING, u64::from(RING_SLOTS)), (COUNT, COUNT_SLOTS as u64)];
        let engines: Vec<_> = self.engines.iter().map(|engine| engine.address).collect();
        Watch::begin(self.plane.address, &NODES, slots.into(), &engines)
    }

    /// A node as the control plane shows it.
    pub fn node(&self, name: &str) -> Result<Value, String> {
        let response = http::get(self.plane.address, &format!("/v2/nodes/{name}"))
            .map_err(|e| e.to_string())?;
        let status = response.status;
        let text = response.text().map_err(|e| e.to_string())?;
        if status == 200 {
            serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
        } else {
            Err(text)
        }
    }

    /// Waits until a node is so, and says how long that took.
    pub fn wait_node(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> Duration {
        let look = || match self.node(name)? {
            node if is_so(&node) => Ok(()),
            node => Err(node.to_string()),
        };
        eventually(limit, &format!("{name} is {what}"), look).1
    }

    /// Waits until a node is heard in this life of the control plane, and both its pools take requests.
    pub fn wait_serves(&self, name: &str, limit: Duration) -> Duration {
        self.wait_node(name, "heard and ready", limit, |node| {
            let pools = node["pool_status"].as_array();
            let ready = |pools: &Vec<Value>| pools.iter().filter(|it| it["ready"] == true).count();
            node["status"] != "Offline"
                && node["suspect"] == false
                && !node["last_heartbeat_age_ms"].is_null()
                && pools.map(ready) == Some(2)
        })
    }

    /// Waits until the control plane says that a node is Offline, of which the watch is told that it died at that moment.
    /// Gives how long after that it was.
    pub fn wait_offline(&self, name: &str, died: Instant) -> Duration {
        self.wait_node(name, "Offline", SOON, |node| node["status"] == "Offline");
        died.elapsed()
    }

    /// Waits until a node serves again, and tells the watch that it lives.
    pub fn wait_lives(&self, name: &str, watch: &Watch) {
        self.wait_serves(name, SOON);
        watch.node(name, Fact::Live);
    }

    /// Waits until something runs at a pool of a node.
    pub fn wait_busy(&self, node: &str, pool: &str) {
        let busy = || {
            let pools = http::get_json(self.plane.address, "/v2/pools");
            let pools = pools["pools"].as_array().expect("a list");
            let mut pools = pools.iter();
            let found = pools.find(|it| it["node_id"] == node && it["pool_id"] == pool);
            match found.and_then(|pool| pool["running"].as_u64()) {
                Some(1..) => Ok(()),
                running => Err(format!("{running:?}")),
            }
        };
        eventually(SOON, &format!("{node}/{pool} is busy"), busy);
    }

    /// Waits until something runs at both pools of a node.
    pub fn wait_node_busy(&self, node: &str) {
        self.wait_busy(node, COUNT);
        self.wait_busy(node, RING);
    }

    /// The control plane is gone since that moment; starts it again.
    pub fn plane_again(&mut self, from: Instant, killed: bool) {
        let log = self.plane.log().len();
        self.plane.start_again();
        self.outages.push(Outage {
            from,
            until: Instant::now(),
            killed,
            log,
        });
    }
}
