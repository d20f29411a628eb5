//! Clients that leave, at any moment: the engine sees it at once, and nothing is left of them.
//!
//! `ORCHD_TEST_SEED` repeats a run that failed. Moments are taken by the clock of this process, which is the engine's,
//! too; what the machine itself was late meanwhile is not held against orchd, and is shown.

use std::net::Shutdown;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::gateway::{SOON, begin, serve_all, wait_waiting};
use crate::scripted_engine::{Asked, Script, ScriptedEngine};
use crate::support::http::{self, Begun, Response, written};
use crate::support::orchd::Orchd;
use crate::support::readings::{Lateness, Metrics, descriptors};
use crate::support::secure::{Authority, Process, https, https_begin, write};
use crate::support::seed::Random;
use crate::support::{at_once, eventually};

/// Those who leave in the test of that name.
const LEAVERS: usize = 200;
/// How long the upstream of a client that left may stay open (contract §3).
const CLOSED_WITHIN: Duration = Duration::from_millis(100);
/// How long its slot may count as busy: until a reading, of which there is one after a second at the latest.
const FREE_WITHIN: Duration = Duration::from_millis(1_500);
/// Kept connections to engines are closed after five seconds by an engine, after three by orchd.
const IDLE_GONE_WITHIN: Duration = Duration::from_secs(8);
/// What an engine answers.
const ANSWER: &str = r#"{"object":"list","data":[]}"#;

/// When a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Queued,
    Prefill,
    Stream,
}

impl Moment {
    const ALL: [Self; 3] = [Self::Queued, Self::Prefill, Self::Stream];

    /// What orchd calls it.
    fn phase(self) -> &'static str {
        match self {
            Self::Queued => "queue",
            Self::Prefill => "prefill",
            Self::Stream => "stream",
        }
    }
}

/// A request of this model with a name in it.
fn request(path: &str, model: &str, name: &str, stream: bool) -> Vec<u8> {
    let messages = [json!({"role": "user", "content": name})];
    let body = json!({"model": model, "stream": stream, "messages": messages, "prompt": name});
    let headers = [("content-type", "application/json")];
    written("POST", path, &headers, body.to_string().as_bytes())
}

fn chat(model: &str, stream: bool) -> Vec<u8> {
    request("/v1/chat/completions", model, "hi", stream)
}

/// A frame of a stream of chat.
fn frame(content: &str) -> String {
    let choice = json!({"index": 0, "delta": {"content": content}, "finish_reason": null});
    let frame = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
    frame.to_string()
}

/// A stream that begins, goes on for a few events, and falls silent.
fn begun_stream() -> Script {
    let first = Script::stream().event(&frame("one"));
    (0..3)
        .fold(first, |script, _| {
            script
                .pause(Duration::from_millis(10))
                .event(&frame(" more"))
        })
        .silence()
}

/// How long it took until those who left were gone, and how late the machine was meanwhile.
#[derive(Default)]
struct Gone(Vec<(Duration, Duration)>);

impl Gone {
    fn add(&mut self, lateness: &Lateness, left: Instant, seen: Instant) {
        let took = seen.saturating_duration_since(left);
        self.0.push((took, lateness.between(left, seen)));
    }

    /// Prints the figures, and checks the slowest.
    fn check(&mut self, what: &str) {
        self.0.sort_unstable();
        let took = |share: usize| self.0[(self.0.len() - 1) * share / 100].0;
        let late = self.0.iter().map(|(_, late)| *late).max();
        eprintln!(
            "{what}, {} times: gone after {:?} (p50), {:?} (p90), {:?} (p100); the machine was late by {:?} at most",
            self.0.len(),
            took(50),
            took(90),
            took(100),
            late.unwrap_or_default()
        );
        for (took, late) in &self.0 {
            // Two threads have to run one after the other: orchd's, and the engine's.
            assert!(
                *took <= CLOSED_WITHIN + 2 * *late,
                "{what}: {took:?}, and the machine was late by {late:?}"
            );
        }
    }
}

