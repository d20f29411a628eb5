use super::*;
use crate::types::{
    DrainAck, DrainState, Health, HealthStatus, NodeView, PoolId, PoolState, PoolStatus, UnixMs,
};

const SETTINGS: Settings = Settings {
    node_timeout_ms: 30_000,
    restart_grace_ms: 30_000,
    hold: HoldSettings {
        min: 5,
        percent: 30,
        max_ms: 600_000,
    },
};

fn at(ms: u64) -> Now {
    // The wall clock runs elsewhere, and backwards: nothing may be decided from it.
    Now {
        mono: Mono(ms),
        wall: UnixMs(1_000_000_000 - ms),
    }
}

fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("a good id")
}

fn request(node: &str, machine: &str, instance: Option<&str>) -> RegisterRequest {
    let body = serde_json::json!({
        "node_id": node, "machine_id": machine, "address": "http://10.0.0.1:9200", "instance_id": instance,
    });
    serde_json::from_value(body).expect("a good registration")
}

fn beat_body(instance: Option<&str>, seq: Option<u64>) -> HeartbeatRequest {
    let pool = PoolStatus {
        pool_id: PoolId::new("default").expect("good"),
        ready: true,
        draining: false,
        slots_free: Some(9),
        slots_total: Some(4),
        vram_free_bytes: None,
        engine: Some("llamacpp".into()),
        url: None,
        state: PoolState::Ready,
        models_available: vec!["m".into()],
        engine_version: None,
        n_ctx: Some(2048),
        in_flight: Some(0),
        detail: None,
    };
    HeartbeatRequest {
        timestamp: None,
        pools: vec![pool],
        instance_id: instance.map(str::to_owned),
        seq,
        health: None,
        drain_ack: None,
    }
}

struct Fleet(Registry);

impl Fleet {
    fn new() -> Self {
        Self(Registry::new(SETTINGS))
    }

    fn order(&mut self, now: Now, intent: &Intent) -> Result<Change, Refusal> {
        let change = self.0.decide(now, intent)?;
        self.0.commit(now, change.clone());
        Ok(change)
    }

    fn register(&mut self, now: Now, node: &str) -> Change {
        self.order(now, &Intent::Register(Box::new(request(node, "m1", None))))
            .expect("registers")
    }

    fn drain(&mut self, now: Now, node: &str) {
        let intent = Intent::Drain {
            node_id: id(node),
            request: DrainRequest {
                reason: Some("kernel".into()),
                ..DrainRequest::default()
            },
            drain_id: format!("d-{}", now.mono.0),
            running: 2,
        };
        self.order(now, &intent).expect("drains");
    }

    fn beat(&mut self, now: Now, node: &str) -> Beat {
        self.0
            .beat(now, &id(node), beat_body(None, None))
            .expect("beats")
    }

    fn word(&self, node: &str) -> NodeStatus {
        self.0.node(&id(node)).expect("known").status()
    }

    fn view(&self, now: Now, node: &str) -> NodeView {
        let known = self.0.node(&id(node)).expect("known");
        known.view(now, SETTINGS.node_timeout_ms, &id(node), |_| 0)
    }
}

#[test]
fn a_node_is_registering_until_its_first_heartbeat_and_online_from_then_on() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    assert_eq!(f.word("n1"), NodeStatus::Registering);
    assert!(!f.view(at(0), "n1").online);
    let beat = f.beat(at(10), "n1");
    assert!(beat.counted && beat.routes_changed && beat.descriptors_changed);
    assert_eq!(
        beat.turned,
        Some((NodeStatus::Registering, NodeStatus::Online))
    );
    assert_eq!(f.word("n1"), NodeStatus::Online);
    assert!(!f.beat(at(20), "n1").routes_changed, "nothing new in it");
}

