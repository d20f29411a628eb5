//! The door to the engines of this machine: `/pools/{pool_id}/…` is relayed, so that engines may stay on loopback.
//!
//! Invariants: a stream that is relayed is cut only when its client leaves or its engine does, even without a word (see
//! [`Vitals`]); what the proxy itself refuses is marked with `x-orchd-refused`, so that a gateway never takes it for the
//! engine's word.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tracing::info;

use crate::auth::{API_KEY, Area, Guard};
use crate::engines::{InFlight, InFlightGuard};
use crate::listen::{self, Answer, Handler};
use crate::metrics::{self, About, Course, Meter, Phase, Relayed};
use crate::relay::{self, End, Load, Outgoing, Peer, RelayBody, SendError, Vitals};
use crate::types::{
    AGENT_CROWDED, AGENT_STOPPING, NodeId, Origin, PoolId, PoolStatus, REFUSED_HEADER, VERSION,
    VERSION_HEADER,
};

use super::inventory::Report;

/// One engine behind the door.
#[derive(Debug)]
pub(super) struct Door {
    pub pool_id: PoolId,
    pub origin: Origin,
    /// What the engine wants to be shown.
    pub key: Option<HeaderValue>,
    /// Whether it lives, as its streams show.
    pub vitals: Arc<Vitals>,
    pub in_flight: Arc<InFlight>,
}

/// The engines by the names of their pools. Replaced as a whole when they change.
pub(super) type Doors = HashMap<PoolId, Arc<Door>>;

/// What the serving threads share.
pub(super) struct Shared {
    pub node_id: NodeId,
    pub doors: ArcSwap<Doors>,
    /// Every request that runs, also those at engines that have been taken away.
    pub all: Arc<InFlight>,
    /// Asks for the engines to be read soon.
    pub hurry: watch::Sender<()>,
    /// Who is let in.
    pub guard: Guard,
    /// No new work.
    pub stopping: AtomicBool,
    /// The last request has ended.
    pub quiet: Notify,
    /// The engines as they were read last.
    pub pools: ArcSwap<Vec<Arc<PoolStatus>>>,
    /// The GPUs as they were read last.
    pub report: ArcSwap<Report>,
    /// What is relayed.
    pub relayed: Relayed,
    pub about: About,
}

impl Shared {
    /// Requests that run.
    pub fn in_flight(&self) -> u32 {
        self.all.now()
    }
}

/// The handler of the serving threads.
#[derive(Clone)]
pub(super) struct Proxy(pub Arc<Shared>);

/// A request as the relay carries it.
pub(super) struct Carried {
    /// At its engine, and in all.
    guards: Option<[InFlightGuard; 2]>,
    shared: Arc<Shared>,
    course: Course,
    /// What is counted of its model, once it is at the engine and until it has ended.
    meter: Option<Arc<Meter>>,
}

impl Carried {
    fn end(&mut self) {
        if self.guards.take().is_some() && self.shared.in_flight() == 0 {
            self.shared.quiet.notify_one();
        }
    }
}

impl Load for Carried {
    fn answering(&mut self) {
        self.course.began();
    }

    fn passing(&mut self, bytes: &Bytes) {
        self.course.pass(bytes);
    }

    fn done(&mut self, end: End) {
        if let Some(meter) = self.meter.take() {
            self.course.tell(&meter, end == End::Whole);
        }
        self.end();
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            self.course.tell(meter, false);
            let answering = self.course.first_after().is_some();
            self.shared.relayed.cancelled(if answering {
                Phase::Stream
            } else {
                Phase::Prefill
            });
        }
        self.end();
    }
}

/// An answer of the proxy: its own, or an engine's as it comes.
pub(super) type ProxyBody = Either<Full<Bytes>, RelayBody<Carried>>;

/// The proxy's own refusals: the word for the gateway, and the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Stopping,
    Crowded,
    EngineUnreachable,
    UnknownPool,
    BadBody,
    Unauthorized,
}

