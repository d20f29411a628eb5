//! What tells this machine from others that claim the same name: the system's machine id, or one that is made once and
//! kept in the state directory.
//!
//! Invariants: the system's id is not shown outside its machine (machine-id(5)), a hash of it is; one that was made is
//! there in whole or not at all, and is never made anew while it is there. Called by `agent`, `probe` and `config`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::cli::MachineId;
use crate::random;

use super::serve;

/// Where a system keeps its machine id.
const OF_SYSTEM: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// What stands there on an image that has not been started yet (machine-id(5)).
const NOT_YET: &str = "uninitialized";
/// The file of one that was made.
const KEPT: &str = "machine-id";

/// The id of a machine, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    pub id: String,
    pub from: &'static str,
}

/// What an agent says, made and kept if need be. Where none can be kept, the host's name has to do.
pub(super) fn of_agent(state_dir: Option<PathBuf>, host: Option<&str>) -> String {
    if let Some(known) = known(state_dir.clone()) {
        return known.id;
    }
    let dir = state_dir.or_else(serve::default_state_dir);
    let made = dir
        .context("this user has no home directory to keep one in")
        .and_then(|dir| keep(&dir));
    made.unwrap_or_else(|error| {
        warn!(
            "this system has no machine id, and none can be kept: {error:#}; its host name stands in for it: name a \
             directory with --state-dir, or the machine with --machine-id"
        );
        host.unwrap_or("unknown").to_owned()
    })
}

/// What an agent would say, if it need not make it first. Changes nothing.
pub(super) fn known(state_dir: Option<PathBuf>) -> Option<Machine> {
    of_system(&OF_SYSTEM).or_else(|| {
        let id = kept(&state_dir.or_else(serve::default_state_dir)?).ok()??;
        Some(Machine {
            id,
            from: "kept in the state directory: the system has no machine id",
        })
    })
}

fn of_system(files: &[&str]) -> Option<Machine> {
    let mut found = files.iter().filter_map(|path| {
        let id = fs::read_to_string(path).ok()?.trim().to_owned();
        (!id.is_empty() && id != NOT_YET).then_some(id)
    });
    let digest = Sha256::new()
        .chain_update(b"orchd")
        .chain_update(found.next()?.as_bytes())
        .finalize();
    Some(Machine {
        id: digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        from: "the system's machine id",
    })
}

/// The one that is kept there, if one is.
fn kept(dir: &Path) -> anyhow::Result<Option<String>> {
    let path = dir.join(KEPT);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    match text.trim().parse::<MachineId>() {
        Ok(id) => Ok(Some(id.0)),
        Err(e) => anyhow::bail!("{} holds none: {e}", path.display()),
    }
}

/// The one that is kept there; it is made if there is none.
fn keep(dir: &Path) -> anyhow::Result<String> {
    if let Some(id) = kept(dir)? {
        return Ok(id);
    }
    make(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    kept(dir)?.context("it was removed at once")
}

/// Of several that do this at once, one comes first, and its id is that of all.
fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!("{KEPT}.{}", random::name()));
    let written = File::create_new(&draft).and_then(|mut file| {
        writeln!(file, "{}{}", random::name(), random::name())?;
        file.sync_all()
    });
    let put = written.and_then(|()| match fs::hard_link(&draft, dir.join(KEPT)) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => File::open(dir)?.sync_all(),
    });
    // A draft that stays does no harm.
    let _ = fs::remove_file(&draft);
    put
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("read").file_name();
        entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_machine_without_an_id_keeps_the_one_that_was_made_for_it() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("state/orchd");
        assert_eq!(kept(&dir).expect("nothing is wrong"), None);
        let at_once: Vec<String> = std::thread::scope(|scope| {
            let agents: Vec<_> = (0..8).map(|_| scope.spawn(|| keep(&dir))).collect();
            let kept = agents
                .into_iter()
                .map(|agent| agent.join().expect("no panic"));
            kept.map(|id| id.expect("it is kept")).collect()
        });
        assert_eq!(at_once[0].len(), 32);
        assert!(at_once.iter().all(|id| *id == at_once[0]), "{at_once:?}");
        // Another start.
        assert_eq!(keep(&dir).expect("it is kept"), at_once[0]);
        assert_eq!(kept(&dir).expect("it is there"), Some(at_once[0].clone()));
        assert_eq!(entries(&dir), [KEPT]);
        let another = parent.path().join("another");
        assert_ne!(keep(&another).expect("it is kept"), at_once[0]);
    }

    #[test]
    fn what_is_no_id_is_told_of_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(KEPT), "\n").expect("written");
        let error = keep(dir.path()).expect_err("there is none").to_string();
        assert!(error.contains("machine-id holds none: "), "{error}");
        assert_eq!(fs::read(dir.path().join(KEPT)).expect("read"), b"\n");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let error = keep(&file).expect_err("it is no directory").to_string();
        assert!(error.contains("cannot read"), "{error}");
    }

    #[test]
    fn a_systems_id_is_hashed_and_one_that_is_not_there_yet_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("id");
        let path = file.to_str().expect("UTF-8");
        assert_eq!(of_system(&[path]), None);
        for none in ["", " \n", "uninitialized\n"] {
            fs::write(&file, none).expect("written");
            assert_eq!(of_system(&["/nowhere", path]), None);
        }
        fs::write(&file, "0123456789abcdef0123456789abcdef\n").expect("written");
        let found = of_system(&["/nowhere", path]).expect("it has one");
        assert_eq!(
            (found.id.len(), found.from),
            (32, "the system's machine id")
        );
        assert!(!found.id.contains("0123456789"), "{}", found.id);
    }
}
