//! Admits calls or sheds them, by their queueing delay and by their number.
//!
//! Calls run on the thread of their connection, so there is no common queue whose length could be
//! measured. Time is measured instead: from when the call could have been read until it runs. If
//! calls have exceeded the target delay for `INTERVAL` without a pause, there is more work than
//! the threads can do. From then on, calls that exceed the target are shed, so that every call that
//! starts has waited less. A short burst is not shed.
//!
//! The rule is CoDel's, applied to requests. CoDel stops at the first packet below the target, since
//! it looks at one queue. Here a call may start before others that have waited longer, so shedding
//! stops only when no call exceeds the target any more.
//!
//! Admission does not know what a call is, and is given the time.

mod monotonic;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub(crate) use self::monotonic::{MonotonicNanos, SharedNanos};
use super::rejection::Rejection;
use crate::config::api::AdmissionLimits;
use crate::counters::Counters;
use crate::counters::page::{Export, Page, metrics};

metrics! {
    QUEUE_DELAY = Gauge "cedar_pdp_queue_delay_seconds" []
        "Queueing delay of the last call that waited 1 ms; 0 if none did for 100 ms";
}

/// Time for which calls must exceed the target delay before any is shed, and for which shedding
/// goes on after the last call that was shed.
const INTERVAL: Duration = Duration::from_millis(100);

/// Time without a call that exceeds the target delay, after which the excess is considered over.
const GAP: Duration = Duration::from_millis(20);

/// Precision of the times that threads share: each is written at most this often.
const REFRESH: Duration = Duration::from_millis(5);

/// Shortest queueing delay that is measured, so that nothing is written under normal load.
const MIN_MEASURED_DELAY: Duration = Duration::from_millis(1);

/// Interval at which the end of shedding is looked for. A timer that fires often while all threads
/// are busy delays connections: at 100 ms, a lone caller had 9 of 100 calls more shed.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Delay after which a shed call should be retried.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(250);

/// The admission of calls. All threads share it, and write to it only if calls wait.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The target queueing delay; `None` never sheds.
    target_delay: Option<Duration>,
    /// Permits for calls that are not answered at once.
    calls: Arc<Semaphore>,
    /// Permits for streams, half as many. A stream also takes a permit of `calls`.
    streams: Arc<Semaphore>,
    /// The time since which calls have exceeded the target without a pause.
    excess_since: SharedNanos,
    /// The time of the last call that exceeded the target.
    last_excess: SharedNanos,
    /// The time since which calls have been shed without a pause.
    shedding_since: SharedNanos,
    /// The time of the last call that was shed.
    last_shed: SharedNanos,
    /// The number of calls that were shed.
    shed: Counters<1>,
    /// Wakes [`report`](Self::report) when calls are shed.
    has_shed: Notify,
    /// The time and the queueing delay, in nanoseconds, of the last call that was measured.
    last_measured: SharedNanos,
    measured_delay: AtomicU64,
}

/// The state of load shedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverloadState {
    /// The time since which calls have been shed; `None` if they are not being shed.
    pub(crate) shedding_since: Option<SystemTime>,
    /// The queueing delay of the last call that waited at least 1 ms; zero if there was none in
    /// the last 100 ms.
    pub(crate) queue_delay: Duration,
    /// Calls that were shed for their queueing delay since the start.
    pub(crate) shed: u64,
}

/// A slot for a call that is not answered at once, free again when dropped.
#[derive(Debug)]
pub(crate) struct CallSlot {
    _call: OwnedSemaphorePermit,
    _stream: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(crate) fn new(limits: &AdmissionLimits) -> Arc<Self> {
        monotonic::fix_origin();
        Arc::new(Self {
            target_delay: limits.delay,
            calls: Arc::new(Semaphore::new(limits.calls)),
            streams: Arc::new(Semaphore::new(limits.calls.div_ceil(2))),
            excess_since: SharedNanos::default(),
            last_excess: SharedNanos::default(),
            shedding_since: SharedNanos::default(),
            last_shed: SharedNanos::default(),
            shed: Counters::default(),
            has_shed: Notify::new(),
            last_measured: SharedNanos::default(),
            measured_delay: AtomicU64::new(0),
        })
    }

