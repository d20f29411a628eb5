//! Settings: from flags, variables, the configuration file and defaults, in this order, to one parsed command line.
//!
//! Purpose: whatever the definition of the command line calls an option of `serve` or `agent`, or a global one, is a
//! setting, and may stand in the file under its long name with `_` for `-`. Invariants: the definition of the command
//! line is the only list of settings; a value of the file is read by the same reader as the flag, and stands in the
//! order of precedence below flags and variables; a mistake in the file is told with its line, and a secret is never
//! shown. Called by `commands`, for every command.
//!
//! The options that only say what one command shall do (`nodes list --output`) are no settings: `force = true` in a file
//! would surprise somebody some day. Commands take the global options from the file.

mod added;
mod aliases;
mod environment;
mod file;
mod provenance;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use crate::cli::{self, Cli};

pub use provenance::{Origin, Setting, Value};

use added::{Added, argument};

/// Verbs that need no settings, or load them themselves: a broken file must not keep anybody from looking at it.
const WITHOUT_FILE: [&str; 3] = ["completions", "config", "man"];
/// Settings at the top level that are not the agent's, although it has one of the same name: both listen, on different
/// addresses.
const NOT_AGENTS: [&str; 1] = ["listen"];
/// Options that are no settings.
const NO_SETTINGS: [&str; 3] = ["config", "help", "version"];

/// Why there are no settings. Exit code 2, unless it is a [`ConfigError::CommandLine`], which knows by itself.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line, or a variable; also help and version, which end a process as well.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is not TOML.
    #[error("{}, line {line}: not TOML: {reason}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// It has a key that is no setting.
    #[error("{}, line {line}: unknown key `{key}`", path.display())]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As written.
        key: String,
        /// What to write instead.
        hint: String,
    },
    /// One setting by two of its names.
    #[error("{}, lines {} and {}: `{}` and `{}` are one setting", path.display(), first.1, second.1, first.0, second.0)]
    Twice {
        /// Which file.
        path: PathBuf,
        /// The key that comes first, and its line, from 1.
        first: (String, usize),
        /// The other one.
        second: (String, usize),
    },
    /// A value that a setting does not take.
    #[error("{}, line {line}: invalid value {value} for `{key}`: {accepted}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Which setting.
        key: String,
        /// As written, unless it is a secret.
        value: String,
        /// What is accepted, as a sentence.
        accepted: String,
    },
    /// A secret that was to be said, and was not.
    #[error("`{key}` ({origin}) is empty")]
    Empty {
        /// Which setting.
        key: String,
        /// Where it came from.
        origin: Origin,
    },
    /// A variable that is not text.
    #[error("the variable {name} is not UTF-8 text")]
    NotText {
        /// Which.
        name: String,
    },
    /// A token and a file of tokens, and neither source is the stronger.
    #[error("both a token ({token}) and a file of tokens ({file}) are given")]
    TokenAndFile {
        /// Where the token came from.
        token: Origin,
        /// Where the file's name came from.
        file: Origin,
    },
    /// Settings of the file that exclude each other, or need one that is missing.
    #[error("the settings of {} do not go together: {reason}", path.display())]
    Combination {
        /// Which file.
        path: PathBuf,
        /// In terms of the flags.
        reason: String,
    },
}

impl ConfigError {
    /// The next step, where there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::UnknownKey { hint, .. } => Some(hint),
            Self::Twice { .. } => Some("leave one out"),
            Self::Read { .. } => Some("name another file with --config or ORCHD_CONFIG"),
            Self::Empty { .. } => Some("give it a value, or leave it out"),
            Self::TokenAndFile { .. } => {
                Some("leave one out: a file can hold several tokens, one a line")
            }
            _ => None,
        }
    }
}

/// A command line with its settings. Not to be shown as it is: `globals` may hold a token.
pub struct Loaded {
    /// What to do.
    pub cli: Cli,
    /// What somebody should know before.
    pub warnings: Vec<String>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Every setting of the verb, in the order of its help. Empty for verbs that have none.
    pub settings: Vec<Setting>,
    /// The global options that stand on the command line, as arguments.
    pub globals: Vec<OsString>,
}

