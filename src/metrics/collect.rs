//! Counters and a fleet as families of metrics, always in the same order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::types::{DrainState, Millis, NodeId, NodeStatus, PoolId, UnixMs, VERSION};

use super::{Call, Counters, DrainStep, Outcome};

/// What the process is.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// `home`, `cloud`, or `agent`.
    pub profile: &'static str,
    /// When it started, by the wall clock.
    pub started_at: UnixMs,
}

/// One registered node at the moment of a scrape.
#[derive(Debug, Clone)]
pub struct NodeSample {
    /// Its name.
    pub node_id: NodeId,
    /// Its word.
    pub status: NodeStatus,
    /// Whether it was heard by a heartbeat within the timeout.
    pub online: bool,
    /// Since it was last heard; `None` when that was in an earlier life of the process.
    pub age_ms: Option<Millis>,
}

/// The fleet at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Registered nodes, sorted by name; the implicit node of HOME is not one.
    pub nodes: Vec<NodeSample>,
    /// Pools that take requests, those of the implicit node included.
    pub pools_available: u64,
    /// Drains in force, those of nodes that left included, by their state.
    pub drains: Vec<DrainState>,
    /// How many nodes a fleet hold keeps from going Offline; `None` without a hold.
    pub hold: Option<usize>,
    /// What the gateway has at its pools, sorted by node and pool.
    pub pools: Vec<PoolSample>,
    /// Requests that wait, by model, sorted.
    pub waiting: Vec<(Arc<str>, usize)>,
}

/// One pool as the gateway sees it at the moment of a scrape.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolSample {
    /// Its node.
    pub node_id: NodeId,
    /// Its name within the node.
    pub pool_id: PoolId,
    /// Requests that run there.
    pub in_flight: u32,
    /// Slots of requests that were closed early and that the engine may still be working on.
    pub quarantined: u32,
    /// How often it was left out after a failure, since it was added.
    pub ejections: u64,
}

/// Everything at once: counters and gauges of one scrape.
pub(super) struct Scrape {
    pub counters: Arc<Counters>,
    pub fleet: Fleet,
    pub about: About,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

/// Labels with their values.
type Label<'a, const N: usize = 1> = [(&'static str, &'a str); N];

/// Writes one family of counters.
fn counters<'a, const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Option<Label<'a, N>>, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (label, value) in samples {
        match label {
            Some(label) => family
                .encode_family(&label)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?,
            None => family.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
        }
    }
    Ok(())
}

/// Writes one family of gauges.
pub(super) fn gauges<'a, V: EncodeGaugeValue, const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: impl IntoIterator<Item = (Option<Label<'a, N>>, V)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (label, value) in samples {
        match label {
            Some(label) => family.encode_family(&label)?.encode_gauge(&value)?,
            None => family.encode_gauge(&value)?,
        }
    }
    Ok(())
}

/// A family of one sample without labels.
fn one<V>(value: V) -> [(Option<Label<'static>>, V); 1] {
    [(None, value)]
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Milliseconds as the seconds Prometheus counts in.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact for 285,000 years of milliseconds"
)]
fn seconds(ms: Millis) -> f64 {
    ms as f64 / 1_000.0
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let to = &mut encoder;
        self.about.encode(to)?;
        self.counters.encode(to)?;
        self.fleet.encode(to)
    }
}

impl About {
    pub(super) fn encode(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let labels = [("version", VERSION), ("profile", self.profile)];
        to.encode_descriptor("orchd_build", "This build", None, MetricType::Info)?
            .encode_info(&labels)?;
        gauges(
            to,
            "orchd_start_time",
            "When this process started, as unix time",
            Some(&Unit::Seconds),
            one(seconds(self.started_at.0)),
        )
    }
}

