//! Reading llama.cpp's `llama-server`: `/health`, `/props`, `/slots`, `/v1/models`.
//!
//! Measured of it (build 7e4c0a9): while it loads everything is a 503; beyond its slots it queues and `/health` stays
//! 200; `/slots` may be off (501, 403), may be late while a prompt is processed, and wakes a sleeping server, which
//! `/props` does not.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::clock::Clock;
use crate::fetch::{self, FetchError};
use crate::tls;
use crate::types::{
    EngineKind, Mono, PoolState, PoolStatus, Sample, check_model_id, listed_model_id,
};

use super::{Engine, InFlight, Reading};

/// How long one question may take. An engine answers `/health` within milliseconds whatever it does (measured).
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// `/health` silent for so many rounds is unreachable (contract §4).
const SILENT_ROUNDS: u32 = 3;
/// The largest answer there is: `/slots` of an engine that shows its prompts.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Idle connections are closed by the engine after 5 s (measured).
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// What of `/props` is read.
#[derive(Debug, Deserialize)]
struct Props {
    #[serde(default)]
    total_slots: Option<u32>,
    #[serde(default)]
    build_info: Option<String>,
    #[serde(default)]
    is_sleeping: Option<bool>,
    #[serde(default)]
    default_generation_settings: Generation,
}

#[derive(Debug, Deserialize, Default)]
struct Generation {
    #[serde(default)]
    n_ctx: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Slot {
    is_processing: bool,
}

#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
}

/// What an engine said of itself when it was last asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Description {
    models: Vec<String>,
    version: Option<String>,
    slots_total: Option<u32>,
    n_ctx: Option<u64>,
}

pub(super) struct Prober {
    engine: Engine,
    clock: Clock,
    in_flight: Option<Arc<InFlight>>,
    http: reqwest::Client,
    silent: u32,
    description: Description,
    last: PoolState,
}

/// Why a question has no answer.
enum Failure {
    /// Nobody listens.
    Refused(String),
    /// The connection broke, which a kept one does now and then.
    Broken(String),
    /// No answer in time.
    Late,
    /// Another status than 200.
    Status(StatusCode),
    /// Not what a llama-server answers.
    Strange(String),
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

impl Prober {
    pub fn new(
        engine: Engine,
        clock: Clock,
        in_flight: Option<Arc<InFlight>>,
    ) -> Result<Self, ProberError> {
        // A proxy of the environment is for the world outside, not for an engine next door.
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(QUESTION_TIMEOUT)
            .pool_idle_timeout(KEEP_ALIVE)
            .pool_max_idle_per_host(1)
            .redirect(reqwest::redirect::Policy::none());
        let http = if engine.url.origin().https {
            http.tls_backend_preconfigured((*tls::client_config()?).clone())
        } else {
            // Without https no certificate is checked: do not fail on a machine that has no system roots.
            http.tls_certs_only([])
        }
        .build()?;
        Ok(Self {
            engine,
            clock,
            in_flight,
            http,
            silent: 0,
            description: Description::default(),
            last: PoolState::Unknown,
        })
    }

    /// One round: what the engine is doing now.
    pub async fn round(&mut self) -> Reading {
        let begun = self.clock.now();
        if let Some(in_flight) = &self.in_flight {
            in_flight.begin();
        }
        let (state, detail, busy) = self.look().await;
        self.last = state;
        self.reading(state, detail, busy, begun)
    }

    async fn look(&mut self) -> (PoolState, Option<String>, Option<u32>) {
        match self.health().await {
            Ok(()) => self.silent = 0,
            Err(Failure::Status(StatusCode::SERVICE_UNAVAILABLE)) => {
                self.silent = 0;
                return (PoolState::Loading, None, None);
            }
            Err(Failure::Refused(why)) => return (PoolState::Unreachable, Some(why), None),
            Err(failure @ (Failure::Late | Failure::Broken(_))) => {
                self.silent += 1;
                let usable = matches!(self.last, PoolState::Ready | PoolState::Busy);
                if self.silent < SILENT_ROUNDS && usable {
                    return (PoolState::Busy, Some("it answers late".to_owned()), None);
                }
                let why = match failure {
                    Failure::Broken(why) => why,
                    _ => "it does not answer".to_owned(),
                };
                return (PoolState::Unreachable, Some(why), None);
            }
            Err(Failure::Status(status)) => {
                let why = format!("/health answers {status}; is this a llama-server?");
                return (PoolState::Misconfigured, Some(why), None);
            }
            Err(Failure::Strange(why)) => return (PoolState::Misconfigured, Some(why), None),
        }
        let props: Option<Props> = self.ask("/props").await.ok();
        let asleep = match &props {
            Some(props) => props.is_sleeping.unwrap_or(false),
            // Not told: asking a sleeper for its slots would wake it.
            None => self.last == PoolState::Sleeping,
        };
        if let Err(why) = self.describe(props.as_ref(), asleep).await {
            return (PoolState::Misconfigured, Some(why), None);
        }
        if asleep {
            return (PoolState::Sleeping, None, Some(0));
        }
        match self.ask::<Vec<Slot>>("/slots").await {
            Ok(slots) => {
                let busy = slots.iter().filter(|slot| slot.is_processing).count();
                let total = u32::try_from(slots.len()).unwrap_or(u32::MAX);
                let busy = u32::try_from(busy).unwrap_or(u32::MAX);
                self.description.slots_total = Some(total.max(1));
                let state = if busy >= total {
                    PoolState::Busy
                } else {
                    PoolState::Ready
                };
                (state, None, Some(busy))
            }
            Err(Failure::Late) => (
                PoolState::Busy,
                Some("/slots answers late".to_owned()),
                None,
            ),
            Err(Failure::Status(status)) if status != StatusCode::SERVICE_UNAVAILABLE => (
                PoolState::Ready,
                Some("/slots is off: work sent past orchd is not seen".to_owned()),
                None,
            ),
            Err(Failure::Status(_)) => (PoolState::Loading, None, None),
            Err(Failure::Refused(why)) => (PoolState::Unreachable, Some(why), None),
            Err(Failure::Broken(why)) => (PoolState::Busy, Some(why), None),
            Err(Failure::Strange(why)) => (PoolState::Ready, Some(why), None),
        }
    }

