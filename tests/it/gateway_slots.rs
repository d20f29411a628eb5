//! Many clients on few slots: in order, without gaps, without harm to each other, and cheaply.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::gateway::{MODEL, SOON, serve_all};
use crate::scripted_engine::{Asked, Script, ScriptedEngine};
use crate::support::chat::ring;
use crate::support::engine::{Engine, Model};
use crate::support::http::{self, written};
use crate::support::orchd::Orchd;
use crate::support::readings::{Lateness, Metrics, memory};
use crate::support::{at_once, eventually};

fn chat(name: &str) -> Vec<u8> {
    let messages = [json!({"role": "user", "content": name})];
    let body = json!({"model": MODEL, "stream": true, "messages": messages, "user": name});
    let headers = [("content-type", "application/json")];
    let target = "/v1/chat/completions";
    written("POST", target, &headers, body.to_string().as_bytes())
}

// Slots.

const CLIENTS: usize = 64;
/// How far apart they arrive, at least.
const APART: Duration = Duration::from_millis(20);

/// What came of the clients of [`share`].
struct Shared {
    /// Requests as they came to an engine, the earliest first.
    asked: Vec<Asked>,
    slots: usize,
    lateness: Lateness,
}

/// Lets the clients come one after the other, each once the one before it waits or runs, and answers all of them.
fn share(engines: &[ScriptedEngine], slots: usize) -> Shared {
    // Of different lengths, so that slots change hands one by one.
    let answer = |words| {
        let events = Script::stream().events(words, Duration::from_millis(30));
        events.event("[DONE]").end()
    };
    for (number, engine) in engines.iter().enumerate() {
        engine.script((0..7).map(|round| answer(8 + (3 * round + number) % 7)));
        engine.always(answer(11));
    }
    let orchd = serve_all(engines, &[]);
    let lateness = Lateness::watch();
    let address = orchd.address;
    let asked = || engines.iter().flat_map(ScriptedEngine::asked);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let begun = Instant::now();
                let client = http::begin(address, &chat(&number.to_string())).expect("taken in");
                let answered = scope.spawn(move || client.answer()?.text());
                eventually(SOON, "it waits or runs", || {
                    // In this order, so that nobody is seen twice.
                    let running = asked().count();
                    let waiting = Metrics::read(address).total("orchd_gateway_waiting");
                    let there = running + waiting as usize;
                    (there > number)
                        .then_some(())
                        .ok_or_else(|| format!("{there} are there"))
                });
                std::thread::sleep(APART.saturating_sub(begun.elapsed()));
                answered
            })
            .collect();
        for client in clients {
            let text = client.join().expect("no panic").expect("a whole answer");
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        }
    });
    let mut asked: Vec<Asked> = asked().collect();
    asked.sort_by_key(|asked| asked.arrived);
    Shared {
        asked,
        slots,
        lateness,
    }
}

impl Shared {
    /// Checks that they were sent in order. Two that are given slots at one moment may overtake each other on the last
    /// step of their way, each on a thread of its own.
    fn in_order(&self) {
        const ONE_MOMENT: Duration = Duration::from_millis(10);
        let numbers: Vec<usize> = (self.asked.iter())
            .map(|asked| asked.json()["user"].as_str().expect("a name").parse())
            .map(|number| number.expect("a number"))
            .collect();
        assert_eq!(numbers.len(), CLIENTS, "each once: {numbers:?}");
        let mut overtaken = Vec::new();
        for (at, asked) in self.asked.iter().enumerate() {
            for (earlier, before) in self.asked[..at].iter().enumerate() {
                if numbers[earlier] > numbers[at] {
                    let by = asked.arrived - before.arrived;
                    overtaken.push(by);
                    let late = self.lateness.between(before.arrived, asked.arrived);
                    // A thread that does not get to run makes that moment long; its turn is still this one.
                    assert!(
                        by <= ONE_MOMENT + 2 * late || at - earlier <= 3,
                        "{} came {by:?} after {}: {numbers:?}",
                        numbers[at],
                        numbers[earlier]
                    );
                }
            }
        }
        eprintln!("{CLIENTS} in order of arrival, but for {overtaken:?} at one moment");
    }

