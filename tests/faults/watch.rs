//! What must hold all along: somebody who looks at the control plane every few hundredths of a second, and notes whatever
//! should not be.
//!
//! - A node that lives is not Offline.
//! - A node that is dead is not Online beyond its bound: the timeout and a second, as promised, and what a busy machine
//!   may add to that.
//! - No pool runs more requests than its engine has slots, by the control plane's own count; and no real engine ever has
//!   a request that waits inside it.
//! - A node that is drained gets nothing: what runs there only ever becomes less.
//! - A control plane that nobody stopped answers.
//!
//! Whoever injects a fault says before what becomes of whom. An answer is judged only by what held from before it was
//! asked for until after it had come. Used by all faults of processes and networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::http::{self, Response};

/// The node timeout of every fleet that is watched.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Silence is found so long after the timeout at most (contract §1.2).
const FOUND: Duration = Duration::from_secs(1);
/// What a busy machine may add to a bound.
pub const SLACK: Duration = Duration::from_secs(1);
/// From the death of a node to the moment when nobody may see it Online.
pub const BOUND: Duration = TIMEOUT.saturating_add(FOUND).saturating_add(SLACK);
/// How often it looks: at the control plane, and at each engine.
const STEP: Duration = Duration::from_millis(40);
const ENGINE_STEP: Duration = Duration::from_millis(100);

/// What is true of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// It lives, and its network works.
    Live,
    /// It has said nothing since that moment.
    Dead(Instant),
    /// It is on its way from one to the other, or away by its own word.
    Either,
}

#[derive(Default, Clone)]
struct Facts {
    nodes: BTreeMap<String, Fact>,
    drained: BTreeSet<String>,
    /// The control plane does not run, or was stopped.
    plane_is_away: bool,
    /// Changes with every change.
    turn: u64,
}

#[derive(Default)]
struct Shared {
    facts: Mutex<Facts>,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who watches a control plane.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<u64>>,
    at_engines: Vec<JoinHandle<u64>>,
}

impl Watch {
    /// Begins to watch the control plane there, of live nodes of these names whose pools have so many slots, and these
    /// engines.
    pub fn begin(
        address: SocketAddr,
        nodes: &[&str],
        slots: BTreeMap<&'static str, u64>,
        engines: &[SocketAddr],
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let live = nodes.iter().map(|node| ((*node).to_owned(), Fact::Live));
        lock(&shared.facts).nodes = live.collect();
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut eye = Eye {
                address,
                slots,
                at_drained: BTreeMap::new(),
            };
            let mut looks = 0;
            while !seen.over.load(Ordering::Relaxed) {
                looks += u64::from(eye.look(&seen));
                std::thread::sleep(STEP);
            }
            looks
        });
        let at_engines = engines.iter().map(|&engine| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || nothing_waits(engine, &shared))
        });
        Self {
            at_engines: at_engines.collect(),
            shared,
            thread: Some(thread),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = lock(&self.shared.facts);
        facts.turn += 1;
        change(&mut facts);
    }

    /// From now on this is true of a node.
    pub fn node(&self, node: &str, fact: Fact) {
        self.change(|facts| {
            facts.nodes.insert(node.to_owned(), fact);
        });
    }

    /// From now on a node is drained: that was acknowledged.
    pub fn drained(&self, node: &str) {
        self.change(|facts| {
            facts.drained.insert(node.to_owned());
        });
    }

    /// From now on it no longer is.
    pub fn undrained(&self, node: &str) {
        self.change(|facts| {
            facts.drained.remove(node);
        });
    }

    /// From now on the control plane may be away.
    pub fn plane_is_away(&self) {
        self.change(|facts| facts.plane_is_away = true);
    }

    /// From now on it may not.
    pub fn plane_is_back(&self) {
        self.change(|facts| facts.plane_is_away = false);
    }

    /// Ends it, and checks that nothing was wrong.
    pub fn end(mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        let looks = thread.join().expect("its panic is shown above");
        for thread in self.at_engines.drain(..) {
            let looks = thread.join().expect("its panic is shown above");
            assert!(looks > 5, "it looked at an engine only {looks} times");
        }
        let wrong = lock(&self.shared.wrong);
        assert!(
            wrong.is_empty(),
            "{} things were wrong; the first:\n{}",
            wrong.len(),
            wrong[..wrong.len().min(5)].join("\n")
        );
        assert!(looks > 10, "only {looks} looks could be judged");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic is shown already.
            let _ = thread.join();
            let wrong = lock(&self.shared.wrong);
            for what in wrong.iter().take(5) {
                eprintln!("seen meanwhile: {what}");
            }
        }
    }
}

