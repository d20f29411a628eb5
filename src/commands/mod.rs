//! What each verb does: argv in, stdout, stderr and an exit code out.
//!
//! Invariants: data goes to stdout and everything else to stderr, both through [`output`] alone; every failure becomes
//! an exit code, an `error:` line and, where there is a next step, a `hint:` line in [`failure`] alone. Called by
//! `main`.

pub mod agent;
pub mod complete;
pub mod config;
mod demo;
mod door;
mod events;
pub mod failure;
pub mod generate;
mod logging;
mod machine;
pub mod models;
pub mod nodes;
pub mod output;
pub mod pools;
pub mod probe;
mod screen;
pub mod serve;
mod unit;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{Command, ConnectArgs};
use crate::client::Client;
use crate::config::{Loaded, load};

/// What a person waits for one answer before being told that there is none.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a command line, the name of the program included, tells on stderr what went wrong if something did, and says how
/// to exit.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    demo::process(&arguments)
        .unwrap_or_else(|| load(arguments).map_err(Into::into).and_then(dispatch))
        .unwrap_or_else(|error| failure::report(&error))
}

fn dispatch(loaded: Loaded) -> anyhow::Result<ExitCode> {
    let Loaded { cli, globals, .. } = loaded;
    let warnings = [loaded.warnings, cli.warnings()].concat();
    if matches!(cli.command, Command::Serve(_) | Command::Agent(_)) {
        logging::start()?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
    } else {
        warnings.iter().for_each(|warning| output::warning(warning));
    }
    match cli.command {
        Command::Serve(args) => {
            args.check()?;
            serve::run(*args, &cli.connect)
        }
        Command::Agent(args) => {
            args.check()?;
            agent::run(*args, cli.connect)
        }
        Command::Probe(args) => probe::run(args, &cli.connect),
        Command::Config(command) => config::run(command, &globals),
        Command::Nodes(command) => block_on(nodes::run(command, connect(cli.connect)?)),
        Command::Pools(command) => block_on(pools::pools(command, connect(cli.connect)?)),
        Command::Models(command) => block_on(models::models(command, connect(cli.connect)?)),
        Command::Events(args) => block_on(events::run(args, connect(cli.connect)?)),
        Command::Demo(args) => {
            args.check()?;
            demo::run(&args, &cli.connect)
        }
        Command::Completions(args) => generate::completions(args.shell),
        Command::Man(args) => generate::man(args.dir.as_deref()),
    }
}

fn connect(args: ConnectArgs) -> anyhow::Result<Client> {
    door::trust(args.api.ca.as_deref())?;
    let guard = door::shown(args.api.tokens())?;
    Ok(Client::guarded(args.servers, guard, ATTEMPT_TIMEOUT)?)
}

/// Runs one command to its end; a command needs no second thread.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
