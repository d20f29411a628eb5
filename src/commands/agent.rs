//! x
use crate::cli::{AgentArgs, ConnectArgs};
use std::process::ExitCode;
/// x
pub fn run(_args: AgentArgs, _connect: ConnectArgs) -> anyhow::Result<ExitCode> {
    unimplemented!()
}
