//! What the gateway reads of a request's body: which model, how many slots.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::types::check_model_id;

use super::GatewayError;

/// The fields that routing needs. Everything else is skipped, but must be JSON: llama-server answers broken JSON with a
/// 500 (measured), which would look like a broken engine.
#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
    /// llama.cpp's own name for `n`.
    #[serde(borrow, default)]
    n_cmpl: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    /// The prompts of embeddings.
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Peek {
    /// `None` when it names none.
    pub model: Option<String>,
    /// It asks for a stream.
    pub stream: bool,
    /// Slots it will take: `n` answers to each of its prompts.
    pub weight: u32,
}

impl Peek {
    pub fn read(body: &[u8]) -> Result<Self, GatewayError> {
        if body
            .iter()
            .find(|byte| !byte.is_ascii_whitespace())
            .is_none_or(|byte| *byte != b'{')
        {
            return Err(GatewayError::NotJson {
                detail: "it must be a JSON object".to_owned(),
            });
        }
        // What is skipped is not looked at, and an engine would be the first to see that it is no text.
        let text = std::str::from_utf8(body).map_err(|e| GatewayError::NotJson {
            detail: format!("it is not UTF-8: {e}"),
        })?;
        let read: Body<'_> = serde_json::from_str(text).map_err(|e| GatewayError::NotJson {
            detail: e.to_string(),
        })?;
        if has_lone_surrogate(text) {
            let detail = "it has half of a surrogate pair (such as \\ud800), which is no character"
                .to_owned();
            return Err(GatewayError::NotJson { detail });
        }
        let model = read
            .model
            .map(|raw| model(raw.get()))
            .transpose()?
            .flatten();
        let n = read.n.or(read.n_cmpl).map_or(1, |raw| answers(raw.get()));
        let prompts = read
            .prompt
            .or(read.input)
            .map_or(1, |raw| prompts(raw.get()));
        Ok(Self {
            model,
            stream: read.stream.is_some_and(|raw| raw.get() == "true"),
            weight: n.saturating_mul(prompts),
        })
    }
}

/// Whether an escape in valid JSON stands for half a character. llama-server answers such a body with a 500 (measured),
/// which would look like a broken engine.
fn has_lone_surrogate(json: &str) -> bool {
    let mut rest = json.as_bytes();
    // Whether the escape just before this one began a pair.
    let mut half = false;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        let unit = match &rest[at + 1..] {
            [b'u', digits @ ..] if digits.len() >= 4 => std::str::from_utf8(&digits[..4])
                .ok()
                .and_then(|hex| u16::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        let is_low = unit.is_some_and(|unit| (0xDC00..0xE000).contains(&unit));
        let completes = half && at == 0 && is_low;
        if (half || is_low) && !completes {
            return true;
        }
        half = unit.is_some_and(|unit| (0xD800..0xDC00).contains(&unit));
        // A backslash and what it escapes; and, where that is a `u`, its four digits.
        let past = at + if unit.is_some() { 6 } else { 2 };
        rest = rest.get(past..).unwrap_or_default();
    }
    half
}

fn model(raw: &str) -> Result<Option<String>, GatewayError> {
    if raw == "null" {
        return Ok(None);
    }
    let name: Cow<'_, str> = serde_json::from_str(raw).map_err(|_| GatewayError::BadModel {
        detail: format!(
            "it must be a string, not {}",
            raw.chars().take(40).collect::<String>()
        ),
    })?;
    check_model_id(&name).map_err(|e| GatewayError::BadModel {
        detail: e.to_string(),
    })?;
    Ok(Some(name.into_owned()))
}

/// How many answers an `n` asks for; whether it may is the engine's to say.
fn answers(raw: &str) -> u32 {
    let n: f64 = raw.parse().unwrap_or(1.0);
    if n >= 1.0 {
        n.min(f64::from(u16::MAX)).trunc() as u32
    } else {
        1
    }
}

/// How many prompts a `prompt` holds: a string, an object and a list of token ids are one, a list of any is as many.
fn prompts(raw: &str) -> u32 {
    let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(raw) else {
        return 1;
    };
    let many = list
        .first()
        .is_some_and(|first| first.get().starts_with(['"', '[', '{']));
    if many {
        u32::try_from(list.len()).unwrap_or(u32::MAX)
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> (Option<String>, u32) {
        let peek = Peek::read(body.as_bytes()).expect("good");
        (peek.model, peek.weight)
    }

    #[test]
    fn the_model_and_the_weight_are_read_and_the_rest_is_skipped() {
        assert_eq!(
            read(r#"{"model":"org/m:Q4","messages":[{"role":"user"}],"stream":true}"#),
            (Some("org/m:Q4".into()), 1)
        );
        assert_eq!(read(r#" {"model":null,"n":3}"#), (None, 3));
        assert_eq!(read(r#"{"prompt":"one"}"#), (None, 1));
        assert_eq!(
            read(r#"{"prompt":[1,2,3]}"#),
            (None, 1),
            "token ids are one prompt"
        );
        assert_eq!(read(r#"{"prompt":["a","b"],"n":2}"#), (None, 4));
        assert_eq!(read(r#"{"prompt":[[1,2],[3]]}"#), (None, 2));
        assert_eq!(
            read(r#"{"prompt":[{"prompt_string":"a"},{"prompt_string":"b"}]}"#),
            (None, 2)
        );
        assert_eq!(read(r#"{"input":["a","b"],"n":2.0}"#), (None, 4));
        assert_eq!(read(r#"{"n_cmpl":3e0}"#), (None, 3));
        assert_eq!(read(r#"{"n":-1}"#), (None, 1));
        assert_eq!(
            read(r#"{"n":"many","model":"m\u00e9"}"#),
            (Some("mé".into()), 1),
            "the engine judges the rest"
        );
    }

    #[test]
    fn half_a_character_is_none() {
        for good in [
            r#"{"a":"\ud83d\ude00"}"#,
            r#"{"a":"\\ud800"}"#,
            r#"{"a":"\u00e9\n"}"#,
            r#"{"a":"\uD83D\uDE00x\ud83d\ude00"}"#,
        ] {
            assert!(Peek::read(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\ude00"}"#,
            r#"{"a":"\ud83dx\ude00"}"#,
            r#"{"a":"\ud83d\n"}"#,
            r#"{"a":"\ud83d\ud83d"}"#,
        ] {
            let refused = Peek::read(bad.as_bytes());
            assert!(
                matches!(refused, Err(GatewayError::NotJson { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_not_a_request_is_refused_with_the_reason() {
        for bad in [
            "",
            "[]",
            "null",
            "{",
            r#"{"a":}"#,
            r#"{"model":"a","model":"b"}"#,
            "{} x",
        ] {
            assert!(
                matches!(
                    Peek::read(bad.as_bytes()),
                    Err(GatewayError::NotJson { .. })
                ),
                "{bad:?}"
            );
        }
        for bad in [
            r#"{"model":1}"#,
            r#"{"model":["m"]}"#,
            r#"{"model":""}"#,
            r#"{"model":"a\nb"}"#,
        ] {
            assert!(
                matches!(
                    Peek::read(bad.as_bytes()),
                    Err(GatewayError::BadModel { .. })
                ),
                "{bad:?}"
            );
        }
    }
}
