//! Asks NVML. Every call here may block for as long as the driver likes.

use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use crate::types::MAX_GPUS;

use super::snapshot::{Answer, Card, Device, Driver, Fault, Memory};
use super::{Source, pci};

/// Mode of `nvmlDeviceGetMigMode` when it is on (`NVML_DEVICE_MIG_ENABLE`).
const MIG_ON: u32 = 1;

/// The driver of this machine.
#[derive(Default)]
pub(super) struct NvmlSource {
    /// Kept between readings: starting NVML wakes every GPU that sleeps, which takes seconds.
    nvml: Option<Nvml>,
}

impl Source for NvmlSource {
    fn read(&mut self) -> Answer<Driver> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => Nvml::init().map_err(fault)?,
        };
        // A handle that cannot even count is dropped here, and the next reading starts NVML afresh.
        let count = nvml.device_count().map_err(fault)?;
        let driver = Driver {
            version: nvml.sys_driver_version().map_err(fault),
            cuda_version: nvml
                .sys_cuda_driver_version()
                .map_err(fault)
                .map(i32::unsigned_abs),
            count: usize::try_from(count).unwrap_or(usize::MAX),
            devices: (0..count)
                .take(MAX_GPUS)
                .map(|index| device(&nvml, index))
                .collect(),
        };
        self.nvml = Some(nvml);
        Ok(driver)
    }

    fn on_bus(&mut self) -> usize {
        pci::nvidia_gpus(Path::new(pci::DEVICES))
    }
}

fn device(nvml: &Nvml, index: u32) -> Device {
    let card = nvml.device_by_index(index).map_err(fault).map(|device| {
        let memory = device.memory_info().map_err(fault);
        let capability = device.cuda_compute_capability().map_err(fault);
        Card {
            name: device.name().map_err(fault),
            uuid: device.uuid().map_err(fault),
            memory: memory.map(|memory| Memory {
                total_bytes: memory.total,
                free_bytes: Some(memory.free),
                used_bytes: Some(memory.used),
            }),
            compute_capability: capability
                .map(|c| (c.major.unsigned_abs(), c.minor.unsigned_abs())),
            utilization_percent: device.utilization_rates().map_err(fault).map(|u| u.gpu),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).map_err(fault),
            power_milliwatts: device.power_usage().map_err(fault),
            power_limit_milliwatts: device.enforced_power_limit().map_err(fault),
            fan_percent: device.fan_speed(0).map_err(fault),
            ecc_enabled: device
                .is_ecc_enabled()
                .map_err(fault)
                .map(|ecc| ecc.currently_enabled),
            ecc_uncorrected_errors: device
                .total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
                .map_err(fault),
            mig: device
                .mig_mode()
                .map_err(fault)
                .map(|mode| mode.current == MIG_ON),
        }
    });
    Device { index, card }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` calls, everywhere here"
)]
fn fault(error: NvmlError) -> Fault {
    match error {
        // What dlopen(3) says when the driver is not installed, and NVML when a part of it is not.
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Fault::LibraryNotFound,
        NvmlError::DriverNotLoaded => Fault::DriverNotLoaded,
        NvmlError::LibRmVersionMismatch => Fault::VersionMismatch,
        NvmlError::GpuLost => Fault::GpuLost,
        NvmlError::ResetRequired => Fault::ResetRequired,
        NvmlError::NotSupported => Fault::NotSupported,
        error => Fault::Failed {
            words: error.to_string(),
        },
    }
}
