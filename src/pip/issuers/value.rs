//! Values of the issuers file, and the error for an invalid one.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A value that is not allowed for its key.
#[derive(Debug)]
pub(super) struct InvalidValue {
    pub(super) key: String,
    pub(super) problem: String,
}

impl InvalidValue {
    /// Creates the error for `key`.
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Returns a duration in seconds.
pub(super) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Parses a duration such as `30s` and checks its range. Returns `default` if it is not set.
pub(super) fn duration(
    key: &str,
    text: Option<&String>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, InvalidValue> {
    let Some(text) = text else {
        return Ok(default);
    };
    let format = |duration: &Duration| humantime::format_duration(*duration).to_string();
    match humantime::parse_duration(text) {
        Ok(duration) if range.contains(&duration) => Ok(duration),
        Ok(_) => Err(InvalidValue::new(
            key,
            format!(
                "is `{text}`; allowed: {} to {}",
                format(range.start()),
                format(range.end())
            ),
        )),
        Err(error) => Err(InvalidValue::new(
            key,
            format!("is `{text}`, which is not a duration such as `30s`: {error}"),
        )),
    }
}
