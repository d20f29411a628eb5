//! A JSON file that answers in place of NVML, so that everything about GPUs can be tried without one.
//!
//! Purpose: read the three forms below into a snapshot. Invariants: the file is read anew for each reading; a file that
//! cannot be used is an error at the start, and the fault of a driver later.
//!
//! 1. A list of GPUs as an agent registers them: `[{"device_id": 0, "name": …, "vram_total_bytes": …}]`.
//! 2. What NVML's own calls answered: `{"driver", "cuda", "gpus": [{"index", "name", "uuid", "mem": [total, free, used],
//!    "util", "cc": [major, minor], "temp", "power_mw", "power_limit_mw", "mig", "ecc", "fan"}]}`. A missing value is one
//!    that the card does not have, a string that begins with `ERR ` one whose call failed with these words, other keys
//!    are ignored.
//! 3. Situations: `{"error": "DriverNotLoaded"}`, a GPU `{"index": 1, "error": "GpuLost"}` (names of NVML's errors as
//!    `nvml_wrapper` spells them), and `{"hang": true}`, a driver that does not answer until the file says otherwise.
//!
//! `{"on_bus": 2}` beside an error are the GPUs that are on the bus all the same; without it there are none.
//!
//! `period_ms` and `deadline_ms` beside them replace the pace of the readings; they are read once, at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::types::Gpu;

use super::snapshot::{Answer, Card, Device, Driver, Fault, Memory};
use super::{Pace, Source};

/// How often a file that hangs is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A file that cannot stand in for NVML.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the GPU fixture {path}: {why}")]
pub struct FixtureError {
    path: String,
    why: String,
}

/// The file.
#[derive(Debug)]
pub(super) struct FixtureSource {
    path: PathBuf,
    /// As the latest reading said.
    on_bus: usize,
}

/// What is in it.
#[derive(Debug)]
enum Scene {
    Hangs,
    /// And the GPUs on the bus.
    Answers(Answer<Driver>, usize),
}

impl FixtureSource {
    /// Reads the file once, to see that it can be used, and at which pace.
    pub fn new(path: PathBuf) -> Result<(Self, Pace), FixtureError> {
        let value = load(&path)?;
        let pace = pace(&value).and_then(|pace| scene(&value).map(|_| pace));
        let pace = pace.map_err(|why| refused(&path, why))?;
        Ok((Self { path, on_bus: 0 }, pace))
    }

    fn look(&self) -> Result<Scene, FixtureError> {
        scene(&load(&self.path)?).map_err(|why| refused(&self.path, why))
    }
}

impl Source for FixtureSource {
    fn read(&mut self) -> Answer<Driver> {
        loop {
            match self.look() {
                Ok(Scene::Hangs) => std::thread::sleep(LOOK_AGAIN),
                Ok(Scene::Answers(answer, on_bus)) => {
                    self.on_bus = on_bus;
                    return answer;
                }
                Err(error) => {
                    let words = error.to_string();
                    return Err(Fault::Failed { words });
                }
            }
        }
    }

    fn on_bus(&mut self) -> usize {
        self.on_bus
    }
}

fn refused(path: &Path, why: String) -> FixtureError {
    FixtureError {
        path: path.display().to_string(),
        why,
    }
}

fn load(path: &Path) -> Result<Value, FixtureError> {
    let text = std::fs::read_to_string(path).map_err(|e| refused(path, e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| refused(path, e.to_string()))
}

fn pace(value: &Value) -> Result<Pace, String> {
    let read = |key: &str, default: Duration| match value.get(key) {
        None => Ok(default),
        Some(value) => match value.as_u64().filter(|ms| *ms > 0) {
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => Err(format!("`{key}` is {value}, not a number of milliseconds")),
        },
    };
    let default = Pace::default();
    let period = read("period_ms", default.period)?;
    Ok(Pace {
        period,
        retry: if period == default.period {
            default.retry
        } else {
            period
        },
        deadline: read("deadline_ms", default.deadline)?,
    })
}

fn scene(value: &Value) -> Result<Scene, String> {
    let object = match value {
        Value::Array(_) => return listed(value).map(|driver| Scene::Answers(Ok(driver), 0)),
        Value::Object(object) => object,
        other => return Err(format!("it is neither a list nor an object: {other}")),
    };
    if object.get("hang") == Some(&Value::Bool(true)) {
        return Ok(Scene::Hangs);
    }
    if let Some(fault) = object.get("error").and_then(Value::as_str) {
        let on_bus = match object.get("on_bus") {
            None => 0,
            Some(count) => small(count).ok_or_else(|| format!("`on_bus` is {count}"))?,
        };
        let on_bus = usize::try_from(on_bus).unwrap_or(usize::MAX);
        return Ok(Scene::Answers(Err(named(fault)), on_bus));
    }
    let gpus = match object.get("gpus") {
        Some(Value::Array(gpus)) => gpus,
        _ => return Err("`gpus` is no list".to_owned()),
    };
    let devices: Result<Vec<Device>, String> = gpus
        .iter()
        .enumerate()
        .map(|(at, gpu)| device(at, gpu).map_err(|why| format!("`gpus[{at}]`: {why}")))
        .collect();
    let driver = Driver {
        version: answer(object, "driver", text)?,
        cuda_version: answer(object, "cuda", small)?,
        count: gpus.len(),
        devices: devices?,
    };
    Ok(Scene::Answers(Ok(driver), 0))
}

fn device(at: usize, gpu: &Value) -> Result<Device, String> {
    let gpu = gpu.as_object().ok_or("it is no object")?;
    let index = match gpu.get("index") {
        None => u32::try_from(at).map_err(|e| e.to_string())?,
        Some(index) => small(index).ok_or_else(|| format!("`index` is {index}"))?,
    };
    if let Some(fault) = gpu.get("error").and_then(Value::as_str) {
        let card = Err(named(fault));
        return Ok(Device { index, card });
    }
    let errors = answer(gpu, "ecc", |value| numbers(value).first().copied())?;
    let card = Card {
        name: answer(gpu, "name", text)?,
        uuid: answer(gpu, "uuid", text)?,
        memory: answer(gpu, "mem", |value| match numbers(value)[..] {
            [total, free, used, ..] => Some(Memory {
                total_bytes: total,
                free_bytes: Some(free),
                used_bytes: Some(used),
            }),
            _ => None,
        })?,
        compute_capability: answer(gpu, "cc", |value| match numbers(value)[..] {
            [major, minor] => Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?)),
            _ => None,
        })?,
        utilization_percent: answer(gpu, "util", small)?,
        temperature_celsius: answer(gpu, "temp", small)?,
        power_milliwatts: answer(gpu, "power_mw", small)?,
        power_limit_milliwatts: answer(gpu, "power_limit_mw", small)?,
        fan_percent: answer(gpu, "fan", small)?,
        // Only a card whose memory corrects errors counts them.
        ecc_enabled: errors.clone().map(|_| true),
        ecc_uncorrected_errors: errors,
        mig: answer(gpu, "mig", |value| small(value).map(|current| current == 1))?,
    };
    let card = Ok(card);
    Ok(Device { index, card })
}

