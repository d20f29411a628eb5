//! The OpenAI face: one endpoint over all engines.
//!
//! Purpose: read which model a request wants, wait for a slot, relay. Invariants: the body goes on byte for byte; nothing
//! reaches the client before the upstream's first bytes but the promise of a stream, so that until then another pool may
//! be tried; the answer's body owns the permit, so that every way in which it can end gives the slot back. Called by
//! `server` for everything under `/v1`.

mod answer;
mod assemble;
mod cors;
mod dialect;
mod error;
mod exchange;
mod models;
mod outlet;
mod peek;
mod record;

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};

use crate::admission::{Admission, ModelIx, Permit, Upstream};
use crate::auth::{API_KEY, Area, Guard};
use crate::engines::EngineKeys;
use crate::listen;
use crate::metrics::{Meter, Relayed};
use crate::random;
use crate::relay::{self, Outgoing};
use crate::types::{AccessLog, CorsOrigins, LOCAL_NODE, UnixMs, listed_model_id};

pub use answer::GatewayBody;
pub use error::GatewayError;

use cors::Page;
use dialect::Dialect;
use exchange::{Exchange, Failed, Reply, Whole};
use outlet::{Outlet, Outlets};
use peek::Peek;
use record::{Book, Record};

/// Longest id of a request that is kept; those of tracing systems have some 50 characters.
const MAX_REQUEST_ID_BYTES: usize = 200;
/// Most bytes behind what the ids of this process's own begin with: a dash and twenty digits.
const NUMBER_BYTES: usize = 21;
/// Names of models that a refusal lists.
const NAMES_TOLD: usize = 20;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NODE: HeaderName = HeaderName::from_static("x-orchd-node");
const POOL: HeaderName = HeaderName::from_static("x-orchd-pool");
const QUEUE_MS: HeaderName = HeaderName::from_static("x-orchd-queue-ms");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-orchd-attempts");
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Headers of requests that no engine gets: those that are meant for this control plane and nobody behind it; and what is
/// packed could neither be counted nor go on where a stream has been promised.
static KEPT_BACK: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    API_KEY,
    header::ACCEPT_ENCODING,
];

/// What the gateway does with what it relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Non-streaming answers of llama.cpp are made to stream, and put together here.
    pub assemble: bool,
    /// How long a client that asked for a stream waits for its first byte.
    pub sse_commit: Duration,
    /// How long an engine may answer nothing at all before its streams are ended.
    pub hung_after: Duration,
    /// Which requests have a line in the log.
    pub access_log: AccessLog,
    /// Which web pages may read answers.
    pub cors_origins: CorsOrigins,
}

/// The gateway of one process, shared by its serving threads.
pub struct Gateway {
    settings: Settings,
    admission: Arc<Admission>,
    guard: Guard,
    keys: Arc<EngineKeys>,
    outlets: Outlets,
    book: Arc<Book>,
    /// By the numbers of the models.
    meters: RwLock<Vec<Option<Arc<Meter>>>>,
    /// Tells this process's request ids from another's.
    prefix: String,
    requests: AtomicU64,
    started: UnixMs,
}

/// What a gateway counts, with every word that it has for it.
#[must_use]
pub fn relayed() -> Relayed {
    Relayed::new(&GatewayError::CODES, &exchange::reasons())
}

impl Gateway {
    /// A gateway over the pools that `admission` knows, which counts in `relayed`.
    #[must_use]
    pub fn new(
        started: UnixMs,
        settings: Settings,
        admission: Arc<Admission>,
        guard: Guard,
        keys: Arc<EngineKeys>,
        relayed: Relayed,
    ) -> Arc<Self> {
        let prefix = format!("req-{}", random::name());
        let book = Book::new(relayed, settings.access_log);
        Arc::new(Self {
            settings,
            admission,
            guard,
            keys,
            outlets: Outlets::default(),
            book,
            meters: RwLock::default(),
            prefix,
            requests: AtomicU64::new(0),
            started,
        })
    }

