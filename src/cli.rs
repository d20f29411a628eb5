//! The command line, defined once: parsing, `--help`, the man pages and the completions all come from here.
//!
//! Invariants: a value that leaves this module has its unit and is within its range; nothing here reads a clock, a
//! file or the network. Environment variables carry bare numbers in the unit their name says, flags carry a unit
//! (`--queue-timeout 30s`, `ORCHD_QUEUE_TIMEOUT_MS=30000`), and each is refused in the other's form, because a number
//! whose unit has to be guessed is sooner or later guessed wrong. Called by `main`, by `commands`, and by the tests
//! that compare the generated files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

mod value;

pub use value::{
    ApiToken, EngineArg, EngineSpec, Label, MachineId, UsageError, name_engines, show_duration,
};
use value::{StatusParser, Unit, address, cloud, count, duration, label_map, text};

use crate::types::{HttpUrl, NodeId, NodeStatus};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A heartbeat interval that nobody set is a third of the timeout, and at most this: the original system's interval.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A restart grace that nobody set is the timeout, and at least this.
const RESTART_GRACE: Duration = Duration::from_secs(30);

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "orchd",
    version,
    about = "A control plane for GPU hosts that run their own llama-server",
    long_about = "orchd is a control plane for GPU hosts that run their own llama-server.\n\
        \n\
        One executable is everything: `orchd serve` is the control plane and its OpenAI-compatible gateway, \
        `orchd agent` runs on every GPU host and reports its engines, and the other commands talk to a running \
        control plane.",
    after_long_help = "\
Examples:
  orchd serve --engine http://127.0.0.1:8081
      One machine: put a gateway in front of a llama-server
  orchd serve --cloud --listen 10.0.0.1:8080
      A fleet: wait for agents (off loopback it takes a token: set ORCHD_API_TOKEN)
  orchd agent --server http://10.0.0.1:8080 --engine http://127.0.0.1:8081
      On each GPU host: register it and its engine
  orchd nodes list
      Show the fleet

Exit status:
  0    done
  1    failed
  2    usage or configuration
  3    not found
  4    refused by the control plane
  5    gave up waiting
  6    control plane unreachable, or not orchd
  7    not authorised
  130  interrupted",
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Where the control plane is.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Parses the command line of this process. Help, the version and mistakes end the process here, as every command line
/// tool does it: exit code 0 for the first two, 2 for mistakes.
#[must_use]
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The definition of the command line, complete: what help, man pages and completions are made from.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    // Building hands the global options down, so that they can be hidden where they have no meaning.
    command.build();
    for (verb, unused) in WITHOUT_CONNECTION {
        command = command.mut_subcommand(verb, |verb| {
            verb.mut_args(|arg| {
                let hide = unused.contains(&arg.get_id().as_str());
                if hide { arg.hide(true) } else { arg }
            })
        });
    }
    command
}

/// Heading of the options in [`ConnectArgs`].
const CONNECTION: &str = "Connection";
/// Verbs for which options of the connection mean nothing. `serve` connects to nobody, and takes the token from whoever
/// connects to it.
const WITHOUT_CONNECTION: [(&str, &[&str]); 3] = [
    ("serve", &["servers"]),
    ("completions", &["servers", "api_token"]),
    ("man", &["servers", "api_token"]),
];

/// How to reach the control plane. Used by the agent and by every command that talks to one.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = CONNECTION)]
pub struct ConnectArgs {
    /// Control plane to talk to; several, separated by commas, are tried in turn
    #[arg(
        long = "server",
        value_name = "URL",
        env = "ORCHD_SERVER",
        default_value = "http://127.0.0.1:8080",
        value_delimiter = ',',
        value_parser = text::<HttpUrl>(),
        global = true
    )]
    pub servers: Vec<HttpUrl>,

    /// Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable rather than
    /// the option, which others on this machine can read
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ORCHD_API_TOKEN",
        hide_env_values = true,
        global = true
    )]
    pub api_token: Option<ApiToken>,
}

