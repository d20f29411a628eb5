//! Values on the command line: what they are, how they are read, and what is said when they are wrong.
//!
//! Invariants: a reader knows whether its text comes from a flag or from the environment, and answers in those terms; a
//! token never shows itself. Called by the definition of the command line, next door.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser, ValueParserFactory};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;

use crate::types::{self, EngineClash, EngineRef, HttpUrl, NodeStatus, PoolId, parse_duration};

/// Labels one node may carry.
const MAX_LABELS: usize = 64;

/// A command line that parses, but asks for something that cannot be. Exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub hint: Option<String>,
}

impl UsageError {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// A token that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken(pub(super) String);

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(…)")
    }
}

impl From<String> for ApiToken {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl ValueParserFactory for ApiToken {
    type Parser = clap::builder::MapValueParser<StringValueParser, fn(String) -> Self>;
    fn value_parser() -> Self::Parser {
        StringValueParser::new().map(Self)
    }
}

/// An engine as it was given: `[NAME=]URL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineArg {
    /// The name in front, if there is one.
    pub name: Option<PoolId>,
    /// Where it listens.
    pub url: HttpUrl,
}

impl FromStr for EngineArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name has neither ':' nor '/', so that an '=' within a URL does not look like the end of one.
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains([':', '/']) => (Some(name), url),
            _ => (None, text),
        };
        let name = name
            .map(|name| PoolId::new(name).map_err(|e| format!("the name {name:?} {e}")))
            .transpose()?;
        let url = HttpUrl::new(url).map_err(|e| e.to_string())?;
        Ok(Self { name, url })
    }
}

/// An engine and the name of its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// Its pool name, unique within the node.
    pub name: PoolId,
    /// Where it listens.
    pub url: HttpUrl,
}

/// Names engines: as given, else `default` for the first without a name, else `HOST-PORT`.
///
/// # Errors
/// Two engines of one name, or one engine twice.
pub fn name_engines(engines: &[EngineArg]) -> Result<Vec<EngineSpec>, UsageError> {
    let engines: Vec<EngineRef> = engines
        .iter()
        .map(|engine| EngineRef {
            pool_id: engine.name.clone(),
            url: engine.url.clone(),
        })
        .collect();
    let named = types::name_engines(&engines).map_err(|clash| {
        let hint = match &clash {
            EngineClash::Twice { .. } => {
                "its slots would be counted twice; leave one out".to_owned()
            }
            EngineClash::SameName { second, .. } => {
                format!("give one another name: --engine NAME={second}")
            }
        };
        UsageError::new(clash.to_string(), hint)
    })?;
    let specs = named
        .into_iter()
        .map(|(name, url)| EngineSpec { name, url });
    Ok(specs.collect())
}

/// A machine id as a flag gives it: not empty, no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineId(pub String);

impl FromStr for MachineId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err("a machine id must not be empty or hold control characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// A label as a flag gives it: `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Not empty.
    pub key: String,
    /// May be empty.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("a label is KEY=VALUE, such as rack=b2".to_owned()),
        }
    }
}

pub(super) fn label_map(labels: &[Label]) -> Result<BTreeMap<String, String>, UsageError> {
    if labels.len() > MAX_LABELS {
        return Err(UsageError {
            message: format!(
                "{} labels are given; a node may carry {MAX_LABELS}",
                labels.len()
            ),
            hint: None,
        });
    }
    let keys: BTreeSet<&str> = labels.iter().map(|label| label.key.as_str()).collect();
    if let Some(twice) = keys
        .into_iter()
        .find(|key| labels.iter().filter(|label| label.key == **key).count() > 1)
    {
        return Err(UsageError {
            message: format!("the label {twice} is given twice"),
            hint: None,
        });
    }
    Ok(labels
        .iter()
        .map(|label| (label.key.clone(), label.value.clone()))
        .collect())
}

/// The unit of a duration's environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Seconds,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Millis => "milliseconds",
            Self::Seconds => "seconds",
        }
    }

    fn of(self, count: u64) -> Duration {
        match self {
            Self::Millis => Duration::from_millis(count),
            Self::Seconds => Duration::from_secs(count),
        }
    }

    fn count(self, duration: Duration) -> u128 {
        match self {
            Self::Millis => duration.as_millis(),
            Self::Seconds => u128::from(duration.as_secs()),
        }
    }
}

/// Writes a duration as flags take it, in the largest unit that shows it exactly. Parts of a millisecond are dropped.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

fn read_duration(
    text: &str,
    from_env: bool,
    unit: Unit,
    min: Duration,
    max: Duration,
) -> Result<Duration, String> {
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let duration = match (from_env, bare) {
        (false, false) => parse_duration(text)?,
        (false, true) => {
            return Err(format!(
                "a duration needs its unit here, such as {text}s or {text}ms"
            ));
        }
        (true, true) => unit.of(text
            .parse()
            .map_err(|_| format!("more {} than orchd can hold", unit.name()))?),
        (true, false) => {
            return Err(format!(
                "this variable takes a whole number of {}, without a unit",
                unit.name()
            ));
        }
    };
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    Err(if from_env {
        format!(
            "must be {} to {} {}",
            unit.count(min),
            unit.count(max),
            unit.name()
        )
    } else {
        format!("must be {} to {}", show_duration(min), show_duration(max))
    })
}

