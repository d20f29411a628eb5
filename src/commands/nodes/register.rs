//! `orchd nodes register`: take in a node without an agent, or announce one whose agent will come. Called by
//! `nodes::run`.

use std::process::ExitCode;
use std::time::Duration;

use super::wait::{self, Goal};
use crate::cli::{NodesRegisterArgs, Wanted, show_duration};
use crate::client::Client;
use crate::commands::failure::Exit;
use crate::commands::output;
use crate::types::{Capabilities, EngineRef, RegisterReply, RegisterRequest};

pub(super) async fn run(args: NodesRegisterArgs, client: Client) -> anyhow::Result<ExitCode> {
    let engines: Vec<EngineRef> = args
        .engine_specs()?
        .into_iter()
        .map(|spec| EngineRef {
            pool_id: Some(spec.name),
            url: spec.url,
        })
        .collect();
    let agentless = !engines.is_empty();
    // Whoever names the machine knows it; else it is the first one that comes.
    let announced = !agentless && args.machine_id.is_none();
    let request = RegisterRequest {
        labels: args.label_map()?,
        node_id: args.node,
        machine_id: args.machine_id.map(|id| id.0),
        address: args.address,
        pools: Vec::new(),
        capabilities: Capabilities::default(),
        version: None,
        instance_id: None,
        announced,
        engines,
    };
    let reply = client.register(&request).await?;
    let node = reply.node_id.clone();
    output::data(&format!("{node}\n"))?;
    say_what_comes_next(&reply, agentless, &client);
    if !args.wait {
        return Ok(Exit::Done.into());
    }
    let goal = Goal {
        wanted: Wanted::Online,
        quiet: true,
        on_timeout: "the node stays registered",
    };
    wait::run(vec![node], goal, args.timeout, client).await
}

fn say_what_comes_next(reply: &RegisterReply, agentless: bool, client: &Client) {
    let node = &reply.node_id;
    let timeout = show_duration(Duration::from_millis(reply.node_timeout_ms));
    if agentless {
        output::note(&format!(
            "{node} is registered: the control plane probes its engines, and it goes Online when one of them answers, \
             Offline when none has for {timeout}"
        ));
    } else {
        output::note(&format!(
            "{node} is announced: it goes Online when its agent comes, and Offline when none has come within {timeout}"
        ));
    }
    if !reply.durable {
        output::warning(
            "the control plane cannot write to its disk at the moment: a restart of it forgets this",
        );
    }
    if !agentless {
        output::hint(&format!(
            "start it there: orchd agent --node-id {node} --server {}",
            client.server()
        ));
    }
}
