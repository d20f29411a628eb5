//! Completion from within: the scripts of `orchd completions` ask this executable what could stand next, and it asks the
//! control plane for the names of nodes.
//!
//! Invariants: it says nothing but candidates, whatever goes wrong; it asks for no longer than half a second; server and
//! token are those of the command line being completed, else of the environment, else of the configuration file. Called
//! by `main` before anything else, since a shell that completes wants an answer and nothing of what a command does.

use std::ffi::OsString;
use std::time::Duration;

use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use crate::cli;
use crate::client::{Client, NodesQuery};
use crate::commands::door;
use crate::config;
use crate::types::NodeView;

/// What a person waits for names after pressing a key.
const PATIENCE: Duration = Duration::from_millis(500);
/// The variable by which a shell says that it completes, and which shell it is.
pub const VARIABLE: &str = "COMPLETE";
/// The name of values that are nodes of the fleet.
const NODE: &str = "NODE";

/// Answers a shell that completes a command line, and ends the process; does nothing in any other process.
pub fn run() {
    // The name alone, so that the scripts do not depend on where they were made.
    CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .completer("orchd")
        .complete();
}

/// The command line, with names of nodes where they can be told.
fn command() -> clap::Command {
    cli::command()
        .mut_subcommand("nodes", |nodes| {
            nodes.mut_subcommands(|verb| {
                let wanted: fn(&NodeView) -> bool = match verb.get_name() {
                    "drain" => |node| node.drain.is_none(),
                    "undrain" => |node| node.drain.is_some(),
                    // A name that is there is not the one for a new node.
                    "register" => return verb,
                    _ => |_| true,
                };
                with_nodes(verb, wanted)
            })
        })
        .mut_subcommand("pools", |pools| {
            pools.mut_subcommands(|verb| with_nodes(verb, |_| true))
        })
        .mut_subcommand("events", |events| with_nodes(events, |_| true))
}

fn with_nodes(verb: clap::Command, wanted: fn(&NodeView) -> bool) -> clap::Command {
    verb.mut_args(|arg| {
        let is_node = arg
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name.as_str() == NODE));
        if is_node {
            arg.add(ArgValueCandidates::new(move || candidates(wanted)))
        } else {
            arg
        }
    })
}

fn candidates(wanted: fn(&NodeView) -> bool) -> Vec<CompletionCandidate> {
    let nodes = nodes().unwrap_or_default();
    nodes
        .iter()
        .filter(|node| wanted(node))
        .map(|node| {
            CompletionCandidate::new(node.node_id.as_str())
                .help(Some(node.status.as_str().to_owned().into()))
        })
        .collect()
}

/// The nodes there are; `None` for whatever reason.
fn nodes() -> Option<Vec<NodeView>> {
    // After the dashes stands what is being completed.
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    // A command line in the making lacks things; its global options are settings all the same, with those of the
    // environment and of the file.
    let mut whole: Vec<OsString> = vec!["orchd".into()];
    whole.extend(globals(&rejoined(words)));
    whole.extend(["pools".into(), "list".into()]);
    let connect = config::load(whole).ok()?.cli.connect;
    door::trust(connect.api.ca.as_deref()).ok()?;
    let guard = door::shown(connect.api.tokens()).ok()?;
    let client = Client::guarded(connect.servers, guard, PATIENCE).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let list = runtime.block_on(async {
        let query = NodesQuery::default();
        tokio::time::timeout(PATIENCE, client.nodes(&query)).await
    });
    Some(list.ok()?.ok()?.nodes)
}

/// The global options among the words, with their values.
fn globals(words: &[OsString]) -> Vec<OsString> {
    let definition = cli::command();
    let names: Vec<String> = definition
        .get_arguments()
        .filter(|arg| arg.is_global_set() && arg.get_action().takes_values())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    let mut found = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if names.iter().any(|name| *name == text) {
            found.push(word.clone());
            found.extend(words.next().cloned());
        } else if let Some((name, _)) = text.split_once('=')
            && names.iter().any(|other| other == name)
        {
            found.push(word.clone());
        }
    }
    found
}

/// Bash breaks words at `:` and `=`; an address comes in pieces, and is put together again.
fn rejoined(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let breaks = |word: &OsString| word == ":" || word == "=";
    let mut whole: Vec<OsString> = Vec::new();
    let mut open = false;
    for word in words {
        let is_break = breaks(&word);
        match whole.last_mut() {
            Some(last) if open || is_break => last.push(&word),
            _ => whole.push(word),
        }
        open = is_break;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_a_shell_broke_are_put_together() {
        let words = ["orchd", "--server", "http", ":", "//h", ":", "80", "nodes"];
        assert_eq!(
            rejoined(words.into_iter().map(OsString::from)),
            ["orchd", "--server", "http://h:80", "nodes"]
        );
        let words = ["orchd", "--server", "=", "http", ":", "//h", "nodes"];
        assert_eq!(
            rejoined(words.into_iter().map(OsString::from)),
            ["orchd", "--server=http://h", "nodes"]
        );
    }

    #[test]
    fn global_options_are_found_wherever_they_stand_with_their_values() {
        let words = [
            "orchd",
            "nodes",
            "--server=http://h",
            "get",
            "-o",
            "json",
            "--api-token",
            "t",
            "gpu",
        ]
        .map(OsString::from);
        assert_eq!(globals(&words), ["--server=http://h", "--api-token", "t"]);
    }
}
