//! Chats with a model that counts, streaming and not, checked to the word.
//!
//! Used by the journeys.

use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::counting::{FORTY, counts};
use super::engine::Model;
use super::http::{self, Events, Response, written};

/// What is asked for. The counting model needs no limit, the ring knows no other end.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    model: Model,
    words: usize,
    base: &'static str,
    id: Option<u64>,
}

/// Count to forty.
pub const COUNT: Ask = Ask {
    model: Model::Counting,
    words: FORTY,
    base: "",
    id: None,
};

/// Count so many words in a circle.
pub fn ring(words: usize) -> Ask {
    Ask {
        model: Model::Ring,
        words,
        base: "",
        id: None,
    }
}

impl Ask {
    /// The same, where the endpoints of an engine lie under this path.
    pub fn under(self, base: &'static str) -> Self {
        Self { base, ..self }
    }

    /// The same, as a request that is called [`request_id`] of this number.
    #[allow(dead_code, reason = "used by the fault suite")]
    pub fn called(self, id: u64) -> Self {
        Self {
            id: Some(id),
            ..self
        }
    }

    fn body(self, stream: bool) -> Value {
        let mut body = json!({
            "model": self.model.alias(),
            "stream": stream,
            "messages": [{"role": "user", "content": "Count!"}],
        });
        if self.model == Model::Ring {
            body["max_tokens"] = self.words.into();
        }
        body
    }

    /// Why the answer ends, if it is complete.
    fn finish_reason(self) -> &'static str {
        match self.model {
            Model::Counting => "stop",
            Model::Ring | Model::SmolLm2 => "length",
        }
    }

    /// Asks without streaming, and checks that the answer is complete. Gives the node that answered.
    pub fn whole(self, address: SocketAddr) -> Result<String, String> {
        let whole = || {
            let response = self.send(address, false)?;
            let node = node(&response);
            self.whole_in(response)?;
            Ok::<_, End>(node)
        };
        whole().map_err(|end| end.to_string())
    }

    /// Asks for a stream, and waits for its head.
    pub fn stream(self, address: SocketAddr) -> Result<Stream, String> {
        self.begin(address).map_err(|end| end.to_string())
    }

    fn begin(self, address: SocketAddr) -> Result<Stream, End> {
        let response = self.send(address, true)?;
        let kind = response.header("content-type").unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(End::Failed(format!("a stream of type {kind:?}")));
        }
        let now = Instant::now();
        Ok(Stream {
            ask: self,
            node: node(&response),
            head: Head::of(&response, now),
            text: String::new(),
            finish_reason: None,
            last: now,
            gap: Duration::ZERO,
            events: response.events(),
        })
    }

    /// Asks for a stream, and reads it to its end. Gives the node that answered.
    pub fn streamed(self, address: SocketAddr) -> Result<String, String> {
        let stream = self.stream(address)?;
        let node = stream.node.clone();
        stream.finish()?;
        Ok(node)
    }

    /// Asks, and says what became of it, whatever that is.
    pub fn told(self, address: SocketAddr, stream: bool) -> Told {
        let begun = Instant::now();
        let failed = |end: End| Told {
            is_stream: stream,
            begun,
            head: None,
            ended: Instant::now(),
            gap: Duration::ZERO,
            end,
        };
        if stream {
            let stream = self.begin(address).map(|stream| stream.follow(begun));
            return stream.unwrap_or_else(failed);
        }
        let response = match self.send(address, false) {
            Ok(response) => response,
            Err(e) => return failed(e),
        };
        let head = Head::of(&response, Instant::now());
        match self.whole_in(response) {
            Ok(()) => Told {
                is_stream: false,
                begun,
                head: Some(head),
                ended: Instant::now(),
                gap: Duration::ZERO,
                end: End::Whole,
            },
            Err(e) => failed(e),
        }
    }

    /// Checks that an answer is complete.
    fn whole_in(self, response: Response) -> Result<(), End> {
        let text = response.text().map_err(|e| End::Broken(e.to_string()))?;
        let answer: Value =
            serde_json::from_str(&text).map_err(|e| End::Failed(format!("{e}: {text}")))?;
        let choice = &answer["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        self.check(content, choice["finish_reason"].as_str())
            .map_err(End::Failed)
    }

    fn send(self, address: SocketAddr, stream: bool) -> Result<Response, End> {
        let path = format!("{}/v1/chat/completions", self.base);
        let body = self.body(stream).to_string();
        let id = self.id.map(request_id).unwrap_or_default();
        let mut headers = vec![
            ("content-type", "application/json"),
            ("connection", "close"),
        ];
        if self.id.is_some() {
            headers.push(("x-request-id", &id));
        }
        let response = http::send(address, &written("POST", &path, &headers, body.as_bytes()))
            .map_err(|e| match e.kind() {
                ErrorKind::ConnectionRefused => End::Unreachable,
                _ => End::Broken(e.to_string()),
            })?;
        if response.status == 200 {
            Ok(response)
        } else {
            Err(End::refused(response))
        }
    }

    fn check(self, content: &str, finish_reason: Option<&str>) -> Result<(), String> {
        let count = counts(content)?;
        if count != self.words {
            return Err(format!("{count} words of {}", self.words));
        }
        if finish_reason != Some(self.finish_reason()) {
            return Err(format!("all words, and the end is {finish_reason:?}"));
        }
        Ok(())
    }
}

