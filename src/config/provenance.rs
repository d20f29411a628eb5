//! Every setting with its value in force and where that came from.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use crate::cli::{AliasArg, ByteSize, show_duration};

use super::{is_secret, key};

/// What is shown in place of a secret.
const MASK: &str = "********";

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its key in the file.
    pub key: String,
    /// Its option.
    pub flag: String,
    /// Its variable.
    pub variable: Option<String>,
    /// The value in force, as a flag takes it; secrets are masked.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// A value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// None.
    Unset,
    /// One.
    One(String),
    /// Those of an option that can be repeated.
    Many(Vec<String>),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(String),
    /// The environment.
    Variable(String),
    /// The configuration file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The program.
    Default,
    /// Made from something else, which this names.
    Derived(String),
    /// Nowhere: another setting takes its place, which came from there.
    Overruled(Box<Origin>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Variable(name) => write!(f, "env {name}"),
            Self::File { path, line } => write!(f, "file {}:{line}", path.display()),
            Self::Default => f.write_str("default"),
            Self::Derived(from) => write!(f, "derived: {from}"),
            Self::Overruled(by) => write!(f, "overruled by {by}"),
        }
    }
}

impl Origin {
    /// How strong it is: whichever says more of what somebody wants here and now wins.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Flag(_) => 3,
            Self::Variable(_) => 2,
            Self::File { .. } => 1,
            Self::Default | Self::Derived(_) | Self::Overruled(_) => 0,
        }
    }
}

/// Where the parser found an option's value.
pub(super) fn parsed(arg: &Arg, matches: &ArgMatches) -> Origin {
    match matches.value_source(arg.get_id().as_str()) {
        Some(ValueSource::CommandLine) => Origin::Flag(flag(arg)),
        Some(ValueSource::EnvVariable) => Origin::Variable(variable(arg).unwrap_or_default()),
        _ => Origin::Default,
    }
}

fn flag(arg: &Arg) -> String {
    format!("--{}", arg.get_long().unwrap_or_default())
}

fn variable(arg: &Arg) -> Option<String> {
    let name = arg.get_env()?;
    Some(name.to_string_lossy().into_owned())
}

/// The setting of an option, or `None` when it is of no use for its verb. `origins` has those that the parser does not
/// know: it was given them on the command line.
pub(super) fn setting(
    arg: &Arg,
    matches: &ArgMatches,
    origins: &HashMap<clap::Id, Origin>,
) -> Option<Setting> {
    let id = arg.get_id().as_str();
    let origin = origins.get(arg.get_id()).cloned();
    let origin = origin.unwrap_or_else(|| parsed(arg, matches));
    // What a shared file holds for others is no news here.
    if arg.is_hide_set() && matches!(origin, Origin::Default | Origin::File { .. }) {
        return None;
    }
    let mut values = values(id, matches);
    if is_secret(arg) {
        values.iter_mut().for_each(|value| {
            // An empty variable is no token, and nothing to hide.
            if !value.is_empty() {
                MASK.clone_into(value);
            }
        });
    }
    let value = if matches!(origin, Origin::Overruled(_)) {
        Value::Unset
    } else if matches!(arg.get_action(), ArgAction::Append) {
        Value::Many(values)
    } else {
        values.into_iter().next().map_or(Value::Unset, Value::One)
    };
    Some(Setting {
        key: key(arg),
        flag: flag(arg),
        variable: variable(arg),
        value,
        origin,
    })
}

/// Values as flags take them, whatever form they were given in.
fn values(id: &str, matches: &ArgMatches) -> Vec<String> {
    typed::<Duration>(id, matches, |duration| show_duration(*duration))
        .or_else(|| typed::<ByteSize>(id, matches, ToString::to_string))
        .or_else(|| typed::<AliasArg>(id, matches, ToString::to_string))
        .or_else(|| typed::<bool>(id, matches, ToString::to_string))
        .unwrap_or_else(|| {
            let raw = matches.get_raw(id).into_iter().flatten();
            raw.map(|value| value.to_string_lossy().into_owned())
                .collect()
        })
}

fn typed<T: Clone + Send + Sync + 'static>(
    id: &str,
    matches: &ArgMatches,
    show: impl Fn(&T) -> String,
) -> Option<Vec<String>> {
    let values = matches.try_get_many::<T>(id).ok()??;
    Some(values.map(show).collect())
}
