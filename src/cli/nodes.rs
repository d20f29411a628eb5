//! `orchd nodes …` on the command line.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::value::{StatusParser, Unit, duration, label_map};
use super::{DAY, EngineArg, EngineSpec, Label, MachineId, StatusWord, UsageError, name_engines};
use crate::types::{HttpUrl, NodeId};

/// Shortest time that can be waited for.
const MOMENT: Duration = Duration::from_millis(1);

/// `orchd nodes`.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// List the nodes of the fleet
    ///
    /// STATUS is one word, and after a comma what that word hides: `Offline,draining` is a silent node under a drain,
    /// `Online,suspect` one that gets requests only when nothing better is left. GPUS counts equal cards, VRAM-FREE is what the
    /// engines report, POOLS is ready/total, SLOTS is busy/total (`1/4`: one request runs, and there is room for three more; `-/4`: nobody knows, the node is Offline),
    /// MODELS is what its pools serve. SEEN is when its last heartbeat came, AGE how long ago it first registered, VERSION
    /// that of its agent. On a terminal, columns that do not fit are left out; `-o wide` shows all of them.
    List(NodesListArgs),
    /// Show nodes in full
    ///
    /// Shows what is known of each node: machine, GPUs, health, drain and pools. As JSON or YAML one node is the control
    /// plane's answer, several are a list of them. A node that left, and of which a drain is still asked, is shown as
    /// Departed.
    Get(NodesGetArgs),
    /// Register a node without an agent, or announce one whose agent will come
    ///
    /// With --engine the control plane probes the engines itself, and the node needs no agent. With --address alone the
    /// node shows as Registering until its agent sends a heartbeat. Either goes Offline when nothing is heard within
    /// the node timeout. Prints the name of the node.
    Register(NodesRegisterArgs),
    /// Give nodes no new requests, and wait until they run none
    ///
    /// Running requests, streams included, finish, unless --deadline or --force ends them. The drain holds until `orchd
    /// nodes undrain`, whatever restarts in between. All nodes are asked before any is waited for; where one is unknown or
    /// refused, the others are drained all the same, and the exit status is that of the first failure (3: unknown).
    /// Interrupting this command, or its timeout, ends the waiting and not the drain; running it again waits again.
    Drain(NodesDrainArgs),
    /// Let nodes take requests again
    ///
    /// Ends their drains, running or done. A node that was not draining is no failure.
    Undrain(NodesUndrainArgs),
    /// Remove nodes, and forget what was asked of them
    ///
    /// Ends the registration and drops the drain. Running requests are not ended. An agent that still runs there
    /// registers again with its next heartbeat: stop it first.
    Remove(NodesRemoveArgs),
    /// Wait until nodes are online, offline, drained or gone
    ///
    /// Prints each node as it gets there. `online` is a node that is heard, draining or not; `offline` one that has been
    /// silent for longer than the node timeout; `drained` one that runs nothing under a drain; `gone` one that is not
    /// registered. Only for `gone` may a node be unknown. A node that is away for a moment, as while its agent restarts,
    /// is waited for.
    Wait(NodesWaitArgs),
}

/// How to print a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns that fit the terminal
    Table,
    /// All columns, whether they fit or not
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
  orchd nodes list -l rack=b2 --reasons
      One rack, and why its nodes are as they are
  orchd nodes list -w
      Watch the fleet; into a pipe, a line per change
  orchd nodes list -o json
      Everything the control plane knows")]
pub struct NodesListArgs {
    /// How to print the list
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,

    /// Only nodes whose STATUS begins with one of these words, in any letter case; repeatable, or separated by commas.
    /// `Draining` is every node under a drain, done or not, `Drained` those of them that are done; `Departed` means --all
    #[arg(long, value_name = "STATUS", value_delimiter = ',', ignore_case = true, value_parser = StatusParser)]
    pub status: Vec<StatusWord>,

    /// Only nodes with this label; repeatable, all must hold
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,

    /// Say below each node why it is as it is, by whom and since when
    #[arg(long)]
    pub reasons: bool,

    /// Also nodes that left but still have a drain, marked `Departed`
    #[arg(long)]
    pub all: bool,

    /// Show changes as they come, until interrupted: a terminal is redrawn, a pipe gets a line per change
    #[arg(short, long)]
    pub watch: bool,
}

impl NodesListArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// A format that cannot be watched.
    pub fn check(&self) -> Result<(), UsageError> {
        if self.watch && matches!(self.output, OutputFormat::Json | OutputFormat::Yaml) {
            return Err(UsageError::new(
                "--watch shows tables and names, neither JSON nor YAML",
                "for programs there is `orchd events -o json`",
            ));
        }
        Ok(())
    }
}

/// How to print nodes in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetailFormat {
    /// For people
    Table,
    /// The control plane's answer as JSON
    Json,
    /// The control plane's answer as YAML
    Yaml,
    /// Names only, one a line
    Name,
}

/// `orchd nodes get`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes get gpu-7
      All that is known of a node
  orchd nodes get gpu-7 -o json
      The same for a program")]
pub struct NodesGetArgs {
    /// Nodes to show
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeId>,

    /// How to print them
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = DetailFormat::Table)]
    pub output: DetailFormat,
}