impl Counters {
    fn encode(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        for call in Call::ALL {
            let (name, help) = call.family();
            let samples = Outcome::ALL.map(|outcome| {
                let count = self.calls[call as usize][outcome as usize].get();
                (Some([("outcome", outcome.as_str())]), count)
            });
            counters(to, name, help, samples)?;
        }
        let steps = DrainStep::ALL.map(|step| {
            let count = self.drains[step as usize].get();
            (Some([("outcome", step.as_str())]), count)
        });
        let help = "Drains that began, came to where nothing runs, and ended";
        counters(to, "orchd_drains", help, steps)?;
        let help = "Requests ended by the deadline of a drain or by force";
        counters(to, "orchd_drain_cut_requests", help, one(self.cut.get()))?;
        let help = "Writes that the store did not take";
        counters(to, "orchd_store_errors", help, one(self.store_errors.get()))?;
        let durable = u64::from(!self.store_failing.load(Ordering::Relaxed));
        let help = "Whether the last write to the store worked";
        gauges(to, "orchd_store_durable", help, None, one(durable))
    }
}

impl Fleet {
    fn encode(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let count = |of: &dyn Fn(&NodeSample) -> bool| {
            number(self.nodes.iter().filter(|node| of(node)).count())
        };
        let online = count(&|node| node.online);
        let help = "Nodes heard by a heartbeat within the timeout";
        gauges(to, "orchd_nodes_online", help, None, one(online))?;
        let by_status = NodeStatus::ALL.map(|status| {
            let count = count(&|node| node.status == status);
            (Some([("status", status.as_str())]), count)
        });
        let help = "Registered nodes, by status";
        gauges(to, "orchd_nodes", help, None, by_status)?;
        let help = "Pools that take requests";
        let pools = one(self.pools_available);
        gauges(to, "orchd_pools_available", help, None, pools)?;
        let by_state = [
            (DrainState::Draining, "draining"),
            (DrainState::Drained, "drained"),
        ]
        .map(|(state, word)| {
            let count = self.drains.iter().filter(|drain| **drain == state).count();
            (Some([("state", word)]), number(count))
        });
        let help = "Drains in force, by state";
        gauges(to, "orchd_node_drains", help, None, by_state)?;
        let hold = u64::from(self.hold.is_some());
        let help = "Whether mass silence keeps nodes from going Offline";
        gauges(to, "orchd_fleet_hold", help, None, one(hold))?;
        let help = "Nodes that a fleet hold keeps from going Offline";
        let held = one(number(self.hold.unwrap_or(0)));
        gauges(to, "orchd_fleet_hold_nodes", help, None, held)?;
        let up = self.nodes.iter().map(|node| {
            let label = [("node_id", node.node_id.as_str())];
            (Some(label), u64::from(node.online))
        });
        let help = "Whether the node was heard by a heartbeat within the timeout";
        gauges(to, "orchd_node_up", help, None, up)?;
        let ages = self.nodes.iter().filter_map(|node| {
            let label = [("node_id", node.node_id.as_str())];
            Some((Some(label), seconds(node.age_ms?)))
        });
        gauges(
            to,
            "orchd_node_heartbeat_age",
            "How long ago the node was last heard; absent while it was not heard since this process started",
            Some(&Unit::Seconds),
            ages,
        )?;
        self.encode_gateway(to)
    }

    fn encode_gateway(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let waiting = (self.waiting.iter())
            .map(|(model, waiting)| (Some([("model", &**model)]), number(*waiting)));
        let help = "Requests that wait for a slot";
        gauges(to, "orchd_gateway_waiting", help, None, waiting)?;
        let by_pool = |count: fn(&PoolSample) -> u64| {
            self.pools
                .iter()
                .map(move |pool| (Some(pool.labels()), count(pool)))
        };
        let help = "Requests that run at the pool";
        let in_flight = by_pool(|pool| u64::from(pool.in_flight));
        gauges(to, "orchd_gateway_in_flight", help, None, in_flight)?;
        let help = "Slots of requests that were closed early, until the engine shows them free";
        let quarantined = by_pool(|pool| u64::from(pool.quarantined));
        gauges(to, "orchd_gateway_quarantined", help, None, quarantined)?;
        let help = "How often the pool was left out after a failure";
        let ejections = by_pool(|pool| pool.ejections);
        counters(to, "orchd_gateway_ejections", help, ejections)
    }
}

impl PoolSample {
    fn labels(&self) -> Label<'_, 2> {
        [
            ("node_id", self.node_id.as_str()),
            ("pool_id", self.pool_id.as_str()),
        ]
    }
}
