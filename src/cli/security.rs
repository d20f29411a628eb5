//! Tokens, TLS and limits of connections on the command line.
//!
//! Invariants: an empty variable is as good as none; of a token and a file of tokens one is in force, which `config`
//! sees to.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::value::{ApiToken, count};
use super::{CONNECTION, UsageError};

/// Fewer connections than this keep out the fleet's own.
const MIN_CONNECTIONS: u32 = 16;
/// Options that have a variable of another name besides their own, and that name.
pub const OTHER_VARIABLES: [(&str, &str); 2] = [
    ("api_token", "LLORCH_API_TOKEN"),
    ("api_token_file", "LLORCH_API_TOKEN_FILE"),
];
/// A token, and a file of such: one of them is enough.
pub const TOKEN_OR_FILE: [(&str, &str); 2] = [
    ("api_token", "api_token_file"),
    ("client_token", "client_token_file"),
];

/// Where tokens of one kind come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Nobody said.
    None,
    /// It was said outright.
    Given(String),
    /// They are in a file.
    File(PathBuf),
}

/// The tokens of operators and agents, and the authority whose certificates are trusted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = CONNECTION)]
pub struct ApiTokenArgs {
    /// Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its
    /// other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ORCHD_API_TOKEN",
        hide_env_values = true,
        global = true
    )]
    pub api_token: Option<ApiToken>,

    /// File with that token (also LLORCH_API_TOKEN_FILE). It may hold several, one a line: `serve` and `agent` accept all of them and show the first,
    /// and read the file again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_API_TOKEN_FILE",
        value_parser = path(),
        value_hint = clap::ValueHint::FilePath,
        global = true
    )]
    pub api_token_file: Option<PathBuf>,

    /// File with the certificates (PEM) of authorities to trust besides the system's, where https:// is spoken
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_CA",
        value_parser = path(),
        value_hint = clap::ValueHint::FilePath,
        global = true
    )]
    pub ca: Option<PathBuf>,
}

/// The tokens of clients.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = CONNECTION)]
pub struct ClientTokenArgs {
    /// Token of clients, which opens /v1 and nothing else. Set the variable rather than the option
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ORCHD_CLIENT_TOKEN",
        hide_env_values = true
    )]
    pub client_token: Option<ApiToken>,

    /// File with tokens of clients, one a line; all are accepted, and it is read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_CLIENT_TOKEN_FILE",
        value_parser = path(),
        value_hint = clap::ValueHint::FilePath
    )]
    pub client_token_file: Option<PathBuf>,
}

/// What a listener shows of itself, and how many it takes in.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = CONNECTION)]
pub struct ListenerArgs {
    /// File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it
    /// changes
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_TLS_CERT",
        value_parser = path(),
        value_hint = clap::ValueHint::FilePath
    )]
    pub tls_cert: Option<PathBuf>,

    /// File with its private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "ORCHD_TLS_KEY",
        value_parser = path(),
        value_hint = clap::ValueHint::FilePath
    )]
    pub tls_key: Option<PathBuf>,

    /// Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of
    /// the files this process may open, at most 65536]
    #[arg(
        long,
        value_name = "COUNT",
        env = "ORCHD_MAX_CONNECTIONS",
        value_parser = count(MIN_CONNECTIONS, 1_000_000)
    )]
    pub max_connections: Option<u32>,
}

impl ApiTokenArgs {
    /// Where the tokens of operators and agents come from.
    #[must_use]
    pub fn tokens(&self) -> TokenSource {
        source(self.api_token.as_ref(), self.api_token_file.as_ref())
    }
}

impl ClientTokenArgs {
    /// Where the tokens of clients come from.
    #[must_use]
    pub fn tokens(&self) -> TokenSource {
        source(self.client_token.as_ref(), self.client_token_file.as_ref())
    }
}

impl ListenerArgs {
    /// The certificate and its key, when TLS is to be spoken.
    ///
    /// # Errors
    /// One without the other.
    pub fn pair(&self) -> Result<Option<(PathBuf, PathBuf)>, UsageError> {
        let named =
            |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let lonely = |given: &str, missing: &str| {
            UsageError::new(
                format!("{given} is given without {missing}"),
                "TLS takes both: a certificate and its private key",
            )
        };
        match (named(&self.tls_cert), named(&self.tls_key)) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (Some(_), None) => Err(lonely(
                "--tls-cert (ORCHD_TLS_CERT)",
                "--tls-key (ORCHD_TLS_KEY)",
            )),
            (None, Some(_)) => Err(lonely(
                "--tls-key (ORCHD_TLS_KEY)",
                "--tls-cert (ORCHD_TLS_CERT)",
            )),
        }
    }
}

/// A path; empty for none, as an empty variable means it.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Of the two, `config` leaves one.
fn source(given: Option<&ApiToken>, file: Option<&PathBuf>) -> TokenSource {
    let given = given.filter(|token| !token.0.is_empty());
    match (given, file.filter(|path| !path.as_os_str().is_empty())) {
        (Some(token), _) => TokenSource::Given(token.0.clone()),
        (None, Some(path)) => TokenSource::File(path.clone()),
        (None, None) => TokenSource::None,
    }
}
