//! `orchd demo` on the command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser};

use super::value::{address, count};
use super::{SERVE_LISTENS, UsageError};

/// `orchd demo`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Ctrl-C (or SIGTERM) is how a demo ends: the exit status is 0 then.

Examples:
  orchd demo
      Three nodes with built-in engines: nothing is needed for it
  orchd demo --model ~/models/small.gguf
      The same with real answers, where llama-server is on the path
  orchd demo --nodes 2 --llama-server ~/llama.cpp/llama-server --model small.gguf -- -ngl 99
      Another llama-server, with more arguments for it
  orchd demo --listen 127.0.0.1:9000
      Where port 8080 is taken")]
pub struct DemoArgs {
    /// Nodes, each with an agent and an engine (1 to 16)
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 3,
        value_parser = count(1, 16)
    )]
    pub nodes: u32,

    /// Address and port of the control plane, on loopback: the demo has no token
    #[arg(
        long,
        value_name = "ADDR",
        default_value_t = SERVE_LISTENS,
        value_parser = address()
    )]
    pub listen: SocketAddr,

    /// A model (GGUF): every node gets a llama-server that serves it, with 2 slots. Each loads it for itself: choose a
    /// small one, or fewer nodes
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub model: Option<PathBuf>,

    /// The llama-server for it [default: the one on the path]
    #[arg(
        long,
        value_name = "FILE",
        requires = "model",
        value_hint = clap::ValueHint::ExecutablePath
    )]
    pub llama_server: Option<PathBuf>,

    /// Use the built-in engine, which is no language model: it says so, repeats what it was told, and counts
    #[arg(long, conflicts_with_all = ["model", "llama_server"])]
    pub built_in: bool,

    /// More arguments for llama-server, with --model
    #[arg(last = true, value_name = "ARGUMENT", requires = "model")]
    pub engine_arguments: Vec<OsString>,
}

impl DemoArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// An address that others reach.
    pub fn check(&self) -> Result<(), UsageError> {
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        Err(UsageError::new(
            format!(
                "the demo has no token and listens on loopback only, not on {}",
                self.listen
            ),
            format!("--listen 127.0.0.1:{}", self.listen.port()),
        ))
    }
}

/// What the processes of a demo are started with. No part of the command line that users see, and of its definition.
#[derive(Debug, Clone, Parser)]
#[command(name = "orchd demo")]
pub enum DemoProcess {
    /// The built-in engine of one node of a demo
    Engine {
        /// The node, by whose name it calls itself
        #[arg(long, value_name = "NODE")]
        node: String,
        /// Where it listens
        #[arg(long, value_name = "ADDR", value_parser = address())]
        listen: SocketAddr,
    },
    /// A process that ends with the demo
    Part {
        /// The demo's own process
        #[arg(long, value_name = "PID")]
        parent: u32,
        /// What it is
        #[arg(last = true, required = true, value_name = "PROGRAM")]
        command: Vec<OsString>,
    },
}

impl DemoProcess {
    /// Reads a command line, the program's name included, if it is one of these.
    ///
    /// # Errors
    /// It is, and not complete.
    pub fn of(arguments: &[OsString]) -> Option<Result<Self, clap::Error>> {
        let [_, demo, process, ..] = arguments else {
            return None;
        };
        let is_one = demo == "demo" && (process == "engine" || process == "part");
        is_one.then(|| Self::try_parse_from(&arguments[1..]))
    }
}
