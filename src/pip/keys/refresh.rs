//! When a set of keys is fetched: before it goes stale, after a failure, and when a token names a
//! key that is not in it. One task per URL does all of it, so however many ask, there is one fetch
//! at a time.
//!
//! The last good set stays in force whatever happens here, unless the operator said for how long.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::fetch::{FetchError, fetch};
use super::{BadKeys, KeySet};
use crate::pip::figures::KeyCounters;
use crate::pip::issuers::UrlSource;
use crate::pip::slot::Writer;

/// The first pause after a failed fetch; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The most requests that wait for one URL at a time. Whoever makes up keys could otherwise have as
/// many wait as there is room for, and take the room from others, while the server is slow.
const MOST_WAITING: usize = 1_024;

/// How far the fetches of one URL have come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    begun: u64,
    ended: u64,
    last_begun: Option<Instant>,
    /// Whether the last one that ended failed.
    failed: bool,
    last_good: Option<Instant>,
}

/// The side of those who need keys.
#[derive(Clone, Debug)]
pub(in crate::pip) struct Fetches {
    progress: watch::Receiver<Progress>,
    wanted: Arc<Notify>,
    /// The number of the last fetch that was asked for.
    asked: Arc<AtomicU64>,
    interval: Duration,
    wait: Duration,
    room: Arc<Semaphore>,
}

/// What can be done for a token whose key is not there.
#[derive(Debug)]
pub(in crate::pip) enum Hope {
    /// A fetch is on its way.
    Wait(KeyWait),
    /// The last fetch was a good one, and too short a time ago for another.
    None,
    /// The last fetch failed, or another is not over yet, or too many wait for it: the key may exist.
    Failed,
}

/// A fetch that may bring the key, and how long to wait for it.
#[derive(Debug)]
pub struct KeyWait {
    progress: watch::Receiver<Progress>,
    ended: u64,
    most: Duration,
    _place: OwnedSemaphorePermit,
}

impl KeyWait {
    /// The longest that it takes.
    #[must_use]
    pub fn most(&self) -> Duration {
        self.most
    }

    /// The same, for no longer than this.
    #[must_use]
    pub fn no_longer_than(mut self, most: Duration) -> Self {
        self.most = self.most.min(most);
        self
    }

    /// Waits until the fetch has ended, and no longer than the issuer's `key_wait`.
    ///
    /// Cancel-safe; the fetch goes on without those who waited.
    pub async fn wait(mut self) {
        let ended = self.ended;
        let waiting = self.progress.wait_for(|progress| progress.ended >= ended);
        // Late or never: whoever waited looks for the key again and sees.
        let _ = tokio::time::timeout(self.most, waiting).await;
    }
}

impl Fetches {
    /// Has the set fetched again, unless that was done a short while ago; the number of the fetch
    /// that is on its way.
    pub(in crate::pip) fn ask(&self) -> Option<u64> {
        let progress = *self.progress.borrow();
        if progress.begun > progress.ended {
            return Some(progress.begun);
        }
        match progress.last_begun {
            Some(begun) if begun.elapsed() < self.interval => None,
            Some(_) | None => {
                let number = progress.begun + 1;
                self.asked.fetch_max(number, Ordering::Relaxed);
                self.wanted.notify_one();
                Some(number)
            }
        }
    }

    /// Has the set fetched again, unless that was done a short while ago, for one who waits for it.
    pub(in crate::pip) fn ask_and_wait(&self) -> Hope {
        let Some(ended) = self.ask() else {
            return self.without_asking();
        };
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(place) => Hope::Wait(KeyWait {
                progress: self.progress.clone(),
                ended,
                most: self.wait,
                _place: place,
            }),
            Err(_) => Hope::Failed,
        }
    }

    /// What is known without another fetch.
    pub(in crate::pip) fn without_asking(&self) -> Hope {
        let progress = *self.progress.borrow();
        let begun = progress.begun.max(self.asked.load(Ordering::Relaxed));
        match progress.failed || progress.ended == 0 || begun > progress.ended {
            true => Hope::Failed,
            false => Hope::None,
        }
    }

    /// Whether a fetch was asked for that has not begun.
    #[cfg(test)]
    pub(in crate::pip) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > self.progress.borrow().begun
    }

    /// How long ago the last good fetch was.
    pub(in crate::pip) fn age(&self) -> Option<Duration> {
        self.progress.borrow().last_good.map(|good| good.elapsed())
    }
}

/// The side that fetches.
pub(in crate::pip) struct Refresher {
    issuer: Arc<str>,
    source: UrlSource,
    allowed: Vec<Algorithm>,
    keys: Writer<KeySet>,
    counters: Arc<KeyCounters>,
    progress: watch::Sender<Progress>,
    wanted: Arc<Notify>,
}

/// Why a fetch brought no keys.
#[derive(Debug, thiserror::Error)]
enum NoKeys {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("what the server sent: {0}")]
    Bad(#[from] BadKeys),
}

