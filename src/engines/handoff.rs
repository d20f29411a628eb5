//! The runtime directory: which handoff files lie in it, and what they say.
//!
//! Invariants: a change is seen within [`RESCAN`] at the latest, whether or not the file system tells of it; a file is
//! taken as it is only once it can be read as a whole, and a good one that is being rewritten counts until the new one
//! is there or [`PATIENCE`] is over; nothing in the directory can stop the watching (pipes, huge files, links into
//! nowhere). All of it blocks, and runs on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use http::HeaderValue;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::types::{EngineKind, Handoff, Millis, Mono, PoolState};

use super::roster::{Claim, Source};
use super::{Engine, Fault};

/// How often the directory is looked at when nothing is heard of it. Half of what a change may take (contract §4), since
/// a file that changes while it is read is read once more.
const RESCAN: Duration = Duration::from_secs(1);
/// How soon it is looked at again while something in it cannot be read.
pub const RETRY: Duration = Duration::from_millis(200);
/// A burst of changes is waited for so long.
const SETTLE: Duration = Duration::from_millis(20);
/// For so long a file that cannot be read counts as one that is being written.
const PATIENCE: Millis = 1_000;
/// A file may change again without looking changed within the grain of its time stamps (a tick of the kernel's clock,
/// 10 ms at most); far longer, because other machines' file systems keep coarser ones.
const UNSETTLED: Millis = 2_000;
/// Larger files are something else.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file as it was last seen.
#[derive(Debug)]
struct Seen {
    /// Its own, and that of the key it names; none when there is nothing to tell by.
    signature: (Option<Signature>, Option<Signature>),
    since: Mono,
    /// What it last said when it could be read.
    said: Option<Said>,
    /// Since when it cannot be, and why.
    broken: Option<(Mono, String)>,
}

#[derive(Debug, Clone)]
struct Said {
    engine: Engine,
    pid: Option<u32>,
    key_file: Option<PathBuf>,
}

/// Looks at a directory.
#[derive(Debug)]
pub struct Scanner {
    dir: PathBuf,
    files: BTreeMap<String, Seen>,
    /// Why the directory cannot be read, as the log knows.
    trouble: Option<String>,
}

/// What a look found.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// One for each file, in the order of their names.
    pub claims: Vec<Claim>,
    /// Something could not be read, and may be soon.
    pub unsettled: bool,
}

impl Scanner {
    /// A directory that has not been looked at. It need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
            trouble: None,
        }
    }

    /// Looks.
    pub fn scan(&mut self, now: Mono) -> Found {
        let (names, trouble) = match self.names() {
            Ok(names) => (Some(names), None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Some(BTreeSet::new()), None),
            // No directory has no files, and is hardly meant.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                (Some(BTreeSet::new()), Some(e.to_string()))
            }
            // What was known of the files is still the best there is.
            Err(e) => (None, Some(e.to_string())),
        };
        if let Some(error) = &trouble
            && self.trouble != trouble
        {
            warn!(dir = %self.dir.display(), error, "cannot read the directory of handoff files; it is tried again every second");
        }
        self.trouble = trouble;
        if let Some(names) = names {
            self.files.retain(|name, _| names.contains(name));
            for name in names {
                self.look(now, name);
            }
        }
        let unsettled = self.files.values().any(|seen| {
            (seen.broken.as_ref()).is_some_and(|(since, _)| now.since(*since) <= PATIENCE)
        });
        let claims = self.files.iter().filter_map(|(name, seen)| {
            let source = Source::File(name.clone());
            match (&seen.said, &seen.broken) {
                (Some(said), None) => Some((source, Ok(said.now()))),
                (said, Some((since, why))) => match said {
                    Some(said) if now.since(*since) <= PATIENCE => Some((source, Ok(said.now()))),
                    None if now.since(*since) <= PATIENCE => None,
                    _ => Some((source, Err(why.clone()))),
                },
                (None, None) => None,
            }
        });
        Found {
            claims: claims.collect(),
            unsettled,
        }
    }

    /// Why the directory could not be read at the last look. One that is not there is an empty one.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The files, sorted.
    fn names(&self) -> io::Result<BTreeSet<String>> {
        let entries = fs::read_dir(&self.dir)?;
        let mut names = BTreeSet::new();
        for entry in entries {
            // Hidden files are those that others are still writing; names that are no text are nobody's.
            if let Ok(name) = entry?.file_name().into_string()
                && name.ends_with(".json")
                && !name.starts_with('.')
            {
                names.insert(name);
            }
        }
        Ok(names)
    }

    fn look(&mut self, now: Mono, name: String) {
        let path = self.dir.join(&name);
        let known = self.files.get(&name);
        let key_file = known.and_then(|seen| seen.said.as_ref()?.key_file.as_deref());
        let signature = (sign(&path), key_file.and_then(sign));
        if let Some(seen) = known
            && seen.signature == signature
            && seen.broken.is_none()
            && now.since(seen.since) > UNSETTLED
        {
            return;
        }
        let since = match known {
            Some(seen) if seen.signature == signature => seen.since,
            _ => now,
        };
        let read = read(&path, &self.dir);
        let seen = self.files.entry(name).or_insert(Seen {
            signature,
            since,
            said: None,
            broken: None,
        });
        match read {
            Ok(said) => {
                // The key's file is known only now, if it is another one.
                let key = said.key_file.as_deref().and_then(sign);
                seen.signature = (signature.0, key);
                seen.said = Some(said);
                seen.broken = None;
            }
            Err(why) => {
                seen.signature = signature;
                let began = seen.broken.take().map_or(now, |(began, _)| began);
                if now.since(began) > PATIENCE {
                    seen.said = None;
                }
                seen.broken = Some((began, why));
            }
        }
        seen.since = since;
    }
}

