//! One look at the engines of a machine, for whoever sets it up.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::clock::Clock;

use super::handoff::{self, Scanner};
use super::roster::{PassedOver, Roster, Source};
use super::{Engine, Http, IDLE, Reading, reader};

/// Everything that was found.
#[derive(Debug)]
pub struct Found {
    /// Each engine with who says that it is there, and what was read of it; nothing, if it cannot be read at all.
    pub engines: Vec<(Source, Engine, Option<Reading>)>,
    /// What was passed over.
    pub passed_over: Vec<PassedOver>,
    /// Why the directory of handoff files could not be read.
    pub trouble: Option<String>,
}

/// Looks once at every engine, at all of them at the same time. A file that is half written is waited for.
pub async fn probe(configured: Vec<Engine>, runtime_dir: PathBuf, clock: Clock) -> Found {
    let mut scanner = Scanner::new(runtime_dir);
    let (files, trouble) = loop {
        let looked = tokio::task::spawn_blocking(move || {
            let found = scanner.scan(clock.now());
            (scanner, found)
        });
        let (again, found) = match looked.await {
            Ok(looked) => looked,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        if !found.unsettled {
            break (found.claims, again.trouble().map(str::to_owned));
        }
        scanner = again;
        tokio::time::sleep(handoff::RETRY).await;
    };
    let (engines, passed_over) = Roster::default().settle(&configured, files);
    let looks: Vec<_> = engines
        .into_iter()
        .map(|(source, engine)| {
            let look = tokio::spawn(first_reading(engine.clone(), clock));
            (source, engine, look)
        })
        .collect();
    let mut engines = Vec::with_capacity(looks.len());
    for (source, engine, look) in looks {
        engines.push((source, engine, look.await.ok().flatten()));
    }
    Found {
        engines,
        passed_over,
        trouble,
    }
}

async fn first_reading(engine: Engine, clock: Clock) -> Option<Reading> {
    let (readings, mut inbox) = mpsc::channel(1);
    let (_nobody, hurry) = watch::channel(());
    let reads = reader::watch(engine, clock, None, hurry, IDLE, Http::default(), readings);
    tokio::select! {
        reading = inbox.recv() => reading,
        // It ends only when it cannot even begin.
        () = reads => None,
        () = tokio::time::sleep(LONGEST) => None,
    }
}

/// Longer than one round of questions, each of which has a limit of its own, can take.
const LONGEST: Duration = Duration::from_secs(15);
