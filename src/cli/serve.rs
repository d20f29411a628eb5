//! `orchd serve` on the command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::admission::{AdmissionPolicy, ByteSize, POLICIES, size};
use super::gateway::{GatewayArgs, HungArgs};
use super::value::{Unit, address, cloud, count, duration, text, words};
use super::{
    AliasArg, ClientTokenArgs, DAY, EngineArg, EngineSpec, HOUR, ListenerArgs, RuntimeArgs,
    StateArgs, UsageError, name_engines, show_duration,
};
use crate::types::{self, Alias};

/// Where `serve` listens when nobody says otherwise (contract §2).
pub const SERVE_LISTENS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// A heartbeat interval that nobody set is a third of the timeout, and at most this: the original system's interval.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A node timeout that leaves room for two lost heartbeats of the original system's clients.
const ORIGINAL_TIMEOUT: Duration = Duration::from_secs(30);
/// A restart grace that nobody set is the timeout, and at least this.
const RESTART_GRACE: Duration = Duration::from_secs(30);

/// `orchd serve`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  orchd serve --engine http://127.0.0.1:8081
      One machine, one engine
  orchd serve --engine small=http://127.0.0.1:8081 --engine big=http://127.0.0.1:8082
      One machine, two engines with names
  orchd serve --engine http://127.0.0.1:8081 --alias gpt-4o-mini=qwen3-8b,llama-3
      Programs that ask for gpt-4o-mini get one of these two
  orchd serve --cloud --listen 10.0.0.1:8080 --node-timeout 1m
      A fleet whose nodes count as Offline after a minute of silence

Log:
  ORCHD_LOG=debug orchd serve ...
      More of it, on stderr: error, warn, info, debug or trace; or parts, as in orchd::gateway=debug")]
pub struct ServeArgs {
    /// Keep a registry of nodes (the CLOUD profile) instead of serving this machine alone (HOME)
    #[arg(
        long,
        env = "ORCHESTRATORD_CLOUD_PROFILE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = cloud(),
        hide_possible_values = true
    )]
    pub cloud: bool,

    /// Address and port to listen on
    #[arg(
        long,
        value_name = "ADDR",
        env = "ORCHD_ADDR",
        default_value_t = SERVE_LISTENS,
        value_parser = address()
    )]
    pub listen: SocketAddr,

    /// Engine of this machine, HOME profile only; repeatable. The first one without a name is called `default`, the
    /// others HOST-PORT
    #[arg(long = "engine", value_name = "[NAME=]URL")]
    pub engines: Vec<EngineArg>,

    /// Where others announce themselves.
    #[command(flatten)]
    pub runtime: RuntimeArgs,

    /// Another name under which models can be asked for: a request for it goes to whichever of them has a free slot; repeatable.
    /// In the file it is a table, `[aliases]`
    // The other name is that of the table.
    #[arg(
        long = "alias",
        alias = "aliases",
        value_name = "NAME=MODEL[,MODEL...]",
        value_parser = text::<AliasArg>(),
        help_heading = "Gateway"
    )]
    pub aliases: Vec<AliasArg>,

    /// Silence after which a node counts as Offline (1s to 1h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_NODE_TIMEOUT_MS",
        default_value = "30s",
        value_parser = duration(Unit::Millis, Duration::from_secs(1), HOUR),
        help_heading = "Liveness"
    )]
    pub node_timeout: Duration,

    /// How often the whole fleet is looked through, as a safety net; a node that falls silent is found within a second of
    /// the node timeout, whatever this is (1s to 1m)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS",
        default_value = "10s",
        value_parser = duration(Unit::Seconds, Duration::from_secs(1), Duration::from_mins(1)),
        help_heading = "Liveness"
    )]
    pub stale_check_interval: Duration,

    /// How often agents are told to send a heartbeat (10ms to a third of the node timeout) [default: 10s, or a third of
    /// the node timeout when that is less]
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHESTRATORD_HEARTBEAT_INTERVAL_MS",
        value_parser = duration(Unit::Millis, Duration::from_millis(10), HOUR),
        help_heading = "Liveness"
    )]
    pub heartbeat_interval: Option<Duration>,

    /// How long nodes known from before a restart may still be routed to before they are heard (0s to 1h) [default: 30s,
    /// or the node timeout when that is more]
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_RESTART_GRACE_MS",
        value_parser = duration(Unit::Millis, Duration::ZERO, HOUR),
        help_heading = "Liveness"
    )]
    pub restart_grace: Option<Duration>,

    /// Fleet hold: when at least so many nodes fall silent at once, the fault is taken to be on the control plane's side
    /// (its network, perhaps), and none of them goes Offline while it lasts (1 to 1000000)
    #[arg(
        long,
        value_name = "COUNT",
        env = "ORCHD_FLEET_HOLD_MIN",
        default_value_t = 5,
        value_parser = count(1, 1_000_000),
        help_heading = "Liveness"
    )]
    pub fleet_hold_min: u32,

    /// Fleet hold: more than this share of the fleet must be silent, too, in percent; 0 turns the hold off (0 to 100)
    // The other name is the variable's, without prefix and unit.
    #[arg(
        long,
        alias = "fleet-hold",
        value_name = "PERCENT",
        env = "ORCHD_FLEET_HOLD_PERCENT",
        default_value_t = 30,
        value_parser = count(0, 100),
        help_heading = "Liveness"
    )]
    pub fleet_hold_percent: u32,

    /// Fleet hold: how long it may last, after which those still silent go Offline (1s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_FLEET_HOLD_MAX_MS",
        default_value = "10m",
        value_parser = duration(Unit::Millis, Duration::from_secs(1), DAY),
        help_heading = "Liveness"
    )]
    pub fleet_hold_max: Duration,

    /// Requests that may wait for one model; more are refused (0 to 1000000)
    #[arg(
        long,
        value_name = "COUNT",
        env = "ORCHD_ADMISSION_CAPACITY",
        default_value_t = 1_024,
        value_parser = count(0, 1_000_000),
        help_heading = "Gateway"
    )]
    pub admission_capacity: u32,

    /// Room for the bodies of waiting requests, over all models (0B to 1024GiB)
    // The other name is the variable's, without prefix and unit.
    #[arg(
        long,
        alias = "admission",
        value_name = "SIZE",
        env = "ORCHD_ADMISSION_BYTES",
        default_value = "256MiB",
        value_parser = size(ByteSize(1 << 40)),
        help_heading = "Gateway"
    )]
    pub admission_bytes: ByteSize,

    /// What happens when the queue of a model is full: `reject` refuses the request that comes, `drop-lru` the one that
    /// has waited longest
    #[arg(
        long,
        value_name = "POLICY",
        env = "ORCHD_ADMISSION_POLICY",
        default_value = "reject",
        value_parser = words(POLICIES),
        help_heading = "Gateway"
    )]
    pub admission_policy: AdmissionPolicy,

    /// How long a request waits for a free slot (1ms to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_QUEUE_TIMEOUT_MS",
        default_value = "300s",
        value_parser = duration(Unit::Millis, Duration::from_millis(1), DAY),
        help_heading = "Gateway"
    )]
    pub queue_timeout: Duration,

    /// How long a request waits for a known model that no engine serves at the moment (0s to 24h)
    #[arg(
        long,
        value_name = "DURATION",
        env = "ORCHD_NO_POOL_WAIT_MS",
        default_value = "5s",
        value_parser = duration(Unit::Millis, Duration::ZERO, DAY),
        help_heading = "Gateway"
    )]
    pub no_pool_wait: Duration,

    /// What it does with answers.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// When an engine is given up.
    #[command(flatten, next_help_heading = "Gateway")]
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

    /// Where the registry is kept.
    #[command(flatten)]
    pub state: StateArgs,

    /// Who else is let in.
    #[command(flatten)]
    pub client: ClientTokenArgs,
    /// How it listens.
    #[command(flatten)]
    pub listener: ListenerArgs,
}

