//! `orchd nodes list`: the fleet as a table, JSON, YAML or names.
//!
//! Invariants: JSON and YAML are the control plane's answer, all pages of it as one; the table is a pure function of
//! the answer, the time and the width. What is said of the whole fleet goes to stderr, so that every line on stdout
//! is about a node. Called by `nodes::run`, and by tests that hold the table against golden copies.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::Value;

use super::{cells, reasons, watch};
use crate::cli::{NodesListArgs, OutputFormat, StatusWord};
use crate::client::{Client, ClientError, NodesQuery};
use crate::commands::failure::Exit;
use crate::commands::output::{self, Cells, Column, Tone};
use crate::commands::words::{age, counted, wall_clock};
use crate::types::{DrainState, FleetHold, NodeId, NodeList, NodeStatus, NodeView, UnixMs};

/// The columns, narrow ones that tell most first to stay. `wide` adds those after [`NARROW`].
const COLUMNS: [Column; 13] = [
    Column::new("NAME", 0, Some(28), false),
    Column::new("STATUS", 0, None, false),
    Column::new("GPUS", 3, Some(10), false),
    Column::new("VRAM-FREE", 4, None, true),
    Column::new("POOLS", 5, None, true),
    Column::new("SLOTS", 0, None, true),
    Column::new("MODELS", 1, Some(12), false),
    Column::new("SEEN", 2, None, false),
    Column::new("AGE", 6, None, false),
    Column::new("VERSION", 7, None, false),
    Column::new("ADDRESS", 8, None, false),
    Column::new("MACHINE", 9, Some(12), false),
    Column::new("LABELS", 10, Some(16), false),
];
/// How many of the columns are not for `wide` alone.
const NARROW: usize = 10;

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It is registered.
    #[default]
    Registered,
    /// It left, and a drain is still asked of it.
    Departed,
    /// It was registered when it was last looked at.
    Gone,
}

/// A node of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// As the control plane shows it.
    pub view: NodeView,
    /// Whether it is there.
    pub presence: Presence,
}

impl From<NodeView> for Entry {
    fn from(view: NodeView) -> Self {
        Self {
            view,
            presence: Presence::Registered,
        }
    }
}

/// The fleet at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Fleet {
    /// By name.
    pub entries: Vec<Entry>,
    pub hold: Option<FleetHold>,
}

/// What of the fleet is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Of those that are registered; `None` when only others are wanted.
    registered: Option<NodesQuery>,
    /// Of those that left; `None` when they are not wanted.
    departed: Option<NodesQuery>,
    /// Of those under a drain, the ones that are done.
    drained_only: bool,
}

impl Wanted {
    /// What these options ask for. The control plane knows no `Drained`: it is `Draining`, of which some are left out
    /// here.
    pub(super) fn of(args: &NodesListArgs) -> Self {
        let named = |word| args.status.contains(&word);
        let mut statuses: Vec<NodeStatus> = Vec::new();
        for word in &args.status {
            let status = match word {
                StatusWord::Status(status) => *status,
                StatusWord::Drained => NodeStatus::Draining,
                StatusWord::Departed => continue,
            };
            if !statuses.contains(&status) {
                statuses.push(status);
            }
        }
        let query = NodesQuery {
            status: statuses,
            labels: super::label_pairs(&args.labels),
            departed: false,
        };
        let departed_only = query.status.is_empty() && !args.status.is_empty();
        let departed = with_departed(args).then(|| NodesQuery {
            departed: true,
            status: if named(StatusWord::Departed) {
                Vec::new()
            } else {
                query.status.clone()
            },
            ..query.clone()
        });
        Self {
            registered: (!departed_only).then_some(query),
            departed,
            drained_only: named(StatusWord::Drained)
                && !named(StatusWord::Status(NodeStatus::Draining)),
        }
    }

    fn takes(&self, node: &NodeView) -> bool {
        let drained = || {
            let state = node.drain.as_ref().map(|drain| drain.state);
            state == Some(DrainState::Drained)
        };
        !self.drained_only || node.status != NodeStatus::Draining || drained()
    }
}

fn with_departed(args: &NodesListArgs) -> bool {
    args.all || args.status.contains(&StatusWord::Departed)
}

/// Asks for the fleet.
pub(super) async fn ask(client: &Client, wanted: &Wanted) -> Result<Fleet, ClientError> {
    let mut fleet = Fleet::default();
    let mut entries: BTreeMap<NodeId, Entry> = BTreeMap::new();
    let mut registered = Vec::new();
    if let Some(query) = &wanted.registered {
        let list = client.nodes(query).await?;
        fleet.hold = list.fleet_hold;
        registered = list.nodes;
    }
    if let Some(query) = &wanted.departed {
        let nodes = client.nodes(query).await?.nodes.into_iter();
        for view in nodes.filter(|view| query.status.is_empty() || wanted.takes(view)) {
            let presence = Presence::Departed;
            entries.insert(view.node_id.clone(), Entry { view, presence });
        }
    }
    // A node that came back between the two answers is registered.
    for view in registered.into_iter().filter(|view| wanted.takes(view)) {
        entries.insert(view.node_id.clone(), view.into());
    }
    fleet.entries = entries.into_values().collect();
    Ok(fleet)
}