/// Who takes settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Serve,
    Agent,
    /// A command: the global options only.
    Command,
}

/// Loads the settings for a command line, `arguments` being all of it, the program's name included.
///
/// # Errors
/// What is wrong with the command line, a variable or the file; and help and version, which are no mistakes.
pub fn load(arguments: impl IntoIterator<Item = OsString>) -> Result<Loaded, ConfigError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let definition = cli::command();
    let parser = if arguments.len() > 1 {
        definition.clone()
    } else {
        // Whoever asks for nothing is shown what there is. To the parser, variables are arguments.
        without_variables(definition.clone())
    };
    let first = parser.try_get_matches_from(&arguments);
    let (matches, complaint) = match first {
        Ok(matches) => (matches, None),
        // What is missing may be in the file.
        Err(complaint) if complaint.kind() == ErrorKind::MissingRequiredArgument => {
            let lenient = definition.clone().ignore_errors(true);
            (lenient.try_get_matches_from(&arguments)?, Some(complaint))
        }
        Err(complaint) if complaint.kind() == ErrorKind::InvalidUtf8 => {
            let name = environment::not_text(&definition);
            return Err(name.map_or(complaint.into(), |name| ConfigError::NotText { name }));
        }
        Err(complaint) => {
            let complaint = plain(complaint, &definition, &arguments);
            return Err(name_variable(complaint, &definition, &arguments).into());
        }
    };
    let complaint = complaint.map(|complaint| plain(complaint, &definition, &arguments));
    let given = arguments.clone();
    let (verb, leaf, leaf_matches) = descend(&definition, &matches);
    let globals = globals(&leaf, leaf_matches);
    if verb.is_none_or(|verb| WITHOUT_FILE.contains(&verb)) {
        if let Some(complaint) = complaint {
            return Err(complaint.into());
        }
        return Ok(Loaded {
            cli: Cli::from_arg_matches(&matches)?,
            warnings: Vec::new(),
            file: None,
            settings: Vec::new(),
            globals,
        });
    }
    let scope = match verb {
        Some("serve") => Scope::Serve,
        Some("agent" | "probe") => Scope::Agent,
        _ => Scope::Command,
    };
    let mut warnings = Vec::new();
    if scope != Scope::Command {
        warnings.extend(environment::unknown(&definition));
    }
    let named = leaf_matches
        .get_one::<PathBuf>("config")
        .map(PathBuf::as_path);
    let file = match file::find(named, &definition) {
        Ok(file) => file,
        // A file of the system's that only `serve` may read does not keep a person from asking it something.
        Err(e @ ConfigError::Read { .. }) if named.is_none() && scope == Scope::Command => {
            warnings.push(e.to_string());
            None
        }
        Err(e) => return Err(e),
    };
    let mut added = Added::default();
    added.alias(&leaf, leaf_matches)?;
    if let Some(file) = &file {
        warnings.extend(file.exposed_secret(&definition));
        added.settings_of(file, scope, &leaf, leaf_matches)?;
    }
    added.choose_tokens(&leaf, leaf_matches)?;
    // Behind `--` nothing is an option.
    let at = arguments
        .iter()
        .position(|argument| argument == "--")
        .unwrap_or(arguments.len());
    arguments.splice(at..at, added.arguments.into_values().flatten());
    let matches = definition
        .clone()
        .try_get_matches_from(&arguments)
        .map_err(|e| match (&file, &complaint) {
            (Some(file), None) => ConfigError::Combination {
                path: file.path.clone(),
                reason: first_paragraph(&e),
            },
            _ => plain(e, &definition, &given).into(),
        })?;
    let (_, leaf, leaf_matches) = descend(&definition, &matches);
    let settings = applicable(scope, &leaf)
        .filter_map(|arg| provenance::setting(arg, leaf_matches, &added.origins))
        .collect();
    Ok(Loaded {
        cli: Cli::from_arg_matches(&matches)?,
        warnings,
        file: file.map(|file| file.path),
        settings,
        globals,
    })
}

