//! Nodes drained under load: nothing new goes there from the acknowledgement on, what runs is finished, and at a deadline
//! it is ended in words that each client understands.
//!
//! Each test prints its figures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::scripted_engine::{Script, ScriptedEngine};
use crate::support::chat::End;
use crate::support::engine::{Engine, Model};
use crate::support::eventually;
use crate::support::http::{self, Begun, written};
use crate::support::in_band::{self, ENDPOINTS};
use crate::support::load::under_load;
use crate::support::orchd::Orchd;

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(20);
/// How long a request that was granted its slot just before the acknowledgement may be on its way to its engine.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
const MODEL: &str = "m";
const NODES: [&str; 2] = ["gpu-1", "gpu-2"];

/// A control plane and one agent for each of these engines.
struct Fleet {
    plane: Orchd,
    _agents: Vec<Orchd>,
    _state: TempDir,
}

impl Fleet {
    fn start(engines: &[String]) -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        // Agents hear of a drain in the reply to a heartbeat.
        let plane = Orchd::serve_cloud(state.path(), &["--node-timeout", "3s"]);
        let agent =
            |(url, node): (&String, &str)| Orchd::agent(&plane.url(), node, &[format!("p={url}")]);
        let agents: Vec<Orchd> = engines.iter().zip(NODES).map(agent).collect();
        eventually(SOON, "every engine is read", || {
            let pools = http::get_json(plane.address, "/v2/pools");
            let all = pools["pools"].as_array().expect("a list");
            if all.iter().filter(|pool| pool["ready"] == true).count() == engines.len() {
                Ok(())
            } else {
                Err(pools.to_string())
            }
        });
        Self {
            plane,
            _agents: agents,
            _state: state,
        }
    }

    fn drain(&self, body: &Value) -> Value {
        let path = format!("/v2/nodes/{}/drain", NODES[0]);
        let response = http::post(self.plane.address, &path, body).expect("an answer");
        assert_eq!(response.status, 202);
        response.json()
    }

    fn drained(&self) -> (Value, Duration) {
        let path = format!("/v2/nodes/{}", NODES[0]);
        eventually(SOON, "it is drained", || {
            let drain = http::get_json(self.plane.address, &path)["drain"].clone();
            match drain["state"] == "drained" {
                true => Ok(drain),
                false => Err(drain.to_string()),
            }
        })
    }
}

fn request(target: &str, stream: bool) -> Vec<u8> {
    let body =
        json!({"model": MODEL, "stream": stream, "messages": [], "input": "x", "prompt": "x"});
    let json = ("content-type", "application/json");
    written("POST", target, &[json], body.to_string().as_bytes())
}

#[test]
fn a_drain_under_load_cuts_nobody_and_nothing_new_arrives_after_its_acknowledgement() {
    const EVENTS: usize = 20;
    let engines = [(); 2].map(|()| ScriptedEngine::start(MODEL, 8));
    for engine in &engines {
        let events = Script::stream().events(EVENTS, Duration::from_millis(20));
        engine.always(events.event("[DONE]").end());
    }
    let fleet = Fleet::start(&engines.each_ref().map(ScriptedEngine::url));
    let address = fleet.plane.address;
    let over = AtomicBool::new(false);
    let chat = request("/v1/chat/completions", true);
    let ask = || {
        let answer = http::send(address, &chat).expect("an answer");
        let node = answer.header("x-orchd-node").unwrap_or_default().to_owned();
        let status = answer.status;
        let text = answer.text().expect("the end of a stream");
        assert_eq!(status, 200, "{text}");
        let last = format!("data: {{\"n\":{EVENTS}}}\n\ndata: [DONE]\n\n");
        assert!(text.ends_with(&last), "{text}");
        node
    };
    let ((acknowledged, before, running, drained), served) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let mut served = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        served.push(ask());
                    }
                    served
                })
            })
            .collect();
        engines[0].wait_for(24);
        let node = fleet.drain(&json!({}));
        let acknowledged = Instant::now();
        let before = engines[1].asked().len();
        let drained = fleet.drained();
        engines[1].wait_for(before + 24);
        over.store(true, Ordering::Relaxed);
        let served = clients
            .into_iter()
            .map(|client| client.join().expect("all of them are served"));
        let served: Vec<String> = served.flatten().collect();
        let running = node["drain"]["in_flight"].clone();
        ((acknowledged, before, running, drained), served)
    });
    let (drain, took) = drained;
    let asked = engines[0].asked();
    let after = asked
        .iter()
        .map(|asked| asked.arrived.saturating_duration_since(acknowledged));
    let latest = after.max().unwrap_or_default();
    let cut = asked.iter().filter(|asked| asked.left.is_some()).count();
    let by_node = served.iter().fold(BTreeMap::new(), |mut by_node, node| {
        *by_node.entry(node.as_str()).or_insert(0_usize) += 1;
        by_node
    });
    eprintln!(
        "drain of one of two nodes under load: {running} in flight, drained after {took:?}; served {by_node:?}, {before} of \
         them by the other before; the last to arrive there did so {latest:?} after the acknowledgement; {drain}"
    );
    assert!(latest < ON_ITS_WAY, "{latest:?}");
    assert_eq!((cut, &drain["cut"]), (0, &json!(0)), "{drain}");
    assert_eq!(drain["in_flight_at_start"], running, "{drain}");
    assert!(
        running.as_u64().is_some_and(|running| running > 0),
        "{drain}"
    );
}

