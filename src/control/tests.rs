use super::*;
use crate::admission;
use crate::store::{Loaded, MemoryStore, Write};
use crate::types::DrainState;

const SETTINGS: Settings = Settings {
    node_timeout_ms: 30_000,
    heartbeat_interval_ms: 10_000,
    stale_check_interval_ms: 60_000,
    restart_grace_ms: 30_000,
    hold: HoldSettings {
        min: 5,
        percent: 30,
        max_ms: 600_000,
    },
};

/// A store that can be broken, and that outlives a control plane.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(MemoryStore, bool)>>);

impl Disk {
    fn break_it(&self, broken: bool) {
        self.0.lock().expect("not poisoned").1 = broken;
    }
}

impl Store for Disk {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.0.lock().expect("not poisoned").0.load()
    }

    fn apply(&mut self, batch: &[Write], expected: u64) -> Result<u64, StoreError> {
        let mut inner = self.0.lock().expect("not poisoned");
        if inner.1 {
            return Err(StoreError::Unwritable(rusqlite::Error::InvalidQuery));
        }
        inner.0.apply(batch, expected)
    }
}

fn start(disk: &Disk) -> (Arc<Control>, Arc<Admission>) {
    let clock = Clock::new();
    let settings = admission::Settings {
        queue_capacity: 8,
        policy: admission::Policy::Reject,
        queue_bytes: 100,
        queue_timeout_ms: 300_000,
        no_pool_wait_ms: 5_000,
        sample_ttl_ms: 20_000,
    };
    let admission = Admission::new(clock, settings);
    let control = Control::start(
        clock,
        SETTINGS,
        Arc::clone(&admission),
        Box::new(disk.clone()),
    )
    .expect("starts");
    tokio::spawn(Arc::clone(&control).reap());
    (control, admission)
}

fn id(text: &str) -> NodeId {
    NodeId::new(text).expect("good")
}

fn registration(node: &str) -> RegisterRequest {
    serde_json::from_value(serde_json::json!({"node_id": node, "address": "http://127.0.0.1:9200"}))
        .expect("good")
}

fn heartbeat() -> HeartbeatRequest {
    let pool = serde_json::json!({
        "pool_id": "default", "ready": true, "slots_free": 4, "slots_total": 4, "state": "ready",
        "models_available": ["m"], "in_flight": 0,
    });
    serde_json::from_value(serde_json::json!({"pools": [pool]})).expect("good")
}

fn ask(admission: &Admission) -> admission::Ask {
    admission::Ask {
        model: admission.model("m").expect("known"),
        weight: 1,
        bytes: 1,
        min_ctx: 0,
        turn: None,
        avoid: None,
    }
}