/// The most descriptors that a process at rest is seen to have.
fn descriptors_at_rest(orchd: &Orchd) -> usize {
    let looks = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(25));
        descriptors(orchd.pid())
    });
    looks.max().expect("some")
}

/// Waits until nothing is left of anybody, and says how long that took.
fn wait_at_rest(orchd: &Orchd, descriptors_before: usize) {
    let rest = || Metrics::read(orchd.address).at_rest();
    let (_, free) = eventually(FREE_WITHIN, "nothing runs, waits or is in quarantine", rest);
    let (after, closed) = eventually(IDLE_GONE_WITHIN, "no descriptor is left over", || {
        let now = descriptors(orchd.pid());
        (now <= descriptors_before)
            .then_some(now)
            .ok_or_else(|| format!("{now} are open, {descriptors_before} were"))
    });
    eprintln!(
        "at rest after {free:?}; descriptors: {descriptors_before} before, {after} after {closed:?}"
    );
}

#[test]
fn two_hundred_clients_leave_at_random_moments_and_nothing_is_left_of_them() {
    let mut random = Random::seeded();
    // One engine for each moment: full, silent, and in the middle of its answer.
    let full = ScriptedEngine::start("full", 1);
    let silent = ScriptedEngine::start("silent", 32);
    let talking = ScriptedEngine::start("talking", 32);
    full.always(Script::new().silence());
    silent.always(Script::new().silence());
    talking.always(begun_stream());
    let orchd = serve_all(&[&full, &silent, &talking], &[]);
    let descriptors_before = descriptors_at_rest(&orchd);
    let running = begin(&orchd, &chat("full", true));
    full.wait_for(1);

    let lateness = Lateness::watch();
    let mut gone = [Gone::default(), Gone::default(), Gone::default()];
    // By whether the client wanted a stream.
    let mut done = [[0_usize; 2]; 3];
    for number in 0..LEAVERS {
        let moment = Moment::ALL[usize::try_from(random.below(3)).expect("small")];
        let stream = random.below(2) == 0;
        // Of the others none is made to stream on its way.
        let paths = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
        let path = paths[usize::try_from(random.below(3)).expect("small")];
        let longer = Duration::from_micros(random.below(25_000));
        let name = format!("leaver {number}");
        done[moment as usize][usize::from(stream)] += 1;
        let (left, seen) = match moment {
            Moment::Queued => {
                let client = begin(&orchd, &request(path, "full", &name, stream));
                wait_waiting(&orchd, 1);
                std::thread::sleep(longer);
                let left = Instant::now();
                drop(client);
                wait_waiting(&orchd, 0);
                (left, Instant::now())
            }
            Moment::Prefill => {
                let before = silent.asked().len();
                let client = begin(&orchd, &request(path, "silent", &name, stream));
                silent.wait_for(before + 1);
                std::thread::sleep(longer);
                let left = Instant::now();
                drop(client);
                (left, silent.wait_left(before))
            }
            Moment::Stream => {
                let before = talking.asked().len();
                // The answer is one of chat.
                let mut client = begin(&orchd, &request(paths[0], "talking", &name, stream));
                if stream {
                    let answer = client.ask(b"").expect("an answer");
                    let first = answer.events().next().expect("no break");
                    assert!(first.is_some_and(|data| data.contains("one")));
                } else {
                    talking.wait_for(before + 1);
                    talking.wait_began(before);
                }
                std::thread::sleep(longer);
                let left = Instant::now();
                drop(client);
                (left, talking.wait_left(before))
            }
        };
        gone[moment as usize].add(&lateness, left, seen);
    }
    for (moment, gone) in Moment::ALL.into_iter().zip(&mut gone) {
        gone.check(&format!("clients leave, phase {}", moment.phase()));
    }

    drop(running);
    full.wait_left(0);
    wait_at_rest(&orchd, descriptors_before);
    let metrics = Metrics::read(orchd.address);
    let counted = Moment::ALL.map(|moment| {
        let phase = format!("phase=\"{}\"", moment.phase());
        metrics.sum("orchd_gateway_cancelled_total", &phase) as usize
    });
    eprintln!("left, by phase and without or with a stream: {done:?}; counted: {counted:?}");
    let [queued, prefill, streaming] = done.map(|both| both[0] + both[1]);
    assert_eq!(counted[0], queued, "in the queue");
    // One more in prefill held the slot. Of a client that has got nothing yet nobody can say here whether its engine's
    // first words had already come to orchd.
    assert_eq!(counted[1] + counted[2], prefill + streaming + 1);
    assert!((done[2][1]..=streaming).contains(&counted[2]));
    assert_eq!(full.asked().len(), 1, "nobody who only waited was sent");
    assert!(metrics.sum("orchd_gateway_retries_total", "") == 0.0);
}

