use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

mod queues;

const SETTINGS: Settings = Settings {
    queue_capacity: 4,
    policy: Policy::Reject,
    queue_bytes: 100,
    queue_timeout_ms: 300_000,
    no_pool_wait_ms: 5_000,
    sample_ttl_ms: 20_000,
};

fn ready(models: &[ModelIx], slots: u32) -> PoolSpec {
    PoolSpec {
        models: models.to_vec(),
        accepting: true,
        prospective: true,
        suspect: false,
        slots_total: slots,
    }
}

fn loading(models: &[ModelIx]) -> PoolSpec {
    PoolSpec {
        accepting: false,
        ..ready(models, 1)
    }
}

fn gone(models: &[ModelIx]) -> PoolSpec {
    PoolSpec {
        accepting: false,
        prospective: false,
        ..ready(models, 1)
    }
}

fn at(ms: u64) -> Mono {
    Mono(ms)
}

fn sample(slots_total: u32, busy: u32, ours: Option<u32>) -> Sample {
    Sample {
        slots_total,
        busy,
        ours,
        begun: None,
    }
}

struct Bench {
    dispatch: Dispatch,
    model: ModelIx,
}

impl Bench {
    fn new() -> Self {
        let mut dispatch = Dispatch::new(SETTINGS);
        let model = dispatch.add_model();
        Self { dispatch, model }
    }

    fn ask(&mut self, now: Mono) -> (Ticket, Offer) {
        let turn = self.dispatch.arrive(now);
        (
            turn.ticket,
            self.dispatch.offer(now, turn, self.model, 1, 0, None),
        )
    }

    fn granted(&mut self, now: Mono) -> Grant {
        match self.ask(now).1 {
            Offer::Granted(grant) => grant,
            other => panic!("expected a grant, got {other:?}"),
        }
    }

    fn pump(&mut self, now: Mono) -> Vec<(Ticket, Verdict)> {
        let mut out = Vec::new();
        self.dispatch.pump(now, &mut out);
        out
    }

    fn expire(&mut self, now: Mono) -> Vec<(Ticket, Verdict)> {
        let mut out = Vec::new();
        self.dispatch.expire(now, &mut out);
        out
    }
}

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
fn a_full_queue_says_when_to_come_back_from_the_measured_rate() {
    let mut b = Bench::new();
    b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let mut held = b.granted(at(0));
    for second in 1..=10 {
        let now = at(second * 2_000);
        b.dispatch.release(now, held, false, Quarantine::No);
        held = b.granted(now);
    }
    for _ in 0..4 {
        assert_eq!(b.ask(at(20_000)).1, Offer::Queued);
    }
    // One release in 1.8 s (nine intervals over ten releases), four waiting.
    assert_eq!(
        b.ask(at(20_000)).1,
        Offer::Full {
            retry_after_ms: 7_200
        }
    );
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
        b.dispatch.offer(at(1), heavy, b.model, 3, 0, None),
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
        b.dispatch.offer(at(1), heavy, b.model, 2, 0, None),
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
                since: at(3),
            })
        )]
    );
}

#[test]
fn an_ejected_pool_comes_back_by_one_request_that_succeeds() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let grant = b.granted(at(0));
    b.dispatch.eject(at(0), pool, Failure::Refused);
    b.dispatch.release(at(0), grant, false, Quarantine::No);
    let (first, offer) = b.ask(at(1));
    assert_eq!(offer, Offer::Queued);
    let (second, _) = b.ask(at(2));
    assert_eq!(
        b.expire(at(1_000)),
        vec![(
            first,
            Verdict::Granted(Grant {
                probe: true,
                since: at(1_000),
                ..grant
            })
        )],
        "one alone goes first"
    );
    b.dispatch.vindicate(at(1_050), pool);
    let next = Grant {
        since: at(1_050),
        ..grant
    };
    assert_eq!(b.pump(at(1_050)), vec![(second, Verdict::Granted(next))]);
}

