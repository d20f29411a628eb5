//! What a reading of the GPUs means: what is registered, what is shown, and what is wrong.
//!
//! Purpose: the one place that interprets NVML's answers. Invariants: pure; no answer, and no absence of one, is worse
//! than a reason in the node's health. Called by the shell in [`inventory`](super) after each reading, and when one does
//! not come.

use serde::Serialize;

use crate::types::{Capabilities, Gpu, Health, HealthReason, HealthStatus, MAX_GPUS, Millis};

use super::snapshot::{Answer, Card, Driver, Fault, Memory, Snapshot};

/// There are GPUs on the bus, and no driver, or it is not loaded.
pub const NO_DRIVER: &str = "NO_DRIVER";
/// The driver was updated while an older one is loaded.
pub const DRIVER_MISMATCH: &str = "DRIVER_MISMATCH";
/// A GPU cannot be used any more.
pub const GPU_LOST: &str = "GPU_LOST";
/// A GPU shares the machine's memory.
pub const UNIFIED_MEMORY: &str = "UNIFIED_MEMORY";
/// A GPU is split into instances.
pub const MIG_ENABLED: &str = "MIG_ENABLED";
/// NVML does not answer.
pub const NVML_TIMEOUT: &str = "NVML_TIMEOUT";
/// NVML answers with an error that has no code of its own here.
pub const NVML_ERROR: &str = "NVML_ERROR";
/// A GPU's memory holds errors that could not be corrected.
pub const ECC_ERRORS: &str = "ECC_ERRORS";
/// There are more GPUs than a node may have.
pub const TOO_MANY_GPUS: &str = "TOO_MANY_GPUS";

/// What the machine has, and how it is, after one reading.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Every GPU there is or was, those that cannot be used any more included, by index.
    pub gpus: Vec<GpuReading>,
    /// What the node registers: without what changes from reading to reading, and without the GPUs that are lost.
    pub capabilities: Capabilities,
    /// Degraded as long as there is a reason.
    pub health: Health,
    /// Such as `580.159.04`.
    pub driver_version: Option<String>,
    /// The newest CUDA the driver can run, `major.minor`.
    pub cuda_version: Option<String>,
    /// What is worth saying of the GPUs although nothing is wrong with them.
    #[serde(skip)]
    pub note: Option<&'static str>,
    /// What each reason of `health` is about, in the same order.
    #[serde(skip)]
    pub(super) findings: Vec<Finding>,
}

/// One GPU as it was read last. Every value may be absent: cards lack some, and calls fail.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuReading {
    /// What is registered of it.
    pub gpu: Gpu,
    /// Memory that is not allocated; of a GPU that shares the machine's memory, what of that is available.
    pub vram_free_bytes: Option<u64>,
    /// Memory that is allocated.
    pub vram_used_bytes: Option<u64>,
    /// Part of the last sample in which a kernel ran, 0 to 100.
    pub utilization_percent: Option<u32>,
    /// Of the chip.
    pub temperature_celsius: Option<u32>,
    /// Power drawn now.
    pub power_milliwatts: Option<u32>,
    /// Power it may draw.
    pub power_limit_milliwatts: Option<u32>,
    /// Speed of its first fan, as a part of the highest.
    pub fan_percent: Option<u32>,
    /// Error correction of its memory.
    pub ecc: Option<Ecc>,
    /// Whether it is split into instances (MIG).
    pub mig: Option<bool>,
    /// The worst that is wrong with it.
    pub trouble: Option<HealthReason>,
}

/// Error correction of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ecc {
    /// Whether it is on.
    pub enabled: bool,
    /// Errors it could not correct since the driver was loaded.
    pub uncorrected_errors: Option<u64>,
}

/// What a reason is about. The same finding stays one transition while its words change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub code: &'static str,
    /// The GPU; none when it is about all of them.
    pub gpu: Option<String>,
}

/// What the machine has besides GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Board {
    /// Logical processors.
    pub cpu_cores: Option<u32>,
    /// Main memory.
    pub ram_total_bytes: Option<u64>,
}

/// What earlier readings said, as far as later ones need it.
#[derive(Debug)]
pub struct History {
    board: Board,
    /// The static part of every GPU that ever answered, the latest last.
    cards: Vec<Gpu>,
    /// The last reading that the driver answered, without what may have changed since.
    good: Report,
}