/// Looks at a real engine as long as it is there and answers, and gives how often that was.
fn nothing_waits(engine: SocketAddr, shared: &Shared) -> u64 {
    let mut looks = 0;
    while !shared.over.load(Ordering::Relaxed) {
        // One that was killed says nothing, and one that is stopped does so later.
        let metrics = http::get(engine, "/metrics").and_then(Response::text);
        let deferred = metrics.ok().and_then(|text| {
            let mut lines = text.lines();
            lines.find_map(|line| {
                line.strip_prefix("llamacpp:requests_deferred ")?
                    .parse()
                    .ok()
            })
        });
        match deferred {
            None => {}
            Some(0.0) => looks += 1,
            Some::<f64>(waiting) => {
                let what = format!("{waiting} requests wait inside the engine at {engine}");
                lock(&shared.wrong).push(what);
            }
        }
        std::thread::sleep(ENGINE_STEP);
    }
    looks
}

struct Eye {
    address: SocketAddr,
    slots: BTreeMap<&'static str, u64>,
    /// What ran at each drained node when it was last seen.
    at_drained: BTreeMap<String, u64>,
}

impl Eye {
    fn list(&self, name: &str) -> Result<Vec<Value>, String> {
        let path = format!("/v2/{name}");
        let ask = || http::get(self.address, &path)?.text();
        let text = ask().map_err(|e| format!("GET {path}: {e}"))?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        match answer[name].take() {
            Value::Array(list) => Ok(list),
            _ => Err(format!("GET {path}: {text}")),
        }
    }

    /// Looks once, and says whether that could be judged.
    fn look(&mut self, shared: &Shared) -> bool {
        let facts = lock(&shared.facts).clone();
        let asked = Instant::now();
        let seen = self
            .list("nodes")
            .and_then(|nodes| Ok((nodes, self.list("pools")?)));
        let (mut wrong, answered) = match seen {
            Ok((nodes, pools)) => {
                let mut wrong = judge(&facts, asked, &nodes);
                wrong.extend(self.count(&facts, &pools));
                (wrong, true)
            }
            Err(_) if facts.plane_is_away => (Vec::new(), false),
            Err(e) => (vec![e], false),
        };
        let holds_still = lock(&shared.facts).turn == facts.turn;
        if holds_still {
            lock(&shared.wrong).append(&mut wrong);
        }
        answered && holds_still
    }

    /// What is wrong with how much runs.
    fn count(&mut self, facts: &Facts, pools: &[Value]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut at_drained = BTreeMap::new();
        for pool in pools {
            let running = pool["running"].as_u64().unwrap_or_default();
            let name = pool["pool_id"].as_str().unwrap_or_default();
            let node = pool["node_id"].as_str().unwrap_or_default();
            match self.slots.get(name) {
                Some(&slots) if running <= slots => {}
                _ => wrong.push(format!("over-committed, or nobody's: {pool}")),
            }
            if facts.drained.contains(node) {
                *at_drained.entry(node.to_owned()).or_default() += running;
            }
        }
        for (node, running) in &at_drained {
            if let Some(before) = self.at_drained.get(node)
                && running > before
            {
                wrong.push(format!(
                    "{node} is drained, and got {running} after {before}"
                ));
            }
        }
        self.at_drained = at_drained;
        wrong
    }
}

/// What is wrong with the words for nodes.
fn judge(facts: &Facts, asked: Instant, nodes: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, fact) in &facts.nodes {
        let node = nodes.iter().find(|node| node["node_id"] == name.as_str());
        let status = node.map(|node| &node["status"]);
        match fact {
            Fact::Live => match node {
                Some(node) if node["status"] != "Offline" => {}
                _ => wrong.push(format!("{name} lives, and is not there: {node:?}")),
            },
            // A drained node that is silent says Offline, too.
            Fact::Dead(since) if asked > *since + BOUND => {
                if status.is_none_or(|status| status != "Offline") {
                    let since = asked - *since;
                    wrong.push(format!("{name} is dead for {since:?}: {node:?}"));
                }
            }
            Fact::Dead(_) | Fact::Either => {}
        }
    }
    wrong
}