    /// Answers a request under `/v1`.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>) -> Response<GatewayBody>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = self.request_id(request.headers());
        let path = request.uri().path();
        let about_models = path == "/v1/models" || path.starts_with("/v1/models/");
        let page = Page::of(request.headers(), &self.settings.cors_origins);
        let mut response = if request.method() == Method::OPTIONS {
            let allow = if about_models {
                "GET, HEAD, OPTIONS"
            } else {
                "POST, OPTIONS"
            };
            let answer = page.preflight(request.headers(), allow);
            listen::discard(request.into_body()).await;
            answer
        } else {
            // A defect is this request's 500, which is told as every other answer is.
            AssertUnwindSafe(self.answer(request, about_models, &id))
                .catch_unwind()
                .await
                .unwrap_or_else(|_| GatewayError::Internal.response())
        };
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        page.mark(headers);
        response
    }

    async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
        about_models: bool,
        id: &HeaderValue,
    ) -> Response<GatewayBody>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if about_models {
            return self.about_models(request).await;
        }
        let record = Box::new(Record::new(&self.book, id.clone()));
        self.relay(request, record).await
    }

    async fn about_models<B>(&self, request: Request<B>) -> Response<GatewayBody>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let admitted = self.guard.admit(request.headers(), Area::Models);
        let result = match (admitted, request.method()) {
            (Ok(()), &Method::GET | &Method::HEAD) => {
                let path = request.uri().path();
                return if path == "/v1/models" {
                    models::list(&self.admission, self.started)
                } else {
                    models::one(&self.admission, path, self.started)
                        .unwrap_or_else(|id| self.unknown_model(&id).response())
                };
            }
            (Ok(()), _) => GatewayError::Method {
                allowed: "GET, HEAD",
            },
            (Err(denied), _) => denied.into(),
        };
        listen::discard(request.into_body()).await;
        result.response()
    }

    /// The client's own, else a new one: unique without a lookup, a lock or a random number per request.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(id) = headers.get(REQUEST_ID).filter(|id| is_request_id(id)) {
            return id.clone();
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(self.prefix.len() + NUMBER_BYTES);
        // A string takes whatever is written.
        let _ = write!(id, "{}-{number}", self.prefix);
        HeaderValue::try_from(id).expect("hexadecimal digits fit into a header")
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

    /// What is counted of a model.
    fn meter(&self, ix: ModelIx) -> Option<Arc<Meter>> {
        let at = ix.0 as usize;
        let meters = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(at).and_then(Option::as_ref) {
            return Some(Arc::clone(meter));
        }
        drop(meters);
        let name = self.admission.model_name(ix)?;
        let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        if meters.len() <= at {
            meters.resize(at + 1, None);
        }
        let meter = meters[at].get_or_insert_with(|| self.book.relayed.meter(&name));
        Some(Arc::clone(meter))
    }

    fn outlet(&self, permit: &Permit) -> Arc<Outlet> {
        let hung_after = self.settings.hung_after;
        (self.outlets).of(
            permit.pool(),
            permit.upstream(),
            &self.admission,
            hung_after,
        )
    }

    async fn relay<B>(
        self: &Arc<Self>,
        request: Request<B>,
        mut record: Box<Record>,
    ) -> Response<GatewayBody>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let exchange = match self.read(request, &mut record).await {
            Ok(read) => read,
            Err(error) => return Failed { error, record }.into_response(),
        };
        let dialect = Dialect::of(exchange.path());
        if !exchange.is_stream() {
            return respond(exchange.run(record).await, dialect);
        }
        let mut running = Box::pin(exchange.run(record));
        match tokio::time::timeout(self.settings.sse_commit, &mut running).await {
            Ok(reply) => respond(reply, dialect),
            Err(_) => {
                let pending = Box::pin(async move { running.await?.into_stream().await });
                promised(GatewayBody::pending(pending, dialect))
            }
        }
    }

    /// Reads a request.
    async fn read<B>(
        self: &Arc<Self>,
        request: Request<B>,
        record: &mut Record,
    ) -> Result<Exchange, GatewayError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let admitted = self.guard.admit(request.headers(), Area::Models);
        let refusal = match (admitted, request.method()) {
            (Ok(()), _) if !is_endpoint(request.uri().path()) => Some(GatewayError::UnknownPath),
            (Ok(()), &Method::POST) => {
                let crowded = request.extensions().get::<listen::Crowded>();
                crowded.map(|_| GatewayError::Crowded)
            }
            (Ok(()), _) => Some(GatewayError::Method { allowed: "POST" }),
            (Err(denied), _) => Some(denied.into()),
        };
        if let Some(refusal) = refusal {
            listen::discard(request.into_body()).await;
            return Err(refusal);
        }
        let (parts, body) = request.into_parts();
        let body = listen::collect(body, relay::MAX_BODY_BYTES, relay::BODY_IDLE).await?;
        let peek = Peek::read(&body)?;
        let model = self.resolve(peek.model.as_deref())?;
        record.model(self.meter(model));
        let mut headers = parts.headers;
        relay::end_to_end(&mut headers, &KEPT_BACK);
        headers.insert(REQUEST_ID, record.id().clone());
        let assembles = self.settings.assemble && peek.may_assemble(parts.uri.path());
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
            fresh: false,
        };
        let exchange = Exchange::new(self, outgoing, model, peek, assembles);
        Ok(exchange)
    }
}