#[test]
fn silence_longer_than_the_timeout_is_offline_and_a_heartbeat_ends_it_at_once() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.register(at(0), "never-beats");
    f.beat(at(1_000), "n1");
    assert_eq!(f.0.next_expiry(at(1_000)), Some(Mono(30_000)));
    assert!(
        f.0.expire(at(30_000)).moved.is_empty(),
        "at the timeout it is not longer than the timeout"
    );
    let moved = f.0.expire(at(30_001)).moved;
    assert_eq!(
        moved.len(),
        1,
        "a registering node that never beats goes Offline too: {moved:?}"
    );
    assert_eq!(
        (moved[0].node_id.as_str(), moved[0].from),
        ("never-beats", NodeStatus::Registering)
    );
    assert_eq!(f.0.expire(at(31_001)).moved.len(), 1);
    assert_eq!(f.word("n1"), NodeStatus::Offline);
    assert!(f.0.expire(at(90_000)).moved.is_empty(), "it is said once");
    assert_eq!(
        f.beat(at(100_000), "n1").turned,
        Some((NodeStatus::Offline, NodeStatus::Online))
    );
    assert_eq!(f.word("n1"), NodeStatus::Online);
}

#[test]
fn drain_survives_heartbeats_registration_and_departure_and_only_undrain_or_forget_ends_it() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.beat(at(1), "n1");
    f.drain(at(2), "n1");
    f.beat(at(3), "n1");
    assert_eq!(f.word("n1"), NodeStatus::Draining);
    f.register(at(4), "n1");
    f.beat(at(5), "n1");
    assert_eq!(f.word("n1"), NodeStatus::Draining);
    let leave = |forget| Intent::Deregister {
        node_id: id("n1"),
        instance_id: None,
        forget,
    };
    f.order(at(6), &leave(false)).expect("leaves");
    assert!(f.0.node(&id("n1")).expect("kept").record.departed);
    assert!(!f.view(at(6), "n1").schedulable);
    assert!(f.0.beat(at(7), &id("n1"), beat_body(None, None)).is_err());
    f.register(at(8), "n1");
    f.beat(at(9), "n1");
    assert_eq!(
        f.word("n1"),
        NodeStatus::Draining,
        "what was asked of it holds again"
    );
    f.order(at(10), &Intent::Undrain { node_id: id("n1") })
        .expect("undrains");
    assert_eq!(f.word("n1"), NodeStatus::Online);
    f.drain(at(11), "n1");
    f.order(at(12), &leave(true)).expect("forgets");
    assert!(f.0.node(&id("n1")).is_none());
}

#[test]
fn a_drain_is_done_when_the_agent_says_zero_or_never_speaks_or_is_gone() {
    let ack = |in_flight| DrainAck {
        id: "d-2".into(),
        in_flight,
    };
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.beat(at(1), "n1");
    f.drain(at(2), "n1");
    assert!(!f.0.settle(&id("n1"), 0), "nobody has said anything yet");
    let mut body = beat_body(None, None);
    body.drain_ack = Some(ack(1));
    f.0.beat(at(3), &id("n1"), body.clone()).expect("beats");
    assert!(!f.0.settle(&id("n1"), 0), "the agent still carries one");
    body.drain_ack = Some(ack(0));
    f.0.beat(at(4), &id("n1"), body).expect("beats");
    assert!(!f.0.settle(&id("n1"), 1), "the gateway still counts one");
    assert!(f.0.settle(&id("n1"), 0));
    let drain = f.view(at(5), "n1").drain.expect("drained");
    assert_eq!(
        (drain.state, drain.unverified, drain.in_flight_at_start),
        (DrainState::Drained, false, 2)
    );
    assert_eq!(drain.reason.as_deref(), Some("kernel"));

    let mut old = Fleet::new();
    old.register(at(0), "n1");
    old.drain(at(2), "n1");
    for beat in 0..2 {
        old.beat(at(3 + beat), "n1");
        assert!(!old.0.settle(&id("n1"), 0), "three must have been answered");
    }
    old.beat(at(9), "n1");
    assert!(old.0.settle(&id("n1"), 0));
    assert!(old.view(at(9), "n1").drain.expect("drained").unverified);

    let mut silent = Fleet::new();
    silent.register(at(0), "n1");
    silent.drain(at(2), "n1");
    silent.0.expire(at(31_000));
    assert!(silent.0.settle(&id("n1"), 0));
    assert!(
        silent
            .view(at(31_000), "n1")
            .drain
            .expect("drained")
            .unverified
    );
}