    /// How much of the time in which somebody waited the slots were busy. Printed, and checked.
    fn busy(&self) {
        // All slots have been given for the first time, and there is nobody left to give one to.
        let (from, to) = (
            self.asked[self.slots - 1].arrived,
            self.asked[CLIENTS - 1].arrived,
        );
        let busy: Duration = (self.asked.iter())
            .map(|asked| {
                let finished = asked.finished.expect("it was answered");
                let (begun, ended) = (asked.arrived.max(from), finished.min(to));
                ended.saturating_duration_since(begun)
            })
            .sum();
        let share = busy.as_secs_f64() / (to - from).as_secs_f64() / self.slots as f64;
        let gaps = (self.slots as f64 * (1.0 - share)) * (to - from).as_secs_f64();
        let gap = gaps / (CLIENTS - self.slots) as f64;
        eprintln!(
            "{} slots, for {:?} in which somebody waited: busy for {:.1} % of it; {:.1} ms from one request to the next; \
             the machine was late by {:?} at most",
            self.slots,
            to - from,
            100.0 * share,
            1_000.0 * gap,
            self.lateness.between(from, to)
        );
        assert!(share >= 0.95, "{share}");
    }
}

#[test]
fn sixty_four_clients_keep_two_engines_of_four_slots_busy_in_order_of_arrival() {
    let engines = [
        ScriptedEngine::start(MODEL, 4),
        ScriptedEngine::start(MODEL, 4),
    ];
    let shared = share(&engines, 8);
    shared.in_order();
    shared.busy();
    assert_eq!(engines.each_ref().map(ScriptedEngine::peak), [4, 4]);
    let share = engines.each_ref().map(|engine| engine.asked().len());
    eprintln!("requests by engine: {share:?}");
}

#[test]
fn sixty_four_clients_keep_one_engine_of_eight_slots_busy_in_order_of_arrival() {
    let engines = [ScriptedEngine::start(MODEL, 8)];
    let shared = share(&engines, 8);
    shared.in_order();
    shared.busy();
    assert_eq!(engines[0].peak(), 8);
}

#[test]
fn sixty_four_clients_of_two_real_engines_wait_here_and_not_in_them() {
    let engines = [(); 2].map(|()| Engine::start(Model::Ring, 4, 32_768));
    let named = ["a", "b"].map(str::to_owned);
    let named: Vec<String> = (named.iter().zip(&engines))
        .map(|(name, engine)| format!("{name}={}", engine.url()))
        .collect();
    let orchd = Orchd::serve_home(&named, &[]);
    eventually(SOON, "both are read", || {
        let pools = http::get_json(orchd.address, "/v2/pools").to_string();
        (pools.matches("\"ready\":true").count() == 2)
            .then_some(())
            .ok_or(pools)
    });
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let (answers, seen) = std::thread::scope(|scope| {
        let watches = engines.each_ref().map(|engine| {
            let over = &over;
            scope.spawn(move || {
                let (mut readings, mut busy, mut deferred) = (0_u32, 0.0_f64, 0.0_f64);
                while !over.load(Ordering::Relaxed) {
                    readings += 1;
                    busy = busy.max(engine.metric("requests_processing"));
                    deferred = deferred.max(engine.metric("requests_deferred"));
                    std::thread::sleep(Duration::from_millis(5));
                }
                (readings, busy, deferred)
            })
        });
        let answers = at_once(CLIENTS, |number| {
            let ask = ring(60 + number);
            if number % 4 == 0 {
                ask.whole(orchd.address)
            } else {
                ask.streamed(orchd.address)
            }
        });
        over.store(true, Ordering::Relaxed);
        (
            answers,
            watches.map(|watch| watch.join().expect("no panic")),
        )
    });
    eprintln!(
        "{CLIENTS} clients, two real engines of four slots: all answered in {:?}; readings, most busy, most deferred: {seen:?}",
        begun.elapsed()
    );
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.as_deref(), Ok("local"), "client {number}");
    }
    for (readings, busy, deferred) in seen {
        assert!(readings > 10);
        assert_eq!((busy, deferred), (4.0, 0.0));
    }
}

