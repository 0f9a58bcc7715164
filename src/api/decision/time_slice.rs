//! Lets other calls on the same thread go first when one call has run for a while.

use std::time::{Duration, Instant};

/// The longest that one call decides without a break: some hundred ordinary decisions, and little
/// beside what a caller waits for anyway.
const SLICE: Duration = Duration::from_micros(500);

/// How long a batch, a stream or a connection has had the thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeSlice(Instant);

impl TimeSlice {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    /// When it began.
    pub(crate) fn begun(self) -> Instant {
        self.0
    }

    /// Whether it has lasted long enough.
    pub(crate) fn is_over(self) -> bool {
        self.0.elapsed() >= SLICE
    }

    /// Whether it has lasted for half of that.
    pub(crate) fn is_half_over(self) -> bool {
        self.0.elapsed() >= SLICE / 2
    }

    /// Gives the thread up for a moment if the turn has lasted long enough.
    pub(crate) async fn yield_when_over(&mut self) {
        if self.is_over() {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
