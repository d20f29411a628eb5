//! Engines, agents and networks that say nothing any more, and later do so again.

use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::chat::Told;
use crate::support::engine::Engine;
use crate::support::fault::{Fault, FaultProxy};
use crate::support::free_address;
use crate::support::load::{retries, under_load};
use crate::support::orchd::Orchd;

use super::{FOUND, Figures, nobody_else_noticed, ring_engine, wait_ready};

/// `--hung-after` here.
const HUNG_AFTER: Duration = Duration::from_secs(4);
const HUNG: [&str; 2] = ["--hung-after", "4s"];
/// How much later a stream may end: what is silent is asked once a second, with patience for 1.2 s, after half a second.
const NEXT_QUESTION: Duration = Duration::from_millis(3_500);
/// Within which an engine that works begins to answer. Whoever came to the silent one would wait for longer.
const FIRST_WORD: Duration = Duration::from_millis(1_500);

/// One of two places falls silent under load, is heard again when its streams have ended, and is used again.
fn falls_silent(
    what: &str,
    orchd: &Orchd,
    places: [&str; 2],
    silence: impl FnOnce(),
    resume: impl FnOnce(),
) {
    let [victim, other] = places;
    let ((fault, resumed, again), told) = under_load(orchd.address, &places, |load| {
        let fault = Instant::now();
        silence();
        while fault.elapsed() < HUNG_AFTER + NEXT_QUESTION {
            load.go_on(1);
        }
        resume();
        let resumed = Instant::now();
        let again = load.served_at(victim, resumed);
        load.go_on(20);
        (fault, resumed, again)
    });
    let within = HUNG_AFTER..HUNG_AFTER + NEXT_QUESTION;
    let figures: Figures = nobody_else_noticed(&told, victim, fault, within);
    let (count, slowest) = left_alone(&told, other, fault + FOUND, resumed);
    let retries = retries(orchd.address);
    eprintln!(
        "{what}: {figures:?}, {retries:?}; {count} streams were sent on more than {FOUND:?} after it, the slowest began after {slowest:?}; \
         used again {:?} after it was back",
        again - resumed
    );
}

/// Checks that whatever was sent on between these moments was served at once and by the other place. Gives how many streams
/// that were, and the slowest first word.
fn left_alone(told: &[Told], other: &str, from: Instant, to: Instant) -> (usize, Duration) {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    for told in told.iter().filter(|told| told.is_stream) {
        let head = told.head.as_ref().expect("all of them were answered");
        // Those that came earlier may have lost an attempt.
        let sent = told.begun + head.queued;
        let may_have_lost = told.begun < from && head.attempts > 1;
        if sent < from || head.at > to || may_have_lost {
            continue;
        }
        let waited = head.at.saturating_duration_since(sent);
        assert_eq!(head.place, other, "{told:?}");
        assert!(waited < FIRST_WORD, "{waited:?}: {told:?}");
        count += 1;
        slowest = slowest.max(waited);
    }
    assert!(count >= 3, "{count} are too few to tell");
    (count, slowest)
}

#[test]
fn a_stopped_engine_is_left_within_two_seconds_and_used_again_when_it_goes_on() {
    let engines = [(); 2].map(|()| ring_engine());
    let named = [("a", &engines[0]), ("b", &engines[1])];
    let named = named.map(|(name, engine)| format!("{name}={}", engine.url()));
    let orchd = Orchd::serve_home(&named, &HUNG);
    wait_ready(&orchd, 2);
    falls_silent(
        "SIGSTOP of an engine",
        &orchd,
        ["local/b", "local/a"],
        || engines[1].signal(Signal::SIGSTOP),
        || engines[1].signal(Signal::SIGCONT),
    );
}

const NODES: [&str; 2] = ["gpu-1", "gpu-2"];
/// The second one fails.
const PLACES: [&str; 2] = ["gpu-2/ring", "gpu-1/ring"];

/// Two nodes with an engine each. What depends on another is ended before it.
struct Fleet {
    agents: [Orchd; 2],
    plane: Orchd,
    engines: [Engine; 2],
    _state: TempDir,
}

impl Fleet {
    fn start() -> Self {
        Self::start_with(|plane, _| plane.to_owned(), [&[], &[]])
    }

    /// The same, where each agent talks to what `server` makes of the control plane's URL, with these options.
    fn start_with(server: impl Fn(&str, usize) -> String, more: [&[&str]; 2]) -> Self {
        let state = tempfile::tempdir().expect("a directory for the state");
        let engines = [(); 2].map(|()| ring_engine());
        let plane = Orchd::serve_cloud(state.path(), &HUNG);
        let agents = [0, 1].map(|at| {
            let engine = format!("ring={}", engines[at].url());
            let more = [&HUNG, more[at]].concat();
            Orchd::agent_with(&server(&plane.url(), at), NODES[at], &[engine], &more)
        });
        wait_ready(&plane, 2);
        Self {
            agents,
            plane,
            engines,
            _state: state,
        }
    }
}

#[test]
fn a_stopped_engine_of_a_fleet_is_left_within_two_seconds_and_used_again_when_it_goes_on() {
    let fleet = Fleet::start();
    falls_silent(
        "SIGSTOP of an engine of a fleet",
        &fleet.plane,
        PLACES,
        || fleet.engines[1].signal(Signal::SIGSTOP),
        || fleet.engines[1].signal(Signal::SIGCONT),
    );
}

#[test]
fn a_stopped_agent_is_left_within_two_seconds_and_used_again_when_it_goes_on() {
    let fleet = Fleet::start();
    falls_silent(
        "SIGSTOP of an agent",
        &fleet.plane,
        PLACES,
        || fleet.agents[1].signal(Signal::SIGSTOP),
        || fleet.agents[1].signal(Signal::SIGCONT),
    );
}

#[test]
fn a_node_without_power_is_left_within_two_seconds_and_used_again_when_it_is_back() {
    let door = free_address();
    let advertised = format!("http://{door}");
    let to_plane = std::cell::RefCell::new(None);
    // The second node hears and says everything through a network of its own.
    let through = |plane: &str, at: usize| match at {
        1 => {
            let address = plane.trim_start_matches("http://").parse();
            let proxy = FaultProxy::start(address.expect("an address"), Fault::Pass);
            let url = proxy.url();
            *to_plane.borrow_mut() = Some(proxy);
            url
        }
        _ => plane.to_owned(),
    };
    let fleet = Fleet::start_with(through, [&[], &["--advertise", &advertised]]);
    let to_plane = to_plane.into_inner().expect("it was started");
    let to_node = FaultProxy::start_at(door, fleet.agents[1].address, Fault::Pass);
    let set = |fault| {
        to_node.set(fault);
        to_plane.set(fault);
    };
    falls_silent(
        "a node without power",
        &fleet.plane,
        PLACES,
        || set(Fault::Cut),
        || set(Fault::Pass),
    );
}
