//! An HTTP/1.1 client that hides nothing: a socket for each request, blocking reads, and a body that can be left at any
//! moment by dropping it.
//!
//! Invariants: an answer that breaks off is an error, never a short body; no read waits for ever, and neither does an
//! exchange, however slowly its answer comes. Used by the journeys and by those who wait for a process to be ready.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// How long a connection may take, and how long a peer may be silent.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(30);
/// How long all of an answer may take, from when it is waited for.
const EXCHANGE: Duration = Duration::from_secs(120);

/// An answer whose head has come.
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

/// How the end of a body is known.
enum Framing {
    /// Bytes left of this chunk; the end chunk has not come.
    Chunked(u64),
    /// Bytes left of the body.
    Length(u64),
    /// When the connection closes.
    Close,
}

struct Body {
    stream: BufReader<Bounded>,
    framing: Framing,
}

/// A connection from which an answer is read, until it has taken too long in all.
struct Bounded {
    stream: TcpStream,
    until: Instant,
}

impl Bounded {
    fn by(stream: TcpStream, limit: Duration) -> BufReader<Self> {
        let until = Instant::now() + limit;
        BufReader::new(Self { stream, until })
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = "the answer takes longer than any may";
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        let limit = left.min(SILENCE);
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.read(buffer).map_err(|e| match e.kind() {
            // What Linux calls a read that its timeout ends.
            ErrorKind::WouldBlock => {
                let what = format!("nothing came in {limit:?}");
                io::Error::new(ErrorKind::TimedOut, what)
            }
            _ => e,
        })
    }
}

/// Asks with GET.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    request(address, "GET", path, None)
}

/// Asks with GET for JSON that must be there.
pub fn get_json(address: SocketAddr, path: &str) -> Value {
    let ask = || {
        let response = get(address, path)?;
        Ok::<_, io::Error>((response.status, response.text()?))
    };
    let (status, text) = ask().unwrap_or_else(|e| panic!("GET {path} of {address}: {e}"));
    assert_eq!(status, 200, "GET {path} of {address}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("GET {path} is not JSON: {e}: {text}"))
}

/// Asks with POST and a JSON body.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> io::Result<Response> {
    request(address, "POST", path, Some(body))
}

/// A request as it is written: a head with `headers` and the length of the body, then the body.
pub fn written(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: orchd.test\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text += "\r\n";
    let mut request = text.into_bytes();
    request.extend_from_slice(body);
    request
}

/// Sends a request as it is written, and waits for the head of its answer.
pub fn send(address: SocketAddr, request: &[u8]) -> io::Result<Response> {
    begin(address, request)?.answer()
}

/// Opens a connection and sends these bytes, whatever they are.
pub fn begin(address: SocketAddr, bytes: &[u8]) -> io::Result<Begun> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut begun = Begun { stream };
    begun.more(bytes)?;
    Ok(begun)
}

/// A request under way, whole or in part. Dropping it is leaving.
pub struct Begun {
    stream: TcpStream,
}

impl Begun {
    /// Sends more bytes.
    pub fn more(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The connection itself.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Waits for the head of the answer. The connection lives as long as the answer does.
    pub fn answer(self) -> io::Result<Response> {
        Response::read(Bounded::by(self.stream, EXCHANGE))
    }

    /// Sends a request and waits for the head of its answer, which must be read to its end before the next.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<Response> {
        self.more(request)?;
        Response::read(Bounded::by(self.stream.try_clone()?, EXCHANGE))
    }
}

fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    if let Some(body) = body {
        let body = body.to_string();
        let length = body.len();
        text +=
            &format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
    } else {
        text += "\r\n";
    }
    stream.write_all(text.as_bytes())?;
    Response::read(Bounded::by(stream, EXCHANGE))
}

fn invalid(what: &str, line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what}: {line:?}"))
}