/// Both sides, with nothing fetched yet.
pub(in crate::pip) fn refresher(
    issuer: Arc<str>,
    source: UrlSource,
    allowed: Vec<Algorithm>,
    keys: Writer<KeySet>,
    counters: Arc<KeyCounters>,
) -> (Refresher, Fetches) {
    let (sender, receiver) = watch::channel(Progress::default());
    let wanted = Arc::new(Notify::new());
    let fetches = Fetches {
        progress: receiver,
        wanted: Arc::clone(&wanted),
        asked: Arc::default(),
        interval: source.refetch_interval,
        wait: source.key_wait,
        room: Arc::new(Semaphore::new(MOST_WAITING)),
    };
    let refresher = Refresher {
        issuer,
        source,
        allowed,
        keys,
        counters,
        progress: sender,
        wanted,
    };
    (refresher, fetches)
}

impl Refresher {
    /// Fetches for as long as it is polled.
    pub(in crate::pip) async fn run(self) {
        let mut failures = 0;
        loop {
            let pause = match self.fetch_once().await {
                Ok(fresh_for) => {
                    failures = 0;
                    fresh_for
                }
                Err(error) => {
                    tracing::warn!(
                        issuer = %self.issuer, url = %self.source.url, error = %error,
                        "cannot fetch the issuer's keys; the last good ones, if there are any, stay in force"
                    );
                    failures += 1;
                    pause_after(failures)
                }
            };
            self.rest(pause).await;
        }
    }

    async fn fetch_once(&self) -> Result<Duration, NoKeys> {
        self.progress.send_modify(|progress| {
            progress.begun += 1;
            progress.last_begun = Some(Instant::now());
        });
        let outcome = self.fetch_and_take().await;
        match &outcome {
            Ok(_) => self.counters.taken.add_one(),
            Err(_) => self.counters.failed.add_one(),
        }
        self.progress.send_modify(|progress| {
            progress.ended = progress.begun;
            progress.failed = outcome.is_err();
            if outcome.is_ok() {
                progress.last_good = Some(Instant::now());
            }
        });
        outcome
    }

    async fn fetch_and_take(&self) -> Result<Duration, NoKeys> {
        let fetched = fetch(&self.source).await?;
        let keys = KeySet::from_jwks(&fetched.text, &self.allowed)?;
        let is_new = self
            .keys
            .value()
            .is_none_or(|held| !held.is_of_the_text_of(&keys));
        // An equal set keeps its number, and so what was verified under it.
        if is_new {
            match keys.len() {
                0 => tracing::warn!(
                    issuer = %self.issuer, url = %self.source.url,
                    "the issuer has no key that can be used any more; none of its tokens is believed"
                ),
                keys => {
                    tracing::info!(issuer = %self.issuer, keys, "the issuer's keys were fetched")
                }
            }
            self.keys.put(keys);
        }
        Ok(refresh_after(&self.source, fetched.fresh_for))
    }

    /// When the set that is held is too old to be believed.
    fn stale_at(&self) -> Option<Instant> {
        self.keys.value()?;
        let good = self.progress.borrow().last_good?;
        good.checked_add(self.source.max_stale?)
    }

    fn drop_stale(&self) {
        tracing::error!(
            issuer = %self.issuer, url = %self.source.url,
            "the issuer's keys could not be fetched for `max_stale`; none of its tokens is believed until they are"
        );
        self.keys.clear();
    }

    /// Waits until it is time for a fetch, or a token names an unknown key and the last fetch is
    /// long enough ago.
    async fn rest(&self, pause: Duration) {
        let due = Instant::now() + pause;
        loop {
            let stale = self.stale_at();
            tokio::select! {
                () = tokio::time::sleep_until(due) => return,
                () = sleep_until(stale) => self.drop_stale(),
                () = self.wanted.notified() => {
                    let last = self.progress.borrow().last_begun;
                    // One that was asked for before the last fetch began has had its fetch.
                    if last.is_none_or(|last| last.elapsed() >= self.source.refetch_interval) {
                        return;
                    }
                }
            }
        }
    }
}

/// For ever, where there is no such time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How long after a good fetch comes the next: a little before the set is stale, so that no request
/// meets a stale one, and not at the same moment as in every other process.
fn refresh_after(source: &UrlSource, fresh_for: Option<Duration>) -> Duration {
    let fresh_for = fresh_for.unwrap_or(Duration::from_secs(300));
    let most = fresh_for.clamp(source.refresh_min, source.refresh_max);
    most.mul_f64(0.8 + 0.1 * random_share())
}

fn pause_after(failures: u32) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    pause.min(LONGEST_PAUSE).mul_f64(0.8 + 0.2 * random_share())
}

