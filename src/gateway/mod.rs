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
use tracing::info;

use crate::admission::{Admission, Ask, EndSignal, Failure, ModelIx, Permit, Upstream};
use crate::auth::{API_KEY, Area, Guard};
use crate::clock::Clock;
use crate::engines::EngineKeys;
use crate::listen;
use crate::random;
use crate::relay::{self, Load, Outgoing, Peer, RelayBody, SendError};
use crate::types::{LOCAL_NODE, Mono, REFUSED_HEADER, UnixMs, listed_model_id};

pub use answer::GatewayBody;
pub use error::GatewayError;

use peek::Peek;

/// Attempts in all: one and two retries (contract §3).
const MAX_ATTEMPTS: u32 = 3;
/// Names of models that a refusal lists.
const NAMES_TOLD: usize = 20;
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
    keys: Arc<EngineKeys>,
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
    pub fn new(
        clock: Clock,
        admission: Arc<Admission>,
        guard: Guard,
        keys: Arc<EngineKeys>,
    ) -> Arc<Self> {
        let prefix = format!("req-{}", random::name());
        let started = clock.wall();
        Arc::new(Self {
            clock,
            admission,
            guard,
            keys,
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
        let result = match self.guard.admit(request.headers(), Area::Models) {
            Ok(()) => self.admitted(request, &id).await,
            Err(denied) => {
                listen::discard(request.into_body()).await;
                Err(denied.into())
            }
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
        let path = request.uri().path();
        let about_models = path == "/v1/models" || path.starts_with("/v1/models/");
        match *request.method() {
            Method::GET | Method::HEAD if path == "/v1/models" => {
                Ok(answer::models(&self.admission.models(), self.started))
            }
            Method::GET | Method::HEAD if about_models => self.model(path),
            Method::POST if !about_models => self.relay(request, id).await,
            _ => {
                listen::discard(request.into_body()).await;
                Err(GatewayError::Method {
                    allowed: if about_models { "GET, HEAD" } else { "POST" },
                })
            }
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
        let id = path.strip_prefix("/v1/models/").unwrap_or_default();
        let wanted = percent_encoding::percent_decode_str(id).decode_utf8_lossy();
        let models = self.admission.models();
        match models
            .iter()
            .find(|model| *model.id == *listed_model_id(&wanted))
        {
            Some(model) => Ok(answer::model(model, self.started)),
            None => Err(self.unknown_model(&wanted)),
        }
    }

    /// What an upstream is shown: the token is for this fleet's own agents, not for whatever a heartbeat may name as an
    /// engine, and an engine of this machine gets the key that whoever started it has put down for it.
    fn shown(&self, upstream: &Upstream) -> Option<HeaderValue> {
        if upstream.trusted {
            self.guard.bearer()
        } else if upstream.node_id.as_str() == LOCAL_NODE {
            self.keys.of(&upstream.origin)
        } else {
            None
        }
    }

    fn unknown_model(&self, wanted: &str) -> GatewayError {
        GatewayError::UnknownModel {
            wanted: wanted.to_owned(),
            known: self.admission.model_names(NAMES_TOLD),
        }
    }

    /// The model's number; without a name, the only one there is.
    fn resolve(&self, name: Option<&str>) -> Result<ModelIx, GatewayError> {
        match name {
            // What llama-server itself calls a model without an alias goes on working.
            Some(name) => (self.admission.model(name))
                .or_else(|| self.admission.model(listed_model_id(name)))
                .ok_or_else(|| self.unknown_model(name)),
            None => (self.admission.only_model()).ok_or_else(|| GatewayError::NoModel {
                known: self.admission.model_names(NAMES_TOLD),
            }),
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
        let body = listen::collect(body, relay::MAX_BODY_BYTES, relay::BODY_IDLE).await?;
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

impl Exchange<'_> {
    async fn run(mut self) -> Result<Response<GatewayBody>, GatewayError> {
        let mut ask = Ask {
            model: self.model,
            weight: self.weight,
            bytes: self.outgoing.body.len() as u64,
            min_ctx: 0,
            turn: None,
            avoid: None,
        };
        let mut queue_ms = 0;
        let mut asked = self.arrived;
        let mut attempt = 1;
        // The last attempt met a kept connection that was just being closed: nothing to wait for.
        let mut raced = false;
        loop {
            let mut permit = self.gateway.admission.acquire(ask).await?;
            queue_ms += self.gateway.clock.now().since(asked);
            if ask.avoid == Some(permit.pool()) && !raced {
                tokio::time::sleep(SAME_POOL_PAUSES[(attempt as usize - 2).min(1)]).await;
            }
            ask.turn = Some(permit.turn());
            ask.avoid = Some(permit.pool());
            let upstream = Arc::clone(permit.upstream());
            permit.sent();
            let mut end = permit.end_signal();
            match self.gateway.shown(&upstream) {
                Some(bearer) => {
                    self.outgoing.headers.insert(header::AUTHORIZATION, bearer);
                }
                None => drop(self.outgoing.headers.remove(header::AUTHORIZATION)),
            }
            let peer = if upstream.trusted {
                Peer::Agent
            } else {
                Peer::Engine
            };
            let sent = tokio::select! {
                biased;
                () = ended(&mut end) => {
                    let (node_id, pool_id) = (upstream.node_id.as_str(), upstream.pool_id.as_str());
                    info!(node_id, pool_id, "a request was ended by a drain before it was answered");
                    return Err(GatewayError::DrainDeadline);
                }
                sent = relay::send(&upstream.origin, peer, None, &self.outgoing, Carried(permit)) => sent,
            };
            let last = attempt == MAX_ATTEMPTS;
            let fault = match sent {
                Ok(response) => match judge(response) {
                    Judged::Good(response) => {
                        return Ok(self.answer(*response, end, queue_ms, attempt));
                    }
                    Judged::Fault { response, why } if last && !why.is_agents() => {
                        return Ok(self.answer(*response, end, queue_ms, attempt));
                    }
                    Judged::Fault { why, .. } => why.to_string(),
                },
                Err((error, mut carried)) => {
                    raced = matches!(error, SendError::Reset { kept: true, .. });
                    match failure(&error) {
                        Some(failure) => carried.0.failed(failure),
                        None => carried.0.done(),
                    }
                    error.to_string()
                }
            };
            let (node_id, pool_id) = (upstream.node_id.as_str(), upstream.pool_id.as_str());
            info!(
                node_id,
                pool_id, attempt, fault, "a pool could not serve a request"
            );
            if last {
                return Err(GatewayError::Upstream {
                    detail: fault,
                    attempts: attempt,
                });
            }
            attempt += 1;
            asked = self.gateway.clock.now();
        }
    }

    fn answer(
        &self,
        response: Response<RelayBody<Carried>>,
        end: Option<EndSignal>,
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
            GatewayBody::relayed(body, end, is_stream, &self.outgoing.path),
        )
    }
}

/// Waits until the request is to end.
async fn ended(end: &mut Option<EndSignal>) {
    match end {
        Some(end) => end.await,
        None => std::future::pending().await,
    }
}

/// What an answer says of its pool.
enum Judged {
    /// It is the client's, whatever it is.
    Good(Box<Response<RelayBody<Carried>>>),
    /// Another attempt may do better.
    Fault {
        /// The answer, in case none does.
        response: Box<Response<RelayBody<Carried>>>,
        why: Fault,
    },
}

/// Why an answer is not yet the client's.
enum Fault {
    /// An agent's refusal, in its words; never the client's answer.
    Agent(String),
    /// The engine is busy or loading.
    Busy(StatusCode),
}

impl Fault {
    fn is_agents(&self) -> bool {
        matches!(self, Self::Agent(_))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(code) => write!(f, "its agent refused: {code}"),
            Self::Busy(status) => write!(f, "it answered {status}"),
        }
    }
}

/// 4xx and 501 say nothing of a pool, 429, 502 and 503 that it is busy; other 5xx are a failure, and the client's answer.
fn judge(mut response: Response<RelayBody<Carried>>) -> Judged {
    let status = response.status();
    if let Some(code) = response.headers_mut().remove(REFUSED_HEADER) {
        let code = String::from_utf8_lossy(code.as_bytes()).into_owned();
        // A stopping agent and an unreachable engine are both gone for the moment.
        response.body_mut().load_mut().0.failed(Failure::Refused);
        return Judged::Fault {
            response: Box::new(response),
            why: Fault::Agent(code),
        };
    }
    let permit = &mut response.body_mut().load_mut().0;
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE => {
            return Judged::Fault {
                response: Box::new(response),
                why: Fault::Busy(status),
            };
        }
        StatusCode::NOT_IMPLEMENTED => permit.served(),
        status if status.is_server_error() => permit.failed(Failure::Broken),
        _ => permit.served(),
    }
    Judged::Good(Box::new(response))
}

/// What a missing answer says of its pool; `None` when the trouble is this process's own.
fn failure(error: &SendError) -> Option<Failure> {
    use std::io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, InvalidData, NetworkUnreachable,
        TimedOut,
    };
    match error {
        SendError::Connect { source, .. } => {
            let theirs = [
                ConnectionRefused,
                ConnectionReset,
                HostUnreachable,
                NetworkUnreachable,
                TimedOut,
                // A certificate that cannot be trusted.
                InvalidData,
            ];
            theirs.contains(&source.kind()).then_some(Failure::Refused)
        }
        SendError::Reset { kept: false, .. } | SendError::Died { .. } => Some(Failure::Broken),
        SendError::Reset { kept: true, .. } | SendError::Request(_) => None,
    }
}
