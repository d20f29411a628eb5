//! The reading of one engine, again and again, as often as what it does asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::types::PoolState;

use super::{Engine, Http, IDLE, InFlight, Reading, llamacpp};

/// How often an engine is read while it works, loads or is away (contract §4).
const WORKING: Duration = Duration::from_secs(1);
/// How often while it loads: its model may be there in a moment.
const LOADING: Duration = Duration::from_millis(250);

/// How long after a round that heard nothing.
const AT_ONCE: Duration = Duration::from_millis(50);
/// How soon an engine is read after it was asked for (contract §3, Cancel).
const HURRIED: Duration = Duration::from_millis(50);

/// Reads an engine until the receiver is gone. `in_flight` is the reader's own requests there, where it is the one who
/// sends them all, or what it was told of them. `hurry` asks for readings soon: one after 50 ms, then after twice as long each time. The pause between
/// two readings is never longer than `at_least`.
pub async fn watch(
    engine: Engine,
    clock: Clock,
    in_flight: Option<Arc<InFlight>>,
    hurry: Arc<Notify>,
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
    let mut last: Option<(PoolState, Vec<String>)> = None;
    let mut hurried: Option<Duration> = None;
    let mut advised: Vec<String> = Vec::new();
    loop {
        let begun = Instant::now();
        let reading = prober.round().await;
        let state = reading.status.state;
        let now = (steady(state), reading.status.models_available.clone());
        if last.as_ref() != Some(&now) {
            let detail = reading.status.detail.as_deref().unwrap_or_default();
            let (pool_id, url) = (&engine.pool_id, &engine.url);
            if engine.fault.is_some() {
                warn!(%pool_id, %url, state = state.as_str(), detail, "this engine is not used");
            } else if matches!(state, PoolState::Unreachable | PoolState::Misconfigured) {
                warn!(%pool_id, %url, state = state.as_str(), detail, "this engine cannot be used now; it is asked again every second");
            } else {
                let models = reading.status.models_available.join(",");
                info!(%pool_id, %url, state = state.as_str(), models, "engine changed");
            }
            last = Some(now);
        }
        for words in &reading.advice {
            if !advised.contains(words) {
                warn!(pool_id = %engine.pool_id, "{words}");
            }
        }
        advised.clone_from(&reading.advice);
        let taken = reading.sample.is_some_and(|sample| sample.busy > 0);
        let ours = in_flight
            .as_ref()
            .is_some_and(|in_flight| in_flight.now() > 0);
        // From the beginning of one round to that of the next: late answers do not make readings rarer.
        let pause = if prober.is_silent() {
            AT_ONCE
        } else {
            let pause = pause(state, taken || ours).min(at_least);
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
            () = hurry.notified() => {
                hurried = Some(HURRIED);
                tokio::time::sleep(HURRIED).await;
            }
            () = readings.closed() => return,
        }
    }
}

/// How long until the next reading.
fn pause(state: PoolState, works: bool) -> Duration {
    match state {
        PoolState::Loading => LOADING,
        PoolState::Ready | PoolState::Sleeping if !works => IDLE,
        _ => WORKING,
    }
}

/// What is worth a line in the log: an engine that fills its slots and empties them again is not.
fn steady(state: PoolState) -> PoolState {
    if state == PoolState::Busy {
        PoolState::Ready
    } else {
        state
    }
}
