//! The command line, defined once: parsing, `--help`, the man pages and the completions all come from here.
//!
//! Invariants: a value that leaves this module has its unit and is within its range; nothing here reads a clock, a
//! file or the network. Environment variables carry bare numbers in the unit their name says, flags carry a unit
//! (`--queue-timeout 30s`, `ORCHD_QUEUE_TIMEOUT_MS=30000`), and each is refused in the other's form, because a number
//! whose unit has to be guessed is sooner or later guessed wrong. Called by `main`, by `commands`, and by the tests
//! that compare the generated files.

use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

mod agent;
mod nodes;
mod security;
mod serve;
mod tools;
mod value;

pub use agent::AgentArgs;
pub use nodes::{
    NodesCommand, NodesDrainArgs, NodesListArgs, NodesRegisterArgs, NodesUndrainArgs, OutputFormat,
};
pub use security::{ApiTokenArgs, ClientTokenArgs, ListenerArgs, TokenSource};
pub use serve::ServeArgs;
pub use tools::{CompletionsArgs, ManArgs};
use value::text;
pub use value::{
    ApiToken, EngineArg, EngineSpec, Label, MachineId, UsageError, name_engines, show_duration,
};

use crate::types::HttpUrl;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

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
/// Verbs for which options of the connection mean nothing. `serve` connects to no control plane, and takes the token from
/// whoever connects to it.
const WITHOUT_CONNECTION: [(&str, &[&str]); 3] = [
    ("serve", &["servers"]),
    (
        "completions",
        &["servers", "api_token", "api_token_file", "ca"],
    ),
    ("man", &["servers", "api_token", "api_token_file", "ca"]),
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
