//! The typed client of the control API.
//!
//! Purpose: the agent and the commands ask the control plane for things in the shared words and get facts back: an
//! answer, or a [`ClientError`] that says whose fault it was. Invariants: every attempt has a time limit and a fresh
//! connection, so that a connection that died silently never costs more than one attempt; only an answer that carries
//! orchd's version header counts as one; the token never shows in an error. Every call it makes is idempotent, so one
//! that timed out may be made again elsewhere.
//!
//! A TLS provider must have been installed in the process before a client is made (`main` does).

mod answer;
mod events;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use events::{EventStream, EventsQuery, Frame};

use answer::{accepted, read, unreachable};

use crate::auth::{Guard, Token, Tokens};
use crate::tls::{self, TlsError};
use crate::types::{
    DrainOrder, DrainRequest, ErrorBody, ErrorCode, HeartbeatRequest, HttpUrl, Millis, NodeId,
    NodeList, NodeStatus, NodeView, PoolList, RegisterReply, RegisterRequest, VERSION,
};

/// Nodes asked for at a time; the most that the control plane gives by default.
const PAGE: usize = 1_000;
/// The largest answer about one node, or none: 1,024 pools of half a kilobyte, with room to grow.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// The largest answer about all of them: a list of 40,000 pools is a tenth of it.
const MAX_LIST_BYTES: usize = 256 << 20;

/// Why a call got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or no complete answer in time.
    #[error("cannot reach the control plane at {server}: {}", cause(source))]
    Unreachable {
        /// Who was asked.
        server: HttpUrl,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// Something answers there, and it is not an orchd control plane.
    #[error("{server} is not an orchd control plane: {what}")]
    NotOrchd {
        /// Who was asked.
        server: HttpUrl,
        /// What gives it away.
        what: String,
    },
    /// The control plane says no.
    #[error("{}", body.message)]
    Refused {
        /// Who was asked.
        server: HttpUrl,
        /// The HTTP status.
        status: u16,
        /// The reason.
        body: Box<ErrorBody>,
        /// When asking again may help.
        retry_after: Option<Duration>,
    },
    /// The control plane wants a token, or a better one.
    #[error("{server} does not accept this request: {message}")]
    Unauthorized {
        /// Who was asked.
        server: HttpUrl,
        /// 401: who are you; 403: not you.
        status: u16,
        /// The reason, in the words of the control plane.
        message: String,
    },
    /// Several servers were tried, and none gave an answer.
    #[error("none of the {} control planes answers: {}", tried.len(), list(tried))]
    NoneAnswered {
        /// What each one did, in the order they were tried.
        tried: Vec<ClientError>,
    },
    /// The stream of events ended.
    #[error("lost the events of {server}: {what}")]
    EventsLost {
        /// Who sent them.
        server: HttpUrl,
        /// How it ended.
        what: String,
    },
    /// The id of an event cannot travel in a header.
    #[error("the id of an event holds characters that a header cannot carry")]
    BadEventId,
    /// There is no server to ask.
    #[error("no control plane is named")]
    NoServer,
    /// The token cannot travel in a header.
    #[error("the token holds characters that a header cannot carry")]
    BadToken,
    /// Nobody is trusted by whom an https server could be verified.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP client cannot be set up on this machine.
    #[error("cannot set up an HTTP client: {}", cause(source))]
    Setup {
        /// Why.
        source: reqwest::Error,
    },
}

impl ClientError {
    /// The reason in the words of the API, when there is one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { body, .. } => Some(body.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed in a moment: the control plane is away, or on its way out.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::NoneAnswered { .. } | Self::EventsLost { .. }
        ) || matches!(
            self.code(),
            Some(ErrorCode::ShuttingDown | ErrorCode::Internal)
        )
    }

    /// Whether a server was found, and its TLS is what is wrong.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => tls::explain(source).is_some(),
            Self::NoneAnswered { tried } => tried.iter().any(Self::is_tls),
            Self::Tls(_) => true,
            _ => false,
        }
    }

    /// Whether the next server may do better: this one cannot be reached, is something else, or is on its way out.
    fn try_next(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::NotOrchd { .. } | Self::EventsLost { .. }
        ) || self.code() == Some(ErrorCode::ShuttingDown)
    }
}

