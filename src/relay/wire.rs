//! HTTP/1.1 as a client of engines and agents speaks it: one connection, one exchange after the other, no task.
//!
//! Purpose: an answer is read where it is passed on, in the poll of whoever writes it to the client. What lies in the
//! socket at that moment is one read and, whatever it was cut into, one piece: a stream of many small events costs as few
//! writes as it came in. A client library with a task for each connection hands them over one by one (decision 0010).
//!
//! Invariants: nothing is read ahead of what is asked for, so that a client that does not read holds its engine back; an
//! answer's end is where its framing says (RFC 9112, 6.3), and a connection that ends before has lost it; whatever is not
//! HTTP is an error and never passed on. Dropping it closes the socket. Used by `connections`, `body` and `vitals`.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Most headers of an answer, and bytes of its head: ten times what engines send.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 << 10;
/// So many headers whoever passes an answer on is likely to add.
const MORE_HEADERS: usize = 8;
/// Longest line that says how long a chunk is, with the extensions nobody uses; and what may come behind the last chunk.
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;
const MAX_TRAILER_BYTES: u32 = 64 << 10;
/// Most answers that say nothing yet (100, 103) before the one that does.
const MAX_INTERIM: u32 = 16;
/// How much is read at a time: a few events at first, and more of an upstream that fills that. Of the next answer on the
/// connection as much as of the largest so far, within reason: whoever waits for it waits with that much memory.
const FIRST_READ_BYTES: usize = 4 << 10;
const NEXT_READ_BYTES: usize = 16 << 10;
const MOST_READ_BYTES: usize = 64 << 10;
/// A request's body up to this size is sent in one piece with its head.
const SMALL_BODY_BYTES: usize = 16 << 10;

/// Why there is no more of an answer.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended before the answer did.
    #[error("the connection ended before the answer did")]
    Closed,
    /// What came is no answer.
    #[error("what it sent is no HTTP/1.1 answer: {0}")]
    Malformed(&'static str),
}

impl WireError {
    /// What went wrong, as the system would say it.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io(e) => e.kind(),
            Self::Closed => io::ErrorKind::UnexpectedEof,
            Self::Malformed(_) => io::ErrorKind::InvalidData,
        }
    }
}

/// Bytes both ways.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection to an upstream.
pub(super) struct Wire<IO> {
    socket: IO,
    /// What was read and is not yet passed on.
    buffer: BytesMut,
    read_bytes: usize,
    framing: Framing,
    /// Answers so far that said nothing yet.
    interim: u32,
    /// It can carry another exchange once this one has ended.
    lasting: bool,
}

/// Where in an answer's body the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunk),
    /// As long as the connection.
    UntilClosed,
    Ended,
}

/// Where in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Before a line that says how long the next one is.
    Size,
    /// So many bytes of one are to come.
    Data(u64),
    /// Before the end of line behind one.
    DataEnd,
    /// Behind the last one, so many bytes of trailers have passed.
    Trailers(u32),
}

/// How far a request has been sent.
enum Sending {
    /// So many bytes were.
    Yes(usize),
    Done,
    /// Nobody listens any more.
    Failed(io::Error),
}

/// A request, as it is written.
pub(super) struct Message<'a> {
    /// Request line and headers; and the body, where it is small.
    pub head: Vec<u8>,
    pub body: &'a [u8],
    /// An answer to it has no body, whatever its headers say: it is a HEAD.
    pub bodiless: bool,
}

impl<'a> Message<'a> {
    /// The headers must be without those of the connection, transfer codings among them; how long the body is, and for whom
    /// it is, is said anew.
    pub fn new(
        method: &http::Method,
        target: [&str; 2],
        authority: &str,
        headers: &HeaderMap,
        body: &'a [u8],
    ) -> Self {
        let small = body.len() <= SMALL_BODY_BYTES;
        let mut head = Vec::with_capacity(768 + if small { body.len() } else { 0 });
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
        let [base, path] = target.map(str::as_bytes);
        put(&[
            method.as_str().as_bytes(),
            b" ",
            base,
            path,
            b" HTTP/1.1\r\nhost: ",
        ]);
        put(&[authority.as_bytes(), b"\r\n"]);
        for (name, value) in headers {
            if *name != header::HOST && *name != header::CONTENT_LENGTH {
                put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
            }
        }
        let has_one = matches!(
            *method,
            http::Method::POST | http::Method::PUT | http::Method::PATCH
        );
        if has_one || !body.is_empty() {
            put(&[
                b"content-length: ",
                body.len().to_string().as_bytes(),
                b"\r\n",
            ]);
        }
        put(&[b"\r\n"]);
        if small {
            put(&[body]);
        }
        Self {
            head,
            body: if small { &[] } else { body },
            bodiless: *method == http::Method::HEAD,
        }
    }
}