#[test]
fn a_crowd_that_leaves_at_one_time_leaves_nothing() {
    const CROWD: usize = 120;
    let mut random = Random::seeded();
    let engine = ScriptedEngine::start("m", 16);
    // Silent for a moment, then an event now and then: whenever somebody leaves, others are queued, in prefill and in the
    // middle of a stream.
    let slow = Script::stream().pause(Duration::from_millis(20));
    let slow = (0..8).fold(slow, |script, _| {
        script
            .pause(Duration::from_millis(10))
            .event(&frame(" word"))
    });
    engine.always(slow.event("[DONE]").end());
    let orchd = serve_all(&[&engine], &[]);
    let descriptors_before = descriptors_at_rest(&orchd);
    let stays: Vec<Duration> = (0..CROWD)
        .map(|_| Duration::from_micros(random.below(600_000)))
        .collect();
    let address = orchd.address;
    let ended = at_once(CROWD, |number| {
        let stream = number % 2 == 0;
        let client = http::begin(address, &chat("m", stream)).expect("a connection");
        let socket = client.into_stream();
        // Reads for as long as it stays, so that answers come to their end, too.
        let until = Instant::now() + stays[number];
        let mut read = Vec::new();
        let mut piece = [0; 4_096];
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            socket
                .set_read_timeout(Some(rest.max(Duration::from_millis(1))))
                .expect("an open socket");
            match std::io::Read::read(&mut &socket, &mut piece) {
                Ok(0) => panic!("orchd closed: {}", String::from_utf8_lossy(&read)),
                Ok(length) => read.extend_from_slice(&piece[..length]),
                Err(_) => {}
            }
            if read.ends_with(b"0\r\n\r\n") {
                return true;
            }
        }
    });
    let answered = ended.iter().filter(|whole| **whole).count();
    wait_at_rest(&orchd, descriptors_before);
    let asked = engine.asked();
    let left = asked.iter().filter(|asked| asked.left.is_some()).count();
    let cancelled = Metrics::read(orchd.address).total("orchd_gateway_cancelled_total");
    eprintln!(
        "of {CROWD} clients {answered} stayed for a whole answer; {} requests came to the engine, {left} were left there; \
         {cancelled} counted as cancelled",
        asked.len()
    );
    assert!(cancelled <= (CROWD - answered) as f64);
    assert!(engine.peak() > 8, "slots were used");
}

#[test]
fn a_client_that_half_closes_has_left() {
    let silent = ScriptedEngine::start("silent", 16);
    let talking = ScriptedEngine::start("talking", 16);
    silent.always(Script::new().silence());
    talking.always(begun_stream());
    let orchd = serve_all(&[&silent, &talking], &[]);
    let lateness = Lateness::watch();
    let mut gone = Gone::default();
    for number in 0..20 {
        let (engine, model) = if number % 2 == 0 {
            (&silent, "silent")
        } else {
            (&talking, "talking")
        };
        let client = begin(&orchd, &chat(model, true)).into_stream();
        engine.wait_for(number / 2 + 1);
        let left = Instant::now();
        client.shutdown(Shutdown::Write).expect("an open socket");
        gone.add(&lateness, left, engine.wait_left(number / 2));
    }
    gone.check("clients close their side");
}

