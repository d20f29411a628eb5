//! Bodies of the gateway's answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use serde_json::json;
use tracing::info;

use crate::admission::EndSignal;
use crate::listen::Answer;
use crate::relay::{Broken, RelayBody};

use super::error::DRAIN_DEADLINE;
use super::{Carried, GatewayError};

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

/// An engine's answer.
struct Relayed {
    /// `None` once it was cut short: its upstream is closed and its slots are given back, whatever the client reads.
    body: Option<RelayBody<Carried>>,
    /// Is ready when the answer is to end.
    end: Option<EndSignal>,
    /// How a broken stream is told in-band; `None` when it cannot be.
    dialect: Option<Dialect>,
    /// Whether what was passed on so far ends an event.
    at_boundary: bool,
    /// What the client is still to hear of one that was cut short.
    last: Option<Result<Bytes, AnswerError>>,
}

/// Why an answer breaks off. The connection breaks with it, so that nobody takes what came for all of it.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The engine's side broke.
    #[error(transparent)]
    Upstream(#[from] Broken),
    /// Its node is being emptied, and the time for that is over.
    #[error("{DRAIN_DEADLINE}")]
    DrainDeadline,
}

/// How an endpoint's streams carry an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Chat and completions: `data: {"error":{…}}`.
    OpenAi,
    /// `/v1/responses`: `event: error` with the error's own fields.
    Responses,
    /// `/v1/messages`: `event: error` with an error object.
    Messages,
}

impl Dialect {
    fn of(path: &str) -> Self {
        match path {
            _ if path.starts_with("/v1/responses") => Self::Responses,
            _ if path.starts_with("/v1/messages") => Self::Messages,
            _ => Self::OpenAi,
        }
    }

    fn event(self, message: &str, code: &str) -> String {
        match self {
            Self::OpenAi => format!(
                "data: {}",
                GatewayError::body(message, "server_error", code, None)
            ),
            Self::Responses => {
                let event =
                    json!({"type": "error", "code": code, "message": message, "param": null});
                format!("event: error\ndata: {event}")
            }
            Self::Messages => {
                let error = json!({"type": "api_error", "message": message, "code": code});
                format!(
                    "event: error\ndata: {}",
                    json!({"type": "error", "error": error})
                )
            }
        }
    }
}

impl GatewayBody {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes.into()))
    }

    pub(super) fn relayed(
        body: RelayBody<Carried>,
        end: Option<EndSignal>,
        is_stream: bool,
        path: &str,
    ) -> Self {
        Self(Kind::Relayed(Relayed {
            body: Some(body),
            end,
            dialect: is_stream.then(|| Dialect::of(path)),
            at_boundary: true,
            last: None,
        }))
    }
}

const ENGINE_LOST: &str = "the engine was lost while it answered; what came before is incomplete";

/// The last event of a stream that ends before its answer does.
fn in_band(dialect: Dialect, at_boundary: bool, message: &str, code: &str) -> Bytes {
    // An event that was cut off cannot be taken back; an empty line at least ends it.
    let gap = if at_boundary { "" } else { "\n\n" };
    format!("{gap}{}\n\n", dialect.event(message, code)).into()
}

impl Relayed {
    /// Ends it when that is asked for.
    fn poll_end(&mut self, cx: &mut Context<'_>) {
        let asked = match &mut self.end {
            Some(signal) => signal.as_mut().poll(cx).is_ready(),
            None => false,
        };
        if asked {
            self.cut(AnswerError::DrainDeadline);
        }
    }

    fn cut(&mut self, why: AnswerError) {
        self.end = None;
        let Some(body) = self.body.take() else { return };
        let upstream = body.load().0.upstream();
        info!(node_id = %upstream.node_id, pool_id = %upstream.pool_id, %why, "an answer was cut short");
        let (message, code) = match why {
            AnswerError::Upstream(_) => (ENGINE_LOST, "worker_reset"),
            AnswerError::DrainDeadline => (DRAIN_DEADLINE, "drain_deadline"),
        };
        self.last = Some(match self.dialect {
            Some(dialect) => Ok(in_band(dialect, self.at_boundary, message, code)),
            None => Err(why),
        });
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        self.poll_end(cx);
        if let Some(body) = &mut self.body {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.at_boundary = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(e)) => self.cut(e.into()),
                None => return Poll::Ready(None),
            }
        }
        Poll::Ready(self.last.take().map(|last| last.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Some(body) => body.is_end_stream(),
            None => self.last.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.body, &self.last) {
            (Some(body), _) => body.size_hint(),
            (None, Some(Ok(event))) => SizeHint::with_exact(event.len() as u64),
            (None, Some(Err(_))) => SizeHint::new(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
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
            relayed.poll_end(cx);
        }
    }
}

pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}
