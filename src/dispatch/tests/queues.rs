//! Who gives way at a full queue, and the bytes of those who wait.

use super::*;

#[test]
fn with_drop_lru_the_longest_waiting_request_of_that_model_gives_way_to_a_new_one() {
    let mut dispatch = Dispatch::new(Settings {
        queue_capacity: 2,
        policy: Policy::DropLru,
        ..SETTINGS
    });
    let (model, other) = (dispatch.add_model(), dispatch.add_model());
    let pool = dispatch.add_pool(at(0), ready(&[model], 1));
    dispatch.add_pool(at(0), ready(&[other], 1));
    let ask = |dispatch: &mut Dispatch, model| {
        let turn = dispatch.arrive(at(1));
        let offer = dispatch.offer(at(1), turn, want(model, 1, 10));
        (turn.ticket, offer)
    };
    // The other model's request came first of all, and stays.
    let (_, offer) = ask(&mut dispatch, other);
    assert!(matches!(offer, Offer::Granted(_)));
    let (_, Offer::Granted(running)) = ask(&mut dispatch, model) else {
        panic!("has room");
    };
    let elsewhere = ask(&mut dispatch, other);
    let first = ask(&mut dispatch, model);
    let second = ask(&mut dispatch, model);
    let third = ask(&mut dispatch, model);
    for (_, offer) in [elsewhere, first, second, third] {
        assert_eq!(offer, Offer::Queued);
    }
    let mut out = Vec::new();
    dispatch.pump(at(1), &mut out);
    let verdict = Verdict::Dropped {
        retry_after_ms: 1_000,
    };
    assert_eq!(out, vec![(first.0, verdict)]);
    assert_eq!((dispatch.waiting(model), dispatch.waiting(other)), (2, 1));
    assert_eq!(dispatch.waiting_bytes(), 30);

    out.clear();
    dispatch.release(at(2), running, false, Quarantine::No);
    dispatch.pump(at(2), &mut out);
    assert!(
        matches!(out[..], [(ticket, Verdict::Granted(grant))] if ticket == second.0 && grant.pool == pool),
        "{out:?}"
    );
}

#[test]
fn with_drop_lru_a_small_request_behind_a_dropped_heavy_one_is_granted_at_once() {
    let mut dispatch = Dispatch::new(Settings {
        queue_capacity: 1,
        policy: Policy::DropLru,
        ..SETTINGS
    });
    let model = dispatch.add_model();
    dispatch.add_pool(at(0), ready(&[model], 2));
    let mut tickets = Vec::new();
    for weight in [1, 2, 1] {
        let turn = dispatch.arrive(at(1));
        dispatch.offer(at(1), turn, want(model, weight, 0));
        tickets.push(turn.ticket);
    }
    let mut out = Vec::new();
    dispatch.pump(at(1), &mut out);
    assert!(
        matches!(out[..], [(dropped, Verdict::Dropped { .. }), (granted, Verdict::Granted(_))]
            if dropped == tickets[1] && granted == tickets[2]),
        "{out:?}"
    );
}

#[test]
fn without_places_drop_lru_has_nobody_to_drop_and_refuses() {
    let mut dispatch = Dispatch::new(Settings {
        queue_capacity: 0,
        policy: Policy::DropLru,
        ..SETTINGS
    });
    let model = dispatch.add_model();
    let turn = dispatch.arrive(at(1));
    assert!(matches!(
        dispatch.offer(at(1), turn, want(model, 1, 0)),
        Offer::Full { .. }
    ));
}

