//! Tokens: who may speak to this process.
//!
//! Purpose: one comparison for every door (control face, gateway, agent's proxy). Invariants: pure; a comparison takes
//! as long for a wrong token as for a right one, whichever of the accepted ones it is; a token never shows itself, only
//! its fingerprint does; tokens can be exchanged under a running process. Called by `api`, `gateway`, `client` and
//! `agent`; read from where they are kept, and exchanged, by `secrets`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Shorter ones can be guessed: warned about on loopback, refused off it (contract §5).
const MIN_TOKEN_BYTES: usize = 32;
/// More would be a mistake; every request is compared with all of them.
const MAX_TOKENS: usize = 16;
/// The other header in which clients send a token (Anthropic's).
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A secret that does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    bearer: HeaderValue,
    digest: [u8; 32],
    length: usize,
}

/// A token that no header can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token holds characters that no HTTP header can carry; use letters, digits and punctuation of ASCII"
)]
pub struct BadToken;

impl Token {
    /// Takes a secret.
    ///
    /// # Errors
    /// It has control characters, or characters outside ASCII.
    pub fn new(secret: &str) -> Result<Self, BadToken> {
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadToken);
        }
        let mut bearer = HeaderValue::try_from(format!("Bearer {secret}")).map_err(|_| BadToken)?;
        bearer.set_sensitive(true);
        Ok(Self {
            bearer,
            digest: Sha256::digest(secret).into(),
            length: secret.len(),
        })
    }

    /// The header with which it is sent on.
    #[must_use]
    pub fn bearer(&self) -> &HeaderValue {
        &self.bearer
    }

    /// Six hexadecimal digits that tell one token from another in a log.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.digest
            .iter()
            .take(3)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn is_short(&self) -> bool {
        self.length < MIN_TOKEN_BYTES
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.fingerprint())
    }
}

/// Why a file of tokens is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTokens {
    /// Nothing but blank lines and comments.
    #[error("it holds no token")]
    Empty,
    /// A line that no header can carry.
    #[error("line {line}: {BadToken}")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// More than there is any use for.
    #[error("it holds more than {MAX_TOKENS} tokens")]
    TooMany,
}

/// The tokens of a file, one a line; blank lines and lines that begin with `#` are passed over. The first is the one that
/// is sent.
///
/// # Errors
/// See [`BadTokens`].
pub fn parse(text: &str) -> Result<Vec<Token>, BadTokens> {
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        tokens.push(Token::new(line).map_err(|_| BadTokens::Line { line: at + 1 })?);
    }
    match tokens.len() {
        0 => Err(BadTokens::Empty),
        1..=MAX_TOKENS => Ok(tokens),
        _ => Err(BadTokens::TooMany),
    }
}

/// Every token that is accepted at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Operators and agents: everything. The first is the one that is sent.
    pub api: Vec<Token>,
    /// Clients of the models: `/v1` only.
    pub client: Vec<Token>,
}

/// What a request is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// `/v1`: clients may.
    Models,
    /// Everything else: operators and agents only.
    Fleet,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It brought no token.
    #[error("this takes a token: send `Authorization: Bearer TOKEN`, or `x-api-key: TOKEN`")]
    Missing,
    /// It brought another one.
    #[error("this token is not the one of this server")]
    Wrong,
    /// It brought a client's token where that does not open.
    #[error(
        "this is a client's token, which opens /v1 only; everything else takes the operators' token"
    )]
    Forbidden,
}

/// Why an address cannot be listened on with these tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unguarded {
    /// Everybody on the network could do everything.
    #[error("{0} can be reached from other machines, and there is no token to guard it")]
    NoToken(SocketAddr),
    /// A guess would do.
    #[error(
        "{0} can be reached from other machines, and a token is shorter than {MIN_TOKEN_BYTES} characters"
    )]
    ShortToken(SocketAddr),
}

