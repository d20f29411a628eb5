//! Tokens and certificates where they are kept, and what happens when they change there.
//!
//! Purpose: read them at the start, look at the files again and again and at every SIGHUP, and give what is new to the
//! [`Guard`] and the [`Acceptor`] that the rest of the process holds. Invariants: at the start anything wrong is an
//! error; later it is a warning, and what was good stays in force; a token is logged by its fingerprint only; a SIGHUP
//! never ends the process. Made by `commands`, run by `server` and `agent`.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::auth::{self, BadToken, BadTokens, Guard, Token, Tokens, Unguarded};
use crate::service;
use crate::tls::{Acceptor, Pair, TlsError};

/// How often the files are looked at. A change is taken when two looks saw the same, so that one which is only half
/// written, or whose companion is still to come, is not.
const LOOK: Duration = Duration::from_millis(500);
/// Larger files are something else.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the tokens of one kind come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// There are none.
    #[default]
    None,
    /// One that was said outright.
    Given(Token),
    /// A file, which is read again when it changes.
    File(PathBuf),
}

/// Where the certificate is, and where its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate with those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Of operators and agents.
    pub api: Source,
    /// Of clients.
    pub client: Source,
    /// What the listener shows of itself.
    pub pair: Option<PairFiles>,
    /// What is listened on: off loopback only good tokens will do.
    pub listen: SocketAddr,
}

/// Why tokens or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A token that was said outright.
    #[error(transparent)]
    BadToken(#[from] BadToken),
    /// A file of tokens.
    #[error("the token file {}: {source}", path.display())]
    BadFile {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: BadTokens,
    },
    /// The tokens are not good enough for the address.
    #[error(transparent)]
    Unguarded(#[from] Unguarded),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What a set of files holds: a digest over all of them, readable or not. The contents are not kept.
type Seen = [u8; 32];

/// A file as it was read once: a pipe gives its contents to the first reader only.
struct Snapshot<'a> {
    path: &'a Path,
    content: io::Result<Vec<u8>>,
}

/// What was seen of a set of files, and what was done about it.
#[derive(Debug, Default)]
struct Watched {
    /// What was taken or turned down last.
    settled: Option<Seen>,
    /// What the last look saw, when that was something else.
    fresh: Option<Seen>,
}

impl Watched {
    /// Whether what is there now is new, and complete as far as one can see.
    fn is_due(&mut self, now: Seen) -> bool {
        if self.settled == Some(now) {
            self.fresh = None;
            return false;
        }
        self.fresh.replace(now) == Some(now)
    }

    fn settle(&mut self, now: Seen) {
        *self = Self {
            settled: Some(now),
            fresh: None,
        };
    }
}

/// The tokens and certificates of this process.
pub struct Secrets {
    settings: Settings,
    guard: Guard,
    acceptor: Option<Acceptor>,
    tokens: Watched,
    pair: Watched,
}

impl Secrets {
    /// Reads everything.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn open(settings: Settings) -> Result<Self, SecretsError> {
        let (mut tokens, mut pair) = (Watched::default(), Watched::default());
        let files = read_all(token_files(&settings));
        tokens.settle(seen(&files));
        let guard = Guard::new(read_tokens(&settings, files)?);
        let files = read_all(pair_files(&settings));
        pair.settle(seen(&files));
        let acceptor = match pair_of(files)? {
            None => None,
            Some(read) => Some(Acceptor::new(read.pair())?),
        };
        Ok(Self {
            settings,
            guard,
            acceptor,
            tokens,
            pair,
        })
    }

    /// Who is let in, and what is shown to others. What it is told, this keeps up to date.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard.clone()
    }

    /// What the listener shows of itself, when it speaks TLS.
    #[must_use]
    pub fn acceptor(&self) -> Option<Acceptor> {
        self.acceptor.clone()
    }

    /// Keeps everything up to date for as long as it is polled. `hangup` is SIGHUP: read all files now.
    pub async fn watch(mut self, mut hangup: Signal) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let has_files =
            token_files(&self.settings).next().is_some() || self.settings.pair.is_some();
        loop {
            let asked = tokio::select! {
                Some(()) = hangup.recv() => true,
                _ = looks.tick(), if has_files => false,
                // Without files and without a signal handler there is nothing to wait for.
                else => return,
            };
            if asked {
                service::reloading();
            }
            // A disk that does not answer holds up nobody else.
            let looked = tokio::task::spawn_blocking(move || {
                let good = self.look(asked);
                (self, good)
            });
            let Ok((back, good)) = looked.await else {
                return;
            };
            self = back;
            if asked {
                // What was no good was warned about.
                if good {
                    info!("SIGHUP: tokens and certificates were read again");
                }
                service::ready();
            }
        }
    }

    /// Takes what has changed; `asked` takes it at once. Says whether nothing was turned down.
    fn look(&mut self, asked: bool) -> bool {
        let mut good = true;
        let files = read_all_again(token_files(&self.settings));
        let now = seen(&files);
        if self.tokens.is_due(now) || asked {
            good &= take_tokens(&self.settings, files, &self.guard);
            self.tokens.settle(now);
        }
        let files = read_all_again(pair_files(&self.settings));
        let now = seen(&files);
        if self.pair.is_due(now) || asked {
            if let Some(acceptor) = &self.acceptor {
                good &= take_pair(files, acceptor);
            }
            self.pair.settle(now);
        }
        good
    }
}

