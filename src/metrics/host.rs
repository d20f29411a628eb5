//! What `/metrics` of an agent shows of its host: the GPUs and the engines, as they were read last.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::{Registry, Unit};

use crate::types::{NodeId, PoolStatus};

use super::About;
use super::collect::gauges;

/// One GPU at the moment of a scrape. What it does not tell has no series.
#[derive(Debug, Clone, Default)]
pub struct GpuSample {
    /// NVML's index.
    pub gpu: String,
    /// In bytes.
    pub memory_used: Option<u64>,
    /// In bytes.
    pub memory_total: Option<u64>,
    /// 0 to 1.
    pub utilization: Option<f64>,
    /// In degrees Celsius.
    pub temperature: Option<f64>,
    /// In watts.
    pub power: Option<f64>,
}

/// A host at the moment of a scrape.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name in the fleet.
    pub node_id: NodeId,
    /// The process.
    pub about: About,
    /// By index.
    pub gpus: Vec<GpuSample>,
    /// The engines as they were read last, with the requests that this process has there.
    pub engines: Vec<(PoolStatus, u32)>,
}

impl Host {
    /// As a registry of its own.
    #[must_use]
    pub fn registry(self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        registry
    }
}

impl Collector for Host {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let to = &mut encoder;
        self.about.encode(to)?;
        let node = ("node_id", self.node_id.as_str());
        let of = |value: &dyn Fn(&GpuSample) -> Option<f64>| -> Vec<_> {
            let samples = self.gpus.iter();
            samples
                .filter_map(|gpu| Some((Some([node, ("gpu", gpu.gpu.as_str())]), value(gpu)?)))
                .collect()
        };
        #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
        let bytes = |count: Option<u64>| count.map(|count| count as f64);
        let families: [(&str, &str, Unit, Vec<_>); 5] = [
            (
                "orchd_gpu_memory_used",
                "Memory of the GPU that is allocated",
                Unit::Bytes,
                of(&|gpu| bytes(gpu.memory_used)),
            ),
            (
                "orchd_gpu_memory_total",
                "Memory of the GPU",
                Unit::Bytes,
                of(&|gpu| bytes(gpu.memory_total)),
            ),
            (
                "orchd_gpu_utilization",
                "Part of the last sample in which the GPU worked",
                Unit::Ratios,
                of(&|gpu| gpu.utilization),
            ),
            (
                "orchd_gpu_temperature",
                "Temperature of the GPU",
                Unit::Celsius,
                of(&|gpu| gpu.temperature),
            ),
            (
                "orchd_gpu_power",
                "Power that the GPU draws",
                Unit::Other("watts".to_owned()),
                of(&|gpu| gpu.power),
            ),
        ];
        for (name, help, unit, samples) in families {
            // The library's word for a ratio is a plural, which nobody else writes.
            match unit {
                Unit::Ratios => gauges(to, &format!("{name}_ratio"), help, None, samples)?,
                unit => gauges(to, name, help, Some(&unit), samples)?,
            }
        }
        let engine = |status: &'_ PoolStatus| status.pool_id.to_string();
        let names: Vec<String> = self
            .engines
            .iter()
            .map(|(status, _)| engine(status))
            .collect();
        let engines = || names.iter().zip(&self.engines);
        let up = engines().map(|(name, (status, _))| {
            let labels = [node, ("pool_id", name.as_str())];
            (Some(labels), u64::from(status.ready))
        });
        let help = "Whether the engine takes requests";
        gauges(to, "orchd_engine_up", help, None, up)?;
        let slots = engines().flat_map(|(name, (status, _))| {
            let total = status.slots_total;
            let free = status.slots_free;
            let busy = total
                .zip(free)
                .map(|(total, free)| total.saturating_sub(free));
            [("busy", busy), ("free", free)]
                .into_iter()
                .filter_map(move |(state, slots)| {
                    let labels = [node, ("pool_id", name.as_str()), ("state", state)];
                    Some((Some(labels), u64::from(slots?)))
                })
        });
        let help = "Slots of the engine, by what they do";
        gauges(to, "orchd_engine_slots", help, None, slots)?;
        let in_flight = engines().map(|(name, (_, in_flight))| {
            let labels = [node, ("pool_id", name.as_str())];
            (Some(labels), u64::from(*in_flight))
        });
        let help = "Requests that this process has at the engine";
        gauges(to, "orchd_gateway_in_flight", help, None, in_flight)
    }
}
