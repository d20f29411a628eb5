//! The real `orchd` as a process: a control plane, an agent, or a command of an operator.
//!
//! Invariants: nothing of the environment of the tests reaches it, its state lies in a directory of the test, and its
//! port is free for it. Used by the journeys.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::fake_control_plane::{Ran, orchd};

use super::free_address;
use super::process::{NotReady, Running};

/// How long a start may take.
const START: Duration = Duration::from_secs(10);

/// A running `orchd serve` or `orchd agent`.
pub struct Orchd {
    running: Running,
    pub address: SocketAddr,
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    ready: &'static str,
    dir: TempDir,
}

impl Orchd {
    /// `orchd serve` for one machine with these engines.
    pub fn serve_home(engines: &[String], more: &[&str]) -> Self {
        let mut arguments = vec!["serve".to_owned()];
        for engine in engines {
            arguments.extend(["--engine".to_owned(), engine.clone()]);
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        Self::start("orchd serve", &arguments, "/readyz")
    }

    /// `orchd serve` for one machine with these engines, guarded by a token in its environment.
    pub fn serve_home_guarded(engines: &[String], token: &'static str) -> Self {
        let mut arguments = vec!["serve".to_owned()];
        for engine in engines {
            arguments.extend(["--engine".to_owned(), engine.clone()]);
        }
        let environment = [("ORCHD_API_TOKEN", token)];
        Self::start_with("orchd serve", &arguments, "/readyz", &environment)
    }

    /// `orchd serve --cloud` with its state in `state_dir`.
    pub fn serve_cloud(state_dir: &Path, more: &[&str]) -> Self {
        Self::serve_cloud_with(state_dir, more, &[])
    }

    /// The same with these variables in its environment.
    pub fn serve_cloud_with(state_dir: &Path, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let state_dir = state_dir.to_str().expect("a path in UTF-8");
        let mut arguments = vec!["serve", "--cloud", "--state-dir", state_dir];
        arguments.extend(more);
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        Self::start_with("orchd serve --cloud", &arguments, "/readyz", environment)
    }

    /// `orchd agent` as node `node_id` with these engines, each `NAME=URL`, and the GPU of a file, so that what is seen of
    /// it does not depend on the machine that runs the tests.
    pub fn agent(server: &str, node_id: &str, engines: &[String]) -> Self {
        Self::agent_with(server, node_id, engines, &[])
    }

    /// The same with more options; another `--gpu-fixture` takes the place of that one.
    pub fn agent_with(server: &str, node_id: &str, engines: &[String], more: &[&str]) -> Self {
        let mut arguments: Vec<String> = ["agent", "--server", server, "--node-id", node_id]
            .map(str::to_owned)
            .to_vec();
        if !more.contains(&"--gpu-fixture") {
            let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpu/h100.json");
            arguments.extend(["--gpu-fixture", fixture].map(str::to_owned));
        }
        for engine in engines {
            arguments.extend(["--engine".to_owned(), engine.clone()]);
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        Self::start(&format!("orchd agent {node_id}"), &arguments, "/health")
    }

    fn start(name: &str, arguments: &[String], ready: &'static str) -> Self {
        Self::start_with(name, arguments, ready, &[])
    }

    fn start_with(
        name: &str,
        arguments: &[String],
        ready: &'static str,
        environment: &[(&str, &str)],
    ) -> Self {
        match Self::try_start(name, arguments, ready, environment) {
            Ok(orchd) => orchd,
            // Somebody may have taken the port.
            Err(NotReady::Ended(_)) => Self::try_start(name, arguments, ready, environment)
                .unwrap_or_else(|not_ready| not_ready.panic()),
            Err(late) => late.panic(),
        }
    }

    fn try_start(
        name: &str,
        arguments: &[String],
        ready: &'static str,
        environment: &[(&str, &str)],
    ) -> Result<Self, NotReady> {
        let dir = tempfile::tempdir().expect("a directory for the log");
        let address = free_address();
        let name = format!("{name} on {address}");
        let mut arguments = arguments.to_vec();
        arguments.extend(["--listen".to_owned(), address.to_string()]);
        let environment: Vec<_> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut running = spawn(&name, &arguments, &environment, dir.path());
        running.ready(address, ready, START)?;
        Ok(Self {
            running,
            address,
            name,
            arguments,
            environment,
            ready,
            dir,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether so many requests wait for a slot of the first pool.
    pub fn waiting(&self, wanted: u64) -> Result<(), String> {
        let pools = super::http::get_json(self.address, "/v2/pools");
        let waiting = &pools["pools"][0]["waiting"];
        if *waiting == wanted {
            Ok(())
        } else {
            Err(format!("{waiting} wait"))
        }
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.running.kill9();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.running.terminate();
    }

    /// Any other signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        self.running.signal(signal);
    }

    /// Waits until it ended, and gives its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        self.running.wait(limit)
    }

    /// The number the system knows its process by.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        self.running.log()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.running.exited().is_none()
    }

    /// Starts it once more as it was: same arguments, same port, same directory.
    pub fn start_again(&mut self) {
        self.begin_again();
        self.running
            .ready(self.address, self.ready, START)
            .unwrap_or_else(|not_ready| not_ready.panic());
    }

    /// The same, and does not wait until it serves: perhaps it does not start.
    pub fn begin_again(&mut self) {
        let (arguments, environment) = (&self.arguments, &self.environment);
        self.running = spawn(&self.name, arguments, environment, self.dir.path());
    }

    /// Runs a command of an operator against it, to its end.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        let output = self.prepared(arguments).output().expect("orchd runs");
        output.into()
    }

    /// Starts a command of an operator against it, its output in pipes.
    pub fn spawn_command(&self, arguments: &[&str]) -> Child {
        self.prepared(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("orchd runs")
    }

    fn prepared(&self, arguments: &[&str]) -> Command {
        let mut command = orchd(arguments);
        command.env("ORCHD_SERVER", self.url());
        command
    }
}

fn spawn(
    name: &str,
    arguments: &[String],
    environment: &[(String, String)],
    dir: &Path,
) -> Running {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = orchd(&arguments);
    command
        .env("HOME", dir)
        .env("RUST_BACKTRACE", "1")
        .envs(environment.iter().cloned())
        .current_dir(dir);
    Running::spawn(name, &mut command, &dir.join("orchd.log"))
}
