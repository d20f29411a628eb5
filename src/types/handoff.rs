//! Handoff files: what whoever starts an engine says of it.
//!
//! One JSON object per engine, in a file `*.json` of the runtime directory. Only `url` is required; fields that are not
//! known are ignored; null is as good as leaving a field out.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{Declared, HttpUrl, Object, PoolId, check_model_id, listed_model_id};

/// Name of a pool that its file does not name (the original system's).
const DEFAULT_POOL: &str = "default";
/// The replica that adds nothing to its pool's name (the original system's).
const FIRST_REPLICA: &str = "r0";

/// One file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handoff {
    /// `pool_id`, with `-REPLICA` for every replica but `r0`.
    pub pool_id: PoolId,
    /// Where the engine listens.
    pub url: HttpUrl,
    /// Which engine it is, when that is not llama.cpp.
    pub other_engine: Option<String>,
    /// What holds until the engine speaks for itself.
    pub declared: Declared,
    /// The GPUs it runs on, as `CUDA_VISIBLE_DEVICES` names them.
    pub device_mask: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Where the key is that it wants to be shown; a relative path is one beside the handoff file.
    pub api_key_file: Option<PathBuf>,
}

/// Why a file is no handoff file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandoffError {
    /// Not JSON, no object, or a field of another kind.
    #[error("it is not a handoff file: {0}")]
    Json(String),
    /// A name that pools cannot have.
    #[error("{field} {value:?} cannot be used: it {why}")]
    Name {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it breaks.
        why: String,
    },
    /// A field that holds something else.
    #[error("{field} must be {wanted}")]
    Kind {
        /// Which field.
        field: &'static str,
        /// What it takes.
        wanted: &'static str,
    },
}

#[derive(Deserialize)]
struct Raw {
    url: HttpUrl,
    pool_id: Option<String>,
    replica_id: Option<String>,
    engine: Option<String>,
    engine_version: Option<String>,
    device_mask: Option<Value>,
    slots: Option<u32>,
    slots_total: Option<u32>,
    slots_free: Option<u32>,
    pid: Option<u32>,
    model: Option<Value>,
    api_key_file: Option<PathBuf>,
}

impl Handoff {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// See [`HandoffError`].
    pub fn parse(text: &[u8]) -> Result<Self, HandoffError> {
        let Object(raw): Object<Raw> =
            serde_json::from_slice(text).map_err(|e| HandoffError::Json(e.to_string()))?;
        let pool_id = pool_id(raw.pool_id, raw.replica_id)?;
        let models = model(raw.model)?.into_iter().collect();
        let known = |word: &str| {
            let word: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
            // The project, its name in the original system, and its server's.
            ["llamacpp", "llamaserver"].contains(&word.to_ascii_lowercase().as_str())
        };
        Ok(Self {
            pool_id,
            url: raw.url,
            other_engine: raw.engine.filter(|engine| !known(engine)),
            declared: Declared {
                engine_version: raw.engine_version,
                // An engine without slots is none: that is no word on how many it has.
                slots_total: raw.slots_total.or(raw.slots).filter(|&slots| slots > 0),
                slots_free: raw.slots_free,
                models,
            },
            device_mask: device_mask(raw.device_mask)?,
            pid: raw.pid,
            api_key_file: raw.api_key_file,
        })
    }
}

fn pool_id(pool: Option<String>, replica: Option<String>) -> Result<PoolId, HandoffError> {
    let checked = |field, value: &str| {
        PoolId::new(value).map_err(|e| HandoffError::Name {
            field,
            value: value.to_owned(),
            why: e.to_string(),
        })
    };
    let pool = checked("pool_id", pool.as_deref().unwrap_or(DEFAULT_POOL))?;
    match replica {
        Some(replica) if replica != FIRST_REPLICA => {
            checked("pool_id with replica_id", &format!("{pool}-{replica}"))
        }
        _ => Ok(pool),
    }
}

/// A string, or an object with `id` or `path`; as it is going to be listed.
fn model(value: Option<Value>) -> Result<Option<String>, HandoffError> {
    const KIND: HandoffError = HandoffError::Kind {
        field: "model",
        wanted: "a string, or an object with the strings id and path",
    };
    let name = match value {
        None => return Ok(None),
        Some(Value::String(name)) => name,
        Some(Value::Object(mut parts)) => {
            let mut part = |name| match parts.remove(name) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text)),
                Some(_) => Err(KIND),
            };
            match (part("id")?, part("path")?) {
                (Some(name), _) | (None, Some(name)) => name,
                (None, None) => return Ok(None),
            }
        }
        Some(_) => return Err(KIND),
    };
    let name = listed_model_id(&name);
    check_model_id(name).map_err(|e| HandoffError::Name {
        field: "model",
        value: name.to_owned(),
        why: e.to_string(),
    })?;
    Ok(Some(name.to_owned()))
}

