//! Networks that fail: between agents and the control plane, and between the gateway and the doors of agents. And a
//! mixture of everything.
//!
//! Several nodes have a fault each at the same time, of different kinds; which has which is left to chance. No fault ends
//! before somebody has met it.

use tokio::time::Instant;

use crate::processes::{self, BEYOND, HUNG, everything_of};
use crate::scene::{NODES, SOON, Scene};
use crate::support::fault::Fault as Network;
use crate::trial::{NOBODY, Told, Trial, trial};
use crate::watch::Fact;
use crate::{Fault, Setting};

/// In the order they run in.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "agents-cut",
        inject: |setting| trial(setting, Scene::networked(), &NOBODY, agents_cut),
    },
    Fault {
        name: "agents-one-way",
        inject: |setting| trial(setting, Scene::networked(), &NOBODY, agents_one_way),
    },
    Fault {
        name: "agents-held",
        inject: |setting| trial(setting, Scene::networked(), &NOBODY, agents_held),
    },
    Fault {
        name: "doors-cut",
        inject: |setting| trial(setting, Scene::networked(), &TWO_AWAY, doors_cut),
    },
    Fault {
        name: "doors-one-way",
        inject: |setting| trial(setting, Scene::networked(), &TWO_AWAY, doors_one_way),
    },
    Fault {
        name: "doors-slow",
        inject: |setting| trial(setting, Scene::networked(), &RESET, doors_slow),
    },
    Fault {
        name: "mixture",
        inject: mixture,
    },
];

/// A connection may be reset at any time.
const RESET: Told = Told {
    codes: &["worker_reset"],
    within: SOON,
    felt: false,
};
/// With two of three doors away, three attempts may find neither slot nor door that works.
const TWO_AWAY: Told = Told {
    codes: &["worker_reset", "upstream_failed"],
    ..HUNG
};

impl Trial<'_> {
    /// The nodes in an order by chance.
    fn any_nodes(&mut self) -> [usize; 3] {
        let first = self.any_node();
        let mut rest = [(first + 1) % 3, (first + 2) % 3];
        if self.chance.below(2) == 0 {
            rest.reverse();
        }
        [first, rest[0], rest[1]]
    }

    /// Everything from and to a node is so much later.
    fn delay(&mut self) -> Network {
        Network::Delay(self.between(50, 250))
    }

    fn lossy(&mut self) -> Network {
        Network::Lossy(self.chance.next())
    }

    /// Changes the network between the control plane and an agent. What its clients are answered does not pass there: no
    /// place is struck.
    fn agent_network(&self, at: usize, fault: Network, fact: impl FnOnce(Instant) -> Fact) {
        let begins = Instant::now();
        self.scene.networks[at].to_plane.set(fault);
        self.watch.node(NODES[at], fact(begins));
    }

    /// Every network of an agent works again: waits until its node is heard.
    fn agents_are_back(&mut self, nodes: &[usize]) {
        for &at in nodes {
            let network = &self.scene.networks[at].to_plane;
            // An agent that is refused has no connection that could be reset. Nobody hears it: that it went Offline shows it.
            if network.fault() != Network::Refuse {
                network.wait_struck();
            }
        }
        for &at in nodes {
            self.watch.node(NODES[at], Fact::Either);
            self.scene.networks[at].to_plane.set(Network::Pass);
        }
        let healed = self.injected.heals();
        for &at in nodes {
            self.scene.wait_lives(NODES[at], self.watch);
        }
        self.injected.took("heard again after", healed.elapsed());
        for &at in nodes {
            self.serves_again(&everything_of(at));
        }
        self.injected.over();
    }

    /// Changes the network in front of an agent's door.
    fn door(&mut self, at: usize, fault: Network) {
        self.injected.strike(&everything_of(at));
        self.scene.networks[at].to_node.set(fault);
    }

    /// Every door can be reached again: waits until each is used. What was lost at these on a connection its sender would
    /// have sent again, or been told that nobody knows of it any more; here nothing is sent again, so everybody is told.
    fn doors_are_back(&mut self, lost: &[usize]) {
        // Behind a door that refuses there were requests and idle connections to reset.
        for networks in &self.scene.networks {
            networks.to_node.wait_struck();
        }
        for &at in lost {
            self.scene.networks[at].to_node.set(Network::Refuse);
        }
        for networks in &self.scene.networks {
            networks.to_node.set(Network::Pass);
        }
        self.injected.heals();
        for at in 0..NODES.len() {
            self.serves_again(&everything_of(at));
        }
        self.injected.over();
    }
}

