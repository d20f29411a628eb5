//! `orchd nodes drain`: ask for the drains, then wait for all of them with live progress.
//!
//! Invariants: every node is asked before any is waited for, so that none keeps getting requests while another drains;
//! a drain never depends on this process: Ctrl-C, `--timeout` and a lost connection end the waiting only. Called by
//! `nodes::run`.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar};
use tokio::time::Instant;

use super::progress::{set_message, spinning};
use super::{Failures, elapsed, find, select};
use crate::cli::{NodesDrainArgs, show_duration};
use crate::client::{Client, ClientError, NodesQuery};
use crate::commands::failure::{Exit, Failure};
use crate::commands::output;
use crate::commands::words::{counted, requests, stopwatch};
use crate::types::{DrainRequest, DrainState, DrainView, ErrorCode, NodeId, NodeView, millis};

/// How often a drain is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long a control plane may be away while a drain is waited for: enough for a restart of it.
const AWAY: Duration = Duration::from_secs(30);
/// From so many nodes on the list is read instead of each of them.
const FEW: usize = 5;
/// How many nodes are named in a message; of more, the first ones are.
const NAMED: usize = 8;
/// Rows of a terminal that are left to what was there before the progress, and to the line that counts the rest.
const SPARE_ROWS: usize = 3;

pub(super) async fn run(args: NodesDrainArgs, client: Client) -> anyhow::Result<ExitCode> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut waiting = Waiting::new(client);
    let work = async {
        waiting.ask(&args).await?;
        if args.detach {
            return waiting.detach();
        }
        waiting.wait().await
    };
    let outcome = tokio::select! {
        biased;
        result = work => {
            waiting.clear();
            return result;
        }
        _ = tokio::signal::ctrl_c() => Exit::Interrupted,
        () = elapsed(deadline) => Exit::GaveUp,
    };
    Ok(waiting.leave(outcome, args.timeout))
}

/// One node that is waited for.
struct Pending {
    node: NodeId,
    drain_id: String,
    asked: Instant,
    in_flight: u32,
    bar: Option<ProgressBar>,
    /// What was last said on stderr, so that only changes are said again.
    said: String,
}

/// The drains that were asked for and are not done.
struct Waiting {
    client: Client,
    bars: Option<MultiProgress>,
    pending: Vec<Pending>,
    failures: Failures,
    /// How many drains are done, and how many requests they let finish and cut.
    done: (usize, u32, u32),
    /// How many spinners fit the terminal.
    room: usize,
    /// The line that counts the nodes without a spinner.
    rest: Option<ProgressBar>,
    /// Since when the control plane has not answered.
    away: Option<Instant>,
}

/// What a look at a node says about its drain.
enum Look {
    Running(DrainView),
    Done(DrainView),
    /// Somebody ended it.
    Ended,
    /// The node was removed, and what was asked of it with it.
    Removed,
}

impl Waiting {
    fn new(client: Client) -> Self {
        Self {
            client,
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            pending: Vec::new(),
            failures: Failures::default(),
            done: (0, 0, 0),
            room: usize::from(Term::stderr().size().0)
                .saturating_sub(SPARE_ROWS)
                .max(1),
            rest: None,
            away: None,
        }
    }

    async fn ask(&mut self, args: &NodesDrainArgs) -> anyhow::Result<()> {
        let request = DrainRequest {
            reason: args.reason.clone(),
            requested_by: Some(requested_by()),
            deadline_ms: args.deadline.map(millis),
            force: args.force.then_some(true),
        };
        for node in select(&args.select, &self.client).await? {
            match self.client.drain(&node, &request).await {
                Ok(view) => self.asked(&node, view)?,
                Err(error) => self
                    .failures
                    .take(&node, &error)
                    .map_err(|failure| self.with_asked(failure))?,
            }
        }
        Ok(())
    }

