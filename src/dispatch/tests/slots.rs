//! Whose slots are in use, as readings and permits tell.

use super::*;

#[test]
fn slots_are_granted_until_none_is_left_and_then_requests_wait_in_order() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let first = b.granted(at(1));
    let _second = b.granted(at(1));
    let (third, offer) = b.ask(at(2));
    assert_eq!(offer, Offer::Queued);
    let (_fourth, offer) = b.ask(at(3));
    assert_eq!(offer, Offer::Queued);
    assert!(b.pump(at(4)).is_empty());
    b.dispatch.release(at(5), first, false, Quarantine::No);
    let grant = Grant {
        model: b.model,
        pool,
        weight: 1,
        probe: false,
        pick: 3,
        since: at(5),
    };
    assert_eq!(b.pump(at(5)), vec![(third, Verdict::Granted(grant))]);
}

#[test]
fn placement_prefers_good_pools_then_the_lower_busy_share_then_the_one_picked_longest_ago() {
    let mut b = Bench::new();
    let suspect = b.dispatch.add_pool(
        at(0),
        PoolSpec {
            suspect: true,
            ..ready(&[b.model], 8)
        },
    );
    let small = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let large = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let picks: Vec<PoolIx> = (0..4).map(|_| b.granted(at(1)).pool).collect();
    assert_eq!(picks, vec![small, large, large, suspect]);
}

#[test]
fn slots_in_use_by_others_are_left_to_them_for_as_long_as_the_reading_counts() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    b.dispatch.observe(at(0), pool, sample(2, 2, Some(0)));
    let (ticket, offer) = b.ask(at(1));
    assert_eq!(offer, Offer::Queued);
    assert_eq!(b.dispatch.next_deadline(), Some(at(20_000)));
    let grant = Grant {
        model: b.model,
        pool,
        weight: 1,
        probe: false,
        pick: 1,
        since: at(20_000),
    };
    assert_eq!(
        b.expire(at(20_000)),
        vec![(ticket, Verdict::Granted(grant))]
    );
}

#[test]
fn our_own_requests_seen_in_a_reading_are_not_taken_for_somebody_elses() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    let grants: Vec<Grant> = (0..3).map(|_| b.granted(at(1))).collect();
    b.dispatch.release(at(2), grants[0], false, Quarantine::No);
    // The reading began before the release: it shows three, and three of ours ran meanwhile.
    b.dispatch.observe(at(3), pool, sample(4, 3, None));
    assert_eq!(b.dispatch.counts(at(3), pool).external, 0);
    // The next one shows three again, and only two are ours.
    b.dispatch.observe(at(4), pool, sample(4, 3, None));
    assert_eq!(b.dispatch.counts(at(4), pool).external, 1);
    assert_eq!(b.dispatch.counts(at(4), pool).slots_free, 1);
}

#[test]
fn a_permit_closed_early_is_busy_until_its_time_or_until_the_engine_is_seen_idle() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let grant = b.granted(at(1));
    b.dispatch
        .release(at(10), grant, false, Quarantine::For(1000));
    let (ticket, offer) = b.ask(at(20));
    assert_eq!(offer, Offer::Queued);
    assert!(b.expire(at(1_009)).is_empty());
    let grant = Grant {
        pick: 2,
        since: at(1_010),
        ..grant
    };
    assert_eq!(b.expire(at(1_010)), vec![(ticket, Verdict::Granted(grant))]);

    b.dispatch
        .release(at(2_000), grant, false, Quarantine::For(15000));
    let (ticket, _) = b.ask(at(2_001));
    // Begun before the close: proves nothing.
    b.dispatch.observe(
        at(2_010),
        pool,
        Sample {
            begun: Some(at(1_999)),
            ..sample(1, 0, None)
        },
    );
    assert!(b.pump(at(2_010)).is_empty());
    b.dispatch.observe(
        at(2_020),
        pool,
        Sample {
            begun: Some(at(2_005)),
            ..sample(1, 0, None)
        },
    );
    let grant = Grant {
        pick: 3,
        since: at(2_020),
        ..grant
    };
    assert_eq!(b.pump(at(2_020)), vec![(ticket, Verdict::Granted(grant))]);
}