// Clients that are slow.

/// A connection whose kernel holds little of what its client does not read.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    socket.connect(&address.into()).expect("it is taken in");
    socket.into()
}

/// How long small requests take, one after the other, from their client's view: the median.
fn median_of(address: SocketAddr, count: usize) -> Duration {
    let mut took: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            let response = http::send(address, &chat("quick")).expect("an answer");
            let text = response.text().expect("a whole body");
            assert!(text.ends_with("[DONE]\n\n"), "{text}");
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[count / 2]
}

#[test]
fn a_client_that_reads_a_byte_a_second_slows_nobody_and_gets_all_of_its_answer() {
    const CHUNKS: usize = 768;
    const SLOWLY: Duration = Duration::from_secs(3);
    let engine = ScriptedEngine::start(MODEL, 4);
    let text = format!("data: {}\n\n", "#".repeat(32 << 10));
    // More than all the buffers on its way hold.
    let large = (0..CHUNKS).fold(Script::stream(), |script, _| script.chunk(&text));
    let quick = Script::stream()
        .events(3, Duration::from_millis(2))
        .event("[DONE]");
    let quick = quick.end();
    engine.always(quick);
    let engines = [engine];
    let orchd = serve_all(&engines, &[]);
    let before = median_of(orchd.address, 100);
    let memory_before = memory(orchd.pid());

    let engine = &engines[0];
    let known = engine.asked().len();
    engine.script([large.event("[DONE]").end()]);
    let mut slow = narrow(orchd.address);
    slow.write_all(&chat("slow")).expect("it is taken");
    engine.wait_for(known + 1);
    let begun = Instant::now();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut byte = [0];
        while begun.elapsed() < SLOWLY {
            slow.read_exact(&mut byte).expect("more comes");
            all.push(byte[0]);
            std::thread::sleep(Duration::from_secs(1));
        }
        slow.set_read_timeout(Some(SOON)).expect("an open socket");
        let mut piece = vec![0; 1 << 16];
        while !all.ends_with(b"\r\n0\r\n\r\n") {
            let length = slow.read(&mut piece).expect("more comes");
            assert!(length > 0, "cut off after {} bytes", all.len());
            all.extend_from_slice(&piece[..length]);
        }
        all
    });
    let mut beside = Vec::new();
    while begun.elapsed() + Duration::from_millis(500) < SLOWLY {
        beside.push(median_of(orchd.address, 20));
    }
    beside.sort_unstable();
    let beside = beside[beside.len() / 2];
    // Nobody keeps for it what it does not read: its engine waits.
    let held_back = engine.asked()[known].finished.is_none();
    let kept = memory(orchd.pid()).anonymous - memory_before.anonymous;
    let all = reading.join().expect("no panic");
    let took = begun.elapsed();
    let received = all.iter().filter(|byte| **byte == b'#').count();
    eprintln!(
        "beside a client that reads a byte a second a small answer took {beside:?} (median), {before:?} without it; \
         {kept:.1} MB more were in memory, and it had its {} bytes after {took:?}",
        all.len()
    );
    assert_eq!(received, CHUNKS * (32 << 10));
    assert!(held_back, "the engine could write all of it meanwhile");
    assert!(kept < 4.0, "{kept} MB");
    assert!(beside < before * 3 + Duration::from_millis(20));
    assert!(engine.asked()[known].left.is_none());
}

// Cheap.

