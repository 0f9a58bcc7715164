//! Counters of token verification, and the values that metrics and status pages export.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rejection::RejectionReason;
use crate::counters::Counters;
use crate::counters::page::{Export, Page, metrics};

metrics! {
    TOKENS = Counter "cedar_pdp_tokens_total" ["result"]
        "Accepted tokens, verified now (verified) or found in the cache (remembered)";
    TOKENS_REJECTED = Counter "cedar_pdp_tokens_refused_total" ["reason"]
        "Rejected tokens, by the reason that the caller receives";
    TOKENS_CACHED = Gauge "cedar_pdp_remembered_tokens" []
        "Verified tokens in the cache";
    ISSUERS_WITHOUT_KEYS = Gauge "cedar_pdp_issuers_without_keys" []
        "Issuers without a usable key; all their tokens are rejected";
    KEYS_AGE = Gauge "cedar_pdp_issuer_keys_age_seconds" []
        "Time since the last fetch of the oldest fetched keys, in seconds";
    KEY_SETS = Counter "cedar_pdp_issuer_key_sets_total" ["result"]
        "Key sets fetched or read, of all issuers: accepted (taken) or failed (failed)";
    REVOCATIONS = Gauge "cedar_pdp_revocations" []
        "Entries of the current revocation list";
    REVOCATIONS_REJECTED = Counter "cedar_pdp_revocation_lists_refused_total" []
        "Revocation lists that were rejected; the previous list stays in use";
    REVOCATIONS_SHRUNK = Counter "cedar_pdp_revocation_lists_shrunk_total" []
        "Accepted revocation lists that were shorter than the list before";
}

/// Counts of tokens and revocation lists since the start of the process.
#[derive(Debug, Default)]
pub(super) struct TokenCounters {
    rejected: Counters<{ RejectionReason::ALL.len() }>,
    pub(super) verified: Counter,
    pub(super) cached: Counter,
    pub(super) revocations_rejected: Counter,
    pub(super) revocations_shrunk: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TokenCounters {
    pub(super) fn count_rejected(&self, reason: RejectionReason) {
        self.rejected.add_one(reason as usize);
    }

    pub(super) fn rejected(&self) -> Vec<(RejectionReason, u64)> {
        let count = |reason| (reason, self.rejected.sum(reason as usize));
        RejectionReason::ALL.map(count).to_vec()
    }
}

/// Counts of the key sets of one issuer since the start of the process.
#[derive(Debug, Default)]
pub(super) struct KeyCounters {
    pub(super) accepted: Counter,
    pub(super) failed: Counter,
}

/// Counts of tokens since the start of the process, and the current keys and revocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMetrics {
    /// Tokens accepted after a signature check.
    pub verified: u64,
    /// Tokens accepted from the cache.
    pub cached: u64,
    /// Tokens in the cache now.
    pub cache_entries: u64,
    /// Tokens rejected, by reason.
    pub rejected: Vec<(RejectionReason, u64)>,
    /// The keys by issuer, in the order of the issuers file.
    pub keys: Vec<IssuerKeyMetrics>,
    /// Entries of the current revocation list.
    pub revocations: u64,
    /// Changed revocation files that were rejected.
    pub revocations_rejected: u64,
    /// Accepted revocation lists that were shorter than the list before.
    pub revocations_shrunk: u64,
}

/// The key set of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerKeyMetrics {
    /// The issuer, as in `iss`.
    pub issuer: Arc<str>,
    /// Usable keys now.
    pub keys: u64,
    /// The time since the last successful fetch; `None` without one, and for keys from a file.
    pub age: Option<Duration>,
    /// Key sets that were fetched, or accepted from a changed file.
    pub accepted: u64,
    /// Fetches that failed, and changed files that were rejected.
    pub failed: u64,
}

impl Export for TokenMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let accepted = [(["verified"], self.verified), (["remembered"], self.cached)];
        page.counter(&TOKENS, accepted)?;
        let rejected = self.rejected.iter();
        page.counter(
            &TOKENS_REJECTED,
            rejected.map(|(reason, count)| ([reason.code()], *count)),
        )?;
        page.value(&TOKENS_CACHED, self.cache_entries as f64)?;
        // Issuers are no label, because their number is unbounded. `/status` lists each of them.
        let without_keys = self.keys.iter().filter(|issuer| issuer.keys == 0).count();
        page.value(&ISSUERS_WITHOUT_KEYS, without_keys as f64)?;
        let oldest = self.keys.iter().filter_map(|issuer| issuer.age).max();
        page.value(&KEYS_AGE, oldest.map(|age| age.as_secs_f64()))?;
        let sum = |count: fn(&IssuerKeyMetrics) -> u64| self.keys.iter().map(count).sum();
        let key_sets = [
            (["taken"], sum(|issuer| issuer.accepted)),
            (["failed"], sum(|issuer| issuer.failed)),
        ];
        page.counter(&KEY_SETS, key_sets)?;
        page.value(&REVOCATIONS, self.revocations as f64)?;
        page.counter(&REVOCATIONS_REJECTED, [([], self.revocations_rejected)])?;
        page.counter(&REVOCATIONS_SHRUNK, [([], self.revocations_shrunk)])
    }
}
