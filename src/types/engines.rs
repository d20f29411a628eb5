//! Names of engines whose pools nobody has named.

use std::collections::HashMap;

use super::{EngineRef, HttpUrl, Origin, PoolId};

/// Engines that cannot stand beside each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineClash {
    /// Its slots would be counted twice.
    #[error("the engine {url} is given twice, the first time as {first}")]
    Twice {
        /// Where it listens.
        url: HttpUrl,
        /// Its name.
        first: PoolId,
    },
    /// Two of one name.
    #[error("the engines {first} and {second} would both be called {name}")]
    SameName {
        /// The name.
        name: PoolId,
        /// One.
        first: HttpUrl,
        /// The other.
        second: HttpUrl,
    },
}

/// Names engines: as given, else `default` for the first without a name, else `HOST-PORT`.
///
/// # Errors
/// Two engines of one name, or one engine twice.
pub fn name_engines(engines: &[EngineRef]) -> Result<Vec<(PoolId, HttpUrl)>, EngineClash> {
    let mut unnamed = 0;
    let mut named: Vec<(PoolId, HttpUrl)> = Vec::with_capacity(engines.len());
    let mut known: HashMap<Origin, PoolId> = HashMap::with_capacity(engines.len());
    for engine in engines {
        let name = engine.pool_id.clone().unwrap_or_else(|| {
            unnamed += 1;
            if unnamed == 1 {
                PoolId::new("default").expect("letters only")
            } else {
                host_port(&engine.url)
            }
        });
        let url = engine.url.clone();
        if let Some(first) = known.insert(url.identity(), name.clone()) {
            return Err(EngineClash::Twice { url, first });
        }
        if let Some((_, first)) = named.iter().find(|(other, _)| *other == name) {
            return Err(EngineClash::SameName {
                name,
                first: first.clone(),
                second: url,
            });
        }
        named.push((name, url));
    }
    Ok(named)
}

/// `HOST-PORT`, with `-` for every character that pool names do not have.
fn host_port(url: &HttpUrl) -> PoolId {
    // 128 bytes are the limit of a name; a port takes five of them and its dash one.
    const HOST_BYTES: usize = 122;
    let origin = url.origin();
    let host: String = origin
        .host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(HOST_BYTES)
        .collect();
    let name = format!("{host}-{}", origin.port);
    PoolId::new(name.trim_start_matches('-'))
        .expect("made of the characters of a name, and begins with one")
}
