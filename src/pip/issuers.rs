//! The issuers file: the issuers whose tokens are accepted, and the mapping of their claims.
//!
//! `raw` is the file as text, [`Issuers`] the checked values. Nothing here opens a file.

mod raw;
mod raw_mapping;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::mapping::{Mapping, ParentMapping};
use raw::RawIssuers;
use raw_mapping::InvalidValue;

/// The issuers whose tokens are accepted; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuers(pub(super) Vec<IssuerRules>);

/// An issuer and the rules that its tokens must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IssuerRules {
    /// The issuer, as in `iss`.
    pub(super) name: String,
    pub(super) audiences: BTreeSet<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) keys: KeySource,
    /// Accepted `typ` values in lower case; `None` accepts access tokens and tokens without `typ`.
    pub(super) types: Option<BTreeSet<String>>,
    /// Tolerance for clock differences.
    pub(super) leeway: Duration,
    pub(super) max_age: Option<Duration>,
    pub(super) max_bytes: usize,
    pub(super) mapping: Mapping,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    /// A JWKS in a file.
    File(PathBuf),
    /// A shared secret in a file.
    Secret(PathBuf),
    /// A JWKS that is fetched from a URL.
    Url(UrlSource),
}

/// A URL that serves a JWKS, and the limits for fetching it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlSource {
    pub(super) url: String,
    /// Root certificates for the server, in PEM; `None` uses the system's roots.
    pub(super) ca_file: Option<PathBuf>,
    /// Minimum time between scheduled fetches, whatever the server's cache headers say.
    pub(super) refresh_min: Duration,
    /// Maximum time between scheduled fetches.
    pub(super) refresh_max: Duration,
    /// Minimum time between fetches for tokens that name unknown keys.
    pub(super) refetch_interval: Duration,
    /// Time limit for a whole fetch.
    pub(super) fetch_timeout: Duration,
    /// Time limit for a request that waits for a fetch.
    pub(super) key_wait: Duration,
    /// Time after which a set that cannot be fetched again is dropped; `None` keeps it forever.
    pub(super) max_stale: Option<Duration>,
}

/// An error in an issuers file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuersError {
    /// The text is not TOML, or a key is unknown or missing.
    #[error("line {0}: {1}")]
    Syntax(usize, String),
    /// The file has no issuer.
    #[error("no issuer is defined; each is a table `[[issuer]]`")]
    Empty,
    /// Two tables name the same issuer.
    #[error("issuer `{0}` is defined twice")]
    Duplicate(String),
    /// The value of a key is not allowed: the issuer, the key, and the problem.
    #[error("issuer `{0}`: `{1}` {2}")]
    Value(String, String, String),
}

impl Issuers {
    /// Parses and checks the issuers file. Relative file names in it start at `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, IssuersError> {
        let raw: RawIssuers = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line_ends = text.bytes().take(start).filter(|byte| *byte == b'\n');
            IssuersError::Syntax(1 + line_ends.count(), error.message().to_owned())
        })?;
        let mut names = BTreeSet::new();
        let mut issuers = Vec::with_capacity(raw.issuer.len());
        for raw in raw.issuer {
            let name = raw.issuer.clone();
            if !names.insert(name.clone()) {
                return Err(IssuersError::Duplicate(name));
            }
            let invalid = |error: InvalidValue| IssuersError::Value(name, error.key, error.problem);
            issuers.push(raw.check(directory).map_err(invalid)?);
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
