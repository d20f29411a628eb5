//! The door of `serve` and `agent`: who is let in, and what to say when the address is somebody else's already.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tracing::warn;

use crate::auth::{Guard, Token, Tokens};
use crate::cli::{ListenerArgs, SERVE_LISTENS, TokenSource};
use crate::secrets::{self, PairFiles, Secrets, SecretsError, Settings, Source};
use crate::service::Signals;
use crate::tls;
use crate::types::VERSION_HEADER;

use super::failure::{Exit, Failure};

/// How long the program that has our address may take to say who it is.
const WHO_TIMEOUT: Duration = Duration::from_secs(1);

/// The tokens and certificates for an address that is to be listened on, read and checked.
pub(super) fn secrets(
    api: TokenSource,
    client: TokenSource,
    listener: &ListenerArgs,
    listen: SocketAddr,
) -> anyhow::Result<Secrets> {
    let settings = Settings {
        api: source(api, "ORCHD_API_TOKEN")?,
        client: source(client, "ORCHD_CLIENT_TOKEN")?,
        pair: listener.pair()?.map(|(cert, key)| PairFiles { cert, key }),
        listen,
    };
    let secrets = Secrets::open(settings).map_err(|e| refused(&e))?;
    let tokens = secrets.guard().tokens();
    if !tokens.is_empty() {
        secrets::say(
            &tokens,
            "a token is needed for everything but health checks and metrics",
        );
    }
    Ok(secrets)
}

/// The tokens that a command shows: the first is the one.
pub(super) fn shown(api: TokenSource) -> anyhow::Result<Guard> {
    let api = secrets::tokens(&source(api, "ORCHD_API_TOKEN")?).map_err(|e| match &e {
        // The file of a service, which is its owner's alone.
        SecretsError::Read { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            refused(&e).hint(
                "put a token into ORCHD_API_TOKEN, or run this as a user who may read the file",
            )
        }
        _ => refused(&e),
    })?;
    Ok(Guard::new(Tokens {
        api,
        client: Vec::new(),
    }))
}

/// Hears the signals of a service, before anything that takes time is done.
pub(super) fn signals(runtime: &Runtime) -> anyhow::Result<Signals> {
    let _within = runtime.enter();
    Signals::hear().context("the system does not let this process hear signals")
}

/// Trusts the authority that was named, from here on.
pub(super) fn trust(ca: Option<&Path>) -> Result<(), Failure> {
    match ca.filter(|path| !path.as_os_str().is_empty()) {
        None => Ok(()),
        Some(ca) => tls::trust_also(ca).map_err(|e| {
            Failure::new(Exit::Usage, e.to_string())
                .hint("--ca (ORCHD_CA) names a file with the certificates of authorities, in PEM")
        }),
    }
}

fn source(from: TokenSource, name: &str) -> Result<Source, Failure> {
    Ok(match from {
        TokenSource::None => Source::None,
        TokenSource::File(path) => Source::File(path),
        TokenSource::Given(secret) => Source::Given(Token::new(&secret).map_err(|e| {
            Failure::new(Exit::Usage, format!("{name}: {e}"))
                .hint("make one with `openssl rand -hex 32`")
        })?),
    })
}

fn refused(error: &SecretsError) -> Failure {
    let failure = Failure::new(Exit::Usage, error.to_string());
    match error {
        SecretsError::Unguarded(_) => failure.hint(
            "set ORCHD_API_TOKEN to a secret of 32 characters or more (`openssl rand -hex 32`), the same for the control \
             plane and its agents, or listen on 127.0.0.1",
        ),
        SecretsError::BadToken(_) | SecretsError::BadFile { .. } => {
            failure.hint("a token file holds one token a line; make one with `openssl rand -hex 32`")
        }
        SecretsError::Tls(_) | SecretsError::Read { .. } => failure,
    }
}

/// How many connections to take in at one time: each request has one to its client and one to its engine.
pub(super) fn max_connections(listener: &ListenerArgs) -> usize {
    const MOST: u64 = 65_536;
    const LEAST: u64 = 64;
    let said = listener.max_connections.map(u64::from);
    let count = said.unwrap_or_else(|| match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((files, _)) => (files / 2).clamp(LEAST, MOST),
        Err(e) => {
            warn!(error = %e, "the system does not say how many files may be open");
            LEAST
        }
    });
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Lets the process open as many connections as the system allows it: the soft limit that shells and services start
/// programs with (1,024) is below what waits in one full queue.
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(e) = raised {
        warn!(error = %e, "the limit of open connections stays as it is");
    }
}

/// An address that cannot be had, because somebody has it.
pub(super) fn taken(address: SocketAddr, option: &str) -> Failure {
    taken_by(who(address), address, option)
}

fn taken_by(who: Option<Who>, address: SocketAddr, option: &str) -> Failure {
    let failure = |who: &str| {
        Failure::new(
            Exit::Failed,
            format!("{address} is taken: {who} listens there"),
        )
    };
    match who {
        Some(Who::Orchd) => failure("another orchd").hint(format!("stop that one, or choose another address with {option}")),
        // 8080 is a llama-server's own default as well.
        Some(Who::LlamaServer) => failure(if address.port() == SERVE_LISTENS.port() {
            "a llama-server, whose default port is the same,"
        } else {
            "a llama-server"
        })
        .hint(format!(
            "let orchd listen elsewhere ({option} 127.0.0.1:8090) and serve that engine: --engine http://{address}"
        )),
        None => failure("another program").hint(format!("stop that one, or choose another address with {option}")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Orchd,
    LlamaServer,
}

/// Asks the program at an address who it is, by the headers it answers with.
fn who(address: SocketAddr) -> Option<Who> {
    let mut stream = TcpStream::connect_timeout(&address, WHO_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(WHO_TIMEOUT)).ok()?;
    stream
        .write_all(
            format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .ok()?;
    let mut head = [0; 1024];
    let length = stream.read(&mut head).ok()?;
    recognise(&String::from_utf8_lossy(&head[..length]))
}

fn recognise(head: &str) -> Option<Who> {
    let head = head.to_ascii_lowercase();
    if head.contains(VERSION_HEADER) {
        Some(Who::Orchd)
    } else if head.contains("server: llama.cpp") {
        Some(Who::LlamaServer)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_headers() {
        assert_eq!(
            recognise("HTTP/1.1 200 OK\r\nX-Orchd-Version: 0.1.0\r\n"),
            Some(Who::Orchd)
        );
        assert_eq!(
            recognise("HTTP/1.1 200 OK\r\nServer: llama.cpp\r\n"),
            Some(Who::LlamaServer)
        );
        assert_eq!(recognise("HTTP/1.1 200 OK\r\nServer: nginx\r\n"), None);
    }

    #[test]
    fn only_of_the_default_port_it_is_said_that_it_is_the_same() {
        for (address, is_said) in [("127.0.0.1:8080", true), ("127.0.0.1:8081", false)] {
            let address = address.parse().expect("good");
            let message = taken_by(Some(Who::LlamaServer), address, "--listen").message;
            assert_eq!(message.contains("default port"), is_said, "{message}");
            assert!(message.contains("a llama-server"), "{message}");
        }
    }
}
