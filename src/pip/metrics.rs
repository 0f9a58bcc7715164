//! Counters of token verification, and the values that metrics and status pages export.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rejection::RejectionReason;

/// Counts of tokens and revocation lists since the start of the process.
#[derive(Debug, Default)]
pub(super) struct TokenCounters {
    rejected: [Counter; RejectionReason::ALL.len()],
    pub(super) verified: Counter,
    pub(super) cached: Counter,
    pub(super) revocations_rejected: Counter,
    pub(super) revocations_shrunk: Counter,
}

/// A counter that only goes up.
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
    /// Counts a rejected token.
    pub(super) fn count_rejected(&self, reason: RejectionReason) {
        if let Some(counter) = self.rejected.get(reason.index()) {
            counter.add_one();
        }
    }

    /// Returns the rejected tokens by reason.
    pub(super) fn rejected(&self) -> Vec<(RejectionReason, u64)> {
        RejectionReason::ALL
            .into_iter()
            .zip(self.rejected.iter().map(Counter::value))
            .collect()
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