#[test]
fn bodies_of_waiting_requests_take_so_many_bytes_over_all_models_and_running_ones_none() {
    for policy in [Policy::Reject, Policy::DropLru] {
        let mut dispatch = Dispatch::new(Settings {
            queue_capacity: 2,
            policy,
            ..SETTINGS
        });
        let (one, two) = (dispatch.add_model(), dispatch.add_model());
        let spec = ready(&[one, two], 1);
        dispatch.add_pool(at(0), spec);
        let ask = |dispatch: &mut Dispatch, model, bytes, avoid| {
            let turn = dispatch.arrive(at(1));
            let offer = dispatch.offer(
                at(1),
                turn,
                Want {
                    avoid,
                    ..want(model, 1, bytes)
                },
            );
            (turn.ticket, offer)
        };
        let (_, Offer::Granted(running)) = ask(&mut dispatch, one, 1_000, None) else {
            panic!("a free slot is given whatever the size");
        };
        let (early, offer) = ask(&mut dispatch, one, 60, None);
        assert_eq!(offer, Offer::Queued);
        assert!(matches!(
            ask(&mut dispatch, two, 41, None).1,
            Offer::NoRoom { .. }
        ));
        assert_eq!(ask(&mut dispatch, two, 40, None).1, Offer::Queued);
        assert!(matches!(
            ask(&mut dispatch, two, 1, None).1,
            Offer::NoRoom { .. }
        ));
        // One that was admitted before keeps its place.
        let (again, offer) = ask(&mut dispatch, two, 50, Some(running.pool));
        assert_eq!((offer, dispatch.waiting_bytes()), (Offer::Queued, 150));
        assert!(dispatch.cancel(two, again));

        // Nobody is dropped for one that would not fit all the same.
        let offer = ask(&mut dispatch, two, 1, None).1;
        assert!(matches!(offer, Offer::NoRoom { .. }), "{offer:?}");
        let mut out = Vec::new();
        dispatch.pump(at(1), &mut out);
        assert_eq!(out, vec![]);

        // Whoever is granted or times out makes room.
        dispatch.release(at(2), running, false, Quarantine::No);
        dispatch.pump(at(2), &mut out);
        assert!(matches!(out[..], [(ticket, Verdict::Granted(_))] if ticket == early));
        assert_eq!(dispatch.waiting_bytes(), 40);
        dispatch.pump(at(400_000), &mut out);
        assert_eq!(dispatch.waiting_bytes(), 0);
        ask(&mut dispatch, two, 7, None);
        assert_eq!(dispatch.waiting_bytes(), 7);
        dispatch.close();
        assert_eq!(dispatch.waiting_bytes(), 0);
    }
}

#[test]
fn waiting_for_a_model_that_nothing_will_serve_ends_after_the_no_pool_wait() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), loading(&[b.model]));
    let (first, offer) = b.ask(at(0));
    assert_eq!(offer, Offer::Queued);
    assert!(
        b.expire(at(60_000)).is_empty(),
        "a loading pool is worth waiting for"
    );
    b.dispatch.update_pool(at(60_000), pool, gone(&[b.model]));
    let (second, _) = b.ask(at(62_000));
    assert!(b.expire(at(64_999)).is_empty());
    assert_eq!(b.expire(at(65_000)), vec![(first, Verdict::NoReadyPool)]);
    assert_eq!(b.expire(at(67_000)), vec![(second, Verdict::NoReadyPool)]);
}

#[test]
fn a_wait_ends_after_the_queue_timeout() {
    let mut b = Bench::new();
    b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let _held = b.granted(at(0));
    let (ticket, _) = b.ask(at(1_000));
    assert!(b.expire(at(300_999)).is_empty());
    assert_eq!(b.expire(at(301_000)), vec![(ticket, Verdict::QueueTimeout)]);
    assert_eq!(b.dispatch.waiting(b.model), 0);
}

#[test]
fn a_heavy_request_waits_for_enough_slots_and_is_not_overtaken() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let held = b.granted(at(0));
    let heavy = b.dispatch.arrive(at(0));
    assert_eq!(
        b.dispatch.offer(at(1), heavy, want(b.model, 3, 0)),
        Offer::Queued,
        "3 is taken as the 2 there are"
    );
    let (_, offer) = b.ask(at(2));
    assert_eq!(offer, Offer::Queued);
    b.dispatch.release(at(3), held, false, Quarantine::No);
    assert_eq!(
        b.pump(at(3)),
        vec![(
            heavy.ticket,
            Verdict::Granted(Grant {
                model: b.model,
                pool,
                weight: 2,
                probe: false,
                pick: 2,
                since: at(3),
            })
        )]
    );
}

