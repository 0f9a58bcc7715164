//! Pauses between attempts to reach a collector.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The longest pause that a collector may request.
const MAX_REQUESTED_PAUSE: Duration = Duration::from_secs(30);

/// A pause that doubles with each failed attempt.
#[derive(Debug)]
pub(in crate::telemetry) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Backoff {
    /// Returns the pause before the next attempt: at least the one that the collector requested.
    pub(in crate::telemetry) fn next_pause(&mut self, requested: Option<Duration>) -> Duration {
        let requested = requested.unwrap_or_default().min(MAX_REQUESTED_PAUSE);
        let pause = self.next.max(requested);
        self.next = (self.next * 2).min(MAX_PAUSE);
        pause
    }
}
