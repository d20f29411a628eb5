//! `orchd models list`: what can be asked for, in both profiles.
//!
//! `GET /v1/models` says which names there are, what each stands for and what state it is in to a request; `GET /v2/pools`
//! says where its slots are and how many are taken, which the former does not count for every client that looks. The
//! former takes a client's token, the latter an operator's: who has the former alone sees what clients may see. Invariant:
//! the table is a pure function of the answers and the width. Called by `commands::run`, and by tests that hold the table
//! against golden copies.

use std::collections::HashMap;
use std::process::ExitCode;

use serde::Serialize;

use super::failure::Exit;
use super::output::{self, Cells, Column, Tone};
use super::pools::{Layout, lines};
use super::words::{NOTHING, or_nothing};
use crate::cli::{ModelsCommand, ModelsListArgs, OutputFormat};
use crate::client::{Client, ClientError, ModelList, ModelMeta};
use crate::types::PoolView;

/// The columns. `wide` adds those after [`NARROW`].
const COLUMNS: [Column; 9] = [
    Column::new("MODEL", 0, Some(16), false),
    Column::new("STATE", 0, None, false),
    Column::new("SLOTS", 0, None, true),
    Column::new("NODES", 3, None, true),
    Column::new("POOLS", 4, None, true),
    Column::new("CTX", 1, None, true),
    Column::new("ALIASES", 2, Some(12), false),
    Column::new("ENGINES", 0, None, false),
    Column::new("ON", 0, None, false),
];
const NARROW: usize = 7;

