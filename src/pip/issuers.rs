//! The issuers file: whose tokens are believed, and what becomes of their claims.
//!
//! First as text ([`RawIssuers`]), then as values that cannot be wrong ([`Issuers`]). Nothing here
//! opens a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::Deserialize;

use super::mapping::{Attribute, ClaimPath, Kind, Mapping, Parents, Wanted};
use super::token::media_type;
use crate::pdp::is_type_name;
use crate::pdp::query::StoredPrincipal;

/// The issuers file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuers {
    #[serde(default)]
    issuer: Vec<RawIssuer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    issuer: String,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    keys_file: Option<PathBuf>,
    keys_url: Option<String>,
    secret_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    insecure_http: Option<bool>,
    refresh_min: Option<String>,
    refresh_max: Option<String>,
    refetch_interval: Option<String>,
    fetch_timeout: Option<String>,
    key_wait: Option<String>,
    max_stale: Option<String>,
    types: Option<Vec<String>>,
    leeway: Option<String>,
    max_age: Option<String>,
    max_bytes: Option<i64>,
    principal: RawPrincipal,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrincipal {
    r#type: String,
    id: Option<RawPath>,
    id_prefix: Option<String>,
    stored: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, RawAttribute>,
    #[serde(default)]
    parents: Vec<RawParents>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a claim: \"name\", \"outer.inner\", or the names as a list"
)]
enum RawPath {
    Text(String),
    Names(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "an attribute: its kind such as \"string\", or a table of `kind`, `claim`, `entity_type`, `optional`"
)]
enum RawAttribute {
    Kind(String),
    Table(RawAttributeTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttributeTable {
    kind: String,
    claim: Option<RawPath>,
    entity_type: Option<String>,
    optional: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParents {
    claim: RawPath,
    r#type: String,
    prefix: Option<String>,
    optional: Option<bool>,
}

/// Whose tokens are believed; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuers(pub(super) Vec<IssuerRules>);

/// One issuer, and what its tokens must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IssuerRules {
    /// As it stands in `iss`.
    pub(super) name: String,
    pub(super) audiences: BTreeSet<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) keys: KeySource,
    /// In lower case; `None` takes what tokens of access and of no type have.
    pub(super) types: Option<BTreeSet<String>>,
    pub(super) leeway: Duration,
    pub(super) max_age: Option<Duration>,
    pub(super) max_bytes: usize,
    pub(super) mapping: Mapping,
}

/// Where an issuer's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    /// A JWKS in a file.
    File(PathBuf),
    /// A secret in a file.
    Secret(PathBuf),
    /// A JWKS behind a URL.
    Url(UrlSource),
}

/// A JWKS behind a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlSource {
    pub(super) url: String,
    /// Who may vouch for the server; `None` are the system's roots.
    pub(super) ca_file: Option<PathBuf>,
    /// No oftener than this is the set fetched to keep it fresh, whatever the server says.
    pub(super) refresh_min: Duration,
    /// And no more seldom.
    pub(super) refresh_max: Duration,
    /// The shortest time from one fetch to the next when tokens name keys that are not in the set.
    pub(super) refetch_interval: Duration,
    /// How long a fetch may take in all.
    pub(super) fetch_timeout: Duration,
    /// How long a request may wait for a fetch.
    pub(super) key_wait: Duration,
    /// For how long a set that cannot be fetched again is believed; `None` is for ever.
    pub(super) max_stale: Option<Duration>,
}

