//! What a refused request is told, against what then comes.

use super::*;

/// By a request's number.
type Lasts = fn(u64) -> Millis;
type Weighs = fn(u64) -> u32;

/// One model under load, in simulated time. Requests last as long as `lasts` says, by their number.
struct Load {
    b: Bench,
    now: Mono,
    lasts: Lasts,
    weighs: Weighs,
    /// What runs, and when it ends.
    running: Vec<(Mono, Grant)>,
    served: Vec<(Ticket, Mono)>,
}

impl Load {
    fn new(pools: &[u32], queue_capacity: usize, lasts: Lasts) -> Self {
        let mut b = Bench::new();
        b.dispatch = Dispatch::new(Settings {
            queue_capacity,
            ..SETTINGS
        });
        b.model = b.dispatch.add_model();
        for slots in pools {
            b.dispatch.add_pool(at(0), ready(&[b.model], *slots));
        }
        Self {
            b,
            now: at(0),
            lasts,
            weighs: |_| 1,
            running: Vec::new(),
            served: Vec::new(),
        }
    }

    fn run(&mut self, ticket: Ticket, grant: Grant) {
        self.b.dispatch.answering(grant);
        let ends = self.now.plus((self.lasts)(grant.pick));
        self.running.push((ends, grant));
        self.served.push((ticket, self.now));
    }

    fn offer(&mut self) -> (Ticket, Offer) {
        let turn = self.b.dispatch.arrive(self.now);
        let weight = (self.weighs)(turn.ticket.0);
        let asks = want(self.b.model, weight, 0);
        let offer = self.b.dispatch.offer(self.now, turn, asks);
        if let Offer::Granted(grant) = offer {
            self.run(turn.ticket, grant);
        }
        (turn.ticket, offer)
    }

