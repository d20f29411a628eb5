//! Which web pages may read the models' answers.

use std::str::FromStr;

/// Origins (`https://chat.example`, as browsers send them) whose pages may read answers; the words are llama-server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `*`: every page.
    Any,
    /// `localhost`: pages of this machine, whatever the port.
    Localhost,
    /// These, and with `none` no page at all.
    Only(Vec<String>),
}

/// What is no such setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no origin: give *, localhost, none, or origins as https://chat.example, with a comma between them"
)]
pub struct CorsError(String);

impl CorsOrigins {
    /// Whether a page of this origin may read answers. Browsers write origins in one way only.
    #[must_use]
    pub fn allow(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Localhost => is_localhost(origin),
            Self::Only(allowed) => allowed.iter().any(|allowed| allowed == origin),
        }
    }
}

impl FromStr for CorsOrigins {
    type Err = CorsError;

    fn from_str(text: &str) -> Result<Self, CorsError> {
        match text {
            "*" => Ok(Self::Any),
            "localhost" => Ok(Self::Localhost),
            "none" => Ok(Self::Only(Vec::new())),
            _ => {
                let origins = text.split(',').map(|origin| one(origin.trim()));
                Ok(Self::Only(origins.collect::<Result<_, _>>()?))
            }
        }
    }
}

/// One as a browser writes it: in lower case, and without the slash that an address bar puts behind it.
fn one(text: &str) -> Result<String, CorsError> {
    let origin = text.strip_suffix('/').unwrap_or(text);
    match origin.split_once("://") {
        Some((scheme, host))
            if !scheme.is_empty()
                && !host.is_empty()
                && origin.bytes().all(|byte| byte.is_ascii_graphic())
                && !host.contains(['/', '?', '#', '@', '*']) =>
        {
            Ok(origin.to_ascii_lowercase())
        }
        _ => Err(CorsError(text.to_owned())),
    }
}

fn is_localhost(origin: &str) -> bool {
    let host = ["http://", "https://"]
        .iter()
        .find_map(|scheme| origin.strip_prefix(scheme));
    let Some(host) = host else { return false };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|here| {
        host.strip_prefix(here).is_some_and(|port| {
            port.is_empty()
                || port.strip_prefix(':').is_some_and(|port| {
                    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
                })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_allowed_by_the_words_of_llama_server() {
        let allow = |setting: &str, origin: &str| -> bool {
            let setting: CorsOrigins = setting.parse().expect("a setting");
            setting.allow(origin)
        };
        for (setting, yes, no) in [
            ("*", &["https://chat.example", "null"][..], &[][..]),
            (
                "localhost",
                &[
                    "http://localhost",
                    "http://localhost:3000",
                    "https://127.0.0.1:8443",
                    "http://[::1]:5173",
                ],
                &[
                    "http://localhost.evil.example",
                    "http://localhost:3000.evil.example",
                    "http://localhost:",
                    "http://evil.example:3000",
                    "file://localhost",
                    "null",
                    "",
                ],
            ),
            ("none", &[], &["http://localhost", "null", ""]),
            (
                "https://Chat.example/, http://b.example:81",
                &["https://chat.example", "http://b.example:81"],
                &["http://chat.example", "https://chat.example:8443", "null"],
            ),
        ] {
            for origin in yes {
                assert!(allow(setting, origin), "{setting} {origin}");
            }
            for origin in no {
                assert!(!allow(setting, origin), "{setting} {origin}");
            }
        }
    }

    #[test]
    fn what_is_no_origin_is_not_taken() {
        for text in [
            "",
            "chat.example",
            "https://",
            "://x",
            "https://a.example,",
            "https://a.example/path",
            "https://*.example",
            "https://a.example *",
            "*,https://a.example",
            "https://user@a.example",
        ] {
            assert!(text.parse::<CorsOrigins>().is_err(), "{text}");
        }
    }
}