#[test]
fn a_repeated_drain_keeps_its_id_and_start() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.drain(at(2), "n1");
    f.drain(at(50), "n1");
    let drain = f.view(at(60), "n1").drain.expect("draining");
    assert_eq!(
        (drain.id.as_str(), drain.started_at_ms),
        ("d-2", at(2).wall)
    );
}

#[test]
fn an_equal_registration_writes_nothing_and_another_instance_begins_anew() {
    let mut f = Fleet::new();
    let register = |instance: &str| Intent::Register(Box::new(request("n1", "m1", Some(instance))));
    f.order(at(0), &register("a")).expect("registers");
    f.0.beat(at(1), &id("n1"), beat_body(Some("a"), Some(7)))
        .expect("beats");
    assert!(!f.order(at(2), &register("a")).expect("again").is_durable());
    assert_eq!(f.word("n1"), NodeStatus::Online);
    assert_eq!(f.view(at(2), "n1").pool_status.len(), 1);
    let change = f.order(at(3), &register("b")).expect("again");
    assert!(change.is_durable());
    let view = f.view(at(4), "n1");
    assert_eq!(
        (view.status, view.pool_status.len()),
        (NodeStatus::Registering, 0)
    );
    assert_eq!(view.registered_at_ms, at(0).wall);
    assert_eq!(
        f.0.beat(at(5), &id("n1"), beat_body(Some("a"), Some(8))),
        Err(Refusal::Superseded { node_id: id("n1") })
    );
    assert!(
        f.0.beat(at(6), &id("n1"), beat_body(Some("b"), Some(1)))
            .expect("beats")
            .counted,
        "seq begins anew"
    );
    let leave = Intent::Deregister {
        node_id: id("n1"),
        instance_id: Some("a".into()),
        forget: false,
    };
    assert_eq!(
        f.order(at(7), &leave),
        Err(Refusal::Superseded { node_id: id("n1") })
    );
}

#[test]
fn a_repeated_heartbeat_is_ignored_and_does_not_renew_the_lease() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.0.beat(at(1), &id("n1"), beat_body(None, Some(5)))
        .expect("beats");
    assert!(
        !f.0.beat(at(20_000), &id("n1"), beat_body(None, Some(5)))
            .expect("acknowledged")
            .counted
    );
    assert_eq!(f.view(at(20_000), "n1").last_heartbeat_age_ms, Some(19_999));
}

#[test]
fn a_live_machine_keeps_its_name_and_a_silent_one_is_taken_over_without_its_drain() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.drain(at(1), "n1");
    let other = Intent::Register(Box::new(request("n1", "m2", None)));
    assert_eq!(
        f.order(at(10_000), &other),
        Err(Refusal::HeldByAnotherMachine {
            node_id: id("n1"),
            holder: "m1".into(),
            asking: "m2".into(),
            retry_after_ms: 20_000
        })
    );
    f.0.expire(at(30_001));
    f.order(at(30_001), &other).expect("takes over");
    let view = f.view(at(30_001), "n1");
    assert_eq!(
        (view.machine_id.as_str(), view.status, view.drain),
        ("m2", NodeStatus::Registering, None)
    );
}

#[test]
fn after_a_restart_nodes_keep_their_word_and_are_suspect_until_heard_or_until_the_grace_ends() {
    let record = Record::from_request(&request("n1", "m1", None), UnixMs(5));
    let descriptor = beat_body(None, None).pools[0].descriptor();
    let restored = |name: &str, beaten, offline| Restored {
        node_id: id(name),
        record: record.clone(),
        drain: None,
        observed: Observed {
            beaten,
            offline,
            pools: vec![descriptor.clone()],
            ..Observed::default()
        },
    };
    let all = vec![
        restored("was-online", true, false),
        restored("was-offline", true, true),
        restored("quiet", true, false),
    ];
    let mut f = Fleet(Registry::restore(SETTINGS, at(1_000), all));
    let view = f.view(at(1_000), "was-online");
    assert_eq!(
        (view.status, view.suspect, view.last_heartbeat_age_ms),
        (NodeStatus::Online, true, None)
    );
    assert!(view.schedulable, "it is routed by its last known pools");
    assert_eq!(view.pool_status[0].status.models_available, ["m"]);
    assert_eq!(f.word("was-offline"), NodeStatus::Offline);
    assert!(
        f.beat(at(2_000), "was-online").routes_changed,
        "no longer suspect"
    );
    assert!(!f.view(at(2_000), "was-online").suspect);
    let moved = f.0.expire(at(31_001)).moved;
    assert_eq!(
        moved.iter().map(|m| m.node_id.as_str()).collect::<Vec<_>>(),
        ["quiet"]
    );
}

