//! Live progress of whatever waits: a line that changes on a terminal, a line per change where stderr is something else.
//!
//! Called by `drain` and `wait`.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::client::ClientError;
use crate::commands::failure::Failure;
use crate::commands::output;

/// Redraw interval of a spinner.
const TICK: Duration = Duration::from_millis(100);
/// How long a control plane may be away while something is waited for: enough for a restart of it.
const AWAY: Duration = Duration::from_secs(30);

/// A control plane that does not answer for a moment.
#[derive(Debug, Default)]
pub(super) struct Away {
    since: Option<Instant>,
}

impl Away {
    /// Takes an error of one look for what it is: a moment, of which the text says so, or the end.
    pub(super) fn bear(&mut self, error: ClientError) -> Result<String, Failure> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !error.may_pass() || since.elapsed() > AWAY {
            return Err(Failure::from(&error));
        }
        Ok(format!("{error}; asking again"))
    }

    pub(super) fn is_away(&self) -> bool {
        self.since.is_some()
    }

    /// It answers. Says so when it did not before.
    pub(super) fn over(&mut self) -> Option<String> {
        self.since
            .take()
            .map(|_| "the control plane answers again".to_owned())
    }
}

pub(super) fn spinning(bar: ProgressBar) -> ProgressBar {
    bar.set_style(
        ProgressStyle::with_template("{spinner} {wide_msg}").expect("a template of known keys"),
    );
    bar.enable_steady_tick(TICK);
    bar
}

/// Columns of a spinner's line in front of its message.
const SPINNER_WIDTH: u16 = 2;

/// Sets a spinner's message, with a sign where the terminal is too narrow for all of it.
pub(super) fn set_message(bar: &ProgressBar, text: &str) {
    let (_, columns) = Term::stderr().size();
    let room = columns.saturating_sub(SPINNER_WIDTH);
    bar.set_message(output::cut(text, room));
}

/// One changing line.
pub(super) struct Spinner {
    bar: Option<ProgressBar>,
    said: RefCell<String>,
}

impl Spinner {
    pub(super) fn start() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            spinning(ProgressBar::with_draw_target(
                None,
                ProgressDrawTarget::stderr(),
            ))
        });
        Self {
            bar,
            said: RefCell::default(),
        }
    }

    /// Shows how far it is, on a terminal only.
    pub(super) fn show(&self, text: &str) {
        if let Some(bar) = &self.bar {
            set_message(bar, text);
        }
    }

    /// Says something of note: on a terminal it is shown, elsewhere it is a line, unless it was the last one.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => set_message(bar, text),
            None if *self.said.borrow() == text => {}
            None => {
                output::note(text);
                text.clone_into(&mut self.said.borrow_mut());
            }
        }
    }

    /// Writes elsewhere without the line in between.
    pub(super) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
