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
