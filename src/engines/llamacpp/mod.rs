//! Reading llama.cpp's `llama-server`: asks what [`state`] wants to know, and turns its verdict into a [`Reading`].

mod answers;
mod state;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header;
use reqwest::StatusCode;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::fetch::{self, FetchError};
use crate::tls;
use crate::types::{EngineKind, Mono, PoolState, PoolStatus, Sample, VERSION_HEADER};

use super::{Engine, InFlight, Reading};

use answers::{Answer, Failure};
use state::{Description, Heard, Question, State, Step, Verdict};

/// How long `/health` may take. An engine answers it within 10 ms whatever it does (measured); with three rounds of this
/// and the pauses between them, one that is stopped while it works is unreachable within three seconds, which are three
/// sampling intervals, and one that a busy machine lets wait is asked three times before that is said of it.
const HEALTH_TIMEOUT: Duration = Duration::from_millis(600);
/// How long any other question may take: `/slots` waits for the batch that is being computed.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer there is: `/slots` of an engine that shows its prompts.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Idle connections are closed by the engine after 5 s (measured).
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Said of an address at which there is no engine but another of us: what is sent there would come round again.
const ORCHD: &str =
    "this is orchd itself, not an engine: give the address at which llama-server listens";

/// The HTTP clients of all readers, made when they are first needed.
#[derive(Debug, Clone, Default)]
pub struct Http(Arc<Clients>);

#[derive(Debug, Default)]
struct Clients {
    plain: OnceLock<reqwest::Client>,
    tls: OnceLock<reqwest::Client>,
}

impl Http {
    fn client(&self, https: bool) -> Result<reqwest::Client, ProberError> {
        let known = if https { &self.0.tls } else { &self.0.plain };
        if let Some(client) = known.get() {
            return Ok(client.clone());
        }
        // A proxy of the environment is for the world outside, not for an engine next door.
        let builder = reqwest::Client::builder()
            .no_proxy()
            .pool_idle_timeout(KEEP_ALIVE)
            .pool_max_idle_per_host(1)
            .redirect(reqwest::redirect::Policy::none());
        let client = if https {
            builder.tls_backend_preconfigured((*tls::client_config()?).clone())
        } else {
            // Without https no certificate is checked: do not fail on a machine that has no system roots.
            builder.tls_certs_only([])
        }
        .build()?;
        Ok(known.get_or_init(|| client).clone())
    }
}

/// Why an engine cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProberError {
    /// Nobody is trusted whom it could be verified by.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The HTTP client cannot be set up.
    #[error("cannot set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

pub(super) struct Prober {
    engine: Engine,
    clock: Clock,
    in_flight: Option<Arc<InFlight>>,
    http: reqwest::Client,
    state: State,
}

impl Prober {
    pub fn new(
        engine: Engine,
        clock: Clock,
        in_flight: Option<Arc<InFlight>>,
        http: &Http,
    ) -> Result<Self, ProberError> {
        Ok(Self {
            http: http.client(engine.url.origin().https)?,
            state: State::new(&engine.declared, engine.sleeps, engine.key.is_some()),
            engine,
            clock,
            in_flight,
        })
    }

    /// One round: what the engine is doing now.
    pub async fn round(&mut self) -> Reading {
        let begun = self.clock.now();
        let works = self.in_flight.as_ref().is_some_and(|in_flight| {
            in_flight.begin();
            in_flight.now() > 0
        });
        if let Some(fault) = &self.engine.fault {
            let verdict = Verdict {
                state: fault.state,
                detail: Some(fault.why.clone()),
                busy: None,
            };
            return self.reading(verdict, begun);
        }
        let mut step = self.state.begin(begun, works);
        let verdict = loop {
            match step {
                Step::Ask(question) => step = self.state.on(self.ask(question).await),
                Step::Done(verdict) => break verdict,
            }
        };
        self.reading(verdict, begun)
    }

    /// Whether the next round is due at once, because this one heard nothing.
    pub fn is_silent(&self) -> bool {
        self.state.is_silent()
    }

