//! `orchd nodes list`: the fleet as a table, JSON, YAML or names.
//!
//! Invariants: JSON and YAML are the control plane's answer, all pages of it as one; the table is a pure function of
//! the answer, the time and the width. Called by `nodes::run`, and by tests that hold the table against golden copies.

use std::collections::BTreeSet;
use std::process::ExitCode;

use crate::cli::{NodesListArgs, OutputFormat};
use crate::client::{Client, NodesQuery};
use crate::commands::failure::Exit;
use crate::commands::output::{self, Column, Tone};
use crate::types::{DrainState, Gpu, HealthStatus, NodeStatus, NodeView, UnixMs};

/// The columns, narrow ones that tell most first to stay. `wide` adds those after [`NARROW`].
const COLUMNS: [Column; 13] = [
    column("NAME", 0, Some(28), false),
    column("STATUS", 0, None, false),
    column("GPUS", 3, Some(10), false),
    column("VRAM-FREE", 4, None, true),
    column("POOLS", 5, None, true),
    column("SLOTS", 0, None, true),
    column("MODELS", 1, Some(12), false),
    column("SEEN", 2, None, false),
    column("AGE", 6, None, false),
    column("VERSION", 7, None, false),
    column("ADDRESS", 8, None, false),
    column("MACHINE", 9, None, false),
    column("LABELS", 10, None, false),
];
/// How many of the columns are not for `wide` alone.
const NARROW: usize = 10;
/// What stands where there is nothing to say.
const NOTHING: &str = "-";

const fn column(
    title: &'static str,
    drop_order: u8,
    shrink_to: Option<u16>,
    right: bool,
) -> Column {
    Column {
        title,
        drop_order,
        shrink_to,
        right,
    }
}

pub(super) async fn run(args: NodesListArgs, client: Client) -> anyhow::Result<ExitCode> {
    let query = NodesQuery {
        status: args.status.clone(),
    };
    let list = client.nodes(&query).await?;
    let text = match args.output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(&list)?),
        OutputFormat::Yaml => yaml_serde::to_string(&list)?,
        OutputFormat::Name => names(&list.nodes),
        OutputFormat::Table | OutputFormat::Wide if list.nodes.is_empty() => String::new(),
        OutputFormat::Table | OutputFormat::Wide => {
            let now =
                UnixMs(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default());
            let layout = Layout {
                wide: args.output == OutputFormat::Wide,
                headers: !args.no_headers,
                width: output::terminal_width(),
                color: true,
            };
            table(&list.nodes, now, layout)
        }
    };
    output::data(&text)?;
    if list.nodes.is_empty() && !matches!(args.output, OutputFormat::Json | OutputFormat::Yaml) {
        if args.status.is_empty() {
            output::note("no nodes");
            output::hint(&format!(
                "on a GPU host: orchd agent --server {} --engine http://127.0.0.1:8081",
                client.server()
            ));
        } else {
            let words: Vec<&str> = args.status.iter().map(|status| status.as_str()).collect();
            output::note(&format!("no nodes that are {}", words.join(" or ")));
        }
    }
    Ok(Exit::Done.into())
}

fn names(nodes: &[NodeView]) -> String {
    nodes.iter().fold(String::new(), |mut text, node| {
        text.push_str(node.node_id.as_str());
        text.push('\n');
        text
    })
}

/// How to draw the table.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// All columns, whatever the width.
    pub wide: bool,
    /// With the line of column names.
    pub headers: bool,
    /// Columns of the terminal; `None` when nothing has to fit.
    pub width: Option<u16>,
    /// With colours.
    pub color: bool,
}

/// Draws the table of nodes. `now` is the wall clock, for AGE.
#[must_use]
pub fn table(nodes: &[NodeView], now: UnixMs, layout: Layout) -> String {
    let count = if layout.wide { COLUMNS.len() } else { NARROW };
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let mut row = row(node, now, layout.wide);
            row.truncate(count);
            row
        })
        .collect();
    let width = layout.width.filter(|_| !layout.wide);
    output::table(
        &COLUMNS[..count],
        &rows,
        layout.headers,
        width,
        layout.color,
    )
}

fn row(node: &NodeView, now: UnixMs, wide: bool) -> Vec<(String, Tone)> {
    let plain = |text: String| (text, Tone::Plain);
    let labels: Vec<String> = node
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    vec![
        plain(node.node_id.to_string()),
        status(node),
        plain(gpus(&node.capabilities.gpus)),
        plain(vram_free(node)),
        plain(pools(node)),
        plain(slots(node)),
        plain(models(node, wide)),
        plain(
            node.last_heartbeat_age_ms
                .map_or(NOTHING.to_owned(), |ms| format!("{} ago", age(ms))),
        ),
        plain(age(now.0.saturating_sub(node.registered_at_ms.0))),
        plain(node.version.clone().unwrap_or(NOTHING.to_owned())),
        plain(
            node.address
                .as_ref()
                .map_or(NOTHING.to_owned(), ToString::to_string),
        ),
        plain(node.machine_id.clone()),
        plain(if labels.is_empty() {
            NOTHING.to_owned()
        } else {
            labels.join(",")
        }),
    ]
}

