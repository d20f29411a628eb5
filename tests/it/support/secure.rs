//! What the tests of tokens, TLS and service manners stand on: a process started with a given environment and waited for
//! by its log, an authority that issues certificates, and a client that speaks TLS.
//!
//! Used by `tokens`, `tls` and `manners`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, StreamOwned};
use tempfile::TempDir;

use crate::fake_control_plane::{Ran, orchd};

use super::process::Running;
use super::{eventually, free_address};

/// How long a start, or anything else that happens at once, may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(15);

/// A running `orchd serve` or `orchd agent`.
pub struct Process {
    running: Running,
    pub address: SocketAddr,
    log: PathBuf,
    _dir: TempDir,
}

impl Process {
    /// Starts it with `--listen` on an address of its own, and waits until it listens.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the log");
        let address = free_address();
        let listen = address.to_string();
        let arguments = [arguments, &["--listen", &listen]].concat();
        let name = format!("orchd {} on {address}", arguments[0]);
        let log = dir.path().join("orchd.log");
        let mut command = orchd(&arguments);
        command
            .env("HOME", dir.path())
            .env("RUST_BACKTRACE", "1")
            .envs(environment.iter().copied())
            .current_dir(dir.path());
        let mut process = Self {
            running: Running::spawn(&name, &mut command, &log),
            address,
            log,
            _dir: dir,
        };
        process.logged("listening on ");
        process
    }

    /// Waits until its log says this.
    pub fn logged(&mut self, words: &str) {
        eventually(SOON, &format!("the log says {words:?}"), || {
            let log = self.log();
            if log.contains(words) {
                return Ok(());
            }
            let ended = self.running.exited();
            assert_eq!(ended, None, "it ended; its log:\n{log}");
            Err(log)
        });
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// The number the system knows its process by.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Waits until it ended by itself, and gives its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.running.wait(SOON)
    }
}

/// Runs a command of an operator to its end.
pub fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let mut command = orchd(arguments);
    command.envs(environment.iter().copied());
    command.output().expect("orchd runs").into()
}

/// One that signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an authority"),
        }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for loopback.
    pub fn issue(&self) -> Issued {
        self.issue_for("127.0.0.1", 2999)
    }

    /// A certificate for this name, which expires when this year begins.
    pub fn issue_for(&self, name: &str, year: i32) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Writes a file of a test, and gives its path as an argument.
pub fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).expect("the test's directory can be written to");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Sends a request as it is written over TLS, trusting the authority of this certificate alone.
pub fn https_begin(
    address: SocketAddr,
    ca: &str,
    request: &[u8],
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).expect("a certificate");
    roots.add(ca).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what they need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let name = ServerName::from(address.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(request)?;
    Ok(stream)
}

/// The same, and gives all that comes back before the other side closes.
pub fn https(address: SocketAddr, ca: &str, request: &[u8]) -> io::Result<String> {
    let mut stream = https_begin(address, ca, request)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
