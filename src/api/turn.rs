//! Lets other calls on the same thread go first when one call has run for a while.

use std::time::{Duration, Instant};

/// The longest that one call decides without a break: some hundred ordinary decisions, and little
/// beside what a caller waits for anyway.
const LONGEST: Duration = Duration::from_micros(500);

/// How long a batch, a stream or a connection has had the thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn(Instant);

impl Turn {
    /// Begins now.
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    /// When it began.
    pub(super) fn begun(self) -> Instant {
        self.0
    }

    /// Whether it has lasted long enough.
    pub(super) fn is_over(self) -> bool {
        self.0.elapsed() >= LONGEST
    }

    /// Whether it has lasted for half of that.
    pub(super) fn is_half_over(self) -> bool {
        self.0.elapsed() >= LONGEST / 2
    }

    /// Gives the thread up for a moment if the turn has lasted long enough.
    pub(super) async fn yield_when_over(&mut self) {
        if self.is_over() {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