impl ServeArgs {
    /// Checks what no single option can know.
    ///
    /// # Errors
    /// `--cloud` with `--engine`, a heartbeat interval above a third of the node timeout, engines of one name, aliases
    /// that do not go together, a token and its file, a certificate without its key.
    pub fn check(&self) -> Result<(), UsageError> {
        if self.cloud && !self.engines.is_empty() {
            return Err(UsageError::new(
                "--engine belongs to the HOME profile: with --cloud, engines are watched by agents",
                "run `orchd agent --engine URL` on the host of the engine, or leave out --cloud",
            ));
        }
        let limit = self.node_timeout / 3;
        if let Some(interval) = self.heartbeat_interval.filter(|interval| *interval > limit) {
            return Err(UsageError::new(
                format!(
                    "the heartbeat interval {} (--heartbeat-interval, ORCHESTRATORD_HEARTBEAT_INTERVAL_MS) is above a \
                     third of the node timeout {} (--node-timeout, ORCHESTRATORD_NODE_TIMEOUT_MS)",
                    show_duration(interval),
                    show_duration(self.node_timeout)
                ),
                format!(
                    "one lost heartbeat must not take a node offline: set it to {} or less",
                    show_duration(limit)
                ),
            ));
        }
        self.listener.pair()?;
        types::check_aliases(&self.model_aliases()).map_err(|clash| UsageError {
            message: clash.to_string(),
            hint: None,
        })?;
        self.engine_specs().map(drop)
    }

    /// What is allowed, and may surprise.
    pub(super) fn warnings(&self) -> Vec<String> {
        let short = (self.node_timeout < ORIGINAL_TIMEOUT).then(|| {
            format!(
                "the node timeout {} (--node-timeout, ORCHESTRATORD_NODE_TIMEOUT_MS) is below {}: agents of the original \
                 system send a heartbeat every 10s whatever they are told, and would flap",
                show_duration(self.node_timeout),
                show_duration(ORIGINAL_TIMEOUT)
            )
        });
        short.into_iter().collect()
    }

    /// The aliases of models.
    #[must_use]
    pub fn model_aliases(&self) -> Vec<Alias> {
        let aliases = self.aliases.iter();
        aliases.map(|alias| alias.0.clone()).collect()
    }

    /// The engines, named.
    ///
    /// # Errors
    /// Two of one name or address.
    pub fn engine_specs(&self) -> Result<Vec<EngineSpec>, UsageError> {
        name_engines(&self.engines)
    }

    /// The heartbeat interval in force.
    #[must_use]
    pub fn effective_heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
            .unwrap_or_else(|| HEARTBEAT_INTERVAL.min(self.node_timeout / 3))
    }

    /// The restart grace in force.
    #[must_use]
    pub fn effective_restart_grace(&self) -> Duration {
        self.restart_grace
            .unwrap_or_else(|| RESTART_GRACE.max(self.node_timeout))
    }
}