#[test]
fn a_reading_frees_what_was_closed_before_it_when_running_requests_explain_what_it_shows() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 3));
    let reading = |begun, busy| Sample {
        begun: Some(at(begun)),
        ..sample(3, busy, None)
    };
    let (left, runs) = (b.granted(at(1)), b.granted(at(1)));
    let _prefill = b.granted(at(1));
    b.dispatch.answering(left);
    b.dispatch.answering(runs);
    b.dispatch.observe(at(10), pool, reading(5, 3));
    b.dispatch
        .release(at(20), left, true, Quarantine::For(15_000));
    assert_eq!(b.ask(at(21)).1, Offer::Queued);
    // Three are busy: one is certainly the one that is answered; the others may be the prefill and the one that left.
    b.dispatch.observe(at(80), pool, reading(70, 3));
    assert!(b.pump(at(80)).is_empty());
    // Two are busy, and still one of them may be the one that left.
    b.dispatch.observe(at(180), pool, reading(170, 2));
    assert!(b.pump(at(180)).is_empty());
    // One is busy, and it is certainly another.
    b.dispatch.observe(at(380), pool, reading(370, 1));
    assert_eq!(b.pump(at(380)).len(), 1);
}

#[test]
fn numbers_as_large_as_they_can_be_are_no_trouble() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], u32::MAX));
    let all = b.dispatch.arrive(at(0));
    assert!(matches!(
        b.dispatch.offer(at(0), all, want(b.model, u32::MAX, 0)),
        Offer::Granted(_)
    ));
    b.dispatch
        .observe(at(0), pool, sample(u32::MAX, u32::MAX, Some(0)));
    assert_eq!(b.dispatch.counts(at(0), pool).slots_free, 0);
    assert_eq!(b.ask(at(0)).1, Offer::Queued);
}

#[test]
fn a_removed_pool_keeps_its_place_until_its_last_request_has_ended() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let grant = b.granted(at(0));
    b.dispatch.remove_pool(at(1), pool);
    assert_ne!(b.dispatch.add_pool(at(2), ready(&[b.model], 1)), pool);
    b.dispatch.release(at(3), grant, false, Quarantine::No);
    assert_eq!(b.dispatch.add_pool(at(4), ready(&[b.model], 1)), pool);
}

#[test]
fn what_a_reading_still_shows_when_the_patience_with_an_early_close_ends_is_not_free() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let reading = |begun, busy| Sample {
        begun: Some(at(begun)),
        ..sample(1, busy, None)
    };
    let grant = b.granted(at(1));
    b.dispatch
        .release(at(10), grant, false, Quarantine::For(1_000));
    assert_eq!(b.ask(at(11)).1, Offer::Queued);
    b.dispatch.observe(at(500), pool, reading(490, 1));
    assert_eq!(b.expire(at(1_010)), vec![]);
    let counts = b.dispatch.counts(at(1_010), pool);
    assert_eq!((counts.quarantined, counts.external), (0, 1));
    b.dispatch.observe(at(1_500), pool, reading(1_490, 1));
    assert_eq!(b.pump(at(1_500)), vec![]);
    b.dispatch.observe(at(2_500), pool, reading(2_490, 0));
    assert_eq!(b.pump(at(2_500)).len(), 1);
}

#[test]
fn a_reading_that_stops_to_count_keeps_no_slot() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let grant = b.granted(at(1));
    b.dispatch
        .release(at(10), grant, false, Quarantine::For(1_000));
    let (ticket, _) = b.ask(at(11));
    let reading = Sample {
        begun: Some(at(20)),
        ..sample(1, 1, None)
    };
    b.dispatch.observe(at(30), pool, reading);
    assert_eq!(b.expire(at(20_029)), vec![]);
    assert_eq!(b.dispatch.next_deadline(), Some(at(20_030)));
    assert!(
        matches!(b.expire(at(20_030))[..], [(served, Verdict::Granted(_))] if served == ticket)
    );
}

#[test]
fn a_reading_that_counts_no_more_is_forgotten() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    b.dispatch.observe(at(0), pool, sample(4, 3, Some(0)));
    let stale = SETTINGS.sample_ttl_ms;
    assert_eq!(b.dispatch.counts(at(stale - 1), pool).external, 3);
    assert_eq!(b.pump(at(stale)), vec![]);
    assert_eq!(b.dispatch.counts(at(stale - 1), pool).external, 0);
}
