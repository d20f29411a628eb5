//! What each verb does: argv in, stdout, stderr and an exit code out.
//!
//! Invariants: data goes to stdout and everything else to stderr, both through [`output`] alone; every failure becomes
//! an exit code, an `error:` line and, where there is a next step, a `hint:` line in [`failure`] alone. Called by
//! `main`.

pub mod agent;
mod door;
pub mod failure;
pub mod generate;
mod logging;
pub mod nodes;
pub mod output;
pub mod serve;

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{Cli, Command, ConnectArgs};
use crate::client::Client;

/// What a person waits for one answer before being told that there is none.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a command line, tells on stderr what went wrong if something did, and says how to exit.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    dispatch(cli).unwrap_or_else(|error| failure::report(&error))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => {
            args.check()?;
            serve::run(*args, &cli.connect)
        }
        Command::Agent(args) => {
            args.check()?;
            agent::run(*args, cli.connect)
        }
        Command::Nodes(command) => block_on(nodes::run(command, connect(cli.connect)?)),
        Command::Completions(args) => generate::completions(args.shell),
        Command::Man(args) => generate::man(args.dir.as_deref()),
    }
}

fn connect(args: ConnectArgs) -> anyhow::Result<Client> {
    door::trust(args.api.ca.as_deref())?;
    let guard = door::shown(args.api.tokens()?)?;
    Ok(Client::guarded(args.servers, guard, ATTEMPT_TIMEOUT)?)
}

/// Runs one command to its end; a command needs no second thread.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
