//! The reading of one engine, again and again, as often as what it does asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::clock::Clock;
use crate::types::PoolState;

use super::{Engine, Http, IDLE, InFlight, Reading, llamacpp};

/// How often an engine is read while it works, and one that has just gone (contract §4).
const WORKING: Duration = Duration::from_secs(1);
/// How often one that stays away: it is there again within two seconds of answering, on a machine that is late by half of
/// one, too.
const AWAY: Duration = Duration::from_millis(1_500);
/// How often while it loads: its model may be there in a moment.
const LOADING: Duration = Duration::from_millis(250);

/// How long after a round that heard nothing.
const AT_ONCE: Duration = Duration::from_millis(50);
/// How soon an engine is read after it was asked for (contract §3, Cancel).
const HURRIED: Duration = Duration::from_millis(50);

/// Reads an engine until the receiver is gone. `in_flight` is the reader's own requests there, where it is the one who
/// sends them all, or what it was told of them. `hurry` asks for readings soon: one after 50 ms, then after twice as long
/// each time. The pause between two readings is never longer than `at_least`.
pub async fn watch(
    engine: Engine,
    clock: Clock,
    in_flight: Option<Arc<InFlight>>,
    mut hurry: watch::Receiver<()>,
    at_least: Duration,
    http: Http,
    readings: mpsc::Sender<Reading>,
) {
    let mut prober = match llamacpp::Prober::new(engine.clone(), clock, in_flight.clone(), &http) {
        Ok(prober) => prober,
        Err(e) => {
            warn!(pool_id = %engine.pool_id, error = %e, "cannot read this engine");
            return;
        }
    };
    let mut hurried: Option<Duration> = None;
    let mut away: u32 = 0;
    loop {
        let begun = Instant::now();
        let reading = prober.round().await;
        let state = reading.status.state;
        away = match state {
            PoolState::Unreachable => away.saturating_add(1),
            _ => 0,
        };
        let taken = reading.sample.is_some_and(|sample| sample.busy > 0);
        let ours = in_flight
            .as_ref()
            .is_some_and(|in_flight| in_flight.now() > 0);
        // From the beginning of one round to that of the next: late answers do not make readings rarer.
        let pause = if prober.is_silent() {
            AT_ONCE
        } else {
            let pause = pause(state, taken || ours, away).min(at_least);
            pause.saturating_sub(begun.elapsed()).max(AT_ONCE)
        };
        if readings.send(reading).await.is_err() {
            return;
        }
        if engine.fault.is_some() {
            // What is wrong is not mended by asking: whoever said it will say when it is gone.
            readings.closed().await;
            return;
        }
        let pause = hurried.map_or(pause, |soon| soon.min(pause));
        tokio::select! {
            () = tokio::time::sleep(pause) => {
                hurried = hurried.map(|soon| soon * 2).filter(|soon| *soon < WORKING);
            }
            () = asked(&mut hurry) => {
                hurried = Some(HURRIED);
                tokio::time::sleep(HURRIED).await;
            }
            () = readings.closed() => return,
        }
    }
}

/// Waits until a reading is asked for. One that is asked for during a reading comes after it: that one began too early.
async fn asked(hurry: &mut watch::Receiver<()>) {
    if hurry.changed().await.is_err() {
        // Nobody is left to ask.
        std::future::pending().await
    }
}

/// How long until the next reading. `away` is for how many rounds it could not be reached.
fn pause(state: PoolState, works: bool, away: u32) -> Duration {
    match state {
        PoolState::Loading => LOADING,
        PoolState::Ready | PoolState::Sleeping if !works => IDLE,
        PoolState::Unreachable if away > 1 => AWAY,
        _ => WORKING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_stays_away_is_asked_less_often_and_found_in_time_all_the_same() {
        let unreachable = |away| pause(PoolState::Unreachable, false, away);
        assert_eq!(unreachable(1), WORKING);
        for away in [2, 3, u32::MAX] {
            assert!(unreachable(away) > WORKING);
            // With what a round takes: it answers at once, or refuses at once.
            assert!(unreachable(away) + Duration::from_millis(500) <= Duration::from_secs(2));
        }
    }

    #[test]
    fn the_pause_follows_what_the_engine_does() {
        assert_eq!(pause(PoolState::Loading, false, 0), LOADING);
        assert_eq!(pause(PoolState::Ready, false, 0), IDLE);
        assert_eq!(pause(PoolState::Ready, true, 0), WORKING);
        assert_eq!(pause(PoolState::Busy, false, 0), WORKING);
        assert_eq!(pause(PoolState::Misconfigured, false, 0), WORKING);
    }
}
