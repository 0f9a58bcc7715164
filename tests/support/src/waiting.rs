//! Polling for a condition.

use std::time::{Duration, Instant};

/// The time limit of every wait in a test. Tests assert no durations: a wait only ends here.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` returns true. Panics with `what` after [`TIME_LIMIT`].
pub async fn eventually(what: &str, holds: impl AsyncFnMut() -> bool) {
    assert!(comes_true(holds).await, "timed out: {what}");
}

/// Does the same outside of async code.
pub fn eventually_blocking(what: &str, holds: impl FnMut() -> bool) {
    assert!(comes_true_blocking(holds), "timed out: {what}");
}

/// Polls `condition` until it returns true. Returns whether it did within [`TIME_LIMIT`].
pub(crate) async fn comes_true(mut holds: impl AsyncFnMut() -> bool) -> bool {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.is_ok()
}

/// Does the same outside of async code.
pub(crate) fn comes_true_blocking(mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
    true
}
