//! The time that certificates are compared with, in seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the current time, in seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    // With a clock before 1970 nothing has expired.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed())
}