impl Tokens {
    /// Whether nobody needs a token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.api.is_empty() && self.client.is_empty()
    }

    /// Whether one of them is too short to be safe.
    #[must_use]
    pub fn is_weak(&self) -> bool {
        self.api.iter().chain(&self.client).any(Token::is_short)
    }

    /// Checks that an address may be listened on: off loopback only behind good tokens.
    ///
    /// # Errors
    /// Why not.
    pub fn suits(&self, address: SocketAddr) -> Result<(), Unguarded> {
        if address.ip().is_loopback() {
            Ok(())
        } else if self.is_empty() {
            Err(Unguarded::NoToken(address))
        } else if self.is_weak() {
            Err(Unguarded::ShortToken(address))
        } else {
            Ok(())
        }
    }

    fn admit(&self, headers: &HeaderMap, area: Area) -> Result<(), Denied> {
        if self.is_empty() {
            return Ok(());
        }
        let presented = bearer(headers)
            .or_else(|| headers.get(API_KEY)?.to_str().ok())
            .ok_or(Denied::Missing)?;
        // Digests have one length, so that not even the length of a token can be measured.
        let presented: [u8; 32] = Sha256::digest(presented).into();
        let (api, client) = (
            one_of(&self.api, &presented),
            one_of(&self.client, &presented),
        );
        match (bool::from(api), bool::from(client), area) {
            (true, ..) | (_, true, Area::Models) => Ok(()),
            (false, true, Area::Fleet) => Err(Denied::Forbidden),
            (false, false, _) => Err(Denied::Wrong),
        }
    }
}

/// Compares with all of them, whatever the first ones say.
fn one_of(tokens: &[Token], presented: &[u8; 32]) -> Choice {
    tokens.iter().fold(Choice::from(0), |found, token| {
        found | token.digest.ct_eq(presented)
    })
}

/// Who is let in: everybody, or whoever brings a token. Clones are one guard: what one of them is given, all know.
#[derive(Debug, Clone, Default)]
pub struct Guard(Arc<ArcSwap<Tokens>>);

