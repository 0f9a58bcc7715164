//! The checked settings of one token issuer.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use crate::pip::mapping::Mapping;

/// An issuer and the rules that its tokens must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pip) struct IssuerRules {
    /// The issuer, as in `iss`.
    pub(in crate::pip) name: String,
    pub(in crate::pip) audiences: BTreeSet<String>,
    pub(in crate::pip) algorithms: Vec<Algorithm>,
    pub(in crate::pip) keys: KeySource,
    /// Accepted `typ` values in lower case; `None` accepts access tokens and tokens without `typ`.
    pub(in crate::pip) types: Option<BTreeSet<String>>,
    /// Tolerance for clock differences.
    pub(in crate::pip) leeway: Duration,
    pub(in crate::pip) max_age: Option<Duration>,
    pub(in crate::pip) max_bytes: usize,
    pub(in crate::pip) mapping: Mapping,
}

/// The source of an issuer's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pip) enum KeySource {
    /// A JWKS in a file.
    File(PathBuf),
    /// A shared secret in a file.
    Secret(PathBuf),
    /// A JWKS that is fetched from a URL.
    Url(UrlSource),
}

/// A URL that serves a JWKS, and the limits for fetching it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pip) struct UrlSource {
    pub(in crate::pip) url: String,
    /// Root certificates for the server, in PEM; `None` uses the system's roots.
    pub(in crate::pip) ca_file: Option<PathBuf>,
    /// Minimum time between scheduled fetches, whatever the server's cache headers say.
    pub(in crate::pip) refresh_min: Duration,
    /// Maximum time between scheduled fetches.
    pub(in crate::pip) refresh_max: Duration,
    /// Minimum time between fetches for tokens that name unknown keys.
    pub(in crate::pip) refetch_interval: Duration,
    /// Time limit for a whole fetch.
    pub(in crate::pip) fetch_timeout: Duration,
    /// Time limit for a request that waits for a fetch.
    pub(in crate::pip) key_wait: Duration,
    /// Time after which a set that cannot be fetched again is dropped; `None` keeps it forever.
    pub(in crate::pip) max_stale: Option<Duration>,
}
