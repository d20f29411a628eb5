//! What befalls the store while clients and operators go on: a disk that is full, read-only or broken, in spells, and a
//! file that is damaged. Whatever was acknowledged is there afterwards, whatever was refused is not (but see a broken
//! disk), and the gateway serves as if nothing were.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::scripted::{
    Asked, Nodes, SOON, agrees, call, drain, engine, engine_of_a_drained_node, heartbeat, ms,
    registration, seen, under_load,
};
use crate::shims::Shim;
use crate::support::http::{self, written};
use crate::support::load::Raised;
use crate::support::orchd::Orchd;
use crate::support::readings::Metrics;
use crate::support::seed::Random;
use crate::support::{at_once, eventually};
use crate::{Fault, Setting};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "disk-full",
        inject: |setting| disk(setting, Errno::ENOSPC),
    },
    Fault {
        name: "disk-read-only",
        inject: |setting| disk(setting, Errno::EROFS),
    },
    Fault {
        name: "disk-broken",
        inject: |setting| disk(setting, Errno::EIO),
    },
    Fault {
        name: "store-damaged",
        inject: damaged,
    },
];

const SLOTS: u32 = 4;
/// Operators that change nodes of their own, one after the other.
const OPERATORS: usize = 3;
const NODES_OF_AN_OPERATOR: u64 = 6;
/// How long the disk fails at a time, and works in between.
const SPELL: Duration = Duration::from_millis(900);

/// What must be known of a node: the reason of its drain, if there is one.
type Known = BTreeMap<String, Option<String>>;

/// What operators did.
#[derive(Default)]
struct Done {
    known: Known,
    acknowledged: usize,
    refused: usize,
    /// The last change of each operator, if it was refused: its node, and what it would have come to.
    refused_last: Vec<(String, Option<Option<String>>)>,
    /// The slowest answer.
    slowest: Duration,
}

/// One change of one node: 2xx and it holds, 503 and it does not.
fn change(address: SocketAddr, random: &mut Random, operator: usize, done: &mut Done) {
    let node_id = format!("x{operator}-{}", random.below(NODES_OF_AN_OPERATOR));
    let path = format!("/v2/nodes/{node_id}");
    let before = done.known.get(&node_id);
    let reason = format!("reason {}", random.next());
    let drain = json!({"reason": reason});
    let (method, path, body, after) = match (before, random.below(3)) {
        (None, _) => {
            let register = "/v2/nodes/register".to_owned();
            ("POST", register, registration(&node_id), Some(None))
        }
        (Some(None), 0) | (Some(Some(_)), 0) => {
            let path = format!("{path}?forget=true");
            ("DELETE", path, Value::Null, None)
        }
        (Some(Some(_)), 1) => {
            let path = format!("{path}/drain");
            ("DELETE", path, Value::Null, Some(None))
        }
        (Some(_), _) => {
            let path = format!("{path}/drain");
            ("POST", path, drain, Some(Some(reason)))
        }
    };
    let begun = Instant::now();
    let (status, answer) = call(address, method, &path, &body);
    done.slowest = done.slowest.max(begun.elapsed());
    done.refused_last.clear();
    match status {
        200..300 => {
            assert_ne!(answer["durable"], false, "{method} {path}: {answer}");
            done.acknowledged += 1;
            match after {
                Some(drain) => done.known.insert(node_id, drain),
                None => done.known.remove(&node_id),
            };
        }
        503 => {
            assert_eq!(
                answer["code"], "STORE_UNAVAILABLE",
                "{method} {path}: {answer}"
            );
            done.refused += 1;
            done.refused_last.push((node_id, after));
        }
        _ => panic!("{method} {path}: {status} {answer}"),
    }
}

