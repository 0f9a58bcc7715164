//! A point in time as tokens tell it. Who reads the clock is the caller: nothing here does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::json::Json;

/// Milliseconds since the beginning of 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment(i64);

/// The end of the year 9999, in seconds.
const LAST_SECOND: i64 = 253_402_300_799;

impl Moment {
    /// Before all others.
    pub(super) const EARLIEST: Self = Self(i64::MIN);

    /// What a token's NumericDate says; `None` for what is no number, or no date of these times.
    pub(super) fn of_claim(claim: &Json) -> Option<Self> {
        match claim {
            Json::Integer(seconds) => Self::of_seconds(*seconds),
            Json::Float(seconds) if (0.0..=LAST_SECOND as f64).contains(seconds) =>
            {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "the range was just looked at"
                )]
                Some(Self((seconds * 1_000.0).round() as i64))
            }
            Json::Float(_)
            | Json::Null
            | Json::Bool(_)
            | Json::String(_)
            | Json::Array(_)
            | Json::Object(_) => None,
        }
    }

    /// So many seconds after the beginning of 1970, up to the year 9999.
    pub(super) fn of_seconds(seconds: i64) -> Option<Self> {
        (0..=LAST_SECOND)
            .contains(&seconds)
            .then(|| Self(seconds * 1_000))
    }

    /// So much later.
    pub(super) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// So much earlier.
    pub(super) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// As RFC 3339 writes it, to the millisecond, in UTC.
    pub(super) fn to_rfc3339(self) -> String {
        // INVARIANT: moments of claims are neither before 1970 nor after 9999.
        let since = Duration::from_millis(u64::try_from(self.0).unwrap_or(0));
        let at = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
        humantime::format_rfc3339_millis(at).to_string()
    }
}

impl From<SystemTime> for Moment {
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
    fn a_date_is_a_number_of_seconds_with_or_without_a_fraction() {
        let at = |claim: Json| Moment::of_claim(&claim);
        assert_eq!(
            at(Json::Integer(1_700_000_000)),
            Some(Moment(1_700_000_000_000))
        );
        assert_eq!(
            at(Json::Float(1_700_000_000.25)),
            Some(Moment(1_700_000_000_250))
        );
        for claim in [
            Json::Integer(-1),
            Json::Integer(i64::MAX),
            Json::Float(1e300),
            Json::Float(-0.5),
            Json::Float(f64::NAN),
            Json::String("1700000000".to_owned()),
            Json::Null,
        ] {
            assert_eq!(at(claim.clone()), None, "{claim:?}");
        }
    }

    #[test]
    fn a_date_is_written_as_cedar_reads_it() {
        let at = Moment::of_seconds(1_728_992_100).unwrap();
        assert_eq!(at.to_rfc3339(), "2024-10-15T11:35:00.000Z");
    }
}
