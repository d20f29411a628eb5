//! The configuration file: found, read, and its keys held against what there is.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Command;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, default_files, is_secret, key, options};

/// A file of settings is no larger; something else was named by mistake.
const MAX_BYTES: u64 = 1 << 20;
/// The table of the agent's own settings.
const AGENT: &str = "agent";
/// Names that are less alike than this are not offered for one another.
const ALIKE: f64 = 0.8;
/// Bits of a file's mode that let others than its owner read it.
const OTHERS_READ: u32 = 0o044;

/// A file of settings.
pub(super) struct File {
    pub path: PathBuf,
    /// By line.
    pub top: Vec<Entry>,
    /// The table `[agent]`, by line.
    pub agent: Vec<Entry>,
    read_by_others: bool,
}

/// A key with its value.
pub(super) struct Entry {
    pub key: String,
    /// From 1.
    pub line: usize,
    pub given: Given,
}

/// A value as TOML has it.
pub(super) enum Given {
    Text(String),
    /// As written, in decimal.
    Number(String),
    Bool(bool),
    /// Each with its line.
    List(Vec<(usize, Given)>),
    /// Each key with its line, by line.
    Table(Vec<(usize, String, Given)>),
    /// Nothing that a setting can be: a date.
    Other(&'static str),
}

impl Given {
    /// As a flag would have it.
    pub fn word(&self) -> Option<String> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text.clone()),
            Self::Bool(on) => Some(on.to_string()),
            Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }

    fn of(text: &str, value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.clone().into_owned()),
            DeValue::Integer(number) => Self::Number(
                i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            ),
            DeValue::Float(number) => Self::Number(number.as_str().to_owned()),
            DeValue::Boolean(on) => Self::Bool(*on),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(table) => {
                let mut entries: Vec<(usize, String, Self)> = table
                    .iter()
                    .map(|(name, value)| {
                        let given = Self::of(text, value.get_ref());
                        (line(text, &name.span()), name.get_ref().to_string(), given)
                    })
                    .collect();
                entries.sort_by_key(|(line, ..)| *line);
                Self::Table(entries)
            }
            DeValue::Array(items) => Self::List(
                items
                    .iter()
                    .map(|item| (line(text, &item.span()), Self::of(text, item.get_ref())))
                    .collect(),
            ),
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Number(text) => write!(f, "'{text}'"),
            Self::Bool(on) => write!(f, "'{on}'"),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(|(_, item)| item.to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Table(_) => f.write_str("(a table)"),
            Self::Other(what) => write!(f, "({what})"),
        }
    }
}

/// The line of a place in a text, from 1.
fn line(text: &str, span: &Range<usize>) -> usize {
    let before = text.get(..span.start).unwrap_or(text);
    before.bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// Reads the file that is named, else the first of the usual ones that is there.
pub(super) fn find(
    named: Option<&Path>,
    definition: &Command,
) -> Result<Option<File>, ConfigError> {
    if let Some(path) = named {
        return match read(path, definition) {
            Ok(file) => Ok(Some(file)),
            Err(Trouble::Read(e)) => Err(unreadable(path, &e)),
            Err(Trouble::Content(e)) => Err(e),
        };
    }
    for path in default_files() {
        match read(&path, definition) {
            Ok(file) => return Ok(Some(file)),
            Err(Trouble::Read(e))
                if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(Trouble::Read(e)) => return Err(unreadable(&path, &e)),
            Err(Trouble::Content(e)) => return Err(e),
        }
    }
    Ok(None)
}

enum Trouble {
    Read(std::io::Error),
    Content(ConfigError),
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    let reason = match error.kind() {
        ErrorKind::NotFound => "it does not exist".to_owned(),
        ErrorKind::IsADirectory => "it is a directory".to_owned(),
        ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        ErrorKind::FileTooLarge => format!("it is larger than {MAX_BYTES} bytes"),
        _ => error.to_string(),
    };
    ConfigError::Read {
        path: path.to_owned(),
        reason,
    }
}

fn read(path: &Path, definition: &Command) -> Result<File, Trouble> {
    let file = std::fs::File::open(path).map_err(Trouble::Read)?;
    let mode = file.metadata().map_err(Trouble::Read)?.permissions().mode();
    let mut text = String::new();
    let length = file
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(Trouble::Read)?;
    if length as u64 > MAX_BYTES {
        return Err(Trouble::Read(ErrorKind::FileTooLarge.into()));
    }
    let mut file = parse(path, &text, definition).map_err(Trouble::Content)?;
    file.read_by_others = mode & OTHERS_READ != 0;
    Ok(file)
}

fn parse(path: &Path, text: &str, definition: &Command) -> Result<File, ConfigError> {
    // The error's own display would quote the line, and with it perhaps a secret.
    let table = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
        path: path.to_owned(),
        line: e.span().map_or(1, |span| line(text, &span)),
        reason: e.message().trim().replace('\n', "; "),
    })?;
    let known = Known::of(definition);
    let (mut top, mut agent) = (Vec::new(), Vec::new());
    let mut unknown = BTreeMap::new();
    let mut take = |name: &Spanned<_>, value: &Spanned<DeValue<'_>>, agents: bool| {
        let name_text: &std::borrow::Cow<'_, str> = name.get_ref();
        let at = line(text, &name.span());
        if let Some(hint) = known.objection(name_text, value.get_ref(), agents) {
            unknown.insert(at, (name_text.to_string(), hint));
        }
        let entries = if agents { &mut agent } else { &mut top };
        entries.push(Entry {
            key: name_text.to_string(),
            line: at,
            given: Given::of(text, value.get_ref()),
        });
    };
    for (name, value) in table.get_ref() {
        match value.get_ref() {
            DeValue::Table(inner) if name.get_ref() == AGENT => {
                for (name, value) in inner {
                    take(name, value, true);
                }
            }
            _ => take(name, value, false),
        }
    }
    if let Some((line, (key, hint))) = unknown.pop_first() {
        return Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            line,
            key,
            hint,
        });
    }
    for entries in [&top, &agent] {
        if let Some((first, second)) = known.twice(entries) {
            return Err(ConfigError::Twice {
                path: path.to_owned(),
                first,
                second,
            });
        }
    }
    Ok(File {
        path: path.to_owned(),
        top,
        agent,
        read_by_others: false,
    })
}