impl<IO: Socket> Wire<IO> {
    pub fn new(socket: IO) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            read_bytes: FIRST_READ_BYTES,
            framing: Framing::Ended,
            interim: 0,
            lasting: true,
        }
    }

    /// Whether the other side has kept the connection open and silent, as it should between two exchanges.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let mut nobody = Context::from_waker(Waker::noop());
        Pin::new(&mut self.socket)
            .poll_read(&mut nobody, &mut byte)
            .is_pending()
    }

    /// Whether another exchange may follow on it.
    pub fn is_reusable(&self) -> bool {
        self.lasting && self.framing == Framing::Ended && self.buffer.is_empty()
    }

    /// Gives back the memory that the last answer took.
    pub fn rest(&mut self) {
        self.buffer = BytesMut::new();
        self.read_bytes = self.read_bytes.min(NEXT_READ_BYTES);
    }

    /// How many bytes of the answer are to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Ended => Some(0),
            Framing::Chunked(_) | Framing::UntilClosed => None,
        }
    }

    /// Sends a request and reads the head of its answer. A refusal that comes before all was sent is an answer: what is left is
    /// not sent.
    ///
    /// # Errors
    /// See [`WireError`].
    pub async fn ask(&mut self, message: &Message<'_>) -> Result<Parts, WireError> {
        let mut sending = Sending::Yes(0);
        let mut answer = None;
        poll_fn(|cx| {
            if let Sending::Yes(sent) = &mut sending {
                match self.poll_send(cx, message, sent) {
                    Poll::Ready(Ok(())) => sending = Sending::Done,
                    // The other side may have said why before it stopped to listen.
                    Poll::Ready(Err(e)) => sending = Sending::Failed(e),
                    Poll::Pending => {}
                }
            }
            while answer.is_none() {
                answer = self.take_head(message.bodiless)?;
                if answer.is_none() {
                    let lost = match ready!(self.poll_fill(cx)) {
                        Ok(0) => WireError::Closed,
                        Ok(_) => continue,
                        Err(e) => WireError::Io(e),
                    };
                    return Poll::Ready(Err(
                        match std::mem::replace(&mut sending, Sending::Done) {
                            Sending::Failed(e) => WireError::Io(e),
                            _ => lost,
                        },
                    ));
                }
            }
            // What begins to answer well before it has heard everything goes on to listen: it may need the rest.
            let is_refusal = answer
                .as_ref()
                .is_some_and(|parts| !parts.status.is_success());
            if matches!(sending, Sending::Yes(_)) && !is_refusal {
                return Poll::Pending;
            }
            self.lasting &= matches!(sending, Sending::Done);
            Poll::Ready(Ok(answer.take().expect("the loop ends with one")))
        })
        .await
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        message: &Message<'_>,
        sent: &mut usize,
    ) -> Poll<io::Result<()>> {
        let Message { head, body, .. } = message;
        while *sent < head.len() + body.len() {
            let socket = Pin::new(&mut self.socket);
            let written = match sent.checked_sub(head.len()) {
                Some(of_body) => ready!(socket.poll_write(cx, &body[of_body..]))?,
                None if body.is_empty() => ready!(socket.poll_write(cx, &head[*sent..]))?,
                None => {
                    let both = [IoSlice::new(&head[*sent..]), IoSlice::new(body)];
                    ready!(socket.poll_write_vectored(cx, &both))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += written;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.reserve(self.read_bytes);
        let room = self.buffer.capacity() - self.buffer.len();
        let read = ready!(pin!(self.socket.read_buf(&mut self.buffer)).poll(cx))?;
        if read == room {
            self.read_bytes = (self.read_bytes * 2).min(MOST_READ_BYTES);
        }
        Poll::Ready(Ok(read))
    }

    /// The head of an answer, once all of it is there. Those that come before it (100, 103) are passed over.
    fn take_head(&mut self, bodiless: bool) -> Result<Option<Parts>, WireError> {
        loop {
            if self.buffer.is_empty() {
                return Ok(None);
            }
            let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
            let mut answer = httparse::Response::new(&mut []);
            let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut answer,
                &self.buffer,
                &mut headers,
            );
            let length = match parsed {
                Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
                Ok(httparse::Status::Partial) if self.buffer.len() < MAX_HEAD_BYTES => {
                    return Ok(None);
                }
                Ok(_) => return Err(WireError::Malformed("its head is too long")),
                Err(httparse::Error::TooManyHeaders) => {
                    return Err(WireError::Malformed("it has too many headers"));
                }
                Err(_) => return Err(WireError::Malformed("its head cannot be read")),
            };
            let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or(WireError::Malformed("it has no status"))?;
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(WireError::Malformed(
                    "101 Switching Protocols, which nobody asked for",
                ));
            }
            if status.is_informational() {
                self.buffer.advance(length);
                self.interim += 1;
                if self.interim > MAX_INTERIM {
                    return Err(WireError::Malformed(
                        "it says again and again that it has no answer yet",
                    ));
                }
                continue;
            }
            self.interim = 0;
            let is_old = answer.version == Some(0);
            let places: Vec<_> = (answer.headers.iter())
                .map(|header| {
                    (
                        place(&self.buffer, header.name.as_bytes()),
                        place(&self.buffer, header.value),
                    )
                })
                .collect();
            let head = self.buffer.split_to(length).freeze();
            let mut parts = Response::new(()).into_parts().0;
            parts.status = status;
            parts.version = if is_old {
                Version::HTTP_10
            } else {
                Version::HTTP_11
            };
            parts.headers.reserve(places.len() + MORE_HEADERS);
            for (name, value) in places {
                let name = HeaderName::from_bytes(&head[name]);
                let value = HeaderValue::from_maybe_shared(head.slice(value));
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(WireError::Malformed("a header cannot be read"));
                };
                parts.headers.append(name, value);
            }
            self.framing = framing(&parts, bodiless)?;
            // Whoever says two things of a body's length may have meant the other one; only the one that counts goes on.
            let is_clear = !parts.headers.contains_key(header::TRANSFER_ENCODING)
                || parts.headers.remove(header::CONTENT_LENGTH).is_none();
            if let Framing::Length(length) = self.framing {
                // Once, and not as a list. Most have it so.
                let mut said = parts.headers.get_all(header::CONTENT_LENGTH).iter();
                let is_number =
                    |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
                if !said.next().is_some_and(is_number) || said.next().is_some() {
                    parts.headers.insert(header::CONTENT_LENGTH, length.into());
                }
            }
            self.lasting = !is_old
                && is_clear
                && self.framing != Framing::UntilClosed
                && !closes(&parts.headers);
            return Ok(Some(parts));
        }
    }

    /// The next piece of the answer's body: all that lies ready. None when it has ended.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, WireError>>> {
        loop {
            if let Some(data) = self.take_data()? {
                return Poll::Ready(Some(Ok(data)));
            }
            if self.framing == Framing::Ended {
                return Poll::Ready(None);
            }
            if ready!(self.poll_fill(cx))? == 0 {
                if self.framing != Framing::UntilClosed {
                    return Poll::Ready(Some(Err(WireError::Closed)));
                }
                self.framing = Framing::Ended;
            }
        }
    }

    /// What of the body was read. None when that is nothing, be it that there will be no more.
    fn take_data(&mut self) -> Result<Option<Bytes>, WireError> {
        let data = match &mut self.framing {
            Framing::Ended => return Ok(None),
            Framing::UntilClosed => self.buffer.split(),
            Framing::Length(left) => {
                let length = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                *left -= length as u64;
                let data = self.buffer.split_to(length);
                if *left == 0 {
                    self.framing = Framing::Ended;
                }
                data
            }
            Framing::Chunked(at) => {
                let (data, ended) = unchunk(&mut self.buffer, at)?;
                if ended {
                    self.framing = Framing::Ended;
                }
                data
            }
        };
        Ok((!data.is_empty()).then(|| data.freeze()))
    }
}

