//! What holds after any history.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::{DrainAck, UnixMs};

const TIMEOUT: u64 = 1_000;
const SETTINGS: Settings = Settings {
    node_timeout_ms: TIMEOUT,
    restart_grace_ms: TIMEOUT,
    hold: HoldSettings {
        min: 3,
        percent: 50,
        max_ms: 4_000,
    },
};

/// Something that happens to one of five nodes, or to all.
#[derive(Debug, Clone)]
enum Step {
    Register {
        node: u8,
        machine: u8,
        instance: Option<u8>,
    },
    Beat {
        node: u8,
        instance: Option<u8>,
        seq: Option<u64>,
        ack: bool,
    },
    Leave {
        node: u8,
        instance: Option<u8>,
        forget: bool,
    },
    Drain {
        node: u8,
        deadline: Option<u64>,
        force: bool,
    },
    Undrain {
        node: u8,
    },
    Running {
        node: u8,
        count: u32,
    },
    Advance(u64),
    Pause(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..5_u8;
    let instance = proptest::option::of(0..3_u8);
    prop_oneof![
        4 => (node.clone(), 0..2_u8, instance.clone())
            .prop_map(|(node, machine, instance)| Step::Register { node, machine, instance }),
        8 => (node.clone(), instance.clone(), proptest::option::of(0..9_u64), any::<bool>())
            .prop_map(|(node, instance, seq, ack)| Step::Beat { node, instance, seq, ack }),
        1 => (node.clone(), instance, any::<bool>())
            .prop_map(|(node, instance, forget)| Step::Leave { node, instance, forget }),
        2 => (node.clone(), proptest::option::of(0..5_000_u64), any::<bool>())
            .prop_map(|(node, deadline, force)| Step::Drain { node, deadline, force }),
        1 => node.clone().prop_map(|node| Step::Undrain { node }),
        1 => (node, 0..3_u32).prop_map(|(node, count)| Step::Running { node, count }),
        6 => (1..2_000_u64).prop_map(Step::Advance),
        1 => (1_000..90_000_u64).prop_map(Step::Pause),
        1 => Just(Step::Restart),
    ]
}

fn name(node: u8) -> NodeId {
    NodeId::new(&format!("n{node}")).expect("good")
}

/// The registry, what it acknowledged, and what a store would hold.
struct World {
    registry: Registry,
    now: u64,
    running: BTreeMap<NodeId, u32>,
    /// What was acknowledged: who is registered, and which drain is asked of it.
    acknowledged: BTreeMap<NodeId, (Record, Option<String>)>,
    drains: u64,
}

impl World {
    fn at(&self) -> Now {
        Now {
            mono: Mono(self.now),
            // Runs backwards: nothing may be decided from it.
            wall: UnixMs(10_000_000_000 - self.now),
        }
    }

    fn order(&mut self, intent: &Intent) {
        let before = format!("{:?}", self.registry);
        let decided = self.registry.decide(self.at(), intent);
        assert_eq!(
            before,
            format!("{:?}", self.registry),
            "deciding changes nothing"
        );
        let Ok(change) = decided else { return };
        let node_id = change.node_id.clone();
        self.registry.commit(self.at(), change);
        match self.registry.node(&node_id) {
            Some(node) => {
                let drain = node.drain.as_ref().map(|drain| drain.id.clone());
                self.acknowledged
                    .insert(node_id, (node.record.clone(), drain));
            }
            None => drop(self.acknowledged.remove(&node_id)),
        }
    }

    fn step(&mut self, step: Step) {
        let instance = |instance: Option<u8>| instance.map(|i| format!("i{i}"));
        match step {
            Step::Register {
                node,
                machine,
                instance: i,
            } => {
                let body = serde_json::json!({
                    "node_id": name(node), "machine_id": format!("m{machine}"), "instance_id": instance(i),
                    "address": "http://10.0.0.1:9200",
                });
                let request = serde_json::from_value(body).expect("good");
                self.order(&Intent::Register(Box::new(request)));
            }
            Step::Beat {
                node,
                instance: i,
                seq,
                ack,
            } => {
                let node_id = name(node);
                let drain = self
                    .registry
                    .node(&node_id)
                    .and_then(|node| node.drain.as_ref());
                let drain_ack = drain.filter(|_| ack).map(|drain| DrainAck {
                    id: drain.id.clone(),
                    in_flight: 0,
                });
                let mut request: HeartbeatRequest =
                    serde_json::from_value(serde_json::json!({"pools": [], "seq": seq}))
                        .expect("good");
                request.instance_id = instance(i);
                request.drain_ack = drain_ack;
                // A refusal is as good an answer as any.
                drop(self.registry.beat(self.at(), &node_id, request));
            }
            Step::Leave {
                node,
                instance: i,
                forget,
            } => self.order(&Intent::Deregister {
                node_id: name(node),
                instance_id: instance(i),
                forget,
            }),
            Step::Drain {
                node,
                deadline,
                force,
            } => {
                self.drains += 1;
                self.order(&Intent::Drain {
                    node_id: name(node),
                    request: DrainRequest {
                        deadline_ms: deadline,
                        force: Some(force),
                        ..DrainRequest::default()
                    },
                    drain_id: format!("d{}", self.drains),
                    running: 0,
                });
            }
            Step::Undrain { node } => self.order(&Intent::Undrain {
                node_id: name(node),
            }),
            Step::Running { node, count } => drop(self.running.insert(name(node), count)),
            Step::Advance(ms) => {
                let end = self.now + ms;
                while let Some(at) = self
                    .registry
                    .next_expiry(self.at())
                    .map(|at| at.0 + 1)
                    .filter(|at| *at <= end)
                {
                    self.now = at.max(self.now);
                    self.sweep();
                }
                self.now = end;
            }
            Step::Pause(ms) => {
                self.now += ms;
                let before = self.words();
                self.registry.paused(self.at(), ms);
                self.sweep();
                let offline = |words: &BTreeMap<NodeId, NodeStatus>| {
                    words
                        .values()
                        .filter(|word| **word == NodeStatus::Offline)
                        .count()
                };
                assert_eq!(
                    offline(&before),
                    offline(&self.words()),
                    "our pause is nobody's death"
                );
            }
            Step::Restart => self.restart(),
        }
        self.sweep();
        self.check();
    }

