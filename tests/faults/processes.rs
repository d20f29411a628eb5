//! Processes that are killed, stopped, or asked to end: engines, agents, and the control plane.

use std::ops::Range;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Fault;
use crate::scene::{HUNG_AFTER, NODES, SOON, Scene};
use crate::support::engine::Engine;
use crate::support::{eventually, http};
use crate::trial::{NOBODY, Told, Trial, trial};
use crate::watch::{Fact, SLACK, TIMEOUT};

/// In the order they run in.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "engine-killed",
        inject: |setting| trial(setting, Scene::direct(), &AT_ONCE, engine_killed),
    },
    Fault {
        name: "engine-terminated",
        inject: |setting| trial(setting, Scene::direct(), &AT_ONCE, engine_terminated),
    },
    Fault {
        name: "engine-paused",
        inject: |setting| trial(setting, Scene::direct(), &NOBODY, engine_paused),
    },
    Fault {
        name: "engine-hung",
        inject: |setting| trial(setting, Scene::direct(), &HUNG, engine_hung),
    },
    Fault {
        name: "agent-killed",
        inject: |setting| trial(setting, Scene::direct(), &AT_ONCE, agent_killed),
    },
    Fault {
        name: "agent-paused",
        inject: |setting| trial(setting, Scene::direct(), &NOBODY, agent_paused),
    },
    Fault {
        name: "agent-hung",
        inject: |setting| trial(setting, Scene::direct(), &HUNG, agent_hung),
    },
    Fault {
        name: "agent-terminated",
        inject: |setting| trial(setting, Scene::direct(), &NOBODY, agent_terminated),
    },
    Fault {
        name: "server-killed",
        inject: |setting| trial(setting, Scene::direct(), &NOBODY, server_killed),
    },
    Fault {
        name: "server-terminated",
        inject: |setting| trial(setting, Scene::direct(), &STOPPING, server_terminated),
    },
    Fault {
        name: "server-stopped",
        inject: |setting| trial(setting, Scene::direct(), &NOBODY, server_stopped),
    },
];

/// Streams of what is seen to be dead end within two seconds (contract §3).
pub const AT_ONCE: Told = Told {
    codes: &["worker_reset"],
    within: Duration::from_secs(2).saturating_add(SLACK),
    felt: false,
};
/// What is silent is asked once a second, with patience for 1.2 s, after half a second.
const QUESTION: Duration = Duration::from_millis(3_500);
pub const HUNG: Told = Told {
    codes: &["worker_reset"],
    within: HUNG_AFTER.saturating_add(QUESTION).saturating_add(SLACK),
    felt: true,
};
/// A control plane that is asked to stop refuses what comes from then on.
const STOPPING: Told = Told {
    codes: &["shutting_down"],
    within: SOON,
    felt: false,
};
/// Longer than anybody waits for what is silent, in milliseconds.
pub const BEYOND: Range<u64> = 4_600..5_000;

pub fn engine_killed(trial: &mut Trial) {
    engine_ends(trial, Engine::kill9);
}

pub fn engine_terminated(trial: &mut Trial) {
    engine_ends(trial, |engine| engine.signal(Signal::SIGTERM));
}

pub fn engine_paused(trial: &mut Trial) {
    engine_stops(trial, 200..900);
}

pub fn engine_hung(trial: &mut Trial) {
    engine_stops(trial, BEYOND);
}

/// One engine ends, by a signal, and is started again.
fn engine_ends(trial: &mut Trial, end: fn(&mut Engine)) {
    let at = trial.any_node();
    let place = format!("{}/ring", NODES[at]);
    trial.scene.wait_busy(NODES[at], "ring");
    trial.injected.strike(&place);
    end(&mut trial.scene.engines[at]);
    trial.pause(200, 1_500);
    let engine = &mut trial.scene.engines[at];
    // One that is asked to stop stays for as long as its clients do.
    eventually(SOON, "it has ended", || match engine.is_running() {
        false => Ok(()),
        true => Err("it runs".to_owned()),
    });
    engine.start_again();
    trial.injected.heals();
    trial.serves_again(&place);
    trial.injected.over();
}

/// One engine is stopped for so many milliseconds, and goes on.
fn engine_stops(trial: &mut Trial, away: Range<u64>) {
    let at = trial.any_node();
    let place = format!("{}/ring", NODES[at]);
    trial.scene.wait_busy(NODES[at], "ring");
    trial.injected.strike(&place);
    trial.scene.engines[at].signal(Signal::SIGSTOP);
    trial.pause(away.start, away.end);
    trial.scene.engines[at].signal(Signal::SIGCONT);
    trial.injected.heals();
    trial.serves_again(&place);
    trial.injected.over();
}

/// Where everything of a node is.
pub fn everything_of(at: usize) -> String {
    format!("{}/", NODES[at])
}

pub fn agent_killed(trial: &mut Trial) {
    let at = trial.any_node();
    let (node, places) = (NODES[at], everything_of(at));
    trial.scene.wait_node_busy(node);
    let died = trial.injected.strike(&places);
    trial.scene.agents[at].kill9();
    trial.watch.node(node, Fact::Dead(died));
    let offline = trial.scene.wait_offline(node, died);
    trial.injected.took("Offline after", offline);
    trial.pause(0, 500);
    trial.watch.node(node, Fact::Either);
    trial.scene.agents[at].start_again();
    trial.node_is_back(at);
}

pub fn agent_paused(trial: &mut Trial) {
    agent_stops(trial, 200..900, false);
}