/// Reads one value, knowing whether it came from the environment, and names the variable rather than the flag when it
/// did: whoever set a variable may never have seen the flag. Where few words are accepted, completions are told which.
#[derive(Clone)]
pub(super) struct Reader<F> {
    read: F,
    /// A word, and what it means.
    words: Vec<(&'static str, &'static str)>,
}

/// Reads whatever `read` accepts; it is told whether the text comes from the environment.
pub(super) fn reader<T, F>(read: F) -> Reader<F>
where
    F: Fn(&str, bool) -> Result<T, String>,
{
    let words = Vec::new();
    Reader { read, words }
}

impl<T, F> TypedValueParser for Reader<F>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(&str, bool) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        self.parse_ref_(cmd, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, clap::Error> {
        let from_env = source == ValueSource::EnvVariable;
        let read = self.read.clone();
        StringValueParser::new()
            .try_map(move |text| read(&text, from_env))
            .parse_ref(cmd, arg, value)
            .map_err(|mut error| {
                if let Some(name) = arg.and_then(clap::Arg::get_env).filter(|_| from_env) {
                    let name = ContextValue::String(name.to_string_lossy().into_owned());
                    error.insert(ContextKind::InvalidArg, name);
                }
                error
            })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.words.iter();
        let values = words.map(|(name, help)| PossibleValue::new(name).help(*help));
        (!self.words.is_empty()).then(|| Box::new(values) as Box<_>)
    }
}

/// A word that stands for a value, and what it means.
pub(super) type Word<T> = (&'static str, T, &'static str);

/// Reads one of a few words.
pub(super) fn words<T>(words: &'static [Word<T>]) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    let accepted = || {
        let names: Vec<&str> = words.iter().map(|(name, ..)| *name).collect();
        match names.split_last() {
            Some((last, [])) => format!("must be {last}"),
            Some((last, others)) => format!("must be {} or {last}", others.join(", ")),
            None => "takes no value".to_owned(),
        }
    };
    Reader {
        read: move |text: &str, _| {
            let found = words.iter().find(|(name, ..)| *name == text);
            found.map(|(_, value, _)| *value).ok_or_else(accepted)
        },
        words: words.iter().map(|(name, _, help)| (*name, *help)).collect(),
    }
}

pub(super) fn duration(
    unit: Unit,
    min: Duration,
    max: Duration,
) -> impl TypedValueParser<Value = Duration> {
    reader(move |text: &str, from_env| read_duration(text, from_env, unit, min, max))
}

pub(super) fn text<T>() -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: fmt::Display> + Clone + Send + Sync + 'static,
{
    reader(|text: &str, _| text.parse().map_err(|e: T::Err| e.to_string()))
}

pub(super) fn count(min: u32, max: u32) -> impl TypedValueParser<Value = u32> {
    reader(move |text: &str, _| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number, {min} to {max}")),
    })
}

pub(super) fn address() -> impl TypedValueParser<Value = SocketAddr> {
    reader(|text: &str, _| {
        text.parse().map_err(|_| {
            "must be an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned()
        })
    })
}

pub(super) fn cloud() -> impl TypedValueParser<Value = bool> {
    reader(|text: &str, _| match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("must be true, false, 1 or 0".to_owned()),
    })
}

/// A word of the column STATUS, as a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusWord {
    /// A status of the API.
    Status(NodeStatus),
    /// `Draining`, and the drain is done.
    Drained,
    /// Left, and a drain is still asked of it.
    Departed,
}

impl StatusWord {
    const ALL: [Self; 7] = [
        Self::Status(NodeStatus::ALL[0]),
        Self::Status(NodeStatus::ALL[1]),
        Self::Status(NodeStatus::ALL[2]),
        Self::Status(NodeStatus::ALL[3]),
        Self::Status(NodeStatus::ALL[4]),
        Self::Drained,
        Self::Departed,
    ];

    /// The word, as it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status(status) => status.as_str(),
            Self::Drained => "Drained",
            Self::Departed => "Departed",
        }
    }
}

/// Reads a status word in any case.
#[derive(Clone)]
pub(super) struct StatusParser;

impl TypedValueParser for StatusParser {
    type Value = StatusWord;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<StatusWord, clap::Error> {
        let words =
            clap::builder::PossibleValuesParser::new(StatusWord::ALL.map(StatusWord::as_str));
        let word = words.parse_ref(cmd, arg, value)?;
        Ok(StatusWord::ALL
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(&word))
            .expect("the word is one of theirs"))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            StatusWord::ALL
                .into_iter()
                .map(|status| PossibleValue::new(status.as_str())),
        ))
    }
}
