//! A picture on the terminal that is drawn again and again.
//!
//! Invariants: it stands on the terminal's second screen, so that what was there before comes back, whatever ends the
//! command; each picture is sent as one write and overwrites the last one without clearing it first, so that nothing
//! flickers; it never scrolls. Called by commands that watch.

use std::io::{self, IsTerminal as _, Write as _};

use console::measure_text_width;

use super::output;

/// Second screen, no cursor, no wrapping of lines.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The reverse.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// What follows is to be shown at once; terminals that do not know it ignore it.
const BEGIN: &str = "\x1b[?2026h\x1b[H";
/// Nothing below, and show it.
const END: &str = "\x1b[J\x1b[?2026l";
/// Nothing right of here.
const CLEAR_LINE: &str = "\x1b[K";

/// The second screen; dropping it brings back the first.
pub(super) struct Screen {
    /// With colours.
    pub color: bool,
}

impl Screen {
    /// Takes the terminal on stdout; `None` when there is none, or one that cannot be drawn on.
    pub(super) fn take() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        if dumb || !io::stdout().is_terminal() || output::terminal_size().is_none() {
            return None;
        }
        let color = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
        write(ENTER).ok()?;
        Some(Self { color })
    }

    /// Rows and columns there are now.
    pub(super) fn size(&self) -> (u16, u16) {
        // A terminal that is gone is found by the next write.
        output::terminal_size().unwrap_or((24, 80))
    }

    /// Shows these lines, each cut to the width; there must be no more of them than rows.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn show(&self, lines: &[String]) -> io::Result<()> {
        let (_, width) = self.size();
        let texts: Vec<String> = lines
            .iter()
            .map(|line| {
                let line = output::cut(line, width);
                // In a full line the cursor stands on the last character, which would be cleared.
                let full = measure_text_width(&line) >= usize::from(width);
                if full { line } else { line + CLEAR_LINE }
            })
            .collect();
        write(&format!("{BEGIN}{}{END}", texts.join("\r\n")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Fails when the terminal is gone, and then there is nothing to restore.
        let _ = write(LEAVE);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