    /// Takes in as many as there is room for, and says what the first that is refused is told, and who is last in line.
    fn fill(&mut self) -> (Ticket, Millis) {
        let mut last = Ticket(0);
        loop {
            match self.offer() {
                (ticket, Offer::Queued) => last = ticket,
                (_, Offer::Full { retry_after_ms }) => return (last, retry_after_ms),
                (_, Offer::Granted(_)) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
    }

    /// Lets time pass until then. What ends is given back, and whoever waits gets it.
    fn until(&mut self, then: Mono) {
        while let Some(next) =
            (self.running.iter().map(|(ends, _)| *ends).min()).filter(|next| *next <= then)
        {
            self.now = next;
            let mut at = 0;
            while at < self.running.len() {
                if self.running[at].0 > next {
                    at += 1;
                    continue;
                }
                let (_, grant) = self.running.swap_remove(at);
                self.b.dispatch.release(next, grant, true, Quarantine::No);
            }
            for (ticket, verdict) in self.b.pump(next) {
                if let Verdict::Granted(grant) = verdict {
                    self.run(ticket, grant);
                }
            }
        }
        self.now = then;
    }

    /// Refuses one, and compares what it is told with when a place at the end of the line would have become a slot. The
    /// line is kept full, as it is when somebody is refused.
    fn holds_its_word(&mut self, what: &str) {
        let (_, told) = self.fill();
        let asked = self.now;
        // It gets the place that the policy did not give it.
        let (dispatch, model) = (&mut self.b.dispatch, self.b.model);
        let turn = dispatch.arrive(asked);
        let weight = (self.weighs)(turn.ticket.0);
        let beyond = Want {
            avoid: Some(PoolIx(u32::MAX)),
            ..want(model, weight, 0)
        };
        assert_eq!(dispatch.offer(asked, turn, beyond), Offer::Queued);
        let mut then = asked;
        let got = loop {
            then = then.plus(50);
            self.until(then);
            self.fill();
            if let Some((_, when)) = self.served.iter().find(|(t, _)| *t == turn.ticket) {
                break when.since(asked).clamp(1_000, 60_000);
            }
            assert!(then.since(asked) < 200_000, "{what}: nobody is served");
        };
        assert!(
            told <= 2 * got && got <= 2 * told,
            "{what}: told to come back in {told} ms, would have been served in {got} ms"
        );
    }

    /// Keeps the line full for so long.
    fn press(&mut self, ms: Millis) {
        let end = self.now.plus(ms);
        while self.now < end {
            self.until(self.now.plus(50));
            self.fill();
        }
    }
}

/// Any number, the same each time.
fn scattered(of: u64, below: u64) -> u64 {
    (of.wrapping_mul(6_364_136_223_846_793_005) >> 33) % below
}

#[test]
fn at_any_steady_pace_a_refused_request_is_told_within_a_factor_of_two_when_it_would_have_been_served()
 {
    let paces: [(&str, &[u32], usize, Lasts); 6] = [
        ("one every 100 ms", &[1], 64, |_| 100),
        ("one a second", &[1], 12, |_| 1_000),
        ("one a second of eight slots", &[4, 4], 20, |pick| {
            // The first ones end in turn, and with them all that follow.
            if pick <= 8 { pick * 1_000 } else { 8_000 }
        }),
        ("eight at once every 4 s", &[8], 8, |_| 4_000),
        ("eight at once every 4 s, a long line", &[8], 40, |_| 4_000),
        ("some long and some short", &[4, 2, 2], 32, |pick| {
            200 + scattered(pick, 6_000)
        }),
    ];
    for (what, pools, line, lasts) in paces {
        let mut load = Load::new(pools, line, lasts);
        load.press(30_000);
        for step in 0..40 {
            load.press(50 + 50 * (step % 7));
            load.holds_its_word(what);
        }
    }
}

#[test]
fn an_idle_minute_does_not_spoil_what_is_known_of_the_pace() {
    let mut load = Load::new(&[4], 16, |_| 2_000);
    load.press(20_000);
    load.until(load.now.plus(60_000));
    assert!(load.running.is_empty());
    load.holds_its_word("after an idle minute");
    // Nor do requests that come one by one: how long they take is known from them all the same.
    let mut load = Load::new(&[4], 16, |_| 2_000);
    for _ in 0..40 {
        assert!(matches!(load.offer().1, Offer::Granted(_)));
        load.until(load.now.plus(10_000));
    }
    load.holds_its_word("after a quiet time");
}

#[test]
fn what_waits_is_counted_in_slots() {
    let weights: [(&str, Weighs); 4] = [
        ("all take two of four", |_| 2),
        ("one, two or three", |ticket| {
            1 + scattered(ticket, 3) as u32
        }),
        ("more than there are", |_| 100),
        ("light ones, then heavy ones", |ticket| {
            if ticket < 60 { 1 } else { 4 }
        }),
    ];
    for (what, weighs) in weights {
        let mut load = Load::new(&[4], 16, |pick| 1_000 + scattered(pick, 1_000));
        load.weighs = weighs;
        load.press(10_000);
        for _ in 0..20 {
            load.press(350);
            load.holds_its_word(what);
        }
    }
}

#[test]
fn a_pace_that_has_slowed_down_is_noticed_before_the_first_has_ended() {
    // A long line is being served quickly, when requests come that take a minute.
    let mut load = Load::new(&[4], 8, |pick| if pick <= 100 { 100 } else { 60_000 });
    load.press(3_000);
    load.until(at(12_500));
    let last = load.running.iter().map(|(_, grant)| grant.since).max();
    let so_far = load.now.since(last.expect("some run"));
    assert!(so_far > 9_000);
    assert_eq!(load.fill().1, 9 * so_far / 4, "nine slots by fours");
}

#[test]
fn before_anything_has_ended_it_is_as_long_again_as_it_took_so_far() {
    let mut load = Load::new(&[1], 1, |_| 100_000);
    let mut told = Vec::new();
    for _ in 0..6 {
        let (_, ms) = load.fill();
        told.push(ms);
        load.until(load.now.plus(ms));
    }
    assert_eq!(told, [1_000, 2_000, 6_000, 18_000, 54_000, 60_000]);
    // Nothing at all is known while nothing was ever granted.
    let mut b = Bench::new();
    b.dispatch.add_pool(at(0), loading(&[b.model]));
    for _ in 0..4 {
        assert_eq!(b.ask(at(1)).1, Offer::Queued);
    }
    let retry_after_ms = 60_000;
    assert_eq!(b.ask(at(1)).1, Offer::Full { retry_after_ms });
}

#[test]
fn failures_are_fast_and_say_nothing_of_the_pace() {
    let mut load = Load::new(&[1], 4, |_| 3_000);
    load.press(12_000);
    let told = load.fill().1;
    load.until(load.now.plus(60_000));
    for _ in 0..100 {
        let grant = load.b.granted(load.now);
        load.b
            .dispatch
            .release(load.now, grant, false, Quarantine::No);
        // A refusal begins like an answer.
        let grant = load.b.granted(load.now);
        load.b.dispatch.answering(grant);
        load.b
            .dispatch
            .release(load.now, grant, true, Quarantine::Unserved);
    }
    assert_eq!(load.fill().1, told);
}

#[test]
fn whoever_comes_back_when_it_was_told_to_seldom_comes_in_vain() {
    // A hundred at once, where twelve find room.
    let mut load = Load::new(&[4], 8, |_| 1_000);
    load.press(8_000);
    load.until(load.now.plus(20_000));
    let start = load.now;
    let mut due: Vec<(Mono, u32)> = vec![(start, 0); 100];
    let mut offers = 0;
    while !due.is_empty() {
        due.sort_unstable_by_key(|(when, _)| std::cmp::Reverse(*when));
        let (when, tries) = due.pop().expect("somebody is due");
        load.until(when);
        offers += 1;
        if let (_, Offer::Full { retry_after_ms }) = load.offer() {
            due.push((when.plus(retry_after_ms), tries + 1));
        }
    }
    let took = load.now.since(start);
    // Each wave of those who come back fills the line: eight rounds and more, and no slot is idle for long.
    assert!(offers <= 600, "{offers} offers for 100 requests");
    assert!(took <= 40_000, "served after {took} ms, 25 s at best");
}
