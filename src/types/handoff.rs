//! Handoff files: what whoever starts an engine says of it.
//!
//! One JSON object per engine, in a file `*.json` of the runtime directory. Only `url` is required; fields that are not
//! known are ignored; null is as good as leaving a field out.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Declared, HttpUrl, PoolId, UrlError, check_model_id, listed_model_id};

/// Name of a pool that its file does not name (the original system's).
const DEFAULT_POOL: &str = "default";
/// The replica that adds nothing to its pool's name (the original system's).
const FIRST_REPLICA: &str = "r0";
/// More slots than any engine has: an address has no more ports, so that no more requests from here can be at it at one
/// time, and llama.cpp itself ends at 256 sequences (`LLAMA_MAX_SEQ`).
const MAX_SLOTS: u32 = 65_536;
/// What some programs put in front of every text (Windows' own among them).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How much of a value that cannot be used is shown, in characters.
const SHOWN: usize = 40;

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
    /// What is passed over in it, a sentence each.
    pub ignored: Vec<String>,
}

/// Why a file is no handoff file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandoffError {
    /// Not JSON.
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
    /// JSON that is no object.
    #[error("it is not a handoff file: it holds {found}, not an object with a url")]
    NoObject {
        /// What it holds.
        found: String,
    },
    /// The one field that must be there is not.
    #[error("it is not a handoff file: url is missing, which says where the engine listens")]
    NoUrl,
    /// A field that holds something else.
    #[error("{field} must be {wanted}, not {found}")]
    Kind {
        /// Which field.
        field: &'static str,
        /// What it takes.
        wanted: &'static str,
        /// What it holds.
        found: String,
    },
    /// An address that is none.
    #[error("url cannot be used: {0}")]
    Url(#[from] UrlError),
}

/// The fields of a file.
struct Fields(Map<String, Value>);

impl Fields {
    /// A field, unless it is left out or null.
    fn any(&mut self, field: &'static str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    fn one<T: DeserializeOwned>(
        &mut self,
        field: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, HandoffError> {
        let Some(value) = self.any(field) else {
            return Ok(None);
        };
        match T::deserialize(&value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(kind(field, wanted, &value)),
        }
    }

    fn text(&mut self, field: &'static str) -> Result<Option<String>, HandoffError> {
        self.one(field, "a string")
    }

    fn slots(&mut self, field: &'static str) -> Result<Option<u32>, HandoffError> {
        const WANTED: &str = "a whole number from 0 to 65536";
        let slots: Option<u32> = self.one(field, WANTED)?;
        match slots.filter(|&slots| slots > MAX_SLOTS) {
            Some(slots) => Err(kind(field, WANTED, &slots.into())),
            None => Ok(slots),
        }
    }

    /// The number of a process; what is none says nothing of the engine, which counts all the same.
    fn pid(&mut self, ignored: &mut Vec<String>) -> Option<u32> {
        let value = self.any("pid")?;
        // Some languages know one kind of number, and write it with a point.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole and in range"
        )]
        let whole = |number: f64| {
            let fits = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
            fits.then_some(number as u32)
        };
        let pid = match value.as_u64() {
            Some(number) => u32::try_from(number).ok(),
            None => value.as_f64().and_then(whole),
        };
        if pid.is_none() {
            ignored.push(format!(
                "the pid {} of its handoff file is no number of a process and is ignored: whether it has ended is not known",
                shown(&value)
            ));
        }
        pid
    }
}

fn kind(field: &'static str, wanted: &'static str, found: &Value) -> HandoffError {
    HandoffError::Kind {
        field,
        wanted,
        found: shown(found),
    }
}