impl Report {
    /// A machine on which no GPU is known.
    pub(super) fn empty(board: Board) -> Self {
        Self {
            gpus: Vec::new(),
            capabilities: Capabilities {
                gpus: Vec::new(),
                cpu_cores: board.cpu_cores,
                ram_total_bytes: board.ram_total_bytes,
            },
            health: Health {
                status: HealthStatus::Ok,
                reasons: Vec::new(),
            },
            driver_version: None,
            cuda_version: None,
            note: None,
            findings: Vec::new(),
        }
    }

    /// Free memory of the devices that a mask such as `0,1` or `GPU-5f1c,GPU-77` leaves visible, as CUDA reads its
    /// `CUDA_VISIBLE_DEVICES`: indices, or beginnings of uuids, up to the first that is no device. Without a mask, of all
    /// that answer. None when a value is missing, or no device is left.
    ///
    /// An index is NVML's. CUDA counts the fastest first unless `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`, which differs only
    /// where the cards of a machine do.
    #[must_use]
    pub fn vram_free(&self, device_mask: Option<&str>) -> Option<u64> {
        let devices: Vec<&GpuReading> = match device_mask {
            None => self.gpus.iter().filter(|gpu| !gpu.is_lost()).collect(),
            Some(mask) => self.visible(mask),
        };
        let mut sum = None;
        let mut shared_counted = false;
        for device in devices {
            let free = device.vram_free_bytes?;
            // GPUs that share the machine's memory share it with each other, too.
            let shared = device.gpu.unified_memory == Some(true);
            if !(shared && shared_counted) {
                sum = Some(sum.unwrap_or(0_u64).saturating_add(free));
            }
            shared_counted |= shared;
        }
        sum
    }

    fn visible(&self, mask: &str) -> Vec<&GpuReading> {
        let mut visible: Vec<&GpuReading> = Vec::new();
        for name in mask.split(',').map(str::trim) {
            let mut fitting = self.gpus.iter().filter(|reading| {
                let gpu = &reading.gpu;
                let uuid = gpu.uuid.as_deref();
                let named = match name.parse::<u32>() {
                    Ok(index) => gpu.device_id == index,
                    Err(_) => {
                        name.starts_with("GPU-") && uuid.is_some_and(|uuid| uuid.starts_with(name))
                    }
                };
                named && !reading.is_lost()
            });
            // The beginning of two uuids names neither.
            let (Some(device), None) = (fitting.next(), fitting.next()) else {
                break;
            };
            if !visible.contains(&device) {
                visible.push(device);
            }
        }
        visible
    }

    fn add(&mut self, code: &'static str, gpu: Option<String>, message: String) -> HealthReason {
        let reason = HealthReason {
            code: code.to_owned(),
            message,
        };
        self.health.status = HealthStatus::Degraded;
        self.health.reasons.push(reason.clone());
        self.findings.push(Finding { code, gpu });
        reason
    }

    /// Without the values that are of one moment.
    fn faded(&self) -> Self {
        let mut faded = self.clone();
        for reading in &mut faded.gpus {
            *reading = GpuReading {
                ecc: reading.ecc,
                mig: reading.mig,
                trouble: reading.trouble.clone(),
                ..GpuReading::of(reading.gpu.clone())
            };
        }
        faded
    }
}

impl GpuReading {
    /// A GPU of which nothing is known but what it is.
    fn of(gpu: Gpu) -> Self {
        Self {
            gpu,
            vram_free_bytes: None,
            vram_used_bytes: None,
            utilization_percent: None,
            temperature_celsius: None,
            power_milliwatts: None,
            power_limit_milliwatts: None,
            fan_percent: None,
            ecc: None,
            mig: None,
            trouble: None,
        }
    }

    /// Whether it cannot be used any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.code == GPU_LOST)
    }
}

impl History {
    /// Before the first reading.
    #[must_use]
    pub fn new(board: Board) -> Self {
        Self {
            board,
            cards: Vec::new(),
            good: Report::empty(board),
        }
    }

    /// NVML answered.
    pub fn on_snapshot(&mut self, snapshot: &Snapshot) -> Report {
        match &snapshot.driver {
            Ok(driver) => {
                let report = self.on_driver(driver, snapshot.ram_available_bytes);
                self.good = report.faded();
                report
            }
            Err(Fault::LibraryNotFound | Fault::DriverNotLoaded) if snapshot.on_bus == 0 => {
                self.on_none()
            }
            Err(fault) => self.on_fault(fault, snapshot.on_bus),
        }
    }

