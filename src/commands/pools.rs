//! `orchd pools list`: what requests are routed to, in both profiles.
//!
//! Invariant: the table is a pure function of the answer and the width. Called by `commands::run`, and by tests that
//! hold the table against golden copies.

use std::process::ExitCode;

use super::failure::Exit;
use super::output::{self, Cells, Column, Tone};
use super::words::{NOTHING, or_nothing, size};
use crate::cli::{OutputFormat, PoolsCommand, PoolsListArgs};
use crate::client::Client;
use crate::types::{PoolState, PoolView};

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
    pub(super) fn of(output: OutputFormat, no_headers: bool) -> Self {
        Self {
            wide: output == OutputFormat::Wide,
            headers: !no_headers,
            width: output::terminal_width(),
            color: true,
        }
    }

    pub(super) fn draw(self, columns: &[Column], narrow: usize, mut rows: Vec<Cells>) -> String {
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

pub(super) fn lines(texts: impl Iterator<Item = String>) -> String {
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
