//! One memory budget for all callers: partial requests, waiting requests, unread large responses.
//!
//! A message is read whole before it is decoded. A caller may begin one message of the largest size
//! in each of its calls, and complete none of them. A complete message may also have to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::rejection::Rejection;
use crate::api::metrics::CallMetrics;

/// The memory budget, which all protocols share.
#[derive(Clone, Debug)]
pub(crate) struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    /// Bytes reserved.
    reserved: AtomicUsize,
    /// Most bytes that may be reserved.
    limit: usize,
    /// Time limit for a message to arrive, from its first byte to its last.
    message_timeout: Option<Duration>,
    metrics: Option<Arc<CallMetrics>>,
}

impl MemoryBudget {
    /// Creates a budget of `limit` bytes. A message must arrive within `message_timeout`.
    pub(crate) fn new(
        limit: usize,
        message_timeout: Option<Duration>,
        metrics: Option<Arc<CallMetrics>>,
    ) -> Self {
        Self(Arc::new(Budget {
            reserved: AtomicUsize::new(0),
            limit,
            message_timeout,
            metrics,
        }))
    }

    /// Reserves `bytes` until the reservation is dropped.
    ///
    /// # Errors
    ///
    /// [`Rejection::BuffersFull`], which is not counted yet.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<MemoryReservation, Rejection> {
        let mut reservation = self.reserve_nothing();
        // On an error, the drop releases the bytes that the attempt added.
        reservation.resize(bytes).map(|()| reservation)
    }

    /// Returns an empty reservation.
    pub(crate) fn reserve_nothing(&self) -> MemoryReservation {
        MemoryReservation {
            budget: self.clone(),
            bytes: 0,
        }
    }

    /// Returns the time limit for a message to arrive; `None` is no limit.
    pub(crate) fn message_timeout(&self) -> Option<Duration> {
        self.0.message_timeout
    }

    /// Counts the rejection of a call whose body exceeds the budget or the time limit.
    pub(crate) fn count(&self, rejection: &Rejection) {
        rejection.count(self.0.metrics.as_deref());
    }

    /// Replaces a charge of `before` bytes by `now`.
    fn charge(&self, before: usize, now: usize) -> Result<(), Rejection> {
        let Budget {
            reserved, limit, ..
        } = &*self.0;
        let total = match now.checked_sub(before) {
            Some(more) => reserved.fetch_add(more, Ordering::Relaxed) + more,
            None => reserved.fetch_sub(before - now, Ordering::Relaxed),
        };
        match now > before && total > *limit {
            true => Err(Rejection::BuffersFull),
            false => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn reserved(&self) -> usize {
        self.0.reserved.load(Ordering::Relaxed)
    }
}

/// Bytes reserved in a budget, until dropped.
#[derive(Debug)]
pub(crate) struct MemoryReservation {
    budget: MemoryBudget,
    bytes: usize,
}

impl MemoryReservation {
    /// Changes the reservation to `bytes`.
    ///
    /// # Errors
    ///
    /// As [`MemoryBudget::reserve`].
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), Rejection> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        self.budget.charge(before, bytes)
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        // INVARIANT: a smaller charge is never rejected.
        let _ = self.budget.charge(self.bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_is_released_on_drop() {
        let memory = MemoryBudget::new(10, None, None);
        let first = memory.reserve(7).unwrap();
        assert_eq!(memory.reserve(4).unwrap_err(), Rejection::BuffersFull);
        let rest = memory.reserve(3).unwrap();
        drop((first, rest));
        assert!(memory.reserve(10).is_ok());
    }
}