#[test]
fn a_client_that_leaves_after_the_last_byte_has_cancelled_nothing() {
    const ROUNDS: usize = 40;
    let engine = ScriptedEngine::start("m", 1);
    let stream = || {
        let begun = Script::stream().event(&frame("one")).event("[DONE]");
        begun.end()
    };
    engine.always(stream());
    let orchd = serve_all(&[&engine], &[]);
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let response = http::send(orchd.address, &chat("m", true)).expect("an answer");
        let text = response.text().expect("a whole body");
        assert!(text.ends_with("[DONE]\n\n"), "{text}");
    }
    let took = begun.elapsed();
    let metrics = Metrics::read(orchd.address);
    let connections = engine.asked().iter().map(|asked| asked.connection).max();
    eprintln!(
        "{ROUNDS} answers, each read to its last byte and left, in one slot: {took:?}, on connections up to {connections:?}"
    );
    assert_eq!(metrics.total("orchd_gateway_cancelled_total"), 0.0);
    assert!(engine.asked().iter().all(|asked| asked.left.is_none()));
    // Each slot came back at once: a quarantine lasts until the next reading.
    assert!(took < Duration::from_millis(50) * 40, "{took:?}");
}

#[test]
fn a_client_that_read_nothing_and_leaves_has_left() {
    let engine = ScriptedEngine::start("m", 16);
    engine.always(Script::stream().flood(64 << 10));
    let orchd = serve_all(&[&engine], &[]);
    let lateness = Lateness::watch();
    let mut gone = Gone::default();
    for number in 0..4 {
        let client = begin(&orchd, &chat("m", true));
        engine.wait_for(number + 1);
        engine.wait_stuck(number);
        let left = Instant::now();
        drop(client);
        gone.add(&lateness, left, engine.wait_left(number));
    }
    gone.check("clients leave that have stopped to read");
    let rest = || Metrics::read(orchd.address).at_rest();
    eventually(FREE_WITHIN, "nothing is left", rest);
}