/// `orchd nodes register`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes register gpu-7 --engine http://10.0.0.7:8081 --wait
      A host without an agent: the control plane probes its engine
  orchd nodes register gpu-7 --address http://10.0.0.7:9200
      Announce gpu-7, then start its agent there
  orchd nodes register gpu-7 --address http://10.0.0.7:9200 --label rack=b2 --wait --timeout 5m
      The same with a label, and wait for the agent (exit status 5 when none comes)")]
#[command(group = clap::ArgGroup::new("how").required(true).multiple(true).args(["engines", "address"]))]
pub struct NodesRegisterArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    pub node: NodeId,

    /// An engine for the control plane to probe, at a URL that the control plane can reach; repeatable. The first one
    /// without a name is called `default`, the others HOST-PORT
    #[arg(long = "engine", value_name = "[NAME=]URL")]
    pub engines: Vec<EngineArg>,

    /// Where its agent will listen
    #[arg(long, value_name = "URL")]
    pub address: Option<HttpUrl>,

    /// Machine id that its agent will give: one with another is refused until this node has been silent for the node
    /// timeout [default: the node is whichever machine comes first]
    #[arg(long, value_name = "ID")]
    pub machine_id: Option<MachineId>,

    /// Label of the node; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,

    /// Wait for the first heartbeat, or for the first engine that answers
    #[arg(long)]
    pub wait: bool,

    /// Stop waiting after this long; the node stays registered (1ms to 24h) [default: wait for ever]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = duration(Unit::Millis, MOMENT, DAY))]
    pub timeout: Option<Duration>,
}

impl NodesRegisterArgs {
    /// The labels by key.
    ///
    /// # Errors
    /// A key twice, too many labels.
    pub fn label_map(&self) -> Result<BTreeMap<String, String>, UsageError> {
        label_map(&self.labels)
    }

    /// The engines, named.
    ///
    /// # Errors
    /// Two of one name or address.
    pub fn engine_specs(&self) -> Result<Vec<EngineSpec>, UsageError> {
        name_engines(&self.engines)
    }
}

/// Nodes by name, or by what they have in common.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub struct Selection {
    /// Names of nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<NodeId>,

    /// All nodes with this label, instead of names; repeatable, all must hold
    #[arg(
        short = 'l',
        long = "label",
        value_name = "KEY=VALUE",
        conflicts_with = "nodes"
    )]
    pub labels: Vec<Label>,
}

/// `orchd nodes drain`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes drain gpu-7 --reason 'driver update'
      Drain a node and wait
  orchd nodes drain gpu-7 gpu-8 --timeout 15m
      Drain two, and stop waiting after a quarter of an hour (exit status 5)
  orchd nodes drain -l rack=b2 --deadline 15m
      Drain a rack, and end what still runs after a quarter of an hour
  orchd nodes drain gpu-7 --detach
      Ask for the drain and return at once")]
pub struct NodesDrainArgs {
    /// Which nodes.
    #[command(flatten)]
    pub select: Selection,

    /// Why, for those who look at the node later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// End what still runs after this long (1s to 24h); given again, it replaces an earlier deadline, which otherwise
    /// stays [default: let everything finish]
    #[arg(long, value_name = "DURATION", value_parser = duration(Unit::Millis, Duration::from_secs(1), DAY))]
    pub deadline: Option<Duration>,

    /// End what runs at once
    #[arg(long, conflicts_with = "deadline")]
    pub force: bool,

    /// Do not wait
    #[arg(long, conflicts_with = "timeout")]
    pub detach: bool,

    /// Stop waiting after this long; the drain goes on (1ms to 24h) [default: wait for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration(Unit::Millis, MOMENT, DAY))]
    pub timeout: Option<Duration>,
}

/// `orchd nodes undrain`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes undrain gpu-7
      Let a node take requests again
  orchd nodes undrain -l rack=b2
      Let a rack take requests again")]
pub struct NodesUndrainArgs {
    /// Which nodes.
    #[command(flatten)]
    pub select: Selection,
}

/// `orchd nodes remove`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes drain gpu-7 && orchd nodes remove gpu-7
      Take a machine out of service for good; stop its agent before the removal, or it registers again")]
pub struct NodesRemoveArgs {
    /// Nodes to remove
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeId>,
}

/// What a node can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// Heard within the node timeout
    Online,
    /// Silent for longer than the node timeout
    Offline,
    /// Under a drain, with nothing running
    Drained,
    /// Not registered
    Gone,
}

/// `orchd nodes wait`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd nodes wait gpu-7 --for online --timeout 5m
      Wait for a machine after its reboot (exit status 5 when it does not come)
  orchd nodes drain gpu-7 gpu-8 --detach && orchd nodes wait gpu-7 gpu-8 --for drained
      Wait for drains asked for earlier")]
pub struct NodesWaitArgs {
    /// Nodes to wait for
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeId>,

    /// The state to wait for
    #[arg(long = "for", value_name = "STATE", value_enum, required = true)]
    pub wanted: Wanted,

    /// Stop waiting after this long (1ms to 24h) [default: wait for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration(Unit::Millis, MOMENT, DAY))]
    pub timeout: Option<Duration>,
}
