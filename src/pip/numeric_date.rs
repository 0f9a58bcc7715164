//! Points in time as tokens write them (RFC 7519, NumericDate).
//!
//! Nothing here reads the clock: callers pass the current time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::json::Json;

/// A point in time in milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumericDate(i64);

/// The end of the year 9999, in seconds.
const MAX_SECONDS: i64 = 253_402_300_799;

impl NumericDate {
    /// The earliest value, before any date that a token can hold.
    pub(super) const MIN: Self = Self(i64::MIN);

    /// Reads a claim. Returns `None` if it is not a number, or not from 1970 to 9999.
    pub(super) fn from_claim(claim: &Json) -> Option<Self> {
        if let Some(seconds) = claim.as_i64() {
            return Self::from_seconds(seconds);
        }
        let seconds = claim.as_f64()?;
        if !(0.0..=MAX_SECONDS as f64).contains(&seconds) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the range was just checked"
        )]
        Some(Self((seconds * 1_000.0).round() as i64))
    }

    /// Converts seconds since 1970. Returns `None` before 1970 and after 9999.
    pub(super) fn from_seconds(seconds: i64) -> Option<Self> {
        (0..=MAX_SECONDS)
            .contains(&seconds)
            .then(|| Self(seconds * 1_000))
    }

    pub(super) fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    pub(super) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// Formats the date as RFC 3339, in UTC with milliseconds.
    pub(super) fn to_rfc3339(self) -> String {
        // INVARIANT: dates from claims are neither before 1970 nor after 9999.
        let since_epoch = Duration::from_millis(u64::try_from(self.0).unwrap_or(0));
        let time = UNIX_EPOCH.checked_add(since_epoch).unwrap_or(UNIX_EPOCH);
        humantime::format_rfc3339_millis(time).to_string()
    }
}

impl From<SystemTime> for NumericDate {
    fn from(time: SystemTime) -> Self {
        Self(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => millis(since),
            Err(before) => -millis(before.duration()),
        })
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_is_seconds_with_optional_fraction() {
        let read = |claim: Json| NumericDate::from_claim(&claim);
        assert_eq!(
            read(Json::from(1_700_000_000)),
            Some(NumericDate(1_700_000_000_000))
        );
        assert_eq!(
            read(Json::from(1_700_000_000.25)),
            Some(NumericDate(1_700_000_000_250))
        );
        for claim in [
            Json::from(-1),
            Json::from(i64::MAX),
            Json::from(1e300),
            Json::from(-0.5),
            Json::String("1700000000".to_owned()),
            Json::Null,
        ] {
            assert_eq!(read(claim.clone()), None, "{claim:?}");
        }
    }

    #[test]
    fn date_is_formatted_as_cedar_reads_it() {
        let date = NumericDate::from_seconds(1_728_992_100).unwrap();
        assert_eq!(date.to_rfc3339(), "2024-10-15T11:35:00.000Z");
    }
}
