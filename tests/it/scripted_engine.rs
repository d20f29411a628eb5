//! A `llama-server` that does what a test says, to the byte: answers, dawdles, breaks off, or is never heard of again.
//!
//! Invariants: what a prober asks is answered as the real one answers it, its slots as they are taken at that moment;
//! every other request takes the next script in order of arrival; a request without a script, a script without a
//! request, and more work than there are slots each fail the test when the engine ends. Used by `gateway` and `api`.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{eventually, free_address};

/// How long a test waits for something to happen at an engine.
const SOON: Duration = Duration::from_secs(10);
/// How many of its requests are shown when a test fails.
const SHOWN: usize = 30;
/// Context of a slot, as the engine tells it unless a test says otherwise.
pub const N_CTX: u64 = 2_048;

/// One step of an answer.
#[derive(Debug, Clone)]
enum Move {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes again and again.
    Flood(Vec<u8>),
    /// Does nothing for a while.
    Pause(Duration),
    /// Does nothing until the test calls [`ScriptedEngine::go`].
    Hold,
    /// Does nothing until the client leaves.
    Silence,
    /// Closes the connection.
    Close,
    /// Closes the connection as a process that crashes does.
    Reset,
}

/// How a request is answered. Without [`close`](Self::close) or [`reset`](Self::reset) at its end the connection is kept.
#[derive(Debug, Clone, Default)]
pub struct Script(Vec<Move>);

impl Script {
    /// Nothing so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// An answer with a length. As with the real one, an error closes its connection.
    pub fn whole(status: u16, body: &str) -> Self {
        Self::whole_with(status, &[], body)
    }

    /// An answer with a length and more headers.
    pub fn whole_with(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let length = body.len().to_string();
        let keep = if status < 400 {
            ("Keep-Alive", "timeout=5, max=100")
        } else {
            ("Connection", "close")
        };
        let kind = ("Content-Type", "application/json; charset=utf-8");
        let mut all = vec![kind, ("Content-Length", &length), keep];
        all.extend_from_slice(headers);
        let script = Self::new().bytes(&head(status, &all)).bytes(body);
        if status < 400 { script } else { script.close() }
    }

    /// The head of a stream of events.
    pub fn stream() -> Self {
        Self::chunked("text/event-stream")
    }

