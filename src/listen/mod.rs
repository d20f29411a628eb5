//! Serving threads: each with a runtime of its own, so that a request runs to completion where it was accepted.
//!
//! Purpose: accept, serve HTTP/1.1 with or without TLS, and stop without cutting anybody off. Invariants: one listening
//! socket, bound before anything else is done, shared by all threads; connections are bounded, and when there are too
//! many, those that idle for the longest time give way, so that no number of them keeps others out; a stop lets what runs
//! end within its grace, goes on answering whoever connects meanwhile, and ends with the last request that was in hand
//! when it came: nobody who connects later prolongs it. Called by `server` and `agent`.

mod collect;
mod connection;
mod held;
mod line;
mod places;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::task::Context;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::socket;
use crate::tls::Acceptor;

pub use collect::{CollectError, collect, discard};
pub use places::Crowded;
use places::{House, Places};

/// Connections that may wait to be taken in: a whole fleet comes back within one moment after a restart, and whoever finds
/// no place waits a second before it tries again. The system has its own limit (`net.core.somaxconn`, 4096).
const BACKLOG: i32 = 4_096;
/// How soon a thread that is full of working connections looks again for an idle one.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// A thread that is full for longer than this is worth a line in the log.
const FULL_FOR: Duration = Duration::from_secs(1);
/// How long to wait when the system has no descriptors left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds an address for the serving threads.
///
/// # Errors
/// What the system says; `AddrInUse` when somebody listens there.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart may listen where connections of the former process have not quite ended.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket::keep_alive(&socket)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// An answer's body.
pub trait Answer:
    Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static
{
    /// Looks after what may not wait for the client: nobody asks for the next frame while a client does not read. Called
    /// whenever the connection's task was woken, so that what is waited for with `cx` is heard.
    fn poll_unread(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }
}

/// Bytes that are all there wait for nothing.
impl Answer for http_body_util::Full<Bytes> {}

impl<A: Answer, B: Answer> Answer for http_body_util::Either<A, B> {
    fn poll_unread(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Left(answer) => answer.poll_unread(cx),
            Self::Right(answer) => answer.poll_unread(cx),
        }
    }
}

/// Answers one request. Cloned into every thread.
pub trait Handler: Clone + Send + 'static {
    /// The answer's body.
    type Body: Answer;

    /// Answers.
    fn handle(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// The answer to a request for `uri` in whose handling we failed.
    fn panicked(&self, uri: &Uri) -> Response<Self::Body>;
}

/// How a listener takes connections.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Speaks TLS with this certificate; without one, plain HTTP.
    pub tls: Option<Acceptor>,
    /// Connections at one time, over all threads; those that are just being closed to make room for others come on top,
    /// an eighth of it at most. Requests that arrive while requests are in hand on seven eighths of them are [`Crowded`].
    pub max_connections: usize,
}

impl Settings {
    /// How addresses of this listener begin.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// Asks the serving threads whether they are alive.
#[derive(Debug, Clone)]
pub struct Pulse {
    threads: Vec<mpsc::UnboundedSender<oneshot::Sender<()>>>,
    stopped: watch::Receiver<Option<Duration>>,
}

impl Pulse {
    /// Waits until every serving thread has answered. False when one of them has ended and nobody asked it to.
    pub async fn felt(&self) -> bool {
        let asked: Vec<oneshot::Receiver<()>> = self
            .threads
            .iter()
            .map(|thread| {
                let (answer, answered) = oneshot::channel();
                // Of a thread that has ended the answer is dropped, which tells.
                drop(thread.send(answer));
                answered
            })
            .collect();
        for answered in asked {
            if answered.await.is_err() {
                return self.stopped.borrow().is_some();
            }
        }
        true
    }
}

/// The serving threads of one listener.
pub struct Workers {
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
    pulse: Pulse,
}

impl Workers {
    /// Starts `threads` of them, each with a clone of `handler`.
    ///
    /// # Errors
    /// What the system says when there is no descriptor or thread left.
    pub fn spawn<H: Handler>(
        name: &str,
        listener: &TcpListener,
        threads: usize,
        settings: &Settings,
        handler: &H,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let before = watch::Sender::new(());
        let threads = threads.max(1);
        let house = House::new(settings.max_connections);
        let mut workers = Self {
            stop,
            threads: Vec::with_capacity(threads),
            pulse: Pulse {
                threads: Vec::with_capacity(threads),
                stopped: stopped.clone(),
            },
        };
        for _ in 0..threads {
            let listener = listener.try_clone()?;
            let (ask, asked) = mpsc::unbounded_channel();
            let thread = Thread {
                handler: handler.clone(),
                stopped: stopped.clone(),
                asked,
                tls: settings.tls.clone(),
                places: Places::new(house.clone()),
                connections: JoinSet::new(),
                before: Before {
                    here: None,
                    holds: Some(before.subscribe()),
                    all: before.clone(),
                },
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || runtime.block_on(thread.serve(listener)))?;
            workers.threads.push(thread);
            workers.pulse.threads.push(ask);
        }
        Ok(workers)
    }

