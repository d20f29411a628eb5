//! What the log says of one engine: a line when it is something else than it was, and each piece of advice once.
//!
//! Invariant: what is no news is not said again when the engine's handoff file is rewritten and its reader begins anew.

use tracing::{info, warn};

use crate::types::PoolState;

use super::{Engine, Reading};

/// State, models, and what is to be mended where something is.
type Said = (PoolState, Vec<String>, Option<String>);

/// What was said of an engine at one address.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    last: Option<Said>,
    advised: Vec<String>,
}

impl Journal {
    /// It was read.
    pub fn on_reading(&mut self, engine: &Engine, reading: &Reading) {
        let status = &reading.status;
        let (pool_id, url) = (&engine.pool_id, &engine.url);
        let state = status.state;
        if self.is_news(reading) {
            let detail = status.detail.as_deref().unwrap_or_default();
            if engine.fault.is_some() {
                warn!(%pool_id, %url, state = state.as_str(), detail, "this engine is not used");
            } else if matches!(state, PoolState::Unreachable | PoolState::Misconfigured) {
                warn!(%pool_id, %url, state = state.as_str(), detail, "this engine cannot be used now; it is asked again and again");
            } else {
                let models = status.models_available.join(",");
                info!(%pool_id, %url, state = state.as_str(), models, "engine changed");
            }
        }
        for words in self.new_advice(reading) {
            warn!(%pool_id, "{words}");
        }
    }

    /// Whether its state, what it serves or what is to be mended is another. Why it cannot be reached is not told again and
    /// again while it cannot: that differs from one attempt to the next.
    fn is_news(&mut self, reading: &Reading) -> bool {
        let status = &reading.status;
        let mend = (status.detail.clone()).filter(|_| status.state == PoolState::Misconfigured);
        let now = (steady(status.state), status.models_available.clone(), mend);
        let news = self.last.as_ref() != Some(&now);
        self.last = Some(now);
        news
    }

    /// The advice that was not given yet. What is not said any more is forgotten, unless the engine cannot say it.
    fn new_advice<'a>(&mut self, reading: &'a Reading) -> Vec<&'a str> {
        let given = &self.advised;
        let advice = reading.advice.iter().filter(|words| !given.contains(words));
        let new: Vec<&str> = advice.map(String::as_str).collect();
        if reading.status.ready {
            self.advised.clone_from(&reading.advice);
        } else {
            self.advised
                .extend(new.iter().map(|&words| words.to_owned()));
        }
        new
    }
}

/// What is worth a line in the log: an engine that fills its slots and empties them again is not.
fn steady(state: PoolState) -> PoolState {
    if state == PoolState::Busy {
        PoolState::Ready
    } else {
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(state: &str, advice: &[&str]) -> Reading {
        let ready = matches!(state, "ready" | "busy");
        let status = serde_json::json!({"pool_id": "p", "ready": ready, "state": state, "models_available": ["m"]});
        Reading {
            status: serde_json::from_value(status).expect("a status"),
            sample: None,
            advice: advice.iter().map(|&words| words.to_owned()).collect(),
        }
    }

    #[test]
    fn an_engine_is_news_when_it_is_something_else() {
        let mut journal = Journal::default();
        let mut news = |state| journal.is_news(&reading(state, &[]));
        assert!(news("ready"));
        assert!(!news("busy"));
        assert!(!news("ready"));
        assert!(news("unreachable"));
        assert!(!news("unreachable"));
        assert!(news("busy"));
        let mut with = |state, detail: &str| {
            let mut reading = reading(state, &[]);
            reading.status.detail = Some(detail.to_owned());
            journal.is_news(&reading)
        };
        assert!(with("misconfigured", "no key"));
        assert!(!with("misconfigured", "no key"));
        assert!(with("misconfigured", "a wrong key"));
        assert!(with("unreachable", "refused"));
        assert!(!with("unreachable", "reset"));
    }

    #[test]
    fn advice_is_given_once_until_it_was_of_no_use_any_more() {
        let mut journal = Journal::default();
        let mut given = |state, advice: &[&str]| {
            let reading = reading(state, advice);
            journal.new_advice(&reading).join(",")
        };
        assert_eq!(given("ready", &["a", "b"]), "a,b");
        assert_eq!(given("ready", &["a", "b"]), "");
        // A reader that begins anew knows nothing before the engine has answered.
        assert_eq!(given("unreachable", &[]), "");
        assert_eq!(given("loading", &[]), "");
        assert_eq!(given("ready", &["a", "b", "c"]), "c");
        assert_eq!(given("ready", &["c"]), "");
        assert_eq!(given("ready", &["a", "c"]), "a");
        assert_eq!(given("unreachable", &["d"]), "d");
        assert_eq!(given("unreachable", &["d"]), "");
    }
}
