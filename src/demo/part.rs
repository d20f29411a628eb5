//! One part of the demo: a child process, its log, and the command that starts it again.
//!
//! Invariants: a part has a process group of its own, so that Ctrl-C reaches the demo alone, which ends its parts in their
//! order; it never outlives the demo; no setting or variable of the user's reaches it, [`LOG`] apart.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that says how much is logged.
const LOG: &str = "ORCHD_LOG";
/// How the variables of settings begin, and those that a service manager gives to one process alone.
const NOT_FOR_PARTS: [&str; 5] = [
    "ORCHD_",
    "ORCHESTRATORD_",
    "LLORCH_",
    "NOTIFY_",
    "WATCHDOG_",
];
/// How many lines of a log are shown of a part that did not start.
const TAIL_LINES: usize = 8;

/// What a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// `orchd serve`.
    ControlPlane,
    /// The agent of this node.
    Agent(String),
    /// The engine of this node.
    Engine(String),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane => f.write_str("the control plane"),
            Self::Agent(node) => write!(f, "the agent of {node}"),
            Self::Engine(node) => write!(f, "the engine of {node}"),
        }
    }
}

impl Role {
    fn log(&self) -> String {
        match self {
            Self::ControlPlane => "serve.log".to_owned(),
            Self::Agent(node) => format!("{node}-agent.log"),
            Self::Engine(node) => format!("{node}-engine.log"),
        }
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The program; `None` is this executable.
    pub program: Option<PathBuf>,
    /// What it is told.
    pub arguments: Vec<OsString>,
}

impl Line {
    /// As it is typed into a shell where this executable is called `orchd`.
    #[must_use]
    pub fn typed(&self, orchd: &str) -> String {
        let program = match &self.program {
            Some(program) => quoted(program.as_os_str()),
            None => orchd.to_owned(),
        };
        self.arguments.iter().fold(program, |line, argument| {
            format!("{line} {}", quoted(argument))
        })
    }
}

/// A word as a shell reads it.
#[must_use]
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// How a process ended, as a person says it.
#[must_use]
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A part, running or not.
#[derive(Debug)]
pub struct Part {
    /// What it is.
    pub role: Role,
    /// Where it listens.
    pub address: SocketAddr,
    /// What starts it.
    pub line: Line,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Part {
    /// Starts it, with its log in `dir`.
    pub(super) fn start(
        orchd: &Path,
        dir: &Path,
        role: Role,
        address: SocketAddr,
        line: Line,
    ) -> io::Result<Self> {
        let log = dir.join(role.log());
        let out = File::options().create(true).append(true).open(&log)?;
        let err = out.try_clone()?;
        let mut command = Command::new(orchd);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        let child = command
            .args([
                "demo",
                "part",
                "--parent",
                &std::process::id().to_string(),
                "--",
            ])
            .arg(line.program.as_deref().unwrap_or(orchd))
            .args(&line.arguments)
            .current_dir(dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()?;
        Ok(Self {
            role,
            address,
            line,
            log,
            child,
            ended: None,
        })
    }

    /// The number the system knows it by.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has just been found to have ended, and how.
    pub(super) fn newly_ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_some() {
            return None;
        }
        self.ended = self.child.try_wait().ok().flatten();
        self.ended
    }

    pub(super) fn runs(&mut self) -> bool {
        self.newly_ended();
        self.ended.is_none()
    }

    /// Asks it to stop.
    pub(super) fn terminate(&self) {
        if let (None, Ok(pid)) = (self.ended, i32::try_from(self.pid())) {
            // It may just have ended: until it is waited for, its number is nobody else's.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// The last lines of its log.
    pub(super) fn tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_setting(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let theirs = |prefix: &str| name.starts_with(prefix.as_bytes());
    name != LOG.as_bytes() && NOT_FOR_PARTS.iter().any(|prefix| theirs(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_reads_it() {
        let line = |program: Option<&str>, arguments: &[&str]| Line {
            program: program.map(PathBuf::from),
            arguments: arguments.iter().map(OsString::from).collect(),
        };
        assert_eq!(
            line(None, &["agent", "--node-id", "node-1"]).typed("orchd"),
            "orchd agent --node-id node-1"
        );
        assert_eq!(
            line(Some("/opt/my llama/llama-server"), &["-m", "it's.gguf", ""]).typed("orchd"),
            r"'/opt/my llama/llama-server' -m 'it'\''s.gguf' ''"
        );
    }

    #[test]
    fn settings_of_the_user_do_not_reach_a_part_and_how_much_is_logged_does() {
        for (name, theirs) in [
            ("ORCHD_API_TOKEN", true),
            ("ORCHESTRATORD_CLOUD_PROFILE", true),
            ("NOTIFY_SOCKET", true),
            ("ORCHD_LOG", false),
            ("LD_LIBRARY_PATH", false),
        ] {
            assert_eq!(is_setting(OsStr::new(name)), theirs, "{name}");
        }
    }
}
