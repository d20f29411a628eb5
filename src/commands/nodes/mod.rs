//! `orchd nodes …`: the fleet as an operator sees and steers it.
//!
//! Invariant: a command about several nodes does what it can for each and exits with the first thing that went wrong.
//! Called by `commands::run`.

mod drain;
pub mod list;

use std::process::ExitCode;

use super::failure::{self, Exit, Failure};
use super::output;
use crate::cli::{NodesCommand, NodesRegisterArgs, NodesUndrainArgs, show_duration};
use crate::client::{Client, ClientError};
use crate::types::{Capabilities, NodeId, NodeView, RegisterRequest};

/// Runs one of them.
pub(super) async fn run(command: NodesCommand, client: Client) -> anyhow::Result<ExitCode> {
    match command {
        NodesCommand::List(args) => list::run(args, client).await,
        NodesCommand::Register(args) => register(args, client).await,
        NodesCommand::Drain(args) => drain::run(args, client).await,
        NodesCommand::Undrain(args) => undrain(args, client).await,
    }
}

async fn register(args: NodesRegisterArgs, client: Client) -> anyhow::Result<ExitCode> {
    // Whoever names the machine knows it; else it is the first one that comes.
    let announced = args.machine_id.is_none();
    let request = RegisterRequest {
        labels: args.label_map()?,
        node_id: args.node,
        machine_id: args.machine_id.map(|id| id.0),
        address: Some(args.address),
        pools: Vec::new(),
        capabilities: Capabilities::default(),
        version: None,
        instance_id: None,
        announced,
        engines: Vec::new(),
    };
    let reply = client.register(&request).await?;
    let node = &reply.node_id;
    output::data(&format!("{node}\n"))?;
    output::note(&format!(
        "{node} is announced: it goes Online when its agent comes, and Offline when none has come within {}",
        show_duration(std::time::Duration::from_millis(reply.node_timeout_ms))
    ));
    if !reply.durable {
        output::warning(
            "the control plane cannot write to its disk at the moment: a restart of it forgets this",
        );
    }
    output::hint(&format!(
        "start it there: orchd agent --node-id {node} --server {}",
        client.server()
    ));
    Ok(Exit::Done.into())
}

async fn undrain(args: NodesUndrainArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut failures = Failures::default();
    for node in unique(&args.nodes) {
        match client.undrain(node).await {
            Ok(view) => output::data(&format!("{node} undrained, {}\n", after_undrain(&view)))?,
            Err(error) => failures.take(node, &error)?,
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
        ) || error.code() == Some(crate::types::ErrorCode::CloudProfileDisabled)
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
