//! A network that fails on demand: a TCP proxy in front of a server, whose faults are switched while it runs.
//!
//! Invariants: a fault holds for connections that exist as for those that come; a connection through which bytes were
//! lost is dead from then on, and neither side is told: after the fault it carries nothing and is not closed, as when a
//! firewall on the way has forgotten it. Whoever comes back after a fault therefore did so on a connection of its own.
//! Used by `agent_network`, `gateway_faults` and the fault suite.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::seed::Random;
use super::{eventually, free_address};

/// How long a switch may take.
const SOON: Duration = Duration::from_secs(10);
/// How long it may take until somebody meets a fault. A lossy network, through which an agent sends little, is late with
/// one piece in fifteen.
const STRUCK: Duration = Duration::from_secs(60);

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing wrong.
    Pass,
    /// Whatever is sent is lost, in both directions. (That a connection is accepted is the system's doing; it is a dead one.)
    Cut,
    /// What clients send is lost.
    ToServer,
    /// What the server sends is lost: it hears, and is not heard.
    ToClient,
    /// Connections are refused, and those that exist are reset.
    Refuse,
    /// Everything comes so much later.
    Delay(Duration),
    /// Nothing passes, and nothing is lost: it comes when this is over, as from a sender that sends again what nobody
    /// acknowledged.
    Hold,
    /// Now and then what is sent must be sent again, which takes a while, and now and then a connection is reset. By
    /// chance, of this seed.
    #[allow(dead_code, reason = "used by the fault suite")]
    Lossy(u64),
}

/// Of so many pieces that are sent through a lossy network, one resets its connection unless another was reset just now, two
/// are lost once and one is lost twice: a sender waits for at least 0.2 s before it sends again, and then for twice that.
const LOSSY: u64 = 60;
const ONCE: Duration = Duration::from_millis(200);
const TWICE: Duration = Duration::from_millis(600);
/// Between two resets, so that whoever tries again once gets through.
const NEXT_RESET: Duration = Duration::from_secs(1);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

impl Fault {
    /// Whether bytes that go this way are lost.
    fn loses(self, way: Way) -> bool {
        match self {
            Self::Cut => true,
            Self::ToServer => way == Way::ToServer,
            Self::ToClient => way == Way::ToClient,
            Self::Pass | Self::Refuse | Self::Delay(_) | Self::Hold | Self::Lossy(_) => false,
        }
    }

    fn delay(self) -> Duration {
        match self {
            Self::Delay(delay) => delay,
            _ => Duration::ZERO,
        }
    }
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    struck: AtomicUsize,
    /// What was lost or late, piece by piece, and connections that were reset, since the network was last changed.
    hits: AtomicUsize,
    last_reset: Mutex<Option<Instant>>,
}