/// Has operators change nodes until the act is over.
fn operated(
    address: SocketAddr,
    random: &mut Random,
    act: impl FnOnce(&Mutex<[usize; 2]>),
) -> Done {
    let over = AtomicBool::new(false);
    let counts = Mutex::new([0; 2]);
    let seeds: Vec<u64> = (0..OPERATORS).map(|_| random.next()).collect();
    let each: Vec<Done> = std::thread::scope(|scope| {
        let (over, counts) = (&over, &counts);
        let operators: Vec<_> = (0..OPERATORS)
            .map(|operator| {
                let mut random = Random(seeds[operator]);
                scope.spawn(move || {
                    let mut done = Done::default();
                    while !over.load(Ordering::Relaxed) {
                        let before = [done.acknowledged, done.refused];
                        change(address, &mut random, operator, &mut done);
                        let mut counts = counts.lock().expect("not poisoned");
                        counts[0] += done.acknowledged - before[0];
                        counts[1] += done.refused - before[1];
                    }
                    done
                })
            })
            .collect();
        let raised = Raised(over);
        act(counts);
        drop(raised);
        let each = operators
            .into_iter()
            .map(|operator| operator.join().expect("its panic is shown above"));
        each.collect()
    });
    let mut all = Done::default();
    for done in each {
        all.known.extend(done.known);
        all.acknowledged += done.acknowledged;
        all.refused += done.refused;
        all.refused_last.extend(done.refused_last);
        all.slowest = all.slowest.max(done.slowest);
    }
    all
}

/// What the control plane knows of the nodes of operators, those included that left and are still drained.
fn known(address: SocketAddr) -> Known {
    let mut known = Known::new();
    for path in [
        "/v2/nodes?limit=10000",
        "/v2/nodes?limit=10000&departed=true",
    ] {
        let list = http::get_json(address, path);
        for node in list["nodes"].as_array().expect("a list") {
            let name = node["node_id"].as_str().expect("a name");
            let reason = node["drain"]["reason"].as_str().map(str::to_owned);
            if name.starts_with('x') {
                known.insert(name.to_owned(), reason);
            }
        }
    }
    known
}

/// A control plane whose state lies on a disk that can fail.
struct OnDisk {
    shim: Shim,
    place: tempfile::TempDir,
}

impl OnDisk {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory for the state");
        fs::create_dir(place.path().join("state")).expect("it can be made");
        let shim = Shim::build("disk", place.path(), &0_i32.to_ne_bytes());
        Self { shim, place }
    }

    fn serve(&self) -> Orchd {
        let state = self.place.path().join("state");
        let mut environment = self.shim.environment("FAULTS_DISK_ERRNO").to_vec();
        environment.push(("FAULTS_DISK", state.to_str().expect("UTF-8")));
        Orchd::serve_cloud_with(&state, &["--node-timeout", "5s"], &environment)
    }

    fn fail(&self, error: Option<Errno>) {
        let number = error.map_or(0, |error| error as i32);
        self.shim.say(&number.to_ne_bytes());
    }
}

/// What holds while nothing can be written: the refusal is clear, and what needs no disk goes on.
fn while_it_fails(address: SocketAddr, revision: usize) {
    let body = registration("stranger").to_string();
    let json = [("content-type", "application/json")];
    let request = written("POST", "/v2/nodes/register", &json, body.as_bytes());
    let refused = http::send(address, &request).expect("an answer");
    assert!(refused.header("retry-after").is_some(), "when to try again");
    let (status, refused) = (refused.status, refused.json());
    assert_eq!(status, 503, "{refused}");
    assert_eq!(refused["code"], "STORE_UNAVAILABLE");
    let (status, _) = call(address, "GET", "/v2/nodes/stranger", &Value::Null);
    assert_eq!(status, 404, "a refused registration left a trace");
    let mut again = registration("live-0");
    again["version"] = format!("0.{revision}.0").into();
    let (status, reply) = call(address, "POST", "/v2/nodes/register", &again);
    assert_eq!((status, &reply["durable"]), (200, &json!(false)), "{reply}");
    assert_eq!(Metrics::read(address).total("orchd_store_durable"), 0.0);
}

