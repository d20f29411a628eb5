//! This node, as it is and as it was told: what its calls say, and what their answers mean.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinError;
use tracing::{debug, error, info, warn};

use crate::auth::Token;
use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::engines::{Event, Known, News, Watched};
use crate::random;
use crate::relay::{Peer, Vitals};
use crate::types::{
    DrainAck, ErrorCode, HeartbeatRequest, HttpUrl, PoolStatus, RegisterRequest, UrlError, VERSION,
    millis,
};

use super::Settings;
use super::inventory::Report;
use super::machine::{Call, Machine, Outcome};
use super::proxy::{Door, Doors, Shared};

/// How long looking up a server's name may take: as long as an attempt (contract §4).
const LOOKUP: Duration = Duration::from_secs(3);

/// What came of a call.
pub(super) type Answer = (Call, Result<Outcome, CallError>);

/// Why a call has no outcome.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(
        "cannot tell by which address of this machine a gateway would reach it ({0}); say it with --advertise"
    )]
    Route(#[from] io::Error),
    #[error("cannot make a URL of this machine's address: {0}; say it with --advertise")]
    Url(#[from] UrlError),
}

pub(super) struct Node {
    settings: Settings,
    /// `http` or `https`, and where.
    listening: (&'static str, SocketAddr),
    clock: Clock,
    /// What the machine has, as it was read last.
    report: Arc<Report>,
    pub shared: Arc<Shared>,
    pub machine: Machine,
    instance_id: String,
    seq: u64,
    engines: Known,
    /// What the log said last of the control plane.
    was_up: Option<bool>,
}

impl Node {
    pub fn new(
        settings: Settings,
        listening: (&'static str, SocketAddr),
        clock: Clock,
        report: Arc<Report>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            settings,
            listening,
            clock,
            report,
            shared,
            machine: Machine::new(clock.now()),
            instance_id: random::name(),
            seq: 0,
            engines: Known::default(),
            was_up: None,
        }
    }

    /// The engines are others, or one of them was read.
    pub fn on_event(&mut self, event: Event) {
        let now = self.clock.now();
        match self.engines.on(event) {
            Some(News::Engines { renamed }) => {
                self.open_doors();
                if renamed {
                    self.machine.on_registration_change(now);
                }
                self.show();
                self.machine.on_change(now);
            }
            Some(News::Reading {
                before: old,
                now: status,
                ..
            }) => {
                if old.as_ref() == Some(&status) {
                    return;
                }
                self.show();
                let news = old.is_none_or(|old| {
                    old.state != status.state
                        || old.ready != status.ready
                        || !old.same_descriptor(&status)
                });
                if news {
                    self.machine.on_change(now);
                }
            }
            None => {}
        }
    }

    /// A door for each engine, and for no other.
    fn open_doors(&self) {
        let former = self.shared.doors.load();
        let door = |Watched { engine, in_flight }: &Watched| {
            let origin = engine.url.origin();
            let vitals = former
                .get(&engine.pool_id)
                .filter(|door| door.origin == origin)
                .map(|door| Arc::clone(&door.vitals));
            let hung_after = self.settings.hung_after;
            let door = Door {
                pool_id: engine.pool_id.clone(),
                vitals: vitals
                    .unwrap_or_else(|| Vitals::new(origin.clone(), Peer::Engine, hung_after, None)),
                origin,
                key: engine.key.clone(),
                in_flight: Arc::clone(in_flight),
            };
            (engine.pool_id.clone(), Arc::new(door))
        };
        let doors: Doors = (self.engines.iter().map(|known| door(&known.watched))).collect();
        if doors.is_empty() {
            let dir = self.settings.runtime_dir.display();
            warn!(
                "no engines: name them with --engine, or put handoff files into {dir}; until then this node has nothing to serve"
            );
        }
        self.shared.doors.store(Arc::new(doors));
    }

    /// The GPUs were read.
    pub fn on_report(&mut self, report: Arc<Report>) {
        self.shared.report.store(Arc::clone(&report));
        let before = std::mem::replace(&mut self.report, report);
        let now = self.clock.now();
        if self.report.capabilities != before.capabilities {
            self.machine.on_registration_change(now);
        }
        if self.report.health != before.health {
            self.machine.on_change(now);
        }
    }

    /// For `/metrics`.
    fn show(&self) {
        let pools = self.engines.statuses().map(Arc::clone).collect();
        self.shared.pools.store(Arc::new(pools));
    }

    /// Whether it is known which engines there are, and every one was read at least once.
    pub fn has_read_all(&self) -> bool {
        self.engines.are_all_read()
    }

    /// The last request has ended, perhaps.
    pub fn on_quiet(&mut self) {
        if self.shared.in_flight() > 0 {
            return;
        }
        if self.machine.drain().is_some() {
            self.machine.on_change(self.clock.now());
        }
        self.machine.on_quiet(self.clock.now());
    }

    /// No new work from now on. Says how long running work may take.
    pub fn on_stop(&mut self) -> Duration {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let grace = self.settings.shutdown_grace;
        let in_flight = self.shared.in_flight();
        info!(
            in_flight,
            ?grace,
            "stopping: no new requests; running ones may finish"
        );
        self.machine.on_stop(self.clock.now());
        self.on_quiet();
        grace
    }

    /// A call, ready to be made; it holds nothing of this node.
    pub fn prepare(&mut self, call: Call) -> BoxFuture<'static, Answer> {
        self.machine.on_call(call);
        let client = self.settings.client.clone();
        let node_id = self.settings.node_id.clone();
        match call {
            Call::Register => {
                let mut registration = self.registration();
                let listening = self.listening;
                async move {
                    let outcome = async {
                        if registration.address.is_none() {
                            registration.address = Some(advertised(listening, &client).await?);
                        }
                        let reply = client.register(&registration).await?;
                        Ok(Outcome::Registered {
                            interval_ms: reply.heartbeat_interval_ms,
                            timeout_ms: reply.node_timeout_ms,
                        })
                    };
                    (call, outcome.await)
                }
                .boxed()
            }
            Call::Beat => {
                let heartbeat = self.heartbeat();
                async move {
                    let reply = client.heartbeat(&node_id, &heartbeat).await;
                    let outcome = reply.map(|reply| Outcome::Beaten {
                        interval_ms: reply.next_heartbeat_ms,
                        drain: reply.drain,
                    });
                    (call, outcome.map_err(Into::into))
                }
                .boxed()
            }
            Call::Deregister => {
                let instance_id = self.instance_id.clone();
                async move {
                    let left = client.deregister(&node_id, Some(&instance_id), false).await;
                    (call, left.map(|()| Outcome::Left).map_err(Into::into))
                }
                .boxed()
            }
        }
    }

    fn registration(&self) -> RegisterRequest {
        let engines = self.engines.iter().map(|known| &known.watched.engine);
        let mut pools: Vec<String> = engines.map(|engine| engine.pool_id.to_string()).collect();
        pools.sort_unstable();
        RegisterRequest {
            pools,
            node_id: self.settings.node_id.clone(),
            machine_id: Some(self.settings.machine_id.clone()),
            address: self.settings.advertise.clone(),
            capabilities: self.report.capabilities.clone(),
            version: Some(VERSION.to_owned()),
            labels: self.settings.labels.clone(),
            instance_id: Some(self.instance_id.clone()),
            announced: false,
            engines: Vec::new(),
        }
    }

    fn heartbeat(&mut self) -> HeartbeatRequest {
        self.seq += 1;
        let in_flight = self.shared.in_flight();
        let stopping = self.shared.stopping.load(Ordering::SeqCst);
        let pools = self.engines.iter().filter_map(|known| {
            let mask = known.watched.engine.device_mask.as_deref();
            Some(PoolStatus {
                draining: stopping,
                vram_free_bytes: self.report.vram_free(mask),
                ..PoolStatus::clone(known.status.as_ref()?)
            })
        });
        // What the control plane knows keeps its place, whichever file an engine comes from.
        let mut pools: Vec<PoolStatus> = pools.collect();
        pools.sort_unstable_by(|a, b| a.pool_id.cmp(&b.pool_id));
        HeartbeatRequest {
            timestamp: Some(jiff::Timestamp::now().to_string()),
            pools,
            instance_id: Some(self.instance_id.clone()),
            seq: Some(self.seq),
            health: Some(self.report.health.clone()),
            drain_ack: self.machine.drain().map(|drain| DrainAck {
                id: drain.id.clone(),
                in_flight,
            }),
        }
    }

    /// A call was answered, or not.
    pub fn on_answer(&mut self, answer: Result<Answer, JoinError>) {
        let (call, result) = match answer {
            Ok(answer) => answer,
            Err(panic) => {
                error!(error = %panic, "a call to the control plane failed here; it will be made again");
                (Call::Beat, Ok(Outcome::Failed))
            }
        };
        let outcome = result.unwrap_or_else(|error| self.judge(call, &error));
        let drained_before = self.machine.drain().map(|drain| drain.id.clone());
        self.machine
            .on_outcome(self.clock.now(), call, outcome, random::number());
        match (self.machine.drain(), drained_before) {
            (Some(drain), before) if before.as_ref() != Some(&drain.id) => {
                info!(
                    drain_id = drain.id,
                    in_flight = self.shared.in_flight(),
                    "this node is being drained"
                );
            }
            (None, Some(_)) => info!("the drain has ended"),
            _ => {}
        }
        let up = self.machine.is_up();
        if up && self.was_up != Some(true) {
            info!(server = %self.settings.client.server(), "registered");
        }
        self.was_up = Some(up);
    }

    /// What a failure means for the node's life, and one line about it when it is news.
    fn judge(&self, call: Call, error: &CallError) -> Outcome {
        let outcome = match error {
            CallError::Client(ClientError::Unauthorized { .. }) => Outcome::Unauthorized,
            CallError::Client(ClientError::Refused {
                body, retry_after, ..
            }) => match body.code {
                ErrorCode::NodeNotFound => Outcome::Unknown,
                ErrorCode::Superseded => Outcome::Superseded,
                ErrorCode::NodeIdConflict => {
                    let after = retry_after.unwrap_or(Duration::from_secs(1));
                    Outcome::NameTaken {
                        retry_after_ms: millis(after),
                    }
                }
                _ => Outcome::Failed,
            },
            _ => Outcome::Failed,
        };
        match (&outcome, call) {
            // The agent ends over these, and says so itself.
            (Outcome::Superseded, _) => {}
            (_, Call::Deregister) => {
                warn!(%error, "the control plane did not hear that this node leaves; its silence will tell");
            }
            (Outcome::Unauthorized, _) => {
                let shown = self.shared.guard.tokens();
                match shown.api.first().map(Token::fingerprint) {
                    None => {
                        warn!(%error, "the control plane wants a token and was shown none: put its own into ORCHD_API_TOKEN or ORCHD_API_TOKEN_FILE; will try again every 30 s");
                    }
                    Some(token) => {
                        warn!(%error, token, "the control plane does not take the token it was shown: ORCHD_API_TOKEN, or the first line of ORCHD_API_TOKEN_FILE, must be a token of its operators; will try again every 30 s");
                    }
                }
            }
            (Outcome::Failed, _) if self.was_up == Some(false) => {
                debug!(?call, %error, "the control plane still does not take this node");
            }
            _ => {
                let hint = hint(error);
                warn!(?call, %error, hint, "the control plane does not take this node now; its engines are served all the same");
            }
        }
        outcome
    }
}

/// The next step, where the error itself does not name it.
fn hint(error: &CallError) -> Option<&'static str> {
    match error {
        CallError::Client(ClientError::Refused { body, .. }) => match body.code {
            ErrorCode::InvalidRequest => Some(
                "see --node-id, --advertise, --label and the names of the engines, and start it again",
            ),
            ErrorCode::StoreUnavailable | ErrorCode::Internal => {
                Some("see the log of the control plane")
            }
            ErrorCode::NotFound | ErrorCode::MethodNotAllowed => {
                Some("the control plane may be of another version: compare `orchd --version`")
            }
            _ => None,
        },
        CallError::Client(
            ClientError::Unreachable { .. }
            | ClientError::NoneAnswered { .. }
            | ClientError::NotOrchd { .. },
        ) => Some("--server (ORCHD_SERVER) says where it is"),
        _ => None,
    }
}

