//! Aliases of models in the file: the one setting that is a table.

use crate::cli::AliasArg;
use crate::types::{Alias, check_aliases};

use super::ConfigError;
use super::file::{Entry, File, Given};

const ACCEPTED: &str = "must be a model, or a list of models, in quotes";
/// TOML takes `qwen3.5 = …` for a table `qwen3` with the key `5`.
const QUOTES: &str = "a name with a dot, a slash or a colon in it stands in quotes, too";

/// One alias as the file has it.
struct Written<'a> {
    line: usize,
    /// In a table: its key.
    name: Option<&'a str>,
    given: &'a Given,
}

impl Written<'_> {
    fn read(&self) -> Result<Alias, String> {
        match (self.name, self.given) {
            (Some(name), Given::Text(model)) => {
                Alias::new(name, [model.as_str()]).map_err(|e| e.to_string())
            }
            (Some(name), Given::List(items)) => {
                let models: Option<Vec<&str>> = (items.iter())
                    .map(|(_, item)| match item {
                        Given::Text(model) => Some(model.as_str()),
                        _ => None,
                    })
                    .collect();
                Alias::new(name, models.ok_or(ACCEPTED)?).map_err(|e| e.to_string())
            }
            (Some(_), Given::Table(_)) => Err(format!("{ACCEPTED}; {QUOTES}")),
            (Some(_), _) => Err(ACCEPTED.to_owned()),
            // As the flag takes it.
            (None, Given::Text(text)) => text.parse().map(|AliasArg(alias)| alias),
            (None, _) => Err("must be a table of names and the models they stand for".to_owned()),
        }
    }
}

/// The aliases as values of their flag, each with its line.
///
/// # Errors
/// What is no alias, or does not go together with the others.
pub(super) fn words(
    file: &File,
    entry: &Entry,
) -> Result<Vec<(usize, Option<String>)>, ConfigError> {
    let one = |line: &usize, name, given| Written {
        line: *line,
        name,
        given,
    };
    let written: Vec<Written<'_>> = match &entry.given {
        Given::Table(entries) => (entries.iter())
            .map(|(line, name, given)| one(line, Some(name.as_str()), given))
            .collect(),
        Given::List(items) => (items.iter())
            .map(|(line, given)| one(line, None, given))
            .collect(),
        given => vec![one(&entry.line, None, given)],
    };
    let bad = |written: &Written<'_>, accepted: String| ConfigError::Value {
        path: file.path.clone(),
        line: written.line,
        key: match written.name {
            Some(name) => format!("{}.{}", entry.key, name.escape_debug()),
            None => entry.key.clone(),
        },
        value: written.given.to_string(),
        accepted,
    };
    let mut aliases = Vec::with_capacity(written.len());
    for written in &written {
        aliases.push(written.read().map_err(|accepted| bad(written, accepted))?);
    }
    check_aliases(&aliases).map_err(|clash| bad(&written[clash.at()], clash.to_string()))?;
    let words = written.iter().zip(&aliases);
    Ok(words
        .map(|(written, alias)| (written.line, Some(AliasArg::argument(alias))))
        .collect())
}
