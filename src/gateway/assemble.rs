//! A stream of chunks, put together to the answer that llama-server gives when it is not asked to stream.
//!
//! llama-server stops only for a streaming client that leaves; so whoever must be able to stop it lets it stream, and puts
//! the answer together here. Invariants: pure; the values are the engine's own text, never decoded and written anew, so
//! that numbers and escapes are what it wrote; a field that is not known is kept; however the bytes are cut, the result is
//! the same. Called by the gateway's exchange.

mod answer;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use answer::Answer;

/// What an answer may take, put together, and an event of a stream: as much as a body under `/v1` (contract §5). It is
/// some ten million tokens, so only an engine gone wild comes near it.
const MAX_BYTES: usize = crate::relay::MAX_BODY_BYTES;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AssembleError {
    /// The engine ended its stream with an error: what it would have answered instead.
    #[error("the engine ended its answer with {status}: {}", String::from_utf8_lossy(.body))]
    Engine {
        /// The error's own code, where it has one of HTTP's.
        status: StatusCode,
        /// The error as it came, in an object of its own.
        body: Bytes,
    },
    /// It is no stream of an answer.
    #[error("the engine's stream cannot be read: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// It is larger than anything that is kept.
    #[error("the engine's answer is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// It broke off.
    #[error("the engine's stream ended before its answer did")]
    Incomplete,
}

/// An answer on its way.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The data of an event whose end has not come, and whether it has any: an empty line of it counts.
    event: Vec<u8>,
    has_data: bool,
    answer: Answer,
    /// Whether `[DONE]` came.
    done: bool,
}

impl Assembler {
    /// Takes what came next. After an error there is nothing more to take.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), AssembleError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.partial.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole)?;
                whole.clear();
                self.partial = whole;
            }
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        self.check_size()
    }

    /// Whether the engine has said that this is all.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The answer's body, once the stream has ended.
    pub fn finish(self) -> Result<Bytes, AssembleError> {
        // An engine that tells no reason has said all the same that this is all.
        if self.done && self.answer.size() > 0 {
            Ok(self.answer.into_body())
        } else {
            Err(AssembleError::Incomplete)
        }
    }

    fn check_size(&self) -> Result<(), AssembleError> {
        if self.partial.len() + self.event.len() + self.answer.size() > MAX_BYTES {
            return Err(AssembleError::TooLarge);
        }
        Ok(())
    }

    /// Takes a line of the stream, by the rules of server-sent events, but that a lone carriage return ends none.
    fn line(&mut self, line: &[u8]) -> Result<(), AssembleError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = colon.map_or((line, &b""[..]), |at| (&line[..at], &line[at + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.push(b'\n');
                }
                self.event.extend_from_slice(value);
                self.check_size()
            }
            // How older llama-servers tell one.
            b"error" => Err(engine_error(text(value)?)),
            _ => Ok(()),
        }
    }

    /// Takes an event whose end came. What comes after `[DONE]` is no part of the answer.
    fn dispatch(&mut self) -> Result<(), AssembleError> {
        if !std::mem::take(&mut self.has_data) {
            return Ok(());
        }
        let mut event = std::mem::take(&mut self.event);
        if !self.done {
            match text(&event)?.trim() {
                "[DONE]" => self.done = true,
                // Says nothing, and is legal.
                "" => {}
                data => self.chunk(data)?,
            }
        }
        event.clear();
        self.event = event;
        self.check_size()
    }

    fn chunk(&mut self, data: &str) -> Result<(), AssembleError> {
        let error = self
            .answer
            .add(data)
            .map_err(|e| AssembleError::Malformed {
                detail: e.to_string(),
            })?;
        error.map_or(Ok(()), |error| Err(engine_error(error.get())))
    }
}

fn text(bytes: &[u8]) -> Result<&str, AssembleError> {
    std::str::from_utf8(bytes).map_err(|e| AssembleError::Malformed {
        detail: e.to_string(),
    })
}

/// The answer that an error in a stream stands for.
fn engine_error(error: &str) -> AssembleError {
    #[derive(Deserialize)]
    struct Error<'a> {
        #[serde(borrow)]
        code: &'a RawValue,
    }
    let code = serde_json::from_str::<Error<'_>>(error).ok();
    let code = code.and_then(|error| error.code.get().parse::<u16>().ok());
    let status = code
        .filter(|code| (400..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    AssembleError::Engine {
        status,
        body: format!(r#"{{"error":{error}}}"#).into(),
    }
}

#[cfg(test)]
mod tests;
