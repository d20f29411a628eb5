//! Validated names. Holding one is the proof that it fits.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest node or pool id, in bytes.
pub(super) const MAX_ID_BYTES: usize = 128;
/// Longest model id, in bytes.
pub(super) const MAX_MODEL_BYTES: usize = 512;
/// Node ids nobody may register: `local` is the implicit node of the HOME profile, `register` a path of the API.
pub const RESERVED_NODE_IDS: [&str; 2] = [super::LOCAL_NODE, "register"];

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Zero bytes long.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit it carries, in bytes.
    #[error("is {len} bytes long; at most {max} are accepted")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes accepted.
        max: usize,
    },
    /// A character that ids do not have.
    #[error("contains {0:?}; only letters, digits, '.', '_' and '-' are accepted")]
    Character(char),
    /// The first character is not a letter or digit.
    #[error("must begin with a letter or digit")]
    First,
    /// A name that means something else already.
    #[error("{0:?} is a reserved name")]
    Reserved(String),
    /// A control character in a model id.
    #[error("contains the control character {0:?}")]
    Control(char),
}

fn check_id(text: &str) -> Result<(), IdError> {
    let first = text.chars().next().ok_or(IdError::Empty)?;
    if text.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong {
            len: text.len(),
            max: MAX_ID_BYTES,
        });
    }
    if let Some(bad) = text
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        return Err(IdError::Character(bad));
    }
    if !first.is_ascii_alphanumeric() {
        return Err(IdError::First);
    }
    Ok(())
}

/// Checks a model id: 1 to 512 bytes of UTF-8 without control characters. `/` and `:` are common in them.
///
/// # Errors
/// The first rule it breaks.
pub fn check_model_id(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_MODEL_BYTES {
        return Err(IdError::TooLong {
            len: text.len(),
            max: MAX_MODEL_BYTES,
        });
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => Err(IdError::Control(bad)),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, reserved: $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// The first rule it breaks.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check_id(text)?;
                let reserved: &[&str] = $reserved;
                if reserved.contains(&text) {
                    return Err(IdError::Reserved(text.to_owned()));
                }
                Ok(Self(text.into()))
            }

            /// The name itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                Self::new(&text).map_err(|e| serde::de::Error::custom(format_args!("{} {e}", stringify!($name))))
            }
        }
    };
}

id! {
    /// The name of a machine in the fleet: 1 to 128 of `[A-Za-z0-9._-]`, the first alphanumeric, none of
    /// [`RESERVED_NODE_IDS`].
    NodeId, reserved: &RESERVED_NODE_IDS
}
id! {
    /// The name of an engine within its node: 1 to 128 of `[A-Za-z0-9._-]`, the first alphanumeric.
    PoolId, reserved: &[]
}

impl NodeId {
    /// The implicit node of the HOME profile; its name is reserved, so no registration can take it.
    #[must_use]
    pub fn local() -> Self {
        Self(super::LOCAL_NODE.into())
    }

    /// The name of a node that is asked about or told of, which may be the implicit one.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn new_or_local(text: &str) -> Result<Self, IdError> {
        if text == super::LOCAL_NODE {
            Ok(Self::local())
        } else {
            Self::new(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_what_the_contract_says_and_nothing_else() {
        for good in ["a", "gpu-node-1", "0.x_y-Z", &"n".repeat(128)] {
            assert_eq!(
                NodeId::new(good).map(|n| n.to_string()),
                Ok(good.to_owned())
            );
        }
        assert_eq!(NodeId::new(""), Err(IdError::Empty));
        assert_eq!(NodeId::new("-a"), Err(IdError::First));
        assert_eq!(NodeId::new("a/b"), Err(IdError::Character('/')));
        assert_eq!(NodeId::new("nœud"), Err(IdError::Character('œ')));
        assert_eq!(
            NodeId::new(&"n".repeat(129)),
            Err(IdError::TooLong { len: 129, max: 128 })
        );
        assert_eq!(NodeId::new("local"), Err(IdError::Reserved("local".into())));
        assert_eq!(
            NodeId::new("register"),
            Err(IdError::Reserved("register".into()))
        );
        assert!(PoolId::new("local").is_ok(), "only node ids are reserved");
    }

    #[test]
    fn model_ids_allow_slashes_and_unicode_but_no_control_characters() {
        for good in ["qwen3-8b", "org/model:Q4_K_M", "modèle", &"m".repeat(512)] {
            assert_eq!(check_model_id(good), Ok(()));
        }
        assert_eq!(check_model_id(""), Err(IdError::Empty));
        assert_eq!(check_model_id("a\nb"), Err(IdError::Control('\n')));
        assert_eq!(
            check_model_id(&"m".repeat(513)),
            Err(IdError::TooLong { len: 513, max: 512 })
        );
    }
}
