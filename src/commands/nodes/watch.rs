//! `orchd nodes list --watch`: the list as it changes.
//!
//! Invariants: a terminal shows the whole list and is redrawn; a pipe gets the list once, and then the line of each node
//! that changed, aligned with the lines before. The list is read anew when an event says that something happened, and
//! every [`POLL`] besides, since slots and ages have no events and an older control plane tells none. A control plane
//! that goes away is waited for. Called by `list`.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use super::cells;
use super::list::{self, Entry, Fleet, Layout, Lines, Presence, Wanted};
use crate::cli::{NodesListArgs, OutputFormat};
use crate::client::{Client, ClientError, EventStream, EventsQuery};
use crate::commands::failure::Exit;
use crate::commands::output::{self, Tone};
use crate::commands::screen::Screen;
use crate::commands::words::{counted, wall_clock};
use crate::types::NodeId;

/// How often the list is read without any news.
const POLL: Duration = Duration::from_secs(1);
/// How much longer than one reading takes the next one waits at least, so that a large fleet is not read all the time.
const REST: u32 = 4;
/// Events come in groups; the list is read once for those of so short a time.
const SETTLE: Duration = Duration::from_millis(100);
/// When events that were lost are asked for again.
const RETRY: Duration = Duration::from_secs(2);
/// When events that were refused are asked for again: an older control plane may give way to a newer one.
const RETRY_REFUSED: Duration = Duration::from_secs(60);

pub(super) async fn run(args: &NodesListArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted.into()),
        _ = terminate.recv() => Ok(Exit::Interrupted.into()),
        _ = hang_up.recv() => Ok(Exit::Interrupted.into()),
        result = watch(args, client) => result,
    }
}

async fn watch(args: &NodesListArgs, client: Client) -> anyhow::Result<ExitCode> {
    let wanted = Wanted::of(args);
    // What is wrong from the start is said before the screen is taken.
    let first = list::ask(&client, &wanted).await?;
    let mut source = Source {
        changes: Changes {
            client: client.clone(),
            stream: None,
            retry: Instant::now(),
        },
        client,
        wanted,
        took: Duration::ZERO,
    };
    let screen = (args.output != OutputFormat::Name)
        .then(Screen::take)
        .flatten();
    match screen {
        Some(screen) => draw(args, &screen, first, &mut source).await,
        None => tell(args, first, &mut source).await,
    }
}

/// Redraws a terminal until it is gone.
async fn draw(
    args: &NodesListArgs,
    screen: &Screen,
    first: Fleet,
    source: &mut Source,
) -> anyhow::Result<ExitCode> {
    let mut resized = signal(SignalKind::window_change())?;
    let (mut fleet, mut trouble) = (first, None);
    loop {
        let picture = Picture {
            args,
            fleet: &fleet,
            trouble: trouble.as_deref(),
            server: source.client.server().as_str(),
        };
        let (rows, columns) = screen.size();
        if screen
            .show(&picture.lines(rows, columns, screen.color))
            .is_err()
        {
            return Ok(Exit::Done.into());
        }
        tokio::select! {
            _ = resized.recv() => {}
            next = source.next() => match next? {
                Ok(now) => (fleet, trouble) = (now, None),
                Err(error) => trouble = Some(error.to_string()),
            },
        }
    }
}

