//! Classifies failed exports as OTLP's specification does: to be sent again, or not.
//! <https://opentelemetry.io/docs/specs/otlp/#failures>

use std::error::Error as _;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The most characters of a collector's message that are logged.
const MAX_REASON_CHARS: usize = 200;

/// An export that the collector did not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::telemetry) enum ExportError {
    /// The message may be accepted later, or after a change of settings.
    #[error("{reason}")]
    Retryable {
        /// The cause.
        reason: String,
        /// The pause that the collector requests before the next attempt.
        pause: Option<Duration>,
    },
    /// The message will never be accepted.
    #[error("{reason}")]
    Permanent {
        /// The cause.
        reason: String,
    },
}

impl ExportError {
    /// Makes the error of a message without a response.
    pub(super) fn unanswered(reason: String) -> Self {
        Self::Retryable {
            reason,
            pause: None,
        }
    }

    /// Classifies the status of a gRPC call.
    pub(super) fn from_grpc(status: Status) -> Self {
        let code = status.code();
        let reason = format!("{code:?}: {}", shorten(status.message()));
        // tonic sets a source if the connection failed; a collector's own status has none.
        let is_response = status.source().is_none();
        let pause = status
            .get_details_retry_info()
            .and_then(|info| info.retry_delay);
        let is_retryable = match code {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => true,
            // Without a pause, the message is too large for ever.
            Code::ResourceExhausted => pause.is_some(),
            // The message is valid: a setting, here or there, is wrong.
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => true,
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Internal => false,
        };
        match is_retryable || !is_response {
            true => Self::Retryable { reason, pause },
            false => Self::Permanent { reason },
        }
    }

    /// Classifies an HTTP response that is not a success.
    pub(super) fn from_http(status: StatusCode, headers: &HeaderMap) -> Self {
        let reason = format!("HTTP status {status}");
        let is_retryable = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
                // The message is valid: a setting, here or there, is wrong.
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
        );
        if !is_retryable {
            return Self::Permanent { reason };
        }
        let seconds = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Self::Retryable {
            reason,
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

    fn is_retryable(error: &ExportError) -> bool {
        matches!(error, ExportError::Retryable { .. })
    }

    #[test]
    fn transient_and_configuration_errors_are_retryable() {
        let codes: Vec<i32> = (1..=16)
            .filter(|code| is_retryable(&ExportError::from_grpc(Status::new((*code).into(), ""))))
            .collect();
        // CANCELLED, DEADLINE_EXCEEDED, PERMISSION_DENIED, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED,
        // UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED.
        assert_eq!(codes, [1, 4, 7, 10, 11, 12, 14, 15, 16]);
        let statuses: Vec<u16> = (300..600)
            .filter(|status| {
                let status = StatusCode::from_u16(*status).unwrap();
                is_retryable(&ExportError::from_http(status, &HeaderMap::new()))
            })
            .collect();
        assert_eq!(statuses, [401, 403, 404, 429, 502, 503, 504]);
    }

    #[test]
    fn requested_pause_is_read() {
        let pause = Some(Duration::from_secs(7));
        let details = ErrorDetails::with_retry_info(pause);
        let full = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let reason = "ResourceExhausted: full".to_owned();
        let expected = ExportError::Retryable { reason, pause };
        assert_eq!(ExportError::from_grpc(full), expected);
        let headers = [(RETRY_AFTER, HeaderValue::from_static("7"))];
        let headers = headers.into_iter().collect();
        let reason = "HTTP status 429 Too Many Requests".to_owned();
        assert_eq!(
            ExportError::from_http(StatusCode::TOO_MANY_REQUESTS, &headers),
            ExportError::Retryable { reason, pause }
        );
    }

    #[test]
    fn failed_connection_is_retryable() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("reset")));
        assert!(is_retryable(&ExportError::from_grpc(status)));
    }
}
