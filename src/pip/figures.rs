//! What became of tokens, and how the keys are: for those who watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::refusal::Reason;

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub(super) struct Counters {
    refused: [AtomicU64; Reason::ALL.len()],
    pub(super) verified: Counter,
    pub(super) remembered: Counter,
    pub(super) revocations_refused: Counter,
    pub(super) revocations_shrunk: Counter,
}

/// Counts upwards.
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

impl Counters {
    pub(super) fn refused(&self, reason: Reason) {
        if let Some(counter) = self.refused.get(reason.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn refusals(&self) -> Vec<(Reason, u64)> {
        Reason::ALL
            .into_iter()
            .zip(&self.refused)
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
            .collect()
    }
}

/// Counts of one issuer's keys.
#[derive(Debug, Default)]
pub(super) struct KeyCounters {
    pub(super) taken: Counter,
    pub(super) failed: Counter,
}

/// What became of tokens since the start, and how the keys are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFigures {
    /// Tokens whose signature was checked and that were believed.
    pub verified: u64,
    /// Tokens that were believed because they had been verified before.
    pub remembered: u64,
    /// Tokens remembered now.
    pub entries: u64,
    /// Tokens that were not believed, for each reason there is.
    pub refused: Vec<(Reason, u64)>,
    /// The issuers' keys, in the order of the issuers file.
    pub keys: Vec<KeyFigures>,
    /// Entries of the revocation list in force.
    pub revocations: u64,
    /// Times that a changed revocation file was refused.
    pub revocations_refused: u64,
    /// Times that a list was taken that is shorter than the one before.
    pub revocations_shrunk: u64,
}

/// The keys of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFigures {
    /// As in `iss`.
    pub issuer: Arc<str>,
    /// Keys that can be used now.
    pub keys: u64,
    /// How long ago the set was last fetched or read with success; `None` when it never was.
    pub age: Option<Duration>,
    /// Times that a set was fetched, or a changed file taken.
    pub taken: u64,
    /// Times that a fetch failed, or a changed file was refused.
    pub failed: u64,
}
