//! The command line, defined once: parsing, `--help`, the man pages and the completions all come from here.
//!
//! Invariants: a value that leaves this module has its unit and is within its range; nothing here reads a clock, a
//! file or the network. Environment variables carry bare numbers in the unit their name says, flags carry a unit
//! (`--queue-timeout 30s`, `ORCHD_QUEUE_TIMEOUT_MS=30000`), and each is refused in the other's form, because a number
//! whose unit has to be guessed is sooner or later guessed wrong. Called by `config`, by `commands`, and by the tests
//! that compare the generated files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

mod admission;
mod agent;
mod alias;
mod config;
mod demo;
mod gateway;
mod nodes;
mod pools;
mod security;
mod serve;
mod tools;
mod value;

pub use admission::{AdmissionPolicy, ByteSize};
pub use agent::{AGENT_LISTENS, AgentArgs, HostArgs, ProbeArgs, ProbeFormat};
pub use alias::AliasArg;
pub use config::{
    ConfigCheckArgs, ConfigCommand, ConfigFormat, ConfigShowArgs, ConfigUnitArgs, Process,
};
pub use demo::{DemoArgs, DemoProcess};
pub use gateway::{Assemble, GatewayArgs, HungArgs};
pub use nodes::{
    DetailFormat, NodesCommand, NodesDrainArgs, NodesGetArgs, NodesListArgs, NodesRegisterArgs,
    NodesRemoveArgs, NodesUndrainArgs, NodesWaitArgs, OutputFormat, Selection, Wanted,
};
pub use pools::{
    EventsArgs, EventsFormat, ModelsCommand, ModelsListArgs, PoolsCommand, PoolsListArgs,
};
pub use security::{
    ApiTokenArgs, ClientTokenArgs, ListenerArgs, OTHER_VARIABLES, TOKEN_OR_FILE, TokenSource,
};
pub use serve::{SERVE_LISTENS, ServeArgs};
pub use tools::{CompletionsArgs, ManArgs};
use value::text;
pub use value::{
    ApiToken, EngineArg, EngineSpec, Label, MachineId, StatusWord, UsageError, name_engines,
    show_duration,
};

use crate::types::HttpUrl;

/// Where engines announce themselves when nobody says otherwise, relative to the working directory (the original system's).
const RUNTIME_DIR: &str = ".runtime/engines";

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Where engines announce themselves.
#[derive(Debug, Clone, Args)]
pub struct RuntimeArgs {
    /// Directory of handoff files (`serve --cloud` has none): whatever starts an engine writes a file *.json that says where
    /// it listens, and deletes it when the engine ends
    #[arg(
        long,
        value_name = "DIR",
        env = "ORCHD_RUNTIME_DIR",
        default_value = RUNTIME_DIR,
        value_hint = clap::ValueHint::DirPath
    )]
    pub runtime_dir: PathBuf,
}

/// Where is kept what a restart keeps.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// Directory for what must survive a restart: the nodes and what was asked of them (`serve --cloud`), the id of a
    /// machine whose system has none (`agent`) [default: orchd in the user's state directory, as ~/.local/state/orchd]
    #[arg(long, value_name = "DIR", env = "ORCHD_STATE_DIR", value_hint = clap::ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
}

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
  orchd demo
      A fleet on this machine to play with; no GPU is needed
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
    /// Settings in a file, shared by all verbs [default: orchd/config.toml in the user's configuration directory, else
    /// /etc/orchd/config.toml]
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_CONFIG",
        value_hint = clap::ValueHint::FilePath,
        global = true
    )]
    pub config: Option<PathBuf>,
    /// Where the control plane is.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What somebody should know before the verb runs with these settings, which are good in themselves.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        match &self.command {
            Command::Serve(args) => args.warnings(),
            _ => Vec::new(),
        }
    }
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
/// Verbs for which options of the connection mean nothing. `serve` connects to no control plane, and takes the token from
/// whoever connects to it.
const WITHOUT_CONNECTION: [(&str, &[&str]); 5] = [
    ("serve", &["servers"]),
    ("probe", &["servers", "api_token", "api_token_file"]),
    // Its parts have settings of their own; where commands would go otherwise it looks up.
    (
        "demo",
        &["config", "servers", "api_token", "api_token_file", "ca"],
    ),
    (
        "completions",
        &["config", "servers", "api_token", "api_token_file", "ca"],
    ),
    (
        "man",
        &["config", "servers", "api_token", "api_token_file", "ca"],
    ),
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

    /// What to show it, and how to verify it.
    #[command(flatten)]
    pub api: ApiTokenArgs,
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
    /// Show what an agent would report of this host: its GPUs and its engines
    ///
    /// Looks once, with the settings of `orchd agent`, and talks to no control plane. For whoever sets up a host: it shows what
    /// is found, what is passed over and why, and settings of engines that cost speed.
    Probe(ProbeArgs),
    /// Show and manage the nodes of the fleet
    #[command(subcommand, arg_required_else_help = true)]
    Nodes(NodesCommand),
    /// Show the engines that requests are routed to
    #[command(subcommand, arg_required_else_help = true)]
    Pools(PoolsCommand),
    /// Show the models that can be asked for
    #[command(subcommand, arg_required_else_help = true)]
    Models(ModelsCommand),
    /// Follow what happens, one line an event
    ///
    /// Shows what happens from now on, until interrupted. When the connection is lost it is made again, and goes on where it
    /// ended; when that is not possible, stderr says that events are missing.
    Events(EventsArgs),
    /// Show and check the settings of `serve` and `agent`
    ///
    /// A setting comes from a flag, else from its variable, else from the configuration file, else from the default. In the
    /// file its key is the long name of the option, with _ for -; durations and sizes are written as for flags. The
    /// agent's own settings may stand in the table `[agent]`; `listen` at the top level is that of `orchd serve`.
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_long_help = "\
Examples:
  orchd config show agent
      Every setting of an agent, and where it came from
  orchd config check
      Whether `orchd serve` and `orchd agent` would start
  orchd config unit serve
      A systemd unit"
    )]
    Config(ConfigCommand),
    /// Try a fleet on this machine: a control plane, three agents and small engines
    ///
    /// Starts all of it as processes of their own, on loopback, and says what to try with it: chat, drain a node, kill
    /// a part. No GPU and no model are needed: without --model the engines are built-in ones, which are no language models.
    /// Nothing of it touches your own settings and state, or is left when it ends.
    Demo(DemoArgs),
    /// Print a completion script for a shell
    ///
    /// Where the script belongs depends on the shell; see the examples. The script asks the `orchd` on the path what could stand
    /// next, and that one asks the control plane for the names of nodes, with the server and token of the command line or
    /// of ORCHD_SERVER and ORCHD_API_TOKEN.
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them
    ///
    /// Prints orchd(1). With --dir it writes that page and one for every command, such as orchd-nodes-list(1).
    Man(ManArgs),
}