/// The innermost reason, without the layers above it, each of which repeats that something failed.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    if let Some(why) = tls::explain(error) {
        return why;
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn list(tried: &[ClientError]) -> String {
    let texts: Vec<String> = tried
        .iter()
        .map(|error| match error {
            ClientError::Unreachable { server, source } => format!("{server}: {}", cause(source)),
            ClientError::NotOrchd { server, what } => format!("{server}: {what}"),
            other => other.to_string(),
        })
        .collect();
    texts.join("; ")
}

/// Which nodes to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodesQuery {
    /// Only nodes of one of these statuses; empty for all.
    pub status: Vec<NodeStatus>,
    /// Only nodes that have all of these labels.
    pub labels: Vec<(String, String)>,
    /// The nodes that left and of which something is still asked, instead of those that are registered.
    pub departed: bool,
}

/// `GET /v1/models`, as far as it is shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelList {
    /// One for each known model.
    pub data: Vec<KnownModel>,
}

/// A model that is known, whether it can be had now or not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct KnownModel {
    /// Its id.
    pub id: String,
    /// What is known of it.
    #[serde(default)]
    pub meta: ModelMeta,
}

/// What is known of a model, over all its pools.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Smallest context of one slot, in tokens.
    #[serde(default)]
    pub n_ctx: Option<u64>,
    /// Largest context of one slot, in tokens.
    #[serde(default)]
    pub n_ctx_max: Option<u64>,
    /// Slots of its pools.
    #[serde(default)]
    pub slots: Option<u64>,
    /// How it can be had, in one word.
    #[serde(default)]
    pub state: Option<String>,
    /// The ways in which its pools serve it.
    #[serde(default)]
    pub variants: Vec<ModelVariant>,
    /// Aliases that stand for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it stands for, when it is an alias.
    #[serde(default)]
    pub alias_of: Vec<String>,
}

/// Pools that serve a model in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelVariant {
    /// Their engine.
    #[serde(default)]
    pub engine: Option<String>,
    /// Its build.
    #[serde(default)]
    pub engine_version: Option<String>,
    /// Context of one slot, in tokens.
    #[serde(default)]
    pub n_ctx: Option<u64>,
    /// How many there are.
    #[serde(default)]
    pub pools: u64,
    /// Slots of those that take requests.
    #[serde(default)]
    pub slots: u64,
}

/// What an agent goes by in the answer to its heartbeat. The node's word is not among it: it is for people, and a newer
/// control plane may have one that this client does not know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Beaten {
    /// The interval in force.
    pub next_heartbeat_ms: Millis,
    /// The drain it is under.
    pub drain: Option<DrainOrder>,
}

/// A client of one control plane, which may have several addresses. Clones share what they learn.
#[derive(Debug, Clone)]
pub struct Client {
    attempt_timeout: Duration,
    /// Asks without a token: see [`Client::request`].
    tokenless: reqwest::Client,
    /// Holds the token to show, which may change.
    guard: Guard,
    servers: Arc<[HttpUrl]>,
    /// Index of the server that answered last.
    preferred: Arc<AtomicUsize>,
}

impl Client {
    /// A client that tries `servers` in turn, shows `token`, and gives each attempt `attempt_timeout`.
    ///
    /// # Errors
    /// No servers, a token that a header cannot carry, an HTTP client that cannot be set up.
    pub fn new(
        servers: Vec<HttpUrl>,
        token: Option<String>,
        attempt_timeout: Duration,
    ) -> Result<Self, ClientError> {
        let token = token
            .map(|secret| Token::new(&secret).map_err(|_| ClientError::BadToken))
            .transpose()?;
        let guard = Guard::new(Tokens {
            api: token.into_iter().collect(),
            client: Vec::new(),
        });
        Self::guarded(servers, guard, attempt_timeout)
    }