impl ConnectArgs {
    /// The token to send; an empty variable means none.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.api_token
            .as_ref()
            .map(|token| token.0.clone())
            .filter(|token| !token.is_empty())
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane and its OpenAI-compatible gateway
    ///
    /// Without --cloud it serves one machine: it watches the engines named with --engine itself. With --cloud it keeps a
    /// registry of nodes, whose agents report their engines.
    ///
    /// Durations need a unit (250ms, 10s, 5m, 1h). The environment variable of a duration takes a whole number in the
    /// unit its name ends with: ORCHD_QUEUE_TIMEOUT_MS=30000 is --queue-timeout 30s.
    Serve(Box<ServeArgs>),
    /// Run on a GPU host: report its engines and relay to them
    ///
    /// Registers this host with the control plane, reports its GPUs and engines, and relays requests to them, so that
    /// engines may stay on loopback. It goes on serving without a control plane, and registers again when one answers.
    Agent(Box<AgentArgs>),
    /// Show and manage the nodes of the fleet
    #[command(subcommand, arg_required_else_help = true)]
    Nodes(NodesCommand),
    /// Print a completion script for a shell
    ///
    /// Where the script belongs depends on the shell; see the examples.
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them
    ///
    /// Prints orchd(1). With --dir it writes that page and one for every command, such as orchd-nodes-list(1).
    Man(ManArgs),
}

/// `orchd serve`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd serve --engine http://127.0.0.1:8081
      One machine, one engine
  orchd serve --engine small=http://127.0.0.1:8081 --engine big=http://127.0.0.1:8082
      One machine, two engines with names
  orchd serve --cloud --listen 10.0.0.1:8080 --node-timeout 1m
      A fleet whose nodes count as Offline after a minute of silence")]
pub struct ServeArgs {
    /// Keep a registry of nodes (the CLOUD profile) instead of serving this machine alone (HOME)
    #[arg(
        long,
        env = "ORCHESTRATORD_CLOUD_PROFILE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = cloud(),
        hide_possible_values = true
    )]
    pub cloud: bool,

    /// Address and port to listen on
    #[arg(
        long,
        value_name = "ADDR",
        env = "ORCHD_ADDR",
        default_value = "127.0.0.1:8080",
        value_parser = address()
    )]
    pub listen: SocketAddr,

    /// Engine of this machine, HOME profile only; repeatable. The first one without a name is called `default`, the
    /// others HOST-PORT
    #[arg(long = "engine", value_name = "[NAME=]URL")]
    pub engines: Vec<EngineArg>,

    /// Silence after which a node counts as Offline (1s to 1h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_NODE_TIMEOUT_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::from_secs(1), HOUR),
        help_heading = "Liveness"
    )]
    pub node_timeout: Duration,

    /// How often to look for silent nodes (1s to 1m)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS",
        default_value = "10s",
        value_parser = duration(Unit::Seconds, Duration::from_secs(1), Duration::from_mins(1)),
        help_heading = "Liveness"
    )]
    pub stale_check_interval: Duration,

    /// How often agents are told to send a heartbeat (10ms to a third of the node timeout) [default: 10s, or a third of
    /// the node timeout when that is less]
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_HEARTBEAT_INTERVAL_MS",
        value_parser = duration(Unit::Millis, Duration::from_millis(10), HOUR),
        help_heading = "Liveness"
    )]
    pub heartbeat_interval: Option<Duration>,

    /// How long nodes known from before a restart may still be routed to before they are heard (0s to 1h) [default: 30s,
    /// or the node timeout when that is more]
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_RESTART_GRACE_MS",
        value_parser = duration(Unit::Millis, Duration::ZERO, HOUR),
        help_heading = "Liveness"
    )]
    pub restart_grace: Option<Duration>,

    /// Requests that may wait for one model; more are refused (0 to 1000000)
    #[arg(
        long,
        value_name = "COUNT",
        env = "ORCHD_ADMISSION_CAPACITY",
        default_value_t = 1_024,
        value_parser = count(0, 1_000_000),
        help_heading = "Gateway"
    )]
    pub admission_capacity: u32,

    /// How long a request waits for a free slot (1ms to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_QUEUE_TIMEOUT_MS",
        default_value = "300s",
        value_parser = duration(Unit::Millis, Duration::from_millis(1), DAY),
        help_heading = "Gateway"
    )]
    pub queue_timeout: Duration,

    /// How long a request waits for a known model that no engine serves at the moment (0s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_NO_POOL_WAIT_MS",
        default_value = "5s",
        value_parser = duration(Unit::Millis, Duration::ZERO, DAY),
        help_heading = "Gateway"
    )]
    pub no_pool_wait: Duration,

    /// How long running requests may go on after a stop signal (0s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_SHUTDOWN_GRACE_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::ZERO, DAY)
    )]
    pub shutdown_grace: Duration,

    /// Directory for what must survive a restart [default: orchd's state directory of the user]
    #[arg(long, value_name = "DIR", env = "ORCHD_STATE_DIR", value_hint = clap::ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
}

