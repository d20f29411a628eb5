//! The hot paths, each walked again and again: for counting instructions.
//!
//! `hot PATH COUNT` walks one of them so often; `tests/bench/instructions` runs it twice under callgrind, with less and with
//! more, takes the difference, and holds it below a bound. Whatever is prepared does not depend on COUNT. Without
//! arguments (`cargo bench`) it only shows that each of them works.
//!
//! - `place-10`, `place-40000`: a request is placed, begins to be answered, and gives its slot back, in a fleet of so many
//!   pools, a third of whose slots are taken.
//! - `release`: a slot comes back and is given to the first in line, in a fleet of 40,000 full pools; one more waits.
//! - `heartbeat`: a heartbeat of four pools is read and decided as the API does it, in a fleet of a hundred nodes.
//! - `decide`: the registry alone decides the same heartbeat.
//! - `frames`: a piece of a stream passes, and what it tells of its answer is read off.
//!
//! Predicted before they were first measured: 2,000 instructions for a placement of 10 pools and 3,000 for one of 40,000,
//! 2,500 for a release, 25,000 for a heartbeat, two thirds of them for reading 1 KiB of JSON, 1,500 to decide it, 300
//! for a piece of a stream.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use orchd::admission::{self, Admission};
use orchd::clock::Clock;
use orchd::control::{self, Control};
use orchd::dispatch::{
    self, Dispatch, Grant, ModelIx, Offer, PoolSpec, Quarantine, Ticket, Verdict, Want,
};
use orchd::metrics::Course;
use orchd::registry::{self, Intent, Registry};
use orchd::store::MemoryStore;
use orchd::types::{
    HeartbeatRequest, Mono, NodeId, NodeStatus, Now, Object, RegisterRequest, UnixMs,
};
use serde_json::json;

const NODES: usize = 100;
/// How often each path is walked where nobody says it, and at most.
const ONCE: usize = 100;
const MOST: usize = 2_000;
/// Models that the pools serve, beside the one that all of them serve.
const MODELS: usize = 50;
const SLOTS: u32 = 4;
/// Requests that wait while slots come back.
const LINE: usize = 64;

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let Some(path) = arguments.next() else {
        for (_, walk) in PATHS {
            walk(ONCE);
        }
        return println!("each path was walked {ONCE} times");
    };
    let count = arguments.next().and_then(|count| count.parse().ok());
    let count: usize = count.expect("a number of times");
    assert!(count <= MOST, "at most {MOST} times");
    let walk = PATHS.iter().find(|(name, _)| *name == path);
    walk.expect("one of the paths").1(count);
}

/// Walks a path so often.
type Walk = fn(usize);

const PATHS: [(&str, Walk); 6] = [
    ("place-10", |count| place(10, count)),
    ("place-40000", |count| place(40_000, count)),
    ("release", release),
    ("heartbeat", heartbeat),
    ("decide", decide),
    ("frames", frames),
];

/// Pools that each serve one of several models, and all of them one more.
struct Fleet {
    dispatch: Dispatch,
    common: ModelIx,
    now: Mono,
    verdicts: Vec<(Ticket, Verdict)>,
}

impl Fleet {
    fn new(pools: usize) -> Self {
        let mut dispatch = Dispatch::new(dispatch::Settings {
            queue_capacity: 1_024,
            policy: dispatch::Policy::Reject,
            queue_bytes: 1 << 28,
            queue_timeout_ms: 300_000,
            no_pool_wait_ms: 5_000,
            sample_ttl_ms: 20_000,
        });
        let common = dispatch.add_model();
        let models: Vec<ModelIx> = (0..MODELS).map(|_| dispatch.add_model()).collect();
        for pool in 0..pools {
            let spec = PoolSpec {
                models: vec![common, models[pool % MODELS]],
                accepting: true,
                prospective: true,
                suspect: false,
                slots_total: SLOTS,
                n_ctx: Some(8_192),
            };
            dispatch.add_pool(Mono(0), spec);
        }
        Self {
            dispatch,
            common,
            now: Mono(1),
            verdicts: Vec::new(),
        }
    }

