//! The OpenAI face: one endpoint over all engines.
//!
//! Purpose: read which model a request wants, wait for a slot, relay. Invariants: the body goes on byte for byte; nothing
//! reaches the client before the upstream's first bytes, so that until then another pool may be tried; the answer's body
//! owns the permit, so that every way in which it can end gives the slot back. Called by `server` for everything under
//! `/v1`.

mod answer;
mod error;
mod peek;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tracing::{debug, info};

use crate::admission::{Admission, Ask, ModelIx, Permit};
use crate::auth::{API_KEY, Guard};
use crate::clock::Clock;
use crate::relay::{self, Load, Outgoing, RelayBody, SendError};
use crate::types::{Mono, REFUSED_HEADER, UnixMs};

pub use crate::relay::Peer;
pub use answer::GatewayBody;
pub use error::GatewayError;

use peek::Peek;

/// Largest request body (contract §5).
const MAX_BODY_BYTES: usize = 64 << 20;
/// A client that sends nothing of its body for so long is not going to.
const BODY_IDLE: Duration = Duration::from_secs(30);
/// Attempts in all: one and two retries (contract §3).
const MAX_ATTEMPTS: u32 = 3;
/// Pauses before the same pool is tried again (contract §3).
const SAME_POOL_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NODE: HeaderName = HeaderName::from_static("x-orchd-node");
const POOL: HeaderName = HeaderName::from_static("x-orchd-pool");
const QUEUE_MS: HeaderName = HeaderName::from_static("x-orchd-queue-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-orchd-attempts");
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The gateway of one process, shared by its serving threads.
pub struct Gateway {
    clock: Clock,
    admission: Arc<Admission>,
    guard: Guard,
    /// What is dialled: engines in HOME, agents in CLOUD.
    peer: Peer,
    /// Tells this process's request ids from another's.
    prefix: String,
    requests: AtomicU64,
    started: UnixMs,
}

/// A permit as the relay carries it.
struct Carried(Permit);

impl Load for Carried {
    fn answering(&mut self) {
        self.0.answering();
    }

    fn done(&mut self) {
        self.0.done();
    }
}

impl Gateway {
    /// A gateway over the pools that `admission` knows.
    #[must_use]
    pub fn new(clock: Clock, admission: Arc<Admission>, guard: Guard, peer: Peer) -> Arc<Self> {
        let mut bytes = [0_u8; 4];
        getrandom::fill(&mut bytes).expect("the system has randomness to give");
        let prefix = format!("req-{:08x}", u32::from_ne_bytes(bytes));
        let started = clock.wall();
        Arc::new(Self {
            clock,
            admission,
            guard,
            peer,
            prefix,
            requests: AtomicU64::new(0),
            started,
        })
    }

    /// Answers a request under `/v1`.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<GatewayBody>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = self.request_id(request.headers());
        let result = match self.guard.admit(request.headers()) {
            Ok(()) => self.admitted(request, &id).await,
            Err(denied) => Err(denied.into()),
        };
        let mut response = result.unwrap_or_else(|e| e.response());
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }

    async fn admitted<B>(
        &self,
        request: Request<B>,
        id: &HeaderValue,
    ) -> Result<Response<GatewayBody>, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/models") => {
                Ok(answer::models(&self.admission.models(), self.started))
            }
            (&Method::GET, path) if path.starts_with("/v1/models/") => self.model(path),
            (&Method::POST, path) if !path.starts_with("/v1/models") => {
                self.relay(request, id).await
            }
            (_, path) => Err(GatewayError::Method {
                allowed: if path.starts_with("/v1/models") {
                    "GET"
                } else {
                    "POST"
                },
            }),
        }
    }

    /// The client's own, else a new one: unique without a lookup, a lock or a random number per request.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(id) = headers.get(REQUEST_ID) {
            return id.clone();
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("{}-{number}", self.prefix))
            .expect("hexadecimal digits fit into a header")
    }

    fn model(&self, path: &str) -> Result<Response<GatewayBody>, GatewayError> {
        let wanted = percent_encoding::percent_decode_str(path.trim_start_matches("/v1/models/"))
            .decode_utf8_lossy();
        let models = self.admission.models();
        match models.iter().find(|model| *model.id == *wanted) {
            Some(model) => Ok(answer::model(model, self.started)),
            None => Err(self.unknown_model(&wanted)),
        }
    }

    fn unknown_model(&self, wanted: &str) -> GatewayError {
        let known = self
            .admission
            .models()
            .iter()
            .map(|model| model.id.to_string())
            .collect();
        GatewayError::UnknownModel {
            wanted: wanted.to_owned(),
            known,
        }
    }

    /// The model's number; without a name, the only one there is.
    fn resolve(&self, name: Option<&str>) -> Result<ModelIx, GatewayError> {
        match name {
            Some(name) => self
                .admission
                .model(name)
                .ok_or_else(|| self.unknown_model(name)),
            None => match self.admission.models().as_slice() {
                [only] => self
                    .admission
                    .model(&only.id)
                    .ok_or_else(|| self.unknown_model(&only.id)),
                several => Err(GatewayError::NoModel {
                    known: several.iter().map(|m| m.id.to_string()).collect(),
                }),
            },
        }
    }

    async fn relay<B>(
        &self,
        request: Request<B>,
        id: &HeaderValue,
    ) -> Result<Response<GatewayBody>, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let body = relay::collect(body, MAX_BODY_BYTES, BODY_IDLE).await?;
        let peek = Peek::read(&body)?;
        let model = self.resolve(peek.model.as_deref())?;
        let mut headers = parts.headers;
        relay::end_to_end(&mut headers);
        // Meant for this control plane, and nobody behind it.
        for name in [header::AUTHORIZATION, header::COOKIE, API_KEY] {
            headers.remove(name);
        }
        headers.insert(REQUEST_ID, id.clone());
        let path = parts
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str)
            .to_owned();
        let outgoing = Outgoing {
            method: parts.method,
            path,
            headers,
            body,
        };
        let exchange = Exchange {
            gateway: self,
            outgoing,
            model,
            weight: peek.weight,
            arrived: self.clock.now(),
        };
        exchange.run().await
    }
}

