//! The executable: sets up what the whole process shares, and hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Before anything else: a shell that completes runs no command.
    orchd::commands::complete::run();
    orchd::commands::run(std::env::args_os())
}
