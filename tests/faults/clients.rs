//! Real clients: each asks one thing after the other, for words that count, and keeps what became of every request.
//!
//! Invariants: every request has a name of its own ([`request_id`]), so that what the control plane says of it can be held
//! against what its client saw; no client leaves before it has its answer. Used by all faults of processes and networks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::chat::{COUNT, End, Told, ring};
use crate::support::load::Raised;
use crate::support::seed::Random;
use crate::support::{STEP, eventually};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(30);
/// How many ask: with what they think about in between, some more than two of three nodes can do.
const CLIENTS: usize = 10;
/// Whoever was given no answer asks again after a while, as programs do.
const PAUSE: Duration = Duration::from_millis(100);

/// Nothing that was asked for takes longer, whatever goes wrong.
const PATIENCE: Duration = Duration::from_secs(40);

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request and what became of it.
#[derive(Debug)]
pub struct Answer {
    /// Its number: it was called [`request_id`](crate::support::chat::request_id) of this.
    pub id: u64,
    pub told: Told,
}

/// The clients at work.
pub struct Clients {
    address: SocketAddr,
    over: AtomicBool,
    next: AtomicU64,
    /// Asked, and not answered.
    open: Mutex<BTreeSet<u64>>,
    answers: Mutex<Vec<Answer>>,
}

impl Clients {
    /// Does something while they ask, and gives that and everything they were answered.
    pub fn ask_while<T>(
        address: SocketAddr,
        random: &mut Random,
        act: impl FnOnce(&Self) -> T,
    ) -> (T, Vec<Answer>) {
        let clients = Self {
            address,
            over: AtomicBool::new(false),
            next: AtomicU64::new(0),
            open: Mutex::default(),
            answers: Mutex::default(),
        };
        let shared = &clients;
        let done = std::thread::scope(|scope| {
            let over = Raised(&shared.over);
            for _ in 0..CLIENTS {
                let chance = Random(random.next());
                scope.spawn(move || shared.ask(chance));
            }
            let done = act(shared);
            drop(over);
            done
        });
        let answers = clients.answers.into_inner();
        (done, answers.unwrap_or_else(PoisonError::into_inner))
    }

    fn ask(&self, mut chance: Random) {
        while !self.over.load(Ordering::Relaxed) {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let more = usize::try_from(chance.below(300)).expect("a small number");
            let ask = match chance.below(4) {
                0 => COUNT,
                1 => ring(300 + more),
                _ => ring(50 + more / 4),
            };
            lock(&self.open).insert(id);
            let told = ask.called(id).told(self.address, chance.below(3) > 0);
            lock(&self.open).remove(&id);
            let pause = match told.end {
                End::Whole => Duration::from_millis(20 + chance.below(80)),
                _ => PAUSE,
            };
            lock(&self.answers).push(Answer { id, told });
            std::thread::sleep(pause);
        }
    }

    /// Lets nobody ask any more, and waits until everybody has an answer. Says which requests have none, if any.
    pub fn end(&self) -> Result<(), String> {
        self.over.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        loop {
            let open = lock(&self.open).clone();
            if open.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("no answer within {PATIENCE:?}: {open:?}"));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Goes on until `count` more answers were complete.
    pub fn go_on(&self, count: usize) {
        let complete = || {
            let answers = lock(&self.answers);
            let complete = answers.iter().filter(|it| it.told.end == End::Whole);
            complete.count()
        };
        let before = complete();
        eventually(SOON, "others are served", || {
            let more = complete() - before;
            if more >= count {
                Ok(())
            } else {
                Err(format!("{more} of {count}"))
            }
        });
    }

    /// Goes on until a request that was sent after this moment was served whole at a place of which this is true, and says
    /// how long after that moment it had its answer's head.
    pub fn served(&self, after: Instant, is_there: impl Fn(&str) -> bool) -> Duration {
        let look = || {
            let answers = lock(&self.answers);
            let heads = (answers.iter().map(|it| &it.told))
                .filter(|told| told.begun >= after && told.end == End::Whole)
                .filter_map(|told| told.head.as_ref());
            let first = heads
                .filter(|head| is_there(&head.place))
                .map(|head| head.at)
                .min();
            first.ok_or_else(|| match answers.last() {
                Some(last) => format!("{} answers, the last: {last:?}", answers.len()),
                None => "no answer".to_owned(),
            })
        };
        let (first, _) = eventually(SOON, "it serves again", look);
        first - after
    }
}