#[tokio::test]
async fn a_registered_node_that_beats_is_routed_to_and_a_drained_one_is_not() {
    let (control, admission) = start(&Disk::default());
    let reply = control
        .register(registration("n1"))
        .await
        .expect("registers");
    assert!(reply.success && reply.durable);
    assert_eq!(admission.model("m"), None);
    let reply = control.beat(&id("n1"), heartbeat()).expect("beats");
    assert_eq!((reply.status, reply.drain), (NodeStatus::Online, None));
    let permit = admission.acquire(ask(&admission)).await.expect("has room");
    let mut catalog = Catalog::default();
    control.add_to_catalog(&control.node_ids(), &mut catalog);
    assert_eq!(control.pools(&[id("n1")])[0].running, 1);
    assert_eq!(catalog.availability().models[0].total_capacity, 4);

    let view = control
        .drain(id("n1"), DrainRequest::default())
        .await
        .expect("drains");
    let drain = view.drain.expect("draining");
    assert_eq!(
        (drain.state, drain.in_flight, drain.in_flight_at_start),
        (DrainState::Draining, 1, 1)
    );
    let waiting = tokio::spawn({
        let admission = Arc::clone(&admission);
        async move { admission.acquire(ask(&admission)).await.map(drop) }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "no new work goes to it");
    let order = control
        .beat(&id("n1"), heartbeat())
        .expect("beats")
        .drain
        .expect("is told");
    assert_eq!(order.id, drain.id);
    drop(permit);
    let mut beat = heartbeat();
    beat.drain_ack = Some(crate::types::DrainAck {
        id: order.id,
        in_flight: 0,
    });
    control.beat(&id("n1"), beat).expect("beats");
    let drain = control
        .node(&id("n1"))
        .expect("known")
        .drain
        .expect("drained");
    assert_eq!(
        (drain.state, drain.unverified),
        (DrainState::Drained, false)
    );

    assert_eq!(
        control.undrain(id("n1")).await.expect("undrains").status,
        NodeStatus::Online
    );
    waiting.await.expect("ran").expect("goes there again");
    control.stop();
    assert_eq!(control.undrain(id("n1")).await, Err(ControlError::Stopping));
}

#[tokio::test]
async fn what_was_acknowledged_is_there_in_the_next_life() {
    let disk = Disk::default();
    let (control, _) = start(&disk);
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    control
        .register(registration("n2"))
        .await
        .expect("registers");
    control.beat(&id("n1"), heartbeat()).expect("beats");
    control
        .drain(id("n2"), DrainRequest::default())
        .await
        .expect("drains");
    control.stop();

    let (control, admission) = start(&disk);
    let filter = NodeFilter {
        limit: 10,
        ..NodeFilter::default()
    };
    let (node_ids, list) = control.listing(&filter);
    assert_eq!((list.count, list.total, list.next), (2, 2, None));
    let nodes = control.listed(&filter, &node_ids);
    let words: Vec<(&str, NodeStatus, bool)> = nodes
        .iter()
        .map(|n| (n.node_id.as_str(), n.status, n.suspect))
        .collect();
    assert_eq!(
        words,
        [
            ("n1", NodeStatus::Online, true),
            ("n2", NodeStatus::Draining, true)
        ]
    );
    drop(
        admission
            .acquire(ask(&admission))
            .await
            .expect("routed by its last known pools"),
    );
    control.stop();
}

#[tokio::test]
async fn without_a_working_store_the_fleet_goes_on_and_new_intent_is_refused_whole() {
    let disk = Disk::default();
    let (control, _) = start(&disk);
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    disk.break_it(true);
    assert!(control.beat(&id("n1"), heartbeat()).is_ok());
    let mut again = registration("n1");
    again.version = Some("2".into());
    assert!(!control.register(again).await.expect("goes on").durable);
    let refused = control.drain(id("n1"), DrainRequest::default()).await;
    assert!(
        matches!(refused, Err(ControlError::Store(_))),
        "{refused:?}"
    );
    assert_eq!(
        control.node(&id("n1")).expect("known").drain,
        None,
        "nothing half-applied"
    );
    assert!(control.register(registration("n2")).await.is_err());
    assert!(control.node(&id("n2")).is_err());
    let shown = |name: &str| -> u64 {
        let text = crate::metrics::expose(&[&control.scrape("cloud")]);
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("{name} in\n{text}"))
    };
    assert_eq!(shown("orchd_store_durable "), 0);
    // And what is owed to the store is tried again meanwhile.
    assert!(shown("orchd_store_errors_total ") >= 3);
    disk.break_it(false);
    assert!(
        control
            .drain(id("n1"), DrainRequest::default())
            .await
            .is_ok()
    );
    assert_eq!(shown("orchd_store_durable "), 1);
    let errors = shown("orchd_store_errors_total ");
    assert!(control.undrain(id("n1")).await.is_ok());
    assert_eq!(shown("orchd_store_errors_total "), errors);
    control.stop();
}

#[tokio::test]
async fn an_operator_may_end_the_drain_of_a_node_that_has_left() {
    let (control, _) = start(&Disk::default());
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    control
        .drain(id("n1"), DrainRequest::default())
        .await
        .expect("drains");
    control
        .deregister(id("n1"), None, false)
        .await
        .expect("leaves");
    assert!(control.node(&id("n1")).is_err());
    assert!(
        control
            .undrain(id("n1"))
            .await
            .expect("is known still")
            .drain
            .is_none()
    );
    let refused = control.undrain(id("n1")).await;
    assert!(
        matches!(
            refused,
            Err(ControlError::Refused(Refusal::UnknownNode { .. }))
        ),
        "{refused:?}"
    );
    control.stop();
}