/// Whether a client's own id is kept: it is sent back, sent on and logged.
fn is_request_id(id: &HeaderValue) -> bool {
    let visible = |byte: &u8| matches!(byte, b' '..=b'~');
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(visible)
}

/// Whether a path is under `/v1/` whoever reads it: an engine, or what stands before it, may resolve `..` and go where no
/// client of ours is let in.
fn is_endpoint(path: &str) -> bool {
    let Some(inside) = path.strip_prefix("/v1/").filter(|rest| !rest.is_empty()) else {
        return false;
    };
    // Most have nothing of what could make a dot.
    if !inside.contains(['.', '%']) {
        return true;
    }
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(inside).collect();
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    segments.all(|segment| !matches!(segment, b"." | b".."))
}

impl Failed {
    fn into_response(mut self) -> Response<GatewayBody> {
        let (status, _, code) = self.error.table();
        self.record.refused(status, code);
        let mut response = self.error.response();
        if self.record.has_asked() {
            mark(response.headers_mut(), &self.record);
        }
        response
    }
}

/// The answer as the client gets it.
fn respond(reply: Result<Reply, Failed>, dialect: Dialect) -> Response<GatewayBody> {
    match reply {
        Ok(Reply::Coming {
            mut parts,
            mut body,
        }) => {
            let is_stream = answer::is_event_stream(parts.status, &parts.headers);
            mark(&mut parts.headers, body.load().record());
            if is_stream {
                // Comments and errors of ours come on top.
                parts.headers.remove(header::CONTENT_LENGTH);
                (parts.headers).insert(NO_BUFFERING, HeaderValue::from_static("no"));
            }
            body.load_mut().answers(parts.status);
            Response::from_parts(
                parts,
                GatewayBody::relayed(body, is_stream.then_some(dialect)),
            )
        }
        Ok(Reply::Whole(whole)) => {
            let Whole {
                mut parts,
                bytes,
                mut record,
            } = whole;
            mark(&mut parts.headers, &record);
            record.answers(parts.status);
            Response::from_parts(parts, GatewayBody::whole(bytes))
        }
        Err(failed) => failed.into_response(),
    }
}

/// Where an answer was made, and what it took, as far as is known.
fn mark(headers: &mut HeaderMap, record: &Record) {
    if let Some(outlet) = record.outlet() {
        headers.insert(NODE, outlet.node.clone());
        headers.insert(POOL, outlet.pool.clone());
    }
    headers.insert(QUEUE_MS, number(record.queue_ms()));
    if record.attempts > 0 {
        headers.insert(ATTEMPTS, number(record.attempts.into()));
    }
}

/// A number; those of nearly every request are ready.
fn number(number: u64) -> HeaderValue {
    match number {
        0 => HeaderValue::from_static("0"),
        1 => HeaderValue::from_static("1"),
        number => number.into(),
    }
}

/// A stream that has begun before anybody knows who will write it.
fn promised(body: GatewayBody) -> Response<GatewayBody> {
    let mut response = Response::new(body);
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (NO_BUFFERING, "no"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_is_no_endpoint() {
        for inside in [
            "/v1/embeddings",
            "/v1/what/ever.else/%2F..;a=b",
            "/v1/a..b/...",
            "/v1//x/",
            "/v1/%ff",
        ] {
            assert!(is_endpoint(inside), "{inside}");
        }
        for outside in [
            "/v1",
            "/v1/",
            "/v1/../slots/0",
            "/v1/..",
            "/v1/./x",
            "/v1/x/%2e%2e/%2E%2e/slots",
            "/v1/..%2f..%2fslots",
            "/v1/..%5cslots",
        ] {
            assert!(!is_endpoint(outside), "{outside}");
        }
    }

    #[test]
    fn an_id_of_a_clients_is_kept_when_it_can_be_shown() {
        let kept = |id: &[u8]| is_request_id(&HeaderValue::from_bytes(id).expect("a value"));
        assert!(kept(b"x") && kept(b"my id/42") && kept(&[b'x'; 200]));
        assert!(!kept(b"") && !kept(&[b'x'; 201]));
        assert!(!kept("\u{e9}".as_bytes()) && !kept(b"\xff") && !kept(b"a\tb"));
    }
}
