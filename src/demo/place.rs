//! The directory of one demo: the settings of its parts, their state and their logs.
//!
//! Invariants: it is its user's alone, and goes when the demo ends; what a demo that was killed has left, the next one
//! removes. A lock tells which of them are in use.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::random;

/// How the names of all of them begin.
const PREFIX: &str = "orchd-demo-";
/// The file in each whose lock is held for as long as it is in use.
const LOCK: &str = "lock";
/// The file in each that says of a node that it has no GPUs.
const NO_GPUS: &str = "no-gpus.json";

/// A directory in use.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    _lock: File,
}

impl Place {
    /// Makes one, in a directory for temporary files.
    pub fn make_in(parent: &Path) -> io::Result<Self> {
        remove_left_over(parent);
        let name = random::name();
        // It gets its name when it is locked: under that name another demo would take it for one that was left.
        let nameless = parent.join(format!(".{PREFIX}{name}"));
        DirBuilder::new().mode(0o700).create(&nameless)?;
        let made = || {
            let lock = File::create(nameless.join(LOCK))?;
            lock.try_lock()?;
            let dir = parent.join(format!("{PREFIX}{name}"));
            fs::rename(&nameless, &dir)?;
            Ok(Self { dir, _lock: lock })
        };
        made().inspect_err(|_: &io::Error| {
            let _ = fs::remove_dir_all(&nameless);
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of settings for all parts.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Writes that file: settings of its own, so that those of the user's real fleet have no say here. `gpus` says whether the
    /// engines may use those of this machine; if not, no node is said to have one, and none is warned of.
    pub fn write_config(
        &self,
        listen: SocketAddr,
        node_timeout: Duration,
        shutdown_grace: Duration,
        gpus: bool,
    ) -> io::Result<()> {
        let path = |name: &str| text(&self.dir.join(name).to_string_lossy());
        let mut settings = format!(
            "# The settings of all parts of one `orchd demo`.\n\
             listen = {listen}\n\
             server = {server}\n\
             state_dir = {state}\n\
             runtime_dir = {engines}\n\
             # Short, so that there is something to see soon; 30s each unless something else is said.\n\
             node_timeout = \"{timeout}s\"\n\
             shutdown_grace = \"{grace}s\"\n",
            listen = text(&listen.to_string()),
            server = text(&format!("http://{listen}")),
            state = path("state"),
            engines = path("engines"),
            timeout = node_timeout.as_secs(),
            grace = shutdown_grace.as_secs(),
        );
        if !gpus {
            fs::write(self.dir.join(NO_GPUS), "[]")?;
            let agent = format!("\n[agent]\ngpu_fixture = {}\n", path(NO_GPUS));
            settings.push_str(&agent);
        }
        fs::write(self.config(), settings)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is removed by the next demo.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A text in TOML, whose quoted strings have all the escapes of JSON's.
fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn remove_left_over(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in ours {
        let dir = entry.path();
        let lock = dir.join(LOCK);
        // Whatever else has such a name is not a demo's, and opening it may take for ever.
        if !fs::symlink_metadata(&lock).is_ok_and(|lock| lock.is_file()) {
            continue;
        }
        let lock = File::open(lock);
        // Those of other users cannot be removed, and need not be.
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parent: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(parent).expect("it is there");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("read").path()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_demo_left_is_removed_by_the_next_and_one_in_use_is_not() {
        let parent = tempfile::tempdir().expect("a directory");
        let dead = parent.path().join("orchd-demo-dead");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join(LOCK), "").expect("written");
        let other = parent.path().join("something-else");
        fs::create_dir(&other).expect("made");

        let first = Place::make_in(parent.path()).expect("a place");
        let second = Place::make_in(parent.path()).expect("a place");
        let mut there = vec![
            first.dir().to_owned(),
            second.dir().to_owned(),
            other.clone(),
        ];
        there.sort();
        assert_eq!(names(parent.path()), there);
        drop((first, second));
        assert_eq!(names(parent.path()), [other]);
    }

    #[test]
    fn the_settings_are_toml_whatever_the_directory_is_called() {
        let parent = tempfile::tempdir().expect("a directory");
        let odd = parent.path().join("a \"b\" \\c");
        fs::create_dir(&odd).expect("made");
        let place = Place::make_in(&odd).expect("a place");
        let second = Duration::from_secs(1);
        place
            .write_config(([127, 0, 0, 1], 8080).into(), 5 * second, second, false)
            .expect("written");
        let text = fs::read_to_string(place.config()).expect("read");
        let table = toml::de::DeTable::parse(&text).expect("TOML");
        let state = table.get_ref()["state_dir"].get_ref().as_str();
        assert_eq!(
            state.map(Path::new),
            Some(place.dir().join("state").as_path())
        );
    }
}