/// Why an issuers file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuersError {
    /// It is no TOML, or has a key that does not exist, or lacks one.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// There is no issuer in it.
    #[error("it names no issuer; each is a table `[[issuer]]`")]
    Empty,
    /// Two tables for one issuer.
    #[error("issuer `{0}` is there twice")]
    Twice(String),
    /// A value makes no sense.
    #[error("issuer `{issuer}`: `{key}` {problem}")]
    Value {
        /// The issuer, as it is written.
        issuer: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A key, and what is wrong with its value.
type Fault = (String, String);

fn fault<T>(key: &str, problem: impl Into<String>) -> Result<T, Fault> {
    Err((key.to_owned(), problem.into()))
}

impl Issuers {
    /// The issuers that `text` tells of; files that it names are found from `directory`.
    ///
    /// # Errors
    ///
    /// [`IssuersError`] for the first thing that is wrong.
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
                return Err(IssuersError::Twice(name));
            }
            let rules = raw.check(directory);
            issuers.push(rules.map_err(|(key, problem)| IssuersError::Value {
                issuer: name,
                key,
                problem,
            })?);
        }
        match issuers.is_empty() {
            true => Err(IssuersError::Empty),
            false => Ok(Self(issuers)),
        }
    }

    /// Pairs of issuers that may call two principals by one uid: legal, and a mistake more often
    /// than not.
    pub(super) fn sharing_ids(&self) -> Vec<(&str, &str)> {
        self.pairs(|one, other| {
            let (one, other) = (&one.mapping, &other.mapping);
            one.type_name == other.type_name && overlap(&one.id_prefix, &other.id_prefix)
        })
    }

    /// Pairs of issuers, or an issuer twice, that may put their principals into one parent by what
    /// two different claims say.
    pub(super) fn sharing_parents(&self) -> Vec<(&str, &str)> {
        let meet = |one: &Parents, other: &Parents| {
            one.type_name == other.type_name && overlap(&one.prefix, &other.prefix)
        };
        let within = self.0.iter().filter(|rules| {
            let mut parents = rules.mapping.parents.iter();
            std::iter::from_fn(|| parents.next().map(|one| (one, parents.clone())))
                .any(|(one, mut after)| after.any(|other| meet(one, other)))
        });
        let mut pairs: Vec<(&str, &str)> = within
            .map(|rules| (rules.name.as_str(), rules.name.as_str()))
            .collect();
        pairs.extend(self.pairs(|one, other| {
            let others = &other.mapping.parents;
            let mut parents = one.mapping.parents.iter();
            parents.any(|one| others.iter().any(|other| meet(one, other)))
        }));
        pairs
    }

    /// The pairs of two issuers of which `hold` is true.
    fn pairs(&self, hold: impl Fn(&IssuerRules, &IssuerRules) -> bool) -> Vec<(&str, &str)> {
        let mut pairs = Vec::new();
        for (at, other) in self.0.iter().enumerate() {
            let before = self.0.iter().take(at).filter(|one| hold(one, other));
            pairs.extend(before.map(|one| (one.name.as_str(), other.name.as_str())));
        }
        pairs
    }
}

/// Whether an id after the one prefix can be an id after the other.
fn overlap(one: &str, other: &str) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

const DAY: Duration = Duration::from_secs(86_400);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl RawIssuer {
    fn check(self, directory: &Path) -> Result<IssuerRules, Fault> {
        if self.issuer.is_empty() {
            return fault("issuer", "is empty");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return fault("audiences", "must name whom tokens are for");
        }
        let algorithms = algorithms(&self.algorithms, self.secret_file.is_some())?;
        let keys = self.key_source(directory)?;
        let types = match self.types {
            None => None,
            Some(types) if types.is_empty() => return fault("types", "is empty"),
            Some(types) => Some(types.iter().map(|typ| media_type(typ)).collect()),
        };
        let max_age = match &self.max_age {
            None => None,
            written => Some(duration("max_age", written, DAY, seconds(1)..=3_650 * DAY)?),
        };
        let max_bytes = self.max_bytes.unwrap_or(8_192);
        let max_bytes = usize::try_from(max_bytes)
            .ok()
            .filter(|bytes| (64..=1 << 20).contains(bytes));
        let Some(max_bytes) = max_bytes else {
            return fault("max_bytes", "is not from 64 to 1048576");
        };
        Ok(IssuerRules {
            leeway: duration(
                "leeway",
                &self.leeway,
                seconds(30),
                seconds(0)..=seconds(600),
            )?,
            name: self.issuer,
            audiences: self.audiences.into_iter().collect(),
            algorithms,
            keys,
            types,
            max_age,
            max_bytes,
            mapping: self.principal.check()?,
        })
    }

    fn key_source(&self, directory: &Path) -> Result<KeySource, Fault> {
        let only_with_url = [
            ("ca_file", self.ca_file.is_some()),
            ("insecure_http", self.insecure_http.is_some()),
            ("refresh_min", self.refresh_min.is_some()),
            ("refresh_max", self.refresh_max.is_some()),
            ("refetch_interval", self.refetch_interval.is_some()),
            ("fetch_timeout", self.fetch_timeout.is_some()),
            ("key_wait", self.key_wait.is_some()),
            ("max_stale", self.max_stale.is_some()),
        ];
        let written = only_with_url.into_iter().find(|(_, written)| *written);
        if let (Some((key, _)), None) = (written, &self.keys_url) {
            return fault(key, "means something with `keys_url` alone");
        }
        match (&self.keys_file, &self.keys_url, &self.secret_file) {
            (Some(file), None, None) => Ok(KeySource::File(directory.join(file))),
            (None, None, Some(file)) => Ok(KeySource::Secret(directory.join(file))),
            (None, Some(url), None) => {
                check_url(url, self.insecure_http.unwrap_or(false))?;
                let refresh_min = duration(
                    "refresh_min",
                    &self.refresh_min,
                    seconds(60),
                    seconds(1)..=DAY,
                )?;
                let refresh_max = duration(
                    "refresh_max",
                    &self.refresh_max,
                    seconds(3_600).max(refresh_min),
                    refresh_min..=7 * DAY,
                )?;
                // No shorter, or a set would be dropped that nobody has tried to fetch again.
                let max_stale = match &self.max_stale {
                    None => None,
                    written => Some(duration(
                        "max_stale",
                        written,
                        refresh_max,
                        refresh_max..=365 * DAY,
                    )?),
                };
                Ok(KeySource::Url(UrlSource {
                    max_stale,
                    url: url.clone(),
                    ca_file: self.ca_file.as_ref().map(|file| directory.join(file)),
                    refresh_min,
                    refresh_max,
                    refetch_interval: duration(
                        "refetch_interval",
                        &self.refetch_interval,
                        seconds(10),
                        seconds(1)..=seconds(3_600),
                    )?,
                    fetch_timeout: duration(
                        "fetch_timeout",
                        &self.fetch_timeout,
                        seconds(5),
                        Duration::from_millis(100)..=seconds(60),
                    )?,
                    key_wait: duration(
                        "key_wait",
                        &self.key_wait,
                        seconds(2),
                        seconds(0)..=seconds(30),
                    )?,
                }))
            }
            _ => fault(
                "keys_url",
                "or `keys_file` or `secret_file` must be given, and just one of them",
            ),
        }
    }
}

