//! What stands between clients and engine: orchd and its peers, each as its own documentation says for this use, with
//! access logs off and as many threads as the machine has cores. And what each costs, as the system tells it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use tokio::time::Instant;

const AGENT: &str = "orchd agent";
/// What a start may take. The routers in Python take seconds to load.
const START: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(50);

/// A router that runs, or the engine, or the way to it without any router.
pub struct Router {
    pub name: &'static str,
    pub address: SocketAddr,
    /// What comes before the path of every request.
    pub prefix: &'static str,
    child: Child,
}

impl Router {
    /// Starts the engine: this program again.
    pub fn engine(argument: &str) -> Self {
        let address = free_address();
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        command.args([argument, &address.port().to_string()]);
        Self::start("engine", address, command, "/health")
    }

    /// Starts orchd for one machine with one engine.
    pub fn orchd(name: &'static str, program: &Path, engine: SocketAddr, dir: &Path) -> Self {
        let address = free_address();
        let mut command = orchd(program, dir);
        command.args([
            "serve",
            "--engine",
            &format!("http://{engine}"),
            "--listen",
            &address.to_string(),
        ]);
        command.args(["--access-log", "off"]);
        Self::start(name, address, command, "/readyz")
    }

    /// Starts an agent, whose proxy is in the way to the engines of a fleet. There is no control plane: it serves all the
    /// same.
    pub fn agent(program: &Path, engine: SocketAddr, dir: &Path) -> Self {
        let address = free_address();
        let mut command = orchd(program, dir);
        command.args([
            "agent",
            "--node-id",
            "bench",
            "--server",
            "http://127.0.0.1:1",
        ]);
        command.args([
            "--engine",
            &format!("http://{engine}"),
            "--listen",
            &address.to_string(),
        ]);
        Self::start(AGENT, address, command, "/health")
    }

    pub fn nginx(engine: SocketAddr, dir: &Path) -> Option<Self> {
        let program = found("nginx")?;
        let address = free_address();
        let config = format!(
            "daemon off; worker_processes {cores}; pid {dir}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off; error_log stderr crit; tcp_nodelay on; keepalive_requests 1000000;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    upstream engine {{ server {engine}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen {address} reuseport;
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
            # An embedding fits.
            proxy_buffer_size 16k; proxy_buffers 8 16k;
        }}
    }}
}}
",
            cores = cores(),
            dir = dir.display(),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).expect("the directory can be written to");
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(file)
            .args(["-e", "stderr"]);
        Some(Self::start("nginx", address, command, "/health"))
    }

    pub fn haproxy(engine: SocketAddr, dir: &Path) -> Option<Self> {
        let program = found("haproxy")?;
        let address = free_address();
        // Without http-no-delay it holds events back.
        let config = format!(
            "global
    nbthread {cores}
    maxconn 4096
defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend clients
    bind {address}
    default_backend engine
backend engine
    server engine {engine} pool-max-conn 512
",
            cores = cores(),
        );
        let file = dir.join("haproxy.cfg");
        fs::write(&file, config).expect("the directory can be written to");
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(file);
        Some(Self::start("haproxy", address, command, "/health"))
    }

    pub fn sglang(engine: SocketAddr, dir: &Path) -> Option<Self> {
        let program = peer("sglang-router")?;
        let mut command = Command::new(program);
        command.arg("launch");
        Some(Self::python("sglang-router", engine, command, dir))
    }

    pub fn vllm(engine: SocketAddr, dir: &Path) -> Option<Self> {
        let command = Command::new(peer("vllm-router")?);
        Some(Self::python("vllm-router", engine, command, dir))
    }

    /// Both have the same ancestor, and the same options.
    fn python(name: &'static str, engine: SocketAddr, mut command: Command, dir: &Path) -> Self {
        let (address, metrics) = (free_address(), free_address());
        command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args([
            "--worker-urls",
            &format!("http://{engine}"),
            "--policy",
            "round_robin",
        ]);
        command.args(["--log-level", "error", "--prometheus-host", "127.0.0.1"]);
        command.args(["--prometheus-port", &metrics.port().to_string()]);
        command.current_dir(dir);
        Self::start(name, address, command, "/v1/models")
    }

    /// Starts it and waits until it answers this.
    fn start(name: &'static str, address: SocketAddr, mut command: Command, ready: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if !name.starts_with("orchd") {
            command.stderr(Stdio::null());
        }
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let router = Self {
            name,
            address,
            prefix: if name == AGENT { "/pools/default" } else { "" },
            child,
        };
        let begun = Instant::now();
        while !answers(address, ready) {
            assert!(begun.elapsed() < START, "it does not start: {command:?}");
            std::thread::sleep(STEP);
        }
        router
    }

    /// Time on the processor so far, in seconds, of it and of what it started.
    pub fn cpu_seconds(&self) -> f64 {
        let of = |process| {
            let clock = clock_getcpuclockid(pid(process)).ok()?;
            Some(Duration::from(clock_gettime(clock).ok()?).as_secs_f64())
        };
        let own = of(self.child.id()).expect("it runs");
        // What was just started may have ended.
        let others = tree(self.child.id()).into_iter().skip(1).filter_map(of);
        own + others.sum::<f64>()
    }

    /// Memory, in MB (10⁶ bytes), each shared page divided by those who share it.
    pub fn memory_mb(&self) -> f64 {
        let of = |process| {
            let told = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
            let pss = told.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            pss.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        let own = of(self.child.id()).expect("the system tells of its memory");
        let others = tree(self.child.id()).into_iter().skip(1).filter_map(of);
        (own + others.sum::<f64>()) * 1_024.0 / 1e6
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // nginx ends its workers when it is asked to, and not when it is killed.
        let whole = tree(self.child.id());
        let signal = |process: u32, signal| {
            // Gone already is as good.
            let _ = nix::sys::signal::kill(pid(process), signal);
        };
        signal(self.child.id(), nix::sys::signal::Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(STEP);
        }
        for process in whole {
            signal(process, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("ids of processes are small"))
}

/// A command of orchd that finds nothing of its user's.
fn orchd(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("HOME", dir)
        .env("ORCHD_CONFIG", "/dev/null")
        .env("ORCHD_LOG", "error");
    command.current_dir(dir);
    command
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn free_address() -> SocketAddr {
    // Nobody else asks for ports meanwhile.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    free.local_addr().expect("it is bound")
}

/// A program of the system.
fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A program that `tests/bench/gateway/run` has installed.
fn peer(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("ORCHD_BENCH_PEERS")?;
    Some(Path::new(&dir).join("bin").join(name)).filter(|file| file.is_file())
}

fn answers(address: SocketAddr, path: &str) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let asked = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    let mut told = [0; 12];
    stream.write_all(asked.as_bytes()).is_ok()
        && stream.read_exact(&mut told).is_ok()
        && told.ends_with(b"200")
}

fn entries(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// A process, its children, theirs and so on.
fn tree(root: u32) -> Vec<u32> {
    let mut whole = vec![root];
    let mut next = 0;
    while let Some(process) = whole.get(next).copied() {
        next += 1;
        for thread in entries(&format!("/proc/{process}/task")) {
            let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
            whole.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    whole
}