/// Takes what a chunked body has in `buffer`, put together without what lay between, and says whether that was its end.
fn unchunk(buffer: &mut BytesMut, at: &mut Chunk) -> Result<(BytesMut, bool), WireError> {
    // Bytes `start..end` are data, those up to `read` are done with.
    let (mut start, mut end, mut read) = (0, 0, 0);
    let ended = loop {
        let rest = &buffer[read..];
        match *at {
            Chunk::Data(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                if length == 0 {
                    break false;
                }
                if start == end {
                    (start, end) = (read, read);
                } else {
                    buffer.copy_within(read..read + length, end);
                }
                end += length;
                read += length;
                *at = match left - length as u64 {
                    0 => Chunk::DataEnd,
                    left => Chunk::Data(left),
                };
            }
            Chunk::DataEnd => match rest {
                [b'\r', b'\n', ..] => {
                    read += 2;
                    *at = Chunk::Size;
                }
                [] | [b'\r'] => break false,
                _ => return Err(WireError::Malformed("a chunk is longer than it says")),
            },
            Chunk::Size => match memchr(b'\n', rest) {
                Some(length) if length < MAX_CHUNK_LINE_BYTES => {
                    *at = match chunk_size(&rest[..length])? {
                        0 => Chunk::Trailers(0),
                        size => Chunk::Data(size),
                    };
                    read += length + 1;
                }
                None if rest.len() < MAX_CHUNK_LINE_BYTES => break false,
                _ => return Err(WireError::Malformed("a chunk does not say how long it is")),
            },
            Chunk::Trailers(passed) => {
                let line = memchr(b'\n', rest);
                let length = line.map_or(rest.len(), |line| line + 1);
                let passed = passed.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
                if passed > MAX_TRAILER_BYTES {
                    return Err(WireError::Malformed("its trailers are too long"));
                }
                if line.is_none() {
                    break false;
                }
                let is_last = matches!(&rest[..length], b"\n" | b"\r\n");
                read += length;
                if is_last {
                    break true;
                }
                *at = Chunk::Trailers(passed);
            }
        }
    };
    if start == end {
        buffer.advance(read);
        return Ok((BytesMut::new(), ended));
    }
    buffer.advance(start);
    let data = buffer.split_to(end - start);
    buffer.advance(read - end);
    Ok((data, ended))
}

