//! The parts of a demo as one: started in order, watched, and ended in order.
//!
//! Invariants: a part that ends is told of and not started again; agents are ended before the control plane, so that they
//! leave its list, and engines last; when this is dropped, nothing of it runs any more.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};

use crate::client::{Client, ClientError};
use crate::types::HttpUrl;

use super::part::{Line, Part, Role, how};
use super::place::Place;

/// Silence after which a node is Offline: short, for somebody who waits for it.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long running requests may go on after a stop.
const GRACE: Duration = Duration::from_secs(1);
/// How much longer than that a part may take to end.
const END: Duration = Duration::from_secs(2);
/// How often it is looked whether a part is ready.
const LOOK: Duration = Duration::from_millis(50);
/// How often it is looked for ended parts besides when the system tells.
const TICK: Duration = Duration::from_secs(1);
/// How long a part may take for one answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a part is started with another port because somebody has taken the one that was free.
const TRIES: usize = 3;
/// Requests a llama-server works on at one time, and the context they share.
const SLOTS: &str = "2";
const CONTEXT: &str = "8192";

/// Which engines the nodes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engines {
    /// Orchd's own, which is no language model.
    BuiltIn,
    /// A llama-server each.
    LlamaServer {
        /// The executable.
        program: PathBuf,
        /// What it serves.
        model: PathBuf,
        /// The model's name.
        alias: String,
        /// What it is told besides, last.
        arguments: Vec<OsString>,
    },
}

/// What a demo is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This executable.
    pub orchd: PathBuf,
    /// Where the control plane listens.
    pub listen: SocketAddr,
    /// How many nodes there are.
    pub nodes: u32,
    /// What is on each.
    pub engines: Engines,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The directory or a process.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: Cow<'static, str>,
        /// Why it failed.
        source: io::Error,
    },
    /// A part did not come up.
    #[error("{role} ended at once ({how}):\n{tail}")]
    Ended {
        /// Which.
        role: Role,
        /// In words.
        how: String,
        /// The end of its log.
        tail: String,
    },
    /// The control plane cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The engines cannot be asked.
    #[error("cannot set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// The parts, all of them.
#[derive(Debug)]
pub struct Fleet {
    settings: Settings,
    /// The control plane, then an engine a node, then an agent a node.
    parts: Vec<Part>,
    children: Signal,
    client: Client,
    http: reqwest::Client,
    // Goes when the parts are gone.
    place: Place,
}

