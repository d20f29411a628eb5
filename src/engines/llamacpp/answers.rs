//! What `llama-server` answers, as far as it is read, and the ways in which it does not.

use serde::Deserialize;

use crate::types::{check_model_id, listed_model_id};

/// An answer, or why there is none.
pub(super) type Answer<T> = Result<T, Failure>;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nobody listens, or nobody that could be trusted.
    Refused(String),
    /// The connection broke, also a fresh one.
    Broken(String),
    /// No answer in time.
    Late,
    /// Another status than 200.
    Status(u16),
    /// Not what a llama-server answers.
    Strange(String),
}

/// `/props`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Props {
    pub total_slots: Option<u32>,
    pub build_info: Option<String>,
    pub is_sleeping: Option<bool>,
    pub model_alias: Option<String>,
    pub model_path: Option<String>,
    /// Whether `/slots` is there; older builds do not tell.
    pub endpoint_slots: Option<bool>,
    /// Whether `/metrics` is there; older builds do not tell.
    pub endpoint_metrics: Option<bool>,
    pub default_generation_settings: Generation,
}

/// The part of `/props` about generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Generation {
    /// Tokens of one slot.
    pub n_ctx: Option<u64>,
}

/// One of `/slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Slot {
    pub is_processing: bool,
}

/// `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
}

impl Models {
    /// Ids and aliases, as they are listed.
    pub fn listed(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self
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
}

/// Requests that the engine works on, of its `/metrics` text.
pub(super) fn processing(metrics: &str) -> Option<u32> {
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("llamacpp:requests_processing "))?;
    let value: f64 = value.trim().parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast between them saturates"
    )]
    let count = value as u32;
    Some(count)
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
        assert_eq!(models.listed(), ["m", "other"]);
    }

    #[test]
    fn the_requests_in_progress_are_one_line_of_the_metrics() {
        let text = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 4\nllamacpp:requests_deferred 2\n";
        assert_eq!(processing(text), Some(4));
        assert_eq!(processing("llamacpp:requests_deferred 2\n"), None);
        assert_eq!(processing("llamacpp:requests_processing -1\n"), Some(0));
        assert_eq!(processing("llamacpp:requests_processing x\n"), None);
    }
}
