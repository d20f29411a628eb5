//! Serving threads: each with a runtime of its own, so that a request runs to completion where it was accepted.
//!
//! Purpose: accept, serve HTTP/1.1, and stop without cutting anybody off. Invariants: one listening socket, bound before
//! anything else is done, shared by all threads; a stop closes the listener first, lets what runs end within its grace,
//! and then ends. Called by `server` and `agent`.

mod collect;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

pub use collect::{CollectError, collect, discard};

/// A client that sends its request head slower than this is not one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an idle connection stays open after a stop, for a request that was sent before its client could know.
const LINGER: Duration = Duration::from_millis(250);
/// How long to wait when the system has no descriptors left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds an address for the serving threads.
///
/// # Errors
/// What the system says; `AddrInUse` when somebody listens there.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers one request. Cloned into every thread.
pub trait Handler: Clone + Send + 'static {
    /// The answer's body.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    /// Answers.
    fn handle(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// The answer to a request for `uri` in whose handling we failed.
    fn panicked(&self, uri: &Uri) -> Response<Self::Body>;
}

/// The serving threads of one listener.
pub struct Workers {
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `threads` of them, each with a clone of `handler`.
    ///
    /// # Errors
    /// What the system says when there is no descriptor or thread left.
    pub fn spawn<H: Handler>(
        name: &str,
        listener: &TcpListener,
        threads: usize,
        handler: &H,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let mut workers = Self {
            stop,
            threads: Vec::with_capacity(threads),
        };
        for _ in 0..threads.max(1) {
            let listener = listener.try_clone()?;
            let handler = handler.clone();
            let stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || runtime.block_on(serve(listener, handler, stopped)))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Accepts nobody from now on, lets what runs end within `grace`, and then ends it. Blocks until all is done.
    pub fn stop(self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a serving thread ended in a panic");
            }
        }
    }
}

async fn serve<H: Handler>(
    listener: TcpListener,
    handler: H,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let backlog = listener.try_clone();
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => {
            warn!(error = %e, "a serving thread cannot use its listener");
            return;
        }
    };
    let mut connections = JoinSet::new();
    let mut refused = false;
    let grace = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    refused = false;
                    connections.spawn(connection(stream, handler.clone(), stopped.clone()));
                }
                Err(e) => {
                    // While it lasts it is the same story.
                    if !refused {
                        warn!(error = %e, "cannot accept connections; will go on trying");
                    }
                    refused = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            grace = stop_asked(&mut stopped) => break grace,
        }
    };
    drop(listener);
    // Whoever connected before the stop is answered; a connection left in the backlog would be reset.
    while let Ok((stream, _)) = backlog
        .as_ref()
        .map_err(|_| ())
        .and_then(|backlog| backlog.accept().map_err(|_| ()))
    {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            connections.spawn(connection(stream, handler.clone(), stopped.clone()));
        }
    }
    drop(backlog);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        warn!(
            connections = connections.len(),
            "the grace has ended; closing what still runs"
        );
    }
}

/// Waits for the stop, and gives its grace. Threads whose [`Workers`] is gone stop at once.
async fn stop_asked(stopped: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let asked = stopped.wait_for(Option::is_some).await.map(|grace| *grace);
    asked.ok().flatten().unwrap_or_default()
}

async fn connection<H: Handler>(
    stream: TcpStream,
    handler: H,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    // Without it every small write waits for the other side's acknowledgement of the one before.
    if let Err(e) = stream.set_nodelay(true) {
        debug!(error = %e, "a connection ended before it began");
        return;
    }
    let service = service_fn(move |request| {
        let handler = handler.clone();
        let uri = Request::uri(&request).clone();
        async move {
            // A defect in one request is that request's 500.
            let answer = AssertUnwindSafe(handler.handle(request))
                .catch_unwind()
                .await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|_| handler.panicked(&uri)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop_asked(&mut stopped) => {
            // A request that is on its way is read before the connection is closed.
            match tokio::time::timeout(LINGER, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(e) = ended {
        debug!(error = %e, "a connection ended early");
    }
}
