//! What is left out, and how it comes back.

use super::*;

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
    let probe = Grant {
        probe: true,
        pick: 2,
        since: at(1_000),
        ..grant
    };
    assert_eq!(
        b.expire(at(1_000)),
        vec![(first, Verdict::Granted(probe))],
        "one alone goes first"
    );
    b.dispatch.vindicate(at(1_050), probe);
    let next = Grant {
        pick: 3,
        since: at(1_050),
        ..grant
    };
    assert_eq!(b.pump(at(1_050)), vec![(second, Verdict::Granted(next))]);
}

#[test]
fn whoever_waits_for_a_pool_that_refuses_is_told_when_the_wait_is_over_however_often_it_was_tried()
{
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let grant = b.granted(at(0));
    b.dispatch.eject(at(0), pool, Failure::Refused);
    b.dispatch.release(at(0), grant, false, Quarantine::No);
    assert!(!b.dispatch.is_hopeful(b.model));
    let (first, _) = b.ask(at(0));
    // Trying it shows that nobody is there yet, and begins no new wait.
    for ms in [1_000, 3_000] {
        let out = b.expire(at(ms));
        let [(ticket, probe)] = granted(&out)[..] else {
            panic!("one alone goes first: {out:?}")
        };
        assert_eq!(ticket, first);
        b.dispatch.eject(at(ms), pool, Failure::Refused);
        b.dispatch.release(at(ms), probe, false, Quarantine::No);
        let turn = Turn {
            ticket: first,
            arrived: at(0),
            deadline: at(300_000),
        };
        let again = Want {
            avoid: Some(pool),
            ..want(b.model, 1, 0)
        };
        assert_eq!(b.dispatch.offer(at(ms), turn, again), Offer::Queued);
        assert!(!b.dispatch.is_hopeful(b.model));
    }
    assert_eq!(b.expire(at(4_999)), vec![]);
    assert_eq!(b.expire(at(5_000)), vec![(first, Verdict::NoReadyPool)]);
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
        pick: 3,
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

/// A pool whose only slot is held, and a request in line for it.
fn held_with_one_in_line() -> (Bench, PoolIx, Grant, Ticket) {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    let grant = b.granted(at(0));
    let (ticket, offer) = b.ask(at(0));
    assert_eq!(offer, Offer::Queued);
    (b, pool, grant, ticket)
}

fn granted(verdicts: &[(Ticket, Verdict)]) -> Vec<(Ticket, Grant)> {
    let grant = |(ticket, verdict): &(Ticket, Verdict)| match verdict {
        Verdict::Granted(grant) => (*ticket, *grant),
        other => panic!("expected a grant, got {other:?}"),
    };
    verdicts.iter().map(grant).collect()
}

#[test]
fn a_busy_pool_is_left_alone_for_as_long_as_it_asked_within_bounds() {
    for (asked, waits) in [
        (Some(7_000), 7_000),
        (Some(0), 100),
        (Some(3_600_000), 30_000),
        (None, 250),
    ] {
        let (mut b, pool, grant, ticket) = held_with_one_in_line();
        b.dispatch.pause(at(10), pool, asked);
        assert!(b.dispatch.counts(at(10), pool).paused);
        b.dispatch.release(at(10), grant, false, Quarantine::No);
        assert!(b.pump(at(10)).is_empty(), "a refusal is no free slot");
        assert_eq!(b.expire(at(10 + waits - 1)), vec![]);
        let served = granted(&b.expire(at(10 + waits)));
        assert_eq!((served[0].0, served[0].1.probe), (ticket, true));
        assert!(!b.dispatch.counts(at(10 + waits), pool).paused);
    }
}

#[test]
fn the_only_pool_is_paused_too_and_whoever_waits_for_it_waits_on() {
    let (mut b, pool, grant, ticket) = held_with_one_in_line();
    b.dispatch.pause(at(0), pool, Some(30_000));
    b.dispatch.release(at(0), grant, false, Quarantine::No);
    assert_eq!(b.expire(at(29_999)), vec![]);
    assert_eq!(granted(&b.expire(at(30_000)))[0].0, ticket);
}

#[test]
fn a_pool_that_keeps_refusing_is_paused_for_longer_each_time_until_it_serves() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    let mut now = at(0);
    for ms in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        let probe = b.granted(now);
        b.dispatch.pause(now, pool, None);
        b.dispatch.release(now, probe, false, Quarantine::No);
        assert_eq!(b.ask(now.plus(ms - 1)).1, Offer::Queued);
        now = now.plus(ms);
        let served = granted(&b.expire(now));
        assert_eq!(served.len(), 1);
        b.dispatch.release(now, served[0].1, false, Quarantine::No);
    }
    let probe = b.granted(now);
    assert!(probe.probe);
    assert_eq!(b.ask(now).1, Offer::Queued, "one alone goes first");
    b.dispatch.vindicate(now, probe);
    assert_eq!(granted(&b.pump(now)).len(), 1);
    assert!(!b.granted(now).probe);
    b.dispatch.pause(now, pool, None);
    assert!(
        !b.dispatch.counts(now.plus(250), pool).paused,
        "it begins anew"
    );
}