    fn asked(&mut self, node: &NodeId, view: NodeView) -> anyhow::Result<()> {
        let Some(drain) = view.drain else {
            return Err(Failure::new(
                Exit::Failed,
                format!("{node} shows no drain after it was asked to"),
            )
            .into());
        };
        self.pending.push(Pending {
            node: node.clone(),
            drain_id: drain.id.clone(),
            asked: Instant::now(),
            in_flight: drain.in_flight,
            bar: None,
            said: String::new(),
        });
        Ok(())
    }

    /// When the asking breaks off half-way, those already asked must be named: their drains hold.
    fn with_asked(&self, failure: Failure) -> Failure {
        if self.pending.is_empty() {
            return failure;
        }
        Failure {
            message: format!("{} (already draining: {})", failure.message, self.names()),
            ..failure
        }
    }

    fn names(&self) -> String {
        named(
            self.pending.iter().map(|pending| pending.node.to_string()),
            " ",
        )
    }

    /// The command line that waits for what is left.
    fn again(&self) -> String {
        if self.pending.len() > NAMED {
            "the same command".to_owned()
        } else {
            format!("`orchd nodes drain {}`", self.names())
        }
    }

    fn detach(&mut self) -> anyhow::Result<ExitCode> {
        for pending in &self.pending {
            let requests = requests(pending.in_flight);
            output::data(&format!(
                "{} draining, {requests} in flight\n",
                pending.node
            ))?;
        }
        if !self.pending.is_empty() {
            output::hint(&format!(
                "wait for it with {}",
                self.again()
                    .replace("same command", "same command without --detach")
            ));
        }
        Ok(self.failures.exit().into())
    }

    async fn wait(&mut self) -> anyhow::Result<ExitCode> {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let several = self.pending.len() > 1;
        while !self.pending.is_empty() {
            ticks.tick().await;
            let Some(mut seen) = self.look_at_all().await? else {
                continue;
            };
            let mut at = 0;
            while at < self.pending.len() {
                let answer = match &mut seen {
                    Some(nodes) => match nodes.remove(&self.pending[at].node) {
                        Some(view) => Some(Some(view)),
                        // What is not in the list left.
                        None => self.look(at).await?,
                    },
                    None => self.look(at).await?,
                };
                let Some(view) = answer else {
                    at += 1;
                    continue;
                };
                match judge(view, &self.pending[at].drain_id) {
                    Look::Running(drain) => {
                        self.progress(at, &drain);
                        at += 1;
                    }
                    over => self.over(at, &over)?,
                }
            }
            self.count_rest();
        }
        self.clear();
        let (nodes, finished, cut) = self.done;
        if several {
            output::note(&format!(
                "{} drained: {} finished, {cut} cut",
                counted(nodes, "node"),
                requests(finished)
            ));
        }
        Ok(self.failures.exit().into())
    }

    /// Reads the list when there are too many nodes to look at each of them: `Some(None)` when there are not, `None` when
    /// the control plane is away for a moment.
    async fn look_at_all(&mut self) -> Result<Option<Option<HashMap<NodeId, NodeView>>>, Failure> {
        if self.pending.len() < FEW {
            return Ok(Some(None));
        }
        match self.client.nodes(&NodesQuery::default()).await {
            Ok(list) => {
                self.away = None;
                let nodes = list.nodes.into_iter();
                Ok(Some(Some(
                    nodes.map(|view| (view.node_id.clone(), view)).collect(),
                )))
            }
            Err(error) => {
                self.bear(0, &error)?;
                Ok(None)
            }
        }
    }

    /// Looks at one node. One that has left still drains, and may still run requests: `Some(None)` when nothing is known of
    /// it any more. `None` when the control plane is away for a moment.
    async fn look(&mut self, at: usize) -> Result<Option<Option<NodeView>>, Failure> {
        let view = match find(&self.client, &self.pending[at].node).await {
            Ok(entry) => Some(entry.view),
            Err(error) if error.code() == Some(ErrorCode::NodeNotFound) => None,
            Err(error) => {
                self.bear(at, &error)?;
                return Ok(None);
            }
        };
        self.away = None;
        Ok(Some(view))
    }