/// One line without its end; the end of the connection before it is an error.
fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    stream.read_line(&mut text)?;
    match text.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            format!("the connection ended within a line: {text:?}"),
        )),
    }
}

impl Response {
    fn read(mut stream: BufReader<Bounded>) -> io::Result<Self> {
        let first = line(&mut stream)?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| invalid("not a status line", &first))?;
        let mut headers = Vec::new();
        loop {
            let line = line(&mut stream)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| invalid("not a header", &line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        let framing = match (find("transfer-encoding"), find("content-length")) {
            (Some("chunked"), None) => Framing::Chunked(0),
            (None, Some(length)) => Framing::Length(
                length
                    .parse()
                    .map_err(|_| invalid("not a length", length))?,
            ),
            (None, None) => Framing::Close,
            (encoding, _) => {
                return Err(invalid(
                    "a body without a clear end",
                    &format!("{encoding:?}"),
                ));
            }
        };
        Ok(Self {
            status,
            headers,
            body: Body { stream, framing },
        })
    }

    /// A header by its name in lower case.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }

    /// Every header, its name in lower case.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// All of the body, which must be JSON.
    pub fn json(self) -> Value {
        let status = self.status;
        let text = self
            .text()
            .unwrap_or_else(|e| panic!("the body of a {status} broke off: {e}"));
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("the body of a {status} is not JSON: {e}: {text:?}"))
    }

    /// All of the body.
    pub fn text(mut self) -> io::Result<String> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The body as server-sent events, as they come.
    pub fn events(self) -> Events {
        Events {
            body: BufReader::new(self.body),
        }
    }
}

impl Body {
    /// Reads the line that starts a chunk, or what follows the last one.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let head = line(&mut self.stream)?;
        let size = head.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size.trim(), 16)
            .map_err(|_| invalid("not the size of a chunk", &head))?;
        if size == 0 {
            while !line(&mut self.stream)?.is_empty() {}
            // From here on it is a body that was read to its end.
            self.framing = Framing::Length(0);
        }
        Ok(size)
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.framing {
            Framing::Close => return self.stream.read(buffer),
            Framing::Length(0) => return Ok(0),
            Framing::Length(left) => left,
            Framing::Chunked(0) => match self.next_chunk()? {
                0 => return Ok(0),
                size => size,
            },
            Framing::Chunked(left) => left,
        };
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.stream.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the connection ended before the body did",
            ));
        }
        let left = left - read as u64;
        match &mut self.framing {
            Framing::Chunked(chunk) => {
                *chunk = left;
                if left == 0 && !line(&mut self.stream)?.is_empty() {
                    return Err(invalid("a chunk is longer than it said", ""));
                }
            }
            Framing::Length(length) => *length = left,
            Framing::Close => {}
        }
        Ok(read)
    }
}

/// A stream of server-sent events. Dropping it closes the connection.
pub struct Events {
    body: BufReader<Body>,
}

impl Events {
    /// The lines of the next frame, comments included; `None` when the body came to its proper end.
    pub fn frame(&mut self) -> io::Result<Option<Vec<String>>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.body.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if !line.is_empty() {
                lines.push(line.to_owned());
            } else if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    /// The data of the next event; `None` when the body came to its proper end. Comments are passed over.
    pub fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let mut line = String::new();
            if self.body.read_line(&mut line)? == 0 {
                return match data {
                    None => Ok(None),
                    Some(data) => Err(invalid("the body ends within an event", &data)),
                };
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                }
            }
        }
    }
}

#[test]
fn an_answer_that_trickles_ends_with_an_error() {
    use std::net::{Ipv4Addr, TcpListener};

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
        client.write_all(head.as_bytes()).expect("it reads");
        // Until it leaves.
        while client.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let stream = TcpStream::connect(address).expect("it listens");
    let limit = Duration::from_millis(300);
    let response = Response::read(Bounded::by(stream, limit)).expect("a head");
    let error = response.text().expect_err("it takes too long");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}
