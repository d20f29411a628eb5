//! `orchd nodes wait`, and the waiting of `orchd nodes register --wait`.
//!
//! Invariants: a node that must be there and is unknown ends the command at once, since a mistyped name never comes;
//! one that was seen may be away for a moment, as while its agent or the control plane restarts. Called by
//! `nodes::run` and `register`.

use std::process::ExitCode;
use std::time::Duration;

use super::list::{Entry, Presence};
use super::progress::{Away, Spinner};
use super::{Failures, cells, elapsed, find};
use crate::cli::{Wanted, show_duration};
use crate::client::Client;
use crate::commands::failure::{self, Exit, Failure};
use crate::commands::output;
use crate::commands::words::{counted, stopwatch};
use crate::types::{DrainState, ErrorCode, NodeId, NodeStatus};
use tokio::time::Instant;

/// How often a node is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How many nodes are named in a line of progress.
const NAMED: usize = 3;

/// What is waited for.
pub(super) struct Goal {
    pub wanted: Wanted,
    /// Without a line on stdout for each node that gets there.
    pub quiet: bool,
    /// What holds although the waiting ended.
    pub on_timeout: &'static str,
}

struct Pending {
    node: NodeId,
    /// What it was when it was last looked at; empty before that.
    word: String,
}

pub(super) async fn run(
    nodes: Vec<NodeId>,
    goal: Goal,
    timeout: Option<Duration>,
    client: Client,
) -> anyhow::Result<ExitCode> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let spinner = Spinner::start();
    let mut pending: Vec<Pending> = nodes
        .into_iter()
        .map(|node| Pending {
            node,
            word: String::new(),
        })
        .collect();
    let outcome = tokio::select! {
        biased;
        result = wait(&mut pending, &goal, &client, &spinner) => {
            spinner.clear();
            return result;
        }
        _ = tokio::signal::ctrl_c() => Exit::Interrupted,
        () = elapsed(deadline) => Exit::GaveUp,
    };
    spinner.clear();
    let what = match (outcome, timeout) {
        (Exit::GaveUp, Some(timeout)) => {
            format!(
                "not {} within {}",
                goal.wanted.word(),
                show_duration(timeout)
            )
        }
        _ => "interrupted".to_owned(),
    };
    let holds = if goal.on_timeout.is_empty() {
        String::new()
    } else {
        format!("; {}", goal.on_timeout)
    };
    Ok(failure::show(&Failure::new(
        outcome,
        format!("{what}: {}{holds}", names(&pending, usize::MAX)),
    )))
}

/// What a look at a node says.
enum Look {
    There,
    NotYet(String),
    /// It will not get there any more.
    Never,
}

async fn wait(
    pending: &mut Vec<Pending>,
    goal: &Goal,
    client: &Client,
    spinner: &Spinner,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut failures = Failures::default();
    let mut away = Away::default();
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !pending.is_empty() {
        ticks.tick().await;
        let mut at = 0;
        while at < pending.len() {
            let Pending { node, word } = &pending[at];
            let entry = match find(client, node).await {
                Ok(entry) => Some(entry),
                Err(error) if error.code() == Some(ErrorCode::NodeNotFound) => {
                    if word.is_empty() && goal.wanted != Wanted::Gone {
                        failures.take(node, &error)?;
                        pending.remove(at);
                        continue;
                    }
                    None
                }
                Err(error) => {
                    spinner.say(&away.bear(error)?);
                    at += 1;
                    continue;
                }
            };
            if let Some(back) = away.over() {
                spinner.say(&back);
            }
            match look(entry.as_ref(), goal.wanted) {
                Look::There => {
                    if !goal.quiet {
                        let line = format!("{node} {}\n", goal.wanted.word());
                        spinner.suspend(|| output::data(&line))?;
                    }
                    pending.remove(at);
                }
                Look::NotYet(now) => {
                    pending[at].word = now;
                    at += 1;
                }
                Look::Never => {
                    spinner.suspend(|| {
                        output::error(&format!(
                            "{node} left the fleet and will not be {}",
                            goal.wanted.word()
                        ))
                    });
                    failures.first.get_or_insert(Exit::NotFound);
                    pending.remove(at);
                }
            }
        }
        if !pending.is_empty() && !away.is_away() {
            spinner.show(&format!(
                "waiting for {} to be {}: {}, {}",
                counted(pending.len(), "node"),
                goal.wanted.word(),
                names(pending, NAMED),
                stopwatch(begun.elapsed())
            ));
        }
    }
    Ok(failures.exit().into())
}

fn look(entry: Option<&Entry>, wanted: Wanted) -> Look {
    let Some(entry) = entry else {
        return match wanted {
            Wanted::Gone => Look::There,
            // An agent that restarts leaves and comes back.
            Wanted::Online => Look::NotYet("not registered".to_owned()),
            Wanted::Offline | Wanted::Drained => Look::Never,
        };
    };
    let node = &entry.view;
    let registered = entry.presence == Presence::Registered;
    let drained = node
        .drain
        .as_ref()
        .is_some_and(|drain| drain.state == DrainState::Drained);
    let there = match wanted {
        Wanted::Online => registered && node.online,
        Wanted::Offline if !registered => return Look::Never,
        Wanted::Offline => node.status == NodeStatus::Offline,
        Wanted::Drained => drained,
        Wanted::Gone => !registered,
    };
    if there {
        return Look::There;
    }
    let (mut word, _) = cells::status(entry);
    if wanted == Wanted::Drained && node.drain.is_none() {
        word.push_str(", no drain is asked");
    }
    Look::NotYet(word)
}

fn names(pending: &[Pending], most: usize) -> String {
    let mut names: Vec<String> = pending
        .iter()
        .take(most)
        .map(|pending| match pending.word.as_str() {
            "" => pending.node.to_string(),
            word => format!("{} ({word})", pending.node),
        })
        .collect();
    if pending.len() > most {
        names.push(format!("{} more", pending.len() - most));
    }
    names.join(", ")
}

impl Wanted {
    /// The word on the command line.
    fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Drained => "drained",
            Self::Gone => "gone",
        }
    }
}
