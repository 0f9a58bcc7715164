//! The queue of a connection's calls that have been read and not started yet.
//!
//! The queue is usually empty after a poll of the connection. If it is not, the calls are more than
//! one thread can run, and helper tasks on other threads take some of them.
//!
//! Under overload, all threads together cannot keep up. Then half of each time slice takes the
//! oldest calls, which have waited too long and are soon shed. The other half takes the newest
//! calls, which can still be answered in time. (Facebook calls this adaptive LIFO, and combines it
//! with CoDel as we do; see "Fail at Scale", ACM Queue 13.8.)

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::api::decision::admission::{Admission, MonotonicNanos};
use crate::api::decision::time_slice::TimeSlice;

/// One call, from its headers to the last byte of its answer.
pub(crate) type CallFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A queue of calls that are not started yet.
#[derive(Default)]
pub(crate) struct CallQueue {
    calls: Mutex<VecDeque<CallFuture>>,
    /// The number of helper tasks.
    helpers: AtomicUsize,
    /// Reports overload; `None` means that there is never any.
    admission: Option<Arc<Admission>>,
    /// The length at which the connection is not read any further; 0 is no limit.
    max_length: usize,
}

impl CallQueue {
    /// Creates a queue that is full at `max_length` calls.
    pub(crate) fn new(admission: Arc<Admission>, max_length: usize) -> Self {
        Self {
            admission: Some(admission),
            max_length,
            ..Self::default()
        }
    }

    pub(crate) fn push(&self, call: CallFuture) {
        self.lock().push_back(call);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns whether the connection should not be read any further.
    pub(crate) fn is_full(&self) -> bool {
        self.max_length > 0 && self.lock().len() >= self.max_length
    }

    /// Drops all calls.
    pub(crate) fn clear(&self) {
        let calls = std::mem::take(&mut *self.lock());
        // Dropped without the lock: a call may own the queue.
        drop(calls);
    }

    /// Removes the call to run next in this time slice.
    pub(crate) fn next(&self, slice: TimeSlice) -> Option<CatchPanic> {
        let mut calls = self.lock();
        // A single call needs no choice, and no look at the clock. The oldest calls come first,
        // since one call may use up more than the slice.
        let call = if calls.len() > 1 && slice.is_half_over() && self.is_shedding() {
            calls.pop_back()
        } else {
            calls.pop_front()
        };
        call.map(|call| CatchPanic(Some(call)))
    }

    fn is_shedding(&self) -> bool {
        self.admission
            .as_ref()
            .is_some_and(|admission| admission.is_shedding(MonotonicNanos::now()))
    }

    /// Spawns a helper task, unless there is one for every other thread.
    pub(crate) fn spawn_helper(self: &Arc<Self>) {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let one_more = |helpers: usize| (helpers + 1 < threads).then_some(helpers + 1);
        if self
            .helpers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
        {
            tokio::spawn(Arc::clone(self).run_helper());
        }
    }

    /// Runs calls until the queue is empty.
    async fn run_helper(self: Arc<Self>) {
        // INVARIANT: a call that is pushed after the last `next` is not lost. Whoever pushes it
        // also polls its connection or spawns a helper.
        let _helper = HelperGuard(&self.helpers);
        let mut slice = TimeSlice::begin();
        while let Some(mut call) = self.next(slice) {
            if !self.is_empty() {
                self.spawn_helper();
            }
            let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut call).poll(context)));
            if polled.await.is_pending() {
                tokio::spawn(call);
            }
            slice.yield_when_over().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<CallFuture>> {
        // A panic elsewhere leaves the list intact.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guard that counts one helper task until it is dropped.
struct HelperGuard<'a>(&'a AtomicUsize);

impl Drop for HelperGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call whose panic ends only itself; `None` after a panic.
pub(crate) struct CatchPanic(Option<CallFuture>);

impl Future for CatchPanic {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(call) = &mut self.0 else {
            return Poll::Ready(());
        };
        // State that calls share (locks, the connection's streams) is in the same condition as
        // after a panic of a spawned task.
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
            Ok(polled) => polled,
            Err(_logged_by_the_panic_hook) => {
                tracing::error!("call panicked, stream reset");
                let call = self.0.take();
                // The drop resets the stream. A panic in it must not end other calls either.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
                Poll::Ready(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::api::AdmissionLimits;

    /// Creates a queue of calls that append their number to a list, and the list.
    fn queue(
        count: usize,
        admission: Option<Arc<Admission>>,
    ) -> (CallQueue, Arc<Mutex<Vec<usize>>>) {
        let started = Arc::<Mutex<Vec<usize>>>::default();
        let queue =
            admission.map_or_else(CallQueue::default, |admission| CallQueue::new(admission, 3));
        for number in 0..count {
            let started = Arc::clone(&started);
            queue.push(Box::pin(async move {
                started.lock().unwrap().push(number);
            }));
        }
        (queue, started)
    }

    fn is_run(call: Option<CatchPanic>) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        call.is_some_and(|mut call| Pin::new(&mut call).poll(&mut context).is_ready())
    }

    /// Returns an admission that is shedding calls.
    fn overloaded() -> Arc<Admission> {
        let admission = Admission::new(&AdmissionLimits {
            delay: Some(Duration::from_millis(1)),
            calls: 1,
        });
        let arrived = MonotonicNanos::now();
        while admission.admit(arrived, MonotonicNanos::now()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        admission
    }

    #[test]
    fn calls_start_in_order() {
        let (queue, started) = queue(3, None);
        while is_run(queue.next(TimeSlice::begin())) {}
        assert_eq!(*started.lock().unwrap(), [0, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn overload_gives_half_a_slice_to_newest_calls() {
        let (queue, started) = queue(4, Some(overloaded()));
        let slice = TimeSlice::begin();
        while !slice.is_half_over() {}
        assert!(is_run(queue.next(slice)));
        assert!(is_run(queue.next(slice)));
        assert!(is_run(queue.next(TimeSlice::begin())));
        assert_eq!(*started.lock().unwrap(), [3, 2, 0]);
    }

    #[test]
    fn queue_is_full_at_its_limit() {
        let (queue, _) = queue(3, Some(overloaded()));
        assert!(queue.is_full());
        assert!(is_run(queue.next(TimeSlice::begin())));
        assert!(!queue.is_full());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn helpers_run_one_per_other_thread_until_empty() {
        let (queue, started) = queue(1_000, None);
        let queue = Arc::new(queue);
        for _ in 0..10 {
            queue.spawn_helper();
            assert!(queue.helpers.load(Ordering::Relaxed) <= 2);
        }
        while !queue.is_empty() || queue.helpers.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(started.lock().unwrap().len(), 1_000);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn waiting_call_does_not_occupy_its_helper() {
        let queue = Arc::<CallQueue>::default();
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel::<()>();
        queue.push(Box::pin(async move {
            let _ = opened.await;
            let _ = done.send(());
        }));
        // Unblocks the first call: it runs although the first has not ended.
        queue.push(Box::pin(async move {
            let _ = open.send(());
        }));
        queue.spawn_helper();
        tokio::time::timeout(Duration::from_secs(20), is_done)
            .await
            .expect("in time")
            .unwrap();
    }
}
