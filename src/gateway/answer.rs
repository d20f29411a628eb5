//! Bodies of the gateway's answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use memchr::memrchr2_iter;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::info;

use crate::listen::Answer;
use crate::relay::{self, Broken, RelayBody};

use super::GatewayError;
use super::dialect::{Dialect, InBand};
use super::exchange::{Carried, Failed, Reply, Whole};
use super::record::{ENGINE_ERROR, Record};

/// How often a client that waits for its stream is told that it is still wanted (contract §3).
const PING_EVERY: Duration = Duration::from_secs(15);
/// A comment of a stream of events, which clients pass over.
const PING: &[u8] = b": ping\n\n";
/// Of an event that has begun so much is kept back until its end is there; what is longer is passed on as it comes.
const MOST_HELD_BYTES: usize = 256 << 10;

/// An answer under `/v1`: one of ours, or an engine's as it comes.
pub struct GatewayBody(Kind);

#[expect(
    clippy::large_enum_variant,
    reason = "one allocation less for each request that is relayed"
)]
enum Kind {
    Whole(Full<Bytes>),
    Relayed(Relayed),
}

/// What a stream that was begun before its engine answered waits for.
pub(super) type Pending = Pin<Box<dyn Future<Output = Result<Reply, Failed>> + Send>>;

/// Where an answer's bytes come from.
#[expect(
    clippy::large_enum_variant,
    reason = "one allocation less for each request that is relayed"
)]
enum Source {
    /// Nowhere yet: the request waits for a slot, a load or a prefill.
    Pending(Pending),
    /// Its engine.
    Engine(RelayBody<Carried>),
    /// There are no more: the upstream is closed and its slots are given back, whatever the client reads.
    Over,
}

/// An answer that comes piece by piece.
struct Relayed {
    source: Source,
    /// How a broken stream is told in-band; `None` when it cannot be.
    dialect: Option<Dialect>,
    /// What was passed on ends within an event that was too long to be kept back. The last bytes of that are.
    within_event: bool,
    /// The beginning of an event. A client that got it, and no more, would take it for a broken one, and not read the error
    /// that comes behind it.
    held: Vec<u8>,
    /// Something was passed on since the client was last looked after.
    moved: bool,
    /// Since when nothing was sent, as it was seen last.
    still_since: Instant,
    ping: Option<Pin<Box<Sleep>>>,
    /// What the client is to hear next, before anything from the source.
    next: Option<Result<Bytes, AnswerError>>,
}

/// The longest that tells the end of an event: of one line's end the last byte, and another.
const LONGEST_END: usize = b"\n\r\n".len();

/// Where the last whole event in these bytes ends: behind an empty line, however lines end.
fn last_end(bytes: &[u8]) -> Option<usize> {
    let is_end = |end: &usize| {
        let [.., one, two] = bytes[..*end] else {
            return false;
        };
        matches!([one, two], [b'\n', b'\n'] | [b'\r', b'\r']) || bytes[..*end].ends_with(b"\n\r\n")
    };
    memrchr2_iter(b'\n', b'\r', bytes)
        .map(|at| at + 1)
        .find(is_end)
}

/// Why an answer breaks off. The connection breaks with it, so that nobody takes what came for all of it.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The engine's side broke.
    #[error(transparent)]
    Upstream(Broken),
    /// It was ended from outside.
    #[error(transparent)]
    Ended(GatewayError),
}

const ENGINE_LOST: &str = "the engine was lost while it answered; what came before is incomplete";

impl AnswerError {
    fn of(broken: Broken, carried: &Carried) -> Self {
        match broken {
            Broken::Ended => Self::Ended(GatewayError::ended(carried.is_shutdown())),
            broken => Self::Upstream(broken),
        }
    }

    /// What the client is told, and what an event says of it: OpenAI's `type` and our code.
    fn told(&self) -> (String, &'static str, &'static str) {
        match self {
            Self::Upstream(_) => (ENGINE_LOST.to_owned(), "server_error", "worker_reset"),
            Self::Ended(error) => {
                let (_, kind, code) = error.table();
                (error.to_string(), kind, code)
            }
        }
    }
}

