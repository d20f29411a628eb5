//! `orchd agent`.

use std::process::ExitCode;
use std::time::Duration;

use crate::agent::{self, AgentError, End};
use crate::cli::{AgentArgs, ConnectArgs, HostArgs, TokenSource};
use crate::client::Client;
use crate::engines::Engine;
use crate::types::NodeId;

use super::door;
use super::failure::{Exit, Failure};
use super::machine;

/// How long one call to a control plane may take (contract §4).
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the agent until it is told to stop, or until its name belongs to somebody else.
///
/// # Errors
/// Why it does not start, or why it ended.
pub fn run(args: AgentArgs, connect: ConnectArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = door::signals(&runtime)?;
    door::raise_descriptor_limit();
    door::trust(connect.api.ca.as_deref())?;
    let host = sysinfo::System::host_name().ok();
    let node_id = node_id(args.host.node_id.clone(), host.as_deref())?;
    let machine_id = match args.host.machine_id.clone() {
        Some(id) => id.0,
        None => machine::of_agent(args.host.state.state_dir.clone(), host.as_deref()),
    };
    let secrets = door::secrets(
        connect.api.tokens(),
        TokenSource::None,
        &args.listener,
        args.listen,
    )?;
    let settings = agent::Settings {
        client: Client::guarded(connect.servers, secrets.guard(), ATTEMPT_TIMEOUT)?,
        max_connections: door::max_connections(&args.listener),
        node_id,
        machine_id,
        listen: args.listen,
        advertise: args.advertise.clone(),
        labels: args.host.label_map()?,
        engines: args
            .host
            .engine_specs()?
            .into_iter()
            .map(|spec| Engine::new(spec.name, spec.url))
            .collect(),
        runtime_dir: args.host.runtime.runtime_dir,
        gpu_fixture: args.host.gpu_fixture,
        hung_after: args.hung.hung_after,
        shutdown_grace: args.shutdown_grace,
    };
    let name = settings.node_id.clone();
    let address = settings.listen;
    let ended = runtime.block_on(agent::run(settings, secrets, signals));
    runtime.shutdown_background();
    match ended {
        Ok(End::Stopped) => Ok(Exit::Done.into()),
        Ok(End::Superseded) => {
            let message =
                format!("another agent has registered as node {name} since; this one ends");
            Err(Failure::new(Exit::Refused, message)
                .hint("run one agent per node, or give each its own --node-id")
                .into())
        }
        Ok(End::NameTaken) => {
            let message = format!("another machine is node {name}, and it is alive");
            Err(Failure::new(Exit::Refused, message)
                .hint("give this machine another name with --node-id")
                .into())
        }
        Err(AgentError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
            Err(door::taken(address, "--listen").into())
        }
        Err(e) => Err(e.into()),
    }
}

/// The names of the node and of its machine, if the latter need not be made first. Changes nothing.
///
/// # Errors
/// Nobody named the node, and the host's name will not do.
pub(super) fn identity(args: &HostArgs) -> Result<(NodeId, Option<String>), Failure> {
    let host = sysinfo::System::host_name().ok();
    let node_id = node_id(args.node_id.clone(), host.as_deref())?;
    let machine_id = match args.machine_id.clone() {
        Some(id) => Some(id.0),
        None => machine::known(args.state.state_dir.clone()).map(|machine| machine.id),
    };
    Ok((node_id, machine_id))
}

/// The name of a node that nobody named, when the host name will do.
pub(super) fn default_node_id(args: &AgentArgs) -> Option<NodeId> {
    let host = sysinfo::System::host_name().ok();
    node_id(args.host.node_id.clone(), host.as_deref()).ok()
}

fn node_id(given: Option<NodeId>, host: Option<&str>) -> Result<NodeId, Failure> {
    if let Some(node_id) = given {
        return Ok(node_id);
    }
    let host = host.unwrap_or_default();
    NodeId::new(host).map_err(|e| {
        let message = format!("the host name {host:?} cannot be the name of a node: it {e}");
        Failure::new(Exit::Usage, message).hint("name the node with --node-id")
    })
}
