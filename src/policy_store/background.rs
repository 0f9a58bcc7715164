//! Runs long jobs on threads that yield to the threads that serve callers.
//!
//! Not on the runtime's blocking threads: a thread that has lowered its priority may not raise it
//! again, and the runtime would reuse it for other work.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::pdp::Workers;

/// The niceness of background threads. Not the highest: even on a busy machine, a policy change
/// should be loaded within moments.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Time for which a background thread yields at each [`pause`]. A large directory takes less where
/// a core is free. On a busy machine yielding would leave it hardly any time, so after that its
/// niceness alone decides.
const YIELD_FOR: Duration = Duration::from_millis(500);

/// The priority of a job, relative to the threads that serve callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Nothing is served before this job is done.
    Foreground,
    /// Callers are served meanwhile, so the job yields to them.
    Background,
}

impl Priority {
    /// Returns the threads that a job of this priority may use beside its own.
    pub(super) fn workers(self) -> Workers {
        Workers {
            threads: cores(),
            begin: match self {
                Self::Foreground => || {},
                Self::Background => lower_priority,
            },
            pause,
        }
    }
}

/// Returns the number of threads that the machine runs at once.
#[must_use]
pub fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

thread_local! {
    /// The end of this thread's yielding; `None` on threads that do not yield.
    static YIELD_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets another thread run first, if this is a background thread and another waits for its core.
///
/// Niceness alone is not enough: a scheduler that lets each thread finish its slice (Linux since
/// 6.6) makes a serving thread wait for a millisecond and more.
pub(super) fn pause() {
    if YIELD_UNTIL.get().is_some_and(|end| Instant::now() < end) {
        thread::yield_now();
    }
}

/// Makes this thread, and those that it starts, a background thread.
fn lower_priority() {
    YIELD_UNTIL.set(Instant::now().checked_add(YIELD_FOR));
    // Elsewhere this would change the whole process. An error leaves the priority as it was.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

/// The error of a job that ended without a result: the text of its panic, or the reason why no
/// thread was started.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct JobFailed(String);

/// A job that runs on its own thread.
///
/// If it is dropped, the job still runs to its end. Its result is then dropped on another thread,
/// because that may take long.
#[derive(Debug)]
pub(super) struct BackgroundJob<T: Send + 'static> {
    result: Option<oneshot::Receiver<Result<T, JobFailed>>>,
}

impl<T: Send + 'static> BackgroundJob<T> {
    /// Starts `work` on a new thread.
    pub(super) fn spawn(priority: Priority, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, receiver) = oneshot::channel();
        let begin = priority.workers().begin;
        let run = move || {
            begin();
            let result = catch_unwind(AssertUnwindSafe(work));
            // An error means that nobody waits any more.
            let _ = sender.send(result.map_err(|panic| JobFailed(panic_text(&*panic).to_owned())));
        };
        let thread = thread::Builder::new().name("policy-store".to_owned());
        let result = thread.spawn(run).map_or_else(
            |error| {
                let (sender, receiver) = oneshot::channel();
                let _ = sender.send(Err(JobFailed(format!("cannot start a thread: {error}"))));
                receiver
            },
            |_| receiver,
        );
        Self {
            result: Some(result),
        }
    }

    /// Waits for the result.
    pub(super) async fn result(mut self) -> Result<T, JobFailed> {
        let ended = || JobFailed("the thread ended early".to_owned());
        match &mut self.result {
            Some(result) => result.await.unwrap_or_else(|_| Err(ended())),
            None => Err(ended()),
        }
    }
}

impl<T: Send + 'static> Drop for BackgroundJob<T> {
    fn drop(&mut self) {
        if let Some(result) = self.result.take().filter(|result| !result.is_empty()) {
            drop_in_background(result);
        }
    }
}

/// Drops `value` on a background thread, or at once if no thread can be started.
pub(super) fn drop_in_background<T: Send + 'static>(value: T) {
    let _ = thread::Builder::new().spawn(move || {
        lower_priority();
        drop(value);
    });
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run<T: Send + 'static>(priority: Priority, work: fn() -> T) -> T {
        BackgroundJob::spawn(priority, work).result().await.unwrap()
    }

    #[tokio::test]
    async fn panics_are_errors_with_their_text() {
        let job = BackgroundJob::spawn(Priority::Foreground, || -> () { panic!("boom {}", 1) });
        assert_eq!(job.result().await.unwrap_err().to_string(), "boom 1");
    }

    #[tokio::test]
    async fn only_background_threads_yield_for_a_while() {
        let yields_for = || {
            pause();
            YIELD_UNTIL.get().map(|end| end - Instant::now())
        };
        let foreground = run(Priority::Foreground, yields_for).await;
        let background = run(Priority::Background, yields_for).await;
        assert_eq!((foreground, yields_for()), (None, None));
        assert!(background.is_some_and(|left| left <= YIELD_FOR));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_background_threads_lower_their_priority() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let foreground = run(Priority::Foreground, niceness).await;
        let background = run(Priority::Background, niceness).await;
        assert_eq!((foreground, niceness()), (own, own));
        assert!(background >= NICENESS.max(own), "{background}");
    }
}