/// What a line says that precedes a chunk: hexadecimal digits, then perhaps an extension.
fn chunk_size(line: &[u8]) -> Result<u64, WireError> {
    let malformed = WireError::Malformed("a chunk does not say how long it is");
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let behind = line[digits..].trim_ascii_start();
    if !(behind.is_empty() || behind.starts_with(b";")) {
        return Err(malformed);
    }
    std::str::from_utf8(&line[..digits])
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(malformed)
}

/// Where a part of a buffer lies in it.
fn place(whole: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

/// How the body of an answer is framed (RFC 9112, 6.3).
fn framing(parts: &Parts, bodiless: bool) -> Result<Framing, WireError> {
    if bodiless
        || matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        )
    {
        return Ok(Framing::Ended);
    }
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let is_chunked = coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked");
        if !is_chunked || codings.next().is_some() {
            return Err(WireError::Malformed(
                "its transfer coding is not chunked alone",
            ));
        }
        return Ok(Framing::Chunked(Chunk::Size));
    }
    let mut length = None;
    let lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    for said in lengths.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let said = said.trim_ascii();
        let number = std::str::from_utf8(said)
            .ok()
            .and_then(|said| said.parse::<u64>().ok());
        let number = number.filter(|_| said.iter().all(u8::is_ascii_digit));
        if number.is_none() || length.is_some_and(|length| Some(length) != number) {
            return Err(WireError::Malformed("its content-length is none"));
        }
        length = number;
    }
    Ok(match length {
        Some(0) => Framing::Ended,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClosed,
    })
}

/// Whether the other side says that it will close.
fn closes(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

#[cfg(test)]
mod tests;
