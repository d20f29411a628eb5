//! `GET /v2/events`: what happens, as server-sent events that can be resumed.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

use crate::clock::Clock;
use crate::control::{Events, Told};
use crate::types::{NodeId, RESYNC};

use super::openapi::OfEvents;
use super::{Api, ApiError, nodes};

/// How often a quiet stream says that it is there, and where it stands. Proxies close what is silent for a minute.
const PING: Duration = Duration::from_secs(15);
/// The place at which a client that was cut off goes on, as browsers and SSE libraries send it.
const LAST_EVENT_ID: &str = "last-event-id";

/// What happens to the fleet, as server-sent events.
///
/// Each frame carries an `id`; sent back as `Last-Event-ID`, the stream goes on behind it. An id that is not known any
/// more gets an `event: resync` first. Without one, the stream begins with what happens from now on. A comment follows
/// after every 15 seconds of silence.
#[utoipa::path(
    get,
    path = "/v2/events",
    operation_id = "events",
    tag = "nodes",
    params(
        ("node_id" = Option<NodeId>, Query, description = "Only what happens to this node; `local` on one machine"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen"),
    ),
    responses(
        (status = 200, description = "Events for as long as the connection lives", body = String,
         content_type = "text/event-stream"),
        OfEvents
    )
)]
pub(super) async fn follow(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut only = None;
    for (key, value) in nodes::pairs(query.as_deref()) {
        if key == "node_id" {
            let node_id = NodeId::new_or_local(&value)
                .map_err(|e| nodes::invalid(format!("node_id={value:?}: a node id {e}")))?;
            only = Some(node_id);
        }
    }
    let after = headers
        .get(LAST_EVENT_ID)
        .map(|id| String::from_utf8_lossy(id.as_bytes()));
    let reader = Reader {
        events: api.control.events(after.as_deref()),
        clock: api.clock,
        only,
        begun: false,
    };
    let frames = stream::unfold(reader, |mut reader| async move {
        let frame = reader.frame().await?;
        Some((Ok::<_, Infallible>(frame), reader))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

struct Reader {
    events: Events,
    clock: Clock,
    /// Only what happens to this node.
    only: Option<NodeId>,
    begun: bool,
}

impl Reader {
    /// The next bytes of the stream; `None` at its end.
    async fn frame(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            // At once, so that the client knows that it is connected, and from which place on.
            return Some(self.place());
        }
        // One silence, however many events it holds that are not for this reader.
        let ping = tokio::time::Instant::now() + PING;
        loop {
            match tokio::time::timeout_at(ping, self.events.next()).await {
                Err(_) => return Some(self.place()),
                Ok(told) => {
                    let text = self.text(&told?);
                    if !text.is_empty() {
                        return Some(text.into());
                    }
                }
            }
        }
    }

    /// A comment and an id: no event, but where to go on from.
    fn place(&self) -> Bytes {
        format!(": ping\nid: {}\n\n", self.events.place()).into()
    }

    fn text(&self, told: &[Told]) -> String {
        let mut text = String::new();
        for told in told {
            let written = match told {
                Told::Event(..) if self.skips(told) => Ok(()),
                Told::Event(id, event) => {
                    let data = serde_json::to_string(&**event).expect("events have string keys");
                    write!(
                        text,
                        "id: {id}\nevent: {}\ndata: {data}\n\n",
                        event.kind.as_str()
                    )
                }
                Told::Resync(id) => {
                    let at_ms = self.clock.wall().0;
                    write!(
                        text,
                        "id: {id}\nevent: {RESYNC}\ndata: {{\"at_ms\":{at_ms},\"type\":\"{RESYNC}\"}}\n\n"
                    )
                }
            };
            written.expect("a string takes everything");
        }
        text
    }

    fn skips(&self, told: &Told) -> bool {
        match (told, &self.only) {
            (Told::Event(_, event), Some(only)) => event.node_id.as_ref() != Some(only),
            _ => false,
        }
    }
}
