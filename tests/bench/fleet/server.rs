//! A server in a process of its own, the load client's connections to it, and what its process costs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::seed::Random;
use super::traffic::{Beat, registration};

/// Keep-alive connections of the load client to each server.
const CONNECTIONS: usize = 16;
/// What a start, or a fleet coming to rest, may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and the load client's connections to it.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    connections: Vec<BufReader<TcpStream>>,
    /// A heartbeat of every node, in an order without any.
    pub beats: Vec<Beat>,
    next: usize,
}

impl Server {
    pub fn orchd(state: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchd"));
        command
            .args(["serve", "--cloud", "--node-timeout", "1h", "--state-dir"])
            .arg(state)
            .arg("--listen")
            .env_clear()
            .env("ORCHD_LOG", "warn")
            .env("ORCHD_ACCESS_LOG", "off");
        Self::start(command, "/readyz", |port| format!("127.0.0.1:{port}"))
    }

    /// This program as one of those in `bare`, which answers here.
    pub fn bare(what: &str, path: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        command.arg(what);
        Self::start(command, path, |port| port.to_string())
    }

    fn start(mut command: Command, path: &str, listen: impl Fn(u16) -> String) -> Self {
        // Nobody else asks for ports meanwhile.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        let child = command
            .arg(listen(address.port()))
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut server = Self {
            child,
            address,
            connections: Vec::new(),
            beats: Vec::new(),
            next: 0,
        };
        let begun = Instant::now();
        while !server.ready(path) {
            assert!(begun.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.connect_anew();
        server
    }

    /// Makes the connections anew: those on which nothing was asked for a while are closed.
    pub fn connect_anew(&mut self) {
        self.connections = (0..CONNECTIONS).map(|_| self.connect()).collect();
    }

    fn ready(&self, path: &str) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else {
            return false;
        };
        let asked = write!(stream, "GET {path} HTTP/1.1\r\nhost: orchd\r\n\r\n");
        let mut begin = [0; 12];
        asked.is_ok() && stream.read_exact(&mut begin).is_ok() && begin.ends_with(b" 200")
    }

    pub fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket option");
        BufReader::with_capacity(1 << 16, stream)
    }

    /// Registers so many nodes with so many pools at this engine, and has each of them beat.
    pub fn fill(&mut self, nodes: usize, pools: usize, engine: SocketAddr) {
        // The server writes what comes together together; one node at a time would wait for the disk each time.
        let registrations: Vec<Vec<u8>> =
            (0..nodes).map(|node| registration(node, pools)).collect();
        self.connections = (0..256).map(|_| self.connect()).collect();
        self.send(registrations.iter().map(Vec::as_slice));
        self.connect_anew();
        let mut order: Vec<usize> = (0..nodes).collect();
        let mut random = Random(1);
        for at in (1..nodes).rev() {
            let other = random.below(at as u64 + 1);
            order.swap(at, usize::try_from(other).expect("small"));
        }
        let beats = order.into_iter();
        self.beats = beats
            .map(|node| Beat::new(node, pools, engine, "ready"))
            .collect();
        let beats = std::mem::take(&mut self.beats);
        self.send(beats.iter().map(|beat| beat.bytes.as_slice()));
        self.beats = beats;
    }

    /// The same heartbeats as another one gets.
    pub fn fill_from(&mut self, other: &Self) {
        self.beats = other.beats.clone();
    }

