//! `orchd nodes …`: the fleet as an operator sees and steers it.
//!
//! Invariant: a command about several nodes does what it can for each and exits with the first thing that went wrong.
//! Called by `commands::run`.

mod cells;
mod drain;
pub mod get;
pub mod list;
mod progress;
mod reasons;
mod register;
mod remove;
mod wait;
mod watch;

use std::process::ExitCode;
use tokio::time::Instant;

use self::list::{Entry, Presence};
use self::wait::Goal;
use super::failure::{self, Exit, Failure};
use super::output;
use crate::cli::{Label, NodesCommand, NodesUndrainArgs, Selection};
use crate::client::{Client, ClientError, NodesQuery};
use crate::types::{ErrorCode, NodeId, NodeView};

/// Runs one of them.
pub(super) async fn run(command: NodesCommand, client: Client) -> anyhow::Result<ExitCode> {
    match command {
        NodesCommand::List(args) => list::run(args, client).await,
        NodesCommand::Get(args) => get::run(args, client).await,
        NodesCommand::Register(args) => register::run(args, client).await,
        NodesCommand::Drain(args) => drain::run(args, client).await,
        NodesCommand::Undrain(args) => undrain(args, client).await,
        NodesCommand::Remove(args) => remove::run(args, client).await,
        NodesCommand::Wait(args) => {
            let goal = Goal {
                wanted: args.wanted,
                quiet: false,
                on_timeout: "",
            };
            let nodes = unique(&args.nodes).cloned().collect();
            wait::run(nodes, goal, args.timeout, client).await
        }
    }
}

async fn undrain(args: NodesUndrainArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut failures = Failures::default();
    for node in select(&args.select, &client).await? {
        // Looked at before, because the answer is the same whether it was draining or not. A node that cannot be looked at
        // has left, and can be known only for its drain.
        let word = match client.node(&node).await {
            Ok(view) if view.drain.is_none() => "was not draining",
            Ok(_) => "undrained",
            Err(error) if error.code() == Some(ErrorCode::NodeNotFound) => "undrained",
            Err(error) => {
                failures.take(&node, &error)?;
                continue;
            }
        };
        match client.undrain(&node).await {
            Ok(view) => output::data(&format!("{node} {word}, {}\n", after_undrain(&view)))?,
            Err(error) => failures.take(&node, &error)?,
        }
    }
    Ok(failures.exit().into())
}

fn after_undrain(view: &NodeView) -> String {
    if view.schedulable {
        "takes new requests".to_owned()
    } else {
        format!("takes no requests: it is {}", view.status.as_str())
    }
}

/// The nodes a command is about: those named, or those that have the labels.
async fn select(selection: &Selection, client: &Client) -> anyhow::Result<Vec<NodeId>> {
    if selection.labels.is_empty() {
        return Ok(unique(&selection.nodes).cloned().collect());
    }
    let query = NodesQuery {
        labels: label_pairs(&selection.labels),
        ..NodesQuery::default()
    };
    let nodes = client.nodes(&query).await?.nodes;
    if nodes.is_empty() {
        let message = format!("no node has {}", show_labels(&selection.labels));
        return Err(Failure::new(Exit::NotFound, message)
            .hint("`orchd nodes list -o wide` shows the labels of nodes")
            .into());
    }
    Ok(nodes.into_iter().map(|view| view.node_id).collect())
}

fn label_pairs(labels: &[Label]) -> Vec<(String, String)> {
    labels
        .iter()
        .map(|label| (label.key.clone(), label.value.clone()))
        .collect()
}

/// `the label rack=b2`.
fn show_labels(labels: &[Label]) -> String {
    let texts: Vec<String> = labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    let noun = if texts.len() == 1 { "label" } else { "labels" };
    format!("the {noun} {}", texts.join(" and "))
}

/// Looks at one node, also among those that left and of which something is still asked.
async fn find(client: &Client, node: &NodeId) -> Result<Entry, ClientError> {
    let unknown = match client.node(node).await {
        Ok(view) => return Ok(view.into()),
        Err(error) if error.code() == Some(ErrorCode::NodeNotFound) => error,
        Err(error) => return Err(error),
    };
    let query = NodesQuery {
        departed: true,
        ..NodesQuery::default()
    };
    let departed = client.nodes(&query).await?.nodes;
    departed
        .into_iter()
        .find(|view| view.node_id == *node)
        .map(|view| Entry {
            view,
            presence: Presence::Departed,
        })
        .ok_or(unknown)
}

async fn elapsed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The nodes of a command line, each once, in the order given.
fn unique(nodes: &[NodeId]) -> impl Iterator<Item = &NodeId> {
    nodes
        .iter()
        .enumerate()
        .filter(|(at, node)| !nodes[..*at].contains(node))
        .map(|(_, node)| node)
}

/// What went wrong for single nodes of a command about several.
#[derive(Debug, Default)]
struct Failures {
    first: Option<Exit>,
}

impl Failures {
    /// Shows what one node was refused. What the next node would be refused as well ends the command.
    fn take(&mut self, node: &NodeId, error: &ClientError) -> Result<(), Failure> {
        let failure = Failure::from(error);
        if matches!(
            failure.exit,
            Exit::Unreachable | Exit::Unauthorized | Exit::Usage
        ) || error.code() == Some(ErrorCode::CloudProfileDisabled)
        {
            return Err(failure);
        }
        let named = if failure.message.contains(node.as_str()) {
            failure
        } else {
            Failure {
                message: format!("{node}: {}", failure.message),
                ..failure
            }
        };
        self.first.get_or_insert(named.exit);
        let _ = failure::show(&named);
        Ok(())
    }

    fn exit(&self) -> Exit {
        self.first.unwrap_or(Exit::Done)
    }
}
