//! `orchd config …` on the command line.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};

/// `orchd config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting, its value and where that comes from
    ///
    /// SOURCE is `flag`, `env` with the variable, `file` with the line, `default`, `derived` with what the value is made
    /// from, or `overruled` with what takes its place. Secrets are masked. What stands behind `--` is taken as options of
    /// the verb.
    Show(ConfigShowArgs),
    /// Check the settings without starting anything
    ///
    /// Exits 0 when `orchd serve` and `orchd agent`, or the one that is named, would accept their settings, and 2 with
    /// the reason when not.
    Check(ConfigCheckArgs),
    /// Print a systemd unit
    ///
    /// It keeps the process within its own directories, restarts it when it fails, and gives it longer to stop than the
    /// shutdown grace of the settings in force. It carries --config when that is given, and hands in the files of tokens,
    /// keys and certificates that the settings name, which may be root's alone. The service runs /usr/local/bin/orchd.
    Unit(ConfigUnitArgs),
}

/// A verb that has settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Process {
    /// The control plane
    Serve,
    /// The agent
    Agent,
}

impl Process {
    /// The verb.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Agent => "agent",
        }
    }
}

/// How to print settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    /// Columns
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// `orchd config show`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd config show
      The settings `orchd serve` would have, started here and now
  orchd config show agent --config ./agent.toml
      Those of an agent with this file
  orchd config show serve -o json -- --cloud --node-timeout 1m
      Those of `orchd serve --cloud --node-timeout 1m`")]
pub struct ConfigShowArgs {
    /// Whose settings
    #[arg(value_name = "VERB", value_enum, default_value_t = Process::Serve)]
    pub process: Process,

    /// How to print them
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = ConfigFormat::Table)]
    pub output: ConfigFormat,

    /// Options of that verb
    #[arg(value_name = "OPTION", last = true)]
    pub options: Vec<OsString>,
}

/// `orchd config check`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd config check
      Before a restart
  orchd config check agent --config ./agent.toml
      Before a file is put in its place")]
pub struct ConfigCheckArgs {
    /// Whose settings [default: both]
    #[arg(value_name = "VERB", value_enum)]
    pub process: Option<Process>,
}

/// `orchd config unit`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd config unit serve | sudo tee /etc/systemd/system/orchd-serve.service
      Install the unit of the control plane, with its settings in /etc/orchd/config.toml
  orchd config unit agent --config /etc/orchd/agent.toml | sudo tee /etc/systemd/system/orchd-agent.service
      Install the unit of an agent, with its settings in another file")]
pub struct ConfigUnitArgs {
    /// Whose unit
    #[arg(value_name = "VERB", value_enum)]
    pub process: Process,
}
