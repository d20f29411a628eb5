//! `orchd pools list` and `orchd models list`: what requests are routed to, in both profiles.
//!
//! Invariant: the tables are pure functions of the answers and the width. Called by `commands::run`, and by tests that
//! hold the tables against golden copies.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use super::failure::Exit;
use super::output::{self, Cells, Column, Tone};
use super::words::{NOTHING, or_nothing, size};
use crate::cli::{ModelsCommand, ModelsListArgs, OutputFormat, PoolsCommand, PoolsListArgs};
use crate::client::{Client, ModelList, ModelMeta};
use crate::types::{Availability, AvailableModel, PoolState, PoolView};

/// The columns of pools. `wide` adds those after [`NARROW_POOLS`].
const POOLS: [Column; 13] = [
    Column::new("NODE", 0, Some(20), false),
    Column::new("POOL", 0, Some(12), false),
    Column::new("STATE", 0, None, false),
    Column::new("SLOTS", 0, None, true),
    Column::new("WAITING", 2, None, true),
    Column::new("MODELS", 1, Some(12), false),
    Column::new("CTX", 4, None, true),
    Column::new("VRAM-FREE", 3, None, true),
    Column::new("ENGINE", 5, None, false),
    Column::new("RUNNING", 0, None, true),
    Column::new("EXTERNAL", 0, None, true),
    Column::new("VERSION", 0, None, false),
    Column::new("URL", 0, None, false),
];
const NARROW_POOLS: usize = 9;

/// The columns of models; `wide` adds the last one.
const MODELS: [Column; 6] = [
    Column::new("MODEL", 0, Some(16), false),
    Column::new("STATE", 0, None, false),
    Column::new("NODES", 1, None, true),
    Column::new("SLOTS", 0, None, true),
    Column::new("CTX", 2, None, true),
    Column::new("ON", 0, None, false),
];
const NARROW_MODELS: usize = 5;

/// How to draw a table.
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
}

impl Layout {
    fn of(output: OutputFormat, no_headers: bool) -> Self {
        Self {
            wide: output == OutputFormat::Wide,
            headers: !no_headers,
            width: output::terminal_width(),
            color: true,
        }
    }

    fn draw(self, columns: &[Column], narrow: usize, mut rows: Vec<Cells>) -> String {
        let columns = output::columns(columns, narrow, self.wide);
        for row in &mut rows {
            row.truncate(columns.len());
        }
        output::table(&columns, &rows, self.headers, self.width, self.color)
    }
}

/// Runs `orchd pools …`.
pub(super) async fn pools(command: PoolsCommand, client: Client) -> anyhow::Result<ExitCode> {
    let PoolsCommand::List(PoolsListArgs {
        output,
        no_headers,
        node,
    }) = command;
    let mut list = client.pools().await?;
    if let Some(node) = &node {
        list.pools.retain(|pool| pool.node_id == *node);
        list.count = list.pools.len();
    }
    let text = match output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(&list)?),
        OutputFormat::Yaml => yaml_serde::to_string(&list)?,
        OutputFormat::Name => lines(
            list.pools
                .iter()
                .map(|pool| format!("{}/{}", pool.node_id, pool.pool_id)),
        ),
        OutputFormat::Table | OutputFormat::Wide if list.pools.is_empty() => String::new(),
        OutputFormat::Table | OutputFormat::Wide => {
            pool_table(&list.pools, Layout::of(output, no_headers))
        }
    };
    output::data(&text)?;
    if list.pools.is_empty() && !matches!(output, OutputFormat::Json | OutputFormat::Yaml) {
        match node {
            Some(node) => output::note(&format!("no pools on {}", output::printable(&node))),
            None => {
                output::note("no pools");
                output::hint(
                    "engines come with `orchd agent --engine URL` on their host, or `orchd serve --engine URL`, or by handoff files",
                );
            }
        }
    }
    Ok(Exit::Done.into())
}

fn lines(texts: impl Iterator<Item = String>) -> String {
    texts.fold(String::new(), |all, text| all + &text + "\n")
}

/// Draws the table of pools.
#[must_use]
pub fn pool_table(pools: &[PoolView], layout: Layout) -> String {
    layout.draw(&POOLS, NARROW_POOLS, pools.iter().map(pool_row).collect())
}

fn pool_row(pool: &PoolView) -> Cells {
    let plain = |text: String| (text, Tone::Plain);
    let number = |number: u32| plain(number.to_string());
    let word = |text: &Option<String>| plain(or_nothing(text.clone().unwrap_or_default()));
    vec![
        plain(pool.node_id.clone()),
        plain(pool.pool_id.to_string()),
        pool_state(pool),
        plain(format!(
            "{}/{}",
            pool.slots_total.saturating_sub(pool.slots_free),
            pool.slots_total
        )),
        number(pool.waiting),
        plain(or_nothing(pool.models.join(","))),
        plain(
            pool.n_ctx
                .map_or(NOTHING.to_owned(), |tokens| tokens.to_string()),
        ),
        plain(pool.vram_free_bytes.map_or(NOTHING.to_owned(), size)),
        word(&pool.engine),
        number(pool.running),
        number(pool.external),
        word(&pool.engine_version),
        plain(
            pool.url
                .as_ref()
                .map_or(NOTHING.to_owned(), ToString::to_string),
        ),
    ]
}

