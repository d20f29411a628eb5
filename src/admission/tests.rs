mod models;

use std::time::Duration;

use super::*;
use crate::types::PoolState;

const SETTINGS: Settings = Settings {
    queue_capacity: 2,
    policy: Policy::Reject,
    queue_bytes: 100,
    queue_timeout_ms: 10_000,
    no_pool_wait_ms: 5_000,
    sample_ttl_ms: 20_000,
};

fn route(pool: &str, slots: u32) -> PoolRoute {
    PoolRoute {
        pool_id: PoolId::new(pool).expect("good"),
        url: format!("http://127.0.0.1:1/{pool}").parse().expect("good"),
        trusted: false,
        models: vec!["m".into()],
        accepting: true,
        prospective: true,
        draining: false,
        suspect: false,
        slots_total: slots,
        n_ctx: Some(2048),
        engine: Some("llamacpp".into()),
        engine_version: None,
        state: PoolState::Ready,
    }
}

fn node() -> NodeId {
    NodeId::new("n1").expect("good")
}

fn start(slots: u32) -> (Arc<Admission>, Ask) {
    start_with(SETTINGS, slots)
}

fn start_with(settings: Settings, slots: u32) -> (Arc<Admission>, Ask) {
    let admission = Admission::new(Clock::new(), settings);
    tokio::spawn(Arc::clone(&admission).drive());
    admission.set_node(&node(), &[route("p", slots)]);
    let model = admission.model("m").expect("known");
    (
        admission,
        Ask {
            model,
            weight: 1,
            bytes: 1,
            min_ctx: 0,
            turn: None,
            avoid: None,
        },
    )
}

