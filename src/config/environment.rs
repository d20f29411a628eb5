//! Variables that look like settings and are none.

use std::collections::BTreeSet;

use clap::{Arg, Command};

use crate::cli::OTHER_VARIABLES;

use super::file::nearest;

/// Prefixes of ours, and of the systems whose variables are taken over.
const PREFIXES: [&str; 3] = ["ORCHD_", "ORCHESTRATORD_", "LLORCH_"];
/// Variables that are read elsewhere than in the definition of the command line.
const ALSO_READ: [&str; 3] = ["ORCHD_LOG", OTHER_VARIABLES[0].1, OTHER_VARIABLES[1].1];

/// A warning for every variable of ours that nothing reads: most likely its name is misspelt.
pub(super) fn unknown(definition: &Command) -> Vec<String> {
    let mut known: BTreeSet<String> = ALSO_READ.map(str::to_owned).into();
    collect(definition, &mut known);
    let mut names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .filter(|name| !known.contains(name))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| match suggestion(&name, &known) {
            Some(near) => format!("the variable {name} is none of orchd's; is it {near}?"),
            None => format!("the variable {name} is none of orchd's and has no effect"),
        })
        .collect()
}

/// A variable of ours whose value is not UTF-8.
pub(super) fn not_text(definition: &Command) -> Option<String> {
    let mut known = BTreeSet::new();
    collect(definition, &mut known);
    known
        .into_iter()
        .find(|name| std::env::var_os(name).is_some_and(|value| value.to_str().is_none()))
}

/// The variable that was meant, whatever its prefix: what all of them have in common says nothing.
fn suggestion<'a>(name: &str, known: &'a BTreeSet<String>) -> Option<&'a String> {
    let near = nearest(bare(name), known.iter().map(|name| bare(name)))?;
    known.iter().find(|name| bare(name) == near)
}

fn bare(name: &str) -> &str {
    PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

fn collect(command: &Command, known: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(Arg::get_env);
    known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    for below in command.get_subcommands() {
        collect(below, known);
    }
}
