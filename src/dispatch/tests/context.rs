//! Requests that need more context than some pools have.

use super::*;

fn with_ctx(models: &[ModelIx], slots: u32, n_ctx: Option<u64>) -> PoolSpec {
    PoolSpec {
        n_ctx,
        ..ready(models, slots)
    }
}

fn ask(b: &mut Bench, now: Mono, min_ctx: u64, weight: u32) -> (Ticket, Offer) {
    let turn = b.dispatch.arrive(now);
    let asks = Want {
        min_ctx,
        ..want(b.model, weight, 0)
    };
    (turn.ticket, b.dispatch.offer(now, turn, asks))
}

fn pool_of(offer: Offer) -> PoolIx {
    match offer {
        Offer::Granted(grant) => grant.pool,
        other => panic!("expected a grant, got {other:?}"),
    }
}

#[test]
fn a_request_goes_only_where_the_context_is_known_to_be_large_enough() {
    let mut b = Bench::new();
    b.dispatch
        .add_pool(at(0), with_ctx(&[b.model], 8, Some(4_096)));
    b.dispatch.add_pool(at(0), with_ctx(&[b.model], 8, None));
    let large = b
        .dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(32_768)));
    assert!(b.dispatch.has_context(b.model, 32_768));
    assert!(!b.dispatch.has_context(b.model, 32_769));
    let (_, offer) = ask(&mut b, at(1), 5_000, 1);
    assert_eq!(pool_of(offer), large);
    assert_eq!(ask(&mut b, at(2), 5_000, 1).1, Offer::Queued);
    b.dispatch.update_pool(at(3), large, gone(&[b.model]));
    assert!(!b.dispatch.has_context(b.model, 5_000));
}

#[test]
fn whoever_waits_for_more_context_does_not_hold_up_those_that_a_smaller_pool_can_serve() {
    let mut b = Bench::new();
    let small = b
        .dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(4_096)));
    let large = b
        .dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(32_768)));
    let on_large = match ask(&mut b, at(0), 5_000, 1).1 {
        Offer::Granted(grant) => grant,
        other => panic!("{other:?}"),
    };
    let (long, offer) = ask(&mut b, at(1), 5_000, 1);
    assert_eq!(offer, Offer::Queued);
    let Offer::Granted(on_small) = ask(&mut b, at(2), 0, 1).1 else {
        panic!("the small pool has room")
    };
    assert_eq!(on_small.pool, small);
    let (short, offer) = ask(&mut b, at(3), 0, 1);
    assert_eq!(offer, Offer::Queued);
    b.dispatch.release(at(4), on_small, false, Quarantine::No);
    let served = b.pump(at(4));
    assert!(
        matches!(served[..], [(ticket, Verdict::Granted(grant))] if ticket == short && grant.pool == small)
    );
    // The large pool serves the oldest, whatever it needs.
    let (_, offer) = ask(&mut b, at(5), 0, 1);
    assert_eq!(offer, Offer::Queued);
    b.dispatch.release(at(6), on_large, false, Quarantine::No);
    let served = b.pump(at(6));
    assert!(
        matches!(served[..], [(ticket, Verdict::Granted(grant))] if ticket == long && grant.pool == large)
    );
}

#[test]
fn a_heavy_request_for_a_large_pool_keeps_its_slots_but_not_those_of_small_ones() {
    let mut b = Bench::new();
    let large = b
        .dispatch
        .add_pool(at(0), with_ctx(&[b.model], 2, Some(32_768)));
    let (_, Offer::Granted(held)) = ask(&mut b, at(0), 5_000, 1) else {
        panic!("has room")
    };
    let (heavy, offer) = ask(&mut b, at(1), 5_000, 2);
    assert_eq!(offer, Offer::Queued);
    assert_eq!(ask(&mut b, at(2), 0, 1).1, Offer::Queued);
    assert!(b.pump(at(2)).is_empty(), "the free slot is kept for it");
    let small = b
        .dispatch
        .add_pool(at(3), with_ctx(&[b.model], 1, Some(4_096)));
    let served = b.pump(at(3));
    assert!(matches!(served[..], [(_, Verdict::Granted(grant))] if grant.pool == small));
    b.dispatch.release(at(4), held, false, Quarantine::No);
    let served = b.pump(at(4));
    assert!(
        matches!(served[..], [(ticket, Verdict::Granted(grant))] if ticket == heavy && grant.pool == large)
    );
}

#[test]
fn when_no_pool_with_enough_context_is_left_whoever_waits_for_one_is_told_after_the_no_pool_wait() {
    let mut b = Bench::new();
    b.dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(4_096)));
    let large = b
        .dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(32_768)));
    let Offer::Granted(_on_large) = ask(&mut b, at(0), 5_000, 1).1 else {
        panic!("has room")
    };
    let Offer::Granted(_on_small) = ask(&mut b, at(0), 0, 1).1 else {
        panic!("has room")
    };
    let (short, offer) = ask(&mut b, at(1), 0, 1);
    assert_eq!(offer, Offer::Queued);
    let (long, offer) = ask(&mut b, at(2), 5_000, 1);
    assert_eq!(offer, Offer::Queued);
    b.dispatch.update_pool(at(10_000), large, gone(&[b.model]));
    let (later, offer) = ask(&mut b, at(11_000), 5_000, 1);
    assert_eq!(offer, Offer::Queued);
    assert_eq!(b.expire(at(14_999)), vec![]);
    assert_eq!(b.expire(at(15_000)), vec![(long, Verdict::NoReadyPool)]);
    assert_eq!(b.expire(at(16_000)), vec![(later, Verdict::NoReadyPool)]);
    // Whoever the small pool will do for waits on.
    assert_eq!(b.expire(at(300_000)), vec![]);
    assert_eq!(b.expire(at(300_001)), vec![(short, Verdict::QueueTimeout)]);
}

#[test]
fn a_pool_with_enough_context_that_comes_back_in_time_is_waited_for() {
    let mut b = Bench::new();
    b.dispatch
        .add_pool(at(0), with_ctx(&[b.model], 1, Some(4_096)));
    let spec = with_ctx(&[b.model], 1, Some(32_768));
    let large = b.dispatch.add_pool(at(0), spec.clone());
    let Offer::Granted(on_large) = ask(&mut b, at(0), 5_000, 1).1 else {
        panic!("has room")
    };
    let (long, _) = ask(&mut b, at(1), 5_000, 1);
    b.dispatch.update_pool(at(10), large, gone(&[b.model]));
    b.dispatch.update_pool(at(5_000), large, spec);
    assert_eq!(b.expire(at(60_000)), vec![]);
    b.dispatch
        .release(at(60_001), on_large, false, Quarantine::No);
    let served = b.pump(at(60_001));
    assert!(matches!(served[..], [(ticket, Verdict::Granted(_))] if ticket == long));
}