fn duration(
    key: &str,
    written: &Option<String>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    let Some(text) = written else {
        return Ok(default);
    };
    let shown = |duration: &Duration| humantime::format_duration(*duration).to_string();
    match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => Ok(duration),
        Ok(_) => fault(
            key,
            format!(
                "is `{text}`; allowed: {} to {}",
                shown(range.start()),
                shown(range.end())
            ),
        ),
        Err(error) => fault(
            key,
            format!("is `{text}`, which is no duration such as `30s`: {error}"),
        ),
    }
}

/// An explicit list: public keys alone, or with a shared secret that alone.
fn algorithms(names: &[String], is_secret: bool) -> Result<Vec<Algorithm>, Fault> {
    let mut algorithms = Vec::with_capacity(names.len());
    for name in names {
        let Ok(algorithm) = name.parse::<Algorithm>() else {
            return fault(
                "algorithms",
                format!(
                    "names `{name}`; there are ES256, ES384, RS256, RS384, RS512, PS256, PS384, PS512, EdDSA, \
                     and with `secret_file` HS256, HS384, HS512"
                ),
            );
        };
        match (algorithm.family() == AlgorithmFamily::Hmac, is_secret) {
            (true, true) | (false, false) => algorithms.push(algorithm),
            (true, false) => {
                return fault(
                    "algorithms",
                    format!("names `{name}`, which takes a `secret_file`"),
                );
            }
            (false, true) => {
                return fault(
                    "algorithms",
                    format!("names `{name}`, which a secret cannot verify"),
                );
            }
        }
    }
    match algorithms.is_empty() {
        true => fault("algorithms", "is empty"),
        false => Ok(algorithms),
    }
}

/// Only over TLS may keys come from elsewhere.
fn check_url(url: &str, insecure_http: bool) -> Result<(), Fault> {
    let refused = |problem: &str| fault("keys_url", problem);
    if url.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return refused("holds a space or what is not ASCII");
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return refused("is no URL such as `https://issuer.example/jwks.json`");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return refused("has no host, or a password before it");
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let is_loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if is_loopback || insecure_http => Ok(()),
        "http" => refused(
            "is without TLS, so whoever is on the way could put keys in; `insecure_http = true` takes it all the same",
        ),
        _ => refused("is neither https nor http"),
    }
}

