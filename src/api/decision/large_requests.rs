//! Where large messages are decoded and decided: few at a time, and where they hold nobody up.
//!
//! What becomes of a message may take a hundred times its memory, and some hundredths of a second.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Messages up to this are decided wherever they come, as most are.
const LARGE_REQUEST_BYTES: usize = 64 << 10;

/// Whether a message of so many bytes takes a permit.
pub(crate) fn is_large(bytes: usize) -> bool {
    bytes > LARGE_REQUEST_BYTES
}

/// The limiter for large messages. All router share them.
#[derive(Clone, Debug)]
pub(crate) struct LargeRequestLimiter(Arc<Semaphore>);

/// Held while a message is decided; of one that is not large it is none.
#[derive(Debug)]
pub(crate) struct LargeRequestPermit(Option<OwnedSemaphorePermit>);

impl LargeRequestLimiter {
    /// LargeRequestLimiter for half of the processors, and for two at most: the others are left to those who send
    /// little, and the memory is that of two such messages.
    pub(crate) fn new() -> Self {
        let limiter = available_parallelism().map_or(1, |all| (all.get() / 2).clamp(1, 2));
        Self(Arc::new(Semaphore::new(limiter)))
    }

    /// A permit that is free now.
    pub(crate) fn try_acquire(&self) -> Option<LargeRequestPermit> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(LargeRequestPermit(Some(permit)))
    }

    /// A permit, when one is free.
    pub(crate) async fn acquire(&self) -> LargeRequestPermit {
        // INVARIANT: the semaphore is never closed.
        LargeRequestPermit(Arc::clone(&self.0).acquire_owned().await.ok())
    }
}

impl LargeRequestPermit {
    /// What a message has that takes none.
    pub(crate) const NONE: Self = Self(None);

    /// Whether a large message may be decided.
    pub(crate) fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// Does `work`. With a permit, other calls of this thread go on elsewhere meanwhile.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.is_held() {
            true => tokio::task::block_in_place(work),
            false => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_has_a_seat_holds_up_nobody() {
        let (ask, asked) = std::sync::mpsc::channel();
        let (answer, answered) = std::sync::mpsc::channel();
        let large = tokio::spawn(async move {
            let permit = LargeRequestLimiter::new().acquire().await;
            let other = tokio::spawn(async move {
                ask.send(()).unwrap();
                answered.recv().unwrap();
            });
            // On the one thread that there is, until the other has been answered.
            permit.run(|| {
                asked.recv().unwrap();
                answer.send(()).unwrap();
            });
            other.await.unwrap();
        });
        large.await.unwrap();
    }

    #[tokio::test]
    async fn there_are_few_seats_and_they_are_given_back() {
        let limiter = LargeRequestLimiter::new();
        let taken: Vec<LargeRequestPermit> = std::iter::from_fn(|| limiter.try_acquire()).collect();
        assert!(!taken.is_empty() && taken.iter().all(LargeRequestPermit::is_held));
        drop(taken);
        assert!(limiter.try_acquire().is_some());
        assert!(!LargeRequestPermit::NONE.is_held());
    }
}