    /// Takes an error for a moment, or for the end of the waiting.
    fn bear(&mut self, at: usize, error: &ClientError) -> Result<(), Failure> {
        let since = *self.away.get_or_insert_with(Instant::now);
        if !error.may_pass() || since.elapsed() > AWAY {
            return Err(self.with_asked(Failure::from(error)));
        }
        self.say(at, &format!("{error}; the drain goes on, asking again"));
        Ok(())
    }

    /// Says how many nodes have no spinner, because the terminal is too small.
    fn count_rest(&mut self) {
        let shown = self.pending.iter().filter(|p| p.bar.is_some()).count();
        let more = self.pending.len() - shown;
        let Some(bars) = &self.bars else {
            return;
        };
        if more == 0 {
            if let Some(rest) = self.rest.take() {
                rest.finish_and_clear();
                bars.remove(&rest);
            }
            return;
        }
        let in_flight: u32 = self
            .pending
            .iter()
            .filter(|pending| pending.bar.is_none())
            .map(|pending| pending.in_flight)
            .sum();
        let rest = self
            .rest
            .get_or_insert_with(|| spinning(bars.add(ProgressBar::new_spinner())));
        let (nodes, requests) = (counted(more, "more node"), requests(in_flight));
        set_message(rest, &format!("and {nodes}: {requests} in flight"));
    }

    fn progress(&mut self, at: usize, drain: &DrainView) {
        let pending = &mut self.pending[at];
        pending.in_flight = drain.in_flight;
        let news = (drain.in_flight, drain.in_flight_at_start);
        let text = standing(drain);
        self.show(at, &format!("{news:?}"), &text);
    }

    fn say(&mut self, at: usize, text: &str) {
        self.show(at, text, text);
    }

    /// Shows how one drain stands: on the spinner's line, or as a line of its own when `news` are others than before.
    /// Times are none: they would be news with every look.
    fn show(&mut self, at: usize, news: &str, text: &str) {
        let shown = self.pending.iter().filter(|p| p.bar.is_some()).count();
        let pending = &mut self.pending[at];
        let elapsed = stopwatch(pending.asked.elapsed());
        let line = format!("{}: {text}, after {elapsed}", pending.node);
        let Some(bars) = &self.bars else {
            if pending.said != news {
                output::note(&line);
                news.clone_into(&mut pending.said);
            }
            return;
        };
        if pending.bar.is_none() && shown < self.room {
            // The line that counts the rest stays the last one.
            let bar = bars.insert(shown, ProgressBar::new_spinner());
            pending.bar = Some(spinning(bar));
        }
        if let Some(bar) = &pending.bar {
            set_message(bar, &line);
        }
    }