/// Writes a line per change until nobody reads them.
async fn tell(args: &NodesListArgs, first: Fleet, source: &mut Source) -> anyhow::Result<ExitCode> {
    let layout = list::layout(args);
    if let Some(hold) = &first.hold {
        output::warning(&list::hold_line(hold));
    }
    let text = match args.output {
        OutputFormat::Name => list::names(&first.entries),
        _ if first.entries.is_empty() => {
            output::note(&list::nobody(args));
            String::new()
        }
        _ => list::table(&first.entries, wall_clock(), layout),
    };
    if !output::stream(&text)? {
        return Ok(Exit::Done.into());
    }
    let mut headed = !first.entries.is_empty();
    let mut before = first;
    let mut away = false;
    loop {
        let now = match source.next().await? {
            Ok(now) => now,
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    output::note(&format!("{error}; asking again"));
                }
                continue;
            }
        };
        if std::mem::take(&mut away) {
            output::note("the control plane answers again");
        }
        match (&before.hold, &now.hold) {
            (None, Some(hold)) => output::warning(&list::hold_line(hold)),
            (Some(_), None) => output::note("the fleet hold is over"),
            _ => {}
        }
        let (entries, changed) = merged(&before, &now);
        let text = if args.output == OutputFormat::Name {
            let changed: Vec<Entry> = pick(&entries, &changed).cloned().collect();
            list::names(&changed)
        } else {
            let Lines { header, nodes } = list::draw(&entries, wall_clock(), layout);
            let header = header.filter(|_| !headed && !changed.is_empty());
            header
                .into_iter()
                .chain(pick(&nodes, &changed).flat_map(|(lines, _)| lines.clone()))
                .fold(String::new(), |text, line| text + &line + "\n")
        };
        headed |= !changed.is_empty();
        if !text.is_empty() && !output::stream(&text)? {
            return Ok(Exit::Done.into());
        }
        before = now;
    }
}

fn pick<'a, T>(all: &'a [T], at: &'a [usize]) -> impl Iterator<Item = &'a T> {
    at.iter().map(|&at| &all[at])
}

/// The nodes of both moments, those that are no longer there marked, and which of them changed.
fn merged(before: &Fleet, now: &Fleet) -> (Vec<Entry>, Vec<usize>) {
    let old: HashMap<&NodeId, &Entry> = before
        .entries
        .iter()
        .map(|entry| (&entry.view.node_id, entry))
        .collect();
    let mut entries = now.entries.clone();
    let gone = before.entries.iter().filter(|entry| {
        now.entries
            .binary_search_by(|other| other.view.node_id.cmp(&entry.view.node_id))
            .is_err()
    });
    entries.extend(gone.map(|entry| Entry {
        view: entry.view.clone(),
        presence: Presence::Gone,
    }));
    entries.sort_by(|a, b| a.view.node_id.cmp(&b.view.node_id));
    let changed = (0..entries.len())
        .filter(|&at| {
            let entry = &entries[at];
            old.get(&entry.view.node_id)
                .is_none_or(|old| news(old) != news(entry))
        })
        .collect();
    (entries, changed)
}

/// What of a node is worth a line when it changes: all that is shown but slots, memory and ages, which change with every
/// request and every second.
fn news(entry: &Entry) -> impl PartialEq {
    let node = &entry.view;
    let pools: Vec<_> = node
        .pool_status
        .iter()
        .map(|pool| {
            let status = &pool.status;
            (
                status.pool_id.clone(),
                status.ready,
                status.slots_total,
                status.models_available.clone(),
            )
        })
        .collect();
    (
        cells::status(entry).0,
        pools,
        cells::gpus(&node.capabilities.gpus),
        (node.version.clone(), node.address.clone()),
        (node.machine_id.clone(), node.labels.clone()),
    )
}

/// What a terminal shows.
struct Picture<'a> {
    args: &'a NodesListArgs,
    fleet: &'a Fleet,
    /// Why the list is not of now.
    trouble: Option<&'a str>,
    server: &'a str,
}