/// The disk fails in spells, with this error, and works in between; at last the server is killed, by chance in a spell.
fn disk(setting: &mut Setting, error: Errno) -> String {
    let spells = if setting.long { 12 } else { 3 };
    let disk = OnDisk::new();
    let mut server = disk.serve();
    let address = server.address;
    let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
    let drained = engine_of_a_drained_node(SLOTS as usize);
    let live = |n: usize| (format!("live-{n}"), heartbeat(Some((&engines[n], SLOTS))));
    let aside = ("aside".to_owned(), heartbeat(Some((&drained, SLOTS))));
    let nodes = vec![live(0), live(1), aside];
    let nodes = Nodes::start(address, Duration::from_millis(500), nodes);
    drain(address, "aside");
    let mut longest = Duration::ZERO;
    let dies_in_a_spell = setting.random.below(2) == 0;
    let (done, asked) = under_load(address, 3, |clients| {
        operated(address, &mut setting.random, |counts| {
            let count = |which: usize| counts.lock().expect("not poisoned")[which];
            let wait_for = |which: usize, what: &str| {
                let before = count(which);
                let more = || match count(which) - before {
                    0..4 => Err(format!("{}", count(which) - before)),
                    _ => Ok(()),
                };
                eventually(SOON, what, more).1
            };
            wait_for(0, "changes are acknowledged");
            for spell in 0..spells {
                disk.fail(Some(error));
                let begun = Instant::now();
                wait_for(1, "changes are refused");
                while_it_fails(address, spell);
                clients.served(4);
                std::thread::sleep(SPELL.saturating_sub(begun.elapsed()));
                if spell + 1 == spells && dies_in_a_spell {
                    return;
                }
                disk.fail(None);
                // Nobody has to do anything for it.
                longest = longest.max(wait_for(0, "changes are acknowledged again"));
                std::thread::sleep(SPELL / 3);
            }
        })
    });
    assert_eq!(
        known(address),
        done.known,
        "what is shown is what was acknowledged"
    );
    let clients_saw = seen(&asked, &[]);
    agrees(address, &asked);
    nodes.end();
    server.kill9();
    disk.fail(None);
    server.start_again();
    let there = known(address);
    let mut expected = done.known;
    if error == Errno::EIO {
        // Of what was written and could not be synced nobody can say whether it is there after a crash: the last of it may
        // be, whole.
        for (node_id, after) in done.refused_last {
            match (there.get(&node_id), after) {
                (Some(found), Some(after)) if *found == after => expected.insert(node_id, after),
                (None, None) => expected.remove(&node_id),
                _ => None,
            };
        }
    }
    assert_eq!(there, expected, "after kill -9");
    let (_, aside) = call(address, "GET", "/v2/nodes/aside", &Value::Null);
    assert_eq!(aside["status"], "Draining", "{aside}");
    format!(
        "{spells} spells: {} changes acknowledged (again {} after a spell at the latest), {} refused, the slowest answer in \
         {}; {clients_saw}; all that was acknowledged there after kill -9{}",
        done.acknowledged,
        ms(longest),
        done.refused,
        ms(done.slowest),
        if dies_in_a_spell {
            " within a spell"
        } else {
            ""
        }
    )
}

/// Overwrites pages of the database, as a disk that forgets does.
fn damage(database: &Path, random: &mut Random, pages: u64) {
    const PAGE: u64 = 4_096;
    let file = fs::File::options()
        .write(true)
        .open(database)
        .expect("it is there");
    let all = file.metadata().expect("it is readable").len() / PAGE;
    assert!(all > 4, "{all} pages are too few");
    for _ in 0..pages {
        let noise: Vec<u8> = (0..PAGE / 8)
            .flat_map(|_| random.next().to_ne_bytes())
            .collect();
        let written = file.write_all_at(&noise, random.below(all) * PAGE);
        written.expect("it can be written");
    }
}

/// Files of a store that a refused start must leave as they are.
const FILES: [&str; 2] = ["orchd.db", "orchd.db-wal"];

fn files(state: &Path) -> [Option<Vec<u8>>; 2] {
    FILES.map(|name| fs::read(state.join(name)).ok())
}