    fn words(&self) -> BTreeMap<NodeId, NodeStatus> {
        self.registry
            .nodes()
            .map(|(id, node)| (id.clone(), node.status()))
            .collect()
    }

    fn sweep(&mut self) {
        let sweep = self.registry.expire(self.at());
        for moved in &sweep.moved {
            assert!(
                matches!(moved.to, NodeStatus::Offline | NodeStatus::Registering),
                "{moved:?}"
            );
        }
        for node_id in self.registry.over(self.at()) {
            let count = self.running.insert(node_id.clone(), 0).unwrap_or(0);
            self.registry.cut(&node_id, count);
        }
        let draining: Vec<NodeId> = self.registry.draining().cloned().collect();
        for node_id in draining {
            let running = self.running.get(&node_id).copied().unwrap_or(0);
            let done = self.registry.settle(&node_id, running);
            assert!(!done || running == 0, "drained while something runs");
        }
    }

    fn restart(&mut self) {
        let before = self.words();
        let kept = self.registry.nodes().map(|(node_id, node)| Restored {
            node_id: node_id.clone(),
            record: node.record.clone(),
            drain: node.drain.as_ref().map(|drain| {
                let text =
                    serde_json::to_string(&drain.as_of(Mono(self.now))).expect("it serialises");
                serde_json::from_str(&text).expect("and back")
            }),
            observed: node.durable(),
        });
        self.registry = Registry::restore(SETTINGS, self.at(), kept.collect());
        for (node_id, word) in self.words() {
            // What an agent said of its health is not kept: it says so again with its first heartbeat.
            if before[&node_id] != NodeStatus::Failed {
                assert_eq!(before[&node_id], word, "{node_id} keeps its word");
            }
        }
        self.running.clear();
    }

    fn check(&self) {
        let now = self.at();
        for (node_id, node) in self.registry.nodes() {
            let (record, drain) = &self.acknowledged[node_id];
            assert_eq!(record, &node.record, "only orders change a registration");
            assert_eq!(
                drain.as_ref(),
                node.drain.as_ref().map(|drain| &drain.id),
                "only orders change intent"
            );
            let silence = node.live.heard.map(|heard| now.mono.since(heard));
            let late = silence.is_some_and(|ms| ms > TIMEOUT);
            if node.live.offline {
                assert!(
                    node.record.departed || silence.is_none_or(|ms| ms > TIMEOUT),
                    "{node_id} lives and is Offline"
                );
            } else if late {
                assert!(
                    self.registry.hold().is_some() && node.suspect(),
                    "{node_id} is dead and not Offline"
                );
            }
            if node.schedulable() {
                assert!(
                    node.drain.is_none()
                        && !node.record.departed
                        && node.status() == NodeStatus::Online
                );
            }
            if node.record.departed {
                assert!(
                    node.drain.is_some(),
                    "{node_id} has left, and nothing holds it here"
                );
            }
            let view = node.view(now, TIMEOUT, node_id, |_| 0);
            if node.observed() == NodeStatus::Online && self.registry.hold().is_none() {
                assert!(view.online, "{node_id} is Online without a heartbeat");
            }
            assert!(!view.online || !late, "{node_id} says that it was heard");
        }
        assert_eq!(
            self.registry.nodes().count(),
            self.acknowledged.len(),
            "nothing acknowledged is lost"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_intent_and_tells_the_truth(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World {
            registry: Registry::new(SETTINGS),
            now: 1,
            running: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            drains: 0,
        };
        for step in steps {
            world.step(step);
        }
    }
}
