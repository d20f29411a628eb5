//! `orchd nodes remove`: end registrations, and forget what was asked of the nodes. Called by `nodes::run`.

use std::process::ExitCode;

use super::{Failures, unique};
use crate::cli::NodesRemoveArgs;
use crate::client::Client;
use crate::commands::output;
use crate::types::NodeView;

pub(super) async fn run(args: NodesRemoveArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut failures = Failures::default();
    for node in unique(&args.nodes) {
        // Looked at before, because nothing can be seen of it afterwards. A node that left cannot be looked at, and can
        // be forgotten all the same.
        let before = client.node(node).await.ok();
        match client.deregister(node, None, true).await {
            Ok(()) => {
                output::data(&format!("{node} removed\n"))?;
                if before.as_ref().is_some_and(has_live_agent) {
                    output::warning(&format!(
                        "{node} has a running agent, which registers it again with its next heartbeat; stop that agent, \
                         then remove the node once more"
                    ));
                }
            }
            Err(error) => failures.take(node, &error)?,
        }
    }
    Ok(failures.exit().into())
}

/// Whether somebody will register the node again. An agentless node has no address.
fn has_live_agent(view: &NodeView) -> bool {
    view.online && view.address.is_some()
}