    /// A machine that never had a GPU is none with something wrong.
    fn on_none(&mut self) -> Report {
        self.forget();
        Report {
            note: Some(
                "this machine has no GPUs: no NVIDIA driver, and no NVIDIA GPU on its PCI bus",
            ),
            ..self.good.clone()
        }
    }

    fn forget(&mut self) {
        self.cards.clear();
        self.good = Report::empty(self.board);
    }

    /// NVML has not answered for so long.
    #[must_use]
    pub fn on_silence(&self, silent_ms: Millis) -> Report {
        let silent = if silent_ms < 1_000 {
            format!("{silent_ms} ms")
        } else {
            format!("{} s", silent_ms / 1_000)
        };
        let message = format!(
            "NVML has not answered for {silent}, and what is known of the GPUs is from before: look for the driver's \
             messages (NVRM, Xid) in the kernel's log, and reboot if it does not recover"
        );
        let mut report = self.good.clone();
        report.add(NVML_TIMEOUT, None, message);
        report
    }

    fn on_fault(&mut self, fault: &Fault, on_bus: usize) -> Report {
        let seen = match on_bus {
            1 => "1 NVIDIA GPU is on the PCI bus".to_owned(),
            count => format!("{count} NVIDIA GPUs are on the PCI bus"),
        };
        let (code, message) = match fault {
            Fault::LibraryNotFound => (
                NO_DRIVER,
                format!(
                    "{seen}, and there is no NVIDIA driver on this machine (no libnvidia-ml.so.1), so it counts as one \
                     without GPUs: install the driver, and they are found within a minute"
                ),
            ),
            Fault::DriverNotLoaded => (
                NO_DRIVER,
                format!(
                    "{seen}, and the NVIDIA driver is installed but not loaded, so this machine counts as one without \
                     GPUs: load it with `modprobe nvidia`, and they are found within a minute"
                ),
            ),
            Fault::VersionMismatch => (
                DRIVER_MISMATCH,
                "the NVIDIA driver was updated and the old one is still loaded: reboot this machine, or unload and load \
                 the nvidia modules"
                    .to_owned(),
            ),
            other => (
                NVML_ERROR,
                format!(
                    "NVML does not tell of the GPUs: {}; try nvidia-smi on this machine, and look for the driver's \
                     messages (NVRM, Xid) in the kernel's log",
                    words(other)
                ),
            ),
        };
        if code == NO_DRIVER {
            self.forget();
        }
        let mut report = self.good.clone();
        report.add(code, None, message);
        report
    }

    fn on_driver(&mut self, driver: &Driver, ram_available_bytes: Option<u64>) -> Report {
        let mut report = Report::empty(self.board);
        report.driver_version = kept(&driver.version, self.good.driver_version.clone());
        let cuda_version = driver.cuda_version.clone();
        report.cuda_version = kept(
            &cuda_version.map(|version| format!("{}.{}", version / 1_000, version % 1_000 / 10)),
            self.good.cuda_version.clone(),
        );
        if driver.count > MAX_GPUS {
            let message = format!(
                "this machine has {} GPUs and a node has at most {MAX_GPUS}: the first {MAX_GPUS} are reported",
                driver.count
            );
            report.add(TOO_MANY_GPUS, None, message);
        }
        for device in driver.devices.iter().take(MAX_GPUS) {
            let card = device.card.as_ref().ok();
            let fault = match &device.card {
                Ok(card) => card.loss(),
                Err(fault) => Some(fault),
            };
            let reading = match (card, fault) {
                (Some(card), None) => {
                    self.on_card(&mut report, device.index, card, ram_available_bytes)
                }
                (card, fault) => {
                    let fault = fault.unwrap_or(&Fault::NotSupported);
                    self.on_silent_card(&mut report, device.index, card, fault)
                }
            };
            // What only fails to answer is still there; of a GPU that never answered there is nothing to register.
            let was_known = self
                .known(device.index, reading.gpu.uuid.as_deref())
                .is_some();
            if fault.is_none() || was_known && !reading.is_lost() {
                report.capabilities.gpus.push(reading.gpu.clone());
            }
            report.gpus.push(reading);
        }
        self.find_gone(&mut report);
        for gpu in &report.capabilities.gpus {
            self.cards.retain(|card| match (&card.uuid, &gpu.uuid) {
                (Some(known), Some(uuid)) => known != uuid,
                (None, None) => card.device_id != gpu.device_id,
                _ => true,
            });
            self.cards.push(gpu.clone());
        }
        report
    }