fn wait_for(admission: &Arc<Admission>, ask: Ask) -> tokio::task::JoinHandle<Outcome> {
    let admission = Arc::clone(admission);
    tokio::spawn(async move { admission.acquire(ask).await })
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_goes_to_whoever_waits() {
    let (admission, ask) = start(1);
    let first = admission.acquire(ask).await.expect("a slot is free");
    let second = wait_for(&admission, ask);
    tokio::task::yield_now().await;
    assert_eq!(admission.waiting(ask.model), 1);
    drop(first);
    let second = second.await.expect("ran").expect("granted");
    assert_eq!(admission.running(&node()), 1);
    drop(second);
    assert_eq!(admission.running(&node()), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_leaves_the_line_and_loses_no_slot() {
    let (admission, ask) = start(1);
    let first = admission.acquire(ask).await.expect("a slot is free");
    let second = wait_for(&admission, ask);
    let third = wait_for(&admission, ask);
    tokio::task::yield_now().await;
    assert_eq!(
        admission.acquire(ask).await.err(),
        Some(Refused::QueueFull {
            retry_after_ms: 1_000
        })
    );
    second.abort();
    assert!(second.await.is_err());
    assert_eq!(admission.waiting(ask.model), 1);
    drop(first);
    drop(third.await.expect("ran").expect("granted"));
    assert_eq!(admission.counts(&node())[0].1.slots_free, 1);
}

#[tokio::test(start_paused = true)]
async fn with_drop_lru_the_one_that_waited_longest_is_told_at_once_and_the_rest_are_served_in_order()
 {
    let settings = Settings {
        policy: Policy::DropLru,
        ..SETTINGS
    };
    let (admission, ask) = start_with(settings, 1);
    let held = admission.acquire(ask).await.expect("a slot is free");
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(wait_for(&admission, ask));
        tokio::task::yield_now().await;
    }
    let dropped = waiting.remove(0).await.expect("ran").err();
    let wanted = Refused::Dropped {
        retry_after_ms: 1_000,
    };
    assert_eq!(dropped, Some(wanted));
    assert_eq!(admission.waiting(ask.model), 2);
    drop(held);
    for waiter in waiting {
        drop(waiter.await.expect("ran").expect("granted"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_fit_is_refused_only_when_it_would_have_to_wait() {
    let (admission, ask) = start(1);
    let large = Ask { bytes: 101, ..ask };
    let held = admission.acquire(large).await.expect("a slot is free");
    assert!(matches!(
        admission.acquire(large).await,
        Err(Refused::NoRoom { .. })
    ));
    let fits = Ask { bytes: 100, ..ask };
    let waiting = wait_for(&admission, fits);
    tokio::task::yield_now().await;
    assert!(matches!(
        admission.acquire(ask).await,
        Err(Refused::NoRoom { .. })
    ));
    // Whoever leaves takes its bytes along.
    waiting.abort();
    assert!(waiting.await.is_err());
    let waiting = wait_for(&admission, fits);
    tokio::task::yield_now().await;
    drop(held);
    drop(waiting.await.expect("ran").expect("granted"));
}

#[tokio::test(start_paused = true)]
async fn an_early_close_holds_the_slot_for_as_long_as_the_engine_may_need() {
    let (admission, ask) = start(1);
    let mut permit = admission.acquire(ask).await.expect("a slot is free");
    permit.sent();
    permit.answering();
    let closed = tokio::time::Instant::now();
    drop(permit);
    let mut permit = admission
        .acquire(ask)
        .await
        .expect("granted after the quarantine");
    assert_eq!(closed.elapsed(), Duration::from_secs(1));
    permit.sent();
    permit.answering();
    permit.done();
    let closed = tokio::time::Instant::now();
    drop(permit);
    drop(admission.acquire(ask).await.expect("granted"));
    assert_eq!(
        closed.elapsed(),
        Duration::ZERO,
        "an answer that ended is finished with"
    );
}

#[tokio::test(start_paused = true)]
async fn an_early_close_asks_for_readings_of_its_own_node_and_of_no_other() {
    let (admission, ask) = start(1);
    let own = admission.wants_reading(&node());
    let other = admission.wants_reading(&NodeId::new("n2").expect("good"));
    let mut permit = admission.acquire(ask).await.expect("a slot is free");
    permit.sent();
    drop(permit);
    let changed = |reader: &watch::Receiver<()>| reader.has_changed().expect("its sender is there");
    assert!(changed(&own) && !changed(&other));
}

#[tokio::test(start_paused = true)]
async fn waits_end_in_time_and_at_the_close() {
    let (admission, ask) = start(1);
    let _held = admission.acquire(ask).await.expect("a slot is free");
    let began = tokio::time::Instant::now();
    assert_eq!(
        admission.acquire(ask).await.err(),
        Some(Refused::QueueTimeout)
    );
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    let waiting = wait_for(&admission, ask);
    tokio::task::yield_now().await;
    admission.close();
    assert_eq!(
        waiting.await.expect("ran").err(),
        Some(Refused::ShuttingDown)
    );
    assert_eq!(
        admission.acquire(ask).await.err(),
        Some(Refused::ShuttingDown)
    );
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_goes_is_counted_until_its_requests_have_ended_and_its_model_is_forgotten() {
    let (admission, ask) = start(2);
    let permit = admission.acquire(ask).await.expect("a slot is free");
    admission.set_node(&node(), &[]);
    assert_eq!(admission.model("m"), None);
    assert_eq!(admission.running(&node()), 1);
    assert!(admission.counts(&node()).is_empty());
    drop(permit);
    assert_eq!(admission.running(&node()), 0);
    admission.set_node(&node(), &[route("p", 3), route("q", 1)]);
    let views = admission.models();
    assert_eq!(
        (views.len(), views[0].slots, views[0].n_ctx),
        (1, 4, Some((2048, 2048)))
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_says_it_is_busy_is_asked_again_after_its_time_by_the_one_it_refused() {
    let (admission, ask) = start(1);
    let mut refused = admission.acquire(ask).await.expect("a slot is free");
    refused.sent();
    refused.busy(Some(3_000));
    let again = Ask {
        turn: Some(refused.turn()),
        avoid: Some(refused.pool()),
        ..ask
    };
    drop(refused);
    let began = tokio::time::Instant::now();
    let (behind, first) = (
        wait_for(&admission, ask),
        admission.acquire(again).await.expect("the pool is back"),
    );
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    assert_eq!(admission.waiting(ask.model), 1);
    let mut first = first;
    first.served();
    first.done();
    drop(first);
    drop(behind.await.expect("ran").expect("granted"));
}

#[tokio::test(start_paused = true)]
async fn a_hung_pool_is_granted_nothing_and_whoever_took_its_place_is_not_hung() {
    let (admission, ask) = start(1);
    let permit = admission.acquire(ask).await.expect("a slot is free");
    let old = Arc::clone(permit.upstream());
    drop(permit);
    admission.set_hung(&old, true);
    let waiting = wait_for(&admission, ask);
    tokio::task::yield_now().await;
    assert_eq!(admission.waiting(ask.model), 1);
    admission.set_hung(&old, false);
    drop(waiting.await.expect("ran").expect("granted"));

    admission.set_node(&node(), &[]);
    admission.set_node(&node(), &[route("q", 1)]);
    admission.set_hung(&old, true);
    let permit = admission.acquire(ask).await.expect("a slot is free");
    assert_eq!(permit.pool(), old.ix, "the same place in the table");
}

#[tokio::test(start_paused = true)]
async fn metrics_read_every_pool_and_every_line() {
    let (admission, ask) = start(1);
    let routes: Vec<PoolRoute> = (0..2 * POOLS_AT_A_TIME)
        .map(|nth| route(&format!("p{nth}"), 1))
        .collect();
    admission.set_node(&NodeId::new("n2").expect("good"), &routes);
    admission.set_node(&node(), &[]);
    let mut permit = admission.acquire(ask).await.expect("a slot is free");
    permit.sent();
    permit.failed(Failure::Refused);
    let mut seen = std::collections::HashSet::new();
    let (mut running, mut ejections) = (0, 0);
    admission.each_pool(|upstream, counts| {
        assert_eq!(upstream.node_id.as_str(), "n2");
        assert!(seen.insert(upstream.pool_id.clone()), "once each");
        running += counts.running;
        ejections += counts.ejections;
    });
    assert_eq!(
        (seen.len(), running, ejections),
        (2 * POOLS_AT_A_TIME, 1, 1)
    );
    admission.set_node(&NodeId::new("n2").expect("good"), &routes[..0]);
    admission.set_node(&node(), &[route("p", 1)]);
    let _held = admission.acquire(ask).await.expect("a slot is free");
    let _waiting = wait_for(&admission, ask);
    tokio::task::yield_now().await;
    assert_eq!(admission.waiting_by_model(), vec![("m".into(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_was_too_long_goes_to_a_pool_with_more_context_and_retries_are_counted() {
    let (admission, ask) = start(1);
    assert!(admission.has_context(ask.model, 2_048));
    assert!(!admission.has_context(ask.model, 2_049));
    let large = PoolRoute {
        n_ctx: Some(8_192),
        ..route("large", 1)
    };
    admission.set_node(&node(), &[route("p", 1), large]);
    assert!(admission.has_context(ask.model, 2_049));
    let long = Ask {
        min_ctx: 2_049,
        ..ask
    };
    let permit = admission.acquire(long).await.expect("a slot is free");
    assert_eq!(permit.upstream().pool_id.as_str(), "large");
    let retries = (0..100).filter(|_| admission.may_retry()).count();
    assert_eq!(retries, 50);
}

#[test]
fn whoever_waits_for_the_lock_is_told_the_time_at_which_it_has_it() {
    let admission = Admission::new(Clock::new(), SETTINGS);
    let held = admission.state();
    let waits = std::thread::spawn({
        let admission = Arc::clone(&admission);
        move || admission.locked(|_, now| now)
    });
    std::thread::sleep(Duration::from_millis(100));
    let before = admission.clock.now();
    drop(held);
    let told = waits.join().expect("it ends");
    assert!(told >= before, "told {told:?}, after {before:?}");
}