#[test]
fn a_stream_from_before_an_ejection_does_not_keep_the_pool_shut() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    let _stream = b.granted(at(0));
    b.dispatch.eject(at(0), pool, Failure::Refused);
    let probe = b.granted(at(1_000));
    assert!(probe.probe);
    let (waiting, offer) = b.ask(at(1_001));
    assert_eq!(offer, Offer::Queued, "one probe at a time");
    b.dispatch.release(at(1_010), probe, false, Quarantine::No);
    let next = Grant {
        since: at(1_010),
        ..probe
    };
    assert_eq!(b.pump(at(1_010)), vec![(waiting, Verdict::Granted(next))]);
}

#[test]
fn failures_of_requests_that_were_there_together_are_one_failure() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 8));
    for ms in 0..8 {
        b.dispatch.eject(at(ms), pool, Failure::Refused);
    }
    assert!(!b.dispatch.counts(at(1_000), pool).ejected);
    b.dispatch.eject(at(1_500), pool, Failure::Refused);
    assert!(
        b.dispatch.counts(at(3_499), pool).ejected,
        "the second one lasts twice as long"
    );
    assert!(!b.dispatch.counts(at(3_500), pool).ejected);
    // Its reader sees it go and come back: what it failed before says nothing any more.
    b.dispatch.update_pool(at(3_600), pool, loading(&[b.model]));
    b.dispatch
        .update_pool(at(3_700), pool, ready(&[b.model], 8));
    assert!(!b.granted(at(3_700)).probe);
}

#[test]
fn the_last_pool_of_a_model_is_left_out_only_when_nobody_listens_there() {
    let mut b = Bench::new();
    let one = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let two = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    b.dispatch.eject(at(0), one, Failure::Broken);
    assert!(
        b.dispatch.counts(at(0), one).ejected,
        "the other one is there"
    );
    b.dispatch.eject(at(0), two, Failure::Broken);
    assert!(
        !b.dispatch.counts(at(0), two).ejected,
        "it may be the request"
    );
    b.dispatch.eject(at(0), two, Failure::Refused);
    assert!(b.dispatch.counts(at(0), two).ejected);
}

#[test]
fn a_second_try_keeps_its_deadline_and_is_not_turned_away_by_a_full_queue() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let turn = b.dispatch.arrive(at(0));
    let Offer::Granted(grant) = b.dispatch.offer(at(0), turn, b.model, 1, 0, None) else {
        panic!("has room")
    };
    for _ in 0..4 {
        assert_eq!(b.ask(at(1)).1, Offer::Queued);
    }
    assert!(matches!(b.ask(at(1)).1, Offer::Full { .. }));
    b.dispatch.update_pool(at(1), pool, loading(&[b.model]));
    b.dispatch.release(at(1), grant, false, Quarantine::No);
    assert_eq!(
        b.dispatch
            .offer(at(200_000), turn, b.model, 1, 0, Some(pool)),
        Offer::Queued
    );
    assert_eq!(
        b.expire(at(300_000))[0],
        (turn.ticket, Verdict::QueueTimeout)
    );
}

