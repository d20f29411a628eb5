//! What befalls a whole fleet: everybody at once, nobody any more, two who say they are one, and a wall clock that jumps.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::scripted::{
    Clients, End, Nodes, SLACK, SOON, agrees, call, drain, engine, engine_of_a_drained_node,
    heartbeat, ms, registration, seen, statuses, under_load,
};
use crate::scripted_engine::{Script, ScriptedEngine};
use crate::shims::Shim;
use crate::support::http::{self, written};
use crate::support::load::Raised;
use crate::support::orchd::Orchd;
use crate::support::readings::Metrics;
use crate::support::{at_once, eventually};
use crate::{Fault, Setting};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "registrations",
        inject: registrations,
    },
    Fault {
        name: "silence",
        inject: silence,
    },
    Fault {
        name: "cloned-host",
        inject: cloned_host,
    },
    Fault {
        name: "node-id-twice",
        inject: taken_id,
    },
    Fault {
        name: "clock-steps",
        inject: clock_steps,
    },
];

const JSON: (&str, &str) = ("content-type", "application/json");
const SLOTS: u32 = 4;

/// What an agent does between two attempts: twice as long each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(7));
/// Whoever is not registered after so long has been forgotten.
const REGISTERED: Duration = Duration::from_secs(120);

/// One registration as an agent tries it, until it is acknowledged: how often, and how long it took in all.
async fn register(address: SocketAddr, body: &[u8]) -> (u32, Duration) {
    let begun = Instant::now();
    let headers = [JSON, ("connection", "close")];
    let request = written("POST", "/v2/nodes/register", &headers, body);
    let mut pause = RETRY.0;
    for attempt in 1.. {
        let once = async {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(&request).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        // Three seconds is what an agent gives an attempt.
        match tokio::time::timeout(Duration::from_secs(3), once).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => {
                assert!(answer.contains("\"durable\":true"), "{answer}");
                return (attempt, begun.elapsed());
            }
            Ok(Ok(answer)) => assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}"),
            Ok(Err(_)) | Err(_) => {}
        }
        assert!(begun.elapsed() < REGISTERED, "never registered");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
    unreachable!("it goes on until it is registered")
}

/// Lets this process, and those it starts, open as many files as it may, and gives how many connections that is.
fn many_files() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the system has a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit it is free");
    usize::try_from(most)
        .expect("64 bits")
        .clamp(1_024, 1 << 20)
        - 512
}

