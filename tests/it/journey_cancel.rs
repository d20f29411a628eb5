//! Clients that leave real engines: their slots are idle at once, and nobody waits inside an engine for one that is not.
//!
//! `ORCHD_TEST_SEED` repeats a run that failed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::chat::ring;
use crate::support::engine::{Engine, Model};
use crate::support::http::{self, Begun, written};
use crate::support::orchd::Orchd;
use crate::support::readings::Metrics;
use crate::support::seed::Random;
use crate::support::{at_once, eventually};

/// How long a test waits for something that happens at once.
const SOON: Duration = Duration::from_secs(10);
/// How soon the slot of a client that left in the middle of its answer is idle.
const IDLE_WITHIN: Duration = Duration::from_millis(500);

fn begin(orchd: &Orchd, request: &[u8]) -> Begun {
    http::begin(orchd.address, request).expect("a connection")
}

/// Waits until no slot of the engine works, and says how long that took.
fn wait_idle(engine: &Engine) -> Duration {
    eventually(IDLE_WITHIN, "all slots are idle", || engine.idle()).1
}

#[test]
fn journey_cancel_a_real_engines_slot_is_idle_at_once_wherever_in_its_stream_a_client_leaves() {
    const ROUNDS: u64 = 20;
    let mut random = Random::seeded();
    let engine = Engine::start(Model::Ring, 4, 32_768);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let mut stream = ring(4_000).stream(orchd.address).expect("a stream");
            let words = usize::try_from(random.below(120)).expect("small");
            stream.read(words).expect("words");
            drop(stream);
            wait_idle(&engine)
        })
        .collect();
    took.sort_unstable();
    eprintln!(
        "a real engine's slot, left at a word of the first 120, {ROUNDS} times: idle after {:?} (p50), {:?} (p100)",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

#[test]
fn journey_cancel_a_real_engines_slot_is_idle_at_once_when_a_client_leaves_whose_answer_is_put_together()
 {
    const ROUNDS: u64 = 20;
    let mut random = Random::seeded();
    let engine = Engine::start(Model::Ring, 4, 32_768);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let body = json!({"model": "ring", "max_tokens": 4_000, "messages": [{"role": "user", "content": "Count!"}]});
    let request = written(
        "POST",
        "/v1/chat/completions",
        &[],
        body.to_string().as_bytes(),
    );
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let client = begin(&orchd, &request);
            eventually(SOON, "it runs", || match engine.slots_busy() {
                1 => Ok(()),
                busy => Err(format!("{busy} are busy")),
            });
            std::thread::sleep(Duration::from_micros(random.below(200_000)));
            assert_eq!(engine.slots_busy(), 1, "it still runs");
            drop(client);
            wait_idle(&engine)
        })
        .collect();
    took.sort_unstable();
    eprintln!(
        "a real engine's slot, left while its answer was put together, {ROUNDS} times: idle after {:?} (p50), {:?} (p100)",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

/// A chat with the real model, of so many words.
fn long_chat(words: usize) -> Vec<u8> {
    let content = "river ".repeat(words);
    let body = json!({
        "model": "smollm2", "stream": true, "max_tokens": 4, "cache_prompt": false,
        "messages": [{"role": "user", "content": content}],
    });
    written(
        "POST",
        "/v1/chat/completions",
        &[],
        body.to_string().as_bytes(),
    )
}

/// What an engine with one slot was seen to do.
#[derive(Default)]
struct Seen {
    readings: u32,
    deferred: f64,
    /// When its slot was idle for the first time after it was left.
    idle: Option<Instant>,
    /// When the next request was in it.
    next: Option<Instant>,
}

fn watch(engine: &Engine, left: &OnceLock<Instant>, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let has_left = left.get().is_some();
        let busy = engine.metric("requests_processing");
        seen.deferred = seen.deferred.max(engine.metric("requests_deferred"));
        seen.readings += 1;
        if has_left && busy == 0.0 {
            seen.idle.get_or_insert_with(Instant::now);
        } else if seen.idle.is_some() {
            seen.next.get_or_insert_with(Instant::now);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    seen
}

#[test]
fn journey_cancel_nobody_is_sent_to_a_slot_that_was_left_in_prefill_until_the_engine_is_done_with_it()
 {
    const OTHERS: usize = 3;
    let engine = Engine::start(Model::SmolLm2, 1, 4_096);
    let orchd = Orchd::serve_home(&[engine.url()], &[]);
    let (left, over) = (OnceLock::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watched = scope.spawn(|| watch(&engine, &left, &over));
        let leaver = begin(&orchd, &long_chat(800));
        eventually(SOON, "the prompt is being read", || {
            match engine.slots_busy() {
                1 => Ok(()),
                busy => Err(format!("{busy} are busy")),
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        drop(leaver);
        let left = *left.get_or_init(Instant::now);
        let quarantined = || Metrics::read(orchd.address).total("orchd_gateway_quarantined");
        eventually(SOON, "the slot is in quarantine", || {
            let slots = quarantined();
            (slots > 0.0)
                .then_some(())
                .ok_or_else(|| format!("{slots} are"))
        });
        let answers = at_once(OTHERS, |_| {
            let response = http::send(orchd.address, &long_chat(5)).expect("an answer");
            let status = response.status;
            (
                status,
                response.text().expect("a whole body"),
                left.elapsed(),
            )
        });
        over.store(true, Ordering::Relaxed);
        let seen = watched.join().expect("no panic");
        let [idle, next] = [seen.idle, seen.next].map(|at| at.expect("it was seen") - left);
        let mut answered: Vec<Duration> = answers.iter().map(|(_, _, after)| *after).collect();
        answered.sort_unstable();
        eprintln!(
            "a client left in prefill; the one slot was idle after {idle:?}, had the next request after {next:?}, and all \
             were answered after {answered:?}; {} readings, at most {} deferred in the engine",
            seen.readings, seen.deferred
        );
        for (status, text, _) in &answers {
            assert_eq!(*status, 200, "{text}");
            assert!(text.ends_with("[DONE]\n\n"), "{text}");
        }
        assert!(seen.readings > 10);
        assert_eq!(seen.deferred, 0.0, "they wait here, not in the engine");
        // There is a reading each second.
        assert!(next - idle < Duration::from_millis(1_500), "{next:?}");
        let metrics = Metrics::read(orchd.address);
        let phase = "phase=\"prefill\"";
        assert_eq!(metrics.sum("orchd_gateway_cancelled_total", phase), 1.0);
    });
}