impl ServeArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// `--cloud` with `--engine`, a heartbeat interval above a third of the node timeout, engines of one name.
    pub fn check(&self) -> Result<(), UsageError> {
        if self.cloud && !self.engines.is_empty() {
            return Err(UsageError::new(
                "--engine belongs to the HOME profile: with --cloud, engines are watched by agents",
                "run `orchd agent --engine URL` on the host of the engine, or leave out --cloud",
            ));
        }
        let limit = self.node_timeout / 3;
        if let Some(interval) = self.heartbeat_interval.filter(|interval| *interval > limit) {
            return Err(UsageError::new(
                format!(
                    "the heartbeat interval {} (--heartbeat-interval, ORCHESTRATORD_HEARTBEAT_INTERVAL_MS) is above a \
                     third of the node timeout {} (--node-timeout, ORCHESTRATORD_NODE_TIMEOUT_MS)",
                    show_duration(interval),
                    show_duration(self.node_timeout)
                ),
                format!(
                    "one lost heartbeat must not take a node offline: set it to {} or less",
                    show_duration(limit)
                ),
            ));
        }
        self.engine_specs().map(drop)
    }

    /// The engines, named.
    ///
    /// # Errors
    /// Two of one name or address.
    pub fn engine_specs(&self) -> Result<Vec<EngineSpec>, UsageError> {
        name_engines(&self.engines)
    }

    /// The heartbeat interval in force.
    #[must_use]
    pub fn effective_heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
            .unwrap_or_else(|| HEARTBEAT_INTERVAL.min(self.node_timeout / 3))
    }

    /// The restart grace in force.
    #[must_use]
    pub fn effective_restart_grace(&self) -> Duration {
        self.restart_grace
            .unwrap_or_else(|| RESTART_GRACE.max(self.node_timeout))
    }
}

/// `orchd agent`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd agent --server http://10.0.0.1:8080 --listen 10.0.0.7:9200 --engine http://127.0.0.1:8081
      Report one engine
  orchd agent --engine small=http://127.0.0.1:8081 --engine big=http://127.0.0.1:8082
      Report two engines with names
  orchd agent --listen 0.0.0.0:9200 --advertise http://gpu-7.example:9200 --label rack=b2
      Say how the gateway reaches this host, and label it")]
pub struct AgentArgs {
    /// Engine to report and relay to; repeatable. The first one without a name is called `default`, the others HOST-PORT
    #[arg(long = "engine", value_name = "[NAME=]URL")]
    pub engines: Vec<EngineArg>,

    /// Name of this node in the fleet [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub node_id: Option<NodeId>,

    /// What tells this machine from another one that claims the same name [default: the system's machine id]
    #[arg(long, value_name = "ID")]
    pub machine_id: Option<MachineId>,

    /// Address and port to listen on
    #[arg(
        long,
        value_name = "ADDR",
        default_value = "127.0.0.1:9200",
        value_parser = address()
    )]
    pub listen: SocketAddr,

    /// Address under which the gateway reaches this agent [default: the listen address; for a wildcard such as 0.0.0.0,
    /// the address this host uses towards the control plane]
    #[arg(long, value_name = "URL")]
    pub advertise: Option<HttpUrl>,

    /// Label of this node; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,

    /// Read the GPUs from this file instead of from the driver, for tests
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub gpu_fixture: Option<PathBuf>,

    /// How long running requests may go on after a stop signal (0s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_SHUTDOWN_GRACE_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::ZERO, DAY)
    )]
    pub shutdown_grace: Duration,
}

impl AgentArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// Two engines of one name or address, a label twice, too many labels.
    pub fn check(&self) -> Result<(), UsageError> {
        self.engine_specs()?;
        self.label_map().map(drop)
    }

    /// The engines, named.
    ///
    /// # Errors
    /// Two of one name or address.
    pub fn engine_specs(&self) -> Result<Vec<EngineSpec>, UsageError> {
        name_engines(&self.engines)
    }

    /// The labels by key.
    ///
    /// # Errors
    /// A key twice, too many labels.
    pub fn label_map(&self) -> Result<BTreeMap<String, String>, UsageError> {
        label_map(&self.labels)
    }
}