#[test]
fn a_client_that_leaves_behind_tls_is_gone_as_soon() {
    let engine = ScriptedEngine::start("m", 16);
    engine.always(begun_stream());
    let authority = Authority::new("orchd tests");
    let issued = authority.issue();
    let dir = tempfile::tempdir().expect("a directory");
    let cert = write(dir.path(), "cert.pem", &issued.cert);
    let key = write(dir.path(), "key.pem", &issued.key);
    let (url, ca) = (engine.url(), authority.pem());
    let arguments = [
        "serve",
        "--engine",
        &url,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let orchd = Process::start(&arguments, &[]);
    eventually(SOON, "the engine is read", || {
        let request = written("GET", "/v1/models/m", &[("connection", "close")], b"");
        let answer = https(orchd.address, &ca, &request).map_err(|e| e.to_string())?;
        (answer.contains("\"ready\"")).then_some(()).ok_or(answer)
    });
    let lateness = Lateness::watch();
    let mut gone = Gone::default();
    for number in 0..12 {
        let more: &[u8] = if number % 2 == 0 { b"" } else { b"\r\n" };
        let request = [&chat("m", true)[..], more].concat();
        let client = https_begin(orchd.address, &ca, &request).expect("a connection");
        engine.wait_for(number + 1);
        engine.wait_began(number);
        let left = Instant::now();
        drop(client);
        gone.add(&lateness, left, engine.wait_left(number));
    }
    gone.check("clients leave behind TLS, half of them with more than a request sent");
}

#[test]
fn a_client_that_leaves_is_gone_at_the_engine_behind_an_agent_as_soon() {
    let engine = ScriptedEngine::start("m", 16);
    engine.always(begun_stream());
    let state = tempfile::tempdir().expect("a directory for the state");
    let plane = Orchd::serve_cloud(state.path(), &[]);
    let agent = Orchd::agent(&plane.url(), "n", &[engine.named("e")]);
    eventually(SOON, "its pool is ready", || {
        let pools = http::get_json(plane.address, "/v2/pools");
        (pools["pools"][0]["ready"] == true)
            .then_some(())
            .ok_or_else(|| pools.to_string())
    });
    let before = [&plane, &agent].map(descriptors_at_rest);
    let lateness = Lateness::watch();
    let mut gone = Gone::default();
    for number in 0..20 {
        let client = begin(&plane, &chat("m", true));
        engine.wait_for(number + 1);
        if number % 2 == 0 {
            engine.wait_began(number);
        }
        let left = Instant::now();
        drop(client);
        gone.add(&lateness, left, engine.wait_left(number));
    }
    gone.check("clients leave whose engine is behind an agent");
    for (orchd, before) in [&plane, &agent].into_iter().zip(before) {
        eventually(IDLE_GONE_WITHIN, "no descriptor is left over", || {
            let now = descriptors(orchd.pid());
            (now <= before)
                .then_some(())
                .ok_or_else(|| format!("{now} are open, {before} were"))
        });
    }
}

/// What clients may send behind the request that is in hand.
fn behind() -> [Vec<u8>; 3] {
    let next = chat("m", true);
    // An empty line, as some old clients send it, and the next request, of which hyper reads a part only.
    let large = request("/v1/embeddings", "m", &"x".repeat(12_000), false);
    [b"\r\n".to_vec(), next, large]
}

#[test]
fn a_client_that_sent_more_than_its_request_can_still_leave() {
    let full = ScriptedEngine::start("full", 1);
    let silent = ScriptedEngine::start("silent", 16);
    let talking = ScriptedEngine::start("talking", 16);
    full.always(Script::new().silence());
    silent.always(Script::new().silence());
    talking.always(begun_stream());
    let orchd = serve_all(&[&full, &silent, &talking], &[]);
    let _running = begin(&orchd, &chat("full", true));
    full.wait_for(1);
    let lateness = Lateness::watch();
    let mut gone = Gone::default();
    let mut number = 0;
    for more in behind() {
        for late in [false, true] {
            let sent = |model: &str| {
                let request = chat(model, true);
                if late {
                    return begin(&orchd, &request);
                }
                begin(&orchd, &[&request[..], &more].concat())
            };
            let and_more = |client: &mut Begun| {
                if late {
                    client.more(&more).expect("it is taken");
                }
            };
            let mut client = sent("full");
            wait_waiting(&orchd, 1);
            and_more(&mut client);
            let left = Instant::now();
            drop(client);
            wait_waiting(&orchd, 0);
            gone.add(&lateness, left, Instant::now());

            for (engine, model) in [(&silent, "silent"), (&talking, "talking")] {
                let mut client = sent(model);
                engine.wait_for(number + 1);
                and_more(&mut client);
                let left = Instant::now();
                drop(client);
                gone.add(&lateness, left, engine.wait_left(number));
            }
            number += 1;
        }
    }
    gone.check("clients leave that had sent more than a request");
}

#[test]
fn a_request_that_came_behind_another_is_answered_after_it() {
    let engine = ScriptedEngine::start("m", 1);
    engine.always(Script::whole(200, ANSWER).held());
    let orchd = serve_all(&[&engine], &[]);
    let embed = |name: &str| request("/v1/embeddings", "m", name, false);
    for (round, length) in [(0, 10), (1, 12_000), (2, 200_000)] {
        let before = round * 2;
        let name = "y".repeat(length);
        let mut client = begin(&orchd, b"");
        client.more(&embed("first")).expect("it is taken");
        engine.wait_for(before + 1);
        let body = embed(&name);
        let (some, rest) = body.split_at(body.len() / 2);
        client.more(some).expect("it is taken");
        engine.go(before);
        let first = client.ask(rest).expect("an answer");
        assert_eq!(first.text().expect("a whole body"), ANSWER);
        let asked = engine.wait_for(before + 2);
        assert_eq!(asked.json()["prompt"], *name);
        engine.go(before + 1);
        let second: Response = client.ask(b"").expect("an answer");
        assert_eq!(second.text().expect("a whole body"), ANSWER);
    }
    let asked: Vec<Asked> = engine.asked();
    assert_eq!(asked.len(), 6);
}
