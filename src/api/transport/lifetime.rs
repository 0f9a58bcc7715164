//! The lifetime of a connection: it is closed by age, by idleness or for an unread answer.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::api::LifetimeLimits;

/// The limit that a connection has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Age,
    Idle,
    UnreadAnswer,
}

/// Counts the calls and the unread answers of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallTracker(Arc<Tracked>);

#[derive(Debug, Default)]
struct Tracked {
    /// The upper half counts all calls. The lower half counts those in flight, until their answer
    /// is written.
    calls: AtomicU64,
    /// The creation time of each large answer that is not written yet, by number.
    unread: Mutex<BTreeMap<u64, Instant>>,
    has_unread: Notify,
}

const ONE_CALL: u64 = 1 << 32;
const ONE_IN_FLIGHT: u64 = 1;

/// A guard that counts one call as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(CallTracker);

/// A guard that counts one large answer as unread until it is dropped.
#[derive(Debug)]
pub(crate) struct UnreadAnswer {
    tracker: CallTracker,
    number: u64,
}

impl Tracked {
    fn unread(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // A panic elsewhere cannot break it: its entries are independent.
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallTracker {
    pub(crate) fn begin(&self) -> InFlight {
        (self.0.calls).fetch_add(ONE_CALL + ONE_IN_FLIGHT, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Records a large answer that has to be read by the caller.
    pub(crate) fn begin_unread(&self) -> UnreadAnswer {
        let mut unread = self.0.unread();
        let number = unread.last_key_value().map_or(0, |(last, _)| last + 1);
        unread.insert(number, Instant::now());
        self.0.has_unread.notify_one();
        UnreadAnswer {
            tracker: self.clone(),
            number,
        }
    }

    /// Returns the creation time of the oldest unread answer.
    fn oldest_unread(&self) -> Option<Instant> {
        self.0.unread().first_key_value().map(|(_, since)| *since)
    }

    /// Returns the number of all calls so far.
    fn total(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed) / ONE_CALL
    }

    fn in_flight(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed) % ONE_CALL
    }

    /// Waits until two checks in a row find no call in flight. The time between them lets the last
    /// answer be written.
    pub(crate) async fn idle(&self) {
        const CHECK_INTERVAL: Duration = Duration::from_millis(250);
        let mut idle_checks = 0;
        while idle_checks < 2 {
            tokio::time::sleep(CHECK_INTERVAL).await;
            idle_checks = if self.in_flight() == 0 {
                idle_checks + 1
            } else {
                0
            };
        }
    }
}

impl InFlight {
    pub(crate) fn calls(&self) -> &CallTracker {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let calls = &self.0.0.calls;
        calls.fetch_sub(ONE_IN_FLIGHT, Ordering::Relaxed);
    }
}

impl Drop for UnreadAnswer {
    fn drop(&mut self) {
        self.tracker.0.unread().remove(&self.number);
    }
}

impl LifetimeLimits {
    /// Waits until a connection that starts now, with the calls of `tracker`, reaches a limit.
    pub(crate) async fn expiry(&self, tracker: &CallTracker) -> Expiry {
        tokio::select! {
            expiry = self.age_or_idle(tracker) => expiry,
            () = self.unread_answer(tracker) => Expiry::UnreadAnswer,
        }
    }

    /// Waits until a large answer has been unread for too long.
    async fn unread_answer(&self, tracker: &CallTracker) {
        let Some(max_unread) = self.unread else {
            return std::future::pending().await;
        };
        loop {
            match tracker.oldest_unread() {
                Some(since) if since.elapsed() >= max_unread => return,
                Some(since) => tokio::time::sleep_until(since + max_unread).await,
                // The usual case. It needs no timer.
                None => tracker.0.has_unread.notified().await,
            }
        }
    }

    /// Waits until the connection is too old, or has had no call for too long.
    async fn age_or_idle(&self, tracker: &CallTracker) -> Expiry {
        let end = self.age.map(|age| Instant::now() + jittered(age));
        // Calls do not record their time, which costs them nothing. Two checks per idle time are
        // enough.
        let check_interval = self.idle.map(|idle| idle / 2);
        let mut last_total = tracker.total();
        let mut idle_checks = 0;
        loop {
            let next_check = check_interval.map(|interval| Instant::now() + interval);
            let Some(next) = [end, next_check].into_iter().flatten().min() else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next).await;
            if end == Some(next) {
                return Expiry::Age;
            }
            let total = tracker.total();
            idle_checks = match total == last_total && tracker.in_flight() == 0 {
                true => idle_checks + 1,
                false => 0,
            };
            if idle_checks == 2 {
                return Expiry::Idle;
            }
            last_total = total;
        }
    }
}

/// Returns `duration` plus or minus a random part of up to a tenth.
fn jittered(duration: Duration) -> Duration {
    // The standard library's hash seed is random enough for this.
    let random = RandomState::new().hash_one(()) % 1_000;
    duration.mul_f64(0.9 + random as f64 / 5_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far longer than any test runs.
    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(100);

    fn limits(age: Option<Duration>, idle: Option<Duration>) -> LifetimeLimits {
        LifetimeLimits {
            age,
            age_grace: LONG,
            idle,
            unread: Some(SHORT),
        }
    }

    #[tokio::test]
    async fn connection_without_calls_expires_after_idle_time() {
        let started = Instant::now();
        let tracker = CallTracker::default();
        let expiry = limits(Some(LONG), Some(SHORT)).expiry(&tracker).await;
        assert_eq!(expiry, Expiry::Idle);
        assert!(started.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn calls_and_streams_keep_connection_open() {
        let tracker = CallTracker::default();
        let limits = limits(None, Some(SHORT));
        let calling = async {
            let started = Instant::now();
            // Each call ends at once, so no check finds one in flight.
            while started.elapsed() < 5 * SHORT {
                drop(tracker.begin());
                tokio::task::yield_now().await;
            }
            let _stream = tracker.begin();
            tokio::time::sleep(5 * SHORT).await;
        };
        tokio::select! {
            () = calling => {}
            expiry = limits.expiry(&tracker) => panic!("{expiry:?}"),
        }
    }

    #[tokio::test]
    async fn connection_expires_at_its_age_despite_calls() {
        let tracker = CallTracker::default();
        let _stream = tracker.begin();
        let started = Instant::now();
        let expiry = limits(Some(SHORT), Some(LONG)).expiry(&tracker).await;
        assert_eq!(expiry, Expiry::Age);
        assert!(started.elapsed() >= SHORT.mul_f64(0.9));
    }

    #[tokio::test]
    async fn connection_without_limits_does_not_expire() {
        let limits = limits(None, None);
        let tracker = CallTracker::default();
        let expiry = tokio::time::timeout(2 * SHORT, limits.expiry(&tracker));
        assert!(expiry.await.is_err());
    }

    #[tokio::test]
    async fn unread_answer_expires_its_connection() {
        let tracker = CallTracker::default();
        let limits = limits(None, None);
        let reading = async {
            // Each answer is read in time.
            let mut last = tracker.begin_unread();
            for _ in 0..10 {
                tokio::time::sleep(SHORT / 4).await;
                let next = tracker.begin_unread();
                drop(std::mem::replace(&mut last, next));
            }
        };
        tokio::select! {
            () = reading => {}
            expiry = limits.expiry(&tracker) => panic!("{expiry:?}"),
        }
        assert!(tracker.oldest_unread().is_none());
        let _unread = tracker.begin_unread();
        assert_eq!(limits.expiry(&tracker).await, Expiry::UnreadAnswer);
    }

    #[test]
    fn jitter_is_at_most_a_tenth() {
        let ages: Vec<_> = (0..100).map(|_| jittered(LONG)).collect();
        for age in &ages {
            assert!(
                *age >= LONG.mul_f64(0.9) && *age <= LONG.mul_f64(1.1),
                "{age:?}"
            );
        }
        assert!(ages.windows(2).any(|two| two[0] != two[1]));
    }
}