/// `orchd nodes`.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// List the nodes of the fleet
    ///
    /// STATUS is one word, and after a comma what that word hides: `Offline,draining` is a silent node under a drain,
    /// `Online,suspect` one that gets requests only when nothing better is left. POOLS is ready/total, SLOTS is busy/total. VRAM-FREE is what
    /// the engines report. On a terminal, columns that do not fit are left out; `-o wide` shows all of them.
    List(NodesListArgs),
    /// Announce a node whose agent will come
    ///
    /// The node shows as Registering until its agent sends a heartbeat, and as Offline when none comes within the node
    /// timeout. Prints the name of the node.
    Register(NodesRegisterArgs),
    /// Give nodes no new requests, and wait until they run none
    ///
    /// Running requests, streams included, finish. The drain holds until `orchd nodes undrain`, whatever restarts in
    /// between. Interrupting this command, or its timeout, ends the waiting and not the drain; running it again waits
    /// again.
    Drain(NodesDrainArgs),
    /// Let nodes take requests again
    ///
    /// Ends their drains, running or done. Fine for a node that is not draining.
    Undrain(NodesUndrainArgs),
}

/// How to print a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns that fit the terminal
    Table,
    /// All columns, however wide
    Wide,
    /// The control plane's answer as JSON
    Json,
    /// The control plane's answer as YAML
    Yaml,
    /// Names only, one a line
    Name,
}

/// `orchd nodes list`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes list
      The fleet at a glance
  orchd nodes list --status Offline,Failed
      Only what is broken
  orchd nodes list -o name --status Draining
      Names for a script
  orchd nodes list -o json
      Everything the control plane knows")]
pub struct NodesListArgs {
    /// How to print the list
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,

    /// Only nodes of these statuses; repeatable, or separated by commas
    #[arg(long, value_name = "STATUS", value_delimiter = ',', ignore_case = true, value_parser = StatusParser)]
    pub status: Vec<NodeStatus>,
}

/// `orchd nodes register`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes register gpu-7 --address http://10.0.0.7:9200
      Announce gpu-7, then start its agent there
  orchd nodes register gpu-7 --address http://10.0.0.7:9200 --label rack=b2
      The same, with a label")]
pub struct NodesRegisterArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    pub node: NodeId,

    /// Where its agent will listen
    #[arg(long, value_name = "URL")]
    pub address: HttpUrl,

    /// Machine id its agent will give; an agent with another one takes the name over only after the node timeout
    /// [default: the name of the node]
    #[arg(long, value_name = "ID")]
    pub machine_id: Option<MachineId>,

    /// Label of the node; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
}

impl NodesRegisterArgs {
    /// The labels by key.
    ///
    /// # Errors
    /// A key twice, too many labels.
    pub fn label_map(&self) -> Result<BTreeMap<String, String>, UsageError> {
        label_map(&self.labels)
    }
}

/// `orchd nodes drain`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes drain gpu-7 --reason 'driver update'
      Drain a node and wait
  orchd nodes drain gpu-7 gpu-8 --timeout 15m
      Drain two, and stop waiting after a quarter of an hour (exit status 5)
  orchd nodes drain gpu-7 --detach
      Ask for the drain and return at once")]
pub struct NodesDrainArgs {
    /// Nodes to drain
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeId>,

    /// Why, for those who look at the node later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Do not wait
    #[arg(long, conflicts_with = "timeout")]
    pub detach: bool,

    /// Stop waiting after this long; the drain goes on (1ms to 24h) [default: wait for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration(Unit::Millis, Duration::from_millis(1), DAY))]
    pub timeout: Option<Duration>,
}

/// `orchd nodes undrain`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes undrain gpu-7
      Let gpu-7 take requests again")]
pub struct NodesUndrainArgs {
    /// Nodes that shall take requests again
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeId>,
}

/// `orchd completions`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd completions bash > ~/.local/share/bash-completion/completions/orchd
      For bash
  orchd completions zsh > ~/.zfunc/_orchd
      For zsh, with ~/.zfunc in $fpath
  orchd completions fish > ~/.config/fish/completions/orchd.fish
      For fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// `orchd man`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd man | man -l -
      Read the manual page
  orchd man --dir ~/.local/share/man/man1
      Install all pages")]
pub struct ManArgs {
    /// Write the page of every command into this directory instead of printing one
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}