impl Guard {
    /// Lets in whoever brings one of these, or everybody when there are none.
    #[must_use]
    pub fn new(tokens: Tokens) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(tokens)))
    }

    /// The tokens of the moment.
    #[must_use]
    pub fn tokens(&self) -> Arc<Tokens> {
        self.0.load_full()
    }

    /// Other tokens from now on.
    pub fn replace(&self, tokens: Tokens) {
        self.0.store(Arc::new(tokens));
    }

    /// The header with which this process shows itself to others of its fleet: the first API token.
    #[must_use]
    pub fn bearer(&self) -> Option<HeaderValue> {
        self.0
            .load()
            .api
            .first()
            .map(|token| token.bearer().clone())
    }

    /// Lets a request in, by its headers.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn admit(&self, headers: &HeaderMap, area: Area) -> Result<(), Denied> {
        self.0.load().admit(headers, area)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NEXT: &str = "fedcba9876543210fedcba9876543210";
    const CLIENT: &str = "client-0123456789abcdef0123456789";

    fn token(secret: &str) -> Token {
        Token::new(secret).expect("good")
    }

    fn guard(api: &[&str], client: &[&str]) -> Guard {
        let list = |secrets: &[&str]| secrets.iter().map(|secret| token(secret)).collect();
        Guard::new(Tokens {
            api: list(api),
            client: list(client),
        })
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("good"))])
    }

    #[test]
    fn the_token_opens_in_either_header_and_nothing_else_does() {
        let guard = guard(&[SECRET], &[]);
        let table = [
            (header::AUTHORIZATION, format!("Bearer {SECRET}"), Ok(())),
            (header::AUTHORIZATION, format!("bearer {SECRET}"), Ok(())),
            (API_KEY, SECRET.to_owned(), Ok(())),
            (API_KEY, SECRET[1..].to_owned(), Err(Denied::Wrong)),
            (API_KEY, String::new(), Err(Denied::Wrong)),
            (
                header::AUTHORIZATION,
                "Bearer ".to_owned(),
                Err(Denied::Wrong),
            ),
            (
                header::AUTHORIZATION,
                format!("Basic {SECRET}"),
                Err(Denied::Missing),
            ),
            (header::COOKIE, SECRET.to_owned(), Err(Denied::Missing)),
        ];
        for (name, value, wanted) in table {
            for area in [Area::Models, Area::Fleet] {
                let got = guard.admit(&with(name.clone(), &value), area);
                assert_eq!(got, wanted, "{name}: {value} at {area:?}");
            }
        }
        let nothing = HeaderMap::new();
        assert_eq!(guard.admit(&nothing, Area::Models), Err(Denied::Missing));
        assert_eq!(Guard::default().admit(&nothing, Area::Fleet), Ok(()));
    }

    #[test]
    fn a_clients_token_opens_the_models_and_nothing_else() {
        use Area::{Fleet, Models};
        let (both, operators, clients) = (
            guard(&[SECRET, NEXT], &[CLIENT]),
            guard(&[SECRET], &[]),
            guard(&[], &[CLIENT]),
        );
        let table = [
            (&both, SECRET, Models, Ok(())),
            (&both, SECRET, Fleet, Ok(())),
            (&both, NEXT, Fleet, Ok(())),
            (&both, CLIENT, Models, Ok(())),
            (&both, CLIENT, Fleet, Err(Denied::Forbidden)),
            (&both, "else", Fleet, Err(Denied::Wrong)),
            (&operators, CLIENT, Models, Err(Denied::Wrong)),
            (&clients, CLIENT, Models, Ok(())),
            // With clients' tokens alone nobody may do what takes an operator.
            (&clients, CLIENT, Fleet, Err(Denied::Forbidden)),
            (&clients, SECRET, Fleet, Err(Denied::Wrong)),
            // A token that is both is an operator's.
            (&guard(&[SECRET], &[SECRET]), SECRET, Fleet, Ok(())),
        ];
        for (guard, secret, area, wanted) in table {
            let got = guard.admit(&with(API_KEY, secret), area);
            assert_eq!(got, wanted, "{secret} at {area:?}");
        }
        assert_eq!(
            clients.admit(&HeaderMap::new(), Fleet),
            Err(Denied::Missing)
        );
    }

    #[test]
    fn every_clone_of_a_guard_knows_the_new_tokens_and_sends_the_first() {
        let guard = guard(&[SECRET], &[]);
        let other = guard.clone();
        guard.replace(Tokens {
            api: vec![token(NEXT), token(SECRET)],
            client: Vec::new(),
        });
        assert_eq!(other.bearer().as_ref(), Some(token(NEXT).bearer()));
        for secret in [NEXT, SECRET] {
            assert_eq!(other.admit(&with(API_KEY, secret), Area::Fleet), Ok(()));
        }
        guard.replace(Tokens::default());
        assert_eq!(other.bearer(), None);
    }

    #[test]
    fn a_file_holds_a_token_a_line() {
        let table: [(&str, Result<Vec<&str>, BadTokens>); 7] = [
            ("a\n", Ok(vec!["a"])),
            (
                "# the new one\n\n  b \r\n\n# the old one\na",
                Ok(vec!["b", "a"]),
            ),
            ("", Err(BadTokens::Empty)),
            ("\n# nothing\n", Err(BadTokens::Empty)),
            ("a\nb c\n", Err(BadTokens::Line { line: 2 })),
            ("a\n\nb\u{7}\n", Err(BadTokens::Line { line: 3 })),
            (&"a\n".repeat(17), Err(BadTokens::TooMany)),
        ];
        for (text, wanted) in table {
            let wanted = wanted.map(|secrets| secrets.into_iter().map(token).collect::<Vec<_>>());
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn off_loopback_it_takes_good_tokens() {
        let local: SocketAddr = "127.0.0.1:8080".parse().expect("good");
        let v6: SocketAddr = "[::1]:8080".parse().expect("good");
        let open: SocketAddr = "0.0.0.0:8080".parse().expect("good");
        let short = Err(Unguarded::ShortToken(open));
        let table = [
            (guard(&[], &[]), Err(Unguarded::NoToken(open))),
            (guard(&["short"], &[]), short.clone()),
            (guard(&[SECRET], &[]), Ok(())),
            (guard(&[SECRET, "short"], &[]), short.clone()),
            (guard(&[SECRET], &["short"]), short),
            (guard(&[], &[CLIENT]), Ok(())),
        ];
        for (guard, wanted) in table {
            let tokens = guard.tokens();
            assert_eq!(tokens.suits(local), Ok(()));
            assert_eq!(tokens.suits(v6), Ok(()));
            assert_eq!(tokens.suits(open), wanted, "{tokens:?}");
        }
        assert!(guard(&["short"], &[]).tokens().is_weak());
    }

    #[test]
    fn a_token_shows_its_fingerprint_only() {
        let token = token(SECRET);
        assert_eq!(
            format!("{token:?}"),
            format!("Token({})", token.fingerprint())
        );
        assert_eq!(token.fingerprint().len(), 6);
        assert!(!format!("{:?}", token.bearer()).contains(SECRET));
        let tokens = Tokens {
            api: vec![token],
            client: Vec::new(),
        };
        assert!(!format!("{tokens:?}").contains(SECRET));
        for bad in ["", "a b", "tökén", "a\nb"] {
            assert_eq!(Token::new(bad), Err(BadToken));
        }
    }
}
