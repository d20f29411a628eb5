//! The slots of the built-in engine, and who waits for one.
//!
//! Invariants: never more requests than slots; whoever waits is served in order; a slot is free again the moment its
//! seat is dropped, whatever the reason.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the engine works on.
#[derive(Debug)]
pub(super) struct Work {
    free: Arc<Semaphore>,
    busy: Mutex<Vec<bool>>,
    pub deferred: AtomicUsize,
    pub prompt_tokens: AtomicU64,
    pub predicted_tokens: AtomicU64,
}

/// A slot that is taken.
#[derive(Debug)]
pub(super) struct Seat {
    work: Arc<Work>,
    slot: usize,
    // Given back after the slot was marked as free.
    _permit: OwnedSemaphorePermit,
}

impl Work {
    pub fn new(slots: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(slots)),
            busy: Mutex::new(vec![false; slots]),
            deferred: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            predicted_tokens: AtomicU64::new(0),
        }
    }

    /// Waits for a slot.
    pub async fn seat(self: &Arc<Self>) -> Seat {
        let permit = {
            let _waits = Waits::begin(&self.deferred);
            Arc::clone(&self.free).acquire_owned().await
        };
        let permit = permit.expect("nobody closes the semaphore");
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = busy.iter().position(|busy| !busy).unwrap_or_default();
        busy[slot] = true;
        drop(busy);
        Seat {
            work: Arc::clone(self),
            slot,
            _permit: permit,
        }
    }

    /// Which slots work.
    pub fn slots(&self) -> Vec<bool> {
        let busy = self.busy.lock();
        busy.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Seat {
    /// A token was made in this slot.
    pub fn count_token(&self) {
        self.work.predicted_tokens.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let busy = self.work.busy.lock();
        busy.unwrap_or_else(PoisonError::into_inner)[self.slot] = false;
    }
}

/// Somebody waits; also one who leaves while waiting is counted out.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_its_slots_it_queues_and_a_slot_is_free_when_its_seat_is_dropped() {
        let work = Arc::new(Work::new(2));
        let first = work.seat().await;
        let second = work.seat().await;
        assert_eq!(work.slots(), [true, true]);
        let waiting = tokio::spawn({
            let work = Arc::clone(&work);
            async move { work.seat().await.slot }
        });
        while work.deferred.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        assert_eq!(waiting.await.expect("it is seated"), 0);
        assert_eq!(work.deferred.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(work.slots(), [false, false]);
    }
}
