//! TLS: what this process shows to those who connect to it, and whom it trusts when it connects to others.
//!
//! Whom to trust is one setting of the whole process, as rustls' provider is: the relay, the readers of engines and the
//! client dial from many places, and none of them may have an opinion of its own.
//!
//! Invariants: there is no way to connect without verifying; what a peer did wrong is told in words that say what to do;
//! a pair that does not fit together never replaces one that does. Called by `listen`, `relay`, `engines`, `client` and
//! `secrets`; `commands` says once, before anything connects, which authority is trusted besides the system's.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::types::Origin;

/// The one protocol spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// Certificates of the authority that is trusted besides the system's.
static ALSO_TRUSTED: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
/// Made on first use: most processes of a fleet without TLS never read the system's roots.
static CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// Why a certificate or a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate is in it.
    #[error("{what} holds no certificate; it must be PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate {
        /// Which file.
        what: String,
    },
    /// It is not PEM, or broken.
    #[error("{what} is not PEM: {source}")]
    Pem {
        /// Which file.
        what: String,
        /// What is wrong.
        source: pem::Error,
    },
    /// No private key that can be read.
    #[error(
        "{what} holds no private key that can be used: {source}; it must be PEM, not encrypted"
    )]
    Key {
        /// Which file.
        what: String,
        /// What is wrong.
        source: pem::Error,
    },
    /// The two do not belong together.
    #[error("{key} is not the private key of the certificate in {cert}")]
    Mismatch {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
    },
    /// The two use what rustls does not.
    #[error("the certificate in {cert} with the key in {key} cannot be used: {source}")]
    Pair {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        source: rustls::Error,
    },
    /// A certificate that nobody can be trusted by.
    #[error("a certificate in {} is none of an authority that can be trusted: {source}", path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Nobody is trusted.
    #[error(
        "this system has no root certificates: install them (ca-certificates), or name the authority's file with --ca"
    )]
    NoRoots,
}

/// Trusts the authorities in this file as well as the system's, from now on, in the whole process. Only the first call
/// counts, and only before the first connection.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn trust_also(ca: &Path) -> Result<(), TlsError> {
    let pem = std::fs::read(ca).map_err(|source| TlsError::Read {
        path: ca.to_owned(),
        source,
    })?;
    let certificates = certificates(&pem, &ca.display().to_string())?;
    // Read before anything else is done, so that a file of something else is told at the start.
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|source| TlsError::Authority {
                path: ca.to_owned(),
                source,
            })?;
    }
    // A second call is a defect of the caller's; the first one holds.
    let _ = ALSO_TRUSTED.set(certificates);
    // Whoever names an authority will speak TLS: the system's roots are read now rather than under the first request.
    client_config().map(drop)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            what: what.to_owned(),
            source,
        })?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate {
            what: what.to_owned(),
        });
    }
    Ok(found)
}

/// How this process verifies those it connects to: by the system's authorities, and the one it was told of.
///
/// # Errors
/// There are none.
pub fn client_config() -> Result<Arc<ClientConfig>, TlsError> {
    if let Some(config) = CLIENT.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    // What of the system's store cannot be read is as good as not there.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(ALSO_TRUSTED.get().into_iter().flatten().cloned());
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::clone(CLIENT.get_or_init(|| Arc::new(config))))
}

/// Speaks TLS on a connection to `origin`, after making sure that it is who it should be.
///
/// # Errors
/// `InvalidData` with what is wrong with the other side's certificate or name; else what the connection says.
pub async fn connect(
    origin: &Origin,
    stream: TcpStream,
) -> io::Result<client::TlsStream<TcpStream>> {
    let config = client_config().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let name = ServerName::try_from(origin.host.clone())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|e| match explain(&e) {
            Some(why) => io::Error::new(io::ErrorKind::InvalidData, why),
            None if e.kind() == io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::ConnectionReset,
                "it closed the connection during the TLS handshake",
            ),
            None => e,
        })
}

/// The certificate and key with which a listener shows itself. Clones are one: what one is given, all show.
#[derive(Clone)]
pub struct Acceptor(Arc<ArcSwap<ServerConfig>>);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Two PEM files, as they were read.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The certificate, and those between it and its authority behind it.
    pub cert: &'a [u8],
    /// Its private key.
    pub key: &'a [u8],
    /// How the certificate's file is called in errors.
    pub cert_name: &'a str,
    /// How the key's file is called in errors.
    pub key_name: &'a str,
}

impl Acceptor {
    /// Shows this pair.
    ///
    /// # Errors
    /// It is not one.
    pub fn new(pair: Pair<'_>) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(server_config(pair)?))))
    }

