//! Addresses of agents and engines.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An `http` or `https` URL with a host and without credentials, query or fragment. Shown as it was given.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl(Box<str>);

/// The parts of an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub https: bool,
    /// Host name or address, without the brackets of an IPv6 one.
    pub host: String,
    /// Port, the scheme's own when none is written.
    pub port: u16,
    /// `host:port` as a `Host` header carries it.
    pub authority: String,
    /// The path in front of what is asked for, without a closing slash; empty for most.
    pub base_path: String,
}

/// Why a string is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL at all.
    #[error("{0:?} is not a URL ({1}); write it like http://HOST:PORT")]
    Syntax(String, String),
    /// Another scheme, no host, or characters that addresses do not have.
    #[error("{0:?} is not an address; write it like http://HOST:PORT")]
    Scheme(String),
    /// `user:password@`.
    #[error("the URL must not carry credentials")]
    Credentials,
    /// `?…` or `#…`.
    #[error("{0:?} must not have a query or fragment")]
    Extra(String),
}

impl HttpUrl {
    /// Checks and takes an address.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn new(text: &str) -> Result<Self, UrlError> {
        // A browser reads much as a URL that is none (spaces, line breaks, `http:host`); an address is written out.
        let lower = text.to_ascii_lowercase();
        let rest = lower
            .strip_prefix("http://")
            .or_else(|| lower.strip_prefix("https://"));
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
        if rest.is_none_or(|rest| rest.starts_with('/')) || text.contains(odd) {
            return Err(UrlError::Scheme(text.to_owned()));
        }
        let url =
            url::Url::parse(text).map_err(|e| UrlError::Syntax(text.to_owned(), e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(UrlError::Extra(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The address as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, as a dialler needs them.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let url = url::Url::parse(&self.0).expect("checked when it was made");
        let host = url.host_str().unwrap_or_default();
        Origin {
            https: url.scheme() == "https",
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
            authority: match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            base_path: url.path().trim_end_matches('/').to_owned(),
        }
    }

    /// What tells the server at this address from others, however the address is written: `localhost`, 127.0.0.1, `[::1]`
    /// and the wildcard addresses, which lead there too, are one host. Nothing is looked up, and nobody is dialled by it:
    /// where a name may mean two addresses, servers of one port on both are rarer than one server under two names. Other
    /// addresses of 127.0.0.0/8 are hosts of their own, since nobody uses them but to tell servers apart.
    #[must_use]
    pub fn identity(&self) -> Origin {
        let mut origin = self.origin();
        let here = match origin.host.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
            }
            Err(_) => false,
        };
        if here {
            origin.host = "localhost".to_owned();
        }
        // As good as the host and the port, which are compared.
        origin.authority = String::new();
        origin
    }

    /// This address with `path` (which begins with a slash) added.
    #[must_use]
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0.trim_end_matches('/'))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for HttpUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::new(text)
    }
}

impl Serialize for HttpUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HttpUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_http_and_a_host_and_refuse_credentials() {
        for good in [
            "http://192.168.1.100:9200",
            "https://gpu1.example",
            "http://[::1]:80/base/",
        ] {
            assert_eq!(
                HttpUrl::new(good).map(|u| u.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "gpu1:9200",
            "ftp://x",
            "http://",
            "http://u:p@x",
            "http://u@x",
            "http://x?a=1",
            "http://x#f",
            "/a",
        ] {
            assert!(HttpUrl::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_parts_of_an_address_are_what_a_dialler_needs() {
        let url = HttpUrl::new("http://[::1]:81/base/").expect("good");
        assert_eq!(url.join("/x"), "http://[::1]:81/base/x");
        let v6 = url.origin();
        assert_eq!(
            (v6.host.as_str(), v6.port, v6.authority.as_str()),
            ("::1", 81, "[::1]:81")
        );
        assert_eq!(v6.base_path, "/base");
        let plain = HttpUrl::new("https://gpu1.example").expect("good").origin();
        assert_eq!(
            (
                plain.port,
                plain.authority.as_str(),
                plain.base_path.as_str()
            ),
            (443, "gpu1.example", "")
        );
        assert!(plain.https);
    }

    #[test]
    fn one_server_is_known_by_all_names_of_its_own_machine() {
        let identity = |text: &str| HttpUrl::new(text).expect(text).identity();
        let one = identity("http://127.0.0.1:8081");
        for same in [
            "http://localhost:8081",
            "http://LOCALHOST:8081/",
            "http://[::1]:8081",
            "http://0.0.0.0:8081",
            "http://[::]:8081",
            "http://[::ffff:127.0.0.1]:8081",
        ] {
            assert_eq!(identity(same), one, "{same}");
        }
        for other in [
            "http://127.0.0.1:8082",
            "http://127.0.0.2:8081",
            "https://127.0.0.1:8081",
            "http://localhost:8081/base",
            "http://localhost.example:8081",
            "http://10.0.0.1:8081",
        ] {
            assert_ne!(identity(other), one, "{other}");
        }
        assert_eq!(identity("http://h"), identity("http://H:80/"));
    }
}