    /// Admits or sheds a call that starts `now` and could have been read since `arrived`.
    pub(crate) fn admit(
        &self,
        arrived: MonotonicNanos,
        now: MonotonicNanos,
    ) -> Result<(), Rejection> {
        let waited = now.since(arrived);
        if waited >= MIN_MEASURED_DELAY && self.last_measured.refresh(REFRESH, now) {
            let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
            self.measured_delay.store(nanos, Ordering::Relaxed);
        }
        if self.target_delay.is_none_or(|target| waited <= target) {
            return Ok(());
        }
        let since = match self.excess_since.load() {
            Some(since) if self.last_excess.is_within(GAP, now) => since,
            Some(_) | None => {
                self.excess_since.store(Some(now));
                now
            }
        };
        self.last_excess.refresh(REFRESH, now);
        let is_shedding = self.is_shedding(now);
        if now.since(since) > INTERVAL || is_shedding {
            if !is_shedding {
                self.shedding_since.store(Some(now));
            }
            self.shed.add_one(0);
            if self.last_shed.refresh(REFRESH, now) {
                self.has_shed.notify_one();
            }
            return Err(Rejection::Overloaded);
        }
        Ok(())
    }

    /// Returns whether calls are being shed, or were less than [`INTERVAL`] ago.
    pub(crate) fn is_shedding(&self, now: MonotonicNanos) -> bool {
        self.last_shed.is_within(INTERVAL, now)
    }

    /// Takes a slot for a call that is not answered at once.
    pub(crate) fn slot(&self) -> Result<CallSlot, Rejection> {
        Ok(CallSlot {
            _call: acquire(&self.calls)?,
            _stream: None,
        })
    }

    /// Takes a slot for a stream, which lasts as long as its caller likes. Streams may hold at most
    /// half of all slots, so that long streams leave some to short calls.
    pub(crate) fn stream_slot(&self) -> Result<CallSlot, Rejection> {
        Ok(CallSlot {
            _call: acquire(&self.calls)?,
            _stream: Some(acquire(&self.streams)?),
        })
    }

    /// Returns the current state, for metrics and status.
    pub(crate) fn state(&self) -> OverloadState {
        self.state_at(MonotonicNanos::now())
    }

    fn state_at(&self, now: MonotonicNanos) -> OverloadState {
        let since = self.shedding_since.load().filter(|_| self.is_shedding(now));
        let delay = match self.last_measured.is_within(INTERVAL, now) {
            true => self.measured_delay.load(Ordering::Relaxed),
            false => 0,
        };
        OverloadState {
            shedding_since: since.and_then(|since| SystemTime::now().checked_sub(now.since(since))),
            queue_delay: Duration::from_nanos(delay),
            shed: self.shed.sum(0),
        }
    }

    /// Logs when shedding starts and when it stops. Never returns.
    ///
    /// The stop is noticed by time, since no further call may arrive.
    pub(crate) async fn report(self: Arc<Self>) {
        let mut reported = 0;
        loop {
            self.has_shed.notified().await;
            let OverloadState {
                mut queue_delay,
                shed,
                ..
            } = self.state();
            // A notification from the period that was reported last.
            if shed == reported {
                continue;
            }
            tracing::info!(
                ?queue_delay,
                "overload started, shedding calls that waited too long",
            );
            let started = MonotonicNanos::now();
            while self.is_shedding(MonotonicNanos::now()) {
                tokio::time::sleep(REPORT_INTERVAL).await;
                queue_delay = queue_delay.max(self.state().queue_delay);
            }
            let shed = self.shed.sum(0);
            let ended = self.last_shed.load().unwrap_or(started);
            tracing::info!(
                shed = shed - reported,
                max_queue_delay = ?queue_delay,
                duration = ?ended.since(started),
                "overload ended, no longer shedding calls",
            );
            reported = shed;
        }
    }
}

fn acquire(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Rejection> {
    // INVARIANT: the semaphore is never closed, so the only error is that no permit is free.
    let acquired = Arc::clone(permits).try_acquire_owned();
    acquired.map_err(|_no_permits| Rejection::TooManyCalls)
}

impl Export for Admission {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.value(&QUEUE_DELAY, self.state().queue_delay.as_secs_f64())
    }
}

#[cfg(test)]
mod tests;
