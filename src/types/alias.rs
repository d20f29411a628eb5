//! Other names for models: an operator's, beside those that engines list.

use super::{IdError, check_model_id, listed_model_id};

/// A name that stands for models of engines, all of them as they are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    name: String,
    models: Vec<String>,
}

/// Why something is no alias.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// Its name is no model id.
    #[error("the name {name:?} {why}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        why: IdError,
    },
    /// What it stands for is no model id.
    #[error("the model {model:?} {why}")]
    Model {
        /// As given.
        model: String,
        /// What is wrong with it.
        why: IdError,
    },
    /// It stands for nothing.
    #[error("must name at least one model")]
    NoModels,
    /// It stands for itself.
    #[error(
        "{name:?} stands for itself; a model of that name is served under it anyhow, so name only the others"
    )]
    Itself {
        /// Its name.
        name: String,
    },
}

impl Alias {
    /// Checks and takes an alias. Paths of `.gguf` files become the names under which they are listed.
    ///
    /// # Errors
    /// See [`AliasError`].
    pub fn new<'a>(
        name: &str,
        models: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, AliasError> {
        let given = name;
        let name = listed_model_id(given);
        check_model_id(given)
            .and_then(|()| check_model_id(name))
            .map_err(|why| AliasError::Name {
                name: given.to_owned(),
                why,
            })?;
        let mut listed: Vec<String> = Vec::new();
        for given in models {
            let model = listed_model_id(given);
            check_model_id(given)
                .and_then(|()| check_model_id(model))
                .map_err(|why| AliasError::Model {
                    model: given.to_owned(),
                    why,
                })?;
            if model == name {
                let name = name.to_owned();
                return Err(AliasError::Itself { name });
            }
            if !listed.iter().any(|known| known == model) {
                listed.push(model.to_owned());
            }
        }
        if listed.is_empty() {
            return Err(AliasError::NoModels);
        }
        Ok(Self {
            name: name.to_owned(),
            models: listed,
        })
    }

    /// What may be asked for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it stands for: one or more, each once.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.models
    }
}

/// Why aliases do not go together. Positions are those in the list that was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasClash {
    /// Two of one name.
    #[error("the alias {name:?} is given twice; give it once, with all its models")]
    Twice {
        /// That name.
        name: String,
        /// The position of the second one.
        at: usize,
    },
    /// One that stands for another.
    #[error(
        "the alias {name:?} stands for {model:?}, which is an alias itself; an alias stands for models of engines: {}",
        models.join(", ")
    )]
    OfAlias {
        /// The outer one.
        name: String,
        /// The inner one.
        model: String,
        /// What the inner one stands for.
        models: Vec<String>,
        /// The position of the outer one.
        at: usize,
    },
}

impl AliasClash {
    /// The position of the alias to change.
    #[must_use]
    pub fn at(&self) -> usize {
        match self {
            Self::Twice { at, .. } | Self::OfAlias { at, .. } => *at,
        }
    }
}

/// Checks what no alias can know by itself.
///
/// # Errors
/// The first clash.
pub fn check_aliases(aliases: &[Alias]) -> Result<(), AliasClash> {
    let mut by_name = std::collections::HashMap::with_capacity(aliases.len());
    for (at, alias) in aliases.iter().enumerate() {
        if by_name.insert(alias.name(), alias).is_some() {
            let name = alias.name.clone();
            return Err(AliasClash::Twice { name, at });
        }
    }
    for (at, alias) in aliases.iter().enumerate() {
        let mut inner = alias.models.iter();
        if let Some(inner) = inner.find_map(|model| by_name.get(model.as_str())) {
            return Err(AliasClash::OfAlias {
                name: alias.name.clone(),
                model: inner.name.clone(),
                models: inner.models.clone(),
                at,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(name: &str, models: &[&str]) -> Alias {
        Alias::new(name, models.iter().copied()).expect("an alias")
    }

    #[test]
    fn names_and_models_are_as_they_are_listed_and_each_model_counts_once() {
        let alias = alias("gpt", &["/m/b-00001-of-00002.gguf", "a", "b", "Org/C:Q4"]);
        assert_eq!(alias.name(), "gpt");
        assert_eq!(alias.models(), ["b", "a", "Org/C:Q4"]);
    }

    #[test]
    fn what_is_no_alias_is_told_what_is_wrong_with_it() {
        for (name, models, wrong) in [
            ("", &["a"][..], "the name \"\" must not be empty"),
            ("a\n", &["b"], "the name \"a\\n\" "),
            ("a", &["b", ""], "the model \"\" must not be empty"),
            // Nothing is left of it.
            (
                "a",
                &["/m/.gguf"],
                "the model \"/m/.gguf\" must not be empty",
            ),
            ("a", &[], "must name at least one model"),
            ("a", &["b", "/m/a.gguf"], "\"a\" stands for itself; "),
        ] {
            let error = Alias::new(name, models.iter().copied()).expect_err(wrong);
            assert!(error.to_string().starts_with(wrong), "{error}");
        }
    }

    #[test]
    fn aliases_have_names_of_their_own_and_stand_for_no_aliases() {
        let good = [alias("a", &["m"]), alias("b", &["m", "n"])];
        assert_eq!(check_aliases(&good), Ok(()));
        let twice = [alias("a", &["m"]), alias("/x/a.gguf", &["n"])];
        let clash = check_aliases(&twice).expect_err("twice");
        assert_eq!(clash.at(), 1);
        // Whichever comes first.
        let nested = [alias("b", &["n", "a"]), alias("a", &["m"])];
        let clash = check_aliases(&nested).expect_err("nested");
        assert_eq!(
            (clash.at(), clash.to_string().as_str()),
            (
                0,
                "the alias \"b\" stands for \"a\", which is an alias itself; an alias stands for models of engines: m"
            )
        );
        let circle = [alias("a", &["b"]), alias("b", &["a"])];
        assert!(check_aliases(&circle).is_err());
    }
}
