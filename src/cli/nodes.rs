//! `orchd nodes …` on the command line.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::value::{StatusParser, Unit, duration, label_map};
use super::{DAY, Label, MachineId, UsageError};
use crate::types::{HttpUrl, NodeId, NodeStatus};

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
