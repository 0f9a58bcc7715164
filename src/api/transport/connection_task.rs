//! Runs the calls of an HTTP/2 connection within the connection's own task.
//!
//! hyper hands each call to an executor, which by custom gives it a task of its own. Then every
//! answer wakes the connection, and leaves in a write of its own. Here a connection reads all that
//! has come, its calls run one after the other, and their answers leave together. It halves what
//! a small call costs.
//!
//! What a task would have given is given here too: a call that panics takes no other with it, a
//! connection that has had its thread for a while lets others go first, and one whose calls are
//! slow gets more than one thread (see `queue`).

use std::fmt;
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

/// The executor to build a connection with; [`drive`](Self::drive) then runs both.
#[derive(Clone, Default)]
pub struct ConnectionExecutor {
    queue: Arc<CallQueue>,
    /// Since when there was something to read, of what is being read now.
    ready: Arc<SharedNanos>,
}

impl<F> Executor<F> for ConnectionExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    /// hyper calls this while the connection is polled, and what it puts here runs right after.
    fn execute(&self, call: F) {
        self.queue.push(Box::pin(call));
    }
}

impl ConnectionExecutor {
    /// One whose calls are shed when `admission` says so, and may be `most` at a time.
    pub(crate) fn new(admission: Arc<Admission>, most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            queue: Arc::new(CallQueue::new(admission, most)),
            ready: Arc::default(),
        }
    }

    /// `connection`, which was built with this executor, together with its calls.
    ///
    /// Ends when the connection does; calls that are not begun then or wait for something are
    /// dropped, as the caller has gone.
    #[must_use]
    pub fn drive<C>(self, connection: C) -> ConnectionTask<C> {
        let waker = Arc::<TaskWaker>::default();
        ConnectionTask {
            connection,
            executor: self,
            running: FuturesUnordered::new(),
            ringing: Waker::from(Arc::clone(&waker)),
            waker,
        }
    }

    /// Since when the calls that are being read now could have been read; for who builds the
    /// connection, to note it for each call.
    pub(crate) fn ready(&self) -> Arc<SharedNanos> {
        Arc::clone(&self.ready)
    }
}

impl fmt::Debug for ConnectionExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionExecutor").finish_non_exhaustive()
    }
}

/// A connection and its calls; a future that is the connection's.
pub struct ConnectionTask<C> {
    connection: C,
    executor: ConnectionExecutor,
    /// Polled, and not done at once.
    running: FuturesUnordered<CatchPanic>,
    /// Through which connection and calls wake this task.
    waker: Arc<TaskWaker>,
    /// The same, as they are given it.
    ringing: Waker,
}

impl<C> ConnectionTask<C> {
    /// The connection itself.
    pub fn connection(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<C: Future + Unpin> Future for ConnectionTask<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let me = &mut *self;
        let waker = Arc::clone(&me.waker);
        let ringing = me.ringing.clone();
        let inner = &mut Context::from_waker(&ringing);
        let turn = TimeSlice::begin();
        // Of a task that nobody rang for, it is the first turn.
        let ready = waker.rung_at.take();
        me.executor
            .ready
            .store(Some(ready.unwrap_or_else(|| turn.begun().into())));
        waker.begin_poll(context.waker());
        loop {
            waker.clear();
            // A caller that resets calls may open others at once: no more is read than may wait.
            let reads = !me.executor.queue.is_full();
            // Reads what has come, and writes what calls have left.
            if reads && let Poll::Ready(ended) = Pin::new(&mut me.connection).poll(inner) {
                return Poll::Ready(ended);
            }
            while let Poll::Ready(Some(())) = Pin::new(&mut me.running).poll_next(inner) {}
            me.run_new(inner);
            if turn.is_over() || !tokio::task::coop::has_budget_remaining() {
                // Others go first; but what has been answered leaves, as far as the runtime lets
                // it. What rings from here on is seen to when this task comes round again.
                if !me.executor.queue.is_full() {
                    me.executor.ready.store(Some(turn.begun().into()));
                    waker.clear();
                    if let Poll::Ready(ended) = Pin::new(&mut me.connection).poll(inner) {
                        return Poll::Ready(ended);
                    }
                }
                waker.rung_at.store(Some(MonotonicNanos::now()));
                waker.leave();
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if reads && waker.is_clear() && waker.leave() {
                return Poll::Pending;
            }
        }
    }
}

impl<C> ConnectionTask<C> {
    /// Runs the calls that have come, for as long as a turn lasts: whatever went before, there is
    /// time for them.
    fn run_new(&mut self, context: &mut Context<'_>) {
        let queue = &self.executor.queue;
        let turn = TimeSlice::begin();
        while let Some(mut call) = queue.next(turn) {
            // Most calls are done at once, and are spared the list of those that are not.
            // INVARIANT: one that is not has left its waker, which brings this task round, and the
            // list polls what it was given whenever it is polled itself. It is not polled right
            // away: a call that yielded means it.
            if Pin::new(&mut call).poll(context).is_pending() {
                self.running.push(call);
            }
            if turn.is_over() {
                if !queue.is_empty() {
                    queue.spawn_helper();
                }
                return;
            }
        }
    }
}

/// Wakes a connection's task; or just notes that it was woken while the task is at it.
///
/// Each answer rings, for the connection to write it. The runtime would take the task for one
/// that wants to run again, and might wake another thread to help.
#[derive(Default)]
struct TaskWaker {
    task: AtomicWaker,
    woken: AtomicBool,
    attended: AtomicBool,
    /// When it was first woken since the task left.
    rung_at: SharedNanos,
}

// INVARIANT: all accesses are sequentially consistent. Either whoever rings sees that nobody
// attends and wakes the task, or the task, which leaves first and looks at `woken` after, sees that.
impl TaskWaker {
    /// The task of `waker` is here.
    fn begin_poll(&self, waker: &Waker) {
        self.task.register(waker);
        self.attended.store(true, Ordering::SeqCst);
    }

