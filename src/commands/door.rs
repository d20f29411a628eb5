//! The door of `serve` and `agent`: who is let in, and what to say when the address is somebody else's already.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::auth::{Guard, Token};
use crate::types::VERSION_HEADER;

use super::failure::{Exit, Failure};

/// How long the program that has our address may take to say who it is.
const WHO_TIMEOUT: Duration = Duration::from_secs(1);

/// The guard for an address that is to be listened on.
pub(super) fn guard(token: Option<String>, listen: SocketAddr) -> Result<Guard, Failure> {
    let usage = |message: String, hint: &str| Failure::new(Exit::Usage, message).hint(hint);
    let token = token
        .map(|secret| Token::new(&secret))
        .transpose()
        .map_err(|e| {
            usage(
                format!("ORCHD_API_TOKEN: {e}"),
                "make one with `openssl rand -hex 32`",
            )
        })?;
    let guard = Guard::new(token);
    guard.suits(listen).map_err(|e| {
        usage(
            e.to_string(),
            "set ORCHD_API_TOKEN to a secret of 32 characters or more (`openssl rand -hex 32`), the same for the control \
             plane and its agents, or listen on 127.0.0.1",
        )
    })?;
    if let Some(token) = guard.token() {
        info!(
            token = token.fingerprint(),
            "a token is needed for everything but health checks"
        );
    }
    if guard.is_weak() {
        warn!(
            "the token is shorter than 32 characters, which is good enough for this machine alone"
        );
    }
    Ok(guard)
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
    let failure = |who: &str| {
        Failure::new(
            Exit::Failed,
            format!("{address} is taken: {who} listens there"),
        )
    };
    match who(address) {
        Some(Who::Orchd) => failure("another orchd").hint(format!("stop that one, or choose another address with {option}")),
        Some(Who::LlamaServer) => failure("a llama-server, whose default port is the same,").hint(format!(
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
}
