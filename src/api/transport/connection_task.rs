//! Runs the calls of an HTTP/2 connection within the connection's own task.
//!
//! ```text
//!          woken by the socket, a timer or a call
//!                          |
//!                          v
//!   +-> poll: hyper reads requests and writes finished answers     ends -> connection ends
//!   |                      |                                       (its calls are dropped)
//!   |       each request becomes a call in the queue
//!   |                      v
//!   |   run: poll running calls that were woken, then start queued ones, for one time slice
//!   |                      |         slice over, calls left -> a helper task runs some of them
//!   |                      v
//!   +-- woken meanwhile? --+-- no ---> sleep
//!                          +-- slice over -> write answers, yield: other tasks run first
//! ```
//!
//! hyper hands each call to an executor, which usually spawns a task for it. Then every answer
//! wakes the connection, and is written by a system call of its own. Here the connection reads all
//! requests that have arrived, runs their calls one after the other, and writes their answers
//! together. This halves the cost of a small call.
//!
//! The guarantees of a spawned task hold here too: a panic ends only its own call, a connection
//! with much work yields to others, and slow calls of one connection run on several threads (see
//! `CallQueue`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::{FuturesUnordered, Stream as _};
use futures_util::task::AtomicWaker;
use hyper::rt::Executor;

use crate::api::decision::admission::{Admission, MonotonicNanos, SharedNanos};
use crate::api::decision::time_slice::TimeSlice;
use crate::api::transport::call_queue::{CallQueue, CatchPanic};

/// An executor that queues the calls of one connection; [`drive`](Self::drive) runs them.
#[derive(Clone, Default)]
pub struct ConnectionExecutor {
    queue: Arc<CallQueue>,
    /// The time since which the bytes that are being read could have been read.
    readable_since: Arc<SharedNanos>,
}

impl<F> Executor<F> for ConnectionExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    /// Queues a call. hyper calls this while the connection is polled; the call runs right after.
    fn execute(&self, call: F) {
        self.queue.push(Box::pin(call));
    }
}

impl ConnectionExecutor {
    /// Creates an executor that queues at most `max_queued` calls, in the order that suits
    /// `admission`.
    pub(crate) fn new(admission: Arc<Admission>, max_queued: u32) -> Self {
        let max_queued = usize::try_from(max_queued).unwrap_or(usize::MAX);
        Self {
            queue: Arc::new(CallQueue::new(admission, max_queued)),
            readable_since: Arc::default(),
        }
    }

    /// Returns a future that drives `connection`, which was built with this executor, and its
    /// calls.
    ///
    /// It ends when the connection does. Calls that are queued or waiting then are dropped, since
    /// their caller has left.
    #[must_use]
    pub fn drive<C>(self, connection: C) -> ConnectionTask<C> {
        let task_waker = Arc::<TaskWaker>::default();
        ConnectionTask {
            connection,
            executor: self,
            running: FuturesUnordered::new(),
            waker: Waker::from(Arc::clone(&task_waker)),
            task_waker,
        }
    }

    /// Returns the time since which the requests that are being read could have been read. It is
    /// the arrival time of calls, from which their queueing delay is measured.
    pub(crate) fn readable_since(&self) -> Arc<SharedNanos> {
        Arc::clone(&self.readable_since)
    }
}

/// A connection with its calls, as one future with the connection's output.
pub struct ConnectionTask<C> {
    connection: C,
    executor: ConnectionExecutor,
    /// Calls that were pending at their first poll.
    running: FuturesUnordered<CatchPanic>,
    task_waker: Arc<TaskWaker>,
    /// `task_waker` in the form that the connection and its calls are polled with.
    waker: Waker,
}

impl<C> ConnectionTask<C> {
    /// Returns the connection itself.
    pub fn connection(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<C: Future + Unpin> Future for ConnectionTask<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let me = &mut *self;
        let waker = me.waker.clone();
        let inner = &mut Context::from_waker(&waker);
        let slice = TimeSlice::begin();
        // Nothing woke the task: this is its first poll.
        let woken_at = me.task_waker.woken_at.take();
        me.set_readable_since(woken_at.unwrap_or_else(|| slice.began_at().into()));
        me.task_waker.begin_poll(context.waker());
        loop {
            me.task_waker.clear();
            // Not read while the queue is full: a caller that resets calls may open others at
            // once.
            let is_read = !me.executor.queue.is_full();
            if is_read && let Poll::Ready(ended) = Pin::new(&mut me.connection).poll(inner) {
                return Poll::Ready(ended);
            }
            while let Poll::Ready(Some(())) = Pin::new(&mut me.running).poll_next(inner) {}
            me.run_queued(inner);
            if slice.is_over() || !tokio::task::coop::has_budget_remaining() {
                return me.yield_to_others(slice, inner, context);
            }
            if is_read && me.task_waker.is_clear() && me.task_waker.end_poll() {
                return Poll::Pending;
            }
        }
    }
}

