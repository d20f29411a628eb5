//! One connection: TLS where the listener speaks it, then HTTP/1.1 until either side has had enough.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::debug;

use crate::tls::Acceptor;
use crate::types::{ErrorBody, ErrorCode, SPEAKS_TLS, VERSION, VERSION_HEADER};

use super::held::Desk;
use super::line::Line;
use super::places::{Crowded, Place};
use super::{Answer, Handler, stop_asked};

/// A client that takes longer over a request head is not one. Counted from the moment the connection is ready for one, so
/// that it bounds idle connections as well: `relay` keeps its own for less.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request head may be, in bytes: more is answered 431. Ample for long tokens and cookies.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// A client that takes longer over its TLS handshake is not one.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection stays open after a stop, for a request that was sent before its client could know; and one
/// that was made after the stop, once nothing else is left to wait for.
pub(super) const LINGER: Duration = Duration::from_millis(250);
/// How long one that has to make room may take to carry the last bytes of an answer to its client.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Serves one connection to its end. `stopped` tells of the stop; one that was made after it has none, and is good for one
/// request.
pub(super) async fn serve<H: Handler>(
    stream: TcpStream,
    tls: Option<Acceptor>,
    handler: H,
    place: Arc<Place>,
    mut stopped: Option<watch::Receiver<Option<Duration>>>,
) {
    // Without it every small write waits for the other side's acknowledgement of the one before.
    if let Err(e) = stream.set_nodelay(true) {
        debug!(error = %e, "a connection ended before it began");
        return;
    }
    let Some(acceptor) = tls else {
        return http(stream, handler, place, stopped).await;
    };
    let begun = AtomicBool::new(false);
    let shaking = shake_hands(stream, &acceptor, &begun);
    tokio::pin!(shaking);
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking.as_mut()) => shaken,
        // Whoever says nothing makes room at once; whoever has begun may be about to ask.
        () = place.asked_to_leave() => {
            let patience = if begun.load(Ordering::Relaxed) { LINGER } else { Duration::ZERO };
            tokio::time::timeout(patience, shaking.as_mut()).await
        }
        // Whoever connected before the stop is answered.
        () = told_of_stop(&mut stopped) => tokio::time::timeout(LINGER, shaking.as_mut()).await,
    };
    match shaken {
        Ok(Ok(Some(stream))) => http(stream, handler, place, stopped).await,
        Ok(Ok(None)) => debug!("somebody spoke plain HTTP where TLS is spoken"),
        Ok(Err(e)) => debug!(error = %e, "a TLS handshake failed"),
        Err(_) => debug!("a TLS handshake was not finished in time"),
    }
}

async fn told_of_stop(stopped: &mut Option<watch::Receiver<Option<Duration>>>) {
    match stopped {
        Some(stopped) => drop(stop_asked(stopped).await),
        None => std::future::pending().await,
    }
}

/// `None` for a client that speaks plain HTTP: it was told so in its own words. `begun` is set once it has said anything.
async fn shake_hands(
    mut stream: TcpStream,
    acceptor: &Acceptor,
    begun: &AtomicBool,
) -> std::io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    let mut first = [0];
    let read = stream.peek(&mut first).await?;
    begun.store(true, Ordering::Relaxed);
    // A TLS record begins with its type, 22 for a handshake; a request begins with a method.
    if read == 1 && first[0].is_ascii_uppercase() {
        stream.write_all(plain_http_refusal().as_bytes()).await?;
        stream.shutdown().await?;
        // What it goes on sending is read, or the answer would be lost with the connection.
        let mut sink = [0; 1024];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut sink).await? > 0 {}
        return Ok(None);
    }
    acceptor.accept(stream).await.map(Some)
}

