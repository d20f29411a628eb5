//! What NVML answered, call by call, before anybody makes sense of it.
//!
//! Purpose: one form for the answers of a driver and of a file that stands in for it, so that what they mean is decided
//! once, in [`report`](super::report). Invariants: plain values; a call that failed is kept with its fault.

/// What one call came to.
pub type Answer<T> = Result<T, Fault>;

/// Why a call has no value: the faults that mean something to us, and the words of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There is no NVML on this machine.
    LibraryNotFound,
    /// NVML is there, the kernel's part of the driver is not loaded.
    DriverNotLoaded,
    /// NVML and the kernel's part of the driver are of two versions.
    VersionMismatch,
    /// The GPU fell off the bus.
    GpuLost,
    /// The GPU works again only after a reset.
    ResetRequired,
    /// This GPU has no such thing.
    NotSupported,
    /// Anything else.
    Failed {
        /// In the driver's words.
        words: String,
    },
}

/// One reading.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The driver and its GPUs; a fault when it could not even be asked.
    pub driver: Answer<Driver>,
    /// GPUs on the bus, of which a machine without a driver may have some; not counted while there is a driver.
    pub on_bus: usize,
    /// Main memory that is free or can be freed.
    pub ram_available_bytes: Option<u64>,
}

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Driver {
    /// Such as `580.159.04`.
    pub version: Answer<String>,
    /// The newest CUDA it can run, as 1000 × major + 10 × minor.
    pub cuda_version: Answer<u32>,
    /// How many GPUs it counts. `devices` may be fewer: no more are asked than a node may have.
    pub count: usize,
    /// By index.
    pub devices: Vec<Device>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// NVML's index.
    pub index: u32,
    /// Its values; a fault when there is no handle to ask it by.
    pub card: Answer<Card>,
}

/// The values of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Marketing name.
    pub name: Answer<String>,
    /// NVML's stable name.
    pub uuid: Answer<String>,
    /// Its own memory.
    pub memory: Answer<Memory>,
    /// Major and minor.
    pub compute_capability: Answer<(u32, u32)>,
    /// Part of the last sample in which a kernel ran.
    pub utilization_percent: Answer<u32>,
    /// Of the chip.
    pub temperature_celsius: Answer<u32>,
    /// Drawn now.
    pub power_milliwatts: Answer<u32>,
    /// Drawn at most.
    pub power_limit_milliwatts: Answer<u32>,
    /// Of the first fan.
    pub fan_percent: Answer<u32>,
    /// Whether its memory corrects errors.
    pub ecc_enabled: Answer<bool>,
    /// Errors it could not correct since the driver was loaded.
    pub ecc_uncorrected_errors: Answer<u64>,
    /// Whether it is split into instances (MIG).
    pub mig: Answer<bool>,
}

impl Card {
    /// Whether the GPU turned out to be gone while it was asked: the fault that says so.
    pub(super) fn loss(&self) -> Option<&Fault> {
        let faults = [
            self.name.as_ref().err(),
            self.uuid.as_ref().err(),
            self.memory.as_ref().err(),
            self.compute_capability.as_ref().err(),
            self.utilization_percent.as_ref().err(),
            self.temperature_celsius.as_ref().err(),
            self.power_milliwatts.as_ref().err(),
            self.power_limit_milliwatts.as_ref().err(),
            self.fan_percent.as_ref().err(),
            self.ecc_enabled.as_ref().err(),
            self.ecc_uncorrected_errors.as_ref().err(),
            self.mig.as_ref().err(),
        ];
        let mut losses = faults.into_iter().flatten().filter(|fault| fault.is_loss());
        losses.next()
    }
}

impl Fault {
    /// Whether the GPU cannot be used at all any more.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::GpuLost | Self::ResetRequired)
    }
}

/// Memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total_bytes: u64,
    /// Not allocated.
    pub free_bytes: Option<u64>,
    /// Allocated.
    pub used_bytes: Option<u64>,
}