impl<C: Future + Unpin> ConnectionTask<C> {
    /// Ends the poll so that other tasks run first, and has the task polled again. Finished answers
    /// are written before, as far as the runtime's budget allows it.
    fn yield_to_others(
        &mut self,
        slice: TimeSlice,
        inner: &mut Context<'_>,
        context: &mut Context<'_>,
    ) -> Poll<C::Output> {
        if !self.executor.queue.is_full() {
            self.set_readable_since(slice.began_at().into());
            self.task_waker.clear();
            if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(inner) {
                return Poll::Ready(ended);
            }
        }
        // Wake-ups from here on are served by the next poll.
        self.task_waker.woken_at.store(Some(MonotonicNanos::now()));
        self.task_waker.end_poll();
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<C> ConnectionTask<C> {
    fn set_readable_since(&self, time: MonotonicNanos) {
        self.executor.readable_since.store(Some(time));
    }

    /// Runs queued calls for one time slice. The slice is a new one, so that calls make progress
    /// however long the connection was polled.
    fn run_queued(&mut self, context: &mut Context<'_>) {
        let queue = &self.executor.queue;
        let slice = TimeSlice::begin();
        while let Some(mut call) = queue.next(slice) {
            // Most calls end at their first poll, and are spared the list of running ones.
            // INVARIANT: a pending call has registered its waker, which wakes this task; the list
            // polls new members whenever it is polled itself. It is not polled at once: a call
            // that yielded means it.
            if Pin::new(&mut call).poll(context).is_pending() {
                self.running.push(call);
            }
            if slice.is_over() {
                if !queue.is_empty() {
                    queue.spawn_helper();
                }
                return;
            }
        }
    }
}

/// Wakes the connection's task, or only records the wake-up while the task is being polled.
///
/// Every finished answer wakes the connection to be written. The runtime would count that as a task
/// that is ready to run again, and might wake another thread for it.
#[derive(Default)]
struct TaskWaker {
    task: AtomicWaker,
    woken: AtomicBool,
    is_polled: AtomicBool,
    /// The time of the first wake-up since the last poll.
    woken_at: SharedNanos,
}

// INVARIANT: all accesses are sequentially consistent, so no wake-up is lost. Either the waking
// thread sees that the task is not being polled, and wakes it; or the task sees `woken`, since
// `end_poll` clears `is_polled` before it reads `woken`.
impl TaskWaker {
    /// Records that the task of `waker` is being polled.
    fn begin_poll(&self, waker: &Waker) {
        self.task.register(waker);
        self.is_polled.store(true, Ordering::SeqCst);
    }

    /// Forgets wake-ups so far: the task is about to serve them.
    fn clear(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    fn is_clear(&self) -> bool {
        !self.woken.load(Ordering::SeqCst)
    }

    /// Records the end of the poll. Returns `false` if there was a wake-up, so that the poll goes
    /// on.
    fn end_poll(&self) -> bool {
        self.is_polled.store(false, Ordering::SeqCst);
        if self.is_clear() {
            return true;
        }
        self.is_polled.store(true, Ordering::SeqCst);
        false
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.is_polled.load(Ordering::SeqCst) {
            // Of two wake-ups at once either time will do.
            if self.woken_at.load().is_none() {
                self.woken_at.store(Some(MonotonicNanos::now()));
            }
            self.task.wake();
        }
    }
}

impl<C> Drop for ConnectionTask<C> {
    fn drop(&mut self) {
        // Breaks a reference cycle: a queued call owns the executor, which owns the queue.
        self.executor.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;
    use crate::api::transport::call_queue::CallFuture;
    use crate::config::api::AdmissionLimits;

    /// A connection that executes some calls at each poll, and ends when the sender of `end` is
    /// dropped.
    struct BatchedCalls {
        executor: ConnectionExecutor,
        batches: Vec<Vec<CallFuture>>,
        end: tokio::sync::oneshot::Receiver<()>,
    }

    impl Future for BatchedCalls {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            if let Some(calls) = self.batches.pop() {
                for call in calls {
                    self.executor.execute(call);
                }
                context.waker().wake_by_ref();
            }
            Pin::new(&mut self.end).poll(context).map(|_| ())
        }
    }

    /// Runs a connection with these calls until `done` completes.
    async fn run(batches: Vec<Vec<CallFuture>>, done: impl Future<Output = ()>) {
        let executor = ConnectionExecutor::default();
        let (end, ended) = tokio::sync::oneshot::channel();
        let connection = BatchedCalls {
            executor: executor.clone(),
            batches,
            end: ended,
        };
        let running = executor.drive(connection);
        tokio::time::timeout(Duration::from_secs(20), async {
            tokio::join!(running, async {
                done.await;
                drop(end);
            });
        })
        .await
        .expect("the connection ends");
    }

    /// Returns a call that adds one to `count`.
    fn counted(count: &Arc<AtomicUsize>) -> CallFuture {
        let count = Arc::clone(count);
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
        })
    }

    async fn wait_for_count(count: &AtomicUsize, wanted: usize) {
        while count.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn waiting_and_yielding_calls_run() {
        let count = Arc::new(AtomicUsize::new(0));
        let waits = |call: CallFuture| -> CallFuture {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                tokio::task::yield_now().await;
                call.await;
            })
        };
        let calls = vec![
            vec![counted(&count), waits(counted(&count)), counted(&count)],
            vec![waits(counted(&count))],
        ];
        run(calls, wait_for_count(&count, 4)).await;
    }