impl Refused {
    const ALL: [Self; 6] = [
        Self::Stopping,
        Self::Crowded,
        Self::EngineUnreachable,
        Self::UnknownPool,
        Self::BadBody,
        Self::Unauthorized,
    ];

    fn table(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Stopping => (
                StatusCode::SERVICE_UNAVAILABLE,
                AGENT_STOPPING,
                "this agent is stopping; ask another node",
            ),
            Self::Crowded => (
                StatusCode::SERVICE_UNAVAILABLE,
                AGENT_CROWDED,
                "this agent has as many requests in hand as its connections allow; ask another node",
            ),
            Self::EngineUnreachable => (
                StatusCode::BAD_GATEWAY,
                "engine_unreachable",
                "the engine does not answer",
            ),
            Self::UnknownPool => (
                StatusCode::NOT_FOUND,
                "unknown_pool",
                "this agent has no such pool",
            ),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "this agent takes the token of its fleet",
            ),
            Self::BadBody => (
                StatusCode::BAD_REQUEST,
                "bad_body",
                "the request body is too large or stopped coming",
            ),
        }
    }

    fn response(self) -> Response<ProxyBody> {
        let (status, code, message) = self.table();
        let mut response = own(
            status,
            &json!({"error": {"message": message, "type": "server_error", "code": code}}),
        );
        response.headers_mut().insert(
            HeaderName::from_static(REFUSED_HEADER),
            HeaderValue::from_static(code),
        );
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self == Self::Crowded {
            // Its connection is needed for others.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn own(status: StatusCode, value: &serde_json::Value) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::Left(value.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// The words of all refusals.
pub(super) fn refusals() -> [&'static str; Refused::ALL.len()] {
    Refused::ALL.map(|refused| refused.table().1)
}

/// Paths that need no token: probes and scrapers have none.
const OPEN: [&str; 2] = ["/health", "/metrics"];

impl Proxy {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ProxyBody>, Refused> {
        let admitted = match self.pool(&request) {
            Ok(admitted) => admitted,
            Err(refused) => {
                listen::discard(request.into_body()).await;
                return Err(refused);
            }
        };
        if let Some((door, carried)) = admitted {
            return self.relay(request, &door, carried).await;
        }
        let shared = &self.0;
        Ok(match (request.method(), request.uri().path()) {
            (&Method::GET, "/health") => own(
                StatusCode::OK,
                &json!({"status": "ok", "version": VERSION, "node_id": shared.node_id, "in_flight": shared.in_flight()}),
            ),
            (&Method::GET, "/metrics") => {
                let mut response = Response::new(ProxyBody::Left(shared.metrics().into()));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static(metrics::CONTENT_TYPE),
                );
                response
            }
            (_, path) => own(
                StatusCode::NOT_FOUND,
                &json!({"error": {"message": format!("there is no {path}")}}),
            ),
        })
    }

    /// The pool a request is for, entered; none when it is for this agent itself.
    fn pool(&self, request: &Request<Incoming>) -> Result<Option<(Arc<Door>, Carried)>, Refused> {
        let path = request.uri().path();
        if !OPEN.contains(&path) {
            self.0
                .guard
                .admit(request.headers(), Area::Fleet)
                .map_err(|_| Refused::Unauthorized)?;
        }
        let Some(rest) = path.strip_prefix("/pools/") else {
            return Ok(None);
        };
        let (pool_id, _) = rest.split_once('/').unwrap_or((rest, ""));
        let doors = self.0.doors.load();
        let door = doors.get(pool_id).ok_or(Refused::UnknownPool)?;
        if request.extensions().get::<listen::Crowded>().is_some() {
            return Err(Refused::Crowded);
        }
        // Counted first: a stop that comes now either sees this request or is seen by it.
        let carried = Carried {
            guards: Some([door.in_flight.enter(), self.0.all.enter()]),
            shared: Arc::clone(&self.0),
            course: Course::new(),
            meter: None,
        };
        if self.0.stopping.load(Ordering::SeqCst) {
            return Err(Refused::Stopping);
        }
        if !door.vitals.takes_work() {
            return Err(Refused::EngineUnreachable);
        }
        Ok(Some((Arc::clone(door), carried)))
    }

    async fn relay(
        &self,
        request: Request<Incoming>,
        door: &Door,
        mut carried: Carried,
    ) -> Result<Response<ProxyBody>, Refused> {
        let pool_id = door.pool_id.as_str();
        let (parts, body) = request.into_parts();
        let body = listen::collect(body, relay::MAX_BODY_BYTES, relay::BODY_IDLE)
            .await
            .map_err(|e| {
                info!(pool_id, error = %e, "a request could not be read");
                Refused::BadBody
            })?;
        if parts.method == Method::POST {
            carried.meter = Some(self.0.meter(&door.pool_id, &body));
        }
        let mut headers = parts.headers;
        // Meant for this agent, not for the engine.
        relay::end_to_end(
            &mut headers,
            &[header::AUTHORIZATION, header::COOKIE, API_KEY],
        );
        if let Some(key) = &door.key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
        let path = parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let path = path["/pools/".len() + pool_id.len()..].to_owned();
        let path = if path.starts_with('/') {
            path
        } else {
            format!("/{path}")
        };
        let mut outgoing = Outgoing {
            method: parts.method,
            path,
            headers,
            body,
            fresh: false,
        };
        let meter = carried.meter.clone();
        let send = async |outgoing: &Outgoing, carried| {
            let vitals = Some(&door.vitals);
            relay::send(&door.origin, Peer::Engine, vitals, outgoing, carried).await
        };
        let sent = match send(&outgoing, carried).await {
            // Most likely the engine was just closing a connection that had been kept. It may have begun with the request
            // all the same; its client was sent nothing, so that asking once more is allowed (contract §3, Retry).
            Err((SendError::Reset { kept: true, .. }, carried)) => {
                outgoing.fresh = true;
                send(&outgoing, carried).await
            }
            sent => sent,
        };
        match sent {
            Ok(mut response) => {
                // Of refusals only this proxy speaks.
                let kept_back = [HeaderName::from_static(REFUSED_HEADER)];
                relay::end_to_end(response.headers_mut(), &kept_back);
                if let Some(meter) = meter {
                    meter.answered(response.status().as_u16());
                }
                Ok(response.map(ProxyBody::Right))
            }
            Err((error, mut carried)) => {
                // Nobody has left.
                carried.meter = None;
                let never_sent = matches!(error, SendError::Connect { .. });
                info!(pool_id, %error, never_sent, "the engine did not answer a request");
                // The control plane is to know before the next reading is due.
                self.0.hurry.send_replace(());
                Err(Refused::EngineUnreachable)
            }
        }
    }
}

/// An engine that dies is left at once, whether the client reads or not; a drain is the control plane's.
impl Answer for RelayBody<Carried> {
    fn poll_unread(&mut self, cx: &mut Context<'_>) {
        self.poll_unread(cx);
    }
}

impl Handler for Proxy {
    type Body = ProxyBody;

    async fn handle(&self, request: Request<Incoming>) -> Response<ProxyBody> {
        let mut response = self.answer(request).await.unwrap_or_else(|refused| {
            self.0.relayed.rejected(refused.table().1);
            refused.response()
        });
        let version = HeaderName::from_static(VERSION_HEADER);
        response
            .headers_mut()
            .insert(version, HeaderValue::from_static(VERSION));
        response
    }

    fn panicked(&self, _: &Uri) -> Response<ProxyBody> {
        own(
            StatusCode::INTERNAL_SERVER_ERROR,
            &json!({"error": {"message": "the agent failed; its log says more"}}),
        )
    }
}