impl RawPrincipal {
    fn check(self) -> Result<Mapping, Fault> {
        let attributes = self
            .attributes
            .into_iter()
            .map(|(name, raw)| {
                let attribute = raw.check(&name);
                let attribute = attribute
                    .map_err(|problem| (format!("principal.attributes.{name}"), problem))?;
                Ok((name, attribute))
            })
            .collect::<Result<BTreeMap<_, _>, Fault>>()?;
        let parents = self
            .parents
            .into_iter()
            .map(|raw| {
                raw.check()
                    .map_err(|problem| ("principal.parents".to_owned(), problem))
            })
            .collect::<Result<Vec<_>, Fault>>()?;
        let id = match self.id {
            None => ClaimPath(vec!["sub".to_owned()]),
            Some(raw) => raw
                .check()
                .map_err(|problem| ("principal.id".to_owned(), problem))?,
        };
        let stored = match self.stored.as_deref() {
            None | Some("join") => StoredPrincipal::Join,
            Some("replace") => StoredPrincipal::Replace,
            Some("require") => StoredPrincipal::Require,
            Some(other) => {
                return fault(
                    "principal.stored",
                    format!("is `{other}`; allowed: join, replace, require"),
                );
            }
        };
        Ok(Mapping {
            type_name: entity_type(self.r#type)
                .map_err(|problem| ("principal.type".to_owned(), problem))?,
            id,
            id_prefix: self.id_prefix.unwrap_or_default(),
            attributes,
            parents,
            stored,
        })
    }
}

fn entity_type(text: String) -> Result<String, String> {
    if !is_type_name(&text) {
        return Err(format!(
            "names `{text}`, which is no entity type such as `Shop::Order`"
        ));
    }
    if text == "Action" || text.ends_with("::Action") {
        return Err("names a type of actions".to_owned());
    }
    Ok(text)
}

impl RawPath {
    fn check(self) -> Result<ClaimPath, String> {
        let names = match self {
            Self::Names(names) => names,
            // Whoever writes a URL means one name, in which a dot is no way inwards.
            Self::Text(text) if text.contains(['/', ':']) => {
                return Err(format!("a claim of this name is written `[\"{text}\"]`"));
            }
            Self::Text(text) => text.split('.').map(ToOwned::to_owned).collect(),
        };
        match names.is_empty() || names.iter().any(String::is_empty) {
            true => Err("names no claim".to_owned()),
            false => Ok(ClaimPath(names)),
        }
    }
}

impl RawAttribute {
    fn check(self, name: &str) -> Result<Attribute, String> {
        let RawAttributeTable {
            kind,
            claim,
            entity_type: of_type,
            optional,
        } = match self {
            Self::Table(table) => table,
            Self::Kind(kind) => RawAttributeTable {
                kind,
                claim: None,
                entity_type: None,
                optional: None,
            },
        };
        let path = match claim {
            Some(raw) => raw.check()?,
            None => ClaimPath(vec![name.to_owned()]),
        };
        let entity =
            |of_type: Option<String>| entity_type(of_type.ok_or("needs an `entity_type`")?);
        let kind = match (kind.as_str(), of_type) {
            ("entity", of_type) => Kind::Entity(entity(of_type)?),
            ("entities", of_type) => Kind::Entities(entity(of_type)?),
            (_, Some(_)) => return Err("has an `entity_type` and is no entity".to_owned()),
            ("bool", None) => Kind::Bool,
            ("long", None) => Kind::Long,
            ("string", None) => Kind::String,
            ("strings", None) => Kind::Strings,
            ("words", None) => Kind::Words,
            ("decimal", None) => Kind::Decimal,
            ("ip", None) => Kind::Ip,
            ("datetime", None) => Kind::Datetime,
            ("duration", None) => Kind::Duration,
            (other, None) => {
                return Err(format!(
                    "is of kind `{other}`; allowed: bool, long, string, strings, words, entity, entities, decimal, ip, datetime, duration"
                ));
            }
        };
        Ok(Attribute {
            wanted: Wanted {
                path,
                optional: optional.unwrap_or(false),
            },
            kind,
        })
    }
}

impl RawParents {
    fn check(self) -> Result<Parents, String> {
        Ok(Parents {
            wanted: Wanted {
                path: self.claim.check()?,
                optional: self.optional.unwrap_or(false),
            },
            type_name: entity_type(self.r#type)?,
            prefix: self.prefix.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests;
