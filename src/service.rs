//! What a service is told by signals, and what the service manager is told (sd_notify(3)): ready, reloading, stopping, and
//! that the process is really alive.
//!
//! Invariants: without a `NOTIFY_SOCKET` nothing is told; the watchdog is fed only after the process has shown that it
//! does its work. Called by `commands`, `server`, `agent` and `secrets`.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tracing::warn;

/// The signals that mean something to a service. From their making on none of them ends the process by itself, and one
/// that comes before anybody waits for it is kept.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Hears them from now on. First of all that a service does, so that a stop is one in good order from the start. Within
    /// a runtime.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn hear() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The process and its secrets wait for different ones.
    pub fn split(self) -> (Stop, Signal) {
        let Self {
            terminate,
            interrupt,
            hangup,
        } = self;
        let stop = Stop {
            terminate,
            interrupt,
        };
        (stop, hangup)
    }
}

/// The signals that ask a service to end.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Waits for the next one. Nothing is lost when the waiting is given up.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!(error = %e, "the service manager cannot be told how this process is");
    }
}

/// The process does what it is for.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The process reads its files again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => warn!(error = %e, "the system tells no monotonic time"),
    }
}

/// Feeds the watchdog of the service manager, where it has one, each time half of its patience has passed and `alive`
/// has said yes within the other half. Never returns.
pub async fn watchdog(mut alive: impl AsyncFnMut() -> bool) {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    else {
        return std::future::pending().await;
    };
    let half = patience / 2;
    let mut ticks = tokio::time::interval(half.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_alive = true;
    loop {
        ticks.tick().await;
        let is_alive = tokio::time::timeout(half, alive()).await.unwrap_or(false);
        if is_alive {
            tell(&[NotifyState::Watchdog]);
        } else if was_alive {
            warn!(
                "a part of this process does not answer; the service manager will end it if that goes on"
            );
        }
        was_alive = is_alive;
    }
}
