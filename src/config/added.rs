//! Settings that do not stand on the command line, put there as arguments: those of the file, of a variable's other name,
//! and what leaves one of two settings of which one is enough.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli;

use super::aliases;
use super::file::{Entry, File, Given};
use super::provenance::{self, Origin};
use super::{ConfigError, NOT_AGENTS, Scope, applicable, is_secret, key, keys, options};

/// The option that is a table in the file.
const ALIASES: &str = "aliases";

/// What the command line is given besides what stands there: settings from elsewhere, as arguments.
#[derive(Default)]
pub(super) struct Added {
    /// By option.
    pub arguments: BTreeMap<clap::Id, Vec<OsString>>,
    /// Where they came from.
    pub origins: HashMap<clap::Id, Origin>,
}

impl Added {
    /// Where an option's value came from, as far as is known by now; `None` when nothing sets it. An empty variable is as
    /// good as none: a file that sets it would else be undone by `NAME=` in somebody's environment.
    fn origin(&self, arg: &Arg, matches: &ArgMatches) -> Option<Origin> {
        if let Some(origin) = self.origins.get(arg.get_id()) {
            return Some(origin.clone());
        }
        let origin = provenance::parsed(arg, matches);
        let is_set = match origin {
            Origin::Variable(_) => {
                let mut values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
                values.any(|value| !value.is_empty())
            }
            Origin::Default => false,
            _ => true,
        };
        is_set.then_some(origin)
    }

    fn add(&mut self, arg: &Arg, arguments: Vec<OsString>, origin: Origin) {
        self.arguments.insert(arg.get_id().clone(), arguments);
        self.origins.insert(arg.get_id().clone(), origin);
    }

    /// The other variables of the token and of its file: as strong as the first ones, which are asked first.
    ///
    /// # Errors
    /// A token that is not text.
    pub fn alias(&mut self, leaf: &Command, matches: &ArgMatches) -> Result<(), ConfigError> {
        for (name, variable) in cli::OTHER_VARIABLES {
            let Some(arg) = find(leaf, name) else {
                continue;
            };
            let value = std::env::var_os(variable).filter(|value| !value.is_empty());
            if let (None, Some(value)) = (self.origin(arg, matches), value) {
                if is_secret(arg) && value.to_str().is_none() {
                    let name = variable.to_owned();
                    return Err(ConfigError::NotText { name });
                }
                let argument = argument(arg, &value);
                self.add(arg, vec![argument], Origin::Variable(variable.to_owned()));
            }
        }
        Ok(())
    }

    /// The settings of the file that neither a flag nor a variable sets.
    pub fn settings_of(
        &mut self,
        file: &File,
        scope: Scope,
        leaf: &Command,
        matches: &ArgMatches,
    ) -> Result<(), ConfigError> {
        let explicit: Vec<&Arg> = options(leaf)
            .filter(|arg| self.origin(arg, matches).is_some())
            .collect();
        for arg in applicable(scope, leaf) {
            let key = key(arg);
            let is_it = |entry: &&Entry| keys(arg).any(|key| key == entry.key);
            let top = || {
                let taken = scope != Scope::Agent || !NOT_AGENTS.contains(&key.as_str());
                file.top.iter().filter(|_| taken).find(is_it)
            };
            let own = || {
                let entries = file.agent.iter().filter(|_| scope == Scope::Agent);
                entries.into_iter().find(is_it)
            };
            let Some(entry) = own().or_else(top) else {
                continue;
            };
            // A flag or a variable that this one excludes is the stronger of the two.
            let outdone = explicit
                .iter()
                .any(|other| other.get_id() == arg.get_id() || exclude(leaf, arg, other));
            if outdone {
                continue;
            }
            let mut arguments = Vec::new();
            let words = if arg.get_id() == ALIASES {
                aliases::words(file, entry)?
            } else {
                words(file, entry, arg)?
            };
            for (line, value) in words {
                let Some(value) = value else {
                    // A switch that is on.
                    arguments.push(format!("--{}", arg.get_long().unwrap_or_default()).into());
                    continue;
                };
                let argument = argument(arg, OsStr::new(&value));
                try_value(leaf, &argument).map_err(|accepted| {
                    bad_value(file, line, entry, arg, &format!("'{value}'"), accepted)
                })?;
                arguments.push(argument);
            }
            let origin = Origin::File {
                path: file.path.clone(),
                line: entry.line,
            };
            self.add(arg, arguments, origin);
        }
        Ok(())
    }