    /// The head of an answer of this type that comes in chunks.
    pub fn chunked(kind: &str) -> Self {
        let headers = [
            ("X-Accel-Buffering", "no"),
            ("Content-Type", kind),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "timeout=5, max=100"),
        ];
        Self::new().bytes(&head(200, &headers))
    }

    /// These bytes.
    pub fn bytes(self, bytes: &str) -> Self {
        self.then(Move::Send(bytes.into()))
    }

    /// A chunk.
    pub fn chunk(self, text: &str) -> Self {
        self.bytes(&format!("{:x}\r\n{text}\r\n", text.len()))
    }

    /// A chunk with an event of this data.
    pub fn event(self, data: &str) -> Self {
        self.chunk(&format!("data: {data}\n\n"))
    }

    /// So many events, one after the other with a pause before each: `{"n":1}`, `{"n":2}` and so on.
    pub fn events(self, count: usize, pace: Duration) -> Self {
        (1..=count).fold(self, |script, n| {
            script.pause(pace).event(&format!("{{\"n\":{n}}}"))
        })
    }

    /// Events of so many bytes, one after the other without end.
    pub fn flood(self, bytes: usize) -> Self {
        let event = format!("data: {}\n\n", "x".repeat(bytes));
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        self.then(Move::Flood(chunk.into()))
    }

    /// The end chunk.
    pub fn end(self) -> Self {
        self.bytes("0\r\n\r\n")
    }

    /// Waits.
    pub fn pause(self, pause: Duration) -> Self {
        self.then(Move::Pause(pause))
    }

    /// Waits for [`ScriptedEngine::go`].
    pub fn hold(self) -> Self {
        self.then(Move::Hold)
    }

    /// Everything of another script.
    pub fn then_all(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The same, once [`ScriptedEngine::go`] was called.
    pub fn held(mut self) -> Self {
        self.0.insert(0, Move::Hold);
        self
    }

    /// Says nothing more, and keeps the connection open.
    pub fn silence(self) -> Self {
        self.then(Move::Silence)
    }

    /// Closes the connection, in order.
    pub fn close(self) -> Self {
        self.then(Move::Close)
    }

    /// Closes the connection by a reset.
    pub fn reset(self) -> Self {
        self.then(Move::Reset)
    }

    /// What another one does, after this.
    pub fn append(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    fn then(mut self, step: Move) -> Self {
        self.0.push(step);
        self
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let mut text = format!(
        "HTTP/1.1 {status} Scripted\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
    );
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text + "\r\n"
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which of the engine's connections it came on, counted from 0.
    pub connection: usize,
    /// When all of it had come.
    pub arrived: Instant,
    /// When the first bytes of its answer went out.
    pub began: Option<Instant>,
    /// When its slots were free again.
    pub finished: Option<Instant>,
    /// When the client was seen to have closed the connection before the answer was complete.
    pub left: Option<Instant>,
}

impl Asked {
    /// A header by its name in lower case; several of one name are joined.
    pub fn header(&self, wanted: &str) -> Option<String> {
        let values: Vec<&str> = self
            .headers
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Every header, names in lower case.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Slots that the real engine uses for it, as measured: any number is a number to it, `n` has another name there,
    /// and every prompt or input of a list takes one.
    fn weight(&self, slots: usize) -> usize {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let number = |name: &str| body[name].as_f64();
        let n = number("n_cmpl").or_else(|| number("n")).unwrap_or(1.0);
        let many = |name: &str| match &body[name] {
            // A list with single tokens in it is one prompt.
            Value::Array(list) if list.iter().all(|p| !p.is_number()) => list.len().max(1),
            _ => 1,
        };
        // Saturates, and takes nonsense for nothing.
        let n = (n as usize).clamp(1, slots);
        (n * many("prompt") * many("input")).min(slots)
    }
}

struct Record {
    asked: Asked,
    /// How often its script may pass a hold.
    goes: Arc<Semaphore>,
    /// Slots it takes; 0 once the last of its answer is on its way, or its client has left.
    weight: usize,
    /// Events of a flood that went out.
    sent: usize,
}

struct State {
    model: String,
    slots: usize,
    n_ctx: u64,
    scripts: VecDeque<Script>,
    /// For requests beyond those of `scripts`.
    always: Option<Script>,
    records: Vec<Record>,
    /// What a prober asked.
    probes: Vec<Asked>,
    connections: usize,
    unexpected: Vec<String>,
    /// The most slots that were taken at a time.
    peak: usize,
    loading: bool,
}

impl State {
    fn busy(&self) -> usize {
        self.records.iter().map(|record| record.weight).sum()
    }
}

enum Command {
    /// Closes the listener; connections stay.
    Refuse(mpsc::Sender<()>),
    /// Closes everything.
    Kill(mpsc::Sender<()>),
}

/// A scripted engine on a port of its own.
pub struct ScriptedEngine {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    commands: Option<UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ScriptedEngine {
    /// Starts one that serves `model` in `slots` slots.
    pub fn start(model: &str, slots: usize) -> Self {
        let address = free_address();
        // A process that another thread starts just now has, for a moment, the socket with which the port was tried.
        let (listener, _) = eventually(SOON, "the port is this test's own", || {
            TcpListener::bind(address).map_err(|e| e.to_string())
        });
        listener
            .set_nonblocking(true)
            .expect("sockets can be non-blocking");
        let state = Arc::new(Mutex::new(State {
            model: model.to_owned(),
            slots,
            n_ctx: N_CTX,
            scripts: VecDeque::new(),
            always: None,
            records: Vec::new(),
            probes: Vec::new(),
            connections: 0,
            unexpected: Vec::new(),
            peak: 0,
            loading: false,
        }));
        let (commands, inbox) = unbounded_channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(listen(listener, shared, inbox));
        });
        Self {
            address,
            state,
            commands: Some(commands),
            thread: Some(thread),
        }
    }

    /// From now on it answers those who watch it as one does that reads its model, or no longer does.
    pub fn loading(&self, loading: bool) {
        lock(&self.state).loading = loading;
    }

    /// The same with so much context for each slot. To be said before anybody reads it.
    pub fn with_context(self, n_ctx: u64) -> Self {
        lock(&self.state).n_ctx = n_ctx;
        self
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// As `--engine` takes it.
    pub fn named(&self, name: &str) -> String {
        format!("{name}={}", self.url())
    }

    /// The next requests are answered so, in order of arrival.
    pub fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        lock(&self.state).scripts.extend(scripts);
    }

    /// Every request that finds no script is answered so.
    pub fn always(&self, script: Script) {
        lock(&self.state).always = Some(script);
    }

    /// Lets the request of this number pass the next hold of its script.
    pub fn go(&self, number: usize) {
        lock(&self.state).records[number].goes.add_permits(1);
    }

    /// All requests so far that were not a prober's, in order of arrival.
    pub fn asked(&self) -> Vec<Asked> {
        let state = lock(&self.state);
        state
            .records
            .iter()
            .map(|record| record.asked.clone())
            .collect()
    }

    /// What a prober asked so far.
    pub fn probes(&self) -> Vec<Asked> {
        lock(&self.state).probes.clone()
    }

    /// How many slots are taken at this moment.
    pub fn busy(&self) -> usize {
        lock(&self.state).busy()
    }

    /// The most slots that were taken at a time.
    pub fn peak(&self) -> usize {
        lock(&self.state).peak
    }

    /// Waits until so many requests have come, and gives the last of them.
    pub fn wait_for(&self, count: usize) -> Asked {
        let what = format!("{count} requests at the engine");
        let look = || {
            let state = lock(&self.state);
            let record = state.records.get(count - 1);
            record
                .map(|record| record.asked.clone())
                .ok_or_else(|| format!("{} came", state.records.len()))
        };
        eventually(SOON, &what, look).0
    }

    /// Waits until the answer to the request of this number has begun.
    pub fn wait_began(&self, number: usize) -> Instant {
        let look = || {
            let began = lock(&self.state).records[number].asked.began;
            began.ok_or_else(|| "not yet".to_owned())
        };
        eventually(SOON, "its answer has begun", look).0
    }

    /// Waits until a flood no longer gets through to its client.
    pub fn wait_stuck(&self, number: usize) {
        let mut before = 0;
        eventually(SOON, "nobody reads what the engine says", || {
            let sent = lock(&self.state).records[number].sent;
            let moved = std::mem::replace(&mut before, sent) != sent || sent == 0;
            if !moved {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(300));
            Err(format!("{sent} events were sent"))
        });
    }

    /// Waits until the client of the request of this number was seen to leave, and says when that was.
    pub fn wait_left(&self, number: usize) -> Instant {
        let look = || {
            lock(&self.state).records[number]
                .asked
                .left
                .ok_or_else(|| "it is still there".to_owned())
        };
        eventually(SOON, "the engine sees its client leave", look).0
    }

    /// Refuses connections from now on. Those that are open go on.
    pub fn refuse(&self) {
        self.command(Command::Refuse);
    }

    /// Refuses connections from now on, and closes those that are open.
    pub fn kill(&self) {
        self.command(Command::Kill);
    }

    fn command(&self, command: impl FnOnce(mpsc::Sender<()>) -> Command) {
        let (done, wait) = mpsc::channel();
        let commands = self.commands.as_ref().expect("it has not ended");
        commands.send(command(done)).expect("its thread runs");
        wait.recv_timeout(SOON).expect("it does as it is told");
    }
}

impl Drop for ScriptedEngine {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Its panic is shown already.
            let _ = thread.join();
        }
        let state = lock(&self.state);
        let lines: Vec<String> = state
            .records
            .iter()
            .map(|Record { asked, .. }| format!("{} {}", asked.method, asked.target))
            .collect();
        if std::thread::panicking() {
            let last = &lines[lines.len().saturating_sub(SHOWN)..];
            let (address, all) = (self.address, lines.len());
            eprintln!(
                "--- the engine at {address} was asked {all} things, the last of them {last:#?}"
            );
            return;
        }
        assert_eq!(
            state.unexpected,
            Vec::<String>::new(),
            "requests that the script of this engine does not have"
        );
        assert_eq!(
            state.scripts.len(),
            0,
            "scripts whose request never came; these came: {lines:#?}"
        );
        assert!(
            state.peak <= state.slots,
            "{} of {} slots were taken at a time",
            state.peak,
            state.slots
        );
    }
}