impl GatewayBody {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes.into()))
    }

    /// An engine's answer; `dialect` is that of a stream of events.
    pub(super) fn relayed(body: RelayBody<Carried>, dialect: Option<Dialect>) -> Self {
        Self(Kind::Relayed(Relayed {
            source: Source::Engine(body),
            dialect,
            within_event: false,
            moved: true,
            still_since: Instant::now(),
            ping: None,
            held: Vec::new(),
            next: None,
        }))
    }

    /// A stream whose engine has not answered yet: its client hears at once that it is being worked on.
    pub(super) fn pending(pending: Pending, dialect: Dialect) -> Self {
        Self(Kind::Relayed(Relayed {
            source: Source::Pending(pending),
            dialect: Some(dialect),
            within_event: false,
            moved: false,
            still_since: Instant::now(),
            ping: None,
            held: Vec::new(),
            next: Some(Ok(Bytes::from_static(PING))),
        }))
    }
}

impl Relayed {
    /// The engine has answered, or nobody will.
    fn begin(&mut self, reply: Result<Reply, Failed>) {
        let dialect = self.dialect.unwrap_or(Dialect::OpenAi);
        self.source = Source::Over;
        match reply {
            Ok(Reply::Coming { mut body, .. }) => {
                body.load_mut().answers(StatusCode::OK);
                self.source = Source::Engine(body);
            }
            Ok(Reply::Whole(whole)) => {
                let Whole {
                    parts,
                    bytes,
                    mut record,
                } = whole;
                record.answers(StatusCode::OK);
                // Its status came too late for the client, not for the record.
                if !parts.status.is_success() {
                    record.cut(ENGINE_ERROR);
                }
                self.next = Some(Ok(dialect.answer(parts.status, &bytes)));
            }
            Err(Failed { error, mut record }) => {
                self.next = Some(Ok(refuse(dialect, &error, &mut record)));
            }
        }
    }

    /// What the client gets of a piece. Of a stream of events that is whole ones.
    fn pass(&mut self, piece: Bytes) -> Option<Bytes> {
        self.moved = true;
        if self.dialect.is_none() {
            return Some(piece);
        }
        if self.held.is_empty() && last_end(&piece) == Some(piece.len()) {
            return Some(piece);
        }
        // Of what was kept back there is no end but one that has begun.
        let from = self.held.len().saturating_sub(LONGEST_END - 1);
        self.held.extend_from_slice(&piece);
        let end = match last_end(&self.held[from..]) {
            Some(end) => {
                self.within_event = false;
                from + end
            }
            // All but what its end may begin with.
            None if self.within_event || self.held.len() > MOST_HELD_BYTES => {
                self.within_event = true;
                self.held.len() - (LONGEST_END - 1)
            }
            None => return None,
        };
        let rest = self.held.split_off(end);
        Some(std::mem::replace(&mut self.held, rest).into())
    }

