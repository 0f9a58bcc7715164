//! Requests a fetch of an issuer's keys for tokens whose key is missing, and waits for it.
//!
//! Many requests share one fetch, and fetches have a minimum interval, so that tokens with made-up
//! keys cannot cause a flood of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::pip::issuers::UrlSource;

/// Most requests that wait for one URL at a time.
///
/// Without this bound, tokens with made-up keys could take all call slots while the server is slow.
pub(super) const MAX_WAITERS: usize = 1_024;

/// The progress of the fetches of one URL, which are numbered from 1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FetchProgress {
    pub(super) started: u64,
    pub(super) finished: u64,
    pub(super) last_started: Option<Instant>,
    /// True if the last finished fetch failed.
    pub(super) has_failed: bool,
    pub(super) last_success: Option<Instant>,
}

/// A handle to request fetches of one URL.
#[derive(Clone, Debug)]
pub(in crate::pip) struct FetchRequester {
    progress: watch::Receiver<FetchProgress>,
    /// Wakes the task that fetches.
    wake: Arc<Notify>,
    /// The number of the last requested fetch.
    requested: Arc<AtomicU64>,
    min_interval: Duration,
    max_wait: Duration,
    waiters: Arc<Semaphore>,
}

/// The action to take when a token's key is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMiss {
    /// Request a fetch of the issuer's keys and wait for it.
    Wait,
    /// Reject the token, such as after a wait.
    Fail,
}

/// The state of the fetches when a token's key is missing.
#[derive(Debug)]
pub(in crate::pip) enum MissingKey {
    /// A fetch is under way and may bring the key.
    Wait(KeyWait),
    /// The last fetch succeeded, and another is not allowed yet: the key does not exist.
    Unknown,
    /// The last fetch failed or is not over, or too many requests wait for it: the key may exist.
    Unavailable,
}

/// A wait for a fetch that may bring a missing key.
#[derive(Debug)]
pub struct KeyWait {
    progress: watch::Receiver<FetchProgress>,
    /// The number of the fetch.
    fetch: u64,
    timeout: Duration,
    _permit: OwnedSemaphorePermit,
}

impl KeyWait {
    /// Returns the time limit of the wait.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Reduces the time limit to at most `max`.
    #[must_use]
    pub fn with_max_timeout(mut self, max: Duration) -> Self {
        self.timeout = self.timeout.min(max);
        self
    }

    /// Waits until the fetch has finished or the time limit is reached.
    ///
    /// Cancel-safe; the fetch goes on when the wait ends.
    pub async fn wait(mut self) {
        let fetch = self.fetch;
        let finished = self
            .progress
            .wait_for(|progress| progress.finished >= fetch);
        // The caller looks the key up again, so the reason why the wait ended does not matter.
        let _ = tokio::time::timeout(self.timeout, finished).await;
    }
}

impl FetchRequester {
    /// Creates a handle that reads `progress` and wakes the fetching task by `wake`.
    pub(super) fn new(
        source: &UrlSource,
        progress: watch::Receiver<FetchProgress>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            progress,
            wake,
            requested: Arc::default(),
            min_interval: source.refetch_interval,
            max_wait: source.key_wait,
            waiters: Arc::new(Semaphore::new(MAX_WAITERS)),
        }
    }

    /// Requests a fetch, and returns its number, or that of the fetch under way. Returns `None` if
    /// the last fetch is too recent.
    pub(in crate::pip) fn request(&self) -> Option<u64> {
        let progress = *self.progress.borrow();
        if progress.started > progress.finished {
            return Some(progress.started);
        }
        match progress.last_started {
            Some(started) if started.elapsed() < self.min_interval => None,
            Some(_) | None => {
                let number = progress.started + 1;
                self.requested.fetch_max(number, Ordering::Relaxed);
                self.wake.notify_one();
                Some(number)
            }
        }
    }

    /// Requests a fetch for a missing key, and returns a wait for it if a fetch is allowed.
    pub(in crate::pip) fn request_and_wait(&self) -> MissingKey {
        let Some(fetch) = self.request() else {
            return self.without_request();
        };
        match Arc::clone(&self.waiters).try_acquire_owned() {
            Ok(permit) => MissingKey::Wait(KeyWait {
                progress: self.progress.clone(),
                fetch,
                timeout: self.max_wait,
                _permit: permit,
            }),
            Err(_) => MissingKey::Unavailable,
        }
    }

    /// Returns the state for a missing key without requesting a fetch.
    pub(in crate::pip) fn without_request(&self) -> MissingKey {
        let progress = *self.progress.borrow();
        let started = progress.started.max(self.requested.load(Ordering::Relaxed));
        let is_pending = started > progress.finished;
        match progress.has_failed || progress.finished == 0 || is_pending {
            true => MissingKey::Unavailable,
            false => MissingKey::Unknown,
        }
    }

    /// Returns whether a fetch was requested that has not started.
    #[cfg(test)]
    pub(in crate::pip) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed) > self.progress.borrow().started
    }

    /// Returns the time since the last successful fetch.
    pub(in crate::pip) fn age(&self) -> Option<Duration> {
        let last_success = self.progress.borrow().last_success;
        last_success.map(|success| success.elapsed())
    }
}