    /// The task sees to what has woken so far.
    fn clear(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    fn is_clear(&self) -> bool {
        !self.woken.load(Ordering::SeqCst)
    }

    /// The task goes, if nothing has woken; `false` when it has to stay.
    fn leave(&self) -> bool {
        self.attended.store(false, Ordering::SeqCst);
        if self.is_clear() {
            return true;
        }
        self.attended.store(true, Ordering::SeqCst);
        false
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.attended.load(Ordering::SeqCst) {
            // Of two that ring at once either moment will do.
            if self.rung_at.load().is_none() {
                self.rung_at.store(Some(MonotonicNanos::now()));
            }
            self.task.wake();
        }
    }
}

impl<C> Drop for ConnectionTask<C> {
    fn drop(&mut self) {
        // A call holds the executor that it was given to: the ring must be broken.
        self.executor.queue.clear();
    }
}

impl<C> fmt::Debug for ConnectionTask<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTask").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;
    use crate::api::transport::call_queue::CallFuture;
    use crate::config::api::AdmissionLimits;

    /// A connection that has calls for its executor, a few at each poll, and ends when told.
    struct Busy {
        executor: ConnectionExecutor,
        coming: Vec<Vec<CallFuture>>,
        end: tokio::sync::oneshot::Receiver<()>,
    }

    impl Future for Busy {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            if let Some(calls) = self.coming.pop() {
                for call in calls {
                    self.executor.execute(call);
                }
                context.waker().wake_by_ref();
            }
            Pin::new(&mut self.end).poll(context).map(|_| ())
        }
    }

    /// Runs a connection with these calls until `over` is.
    async fn run(coming: Vec<Vec<CallFuture>>, over: impl Future<Output = ()>) {
        let executor = ConnectionExecutor::default();
        let (end, ended) = tokio::sync::oneshot::channel();
        let connection = Busy {
            executor: executor.clone(),
            coming,
            end: ended,
        };
        let running = executor.drive(connection);
        tokio::time::timeout(Duration::from_secs(20), async {
            tokio::join!(running, async {
                over.await;
                drop(end);
            });
        })
        .await
        .expect("the connection ends");
    }

    fn done(count: &Arc<AtomicUsize>) -> CallFuture {
        let count = Arc::clone(count);
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
        })
    }

    async fn reaches(count: &AtomicUsize, wanted: usize) {
        while count.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn every_call_runs_also_one_that_waits_or_yields() {
        let count = Arc::new(AtomicUsize::new(0));
        let waits = |call: CallFuture| -> CallFuture {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                tokio::task::yield_now().await;
                call.await;
            })
        };
        let calls = vec![
            vec![done(&count), waits(done(&count)), done(&count)],
            vec![waits(done(&count))],
        ];
        run(calls, reaches(&count, 4)).await;
    }

    #[tokio::test]
    async fn a_call_that_panics_takes_no_other_with_it() {
        let count = Arc::new(AtomicUsize::new(0));
        let fails_late: CallFuture = Box::pin(async {
            tokio::task::yield_now().await;
            panic!("late");
        });
        let fails: CallFuture = Box::pin(async { panic!("at once") });
        let calls = vec![
            vec![done(&count)],
            vec![done(&count), fails, fails_late, done(&count)],
        ];
        run(calls, reaches(&count, 3)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn slow_calls_get_more_than_one_thread() {
        // Each holds its thread until it sees the other running.
        let running = Arc::new(AtomicUsize::new(0));
        let met = Arc::new(AtomicUsize::new(0));
        let slow = |call: CallFuture| -> CallFuture {
            let running = Arc::clone(&running);
            Box::pin(async move {
                running.fetch_add(1, Ordering::SeqCst);
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_secs(10) {
                    if running.load(Ordering::SeqCst) == 2 {
                        return call.await;
                    }
                    std::thread::yield_now();
                }
            })
        };
        let first: CallFuture = Box::pin(async { std::thread::sleep(Duration::from_millis(2)) });
        let calls = vec![vec![first, slow(done(&met)), slow(done(&met))]];
        run(calls, reaches(&met, 2)).await;
    }

    #[tokio::test]
    async fn a_connection_is_not_read_while_too_many_of_its_calls_wait() {
        /// Has two calls at each poll, which take a turn each.
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

        let admission = Admission::new(AdmissionLimits {
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
    async fn calls_of_a_connection_that_ends_are_dropped() {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let waits: CallFuture = Box::pin(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        let executor = ConnectionExecutor::default();
        // It holds the executor, as hyper's calls do.
        let (ring, held) = (executor.clone(), Arc::clone(&token));
        let never_polled: CallFuture = Box::pin(async move {
            drop((ring, held));
        });
        run(vec![vec![waits]], tokio::task::yield_now()).await;
        let connection = executor.clone().drive(std::future::pending::<()>());
        executor.execute(never_polled);
        drop((connection, executor));
        assert_eq!(Arc::strong_count(&token), 1);
    }

    #[tokio::test]
    async fn a_connection_with_endless_calls_lets_others_go_first() {
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
