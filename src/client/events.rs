//! Following `GET /v2/events`: server-sent events as they come, over one connection that stays open.
//!
//! Invariants: the stream has no limit on its length, only on its silence, since the server sends a comment every
//! [`PING`]; a frame is given out once it is complete, and a stream that ends or goes silent is an error, never an
//! ordinary end, because the server does not end it. Called by `orchd events` and by whatever redraws when something
//! happens.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderName, HeaderValue};

use super::answer::{accepted, unreachable};
use super::{Client, ClientError};
use crate::types::{HttpUrl, NodeId};

/// How often the server says that it is there (contract §3, Streaming).
const PING: Duration = Duration::from_secs(15);
/// Longest silence: two of the server's comments may be lost before its connection counts as dead.
const SILENCE: Duration = Duration::from_secs(PING.as_secs() * 2 + 5);
/// Longest frame in bytes; a longer one is not an event of orchd's.
const MAX_FRAME: usize = 1 << 20;
/// The header that says where to go on.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Which events to follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventsQuery {
    /// Only those of this node.
    pub node: Option<NodeId>,
    /// Only those after this one; a server that does not know it says `resync` first.
    pub after: Option<String>,
}

/// One event as it travels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Where to go on from.
    pub id: Option<String>,
    /// Its type; empty when it has none.
    pub event: String,
    /// What it tells: JSON.
    pub data: String,
}

impl Client {
    /// Begins to follow events, at the first server that answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, query: &EventsQuery) -> Result<EventStream, ClientError> {
        self.in_turn(|index| self.open_events(&self.servers[index], query))
            .await
    }

    async fn open_events(
        &self,
        server: &HttpUrl,
        query: &EventsQuery,
    ) -> Result<EventStream, ClientError> {
        let mut request = self
            .request(Method::GET, server.join("/v2/events"))
            .header(ACCEPT, "text/event-stream");
        if let Some(node) = &query.node {
            request = request.query(&[("node_id", node.as_str())]);
        }
        if let Some(after) = &query.after {
            let after = HeaderValue::from_str(after).map_err(|_| ClientError::BadEventId)?;
            request = request.header(LAST_EVENT_ID, after);
        }
        let opened = async {
            let response = request
                .send()
                .await
                .map_err(|source| unreachable(server, source))?;
            accepted(server, response).await
        };
        let lost = |what: &str| ClientError::EventsLost {
            server: server.clone(),
            what: what.to_owned(),
        };
        let response = tokio::time::timeout(self.attempt_timeout, opened)
            .await
            .map_err(|_| lost("no answer in time"))??;
        Ok(EventStream {
            server: server.clone(),
            response,
            reader: Reader::default(),
        })
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream {
    server: HttpUrl,
    response: reqwest::Response,
    reader: Reader,
}

impl EventStream {
    /// The next event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The stream ended, broke, or was silent for too long: [`ClientError::EventsLost`].
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.reader.frame() {
                return Ok(frame);
            }
            let what = match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) if self.reader.buffer.len() + bytes.len() <= MAX_FRAME => {
                    self.reader.buffer.extend_from_slice(&bytes);
                    continue;
                }
                Ok(Ok(Some(_))) => "it sends an event without end".to_owned(),
                Ok(Ok(None)) => "it ended the stream of events".to_owned(),
                Ok(Err(source)) => super::cause(&source),
                Err(_) => format!("it was silent for {} s", SILENCE.as_secs()),
            };
            return Err(ClientError::EventsLost {
                server: self.server.clone(),
                what,
            });
        }
    }
}

/// Takes bytes apart into frames, as far as the format is used here: `id`, `event` and `data` fields, comments, and
/// lines that end with `\n` or `\r\n`.
#[derive(Debug, Default)]
struct Reader {
    buffer: Vec<u8>,
    building: Frame,
    has_data: bool,
}

impl Reader {
    /// The next complete frame in the buffer.
    fn frame(&mut self) -> Option<Frame> {
        let mut at = 0;
        let mut done = None;
        while let Some(length) = self.buffer[at..].iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[at..at + length]).into_owned();
            at += length + 1;
            let line = line.strip_suffix('\r').unwrap_or(&line);
            if line.is_empty() {
                let frame = std::mem::take(&mut self.building);
                let told = std::mem::take(&mut self.has_data) || !frame.event.is_empty();
                if told {
                    done = Some(frame);
                    break;
                }
            } else {
                self.line(line);
            }
        }
        self.buffer.drain(..at);
        done
    }

    fn line(&mut self, line: &str) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.building.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.building.event),
            "data" => {
                if self.has_data {
                    self.building.data.push('\n');
                }
                self.building.data.push_str(value);
                self.has_data = true;
            }
            // Comments have no field name; others are not orchd's.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&str]) -> Vec<Frame> {
        let mut reader = Reader::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            reader.buffer.extend_from_slice(chunk.as_bytes());
            while let Some(frame) = reader.frame() {
                frames.push(frame);
            }
        }
        frames
    }

    fn frame(id: &str, event: &str, data: &str) -> Frame {
        Frame {
            id: Some(id.to_owned()),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn frames_are_read_however_the_bytes_are_cut() {
        let text = ": ping\n\nid: e-1\nevent: node.online\ndata: {\"a\":\ndata: 1}\n\r\nid:e-2\r\nevent:x\r\ndata:é\r\n\r\n";
        let wanted = [
            frame("e-1", "node.online", "{\"a\":\n1}"),
            frame("e-2", "x", "é"),
        ];
        assert_eq!(read(&[text]), wanted);
        for cut in (0..text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            assert_eq!(read(&[&text[..cut], &text[cut..]]), wanted, "cut at {cut}");
        }
    }

    #[test]
    fn comments_and_unfinished_frames_are_no_events() {
        assert_eq!(read(&[": ping\n\n", "retry: 5\n\n", "data: half\n"]), []);
        assert_eq!(
            read(&["event: resync\n\n"]),
            [Frame {
                event: "resync".to_owned(),
                ..Frame::default()
            }]
        );
    }
}