#[tokio::test(start_paused = true)]
async fn silence_is_found_within_a_second_of_the_timeout_whatever_the_sweep() {
    let (control, admission) = start(&Disk::default());
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    control.beat(&id("n1"), heartbeat()).expect("beats");
    control.nudge.notify_one();
    let beaten = tokio::time::Instant::now();
    while control.node(&id("n1")).expect("known").status == NodeStatus::Online {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = beaten.elapsed();
    assert!(
        after > Duration::from_secs(30) && after <= Duration::from_secs(31),
        "{after:?}"
    );
    assert!(admission.model("m").is_some(), "its models stay known");
}

fn instance(name: &str) -> RegisterRequest {
    RegisterRequest {
        instance_id: Some(name.to_owned()),
        ..registration("n1")
    }
}

fn beat_of(name: &str) -> HeartbeatRequest {
    HeartbeatRequest {
        instance_id: Some(name.to_owned()),
        ..heartbeat()
    }
}

#[tokio::test]
async fn a_registration_taken_while_the_store_was_broken_is_written_with_the_next_one() {
    let disk = Disk::default();
    let (control, _) = start(&disk);
    control.register(instance("one")).await.expect("registers");
    disk.break_it(true);
    assert!(
        !control
            .register(instance("two"))
            .await
            .expect("goes on")
            .durable
    );
    disk.break_it(false);
    assert!(
        control
            .register(instance("two"))
            .await
            .expect("again")
            .durable
    );
    control.stop();

    let (control, _) = start(&disk);
    control
        .beat(&id("n1"), beat_of("two"))
        .expect("is the one that is known");
    control.stop();
}

#[tokio::test]
async fn an_agent_newer_than_what_was_restored_is_told_to_register_and_not_that_it_is_superseded() {
    let disk = Disk::default();
    let (control, _) = start(&disk);
    control.register(instance("one")).await.expect("registers");
    disk.break_it(true);
    control.register(instance("two")).await.expect("goes on");
    control.stop();
    disk.break_it(false);

    let (control, _) = start(&disk);
    let refused = control.beat(&id("n1"), beat_of("two"));
    assert!(
        matches!(
            refused,
            Err(ControlError::Refused(Refusal::UnknownNode { .. }))
        ),
        "{refused:?}"
    );
    control.register(instance("two")).await.expect("registers");
    control.beat(&id("n1"), beat_of("two")).expect("beats");
    let refused = control.beat(&id("n1"), beat_of("one"));
    assert!(
        matches!(
            refused,
            Err(ControlError::Refused(Refusal::Superseded { .. }))
        ),
        "{refused:?}"
    );
    control.stop();
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_an_engine_that_loads_and_not_for_one_that_is_gone() {
    let (control, admission) = start(&Disk::default());
    tokio::spawn(Arc::clone(&admission).drive());
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    let in_state = |state: PoolState, ready: bool| {
        let mut beat = heartbeat();
        beat.pools[0].state = state;
        beat.pools[0].ready = ready;
        control.beat(&id("n1"), beat).expect("beats");
    };
    let wait = |limit_s: u64| {
        let admission = Arc::clone(&admission);
        async move {
            let waiting = admission.acquire(ask(&admission));
            tokio::time::timeout(Duration::from_secs(limit_s), waiting)
                .await
                .map(|outcome| outcome.map(drop))
        }
    };
    in_state(PoolState::Ready, true);
    in_state(PoolState::Unreachable, false);
    assert_eq!(
        wait(20).await,
        Ok(Err(admission::Refused::NoReadyPool)),
        "after five seconds"
    );
    in_state(PoolState::Loading, false);
    assert!(wait(20).await.is_err(), "it waits for longer than that");
    in_state(PoolState::Unreachable, false);
    assert_eq!(wait(20).await, Ok(Err(admission::Refused::NoReadyPool)));
    in_state(PoolState::Ready, true);
    assert_eq!(wait(20).await, Ok(Ok(())));
    control.stop();
}

#[tokio::test]
async fn a_node_that_registered_again_after_its_silence_is_not_offline_in_the_next_life() {
    let disk = Disk::default();
    let (control, _) = start(&disk);
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    control.beat(&id("n1"), heartbeat()).expect("beats");
    {
        let mut registry = control.registry();
        let mut later = control.clock.both();
        later.mono = later.mono.plus(30_001);
        assert_eq!(registry.expire(later).moved.len(), 1);
    }
    control.write_behind(&id("n1"), SOON_MS);
    control
        .register(registration("n1"))
        .await
        .expect("registers");
    control.stop();

    let (control, _) = start(&disk);
    let node = control.node(&id("n1")).expect("known");
    assert_eq!(
        (node.status, node.suspect),
        (NodeStatus::Registering, true),
        "it has registered, and not beaten since"
    );
    control.stop();
}
