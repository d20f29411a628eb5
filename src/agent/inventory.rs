//! What the machine has: GPUs by NVML, processors and memory by the system.
//!
//! NVML blocks, and a sick driver blocks it for long: it is asked on a thread of its own, with a deadline, and whatever
//! goes wrong becomes a reason in the node's health, never a failure of the agent.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tracing::{info, warn};

use crate::types::{Capabilities, Gpu, Health, HealthReason, HealthStatus};

/// How long NVML may take. A healthy driver answers in well under a second; initialising a cold one takes a few.
const DEADLINE: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inventory {
    pub capabilities: Capabilities,
    pub health: Health,
}

/// A file that cannot stand in for NVML.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the GPU fixture {path}: {why}")]
pub struct FixtureError {
    path: String,
    why: String,
}

/// Why there is no word on the GPUs.
enum NoGpus {
    /// There is no NVIDIA driver: a machine without GPUs.
    NoDriver,
    /// There is one, and it does not work.
    Trouble(&'static str, String),
}

/// Looks at the machine; `fixture` is a JSON list of GPUs to report instead of asking NVML.
pub(super) fn look(fixture: Option<&Path>) -> Result<Inventory, FixtureError> {
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    let cores = std::thread::available_parallelism()
        .ok()
        .and_then(|n| u32::try_from(n.get()).ok());
    let found = match fixture {
        Some(path) => Ok(read_fixture(path)?),
        None => ask_nvml(),
    };
    let mut health = Health {
        status: HealthStatus::Ok,
        reasons: Vec::new(),
    };
    let gpus = match found {
        Ok(gpus) => {
            info!(gpus = gpus.len(), "GPUs found");
            gpus
        }
        Err(NoGpus::NoDriver) => {
            info!("no NVIDIA driver on this machine: it is registered without GPUs");
            Vec::new()
        }
        Err(NoGpus::Trouble(code, message)) => {
            warn!(
                code,
                message,
                "the GPUs cannot be read: the node is registered without them, as degraded"
            );
            health.status = HealthStatus::Degraded;
            health.reasons.push(HealthReason {
                code: code.to_owned(),
                message,
            });
            Vec::new()
        }
    };
    let capabilities = Capabilities {
        gpus,
        cpu_cores: cores,
        ram_total_bytes: system.ok().map(|system| system.total_memory()),
    };
    Ok(Inventory {
        capabilities,
        health,
    })
}

fn read_fixture(path: &Path) -> Result<Vec<Gpu>, FixtureError> {
    let error = |why: String| FixtureError {
        path: path.display().to_string(),
        why,
    };
    let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| error(e.to_string()))
}

fn ask_nvml() -> Result<Vec<Gpu>, NoGpus> {
    let (answer, answered) = mpsc::channel();
    let asked = std::thread::Builder::new()
        .name("orchd-nvml".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            drop(answer.send(read_nvml()));
        });
    if let Err(e) = asked {
        return Err(NoGpus::Trouble(
            "NVML_ERROR",
            format!("no thread to ask NVML on: {e}"),
        ));
    }
    answered.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        let message = format!("NVML did not answer within {} s", DEADLINE.as_secs());
        Err(NoGpus::Trouble("NVML_TIMEOUT", message))
    })
}

fn read_nvml() -> Result<Vec<Gpu>, NoGpus> {
    let trouble = |e: NvmlError| NoGpus::Trouble("NVML_ERROR", e.to_string());
    let nvml = Nvml::init().map_err(|e| match e {
        NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded => NoGpus::NoDriver,
        NvmlError::LibRmVersionMismatch => NoGpus::Trouble(
            "DRIVER_MISMATCH",
            "the NVIDIA driver was updated and the old one is still loaded: reboot this machine"
                .to_owned(),
        ),
        e => trouble(e),
    })?;
    let driver_version = nvml.sys_driver_version().ok();
    let count = nvml.device_count().map_err(trouble)?;
    let mut gpus = Vec::new();
    for index in 0..count {
        // One card that fell off the bus does not hide the others.
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(e) => {
                warn!(index, error = %e, "a GPU does not answer");
                continue;
            }
        };
        let capability = device.cuda_compute_capability().ok();
        gpus.push(Gpu {
            device_id: index,
            name: device.name().unwrap_or_default(),
            vram_total_bytes: device
                .memory_info()
                .map(|memory| memory.total)
                .unwrap_or_default(),
            compute_capability: capability.map(|c| format!("{}.{}", c.major, c.minor)),
            uuid: device.uuid().ok(),
            driver_version: driver_version.clone(),
        });
    }
    Ok(gpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_stands_in_for_the_driver_and_a_bad_one_says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gpus.json");
        std::fs::write(
            &path,
            r#"[{"device_id": 0, "name": "H100", "vram_total_bytes": 85520809984}]"#,
        )
        .expect("writes");
        let found = look(Some(&path)).expect("reads");
        assert_eq!(found.capabilities.gpus.len(), 1);
        assert!(
            found
                .capabilities
                .ram_total_bytes
                .is_some_and(|bytes| bytes > 0)
        );
        assert_eq!(found.health.status, HealthStatus::Ok);
        std::fs::write(&path, "{").expect("writes");
        let refused = look(Some(&path)).expect_err("is no list");
        assert!(refused.to_string().contains("gpus.json"), "{refused}");
    }
}