impl Picture<'_> {
    fn lines(&self, rows: u16, columns: u16, color: bool) -> Vec<String> {
        let style = |style: Style| if color { style } else { Style::new() };
        let painted = |how: Style, text: &str| {
            let how = style(how);
            format!("{how}{text}{how:#}")
        };
        let mut lines = vec![format!("{}  {}", self.title(color), self.server)];
        if let Some(trouble) = self.trouble {
            let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
            lines.push(painted(red, &format!("{trouble}; asking again")));
        }
        if let Some(hold) = &self.fleet.hold {
            let yellow = Style::new().fg_color(Some(AnsiColor::Yellow.into()));
            let text = output::wrapped("", "  ", &list::hold_line(hold), Some(columns));
            lines.extend(text.lines().map(|line| painted(yellow, line)));
        }
        lines.push(String::new());
        let rows = usize::from(rows);
        if self.fleet.entries.is_empty() {
            lines.push(list::nobody(self.args));
        } else {
            let layout = Layout {
                width: Some(columns),
                color,
                ..list::layout(self.args)
            };
            let drawn = list::draw(&self.fleet.entries, wall_clock(), layout);
            lines.extend(drawn.header);
            let room = rows.saturating_sub(lines.len());
            lines.extend(fitting(drawn.nodes, room));
        }
        lines.truncate(rows);
        lines
    }

    /// `200 nodes: 190 Online, 10 Offline`, most of the same word first.
    fn title(&self, color: bool) -> String {
        let mut kinds: Vec<(String, Tone, usize)> = Vec::new();
        for entry in &self.fleet.entries {
            let (word, tone) = cells::status(entry);
            match kinds.iter_mut().find(|(kind, ..)| *kind == word) {
                Some((.., count)) => *count += 1,
                None => kinds.push((word, tone, 1)),
            }
        }
        kinds.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        let bold = if color {
            Style::new().bold()
        } else {
            Style::new()
        };
        let parts: Vec<String> = kinds
            .iter()
            .map(|(word, tone, count)| {
                let style = if color { tone.style() } else { Style::new() };
                format!("{count} {style}{word}{style:#}")
            })
            .collect();
        let colon = if parts.is_empty() { "" } else { ": " };
        let total = counted(self.fleet.entries.len(), "node");
        format!("{bold}{total}{bold:#}{colon}{}", parts.join(", "))
    }
}

/// As many nodes as there is room for. When that is not all of them, those with bad news come first: they are what is
/// watched for.
fn fitting(mut nodes: Vec<(Vec<String>, Tone)>, room: usize) -> Vec<String> {
    let total: usize = nodes.iter().map(|(lines, _)| lines.len()).sum();
    if total <= room {
        return nodes.into_iter().flat_map(|(lines, _)| lines).collect();
    }
    nodes.sort_by_key(|(_, tone)| match tone {
        Tone::Bad => 0,
        Tone::Warn => 1,
        Tone::Good | Tone::Plain => 2,
    });
    let mut shown = Vec::new();
    let mut left = nodes.len();
    for (lines, _) in &nodes {
        // One line says how many are missing.
        if shown.len() + lines.len() + 1 > room {
            break;
        }
        shown.extend_from_slice(lines);
        left -= 1;
    }
    shown.push(format!("… and {}", counted(left, "more node")));
    shown
}

/// Where the list comes from.
struct Source {
    client: Client,
    changes: Changes,
    wanted: Wanted,
    took: Duration,
}

impl Source {
    /// The list when something may have changed; the inner error is one that may pass.
    async fn next(&mut self) -> Result<Result<Fleet, ClientError>, ClientError> {
        self.changes.wait(POLL.max(self.took * REST)).await;
        let begun = Instant::now();
        let answer = list::ask(&self.client, &self.wanted).await;
        self.took = begun.elapsed();
        match answer {
            // Something in between may answer while the control plane restarts.
            Err(error) if error.may_pass() || matches!(error, ClientError::NotOrchd { .. }) => {
                Ok(Err(error))
            }
            Err(error) => Err(error),
            Ok(fleet) => Ok(Ok(fleet)),
        }
    }
}

/// Says when it is time to look.
struct Changes {
    client: Client,
    stream: Option<EventStream>,
    /// When to ask for events again.
    retry: Instant,
}

impl Changes {
    /// Waits for an event, and no longer than this.
    async fn wait(&mut self, at_most: Duration) {
        let end = Instant::now() + at_most;
        if timeout_at(end, self.heard()).await.is_ok() {
            sleep(SETTLE).await;
            while let Some(stream) = &mut self.stream {
                match stream.next().now_or_never() {
                    Some(Ok(_)) => {}
                    // A lost stream says so again when it is next listened to.
                    Some(Err(_)) | None => break,
                }
            }
        }
    }

    async fn heard(&mut self) {
        loop {
            let Some(stream) = &mut self.stream else {
                tokio::time::sleep_until(self.retry).await;
                match self.client.events(&EventsQuery::default()).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) => {
                        let pause = if error.may_pass() {
                            RETRY
                        } else {
                            RETRY_REFUSED
                        };
                        self.retry = Instant::now() + pause;
                    }
                }
                continue;
            };
            if stream.next().await.is_ok() {
                return;
            }
            self.stream = None;
            self.retry = Instant::now() + RETRY;
        }
    }
}
