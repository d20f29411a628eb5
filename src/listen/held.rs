//! The answer that a connection carries, within reach of two: hyper asks for its next frame while the client reads, the
//! connection looks after it while the client does not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::Answer;
use super::places::InHand;

/// What is shared of an answer. Both who share it run in the connection's task: nobody ever waits for the lock.
struct Shared<B> {
    body: B,
    /// Hyper has asked for a frame and was told to wait: the answer has just seen for itself.
    asked: bool,
}

/// An answer's body as hyper has it. During its life the request is in hand.
pub(super) struct Held<B> {
    shared: Arc<Mutex<Shared<B>>>,
    _in_hand: InHand,
}

/// Where a connection finds the answer that it carries. HTTP/1.1 has one at a time.
pub(super) struct Desk<B>(Arc<Mutex<Weak<Mutex<Shared<B>>>>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind is dropped with the connection.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Clone for Desk<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Answer> Desk<B> {
    /// Nothing is carried.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// This answer is carried from now on.
    pub fn carry(&self, body: B, in_hand: InHand) -> Held<B> {
        let shared = Arc::new(Mutex::new(Shared { body, asked: false }));
        *locked(&self.0) = Arc::downgrade(&shared);
        Held {
            shared,
            _in_hand: in_hand,
        }
    }

    /// Looks after the answer if hyper did not ask for more of it. To be called whenever hyper ran and has to wait.
    pub fn poll_unread(&self, cx: &mut Context<'_>) {
        let Some(shared) = locked(&self.0).upgrade() else {
            return;
        };
        let mut shared = locked(&shared);
        if !std::mem::take(&mut shared.asked) {
            shared.body.poll_unread(cx);
        }
    }
}

impl<B: Answer> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut shared = locked(&self.shared);
        let polled = Pin::new(&mut shared.body).poll_frame(cx);
        shared.asked = polled.is_pending();
        polled
    }

    fn is_end_stream(&self) -> bool {
        locked(&self.shared).body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        locked(&self.shared).body.size_hint()
    }
}
