//! Requests that take several slots, on pools that serve several models.

use super::*;

struct Shared {
    dispatch: Dispatch,
    one: ModelIx,
    two: ModelIx,
}

impl Shared {
    fn new() -> Self {
        let mut dispatch = Dispatch::new(SETTINGS);
        let (one, two) = (dispatch.add_model(), dispatch.add_model());
        Self { dispatch, one, two }
    }

    fn ask(&mut self, now: Mono, model: ModelIx, weight: u32) -> (Ticket, Option<Grant>) {
        let turn = self.dispatch.arrive(now);
        match self.dispatch.offer(now, turn, want(model, weight, 0)) {
            Offer::Granted(grant) => (turn.ticket, Some(grant)),
            Offer::Queued => (turn.ticket, None),
            other => panic!("{other:?}"),
        }
    }

    fn pump(&mut self, now: Mono) -> Vec<(Ticket, Grant)> {
        let mut out = Vec::new();
        self.dispatch.pump(now, &mut out);
        (out.into_iter())
            .filter_map(|(ticket, verdict)| match verdict {
                Verdict::Granted(grant) => Some((ticket, grant)),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn light_requests_of_another_model_do_not_starve_a_heavy_one() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    s.dispatch.add_pool(at(0), ready(&[one, two], 2));
    let first = s.ask(at(0), two, 1).1.expect("has room");
    let (heavy, grant) = s.ask(at(1), one, 2);
    assert_eq!(grant, None);
    // A slot is free, and it is kept.
    assert_eq!(s.ask(at(2), two, 1).1, None);
    s.dispatch.release(at(3), first, false, Quarantine::No);
    let served = s.pump(at(3));
    assert_eq!(served.len(), 1);
    assert_eq!((served[0].0, served[0].1.weight), (heavy, 2));
}

#[test]
fn a_heavy_request_that_others_leave_no_room_for_holds_up_no_other_model() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    let pool = s.dispatch.add_pool(at(0), ready(&[one, two], 2));
    s.dispatch.observe(at(0), pool, sample(2, 1, Some(0)));
    assert_eq!(s.ask(at(1), one, 2).1, None);
    assert_eq!(
        s.ask(at(1), one, 1).1,
        None,
        "of its own model nobody passes"
    );
    let (_, grant) = s.ask(at(1), two, 1);
    assert_eq!(grant.map(|grant| grant.pool), Some(pool));
}

#[test]
fn when_the_heavy_one_gets_its_slots_elsewhere_what_was_kept_for_it_is_given_out() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    let shared = s.dispatch.add_pool(at(0), ready(&[one, two], 2));
    s.ask(at(0), two, 1).1.expect("has room");
    let (heavy, _) = s.ask(at(1), one, 2);
    let (light, _) = s.ask(at(2), two, 1);
    let (behind, _) = s.ask(at(3), one, 1);
    let other = s.dispatch.add_pool(at(4), ready(&[one], 2));
    let served: Vec<(Ticket, PoolIx)> = (s.pump(at(4)).into_iter())
        .map(|(ticket, grant)| (ticket, grant.pool))
        .collect();
    assert_eq!(served, vec![(heavy, other), (light, shared)]);
    assert_eq!(s.dispatch.waiting(one), 1);
    assert!(s.dispatch.cancel(one, behind));
}

#[test]
fn a_heavy_request_that_leaves_lets_the_other_models_in() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    s.dispatch.add_pool(at(0), ready(&[one, two], 2));
    s.ask(at(0), two, 1).1.expect("has room");
    let (heavy, _) = s.ask(at(1), one, 2);
    let (light, _) = s.ask(at(2), two, 1);
    assert!(s.dispatch.cancel(one, heavy));
    assert_eq!(s.pump(at(3))[0].0, light);
}

#[test]
fn slots_of_one_heavy_request_are_not_taken_for_somebody_elses_where_a_reader_counts_requests() {
    let mut s = Shared::new();
    let one = s.one;
    let pool = s.dispatch.add_pool(at(0), ready(&[one], 4));
    let heavy = s.ask(at(1), one, 3).1.expect("has room");
    s.dispatch.observe(at(2), pool, sample(4, 3, Some(1)));
    assert_eq!(s.dispatch.counts(at(2), pool).external, 0);
    s.dispatch.release(at(3), heavy, false, Quarantine::No);
    // Read before it ended.
    s.dispatch.observe(at(4), pool, sample(4, 3, Some(1)));
    assert_eq!(s.dispatch.counts(at(4), pool).external, 0);
    s.dispatch.observe(at(5), pool, sample(4, 3, Some(1)));
    assert_eq!(s.dispatch.counts(at(5), pool).external, 2);
}