impl Counts {
    /// Whether a connection may be reset now; if so, it is.
    fn may_reset(&self) -> bool {
        let mut last = self.last_reset.lock().expect("not poisoned");
        let may = last.is_none_or(|last| last.elapsed() >= NEXT_RESET);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

/// A proxy on a port of its own.
pub struct FaultProxy {
    pub address: SocketAddr,
    wanted: Option<watch::Sender<Fault>>,
    /// What holds.
    held: watch::Receiver<Fault>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts one in front of `server`.
    pub fn start(server: SocketAddr, fault: Fault) -> Self {
        Self::start_at(free_address(), server, fault)
    }

    /// The same where somebody was told to look for it: at an address of [`free_address`].
    pub fn start_at(address: SocketAddr, server: SocketAddr, fault: Fault) -> Self {
        let (wanted, inbox) = watch::channel(fault);
        let (say, held) = watch::channel(Fault::Refuse);
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let here = tokio::task::LocalSet::new();
            here.block_on(&runtime, run(address, server, inbox, &say, &shared));
        });
        let proxy = Self {
            address,
            wanted: Some(wanted),
            held,
            counts,
            thread: Some(thread),
        };
        proxy.set(fault);
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what the network does. Returns when that holds.
    pub fn set(&self, fault: Fault) {
        let wanted = self.wanted.as_ref().expect("it has not ended");
        self.counts.hits.store(0, Ordering::Relaxed);
        wanted.send_replace(fault);
        eventually(SOON, "the network does as it is told", || {
            let held = *self.held.borrow();
            if held == fault {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            }
        });
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Those of them that lost something so far, or had something delayed.
    pub fn struck(&self) -> usize {
        self.counts.struck.load(Ordering::Relaxed)
    }

    /// What it does now.
    #[allow(dead_code, reason = "used by the fault suite")]
    pub fn fault(&self) -> Fault {
        *self.held.borrow()
    }

    /// Waits until the fault that it has now has lost, delayed or reset something: until then nobody has met it, or only by
    /// being refused. Without a fault there is nothing to wait for.
    #[allow(dead_code, reason = "used by the fault suite")]
    pub fn wait_struck(&self) {
        let fault = self.fault();
        if fault != Fault::Pass {
            let what = format!("somebody meets {fault:?} at {}", self.address);
            eventually(STRUCK, &what, || {
                match self.counts.hits.load(Ordering::Relaxed) {
                    0 => Err("nothing was lost, late or reset".to_owned()),
                    _ => Ok(()),
                }
            });
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // Its panic is shown already.
            let _ = thread.join();
        }
    }
}

async fn run(
    address: SocketAddr,
    server: SocketAddr,
    mut wanted: watch::Receiver<Fault>,
    say: &watch::Sender<Fault>,
    counts: &Arc<Counts>,
) {
    loop {
        let mut fault = *wanted.borrow_and_update();
        if fault == Fault::Refuse {
            say.send_replace(fault);
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listener = listener(address).await;
        let mut links = JoinSet::new();
        while fault != Fault::Refuse {
            say.send_replace(fault);
            tokio::select! {
                accepted = listener.accept() => {
                    let (client, _) = accepted.expect("a connection");
                    counts.connections.fetch_add(1, Ordering::Relaxed);
                    links.spawn_local(link(client, server, wanted.clone(), Arc::clone(counts)));
                }
                Some(_) = links.join_next() => {}
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    fault = *wanted.borrow_and_update();
                }
            }
        }
        // New ones are refused before the old ones are told; each link resets both its ends.
        drop(listener);
        while links.join_next().await.is_some() {}
    }
}

/// A process that another thread starts just now has, for a moment, the socket with which the port was tried.
async fn listener(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// What the faults have done to a connection.
struct Strike<'a> {
    struck: Cell<bool>,
    dead: Cell<bool>,
    /// Told when a lossy network resets it.
    reset: Notify,
    counts: &'a Counts,
}

impl Strike<'_> {
    fn touch(&self) {
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
        if !self.struck.replace(true) {
            self.counts.struck.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn kill(&self) {
        self.dead.set(true);
        self.touch();
    }
}

/// One connection of a client, and the one that is made for it.
async fn link(
    mut client: TcpStream,
    server: SocketAddr,
    mut faults: watch::Receiver<Fault>,
    counts: Arc<Counts>,
) {
    let strike = Strike {
        struck: Cell::new(false),
        dead: Cell::new(false),
        reset: Notify::new(),
        counts: &counts,
    };
    let number = counts.connections.load(Ordering::Relaxed) as u64;
    let fault = *faults.borrow();
    if fault.loses(Way::ToServer) {
        // The server never hears of it.
        tokio::select! {
            () = swallow(&mut client, &strike) => {}
            _ = faults.wait_for(|fault| *fault == Fault::Refuse) => {
                strike.touch();
                client.set_zero_linger().expect("an open socket");
            }
        }
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        client.set_zero_linger().expect("an open socket");
        return;
    };
    for end in [&client, &server] {
        end.set_nodelay(true).expect("an open socket");
    }
    let (up, down) = (faults.clone(), faults.clone());
    let chance = [2 * number, 2 * number + 1];
    let carried = async {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::join!(
            carry(
                Way::ToServer,
                from_client,
                to_server,
                up,
                &strike,
                chance[0]
            ),
            carry(
                Way::ToClient,
                from_server,
                to_client,
                down,
                &strike,
                chance[1]
            ),
        );
    };
    let reset = tokio::select! {
        () = carried => false,
        () = strike.reset.notified() => true,
        _ = faults.wait_for(|fault| *fault == Fault::Refuse) => true,
    };
    if reset {
        strike.touch();
        for end in [&client, &server] {
            end.set_zero_linger().expect("an open socket");
        }
    }
}

/// Reads and forgets, until the client leaves.
async fn swallow(client: &mut TcpStream, strike: &Strike<'_>) {
    let mut buffer = [0; 4_096];
    while client.read(&mut buffer).await.is_ok_and(|read| read > 0) {
        strike.kill();
    }
}

/// Carries bytes, and the end of them, one way.
async fn carry(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Fault>,
    strike: &Strike<'_>,
    number: u64,
) {
    let mut buffer = [0; 16_384];
    let mut chance = Random(number);
    loop {
        let read = from.read(&mut buffer).await;
        let mut fault = *faults.borrow();
        if fault == Fault::Hold {
            strike.touch();
            let Ok(next) = faults.wait_for(|fault| *fault != Fault::Hold).await else {
                return;
            };
            fault = *next;
        }
        // An end is lost as bytes are.
        if fault.loses(way) {
            strike.kill();
        }
        let Ok(read @ 1..) = read else { break };
        if strike.dead.get() {
            continue;
        }
        let mut delay = fault.delay();
        if let Fault::Lossy(seed) = fault {
            // The same network is another one with each seed.
            match (chance.next() ^ seed) % LOSSY {
                0 if strike.counts.may_reset() => {
                    strike.reset.notify_one();
                    return;
                }
                1 | 2 => delay = ONCE,
                3 => delay = TWICE,
                _ => {}
            }
        }
        if !delay.is_zero() {
            strike.touch();
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    if !strike.dead.get() {
        let _ = to.shutdown().await;
    }
}