#[test]
fn numbers_as_large_as_they_can_be_are_no_trouble() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], u32::MAX));
    let all = b.dispatch.arrive(at(0));
    assert!(matches!(
        b.dispatch.offer(at(0), all, b.model, u32::MAX, 0, None),
        Offer::Granted(_)
    ));
    b.dispatch
        .observe(at(0), pool, sample(u32::MAX, u32::MAX, Some(0)));
    assert_eq!(b.dispatch.counts(at(0), pool).slots_free, 0);
    assert_eq!(b.ask(at(0)).1, Offer::Queued);
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
    let offer = b.dispatch.offer(at(0), turn, b.model, 1, 0, None);
    let Offer::Granted(grant) = offer else {
        panic!("{offer:?}")
    };
    assert_eq!(grant.pool, one);
    b.dispatch.release(at(1), grant, false, Quarantine::No);
    let again = b.dispatch.offer(at(1), turn, b.model, 1, 0, Some(one));
    let moved = Grant {
        pool: two,
        since: at(1),
        ..grant
    };
    assert_eq!(again, Offer::Granted(moved));
    let also = b.granted(at(1));
    let (later, _) = b.ask(at(2));
    assert_eq!(
        b.dispatch.offer(at(3), turn, b.model, 1, 0, Some(one)),
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

#[derive(Debug, Clone)]
enum Step {
    Ask {
        model: usize,
        weight: u32,
    },
    Release {
        nth: usize,
    },
    CloseEarly {
        nth: usize,
        wait: u64,
    },
    Cancel {
        nth: usize,
    },
    Observe {
        pool: usize,
        busy: u32,
    },
    Update {
        pool: usize,
        accepting: bool,
        prospective: bool,
        slots: u32,
    },
    Eject {
        pool: usize,
        refused: bool,
    },
    Vindicate {
        pool: usize,
    },
    Answer {
        nth: usize,
    },
    Advance {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2usize, 1..4u32).prop_map(|(model, weight)| Step::Ask { model, weight }),
        4 => any::<usize>().prop_map(|nth| Step::Release { nth }),
        2 => (any::<usize>(), 1..3_000u64).prop_map(|(nth, wait)| Step::CloseEarly { nth, wait }),
        1 => any::<usize>().prop_map(|nth| Step::Cancel { nth }),
        2 => (0..3usize, 0..5u32).prop_map(|(pool, busy)| Step::Observe { pool, busy }),
        1 => (0..3usize, any::<bool>(), any::<bool>(), 1..5u32)
            .prop_map(|(pool, accepting, prospective, slots)| Step::Update { pool, accepting, prospective, slots }),
        1 => (0..3usize, any::<bool>()).prop_map(|(pool, refused)| Step::Eject { pool, refused }),
        1 => (0..3usize).prop_map(|pool| Step::Vindicate { pool }),
        3 => any::<usize>().prop_map(|nth| Step::Answer { nth }),
        3 => (1..2_000u64).prop_map(|ms| Step::Advance { ms }),
    ]
}

