//! `orchd serve` stopped while it works: who comes is refused, who runs may finish, and whom the grace cuts off is told.
//!
//! Each test prints its figures.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::eventually;
use crate::support::http::{self, Begun, Events, Response, written};
use crate::support::in_band::{self, ENDPOINTS};
use crate::support::orchd::Orchd;

const MODEL: &str = "m";
/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);
/// How much later than the end of its grace the process may end.
const LAST_WORDS: Duration = Duration::from_millis(1_500);
const CHAT: &str = "/v1/chat/completions";
const EMBED: &str = "/v1/embeddings";

fn serve(engine: &ScriptedEngine, options: &[&str]) -> Orchd {
    let orchd = Orchd::serve_home(&[engine.named("a")], options);
    eventually(SOON, "the engine is read", || {
        let pools = http::get_json(orchd.address, "/v2/pools");
        match pools["pools"][0]["ready"] == true {
            true => Ok(()),
            false => Err(pools.to_string()),
        }
    });
    orchd
}

fn request(target: &str, stream: bool) -> Vec<u8> {
    let body = json!({"model": MODEL, "stream": stream, "messages": [], "input": "x"});
    let json = ("content-type", "application/json");
    written("POST", target, &[json], body.to_string().as_bytes())
}

fn begin(orchd: &Orchd, target: &str, stream: bool) -> Begun {
    http::begin(orchd.address, &request(target, stream)).expect("a connection")
}

/// Checks that an answer is a refusal because of the stop.
fn refused(response: Response) {
    let status = response.status;
    let retry_after = response.header("retry-after").map(str::to_owned);
    let error = response.json()["error"].clone();
    assert_eq!(status, 503, "{error}");
    assert_eq!(error["code"], "shutting_down", "{error}");
    assert_eq!(retry_after.as_deref(), Some("1"), "{error}");
}

/// Sends SIGTERM, and waits until it is not ready any more.
fn stop(orchd: &Orchd) -> Instant {
    orchd.terminate();
    let stopped = Instant::now();
    eventually(SOON, "it is not ready any more", || {
        match http::get(orchd.address, "/readyz") {
            Ok(response) if response.status == 503 => Ok(()),
            Ok(response) => Err(format!("/readyz is {}", response.status)),
            Err(e) => panic!("its running requests need it, and it is gone: {e}"),
        }
    });
    stopped
}

/// The frames of a stream that comes to its proper end.
fn frames(mut events: Events) -> Vec<Vec<String>> {
    let mut frames = Vec::new();
    while let Some(frame) = events.frame().expect("a proper end") {
        frames.push(frame);
    }
    frames
}

#[test]
fn a_stop_refuses_who_comes_lets_who_runs_finish_and_ends_with_the_last_of_them() {
    let engine = ScriptedEngine::start(MODEL, 2);
    let mut orchd = serve(&engine, &["--shutdown-grace", "20s", "--sse-commit", "0s"]);
    engine.script([
        Script::stream()
            .event("1")
            .hold()
            .event("2")
            .event("[DONE]")
            .end(),
        Script::whole(200, "{}").held(),
    ]);
    let stream = begin(&orchd, CHAT, true);
    engine.wait_for(1);
    let whole = begin(&orchd, EMBED, false);
    engine.wait_for(2);
    // No slot is free: these wait in line, one of them in a stream that has begun.
    let queued = begin(&orchd, EMBED, false);
    let promised = begin(&orchd, CHAT, true);
    eventually(SOON, "both wait", || orchd.waiting(2));
    let mut promised = promised.answer().expect("a head").events();
    let comment = promised.frame().expect("no break");
    assert_eq!(comment, Some(vec![": ping".to_owned()]));

    let stopped = stop(&orchd);
    refused(queued.answer().expect("an answer"));
    let last = promised.frame().expect("no break").expect("a last event");
    assert_eq!(in_band::code_in(CHAT, &last), "shutting_down");
    assert_eq!(promised.frame().expect("a proper end"), None);
    let refused_after = stopped.elapsed();
    for (target, stream) in [(CHAT, true), (EMBED, false)] {
        refused(begin(&orchd, target, stream).answer().expect("an answer"));
    }
    assert!(orchd.is_running());
    engine.go(0);
    engine.go(1);
    let all = frames(stream.answer().expect("an answer").events());
    assert_eq!(
        all.last(),
        Some(&vec!["data: [DONE]".to_owned()]),
        "{all:?}"
    );
    assert_eq!(
        whole
            .answer()
            .expect("an answer")
            .text()
            .expect("all of it"),
        "{}"
    );
    let finished = stopped.elapsed();
    assert_eq!(orchd.wait(SOON), Some(0));
    let ended = stopped.elapsed();
    eprintln!(
        "SIGTERM: those in line were told within {refused_after:?}; the last answer ended after {finished:?}, the process \
         after {ended:?}"
    );
    assert!(refused_after < Duration::from_secs(1), "{refused_after:?}");
    assert!(ended - finished < LAST_WORDS, "{ended:?}");
}

