//! Bounds what is held of requests that come or wait, and of long answers that nobody reads, of all
//! callers together.
//!
//! A message is read whole before it is decoded. One caller may begin as many as it may have calls,
//! each as large as a message may be, and end none of them; and one that has come in full may have to
//! wait for something.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::api::decision::rejection::Rejection;
use crate::api::metrics::CallFigures;

/// The budget of what is held. All router share one.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    held: AtomicUsize,
    most: usize,
    /// How long a message may take to come, from its first byte to its last.
    most_time: Option<Duration>,
    figures: Option<Arc<CallFigures>>,
}

impl MemoryBudget {
    /// An budget that may come to `most` bytes, each message on it for no longer than `most_time`
    /// before it has come in full.
    pub(crate) fn new(
        most: usize,
        most_time: Option<Duration>,
        figures: Option<Arc<CallFigures>>,
    ) -> Self {
        Self(Arc::new(Budget {
            held: AtomicUsize::new(0),
            most,
            most_time,
            figures,
        }))
    }

    /// Puts `bytes` on the budget until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`Rejection::BuffersFull`], which is not counted yet.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<MemoryReservation, Rejection> {
        let mut held = self.nothing();
        // Given back by the drop if it is refused.
        held.change(bytes).map(|()| held)
    }

    /// Returns how long a message may take to arrive; `None` is no limit.
    pub(crate) fn most_time(&self) -> Option<Duration> {
        self.0.most_time
    }

    /// Counts the rejection of a call whose body exceeds the budget or its time.
    pub(crate) fn count(&self, rejection: &Rejection) {
        if let Some(figures) = &self.0.figures {
            figures.rejected(rejection.label());
        }
    }

    /// Returns an empty reservation.
    pub(crate) fn nothing(&self) -> MemoryReservation {
        MemoryReservation {
            budget: self.clone(),
            bytes: 0,
        }
    }

    /// Has the budget show `now` in place of `before`.
    fn resize(&self, before: usize, now: usize) -> Result<(), Rejection> {
        let Budget { held, most, .. } = &*self.0;
        let all = match now.checked_sub(before) {
            Some(more) => held.fetch_add(more, Ordering::Relaxed) + more,
            None => held.fetch_sub(before - now, Ordering::Relaxed),
        };
        match now > before && all > *most {
            true => Err(Rejection::BuffersFull),
            false => Ok(()),
        }
    }
}

/// Bytes on an budget, until dropped.
#[derive(Debug)]
pub(crate) struct MemoryReservation {
    budget: MemoryBudget,
    bytes: usize,
}

impl MemoryReservation {
    /// Has so many `bytes` on the budget from here on.
    ///
    /// # Errors
    ///
    /// As [`MemoryBudget::hold`].
    pub(crate) fn change(&mut self, bytes: usize) -> Result<(), Rejection> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.budget.resize(before, bytes)
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        // Taking away is never refused.
        let _ = self.budget.resize(self.bytes, 0);
    }
}