impl File {
    /// A warning when others than the owner can read a secret.
    pub fn exposed_secret(&self, definition: &Command) -> Option<String> {
        let secrets = Known::of(definition).secrets;
        let exposed = self
            .top
            .iter()
            .chain(&self.agent)
            .filter(|_| self.read_by_others)
            .find(|entry| secrets.contains(&entry.key))?;
        let (key, path) = (&entry_name(exposed), self.path.display());
        Some(format!(
            "{path} holds {key}, and others than its owner can read it: chmod 600 {path}"
        ))
    }
}

fn entry_name(entry: &Entry) -> String {
    format!("`{}`", entry.key)
}

/// The keys there are.
struct Known {
    serve: Vec<String>,
    agent: Vec<String>,
    secrets: Vec<String>,
    /// The names of each setting that has several.
    others: Vec<Vec<String>>,
}

impl Known {
    fn of(definition: &Command) -> Self {
        let keys = |verb: &str| -> Vec<String> {
            let command = definition.find_subcommand(verb);
            command.into_iter().flat_map(options).map(key).collect()
        };
        let verbs = ["serve", AGENT].map(|verb| definition.find_subcommand(verb));
        Self {
            serve: keys("serve"),
            agent: keys(AGENT),
            secrets: verbs
                .into_iter()
                .flatten()
                .flat_map(options)
                .filter(|arg| is_secret(arg))
                .map(key)
                .collect(),
            others: definition
                .find_subcommand("serve")
                .into_iter()
                .flat_map(options)
                .map(|arg| super::keys(arg).collect())
                .filter(|names: &Vec<String>| names.len() > 1)
                .collect(),
        }
    }

    /// Two entries that are one setting, by line.
    fn twice(&self, entries: &[Entry]) -> Option<((String, usize), (String, usize))> {
        self.others.iter().find_map(|names| {
            let mut found: Vec<(String, usize)> = entries
                .iter()
                .filter(|entry| names.contains(&entry.key))
                .map(|entry| (entry.key.clone(), entry.line))
                .collect();
            found.sort_by_key(|(_, line)| *line);
            let mut found = found.into_iter();
            found.next().zip(found.next())
        })
    }

    /// Why a key cannot stand where it does, or `None`: what to do instead.
    fn objection(&self, name: &str, value: &DeValue<'_>, agents: bool) -> Option<String> {
        let is_other = self.others.iter().flatten().any(|key| key == name);
        let is_serves = is_other || self.serve.iter().any(|key| key == name);
        let is_agents = self.agent.iter().any(|key| key == name);
        if is_agents || (is_serves && !agents) {
            return None;
        }
        if is_serves {
            return Some(format!(
                "`{name}` is a setting of `orchd serve`: it stands at the top level, above [agent]"
            ));
        }
        if name == AGENT {
            return Some("the agent's own settings stand in one table, [agent]".to_owned());
        }
        if value.is_table() {
            return Some(
                "settings stand at the top level; the only tables are [agent], for the agent's own, and [aliases]"
                    .to_owned(),
            );
        }
        let serve = self.serve.iter().filter(|_| !agents);
        let near = nearest(name, self.agent.iter().chain(serve).map(String::as_str));
        Some(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                "a key is the long name of an option with _ for -; `orchd config show` lists them"
                    .to_owned()
            }
        })
    }
}

/// The name most like a misspelt one.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