/// The definition as if no variable were set.
fn without_variables(definition: Command) -> Command {
    definition
        .mut_args(|arg| arg.env(Resettable::Reset))
        .mut_subcommands(without_variables)
}

/// What the parser complains of, with a usage that shows what has to be given: to the parser, what a variable sets is
/// given, and is shown as if it had to be.
fn plain(complaint: clap::Error, definition: &Command, arguments: &[OsString]) -> clap::Error {
    match without_variables(definition.clone()).try_get_matches_from(arguments) {
        Err(other) if other.kind() == complaint.kind() => other,
        // It is about a variable.
        _ => complaint,
    }
}

/// The verb, and the definition and matches of the command at the end of it.
fn descend<'a>(
    definition: &Command,
    matches: &'a ArgMatches,
) -> (Option<&'a str>, Command, &'a ArgMatches) {
    let (mut leaf, mut leaf_matches, mut verb) = (definition, matches, None);
    while let Some((name, below)) = leaf_matches.subcommand() {
        let Some(command) = leaf.find_subcommand(name) else {
            break;
        };
        verb = verb.or(Some(name));
        (leaf, leaf_matches) = (command, below);
    }
    (verb, leaf.clone(), leaf_matches)
}

/// The options that may stand in a file: those with a long name, in the order of the help.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|long| !NO_SETTINGS.contains(&long))
    })
}

/// The options of a command that are settings.
fn applicable(scope: Scope, leaf: &Command) -> impl Iterator<Item = &Arg> {
    options(leaf).filter(move |arg| scope != Scope::Command || arg.is_global_set())
}

/// An option's name in the file.
fn key(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

/// All names of an option in the file, that one first.
fn keys(arg: &Arg) -> impl Iterator<Item = String> {
    longs(arg).map(|long| long.replace('-', "_"))
}

/// All long names of an option, the shown one first.
fn longs(arg: &Arg) -> impl Iterator<Item = &str> {
    let others = arg.get_all_aliases().into_iter().flatten();
    arg.get_long().into_iter().chain(others)
}

/// An option whose value is not for everybody's eyes: the definition hides the value of its variable.
fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

fn globals(leaf: &Command, matches: &ArgMatches) -> Vec<OsString> {
    leaf.get_arguments()
        .filter(|arg| arg.is_global_set())
        .filter(|arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine))
        .flat_map(|arg| {
            let values = matches.get_raw(arg.get_id().as_str());
            let values = values.into_iter().flatten();
            values.map(|value| argument(arg, value)).collect::<Vec<_>>()
        })
        .collect()
}

fn first_paragraph(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    lines.join(" ")
}

/// Names the variable rather than the flag where no such flag was given: whoever set a variable may never have seen the
/// flag.
fn name_variable(
    mut error: clap::Error,
    definition: &Command,
    arguments: &[OsString],
) -> clap::Error {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let is_given = |arg: &Arg| {
        let mut given = arguments
            .iter()
            .filter_map(|a| a.to_str()?.strip_prefix("--"));
        given.any(|given| {
            longs(arg).any(|long| {
                given
                    .strip_prefix(long)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            })
        })
    };
    let by_verb = arguments
        .iter()
        .filter_map(|argument| definition.find_subcommand(argument))
        .chain([definition]);
    let variable = by_verb
        .flat_map(Command::get_arguments)
        .find(|arg| arg.to_string() == *named && !is_given(arg))
        .and_then(Arg::get_env)
        .map(|name| name.to_string_lossy().into_owned());
    if let Some(variable) = variable {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

/// Where a file is looked for when none is named, in this order.
#[must_use]
pub fn default_files() -> Vec<PathBuf> {
    directories::ProjectDirs::from("", "", "orchd")
        .map(|dirs| dirs.config_dir().join("config.toml"))
        .into_iter()
        .chain([Path::new("/etc/orchd/config.toml").to_owned()])
        .collect()
}

#[cfg(test)]
mod tests;