/// Ten thousand hosts start within one moment, as after a power cut; two that were there serve on.
fn registrations(setting: &mut Setting) -> String {
    let count: usize = if setting.long { 10_000 } else { 2_000 };
    let places = tokio::sync::Semaphore::new(many_files());
    let state = tempfile::tempdir().expect("a directory for the state");
    let mut server = Orchd::serve_cloud(state.path(), &["--node-timeout", "60s"]);
    let address = server.address;
    let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
    let live = |n: usize| (format!("live-{n}"), heartbeat(Some((&engines[n], SLOTS))));
    let nodes = Nodes::start(address, Duration::from_secs(1), vec![live(0), live(1)]);
    let mut bodies: Vec<Vec<u8>> = (0..count)
        .map(|n| registration(&format!("n{n:05}")).to_string().into_bytes())
        .collect();
    for at in (1..count).rev() {
        let other = setting.random.below(at as u64 + 1);
        bodies.swap(at, usize::try_from(other).expect("small"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let ((took, mut each), asked) = under_load(address, 4, |clients| {
        let begun = Instant::now();
        let each: Vec<(u32, Duration)> = runtime.block_on(async {
            let all = bodies.iter().map(async |body| {
                let _one = places.acquire().await.expect("never closed");
                register(address, body).await
            });
            futures_util::future::join_all(all).await
        });
        let took = begun.elapsed();
        clients.served(8);
        (took, each)
    });
    let all = statuses(address);
    assert_eq!(
        all.len(),
        count + 2,
        "every node that was acknowledged is there"
    );
    let offline: Vec<_> = all.iter().filter(|(_, word)| word == "Offline").collect();
    assert!(offline.is_empty(), "nobody is late yet: {offline:?}");
    let clients_saw = seen(&asked, &[]);
    agrees(address, &asked);
    nodes.end();
    server.kill9();
    let began = Instant::now();
    server.start_again();
    let again = began.elapsed();
    let names = |all: &[(String, String)]| -> Vec<String> {
        all.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(
        names(&statuses(address)),
        names(&all),
        "all are there after kill -9"
    );
    each.sort_by_key(|each| each.1);
    let tries: u32 = each.iter().map(|each| each.0).sum();
    format!(
        "{count} registered and durable in {}, half within {}, the last one in {}, {} attempts had to be made again; \
         {clients_saw}; all there after kill -9, which takes {} to start",
        ms(took),
        ms(each[count / 2].1),
        ms(each[count - 1].1),
        tries as usize - count,
        ms(again)
    )
}

/// How a fleet with a silence is set up.
struct Silence {
    percent: usize,
    nodes: usize,
    timeout: Duration,
    /// The longest that a hold lasts.
    hold: Duration,
}

/// What a list says of a fleet: how many nodes have each word, how many of them are suspect, and the hold.
fn census(address: SocketAddr, word: &str) -> (usize, usize, bool) {
    let list = http::get_json(address, "/v2/nodes?limit=10000");
    let nodes = list["nodes"].as_array().expect("a list");
    let of = |field: &str, value: Value| nodes.iter().filter(|node| node[field] == value).count();
    (
        of("status", json!(word)),
        of("suspect", json!(true)),
        !list["fleet_hold"].is_null(),
    )
}

impl Silence {
    /// The first `percent` of the nodes fall silent. The last node has an engine, and so has the first; one more goes on
    /// beating, and is drained.
    fn run(&self) -> String {
        let state = tempfile::tempdir().expect("a directory for the state");
        let seconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let options = [
            "--node-timeout",
            &seconds(self.timeout),
            "--fleet-hold-max",
            &seconds(self.hold),
        ];
        let server = Orchd::serve_cloud(state.path(), &options);
        let address = server.address;
        let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
        let all = (0..self.nodes).map(|n| {
            let engine = match n {
                0 => Some((&engines[0], SLOTS)),
                last if last == self.nodes - 1 => Some((&engines[1], SLOTS)),
                _ => None,
            };
            (format!("n{n:05}"), heartbeat(engine))
        });
        let drained = engine_of_a_drained_node(SLOTS as usize);
        let aside = ("aside".to_owned(), heartbeat(Some((&drained, SLOTS))));
        let all = all.chain([aside]).collect();
        let nodes = Nodes::start(address, self.timeout / 8, all);
        drain(address, "aside");
        let silent = self.nodes * self.percent / 100;
        let (figures, asked) = under_load(address, 3, |clients| {
            let heard = nodes.silence(silent);
            let begun = Instant::now();
            let figures = if self.percent > 30 {
                self.held(address, silent, (heard, begun), clients)
            } else {
                self.not_held(address, silent, (heard, begun), &engines[0], clients)
            };
            nodes.silence(0);
            let returned = Instant::now();
            let (_, back) = eventually(SOON, "all are Online again", || {
                match census(address, "Online") {
                    (online, 0, false) if online == self.nodes => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
            // Offline is never terminal, and whoever beats is heard: an interval and the time for a list.
            let bound = self.timeout / 8 + SLACK * 2;
            assert!(returned.elapsed() < bound + SLACK, "back in {back:?}");
            clients.served(6);
            format!("{figures}, all Online {} after their return", ms(back))
        });
        // With nobody heard and the hold over, nothing is left to send a request to.
        let codes: &[&str] = if self.percent == 100 {
            &["no_ready_pool"]
        } else {
            &[]
        };
        let clients_saw = seen(&asked, codes);
        agrees(address, &asked);
        nodes.end();
        format!("{} %: {figures}, {clients_saw}", self.percent)
    }

    /// Nobody's silence is as long as the timeout before that has passed since they were heard.
    fn not_early(&self, heard: Instant) {
        let silent = heard.elapsed();
        assert!(silent >= self.timeout, "after {silent:?}");
    }

    /// So few that they are gone: each is Offline within a second of its timeout, and nothing is sent to it from then on.
    fn not_held(
        &self,
        address: SocketAddr,
        silent: usize,
        (heard, begun): (Instant, Instant),
        gone: &ScriptedEngine,
        clients: &Clients,
    ) -> String {
        let limit = self.timeout + Duration::from_secs(1) + SLACK;
        let (_, took) = eventually(limit, "all of them are Offline", || {
            match census(address, "Offline") {
                (offline, _, false) if offline == silent => Ok(()),
                other => Err(format!("{other:?} of {silent}")),
            }
        });
        let took = took.max(begun.elapsed());
        self.not_early(heard);
        let before = gone.asked().len();
        clients.served(6);
        assert_eq!(gone.asked().len(), before, "sent to a node that is Offline");
        assert_eq!(census(address, "Online").0, self.nodes - silent);
        format!("{silent} of {} Offline in {}", self.nodes, ms(took))
    }

    /// So many that the fault is more likely here: nobody goes Offline before the hold has ended, and those who are heard
    /// take all requests while there are such.
    fn held(
        &self,
        address: SocketAddr,
        silent: usize,
        (heard, begun): (Instant, Instant),
        clients: &Clients,
    ) -> String {
        let limit = self.timeout + Duration::from_secs(1) + SLACK;
        eventually(limit, "the hold is on", || {
            match census(address, "Offline") {
                (0, _, true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let began = begun.elapsed();
        self.not_early(heard);
        // Until just before its end nobody is Offline.
        while begun.elapsed() < self.timeout + self.hold - SLACK {
            let (offline, suspect, hold) = census(address, "Offline");
            assert_eq!((offline, suspect, hold), (0, silent, true));
            clients.served(1);
        }
        if self.percent < 100 {
            return format!("{silent} of {} held after {}", self.nodes, ms(began));
        }
        let bound = self.timeout + self.hold + Duration::from_secs(1) + SLACK * 2;
        eventually(
            bound - begun.elapsed(),
            "the hold ends and they are Offline",
            || match census(address, "Offline") {
                (offline, _, false) if offline == silent => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
        let over = begun.elapsed();
        let told = End::Told(503, "no_ready_pool".to_owned());
        eventually(SOON, "a clear error", || {
            let asked = clients.asked();
            match asked.last() {
                Some(asked)
                    if asked.end == told && asked.begun > begun + self.timeout + self.hold =>
                {
                    Ok(())
                }
                last => Err(format!("{last:?}")),
            }
        });
        format!(
            "{silent} of {} held after {}, Offline with the end of the hold after {}",
            self.nodes,
            ms(began),
            ms(over)
        )
    }
}

/// Three fleets, of which so many hosts fall silent in one moment.
fn silence(setting: &mut Setting) -> String {
    let (nodes, timeout) = if setting.long {
        (400, Duration::from_secs(8))
    } else {
        (100, Duration::from_secs(4))
    };
    let percents = [30, 60, 100];
    let figures = at_once(percents.len(), |at| {
        let silence = Silence {
            percent: percents[at],
            nodes,
            timeout,
            hold: timeout,
        };
        silence.run()
    });
    figures.join("; ")
}

/// All that a server has told of a node so far: it tells everything to whoever names a place that it does not know, and
/// all is what came before something that is made to happen now.
fn told(server: &Orchd, node_id: &str) -> Vec<Value> {
    let request = written("GET", "/v2/events", &[("last-event-id", "none-0")], b"");
    let response = http::send(server.address, &request).expect("an answer");
    let mut events = response.events();
    let last = registration("last");
    let (status, _) = call(server.address, "POST", "/v2/nodes/register", &last);
    assert_eq!(status, 200);
    let mut found = Vec::new();
    while let Some(data) = events.next().expect("readable") {
        let event: Value = serde_json::from_str(&data).expect("JSON");
        if event["node_id"] == "last" {
            break;
        }
        if event["node_id"] == node_id {
            found.push(event);
        }
    }
    found
}

/// Starts a second agent of the same name, waits until one of the two ends, and checks that the other one served all
/// along, and that so many processes became the node, once each. Gives the end in words.
fn second_agent(machines: [&str; 2], expected_end: usize, says: &str, processes: usize) -> String {
    let state = tempfile::tempdir().expect("a directory for the state");
    let server = Orchd::serve_cloud(state.path(), &["--node-timeout", "3s"]);
    let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
    let agent = |at: usize| {
        let more = ["--machine-id", machines[at]];
        Orchd::agent_with(&server.url(), "n", &[engines[at].url()], &more)
    };
    let online = || {
        eventually(SOON, "it is Online", || {
            match call(server.address, "GET", "/v2/nodes/n", &Value::Null) {
                (200, node)
                    if node["status"] == "Online" && node["pool_status"][0]["ready"] == true =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        });
    };
    let first = agent(0);
    online();
    let ((took, log, _agents), asked) = under_load(server.address, 3, |clients| {
        let begun = Instant::now();
        let mut agents = [first, agent(1)];
        let code = agents[expected_end].wait(SOON);
        let took = begun.elapsed();
        let log = agents[expected_end].log();
        assert_eq!(code, Some(4), "{log}");
        let kept = 1 - expected_end;
        assert!(agents[kept].is_running(), "{}", agents[kept].log());
        clients.served(6);
        // Three intervals in which they could push each other out.
        let before = engines[expected_end].asked().len();
        let watch = Instant::now();
        while watch.elapsed() < Duration::from_secs(3) {
            let (_, node) = call(server.address, "GET", "/v2/nodes/n", &Value::Null);
            assert_eq!(
                (&node["status"], &node["machine_id"]),
                (&json!("Online"), &json!(machines[kept]))
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(
            engines[expected_end].asked().len(),
            before,
            "it still gets requests"
        );
        assert!(agents[kept].is_running(), "{}", agents[kept].log());
        (took, log, agents)
    });
    let error = log.lines().find(|line| line.contains(says));
    assert!(error.is_some(), "it does not say {says:?}:\n{log}");
    let told = told(&server, "n");
    let count = |kind: &str| told.iter().filter(|event| event["type"] == kind).count();
    let changes = [
        "node.registered",
        "node.online",
        "node.offline",
        "node.departed",
    ]
    .map(count);
    let once_each = [processes, processes, 0, 0];
    assert_eq!(changes, once_each, "it flaps: {told:?}");
    // Whoever was served through the one that ended.
    let clients_saw = seen(
        &asked,
        &["worker_reset", "upstream_failed", "no_ready_pool"],
    );
    agrees(server.address, &asked);
    format!(
        "{} ended with exit 4 after {}; never Offline; {clients_saw}",
        if expected_end == 0 {
            "the first"
        } else {
            "the second"
        },
        ms(took)
    )
}

/// Two hosts from one image: same name, same machine id. The later process is the node.
fn cloned_host(_: &mut Setting) -> String {
    second_agent(
        ["same", "same"],
        0,
        "another agent has registered as node n",
        2,
    )
}

/// Two machines under one name: the one that holds it keeps it.
fn taken_id(_: &mut Setting) -> String {
    second_agent(["one", "other"], 1, "belongs to machine \"one\"", 1)
}

/// So many seconds off from now on.
fn step(clock: &Shim, seconds: i64) {
    clock.say(&seconds.to_ne_bytes());
}

/// The wall clock of the control plane is stepped by hours, both ways, while drains run and nodes beat.
fn clock_steps(setting: &mut Setting) -> String {
    const NODES: usize = 8;
    const DRAIN: Duration = Duration::from_millis(1_200);
    let place = tempfile::tempdir().expect("a directory for the state");
    let clock = Shim::build("clock", place.path(), &0_i64.to_ne_bytes());
    let environment = clock.environment("FAULTS_CLOCK");
    let options = ["--node-timeout", "3s"];
    let state = place.path().join("state");
    let mut server = Orchd::serve_cloud_with(&state, &options, &environment);
    let address = server.address;
    let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
    // Answers nothing but the head, until it is ended from outside.
    let slow = ScriptedEngine::start("slow", SLOTS as usize);
    slow.always(Script::stream().event("{}").silence());
    let mut all: Vec<(String, Value)> = (0..NODES)
        .map(|n| {
            (
                format!("n{n}"),
                heartbeat(engines.get(n).map(|e| (e, SLOTS))),
            )
        })
        .collect();
    let mut beat = heartbeat(Some((&slow, SLOTS)));
    beat["pools"][0]["models_available"] = json!(["slow"]);
    all.push(("drained".to_owned(), beat));
    let nodes = Nodes::start(address, Duration::from_millis(400), all);

    let mut offsets: Vec<i64> = vec![3_600, -7_200, 26 * 3_600, -400 * 86_400];
    for _ in 0..if setting.long { 8 } else { 1 } {
        let hours = i64::try_from(setting.random.below(200)).expect("small") - 100;
        offsets.push(hours * 3_600 + 17);
    }
    offsets.push(0);
    let over = AtomicBool::new(false);
    let ((late, oldest), asked) = under_load(address, 3, |clients| {
        std::thread::scope(|scope| {
            let raised = Raised(&over);
            let watch = scope.spawn(|| nobody_is_offline(address, &over));
            let mut late = Duration::ZERO;
            for &offset in &offsets {
                late = late.max(drain_over_a_step(address, &clock, offset, DRAIN));
                clients.served(3);
            }
            drop(raised);
            (late, watch.join().expect("nobody was Offline"))
        })
    });
    assert!(oldest < 3_000, "an age of {oldest} ms");
    let clients_saw = seen(&asked, &[]);
    // The streams of the drained node are requests of their own.
    let metrics = Metrics::read(address);
    let cut = metrics.total("orchd_drain_cut_requests_total");
    assert_eq!(cut, offsets.len() as f64);
    // And over a restart, far in the past.
    nodes.end();
    step(&clock, -1_000 * 86_400);
    server.kill9();
    server.start_again();
    let words = statuses(address);
    assert_eq!(words.len(), NODES + 1);
    assert!(words.iter().all(|(_, word)| word != "Offline"), "{words:?}");
    format!(
        "{} steps of up to 400 days: nobody Offline, no age above {oldest} ms, drains of {} at most {} late, none early; \
         {clients_saw}; nobody Offline after a restart 1,000 days back",
        offsets.len(),
        ms(DRAIN),
        ms(late)
    )
}

/// Looks all the time, and gives the greatest age of a heartbeat that was shown, in ms.
fn nobody_is_offline(address: SocketAddr, over: &AtomicBool) -> u64 {
    let mut oldest = 0;
    while !over.load(Ordering::Relaxed) {
        let list = http::get_json(address, "/v2/nodes");
        for node in list["nodes"].as_array().expect("a list") {
            assert_ne!(node["status"], "Offline", "{node}");
            let age = node["last_heartbeat_age_ms"].as_u64().expect("a number");
            oldest = oldest.max(age);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    oldest
}

/// A drain with a deadline while something runs, over a step: how much later than its deadline that was ended.
fn drain_over_a_step(
    address: SocketAddr,
    clock: &Shim,
    offset: i64,
    deadline: Duration,
) -> Duration {
    let body = json!({"model": "slow", "stream": true, "messages": []}).to_string();
    let request = written("POST", "/v1/chat/completions", &[JSON], body.as_bytes());
    let mut running = http::send(address, &request).expect("an answer").events();
    assert_eq!(running.next().expect("readable").as_deref(), Some("{}"));
    let order = json!({"deadline_ms": u64::try_from(deadline.as_millis()).expect("small")});
    let asked = Instant::now();
    let (status, node) = call(address, "POST", "/v2/nodes/drained/drain", &order);
    assert_eq!(status, 202, "{node}");
    let before = node["drain"]["started_at_ms"].as_i64().expect("a time");
    step(clock, offset);
    let (_, node) = call(address, "GET", "/v2/nodes/drained", &Value::Null);
    let left = node["drain"]["remaining_ms"].as_u64().expect("a number");
    assert!(u128::from(left) <= deadline.as_millis(), "{node}");
    let last = running.next().expect("a proper end").expect("a last event");
    let took = asked.elapsed();
    assert!(last.contains("drain_deadline"), "{last}");
    assert!(
        took >= deadline && took < deadline + Duration::from_secs(1) + SLACK,
        "ended after {took:?}"
    );
    let (status, node) = call(address, "DELETE", "/v2/nodes/drained/drain", &Value::Null);
    assert_eq!((status, &node["status"]), (200, &json!("Online")));
    // What people are shown is the stepped clock's: the step did happen.
    let shown = node["last_heartbeat_ms"].as_i64().expect("a time");
    let real = i64::try_from(orchd::clock::Clock::new().wall().0).expect("small");
    let off = shown - real - offset * 1_000;
    assert!(off.abs() < 10_000, "{off} ms off, with {before} before");
    took - deadline
}
