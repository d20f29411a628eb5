//! Chats with a model that counts, streaming and not, checked to the word.
//!
//! Used by the journeys.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::counting::{FORTY, counts};
use super::engine::Model;
use super::http::{self, Events, Response};

/// What is asked for. The counting model needs no limit, the ring knows no other end.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    model: Model,
    words: usize,
    base: &'static str,
}

/// Count to forty.
pub const COUNT: Ask = Ask {
    model: Model::Counting,
    words: FORTY,
    base: "",
};

/// Count so many words in a circle.
pub fn ring(words: usize) -> Ask {
    Ask {
        model: Model::Ring,
        words,
        base: "",
    }
}

impl Ask {
    /// The same, where the endpoints of an engine lie under this path.
    pub fn under(self, base: &'static str) -> Self {
        Self { base, ..self }
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
            Model::Ring | Model::Smol => "length",
        }
    }

    /// Asks without streaming, and checks that the answer is complete. Gives the node that answered.
    pub fn whole(self, address: SocketAddr) -> Result<String, String> {
        let response = self.send(address, false)?;
        let node = node(&response);
        let text = response.text().map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        let choice = &answer["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        self.check(content, choice["finish_reason"].as_str())?;
        Ok(node)
    }

    /// Asks for a stream, and waits for its head.
    pub fn stream(self, address: SocketAddr) -> Result<Stream, String> {
        let response = self.send(address, true)?;
        let kind = response.header("content-type").unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(format!("a stream of type {kind:?}"));
        }
        Ok(Stream {
            ask: self,
            node: node(&response),
            text: String::new(),
            finish_reason: None,
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

    fn send(self, address: SocketAddr, stream: bool) -> Result<Response, String> {
        let path = format!("{}/v1/chat/completions", self.base);
        let response = http::post(address, &path, &self.body(stream)).map_err(|e| e.to_string())?;
        if response.status != 200 {
            let status = response.status;
            let text = response.text().unwrap_or_default();
            return Err(format!("{status}: {text}"));
        }
        Ok(response)
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

/// The node that answered, as the gateway names it; empty when an engine was asked directly.
fn node(response: &Response) -> String {
    response
        .header("x-orchd-node")
        .unwrap_or_default()
        .to_owned()
}

/// A stream that has begun. Dropping it is leaving.
pub struct Stream {
    pub node: String,
    ask: Ask,
    text: String,
    finish_reason: Option<String>,
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
    fn next(&mut self) -> Result<Event, String> {
        let data = self.events.next().map_err(|e| {
            let words = self.text.split(' ').count() - 1;
            format!("after {words} words: {e}")
        })?;
        let Some(data) = data else {
            return Ok(Event::End);
        };
        if data == "[DONE]" {
            return Ok(Event::Done);
        }
        let frame: Value = serde_json::from_str(&data).map_err(|e| format!("{e}: {data}"))?;
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
            match self.next()? {
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
        loop {
            match self.next()? {
                Event::Frame => {}
                Event::Error(error) => return Err(format!("an error in-band: {error}")),
                Event::Done => break,
                Event::End => return Err("the end, without [DONE]".to_owned()),
            }
        }
        if !matches!(self.next()?, Event::End) {
            return Err("more after [DONE]".to_owned());
        }
        self.ask.check(&self.text, self.finish_reason.as_deref())
    }

    /// Reads to the end of a stream whose engine is lost: no gap so far, an error in-band as the last event, and then the
    /// proper end of the body without `[DONE]`. Gives the error's code.
    pub fn finish_lost(mut self) -> Result<String, String> {
        let error = loop {
            match self.next()? {
                Event::Frame => {}
                Event::Error(error) => break error,
                Event::Done | Event::End => return Err("the end, without an error".to_owned()),
            }
        };
        if !matches!(self.next()?, Event::End) {
            return Err(format!("more after the error {error}"));
        }
        counts(&self.text)?;
        Ok(error["code"].as_str().unwrap_or_default().to_owned())
    }
}
