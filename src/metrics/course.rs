//! The course of an answer: when it began, and how many tokens it had, read off its bytes as they pass.

use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem::Finder;
use memchr::memrchr_iter;
use tokio::time::Instant;

use super::Meter;

/// Where engines say it, before and behind the underscore: completions, messages and responses, and llama.cpp's timings. In
/// a text the quotes would be escaped.
const TOLD: [[&[u8]; 2]; 3] = [
    [b"\"completion", b"_tokens\":"],
    [b"\"output", b"_tokens\":"],
    [b"\"predicted", b"_n\":"],
];
/// It stands behind the text of an answer, in its last object or event: of a longer piece only so much is searched.
const TOLD_WITHIN_BYTES: usize = 2 << 10;
/// What every event has.
static EVENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("data:"));

/// The course of one request's answer.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    begun: Instant,
    first: Option<Instant>,
    tokens: Tokens,
}

impl Course {
    /// The request is here.
    #[must_use]
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            first: None,
            tokens: Tokens::default(),
        }
    }

    /// It is tried again: nothing of an answer is there.
    pub fn again(&mut self) {
        self.first = None;
        self.tokens = Tokens::default();
    }

    /// The first bytes of its answer are here.
    pub fn began(&mut self) {
        self.first = Some(Instant::now());
    }

    /// So much of its answer passes.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.tokens.pass(bytes);
    }

    /// Since the request.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// From the request to the first bytes of its answer.
    #[must_use]
    pub fn first_after(&self) -> Option<Duration> {
        self.first.map(|first| first - self.begun)
    }

    /// Tokens of the answer so far; `None` when nothing was told, and nothing streamed.
    #[must_use]
    pub fn tokens(&self) -> Option<u64> {
        self.tokens.count()
    }

    /// Tells the meter, at the end. What a token after the first took is told of answers that are whole.
    pub fn tell(&self, meter: &Meter, is_whole: bool) {
        let ended = Instant::now();
        let Some(first) = self.first else {
            return meter.ended(ended - self.begun, None);
        };
        let after_first = (self.tokens.count())
            .and_then(|tokens| u32::try_from(tokens.checked_sub(1)?).ok())
            .filter(|_| is_whole);
        let each = after_first.and_then(|tokens| (ended - first).checked_div(tokens));
        meter.began(first - self.begun);
        meter.ended(ended - self.begun, each);
    }
}

impl Default for Course {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the tokens of one answer. The engine's own number where it tells one; otherwise the events of the stream, which
/// are a few more: one opens a chat, one ends it.
#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    /// It began as a JSON value does: there are no events in it.
    is_json: Option<bool>,
    events: u64,
    told: Option<u64>,
}

impl Tokens {
    /// So much of the answer passes. What is cut between two of these is not seen; engines write whole events.
    fn pass(&mut self, bytes: &[u8]) {
        let is_json = *(self.is_json)
            .get_or_insert_with(|| matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')));
        if !is_json {
            let events = EVENT.find_iter(bytes).count();
            self.events += u64::try_from(events).unwrap_or(0);
        }
        let end = &bytes[bytes.len().saturating_sub(TOLD_WITHIN_BYTES)..];
        // Whoever tells after each token tells most in the end. Underscores are rare, and found by the dozen at a time.
        let told = memrchr_iter(b'_', end).find_map(|at| {
            let (before, behind) = end.split_at(at);
            let rest = TOLD.iter().find_map(|[name, end]| {
                let rest = behind.strip_prefix(*end)?;
                before.ends_with(name).then_some(rest)
            });
            number(rest?)
        });
        self.told = told.or(self.told);
    }

    /// Tokens so far; `None` when nothing was told, and nothing streamed.
    fn count(&self) -> Option<u64> {
        self.told.or((self.events > 0).then_some(self.events))
    }
}

/// The number at the beginning of a JSON text; none when it may go on behind that.
fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.get(digits)?;
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(pieces: &[&str]) -> Option<u64> {
        let mut tokens = Tokens::default();
        pieces
            .iter()
            .for_each(|piece| tokens.pass(piece.as_bytes()));
        tokens.count()
    }

    #[test]
    fn what_the_engine_tells_counts_and_otherwise_its_events() {
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\" one\"}}]}\n\n";
        assert_eq!(count(&[event, event, event]), Some(3));
        assert_eq!(count(&[&event.repeat(2), event]), Some(3));
        assert_eq!(
            count(&[event, "data: {\"usage\":{\"completion_tokens\":40}}\n\n"]),
            Some(40)
        );
        assert_eq!(
            count(&["{\"usage\":{\"completion_tokens\": 7,\"prompt_tokens\":9}}"]),
            Some(7)
        );
        assert_eq!(
            count(&["event: message_delta\ndata: {\"usage\":{\"output_tokens\":12}}\n\n"]),
            Some(12)
        );
        assert_eq!(count(&["{\"timings\":{\"predicted_n\":5}}"]), Some(5));
        let each = "data: {\"timings\":{\"predicted_n\":1}}\n\ndata: {\"timings\":{\"predicted_n\":2}}\n\n";
        assert_eq!(count(&[each]), Some(2));
        assert_eq!(
            count(&["{\"usage\":{\"completion_tokens\":12", "3}}"]),
            None
        );
        assert_eq!(count(&[r#" [{"text":"data: data:"}]"#]), None);
        assert_eq!(count(&["{\"data\":[{\"embedding\":[1.0]}]}"]), None);
        assert_eq!(count(&[r#"{"text":"data: data: data:"}"#]), None);
        assert_eq!(count(&[]), None);
    }

    #[test]
    fn a_text_that_speaks_of_tokens_is_no_number() {
        let text = r#"data: {"content":"\"completion_tokens\":99"}"#;
        assert_eq!(count(&[text]), Some(1));
        assert_eq!(count(&[r#"{"completion_tokens":null}"#]), None);
    }
}
