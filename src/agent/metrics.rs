//! What `/metrics` of the agent shows, and what requests are counted under.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

use crate::metrics::{self, GpuSample, Host, Meter, UNKNOWN_MODEL};
use crate::types::{PoolId, PoolStatus};

use super::proxy::Shared;

impl Shared {
    /// What is counted of a request's model: one of those that the pool has.
    pub fn meter(&self, pool_id: &PoolId, body: &[u8]) -> Arc<Meter> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow, default)]
            model: Option<Cow<'a, str>>,
        }
        let pools = self.pools.load();
        let models = pools
            .iter()
            .find(|pool| pool.pool_id == *pool_id)
            .map_or(&[][..], |pool| &pool.models_available);
        if let [only] = models {
            return self.relayed.meter(only);
        }
        let named = serde_json::from_slice::<Named<'_>>(body).ok();
        let known = named
            .and_then(|named| named.model)
            .filter(|name| models.iter().any(|model| model == name));
        self.relayed
            .meter(known.as_deref().unwrap_or(UNKNOWN_MODEL))
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let pools = self.pools.load();
        let doors = self.doors.load();
        let engines = pools.iter().map(|pool| {
            let door = doors.get(&pool.pool_id);
            (
                PoolStatus::clone(pool),
                door.map_or(0, |door| door.in_flight.now()),
            )
        });
        let report = self.report.load();
        let gpus = report.gpus.iter().map(|reading| GpuSample {
            gpu: reading.gpu.device_id.to_string(),
            memory_used: reading.vram_used_bytes,
            memory_total: Some(reading.gpu.vram_total_bytes).filter(|&bytes| bytes > 0),
            utilization: reading
                .utilization_percent
                .map(|part| f64::from(part) / 100.0),
            temperature: reading.temperature_celsius.map(f64::from),
            power: reading
                .power_milliwatts
                .map(|power| f64::from(power) / 1_000.0),
        });
        let host = Host {
            node_id: self.node_id.clone(),
            about: self.about,
            gpus: gpus.collect(),
            engines: engines.collect(),
        };
        metrics::expose(&[&host.registry(), &self.relayed.registry()])
    }
}
