//! What of the settings in force a systemd unit has to know: the file they are in, the files of secrets, how long a stop
//! may take.
//!
//! Invariants: the service runs as a user of its own, who reads no file that is its owner's alone; each file that the
//! settings name comes to it as a credential, which systemd copies for it at the start. Called by `config`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::{Cli, Command, ListenerArgs};
use crate::config::Loaded;

use super::output;

/// How much longer than the shutdown grace a unit may take to stop: the store is flushed, the agent signs off.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// The file a service reads when none is named: its user has no home directory.
const SYSTEM_FILE: &str = "/etc/orchd/config.toml";
/// What the units hide from the service (ProtectHome, PrivateTmp).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
/// Bit of a file's mode that lets everybody read it.
const EVERYBODY_READS: u32 = 0o004;
/// What stands where no file has to be handed in.
const NO_CREDENTIALS: &str = "\
# A service cannot read files that are root's alone. Name those of tokens, keys and certificates in the settings
# (api_token_file, tls_key, ...) and print this unit again: it hands each of them in with LoadCredential=.";
/// What stands above the files that are handed in.
const CREDENTIALS: &str = "\
# Files that may be root's alone, copied for this service at its start: after a change, restart it.";

/// The template of a unit, filled in.
pub(super) fn filled_in(template: &str, loaded: &Loaded) -> anyhow::Result<String> {
    let cli = &loaded.cli;
    let (grace, listener) = match &cli.command {
        Command::Serve(args) => (args.shutdown_grace, Some(&args.listener)),
        Command::Agent(args) => (args.shutdown_grace, Some(&args.listener)),
        // Other verbs have none, and were not loaded.
        _ => (Duration::ZERO, None),
    };
    // Parts of a second count as a whole one.
    let stop = (grace + STOP_MARGIN).as_millis().div_ceil(1_000);
    let named = cli
        .config
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty())
        .map(absolute)
        .transpose()?;
    let mut arguments = String::new();
    if let Some(path) = &named {
        arguments += &format!(" --config {}", quoted(path)?);
    }
    let mut lines = Vec::new();
    for (option, path) in files(cli, listener) {
        let name = option.replace('-', "_");
        let path = absolute(&path)?;
        // The rest of the line is the path, of which no word is expanded.
        lines.push(format!("LoadCredential={name}:{}", escaped(&path)?));
        arguments += &format!(" \\\n    --{option} ${{CREDENTIALS_DIRECTORY}}/{name}");
    }
    let credentials = if lines.is_empty() {
        NO_CREDENTIALS.to_owned()
    } else {
        format!("{CREDENTIALS}\n{}", lines.join("\n"))
    };
    if let Some(objection) = objection(loaded.file.as_deref(), named.is_some()) {
        output::warning(&objection);
    }
    let settings = named.unwrap_or_else(|| PathBuf::from(SYSTEM_FILE));
    Ok(template
        .replace("@SETTINGS@", &settings.display().to_string())
        .replace("@ARGUMENTS@", &arguments)
        .replace("@CREDENTIALS@", &credentials)
        .replace("@STOP_SECONDS@", &stop.to_string()))
}

/// The files that the settings name, by option.
fn files(cli: &Cli, listener: Option<&ListenerArgs>) -> Vec<(&'static str, PathBuf)> {
    let api = &cli.connect.api;
    let client = match &cli.command {
        Command::Serve(args) => args.client.client_token_file.as_ref(),
        _ => None,
    };
    [
        ("api-token-file", api.api_token_file.as_ref()),
        ("client-token-file", client),
        ("tls-cert", listener.and_then(|l| l.tls_cert.as_ref())),
        ("tls-key", listener.and_then(|l| l.tls_key.as_ref())),
        ("ca", api.ca.as_ref()),
    ]
    .into_iter()
    .filter_map(|(option, path)| Some((option, path?.clone())))
    .filter(|(_, path)| !path.as_os_str().is_empty())
    .collect()
}

fn absolute(path: impl AsRef<Path>) -> anyhow::Result<PathBuf> {
    let path = path.as_ref();
    std::path::absolute(path).with_context(|| format!("{} has no absolute form", path.display()))
}

/// As a word of ExecStart= (systemd.service(5), "Command lines").
fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = escaped(path)?.replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%$,=".contains(c);
    if text.chars().all(plain) {
        return Ok(text);
    }
    Ok(format!(
        "\"{}\"",
        text.replace('\\', "\\\\").replace('"', "\\\"")
    ))
}

fn escaped(path: &Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control))
        .with_context(|| format!("{} cannot stand in a unit", path.display()))?;
    Ok(text.replace('%', "%%"))
}

/// Why the service will not read the file that was read here.
fn objection(file: Option<&Path>, named: bool) -> Option<String> {
    let path = absolute(file?).ok()?;
    let shown = path.display();
    if !named && path != Path::new(SYSTEM_FILE) {
        return Some(format!(
            "the service reads {SYSTEM_FILE}, not {shown}, which was read here; move it there, or name a file with --config"
        ));
    }
    if HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
        return Some(format!(
            "{shown} is hidden from the service (ProtectHome=, PrivateTmp=): put it into /etc/orchd"
        ));
    }
    let mode = std::fs::metadata(&path).ok()?.permissions().mode();
    (mode & EVERYBODY_READS == 0).then(|| {
        format!(
            "the service runs as a user of its own, who cannot read {shown}: chmod 644 {shown}, with its secrets elsewhere"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_in_a_unit_as_one_word_and_means_itself() {
        for (path, word) in [
            ("/etc/orchd/config.toml", "/etc/orchd/config.toml"),
            ("/srv/my files/a.toml", "\"/srv/my files/a.toml\""),
            ("/srv/100%/$x.toml", "/srv/100%%/$$x.toml"),
            ("/srv/a\"b\\c", "\"/srv/a\\\"b\\\\c\""),
        ] {
            assert_eq!(quoted(Path::new(path)).expect("good"), word);
        }
        assert!(quoted(Path::new("/srv/a\nb")).is_err());
    }
}