async fn listen(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    mut inbox: UnboundedReceiver<Command>,
) {
    let mut listener = Some(tokio::net::TcpListener::from_std(listener).expect("a listener"));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => {
                let (stream, _) = accepted.expect("a connection");
                let number = {
                    let mut state = lock(&state);
                    state.connections += 1;
                    state.connections - 1
                };
                connections.spawn(serve(stream, number, Arc::clone(&state)));
            }
            Some(ended) = connections.join_next() => ended.expect("no panic in a connection"),
            command = inbox.recv() => match command {
                None => return,
                Some(Command::Refuse(done)) => {
                    listener = None;
                    let _ = done.send(());
                }
                Some(Command::Kill(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    for record in &mut lock(&state).records {
                        record.weight = 0;
                    }
                    let _ = done.send(());
                }
            },
        }
    }
}

/// How a script, and with it perhaps the connection, came to its end.
enum Played {
    Kept,
    Closed,
    Reset,
    Left,
}

async fn serve(mut stream: TcpStream, connection: usize, state: Arc<Mutex<State>>) {
    stream.set_nodelay(true).expect("an open socket");
    let mut buffer = Vec::new();
    while let Some(asked) = read_request(&mut stream, &mut buffer, connection).await {
        if let Some(answer) = probe_answer(&asked, &state) {
            lock(&state).probes.push(asked);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let (number, script, goes) = begin(asked, &state);
        let played = {
            let (mut read, mut write) = stream.split();
            tokio::select! {
                played = play(&mut write, script, &goes, &state, number) => played,
                () = leaving(&mut read, &mut buffer) => Played::Left,
            }
        };
        finish(number, &state);
        match played {
            Played::Kept => {}
            Played::Closed => return,
            Played::Reset => {
                stream.set_zero_linger().expect("an open socket");
                return;
            }
            Played::Left => {
                lock(&state).records[number].asked.left = Some(Instant::now());
                return;
            }
        }
    }
}

/// Reads a request to its end; `None` when the connection ends before.
async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    connection: usize,
) -> Option<Asked> {
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break buffer.drain(..at + 4).collect::<Vec<u8>>();
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(head).expect("heads are ASCII");
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().expect("split gives something").split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').expect("a header has a colon"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let find = |wanted: &str| headers.iter().find(|(name, _)| name == wanted);
    assert!(
        find("transfer-encoding").is_none(),
        "all bodies are sent with a length: {head}"
    );
    let length = find("content-length").map_or(0, |(_, length)| length.parse().expect("a number"));
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let rest = buffer.split_off(length);
    let body = std::mem::replace(buffer, rest);
    Some(Asked {
        method,
        target,
        headers,
        body,
        connection,
        arrived: Instant::now(),
        began: None,
        finished: None,
        left: None,
    })
}

