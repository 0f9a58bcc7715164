//! Monotonic time as a number, so that threads can share it without a lock.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point in time, in nanoseconds since the first use in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MonotonicNanos(u64);

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl MonotonicNanos {
    pub(crate) fn now() -> Self {
        Self::from(Instant::now())
    }

    /// Returns the time from `earlier` to `self`, or zero if `earlier` is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Returns the point this many milliseconds after the origin.
    #[cfg(test)]
    pub(super) fn from_millis(millis: u64) -> Self {
        Self(1 + millis * 1_000_000)
    }
}

impl From<Instant> for MonotonicNanos {
    fn from(instant: Instant) -> Self {
        // Never 0, which is `None` in `SharedNanos`. 64 bits last for centuries.
        let nanos = instant.saturating_duration_since(*ORIGIN).as_nanos();
        Self(u64::try_from(nanos).unwrap_or(u64::MAX).max(1))
    }
}

/// An optional [`MonotonicNanos`] that threads share.
#[derive(Debug, Default)]
pub(crate) struct SharedNanos(AtomicU64);

impl SharedNanos {
    pub(crate) fn load(&self) -> Option<MonotonicNanos> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(MonotonicNanos(nanos)),
        }
    }

    pub(crate) fn store(&self, time: Option<MonotonicNanos>) {
        self.0
            .store(time.map_or(0, |time| time.0), Ordering::Relaxed);
    }

    /// Returns the time and sets it to `None`.
    pub(crate) fn take(&self) -> Option<MonotonicNanos> {
        let time = self.load();
        if time.is_some() {
            self.store(None);
        }
        time
    }

    /// Returns whether there is a time, at most `age` before `now`.
    pub(super) fn is_within(&self, age: Duration, now: MonotonicNanos) -> bool {
        self.load().is_some_and(|time| now.since(time) <= age)
    }

    /// Sets the time to `now` if it is older than `age`, and returns whether it did. All threads
    /// share the cache line, so a write must be rare.
    pub(super) fn refresh(&self, age: Duration, now: MonotonicNanos) -> bool {
        let is_stale = !self.is_within(age, now);
        if is_stale {
            self.store(Some(now));
        }
        is_stale
    }
}

/// Fixes the origin, so that times before the first [`MonotonicNanos::now`] do not become equal.
pub(super) fn fix_origin() {
    LazyLock::force(&ORIGIN);
}
