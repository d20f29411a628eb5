//! `orchd nodes get`: everything that is known of a node.
//!
//! Invariant: as JSON and YAML one node is the control plane's answer, several are a list of them. Called by
//! `nodes::run`.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::list::Entry;
use super::{Failures, cells, find, reasons, unique};
use crate::cli::{DetailFormat, NodesGetArgs};
use crate::client::Client;
use crate::commands::output::{self, Cells, Column, Tone, printable};
use crate::commands::words::{NOTHING, age, or_nothing, size, stamp, wall_clock};
use crate::types::{HealthStatus, NodeView, UnixMs};

/// Width of the names in front.
const NAMES: usize = 12;

/// The columns of the pools of one node.
const POOLS: [Column; 7] = [
    Column::new("POOL", 0, Some(16), false),
    Column::new("STATE", 0, None, false),
    Column::new("SLOTS", 0, None, true),
    Column::new("CTX", 3, None, true),
    Column::new("VRAM-FREE", 2, None, true),
    Column::new("MODELS", 0, Some(12), false),
    Column::new("ENGINE", 1, None, false),
];

pub(super) async fn run(args: NodesGetArgs, client: Client) -> anyhow::Result<ExitCode> {
    let mut failures = Failures::default();
    let mut found = Vec::new();
    for node in unique(&args.nodes) {
        match find(&client, node).await {
            Ok(entry) => found.push(entry),
            Err(error) => failures.take(node, &error)?,
        }
    }
    let views: Vec<&NodeView> = found.iter().map(|entry| &entry.view).collect();
    // Of several that were asked for, one that was found is still a list.
    let single = (unique(&args.nodes).count() == 1)
        .then(|| views.first())
        .flatten();
    let text = match (args.output, single) {
        _ if found.is_empty() => String::new(),
        (DetailFormat::Json, Some(view)) => format!("{}\n", serde_json::to_string_pretty(view)?),
        (DetailFormat::Json, None) => format!("{}\n", serde_json::to_string_pretty(&views)?),
        (DetailFormat::Yaml, Some(view)) => yaml_serde::to_string(view)?,
        (DetailFormat::Yaml, None) => yaml_serde::to_string(&views)?,
        (DetailFormat::Name, _) => super::list::names(&found),
        (DetailFormat::Table, _) => {
            let now = wall_clock();
            let texts: Vec<String> = found
                .iter()
                .map(|entry| detail(entry, now, output::terminal_width(), true))
                .collect();
            texts.join("\n")
        }
    };
    output::data(&text)?;
    Ok(failures.exit().into())
}

/// One node for people. `now` is the wall clock.
#[must_use]
pub fn detail(entry: &Entry, now: UnixMs, width: Option<u16>, color: bool) -> String {
    let node = &entry.view;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let name = if name.is_empty() {
            String::new()
        } else {
            format!("{name}:")
        };
        let first = format!("{name:NAMES$}  ");
        let rest = " ".repeat(first.len());
        let _ = writeln!(text, "{}", output::wrapped(&first, &rest, value, width));
    };
    line("Name", node.node_id.as_str());
    let (word, tone) = cells::status(entry);
    let style = if color {
        tone.style()
    } else {
        anstyle::Style::new()
    };
    line("Status", &format!("{style}{word}{style:#}"));
    for (at, reason) in reasons::reasons(entry, now).iter().enumerate() {
        line(if at == 0 { "Because" } else { "" }, reason);
    }
    line("Last heard", &heard(node));
    let registered = format!(
        "{} ({} ago)",
        stamp(node.registered_at_ms),
        age(now.0.saturating_sub(node.registered_at_ms.0))
    );
    line("Registered", &registered);
    let address = node.address.as_ref().map(ToString::to_string);
    line(
        "Address",
        address
            .as_deref()
            .unwrap_or("none: the control plane probes its engines"),
    );
    line("Machine", &printable(&node.machine_id));
    line(
        "Version",
        &printable(node.version.as_deref().unwrap_or(NOTHING)),
    );
    let labels: Vec<String> = node
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    line("Labels", &printable(&or_nothing(labels.join(", "))));
    line("Hardware", &hardware(node));
    for (at, gpu) in node.capabilities.gpus.iter().enumerate() {
        let mut value = format!(
            "{}  {}, {}",
            gpu.device_id,
            gpu.name,
            size(gpu.vram_total_bytes)
        );
        if gpu.unified_memory == Some(true) {
            value.push_str(" shared with the machine");
        }
        for (word, version) in [("driver", &gpu.driver_version), ("CUDA", &gpu.cuda_version)] {
            if let Some(version) = version {
                let _ = write!(value, ", {word} {version}");
            }
        }
        if gpu.mig == Some(true) {
            value.push_str(", MIG");
        }
        line(if at == 0 { "GPUs" } else { "" }, &printable(&value));
    }
    let health = node.health.as_ref().map(|health| match health.status {
        HealthStatus::Ok => "ok",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Failed => "failed",
    });
    line("Health", health.unwrap_or("not told"));
    if node.pool_status.is_empty() {
        line("Pools", "none");
        return text;
    }
    text.push_str("Pools:\n");
    let rows: Vec<Cells> = node
        .pool_status
        .iter()
        .map(|pool| pool_row(node, pool))
        .collect();
    let inner = width.map(|width| width.saturating_sub(2));
    for row in output::table(&POOLS, &rows, true, inner, color).lines() {
        let _ = writeln!(text, "  {row}");
    }
    text
}

fn heard(node: &NodeView) -> String {
    match node.last_heartbeat_age_ms {
        Some(ms) => format!("{} ago", age(ms)),
        None => format!(
            "{}, before the control plane started",
            stamp(node.last_heartbeat_ms)
        ),
    }
}

fn hardware(node: &NodeView) -> String {
    let cores = node
        .capabilities
        .cpu_cores
        .map(|cores| format!("{cores} processors"));
    let memory = node
        .capabilities
        .ram_total_bytes
        .map(|bytes| format!("{} of memory", size(bytes)));
    let parts: Vec<String> = cores.into_iter().chain(memory).collect();
    or_nothing(parts.join(", "))
}

fn pool_row(node: &NodeView, pool: &crate::types::PoolStatusView) -> Cells {
    let status = &pool.status;
    let plain = |text: String| (text, Tone::Plain);
    let state = match status.state {
        crate::types::PoolState::Unknown if status.ready => "ready",
        crate::types::PoolState::Unknown => "not ready",
        state => state.as_str(),
    };
    let tone = match (status.ready, node.online) {
        (true, true) => Tone::Good,
        (true, false) => Tone::Warn,
        (false, _) => Tone::Bad,
    };
    vec![
        plain(status.pool_id.to_string()),
        (state.to_owned(), tone),
        plain(cells::slots(node, std::slice::from_ref(pool))),
        plain(
            status
                .n_ctx
                .map_or(NOTHING.to_owned(), |tokens| tokens.to_string()),
        ),
        plain(
            (status.vram_free_bytes.filter(|_| cells::is_heard(node)))
                .map_or(NOTHING.to_owned(), size),
        ),
        plain(or_nothing(status.models_available.join(","))),
        plain(match (&status.engine, &status.engine_version) {
            (Some(engine), Some(version)) => format!("{engine} {version}"),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => NOTHING.to_owned(),
        }),
    ]
}
