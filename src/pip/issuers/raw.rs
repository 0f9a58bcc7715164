//! The issuers file as it is written, and the checks that turn it into [`IssuerRules`].

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::Deserialize;

use super::raw_mapping::{InvalidValue, RawPrincipal};
use super::{IssuerRules, KeySource, UrlSource};
use crate::pip::token::normalize_media_type;

const HOUR: Duration = seconds(3_600);
const DAY: Duration = seconds(86_400);
const WEEK: Duration = seconds(7 * 86_400);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Reads the duration of a key: the default if it is not set, an error if it is out of range.
macro_rules! read {
    ($raw:ident.$key:ident, $default:expr, $range:expr) => {
        duration(stringify!($key), $raw.$key.as_deref(), $default, $range)?
    };
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIssuers {
    #[serde(default)]
    pub(super) issuer: Vec<RawIssuer>,
}

/// A table `[[issuer]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIssuer {
    pub(super) issuer: String,
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

impl RawIssuer {
    /// Checks all values. File names are relative to `directory`.
    pub(super) fn check(self, directory: &Path) -> Result<IssuerRules, InvalidValue> {
        if self.issuer.is_empty() {
            return Err(InvalidValue::new("issuer", "must not be empty"));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            let problem = "must name the audiences that tokens are accepted for";
            return Err(InvalidValue::new("audiences", problem));
        }
        let algorithms = parse_algorithms(&self.algorithms, self.secret_file.is_some())?;
        let keys = self.key_source(directory)?;
        let types = match self.types {
            Some(types) if types.is_empty() => {
                return Err(InvalidValue::new("types", "must not be empty"));
            }
            types => types.map(|types| types.iter().map(|typ| normalize_media_type(typ)).collect()),
        };
        let max_age = self.max_age.as_deref();
        let max_age = optional_duration("max_age", max_age, seconds(1), 3_650 * DAY)?;
        let leeway = read!(self.leeway, seconds(30), seconds(0)..=seconds(600));
        let max_bytes = usize::try_from(self.max_bytes.unwrap_or(8_192))
            .ok()
            .filter(|bytes| (64..=1 << 20).contains(bytes))
            .ok_or_else(|| InvalidValue::new("max_bytes", "must be from 64 to 1048576"))?;
        Ok(IssuerRules {
            name: self.issuer,
            audiences: self.audiences.into_iter().collect(),
            algorithms,
            keys,
            types,
            leeway,
            max_age,
            max_bytes,
            mapping: self.principal.check()?,
        })
    }

    fn key_source(&self, directory: &Path) -> Result<KeySource, InvalidValue> {
        if self.keys_url.is_none() {
            self.check_no_url_settings()?;
        }
        match (&self.keys_file, &self.keys_url, &self.secret_file) {
            (Some(file), None, None) => Ok(KeySource::File(directory.join(file))),
            (None, None, Some(file)) => Ok(KeySource::Secret(directory.join(file))),
            (None, Some(url), None) => Ok(KeySource::Url(self.url_source(url, directory)?)),
            _ => Err(InvalidValue::new(
                "keys_url",
                "or `keys_file` or `secret_file` must be set, and only one",
            )),
        }
    }

    fn check_no_url_settings(&self) -> Result<(), InvalidValue> {
        let settings = [
            ("ca_file", self.ca_file.is_some()),
            ("insecure_http", self.insecure_http.is_some()),
            ("refresh_min", self.refresh_min.is_some()),
            ("refresh_max", self.refresh_max.is_some()),
            ("refetch_interval", self.refetch_interval.is_some()),
            ("fetch_timeout", self.fetch_timeout.is_some()),
            ("key_wait", self.key_wait.is_some()),
            ("max_stale", self.max_stale.is_some()),
        ];
        match settings.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(InvalidValue::new(key, "is allowed with `keys_url` only")),
            None => Ok(()),
        }
    }

    fn url_source(&self, url: &str, directory: &Path) -> Result<UrlSource, InvalidValue> {
        check_url(url, self.insecure_http.unwrap_or(false))?;
        let refresh_min = read!(self.refresh_min, seconds(60), seconds(1)..=DAY);
        let refresh_max = read!(self.refresh_max, HOUR.max(refresh_min), refresh_min..=WEEK);
        let min_timeout = Duration::from_millis(100);
        let max_stale = self.max_stale.as_deref();
        Ok(UrlSource {
            url: url.to_owned(),
            ca_file: self.ca_file.as_ref().map(|file| directory.join(file)),
            refresh_min,
            refresh_max,
            refetch_interval: read!(self.refetch_interval, seconds(10), seconds(1)..=HOUR),
            fetch_timeout: read!(self.fetch_timeout, seconds(5), min_timeout..=seconds(60)),
            key_wait: read!(self.key_wait, seconds(2), seconds(0)..=seconds(30)),
            // With less than `refresh_max`, a set would be dropped before the next fetch is due.
            max_stale: optional_duration("max_stale", max_stale, refresh_max, 365 * DAY)?,
        })
    }
}