    /// A way to ask the threads whether they are alive.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Lets what runs end within `grace`, and then ends it. Whoever connects meanwhile is answered, once, and not waited
    /// for. Blocks until all is done.
    pub fn stop(self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a serving thread ended in a panic");
            }
        }
    }
}

/// How long it has been too full to take anybody in, for the log.
#[derive(Default)]
struct Crowd {
    since: Option<Instant>,
    told: bool,
}

impl Crowd {
    fn look(&mut self, full: bool, limit: usize) {
        if !full {
            if self.told {
                info!("connections can be taken in again");
            }
            *self = Self::default();
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.told && since.elapsed() >= FULL_FOR {
            self.told = true;
            warn!(
                limit,
                "no more connections can be taken in for now: all have requests in hand; --max-connections allows more"
            );
        }
    }
}

/// One serving thread.
struct Thread<H> {
    handler: H,
    stopped: watch::Receiver<Option<Duration>>,
    asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    tls: Option<Acceptor>,
    places: Places,
    connections: JoinSet<()>,
    before: Before,
}

/// The connections that were there when the stop came.
struct Before {
    /// Those of this thread that have not ended; none before the stop.
    here: Option<HashSet<Id>>,
    /// Dropped once there are none left here.
    holds: Option<watch::Receiver<()>>,
    /// Knows when no thread holds one any more.
    all: watch::Sender<()>,
}

impl Before {
    /// The stop has come.
    fn begin(&mut self, here: HashSet<Id>) {
        self.here = Some(here);
        self.look();
    }

    fn ended(&mut self, id: Id) {
        if let Some(here) = &mut self.here {
            here.remove(&id);
        }
        self.look();
    }

    fn look(&mut self) {
        if self.here.as_ref().is_some_and(HashSet::is_empty) {
            self.holds = None;
        }
    }
}

impl<H: Handler> Thread<H> {
    async fn serve(mut self, listener: TcpListener) {
        let backlog = listener.try_clone();
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(e) => {
                warn!(error = %e, "a serving thread cannot use its listener");
                return;
            }
        };
        let mut stopped = self.stopped.clone();
        let grace = self.accept_until(&listener, stop_asked(&mut stopped)).await;
        let ends = Instant::now() + grace;
        // Whoever connected before the stop counts as there.
        self.take_waiting(backlog.as_ref().ok());
        self.before.begin(self.places.ids());
        // Others are told that we stop: a load balancer must see it to send its clients elsewhere.
        let all = self.before.all.clone();
        let over = self.accept_until(&listener, all.closed());
        let in_time = tokio::time::timeout_at(ends, over).await.is_ok();
        let left = self.before.here.as_ref().map_or(0, HashSet::len);
        if !in_time && left > 0 {
            warn!(
                connections = left,
                "the grace has ended; closing what still runs"
            );
            return;
        }
        drop(listener);
        // A connection left in the backlog would be reset.
        self.take_waiting(backlog.as_ref().ok());
        drop(backlog);
        let rest = async { while self.connections.join_next().await.is_some() {} };
        let ends = Instant::now() + connection::LINGER;
        // Who has not asked for anything by then is not cut off from an answer.
        let _ = tokio::time::timeout_at(ends, rest).await;
    }