    /// Sends all of them, one at a time on each connection, and takes the answers, which must be good.
    pub fn send<'a>(&mut self, requests: impl Iterator<Item = &'a [u8]>) {
        let requests: Vec<&[u8]> = requests.collect();
        for requests in requests.chunks(self.connections.len()) {
            for (connection, request) in self.connections.iter_mut().zip(requests) {
                connection.get_mut().write_all(request).expect("it listens");
            }
            for (connection, request) in self.connections.iter_mut().zip(requests) {
                good(connection, request);
            }
        }
    }

    pub fn get(&mut self, target: &str) -> Vec<u8> {
        let request = format!("GET {target} HTTP/1.1\r\nhost: orchd\r\n\r\n");
        let connection = &mut self.connections[0];
        let written = connection.get_mut().write_all(request.as_bytes());
        written.expect("it listens");
        good(connection, request.as_bytes())
    }

    /// Processor time of each of these, in µs.
    pub fn cost<'a>(&mut self, requests: impl ExactSizeIterator<Item = &'a [u8]>) -> f64 {
        let count = requests.len();
        let before = self.processor();
        self.send(requests);
        (self.processor() - before) * 1e6 / count as f64
    }

    /// Processor time of a heartbeat, in µs, over the next so many of the fleet, whose slots have moved.
    pub fn cost_of_a_beat(&mut self, count: usize, random: &mut Random) -> f64 {
        let mut beats = std::mem::take(&mut self.beats);
        let mut part = Vec::with_capacity(count);
        for _ in 0..count {
            let at = self.next % beats.len();
            beats[at].walk(random);
            part.push(at);
            self.next += 1;
        }
        let requests = part.iter().map(|&at| beats[at].bytes.as_slice());
        let cost = self.cost(requests);
        self.beats = beats;
        cost
    }

    /// Processor time of all its threads so far, in seconds.
    pub fn processor(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanoseconds: f64 = tasks
            .expect("it runs")
            .map(|task| {
                let path = task.expect("it is readable").path().join("schedstat");
                let text = std::fs::read_to_string(path).expect("Linux tells it");
                let first = text
                    .split(' ')
                    .next()
                    .and_then(|first| first.parse::<f64>().ok());
                first.expect("nanoseconds")
            })
            .sum();
        nanoseconds / 1e9
    }

    /// Resident memory, in MB.
    pub fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.expect("Linux tells it") * 1_024.0 / 1e6
    }

    /// Waits until it has nothing left to do: what is written behind has been.
    pub fn rest(&self) {
        let begun = Instant::now();
        loop {
            let before = self.processor();
            std::thread::sleep(Duration::from_millis(1_500));
            if self.processor() - before < 0.01 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not come to rest");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of the next answer, which must be a good one.
pub fn good(connection: &mut BufReader<TcpStream>, request: &[u8]) -> Vec<u8> {
    let (status, body) = answer(connection);
    assert_eq!(
        status,
        200,
        "{} to {:.300}",
        String::from_utf8_lossy(&body),
        String::from_utf8_lossy(request)
    );
    body
}

/// One line, without its end.
pub fn line(connection: &mut impl BufRead) -> String {
    let mut line = String::new();
    connection.read_line(&mut line).expect("an answer");
    line.truncate(line.trim_end().len());
    line
}

/// The next chunk of a body; empty at its end.
pub fn chunk(connection: &mut impl BufRead) -> Vec<u8> {
    let size = line(connection);
    let size = usize::from_str_radix(&size, 16).unwrap_or_else(|e| panic!("{e}: {size:?}"));
    let mut chunk = vec![0; size];
    connection.read_exact(&mut chunk).expect("a chunk");
    assert_eq!(line(connection), "", "the end of a chunk");
    chunk
}

/// The status and the body of the next answer.
fn answer(connection: &mut BufReader<TcpStream>) -> (u16, Vec<u8>) {
    let (status, length) = head(connection);
    let Some(length) = length else {
        let chunks =
            std::iter::from_fn(|| Some(chunk(connection)).filter(|chunk| !chunk.is_empty()));
        return (status, chunks.collect::<Vec<_>>().concat());
    };
    let mut body = vec![0; length];
    connection.read_exact(&mut body).expect("a body");
    (status, body)
}

/// The status of the next answer, and the length of its body unless it comes in chunks.
pub fn head(connection: &mut BufReader<TcpStream>) -> (u16, Option<usize>) {
    let first = line(connection);
    let status = first.get(9..12).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("not an answer: {first:?}"));
    let mut length = Some(0);
    loop {
        let line = line(connection).to_ascii_lowercase();
        if line.is_empty() {
            return (status, length);
        } else if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse().expect("a length"));
        } else if line.starts_with("transfer-encoding:") {
            length = None;
        }
    }
}