/// What the real one tells whoever watches it; `None` for everything else.
fn probe_answer(asked: &Asked, state: &Mutex<State>) -> Option<String> {
    if asked.method != "GET" {
        return None;
    }
    let state = lock(state);
    let (model, n_ctx) = (&state.model, state.n_ctx);
    let loading =
        json!({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}});
    let (status, body) = match asked.target.as_str() {
        _ if state.loading => (503, loading),
        "/health" => (200, json!({"status": "ok"})),
        "/props" => (
            200,
            json!({
                "default_generation_settings": {"n_ctx": n_ctx}, "total_slots": state.slots, "model_alias": model,
                "model_path": "/models/scripted.gguf", "endpoint_slots": true, "endpoint_metrics": false,
                "build_info": "b1-7e4c0a9", "is_sleeping": false,
            }),
        ),
        "/slots" => {
            let busy = state.busy();
            let slot = |id| json!({"id": id, "n_ctx": n_ctx, "speculative": false, "is_processing": id < busy});
            (200, (0..state.slots).map(slot).collect())
        }
        "/v1/models" => (
            200,
            json!({"object": "list", "data": [{
                "id": model, "aliases": [model], "tags": [], "object": "model", "created": 1_795_419_433,
                "owned_by": "llamacpp", "meta": {"n_ctx": n_ctx, "n_ctx_train": 8_192},
            }]}),
        ),
        "/metrics" => (
            501,
            json!({"error": {"code": 501, "message": "off", "type": "not_supported_error"}}),
        ),
        _ => return None,
    };
    let body = body.to_string();
    let length = body.len().to_string();
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", &length),
        ("Keep-Alive", "timeout=5, max=100"),
    ];
    Some(head(status, &headers) + &body)
}

