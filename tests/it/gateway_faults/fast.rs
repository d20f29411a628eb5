//! Engines that fail at once: whoever is done first looks free, and would attract all traffic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::at_once;
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;

use super::wait_ready;

const MODEL: &str = "m";
const SLOTS: usize = 4;
const CLIENTS: usize = 12;
/// A request of a good engine takes so long: with eight slots, all of them some four seconds.
const WORK: Duration = Duration::from_millis(40);
const REQUESTS: usize = 800;
/// First ejection, doubled each time (contract §3), and first pause of an engine that names none.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How much sooner or later a test's own clock sees it.
const SLACK: Duration = Duration::from_millis(100);

/// What a bad engine beside two good ones came to.
struct Seen {
    /// Answers by their status: 200, and that of the bad one.
    good: usize,
    bad: usize,
    /// Requests that the bad one saw, each as long after the first.
    at_bad: Vec<Duration>,
    took: Duration,
}

/// Load on two good engines and one that answers everything with this.
fn beside_two_good_ones(bad: Script, status: u16) -> Seen {
    let engines = [(); 3].map(|()| ScriptedEngine::start(MODEL, SLOTS));
    let [wrong, good @ ..] = &engines;
    wrong.always(bad);
    for good in good {
        good.always(Script::new().pause(WORK).append(Script::whole(200, "{}")));
    }
    let named = [wrong.named("a"), good[0].named("b"), good[1].named("c")];
    let orchd = Orchd::serve_home(&named, &["--access-log", "off"]);
    wait_ready(&orchd, 3);

    let body = json!({"model": MODEL, "input": "x"}).to_string();
    let json = ("content-type", "application/json");
    let request = written("POST", "/v1/embeddings", &[json], body.as_bytes());
    let left = AtomicUsize::new(REQUESTS);
    let take = |left: usize| left.checked_sub(1);
    let begun = Instant::now();
    let statuses = at_once(CLIENTS, |_| {
        let mut statuses = Vec::new();
        let mut client = http::begin(orchd.address, b"").expect("a connection");
        while (left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)).is_ok() {
            let answer = client.ask(&request).expect("an answer");
            statuses.push(answer.status);
            answer.text().expect("a whole body");
        }
        statuses
    });
    let took = begun.elapsed();
    let statuses = statuses.concat();
    let count = |wanted| statuses.iter().filter(|&&status| status == wanted).count();
    let (good, bad) = (count(200), count(status));
    assert_eq!(good + bad, REQUESTS, "other answers: {statuses:?}");
    let asked = wrong.asked();
    let at_bad = asked.iter().map(|it| it.arrived - asked[0].arrived);
    Seen {
        good,
        bad,
        at_bad: at_bad.collect(),
        took,
    }
}

impl Seen {
    /// Those that came together, before the first was answered.
    fn first(&self) -> usize {
        self.at_bad
            .iter()
            .filter(|at| **at < FIRST_PAUSE / 2)
            .count()
    }

    /// Checks that after the first requests one at a time was let through, after pauses of twice the length each.
    fn was_tried_and_left(&self, first_pause: Duration) {
        assert!((1..=SLOTS).contains(&self.first()), "{:?}", self.at_bad);
        let mut before = self.at_bad[self.first() - 1];
        let mut pause = first_pause;
        for at in &self.at_bad[self.first()..] {
            assert!(*at + SLACK >= before + pause, "{:?}", self.at_bad);
            before = *at;
            pause *= 2;
        }
    }
}

#[test]
fn an_engine_that_refuses_at_once_attracts_no_traffic() {
    let busy = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
    let seen = beside_two_good_ones(Script::whole(503, busy), 503);
    eprintln!(
        "503 at once beside two good engines: {} of {REQUESTS} requests served within {:?}; it saw {:?}",
        seen.good, seen.took, seen.at_bad
    );
    seen.was_tried_and_left(FIRST_PAUSE);
    assert_eq!((seen.good, seen.bad), (REQUESTS, 0));
}

#[test]
fn an_engine_that_fails_at_once_attracts_no_traffic() {
    let broken = r#"{"error":{"code":500,"message":"out of memory","type":"server_error"}}"#;
    let seen = beside_two_good_ones(Script::whole(500, broken), 500);
    eprintln!(
        "500 at once beside two good engines: {} of {REQUESTS} requests served within {:?}, {} told of the failure; it saw \
         {:?}",
        seen.good, seen.took, seen.bad, seen.at_bad
    );
    seen.was_tried_and_left(FIRST_EJECTION);
    assert_eq!(seen.bad, seen.at_bad.len(), "one of its answers each");
}

#[test]
fn an_engine_that_says_when_to_come_back_is_left_alone_for_that_long() {
    let busy = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
    let bad = Script::whole_with(503, &[("Retry-After", "3")], busy);
    let seen = beside_two_good_ones(bad, 503);
    eprintln!(
        "503 with Retry-After: 3 beside two good engines: {} of {REQUESTS} requests served within {:?}; it saw {:?}",
        seen.good, seen.took, seen.at_bad
    );
    assert_eq!((seen.good, seen.bad), (REQUESTS, 0));
    let first = seen.first();
    assert!((1..=SLOTS).contains(&first), "{:?}", seen.at_bad);
    let rest = &seen.at_bad[first..];
    assert!(!rest.is_empty(), "it is asked again: {:?}", seen.at_bad);
    let mut before = seen.at_bad[first - 1];
    for at in rest {
        assert!(
            *at + SLACK >= before + Duration::from_secs(3),
            "{:?}",
            seen.at_bad
        );
        before = *at;
    }
}