    /// One request for the model that all serve.
    fn offer(&mut self) -> Offer {
        self.now = self.now.plus(1);
        let turn = self.dispatch.arrive(self.now);
        let want = Want {
            model: self.common,
            weight: 1,
            bytes: 1_000,
            min_ctx: 0,
            avoid: None,
        };
        self.dispatch.offer(self.now, turn, black_box(want))
    }

    fn granted(&mut self) -> Grant {
        match self.offer() {
            Offer::Granted(grant) => grant,
            other => panic!("there is room, and yet: {other:?}"),
        }
    }

    /// A request ends well, and whoever is next gets its slot.
    fn release(&mut self, grant: Grant) -> Option<Grant> {
        let Self { dispatch, now, .. } = self;
        dispatch.release(*now, grant, true, Quarantine::No);
        dispatch.pump(*now, &mut self.verdicts);
        match self.verdicts.pop()? {
            (_, Verdict::Granted(next)) => Some(next),
            (ticket, other) => panic!("{ticket:?} waits for a slot, and yet: {other:?}"),
        }
    }
}

fn place(pools: usize, count: usize) {
    let mut fleet = Fleet::new(pools);
    let slots = pools * SLOTS as usize;
    let mut running: VecDeque<Grant> = (0..slots / 3).map(|_| fleet.granted()).collect();
    for grant in &running {
        fleet.dispatch.answering(*grant);
    }
    for _ in 0..count {
        let grant = fleet.granted();
        fleet.dispatch.answering(grant);
        running.push_back(grant);
        let first = running.pop_front().expect("some run");
        assert_eq!(fleet.release(first), None, "nobody waits");
    }
}

fn release(count: usize) {
    let pools = 40_000;
    let mut fleet = Fleet::new(pools);
    let slots = pools * SLOTS as usize;
    let mut running: VecDeque<Grant> = (0..slots).map(|_| fleet.granted()).collect();
    for grant in &running {
        fleet.dispatch.answering(*grant);
    }
    for _ in 0..LINE {
        assert_eq!(fleet.offer(), Offer::Queued);
    }
    for _ in 0..count {
        let first = running.pop_front().expect("all slots are taken");
        let next = fleet.release(first).expect("somebody waits");
        fleet.dispatch.answering(next);
        running.push_back(next);
        assert_eq!(fleet.offer(), Offer::Queued);
    }
}

/// A heartbeat of four pools.
fn body(node: usize) -> Vec<u8> {
    let pools: Vec<_> = (0..4)
        .map(|pool| {
            json!({
                "pool_id": format!("pool-{pool}"), "ready": true, "draining": false, "slots_free": pool, "slots_total": 4,
                "vram_free_bytes": 18_000_000_000_u64, "engine": "llamacpp", "state": "ready", "engine_version": "b6000-abcdef",
                "models_available": [format!("model-{pool}"), "qwen3-8b"], "n_ctx": 8_192, "in_flight": 0,
            })
        })
        .collect();
    let beat = json!({
        "timestamp": "2025-09-30T22:00:00Z", "instance_id": format!("instance-{node}"), "pools": pools,
        "health": {"status": "ok", "reasons": []},
    });
    beat.to_string().into_bytes()
}

fn read(body: &[u8]) -> HeartbeatRequest {
    let Object(request) = serde_json::from_slice(body).expect("a heartbeat");
    request
}

fn registration(node: usize) -> RegisterRequest {
    let body = json!({
        "node_id": format!("gpu-node-{node}"), "address": "http://10.0.0.1:9200", "instance_id": format!("instance-{node}"),
    });
    serde_json::from_value(body).expect("a registration")
}