/// A value, fit for a line in a log.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl Handoff {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// See [`HandoffError`].
    pub fn parse(text: &[u8]) -> Result<Self, HandoffError> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let mut fields = match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => Fields(fields),
            Ok(other) => {
                let found = shown(&other);
                return Err(HandoffError::NoObject { found });
            }
            Err(e) => return Err(HandoffError::Json(e.to_string())),
        };
        let url = fields.text("url")?.ok_or(HandoffError::NoUrl)?;
        let url = HttpUrl::new(&url)?;
        let pool_id = pool_id(fields.text("pool_id")?, fields.text("replica_id")?)?;
        let models = model(fields.any("model"))?.into_iter().collect();
        let known = |word: &str| {
            let word: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
            // The project, its name in the original system, and its server's.
            ["llamacpp", "llamaserver"].contains(&word.to_ascii_lowercase().as_str())
        };
        let slots = fields.slots("slots")?;
        let slots_total = fields.slots("slots_total")?.or(slots);
        let mut ignored = Vec::new();
        Ok(Self {
            pool_id,
            url,
            other_engine: fields.text("engine")?.filter(|engine| !known(engine)),
            declared: Declared {
                engine_version: fields.text("engine_version")?,
                // An engine without slots is none: that is no word on how many it has.
                slots_total: slots_total.filter(|&slots| slots > 0),
                slots_free: fields.slots("slots_free")?,
                models,
            },
            device_mask: device_mask(fields.any("device_mask"))?,
            pid: fields.pid(&mut ignored),
            api_key_file: fields.one("api_key_file", "a path")?,
            ignored,
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
    let Some(value) = value else {
        return Ok(None);
    };
    let bad = || {
        kind(
            "model",
            "a string, or an object with the strings id and path",
            &value,
        )
    };
    let name = match &value {
        Value::String(name) => name,
        Value::Object(parts) => {
            let part = |name| match parts.get(name) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text)),
                Some(_) => Err(bad()),
            };
            match (part("id")?, part("path")?) {
                (Some(name), _) | (None, Some(name)) => name,
                (None, None) => return Ok(None),
            }
        }
        _ => return Err(bad()),
    };
    let name = listed_model_id(name);
    check_model_id(name).map_err(|e| HandoffError::Name {
        field: "model",
        value: name.to_owned(),
        why: e.to_string(),
    })?;
    Ok(Some(name.to_owned()))
}

/// A string, a number, or a list of either.
fn device_mask(value: Option<Value>) -> Result<Option<String>, HandoffError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let bad = || {
        kind(
            "device_mask",
            "a string such as \"0,1\", or a list of indices or UUIDs",
            &value,
        )
    };
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(bad()),
    };
    match &value {
        Value::Array(values) => {
            let devices: Vec<String> = values.iter().map(one).collect::<Result<_, _>>()?;
            Ok(Some(devices.join(",")))
        }
        value => one(value).map(Some),
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
            ("7", "an object"),
            ("{}", "url is missing"),
            (r#"{"url": null}"#, "url is missing"),
            (r#"{"url": 8081}"#, "url must be a string, not 8081"),
            (r#"{"url": "127.0.0.1:8081"}"#, "http://HOST:PORT"),
            (r#"{"url": "http://u:p@h:1"}"#, "credentials"),
            (r#"{"url": "http://h:1", "pool_id": "a b"}"#, "pool_id"),
            (r#"{"url": "http://h:1", "replica_id": "/"}"#, "replica_id"),
            (
                r#"{"url": "http://h:1", "pool_id": ["a"]}"#,
                "pool_id must be a string",
            ),
            (
                r#"{"url": "http://h:1", "slots": -1}"#,
                "slots must be a whole number from 0 to 65536, not -1",
            ),
            (r#"{"url": "http://h:1", "slots": 4294967295}"#, "slots"),
            (
                r#"{"url": "http://h:1", "slots_total": 65537}"#,
                "slots_total must",
            ),
            (
                r#"{"url": "http://h:1", "slots_free": 1e99}"#,
                "slots_free must",
            ),
            (
                r#"{"url": "http://h:1", "api_key_file": 7}"#,
                "api_key_file must be a path",
            ),
            (r#"{"url": "http://h:1", "model": 7}"#, "model must be"),
            (r#"{"url": "http://h:1", "model": "a\nb"}"#, "model"),
            (r#"{"url": "http://h:1", "device_mask": {}}"#, "device_mask"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn as_many_slots_may_be_declared_as_an_address_has_ports() {
        let handoff = parse(r#"{"url": "http://h:1", "slots": 65536}"#).expect("good");
        assert_eq!(handoff.declared.slots_total, Some(MAX_SLOTS));
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let handoff = parse("\u{feff}{\"url\": \"http://h:1\"}").expect("good");
        assert_eq!(handoff.url.as_str(), "http://h:1");
        assert_eq!(handoff.ignored, [""; 0]);
    }

    #[test]
    fn a_pid_that_is_none_is_ignored_and_said_to_be() {
        let with = |pid: &str| {
            let text = format!(r#"{{"url": "http://h:1", "pid": {pid}}}"#);
            let handoff = parse(&text).expect(&text);
            (handoff.pid, handoff.ignored)
        };
        for (pid, number) in [("7", 7), ("7.0", 7), ("0", 0), ("4294967295", u32::MAX)] {
            assert_eq!(with(pid), (Some(number), Vec::new()), "{pid}");
        }
        let long = format!("\"{}\"", "é".repeat(100));
        for pid in ["-1", "1.5", "1e300", "4294967296", "\"7\"", "[7]", &long] {
            let (none, ignored) = with(pid);
            assert_eq!(none, None, "{pid}");
            assert_eq!(ignored.len(), 1, "{pid}");
            assert!(ignored[0].contains("pid"), "{ignored:?}");
            assert!(ignored[0].len() < 220, "{ignored:?}");
        }
    }
}
