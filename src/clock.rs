//! The one place that asks what time it is.
//!
//! Purpose: hand the monotonic clock, as plain numbers, to everything that decides. Invariants: [`Clock::now`] never runs
//! backwards and stands still while the machine sleeps; it follows tokio's paused time in tests. Called by the shells
//! (layer 2 and up); the core is told.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the module the lint sends everybody to"
)]

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::types::{Mono, Now, UnixMs, millis};

/// A monotonic clock with an origin of its own, and the wall clock beside it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is this moment.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Milliseconds since the origin.
    #[must_use]
    pub fn now(&self) -> Mono {
        Mono(millis(self.origin.elapsed()))
    }

    /// The wall clock, for people.
    #[must_use]
    pub fn wall(&self) -> UnixMs {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        UnixMs(millis(since))
    }

    /// One moment on both.
    #[must_use]
    pub fn both(&self) -> Now {
        Now {
            mono: self.now(),
            wall: self.wall(),
        }
    }

    /// The instant tokio's timers know for a point of this clock. Rounded up, so that [`now`](Self::now) has reached the
    /// point when a timer set for it fires.
    #[must_use]
    pub fn instant(&self, at: Mono) -> Instant {
        self.origin + Duration::from_millis(at.0)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
