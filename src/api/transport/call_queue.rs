//! The calls of a connection that have been read and not begun: which is next, and on which thread.
//!
//! As a rule there are none when a connection has had its turn. When there are, its calls are more
//! than one thread can do, and the other threads help. And when there is more to do than all threads
//! can, half of each turn is for those that came first, which have waited too long and are shed soon
//! by that, and the other half for those that came last and can still be answered in time. (Facebook
//! calls that adaptive LIFO, and uses it with CoDel as we do; see "Fail at Scale", ACM Queue 13.8.)

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

/// Calls that wait to be begun.
#[derive(Default)]
pub(crate) struct CallQueue {
    calls: Mutex<VecDeque<CallFuture>>,
    /// Tasks that help.
    helpers: AtomicUsize,
    /// Tells when there is more to do than can be; without it, there never is.
    admission: Option<Arc<Admission>>,
    /// When there are so many, no more should be read; 0 is any number.
    most: usize,
}

impl CallQueue {
    pub(crate) fn new(admission: Arc<Admission>, most: usize) -> Self {
        Self {
            admission: Some(admission),
            most,
            ..Self::default()
        }
    }

    pub(crate) fn push(&self, call: CallFuture) {
        self.calls().push_back(call);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls().is_empty()
    }

    /// Whether there are so many that no more should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.most > 0 && self.calls().len() >= self.most
    }

    /// Drops them all.
    pub(crate) fn clear(&self) {
        let calls = std::mem::take(&mut *self.calls());
        // The list is free by now: a call may hold what holds the list.
        drop(calls);
    }

    /// The call to be begun next in this turn.
    pub(crate) fn next(&self, turn: TimeSlice) -> Option<CatchPanic> {
        let mut calls = self.calls();
        // Of one call alone there is nothing to choose, and no clock to be read for. The first have
        // the first half, for one call may take more than all of a turn.
        let call = if calls.len() > 1 && turn.is_half_over() && self.is_shedding() {
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

    /// Lets other threads help, if there are others: each has one task of a connection at most.
    pub(crate) fn spawn_helper(self: &Arc<Self>) {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let more = |helpers: usize| (helpers + 1 < threads).then_some(helpers + 1);
        if self
            .helpers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
        {
            tokio::spawn(Arc::clone(self).help());
        }
    }

    /// Runs calls until there are none.
    async fn help(self: Arc<Self>) {
        // INVARIANT: who pushes a call after the last look has its connection run, or calls again.
        let _helping = HelperGuard(&self.helpers);
        let mut turn = TimeSlice::begin();
        while let Some(mut call) = self.next(turn) {
            if !self.is_empty() {
                self.spawn_helper();
            }
            let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut call).poll(context)));
            if polled.await.is_pending() {
                tokio::spawn(call);
            }
            turn.yield_when_over().await;
        }
    }

    fn calls(&self) -> MutexGuard<'_, VecDeque<CallFuture>> {
        // A panic elsewhere leaves a list that is none the worse.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot among the helpers, given back when dropped.
struct HelperGuard<'a>(&'a AtomicUsize);

impl Drop for HelperGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call whose panic is its own end and nobody else's; `None` once it is over.
pub(crate) struct CatchPanic(Option<CallFuture>);

impl Future for CatchPanic {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(call) = &mut self.0 else {
            return Poll::Ready(());
        };
        // What a call shares with others (locks, the connection's streams) is as it would be
        // after the panic of a task.
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(()),
            Err(_told_by_the_panic_hook) => {
                tracing::error!("a call failed and was reset; its panic is told above");
                let call = self.0.take();
                // Dropping its stream is what resets it; and even that must not end the others.
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

    /// A queue of calls that note their number, and where they note it.
    fn queue(
        count: usize,
        admission: Option<Arc<Admission>>,
    ) -> (CallQueue, Arc<Mutex<Vec<usize>>>) {
        let noted = Arc::<Mutex<Vec<usize>>>::default();
        let queue =
            admission.map_or_else(CallQueue::default, |admission| CallQueue::new(admission, 3));
        for number in 0..count {
            let noted = Arc::clone(&noted);
            queue.push(Box::pin(async move {
                noted.lock().unwrap().push(number);
            }));
        }
        (queue, noted)
    }

    fn is_run(call: Option<CatchPanic>) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        call.is_some_and(|mut call| Pin::new(&mut call).poll(&mut context).is_ready())
    }

    /// One that has just shed a call.
    fn overloaded() -> Arc<Admission> {
        let admission = Admission::new(AdmissionLimits {
            delay: Some(Duration::from_millis(1)),
            calls: 1,
        });
        let arrived = MonotonicNanos::now();
        while admission.begin(arrived, MonotonicNanos::now()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        admission
    }

    #[test]
    fn calls_are_begun_in_their_order() {
        let (queue, noted) = queue(3, None);
        while is_run(queue.next(TimeSlice::begin())) {}
        assert_eq!(*noted.lock().unwrap(), [0, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn under_overload_half_of_a_turn_is_for_the_last() {
        let (queue, noted) = queue(4, Some(overloaded()));
        let turn = TimeSlice::begin();
        while !turn.is_half_over() {}
        assert!(is_run(queue.next(turn)));
        assert!(is_run(queue.next(turn)));
        assert!(is_run(queue.next(TimeSlice::begin())));
        assert_eq!(*noted.lock().unwrap(), [3, 2, 0]);
    }

    #[test]
    fn it_is_full_when_as_many_wait_as_may_be_open() {
        let (queue, _) = queue(3, Some(overloaded()));
        assert!(queue.is_full());
        assert!(is_run(queue.next(TimeSlice::begin())));
        assert!(!queue.is_full());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn each_other_thread_helps_once_and_until_nothing_is_left() {
        let (queue, noted) = queue(1_000, None);
        let queue = Arc::new(queue);
        for _ in 0..10 {
            queue.spawn_helper();
            assert!(queue.helpers.load(Ordering::Relaxed) <= 2);
        }
        while !queue.is_empty() || queue.helpers.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(noted.lock().unwrap().len(), 1_000);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_waits_does_not_keep_its_helper() {
        let queue = Arc::<CallQueue>::default();
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel::<()>();
        queue.push(Box::pin(async move {
            let _ = opened.await;
            let _ = done.send(());
        }));
        // Lets the first go on: it is run although the first is not done.
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