/// How a gateway reaches this agent when nobody says: where it listens; a wildcard is replaced by the address this
/// machine uses towards the control plane, by whichever of its servers can be told at the moment.
async fn advertised(
    (scheme, listening): (&'static str, SocketAddr),
    client: &Client,
) -> Result<HttpUrl, CallError> {
    let url = |address: SocketAddr| Ok(HttpUrl::new(&format!("{scheme}://{address}"))?);
    let ip = listening.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        return url(listening);
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for server in client.servers() {
        let found = match addresses(server).await {
            Ok(found) => found,
            Err(e) => {
                last = e;
                continue;
            }
        };
        for server in found {
            if ip.is_loopback() {
                if !server.ip().is_loopback() {
                    warn!(%listening, %server, "a gateway on another machine cannot reach a loopback address: say --listen or --advertise");
                }
                return url(listening);
            }
            match source_towards(server) {
                Ok(source) => return url(SocketAddr::new(source, listening.port())),
                Err(e) => last = e,
            }
        }
    }
    if ip.is_loopback() {
        return url(listening);
    }
    Err(last.into())
}

/// The addresses of a server. A resolver that cannot be reached takes its time; the next server may need none.
async fn addresses(server: &HttpUrl) -> io::Result<Vec<SocketAddr>> {
    let origin = server.origin();
    let lookup = tokio::net::lookup_host((origin.host.as_str(), origin.port));
    let found = tokio::time::timeout(LOOKUP, lookup).await;
    Ok(found.map_err(|_| io::ErrorKind::TimedOut)??.collect())
}

/// The source address of packets to a server. Nothing is sent: connecting a datagram socket only chooses a route.
fn source_towards(server: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}