/// From 0 to 1; spreads fetches, and needs no more than that.
fn random_share() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pip::slot;

    fn source() -> UrlSource {
        UrlSource {
            // Nothing listens there, and nothing can.
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

    #[test]
    fn a_set_is_fetched_again_before_it_is_stale_and_within_the_bounds() {
        let after = |fresh_for: Option<u64>| {
            refresh_after(&source(), fresh_for.map(Duration::from_secs)).as_secs_f64()
        };
        for (fresh_for, stale) in [
            (None, 300.0),
            (Some(0), 60.0),
            (Some(600), 600.0),
            (Some(1 << 40), 3_600.0),
        ] {
            let after = after(fresh_for);
            assert!(
                after < stale && after >= 0.8 * stale,
                "{fresh_for:?}: {after}"
            );
        }
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        assert!(pause_after(1) <= FIRST_PAUSE);
        assert!(pause_after(4) > FIRST_PAUSE);
        assert!(pause_after(u32::MAX) <= LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn however_many_ask_there_is_one_fetch_and_no_other_for_a_while() {
        let (writer, _reader) = slot::slot(None);
        let counters = Arc::new(KeyCounters::default());
        let (refresher, fetches) = refresher(
            "i".into(),
            source(),
            vec![Algorithm::ES256],
            writer,
            Arc::clone(&counters),
        );
        assert!(
            matches!(fetches.without_asking(), Hope::Failed),
            "nothing was fetched yet"
        );
        let waits: Vec<_> = (0..100).map(|_| fetches.ask_and_wait()).collect();
        let task = tokio::spawn(refresher.run());
        for hope in waits {
            match hope {
                Hope::Wait(wait) => wait.wait().await,
                Hope::None | Hope::Failed => panic!("{hope:?}"),
            }
        }
        assert_eq!(counters.failed.value(), 1);
        for _ in 0..100 {
            assert!(matches!(fetches.ask_and_wait(), Hope::Failed));
        }
        task.abort();
    }

    fn idle(source: UrlSource) -> (Refresher, Fetches, slot::Reader<KeySet>) {
        let (writer, reader) = slot::slot(None);
        let allowed = vec![Algorithm::ES256];
        let (refresher, fetches) = refresher("i".into(), source, allowed, writer, Arc::default());
        (refresher, fetches, reader)
    }

    /// A set was fetched with success, so long ago that another fetch may be asked for.
    fn was_good(refresher: &Refresher) {
        refresher.progress.send_modify(|progress| {
            *progress = Progress {
                begun: 1,
                ended: 1,
                last_begun: None,
                failed: false,
                last_good: Some(Instant::now()),
            };
        });
    }

    #[tokio::test]
    async fn while_a_fetch_is_not_over_a_key_that_is_missing_may_exist() {
        let (refresher, fetches, _keys) = idle(UrlSource {
            key_wait: Duration::from_millis(1),
            ..source()
        });
        was_good(&refresher);
        assert!(matches!(fetches.without_asking(), Hope::None));
        let Hope::Wait(wait) = fetches.ask_and_wait() else {
            panic!("nothing is on its way")
        };
        // Asked for, and neither begun nor over when patience ends.
        wait.wait().await;
        assert!(matches!(fetches.without_asking(), Hope::Failed));
        refresher
            .progress
            .send_modify(|progress| progress.begun = 2);
        assert!(matches!(fetches.without_asking(), Hope::Failed));
        refresher
            .progress
            .send_modify(|progress| progress.ended = 2);
        assert!(matches!(fetches.without_asking(), Hope::None));
    }

    #[tokio::test]
    async fn no_more_wait_than_there_is_room_for() {
        let key_wait = Duration::from_secs(3_600);
        let (refresher, fetches, _keys) = idle(UrlSource {
            key_wait,
            ..source()
        });
        was_good(&refresher);
        let mut waits: Vec<_> = (0..MOST_WAITING).map(|_| fetches.ask_and_wait()).collect();
        assert!(waits.iter().all(|hope| matches!(hope, Hope::Wait(_))));
        assert!(matches!(fetches.ask_and_wait(), Hope::Failed));
        waits.pop();
        let Hope::Wait(wait) = fetches.ask_and_wait() else {
            panic!("a place is free")
        };
        assert_eq!(wait.most(), key_wait);
        // It would not be over before the test's own end.
        wait.no_longer_than(Duration::from_millis(1)).wait().await;
    }

    #[tokio::test]
    async fn a_set_that_cannot_be_fetched_is_dropped_when_it_is_too_old() {
        let max_stale = Duration::from_millis(50);
        let (refresher, fetches, keys) = idle(UrlSource {
            max_stale: Some(max_stale),
            ..source()
        });
        let set = KeySet::from_jwks(br#"{"keys": []}"#, &[Algorithm::ES256]).unwrap();
        refresher.keys.put(set);
        was_good(&refresher);
        let (before, held) = keys.load();
        assert!(held.is_some());
        // A pause after a failure, longer than the set has to live.
        refresher
            .progress
            .send_modify(|progress| progress.failed = true);
        let pause = Duration::from_secs(3_600);
        let resting = tokio::spawn(async move { refresher.rest(pause).await });
        while keys.load().1.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (after, held) = keys.load();
        assert!(held.is_none() && after != before);
        assert!(matches!(fetches.without_asking(), Hope::Failed));
        resting.abort();
    }
}