/// One agent is cut off both ways, one is refused by the control plane, and one has a slow network.
fn agents_cut(trial: &mut Trial) {
    let [cut, refused, slow] = trial.any_nodes();
    let delay = trial.delay();
    trial.agent_network(slow, delay, |_| Fact::Live);
    for (at, fault) in [(cut, Network::Cut), (refused, Network::Refuse)] {
        trial.scene.wait_node_busy(NODES[at]);
        trial.agent_network(at, fault, Fact::Dead);
    }
    let died = Instant::now();
    for at in [cut, refused] {
        let offline = trial.scene.wait_offline(NODES[at], died);
        trial.injected.took("Offline after", offline);
    }
    trial.pause(0, 1_000);
    trial.agents_are_back(&[cut, refused, slow]);
}

/// One agent is no longer heard, one no longer hears, and one has a lossy network.
fn agents_one_way(trial: &mut Trial) {
    let [unheard, deaf, lossy] = trial.any_nodes();
    let losses = trial.lossy();
    trial.agent_network(lossy, losses, |_| Fact::Live);
    // That may take a while, of which the others would make longer and longer pauses between their attempts.
    trial.scene.networks[lossy].to_plane.wait_struck();
    // It goes on trying, and is heard each time.
    trial.agent_network(deaf, Network::ToClient, |_| Fact::Either);
    trial.agent_network(unheard, Network::ToServer, Fact::Dead);
    let offline = trial.scene.wait_offline(NODES[unheard], Instant::now());
    trial.injected.took("Offline after", offline);
    trial.pause(0, 1_000);
    trial.agents_are_back(&[unheard, deaf, lossy]);
}

/// Nothing of any agent comes through for longer than the timeout, and then all of it.
fn agents_held(trial: &mut Trial) {
    for at in 0..NODES.len() {
        trial.agent_network(at, Network::Hold, Fact::Dead);
    }
    let died = Instant::now();
    for node in NODES {
        let offline = trial.scene.wait_offline(node, died);
        trial.injected.took("Offline after", offline);
    }
    trial.pause(0, 1_000);
    trial.agents_are_back(&[0, 1, 2]);
}

/// One door can no longer be reached, and one refuses.
fn doors_cut(trial: &mut Trial) {
    let [cut, refuses, _] = trial.any_nodes();
    for (at, fault) in [(cut, Network::Cut), (refuses, Network::Refuse)] {
        trial.scene.wait_node_busy(NODES[at]);
        trial.door(at, fault);
    }
    trial.pause(BEYOND.start, BEYOND.end);
    trial.doors_are_back(&[cut]);
}

/// One door no longer hears, and one is no longer heard.
fn doors_one_way(trial: &mut Trial) {
    let [deaf, unheard, _] = trial.any_nodes();
    for (at, fault) in [(deaf, Network::ToServer), (unheard, Network::ToClient)] {
        trial.scene.wait_node_busy(NODES[at]);
        trial.door(at, fault);
    }
    trial.pause(BEYOND.start, BEYOND.end);
    trial.doors_are_back(&[deaf, unheard]);
}

/// One door is far away, one is behind a lossy network, and from one nothing comes for a while, less than is taken for dead.
fn doors_slow(trial: &mut Trial) {
    let [far, lossy, held] = trial.any_nodes();
    let (delay, losses) = (trial.delay(), trial.lossy());
    trial.door(far, delay);
    trial.door(lossy, losses);
    trial.pause(200, 800);
    trial.scene.wait_node_busy(NODES[held]);
    trial.door(held, Network::Hold);
    trial.pause(200, 900);
    trial.scene.networks[held].to_node.wait_struck();
    trial.scene.networks[held].to_node.set(Network::Pass);
    trial.pause(500, 1_500);
    trial.doors_are_back(&[]);
}

/// Something to do to a fleet, and what it is called.
type Named = (&'static str, fn(&mut Trial));

/// One thing after the other, whatever chance brings.
fn mixture(setting: &mut Setting) -> String {
    const ALL: [Named; 17] = [
        ("engine-killed", processes::engine_killed),
        ("engine-terminated", processes::engine_terminated),
        ("engine-paused", processes::engine_paused),
        ("engine-hung", processes::engine_hung),
        ("agent-killed", processes::agent_killed),
        ("agent-paused", processes::agent_paused),
        ("agent-hung", processes::agent_hung),
        ("agent-terminated", processes::agent_terminated),
        ("server-killed", processes::server_killed),
        ("server-terminated", processes::server_terminated),
        ("server-stopped", processes::server_stopped),
        ("agents-cut", agents_cut),
        ("agents-one-way", agents_one_way),
        ("agents-held", agents_held),
        ("doors-cut", doors_cut),
        ("doors-one-way", doors_one_way),
        ("doors-slow", doors_slow),
    ];
    const ANY: Told = Told {
        codes: &["worker_reset", "shutting_down", "upstream_failed"],
        within: SOON,
        felt: false,
    };
    let faults = if setting.long { 5 } else { 1 };
    trial(setting, Scene::networked(), &ANY, |trial| {
        for _ in 0..faults {
            let one = trial.chance.below(ALL.len() as u64);
            let (name, fault) = ALL[usize::try_from(one).expect("one of them")];
            println!("  mixture: {name}");
            fault(trial);
        }
    })
}