impl Fleet {
    /// Starts the control plane and the engines. To be called on the thread that lives as long as the process: the kernel
    /// ends parts with the thread that started them.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn start(settings: Settings) -> Result<Self, DemoError> {
        let children = signal(SignalKind::child()).map_err(system("cannot hear of processes"))?;
        let temporary = std::env::temp_dir();
        let place = Place::make_in(&temporary).map_err(system(format!(
            "cannot make a directory in {} (TMPDIR says where)",
            temporary.display()
        )))?;
        let gpus = settings.engines != Engines::BuiltIn;
        place
            .write_config(settings.listen, NODE_TIMEOUT, GRACE, gpus)
            .map_err(system(format!(
                "cannot write into {}",
                place.dir().display()
            )))?;
        let server: HttpUrl = url(settings.listen);
        let client = Client::new(vec![server], None, ANSWER)?;
        // It asks its own machine, where no proxy of the environment is wanted.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(ANSWER)
            .build()?;
        let mut fleet = Self {
            settings,
            parts: Vec::new(),
            children,
            client,
            http,
            place,
        };
        fleet.add(Role::ControlPlane, fleet.settings.listen)?;
        for node in fleet.node_names() {
            fleet.add(Role::Engine(node), free_address()?)?;
        }
        Ok(fleet)
    }

    /// Starts the agents when the others are there, and waits until requests can be sent. A model may take long to load.
    ///
    /// # Errors
    /// A part ended.
    pub async fn ready(&mut self) -> Result<(), DemoError> {
        self.wait(async |fleet: &Self| {
            let server = fleet.is_ready(fleet.settings.listen, "/readyz").await;
            server && fleet.are_healthy().await
        })
        .await?;
        for node in self.node_names() {
            self.add(Role::Agent(node), free_address()?)?;
        }
        let wanted = self.settings.nodes as usize;
        self.wait(async |fleet: &Self| {
            let pools = fleet.client.pools().await.map(|list| list.pools);
            pools.is_ok_and(|pools| pools.iter().filter(|pool| pool.ready).count() >= wanted)
        })
        .await
    }

    async fn wait(&mut self, done: impl AsyncFn(&Self) -> bool) -> Result<(), DemoError> {
        let mut tries = 0;
        loop {
            for at in 0..self.parts.len() {
                if let Some(status) = self.parts[at].newly_ended() {
                    tries += 1;
                    self.start_elsewhere(at, status, tries)?;
                }
            }
            if done(self).await {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A port that was free when it was chosen may have been taken since; any other end is told.
    fn start_elsewhere(
        &mut self,
        at: usize,
        status: ExitStatus,
        tries: usize,
    ) -> Result<(), DemoError> {
        let part = &self.parts[at];
        let taken = TcpListener::bind(part.address).is_err();
        if part.role == Role::ControlPlane || !taken || tries > TRIES {
            return Err(DemoError::Ended {
                role: part.role.clone(),
                how: how(status),
                tail: part.tail(),
            });
        }
        self.parts[at] = self.made(part.role.clone(), free_address()?)?;
        Ok(())
    }

    async fn are_healthy(&self) -> bool {
        for part in &self.parts {
            if matches!(part.role, Role::Engine(_)) && !self.is_ready(part.address, "/health").await
            {
                return false;
            }
        }
        true
    }

    async fn is_ready(&self, address: SocketAddr, path: &str) -> bool {
        let asked = self
            .http
            .get(format!("http://{address}{path}"))
            .send()
            .await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    fn add(&mut self, role: Role, address: SocketAddr) -> Result<(), DemoError> {
        let part = self.made(role, address)?;
        self.parts.push(part);
        Ok(())
    }

    fn made(&self, role: Role, address: SocketAddr) -> Result<Part, DemoError> {
        let line = self.line(&role, address);
        Part::start(&self.settings.orchd, self.place.dir(), role, address, line)
            .map_err(system("cannot start a process"))
    }

    /// The command that starts a part.
    fn line(&self, role: &Role, address: SocketAddr) -> Line {
        let config = self.place.config().into_os_string();
        let listen = address.to_string();
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let (program, arguments) = match (role, &self.settings.engines) {
            (Role::ControlPlane, _) => {
                let arguments = [words(&["serve", "--cloud", "--config"]), vec![config]];
                (None, arguments.concat())
            }
            (Role::Agent(node), _) => {
                let engine = self
                    .engine(node)
                    .map(|engine| url(engine.address).to_string());
                let engine = engine.unwrap_or_default();
                let own = ["--node-id", node, "--listen", &listen, "--engine", &engine];
                let arguments = [words(&["agent", "--config"]), vec![config], words(&own)];
                (None, arguments.concat())
            }
            (Role::Engine(node), Engines::BuiltIn) => {
                let own = ["demo", "engine", "--node", node, "--listen", &listen];
                (None, words(&own))
            }
            (
                Role::Engine(_),
                Engines::LlamaServer {
                    program,
                    model,
                    alias,
                    arguments,
                },
            ) => {
                let port = address.port().to_string();
                let own = [
                    "--alias",
                    alias,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    &port,
                    "-np",
                    SLOTS,
                    "-c",
                    CONTEXT,
                    "--slots",
                    "--metrics",
                ];
                let model = vec!["-m".into(), model.into()];
                let arguments = [model, words(&own), arguments.clone()].concat();
                (Some(program.clone()), arguments)
            }
        };
        Line { program, arguments }
    }

    fn node_names(&self) -> Vec<String> {
        (1..=self.settings.nodes)
            .map(|number| format!("node-{number}"))
            .collect()
    }

    /// The nodes, each with its agent and its engine.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Part, &Part)> {
        self.parts.iter().filter_map(|agent| match &agent.role {
            Role::Agent(node) => Some((node.as_str(), agent, self.engine(node)?)),
            _ => None,
        })
    }

    /// The control plane.
    #[must_use]
    pub fn control_plane(&self) -> &Part {
        &self.parts[0]
    }

    fn engine(&self, node: &str) -> Option<&Part> {
        let engine = Role::Engine(node.to_owned());
        self.parts.iter().find(|part| part.role == engine)
    }

    /// Asks the control plane.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where the logs are.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.place.dir()
    }

    /// Waits until a part has ended: which, and how.
    pub async fn ended(&mut self) -> (&Part, String) {
        loop {
            for at in 0..self.parts.len() {
                if let Some(status) = self.parts[at].newly_ended() {
                    return (&self.parts[at], how(status));
                }
            }
            let _ = timeout(TICK, self.children.recv()).await;
        }
    }

    /// Ends all parts: agents first, then the control plane, then the engines, which nobody asks any more.
    pub async fn stop(mut self) {
        let agents = |role: &Role| matches!(role, Role::Agent(_));
        self.end(agents).await;
        self.end(|role| *role == Role::ControlPlane).await;
        self.parts.clear();
    }

    async fn end(&mut self, of: impl Fn(&Role) -> bool) {
        let mut parts: Vec<&mut Part> = self
            .parts
            .iter_mut()
            .filter(|part| of(&part.role))
            .collect();
        parts.iter().for_each(|part| part.terminate());
        let limit = Instant::now() + GRACE + END;
        while Instant::now() < limit && parts.iter_mut().any(|part| part.runs()) {
            let _ = timeout(LOOK, self.children.recv()).await;
        }
        parts.iter_mut().for_each(|part| part.kill());
    }
}

fn url(address: SocketAddr) -> HttpUrl {
    format!("http://{address}")
        .parse()
        .expect("an address makes a URL")
}

fn free_address() -> Result<SocketAddr, DemoError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(system("no port is free"))
}

fn system(what: impl Into<Cow<'static, str>>) -> impl FnOnce(io::Error) -> DemoError {
    let what = what.into();
    move |source| DemoError::System { what, source }
}
