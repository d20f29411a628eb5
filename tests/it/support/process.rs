//! A child process with its log: ended, by its id and nothing else, when it goes out of scope.
//!
//! Invariants: none outlives the process that started it, however that ends, and in whatever state the child is: the kernel
//! kills it. (It does so as soon as the *thread* ends that started a child: all are started by one that lives on.) Nothing
//! of the environment of the tests reaches it.
//!
//! Used by `engine` and `orchd`.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::{STEP, http};

/// How many lines of a log are shown when a test fails.
const TAIL_LINES: usize = 40;

/// A process of this test.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Why a process is not ready.
pub enum NotReady {
    /// It ended; its log says why.
    Ended(String),
    /// It runs, and does not answer as it should.
    Late(String),
}

impl NotReady {
    /// Fails the test with what is known.
    pub fn panic(self) -> ! {
        let (Self::Ended(why) | Self::Late(why)) = self;
        panic!("{why}")
    }
}

/// The same program, by way of `orchd demo part`, which asks the kernel to end it with this process, and becomes it: its
/// id is the child's. It gets no environment but what the command sets.
fn leashed(command: &Command) -> Command {
    let mut leashed = Command::new(env!("CARGO_BIN_EXE_orchd"));
    leashed
        .args(["demo", "part", "--parent", &std::process::id().to_string()])
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        leashed.envs(value.map(|value| (name, value)));
    }
    if let Some(directory) = command.get_current_dir() {
        leashed.current_dir(directory);
    }
    leashed
}

/// Something to start, and who waits for it.
type Order = (Command, Sender<io::Result<Child>>);

/// Starts it in a thread that ends with the process only.
fn spawn_for_good(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Whoever asked waits for it.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = channel();
    let orders = spawner.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, reply)).expect("it ends with us");
    drop(orders);
    answer.recv().expect("it ends with us")
}

impl Running {
    /// Starts it with both outputs at the end of `log`. That it cannot be run stands there.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the test's directory can be written to");
        let err = out.try_clone().expect("a descriptor is free");
        let mut command = leashed(command);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child =
            spawn_for_good(command).unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// Waits until it answers `path` with 200.
    pub fn ready(
        &mut self,
        address: SocketAddr,
        path: &str,
        limit: Duration,
    ) -> Result<(), NotReady> {
        let begun = Instant::now();
        loop {
            if let Some(code) = self.exited() {
                return Err(NotReady::Ended(format!(
                    "{} ended with {code:?}:\n{}",
                    self.name,
                    self.tail()
                )));
            }
            let seen = match http::get(address, path) {
                Ok(response) if response.status == 200 => return Ok(()),
                Ok(response) => format!("{path} answers {}", response.status),
                Err(e) => e.to_string(),
            };
            if begun.elapsed() >= limit {
                return Err(NotReady::Late(format!(
                    "{} is not ready after {limit:?}: {seen}",
                    self.name
                )));
            }
            std::thread::sleep(STEP);
        }
    }

    /// SIGKILL: it has no say in it. Returns when the process is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("it is this process's own child");
        self.child.wait().expect("it is this process's own child");
    }

    /// SIGTERM: it is asked to stop.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Any signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("ids of processes are small");
        kill(Pid::from_raw(pid), signal).expect("it is this process's own child");
    }

    /// Waits until it ended by itself, and gives its exit code: `None` when a signal ended it.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(code) = self.exited() {
                return code;
            }
            assert!(
                begun.elapsed() < limit,
                "{} still runs after {limit:?}",
                self.name
            );
            std::thread::sleep(STEP);
        }
    }

    /// The number the system knows it by.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The exit code, once it ended.
    pub fn exited(&mut self) -> Option<Option<i32>> {
        let status = self
            .child
            .try_wait()
            .expect("it is this process's own child");
        status.map(|status| status.code())
    }

    /// The last lines it wrote.
    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}:\n{}", self.name, self.tail());
        }
    }
}

#[test]
fn none_outlives_the_process_that_started_it_not_even_one_that_is_stopped() {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpStream;

    let dir = tempfile::tempdir().expect("a directory for what it leaves");
    let mut other = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("support::process::starts_one_in_a_thread_that_ends_and_stops_it")
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run again");
    let says = BufReader::new(other.stdout.take().expect("it is a pipe"));
    let address = says.lines().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once("stopped ")?;
        address.parse::<SocketAddr>().ok()
    });
    let address = address.expect("it says what it has started");
    // The system answers for one that is stopped.
    let lives = TcpStream::connect(address).is_ok();
    other.kill().expect("it is this process's own child");
    other.wait().expect("it is this process's own child");
    assert!(lives, "it ended with the thread that had started it");
    super::eventually(
        Duration::from_secs(10),
        "it is gone",
        || match TcpStream::connect(address) {
            Ok(_) => Err("it listens".to_owned()),
            Err(_) => Ok(()),
        },
    );
}

#[test]
#[ignore = "run by the one above"]
fn starts_one_in_a_thread_that_ends_and_stops_it() {
    let state = tempfile::tempdir().expect("a directory for the state");
    let started = super::at_once(1, |_| super::orchd::Orchd::serve_cloud(state.path(), &[]));
    started[0].signal(Signal::SIGSTOP);
    println!("stopped {}", started[0].address);
    // It is killed long before.
    std::thread::sleep(Duration::from_secs(60));
}
