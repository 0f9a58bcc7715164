//! How long a connection lasts: until it is too old, or nobody has called on it for too long.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::api::LifetimeLimits;

/// Why a connection has lasted long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Age,
    Idle,
    UnreadAnswer,
}

/// Counts the calls of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// In the upper half those that there were, in the lower half those in flight, their answers
    /// included until they are written.
    calls: AtomicU64,
    /// The long answers that are not written, in the order in which they came, and since when.
    unread: Mutex<BTreeMap<u64, Instant>>,
    has_unread: Notify,
}

const ONE_BEGUN: u64 = 1 << 32;
const ONE_IN_FLIGHT: u64 = 1;

/// Held by a call in flight.
#[derive(Debug)]
pub(crate) struct InFlight(Calls);

/// Held by a long answer until it is written.
#[derive(Debug)]
pub(crate) struct UnreadAnswer {
    of: Calls,
    number: u64,
}

impl Counted {
    fn unread(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // Nothing in it depends on anything else.
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    pub(crate) fn begin(&self) -> InFlight {
        (self.0.calls).fetch_add(ONE_BEGUN + ONE_IN_FLIGHT, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Notes a long answer.
    pub(crate) fn begin_unread(&self) -> UnreadAnswer {
        let mut unread = self.0.unread();
        let number = unread.last_key_value().map_or(0, |(last, _)| last + 1);
        unread.insert(number, Instant::now());
        self.0.has_unread.notify_one();
        UnreadAnswer {
            of: self.clone(),
            number,
        }
    }

    /// Since when the oldest long answer has not been written.
    fn unread_since(&self) -> Option<Instant> {
        self.0.unread().first_key_value().map(|(_, since)| *since)
    }

    fn begun(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed) / ONE_BEGUN
    }

    fn in_flight(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed) % ONE_BEGUN
    }

    /// Returns when no call was in flight at two looks in a row. Between them, what was written
    /// last finds its way out.
    pub(crate) async fn over(&self) {
        const PAUSE: Duration = Duration::from_millis(250);
        let mut quiet = 0;
        while quiet < 2 {
            tokio::time::sleep(PAUSE).await;
            quiet = if self.in_flight() == 0 { quiet + 1 } else { 0 };
        }
    }
}

impl InFlight {
    /// The calls that it is one of.
    pub(crate) fn calls(&self) -> &Calls {
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
        self.of.0.unread().remove(&self.number);
    }
}

impl LifetimeLimits {
    /// Returns when a connection that begins now, and has these calls, has lasted long enough.
    pub(crate) async fn over(&self, calls: &Calls) -> Over {
        tokio::select! {
            over = self.old_or_idle(calls) => over,
            () = self.unread(calls) => Over::UnreadAnswer,
        }
    }

    /// Returns when a long answer has not been read for long enough.
    async fn unread(&self, calls: &Calls) {
        let Some(most) = self.unread else {
            return std::future::pending().await;
        };
        loop {
            match calls.unread_since() {
                Some(since) if since.elapsed() >= most => return,
                Some(since) => tokio::time::sleep_until(since + most).await,
                // Nearly always, and then there is no timer.
                None => calls.0.has_unread.notified().await,
            }
        }
    }

    async fn old_or_idle(&self, calls: &Calls) -> Over {
        let end = self.age.map(|age| Instant::now() + jittered(age));
        // No call notes when it was: it is enough to look, twice in the time.
        let pause = self.idle.map(|idle| idle / 2);
        let mut seen = calls.begun();
        let mut quiet = 0;
        loop {
            let look = pause.map(|pause| Instant::now() + pause);
            let Some(next) = [end, look].into_iter().flatten().min() else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next).await;
            if end == Some(next) {
                return Over::Age;
            }
            let begun = calls.begun();
            quiet = match begun == seen && calls.in_flight() == 0 {
                true => quiet + 1,
                false => 0,
            };
            if quiet == 2 {
                return Over::Idle;
            }
            seen = begun;
        }
    }
}

/// `duration`, give or take a tenth.
fn jittered(duration: Duration) -> Duration {
    // As random as it needs to be, and at hand.
    let random = RandomState::new().hash_one(()) % 1_000;
    duration.mul_f64(0.9 + random as f64 / 5_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for what happens within it to do so, on any machine.
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
    async fn a_connection_without_calls_is_over_when_it_was_idle_for_long_enough() {
        let begun = Instant::now();
        let calls = Calls::default();
        let over = limits(Some(LONG), Some(SHORT)).over(&calls).await;
        assert_eq!(over, Over::Idle);
        assert!(begun.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn calls_and_streams_keep_a_connection() {
        let calls = Calls::default();
        let limits = limits(None, Some(SHORT));
        let calling = async {
            let begun = Instant::now();
            // Each is over at once, and none is under way when it is looked.
            while begun.elapsed() < 5 * SHORT {
                drop(calls.begin());
                tokio::task::yield_now().await;
            }
            let _stream = calls.begin();
            tokio::time::sleep(5 * SHORT).await;
        };
        tokio::select! {
            () = calling => {}
            over = limits.over(&calls) => panic!("{over:?}"),
        }
    }

    #[tokio::test]
    async fn a_connection_is_over_at_its_age_whatever_it_does() {
        let calls = Calls::default();
        let _stream = calls.begin();
        let begun = Instant::now();
        let over = limits(Some(SHORT), Some(LONG)).over(&calls).await;
        assert_eq!(over, Over::Age);
        assert!(begun.elapsed() >= SHORT.mul_f64(0.9));
    }

    #[tokio::test]
    async fn without_limits_it_lasts() {
        let limits = limits(None, None);
        let calls = Calls::default();
        let over = tokio::time::timeout(2 * SHORT, limits.over(&calls));
        assert!(over.await.is_err());
    }

    #[tokio::test]
    async fn a_connection_whose_caller_does_not_read_is_over() {
        let calls = Calls::default();
        let limits = limits(None, None);
        let reading = async {
            // Each is read in its time, however many there are.
            let mut last = calls.begin_unread();
            for _ in 0..10 {
                tokio::time::sleep(SHORT / 4).await;
                let next = calls.begin_unread();
                drop(std::mem::replace(&mut last, next));
            }
        };
        tokio::select! {
            () = reading => {}
            over = limits.over(&calls) => panic!("{over:?}"),
        }
        assert!(calls.unread_since().is_none());
        let _unread = calls.begin_unread();
        assert_eq!(limits.over(&calls).await, Over::UnreadAnswer);
    }

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
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