fn take_tokens(settings: &Settings, files: Vec<Snapshot<'_>>, guard: &Guard) -> bool {
    match read_tokens(settings, files) {
        Ok(tokens) if tokens == *guard.tokens() => true,
        Ok(tokens) => {
            say(&tokens, "the tokens were exchanged");
            guard.replace(tokens);
            true
        }
        Err(e) => {
            warn!(error = %e, "the tokens in the file are not taken; those from before stay in force");
            false
        }
    }
}

fn take_pair(files: Vec<Snapshot<'_>>, acceptor: &Acceptor) -> bool {
    let taken = pair_of(files).and_then(|read| match read {
        None => Ok(None),
        Some(read) => {
            acceptor.replace(read.pair())?;
            Ok(Some(read.cert_name))
        }
    });
    match taken {
        Ok(None) => true,
        Ok(Some(cert)) => {
            info!(
                cert,
                "the certificate was read; who connects from now on is shown it"
            );
            true
        }
        Err(e) => {
            warn!(error = %e, "the certificate is not taken; the one from before stays in use");
            false
        }
    }
}

/// One line about the tokens in force, by their fingerprints, and a warning when one of them could be guessed.
pub fn say(tokens: &Tokens, what: &str) {
    // Where there is none, the field is left out.
    let names = |tokens: &[Token]| {
        let names: Vec<String> = tokens.iter().map(Token::fingerprint).collect();
        (!names.is_empty()).then(|| names.join(","))
    };
    let (api, client) = (names(&tokens.api), names(&tokens.client));
    info!(api, client, "{what}");
    if tokens.is_weak() {
        warn!("a token is shorter than 32 characters, which is good enough for this machine alone");
    }
}

fn token_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    [&settings.api, &settings.client]
        .into_iter()
        .filter_map(|source| match source {
            Source::File(path) => Some(path.as_path()),
            Source::None | Source::Given(_) => None,
        })
}

fn pair_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    let pair = settings.pair.iter();
    pair.flat_map(|pair| [pair.cert.as_path(), pair.key.as_path()])
}

fn read_tokens(settings: &Settings, files: Vec<Snapshot<'_>>) -> Result<Tokens, SecretsError> {
    let mut files = files.into_iter();
    // In the order of `token_files`.
    let tokens = Tokens {
        api: tokens_of(&settings.api, &mut files)?,
        client: tokens_of(&settings.client, &mut files)?,
    };
    tokens.suits(settings.listen)?;
    Ok(tokens)
}

/// The tokens of one kind, as they are at the moment.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn tokens(source: &Source) -> Result<Vec<Token>, SecretsError> {
    let file = match source {
        Source::File(path) => Some(path.as_path()),
        Source::None | Source::Given(_) => None,
    };
    tokens_of(source, &mut read_all(file.into_iter()).into_iter())
}

/// The next of `files` is the one of `source`, if it has one.
fn tokens_of<'a>(
    source: &Source,
    files: &mut impl Iterator<Item = Snapshot<'a>>,
) -> Result<Vec<Token>, SecretsError> {
    match source {
        Source::None => Ok(Vec::new()),
        Source::Given(token) => Ok(vec![token.clone()]),
        Source::File(path) => {
            let file = files.next().expect("every file was read");
            let content = file.content()?;
            auth::parse(&String::from_utf8_lossy(&content)).map_err(|source| {
                SecretsError::BadFile {
                    path: path.clone(),
                    source,
                }
            })
        }
    }
}

/// A certificate and its key, as they were read.
struct ReadPair {
    cert: Vec<u8>,
    key: Vec<u8>,
    cert_name: String,
    key_name: String,
}

impl ReadPair {
    fn pair(&self) -> Pair<'_> {
        Pair {
            cert: &self.cert,
            key: &self.key,
            cert_name: &self.cert_name,
            key_name: &self.key_name,
        }
    }
}

/// `None` when there is none to be had.
fn pair_of(files: Vec<Snapshot<'_>>) -> Result<Option<ReadPair>, SecretsError> {
    let mut files = files.into_iter();
    let (Some(cert), Some(key)) = (files.next(), files.next()) else {
        return Ok(None);
    };
    let name = |file: &Snapshot<'_>| file.path.display().to_string();
    Ok(Some(ReadPair {
        cert_name: name(&cert),
        key_name: name(&key),
        cert: cert.content()?,
        key: key.content()?,
    }))
}

