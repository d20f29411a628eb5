//! Tokens: who may speak to this process.
//!
//! Purpose: one comparison for every door (control face, gateway, agent's proxy). Invariants: pure; a comparison takes
//! as long for a wrong token as for a right one; a token never shows itself, only its fingerprint does. Called by `api`,
//! `gateway` and `agent`; set up by `commands`.

use std::fmt;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Shorter ones can be guessed: warned about on loopback, refused off it (contract §5).
const MIN_TOKEN_BYTES: usize = 32;
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

    fn is(&self, presented: &str) -> bool {
        // Digests have one length, so that not even the length of the token can be measured.
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.digest.ct_eq(&presented).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.fingerprint())
    }
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
}

/// Who is let in: everybody, or whoever brings the token.
#[derive(Debug, Clone, Default)]
pub struct Guard(Option<Token>);

/// Why an address cannot be listened on with this guard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unguarded {
    /// Everybody on the network could do everything.
    #[error("{0} can be reached from other machines, and there is no token to guard it")]
    NoToken(SocketAddr),
    /// A guess would do.
    #[error(
        "{0} can be reached from other machines, and the token is shorter than {MIN_TOKEN_BYTES} characters"
    )]
    ShortToken(SocketAddr),
}

impl Guard {
    /// Lets in whoever brings this token, or everybody.
    #[must_use]
    pub fn new(token: Option<Token>) -> Self {
        Self(token)
    }

    /// The token, for sending it on.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        self.0.as_ref()
    }

    /// Whether the token is too short to be safe.
    #[must_use]
    pub fn is_weak(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|token| token.length < MIN_TOKEN_BYTES)
    }

    /// Checks that an address may be listened on: off loopback only behind a good token.
    ///
    /// # Errors
    /// Why not.
    pub fn suits(&self, address: SocketAddr) -> Result<(), Unguarded> {
        match &self.0 {
            _ if address.ip().is_loopback() => Ok(()),
            None => Err(Unguarded::NoToken(address)),
            Some(_) if self.is_weak() => Err(Unguarded::ShortToken(address)),
            Some(_) => Ok(()),
        }
    }

    /// Lets a request in, by its headers.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let Some(token) = &self.0 else { return Ok(()) };
        let presented = bearer(headers)
            .or_else(|| headers.get(API_KEY)?.to_str().ok())
            .ok_or(Denied::Missing)?;
        if token.is(presented) {
            Ok(())
        } else {
            Err(Denied::Wrong)
        }
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

    fn guard(secret: &str) -> Guard {
        Guard::new(Some(Token::new(secret).expect("good")))
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("good"))])
    }

    #[test]
    fn the_token_opens_in_either_header_and_nothing_else_does() {
        let guard = guard(SECRET);
        assert_eq!(
            guard.admit(&with(header::AUTHORIZATION, &format!("Bearer {SECRET}"))),
            Ok(())
        );
        assert_eq!(
            guard.admit(&with(header::AUTHORIZATION, &format!("bearer {SECRET}"))),
            Ok(())
        );
        assert_eq!(guard.admit(&with(API_KEY, SECRET)), Ok(()));
        assert_eq!(
            guard.admit(&with(API_KEY, &SECRET[1..])),
            Err(Denied::Wrong)
        );
        assert_eq!(
            guard.admit(&with(header::AUTHORIZATION, "Bearer ")),
            Err(Denied::Wrong)
        );
        assert_eq!(
            guard.admit(&with(header::AUTHORIZATION, &format!("Basic {SECRET}"))),
            Err(Denied::Missing)
        );
        assert_eq!(guard.admit(&HeaderMap::new()), Err(Denied::Missing));
        assert_eq!(Guard::default().admit(&HeaderMap::new()), Ok(()));
    }

    #[test]
    fn off_loopback_it_takes_a_good_token() {
        let local: SocketAddr = "127.0.0.1:8080".parse().expect("good");
        let open: SocketAddr = "0.0.0.0:8080".parse().expect("good");
        assert_eq!(Guard::default().suits(local), Ok(()));
        assert_eq!(Guard::default().suits(open), Err(Unguarded::NoToken(open)));
        assert_eq!(guard("short").suits(local), Ok(()));
        assert!(guard("short").is_weak());
        assert_eq!(guard("short").suits(open), Err(Unguarded::ShortToken(open)));
        assert_eq!(guard(SECRET).suits(open), Ok(()));
    }

    #[test]
    fn a_token_shows_its_fingerprint_only() {
        let token = Token::new(SECRET).expect("good");
        assert_eq!(
            format!("{token:?}"),
            format!("Token({})", token.fingerprint())
        );
        assert_eq!(token.fingerprint().len(), 6);
        assert!(!format!("{:?}", token.bearer()).contains(SECRET));
        for bad in ["", "a b", "tökén", "a\nb"] {
            assert_eq!(Token::new(bad), Err(BadToken));
        }
    }
}