    /// A GPU that answers, whatever it lacks.
    fn on_card(
        &self,
        report: &mut Report,
        index: u32,
        card: &Card,
        ram_available_bytes: Option<u64>,
    ) -> GpuReading {
        let uuid = card.uuid.clone().ok();
        // A static value that one call fails to give is still what it was.
        let known = self.known(index, uuid.as_deref());
        let mut gpu = Gpu {
            device_id: index,
            name: kept(&card.name, known.map(|known| known.name.clone())).unwrap_or_default(),
            compute_capability: kept(
                &card
                    .compute_capability
                    .clone()
                    .map(|(major, minor)| format!("{major}.{minor}")),
                known.and_then(|known| known.compute_capability.clone()),
            ),
            uuid: kept(&card.uuid, known.and_then(|known| known.uuid.clone())),
            driver_version: report.driver_version.clone(),
            cuda_version: report.cuda_version.clone(),
            mig: kept(&card.mig, known.and_then(|known| known.mig)),
            ..Gpu::default()
        };
        let key = key(&gpu);
        let called = called(&gpu);
        let mut troubles = Vec::new();
        let memory = match &card.memory {
            Ok(memory) => Some(*memory),
            Err(Fault::NotSupported) => {
                gpu.unified_memory = Some(true);
                let message = format!(
                    "{called} shares the memory of this machine: its memory is told as that, and what is free of it as \
                     what other programs leave; bound what engines take with their own options"
                );
                troubles.push(report.add(UNIFIED_MEMORY, Some(key.clone()), message));
                self.board.ram_total_bytes.map(|total_bytes| Memory {
                    total_bytes,
                    free_bytes: ram_available_bytes,
                    used_bytes: ram_available_bytes
                        .map(|available| total_bytes.saturating_sub(available)),
                })
            }
            Err(fault) => {
                let message = format!(
                    "{called} does not tell its memory: {}; try nvidia-smi on this machine",
                    words(fault)
                );
                troubles.push(report.add(NVML_ERROR, Some(key.clone()), message));
                known.map(|known| Memory {
                    total_bytes: known.vram_total_bytes,
                    free_bytes: None,
                    used_bytes: None,
                })
            }
        };
        gpu.vram_total_bytes = memory.map_or(0, |memory| memory.total_bytes);
        let errors = card.ecc_uncorrected_errors.clone().ok();
        if let Some(errors) = errors.filter(|errors| *errors > 0) {
            let message = format!(
                "{called} has had {errors} uncorrected memory errors since its driver was loaded: drain this node and \
                 reset the GPU, and replace it if they come back"
            );
            troubles.push(report.add(ECC_ERRORS, Some(key.clone()), message));
        }
        if gpu.mig == Some(true) {
            let message = format!(
                "{called} is split into instances (MIG), and its memory and load are told for all of it: give each engine \
                 its instance with CUDA_VISIBLE_DEVICES=MIG-…, or switch MIG off"
            );
            troubles.push(report.add(MIG_ENABLED, Some(key), message));
        }
        let enabled = card.ecc_enabled.clone().ok();
        GpuReading {
            vram_free_bytes: memory.and_then(|memory| memory.free_bytes),
            vram_used_bytes: memory.and_then(|memory| memory.used_bytes),
            utilization_percent: card.utilization_percent.clone().ok(),
            temperature_celsius: card.temperature_celsius.clone().ok(),
            power_milliwatts: card.power_milliwatts.clone().ok(),
            power_limit_milliwatts: card.power_limit_milliwatts.clone().ok(),
            fan_percent: card.fan_percent.clone().ok(),
            ecc: enabled.map(|enabled| Ecc {
                enabled,
                uncorrected_errors: errors,
            }),
            mig: gpu.mig,
            trouble: troubles.into_iter().min_by_key(rank),
            ..GpuReading::of(gpu)
        }
    }

