//! Schedules the fetches of an issuer's keys: before the set is stale, after a failure, and on
//! request for a token whose key is missing.
//!
//! One task per URL does all fetches, so only one runs at a time. A failed fetch never replaces the
//! last good set; only `max_stale` drops it. Many requests share one fetch, and fetches have a
//! minimum interval, so that tokens with made-up keys cannot cause a flood of them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::fetch::{FetchError, fetch};
use super::{KeySet, KeySetError};
use crate::pip::issuers::UrlSource;
use crate::pip::metrics::KeyCounters;
use crate::versioned::Versioned;

/// The pause after the first failed fetch, doubled after each further failure.
const MIN_RETRY_PAUSE: Duration = Duration::from_secs(1);

const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Assumed freshness of a set whose server sends no cache headers.
const DEFAULT_FRESHNESS: Duration = Duration::from_secs(300);

/// Most requests that wait for one URL at a time.
///
/// Without this bound, tokens with made-up keys could take all call slots while the server is slow.
const MAX_WAITERS: usize = 1_024;

/// The progress of the fetches of one URL, which are numbered from 1.
#[derive(Clone, Copy, Debug, Default)]
struct FetchProgress {
    started: u64,
    finished: u64,
    last_started: Option<Instant>,
    /// True if the last finished fetch failed.
    has_failed: bool,
    last_success: Option<Instant>,
}

/// A handle to request fetches of one URL.
#[derive(Clone, Debug)]
pub(in crate::pip) struct FetchRequester {
    progress: watch::Receiver<FetchProgress>,
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

/// The task that fetches the keys of one URL.
pub(in crate::pip) struct KeyRefresher {
    issuer: Arc<str>,
    source: UrlSource,
    allowed: Vec<Algorithm>,
    /// `None` until the first good fetch, and again when the set is too old.
    keys: Arc<Versioned<Option<KeySet>>>,
    counters: Arc<KeyCounters>,
    progress: watch::Sender<FetchProgress>,
    wake: Arc<Notify>,
}

/// An error that left a fetch without keys.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("invalid response: {0}")]
    Keys(#[from] KeySetError),
}

impl KeyRefresher {
    /// Creates the task that puts fetched sets into `keys`, and the handle to request fetches.
    pub(in crate::pip) fn new(
        issuer: Arc<str>,
        source: UrlSource,
        allowed: Vec<Algorithm>,
        keys: Arc<Versioned<Option<KeySet>>>,
        counters: Arc<KeyCounters>,
    ) -> (Self, FetchRequester) {
        let (progress, progress_reader) = watch::channel(FetchProgress::default());
        let wake = Arc::new(Notify::new());
        let requester = FetchRequester {
            progress: progress_reader,
            wake: Arc::clone(&wake),
            requested: Arc::default(),
            min_interval: source.refetch_interval,
            max_wait: source.key_wait,
            waiters: Arc::new(Semaphore::new(MAX_WAITERS)),
        };
        let refresher = Self {
            issuer,
            source,
            allowed,
            keys,
            counters,
            progress,
            wake,
        };
        (refresher, requester)
    }

    pub(in crate::pip) async fn run(self) {
        let mut failures = 0;
        loop {
            let pause = match self.refresh().await {
                Ok(fresh_for) => {
                    failures = 0;
                    pause_after_success(&self.source, fresh_for)
                }
                Err(error) => {
                    tracing::warn!(
                        issuer = %self.issuer, url = %self.source.url, %error,
                        "cannot fetch issuer keys, keeping the last good set"
                    );
                    failures += 1;
                    pause_after_failure(failures)
                }
            };
            self.wait_until_due(pause).await;
        }
    }

    /// Fetches once and records the outcome.
    async fn refresh(&self) -> Result<Option<Duration>, RefreshError> {
        self.progress.send_modify(|progress| {
            progress.started += 1;
            progress.last_started = Some(Instant::now());
        });
        let outcome = self.fetch_and_replace().await;
        match &outcome {
            Ok(_) => self.counters.accepted.add_one(),
            Err(_) => self.counters.failed.add_one(),
        }
        self.progress.send_modify(|progress| {
            progress.finished = progress.started;
            progress.has_failed = outcome.is_err();
            if outcome.is_ok() {
                progress.last_success = Some(Instant::now());
            }
        });
        outcome
    }