#[test]
fn whoever_leaves_the_queue_lets_the_next_one_in() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let _held = b.granted(at(0));
    let heavy = b.dispatch.arrive(at(0));
    assert_eq!(
        b.dispatch.offer(at(1), heavy, want(b.model, 2, 0)),
        Offer::Queued
    );
    let (light, _) = b.ask(at(2));
    assert!(b.dispatch.cancel(b.model, heavy.ticket));
    assert!(
        !b.dispatch.cancel(b.model, heavy.ticket),
        "it has no place any more"
    );
    assert_eq!(
        b.pump(at(3)),
        vec![(
            light,
            Verdict::Granted(Grant {
                model: b.model,
                pool,
                weight: 1,
                probe: false,
                pick: 2,
                since: at(3),
            })
        )]
    );
}

#[test]
fn a_second_try_keeps_its_deadline_and_is_not_turned_away_by_a_full_queue() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let turn = b.dispatch.arrive(at(0));
    let Offer::Granted(grant) = b.dispatch.offer(at(0), turn, want(b.model, 1, 0)) else {
        panic!("has room")
    };
    for _ in 0..4 {
        assert_eq!(b.ask(at(1)).1, Offer::Queued);
    }
    assert!(matches!(b.ask(at(1)).1, Offer::Full { .. }));
    b.dispatch.update_pool(at(1), pool, loading(&[b.model]));
    b.dispatch.release(at(1), grant, false, Quarantine::No);
    assert_eq!(
        b.dispatch.offer(
            at(200_000),
            turn,
            Want {
                avoid: Some(pool),
                ..want(b.model, 1, 0)
            }
        ),
        Offer::Queued
    );
    assert_eq!(
        b.expire(at(300_000))[0],
        (turn.ticket, Verdict::QueueTimeout)
    );
}

#[test]
fn a_closed_queue_grants_nobody_anything() {
    let mut b = Bench::new();
    b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let grant = b.granted(at(0));
    assert_eq!(b.ask(at(1)).1, Offer::Queued);
    b.dispatch.close();
    b.dispatch.release(at(2), grant, false, Quarantine::No);
    assert!(b.pump(at(2)).is_empty());
}

#[test]
fn a_second_try_goes_to_another_pool_while_there_is_one_and_keeps_its_place_in_line() {
    let mut b = Bench::new();
    let one = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let two = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let turn = b.dispatch.arrive(at(0));
    let ticket = turn.ticket;
    let offer = b.dispatch.offer(at(0), turn, want(b.model, 1, 0));
    let Offer::Granted(grant) = offer else {
        panic!("{offer:?}")
    };
    assert_eq!(grant.pool, one);
    b.dispatch.release(at(1), grant, false, Quarantine::No);
    let again = b.dispatch.offer(
        at(1),
        turn,
        Want {
            avoid: Some(one),
            ..want(b.model, 1, 0)
        },
    );
    let moved = Grant {
        pick: 2,
        pool: two,
        since: at(1),
        ..grant
    };
    assert_eq!(again, Offer::Granted(moved));
    let also = b.granted(at(1));
    let (later, _) = b.ask(at(2));
    assert_eq!(
        b.dispatch.offer(
            at(3),
            turn,
            Want {
                avoid: Some(one),
                ..want(b.model, 1, 0)
            }
        ),
        Offer::Queued
    );
    b.dispatch.release(at(4), also, false, Quarantine::No);
    let served = b.pump(at(4));
    assert_eq!(served.len(), 1);
    assert_eq!(
        (served[0].0, later > ticket),
        (ticket, true),
        "the older ticket goes first although it queued later"
    );
}