    /// An empty variable is as good as none, an empty flag or key is a mistake: who forgot to fill in a secret has no door
    /// left open.
    fn refuse_empty(&self, arg: &Arg, matches: &ArgMatches) -> Result<(), ConfigError> {
        let is_empty = match self.origin(arg, matches) {
            Some(Origin::Flag(_)) => {
                let mut values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
                values.all(OsStr::is_empty)
            }
            Some(Origin::File { .. }) => {
                self.arguments.get(arg.get_id()) == Some(&vec![argument(arg, OsStr::new(""))])
            }
            _ => false,
        };
        match self.origin(arg, matches).filter(|_| is_empty) {
            Some(origin) => Err(ConfigError::Empty {
                key: key(arg),
                origin,
            }),
            None => Ok(()),
        }
    }

    /// Of a token and a file of tokens, the one from the stronger source.
    pub fn choose_tokens(
        &mut self,
        leaf: &Command,
        matches: &ArgMatches,
    ) -> Result<(), ConfigError> {
        for (token, file) in cli::TOKEN_OR_FILE {
            let (Some(token), Some(file)) = (find(leaf, token), find(leaf, file)) else {
                continue;
            };
            for arg in [token, file] {
                self.refuse_empty(arg, matches)?;
            }
            let origins = (self.origin(token, matches), self.origin(file, matches));
            let (Some(of_token), Some(of_file)) = origins else {
                continue;
            };
            let (loser, winner) = match of_token.rank().cmp(&of_file.rank()) {
                Ordering::Less => (token, of_file),
                Ordering::Greater => (file, of_token),
                Ordering::Equal => {
                    return Err(ConfigError::TokenAndFile {
                        token: of_token,
                        file: of_file,
                    });
                }
            };
            // A variable's value cannot be taken back, only outdone: an empty one is none.
            let nothing = argument(loser, OsStr::new(""));
            self.add(loser, vec![nothing], Origin::Overruled(winner.into()));
        }
        Ok(())
    }
}

fn find<'a>(command: &'a Command, id: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_id().as_str() == id)
}

fn exclude(leaf: &Command, one: &Arg, other: &Arg) -> bool {
    let conflicts = |a: &Arg, b: &Arg| {
        leaf.get_arg_conflicts_with(a)
            .iter()
            .any(|arg| arg.get_id() == b.get_id())
    };
    conflicts(one, other) || conflicts(other, one)
}

/// An entry as values in the syntax of flags, each with its line; a switch has none, and is left out when it is off.
fn words(
    file: &File,
    entry: &Entry,
    arg: &Arg,
) -> Result<Vec<(usize, Option<String>)>, ConfigError> {
    let bad = |accepted: &str| {
        let shown = entry.given.to_string();
        bad_value(file, entry.line, entry, arg, &shown, accepted.to_owned())
    };
    let is_switch = arg.get_num_args().is_some_and(|n| !n.takes_values());
    match &entry.given {
        Given::Bool(on) if is_switch => {
            let sets = !matches!(arg.get_action(), ArgAction::SetFalse);
            let given = (*on == sets).then_some((entry.line, None));
            Ok(given.into_iter().collect())
        }
        _ if is_switch => Err(bad("must be true or false")),
        Given::List(items) if matches!(arg.get_action(), ArgAction::Append) => items
            .iter()
            .map(|(line, item)| match item.word() {
                Some(word) => Ok((*line, Some(word))),
                None => Err(bad("must be a list of strings")),
            })
            .collect(),
        Given::List(_) => Err(bad("takes one value, not a list")),
        given => match given.word() {
            Some(word) => Ok(vec![(entry.line, Some(word))]),
            None => Err(bad("must be a string, a number, true or false")),
        },
    }
}

fn bad_value(
    file: &File,
    line: usize,
    entry: &Entry,
    arg: &Arg,
    shown: &str,
    accepted: String,
) -> ConfigError {
    let value = if is_secret(arg) { "(secret)" } else { shown };
    ConfigError::Value {
        path: file.path.clone(),
        line,
        key: entry.key.clone(),
        value: value.to_owned(),
        accepted,
    }
}

/// Lets the option's own reader have its say on a value.
fn try_value(leaf: &Command, argument: &OsStr) -> Result<(), String> {
    let probe = leaf.clone().no_binary_name(true);
    let Err(error) = probe.try_get_matches_from([argument]) else {
        return Ok(());
    };
    match error.kind() {
        // It goes with others, of which the probe has none: the whole decides.
        ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => Ok(()),
        _ => Err(accepted(&error)),
    }
}

/// What a reader says that it accepts.
fn accepted(error: &clap::Error) -> String {
    if let Some(reason) = std::error::Error::source(error) {
        return reason.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("must be one of {}", values.join(", "))
        }
        _ => "it must not be empty".to_owned(),
    }
}

/// `--name=value`.
pub(super) fn argument(arg: &Arg, value: &OsStr) -> OsString {
    let mut argument = OsString::from("--");
    argument.push(arg.get_long().unwrap_or_default());
    argument.push("=");
    argument.push(value);
    argument
}
