//! Whether a call is begun or shed: by how long calls wait for a thread, and how many there are.
//!
//! Calls run where their connection does, so there is no one queue of calls whose length would tell.
//! What tells is time: from when a connection had something to read until the call that was read
//! runs. When calls that have waited longer than a bound do not end for a while, the service is given
//! more than it can do; then those are shed, and what is begun has not waited. A burst that is worked
//! off is no such thing. (The rule is CoDel's, for requests. But there the first that has not waited
//! ends it, which holds of a queue; here a call may be begun before others that have waited longer.)
//!
//! Nothing here knows what a call is, and the clock is handed in.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::config::api::AdmissionLimits;

/// How long calls must have waited too long before any is shed, and how long shedding goes on after
/// the last one that had to be.
const INTERVAL: Duration = Duration::from_millis(100);

/// When none has waited too long for this long, they have come to an end.
const GAP: Duration = Duration::from_millis(20);

/// When a shed call is best sent again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);

/// A point in time, in nanoseconds since the process first asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MonotonicNanos(u64);

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl MonotonicNanos {
    pub(crate) fn now() -> Self {
        Self::from(Instant::now())
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Instant> for MonotonicNanos {
    fn from(instant: Instant) -> Self {
        // Never 0, which `SharedNanos` takes for none. 64 bits last for centuries.
        let nanos = instant.saturating_duration_since(*BEGIN).as_nanos();
        Self(u64::try_from(nanos).unwrap_or(u64::MAX).max(1))
    }
}

/// A [`MonotonicNanos`] that others see, or none.
#[derive(Debug, Default)]
pub(crate) struct SharedNanos(AtomicU64);

impl SharedNanos {
    pub(crate) fn load(&self) -> Option<MonotonicNanos> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(MonotonicNanos(nanos)),
        }
    }

    pub(crate) fn store(&self, moment: Option<MonotonicNanos>) {
        let nanos = moment.map_or(0, |moment| moment.0);
        self.0.store(nanos, Ordering::Relaxed);
    }

    /// Whether it is there, and no longer ago than `time`.
    fn is_within(&self, time: Duration, now: MonotonicNanos) -> bool {
        self.load().is_some_and(|moment| now.since(moment) <= time)
    }

    /// What it was; it is none from here on.
    pub(crate) fn take(&self) -> Option<MonotonicNanos> {
        let moment = self.load();
        if moment.is_some() {
            self.store(None);
        }
        moment
    }
}

/// Lets calls begin. All threads share one, and write to it only when something is amiss.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: AdmissionLimits,
    /// Since when there have been calls that waited too long, without an end.
    late_since: SharedNanos,
    /// The last that waited too long, to within a part of [`GAP`].
    late_last: SharedNanos,
    /// The last that was shed, to within the same.
    shed_last: SharedNanos,
    waiting: AtomicUsize,
    /// Those of them that last as long as their callers like.
    streams: AtomicUsize,
}

/// Why a call is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overload {
    /// It has waited too long, and others do too.
    QueueDelay,
    /// There are too many.
    TooManyCalls,
}

/// A slot among the calls that are not answered at once, kept until dropped.
#[derive(Debug)]
pub(crate) struct CallSlot {
    admission: Arc<Admission>,
    is_stream: bool,
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.admission.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.is_stream {
            self.admission.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: AdmissionLimits) -> Arc<Self> {
        LazyLock::force(&BEGIN);
        Arc::new(Self {
            limits,
            late_since: SharedNanos::default(),
            late_last: SharedNanos::default(),
            shed_last: SharedNanos::default(),
            waiting: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
        })
    }

    /// Whether a call may begin `now` that could have been read since `arrived`.
    ///
    /// # Errors
    ///
    /// [`Overload::QueueDelay`].
    pub(crate) fn begin(
        &self,
        arrived: MonotonicNanos,
        now: MonotonicNanos,
    ) -> Result<(), Overload> {
        let Some(delay) = self.limits.delay else {
            return Ok(());
        };
        if now.since(arrived) <= delay {
            return Ok(());
        }
        let since = match self.late_since.load() {
            Some(since) if self.late_last.is_within(GAP, now) => since,
            Some(_) | None => {
                self.late_since.store(Some(now));
                now
            }
        };
        refresh(&self.late_last, now);
        if now.since(since) > INTERVAL || self.is_shedding(now) {
            refresh(&self.shed_last, now);
            return Err(Overload::QueueDelay);
        }
        Ok(())
    }

    /// Whether any had to be shed lately.
    pub(crate) fn is_shedding(&self, now: MonotonicNanos) -> bool {
        self.shed_last.is_within(INTERVAL, now)
    }