    async fn fetch_and_replace(&self) -> Result<Option<Duration>, RefreshError> {
        let fetched = fetch(&self.source).await?;
        let keys = KeySet::from_jwks(&fetched.text, &self.allowed)?;
        let current = self.keys.load();
        let is_same = |set: &KeySet| set.has_same_text(&keys);
        // An equal set keeps its version, so that cached tokens stay valid.
        if !(*current).as_ref().is_some_and(is_same) {
            match keys.len() {
                0 => tracing::warn!(
                    issuer = %self.issuer, url = %self.source.url,
                    "issuer has no usable key, rejecting all tokens of the issuer"
                ),
                keys => tracing::info!(issuer = %self.issuer, keys, "issuer keys replaced"),
            }
            self.keys.replace(Some(keys));
        }
        Ok(fetched.fresh_for)
    }

    /// Returns the time when the current set must be dropped.
    fn stale_at(&self) -> Option<Instant> {
        (*self.keys.load()).as_ref()?;
        let last_success = self.progress.borrow().last_success?;
        last_success.checked_add(self.source.max_stale?)
    }

    fn drop_stale(&self) {
        tracing::error!(
            issuer = %self.issuer, url = %self.source.url,
            "no successful fetch of issuer keys for `max_stale`, rejecting all tokens of the issuer until a fetch succeeds"
        );
        self.keys.replace(None);
    }

    /// Waits for `pause`, or until a requested fetch is allowed. Drops a stale set meanwhile.
    async fn wait_until_due(&self, pause: Duration) {
        let due = Instant::now() + pause;
        loop {
            let stale_at = self.stale_at();
            tokio::select! {
                () = tokio::time::sleep_until(due) => return,
                () = sleep_until(stale_at) => self.drop_stale(),
                () = self.wake.notified() => {
                    let last = self.progress.borrow().last_started;
                    // A request from before the last fetch started is already served.
                    if last.is_none_or(|last| last.elapsed() >= self.source.refetch_interval) {
                        return;
                    }
                }
            }
        }
    }
}

/// Sleeps until `at`, or forever for `None`.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Returns the pause after a good fetch. It ends a little before the set is stale, so that no
/// request meets a stale set, and at a random time, so that processes do not fetch all at once.
fn pause_after_success(source: &UrlSource, fresh_for: Option<Duration>) -> Duration {
    let fresh_for = fresh_for.unwrap_or(DEFAULT_FRESHNESS);
    let max = fresh_for.clamp(source.refresh_min, source.refresh_max);
    max.mul_f64(0.8 + 0.1 * random_fraction())
}

fn pause_after_failure(failures: u32) -> Duration {
    let pause = MIN_RETRY_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let spread = 0.8 + 0.2 * random_fraction();
    pause.min(MAX_RETRY_PAUSE).mul_f64(spread)
}

/// Returns a number from 0 to 1 that is random enough to spread fetches.
fn random_fraction() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> UrlSource {
        UrlSource {
            // No server can listen on port 0.
            url: "http://127.0.0.1:0/jwks".to_owned(),
            ca_file: None,
            refresh_min: Duration::from_secs(60),
            refresh_max: Duration::from_secs(3_600),
            refetch_interval: Duration::from_secs(10),
            fetch_timeout: Duration::from_secs(5),
            key_wait: Duration::from_secs(2),
            max_stale: None,
        }
    }

    fn refresher(source: UrlSource) -> (KeyRefresher, FetchRequester) {
        let allowed = vec![Algorithm::ES256];
        KeyRefresher::new("i".into(), source, allowed, Arc::default(), Arc::default())
    }

    /// Records a successful fetch that is long enough ago to allow another.
    fn record_success(refresher: &KeyRefresher) {
        refresher.progress.send_modify(|progress| {
            *progress = FetchProgress {
                started: 1,
                finished: 1,
                last_started: None,
                has_failed: false,
                last_success: Some(Instant::now()),
            };
        });
    }

