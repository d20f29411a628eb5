//! The streaming body that owns its upstream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::connections::Lease;
use super::vitals::{Died, Watched};
use super::wire::WireError;

/// What an exchange carries along: a permit, a count. Dropped with the exchange, for whatever reason it ends.
pub trait Load: Send + Unpin + 'static {
    /// The first bytes of the answer are here.
    fn answering(&mut self);
    /// So much of the answer has come.
    fn passing(&mut self, bytes: &Bytes) {
        let _ = bytes;
    }
    /// The upstream has finished with the request, or is lost.
    fn done(&mut self, end: End);
    /// Is ready when the exchange is to end although its upstream has not finished.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Pending
    }
}

/// How an exchange ended at its upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All of the answer is there.
    Whole,
    /// The connection broke, or the upstream was found dead.
    Broken,
}

/// Why an answer breaks off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] WireError),
    /// The upstream was found dead.
    #[error(transparent)]
    Died(#[from] Died),
    /// Whoever owns the exchange has ended it.
    #[error("it was ended")]
    Ended,
}

/// An upstream's answer. Its drop before the end closes the upstream connection.
pub struct RelayBody<L: Load> {
    first: Option<Bytes>,
    lease: Option<Lease>,
    watched: Option<Watched>,
    load: L,
    ended: bool,
    /// What the client is still to hear.
    broken: Option<Broken>,
}

impl<L: Load> RelayBody<L> {
    pub(super) fn new(lease: Lease, watched: Option<Watched>, load: L) -> Self {
        Self {
            first: None,
            lease: Some(lease),
            watched,
            load,
            ended: false,
            broken: None,
        }
    }

    /// Waits for the first bytes, or for the end of an answer without any.
    pub(super) async fn prefetch(&mut self) -> Result<(), Broken> {
        let first = poll_fn(|cx| self.poll_piece(cx)).await;
        if !matches!(first, Some(Err(_))) {
            self.load.answering();
        }
        self.on_piece(first.as_ref());
        self.first = first.transpose()?;
        Ok(())
    }

    /// Looks whether the exchange is over, for a client that does not read: the upstream's connection is closed at once, and
    /// the client hears of it when it reads on.
    pub fn poll_unread(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(why) = self.poll_over(cx) {
            self.broken(&why);
            self.broken = Some(why);
        }
    }

    /// Whether to wait for more is in vain: the upstream has died, or the exchange is to end. To be dropped then.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        if self.ended {
            return Poll::Pending;
        }
        if self.load.poll_end(cx).is_ready() {
            return Poll::Ready(Broken::Ended);
        }
        match &self.watched {
            Some(watched) => watched.poll_died(cx).map(Broken::Died),
            None => Poll::Pending,
        }
    }

    /// What it carries.
    pub fn load(&self) -> &L {
        &self.load
    }

    /// What it carries, to be changed.
    pub fn load_mut(&mut self) -> &mut L {
        &mut self.load
    }

    /// Ends the exchange and gives back what it carried. The upstream connection is closed unless the answer has ended.
    pub fn into_load(self) -> L {
        self.load
    }

    /// The next piece, or the finding that none will come.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(None);
        };
        match lease.wire.poll_data(cx) {
            Poll::Ready(piece) => Poll::Ready(piece.map(|piece| piece.map_err(Broken::Connection))),
            Poll::Pending => self.poll_over(cx).map(|why| Some(Err(why))),
        }
    }

    fn on_piece(&mut self, piece: Option<&Result<Bytes, Broken>>) {
        if let Some(Ok(data)) = piece {
            self.load.passing(data);
        }
        match (piece, &self.watched) {
            (None, _) => self.end(),
            (Some(Err(why)), _) => self.broken(why),
            (Some(Ok(_)), _) if self.left() == Some(0) => self.end(),
            (Some(Ok(_)), Some(watched)) => watched.beat(),
            (Some(Ok(_)), None) => {}
        }
    }

    /// How many bytes are to come behind the first piece, where that is known.
    fn left(&self) -> Option<u64> {
        self.lease
            .as_ref()
            .map_or(Some(0), |lease| lease.wire.left())
    }

    fn end(&mut self) {
        self.ended = true;
        self.watched = None;
        self.load.done(End::Whole);
        if let Some(lease) = self.lease.take() {
            lease.park();
        }
    }

    fn broken(&mut self, why: &Broken) {
        self.ended = true;
        self.watched = None;
        // An upstream whose exchange was ended may still be at it.
        if !matches!(why, Broken::Ended) {
            self.load.done(End::Broken);
        }
        self.lease = None;
    }
}

impl<L: Load> Body for RelayBody<L> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if this.ended {
            return Poll::Ready(this.broken.take().map(Err));
        }
        let piece = ready!(this.poll_piece(cx));
        this.on_piece(piece.as_ref());
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        match self.left() {
            Some(left) if self.broken.is_none() => SizeHint::with_exact(first + left),
            _ => {
                let mut hint = SizeHint::new();
                hint.set_lower(first);
                hint
            }
        }
    }
}