    /// A slot for a call that is not answered at once.
    ///
    /// # Errors
    ///
    /// [`Overload::TooManyCalls`].
    pub(crate) fn slot(self: &Arc<Self>) -> Result<CallSlot, Overload> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.calls {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Overload::TooManyCalls);
        }
        Ok(CallSlot {
            admission: Arc::clone(self),
            is_stream: false,
        })
    }

    /// A slot for a call that lasts as long as its caller likes. Such may have half of all slots, so
    /// that callers who keep them leave some to those who come and go.
    ///
    /// # Errors
    ///
    /// [`Overload::TooManyCalls`].
    pub(crate) fn stream_slot(self: &Arc<Self>) -> Result<CallSlot, Overload> {
        let mut slot = self.slot()?;
        let most = self.limits.calls.div_ceil(2);
        if self.streams.fetch_add(1, Ordering::Relaxed) >= most {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(Overload::TooManyCalls);
        }
        slot.is_stream = true;
        Ok(slot)
    }
}

/// Sets `moment` to `now` if it is so old that it matters: all threads would write here.
fn refresh(moment: &SharedNanos, now: MonotonicNanos) {
    if moment
        .load()
        .is_none_or(|moment| now.since(moment) > GAP / 4)
    {
        moment.store(Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: u64 = 10;

    fn admission() -> Arc<Admission> {
        Admission::new(AdmissionLimits {
            delay: Some(Duration::from_millis(DELAY)),
            calls: 2,
        })
    }

    /// Whether a call begins at this millisecond after it waited for so many.
    fn begins(admission: &Admission, at: u64, waited: u64) -> bool {
        let moment = |ms: u64| MonotonicNanos(1 + ms * 1_000_000);
        admission.begin(moment(at - waited), moment(at)).is_ok()
    }

    #[test]
    fn a_burst_that_is_worked_off_is_not_shed() {
        let admission = admission();
        for at in 1_000..1_090 {
            assert!(begins(&admission, at, at - 1_000));
        }
        assert!(begins(&admission, 1_091, 1));
        for at in 1_120..1_210 {
            assert!(begins(&admission, at, at - 1_115));
        }
    }

    #[test]
    fn calls_that_wait_are_shed_when_all_have_waited_for_a_while() {
        let admission = admission();
        let mut shed_first = None;
        for at in 1_000..1_300 {
            if !begins(&admission, at, 50) {
                shed_first.get_or_insert(at);
            } else {
                assert_eq!(shed_first, None, "from then on all are");
            }
        }
        assert_eq!(shed_first, Some(1_101));
        // What has not waited is begun at any time, and ends nothing by itself: it may have been
        // begun before others.
        assert!(begins(&admission, 1_301, DELAY));
        assert!(!begins(&admission, 1_302, DELAY + 1));
        // Once none had to be shed for a while, it is over.
        for at in 1_303..1_420 {
            assert!(begins(&admission, at, 1));
        }
        assert!(begins(&admission, 1_421, 50));
    }

    #[test]
    fn calls_that_are_begun_before_others_do_not_hide_those_that_wait() {
        let admission = admission();
        for at in 1_000..1_300 {
            assert!(begins(&admission, at, 0));
            let has_begun = begins(&admission, at, 50);
            assert_eq!(has_begun, at <= 1_100, "at {at}");
        }
    }

    #[test]
    fn few_calls_that_are_late_now_and_then_are_no_overload() {
        let admission = admission();
        for n in 1..100 {
            assert!(begins(&admission, n * 1_000, 500));
        }
    }

    #[test]
    fn without_a_bound_nothing_is_shed() {
        let admission = Admission::new(AdmissionLimits {
            delay: None,
            calls: 1,
        });
        for at in 10_000..11_000 {
            assert!(begins(&admission, at, 9_000));
        }
    }

    #[test]
    fn streams_leave_places_to_other_calls() {
        let admission = Admission::new(AdmissionLimits {
            delay: None,
            calls: 3,
        });
        let streams = [(); 2].map(|()| admission.stream_slot().unwrap());
        assert_eq!(admission.stream_slot().unwrap_err(), Overload::TooManyCalls);
        let other = admission.slot().unwrap();
        drop(streams);
        let _streams = [(); 2].map(|()| admission.stream_slot().unwrap());
        assert_eq!(admission.slot().unwrap_err(), Overload::TooManyCalls);
        drop(other);
        assert!(admission.slot().is_ok());
    }

    #[test]
    fn places_are_given_back() {
        let admission = admission();
        let slots = [admission.slot().unwrap(), admission.slot().unwrap()];
        assert_eq!(admission.slot().unwrap_err(), Overload::TooManyCalls);
        drop(slots);
        assert!(admission.slot().is_ok());
    }
}
