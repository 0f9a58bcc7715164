//! Bounds the time for which one call or connection keeps its thread busy.

use std::time::{Duration, Instant};

/// Longest time without a yield: about a hundred ordinary decisions, and little compared with a
/// caller's round trip.
const SLICE: Duration = Duration::from_micros(500);

/// A period in which a batch, a stream or a connection may keep its thread busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeSlice(Instant);

impl TimeSlice {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn began_at(self) -> Instant {
        self.0
    }

    pub(crate) fn is_over(self) -> bool {
        self.0.elapsed() >= SLICE
    }

    pub(crate) fn is_half_over(self) -> bool {
        self.0.elapsed() >= SLICE / 2
    }

    /// Yields to other tasks and begins a new slice, if this one is used up.
    pub(crate) async fn yield_when_over(&mut self) {
        if self.is_over() {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