#[test]
fn a_heavy_request_goes_to_a_pool_that_holds_it_whole_and_waits_for_one_that_does() {
    let mut s = Shared::new();
    let one = s.one;
    let large = s.dispatch.add_pool(at(0), ready(&[one], 4));
    let small = s.dispatch.add_pool(at(0), ready(&[one], 2));
    // The small one is emptier.
    let light = s.ask(at(0), one, 1).1.expect("has room");
    assert_eq!(light.pool, large);
    let heavy = s.ask(at(1), one, 3).1.expect("has room");
    assert_eq!((heavy.pool, heavy.weight), (large, 3));
    let (waits, grant) = s.ask(at(2), one, 3);
    assert_eq!(grant, None);
    // It does not keep what it cannot use.
    let passes = s.ask(at(3), one, 2).1.expect("the small one is nobody's");
    assert_eq!((passes.pool, passes.weight), (small, 2));
    s.dispatch.release(at(4), light, false, Quarantine::No);
    assert_eq!(s.pump(at(4)), vec![]);
    assert_eq!(s.ask(at(5), one, 1).1, None, "the large one is kept for it");
    s.dispatch.release(at(6), heavy, false, Quarantine::No);
    let served = s.pump(at(6));
    assert_eq!((served[0].0, served[0].1.pool), (waits, large));
}

#[test]
fn a_request_heavier_than_every_pool_takes_all_slots_of_whichever_has_them_free() {
    let mut s = Shared::new();
    let one = s.one;
    let large = s.dispatch.add_pool(at(0), ready(&[one], 4));
    let small = s.dispatch.add_pool(at(0), ready(&[one], 2));
    let grants = [1, 2].map(|ms| s.ask(at(ms), one, 5).1.expect("has room"));
    let taken = grants.map(|grant| (grant.pool, grant.weight));
    assert_eq!(taken, [(large, 4), (small, 2)]);
    let (waits, grant) = s.ask(at(3), one, 5);
    assert_eq!(grant, None);
    s.dispatch.release(at(4), grants[1], false, Quarantine::No);
    let served = s.pump(at(4));
    assert_eq!(served.len(), 1);
    assert_eq!((served[0].0, served[0].1.pool), (waits, small));
}

#[test]
fn a_heavy_request_does_not_wait_for_an_engine_that_does_not_answer() {
    let mut s = Shared::new();
    let one = s.one;
    let large = s.dispatch.add_pool(at(0), ready(&[one], 4));
    let small = s.dispatch.add_pool(at(0), ready(&[one], 2));
    let running = s.ask(at(0), one, 4).1.expect("has room");
    assert_eq!(running.pool, large);
    let (heavy, grant) = s.ask(at(1), one, 4);
    assert_eq!((grant, s.pump(at(1))), (None, vec![]));
    s.dispatch.hang(at(2), large, true);
    let served = s.pump(at(2));
    assert_eq!(served.len(), 1);
    let (ticket, grant) = served[0];
    assert_eq!((ticket, grant.pool, grant.weight), (heavy, small, 2));
    s.dispatch.release(at(3), grant, false, Quarantine::No);
    s.dispatch.hang(at(4), large, false);
    assert_eq!(s.ask(at(5), one, 4).1, None, "it answers again");
}

#[test]
fn a_heavy_request_prefers_a_small_pool_to_a_large_suspect_one() {
    let mut s = Shared::new();
    let one = s.one;
    let large = PoolSpec {
        suspect: true,
        ..ready(&[one], 4)
    };
    let large = s.dispatch.add_pool(at(0), large);
    let small = s.dispatch.add_pool(at(0), ready(&[one], 2));
    let taken = [1, 2].map(|ms| {
        let grant = s.ask(at(ms), one, 4).1.expect("has room");
        (grant.pool, grant.weight)
    });
    assert_eq!(taken, [(small, 2), (large, 4)]);
}

#[test]
fn where_all_are_suspect_a_heavy_request_goes_to_one_that_holds_it_whole() {
    let mut s = Shared::new();
    let one = s.one;
    let [small, large] = [2, 4].map(|slots| {
        let suspect = PoolSpec {
            suspect: true,
            ..ready(&[one], slots)
        };
        s.dispatch.add_pool(at(0), suspect)
    });
    let heavy = s.ask(at(1), one, 4).1.expect("has room");
    assert_eq!((heavy.pool, heavy.weight), (large, 4));
    assert_eq!(s.ask(at(2), one, 3).1, None, "it waits for the large one");
    // What comes first in line for the small one is the next that it can hold.
    assert_eq!(s.ask(at(3), one, 2).1.map(|grant| grant.pool), Some(small));
}

