//! What keeps a part from outliving the demo, however that ends: the kernel ends it with its parent.
//!
//! A part is started by way of this executable, which asks the kernel for that and then becomes the part; asking is for
//! the process itself alone, and outlasts the change of program. That needs no cooperation of the part, which may be a
//! llama-server, no process that watches, and leaves the part's id as it was.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Becomes `program`, to be killed when `parent`, which started this process, ends. Returns only when that fails.
///
/// # Errors
/// The program cannot be run, or the parent has ended already.
pub fn become_part(
    parent: u32,
    program: &OsString,
    arguments: &[OsString],
) -> io::Result<Infallible> {
    // Elsewhere the demo ends its parts itself, unless it is killed.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // It may have ended before that was asked for.
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
        return Err(io::Error::other("the demo that started this has ended"));
    }
    Err(Command::new(program).args(arguments).exec())
}