fn plain_http_refusal() -> String {
    let body = ErrorBody::new(ErrorCode::InvalidRequest, SPEAKS_TLS.to_owned());
    let body = serde_json::to_string(&body).expect("words and booleans are JSON");
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n{VERSION_HEADER}: {VERSION}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn http<H, IO>(
    stream: IO,
    handler: H,
    place: Arc<Place>,
    mut stopped: Option<watch::Receiver<Option<Duration>>>,
) where
    H: Handler,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (desk, line) = (Desk::new(), Line::new(stream));
    let (held, carried) = (Arc::clone(&place), desk.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let handler = handler.clone();
        let uri = request.uri().clone();
        let (in_hand, carried) = (held.work(), carried.clone());
        if in_hand.is_crowded() {
            request.extensions_mut().insert(Crowded);
        }
        async move {
            // A defect in one request is that request's 500.
            let answer = AssertUnwindSafe(handler.handle(request))
                .catch_unwind()
                .await;
            let answer = answer.unwrap_or_else(|_| handler.panicked(&uri));
            Ok::<_, Infallible>(answer.map(|body| carried.carry(body, in_hand)))
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(stopped.is_some())
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        // Of what a client does not read no more is held for it than that, and the rest is left where it comes from.
        .max_buf_size(MAX_HEAD_BYTES + (8 << 10))
        // An event is small: to copy it behind the length of its chunk costs less than to write three pieces.
        .writev(false)
        .serve_connection(TokioIo::new(line.clone()), service);
    tokio::pin!(connection);
    let mut attended = Attended {
        connection,
        desk,
        line,
        place,
    };
    let place = Arc::clone(&attended.place);
    // A request that is on its way is read before the connection is closed: after a stop there is time for it; where room
    // is needed, what is there already is read and no more.
    let (ended, patience) = tokio::select! {
        biased;
        ended = attended.drive() => (Some(ended), Duration::ZERO),
        () = told_of_stop(&mut stopped) => (None, LINGER),
        () = place.asked_to_leave() => (None, Duration::ZERO),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => match tokio::time::timeout(patience, attended.drive()).await {
            Ok(ended) => ended,
            Err(_) => {
                attended.connection.as_mut().graceful_shutdown();
                attended.last_words().await
            }
        },
    };
    match ended {
        Ended::Served(Ok(())) => {}
        Ended::Served(Err(e)) => debug!(error = %e, "a connection ended early"),
        Ended::Left => debug!("a client left that had sent more than the request in hand"),
        Ended::Closed => debug!("a connection on which nothing was in hand was closed"),
    }
}

/// How a connection ended.
enum Ended<T> {
    /// By hyper's word.
    Served(T),
    /// The client left, and hyper did not look.
    Left,
    /// Nobody waited for it any longer.
    Closed,
}

/// A connection and what it takes to look after it.
struct Attended<'a, B, C, IO> {
    connection: Pin<&'a mut C>,
    desk: Desk<B>,
    line: Line<IO>,
    place: Arc<Place>,
}

impl<B: Answer, C: Future, IO: AsyncRead + Unpin> Attended<'_, B, C, IO> {
    /// Runs the connection, and looks after the answer and the client whenever hyper does not.
    async fn drive(&mut self) -> Ended<C::Output> {
        poll_fn(|cx| {
            self.line.begin();
            if let Poll::Ready(output) = self.connection.as_mut().poll(cx) {
                return Poll::Ready(Ended::Served(output));
            }
            if !self.place.is_idle() && self.line.poll_left(cx).is_ready() {
                return Poll::Ready(Ended::Left);
            }
            self.desk.poll_unread(cx);
            Poll::Pending
        })
        .await
    }

    /// Lets a connection that is to end serve what it has in hand, and carry the last bytes of its answer, unless only
    /// half a request was there, or a client that does not read: nobody waits for those.
    async fn last_words(&mut self) -> Ended<C::Output> {
        loop {
            // It may have served its first request since.
            let patience = if self.place.has_served() {
                LAST_BYTES
            } else {
                LINGER
            };
            match tokio::time::timeout(patience, self.drive()).await {
                Ok(ended) => return ended,
                Err(_) if self.place.is_idle() => return Ended::Closed,
                // A request is in hand, perhaps since the last moment: it is served.
                Err(_) => {}
            }
        }
    }
}
