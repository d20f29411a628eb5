//! The real `llama-server`, with a model that counts.
//!
//! Used by the journeys and `engine_states`. It comes from `tests/engine/fetch.sh`, by way of `tests/run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::process::{NotReady, Running};
use super::{free_address, http};

/// A loaded machine takes its time; an idle one a quarter of a second.
const START: Duration = Duration::from_secs(20);

/// What an engine serves; see `tests/engine/counting_model.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Counts to forty and ends.
    Counting,
    /// Counts in a circle until `max_tokens`, some hundred words a second.
    Ring,
    /// SmolLM2-135M: a real one, slow enough that reading a long prompt takes seconds.
    Smol,
}

impl Model {
    /// Its name, for the engine and for those who ask it.
    pub fn alias(self) -> &'static str {
        match self {
            Self::Counting => "counting",
            Self::Ring => "ring",
            Self::Smol => "smollm2",
        }
    }
}

/// How an engine is started.
#[derive(Debug, Clone, Copy)]
struct Plan {
    model: Model,
    slots: u32,
    context: u32,
    more: &'static [&'static str],
}

/// A running engine.
pub struct Engine {
    running: Running,
    pub address: SocketAddr,
    plan: Plan,
    dir: TempDir,
}

impl Engine {
    /// Starts one with `slots` slots that share a context of `context` tokens, and waits until it is ready.
    pub fn start(model: Model, slots: u32, context: u32) -> Self {
        Self::start_with(model, slots, context, &[])
    }

    /// The same with more arguments, of which the last word on a matter counts.
    pub fn start_with(
        model: Model,
        slots: u32,
        context: u32,
        more: &'static [&'static str],
    ) -> Self {
        let plan = Plan {
            model,
            slots,
            context,
            more,
        };
        match Self::try_start(plan, free_address()) {
            Ok(engine) => engine,
            // Somebody may have taken the port.
            Err(NotReady::Ended(_)) => {
                Self::try_start(plan, free_address()).unwrap_or_else(|not_ready| not_ready.panic())
            }
            Err(late) => late.panic(),
        }
    }

    /// The same where somebody looks for it already: at an address of [`free_address`].
    pub fn start_at(address: SocketAddr, model: Model, slots: u32, context: u32) -> Self {
        let plan = Plan {
            model,
            slots,
            context,
            more: &[],
        };
        Self::try_start(plan, address).unwrap_or_else(|not_ready| not_ready.panic())
    }

    fn try_start(plan: Plan, address: SocketAddr) -> Result<Self, NotReady> {
        let dir = tempfile::tempdir().expect("a directory for the log");
        let mut engine = Self {
            running: spawn(plan, address, dir.path()),
            address,
            plan,
            dir,
        };
        engine.running.ready(address, "/health", START)?;
        Ok(engine)
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.running.kill9();
    }

    /// Any other signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.running.exited().is_none()
    }

    /// Starts it once more as it was, on the same port.
    pub fn start_again(&mut self) {
        let dir = self.dir.path();
        self.running = spawn(self.plan, self.address, dir);
        self.running
            .ready(self.address, "/health", START)
            .unwrap_or_else(|not_ready| not_ready.panic());
    }

    /// The number the system knows its process by.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether it gave its memory back. Asking neither wakes it nor keeps it awake.
    pub fn is_asleep(&self) -> bool {
        http::get_json(self.address, "/props")["is_sleeping"] == true
    }

    /// How many of its slots work at this moment.
    pub fn slots_busy(&self) -> usize {
        let slots = http::get_json(self.address, "/slots");
        let slots = slots.as_array().expect("a list of slots");
        slots
            .iter()
            .filter(|slot| slot["is_processing"] == Value::Bool(true))
            .count()
    }

    /// One of its metrics, by the name after `llamacpp:`.
    pub fn metric(&self, name: &str) -> f64 {
        let response = http::get(self.address, "/metrics").expect("the engine answers");
        let text = response.text().expect("the engine answers to the end");
        let name = format!("llamacpp:{name}");
        text.lines()
            .find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {name} among the metrics:\n{text}"))
    }

    /// Whether none of its slots works; how many do, if not.
    pub fn idle(&self) -> Result<(), String> {
        match self.slots_busy() {
            0 => Ok(()),
            busy => Err(format!("{busy} slots are busy")),
        }
    }
}

fn spawn(plan: Plan, address: SocketAddr, dir: &Path) -> Running {
    let Plan {
        model,
        slots,
        context,
        more,
    } = plan;
    let home = home();
    let alias = model.alias();
    let mut command = Command::new(home.join("bin/llama-server"));
    command
        .env_clear()
        .env("LD_LIBRARY_PATH", home.join("bin"))
        .current_dir(dir)
        .arg("-m")
        .arg(home.join(alias).with_extension("gguf"))
        .args(["--alias", alias])
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["-np", &slots.to_string(), "-c", &context.to_string()])
        // Several threads wait for each other by spinning, and starve whoever else runs on a small machine.
        .args(["-ngl", "0", "--device", "none", "-t", "1"])
        .args(["--slots", "--metrics"])
        .args(more);
    let name = format!("llama-server {alias} on {address}");
    Running::spawn(&name, &mut command, &dir.join("engine.log"))
}

/// Where `tests/engine/fetch.sh` put the engine.
fn home() -> PathBuf {
    let home = std::env::var_os("ORCHD_TEST_ENGINE_DIR").expect(
        "ORCHD_TEST_ENGINE_DIR names no engine: use `tests/run --quick`, or set it to what `tests/engine/fetch.sh` prints",
    );
    let home = PathBuf::from(home);
    home.canonicalize()
        .unwrap_or_else(|e| panic!("ORCHD_TEST_ENGINE_DIR is {}: {e}", home.display()))
}
