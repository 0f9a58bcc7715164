//! Verifies tokens: a token becomes a principal, with the attributes and parents that its claims
//! supply.
//!
//! `verify` checks a token step by step. `token` and `json` parse it, `keys` verify its signature,
//! `revocations` reject it early, and `mapping` turns its claims into Cedar values. Keys and
//! revocations change while requests are served, by [`Refresh`].
//!
//! Nothing here decides a request, reads the clock, or passes on a claim that was not verified.

mod issuers;
mod json;
mod keys;
mod mapping;
pub(crate) mod metrics;
mod numeric_date;
mod refresh;
mod rejection;
mod revocations;
mod token;
mod token_cache;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonwebtoken::Algorithm;

pub use issuers::{Issuers, IssuersError};
pub use keys::KeySetError;
pub use keys::refresh::{KeyMiss, KeyWait};
pub use metrics::{IssuerKeyMetrics, TokenMetrics};
pub use numeric_date::NumericDate;
pub use refresh::Refresh;
pub use rejection::{RejectionReason, TokenRejection};
pub use revocations::RevocationsError;
pub use verify::{TokenIdentity, Tokens, VerifyError};

pub use crate::config::TokenSettings;
use crate::versioned::Versioned;
use crate::watch::files::{FileReader, ReadError};
use issuers::{IssuerRules, KeySource, UrlSource};
use keys::KeySet;
use keys::refresh::{FetchRequester, KeyRefresher};
use metrics::TokenCounters;
use revocations::Revocations;
use token_cache::TokenCache;
use verify::{Issuer, VerifiedToken};

