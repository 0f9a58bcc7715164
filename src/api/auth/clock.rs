//! What certificates are held against: the time, in seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time now, in seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    // A clock before 1970 finds nothing expired.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed())
}
