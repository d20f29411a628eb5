//! Upstream connections of one serving thread: made on first use, kept for a while, never shared between threads, so
//! that the client's connection, the dispatch and the upstream of a request live on one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::tls;
use crate::types::Origin;

use super::Peer;

/// How often a thread that keeps connections looks for those that were idle for too long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// An open connection, used by one exchange. Dropping it closes the connection; [`Lease::park`] keeps it.
pub(super) struct Lease {
    open: Option<Open>,
    authority: String,
    https: bool,
    peer: Peer,
    once: bool,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        // Ends the task that owns the socket, and with it the socket, now: the engine sees its client leave.
        self.driver.abort();
    }
}

struct Idle {
    open: Open,
    until: Instant,
}

/// Idle connections by authority; those with TLS are not those without.
#[derive(Default)]
struct Kept {
    plain: HashMap<String, Vec<Idle>>,
    tls: HashMap<String, Vec<Idle>>,
}

impl Kept {
    fn of(&mut self, https: bool) -> &mut HashMap<String, Vec<Idle>> {
        if https {
            &mut self.tls
        } else {
            &mut self.plain
        }
    }
}

thread_local! {
    static IDLE: RefCell<Kept> = RefCell::default();
    /// A task looks after them.
    static SWEPT: Cell<bool> = const { Cell::new(false) };
}

impl Lease {
    pub fn sender(&mut self) -> &mut SendRequest<Full<Bytes>> {
        &mut self
            .open
            .as_mut()
            .expect("taken only by `park`, which consumes the lease")
            .sender
    }

    /// It is not to be kept: the other side closes it after this answer.
    pub fn only_once(&mut self) {
        self.once = true;
    }

    /// Keeps the connection for the next exchange. Only for one whose answer has ended.
    pub fn park(mut self) {
        let Some(open) = self.open.take() else { return };
        if self.once || open.sender.is_closed() {
            return;
        }
        let authority = std::mem::take(&mut self.authority);
        let until = Instant::now() + self.peer.idle();
        IDLE.with_borrow_mut(|idle| {
            idle.of(self.https)
                .entry(authority)
                .or_default()
                .push(Idle { open, until })
        });
        see_to_sweeping();
    }
}

/// The connection that was used last, if it is still good.
pub(super) fn reuse(origin: &Origin, peer: Peer) -> Option<Lease> {
    let now = Instant::now();
    IDLE.with_borrow_mut(|idle| {
        let kept = idle.of(origin.https).get_mut(&origin.authority)?;
        while let Some(Idle { open, until }) = kept.pop() {
            if now < until && open.sender.is_ready() {
                return Some(Lease {
                    open: Some(open),
                    authority: origin.authority.clone(),
                    https: origin.https,
                    peer,
                    once: false,
                });
            }
        }
        None
    })
}

/// Closes what is kept of an upstream.
pub(super) fn forget(origin: &Origin) {
    IDLE.with_borrow_mut(|idle| drop(idle.of(origin.https).remove(&origin.authority)));
}

/// Closes what was idle for too long, at every upstream: where nobody asks any more, nobody else would. True when nothing
/// is left.
fn sweep() -> bool {
    let now = Instant::now();
    IDLE.with_borrow_mut(|idle| {
        for idle in [&mut idle.plain, &mut idle.tls] {
            idle.retain(|_, kept| {
                kept.retain(|idle| now < idle.until && !idle.open.sender.is_closed());
                !kept.is_empty()
            });
        }
        idle.plain.is_empty() && idle.tls.is_empty()
    })
}

/// The duty to sweep, laid down however its task ends.
struct Broom;

impl Drop for Broom {
    fn drop(&mut self) {
        // When the thread itself ends, so do its connections.
        let _ = SWEPT.try_with(|swept| swept.set(false));
    }
}

/// Sees to it that what is kept does not stay for ever because nothing more is asked: some upstreams never close what is
/// idle. One task for each thread, and only while there is something to look after.
fn see_to_sweeping() {
    if SWEPT.replace(true) {
        return;
    }
    let broom = Broom;
    tokio::spawn(async move {
        let _broom = broom;
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            if sweep() {
                return;
            }
        }
    });
}

/// A new connection.
pub(super) async fn dial(origin: &Origin, peer: Peer) -> io::Result<Lease> {
    let stream = TcpStream::connect((origin.host.as_str(), origin.port)).await?;
    stream.set_nodelay(true)?;
    let open = if origin.https {
        open(tls::connect(origin, stream).await?).await?
    } else {
        open(stream).await?
    };
    Ok(Lease {
        open: Some(open),
        authority: origin.authority.clone(),
        https: origin.https,
        peer,
        once: false,
    })
}

async fn open<IO>(stream: IO) -> io::Result<Open>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // What goes wrong with the connection is seen by the exchange that uses it.
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    Ok(Open { sender, driver })
}