proptest! {
    #[test]
    fn claims_never_exceed_slots_nobody_overtakes_and_every_wait_ends(
        drop_lru in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let (queue_capacity, policy) = if drop_lru { (3, Policy::DropLru) } else { (64, Policy::Reject) };
        let mut dispatch = Dispatch::new(Settings { queue_capacity, policy, ..SETTINGS });
        let models = [dispatch.add_model(), dispatch.add_model()];
        let mut specs = [ready(&[models[0]], 2), ready(&[models[0], models[1]], 3), ready(&[models[1]], 1)];
        let pools: Vec<PoolIx> = specs.iter().map(|spec| dispatch.add_pool(at(0), spec.clone())).collect();
        let mut now = at(0);
        let mut held: Vec<(Grant, bool)> = Vec::new();
        let mut waiting: Vec<(Ticket, ModelIx)> = Vec::new();
        let mut out: Vec<(Ticket, Verdict)> = Vec::new();

        for step in steps {
            let mut fresh: Vec<Grant> = Vec::new();
            match step {
                Step::Ask { model, weight } => {
                    let turn = dispatch.arrive(now);
                    let ticket = turn.ticket;
                    match dispatch.offer(now, turn, models[model], weight, u64::from(weight), None) {
                        Offer::Granted(grant) => {
                            prop_assert!(waiting.iter().all(|(_, m)| *m != models[model]), "overtook a waiting request");
                            fresh.push(grant);
                        }
                        Offer::Queued => waiting.push((ticket, models[model])),
                        Offer::Full { .. } => prop_assert!(!drop_lru && dispatch.waiting(models[model]) == queue_capacity),
                        Offer::NoRoom { .. } => prop_assert!(dispatch.waiting_bytes() + u64::from(weight) > SETTINGS.queue_bytes),
                    }
                }
                Step::Release { nth } if !held.is_empty() => {
                    let (grant, answering) = held.swap_remove(nth % held.len());
                    dispatch.release(now, grant, answering, Quarantine::No);
                }
                Step::CloseEarly { nth, wait } if !held.is_empty() => {
                    let (grant, answering) = held.swap_remove(nth % held.len());
                    dispatch.release(now, grant, answering, Quarantine::For(wait));
                }
                Step::Cancel { nth } if !waiting.is_empty() => {
                    let (ticket, model) = waiting.remove(nth % waiting.len());
                    prop_assert!(dispatch.cancel(model, ticket), "a waiting request has a place");
                }
                Step::Observe { pool, busy } => {
                    dispatch.observe(now, pools[pool], Sample { slots_total: specs[pool].slots_total, busy, ours: None, begun: Some(now) });
                }
                Step::Update { pool, accepting, prospective, slots } => {
                    specs[pool] = PoolSpec { accepting, prospective: accepting || prospective, slots_total: slots, ..specs[pool].clone() };
                    dispatch.update_pool(now, pools[pool], specs[pool].clone());
                }
                Step::Eject { pool, refused } => {
                    let failure = if refused { Failure::Refused } else { Failure::Broken };
                    dispatch.eject(now, pools[pool], failure);
                }
                Step::Vindicate { pool } => dispatch.vindicate(now, pools[pool]),
                Step::Answer { nth } if !held.is_empty() => {
                    let nth = nth % held.len();
                    if !std::mem::replace(&mut held[nth].1, true) {
                        dispatch.answering(held[nth].0);
                    }
                }
                Step::Advance { ms } => now = now.plus(ms),
                _ => {}
            }
            out.clear();
            dispatch.expire(now, &mut out);
            let mut last: HashMap<ModelIx, Ticket> = HashMap::new();
            for (ticket, verdict) in out.drain(..) {
                let at = waiting.iter().position(|(t, _)| *t == ticket);
                prop_assert!(at.is_some(), "a verdict for somebody who does not wait");
                let (_, model) = waiting.remove(at.unwrap());
                if let Verdict::Granted(grant) = verdict {
                    prop_assert!(waiting.iter().all(|(t, m)| *m != model || *t > ticket), "overtook within its model");
                    prop_assert!(last.insert(model, ticket).is_none_or(|earlier| earlier < ticket));
                    fresh.push(grant);
                }
            }
            for grant in fresh {
                let spec = &specs[grant.pool.0 as usize];
                prop_assert!(spec.accepting, "granted a pool that accepts nothing");
                prop_assert!(spec.models.contains(&grant.model));
                held.push((grant, false));
                let claims: u32 = held.iter().filter(|(g, _)| g.pool == grant.pool).map(|(g, _)| g.weight).sum();
                prop_assert!(claims <= spec.slots_total, "over-committed");
            }
            prop_assert_eq!(dispatch.waiting_bytes() == 0, waiting.is_empty());
            prop_assert!(dispatch.waiting_bytes() <= SETTINGS.queue_bytes);
            for (nth, pool) in pools.iter().enumerate() {
                let counts = dispatch.counts(now, *pool);
                prop_assert_eq!(counts.running as usize, held.iter().filter(|(g, _)| g.pool == *pool).count());
                prop_assert!(counts.slots_free <= specs[nth].slots_total);
            }
        }

        // Whatever happened, everybody's wait ends and every slot comes back.
        for (grant, answering) in held.drain(..) {
            dispatch.release(now, grant, answering, Quarantine::No);
        }
        let mut seen: HashSet<Ticket> = HashSet::new();
        for _ in 0..10_000 {
            out.clear();
            dispatch.expire(now, &mut out);
            for (ticket, verdict) in out.drain(..) {
                prop_assert!(seen.insert(ticket), "two verdicts for one request");
                if let Verdict::Granted(grant) = verdict {
                    dispatch.release(now, grant, false, Quarantine::No);
                }
            }
            match dispatch.next_deadline() {
                Some(next) => now = now.max(next),
                None => break,
            }
        }
        prop_assert_eq!(seen.len(), waiting.len());
        prop_assert_eq!(dispatch.next_deadline(), None);
        for (nth, pool) in pools.iter().enumerate() {
            let counts = dispatch.counts(now, *pool);
            prop_assert_eq!((counts.running, counts.quarantined, counts.slots_free), (0, 0, specs[nth].slots_total));
        }
    }
}