/// The first form: what is registered, and nothing that changes.
fn listed(value: &Value) -> Result<Driver, String> {
    let gpus: Vec<Gpu> = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    let first = gpus.first();
    let absent = Fault::NotSupported;
    let cuda = first
        .and_then(|gpu| gpu.cuda_version.as_deref())
        .and_then(|version| {
            let (major, minor) = version.split_once('.')?;
            Some(1_000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
        });
    Ok(Driver {
        version: first
            .and_then(|gpu| gpu.driver_version.clone())
            .ok_or(absent.clone()),
        cuda_version: cuda.ok_or(absent.clone()),
        count: gpus.len(),
        devices: gpus
            .into_iter()
            .map(|gpu| {
                let capability = gpu.compute_capability.as_deref().and_then(|text| {
                    let (major, minor) = text.split_once('.')?;
                    Some((major.parse().ok()?, minor.parse().ok()?))
                });
                let memory = match gpu.unified_memory {
                    Some(true) => Err(absent.clone()),
                    _ => Ok(Memory {
                        total_bytes: gpu.vram_total_bytes,
                        free_bytes: None,
                        used_bytes: None,
                    }),
                };
                let none = Err(absent.clone());
                let card = Card {
                    name: Ok(gpu.name),
                    uuid: gpu.uuid.ok_or(absent.clone()),
                    memory,
                    compute_capability: capability.ok_or(absent.clone()),
                    utilization_percent: none.clone(),
                    temperature_celsius: none.clone(),
                    power_milliwatts: none.clone(),
                    power_limit_milliwatts: none.clone(),
                    fan_percent: none,
                    ecc_enabled: Err(absent.clone()),
                    ecc_uncorrected_errors: Err(absent.clone()),
                    mig: gpu.mig.ok_or(absent.clone()),
                };
                Device {
                    index: gpu.device_id,
                    card: Ok(card),
                }
            })
            .collect(),
    })
}

/// One value of an object: what the call answered, or its fault.
fn answer<T>(
    object: &Map<String, Value>,
    key: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<Answer<T>, String> {
    let value = match object.get(key) {
        None | Some(Value::Null) => return Ok(Err(Fault::NotSupported)),
        Some(value) => value,
    };
    let failed = value.as_str().and_then(|text| text.strip_prefix("ERR "));
    if let Some(words) = failed {
        return Ok(Err(worded(words)));
    }
    match read(value) {
        Some(value) => Ok(Ok(value)),
        None => Err(format!("`{key}` is {value}")),
    }
}

/// A fault by the name of `nvml_wrapper::error::NvmlError`.
fn named(name: &str) -> Fault {
    match name {
        "LibraryNotFound" | "LibloadingError" => Fault::LibraryNotFound,
        "DriverNotLoaded" => Fault::DriverNotLoaded,
        "LibRmVersionMismatch" => Fault::VersionMismatch,
        "GpuLost" => Fault::GpuLost,
        "ResetRequired" => Fault::ResetRequired,
        "NotSupported" => Fault::NotSupported,
        other => Fault::Failed {
            words: other.to_owned(),
        },
    }
}

/// A fault by what `nvmlErrorString` says of it.
fn worded(words: &str) -> Fault {
    match words {
        "Not Supported" => Fault::NotSupported,
        "GPU is lost" => Fault::GpuLost,
        "GPU requires reset" => Fault::ResetRequired,
        other => Fault::Failed {
            words: other.to_owned(),
        },
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The first number there is.
fn small(value: &Value) -> Option<u32> {
    numbers(value)
        .first()
        .and_then(|number| u32::try_from(*number).ok())
}

/// Every number of a value, those within texts too: what was printed, as in `c_nvmlUtilization_t(gpu: 0 %, memory: 0 %)`,
/// is as good as what was measured.
fn numbers(value: &Value) -> Vec<u64> {
    match value {
        Value::Number(number) => number.as_u64().into_iter().collect(),
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        Value::String(text) => text
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect(),
        _ => Vec::new(),
    }
}
