//! Variables that look like settings and are none.

use std::collections::BTreeSet;

use clap::{Arg, Command};

use super::file::nearest;

/// Prefixes of ours, and of the systems whose variables are taken over.
const PREFIXES: [&str; 3] = ["ORCHD_", "ORCHESTRATORD_", "LLORCH_"];
/// Variables that are read elsewhere than in the definition of the command line.
const ALSO_READ: [&str; 1] = ["ORCHD_LOG"];

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
        .map(
            |name| match nearest(&name, known.iter().map(String::as_str)) {
                Some(near) => format!("the variable {name} is none of orchd's; is it {near}?"),
                None => format!("the variable {name} is none of orchd's and has no effect"),
            },
        )
        .collect()
}

fn collect(command: &Command, known: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(Arg::get_env);
    known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    for below in command.get_subcommands() {
        collect(below, known);
    }
}
