//! Limits how many large requests are decided at once, and keeps them from delaying other calls.
//!
//! Decoding and deciding a request may take a hundred times its memory, and some 10 to 50 ms.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest request that is decided without a permit. Most requests are smaller.
const LARGE_REQUEST_BYTES: usize = 64 << 10;

/// Returns whether a request of this many bytes needs a permit.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes > LARGE_REQUEST_BYTES
}

/// A limiter of large requests, which all connections share.
#[derive(Clone, Debug)]
pub(crate) struct LargeRequestLimiter(Arc<Semaphore>);

/// A permit to decide a large request; `None` inside for a request that needs none.
#[derive(Debug)]
pub(crate) struct LargeRequestPermit(Option<OwnedSemaphorePermit>);

impl LargeRequestLimiter {
    /// Creates a limiter of large requests: one permit for every two processors, and two at most.
    ///
    /// The other processors are left to small requests, and the memory is bounded by that of two.
    pub(crate) fn new() -> Self {
        let permits = available_parallelism().map_or(1, |all| (all.get() / 2).clamp(1, 2));
        Self(Arc::new(Semaphore::new(permits)))
    }

    /// Returns a permit if one is free.
    pub(crate) fn try_acquire(&self) -> Option<LargeRequestPermit> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(LargeRequestPermit(Some(permit)))
    }

    /// Waits for a permit.
    pub(crate) async fn acquire(&self) -> LargeRequestPermit {
        // INVARIANT: the semaphore is never closed.
        LargeRequestPermit(Arc::clone(&self.0).acquire_owned().await.ok())
    }
}

impl LargeRequestPermit {
    /// The permit of a request that needs none.
    pub(crate) const NONE: Self = Self(None);

    /// Returns whether it permits a large request.
    pub(crate) fn permits_large(&self) -> bool {
        self.0.is_some()
    }

    /// Runs `work`. With a permit for a large request, other tasks of this thread move to another
    /// thread meanwhile.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.permits_large() {
            true => tokio::task::block_in_place(work),
            false => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn large_request_does_not_block_other_tasks() {
        let (started, has_started) = std::sync::mpsc::channel();
        let (finish, may_finish) = std::sync::mpsc::channel();
        let large = tokio::spawn(async move {
            let permit = LargeRequestLimiter::new().acquire().await;
            let other = tokio::spawn(async move {
                started.send(()).unwrap();
                may_finish.recv().unwrap();
            });
            // Blocks the only thread until the other task has run.
            permit.run(|| {
                has_started.recv().unwrap();
                finish.send(()).unwrap();
            });
            other.await.unwrap();
        });
        large.await.unwrap();
    }

    #[tokio::test]
    async fn permits_are_few_and_returned_on_drop() {
        let limiter = LargeRequestLimiter::new();
        let permits: Vec<_> = std::iter::from_fn(|| limiter.try_acquire()).collect();
        assert!(!permits.is_empty() && permits.iter().all(LargeRequestPermit::permits_large));
        drop(permits);
        assert!(limiter.try_acquire().is_some());
        assert!(!LargeRequestPermit::NONE.permits_large());
    }
}
