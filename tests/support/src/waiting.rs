//! Polling for a condition.

use std::time::{Duration, Instant};

/// The time limit of every wait in a test. Tests assert no durations: a wait only ends here.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` returns true. Panics with `what` after [`TIME_LIMIT`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(poll_until(condition).await, "timed out: {what}");
}

/// Does the same outside of async code.
pub fn eventually_blocking(what: &str, condition: impl FnMut() -> bool) {
    assert!(poll_until_blocking(condition), "timed out: {what}");
}

/// Polls `condition` until it returns true. Returns whether it did within [`TIME_LIMIT`].
pub(crate) async fn poll_until(mut condition: impl AsyncFnMut() -> bool) -> bool {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(TIME_LIMIT, waiting).await.is_ok()
}

/// Does the same outside of async code.
pub(crate) fn poll_until_blocking(mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > TIME_LIMIT {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
    true
}
