//! The gateway while engines and nodes fail under load: who was already being answered is told in time, everybody else is
//! served, and whoever is elsewhere never notices.
//!
//! Each test prints its figures. The limits asserted are the promised ones; where nothing is promised they are wide.

mod closing;
mod fast;
mod silent;

use std::ops::Range;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::support::chat::{End, Told};
use crate::support::engine::{Engine, Model};
use crate::support::load::{retries, under_load};
use crate::support::orchd::Orchd;
use crate::support::{eventually, http};

/// A machine with little to spare may be late with anything that has no promised limit.
const SOON: Duration = Duration::from_secs(20);
/// How soon a stream of a dead engine ends (contract §3).
const FOUND: Duration = Duration::from_secs(2);
/// The longest silence that a stream of another engine may have on a machine that has other things to do.
const UNNOTICED: Duration = Duration::from_millis(1_500);

const SLOTS: u32 = 4;

fn ring_engine() -> Engine {
    Engine::start(Model::Ring, SLOTS, 4 * 8_192)
}

/// Waits until so many pools take requests.
fn wait_ready(orchd: &Orchd, count: usize) {
    eventually(SOON, "every engine is read", || {
        let pools = http::get_json(orchd.address, "/v2/pools");
        let all = pools["pools"].as_array().expect("a list");
        if all.iter().filter(|pool| pool["ready"] == true).count() == count {
            Ok(())
        } else {
            Err(pools.to_string())
        }
    });
}

/// What a fault came to.
#[derive(Debug, Default)]
struct Figures {
    served: usize,
    /// Of those served, how many were tried more than once.
    retried: usize,
    /// Streams that ended in-band, and the first and the last of them, counted from the fault.
    cut: usize,
    cut_after: Option<Range<Duration>>,
    /// Those of the others whose first attempt was lost with the place: the last answer, counted from the fault.
    retried_until: Duration,
    /// The longest silence of a stream elsewhere.
    gap: Duration,
}

/// Checks that nobody was failed but the streams that had begun at `victim`, and that those were told `worker_reset`, as
/// long after the fault as `within` says.
fn nobody_else_noticed(
    told: &[Told],
    victim: &str,
    fault: Instant,
    within: Range<Duration>,
) -> Figures {
    let mut figures = Figures::default();
    for told in told {
        let after = told.ended.saturating_duration_since(fault);
        match (&told.end, &told.head) {
            (End::Whole, Some(head)) => {
                figures.served += 1;
                if head.attempts > 1 {
                    figures.retried += 1;
                    figures.retried_until = figures.retried_until.max(after);
                }
                if told.is_stream && head.place != victim {
                    figures.gap = figures.gap.max(told.gap);
                }
            }
            (End::InBand(code), Some(head)) => {
                assert_eq!(code, "worker_reset", "{told:?}");
                assert_eq!(head.place, victim, "{told:?}");
                assert!(head.at < fault + Duration::from_millis(250), "{told:?}");
                assert!(within.contains(&after), "after {after:?}: {told:?}");
                figures.cut += 1;
                figures.cut_after = Some(match figures.cut_after.take() {
                    None => after..after,
                    Some(so_far) => so_far.start.min(after)..so_far.end.max(after),
                });
            }
            _ => panic!("a request that failed, {after:?} after the fault: {told:?}"),
        }
    }
    assert!(figures.cut > 0, "streams ran there: {figures:?}");
    assert!(figures.retried > 0, "others ran there, too: {figures:?}");
    assert!(figures.gap < UNNOTICED, "{figures:?}");
    figures
}

/// Three engines under load, one of which is made to die.
fn one_of_three_dies(how: &str, kill: impl FnOnce(&mut Engine)) {
    let mut engines = [(); 3].map(|()| ring_engine());
    let named: Vec<String> = (engines.iter().zip(["a", "b", "c"]))
        .map(|(engine, name)| format!("{name}={}", engine.url()))
        .collect();
    let orchd = Orchd::serve_home(&named, &[]);
    wait_ready(&orchd, 3);
    let places = ["local/a", "local/b", "local/c"];
    let (fault, told) = under_load(orchd.address, &places, |load| {
        let fault = Instant::now();
        kill(&mut engines[1]);
        load.go_on(60);
        fault
    });
    let figures = nobody_else_noticed(&told, places[1], fault, Duration::ZERO..FOUND);
    let retries = retries(orchd.address);
    eprintln!("{how} of one of three engines under load: {figures:?}, {retries:?}");
}

#[test]
fn an_engine_killed_under_load_costs_only_the_streams_that_had_begun_there() {
    one_of_three_dies("SIGKILL", Engine::kill9);
}

#[test]
fn an_engine_asked_to_stop_under_load_costs_only_the_streams_that_had_begun_there() {
    one_of_three_dies("SIGTERM", |engine| engine.signal(Signal::SIGTERM));
}
