//! Libraries that stand between a process and its system, and lie to it when they are told to: a wall clock that is
//! stepped, a disk that fails.
//!
//! They are built from the C files in `shims/` and preloaded; what they read while the process runs lies in a file of the
//! test. Used by `fleet` and `store`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One such library, and the file by which it is told.
pub struct Shim {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Shim {
    /// Builds `shims/NAME.c`, and says `first` to it through a file in this directory.
    pub fn build(name: &str, directory: &Path, first: &[u8]) -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shims");
        let (library, path) = (directory.join(format!("{name}.so")), directory.join(name));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o"])
            .arg(&library)
            .arg(here.join(format!("{name}.c")))
            .status()
            .expect("a C compiler is there");
        assert!(status.success(), "{name}: {status}");
        fs::write(&path, first).expect("the test's directory can be written to");
        let file = File::options().write(true).open(&path);
        Self {
            library,
            path,
            file: file.expect("it is there"),
        }
    }

    /// What the process needs in its environment; `told_by` is where the library looks for the name of the file.
    pub fn environment(&self, told_by: &'static str) -> [(&'static str, &str); 2] {
        let [library, path] = [&self.library, &self.path].map(|path| path.to_str().expect("UTF-8"));
        [("LD_PRELOAD", library), (told_by, path)]
    }

    /// Says something else, as many bytes as before.
    pub fn say(&self, bytes: &[u8]) {
        let written = self.file.write_all_at(bytes, 0);
        written.expect("it can be written");
    }
}