    /// One drain is over: says how, on stdout.
    fn over(&mut self, at: usize, look: &Look) -> anyhow::Result<()> {
        let pending = self.pending.remove(at);
        if let (Some(bars), Some(bar)) = (&self.bars, &pending.bar) {
            bar.finish_and_clear();
            bars.remove(bar);
        }
        let node = &pending.node;
        let write = || match look {
            Look::Done(drain) => output::data(&format!("{node} {}\n", summary(drain))),
            Look::Removed => {
                output::error(&format!(
                    "{node}: somebody removed the node before its drain was done"
                ));
                Ok(())
            }
            Look::Ended | Look::Running(_) => {
                output::error(&format!(
                    "{node}: somebody ended the drain before it was done"
                ));
                Ok(())
            }
        };
        match &self.bars {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        if let Look::Done(drain) = look {
            self.done.0 += 1;
            self.done.1 += drain.in_flight_at_start.saturating_sub(drain.cut);
            self.done.2 += drain.cut;
        }
        if matches!(look, Look::Ended | Look::Removed) {
            self.failures.first.get_or_insert(Exit::Failed);
        }
        Ok(())
    }

    /// Takes the spinners off the screen.
    fn clear(&self) {
        // One that still ticks would draw itself again.
        for bar in self
            .pending
            .iter()
            .filter_map(|p| p.bar.as_ref())
            .chain(&self.rest)
        {
            bar.finish_and_clear();
        }
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    /// Stops waiting before all is done, and says that the drains do not.
    fn leave(&self, exit: Exit, timeout: Option<Duration>) -> ExitCode {
        self.clear();
        let left = named(
            self.pending.iter().map(|pending| {
                format!(
                    "{} ({} in flight)",
                    pending.node,
                    requests(pending.in_flight)
                )
            }),
            ", ",
        );
        let what = match (exit, timeout) {
            (Exit::GaveUp, Some(timeout)) => {
                format!("not drained within {}", show_duration(timeout))
            }
            _ => "interrupted".to_owned(),
        };
        if left.is_empty() {
            return crate::commands::failure::show(&Failure::new(
                exit,
                format!("{what}: no drain was confirmed"),
            ));
        }
        crate::commands::failure::show(
            &Failure::new(exit, format!("{what}: {left}; the drain goes on"))
                .hint(format!("wait again with {}", self.again())),
        )
    }
}

/// What a view of the node, or the lack of one, says about the drain with this id.
fn judge(view: Option<NodeView>, drain_id: &str) -> Look {
    match view {
        None => Look::Removed,
        Some(NodeView {
            drain: Some(drain), ..
        }) if drain.id == drain_id => {
            if drain.state == DrainState::Drained {
                Look::Done(drain)
            } else {
                Look::Running(drain)
            }
        }
        Some(_) => Look::Ended,
    }
}

/// The first of many texts, and how many more there are.
fn named(texts: impl ExactSizeIterator<Item = String>, between: &str) -> String {
    let more = texts.len().saturating_sub(NAMED);
    let mut first: Vec<String> = texts.take(NAMED).collect();
    if more > 0 {
        first.push(format!("and {more} more"));
    }
    first.join(between)
}

/// How a drain stands that is not done: how many requests are left, how old the oldest one is, and when they end.
fn standing(drain: &DrainView) -> String {
    if drain.in_flight == 0 {
        return "no requests left, waiting for the agent to confirm".to_owned();
    }
    let time = |ms| stopwatch(Duration::from_millis(ms));
    let mut text = format!(
        "{} of {} left",
        drain.in_flight,
        requests(drain.in_flight_at_start)
    );
    if let Some(ms) = drain.oldest_ms {
        text += &format!(" (oldest {})", time(ms));
    }
    if let Some(ms) = drain.remaining_ms {
        text += &format!(", cut off in {}", time(ms));
    }
    text
}

fn summary(drain: &DrainView) -> String {
    let finished = drain.in_flight_at_start.saturating_sub(drain.cut);
    let unverified = if drain.unverified {
        "; unverified: its agent did not confirm it"
    } else {
        ""
    };
    format!(
        "drained: {} finished, {} cut{unverified}",
        requests(finished),
        drain.cut
    )
}

/// Who asks, as far as this machine can tell: `USER@HOST`.
fn requested_by() -> String {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let host = sysinfo::System::host_name().ok();
    match (user, host) {
        (Some(user), Some(host)) => format!("{user}@{host}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UnixMs;

    #[test]
    fn progress_tells_what_is_left_how_old_it_is_and_when_it_ends_and_fits_a_terminal() {
        let drain = |in_flight, remaining_ms, oldest_ms| DrainView {
            id: "d1".to_owned(),
            state: DrainState::Draining,
            reason: None,
            requested_by: None,
            started_at_ms: UnixMs(1),
            remaining_ms,
            in_flight,
            oldest_ms,
            in_flight_at_start: 5,
            cut: 0,
            unverified: false,
        };
        let usual = standing(&drain(3, Some(550_000), Some(125_000)));
        assert_eq!(
            usual,
            "3 of 5 requests left (oldest 2m05s), cut off in 9m10s"
        );
        let line = format!("- gpu-node-12: {usual}, after 50s");
        assert!(line.len() <= 80, "{line}");
        assert_eq!(standing(&drain(1, None, None)), "1 of 5 requests left");
        assert_eq!(
            standing(&drain(0, Some(1), None)),
            "no requests left, waiting for the agent to confirm"
        );
    }
}