    /// A GPU that does not answer.
    fn on_silent_card(
        &self,
        report: &mut Report,
        index: u32,
        card: Option<&Card>,
        fault: &Fault,
    ) -> GpuReading {
        let uuid = card.and_then(|card| card.uuid.as_ref().ok());
        let known = self.known(index, uuid.map(String::as_str));
        let gpu = known.cloned().unwrap_or_else(|| Gpu {
            uuid: uuid.cloned(),
            name: card
                .and_then(|card| card.name.clone().ok())
                .unwrap_or_default(),
            ..Gpu::default()
        });
        let gpu = Gpu {
            device_id: index,
            ..gpu
        };
        let called = called(&gpu);
        let (code, message) = match fault {
            Fault::GpuLost => (
                GPU_LOST,
                format!(
                    "{called} has fallen off the bus: reboot this machine, and reseat or replace the card if it happens \
                     again"
                ),
            ),
            Fault::ResetRequired => (
                GPU_LOST,
                format!(
                    "{called} works again only after a reset: stop whatever uses it, this agent too, and run `nvidia-smi \
                     --gpu-reset -i {index}`, or reboot"
                ),
            ),
            other => (
                NVML_ERROR,
                format!(
                    "{called} does not answer: {}; try nvidia-smi on this machine, and look for the driver's messages \
                     (NVRM, Xid) in the kernel's log",
                    words(other)
                ),
            ),
        };
        let trouble = report.add(code, Some(key(&gpu)), message);
        GpuReading {
            trouble: Some(trouble),
            ..GpuReading::of(gpu)
        }
    }

    /// GPUs that the driver counted before and does not count now.
    fn find_gone(&self, report: &mut Report) {
        for card in self.cards.iter().filter(|card| card.uuid.is_some()) {
            if report.gpus.iter().any(|there| there.gpu.uuid == card.uuid) {
                continue;
            }
            let message = format!(
                "{} was there and is not counted any more: reboot this machine, or restart this agent if the card was \
                 taken out on purpose",
                called(card)
            );
            let trouble = report.add(GPU_LOST, Some(key(card)), message);
            report.gpus.push(GpuReading {
                trouble: Some(trouble),
                ..GpuReading::of(card.clone())
            });
        }
        report.gpus.sort_by_key(|reading| reading.gpu.device_id);
    }

    /// What was said of a GPU before, by its name for life, else by its place.
    fn known(&self, index: u32, uuid: Option<&str>) -> Option<&Gpu> {
        let mut latest_first = self.cards.iter().rev();
        match uuid {
            Some(uuid) => latest_first.find(|card| card.uuid.as_deref() == Some(uuid)),
            None => latest_first.find(|card| card.device_id == index),
        }
    }
}

/// The answer; where the call failed, what was known; nothing where the card has no such value.
fn kept<T: Clone>(answer: &Answer<T>, known: Option<T>) -> Option<T> {
    match answer {
        Ok(value) => Some(value.clone()),
        Err(Fault::NotSupported) => None,
        Err(_) => known,
    }
}

/// What stays the same while the GPU is the same.
fn key(gpu: &Gpu) -> String {
    gpu.uuid
        .clone()
        .unwrap_or_else(|| gpu.device_id.to_string())
}

/// `GPU 1 (NVIDIA H100 80GB HBM3, GPU-5f1c…)`, as far as it is known.
fn called(gpu: &Gpu) -> String {
    let index = gpu.device_id;
    match (gpu.name.as_str(), gpu.uuid.as_deref()) {
        ("", None) => format!("GPU {index}"),
        ("", Some(uuid)) => format!("GPU {index} ({uuid})"),
        (name, None) => format!("GPU {index} ({name})"),
        (name, Some(uuid)) => format!("GPU {index} ({name}, {uuid})"),
    }
}

/// The worst first.
fn rank(reason: &HealthReason) -> usize {
    let order = [GPU_LOST, NVML_ERROR, ECC_ERRORS, MIG_ENABLED];
    let at = order.iter().position(|code| *code == reason.code);
    at.unwrap_or(order.len())
}

fn words(fault: &Fault) -> &str {
    match fault {
        Fault::LibraryNotFound => "a library of the driver is missing",
        Fault::DriverNotLoaded => "the driver is not loaded",
        Fault::VersionMismatch => "the driver was updated and the old one is still loaded",
        Fault::GpuLost => "the GPU is lost",
        Fault::ResetRequired => "the GPU requires a reset",
        Fault::NotSupported => "not supported",
        Fault::Failed { words } => words,
    }
}
