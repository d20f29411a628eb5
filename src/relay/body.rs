//! The streaming body that owns its upstream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connections::Lease;
use super::vitals::{Died, Watched};

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
    Connection(#[from] hyper::Error),
    /// The upstream was found dead.
    #[error(transparent)]
    Died(#[from] Died),
    /// Whoever owns the exchange has ended it.
    #[error("it was ended")]
    Ended,
}

/// An upstream's answer. Its drop before the end closes the upstream connection.
pub struct RelayBody<L: Load> {
    incoming: Incoming,
    first: Option<Frame<Bytes>>,
    lease: Option<Lease>,
    watched: Option<Watched>,
    load: L,
    ended: bool,
    /// What the client is still to hear.
    broken: Option<Broken>,
}

impl<L: Load> RelayBody<L> {
    pub(super) fn new(incoming: Incoming, lease: Lease, watched: Option<Watched>, load: L) -> Self {
        Self {
            incoming,
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
        let first = poll_fn(|cx| self.poll_incoming(cx)).await;
        if !matches!(first, Some(Err(_))) {
            self.load.answering();
        }
        self.on_frame(first.as_ref());
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

    /// The next frame, or the finding that none will come.
    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Broken::Connection))),
            Poll::Pending => self.poll_over(cx).map(|why| Some(Err(why))),
        }
    }

    fn on_frame(&mut self, frame: Option<&Result<Frame<Bytes>, Broken>>) {
        if let Some(Ok(frame)) = frame
            && let Some(data) = frame.data_ref()
        {
            self.load.passing(data);
        }
        match (frame, &self.watched) {
            (None, _) => self.end(),
            (Some(Err(why)), _) => self.broken(why),
            (Some(Ok(_)), _) if self.incoming.is_end_stream() => self.end(),
            (Some(Ok(_)), Some(watched)) => watched.beat(),
            (Some(Ok(_)), None) => {}
        }
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
            return Poll::Ready(Some(Ok(first)));
        }
        if this.ended {
            return Poll::Ready(this.broken.take().map(Err));
        }
        let frame = ready!(this.poll_incoming(cx));
        this.on_frame(frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none() && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = if self.ended {
            SizeHint::with_exact(0)
        } else {
            self.incoming.size_hint()
        };
        if let Some(data) = self.first.as_ref().and_then(|frame| frame.data_ref()) {
            let more = data.len() as u64;
            let (lower, upper) = (hint.lower() + more, hint.upper().map(|upper| upper + more));
            hint = SizeHint::new();
            hint.set_lower(lower);
            if let Some(upper) = upper {
                hint.set_upper(upper);
            }
        }
        hint
    }
}