const STREAMS: usize = 2_000;
/// In MB, at full load.
const MOST_MEMORY: f64 = 150.0;

/// Lets this process, and those that it starts, have so many descriptors.
fn allow_descriptors(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(
        hard >= count,
        "{hard} descriptors are allowed here, {count} are needed"
    );
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard).expect("within the limit");
}

/// Reads a stream to its end, and gives the number of its events.
async fn read_stream(address: SocketAddr) -> std::io::Result<usize> {
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    socket.write_all(&chat("one of many")).await?;
    let (mut events, mut end) = (0, Vec::new());
    let mut piece = [0; 1_024];
    loop {
        let length = socket.read(&mut piece).await?;
        if length == 0 {
            let end = String::from_utf8_lossy(&end).into_owned();
            return Err(std::io::Error::other(format!("cut off after {end:?}")));
        }
        // An event is written whole, and small.
        events += piece[..length]
            .windows(5)
            .filter(|five| *five == b"data:")
            .count();
        end.extend_from_slice(&piece[..length]);
        end.drain(..end.len().saturating_sub(64));
        if end.ends_with(b"\r\n0\r\n\r\n") {
            return Ok(events);
        }
    }
}

#[test]
fn two_thousand_slow_streams_fit_into_150_mb() {
    const EVENTS: usize = 20;
    const PACE: Duration = Duration::from_millis(250);
    allow_descriptors(STREAMS as u64 * 2 + 200);
    let engine = ScriptedEngine::start(MODEL, STREAMS);
    // The first word comes at once, the others when all are there.
    let answer = Script::stream().event("{}").hold().events(EVENTS, PACE);
    engine.always(answer.event("[DONE]").end());
    let engines = [engine];
    // An eighth of all connections is kept for what is no stream.
    let most = (STREAMS * 8 / 7 + 100).to_string();
    let orchd = serve_all(&engines, &["--max-connections", &most]);
    let before = memory(orchd.pid());
    let begun = Instant::now();
    let address = orchd.address;
    let clients = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut streams = tokio::task::JoinSet::new();
            for number in 0..STREAMS {
                streams.spawn(read_stream(address));
                // Not faster than an engine takes connections in.
                if number % 50 == 0 {
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
            }
            streams.join_all().await
        })
    });
    let engine = &engines[0];
    eventually(4 * SOON, "all of them run", || match engine.busy() {
        STREAMS => Ok(()),
        busy => Err(format!("{busy} do, {} came", engine.asked().len())),
    });
    let running = begun.elapsed();
    (0..STREAMS).for_each(|number| engine.go(number));
    let mut most = memory(orchd.pid());
    eventually(2 * SOON, "the first comes to its end", || {
        let now = memory(orchd.pid());
        if now.pss > most.pss {
            most = now;
        }
        (engine.busy() < STREAMS)
            .then_some(())
            .ok_or_else(|| "all run".to_owned())
    });
    let answers = clients.join().expect("no panic");
    let after = memory(orchd.pid());
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    eprintln!(
        "{STREAMS} streams of an event each {PACE:?} ({profile} build): all ran after {running:?} and had ended after {:?}; \
         PSS {:.1} MB before, {:.1} MB with all of them ({:.1} MB of it no file's), {:.1} MB after; {:.1} KB each",
        begun.elapsed(),
        before.pss,
        most.pss,
        most.anonymous,
        after.pss,
        (most.pss - before.pss) * 1_000.0 / STREAMS as f64
    );
    let whole = answers
        .iter()
        .filter(|events| matches!(events, Ok(count) if *count == EVENTS + 2));
    let broken = answers
        .iter()
        .find(|events| !matches!(events, Ok(count) if *count == EVENTS + 2));
    assert_eq!(whole.count(), STREAMS, "{broken:?}");
    assert!(most.pss <= MOST_MEMORY, "{most:?}");
    assert_eq!(engine.peak(), STREAMS);
}