/// What runs when the grace ends: a stream of each endpoint, and an answer that has not begun.
struct Running {
    streams: [(&'static str, Events); 4],
    waiting: Begun,
}

impl Running {
    fn start(orchd: &Orchd, engine: &ScriptedEngine) -> Self {
        let mut count = 0;
        let mut begin = |target, stream, script| {
            engine.script([script]);
            let begun = begin(orchd, target, stream);
            count += 1;
            engine.wait_for(count);
            begun
        };
        let endless = || Script::stream().events(1_000, Duration::from_millis(30));
        Self {
            streams: ENDPOINTS.map(|target| {
                let answer = begin(target, true, endless()).answer();
                let mut events = answer.expect("an answer").events();
                let first = events.next().expect("no break");
                assert_eq!(first.as_deref(), Some("{\"n\":1}"));
                (target, events)
            }),
            waiting: begin(EMBED, false, Script::new().silence()),
        }
    }

    /// Checks that each is told, and gives when the last of them was.
    fn are_told(self) -> Instant {
        let told = std::thread::scope(|scope| {
            let readers = self.streams.map(|(target, events)| {
                scope.spawn(move || in_band::ends_with(target, events, 2, "shutting_down"))
            });
            readers.map(|reader| reader.join().expect("its panic is shown above"))
        });
        refused(self.waiting.answer().expect("an answer"));
        let last = told.into_iter().max().expect("there are some");
        last.max(Instant::now())
    }
}

#[test]
fn at_the_end_of_the_grace_each_client_is_told_in_its_own_dialect() {
    let engine = ScriptedEngine::start(MODEL, 8);
    let mut orchd = serve(&engine, &["--shutdown-grace", "1s"]);
    let running = Running::start(&orchd, &engine);
    let stopped = stop(&orchd);
    let told = running.are_told() - stopped;
    assert_eq!(orchd.wait(SOON), Some(0));
    let ended = stopped.elapsed();
    eprintln!(
        "SIGTERM with a grace of 1 s: all were told after {told:?}, the process ended after {ended:?}"
    );
    let grace = Duration::from_secs(1);
    assert!(
        grace <= told && ended < grace + LAST_WORDS,
        "{told:?} {ended:?}"
    );
    for number in 0..5 {
        engine.wait_left(number);
    }
}

#[test]
fn a_second_signal_ends_the_grace_at_once() {
    let engine = ScriptedEngine::start(MODEL, 8);
    let mut orchd = serve(&engine, &["--shutdown-grace", "60s"]);
    let running = Running::start(&orchd, &engine);
    stop(&orchd);
    orchd.terminate();
    let again = Instant::now();
    let told = running.are_told() - again;
    assert_eq!(orchd.wait(SOON), Some(0));
    let ended = again.elapsed();
    eprintln!("a second SIGTERM: all were told after {told:?}, the process ended after {ended:?}");
    assert!(ended < LAST_WORDS, "{ended:?}");
}

#[test]
fn a_client_that_reads_nothing_does_not_keep_the_process_beyond_its_grace() {
    let engine = ScriptedEngine::start(MODEL, 2);
    for signals in [1, 2] {
        let grace = Duration::from_secs(if signals == 1 { 1 } else { 60 });
        let option = format!("{}s", grace.as_secs());
        let mut orchd = serve(&engine, &["--shutdown-grace", &option]);
        engine.script([Script::stream().flood(64 << 10)]);
        let before = engine.asked().len();
        let unread = begin(&orchd, CHAT, true);
        engine.wait_for(before + 1);
        engine.wait_stuck(before);
        let mut stopped = stop(&orchd);
        if signals == 2 {
            orchd.terminate();
            stopped = Instant::now();
        }
        assert_eq!(orchd.wait(SOON), Some(0));
        let ended = stopped.elapsed();
        engine.wait_left(before);
        eprintln!(
            "{signals} SIGTERM, a client that reads nothing: the process ended after {ended:?}"
        );
        let grace = if signals == 1 { grace } else { Duration::ZERO };
        assert!(ended < grace + LAST_WORDS, "{ended:?}");
        drop(unread);
    }
}

#[test]
fn who_pauses_before_another_attempt_is_told_of_the_end_at_once() {
    let engine = ScriptedEngine::start(MODEL, 2);
    let mut orchd = serve(&engine, &["--shutdown-grace", "60s"]);
    // After the second failure it waits for a second, and then there would be a third attempt.
    engine.script([Script::new().reset(), Script::new().reset()]);
    let waiting = begin(&orchd, EMBED, false);
    engine.wait_for(2);
    stop(&orchd);
    orchd.terminate();
    let again = Instant::now();
    refused(waiting.answer().expect("an answer"));
    let told = again.elapsed();
    assert_eq!(orchd.wait(SOON), Some(0));
    let ended = again.elapsed();
    eprintln!(
        "a second SIGTERM in a pause between attempts: told after {told:?}, the process ended after {ended:?}"
    );
    assert!(told < Duration::from_millis(500), "{told:?}");
}