impl Snapshot<'_> {
    fn content(self) -> Result<Vec<u8>, SecretsError> {
        self.content.map_err(|source| SecretsError::Read {
            path: self.path.to_owned(),
            source,
        })
    }
}

fn read_all<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Snapshot<'a>> {
    paths
        .map(|path| Snapshot {
            path,
            content: read(path),
        })
        .collect()
}

/// The same after the start. A pipe has nothing more to give by then, and whoever waits for its writer may wait for ever.
fn read_all_again<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Snapshot<'a>> {
    let regular = |path: &Path| match std::fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is not a regular file")),
    };
    paths
        .map(|path| Snapshot {
            path,
            content: regular(path).and_then(|()| read(path)),
        })
        .collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Contents rather than times of change: those of a file that is replaced by an older one go back, and a file that is
/// written twice within one tick of the file system's clock keeps its own.
fn seen(files: &[Snapshot<'_>]) -> Seen {
    let mut digest = Sha256::new();
    for file in files {
        let content: [u8; 32] = match &file.content {
            Ok(bytes) => Sha256::digest(bytes).into(),
            Err(e) => Sha256::digest(format!("not read: {e}")).into(),
        };
        digest.update(content);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    fn settings(file: &Path, listen: &str) -> Settings {
        Settings {
            api: Source::File(file.to_owned()),
            client: Source::None,
            pair: None,
            listen: listen.parse().expect("good"),
        }
    }

    fn api(secrets: &Secrets) -> Vec<String> {
        let tokens = secrets.guard().tokens();
        tokens.api.iter().map(Token::fingerprint).collect()
    }

    fn prints(secrets: &[&str]) -> Vec<String> {
        secrets
            .iter()
            .map(|secret| Token::new(secret).expect("good").fingerprint())
            .collect()
    }

    #[test]
    fn a_change_is_taken_when_two_looks_saw_it_or_at_once_when_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        fs::write(&file, OLD).expect("written");
        let mut secrets = Secrets::open(settings(&file, "127.0.0.1:1")).expect("good");
        fs::write(&file, format!("{NEW}\n{OLD}\n")).expect("written");
        secrets.look(false);
        assert_eq!(api(&secrets), prints(&[OLD]));
        secrets.look(false);
        assert_eq!(api(&secrets), prints(&[NEW, OLD]));
        fs::write(&file, NEW).expect("written");
        secrets.look(true);
        assert_eq!(api(&secrets), prints(&[NEW]));
    }

    #[test]
    fn what_is_no_good_never_replaces_what_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        fs::write(&file, OLD).expect("written");
        let mut secrets = Secrets::open(settings(&file, "0.0.0.0:1")).expect("good");
        for bad in [
            "",
            "# nothing\n",
            "to ken\n",
            "short\n",
            &format!("{NEW}\nshort\n"),
        ] {
            fs::write(&file, bad).expect("written");
            secrets.look(true);
            assert_eq!(api(&secrets), prints(&[OLD]), "{bad:?}");
        }
        fs::remove_file(&file).expect("removed");
        secrets.look(true);
        assert_eq!(api(&secrets), prints(&[OLD]));
        fs::write(&file, NEW).expect("written");
        secrets.look(true);
        assert_eq!(api(&secrets), prints(&[NEW]));
    }

    #[test]
    fn a_pipe_is_read_once() {
        let (read, mut write) = std::io::pipe().expect("a pipe");
        io::Write::write_all(&mut write, OLD.as_bytes()).expect("written");
        drop(write);
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read));
        let secrets = Secrets::open(settings(Path::new(&path), "127.0.0.1:1")).expect("good");
        assert_eq!(api(&secrets), prints(&[OLD]));
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        fs::write(&file, OLD).expect("written");
        let mut secrets = Secrets::open(settings(&file, "127.0.0.1:1")).expect("good");
        fs::remove_file(&file).expect("it is there");
        let made = std::process::Command::new("mkfifo").arg(&file).status();
        assert!(made.expect("mkfifo is part of coreutils").success());
        assert!(!secrets.look(true));
        fs::remove_file(&file).expect("it is there");
        fs::write(&file, NEW).expect("written");
        assert!(secrets.look(true));
        assert_eq!(api(&secrets), prints(&[NEW]));
    }

    #[test]
    fn at_the_start_anything_wrong_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        let open = |listen: &str| match Secrets::open(settings(&file, listen)) {
            Ok(_) => "taken".to_owned(),
            Err(e) => e.to_string(),
        };
        assert!(open("127.0.0.1:1").starts_with("cannot read "));
        fs::write(&file, "\n").expect("written");
        assert!(open("127.0.0.1:1").ends_with("it holds no token"));
        fs::write(&file, "short").expect("written");
        assert_eq!(open("127.0.0.1:1"), "taken");
        assert!(open("0.0.0.0:1").contains("shorter than 32"));
    }
}