/// An error in the files that tokens are verified with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// The issuers file is invalid.
    #[error("`{file}`: {1}", file = .0.display())]
    Issuers(PathBuf, #[source] IssuersError),
    /// The key file of an issuer is invalid.
    #[error("issuer `{0}`: `{file}`: {2}", file = .1.display())]
    Keys(String, PathBuf, #[source] KeySetError),
    /// The root certificates for an issuer's key server are missing or invalid.
    #[error("issuer `{0}`: {1}")]
    Roots(String, String),
    /// The revocation list is invalid.
    #[error("`{file}`: {1}", file = .0.display())]
    Revocations(PathBuf, #[source] RevocationsError),
}

/// Reads everything that tokens are verified with, except keys behind URLs, which are fetched once
/// the refresh runs. Run it for as long as tokens are verified.
pub fn open(settings: &TokenSettings) -> Result<(Arc<Tokens>, Refresh), OpenError> {
    let issuers = read_issuers(&settings.issuers)?.0;
    let names: BTreeSet<String> = issuers.iter().map(|rules| rules.name.clone()).collect();
    let max_bytes = issuers.iter().map(|rules| rules.max_bytes).max();
    let counters = Arc::new(TokenCounters::default());
    let mut refresh = Refresh::new(settings.following);
    let issuers = issuers
        .into_iter()
        .map(|rules| open_issuer(rules, &mut refresh))
        .collect::<Result<Vec<_>, _>>()?;
    let revocations = Arc::new(Versioned::default());
    if let Some(path) = &settings.revocations {
        open_revocations(path, &revocations, names, &counters, &mut refresh)?;
    }
    let tokens = Tokens {
        issuers,
        revocations,
        cache: settings
            .cache_bytes
            .map(|bytes| TokenCache::new(bytes, VerifiedToken::heap_size)),
        counters,
        max_bytes: max_bytes.unwrap_or(0),
    };
    Ok((Arc::new(tokens), refresh))
}

fn read_issuers(path: &Path) -> Result<Issuers, OpenError> {
    let text = FileReader::default().read(path)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let issuers = Issuers::parse(&String::from_utf8_lossy(&text), directory)
        .map_err(|error| OpenError::Issuers(path.to_owned(), error))?;
    for (one, other) in issuers.pairs_sharing_principals() {
        tracing::warn!(
            one,
            other,
            "two issuers share a principal type without distinct `id_prefix`es, equal ids become one principal"
        );
    }
    for (one, other) in issuers.pairs_sharing_parents() {
        tracing::warn!(
            one,
            other,
            "two claims share a parent type without distinct `prefix`es, equal values become one parent"
        );
    }
    Ok(issuers)
}

fn open_issuer(rules: IssuerRules, refresh: &mut Refresh) -> Result<Issuer, OpenError> {
    let source = rules.keys.clone();
    let mut issuer = Issuer {
        name: rules.name.as_str().into(),
        rules,
        keys: Arc::default(),
        fetches: None,
        counters: Arc::default(),
    };
    match source {
        KeySource::File(path) => open_key_file(&issuer, &path, KeySet::from_jwks, refresh)?,
        KeySource::Secret(path) => open_key_file(&issuer, &path, KeySet::from_secret, refresh)?,
        KeySource::Url(source) => issuer.fetches = Some(open_key_url(&issuer, source, refresh)?),
    }
    Ok(issuer)
}

/// A parser of a key file, which keeps the keys for the given algorithms.
type ParseKeys = fn(&[u8], &[Algorithm]) -> Result<KeySet, KeySetError>;

/// Loads the issuer's keys from a file, and again when the file changes.
fn open_key_file(
    issuer: &Issuer,
    path: &Path,
    parse: ParseKeys,
    refresh: &mut Refresh,
) -> Result<(), OpenError> {
    let apply = {
        let (name, allowed) = (Arc::clone(&issuer.name), issuer.rules.algorithms.clone());
        let (current, counters) = (Arc::clone(&issuer.keys), Arc::clone(&issuer.counters));
        move |text: &[u8]| {
            let keys = parse(text, &allowed)?;
            // An issuer may withdraw all its keys. More often `algorithms` is wrong.
            if keys.len() == 0 {
                tracing::warn!(
                    issuer = &*name,
                    "key file has no key for the issuer's `algorithms`, rejecting all tokens of the issuer"
                );
            }
            let summary = format!("{} keys loaded", keys.len());
            current.replace(Some(keys));
            counters.accepted.add_one();
            Ok(summary)
        }
    };
    let counters = Arc::clone(&issuer.counters);
    let text = refresh.read_and_watch(path, apply.clone(), move || counters.failed.add_one())?;
    let invalid = |error| OpenError::Keys(issuer.rules.name.clone(), path.to_owned(), error);
    apply(&text).map(drop).map_err(invalid)
}

/// Schedules the fetches of the issuer's keys.
fn open_key_url(
    issuer: &Issuer,
    source: UrlSource,
    refresh: &mut Refresh,
) -> Result<FetchRequester, OpenError> {
    // Problems that would fail each fetch are reported at startup.
    keys::fetch::client_config(source.ca_file.clone())
        .map_err(|error| OpenError::Roots(issuer.rules.name.clone(), error.to_string()))?;
    let (refresher, requester) = KeyRefresher::new(
        Arc::clone(&issuer.name),
        source,
        issuer.rules.algorithms.clone(),
        Arc::clone(&issuer.keys),
        Arc::clone(&issuer.counters),
    );
    refresh.add(refresher.run());
    Ok(requester)
}

/// Loads the revocation list, and again when the file changes.
fn open_revocations(
    path: &Path,
    current: &Arc<Versioned<Revocations>>,
    issuers: BTreeSet<String>,
    counters: &Arc<TokenCounters>,
    refresh: &mut Refresh,
) -> Result<(), OpenError> {
    let apply = {
        let (current, counters) = (Arc::clone(current), Arc::clone(counters));
        move |text: &[u8]| {
            let list = Revocations::parse(text)?;
            for issuer in list.issuers().difference(&issuers) {
                tracing::warn!(issuer, "revocation list names an unknown issuer");
            }
            let previous = current.load();
            list.check_replaces(&previous)?;
            let (before, now) = (previous.len(), list.len());
            if now < before {
                counters.revocations_shrunk.add_one();
                tracing::warn!(before, now, "revocation list has become shorter");
            }
            current.replace(list);
            Ok(format!("{now} revocations loaded"))
        }
    };
    let counters = Arc::clone(counters);
    let on_rejected = move || counters.revocations_rejected.add_one();
    let text = refresh.read_and_watch(path, apply.clone(), on_rejected)?;
    let invalid = |error| OpenError::Revocations(path.to_owned(), error);
    apply(&text).map(drop).map_err(invalid)
}

#[cfg(test)]
mod tests;
