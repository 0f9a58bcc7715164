//! A call's deadline: the `grpc-timeout` header or the service's own bound, whichever is nearer,
//! counted from when the call's headers came.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::decision::rejection::Rejection;

/// When the caller stops waiting, if it said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline of a call whose headers have come `now`, and which may take no longer than
    /// `most`.
    ///
    /// A header that is no timeout is no deadline, as in tonic.
    pub(crate) fn begin(
        headers: &http::HeaderMap,
        now: std::time::Instant,
        most: Option<Duration>,
    ) -> Self {
        let timeout = headers
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse);
        let timeout = [timeout, most].into_iter().flatten().min();
        Self(timeout.and_then(|timeout| Instant::from_std(now).checked_add(timeout)))
    }

    /// When it passes; `None` is never.
    pub(crate) fn at(self) -> Option<Instant> {
        self.0
    }

    /// Whether there is time left.
    pub(crate) fn check(self) -> Result<(), Rejection> {
        match self.0 {
            Some(at) if Instant::now() >= at => Err(Rejection::DeadlineExceeded),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns when it has passed.
    pub(crate) async fn passed(self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// A timeout as gRPC writes it: at most eight digits and a unit.
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
    fn the_nearer_of_two_deadlines_holds() {
        let now = std::time::Instant::now();
        let after = |header: Option<&str>, most: Option<u64>| {
            let mut headers = http::HeaderMap::new();
            if let Some(header) = header {
                headers.insert("grpc-timeout", header.parse().unwrap());
            }
            let deadline = Deadline::begin(&headers, now, most.map(Duration::from_secs));
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
    fn timeouts_are_read_as_grpc_writes_them() {
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