fn pool_state(pool: &PoolView) -> (String, Tone) {
    let mut text = match pool.state {
        PoolState::Unknown if pool.ready => "ready".to_owned(),
        // Of an engine that could work on a node that cannot, too.
        PoolState::Unknown | PoolState::Ready | PoolState::Busy | PoolState::Sleeping
            if !pool.ready =>
        {
            "not ready".to_owned()
        }
        state => state.as_str().to_owned(),
    };
    for (holds, word) in [(pool.draining, ",draining"), (pool.ejected, ",ejected")] {
        if holds {
            text.push_str(word);
        }
    }
    let tone = match pool.state {
        PoolState::Unreachable | PoolState::Misconfigured => Tone::Bad,
        _ if pool.ejected => Tone::Bad,
        _ if pool.draining || !pool.ready => Tone::Warn,
        _ => Tone::Good,
    };
    (text, tone)
}

/// A model as `orchd models list` shows it: what is known of it, and what of it takes requests now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelRow {
    /// What takes requests now; nothing when no pool does.
    #[serde(flatten)]
    pub available: AvailableModel,
    /// What is known over all its pools.
    pub meta: ModelMeta,
}

#[derive(Serialize)]
struct Models {
    models: Vec<ModelRow>,
    count: usize,
}

/// Runs `orchd models …`.
pub(super) async fn models(command: ModelsCommand, client: Client) -> anyhow::Result<ExitCode> {
    let ModelsCommand::List(ModelsListArgs { output, no_headers }) = command;
    let known = client.models().await?;
    let models = joined(known, client.availability().await?);
    let empty = models.is_empty();
    let text = match output {
        OutputFormat::Name => lines(models.into_iter().map(|row| row.available.model_id)),
        OutputFormat::Table | OutputFormat::Wide if empty => String::new(),
        OutputFormat::Table | OutputFormat::Wide => {
            model_table(&models, Layout::of(output, no_headers))
        }
        OutputFormat::Json | OutputFormat::Yaml => {
            let count = models.len();
            let list = Models { models, count };
            if output == OutputFormat::Json {
                format!("{}\n", serde_json::to_string_pretty(&list)?)
            } else {
                yaml_serde::to_string(&list)?
            }
        }
    };
    output::data(&text)?;
    if empty && !matches!(output, OutputFormat::Json | OutputFormat::Yaml) {
        output::note("no models");
        output::hint("`orchd pools list` shows the engines and what they are doing");
    }
    Ok(Exit::Done.into())
}

/// Every model of either answer, by name.
#[must_use]
pub fn joined(known: ModelList, available: Availability) -> Vec<ModelRow> {
    let mut rows: BTreeMap<String, ModelRow> = known
        .data
        .into_iter()
        .map(|model| {
            let row = ModelRow {
                available: AvailableModel {
                    model_id: model.id.clone(),
                    nodes: Vec::new(),
                    total_nodes: 0,
                    total_capacity: 0,
                },
                meta: model.meta,
            };
            (model.id, row)
        })
        .collect();
    for model in available.models {
        match rows.get_mut(&model.model_id) {
            Some(row) => row.available = model,
            // It came between the two answers.
            None => {
                let row = ModelRow {
                    available: model.clone(),
                    meta: ModelMeta::default(),
                };
                rows.insert(model.model_id, row);
            }
        }
    }
    rows.into_values().collect()
}

/// Draws the table of models.
#[must_use]
pub fn model_table(models: &[ModelRow], layout: Layout) -> String {
    layout.draw(
        &MODELS,
        NARROW_MODELS,
        models.iter().map(model_row).collect(),
    )
}

fn model_row(row: &ModelRow) -> Cells {
    let plain = |text: String| (text, Tone::Plain);
    let available = &row.available;
    let takes = available.total_capacity > 0;
    let state = row
        .meta
        .state
        .clone()
        .unwrap_or(if takes { "ready" } else { "none" }.to_owned());
    let context = match (row.meta.n_ctx, row.meta.n_ctx_max) {
        (Some(least), Some(most)) if least != most => format!("{least}-{most}"),
        (Some(one), _) | (None, Some(one)) => one.to_string(),
        (None, None) => NOTHING.to_owned(),
    };
    vec![
        plain(available.model_id.clone()),
        (state, if takes { Tone::Good } else { Tone::Warn }),
        plain(available.total_nodes.to_string()),
        plain(available.total_capacity.to_string()),
        plain(context),
        plain(or_nothing(available.nodes.join(","))),
    ]
}
