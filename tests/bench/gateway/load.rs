//! The clients of the bench: kept connections, TCP_NODELAY, one thread. What they get is checked to the last word.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::engine::TOKENS;

/// What an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How requests come.
#[derive(Debug, Clone, Copy)]
pub enum Arrivals {
    /// So many clients, each asking again as soon as it was answered.
    Closed(usize),
    /// So many requests a second, however long they take.
    Open(u32),
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    pub path: &'static str,
    pub body: String,
    /// Its answer comes as events, a word in each.
    pub streams: bool,
    /// What stands in an answer so many times.
    pub word: &'static str,
    pub words: usize,
}

/// What came of a round.
#[derive(Debug, Default)]
pub struct Round {
    pub answered: u32,
    /// What went wrong, and how often.
    pub errors: u32,
    pub error: Option<String>,
    /// Times to the first word, and between two arrivals within a stream, in ms.
    pub first: Vec<f64>,
    pub gaps: Vec<f64>,
}

/// Clients of one address, with the connections that they have made.
pub struct Clients {
    address: SocketAddr,
    prefix: &'static str,
    idle: Rc<RefCell<Vec<Client>>>,
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Clients {
    pub fn new(address: SocketAddr, prefix: &'static str) -> Self {
        Self {
            address,
            prefix,
            idle: Rc::default(),
        }
    }

    /// Asks for so long and waits for the last answer.
    pub fn run(
        &self,
        runtime: &tokio::runtime::Runtime,
        ask: &Ask,
        arrivals: Arrivals,
        lasting: Duration,
    ) -> Round {
        let request = format!(
            "POST {}{} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{}",
            self.prefix,
            ask.path,
            ask.body.len(),
            ask.body
        );
        let job = Rc::new(Job {
            address: self.address,
            request: request.into_bytes(),
            ask: ask.clone(),
            idle: Rc::clone(&self.idle),
            round: RefCell::default(),
        });
        LocalSet::new().block_on(runtime, async {
            let end = Instant::now() + lasting;
            let mut running = Vec::new();
            match arrivals {
                Arrivals::Closed(clients) => {
                    for _ in 0..clients {
                        let job = Rc::clone(&job);
                        running.push(tokio::task::spawn_local(async move {
                            while Instant::now() < end {
                                job.once(Instant::now()).await;
                            }
                        }));
                    }
                }
                Arrivals::Open(rate) => {
                    let mut ticks = ticks(Duration::from_secs(1) / rate);
                    while Instant::now() < end {
                        // A client that is late because of another has waited all the same.
                        let due = ticks.recv().await.expect("its thread goes on");
                        let job = Rc::clone(&job);
                        running.push(tokio::task::spawn_local(async move { job.once(due).await }));
                    }
                }
            }
            for running in running {
                running.await.expect("a client does not panic");
            }
        });
        Rc::into_inner(job)
            .expect("all clients have ended")
            .round
            .into_inner()
    }
}

/// Moments at even distances, each told when it is there. By a thread, which sleeps some 60 microseconds too long whoever is
/// asked: tokio's timers know milliseconds, and what a round would owe to them is ten times what routers differ by.
fn ticks(every: Duration) -> UnboundedReceiver<Instant> {
    let (tell, told) = unbounded_channel();
    std::thread::spawn(move || {
        let mut due = Instant::now();
        while tell.send(due).is_ok() {
            due += every;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    told
}

/// What the clients of a round share.
struct Job {
    address: SocketAddr,
    request: Vec<u8>,
    ask: Ask,
    idle: Rc<RefCell<Vec<Client>>>,
    round: RefCell<Round>,
}

impl Job {
    async fn once(&self, due: Instant) {
        let kept = self.idle.borrow_mut().pop();
        let asked = tokio::time::timeout(PATIENCE, async {
            let mut client = match kept {
                Some(client) => client,
                None => Client::connect(self.address).await?,
            };
            let keep = client
                .ask(due, &self.request, &self.ask, &self.round)
                .await?;
            Ok::<_, String>(keep.then_some(client))
        });
        let failed = match asked.await {
            Ok(Ok(client)) => {
                self.idle.borrow_mut().extend(client);
                return;
            }
            Ok(Err(why)) => why,
            Err(_) => format!("nothing for {PATIENCE:?}"),
        };
        let mut round = self.round.borrow_mut();
        round.errors += 1;
        round.error.get_or_insert(failed);
    }
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(32 << 10),
        })
    }

    /// Asks once, and counts the time from when that was due. Whether the connection is good for another time.
    async fn ask(
        &mut self,
        due: Instant,
        request: &[u8],
        ask: &Ask,
        round: &RefCell<Round>,
    ) -> Result<bool, String> {
        let Self { stream, buffer } = self;
        buffer.clear();
        stream.write_all(request).await.map_err(|e| e.to_string())?;
        let mut before = None;
        let mut first = None;
        let mut gaps = Vec::new();
        let mut size = None;
        loop {
            let read = stream.read_buf(buffer).await.map_err(|e| e.to_string())?;
            let now = Instant::now();
            if read == 0 {
                let told = String::from_utf8_lossy(buffer);
                return Err(format!(
                    "it broke off after {:?}",
                    told.chars().take(300).collect::<String>()
                ));
            }
            if ask.streams {
                if first.is_none() && memmem::find(buffer, ask.word.as_bytes()).is_some() {
                    first = Some(now - due);
                    before = Some(now);
                } else if let Some(before) = &mut before {
                    gaps.push((now - *before).as_secs_f64() * 1e3);
                    *before = now;
                }
            }
            if size.is_none() {
                size = size_of(buffer)?;
            }
            let ended = match size {
                None => false,
                Some(Size::Length(length)) => buffer.len() >= length,
                Some(Size::Chunked) => buffer.ends_with(b"\r\n0\r\n\r\n"),
            };
            if ended {
                break;
            }
        }
        let words = memmem::find_iter(buffer, ask.word.as_bytes()).count();
        if words != ask.words {
            return Err(format!(
                "{words} words of {}: {}",
                ask.words,
                String::from_utf8_lossy(buffer)
            ));
        }
        let head = memmem::find(buffer, b"\r\n\r\n").expect("it was read");
        let closes = buffer[..head].to_ascii_lowercase();
        let mut round = round.borrow_mut();
        round.answered += 1;
        round
            .first
            .extend(first.map(|first| first.as_secs_f64() * 1e3));
        round.gaps.append(&mut gaps);
        Ok(memmem::find(&closes, b"connection: close").is_none())
    }
}

enum Size {
    /// Of head and body together.
    Length(usize),
    Chunked,
}

/// How long the answer is that begins here, when its head is there.
fn size_of(buffer: &[u8]) -> Result<Option<Size>, String> {
    let Some(end) = memmem::find(buffer, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        return Err(String::from_utf8_lossy(buffer).into_owned());
    }
    let length = head.lines().find_map(|line| {
        line.strip_prefix("content-length:")?
            .trim()
            .parse::<usize>()
            .ok()
    });
    Ok(Some(length.map_or(Size::Chunked, |length| {
        Size::Length(end + 4 + length)
    })))
}

/// Words in a stream, each in an event of its own.
pub fn chat(stream: bool, pace_ms: u32) -> Ask {
    let said = "Write thirty-two words about whatever you like. ".repeat(8);
    let pace = if pace_ms > 0 {
        format!(",\"pace_ms\":{pace_ms}")
    } else {
        String::new()
    };
    Ask {
        path: "/v1/chat/completions",
        body: format!(
            "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{said}\"}}],\"stream\":{stream}{pace}}}"
        ),
        streams: stream,
        word: " word",
        words: TOKENS,
    }
}

/// An embedding of a sentence.
pub fn embedding() -> Ask {
    Ask {
        path: "/v1/embeddings",
        body: "{\"model\":\"m\",\"input\":\"Write thirty-two words about whatever you like.\"}"
            .to_owned(),
        streams: false,
        word: "\"embedding\":[",
        words: 1,
    }
}
