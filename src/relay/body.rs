//! The streaming body that owns its upstream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::connections::Lease;

/// What an exchange carries along: a permit, a count. Dropped with the exchange, for whatever reason it ends.
pub trait Load: Send + Unpin + 'static {
    /// The first bytes of the answer are here.
    fn answering(&mut self);
    /// The upstream has finished with the request: the answer has ended, or the connection broke.
    fn done(&mut self);
}

/// An upstream's answer. Its drop before the end closes the upstream connection.
pub struct RelayBody<L: Load> {
    incoming: Incoming,
    first: Option<Frame<Bytes>>,
    lease: Option<Lease>,
    load: L,
    ended: bool,
}

impl<L: Load> RelayBody<L> {
    pub(super) fn new(incoming: Incoming, lease: Lease, load: L) -> Self {
        Self {
            incoming,
            first: None,
            lease: Some(lease),
            load,
            ended: false,
        }
    }

    /// Waits for the first bytes, or for the end of an answer without any.
    pub(super) async fn prefetch(&mut self) -> Result<(), hyper::Error> {
        self.first = match self.incoming.frame().await {
            Some(Ok(frame)) => Some(frame),
            Some(Err(e)) => {
                self.broken();
                return Err(e);
            }
            None => None,
        };
        self.load.answering();
        if self.first.is_none() || self.incoming.is_end_stream() {
            self.end();
        }
        Ok(())
    }

    /// What it carries.
    pub fn load(&self) -> &L {
        &self.load
    }

    /// What it carries, to be changed.
    pub fn load_mut(&mut self) -> &mut L {
        &mut self.load
    }

    /// Ends the exchange and gives back what it carried.
    pub(super) fn into_load(self) -> L {
        self.load
    }

    fn end(&mut self) {
        self.ended = true;
        self.load.done();
        if let Some(lease) = self.lease.take() {
            lease.park();
        }
    }

    fn broken(&mut self) {
        self.ended = true;
        self.load.done();
        self.lease = None;
    }
}

impl<L: Load> Body for RelayBody<L> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(e))) => {
                this.broken();
                Poll::Ready(Some(Err(e)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if this.incoming.is_end_stream() {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none()
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
