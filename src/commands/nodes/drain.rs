//! `orchd nodes drain`: ask for the drains, then wait for all of them with live progress.
//!
//! Invariants: every node is asked before any is waited for, so that none keeps getting requests while another drains;
//! a drain never depends on this process: Ctrl-C, `--timeout` and a lost connection end the waiting only. Called by
//! `nodes::run`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{Failures, unique};
use crate::cli::{NodesDrainArgs, show_duration};
use crate::client::{Client, ClientError};
use crate::commands::failure::{Exit, Failure};
use crate::commands::output;
use crate::types::{DrainRequest, DrainState, DrainView, ErrorCode, NodeId, NodeView};

/// How often a drain is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long a control plane may be away while a drain is waited for: enough for a restart of it.
const AWAY: Duration = Duration::from_secs(30);
/// Redraw interval of the spinner.
const TICK: Duration = Duration::from_millis(100);

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

async fn elapsed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
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
    /// Since when the control plane has not answered.
    away: Option<Instant>,
}

/// What a look at a node says about its drain.
enum Look {
    Running(DrainView),
    Done(DrainView),
    /// Somebody ended it.
    Ended,
    /// The node left the fleet.
    Left,
}

impl Waiting {
    fn new(client: Client) -> Self {
        Self {
            client,
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            pending: Vec::new(),
            failures: Failures::default(),
            away: None,
        }
    }

    async fn ask(&mut self, args: &NodesDrainArgs) -> anyhow::Result<()> {
        let request = DrainRequest {
            reason: args.reason.clone(),
            requested_by: Some(requested_by()),
            ..DrainRequest::default()
        };
        for node in unique(&args.nodes) {
            match self.client.drain(node, &request).await {
                Ok(view) => self.asked(node, view)?,
                Err(error) => self
                    .failures
                    .take(node, &error)
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
        let names: Vec<&str> = self
            .pending
            .iter()
            .map(|pending| pending.node.as_str())
            .collect();
        names.join(" ")
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
                "wait for it with `orchd nodes drain {}`",
                self.names()
            ));
        }
        Ok(self.failures.exit().into())
    }

    async fn wait(&mut self) -> anyhow::Result<ExitCode> {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.pending.is_empty() {
            ticks.tick().await;
            let mut at = 0;
            while at < self.pending.len() {
                let look = self.look(at).await?;
                match look {
                    None => at += 1,
                    Some(Look::Running(drain)) => {
                        self.progress(at, &drain);
                        at += 1;
                    }
                    Some(over) => self.over(at, &over)?,
                }
            }
        }
        Ok(self.failures.exit().into())
    }

    /// Looks at one node; `None` when the control plane is away for a moment.
    async fn look(&mut self, at: usize) -> anyhow::Result<Option<Look>> {
        let pending = &self.pending[at];
        let answer = self.client.node(&pending.node).await;
        let look = match answer {
            Ok(NodeView {
                drain: Some(drain), ..
            }) if drain.id == pending.drain_id => {
                if drain.state == DrainState::Drained {
                    Look::Done(drain)
                } else {
                    Look::Running(drain)
                }
            }
            Ok(_) => Look::Ended,
            Err(error) if error.code() == Some(ErrorCode::NodeNotFound) => Look::Left,
            Err(error) if passing(&error) => {
                let since = *self.away.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY {
                    return Err(self.with_asked(Failure::from(&error)).into());
                }
                self.say(at, &format!("{error}; the drain goes on, asking again"));
                return Ok(None);
            }
            Err(error) => return Err(self.with_asked(Failure::from(&error)).into()),
        };
        self.away = None;
        Ok(Some(look))
    }

    fn progress(&mut self, at: usize, drain: &DrainView) {
        self.pending[at].in_flight = drain.in_flight;
        let text = if drain.in_flight == 0 {
            "no requests left, waiting for the agent to confirm".to_owned()
        } else {
            format!(
                "{} in flight, {} at start",
                requests(drain.in_flight),
                drain.in_flight_at_start
            )
        };
        self.say(at, &text);
    }

    /// Shows how one drain stands: on the spinner's line, or as a line of its own when that is news.
    fn say(&mut self, at: usize, text: &str) {
        let pending = &mut self.pending[at];
        let elapsed = stopwatch(pending.asked.elapsed());
        let Some(bars) = &self.bars else {
            if pending.said != text {
                output::note(&format!("{}: {text}, after {elapsed}", pending.node));
                text.clone_into(&mut pending.said);
            }
            return;
        };
        let bar = pending.bar.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {wide_msg}")
                    .expect("a template of known keys"),
            );
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(format!("{}: {text}, {elapsed}", pending.node));
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
            Look::Left => output::data(&format!(
                "{node} left the fleet while it drained; the drain holds if it returns\n"
            )),
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
        if matches!(look, Look::Ended) {
            self.failures.first.get_or_insert(Exit::Failed);
        }
        Ok(())
    }

    /// Takes the spinners off the screen.
    fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    /// Stops waiting before all is done, and says that the drains do not.
    fn leave(&self, exit: Exit, timeout: Option<Duration>) -> ExitCode {
        self.clear();
        let left: Vec<String> = self
            .pending
            .iter()
            .map(|pending| {
                format!(
                    "{} ({} in flight)",
                    pending.node,
                    requests(pending.in_flight)
                )
            })
            .collect();
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
            &Failure::new(
                exit,
                format!("{what}: {}; the drain goes on", left.join(", ")),
            )
            .hint(format!(
                "wait again with `orchd nodes drain {}`",
                self.names()
            )),
        )
    }
}

/// Whether an error may pass while a drain is waited for.
fn passing(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Unreachable { .. } | ClientError::NoneAnswered { .. }
    ) || error
        .code()
        .is_some_and(|code| matches!(code, ErrorCode::ShuttingDown | ErrorCode::Internal))
}

fn requests(count: u32) -> String {
    match count {
        1 => "1 request".to_owned(),
        _ => format!("{count} requests"),
    }
}

/// How long a person has been waiting: `42s`, `7m05s`, `2h07m05s`.
fn stopwatch(elapsed: Duration) -> String {
    let s = elapsed.as_secs();
    match (s / 3_600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, s) => format!("{h}h{m:02}m{s:02}s"),
    }
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

    #[test]
    fn the_stopwatch_shows_seconds_to_the_end() {
        for (s, text) in [(0, "0s"), (59, "59s"), (425, "7m05s"), (7_625, "2h07m05s")] {
            assert_eq!(stopwatch(Duration::from_secs(s)), text);
        }
    }
}