/// As little as possible goes on beside the heartbeats.
const HOLD: control::HoldSettings = control::HoldSettings {
    min: 5,
    percent: 30,
    max_ms: 600_000,
};
const NODE_TIMEOUT_MS: u64 = 3_600_000;

fn heartbeat(count: usize) {
    let clock = Clock::new();
    let admission = Admission::new(
        clock,
        admission::Settings {
            queue_capacity: 1_024,
            policy: admission::Policy::Reject,
            queue_bytes: 1 << 28,
            queue_timeout_ms: 300_000,
            no_pool_wait_ms: 5_000,
            sample_ttl_ms: 20_000,
        },
    );
    let settings = control::Settings {
        node_timeout_ms: NODE_TIMEOUT_MS,
        heartbeat_interval_ms: 10_000,
        stale_check_interval_ms: 10_000,
        restart_grace_ms: 30_000,
        hold: HOLD,
    };
    let store = Box::new(MemoryStore::default());
    let control =
        Control::start(clock, settings, Arc::clone(&admission), store).expect("memory is there");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let nodes: Vec<(NodeId, Vec<u8>)> = (0..NODES)
        .map(|node| {
            let request = registration(node);
            let node_id = request.node_id.clone();
            runtime
                .block_on(control.register(request))
                .expect("it registers");
            (node_id, body(node))
        })
        .collect();
    // What is new is written behind; what follows is not.
    for (node_id, body) in &nodes {
        control.beat(node_id, read(body)).expect("it is known");
    }
    for (node_id, body) in nodes.iter().cycle().take(count) {
        let request = read(black_box(body));
        let reply = control.beat(node_id, request).expect("it is known");
        assert_eq!(black_box(reply).status, NodeStatus::Online);
    }
    control.stop();
}

fn decide(count: usize) {
    let at = |ms: usize| {
        let ms = u64::try_from(ms).expect("not that late");
        let (mono, wall) = (Mono(ms), UnixMs(1_700_000_000_000 + ms));
        Now { mono, wall }
    };
    let mut registry = Registry::new(registry::Settings {
        node_timeout_ms: NODE_TIMEOUT_MS,
        restart_grace_ms: 30_000,
        hold: HOLD,
    });
    let nodes: Vec<(NodeId, HeartbeatRequest)> = (0..NODES)
        .map(|node| {
            let request = registration(node);
            let node_id = request.node_id.clone();
            let intent = Intent::Register(Box::new(request));
            let change = registry.decide(at(0), &intent).expect("it registers");
            registry.commit(at(0), change);
            let beat = read(&body(node));
            registry
                .beat(at(0), &node_id, beat.clone())
                .expect("it is known");
            (node_id, beat)
        })
        .collect();
    let beats: Vec<(&NodeId, HeartbeatRequest)> = (nodes.iter().cycle().take(MOST))
        .map(|(node_id, beat)| (node_id, beat.clone()))
        .collect();
    for (after, (node_id, beat)) in beats.into_iter().take(count).enumerate() {
        let beat = registry.beat(at(after), node_id, black_box(beat));
        assert!(!black_box(beat).expect("it is known").routes_changed);
    }
}

fn frames(count: usize) {
    let piece = |nth: usize| {
        format!(
            "data: {{\"choices\":[{{\"finish_reason\":null,\"index\":0,\"delta\":{{\"content\":\" word{nth}\"}}}}],\
             \"created\":1759269600,\"id\":\"chatcmpl-Yv4hJ0fZ8n\",\"model\":\"qwen3-8b\",\
             \"system_fingerprint\":\"b6000-abcdef\",\"object\":\"chat.completion.chunk\"}}\n\n"
        )
    };
    let pieces: Vec<String> = (0..10).map(piece).collect();
    let mut course = Course::new();
    for piece in pieces.iter().cycle().take(count) {
        course.pass(black_box(piece.as_bytes()));
    }
    assert_eq!(course.tokens(), Some(count as u64));
}