/// A string, a number, or a list of either.
fn device_mask(value: Option<Value>) -> Result<Option<String>, HandoffError> {
    const KIND: HandoffError = HandoffError::Kind {
        field: "device_mask",
        wanted: "a string such as \"0,1\", or a list of indices or UUIDs",
    };
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(KIND),
    };
    match value {
        None => Ok(None),
        Some(Value::Array(values)) => {
            let devices: Vec<String> = values.into_iter().map(one).collect::<Result<_, _>>()?;
            Ok(Some(devices.join(",")))
        }
        Some(value) => one(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Handoff, String> {
        Handoff::parse(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_address_is_all_it_takes() {
        let handoff = parse(r#"{"url": "http://127.0.0.1:8081", "colour": "red"}"#).expect("good");
        assert_eq!(handoff.pool_id.as_str(), "default");
        assert_eq!(handoff.url.as_str(), "http://127.0.0.1:8081");
        assert_eq!(handoff.declared, Declared::default());
        assert_eq!(
            (handoff.other_engine, handoff.device_mask, handoff.pid),
            (None, None, None)
        );
    }

    #[test]
    fn everything_that_may_be_said_is_taken() {
        let handoff = parse(
            r#"{"url": "http://127.0.0.1:8081", "pool_id": "big", "replica_id": "r1", "engine": "llamacpp",
                "engine_version": "b1", "device_mask": "0,1", "slots_total": 4, "slots_free": 3, "pid": 12,
                "model": {"id": null, "path": "/models/Qwen3-8B-00001-of-00002.gguf"}, "api_key_file": "key"}"#,
        )
        .expect("good");
        assert_eq!(handoff.pool_id.as_str(), "big-r1");
        assert_eq!(handoff.declared.models, ["Qwen3-8B"]);
        assert_eq!(handoff.declared.slots_total, Some(4));
        assert_eq!(handoff.declared.slots_free, Some(3));
        assert_eq!(handoff.device_mask.as_deref(), Some("0,1"));
        assert_eq!(handoff.other_engine, None);
        assert_eq!(handoff.pid, Some(12));
        assert_eq!(handoff.api_key_file, Some("key".into()));
    }

    #[test]
    fn the_first_replica_adds_nothing_to_the_name_and_null_is_nothing() {
        let handoff = parse(
            r#"{"url": "http://h:1", "replica_id": "r0", "pool_id": null, "model": null, "slots": 2, "pid": null,
                "slots_total": null, "device_mask": [0, "GPU-1"], "engine": "llama.cpp"}"#,
        )
        .expect("good");
        assert_eq!(handoff.pool_id.as_str(), "default");
        assert_eq!(handoff.declared.slots_total, Some(2));
        assert_eq!(handoff.device_mask.as_deref(), Some("0,GPU-1"));
        assert_eq!(handoff.other_engine, None);
    }

    #[test]
    fn another_engine_is_named() {
        let handoff = parse(r#"{"url": "http://h:1", "engine": "vllm", "model": "m"}"#);
        let handoff = handoff.expect("good");
        assert_eq!(handoff.other_engine.as_deref(), Some("vllm"));
        assert_eq!(handoff.declared.models, ["m"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "EOF"),
            (r#"{"url": "http://127.0"#, "EOF"),
            (r#"["http://127.0.0.1:8081"]"#, "an object"),
            ("{}", "missing field `url`"),
            (r#"{"url": "127.0.0.1:8081"}"#, "http://HOST:PORT"),
            (r#"{"url": "http://u:p@h:1"}"#, "credentials"),
            (r#"{"url": "http://h:1", "pool_id": "a b"}"#, "pool_id"),
            (r#"{"url": "http://h:1", "replica_id": "/"}"#, "replica_id"),
            (r#"{"url": "http://h:1", "slots": -1}"#, "-1"),
            (r#"{"url": "http://h:1", "model": 7}"#, "model must be"),
            (r#"{"url": "http://h:1", "model": "a\nb"}"#, "model"),
            (r#"{"url": "http://h:1", "device_mask": {}}"#, "device_mask"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
