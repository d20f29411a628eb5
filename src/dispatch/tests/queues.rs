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
        let offer = dispatch.offer(at(1), turn, model, 1, 10, None);
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
        retry_after_ms: 60_000,
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
        dispatch.offer(at(1), turn, model, weight, 0, None);
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
        dispatch.offer(at(1), turn, model, 1, 0, None),
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
            let offer = dispatch.offer(at(1), turn, model, 1, bytes, avoid);
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
        dispatch.expire(at(400_000), &mut out);
        assert_eq!(dispatch.waiting_bytes(), 0);
        ask(&mut dispatch, two, 7, None);
        assert_eq!(dispatch.waiting_bytes(), 7);
        dispatch.close();
        assert_eq!(dispatch.waiting_bytes(), 0);
    }
}