/// What a request of this number is called.
pub fn request_id(id: u64) -> String {
    format!("fault-{id}")
}

/// The node that answered, as the gateway names it; empty when an engine was asked directly.
fn node(response: &Response) -> String {
    response
        .header("x-orchd-node")
        .unwrap_or_default()
        .to_owned()
}

/// What the head of an answer says.
#[derive(Debug)]
pub struct Head {
    /// When it was there.
    pub at: Instant,
    /// `NODE/POOL`.
    pub place: String,
    pub attempts: u32,
    /// How long the request waited for slots.
    pub queued: Duration,
}

impl Head {
    fn of(response: &Response, at: Instant) -> Self {
        let header = |name| response.header(name).unwrap_or_default();
        let number = |name| header(name).parse().unwrap_or_default();
        Self {
            at,
            place: format!("{}/{}", node(response), header("x-orchd-pool")),
            attempts: u32::try_from(number("x-orchd-attempts")).expect("a few"),
            queued: Duration::from_millis(number("x-orchd-queue-ms")),
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Told {
    pub is_stream: bool,
    pub begun: Instant,
    /// None when there was no answer of an engine.
    pub head: Option<Head>,
    pub ended: Instant,
    /// The longest time between two events of its stream.
    pub gap: Duration,
    pub end: End,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With every word.
    Whole,
    /// With an error in-band as the last event, of this code, after words without a gap.
    InBand(String),
    /// With an error as the answer.
    Refused {
        status: u16,
        /// Of the error object; empty when the body is none.
        code: String,
        body: String,
    },
    /// Nobody listened: it never began.
    Unreachable,
    /// With the connection, before the answer was there or all of it: what is there of it is right.
    Broken(String),
    /// In any other way.
    Failed(String),
}

impl End {
    /// An answer that is an error.
    fn refused(response: Response) -> Self {
        let status = response.status;
        let body = match response.text() {
            Ok(body) => body,
            Err(e) => return Self::Broken(format!("the body of a {status}: {e}")),
        };
        let object: Value = serde_json::from_str(&body).unwrap_or_default();
        let code = match &object["error"]["code"] {
            Value::String(code) => code.clone(),
            // An engine's own.
            Value::Number(code) => code.to_string(),
            _ => String::new(),
        };
        Self::Refused { status, code, body }
    }
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("every word"),
            Self::InBand(code) => write!(f, "an error in-band: {code}"),
            Self::Refused { status, body, .. } => write!(f, "{status}: {body}"),
            Self::Unreachable => f.write_str("nobody listens"),
            Self::Broken(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// The code of an error in-band.
fn code(error: &Value) -> String {
    error["code"].as_str().unwrap_or_default().to_owned()
}

/// A stream that has begun. Dropping it is leaving.
pub struct Stream {
    pub node: String,
    pub head: Head,
    ask: Ask,
    text: String,
    finish_reason: Option<String>,
    /// When the last event came, and the longest time between two.
    last: Instant,
    gap: Duration,
    events: Events,
}

/// What an event of a stream is.
enum Event {
    /// Text, perhaps none.
    Frame,
    /// `[DONE]`.
    Done,
    /// An error in-band.
    Error(Value),
    /// The end of the body.
    End,
}

impl Stream {
    fn next(&mut self) -> Result<Event, End> {
        let data = self.events.next().map_err(|e| {
            let words = self.text.split(' ').count() - 1;
            match counts(&self.text) {
                Ok(_) => End::Broken(format!("after {words} words: {e}")),
                Err(wrong) => End::Failed(format!("{wrong}; and then {e}")),
            }
        })?;
        let now = Instant::now();
        self.gap = self.gap.max(now - std::mem::replace(&mut self.last, now));
        let Some(data) = data else {
            return Ok(Event::End);
        };
        if data == "[DONE]" {
            return Ok(Event::Done);
        }
        let frame: Value =
            serde_json::from_str(&data).map_err(|e| End::Failed(format!("{e}: {data}")))?;
        if !frame["error"].is_null() {
            return Ok(Event::Error(frame["error"].clone()));
        }
        let choice = &frame["choices"][0];
        if let Some(content) = choice["delta"]["content"].as_str() {
            self.text.push_str(content);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        Ok(Event::Frame)
    }

    /// Reads on until `words` words have come.
    pub fn read(&mut self, words: usize) -> Result<(), String> {
        while counts(&self.text)? < words {
            match self.next().map_err(|end| end.to_string())? {
                Event::Frame => {}
                Event::Error(error) => return Err(format!("an error in-band: {error}")),
                Event::Done | Event::End => {
                    return Err(format!("the end, before {words} words had come"));
                }
            }
        }
        Ok(())
    }

    /// Reads to the end, and checks that the answer is complete: every word, `[DONE]`, and the end of the body.
    pub fn finish(mut self) -> Result<(), String> {
        match self.end() {
            End::Whole => Ok(()),
            end => Err(end.to_string()),
        }
    }

    /// Reads to the end, whatever that is; the request was sent at that moment.
    pub fn follow(mut self, begun: Instant) -> Told {
        let end = self.end();
        Told {
            is_stream: true,
            begun,
            head: Some(self.head),
            ended: Instant::now(),
            gap: self.gap,
            end,
        }
    }

    fn end(&mut self) -> End {
        let end = loop {
            match self.next() {
                Ok(Event::Frame) => {}
                Ok(Event::Error(error)) => break End::InBand(code(&error)),
                Ok(Event::Done) => break End::Whole,
                Ok(Event::End) => return End::Failed("the end, without [DONE]".to_owned()),
                Err(end) => return end,
            }
        };
        match self.next() {
            Ok(Event::End) => {}
            Ok(_) => return End::Failed(format!("more after {end:?}")),
            Err(other) => return End::Failed(format!("after {end:?}: {other}")),
        }
        let is_right = match &end {
            End::Whole => self.ask.check(&self.text, self.finish_reason.as_deref()),
            _ => counts(&self.text).map(|_| ()),
        };
        is_right.map_or_else(End::Failed, |()| end)
    }

    /// Reads to the end of a stream whose engine is lost: no gap so far, an error in-band as the last event, and then the
    /// proper end of the body without `[DONE]`. Gives the error's code.
    pub fn finish_lost(mut self) -> Result<String, String> {
        match self.end() {
            End::InBand(code) => Ok(code),
            End::Whole => Err("the end, without an error".to_owned()),
            end => Err(end.to_string()),
        }
    }
}