/// A model as `orchd models list` shows it: what is known of it, and what of it takes requests now, as far as the token
/// may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelRow {
    /// Its id.
    pub model_id: String,
    /// Nodes with a pool that takes requests.
    pub nodes: Option<Vec<String>>,
    /// How many.
    pub total_nodes: Option<usize>,
    /// Slots of those pools.
    pub total_capacity: u64,
    /// Those of them that are not taken.
    pub slots_free: Option<u64>,
    /// How many pools take requests.
    pub pools_ready: Option<usize>,
    /// How many there are in all.
    pub pools: Option<usize>,
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
    let empty = known.data.is_empty();
    let text = match output {
        OutputFormat::Name => lines(known.data.into_iter().map(|model| model.id)),
        OutputFormat::Table | OutputFormat::Wide if empty => String::new(),
        OutputFormat::Table | OutputFormat::Wide => {
            let models = shown(known, &client).await?;
            model_table(&models, Layout::of(output, no_headers))
        }
        OutputFormat::Json | OutputFormat::Yaml => {
            let models = shown(known, &client).await?;
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

/// Every model, with what the token may know of it.
async fn shown(known: ModelList, client: &Client) -> Result<Vec<ModelRow>, ClientError> {
    match client.pools().await {
        Ok(list) => Ok(joined(known, &list.pools)),
        Err(ClientError::Unauthorized { status: 403, .. }) => {
            output::note(
                "this token is a client's: where models are, and how many slots are taken, is for operators",
            );
            Ok(apart(known))
        }
        Err(e) => Err(e),
    }
}

/// Every model, for who may not know its pools.
#[must_use]
pub fn apart(known: ModelList) -> Vec<ModelRow> {
    let models = known.data.into_iter();
    models
        .map(|model| ModelRow {
            model_id: model.id,
            nodes: None,
            total_nodes: None,
            total_capacity: model.meta.slots.unwrap_or_default(),
            slots_free: None,
            pools_ready: None,
            pools: None,
            meta: model.meta,
        })
        .collect()
}

/// Every model, in the order in which they are known, with what its pools are doing. A pool that came or went between the
/// two answers is counted by the later one.
#[must_use]
pub fn joined(known: ModelList, pools: &[PoolView]) -> Vec<ModelRow> {
    let mut by_model: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, pool) in pools.iter().enumerate() {
        for model in &pool.models {
            by_model.entry(model).or_default().push(at);
        }
    }
    let row = |id: String, meta: ModelMeta| {
        let names = std::iter::once(&id).chain(&meta.alias_of);
        let mut its: Vec<usize> = names
            .filter_map(|name| by_model.get(name.as_str()))
            .flatten()
            .copied()
            .collect();
        its.sort_unstable();
        its.dedup();
        let takes = |pool: &&PoolView| pool.ready && !pool.draining;
        let all = its.iter().map(|at| &pools[*at]);
        let ready: Vec<&PoolView> = all.filter(takes).collect();
        let mut nodes: Vec<String> = ready.iter().map(|pool| pool.node_id.clone()).collect();
        // Pools come node by node.
        nodes.dedup();
        ModelRow {
            model_id: id,
            total_nodes: Some(nodes.len()),
            nodes: Some(nodes),
            total_capacity: ready.iter().map(|pool| u64::from(pool.slots_total)).sum(),
            slots_free: Some(ready.iter().map(|pool| u64::from(pool.slots_free)).sum()),
            pools_ready: Some(ready.len()),
            pools: Some(its.len()),
            meta,
        }
    };
    let models = known.data.into_iter();
    models.map(|model| row(model.id, model.meta)).collect()
}

/// Draws the table.
#[must_use]
pub fn model_table(models: &[ModelRow], layout: Layout) -> String {
    layout.draw(&COLUMNS, NARROW, models.iter().map(cells).collect())
}

fn cells(row: &ModelRow) -> Cells {
    let plain = |text: String| (text, Tone::Plain);
    let number = |count: Option<usize>| count.map_or(NOTHING.to_owned(), |it| it.to_string());
    let state = row.meta.state.as_deref().unwrap_or(NOTHING);
    let tone = match state {
        "misconfigured" | "unreachable" | "absent" => Tone::Bad,
        _ if row
            .pools_ready
            .map_or(row.total_capacity == 0, |ready| ready == 0) =>
        {
            Tone::Warn
        }
        _ => Tone::Good,
    };
    let taken = row.slots_free.map_or(NOTHING.to_owned(), |free| {
        row.total_capacity.saturating_sub(free).to_string()
    });
    let pools = match (row.pools_ready, row.pools) {
        (Some(ready), Some(all)) => format!("{ready}/{all}"),
        _ => NOTHING.to_owned(),
    };
    let nodes = row.nodes.as_ref().map_or(String::new(), |it| it.join(","));
    let context = match (row.meta.n_ctx, row.meta.n_ctx_max) {
        (Some(least), Some(most)) if least != most => format!("{least}-{most}"),
        (Some(one), _) | (None, Some(one)) => one.to_string(),
        (None, None) => NOTHING.to_owned(),
    };
    let aliases = if row.meta.alias_of.is_empty() {
        or_nothing(row.meta.aliases.join(","))
    } else {
        format!("->{}", row.meta.alias_of.join(","))
    };
    vec![
        plain(row.model_id.clone()),
        (state.to_owned(), tone),
        plain(format!("{taken}/{}", row.total_capacity)),
        plain(number(row.total_nodes)),
        plain(pools),
        plain(context),
        plain(aliases),
        plain(engines(&row.meta)),
        plain(or_nothing(nodes)),
    ]
}

/// Engines and their builds, with the number of pools that have each.
fn engines(meta: &ModelMeta) -> String {
    let mut counted: Vec<(String, u64)> = Vec::new();
    for variant in &meta.variants {
        let words = [&variant.engine, &variant.engine_version];
        let words: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
        let name = or_nothing(words.join(" "));
        // Sorted by both: those that differ in their context alone stand together.
        match counted.last_mut() {
            Some((last, pools)) if *last == name => *pools += variant.pools,
            _ => counted.push((name, variant.pools)),
        }
    }
    let texts: Vec<String> = counted
        .iter()
        .map(|(name, pools)| match pools {
            1 => name.clone(),
            _ => format!("{name} x{pools}"),
        })
        .collect();
    or_nothing(texts.join(", "))
}