    async fn ask(&self, question: Question) -> Heard {
        match question {
            Question::Health => {
                let answer = self.text("/health", HEALTH_TIMEOUT).await;
                Heard::Health(answer.map(drop))
            }
            Question::Props => Heard::Props(self.json("/props").await.map(Box::new)),
            Question::Models => Heard::Models(self.json("/v1/models").await),
            Question::Slots => Heard::Slots(self.json("/slots").await),
            Question::Metrics => {
                let text = self.text("/metrics", QUESTION_TIMEOUT).await;
                let processing = text.and_then(|text| {
                    answers::processing(&String::from_utf8_lossy(&text)).ok_or_else(|| {
                        Failure::Strange("/metrics does not tell the requests in progress".into())
                    })
                });
                Heard::Metrics(processing)
            }
        }
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        let bytes = self.text(path, QUESTION_TIMEOUT).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::Strange(format!("{path} is not what a llama-server answers: {e}"))
        })
    }

    async fn text(&self, path: &str, within: Duration) -> Answer<Vec<u8>> {
        match self.once(path, within).await {
            // A kept connection breaks now and then, at no fault of the engine; a fresh one does not.
            Err(Failure::Broken(_)) => self.once(path, within).await,
            answer => answer,
        }
    }

    async fn once(&self, path: &str, within: Duration) -> Answer<Vec<u8>> {
        let mut request = self.http.get(self.engine.url.join(path)).timeout(within);
        if let Some(key) = &self.engine.key {
            request = request.header(header::AUTHORIZATION, key.clone());
        }
        let response = request.send().await.map_err(|e| failure(&e))?;
        if self.is_orchd(&response) {
            return Err(Failure::Strange(ORCHD.to_owned()));
        }
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status().as_u16()));
        }
        fetch::whole(response, MAX_ANSWER_BYTES)
            .await
            .map_err(|e| match e {
                FetchError::Http(e) => failure(&e),
                e @ FetchError::TooLarge { .. } => Failure::Strange(format!("{path}: {e}")),
            })
    }

    /// Whether an orchd answers for itself. Behind an agent's `/pools/…` it is the engine that answers, and the agent adds
    /// its header.
    fn is_orchd(&self, response: &reqwest::Response) -> bool {
        let relayed = self.engine.url.origin().base_path.starts_with("/pools/");
        !relayed && response.headers().contains_key(VERSION_HEADER)
    }

    fn reading(&self, verdict: Verdict, begun: Mono) -> Reading {
        let Verdict {
            state,
            detail,
            busy,
        } = verdict;
        let Description {
            models,
            version,
            slots_total,
            n_ctx,
        } = self.state.description.clone();
        let ready = matches!(
            state,
            PoolState::Ready | PoolState::Busy | PoolState::Sleeping
        ) && !models.is_empty();
        let ours = (self.in_flight.as_ref()).and_then(|in_flight| in_flight.peak());
        let sample = busy.zip(slots_total).map(|(busy, slots_total)| Sample {
            slots_total,
            busy,
            ours,
            begun: Some(begun),
        });
        // Without a reading of its slots, what this process has there is all that is known.
        let taken = busy
            .or(ours)
            .or((state == PoolState::Busy).then_some(slots_total.unwrap_or(1)));
        let free = |total: u32| total.saturating_sub(taken.unwrap_or(0));
        let declared = self.engine.declared.slots_free.filter(|_| !ready);
        let status = PoolStatus {
            pool_id: self.engine.pool_id.clone(),
            ready,
            draining: false,
            slots_free: slots_total.map(|total| declared.unwrap_or_else(|| free(total)).min(total)),
            slots_total,
            vram_free_bytes: None,
            engine: Some(EngineKind::LlamaCpp.as_str().to_owned()),
            url: None,
            state,
            models_available: models,
            engine_version: version,
            n_ctx,
            in_flight: ours,
            detail,
        };
        Reading {
            status,
            sample,
            advice: [self.engine.ignored.clone(), self.state.advice()].concat(),
        }
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::Late;
    }
    if let Some(why) = tls::explain(error) {
        return Failure::Refused(why);
    }
    let mut cause: &dyn std::error::Error = error;
    let mut refused = false;
    while let Some(deeper) = cause.source() {
        cause = deeper;
        let io = cause.downcast_ref::<std::io::Error>();
        refused |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused);
    }
    if refused {
        Failure::Refused(cause.to_string())
    } else {
        Failure::Broken(cause.to_string())
    }
}