/// Parses a duration such as `30s` and checks its range. Returns `default` if it is not set.
fn duration(
    key: &str,
    text: Option<&str>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, InvalidValue> {
    let Some(text) = text else {
        return Ok(default);
    };
    let problem = match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => return Ok(duration),
        Ok(_) => {
            let [min, max] = [range.start(), range.end()].map(|it| humantime::format_duration(*it));
            format!("is `{text}`; allowed: {min} to {max}")
        }
        Err(error) => format!("is `{text}`, which is not a duration such as `30s`: {error}"),
    };
    Err(InvalidValue::new(key, problem))
}

/// Parses a duration from `min` to `max`. Returns `None` if it is not set.
fn optional_duration(
    key: &str,
    text: Option<&str>,
    min: Duration,
    max: Duration,
) -> Result<Option<Duration>, InvalidValue> {
    text.map(|_| duration(key, text, min, min..=max))
        .transpose()
}

/// Parses `algorithms`: of public keys only, or of a shared secret only.
fn parse_algorithms(names: &[String], is_secret: bool) -> Result<Vec<Algorithm>, InvalidValue> {
    let invalid = |problem: String| InvalidValue::new("algorithms", problem);
    let mut algorithms = Vec::with_capacity(names.len());
    for name in names {
        let Ok(algorithm) = name.parse::<Algorithm>() else {
            return Err(invalid(format!(
                "is `{name}`; allowed: ES256, ES384, RS256, RS384, RS512, PS256, PS384, PS512, EdDSA, \
                 and with `secret_file` HS256, HS384, HS512"
            )));
        };
        match (algorithm.family() == AlgorithmFamily::Hmac, is_secret) {
            (true, true) | (false, false) => algorithms.push(algorithm),
            (true, false) => {
                return Err(invalid(format!("is `{name}`, which needs a `secret_file`")));
            }
            (false, true) => {
                return Err(invalid(format!(
                    "is `{name}`, which a secret cannot verify"
                )));
            }
        }
    }
    match algorithms.is_empty() {
        true => Err(invalid("must not be empty".to_owned())),
        false => Ok(algorithms),
    }
}

/// Checks that keys come over TLS or from this machine.
fn check_url(url: &str, insecure_http: bool) -> Result<(), InvalidValue> {
    let invalid = |problem: &str| Err(InvalidValue::new("keys_url", problem));
    if url.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return invalid("must not contain spaces or non-ASCII characters");
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return invalid("must be a URL such as `https://issuer.example/jwks.json`");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return invalid("must have a host, and no user or password");
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
        "http" => invalid(
            "is without TLS, so anyone on the network path could replace the keys; to allow this, set `insecure_http = true`",
        ),
        _ => invalid("must be https or http"),
    }
}