#[test]
fn a_drain_of_a_real_engine_under_load_ends_in_the_terminal_with_its_counts() {
    let engines = [(); 2].map(|()| Engine::start(Model::Ring, 4, 4 * 8_192));
    let fleet = Fleet::start(&engines.each_ref().map(Engine::url));
    let places = ["gpu-1/p", "gpu-2/p"];
    let ((ran, took), told) = under_load(fleet.plane.address, &places, |load| {
        let begun = Instant::now();
        let ran = fleet.plane.command(&["nodes", "drain", NODES[0]]);
        let took = begun.elapsed();
        load.go_on(10);
        (ran, took)
    });
    eprintln!(
        "orchd nodes drain under load of {} requests took {took:?}:\n{}{}",
        told.len(),
        ran.stderr,
        ran.stdout
    );
    for told in &told {
        assert_eq!(told.end, End::Whole, "{told:?}");
    }
    assert_eq!(ran.exit, Some(0), "{ran:?}");
    let finished = ran.stdout.strip_prefix("gpu-1 drained: ");
    let finished = finished.and_then(|rest| rest.strip_suffix(" requests finished, 0 cut\n"));
    let finished: Option<usize> = finished.and_then(|count| count.parse().ok());
    assert!(finished.is_some_and(|count| count >= 2), "{ran:?}");
    assert!(ran.stderr.contains("requests left"), "{ran:?}");
}

/// Requests that run when a drain begins.
struct Running {
    /// One for each endpoint, without end.
    streams: [(&'static str, Begun); 4],
    /// A stream that ends by itself, and soon.
    short: Option<Begun>,
    /// An answer that has not begun.
    waiting: Begun,
    /// An answer in the middle of its body.
    partial: Begun,
}

impl Running {
    fn start(fleet: &Fleet, engine: &ScriptedEngine) -> Self {
        let mut count = 0;
        let mut begin = |target: &str, stream: bool, script: Script| {
            engine.script([script]);
            let request = request(target, stream);
            let begun = http::begin(fleet.plane.address, &request).expect("a connection");
            count += 1;
            engine.wait_for(count);
            begun
        };
        let events = |count| Script::stream().events(count, Duration::from_millis(50));
        let streams = ENDPOINTS.map(|target| (target, begin(target, true, events(500))));
        let short = events(4).event("[DONE]").end();
        let partial = Script::chunked("application/json").chunk("{\"data\":");
        Self {
            streams,
            short: Some(begin("/v1/chat/completions", true, short)),
            waiting: begin("/v1/embeddings", false, Script::new().silence()),
            partial: begin("/v1/embeddings", false, partial.silence()),
        }
    }

    /// Reads the one that ends by itself.
    fn finish(&mut self) {
        let short = self.short.take().expect("it is read once");
        let text = short.answer().expect("an answer").text();
        let text = text.expect("all of it");
        assert!(text.ends_with("{\"n\":4}\n\ndata: [DONE]\n\n"), "{text}");
    }

    /// Checks that all others are ended as they should be. Gives when the last of them was.
    fn ended(self) -> Instant {
        let told = std::thread::scope(|scope| {
            let readers = self.streams.map(|(target, stream)| {
                scope.spawn(move || {
                    let answer = stream.answer().expect("an answer");
                    in_band::ends_with(target, answer.events(), 1, "drain_deadline")
                })
            });
            readers.map(|reader| reader.join().expect("its panic is shown above"))
        });
        let refused = self.waiting.answer().expect("an answer");
        let retry_after = refused.header("retry-after").map(str::to_owned);
        assert_eq!((refused.status, retry_after.as_deref()), (503, Some("1")));
        assert_eq!(refused.json()["error"]["code"], "drain_deadline");
        let partial = self.partial.answer().expect("its head");
        partial
            .text()
            .expect_err("it cannot be taken for all of it");
        let last = told.into_iter().max().expect("there are some");
        last.max(Instant::now())
    }
}

#[test]
fn at_the_deadline_each_client_is_told_in_its_own_dialect_and_the_terminal_counts_them() {
    let engine = ScriptedEngine::start(MODEL, 8);
    let fleet = Fleet::start(&[engine.url()]);
    let mut running = Running::start(&fleet, &engine);
    let asked = Instant::now();
    let command = ["nodes", "drain", NODES[0], "--deadline", "1s"];
    let command = fleet.plane.spawn_command(&command);
    running.finish();
    let last = running.ended() - asked;
    let output = command.wait_with_output().expect("it ends");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    eprintln!("drain with a deadline of 1 s: all had ended after {last:?}\n{stderr}{stdout}");
    assert!(
        Duration::from_secs(1) <= last && last < Duration::from_secs(2),
        "{last:?}"
    );
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stdout, "gpu-1 drained: 1 request finished, 6 cut\n");
    let (drain, _) = fleet.drained();
    assert_eq!(
        (&drain["cut"], &drain["in_flight"]),
        (&json!(6), &json!(0)),
        "{drain}"
    );
    for number in [0, 1, 2, 3, 5, 6] {
        engine.wait_left(number);
    }
}

#[test]
fn by_force_what_runs_is_ended_at_once() {
    let engine = ScriptedEngine::start(MODEL, 8);
    let fleet = Fleet::start(&[engine.url()]);
    let mut running = Running::start(&fleet, &engine);
    let ran = fleet
        .plane
        .command(&["nodes", "drain", NODES[0], "--detach"]);
    assert_eq!(ran.exit, Some(0), "{ran:?}");
    running.finish();
    let command = fleet
        .plane
        .spawn_command(&["nodes", "drain", NODES[0], "--force"]);
    let asked = Instant::now();
    let last = running.ended() - asked;
    let output = command.wait_with_output().expect("it ends");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("drain by force: all had ended after {last:?}\n{stdout}");
    assert!(last < Duration::from_secs(1), "{last:?}");
    assert_eq!(stdout, "gpu-1 drained: 1 request finished, 6 cut\n");
}