    /// The engine's answer breaks off.
    fn cut(&mut self, broken: Broken) {
        let Source::Engine(mut body) = std::mem::replace(&mut self.source, Source::Over) else {
            return;
        };
        self.held = Vec::new();
        let carried = body.load_mut();
        let why = AnswerError::of(broken, carried);
        let (message, kind, code) = why.told();
        carried.cut(code);
        if let Some(outlet) = carried.record().outlet() {
            let (node_id, pool_id) = (&outlet.upstream.node_id, &outlet.upstream.pool_id);
            let id = carried.record().called();
            let why = why.to_string();
            info!(%id, %node_id, %pool_id, why, "an answer was cut short");
        }
        self.next = Some(match self.dialect {
            Some(dialect) => {
                let event = dialect.error(InBand {
                    message: &message,
                    kind,
                    code,
                });
                // An event that was cut off cannot be taken back; an empty line at least ends it.
                Ok(if self.within_event {
                    [b"\n\n", &*event].concat().into()
                } else {
                    event
                })
            }
            None => Err(why),
        });
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        loop {
            if let Some(next) = self.next.take() {
                return Poll::Ready(Some(next.map(Frame::data)));
            }
            match &mut self.source {
                Source::Pending(pending) => match pending.as_mut().poll(cx) {
                    Poll::Ready(reply) => self.begin(reply),
                    Poll::Pending => ready!(self.poll_ping(cx)),
                },
                Source::Engine(body) => match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        let piece = frame.into_data().unwrap_or_default();
                        if let Some(ready) = self.pass(piece) {
                            return Poll::Ready(Some(Ok(Frame::data(ready))));
                        }
                    }
                    Poll::Ready(Some(Err(broken))) => self.cut(broken),
                    Poll::Ready(None) => {
                        self.source = Source::Over;
                        // An engine may leave out the empty line behind its last event.
                        let last = std::mem::take(&mut self.held);
                        self.next = (!last.is_empty()).then(|| Ok(last.into()));
                    }
                    Poll::Pending => ready!(self.poll_ping(cx)),
                },
                Source::Over => return Poll::Ready(None),
            }
        }
    }

    /// Sends a comment when nothing else was sent for a while. Not within an event, and not into what is no stream.
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.dialect.is_none() {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.moved) {
            self.still_since = Instant::now();
        }
        let due = self.still_since + PING_EVERY;
        let ping = (self.ping).get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            // Set before the last bytes came, it fires too early, which is once in a while and not for each of them.
            ready!(ping.as_mut().poll(cx));
            let now = Instant::now();
            if now < self.still_since + PING_EVERY {
                ping.as_mut().reset(self.still_since + PING_EVERY);
                continue;
            }
            self.still_since = now;
            ping.as_mut().reset(now + PING_EVERY);
            if !self.within_event {
                self.next = Some(Ok(Bytes::from_static(PING)));
                return Poll::Ready(());
            }
        }
    }

    /// Looks after an answer whose client does not read.
    fn poll_unread(&mut self, cx: &mut Context<'_>) {
        match &mut self.source {
            Source::Pending(pending) if self.next.is_none() => {
                if let Poll::Ready(reply) = pending.as_mut().poll(cx) {
                    self.begin(reply);
                }
            }
            Source::Engine(body) => {
                if let Poll::Ready(broken) = body.poll_over(cx) {
                    self.cut(broken);
                }
            }
            Source::Pending(_) | Source::Over => {}
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none()
            && self.held.is_empty()
            && match &self.source {
                Source::Pending(_) => false,
                Source::Engine(body) => body.is_end_stream(),
                Source::Over => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.dialect) {
            // What is ours may be put in between.
            (_, Some(_)) => SizeHint::new(),
            (Source::Engine(body), None) => body.size_hint(),
            (Source::Pending(_) | Source::Over, None) => SizeHint::with_exact(0),
        }
    }
}

/// The last event of a stream that is refused after it began.
fn refuse(dialect: Dialect, error: &GatewayError, record: &mut Record) -> Bytes {
    let (status, kind, code) = error.table();
    record.answers(StatusCode::OK);
    record.refused(status, code);
    dialect.error(InBand {
        message: &error.to_string(),
        kind,
        code,
    })
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(whole) => Pin::new(whole)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Kind::Relayed(relayed) => relayed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(whole) => whole.is_end_stream(),
            Kind::Relayed(relayed) => relayed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(whole) => whole.size_hint(),
            Kind::Relayed(relayed) => relayed.size_hint(),
        }
    }
}

impl Answer for GatewayBody {
    fn poll_unread(&mut self, cx: &mut Context<'_>) {
        if let Kind::Relayed(relayed) = &mut self.0 {
            relayed.poll_unread(cx);
        }
    }
}

pub(super) fn is_event_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_success() && relay::is_event_stream(headers)
}

#[cfg(test)]
mod tests;