    #[test]
    fn set_is_refetched_before_it_is_stale() {
        for (fresh_for, stale) in [
            (None, 300.0),
            (Some(0), 60.0),
            (Some(600), 600.0),
            (Some(1 << 40), 3_600.0),
        ] {
            let fresh = fresh_for.map(Duration::from_secs);
            let pause = pause_after_success(&source(), fresh).as_secs_f64();
            assert!(
                pause < stale && pause >= 0.8 * stale,
                "{fresh_for:?}: {pause}"
            );
        }
    }

    #[test]
    fn retry_pauses_grow_to_a_limit() {
        assert!(pause_after_failure(1) <= MIN_RETRY_PAUSE);
        assert!(pause_after_failure(4) > MIN_RETRY_PAUSE);
        assert!(pause_after_failure(u32::MAX) <= MAX_RETRY_PAUSE);
    }

    #[tokio::test]
    async fn requests_share_one_fetch_per_interval() {
        let (refresher, requester) = refresher(source());
        let counters = Arc::clone(&refresher.counters);
        assert!(
            matches!(requester.without_request(), MissingKey::Unavailable),
            "nothing was fetched yet"
        );
        let waits: Vec<_> = (0..100).map(|_| requester.request_and_wait()).collect();
        let task = tokio::spawn(refresher.run());
        for missing in waits {
            match missing {
                MissingKey::Wait(wait) => wait.wait().await,
                MissingKey::Unknown | MissingKey::Unavailable => panic!("{missing:?}"),
            }
        }
        assert_eq!(counters.failed.value(), 1);
        for _ in 0..100 {
            let missing = requester.request_and_wait();
            assert!(matches!(missing, MissingKey::Unavailable));
        }
        task.abort();
    }

    #[tokio::test]
    async fn key_may_exist_until_fetch_finishes() {
        let (refresher, requester) = refresher(UrlSource {
            key_wait: Duration::from_millis(1),
            ..source()
        });
        record_success(&refresher);
        assert!(matches!(requester.without_request(), MissingKey::Unknown));
        let MissingKey::Wait(wait) = requester.request_and_wait() else {
            panic!("no fetch was requested")
        };
        // The wait times out before the fetch starts.
        wait.wait().await;
        let unavailable = || matches!(requester.without_request(), MissingKey::Unavailable);
        assert!(unavailable());
        let update = |change: fn(&mut FetchProgress)| refresher.progress.send_modify(change);
        update(|progress| progress.started = 2);
        assert!(unavailable());
        update(|progress| progress.finished = 2);
        assert!(matches!(requester.without_request(), MissingKey::Unknown));
    }

    #[tokio::test]
    async fn waiting_requests_are_bounded() {
        let key_wait = Duration::from_secs(3_600);
        let (refresher, requester) = refresher(UrlSource {
            key_wait,
            ..source()
        });
        record_success(&refresher);
        let mut waits: Vec<_> = (0..MAX_WAITERS)
            .map(|_| requester.request_and_wait())
            .collect();
        let is_wait = |missing: &MissingKey| matches!(missing, MissingKey::Wait(_));
        assert!(waits.iter().all(is_wait));
        assert!(!is_wait(&requester.request_and_wait()));
        waits.pop();
        let MissingKey::Wait(wait) = requester.request_and_wait() else {
            panic!("one permit is free")
        };
        assert_eq!(wait.timeout(), key_wait);
        // Without the limit the test would wait for an hour.
        wait.with_max_timeout(Duration::from_millis(1)).wait().await;
    }

    #[tokio::test]
    async fn stale_set_is_dropped() {
        let (refresher, requester) = refresher(UrlSource {
            max_stale: Some(Duration::from_millis(50)),
            ..source()
        });
        let keys = Arc::clone(&refresher.keys);
        let set = KeySet::from_jwks(br#"{"keys": []}"#, &[Algorithm::ES256]).unwrap();
        keys.replace(Some(set));
        record_success(&refresher);
        let version = keys.version();
        // The pause after a failed fetch is longer than `max_stale`.
        refresher
            .progress
            .send_modify(|progress| progress.has_failed = true);
        let pause = Duration::from_secs(3_600);
        let pausing = tokio::spawn(async move { refresher.wait_until_due(pause).await });
        while keys.load().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(keys.version(), version);
        assert!(matches!(
            requester.without_request(),
            MissingKey::Unavailable
        ));
        pausing.abort();
    }
}