    /// Shows another pair to everybody who connects from now on.
    ///
    /// # Errors
    /// It is not one; the former stays.
    pub fn replace(&self, pair: Pair<'_>) -> Result<(), TlsError> {
        self.0.store(Arc::new(server_config(pair)?));
        Ok(())
    }

    /// Speaks TLS with somebody who connected.
    ///
    /// # Errors
    /// What the connection says, or that the other side does not speak TLS as we do.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

fn server_config(pair: Pair<'_>) -> Result<ServerConfig, TlsError> {
    let chain = certificates(pair.cert, pair.cert_name)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key).map_err(|source| TlsError::Key {
        what: pair.key_name.to_owned(),
        source,
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| {
            let (cert, key) = (pair.cert_name.to_owned(), pair.key_name.to_owned());
            match source {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    TlsError::Mismatch { cert, key }
                }
                source => TlsError::Pair { cert, key, source },
            }
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// What a failed TLS handshake means, when it is one that somebody here or there can mend.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(words(tls));
        }
        // An `io::Error` hides the error it was made of from `source`.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn words(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(why) = error else {
        return match error {
            rustls::Error::InvalidMessage(_) => {
                "it does not speak TLS; is its address http://?".to_owned()
            }
            other => format!("the TLS handshake failed: {other}"),
        };
    };
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; give it a new one (it is read again without a restart)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks of both machines".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "its certificate comes from an authority that is not known here; name its CA with --ca".to_owned()
        }
        CertificateError::BadSignature => {
            "its certificate was not signed by the authority it names; is the file of --ca the right one?".to_owned()
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is not for {}, but for {}; use that name, or give it a certificate with this one",
            expected.to_str(),
            if presented.is_empty() {
                "no name at all".to_owned()
            } else {
                let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                names.join(" and ")
            }
        ),
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is that of an authority, not of a server; make one with basicConstraints=CA:FALSE".to_owned()
        }
        other => format!("its certificate cannot be trusted: {other}"),
    }
}

/// A name of a certificate without the kind that rustls writes round it: `IpAddress(10.0.0.1)`, `DnsName("gpu-1")`.
fn bare(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_shown_as_people_write_them() {
        let name = ServerName::try_from("10.0.0.2").expect("good");
        let told = words(&rustls::Error::InvalidCertificate(
            CertificateError::NotValidForNameContext {
                expected: name,
                presented: vec![
                    "IpAddress(10.0.0.1)".to_owned(),
                    "DnsName(\"gpu-1\")".to_owned(),
                    "odd".to_owned(),
                ],
            },
        ));
        assert!(
            told.contains("is not for 10.0.0.2, but for 10.0.0.1 and gpu-1 and odd;"),
            "{told}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_in_words_that_help() {
        let table = [
            (CertificateError::UnknownIssuer, "name its CA with --ca"),
            (CertificateError::Expired, "has expired"),
            (CertificateError::NotValidForName, "another name"),
            (CertificateError::Revoked, "cannot be trusted"),
        ];
        for (error, words) in table {
            // As tokio-rustls and reqwest hand it on: in an `io::Error`, which hides it from `source`.
            let outer = io::Error::new(
                io::ErrorKind::InvalidData,
                rustls::Error::InvalidCertificate(error),
            );
            let told = explain(&outer).expect("it is one of TLS");
            assert!(told.contains(words), "{told}");
        }
        assert_eq!(explain(&io::Error::other("else")), None);
    }

    fn pair<'a>(cert: &'a [u8], key: &'a [u8]) -> Pair<'a> {
        Pair {
            cert,
            key,
            cert_name: "cert.pem",
            key_name: "key.pem",
        }
    }

    fn error(cert: &[u8], key: &[u8]) -> String {
        match Acceptor::new(pair(cert, key)) {
            Ok(_) => "taken".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_pair_that_is_none_is_refused_and_named() {
        assert!(error(b"", b"").starts_with("cert.pem holds no certificate"));
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("good");
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("good");
        let (cert, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        assert!(error(cert.as_bytes(), b"x").starts_with("key.pem holds no private key"));
        let strange = other.signing_key.serialize_pem();
        assert_eq!(
            error(cert.as_bytes(), strange.as_bytes()),
            "key.pem is not the private key of the certificate in cert.pem"
        );
        let acceptor = Acceptor::new(pair(cert.as_bytes(), key.as_bytes())).expect("a pair");
        assert!(
            acceptor
                .replace(pair(cert.as_bytes(), strange.as_bytes()))
                .is_err()
        );
    }
}
