//! All engines of a machine: which there are, and a reader for each.
//!
//! Invariants: every engine has exactly one reader for as long as it is what it is; whoever listens never hears of an
//! engine that it was not told of, or that was taken away. Used by the agent, by the HOME profile and for agentless
//! nodes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::types::PoolId;

use super::handoff;
use super::journal::Journal;
use super::roster::{Claim, PassedOver, Roster, Source};
use super::{Engine, Http, InFlight, Reading, reader};

/// Readings on their way: one a second from each engine, taken at once.
const ON_THEIR_WAY: usize = 64;
/// For so long the configured engines wait for the first look at the directory, so that both are told of at once.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// Which engines are to be watched, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Those that were named outright.
    pub configured: Vec<Engine>,
    /// Where handoff files are.
    pub runtime_dir: Option<PathBuf>,
    /// This process sends all requests that the engines get from orchd, and counts them in [`Watched::in_flight`]. Else it
    /// may [tell](InFlight::tell) there what it knows.
    pub counts: bool,
    /// Asks for readings soon: one after 50 ms, then after twice as long each time.
    pub hurry: watch::Receiver<()>,
    /// What they are read with.
    pub http: Http,
    /// The longest pause between two readings of an engine.
    pub at_least: Duration,
}

/// An engine with the count of this process's own requests there.
#[derive(Debug, Clone)]
pub struct Watched {
    /// As it is known.
    pub engine: Arc<Engine>,
    /// Counted by whoever sends them, or told.
    pub in_flight: Arc<InFlight>,
}

/// What is told.
#[derive(Debug)]
pub enum Event {
    /// These are the engines now, and no others: the configured ones in their order, then those of files by name. One that was there before and is the same still has the same count.
    Engines(Vec<Watched>),
    /// One of them was read.
    Reading(Box<Reading>),
}

struct Reader {
    number: u64,
    watched: Watched,
    journal: Journal,
    task: AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watch {
    settings: Settings,
    clock: Clock,
    events: mpsc::Sender<Event>,
    readings: mpsc::Sender<(u64, Reading)>,
    roster: Roster,
    readers: HashMap<PoolId, Reader>,
    numbers: u64,
    /// What the log knows of sources that are passed over.
    told: HashMap<Source, String>,
}

/// Watches the engines of `settings` until the receiver is dropped. The first event says which there are.
#[must_use]
pub fn spawn_watch(settings: Settings, clock: Clock) -> mpsc::Receiver<Event> {
    let (events, inbox) = mpsc::channel(ON_THEIR_WAY);
    let (readings, read) = mpsc::channel(ON_THEIR_WAY);
    let (claims, claimed) = mpsc::channel(1);
    if let Some(dir) = settings.runtime_dir.clone()
        && let Err(e) = handoff::spawn_watch(dir.clone(), clock, claims)
    {
        warn!(dir = %dir.display(), error = %e, "handoff files are not watched: there is no thread for it");
    }
    let watch = Watch {
        settings,
        clock,
        events,
        readings,
        roster: Roster::default(),
        readers: HashMap::new(),
        numbers: 0,
        told: HashMap::new(),
    };
    tokio::spawn(watch.run(claimed, read));
    inbox
}

impl Watch {
    async fn run(
        mut self,
        mut claimed: mpsc::Receiver<Vec<Claim>>,
        mut read: mpsc::Receiver<(u64, Reading)>,
    ) {
        // Nothing comes where no directory is watched.
        let first = tokio::time::timeout(FIRST_LOOK, claimed.recv()).await;
        let mut told = self.settle(first.ok().flatten().unwrap_or_default()).await;
        while told {
            tokio::select! {
                Some(claims) = claimed.recv() => told = self.settle(claims).await,
                Some((number, reading)) = read.recv() => {
                    let current = self.readers.get_mut(&reading.status.pool_id);
                    if let Some(reader) = current && reader.number == number {
                        reader.journal.on_reading(&reader.watched.engine, &reading);
                        told = self.events.send(Event::Reading(Box::new(reading))).await.is_ok();
                    }
                }
                () = self.events.closed() => told = false,
            }
        }
    }

    /// Gives each engine its reader, and says which there are. False when nobody listens any more.
    async fn settle(&mut self, files: Vec<Claim>) -> bool {
        let (engines, passed_over) = self.roster.settle(&self.settings.configured, files);
        self.tell(passed_over);
        let mut before = std::mem::take(&mut self.readers);
        let mut watched = Vec::with_capacity(engines.len());
        for (source, engine) in engines {
            let name = engine.pool_id.clone();
            let reader = match before.remove(&name) {
                Some(same) if *same.watched.engine == engine => same,
                known => {
                    let moved =
                        (known.as_ref()).is_none_or(|known| known.watched.engine.url != engine.url);
                    if let Source::File(file) = &source
                        && moved
                    {
                        info!(pool_id = %name, url = %engine.url, file, "an engine was handed over");
                    }
                    self.spawn(engine, known.as_ref())
                }
            };
            watched.push(reader.watched.clone());
            self.readers.insert(name, reader);
        }
        for pool_id in before.keys() {
            info!(%pool_id, "an engine was taken away: no new requests; running ones end by themselves");
        }
        self.events.send(Event::Engines(watched)).await.is_ok()
    }

    fn spawn(&mut self, engine: Engine, known: Option<&Reader>) -> Reader {
        self.numbers += 1;
        let number = self.numbers;
        // Requests that are at another process are not at this one, and what was said of that is not said of this.
        let known = known.filter(|known| known.watched.engine.url == engine.url);
        let journal = known.map(|known| known.journal.clone());
        let in_flight = known
            .map(|known| Arc::clone(&known.watched.in_flight))
            .unwrap_or_else(|| {
                Arc::new(if self.settings.counts {
                    InFlight::default()
                } else {
                    InFlight::hearsay()
                })
            });
        let (readings, mut read) = mpsc::channel(1);
        let reads = reader::watch(
            engine.clone(),
            self.clock,
            Some(Arc::clone(&in_flight)),
            self.settings.hurry.clone(),
            self.settings.at_least,
            self.settings.http.clone(),
            readings,
        );
        let to = self.readings.clone();
        let hands_on = async move {
            while let Some(reading) = read.recv().await {
                if to.send((number, reading)).await.is_err() {
                    return;
                }
            }
        };
        let task = tokio::spawn(async move { tokio::join!(reads, hands_on) });
        Reader {
            number,
            watched: Watched {
                engine: Arc::new(engine),
                in_flight,
            },
            journal: journal.unwrap_or_default(),
            task: task.abort_handle(),
        }
    }

    /// One line for a source that is passed over, when that is news.
    fn tell(&mut self, passed_over: Vec<PassedOver>) {
        let mut now = HashMap::with_capacity(passed_over.len());
        for PassedOver { source, why } in passed_over {
            if self.told.get(&source) != Some(&why) {
                warn!(file = %source, why, "a handoff file is not used");
            }
            now.insert(source, why);
        }
        self.told = now;
    }
}