/// A control plane whose database has several pages, with what lies in them.
fn grown(state: &Path) -> (Orchd, Known) {
    let mut server = Orchd::serve_cloud(state, &["--node-timeout", "5s"]);
    at_once(4, |part| {
        for n in 0..60 {
            let body = registration(&format!("x-old-{part}-{n}"));
            let (status, _) = call(server.address, "POST", "/v2/nodes/register", &body);
            assert_eq!(status, 200);
        }
    });
    let old = known(server.address);
    // All of it in the file, as after some thousand changes.
    server.terminate();
    assert_eq!(server.wait(SOON), Some(0));
    server.start_again();
    (server, old)
}

/// Begins a start, and says whether it comes to one.
fn starts(server: &mut Orchd) -> bool {
    server.begin_again();
    let look = || {
        if !server.is_running() {
            return Ok(false);
        }
        match http::get(server.address, "/readyz") {
            Ok(response) if response.status == 200 => Ok(true),
            Ok(response) => Err(response.status.to_string()),
            Err(e) => Err(e.to_string()),
        }
    };
    eventually(SOON, "it starts or refuses to", look).0
}

/// Serves under load, has operators change nodes, damages the database meanwhile or after `kill -9`, and starts it again:
/// what operators did, what clients saw, and whether it started.
fn damaged_once(random: &mut Random, while_it_runs: bool) -> (Done, Vec<Asked>, bool) {
    let state = tempfile::tempdir().expect("a directory for the state");
    let database = state.path().join("orchd.db");
    let (mut server, old) = grown(state.path());
    let address = server.address;
    let engines = [engine(SLOTS as usize), engine(SLOTS as usize)];
    let live = |n: usize| (format!("live-{n}"), heartbeat(Some((&engines[n], SLOTS))));
    let nodes = Nodes::start(address, Duration::from_millis(500), vec![live(0), live(1)]);
    let mut noise = Random(random.next());
    let (mut done, asked) = under_load(address, 3, |clients| {
        operated(address, random, |_| {
            clients.served(6);
            if while_it_runs {
                damage(&database, &mut noise, 3);
            }
            std::thread::sleep(SPELL);
            clients.served(6);
        })
    });
    done.known.extend(old);
    assert_eq!(known(address), done.known, "it goes on with what it knows");
    agrees(address, &asked);
    nodes.end();
    server.kill9();
    let whole = files(state.path());
    if !while_it_runs {
        damage(&database, &mut noise, 3);
    }
    let before = files(state.path());
    let started = starts(&mut server);
    if started {
        let there = known(address);
        assert_eq!(there, done.known, "it started, and has lost something");
        return (done, asked, started);
    }
    let log = server.log();
    let error = log.lines().rfind(|line| line.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("it does not say why:\n{log}"));
    let path = database.to_str().expect("UTF-8");
    for part in [path, "damaged", "not been touched"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert!(files(state.path()) == before, "it was touched");
    if !while_it_runs {
        // What a copy is for.
        for (name, content) in FILES.iter().zip(whole) {
            if let Some(content) = content {
                fs::write(state.path().join(name), content).expect("it can be written");
            }
        }
        server.start_again();
        assert_eq!(known(address), done.known, "with the copy all is there");
    }
    (done, asked, started)
}

/// The store is damaged under a server that runs, and then under one that was killed.
fn damaged(setting: &mut Setting) -> String {
    let rounds = if setting.long { 8 } else { 2 };
    let (mut acknowledged, mut refused, mut all_asked, mut starts) = (0, 0, Vec::new(), 0);
    for round in 0..rounds {
        let while_it_runs = round % 2 == 0;
        let (done, asked, started) = damaged_once(&mut setting.random, while_it_runs);
        acknowledged += done.acknowledged;
        refused += done.refused;
        all_asked.extend(asked);
        starts += usize::from(started);
    }
    // In a few rounds the damage may lie where nobody reads; in many it is noticed.
    assert!(
        !setting.long || starts < rounds,
        "no damage was noticed in {rounds} rounds"
    );
    format!(
        "{rounds} times: {}, {acknowledged} changes acknowledged and {refused} refused meanwhile; {starts} started again and \
         had everything, {} refused to, named the file and touched nothing; all there with a copy",
        seen(&all_asked, &[]),
        rounds - starts,
    )
}