pub(super) async fn run(args: NodesListArgs, client: Client) -> anyhow::Result<ExitCode> {
    args.check()?;
    if args.watch {
        return watch::run(&args, client).await;
    }
    let fleet = ask(&client, &Wanted::of(&args)).await?;
    let text = match args.output {
        OutputFormat::Json => format!(
            "{}\n",
            serde_json::to_string_pretty(&answer(&fleet, with_departed(&args))?)?
        ),
        OutputFormat::Yaml => yaml_serde::to_string(&answer(&fleet, with_departed(&args))?)?,
        OutputFormat::Name => names(&fleet.entries),
        OutputFormat::Table | OutputFormat::Wide => {
            if let Some(hold) = &fleet.hold {
                output::warning(&hold_line(hold));
            }
            if fleet.entries.is_empty() {
                String::new()
            } else {
                table(&fleet.entries, wall_clock(), layout(&args))
            }
        }
    };
    output::data(&text)?;
    if fleet.entries.is_empty() && !matches!(args.output, OutputFormat::Json | OutputFormat::Yaml) {
        output::note(&nobody(&args));
        if unfiltered(&args) {
            output::hint(&format!(
                "on a GPU host: orchd agent --server {} --engine http://127.0.0.1:8081",
                client.server()
            ));
        }
    }
    Ok(Exit::Done.into())
}

fn unfiltered(args: &NodesListArgs) -> bool {
    args.status.is_empty() && args.labels.is_empty()
}

/// What is said of an empty list.
pub(super) fn nobody(args: &NodesListArgs) -> String {
    let mut text = "no nodes".to_owned();
    if !args.status.is_empty() {
        let words: Vec<&str> = args.status.iter().map(|status| status.as_str()).collect();
        text += &format!(" that are {}", words.join(" or "));
    }
    if !args.labels.is_empty() {
        text += &format!(" with {}", super::show_labels(&args.labels));
    }
    text
}

/// The answer of the control plane. With those that left, each node says whether it is one of them.
fn answer(fleet: &Fleet, all: bool) -> serde_json::Result<Value> {
    let nodes: Vec<NodeView> = fleet.entries.iter().map(|e| e.view.clone()).collect();
    let mut list = serde_json::to_value(NodeList {
        count: nodes.len(),
        total: nodes.len(),
        nodes,
        next: None,
        fleet_hold: fleet.hold.clone(),
    })?;
    if let Some(nodes) = list["nodes"].as_array_mut().filter(|_| all) {
        for (node, entry) in nodes.iter_mut().zip(&fleet.entries) {
            node["departed"] = (entry.presence == Presence::Departed).into();
        }
    }
    Ok(list)
}

pub(super) fn names(entries: &[Entry]) -> String {
    entries.iter().fold(String::new(), |text, entry| {
        text + entry.view.node_id.as_str() + "\n"
    })
}

/// What a fleet hold means, in one line.
pub(super) fn hold_line(hold: &FleetHold) -> String {
    format!(
        "fleet hold for {}: none of {} goes Offline for another {}, because so many fell silent at once: more likely \
         the fault is on the control plane's side (its network, perhaps) than on theirs",
        age(hold.since_ms),
        counted(hold.nodes, "silent node"),
        age(hold.ends_in_ms)
    )
}

pub(super) fn layout(args: &NodesListArgs) -> Layout {
    Layout {
        wide: args.output == OutputFormat::Wide,
        headers: !args.no_headers,
        width: output::terminal_width(),
        color: true,
        reasons: args.reasons,
    }
}

/// How to draw the table.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// All columns, whether they fit or not.
    pub wide: bool,
    /// With the line of column names.
    pub headers: bool,
    /// Columns of the terminal; `None` when nothing has to fit.
    pub width: Option<u16>,
    /// With colours.
    pub color: bool,
    /// With lines below each node that say why it is as it is.
    pub reasons: bool,
}

/// The table, drawn: the line of column names, and for each node its lines and how good its news are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines {
    pub header: Option<String>,
    pub nodes: Vec<(Vec<String>, Tone)>,
}

/// Draws the table of nodes, line by line.
pub(super) fn draw(entries: &[Entry], now: UnixMs, layout: Layout) -> Lines {
    let columns = output::columns(&COLUMNS, NARROW, layout.wide);
    let rows: Vec<Cells> = entries
        .iter()
        .map(|entry| {
            let mut row = cells::row(entry, now, layout.wide);
            row.truncate(columns.len());
            row
        })
        .collect();
    let (width, color) = (layout.width, layout.color);
    let drawn = output::draw(&columns, &rows, layout.headers, width, color);
    let nodes = entries
        .iter()
        .zip(drawn.rows)
        .map(|(entry, row)| {
            let mut lines = vec![row];
            if layout.reasons {
                for reason in reasons::reasons(entry, now) {
                    let text = output::wrapped("    ", "      ", &reason, layout.width);
                    lines.extend(text.lines().map(str::to_owned));
                }
            }
            (lines, cells::status(entry).1)
        })
        .collect();
    Lines {
        header: layout.headers.then_some(drawn.header),
        nodes,
    }
}

/// Draws the table of nodes. `now` is the wall clock, for AGE.
#[must_use]
pub fn table(entries: &[Entry], now: UnixMs, layout: Layout) -> String {
    let lines = draw(entries, now, layout);
    lines
        .header
        .iter()
        .chain(lines.nodes.iter().flat_map(|(lines, _)| lines))
        .fold(String::new(), |text, line| text + line + "\n")
}
