//! What the machine has: GPUs by NVML, processors and memory by the system.
//!
//! Purpose: keep a [`Report`] of it that is never older than the driver lets it be. Invariants: NVML blocks, and a sick
//! driver blocks it for ever, so one thread asks it and nothing waits for that thread beyond a deadline; whatever goes
//! wrong becomes a reason in the node's health, never a failure of the process. Called by the agent.

mod fixture;
mod nvml;
mod pci;
pub mod report;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use sysinfo::{MemoryRefreshKind, System};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::types::millis;

pub use fixture::FixtureError;
pub use report::{Ecc, GpuReading, Report};

use fixture::FixtureSource;
use nvml::NvmlSource;
use report::{Board, Finding, History};
use snapshot::{Answer, Driver, Fault, Snapshot};

/// Who answers for the GPUs.
pub trait Source: Send {
    /// Asks everything anew. May block for ever.
    ///
    /// # Errors
    /// Why the driver cannot even be asked.
    fn read(&mut self) -> Answer<Driver>;

    /// How many GPUs are on the bus, driver or not.
    fn on_bus(&mut self) -> usize;
}

/// When the GPUs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    /// Pause between readings: as often as a heartbeat tells what is free.
    period: Duration,
    /// Pause while there is no driver that works: one may be loaded, but that is no matter of seconds.
    retry: Duration,
    /// How long a reading may take before it counts as missing. A healthy driver answers in well under a second;
    /// starting a cold one takes a few.
    deadline: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(10),
            retry: Duration::from_secs(60),
            deadline: Duration::from_secs(10),
        }
    }
}

/// Begins to read the GPUs, or the file that stands in for them, and goes on until nobody holds the receiver any more.
/// The first report comes as a change, at the deadline at the latest; until then nothing is known of the GPUs.
///
/// # Errors
/// A file that cannot stand in for NVML.
pub async fn start(fixture: Option<PathBuf>) -> Result<watch::Receiver<Arc<Report>>, FixtureError> {
    let prepared = tokio::task::spawn_blocking(move || {
        let (source, pace): (Box<dyn Source>, Pace) = match fixture {
            Some(path) => {
                let (source, pace) = FixtureSource::new(path)?;
                (Box::new(source), pace)
            }
            None => (Box::<NvmlSource>::default(), Pace::default()),
        };
        Ok((source, pace, board()))
    });
    let (source, pace, board) = match prepared.await {
        Ok(prepared) => prepared?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    Ok(begin(source, pace, board))
}

fn begin(source: Box<dyn Source>, pace: Pace, board: Board) -> watch::Receiver<Arc<Report>> {
    let (ask, asked) = std_mpsc::channel();
    // One question at a time, so one answer.
    let (answer, answers) = mpsc::channel(1);
    let thread = std::thread::Builder::new()
        .name("orchd-nvml".to_owned())
        .spawn(move || answer_when_asked(source, &asked, &answer));
    let mut history = History::new(board);
    let (sender, reports) = watch::channel(Arc::new(Report::empty(board)));
    let mut publish = Publisher {
        sender,
        begun: false,
    };
    if let Err(e) = thread {
        let words = format!("no thread to ask it on: {e}");
        publish.tell(history.on_snapshot(&broken(words)));
        return reports;
    }
    tokio::spawn(keep(ask, answers, publish, history, pace));
    reports
}

/// The thread that asks, and may be stuck for as long as the driver is.
fn answer_when_asked(
    mut source: Box<dyn Source>,
    asked: &std_mpsc::Receiver<()>,
    answer: &mpsc::Sender<Snapshot>,
) {
    let mut system = System::new().ok();
    while asked.recv().is_ok() {
        let driver = source.read();
        if let Some(system) = &mut system {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        }
        let snapshot = Snapshot {
            on_bus: if driver.is_ok() { 0 } else { source.on_bus() },
            driver,
            ram_available_bytes: system.as_ref().map(System::available_memory),
        };
        if answer.blocking_send(snapshot).is_err() {
            return;
        }
    }
}

/// Asks, waits, judges and tells, until nobody listens.
async fn keep(
    ask: std_mpsc::Sender<()>,
    mut answers: mpsc::Receiver<Snapshot>,
    mut publish: Publisher,
    mut history: History,
    pace: Pace,
) {
    loop {
        // It never blocks. Who is not there to be asked does not answer either.
        let _ = ask.send(());
        let begun = Instant::now();
        let mut patience = pace.deadline;
        let snapshot = loop {
            tokio::select! {
                answer = answers.recv() => break answer,
                () = sleep_until(begun + patience) => {
                    publish.tell(history.on_silence(millis(patience)));
                    // How long it lasts is news ever more seldom.
                    patience *= 2;
                }
                () = publish.sender.closed() => return,
            }
        };
        let Some(snapshot) = snapshot else {
            let words = "the thread that asks it has ended".to_owned();
            publish.tell(history.on_snapshot(&broken(words)));
            return;
        };
        let pause = match snapshot.driver {
            Err(Fault::LibraryNotFound | Fault::DriverNotLoaded | Fault::VersionMismatch) => {
                pace.retry
            }
            _ => pace.period,
        };
        publish.tell(history.on_snapshot(&snapshot));
        tokio::select! {
            () = sleep_until(Instant::now() + pause) => {}
            () = publish.sender.closed() => return,
        }
    }
}

fn broken(words: String) -> Snapshot {
    Snapshot {
        driver: Err(Fault::Failed { words }),
        on_bus: 0,
        ram_available_bytes: None,
    }
}

/// Where reports are published.
struct Publisher {
    sender: watch::Sender<Arc<Report>>,
    /// A report was published; what the channel held before was none.
    begun: bool,
}

impl Publisher {
    /// Publishes a report if it says anything new, and logs what has come and what has gone.
    fn tell(&mut self, report: Report) {
        let first = !std::mem::replace(&mut self.begun, true);
        let report = Arc::new(report);
        let mut before = None;
        self.sender.send_if_modified(|known| {
            let news = first || *known != report;
            if news {
                before = Some(std::mem::replace(known, Arc::clone(&report)));
            }
            news
        });
        if let Some(before) = before {
            log(&before, &report);
        }
    }
}

/// One line for what has come, and one for what has gone.
fn log(before: &Report, now: &Report) {
    for (finding, reason) in now.findings.iter().zip(&now.health.reasons) {
        if !before.findings.contains(finding) {
            warn!(code = finding.code, "{}", reason.message);
        }
    }
    for finding in &before.findings {
        if !now.findings.contains(finding) {
            let Finding { code, gpu } = finding;
            info!(code, gpu, "what was wrong with the GPUs is over");
        }
    }
    if let Some(note) = now.note
        && before.note.is_none()
    {
        info!("{note}");
    }
    let gpus = now.capabilities.gpus.len();
    if gpus != before.capabilities.gpus.len() {
        info!(gpus, "GPUs found");
    }
}

/// Processors and main memory. Read once: a machine that grows while it runs is registered anew by whoever grew it.
fn board() -> Board {
    let mut system = System::new().ok();
    if let Some(system) = &mut system {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    }
    Board {
        cpu_cores: std::thread::available_parallelism()
            .ok()
            .and_then(|n| u32::try_from(n.get()).ok()),
        ram_total_bytes: system.map(|system| system.total_memory()),
    }
}
