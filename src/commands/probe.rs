//! `orchd probe`: what an agent would report of this host.
//!
//! Invariant: the text is a pure function of what was found and the width. Called by `commands::run`, and by tests that
//! hold the text against golden copies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, Cells, Column, Tone};
use super::words::{NOTHING, or_nothing, size};
use super::{agent, door};
use crate::agent::inventory::{self, GpuReading, Report};
use crate::cli::{ConnectArgs, ProbeArgs, ProbeFormat};
use crate::clock::Clock;
use crate::engines::{self, Engine, Found};
use crate::types::{HealthReason, HealthStatus, NodeId, PoolState, PoolStatus};

const GPUS: [Column; 10] = [
    Column::new("GPU", 0, None, true),
    Column::new("NAME", 0, Some(16), false),
    Column::new("VRAM", 0, None, true),
    Column::new("FREE", 0, None, true),
    Column::new("UTIL", 1, None, true),
    Column::new("TEMP", 2, None, true),
    Column::new("POWER", 3, None, true),
    Column::new("CC", 4, None, true),
    Column::new("ECC", 5, None, false),
    Column::new("MIG", 6, None, false),
];

const POOLS: [Column; 8] = [
    Column::new("POOL", 0, Some(12), false),
    Column::new("STATE", 0, None, false),
    Column::new("SLOTS", 0, None, true),
    Column::new("CTX", 2, None, true),
    Column::new("MODELS", 1, Some(12), false),
    Column::new("VERSION", 4, None, false),
    Column::new("ENGINE", 0, Some(20), false),
    Column::new("FROM", 3, Some(12), false),
];

/// Everything, as programs read it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probed {
    /// The node's name in the fleet.
    pub node_id: NodeId,
    /// What tells this machine from others; none where an agent makes and keeps one at its first start.
    pub machine_id: Option<String>,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// The GPUs, the processors and the memory, and how they are.
    #[serde(flatten)]
    pub report: Report,
    /// The engines.
    pub pools: Vec<ProbedPool>,
    /// What was passed over, and why.
    pub passed_over: Vec<PassedOver>,
}

/// An engine as it would be reported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbedPool {
    /// As in a heartbeat; `url` is the engine's own.
    #[serde(flatten)]
    pub status: PoolStatus,
    /// `--engine`, or the name of its handoff file.
    pub from: String,
    /// What of its configuration costs its users something.
    pub advice: Vec<String>,
}

/// A handoff file that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Its name.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// Runs `orchd probe`.
///
/// # Errors
/// Options that do not go together; a stand-in for the GPUs that cannot be read; after all else was told, a directory of
/// handoff files that cannot be.
pub fn run(args: ProbeArgs, connect: &ConnectArgs) -> anyhow::Result<ExitCode> {
    door::trust(connect.api.ca.as_deref())?;
    let host = &args.host;
    let (node_id, machine_id) = agent::identity(host)?;
    let labels = host.label_map()?;
    let configured: Vec<Engine> = host
        .engine_specs()?
        .into_iter()
        .map(|spec| Engine::new(spec.name, spec.url))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let looks = async {
        let clock = Clock::new();
        let engines = engines::probe(configured, host.runtime.runtime_dir.clone(), clock);
        let mut reports = inventory::start(host.gpu_fixture.clone()).await?;
        let (first, engines) = tokio::join!(reports.changed(), engines);
        // It says itself what is wrong when none comes.
        drop(first);
        let report = reports.borrow().as_ref().clone();
        anyhow::Ok((report, engines))
    };
    let looked = runtime.block_on(looks);
    // A driver that does not answer is not waited for.
    runtime.shutdown_background();
    let (report, mut found) = looked?;
    let trouble = found.trouble.take();
    let probed = Probed::new(node_id, machine_id, labels, report, found);
    let text = match args.output {
        ProbeFormat::Json => format!("{}\n", serde_json::to_string_pretty(&probed)?),
        ProbeFormat::Yaml => yaml_serde::to_string(&probed)?,
        ProbeFormat::Table => describe(&probed, output::terminal_width(), true),
    };
    output::data(&text)?;
    let dir = host.runtime.runtime_dir.display();
    if let Some(trouble) = trouble {
        let message = format!("cannot read the directory of handoff files {dir}: {trouble}");
        return Err(Failure::new(Exit::Failed, message)
            .hint("an agent finds no handoff files there either: name a directory that it may read with --runtime-dir")
            .into());
    }
    if args.output == ProbeFormat::Table && probed.pools.is_empty() {
        output::hint(&format!(
            "name an engine with --engine http://127.0.0.1:PORT, or have its starter write a handoff file into {dir}"
        ));
    }
    Ok(Exit::Done.into())
}

impl Probed {
    fn new(
        node_id: NodeId,
        machine_id: Option<String>,
        labels: BTreeMap<String, String>,
        report: Report,
        found: Found,
    ) -> Self {
        let pools = found
            .engines
            .into_iter()
            .filter_map(|(source, engine, reading)| {
                let reading = reading?;
                let status = PoolStatus {
                    vram_free_bytes: report.vram_free(engine.device_mask.as_deref()),
                    url: Some(engine.url),
                    ..reading.status
                };
                Some(ProbedPool {
                    status,
                    from: source.to_string(),
                    advice: reading.advice,
                })
            });
        let pools = pools.collect();
        let passed_over = found.passed_over.into_iter();
        Self {
            node_id,
            machine_id,
            labels,
            pools,
            passed_over: passed_over
                .map(|passed| PassedOver {
                    file: passed.source.to_string(),
                    reason: passed.why,
                })
                .collect(),
            report,
        }
    }
}