    async fn health(&self) -> Result<(), Failure> {
        self.get("/health").await.map(drop)
    }

    /// Asks what it serves: after a quick restart that may be something else. A sleeper that has told is left asleep.
    async fn describe(&mut self, props: Option<&Props>, asleep: bool) -> Result<(), String> {
        if let Some(props) = props {
            self.description.version.clone_from(&props.build_info);
            self.description.slots_total = props.total_slots.or(self.description.slots_total);
            self.description.n_ctx =
                (props.default_generation_settings.n_ctx).or(self.description.n_ctx);
        }
        if asleep && !self.description.models.is_empty() {
            return Ok(());
        }
        match self.ask::<Models>("/v1/models").await {
            Ok(models) => self.description.models = listed(&models),
            Err(Failure::Status(StatusCode::SERVICE_UNAVAILABLE)) => {}
            Err(Failure::Status(status)) => {
                return Err(format!(
                    "/v1/models answers {status}: give the address of a llama-server, without /v1"
                ));
            }
            Err(Failure::Strange(why)) => return Err(why),
            // `/slots` is asked next, and meets the same trouble.
            Err(Failure::Refused(_) | Failure::Broken(_) | Failure::Late) => {}
        }
        if self.description.models.is_empty() {
            return Err("/v1/models names no model; is this a llama-server?".to_owned());
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response, Failure> {
        let response = self
            .http
            .get(self.engine.url.join(path))
            .send()
            .await
            .map_err(|e| failure(&e))?;
        if response.status() == StatusCode::OK {
            Ok(response)
        } else {
            Err(Failure::Status(response.status()))
        }
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let response = self.get(path).await?;
        let bytes = fetch::whole(response, MAX_ANSWER_BYTES)
            .await
            .map_err(|e| match e {
                FetchError::Http(e) => failure(&e),
                e @ FetchError::TooLarge { .. } => Failure::Strange(format!("{path}: {e}")),
            })?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::Strange(format!("{path} is not what a llama-server answers: {e}"))
        })
    }

    fn reading(
        &self,
        state: PoolState,
        detail: Option<String>,
        busy: Option<u32>,
        begun: Mono,
    ) -> Reading {
        let Description {
            models,
            version,
            slots_total,
            n_ctx,
        } = self.description.clone();
        let ready = matches!(
            state,
            PoolState::Ready | PoolState::Busy | PoolState::Sleeping
        ) && !models.is_empty();
        let ours = self.in_flight.as_ref().map(|in_flight| in_flight.peak());
        let sample = busy.zip(slots_total).map(|(busy, slots_total)| Sample {
            slots_total,
            busy,
            ours,
            begun: Some(begun),
        });
        // Without a reading of its slots, what this process has there is all that is known.
        let busy = busy
            .or(ours)
            .or((state == PoolState::Busy).then_some(slots_total.unwrap_or(1)));
        let free = |total: u32| total.saturating_sub(busy.unwrap_or(0));
        let status = PoolStatus {
            pool_id: self.engine.pool_id.clone(),
            ready,
            draining: false,
            slots_free: slots_total.map(free),
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
            advice: Vec::new(),
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

/// Ids and aliases, as they are listed.
fn listed(models: &Models) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in models
        .data
        .iter()
        .flat_map(|model| std::iter::once(&model.id).chain(&model.aliases))
    {
        let name = listed_model_id(name);
        if check_model_id(name).is_ok() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_aliases_are_listed_once_each() {
        let models = Models {
            data: vec![Model {
                id: "m".into(),
                aliases: vec!["m".into(), "other".into(), "b\nad".into()],
            }],
        };
        assert_eq!(listed(&models), ["m", "other"]);
    }
}
