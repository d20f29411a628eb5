//! `orchd agent` on the command line.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::value::{Unit, address, duration, label_map};
use super::{
    DAY, EngineArg, EngineSpec, HungArgs, Label, ListenerArgs, MachineId, RuntimeArgs, StateArgs,
    UsageError, name_engines,
};
use crate::types::{HttpUrl, NodeId};

/// Where an agent listens when nobody says otherwise (contract §4).
pub const AGENT_LISTENS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9200);

/// `orchd agent`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd agent --server http://10.0.0.1:8080 --listen 10.0.0.7:9200 --engine http://127.0.0.1:8081
      Report one engine
  orchd agent --engine small=http://127.0.0.1:8081 --engine big=http://127.0.0.1:8082
      Report two engines with names
  orchd agent --listen 0.0.0.0:9200 --advertise http://gpu-7.example:9200 --label rack=b2
      Say how the gateway reaches this host, and label it

Log:
  ORCHD_LOG=debug orchd agent ...
      More of it, on stderr: error, warn, info, debug or trace; or parts, as in orchd::agent=debug")]
pub struct AgentArgs {
    /// What is reported.
    #[command(flatten)]
    pub host: HostArgs,

    /// Address and port to listen on
    #[arg(
        long,
        value_name = "ADDR",
        default_value_t = AGENT_LISTENS,
        value_parser = address()
    )]
    pub listen: SocketAddr,

    /// Address under which the gateway reaches this agent [default: the listen address; for a wildcard such as 0.0.0.0,
    /// the address this host uses towards the control plane]
    #[arg(long, value_name = "URL")]
    pub advertise: Option<HttpUrl>,

    /// When an engine is given up.
    #[command(flatten)]
    pub hung: HungArgs,

    /// How long running requests may go on after a stop signal (0s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_SHUTDOWN_GRACE_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::ZERO, DAY)
    )]
    pub shutdown_grace: Duration,

    /// How it listens.
    #[command(flatten)]
    pub listener: ListenerArgs,
}

/// What an agent reports: the options that `orchd agent` and `orchd probe` share.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// Engine to report and relay to; repeatable. The first one without a name is called `default`, the others HOST-PORT
    #[arg(long = "engine", value_name = "[NAME=]URL")]
    pub engines: Vec<EngineArg>,

    /// Where others announce themselves.
    #[command(flatten)]
    pub runtime: RuntimeArgs,

    /// Name of this node in the fleet [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub node_id: Option<NodeId>,

    /// What tells this machine from another one that claims the same name [default: the system's machine id; one that
    /// is made and kept in the state directory where the system has none, as in containers]
    #[arg(long, value_name = "ID")]
    pub machine_id: Option<MachineId>,

    /// Where that one is kept.
    #[command(flatten)]
    pub state: StateArgs,

    /// Label of this node; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,

    /// Read the GPUs from this file instead of from the driver, for tests
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub gpu_fixture: Option<PathBuf>,
}

/// How to print what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProbeFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// The same as YAML
    Yaml,
}

/// `orchd probe`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd probe --engine http://127.0.0.1:8081
      The GPUs of this host, and one engine
  orchd probe --runtime-dir /run/engines -o json
      Engines by their handoff files, for a program")]
pub struct ProbeArgs {
    /// What is looked at.
    #[command(flatten)]
    pub host: HostArgs,

    /// How to print it
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = ProbeFormat::Table)]
    pub output: ProbeFormat,
}

impl AgentArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// Two engines of one name or address, a label twice, too many labels, a certificate without its key.
    pub fn check(&self) -> Result<(), UsageError> {
        self.listener.pair()?;
        self.host.engine_specs()?;
        self.host.label_map().map(drop)
    }
}

impl HostArgs {
    /// The engines, named.
    ///
    /// # Errors
    /// Two of one name or address.
    pub fn engine_specs(&self) -> Result<Vec<EngineSpec>, UsageError> {
        name_engines(&self.engines)
    }

    /// The labels by key.
    ///
    /// # Errors
    /// A key twice, too many labels.
    pub fn label_map(&self) -> Result<BTreeMap<String, String>, UsageError> {
        label_map(&self.labels)
    }
}