impl Said {
    /// The engine, as its process is at this moment.
    fn now(&self) -> Engine {
        let mut engine = self.engine.clone();
        if let Some(pid) = self.pid.filter(|&pid| !is_alive(pid)) {
            engine.fault.get_or_insert(Fault {
                state: PoolState::Unreachable,
                why: format!("its process, {pid} in its handoff file, has ended"),
            });
        }
        engine
    }
}

fn sign(path: &Path) -> Option<Signature> {
    fs::metadata(path).ok().as_ref().map(Signature::of)
}

/// Whether there is such a process; one of somebody else is one.
fn is_alive(pid: u32) -> bool {
    match i32::try_from(pid) {
        // 0 is this process's own group, not a process.
        Ok(pid) if pid > 0 => kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH),
        _ => false,
    }
}

/// Whether a process was started with `--sleep-idle-seconds`: readings keep such an engine awake, and it does not tell.
fn falls_asleep(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|&byte| byte == 0);
    arguments.any(|argument| argument == b"--sleep-idle-seconds")
}

fn read(path: &Path, dir: &Path) -> Result<Said, String> {
    let text = bounded(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let handoff = Handoff::parse(&text).map_err(|e| e.to_string())?;
    let misconfigured = |why: String| Fault {
        state: PoolState::Misconfigured,
        why,
    };
    let mut engine = Engine::new(handoff.pool_id, handoff.url);
    engine.declared = handoff.declared;
    engine.device_mask = handoff.device_mask;
    engine.ignored = handoff.ignored;
    engine.sleeps = handoff.pid.is_some_and(falls_asleep);
    if let Some(other) = handoff.other_engine {
        let known = EngineKind::LlamaCpp.as_str();
        engine.fault = Some(misconfigured(format!(
            "orchd does not know the engine {other:?} of its handoff file; it knows {known}"
        )));
    }
    let key_file = handoff.api_key_file.map(|file| dir.join(file));
    if let Some(file) = &key_file {
        match key(file) {
            Ok(key) => engine.key = Some(key),
            Err(why) => {
                let why = format!(
                    "the api_key_file {} of its handoff file {why}",
                    file.display()
                );
                engine.fault.get_or_insert(misconfigured(why));
            }
        }
    }
    Ok(Said {
        engine,
        pid: handoff.pid,
        key_file,
    })
}

/// The first line that says anything.
fn key(path: &Path) -> Result<HeaderValue, String> {
    let text = bounded(path).map_err(|e| format!("cannot be read: {e}"))?;
    let text = String::from_utf8(text).map_err(|_| "is no text".to_owned())?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line.ok_or("is empty")?;
    let mut value = HeaderValue::from_str(&format!("Bearer {line}"))
        .map_err(|_| "holds characters that a header cannot carry".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// All of a file that is not larger than such files are.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe that nobody writes to would be waited for without end.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why = format!("it is larger than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

/// Watches a directory until nobody listens any more: hands on what is claimed there, at once and whenever it is something
/// else.
///
/// # Errors
/// There is no thread to do it on.
pub fn spawn_watch(
    dir: PathBuf,
    clock: Clock,
    claims: tokio::sync::mpsc::Sender<Vec<Claim>>,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("orchd-handoff".to_owned())
        .spawn(move || watch(dir, clock, &claims))
        .map(drop)
}

fn watch(dir: PathBuf, clock: Clock, claims: &tokio::sync::mpsc::Sender<Vec<Claim>>) {
    let (bell, rung) = mpsc::sync_channel(1);
    let mut ears = Ears {
        dir: dir.clone(),
        bell,
        listening: None,
    };
    let mut scanner = Scanner::new(dir);
    let mut told = None;
    loop {
        // Before the look: what changes from here on is heard of.
        ears.prick();
        let found = scanner.scan(clock.now());
        if told.as_ref() != Some(&found.claims) {
            if claims.blocking_send(found.claims.clone()).is_err() {
                return;
            }
            told = Some(found.claims);
        }
        let pause = if found.unsettled { RETRY } else { RESCAN };
        match rung.recv_timeout(pause) {
            Ok(()) => std::thread::sleep(SETTLE),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // Impossible: `ears` holds the other end.
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        while rung.try_recv().is_ok() {}
        if claims.is_closed() {
            return;
        }
    }
}

/// Hears of changes in the directory, where the file system tells of them.
struct Ears {
    dir: PathBuf,
    bell: mpsc::SyncSender<()>,
    /// The directory that is listened to: it may have been replaced since.
    listening: Option<(u64, u64, RecommendedWatcher)>,
}

impl Ears {
    /// Listens to the directory that is there now.
    fn prick(&mut self) {
        let Ok(metadata) = fs::metadata(&self.dir) else {
            self.listening = None;
            return;
        };
        let now = (metadata.dev(), metadata.ino());
        if let Some((device, inode, _)) = &self.listening
            && (*device, *inode) == now
        {
            return;
        }
        let bell = self.bell.clone();
        let heard = move |event: notify::Result<notify::Event>| {
            // Looking at the directory opens it, which is heard as well.
            let only_opened = event.as_ref().is_ok_and(|event| {
                let kind = event.kind;
                let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
                kind.is_access() && kind != written
            });
            if !only_opened {
                // A bell that rings already need not be rung.
                let _ = bell.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.listening = Some((now.0, now.1, watcher)),
            // The next look is never far.
            Err(e) => debug!(dir = %self.dir.display(), error = %e, "not told of changes"),
        }
    }
}

#[cfg(test)]
mod tests;
