//! Aliases of models on the command line: `NAME=MODEL`, or several models with commas between them.
//!
//! Called by the definition of the command line, next door, and by `config`, which hands aliases of the file over in
//! the [unambiguous form](AliasArg::argument): names of models may hold `=` and `,`.

use std::fmt;
use std::str::FromStr;

use crate::types::Alias;

/// Stands before each part of the unambiguous form. No model id has it.
const UNIT: char = '\u{1f}';

/// An alias as a flag gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasArg(pub Alias);

impl AliasArg {
    /// The value of a flag that means this alias, whatever its names are made of.
    #[must_use]
    pub fn argument(alias: &Alias) -> String {
        let parts = std::iter::once(alias.name());
        let parts = parts.chain(alias.models().iter().map(String::as_str));
        parts.fold(String::new(), |text, part| format!("{text}{UNIT}{part}"))
    }
}

impl fmt::Display for AliasArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.0.name(), self.0.models().join(","))
    }
}

impl FromStr for AliasArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alias = if let Some(parts) = text.strip_prefix(UNIT) {
            let mut parts = parts.split(UNIT);
            Alias::new(parts.next().unwrap_or_default(), parts)
        } else {
            let (name, models) = text
                .split_once('=')
                .ok_or("an alias is NAME=MODEL, or NAME=MODEL,MODEL for several models")?;
            Alias::new(name.trim(), models.split(',').map(str::trim))
        };
        alias.map(Self).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let alias: AliasArg = text.parse()?;
        let again = AliasArg::argument(&alias.0).parse();
        assert_eq!(again.as_ref(), Ok(&alias), "the other form means the same");
        Ok(alias.to_string())
    }

    #[test]
    fn an_alias_is_a_name_and_one_or_more_models() {
        assert_eq!(read("gpt-4o=qwen3-8b"), Ok("gpt-4o=qwen3-8b".into()));
        assert_eq!(read(" a = b , /m/c.gguf"), Ok("a=b,c".into()));
        assert_eq!(read("a=b=c"), Ok("a=b=c".into()));
        for (bad, why) in [
            ("a", "an alias is NAME=MODEL"),
            ("", "an alias is NAME=MODEL"),
            ("=b", "the name \"\" must not be empty"),
            ("a=", "the model \"\" must not be empty"),
            ("a=b,,c", "the model \"\" must not be empty"),
            ("a=a", "\"a\" stands for itself"),
        ] {
            let error = read(bad).expect_err(bad);
            assert!(error.starts_with(why), "{bad}: {error}");
        }
    }

    #[test]
    fn names_with_commas_and_equals_signs_can_be_handed_over() {
        let alias = Alias::new("a=b,c", ["d,e", "f="]).expect("an alias");
        let read: AliasArg = AliasArg::argument(&alias).parse().expect("the same");
        assert_eq!(read.0, alias);
    }
}