    #[tokio::test]
    async fn panic_ends_only_its_own_call() {
        let count = Arc::new(AtomicUsize::new(0));
        let fails_late: CallFuture = Box::pin(async {
            tokio::task::yield_now().await;
            panic!("late");
        });
        let fails: CallFuture = Box::pin(async { panic!("at once") });
        let calls = vec![
            vec![counted(&count)],
            vec![counted(&count), fails, fails_late, counted(&count)],
        ];
        run(calls, wait_for_count(&count, 3)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn slow_calls_run_on_several_threads() {
        // Each call occupies its thread until it sees the other one running.
        let running = Arc::new(AtomicUsize::new(0));
        let finished = Arc::new(AtomicUsize::new(0));
        let slow = |call: CallFuture| -> CallFuture {
            let running = Arc::clone(&running);
            Box::pin(async move {
                running.fetch_add(1, Ordering::SeqCst);
                let started = std::time::Instant::now();
                while started.elapsed() < Duration::from_secs(10) {
                    if running.load(Ordering::SeqCst) == 2 {
                        return call.await;
                    }
                    std::thread::yield_now();
                }
            })
        };
        let first: CallFuture = Box::pin(async { std::thread::sleep(Duration::from_millis(2)) });
        let calls = vec![vec![
            first,
            slow(counted(&finished)),
            slow(counted(&finished)),
        ]];
        run(calls, wait_for_count(&finished, 2)).await;
    }

    #[tokio::test]
    async fn connection_is_not_read_while_queue_is_full() {
        /// A connection that executes two calls at each poll; each takes a whole time slice.
        struct Endless {
            executor: ConnectionExecutor,
            polled: usize,
            waiting: Arc<AtomicUsize>,
        }

        impl Future for Endless {
            type Output = ();

            fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
                assert!(self.waiting.fetch_add(2, Ordering::SeqCst) < 4);
                for _ in 0..2 {
                    let waiting = Arc::clone(&self.waiting);
                    self.executor.execute(async move {
                        waiting.fetch_sub(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                    });
                }
                self.polled += 1;
                context.waker().wake_by_ref();
                match self.polled {
                    50 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            }
        }

        let admission = Admission::new(&AdmissionLimits {
            delay: None,
            calls: 1,
        });
        let executor = ConnectionExecutor::new(admission, 4);
        let connection = Endless {
            executor: executor.clone(),
            polled: 0,
            waiting: Arc::default(),
        };
        executor.drive(connection).await;
    }

    #[tokio::test]
    async fn calls_are_dropped_with_their_connection() {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let waits: CallFuture = Box::pin(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        let executor = ConnectionExecutor::default();
        // The call owns the executor, as hyper's calls do.
        let (owned, held) = (executor.clone(), Arc::clone(&token));
        let never_polled: CallFuture = Box::pin(async move {
            drop((owned, held));
        });
        run(vec![vec![waits]], tokio::task::yield_now()).await;
        let connection = executor.clone().drive(std::future::pending::<()>());
        executor.execute(never_polled);
        drop((connection, executor));
        assert_eq!(Arc::strong_count(&token), 1);
    }

    #[tokio::test]
    async fn endless_call_yields_to_other_tasks() {
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let endless: CallFuture = Box::pin(async move {
            while ended.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                tokio::task::yield_now().await;
            }
        });
        run(vec![vec![endless]], async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(end);
        })
        .await;
    }
}