    /// The same, showing whatever is the first API token of `guard` at the moment.
    ///
    /// # Errors
    /// No servers, an HTTP client that cannot be set up, an https server and no authority to verify it by.
    pub fn guarded(
        servers: Vec<HttpUrl>,
        guard: Guard,
        attempt_timeout: Duration,
    ) -> Result<Self, ClientError> {
        if servers.is_empty() {
            return Err(ClientError::NoServer);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(format!("orchd/{VERSION}"))
            // The limit of a whole attempt is set with each request: a stream of events has none.
            .connect_timeout(attempt_timeout)
            // Control traffic is rare. A fresh connection each time costs little, and a connection whose other end
            // vanished without a word cannot be picked up again.
            .pool_max_idle_per_host(0)
            .tcp_nodelay(true)
            // The control API never redirects; whatever does is something else, and must not be shown the token twice.
            .redirect(reqwest::redirect::Policy::none())
            // Control traffic stays inside; a proxy in the environment is for the way out.
            .no_proxy();
        builder = if servers.iter().any(|server| server.origin().https) {
            builder.tls_backend_preconfigured((*tls::client_config()?).clone())
        } else {
            // Without https no certificate is checked: do not fail on a machine that has no system roots.
            builder.tls_certs_only([])
        };
        Ok(Self {
            guard,
            tokenless: builder
                .build()
                .map_err(|source| ClientError::Setup { source })?,
            attempt_timeout,
            servers: servers.into(),
            preferred: Arc::new(AtomicUsize::new(0)),
        })
    }

    /// The server that answered last, or the first one.
    #[must_use]
    pub fn server(&self) -> &HttpUrl {
        &self.servers[self.preferred.load(Ordering::Relaxed) % self.servers.len()]
    }

    /// All servers, in the order in which they would be asked now.
    pub fn servers(&self) -> impl Iterator<Item = &HttpUrl> {
        let first = self.preferred.load(Ordering::Relaxed) % self.servers.len();
        let (later, sooner) = self.servers.split_at(first);
        sooner.iter().chain(later)
    }

    /// Registers a node, or changes its record.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterReply, ClientError> {
        self.json(&Call::new(Method::POST, "/v2/nodes/register".to_owned()).body(request))
            .await
    }

