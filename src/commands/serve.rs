//! `orchd serve`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tracing::warn;

use crate::cli::{AdmissionPolicy, Assemble, ConnectArgs, ServeArgs};
use crate::engines::Engine;
use crate::server::{self, ServeError, Setup};
use crate::types::millis;
use crate::{admission, control, gateway};

use super::door;
use super::failure::Exit;

/// Readings of engines count for two of their longest intervals in HOME: they are read at least every 5 s (contract §4).
const HOME_SAMPLE_TTL_MS: u64 = 10_000;

/// Runs the control plane until it is told to stop.
///
/// # Errors
/// Why it does not start.
pub fn run(args: ServeArgs, connect: &ConnectArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let signals = door::signals(&runtime)?;
    door::raise_descriptor_limit();
    door::trust(connect.api.ca.as_deref())?;
    let (api, client) = (connect.api.tokens(), args.client.tokens());
    let secrets = door::secrets(api, client, &args.listener, args.listen)?;
    if args.cloud && secrets.guard().bearer().is_none() && !secrets.guard().tokens().is_empty() {
        warn!(
            "there are tokens of clients and none of operators (ORCHD_API_TOKEN): no agent can register, no command is let in"
        );
    }
    let settings = settings(args)?;
    let address = settings.listen;
    let served = runtime.block_on(server::run(settings, secrets, signals));
    // After a second signal, threads that still let requests finish are not waited for.
    runtime.shutdown_background();
    match served {
        Ok(()) => Ok(Exit::Done.into()),
        Err(ServeError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
            Err(door::taken(address, "--listen").into())
        }
        Err(e) => Err(e.into()),
    }
}

/// Where the state lies when nobody says otherwise; none without a home directory.
pub(super) fn default_state_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "orchd")
        .and_then(|dirs| dirs.state_dir().map(ToOwned::to_owned))
}

fn settings(args: ServeArgs) -> anyhow::Result<server::Settings> {
    let heartbeat_interval_ms = millis(args.effective_heartbeat_interval());
    let control = control::Settings {
        // HOME reads its engines itself: there is nobody whose silence could mean anything.
        node_timeout_ms: if args.cloud {
            millis(args.node_timeout)
        } else {
            u64::MAX
        },
        heartbeat_interval_ms,
        stale_check_interval_ms: millis(args.stale_check_interval),
        restart_grace_ms: millis(args.effective_restart_grace()),
        hold: control::HoldSettings {
            min: args.fleet_hold_min,
            percent: args.fleet_hold_percent,
            max_ms: millis(args.fleet_hold_max),
        },
    };
    let engines = args.engine_specs()?;
    let aliases = args.model_aliases();
    let sample_ttl_ms = if args.cloud {
        2 * heartbeat_interval_ms
    } else {
        HOME_SAMPLE_TTL_MS
    };
    let setup = if args.cloud {
        let state_dir = match args.state.state_dir {
            Some(dir) => dir,
            None => default_state_dir().context("this user has no home directory to keep the state in; name a directory with --state-dir")?,
        };
        Setup::Cloud { state_dir }
    } else {
        Setup::Home {
            engines: engines
                .into_iter()
                .map(|spec| Engine::new(spec.name, spec.url))
                .collect(),
            runtime_dir: args.runtime.runtime_dir,
        }
    };
    let admission = admission::Settings {
        queue_capacity: args.admission_capacity as usize,
        policy: match args.admission_policy {
            AdmissionPolicy::Reject => admission::Policy::Reject,
            AdmissionPolicy::DropLru => admission::Policy::DropLru,
        },
        queue_bytes: args.admission_bytes.0,
        queue_timeout_ms: millis(args.queue_timeout),
        no_pool_wait_ms: millis(args.no_pool_wait),
        sample_ttl_ms,
    };
    Ok(server::Settings {
        setup,
        listen: args.listen,
        max_connections: door::max_connections(&args.listener),
        control,
        admission,
        gateway: gateway::Settings {
            assemble: args.gateway.assemble == Assemble::On,
            sse_commit: args.gateway.sse_commit,
            hung_after: args.hung.hung_after,
            access_log: args.gateway.access_log,
            cors_origins: args.gateway.cors_origins,
        },
        aliases,
        shutdown_grace: args.shutdown_grace,
    })
}
