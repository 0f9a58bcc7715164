//! Runs long work beside the service, on threads that give way to those that serve.
//!
//! Not on the runtime's blocking threads: a thread that gave way may not take it back, and the
//! runtime would lend it to others.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::pdp::Workers;

/// How nice a thread is that gives way. Not the most there is: on a machine that is busy
/// throughout, a change of the policies should still come into force within moments.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Whether there is somebody to give way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    /// Nothing is served yet, and everybody waits for this.
    Hurry,
    /// Callers are served meanwhile.
    GiveWay,
}

/// As many threads as the machine runs at once.
#[must_use]
pub fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

impl Manners {
    /// The threads that work of this kind may use besides its own.
    pub(super) fn workers(self) -> Workers {
        Workers {
            threads: cores(),
            begin: self.begin(),
            pause: self.pause(),
        }
    }

    fn begin(self) -> fn() {
        match self {
            Self::Hurry => || {},
            Self::GiveWay => give_way,
        }
    }

    /// Of [`Workers::pause`].
    fn pause(self) -> fn() {
        match self {
            Self::Hurry => || {},
            Self::GiveWay => pause,
        }
    }
}

/// For so long a thread that gives way does so at once when another has work: longer than a large
/// directory takes where there is a core to spare. On a machine that is busy throughout it would
/// hardly get on, so after that its priority alone says how much it gets.
const PAUSES_FOR: Duration = Duration::from_millis(500);

thread_local! {
    /// Until when this thread pauses.
    static PAUSES_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets another thread run, if one waits for this core.
///
/// The priority alone does not do it: a scheduler that lets every thread end its slice, as that of
/// Linux does since 6.6, has a thread that serves wait for a millisecond and more.
pub(super) fn pause() {
    if PAUSES_UNTIL.get().is_some_and(|end| Instant::now() < end) {
        thread::yield_now();
    }
}

/// Lowers the priority of this thread, and of those it starts, and has it [`pause`].
fn give_way() {
    PAUSES_UNTIL.set(Instant::now().checked_add(PAUSES_FOR));
    // Elsewhere this would be the whole process. An error leaves the priority as it was.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

/// Work that ended without a result; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failed(String);

/// Work that runs on a thread of its own.
///
/// Who drops it leaves the work to end by itself; what comes of it is then dropped elsewhere too,
/// for that may take long.
#[derive(Debug)]
pub(super) struct Aside<T: Send + 'static> {
    result: Option<oneshot::Receiver<Result<T, Failed>>>,
}

impl<T: Send + 'static> Aside<T> {
    /// Waits for what comes of it.
    ///
    /// # Errors
    ///
    /// [`Failed`] when the work panicked, or no thread was to be had.
    pub(super) async fn outcome(mut self) -> Result<T, Failed> {
        let ended = || Failed("the thread ended early".to_owned());
        match &mut self.result {
            Some(result) => result.await.unwrap_or_else(|_| Err(ended())),
            None => Err(ended()),
        }
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        if let Some(result) = self.result.take().filter(|result| !result.is_empty()) {
            let drop = move || {
                Manners::GiveWay.begin()();
                drop(result);
            };
            // Without a thread it is dropped here, and now.
            let _ = thread::Builder::new().spawn(drop);
        }
    }
}

/// Starts `work` on a thread of its own at once.
pub(super) fn aside<T: Send + 'static>(
    manners: Manners,
    work: impl FnOnce() -> T + Send + 'static,
) -> Aside<T> {
    let (done, result) = oneshot::channel();
    let begin = manners.begin();
    let run = move || {
        begin();
        let worked = catch_unwind(AssertUnwindSafe(work));
        // Nobody may be waiting any more.
        let _ = done.send(worked.map_err(|panic| Failed(said(&*panic).to_owned())));
    };
    let thread = thread::Builder::new().name("policy-store".to_owned());
    let result = match thread.spawn(run) {
        Ok(_) => result,
        Err(error) => {
            let (done, result) = oneshot::channel();
            let _ = done.send(Err(Failed(format!("cannot start a thread: {error}"))));
            result
        }
    };
    Aside {
        result: Some(result),
    }
}

/// What a panic had to say.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_words() {
        let failed = aside(Manners::Hurry, || -> () { panic!("boom {}", 1) });
        assert_eq!(failed.outcome().await.unwrap_err().to_string(), "boom 1");
    }

    #[tokio::test]
    async fn work_beside_the_service_pauses_and_for_no_longer_than_it_should() {
        let paused = || {
            pause();
            PAUSES_UNTIL.get().map(|end| end - Instant::now())
        };
        let hurrying = aside(Manners::Hurry, paused).outcome().await.unwrap();
        let giving_way = aside(Manners::GiveWay, paused).outcome().await.unwrap();
        assert_eq!((hurrying, paused()), (None, None));
        assert!(giving_way.is_some_and(|left| left <= PAUSES_FOR));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn work_beside_the_service_gives_way_and_the_service_does_not() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let own = priority();
        let hurrying = aside(Manners::Hurry, priority).outcome().await.unwrap();
        let giving_way = aside(Manners::GiveWay, priority).outcome().await.unwrap();
        assert_eq!((hurrying, priority()), (own, own));
        assert!(giving_way >= NICENESS.max(own), "{giving_way}");
    }
}