#[test]
fn when_the_last_pool_that_holds_it_whole_takes_requests_no_longer_a_smaller_one_does() {
    let lost: [fn(&mut Dispatch, PoolIx, ModelIx); 4] = [
        |dispatch, large, one| dispatch.update_pool(at(2), large, gone(&[one])),
        |dispatch, large, one| dispatch.update_pool(at(2), large, loading(&[one])),
        |dispatch, large, _| dispatch.remove_pool(at(2), large),
        |dispatch, large, _| dispatch.eject(at(2), large, Failure::Broken),
    ];
    for lose in lost {
        let mut s = Shared::new();
        let one = s.one;
        let large = s.dispatch.add_pool(at(0), ready(&[one], 4));
        let small = s.dispatch.add_pool(at(0), ready(&[one], 2));
        s.ask(at(0), one, 4).1.expect("has room");
        let (heavy, grant) = s.ask(at(1), one, 4);
        assert_eq!(grant, None);
        lose(&mut s.dispatch, large, one);
        let served = s.pump(at(2));
        assert_eq!(served.len(), 1);
        let (ticket, grant) = served[0];
        assert_eq!((ticket, grant.pool, grant.weight), (heavy, small, 2));
    }
}

#[test]
fn a_pool_that_says_it_is_busy_is_waited_for_as_it_will_be_back_in_a_moment() {
    let mut s = Shared::new();
    let one = s.one;
    let large = s.dispatch.add_pool(at(0), ready(&[one], 4));
    s.dispatch.add_pool(at(0), ready(&[one], 2));
    s.dispatch.pause(at(0), large, None);
    let (heavy, grant) = s.ask(at(1), one, 4);
    assert_eq!(grant, None);
    let mut out = Vec::new();
    s.dispatch.pump(at(250), &mut out);
    assert!(
        matches!(out[..], [(ticket, Verdict::Granted(grant))] if ticket == heavy && grant.pool == large),
        "{out:?}"
    );
}

#[test]
fn when_a_pool_comes_that_holds_it_whole_what_was_kept_for_it_elsewhere_is_given_out() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    let shared = s.dispatch.add_pool(at(0), ready(&[one, two], 2));
    s.ask(at(0), two, 1).1.expect("has room");
    let (heavy, grant) = s.ask(at(1), one, 4);
    assert_eq!(grant, None, "it takes both slots");
    let (light, grant) = s.ask(at(2), two, 1);
    assert_eq!((grant, s.pump(at(2))), (None, vec![]));
    let large = s.dispatch.add_pool(at(3), ready(&[one], 4));
    let reading = sample(4, 4, Some(0));
    s.dispatch.observe(at(3), large, reading);
    let served = s.pump(at(3));
    assert_eq!(served.len(), 1);
    assert_eq!((served[0].0, served[0].1.pool), (light, shared));
    s.dispatch.observe(at(4), large, sample(4, 0, Some(0)));
    let served = s.pump(at(4));
    assert_eq!((served[0].0, served[0].1.pool), (heavy, large));
}

#[test]
fn a_heavy_request_that_comes_back_before_a_lighter_one_frees_what_was_kept_for_that() {
    let mut s = Shared::new();
    let (one, two) = (s.one, s.two);
    let alone = s.dispatch.add_pool(at(0), ready(&[one], 3));
    let shared = s.dispatch.add_pool(at(0), ready(&[one, two], 3));
    s.dispatch.observe(at(0), shared, sample(3, 1, Some(0)));
    assert_eq!(s.ask(at(1), two, 1).1.map(|grant| grant.pool), Some(shared));
    let turn = s.dispatch.arrive(at(2));
    let Offer::Granted(heavy) = s.dispatch.offer(at(2), turn, want(one, 3, 0)) else {
        panic!("there is room");
    };
    assert_eq!(heavy.pool, alone);
    // Two of the three slots of the other pool will be free for the second: the one that is free is kept for it.
    assert_eq!(s.ask(at(3), one, 2).1, None);
    let (light, grant) = s.ask(at(4), two, 1);
    assert_eq!((grant, s.pump(at(4))), (None, vec![]));
    // The first is refused and is first in line again. Three will never be free there.
    s.dispatch
        .release(at(5), heavy, false, Quarantine::Unserved);
    s.dispatch.pause(at(5), alone, None);
    let again = Want {
        avoid: Some(alone),
        ..want(one, 3, 0)
    };
    assert_eq!(s.dispatch.offer(at(5), turn, again), Offer::Queued);
    let served = s.pump(at(5));
    assert_eq!(served.len(), 1);
    assert_eq!((served[0].0, served[0].1.pool), (light, shared));
}
