//! Classifies failed exports as OTLP's specification does: to be sent again, or not.
//! <https://opentelemetry.io/docs/specs/otlp/#failures>

use std::error::Error as _;
use std::fmt::Display;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The most characters of a collector's message that are logged.
const MAX_REASON_CHARS: usize = 200;

/// An export that the collector did not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::telemetry) struct ExportError {
    pub(in crate::telemetry) reason: String,
    /// True if the collector may accept the message later, or after a change of settings.
    pub(in crate::telemetry) is_retryable: bool,
    /// The pause that the collector requests before the next attempt.
    pub(in crate::telemetry) pause: Option<Duration>,
}

impl ExportError {
    pub(super) fn unanswered(reason: impl Display) -> Self {
        Self {
            reason: reason.to_string(),
            is_retryable: true,
            pause: None,
        }
    }

    pub(super) fn from_grpc(status: Status) -> Self {
        let code = status.code();
        let info = status.get_details_retry_info();
        let pause = info.and_then(|info| info.retry_delay);
        // Without a pause, RESOURCE_EXHAUSTED means that the message is too large for ever.
        let is_retryable = (code == Code::ResourceExhausted && pause.is_some())
            || matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
                    // The message is valid: a setting, here or there, is wrong.
                    | Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::Unimplemented
            );
        Self {
            reason: format!("{code:?}: {}", shorten(status.message())),
            // tonic sets a source if the connection failed; a collector's own status has none.
            is_retryable: is_retryable || status.source().is_some(),
            pause,
        }
    }

    /// Classifies an HTTP response that is not a success.
    pub(super) fn from_http(status: StatusCode, headers: &HeaderMap) -> Self {
        let seconds = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            reason: format!("HTTP status {status}"),
            is_retryable: matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
                    // The message is valid: a setting, here or there, is wrong.
                    | StatusCode::UNAUTHORIZED
                    | StatusCode::FORBIDDEN
                    | StatusCode::NOT_FOUND
            ),
            pause: seconds.map(Duration::from_secs),
        }
    }
}

/// Cuts a collector's message to a length that suits a log line.
pub(in crate::telemetry) fn shorten(message: &str) -> String {
    message.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn transient_and_configuration_errors_are_retryable() {
        let codes: Vec<i32> = (1..=16)
            .filter(|code| ExportError::from_grpc(Status::new((*code).into(), "")).is_retryable)
            .collect();
        // CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED,
        // UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED.
        assert_eq!(codes, [1, 4, 7, 10, 11, 12, 14, 15, 16]);
        let statuses: Vec<u16> = (300..600)
            .filter(|status| {
                let status = StatusCode::from_u16(*status).unwrap();
                ExportError::from_http(status, &HeaderMap::new()).is_retryable
            })
            .collect();
        assert_eq!(statuses, [401, 403, 404, 429, 502, 503, 504]);
    }

    #[test]
    fn requested_pause_is_read() {
        let pause = Some(Duration::from_secs(7));
        let details = ErrorDetails::with_retry_info(pause);
        let full = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let error = ExportError::from_grpc(full);
        assert_eq!((error.is_retryable, error.pause), (true, pause));
        assert_eq!(error.reason, "ResourceExhausted: full");
        let headers = [(RETRY_AFTER, HeaderValue::from_static("7"))];
        let headers = headers.into_iter().collect();
        let error = ExportError::from_http(StatusCode::TOO_MANY_REQUESTS, &headers);
        assert_eq!((error.is_retryable, error.pause), (true, pause));
        assert_eq!(error.reason, "HTTP status 429 Too Many Requests");
    }

    #[test]
    fn failed_connection_is_retryable() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("reset")));
        assert!(ExportError::from_grpc(status).is_retryable);
    }
}
