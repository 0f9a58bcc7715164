//! A call's deadline: the `grpc-timeout` header or the service's own limit, whichever is earlier.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::decision::rejection::Rejection;

/// The time at which a call must be answered; `None` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// Returns the deadline of a call whose headers arrived at `arrived_at`, and which may take
    /// `max_time` at most.
    ///
    /// A malformed header is ignored, as in tonic.
    pub(crate) fn new(
        headers: &http::HeaderMap,
        arrived_at: std::time::Instant,
        max_time: Option<Duration>,
    ) -> Self {
        let timeout = headers
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse);
        let timeout = [timeout, max_time].into_iter().flatten().min();
        Self(timeout.and_then(|timeout| Instant::from_std(arrived_at).checked_add(timeout)))
    }

    /// Returns the time at which it passes; `None` is never.
    pub(crate) fn at(self) -> Option<Instant> {
        self.0
    }

    /// Rejects the call if the deadline has passed.
    pub(crate) fn check(self) -> Result<(), Rejection> {
        match self.0 {
            Some(at) if Instant::now() >= at => Err(Rejection::DeadlineExceeded),
            Some(_) | None => Ok(()),
        }
    }

    /// Waits until the deadline has passed.
    pub(crate) async fn passed(self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// Parses a timeout of the gRPC protocol: at most eight digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3_600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_of_two_deadlines_wins() {
        let now = std::time::Instant::now();
        let after = |header: Option<&str>, most: Option<u64>| {
            let mut headers = http::HeaderMap::new();
            if let Some(header) = header {
                headers.insert("grpc-timeout", header.parse().unwrap());
            }
            let deadline = Deadline::new(&headers, now, most.map(Duration::from_secs));
            deadline.at().map(|at| (at.into_std() - now).as_secs())
        };
        assert_eq!(after(None, None), None);
        assert_eq!(after(Some("nonsense"), None), None);
        assert_eq!(after(Some("3S"), None), Some(3));
        assert_eq!(after(None, Some(5)), Some(5));
        assert_eq!(after(Some("3S"), Some(5)), Some(3));
        assert_eq!(after(Some("7S"), Some(5)), Some(5));
        assert_eq!(after(Some("nonsense"), Some(5)), Some(5));
    }

    #[test]
    fn grpc_timeouts_are_parsed() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for bad in ["", "m", "1", "1x", "-1m", "123456789m", "1.5S", "mä"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
