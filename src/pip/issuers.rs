//! The issuers file: the issuers whose tokens are accepted, and the mapping of their claims.
//!
//! `raw` is the file as text, [`Issuers`] the checked values. Nothing here opens a file.

mod raw;
mod raw_mapping;
mod rules;
mod value;

use std::collections::BTreeSet;
use std::path::Path;

use super::mapping::ParentMapping;
use raw::RawIssuers;
pub(super) use rules::{IssuerRules, KeySource, UrlSource};

/// The issuers whose tokens are accepted; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuers(pub(super) Vec<IssuerRules>);

/// An error in an issuers file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuersError {
    /// The text is not TOML, or a key is unknown or missing.
    #[error("line {line}: {reason}")]
    Syntax {
        /// The line, counted from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// The file has no issuer.
    #[error("it names no issuer; each is a table `[[issuer]]`")]
    Empty,
    /// Two tables name the same issuer.
    #[error("issuer `{0}` is defined twice")]
    Duplicate(String),
    /// A value is not allowed.
    #[error("issuer `{issuer}`: `{key}` {problem}")]
    Value {
        /// The issuer, as it is written.
        issuer: String,
        /// The key.
        key: String,
        /// The problem with its value.
        problem: String,
    },
}

impl Issuers {
    /// Parses and checks the issuers file. Relative file names in it start at `directory`.
    ///
    /// # Errors
    ///
    /// [`IssuersError`] for the first problem found.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, IssuersError> {
        let raw: RawIssuers = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.bytes().take(start);
            IssuersError::Syntax {
                line: 1 + before.filter(|byte| *byte == b'\n').count(),
                reason: error.message().to_owned(),
            }
        })?;
        let mut names = BTreeSet::new();
        let mut issuers = Vec::with_capacity(raw.issuer.len());
        for raw in raw.issuer {
            let name = raw.issuer.clone();
            if !names.insert(name.clone()) {
                return Err(IssuersError::Duplicate(name));
            }
            let rules = raw.check(directory);
            issuers.push(rules.map_err(|invalid| IssuersError::Value {
                issuer: name,
                key: invalid.key,
                problem: invalid.problem,
            })?);
        }
        match issuers.is_empty() {
            true => Err(IssuersError::Empty),
            false => Ok(Self(issuers)),
        }
    }

    /// Returns pairs of issuers that can give two principals the same uid. This is allowed, but
    /// usually a mistake.
    pub(super) fn pairs_sharing_principals(&self) -> Vec<(&str, &str)> {
        self.pairs(|one, other| {
            let (one, other) = (&one.mapping, &other.mapping);
            one.type_name == other.type_name && overlap(&one.id_prefix, &other.id_prefix)
        })
    }

    /// Returns pairs of issuers that can give their principals the same parent by two different
    /// claims. An issuer with two such claims is paired with itself.
    pub(super) fn pairs_sharing_parents(&self) -> Vec<(&str, &str)> {
        let share = |one: &ParentMapping, other: &ParentMapping| {
            one.type_name == other.type_name && overlap(&one.prefix, &other.prefix)
        };
        let with_themselves = self.0.iter().filter(|rules| {
            let parents = &rules.mapping.parents;
            let mut numbered = parents.iter().enumerate();
            numbered.any(|(at, one)| parents.iter().skip(at + 1).any(|other| share(one, other)))
        });
        let mut pairs: Vec<(&str, &str)> = with_themselves
            .map(|rules| (rules.name.as_str(), rules.name.as_str()))
            .collect();
        pairs.extend(self.pairs(|one, other| {
            let others = &other.mapping.parents;
            let mut parents = one.mapping.parents.iter();
            parents.any(|one| others.iter().any(|other| share(one, other)))
        }));
        pairs
    }

    /// Returns the pairs of two issuers for which `matches` is true.
    fn pairs(&self, matches: impl Fn(&IssuerRules, &IssuerRules) -> bool) -> Vec<(&str, &str)> {
        let mut pairs = Vec::new();
        for (at, other) in self.0.iter().enumerate() {
            let before = self.0.iter().take(at).filter(|one| matches(one, other));
            pairs.extend(before.map(|one| (one.name.as_str(), other.name.as_str())));
        }
        pairs
    }
}

/// Returns whether an id with one prefix can equal an id with the other.
fn overlap(one: &str, other: &str) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests;
