//! What is read of a process from outside: its metrics, its descriptors, its memory, and how late this machine is.
//!
//! Used by `gateway_cancel` and `gateway_slots`.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::http;

/// `/metrics` at one moment.
pub struct Metrics(String);

impl Metrics {
    pub fn read(address: SocketAddr) -> Self {
        let response = http::get(address, "/metrics").expect("metrics");
        Self(response.text().expect("all of them"))
    }

    /// The sum of the series of this name whose labels have `label` among them.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let series = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let mut found = false;
        let mut sum = 0.0;
        for rest in series.filter(|rest| rest.starts_with(['{', ' '])) {
            let (labels, value) = rest.rsplit_once(' ').expect("a value");
            found = true;
            if labels.contains(label) {
                sum += value.parse::<f64>().expect("a number");
            }
        }
        assert!(found, "there is no {name} in\n{}", self.0);
        sum
    }

    /// The sum of all series of this name.
    pub fn total(&self, name: &str) -> f64 {
        self.sum(name, "")
    }

    /// What is left of requests: nothing in flight, in quarantine or waiting.
    pub fn at_rest(&self) -> Result<(), String> {
        let names = ["in_flight", "quarantined", "waiting"].map(|n| format!("orchd_gateway_{n}"));
        let left: Vec<String> = names
            .iter()
            .map(|name| (name, self.total(name)))
            .filter(|(_, value)| *value != 0.0)
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join(", "))
        }
    }
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs, and is this user's");
    all.count()
}

/// Memory of a process, in MB: its own share of what it uses, and of that what is no file.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub pss: f64,
    pub anonymous: f64,
}

pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
        let kib: f64 = kib.expect(name).trim().parse().expect("a number");
        kib * 1_024.0 / 1e6
    };
    Memory {
        pss: field("Pss:"),
        anonymous: field("Anonymous:"),
    }
}

/// How long a thread sleeps that measures how late this machine is.
const NAP: Duration = Duration::from_millis(1);

/// Measures how late a thread comes to run on this machine, whatever it does: what a busy machine adds to everything that
/// is measured, and what nobody here can be blamed for.
pub struct Lateness {
    over: Arc<AtomicBool>,
    /// Ends of naps, and by how much they were too late.
    naps: Arc<Mutex<Vec<(Instant, Duration)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Lateness {
    pub fn watch() -> Self {
        let (over, naps) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let (told, noted) = (Arc::clone(&over), Arc::clone(&naps));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(NAP);
                let woken = Instant::now();
                let late = (woken - begun).saturating_sub(NAP);
                noted.lock().expect("not poisoned").push((woken, late));
            }
        });
        Self {
            over,
            naps,
            thread: Some(thread),
        }
    }

    /// The latest that it was between these moments.
    pub fn between(&self, from: Instant, to: Instant) -> Duration {
        let naps = self.naps.lock().expect("not poisoned");
        let within = naps
            .iter()
            .rev()
            .take_while(|(woken, _)| *woken >= from)
            .filter(|(woken, late)| *woken - *late <= to);
        within.map(|(_, late)| *late).max().unwrap_or_default()
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
