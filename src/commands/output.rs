//! What users see: stdout for data, stderr for everything else, and tables.
//!
//! Invariants: nothing else writes to either, live progress and the screen of a watch apart; a reader who has gone
//! (`orchd nodes list | head -1`) is not an error; colour appears only on a terminal and never against `NO_COLOR`, and is
//! one of the terminal's own eight, which its user made readable on its background. Called by every command.

use std::io::{self, ErrorKind, IsTerminal as _, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Table, Width,
};
use console::{Term, measure_text_width, truncate_str};

/// Spaces between two columns.
const GAP: u16 = 2;

/// Writes data to stdout.
///
/// # Errors
/// Anything but a reader who has gone.
pub fn data(text: &str) -> io::Result<()> {
    stream(text).map(drop)
}

/// Writes data to stdout, as one part of more to come. Says whether somebody reads it; when nobody does, there is no
/// point in making more.
///
/// # Errors
/// Anything but a reader who has gone.
pub fn stream(text: &str) -> io::Result<bool> {
    let mut stdout = anstream::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
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
    terminal_size().map(|(_, columns)| columns)
}

/// Rows and columns of the terminal on stdout; `None` when stdout is something else, or a terminal that does not know.
#[must_use]
pub fn terminal_size() -> Option<(u16, u16)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    // Some terminals say that they are 0 wide when they do not know.
    Term::stdout()
        .size_checked()
        .filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// What a node, an engine or another user said, fit to be shown: it must not move the cursor, begin a line, or turn round
/// what stands behind it.
#[must_use]
pub fn printable(text: &str) -> String {
    // Marks, embeddings, overrides and isolates of text direction (Unicode, UAX #9).
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(|c: char| c.is_control() || turns(c), "\u{fffd}")
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

impl Column {
    /// A column; see its fields.
    #[must_use]
    pub const fn new(
        title: &'static str,
        drop_order: u8,
        shrink_to: Option<u16>,
        right: bool,
    ) -> Self {
        Self {
            title,
            drop_order,
            shrink_to,
            right,
        }
    }
}

/// The columns of a table of which the first `narrow` are enough for most: those, or all of them, none of which is then
/// left out on a narrow terminal.
#[must_use]
pub fn columns(all: &[Column], narrow: usize, wide: bool) -> Vec<Column> {
    if !wide {
        return all[..narrow].to_vec();
    }
    let kept = all.iter().map(|column| Column {
        drop_order: 0,
        ..*column
    });
    kept.collect()
}

impl Tone {
    /// A cell of a table with this text. These colours are the terminal's own eight.
    fn cell(self, text: &str) -> Cell {
        let cell = Cell::new(text);
        match self {
            Self::Plain => cell,
            Self::Good => cell.fg(Color::DarkGreen),
            Self::Warn => cell.fg(Color::DarkYellow),
            Self::Bad => cell.fg(Color::DarkRed),
        }
    }

    /// Its colour.
    #[must_use]
    pub fn style(self) -> Style {
        let color = match self {
            Self::Plain => return Style::new(),
            Self::Good => AnsiColor::Green,
            Self::Warn => AnsiColor::Yellow,
            Self::Bad => AnsiColor::Red,
        };
        Style::new().fg_color(Some(color.into()))
    }
}

/// One row of a table: what stands in each column.
pub type Cells = Vec<(String, Tone)>;

/// A table, drawn: each row is one line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// The line of column names.
    pub header: String,
    /// The rows, in the order given.
    pub rows: Vec<String>,
}

/// Draws a table without borders, as one text. With a `width` it fits: long contents are cut, and when that is not
/// enough, columns are left out.
#[must_use]
pub fn table(
    columns: &[Column],
    rows: &[Cells],
    headers: bool,
    width: Option<u16>,
    color: bool,
) -> String {
    let drawn = draw(columns, rows, headers, width, color);
    let header = headers.then_some(drawn.header);
    header
        .iter()
        .chain(&drawn.rows)
        .fold(String::new(), |text, line| text + line + "\n")
}

/// Draws a table line by line, see [`table`]. Without `headers` the names of columns take no room.
#[must_use]
pub fn draw(
    columns: &[Column],
    rows: &[Cells],
    headers: bool,
    width: Option<u16>,
    color: bool,
) -> Drawn {
    let rows: Vec<Cells> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|(text, tone)| (printable(text), *tone))
                .collect()
        })
        .collect();
    let full: Vec<u16> = (0..columns.len())
        .map(|at| {
            let title = if headers { columns[at].title } else { "" };
            let texts = rows.iter().map(|row| row[at].0.as_str());
            texts.chain([title]).map(text_width).max().unwrap_or(0)
        })
        .collect();
    let (shown, fitted) = arrange(columns, &full, width);
    let mut table = Table::new();
    table.load_style(NOTHING);
    // The arrangement is decided here, from the width given; the table itself must not look at the terminal.
    table.set_content_arrangement(ContentArrangement::Disabled);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let names = shown.iter().map(|&at| {
        let title = if headers { columns[at].title } else { "" };
        Cell::new(title).add_attribute(Attribute::Bold)
    });
    table.set_header(Row::from(names));
    for row in &rows {
        let cells = shown.iter().map(|&at| row[at].1.cell(&row[at].0));
        let mut row = Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    let last = shown.len().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        let gap = if at == last { 0 } else { GAP };
        column.set_padding((0, gap));
        if columns[shown[at]].right {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if fitted[at] < full[shown[at]] {
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(fitted[at] + gap)));
        }
    }
    table.style_text_only();
    let mut lines = table.lines().map(|line| line.trim_end().to_owned());
    Drawn {
        header: lines.next().unwrap_or_default(),
        rows: lines.collect(),
    }
}

/// Cuts a line, colours in it or not, to the width of a terminal.
#[must_use]
pub fn cut(line: &str, width: u16) -> String {
    truncate_str(line, usize::from(width), "…").into_owned()
}

/// A text behind `first`, in as many lines as it takes, each after the first behind `rest`. Lines break between words
/// only, so that names stay whole.
#[must_use]
pub fn wrapped(first: &str, rest: &str, text: &str, width: Option<u16>) -> String {
    let Some(width) = width.filter(|_| !text.is_empty()) else {
        return format!("{first}{text}");
    };
    let options = textwrap::Options::new(width.into())
        .initial_indent(first)
        .subsequent_indent(rest)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(text, options)
}

fn text_width(text: &str) -> u16 {
    u16::try_from(measure_text_width(text)).unwrap_or(u16::MAX)
}

/// Which columns are shown, and how wide.
fn arrange(columns: &[Column], full: &[u16], width: Option<u16>) -> (Vec<usize>, Vec<u16>) {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    loop {
        let widths: Vec<u16> = shown.iter().map(|&at| full[at]).collect();
        let Some(width) = width else {
            return (shown, widths);
        };
        if let Some(fitted) = fit(columns, &shown, &widths, width) {
            return (shown, fitted);
        }
        let next = (0..shown.len())
            .filter(|&at| columns[shown[at]].drop_order > 0)
            .max_by_key(|&at| columns[shown[at]].drop_order);
        match next {
            Some(at) => drop(shown.remove(at)),
            // The terminal is narrower than what must be shown: let it wrap the line.
            None => return (shown, widths),
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
