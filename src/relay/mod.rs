//! One exchange with an upstream: dial or reuse a connection, send, and stream the answer back.
//!
//! Purpose: the part that the gateway and the agent's proxy share. Invariants: bytes are passed on as they come, nothing
//! is collected; whatever happens to the answer's body (end, error, drop) happens to the upstream connection: it goes
//! back to be used again only after the answer's end was seen, and is closed at once in every other case, which is how
//! an engine learns that a client has left. An upstream whose streams are silent is judged by [`Vitals`]. Called by
//! `gateway` and by the agent's proxy.

mod body;
mod connections;
mod vitals;
mod wire;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, Method, Response, header};

use crate::types::Origin;

pub use body::{Broken, End, Load, RelayBody};
pub use vitals::{Died, Tell, Vitals};
pub use wire::WireError;

use connections::Lease;
use wire::Message;

/// Largest request body that is relayed (contract §5).
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// A client that sends nothing of such a body for so long is not going to.
pub const BODY_IDLE: Duration = Duration::from_secs(30);
/// How long a connection to an engine on this machine or in this rack may take. Longer means that nobody is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What is sent upstream.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// As asked.
    pub method: Method,
    /// Path and query, to be put behind the upstream's base path.
    pub path: String,
    /// Without the hop-by-hop ones; see [`end_to_end`].
    pub headers: HeaderMap,
    /// All of it: requests are small beside their answers, and a retry needs it again.
    pub body: Bytes,
    /// Only on a connection that is made for it. For one that was lost before, perhaps with a kept connection: the next
    /// kept one may be lost as well.
    pub fresh: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nobody listens there, or nobody answers: the request was not sent.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// Where.
        authority: String,
        /// Why.
        source: io::Error,
    },
    /// The connection ended before an answer began.
    #[error("{authority} gave no answer: {source}")]
    Reset {
        /// Where.
        authority: String,
        /// It had been kept from an earlier request: an upstream may close it at the very moment at which it is used
        /// again.
        kept: bool,
        /// Why.
        source: WireError,
    },
    /// It was found dead before an answer began.
    #[error("{authority} did not answer: {source}")]
    Died {
        /// Where.
        authority: String,
        /// Why.
        source: Died,
    },
    /// Whoever owns the exchange has ended it before an answer began.
    #[error("it was ended before an answer began")]
    Ended,
    /// A path with a space or a control character in it would end the request line.
    #[error("the path {0:?} cannot be sent on")]
    Path(String),
}

/// Whether it is the upstream's doing that it cannot be reached, and not for want of descriptors or of ports here, or of a
/// name service.
#[must_use]
pub fn is_upstreams(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        InvalidData, NetworkUnreachable, TimedOut, UnexpectedEof,
    };
    matches!(
        kind,
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | HostUnreachable
            | NetworkUnreachable
            | TimedOut
            | UnexpectedEof
            | BrokenPipe
            // A certificate that cannot be trusted, or something that speaks no HTTP.
            | InvalidData
    )
}

/// How long the idle connections of an upstream are kept: less than it keeps its side open (llama-server 5 s, measured;
/// an agent 30 s, see `listen`), since a request on a connection that is just being closed is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An inference server.
    Engine,
    /// Another orchd.
    Agent,
}

impl Peer {
    fn idle(self) -> Duration {
        match self {
            Self::Engine => Duration::from_secs(3),
            Self::Agent => Duration::from_secs(20),
        }
    }
}