    /// Accepts connections, and looks after those that end, until this is there.
    async fn accept_until<T>(
        &mut self,
        listener: &tokio::net::TcpListener,
        until: impl Future<Output = T>,
    ) -> T {
        let mut until = std::pin::pin!(until);
        let mut refused = false;
        // Full of connections that work, or waiting for those that were asked to leave: others wait in the backlog, or
        // are taken by another thread.
        let mut full = !self.places.make_room();
        let mut crowd = Crowd::default();
        loop {
            crowd.look(full, self.places.limit());
            tokio::select! {
                accepted = listener.accept(), if !full => match accepted {
                    Ok((stream, _)) => {
                        refused = false;
                        self.take(stream);
                        full = !self.places.make_room();
                    }
                    Err(e) => {
                        // While it lasts it is the same story.
                        if !refused {
                            warn!(error = %e, "cannot accept connections; will go on trying");
                        }
                        refused = true;
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.connections.join_next_with_id() => {
                    let id = ended.map_or_else(|failed| failed.id(), |(id, ())| id);
                    self.places.remove(id);
                    self.before.ended(id);
                    full = full && !self.places.make_room();
                }
                () = tokio::time::sleep(FULL_PAUSE), if full => full = !self.places.make_room(),
                Some(answer) = self.asked.recv() => drop(answer.send(())),
                there = until.as_mut() => return there,
            }
        }
    }

    /// Takes everybody who waits to be taken in.
    fn take_waiting(&mut self, backlog: Option<&TcpListener>) {
        while let Some(Ok((stream, _))) = backlog.map(TcpListener::accept) {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.take(stream);
            }
        }
    }

    fn take(&mut self, stream: TcpStream) {
        let place = self.places.take();
        // Whoever comes after the stop has nothing to hear of it.
        let before = self.before.here.is_none();
        let connection = connection::serve(
            stream,
            self.tls.clone(),
            self.handler.clone(),
            Arc::clone(&place),
            before.then(|| self.stopped.clone()),
        );
        let id = self.connections.spawn(connection).id();
        self.places.add(id, place);
    }
}

/// Waits for the stop, and gives its grace. Threads whose [`Workers`] is gone stop at once.
async fn stop_asked(stopped: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let asked = stopped.wait_for(Option::is_some).await.map(|grace| *grace);
    asked.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use http_body_util::Full;

    use super::*;

    /// Answers once it is told to, and keeps its thread from everything else until then; `/health` at once.
    #[derive(Clone)]
    struct Stuck(Arc<std::sync::Mutex<std::sync::mpsc::Receiver<()>>>);

    impl Handler for Stuck {
        type Body = Full<Bytes>;

        async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
            if request.uri().path() == "/health" {
                return Response::default();
            }
            let told = self.0.lock().map(|told| told.recv());
            Response::new(Full::from(format!("{told:?}")))
        }

        fn panicked(&self, _: &Uri) -> Response<Full<Bytes>> {
            Response::default()
        }
    }

    /// Two threads that answer so.
    fn two_threads(handler: &Stuck, max_connections: usize) -> (Workers, SocketAddr) {
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let settings = Settings {
            tls: None,
            max_connections,
        };
        let workers = Workers::spawn("test", &listener, 2, &settings, handler).expect("threads");
        (workers, address)
    }

    /// Waits until a thread does not answer any more.
    async fn one_is_stuck(pulse: &Pulse) {
        let stuck = async {
            while tokio::time::timeout(Duration::from_millis(100), pulse.felt())
                .await
                .is_ok()
            {}
        };
        let stuck = tokio::time::timeout(Duration::from_secs(10), stuck).await;
        assert_eq!(stuck, Ok(()));
    }

    #[tokio::test]
    async fn nobody_gives_way_below_the_limit_however_few_threads_take_them_in() {
        const MANY: usize = 60;
        let (tell, told) = std::sync::mpsc::channel();
        let handler = Stuck(Arc::new(std::sync::Mutex::new(told)));
        let (workers, address) = two_threads(&handler, MANY + 4);
        let connect = || {
            let stream = std::net::TcpStream::connect(address).expect("a connection");
            let limit = Some(Duration::from_secs(10));
            stream.set_read_timeout(limit).expect("a socket has one");
            stream
        };
        let ask = |stream: &mut std::net::TcpStream, path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            stream.write_all(request.as_bytes())
        };
        let mut answer = [0; 12];
        // One thread is busy with this, and all others are the other one's.
        let mut stuck = connect();
        ask(&mut stuck, "/").expect("it is sent");
        one_is_stuck(&workers.pulse()).await;
        let mut crowd: Vec<_> = (0..MANY).map(|_| connect()).collect();
        // They are taken in in turn: with the last one, all are.
        for stream in crowd.iter_mut().rev() {
            ask(stream, "/health").expect("it is sent");
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
        tell.send(()).expect("it waits");
        stuck.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        drop((crowd, stuck));
        workers.stop(Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_thread_that_is_stuck_has_no_pulse_and_one_that_has_stopped_needs_none() {
        let (tell, told) = std::sync::mpsc::channel();
        let handler = Stuck(Arc::new(std::sync::Mutex::new(told)));
        let (workers, address) = two_threads(&handler, 4);
        let pulse = workers.pulse();
        assert!(pulse.felt().await);

        let mut stream = std::net::TcpStream::connect(address).expect("a connection");
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("it is sent");
        // Until the request is there, its thread still answers.
        one_is_stuck(&pulse).await;
        tell.send(()).expect("it waits");
        assert!(pulse.felt().await);

        let stop = tokio::task::spawn_blocking(|| workers.stop(Duration::from_secs(1)));
        stop.await.expect("it stops");
        assert!(pulse.felt().await);
    }
}