#[test]
fn refusals_of_requests_that_were_there_together_are_one_and_the_longest_pause_asked_for_counts() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 8));
    for ms in 0..8 {
        b.dispatch.pause(at(ms), pool, None);
    }
    assert!(!b.dispatch.counts(at(250), pool).paused);
    b.dispatch.pause(at(1_500), pool, Some(5_000));
    b.dispatch.pause(at(1_500), pool, Some(200));
    b.dispatch.pause(at(1_500), pool, None);
    assert!(b.dispatch.counts(at(6_499), pool).paused);
    assert!(!b.dispatch.counts(at(6_500), pool).paused);
}

#[test]
fn a_request_refused_by_the_only_pool_waits_in_line_and_is_the_one_that_goes_first() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 2));
    let turn = b.dispatch.arrive(at(0));
    let asks = want(b.model, 1, 0);
    let Offer::Granted(grant) = b.dispatch.offer(at(0), turn, asks) else {
        panic!("has room")
    };
    b.dispatch.pause(at(5), pool, None);
    b.dispatch.release(at(5), grant, false, Quarantine::No);
    let (later, offer) = b.ask(at(6));
    assert_eq!(offer, Offer::Queued);
    let again = Want {
        avoid: Some(pool),
        ..asks
    };
    assert_eq!(b.dispatch.offer(at(7), turn, again), Offer::Queued);
    let served = granted(&b.expire(at(1_005)));
    assert_eq!(served.len(), 1);
    assert_eq!((served[0].0, served[0].1.probe), (turn.ticket, true));
    b.dispatch.vindicate(at(1_010), served[0].1);
    assert_eq!(granted(&b.pump(at(1_010)))[0].0, later);
}

#[test]
fn while_an_engine_does_not_answer_its_pool_is_granted_nothing_and_its_waiters_wait() {
    let (mut b, pool, grant, ticket) = held_with_one_in_line();
    b.dispatch.hang(at(1), pool, true);
    b.dispatch.release(at(2), grant, false, Quarantine::No);
    assert_eq!(b.expire(at(60_000)), vec![]);
    b.dispatch.hang(at(60_000), pool, false);
    let served = granted(&b.pump(at(60_000)));
    assert_eq!((served[0].0, served[0].1.probe), (ticket, false));
}

#[test]
fn a_reading_begun_after_an_engine_was_found_silent_shows_that_it_answers() {
    let (mut b, pool, grant, ticket) = held_with_one_in_line();
    b.dispatch.hang(at(100), pool, true);
    b.dispatch.release(at(100), grant, false, Quarantine::No);
    for (begun, found) in [(None, 0), (Some(at(99)), 0), (Some(at(150)), 1)] {
        let reading = Sample {
            begun,
            ..sample(1, 0, None)
        };
        b.dispatch.observe(at(200), pool, reading);
        let served = granted(&b.pump(at(200)));
        assert_eq!(served.len(), found);
        assert!(served.iter().all(|(served, _)| *served == ticket));
    }
}

#[test]
fn a_probe_from_before_another_failure_neither_brings_the_pool_back_nor_lets_a_third_in() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    b.dispatch.eject(at(0), pool, Failure::Refused);
    let first = b.granted(at(1_000));
    b.dispatch.eject(at(1_500), pool, Failure::Refused);
    b.dispatch.vindicate(at(1_600), first);
    assert!(b.dispatch.counts(at(1_600), pool).ejected);
    let second = b.granted(at(3_500));
    assert!(second.probe);
    b.dispatch.release(at(3_600), first, false, Quarantine::No);
    assert_eq!(b.ask(at(3_600)).1, Offer::Queued);
    b.dispatch.vindicate(at(3_700), second);
    assert_eq!(granted(&b.pump(at(3_700))).len(), 1);
}

#[test]
fn ejections_are_counted_from_the_moment_a_pool_is_added() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 1));
    for ms in [0, 500, 1_000, 3_000] {
        b.dispatch.eject(at(ms), pool, Failure::Refused);
    }
    b.dispatch.pause(at(3_000), pool, None);
    assert_eq!(b.dispatch.counts(at(3_000), pool).ejections, 3);
    b.dispatch.remove_pool(at(4_000), pool);
    assert!(!b.dispatch.is_present(pool));
    let next = b.dispatch.add_pool(at(4_000), ready(&[b.model], 1));
    assert_eq!(next, pool);
    let counts = b.dispatch.counts(at(4_000), next);
    assert_eq!(
        (counts.ejections, counts.ejected, counts.paused),
        (0, false, false)
    );
}