/// One request on its way: as many attempts as it takes.
struct Exchange<'a> {
    gateway: &'a Gateway,
    outgoing: Outgoing,
    model: ModelIx,
    weight: u32,
    arrived: Mono,
}

/// What an attempt that may be repeated came to.
enum Fault {
    /// The engine's own answer: passed on if nothing better comes.
    Answered(Box<Response<RelayBody<Carried>>>),
    /// No answer.
    Nothing(String),
}

impl Exchange<'_> {
    async fn run(mut self) -> Result<Response<GatewayBody>, GatewayError> {
        let mut ask = Ask {
            model: self.model,
            weight: self.weight,
            ticket: None,
            avoid: None,
        };
        let mut queue_ms = 0;
        let mut asked = self.arrived;
        for attempt in 1..=MAX_ATTEMPTS {
            let mut permit = self.gateway.admission.acquire(ask).await?;
            queue_ms += self.gateway.clock.now().since(asked);
            if ask.avoid == Some(permit.pool()) {
                tokio::time::sleep(SAME_POOL_PAUSES[(attempt as usize - 2).min(1)]).await;
            }
            ask.ticket = Some(permit.ticket());
            ask.avoid = Some(permit.pool());
            let upstream = Arc::clone(permit.upstream());
            permit.sent();
            // The token is for this fleet's own agents, not for whatever a heartbeat may name as an engine.
            match self.gateway.guard.token().filter(|_| upstream.trusted) {
                Some(token) => {
                    let bearer = token.bearer().clone();
                    self.outgoing.headers.insert(header::AUTHORIZATION, bearer);
                }
                None => drop(self.outgoing.headers.remove(header::AUTHORIZATION)),
            }
            let sent = relay::send(
                &upstream.origin,
                self.gateway.peer,
                &self.outgoing,
                Carried(permit),
            )
            .await;
            let fault = match sent {
                Ok(response) if !is_fault(&response) => {
                    return Ok(self.answer(response, queue_ms, attempt));
                }
                Ok(response) => Fault::Answered(Box::new(response)),
                Err((error, mut carried)) => {
                    match &error {
                        SendError::Connect { .. } => carried.0.refused(),
                        SendError::Reset { .. } | SendError::Request(_) => carried.0.done(),
                    }
                    Fault::Nothing(error.to_string())
                }
            };
            let node_id = upstream.node_id.as_str();
            let pool_id = upstream.pool_id.as_str();
            match fault {
                Fault::Answered(mut response) => {
                    let status = response.status();
                    let refused = response.headers_mut().remove(REFUSED_HEADER);
                    debug!(node_id, pool_id, attempt, %status, ?refused, "the pool could not serve a request");
                    if attempt == MAX_ATTEMPTS {
                        return match refused {
                            None => Ok(self.answer(*response, queue_ms, attempt)),
                            Some(code) => Err(GatewayError::Upstream {
                                detail: format!("the agent of node {node_id} refused: {code:?}"),
                            }),
                        };
                    }
                    if refused.is_some() {
                        response.into_body().refused();
                    }
                }
                Fault::Nothing(detail) => {
                    info!(
                        node_id,
                        pool_id, attempt, detail, "the pool did not answer a request"
                    );
                    if attempt == MAX_ATTEMPTS {
                        return Err(GatewayError::Upstream { detail });
                    }
                }
            }
            asked = self.gateway.clock.now();
        }
        unreachable!("the last attempt returns")
    }

    fn answer(
        &self,
        response: Response<RelayBody<Carried>>,
        queue_ms: u64,
        attempts: u32,
    ) -> Response<GatewayBody> {
        let (mut parts, body) = response.into_parts();
        let upstream = Arc::clone(body.load().0.upstream());
        relay::end_to_end(&mut parts.headers);
        let is_stream = answer::is_event_stream(&parts.headers);
        let headers = &mut parts.headers;
        let name = |text: &str| {
            HeaderValue::from_str(text).expect("ids have no characters that headers lack")
        };
        headers.insert(NODE, name(upstream.node_id.as_str()));
        headers.insert(POOL, name(upstream.pool_id.as_str()));
        headers.insert(QUEUE_MS, queue_ms.into());
        headers.insert(ATTEMPTS, attempts.into());
        if is_stream {
            headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
        }
        Response::from_parts(
            parts,
            GatewayBody::relayed(body, is_stream, &self.outgoing.path),
        )
    }
}

/// Whether another attempt may do better: the pool is busy, loading, or behind an agent that refuses.
fn is_fault<B>(response: &Response<B>) -> bool {
    let busy = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    busy.contains(&response.status()) || response.headers().contains_key(REFUSED_HEADER)
}