/// What was found, for people.
#[must_use]
pub fn describe(probed: &Probed, width: Option<u16>, color: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let first = format!("{name:9}");
        let rest = " ".repeat(first.len());
        let value = output::printable(value);
        let _ = writeln!(text, "{}", output::wrapped(&first, &rest, &value, width));
    };
    line("Node:", probed.node_id.as_str());
    let machine = probed.machine_id.as_deref();
    line(
        "Machine:",
        machine.unwrap_or("this system has no id; an agent makes one and keeps it"),
    );
    let labels = probed
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let labels: Vec<String> = labels.collect();
    if !labels.is_empty() {
        line("Labels:", &labels.join(", "));
    }
    let report = &probed.report;
    let capabilities = &report.capabilities;
    let cores = capabilities
        .cpu_cores
        .map(|cores| format!("{cores} processors"));
    let memory = capabilities.ram_total_bytes;
    let memory = memory.map(|bytes| format!("{} of memory", size(bytes)));
    let hardware: Vec<String> = cores.into_iter().chain(memory).collect();
    line("Host:", &or_nothing(hardware.join(", ")));
    if let Some(driver) = &report.driver_version {
        let cuda = report.cuda_version.as_ref();
        let cuda = cuda.map_or(String::new(), |cuda| format!(", CUDA up to {cuda}"));
        line("Driver:", &format!("{driver}{cuda}"));
    }
    let health = match report.health.status {
        HealthStatus::Ok => "ok",
        HealthStatus::Degraded => "degraded",
        HealthStatus::Failed => "failed",
    };
    line("Health:", health);
    for HealthReason { code, message } in &report.health.reasons {
        line("", &format!("{code}: {message}"));
    }
    if let Some(note) = report.note {
        line("", note);
    }
    let gpus: Vec<Cells> = report.gpus.iter().map(gpu_row).collect();
    let pools: Vec<Cells> = probed.pools.iter().map(pool_row).collect();
    for (columns, rows, none) in [
        (&GPUS[..], gpus, "No GPUs."),
        (&POOLS[..], pools, "No engines."),
    ] {
        text.push('\n');
        if rows.is_empty() {
            text.push_str(none);
            text.push('\n');
        } else {
            text += &output::table(columns, &rows, true, width, color);
        }
    }
    let details = probed.pools.iter().flat_map(|pool| {
        let detail = pool.status.detail.iter().chain(&pool.advice);
        detail.map(|words| (pool.status.pool_id.to_string(), words))
    });
    let passed_over = probed.passed_over.iter();
    let passed_over = passed_over.map(|passed| (passed.file.clone(), &passed.reason));
    let notes: Vec<(String, &String)> = details.chain(passed_over).collect();
    if !notes.is_empty() {
        text.push_str("\nNotes:\n");
    }
    for (about, words) in notes {
        let (about, words) = (output::printable(&about), output::printable(words));
        let note = output::wrapped("  ", "    ", &format!("{about}: {words}"), width);
        let _ = writeln!(text, "{note}");
    }
    text
}

fn gpu_row(reading: &GpuReading) -> Cells {
    let plain = |text: String| (text, Tone::Plain);
    let told = |value: Option<String>| plain(value.unwrap_or(NOTHING.to_owned()));
    let watts = |milliwatts: u32| milliwatts.div_ceil(1_000);
    let power = reading.power_milliwatts.map(|drawn| {
        let limit = reading.power_limit_milliwatts;
        let limit = limit.map_or(String::new(), |limit| format!("/{}", watts(limit)));
        format!("{}{limit}W", watts(drawn))
    });
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let ecc = reading.ecc.map(|ecc| match ecc.uncorrected_errors {
        Some(errors) if errors > 0 => format!("{errors} errors"),
        _ => on(ecc.enabled),
    });
    let gpu = &reading.gpu;
    let name = (
        or_nothing(output::printable(&gpu.name)),
        if reading.trouble.is_some() {
            Tone::Bad
        } else {
            Tone::Plain
        },
    );
    let vram = Some(gpu.vram_total_bytes).filter(|&bytes| bytes > 0);
    vec![
        plain(gpu.device_id.to_string()),
        name,
        told(vram.map(size)),
        told(reading.vram_free_bytes.map(size)),
        told(reading.utilization_percent.map(|part| format!("{part}%"))),
        told(reading.temperature_celsius.map(|heat| format!("{heat}C"))),
        told(power),
        told(gpu.compute_capability.clone()),
        told(ecc),
        told(reading.mig.map(on)),
    ]
}

fn pool_row(pool: &ProbedPool) -> Cells {
    let plain = |text: String| (text, Tone::Plain);
    let status = &pool.status;
    let tone = match status.state {
        PoolState::Unreachable | PoolState::Misconfigured => Tone::Bad,
        _ if !status.ready => Tone::Warn,
        _ => Tone::Good,
    };
    let slots = match (status.slots_free, status.slots_total) {
        (Some(free), Some(total)) => format!("{}/{total}", total.saturating_sub(free)),
        (None, Some(total)) => format!("?/{total}"),
        (_, None) => NOTHING.to_owned(),
    };
    let context = status.n_ctx.map(|tokens| tokens.to_string());
    let version = status.engine_version.as_deref().map(output::printable);
    vec![
        plain(status.pool_id.to_string()),
        (status.state.as_str().to_owned(), tone),
        plain(slots),
        plain(context.unwrap_or(NOTHING.to_owned())),
        plain(or_nothing(status.models_available.join(","))),
        plain(version.unwrap_or(NOTHING.to_owned())),
        plain(
            status
                .url
                .as_ref()
                .map_or(NOTHING.to_owned(), ToString::to_string),
        ),
        plain(output::printable(&pool.from)),
    ]
}
