//! The caller's deadline: the `grpc-timeout` header, counted from when the call's headers came.

use std::time::Duration;

use tokio::time::Instant;

use super::status::Rejection;

/// When the caller stops waiting, if it said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline of a call whose headers have just come.
    ///
    /// A header that is no timeout is no deadline, as in tonic.
    pub(super) fn begin(headers: &http::HeaderMap) -> Self {
        let timeout = headers
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse);
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// When it passes; `None` is never.
    pub(super) fn at(self) -> Option<Instant> {
        self.0
    }

    /// Whether there is time left.
    pub(super) fn check(self) -> Result<(), Rejection> {
        match self.0 {
            Some(at) if Instant::now() >= at => Err(Rejection::DeadlinePassed),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns when it has passed.
    pub(super) async fn passed(self) {
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
