//! Where large messages are decoded and decided: few at a time, and where they hold nobody up.
//!
//! What becomes of a message may take a hundred times its memory, and some hundredths of a second.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Messages up to this are decided wherever they come, as most are.
const LIGHT_BYTES: usize = 64 << 10;

/// Whether a message of so many bytes takes a seat.
pub(super) fn is_heavy(bytes: usize) -> bool {
    bytes > LIGHT_BYTES
}

/// The seats for large messages. All doors share them.
#[derive(Clone, Debug)]
pub(super) struct Seats(Arc<Semaphore>);

/// Held while a message is decided; of one that is not large it is none.
#[derive(Debug)]
pub(super) struct Seat(Option<OwnedSemaphorePermit>);

impl Seats {
    /// Seats for half of the processors, and for two at most: the others are left to those who send
    /// little, and the memory is that of two such messages.
    pub(super) fn new() -> Self {
        let seats = available_parallelism().map_or(1, |all| (all.get() / 2).clamp(1, 2));
        Self(Arc::new(Semaphore::new(seats)))
    }

    /// A seat that is free now.
    pub(super) fn seat_now(&self) -> Option<Seat> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(Seat(Some(permit)))
    }

    /// A seat, when one is free.
    pub(super) async fn seat(&self) -> Seat {
        // INVARIANT: the semaphore is never closed.
        Seat(Arc::clone(&self.0).acquire_owned().await.ok())
    }
}

impl Seat {
    /// What a message has that takes none.
    pub(super) const NONE: Self = Self(None);

    /// Whether a large message may be decided.
    pub(super) fn is_taken(&self) -> bool {
        self.0.is_some()
    }

    /// Does `work`. With a seat, other calls of this thread go on elsewhere meanwhile.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.is_taken() {
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
            let seat = Seats::new().seat().await;
            let other = tokio::spawn(async move {
                ask.send(()).unwrap();
                answered.recv().unwrap();
            });
            // On the one thread that there is, until the other has been answered.
            seat.run(|| {
                asked.recv().unwrap();
                answer.send(()).unwrap();
            });
            other.await.unwrap();
        });
        large.await.unwrap();
    }

    #[tokio::test]
    async fn there_are_few_seats_and_they_are_given_back() {
        let seats = Seats::new();
        let taken: Vec<Seat> = std::iter::from_fn(|| seats.seat_now()).collect();
        assert!(!taken.is_empty() && taken.iter().all(Seat::is_taken));
        drop(taken);
        assert!(seats.seat_now().is_some());
        assert!(!Seat::NONE.is_taken());
    }
}
