//! Waiting for a condition, in one place.

use std::time::{Duration, Instant};

/// The time limit of everything that a test waits for. Tests assert no times: this is only where
/// waiting ends.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `holds` returns true. Panics with `what` if that takes longer than [`PATIENCE`].
pub async fn eventually(what: &str, holds: impl AsyncFnMut() -> bool) {
    assert!(comes_true(holds).await, "timed out: {what}");
}

/// Does the same outside of async code.
pub fn eventually_blocking(what: &str, holds: impl FnMut() -> bool) {
    assert!(comes_true_blocking(holds), "timed out: {what}");
}

/// Waits until `holds` returns true. Returns whether it did within [`PATIENCE`].
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