#[test]
fn a_pause_of_this_process_is_not_the_fleets_silence() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.beat(at(10_000), "n1");
    f.0.paused(at(100_000), 85_000);
    assert!(f.0.expire(at(100_000)).moved.is_empty());
    assert_eq!(f.0.expire(at(125_001)).moved.len(), 1);
}

#[test]
fn an_agent_that_cannot_carry_requests_is_failed_and_a_degraded_one_is_online() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    let mut body = beat_body(None, None);
    body.health = Some(Health {
        status: HealthStatus::Degraded,
        reasons: vec![],
    });
    f.0.beat(at(1), &id("n1"), body.clone()).expect("beats");
    assert_eq!(f.word("n1"), NodeStatus::Online);
    body.health = Some(Health {
        status: HealthStatus::Failed,
        reasons: vec![],
    });
    assert!(
        f.0.beat(at(2), &id("n1"), body)
            .expect("beats")
            .routes_changed
    );
    assert_eq!(f.word("n1"), NodeStatus::Failed);
    assert!(!f.view(at(2), "n1").schedulable && f.view(at(2), "n1").online);
}

#[test]
fn a_pool_without_a_url_is_reached_through_its_agent_and_free_slots_never_exceed_all() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.beat(at(1), "n1");
    let node = f.0.node(&id("n1")).expect("known");
    let url = node.pool_url(&node.pools[0]).expect("reachable");
    assert_eq!(url.as_str(), "http://10.0.0.1:9200/pools/default");
    assert_eq!(
        f.view(at(1), "n1").pool_status[0].status.slots_free,
        Some(4)
    );
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    let mut f = Fleet::new();
    let unknown = Err(Refusal::UnknownNode { node_id: id("n9") });
    assert_eq!(
        f.order(at(0), &Intent::Undrain { node_id: id("n9") }),
        unknown
    );
    assert!(f.0.beat(at(0), &id("n9"), beat_body(None, None)).is_err());
    let mut bare = request("n1", "m1", None);
    bare.address = None;
    assert_eq!(
        f.order(at(0), &Intent::Register(Box::new(bare))),
        Err(Refusal::NoAddress { node_id: id("n1") })
    );
}

#[test]
fn a_repeated_drain_order_takes_nothing_back_that_happened_while_it_was_written() {
    let mut f = Fleet::new();
    f.register(at(0), "n1");
    f.beat(at(1), "n1");
    f.drain(at(2), "n1");
    let again = Intent::Drain {
        node_id: id("n1"),
        request: DrainRequest {
            deadline_ms: Some(5_000),
            ..DrainRequest::default()
        },
        drain_id: "other".into(),
        running: 2,
    };
    let decided = f.0.decide(at(3), &again).expect("decides");
    f.0.cut(&id("n1"), 2);
    let drain_id =
        f.0.node(&id("n1"))
            .and_then(|n| n.drain.as_ref())
            .map(|d| d.id.clone());
    let mut body = beat_body(None, None);
    body.drain_ack = Some(DrainAck {
        id: drain_id.expect("draining"),
        in_flight: 0,
    });
    f.0.beat(at(4), &id("n1"), body).expect("beats");
    assert!(f.0.settle(&id("n1"), 0));
    f.0.commit(at(5), decided);
    let drain = f.view(at(5), "n1").drain.expect("draining");
    assert_eq!((drain.state, drain.cut), (DrainState::Drained, 2));
}