pub fn agent_hung(trial: &mut Trial) {
    agent_stops(trial, BEYOND, true);
}

/// One agent is stopped for so many milliseconds, which may be longer than the node timeout, and goes on.
fn agent_stops(trial: &mut Trial, away: Range<u64>, goes_offline: bool) {
    let at = trial.any_node();
    let (node, places) = (NODES[at], everything_of(at));
    trial.scene.wait_node_busy(node);
    let stopped = trial.injected.strike(&places);
    trial.scene.agents[at].signal(Signal::SIGSTOP);
    if goes_offline {
        trial.watch.node(node, Fact::Dead(stopped));
        let offline = trial.scene.wait_offline(node, stopped);
        trial.injected.took("Offline after", offline);
    }
    let away = trial.between(away.start, away.end);
    std::thread::sleep(away.saturating_sub(stopped.elapsed()));
    if goes_offline {
        trial.watch.node(node, Fact::Either);
    }
    trial.scene.agents[at].signal(Signal::SIGCONT);
    trial.node_is_back(at);
}

pub fn agent_terminated(trial: &mut Trial) {
    let at = trial.any_node();
    let node = NODES[at];
    trial.scene.wait_node_busy(node);
    trial.watch.node(node, Fact::Either);
    let asked = trial.injected.strike(&everything_of(at));
    trial.scene.agents[at].terminate();
    let code = trial.scene.agents[at].wait(SOON);
    trial.injected.took("ended after", asked.elapsed());
    assert_eq!(code, Some(0), "it ends what runs, and then itself");
    let known = trial.scene.node(node);
    assert!(known.is_err(), "it has said goodbye: {known:?}");
    trial.pause(100, 1_000);
    trial.scene.agents[at].start_again();
    trial.node_is_back(at);
}

impl Trial<'_> {
    /// An agent begins to come back: waits until its node serves again.
    pub fn node_is_back(&mut self, at: usize) {
        let healed = self.injected.heals();
        self.scene.wait_lives(NODES[at], self.watch);
        self.injected.took("heard again after", healed.elapsed());
        self.serves_again(&everything_of(at));
        self.injected.over();
    }

    /// Drains a node by chance, and gives it with what was acknowledged.
    fn drains_one(&mut self) -> (&'static str, Value) {
        let node = NODES[self.any_node()];
        let path = format!("/v2/nodes/{node}/drain");
        let reason = json!({"reason": format!("drill {}", self.chance.below(1_000))});
        let response = http::post(self.scene.plane.address, &path, &reason).expect("an answer");
        assert_eq!(response.status, 202);
        self.injected.drained(node);
        self.watch.drained(node);
        let drain = response.json()["drain"].clone();
        assert_eq!(drain["reason"], reason["reason"]);
        (node, drain)
    }

    /// Checks that a drain is what it was, and takes it back.
    fn undrains(&mut self, node: &'static str, before: &Value) {
        let drain = &self.scene.node(node).expect("it is registered")["drain"];
        for field in ["id", "reason", "started_at_ms"] {
            assert_eq!(
                drain[field], before[field],
                "{field} of an acknowledged drain"
            );
        }
        self.injected.undrained();
        self.watch.undrained(node);
        let path = format!("/v2/nodes/{node}/drain");
        let undrained = http::written("DELETE", &path, &[], b"");
        let response = http::send(self.scene.plane.address, &undrained).expect("an answer");
        assert_eq!(response.status, 200);
    }

    /// The control plane is gone since that moment: it is started again, and everything comes back by itself.
    fn server_is_back(&mut self, gone: Instant, killed: bool) {
        self.scene.plane_again(gone, killed);
        let healed = self.injected.heals();
        self.watch.plane_is_back();
        self.serves_again("");
        for node in NODES {
            self.scene.wait_lives(node, self.watch);
        }
        self.injected
            .took("all nodes heard again after", healed.elapsed());
    }
}

pub fn server_killed(trial: &mut Trial) {
    let (node, drain) = trial.drains_one();
    trial.pause(0, 300);
    trial.watch.plane_is_away();
    let gone = trial.injected.strike("");
    trial.scene.plane.kill9();
    trial.pause(0, 1_500);
    trial.server_is_back(gone, true);
    trial.undrains(node, &drain);
    trial.clients.go_on(5);
    trial.injected.over();
}

pub fn server_terminated(trial: &mut Trial) {
    let (node, drain) = trial.drains_one();
    trial.pause(0, 300);
    trial.watch.plane_is_away();
    let gone = trial.injected.strike("");
    trial.scene.plane.terminate();
    assert_eq!(trial.scene.plane.wait(SOON), Some(0));
    trial.injected.took("ended after", gone.elapsed());
    trial.pause(0, 500);
    trial.server_is_back(gone, false);
    trial.undrains(node, &drain);
    trial.clients.go_on(5);
    trial.injected.over();
}

pub fn server_stopped(trial: &mut Trial) {
    for node in NODES {
        trial.scene.wait_node_busy(node);
    }
    trial.watch.plane_is_away();
    trial.injected.strike("");
    trial.scene.plane.signal(Signal::SIGSTOP);
    // Nobody is heard for as long.
    let away = TIMEOUT + TIMEOUT / 2 + trial.between(0, 1_000);
    std::thread::sleep(away);
    trial.scene.plane.signal(Signal::SIGCONT);
    trial.injected.heals();
    trial.watch.plane_is_back();
    trial.serves_again("");
    trial.clients.go_on(20);
    trial.injected.over();
}