    /// Sends a heartbeat.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn heartbeat(
        &self,
        node: &NodeId,
        request: &HeartbeatRequest,
    ) -> Result<Beaten, ClientError> {
        self.json(&Call::new(Method::POST, format!("/v2/nodes/{node}/heartbeat")).body(request))
            .await
    }

    /// Ends a registration: of this agent process only when `instance` is given, and with all that was asked of the
    /// node when `forget` is set.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn deregister(
        &self,
        node: &NodeId,
        instance: Option<&str>,
        forget: bool,
    ) -> Result<(), ClientError> {
        let mut call = Call::new(Method::DELETE, format!("/v2/nodes/{node}"));
        if let Some(instance) = instance {
            call = call.query("instance_id", instance.to_owned());
        }
        if forget {
            call = call.query("forget", "true".to_owned());
        }
        self.ask(&call).await.map(drop)
    }

    /// Lists nodes: all that match, however many pages they take.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn nodes(&self, query: &NodesQuery) -> Result<NodeList, ClientError> {
        let mut all = self.nodes_page(query, None).await?;
        while let Some(after) = all.next.take() {
            let page = self.nodes_page(query, Some(&after)).await?;
            if page.next.as_ref().is_some_and(|next| *next <= after) {
                return Err(self.not_orchd(format!(
                    "its list of nodes does not end: after {after} it begins again"
                )));
            }
            all.nodes.extend(page.nodes);
            all.total = page.total;
            all.next = page.next;
        }
        all.count = all.nodes.len();
        Ok(all)
    }

    async fn nodes_page(
        &self,
        query: &NodesQuery,
        after: Option<&NodeId>,
    ) -> Result<NodeList, ClientError> {
        let mut call = Call::listing("/v2/nodes").query("limit", PAGE.to_string());
        if !query.status.is_empty() {
            let words: Vec<&str> = query.status.iter().map(|status| status.as_str()).collect();
            call = call.query("status", words.join(","));
        }
        for (key, value) in &query.labels {
            call = call.query("label", format!("{key}={value}"));
        }
        if query.departed {
            call = call.query("departed", "true".to_owned());
        }
        if let Some(after) = after {
            call = call.query("after", after.to_string());
        }
        self.json(&call).await
    }

    /// Shows one node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn node(&self, node: &NodeId) -> Result<NodeView, ClientError> {
        self.json(&Call::new(Method::GET, format!("/v2/nodes/{node}")))
            .await
    }

    /// Asks for a drain; it is durable once this returns.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain(
        &self,
        node: &NodeId,
        request: &DrainRequest,
    ) -> Result<NodeView, ClientError> {
        self.json(&Call::new(Method::POST, format!("/v2/nodes/{node}/drain")).body(request))
            .await
    }

    /// Ends a drain; fine for a node that is not draining.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn undrain(&self, node: &NodeId) -> Result<NodeView, ClientError> {
        self.json(&Call::new(
            Method::DELETE,
            format!("/v2/nodes/{node}/drain"),
        ))
        .await
    }

    /// Lists the pools of all nodes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pools(&self) -> Result<PoolList, ClientError> {
        self.json(&Call::listing("/v2/pools")).await
    }

    /// Lists the models that are known, whether they can be had now or not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        self.json(&Call::listing("/v1/models")).await
    }

    async fn json<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        let body = self.ask(call).await?;
        serde_json::from_slice(&body).map_err(|e| {
            self.not_orchd(format!(
                "its answer to {} {} does not fit: {e}",
                call.method, call.path
            ))
        })
    }

    fn not_orchd(&self, what: String) -> ClientError {
        ClientError::NotOrchd {
            server: self.server().clone(),
            what,
        }
    }

    async fn ask(&self, call: &Call) -> Result<Vec<u8>, ClientError> {
        self.in_turn(|index| self.attempt(&self.servers[index], call))
            .await
    }

    /// Asks the servers in turn, beginning with the one that answered last. An answer ends the round, whatever it says.
    async fn in_turn<T, F>(&self, attempt: impl Fn(usize) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let count = self.servers.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut tried = Vec::new();
        for index in (first..first + count).map(|index| index % count) {
            match attempt(index).await {
                Err(error) if error.try_next() => tried.push(error),
                answer => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        // Somebody who answered in orchd's name, if only to say that it is leaving, says more than those who did not.
        let said_something = tried.iter().position(|error| error.code().is_some());
        Err(match (said_something, tried.len()) {
            (Some(index), _) => tried.swap_remove(index),
            (None, 1) => tried.remove(0),
            (None, _) => ClientError::NoneAnswered { tried },
        })
    }

    /// A request that shows the token of the moment. Every call begins here.
    fn request(&self, method: Method, url: String) -> reqwest::RequestBuilder {
        let request = self.tokenless.request(method, url);
        match self.guard.bearer() {
            Some(bearer) => request.header(AUTHORIZATION, bearer),
            None => request,
        }
    }

    async fn attempt(&self, server: &HttpUrl, call: &Call) -> Result<Vec<u8>, ClientError> {
        let mut request = self
            .request(call.method.clone(), server.join(&call.path))
            .timeout(self.attempt_timeout)
            .query(&call.query);
        if let Some(body) = &call.body {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(body.clone());
        }
        let response = request
            .send()
            .await
            .map_err(|source| unreachable(server, source))?;
        let response = accepted(server, response).await?;
        read(server, response, call.most).await
    }
}

/// One call, as it is made at each server.
#[derive(Debug)]
struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    /// Bytes its answer may have.
    most: usize,
}

impl Call {
    fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            query: Vec::new(),
            body: None,
            most: MAX_ANSWER_BYTES,
        }
    }

    /// It is answered with something of every node.
    fn listing(path: &str) -> Self {
        Self {
            most: MAX_LIST_BYTES,
            ..Self::new(Method::GET, path.to_owned())
        }
    }

    fn query(mut self, name: &'static str, value: String) -> Self {
        self.query.push((name, value));
        self
    }

    fn body<T: Serialize>(mut self, body: &T) -> Self {
        self.body = Some(
            serde_json::to_vec(body).expect("wire bodies have string keys and finite numbers"),
        );
        self
    }
}