/// Takes a request in, and finds its script.
fn begin(asked: Asked, state: &Mutex<State>) -> (usize, Script, Arc<Semaphore>) {
    let mut state = lock(state);
    let script = state.scripts.pop_front().or_else(|| state.always.clone());
    let script = script.unwrap_or_else(|| {
        let what = format!("{} {} {}", asked.method, asked.target, asked.text());
        state.unexpected.push(what);
        Script::whole(599, r#"{"error":{"message":"not in the script"}}"#)
    });
    let number = state.records.len();
    let goes = Arc::new(Semaphore::new(0));
    let weight = asked.weight(state.slots);
    state.records.push(Record {
        asked,
        goes: Arc::clone(&goes),
        weight,
        sent: 0,
    });
    state.peak = state.peak.max(state.busy());
    (number, script, goes)
}

/// Its slots are free.
fn finish(number: usize, state: &Mutex<State>) {
    let record = &mut lock(state).records[number];
    record.weight = 0;
    record.asked.finished.get_or_insert_with(Instant::now);
}

/// Its answer begins, unless it has.
fn began(number: usize, state: &Mutex<State>) {
    (lock(state).records[number].asked.began).get_or_insert_with(Instant::now);
}

async fn play(
    write: &mut (impl AsyncWrite + Unpin),
    script: Script,
    goes: &Semaphore,
    state: &Mutex<State>,
    number: usize,
) -> Played {
    let ends = |step: &Move| matches!(step, Move::Close | Move::Reset);
    let last = script.0.iter().rposition(|step| !ends(step));
    for (at, step) in script.0.into_iter().enumerate() {
        if Some(at) == last && matches!(step, Move::Send(_)) {
            // Whoever has read the last byte may send the next request at once.
            finish(number, state);
        }
        match step {
            Move::Send(bytes) => {
                began(number, state);
                if write.write_all(&bytes).await.is_err() {
                    return Played::Left;
                }
            }
            Move::Flood(chunk) => loop {
                if write.write_all(&chunk).await.is_err() {
                    return Played::Left;
                }
                lock(state).records[number].sent += 1;
            },
            Move::Pause(pause) => tokio::time::sleep(pause).await,
            Move::Hold => goes.acquire().await.expect("never closed").forget(),
            Move::Silence => std::future::pending().await,
            Move::Close => return Played::Closed,
            Move::Reset => return Played::Reset,
        }
    }
    Played::Kept
}

/// Returns when the client has closed the connection. What it sends meanwhile is kept.
async fn leaving(read: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) {
    while read.read_buf(buffer).await.is_ok_and(|read| read > 0) {}
}
