//! What users see: stdout for data, stderr for everything else, and tables.
//!
//! Invariants: nothing else writes to either, live progress apart; a reader who has gone (`orchd nodes list | head -1`) is
//! not an error; colour appears only on a terminal and never against `NO_COLOR`. Called by every command.

use std::io::{self, ErrorKind, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{
    Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Table, Width,
};

/// Spaces between two columns.
const GAP: u16 = 2;

/// Writes data to stdout.
///
/// # Errors
/// Anything but a reader who has gone.
pub fn data(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes one line to stderr. There is nobody left to tell when that fails.
pub fn note(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// Writes an `error:` line to stderr.
pub fn error(message: &str) {
    prefixed("error", AnsiColor::Red, message);
}

/// Writes a `warning:` line to stderr.
pub fn warning(message: &str) {
    prefixed("warning", AnsiColor::Yellow, message);
}

/// Writes a `hint:` line to stderr.
pub fn hint(message: &str) {
    prefixed("hint", AnsiColor::Cyan, message);
}

fn prefixed(word: &str, color: AnsiColor, message: &str) {
    let style = Style::new().bold().fg_color(Some(color.into()));
    note(&format!("{style}{word}:{style:#} {message}"));
}

/// Columns of the terminal on stdout; `None` when stdout is something else, where nothing has to fit.
#[must_use]
pub fn terminal_width() -> Option<u16> {
    // Some terminals say that they are 0 wide when they do not know.
    Table::new().width().filter(|width| *width > 0)
}

/// How good the news in a cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Neither good nor bad.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Somebody may want to look.
    Warn,
    /// Broken.
    Bad,
}

/// One column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name, in capitals.
    pub title: &'static str,
    /// When the table does not fit, columns with the highest number go first; 0 stays.
    pub drop_order: u8,
    /// Width below which its content is not cut; `None` when it is never cut.
    pub shrink_to: Option<u16>,
    /// Numbers stand right.
    pub right: bool,
}

/// Draws a table without borders, one line a row. With a `width` it fits: long contents are cut, and when that is not
/// enough, columns are left out.
#[must_use]
pub fn table(
    columns: &[Column],
    rows: &[Vec<(String, Tone)>],
    headers: bool,
    width: Option<u16>,
    color: bool,
) -> String {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    loop {
        let mut table = build(columns, rows, headers, &shown, color);
        // Content widths count the header, and empty columns as one.
        let full: Vec<u16> = table.column_max_content_widths();
        let Some(width) = width else {
            return finish(&table);
        };
        if let Some(fitted) = fit(columns, &shown, &full, width) {
            constrain(&mut table, &full, &fitted);
            return finish(&table);
        }
        let next = (0..shown.len())
            .filter(|&at| columns[shown[at]].drop_order > 0)
            .max_by_key(|&at| columns[shown[at]].drop_order);
        match next {
            Some(at) => drop(shown.remove(at)),
            // The terminal is narrower than what must be shown: let it wrap the line.
            None => return finish(&table),
        }
    }
}

/// Widths that fit, or `None` when even the narrowest do not.
fn fit(columns: &[Column], shown: &[usize], full: &[u16], width: u16) -> Option<Vec<u16>> {
    let gaps = GAP * u16::try_from(shown.len().saturating_sub(1)).unwrap_or(u16::MAX / GAP);
    let total: u16 = full.iter().fold(gaps, |sum, w| sum.saturating_add(*w));
    let mut excess = total.saturating_sub(width);
    let mut fitted = full.to_vec();
    // The widest gives way first, so that cuts are spread where there is most to spare.
    while excess > 0 {
        let widest = (0..shown.len())
            .filter(|&at| {
                columns[shown[at]]
                    .shrink_to
                    .is_some_and(|min| fitted[at] > min)
            })
            .max_by_key(|&at| fitted[at])?;
        fitted[widest] -= 1;
        excess -= 1;
    }
    Some(fitted)
}

fn build(
    columns: &[Column],
    rows: &[Vec<(String, Tone)>],
    headers: bool,
    shown: &[usize],
    color: bool,
) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    // The arrangement is decided here, from the width given; the table itself must not look at the terminal.
    table.set_content_arrangement(ContentArrangement::Disabled);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if headers {
        table.set_header(Row::from(shown.iter().map(|&at| columns[at].title)));
    }
    for row in rows {
        let cells = shown.iter().map(|&at| {
            let (text, tone) = &row[at];
            // What a node says of itself must not move the cursor or begin a line.
            let cell = Cell::new(text.replace(char::is_control, "\u{fffd}"));
            match tone {
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Warn => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
            }
        });
        let mut row = Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        let last = at + 1 == shown.len();
        column.set_padding((0, if last { 0 } else { GAP }));
        if columns[shown[at]].right {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.style_text_only();
    table
}

fn constrain(table: &mut Table, full: &[u16], fitted: &[u16]) {
    let last = fitted.len().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        if fitted[at] < full[at] {
            let padding = if at == last { 0 } else { GAP };
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(
                fitted[at] + padding,
            )));
        }
    }
}

fn finish(table: &Table) -> String {
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}