/// The one word, and what it hides.
fn status(node: &NodeView) -> (String, Tone) {
    let drained = node
        .drain
        .as_ref()
        .map(|drain| drain.state == DrainState::Drained);
    let mut text = match (node.status, drained) {
        (NodeStatus::Draining, Some(true)) => "Drained".to_owned(),
        (NodeStatus::Draining, _) | (_, None) => node.status.as_str().to_owned(),
        (word, Some(true)) => format!("{},drained", word.as_str()),
        (word, Some(false)) => format!("{},draining", word.as_str()),
    };
    if node.suspect && node.status != NodeStatus::Offline {
        text.push_str(",suspect");
    }
    let degraded = node
        .health
        .as_ref()
        .is_some_and(|health| health.status == HealthStatus::Degraded);
    if degraded {
        text.push_str(",degraded");
    }
    let tone = match node.status {
        NodeStatus::Offline | NodeStatus::Failed => Tone::Bad,
        NodeStatus::Online if !node.suspect && !degraded => Tone::Good,
        NodeStatus::Online | NodeStatus::Draining | NodeStatus::Registering => Tone::Warn,
    };
    (text, tone)
}

/// `2× H100 80GB HBM3`: equal cards counted, without the maker's name.
fn gpus(gpus: &[Gpu]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for gpu in gpus {
        let name = gpu.name.trim();
        let name = name.strip_prefix("NVIDIA ").unwrap_or(name);
        let name = name.strip_prefix("GeForce ").unwrap_or(name);
        let name = if name.is_empty() { "GPU" } else { name };
        match kinds.iter_mut().find(|(kind, _)| *kind == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    let texts: Vec<String> = kinds
        .iter()
        .map(|(name, count)| format!("{count}× {name}"))
        .collect();
    or_nothing(texts.join(", "))
}

/// What the engines report. A pool does not say which GPUs are its own: with more pools than GPUs some share one, and
/// adding up would count the same memory twice, so that the largest figure is shown instead.
fn vram_free(node: &NodeView) -> String {
    let reported = || {
        node.pool_status
            .iter()
            .filter_map(|pool| pool.status.vram_free_bytes)
    };
    let bytes = if reported().count() <= node.capabilities.gpus.len() {
        reported().reduce(u64::saturating_add)
    } else {
        reported().max()
    };
    bytes.map_or(NOTHING.to_owned(), size)
}

/// `ready/total`.
fn pools(node: &NodeView) -> String {
    let total = node.pool_status.len();
    if total == 0 {
        return NOTHING.to_owned();
    }
    let ready = node
        .pool_status
        .iter()
        .filter(|pool| pool.status.ready)
        .count();
    format!("{ready}/{total}")
}

/// `busy/total`: as last reported, and at least what the control plane itself runs there.
fn slots(node: &NodeView) -> String {
    if node.pool_status.is_empty() {
        return NOTHING.to_owned();
    }
    let (busy, total) = node
        .pool_status
        .iter()
        .fold((0u64, 0u64), |(busy, total), pool| {
            let slots = pool.status.slots_total.unwrap_or(1);
            let reported = pool
                .status
                .slots_free
                .map_or(0, |free| slots - free.min(slots));
            let here = reported.max(pool.running).min(slots);
            (busy + u64::from(here), total + u64::from(slots))
        });
    format!("{busy}/{total}")
}

/// The models of all pools; in the narrow table the first one and how many more.
fn models(node: &NodeView, wide: bool) -> String {
    let models: BTreeSet<&str> = node
        .pool_status
        .iter()
        .flat_map(|pool| &pool.status.models_available)
        .map(String::as_str)
        .collect();
    let mut all = models.iter();
    match (all.next(), models.len()) {
        (Some(first), 3..) if !wide => format!("{first} +{}", models.len() - 1),
        _ => or_nothing(models.into_iter().collect::<Vec<_>>().join(",")),
    }
}

fn or_nothing(text: String) -> String {
    if text.is_empty() {
        NOTHING.to_owned()
    } else {
        text
    }
}

/// A length of time in one unit, rounded down; two of a unit before the next one begins, so that 90 s do not show as
/// 1 m.
fn age(ms: u64) -> String {
    match ms / 1_000 {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// A size in MiB below one GiB, else in GiB, with one decimal below ten.
fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        0..GIB => format!("{} MiB", bytes / MIB),
        _ if bytes < 10 * GIB => {
            let tenths = bytes * 10 / GIB;
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
        _ => format!("{} GiB", bytes / GIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_stay_in_one_unit_until_two_of_the_next_are_full() {
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (7_199_999, "119m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn sizes_show_one_decimal_only_where_it_matters() {
        for (bytes, text) in [
            (0, "0 MiB"),
            (512 << 20, "512 MiB"),
            (1 << 30, "1.0 GiB"),
            ((75 << 30) / 10, "7.5 GiB"),
            ((10 << 30) - 1, "9.9 GiB"),
            (61 << 30, "61 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn equal_gpus_are_counted_without_the_makers_name() {
        let gpu = |name: &str| Gpu {
            name: name.to_owned(),
            ..Gpu::default()
        };
        assert_eq!(gpus(&[]), "-");
        assert_eq!(
            gpus(&[gpu("NVIDIA H100 80GB HBM3"), gpu("NVIDIA H100 80GB HBM3")]),
            "2× H100 80GB HBM3"
        );
        assert_eq!(
            gpus(&[
                gpu("NVIDIA GeForce RTX 4090"),
                gpu("NVIDIA RTX A6000"),
                gpu("")
            ]),
            "1× RTX 4090, 1× RTX A6000, 1× GPU"
        );
    }
}
