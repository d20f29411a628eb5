//! `orchd pools …`, `orchd models …` and `orchd events` on the command line: what there is to route to, and what happens.

use clap::{Args, Subcommand, ValueEnum};

use super::OutputFormat;
use crate::types::NodeId;

/// `orchd pools`.
#[derive(Debug, Subcommand)]
pub enum PoolsCommand {
    /// List the engines of all nodes as the gateway sees them
    ///
    /// STATE is what the engine is doing, and after a comma what keeps requests from it: `draining` is its node, `ejected` is a
    /// pool left out after failures. SLOTS is taken/total, WAITING are requests for one of its models.
    List(PoolsListArgs),
}

/// `orchd pools list`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd pools list
      All engines and their slots
  orchd pools list --node gpu-7 -o wide
      Those of one node, with their addresses")]
pub struct PoolsListArgs {
    /// How to print the list; a name is NODE/POOL
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,

    /// Only pools of this node; on one machine that is `local`
    // No `NodeId`: that one refuses `local`.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

/// `orchd models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the models that can be asked for
    ///
    /// STATE says whether requests for it run or wait: `draining` is a model whose nodes are all being drained, or have been,
    /// `unreachable` one whose engines do not answer, `absent` an alias of models that no engine has. SLOTS is taken/total and
    /// NODES counts, of the pools that take requests now; POOLS is those/all. CTX is the context of one slot in tokens, the
    /// smallest and the largest where engines differ. ALIASES are other names for it, or after `->` what it is another name
    /// for.
    List(ModelsListArgs),
}

/// `orchd models list`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd models list
      What can be asked for, and how much of it at once
  orchd models list -o name
      Ids for a script")]
pub struct ModelsListArgs {
    /// How to print the list
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// Leave out the line of column names
    #[arg(long)]
    pub no_headers: bool,
}

/// How to print events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventsFormat {
    /// Time, type, node and what changed
    Table,
    /// One JSON object a line, with the id of the event
    Json,
}

/// `orchd events`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd events
      What happens in the fleet, from now on
  orchd events --node gpu-7 -o json
      One node, for a program
  orchd events -o json --since 3f2a-118
      Go on after the event with that id")]
pub struct EventsArgs {
    /// Only events of this node; on one machine that is `local`
    #[arg(long, value_name = "NODE", value_parser = NodeId::new_or_local)]
    pub node: Option<NodeId>,

    /// How to print them
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = EventsFormat::Table)]
    pub output: EventsFormat,

    /// Go on after this event instead of now; `-o json` shows the ids
    #[arg(long, value_name = "ID")]
    pub since: Option<String>,
}