/// Sends a request and waits for the first bytes of its answer. The body that comes back owns `load`, and the
/// connection. With `vitals`, an upstream that dies without a word is found out, before the answer and within it.
///
/// Dropping the future closes the connection.
///
/// # Errors
/// See [`SendError`]; `load` comes back with it. An answer of any status is an answer.
pub async fn send<L: Load>(
    origin: &Origin,
    peer: Peer,
    vitals: Option<&Arc<Vitals>>,
    outgoing: &Outgoing,
    mut load: L,
) -> Result<Response<RelayBody<L>>, (SendError, L)> {
    let failed = |broken| {
        let authority = origin.authority.clone();
        match broken {
            Broken::Died(source) => SendError::Died { authority, source },
            Broken::Connection(source) => SendError::Reset {
                authority,
                kept: false,
                source,
            },
            Broken::Ended => SendError::Ended,
        }
    };
    let watched = vitals.map(Vitals::enter);
    let exchanged = {
        let mut exchange = pin!(exchange(origin, peer, outgoing));
        poll_fn(|cx| {
            if let Poll::Ready(exchanged) = exchange.as_mut().poll(cx) {
                return Poll::Ready(exchanged);
            }
            if load.poll_end(cx).is_ready() {
                return Poll::Ready(Err(SendError::Ended));
            }
            match &watched {
                Some(watched) => {
                    (watched.poll_died(cx)).map(|died| Err(failed(Broken::Died(died))))
                }
                None => Poll::Pending,
            }
        })
        .await
    };
    let (parts, mut lease) = match exchanged {
        Ok(exchanged) => exchanged,
        Err(error) => return Err((error, load)),
    };
    if peer == Peer::Engine && is_event_stream(&parts.headers) {
        lease.streams();
    }
    let mut body = RelayBody::new(lease, watched, load);
    // Until the first bytes are here nothing has been promised to anybody, and another upstream may be tried.
    match body.prefetch().await {
        Ok(()) => Ok(Response::from_parts(parts, body)),
        Err(broken) => Err((failed(broken), body.into_load())),
    }
}

async fn exchange(
    origin: &Origin,
    peer: Peer,
    outgoing: &Outgoing,
) -> Result<(Parts, Lease), SendError> {
    let message = message(origin, outgoing)?;
    let reset = |kept, source| SendError::Reset {
        authority: origin.authority.clone(),
        kept,
        source,
    };
    let kept = (!outgoing.fresh).then(|| connections::reuse(origin, peer));
    if let Some(mut lease) = kept.flatten() {
        return match lease.wire.ask(&message).await {
            Ok(parts) => Ok((parts, lease)),
            // That is none of the moment's.
            Err(source @ WireError::Malformed(_)) => Err(reset(false, source)),
            Err(source) => {
                // The others are as old as this one was.
                connections::forget(origin);
                Err(reset(true, source))
            }
        };
    }
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, connections::dial(origin, peer)).await;
    let failed = |source| SendError::Connect {
        authority: origin.authority.clone(),
        source,
    };
    let mut lease = match dialled {
        Ok(lease) => lease.map_err(failed)?,
        Err(_) => return Err(failed(io::Error::from(io::ErrorKind::TimedOut))),
    };
    match lease.wire.ask(&message).await {
        Ok(parts) => Ok((parts, lease)),
        Err(source) => Err(reset(false, source)),
    }
}

fn message<'a>(origin: &Origin, outgoing: &'a Outgoing) -> Result<Message<'a>, SendError> {
    let path = outgoing.path.as_str();
    if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(SendError::Path(path.to_owned()));
    }
    Ok(Message::new(
        &outgoing.method,
        [&origin.base_path, path],
        &origin.authority,
        &outgoing.headers,
        &outgoing.body,
    ))
}

/// Headers that belong to one connection and not to the message (RFC 9110, 7.6.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];

/// Leaves only the headers that are meant for the other end, and of those none that is `kept_back`.
pub fn end_to_end(headers: &mut HeaderMap, kept_back: &[HeaderName]) {
    // To look each of them up costs more than to look at the few that are there.
    let goes = |name: &&HeaderName| HOP_BY_HOP.contains(name) || kept_back.contains(name);
    let mut going: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    if going.contains(&header::CONNECTION) {
        let named = headers.get_all(header::CONNECTION).iter();
        let named = named.filter_map(|value| value.to_str().ok());
        let named = named.flat_map(|value| value.split(','));
        going.extend(named.filter_map(|name| name.trim().parse().ok()));
    }
    for name in going {
        headers.remove(name);
    }
}

/// Whether an answer is a stream of server-sent events.
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let name = "text/event-stream";
    kind.and_then(|kind| kind.trim_start().get(..name.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
