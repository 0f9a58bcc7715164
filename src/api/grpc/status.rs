//! Converts rejections to gRPC statuses with details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::wire::body::AnswerBody;
use crate::api::auth::caller::Denied;
use crate::api::decision::admission::RETRY_AFTER;
use crate::api::decision::rejection::{Rejection, RejectionCode};
use crate::pdp::NoAnswer;
use crate::pdp::query::InvalidQuery;

/// The `domain` of every `google.rpc.ErrorInfo` that the service sends.
pub const ERROR_DOMAIN: &str = "cedar-pdp";

/// Most bytes of an error's text.
///
/// A status is sent in HTTP headers, of which many callers accept 8 KiB in all, and errors quote
/// the request.
const MAX_MESSAGE_BYTES: usize = 600;
/// Most bytes of a field path.
const MAX_FIELD_BYTES: usize = 1_500;

/// Truncates `text` to `max` bytes at a character boundary, and marks the cut.
fn truncated(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = truncated(&rejection.to_string(), MAX_MESSAGE_BYTES);
        if let Rejection::NoAnswer(NoAnswer::Invalid(InvalidQuery { field, problem })) = &rejection
        {
            let details = ErrorDetails::with_bad_request_violation(
                truncated(field.as_str(), MAX_FIELD_BYTES),
                truncated(&problem.to_string(), MAX_MESSAGE_BYTES),
            );
            return Self::with_error_details(Code::InvalidArgument, message, details);
        }
        let metadata = missing_permission(&rejection);
        let mut details = ErrorDetails::with_error_info(rejection.reason(), ERROR_DOMAIN, metadata);
        let code = match rejection.code() {
            RejectionCode::InvalidArgument => return Self::invalid_argument(message),
            RejectionCode::LimitExceeded => return Self::resource_exhausted(message),
            RejectionCode::Unavailable => return Self::unavailable(message),
            RejectionCode::DeadlineExceeded => return Self::deadline_exceeded(message),
            RejectionCode::Unauthenticated => Code::Unauthenticated,
            RejectionCode::PermissionDenied => Code::PermissionDenied,
            RejectionCode::Overloaded => {
                details.set_retry_info(Some(RETRY_AFTER));
                Code::ResourceExhausted
            }
        };
        Self::with_error_details(code, message, details)
    }
}

/// Returns the right or the identity kind that the caller lacks, for the metadata of `ErrorInfo`.
fn missing_permission(rejection: &Rejection) -> HashMap<String, String> {
    let Rejection::Caller(denied) = rejection else {
        return HashMap::new();
    };
    let (name, value) = match denied {
        Denied::MissingRight(right) => ("right", right.label()),
        Denied::IdentityNotAllowed(kind) => ("identity", kind.label()),
        Denied::UnknownCaller | Denied::UnknownKey => return HashMap::new(),
    };
    HashMap::from([(name.to_owned(), value.to_owned())])
}

/// Returns the whole response of a call that is rejected.
pub(super) fn rejected(rejection: Rejection) -> http::Response<AnswerBody> {
    Status::from(rejection).into_http().map(AnswerBody::tonic)
}

/// Returns the headers of a trailers-only response with a retry delay.
pub(super) fn retry_later(rejection: Rejection) -> http::HeaderMap {
    let mut headers = rejected(rejection).headers().clone();
    // Clients with a retry policy read this header: gRPC proposal A6.
    let pause = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(u64::MAX);
    headers.insert("grpc-retry-pushback-ms", pause.into());
    headers
}

/// Converts a status to a message, for an item of a batch or stream.
pub(crate) fn to_message(status: &Status) -> tonic_types::Status {
    use prost::Message as _;
    // The details, if there are any, hold the whole status as an encoded message.
    if !status.details().is_empty()
        && let Ok(message) = tonic_types::Status::decode(status.details())
    {
        return message;
    }
    tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    }
}

/// Maps OUT_OF_RANGE to RESOURCE_EXHAUSTED.
///
/// tonic rejects a message beyond the size limit as OUT_OF_RANGE; the contract says
/// RESOURCE_EXHAUSTED. No method of the services has a use for OUT_OF_RANGE.
pub(crate) fn map_out_of_range(status: Status) -> Status {
    match status.code() == Code::OutOfRange {
        true => Status::resource_exhausted(status.message()),
        false => status,
    }
}

/// Maps OUT_OF_RANGE in the headers of a response, as [`map_out_of_range`] does.
pub(crate) fn map_out_of_range_header(
    mut response: http::Response<AnswerBody>,
) -> http::Response<AnswerBody> {
    if let AnswerBody::Encoded(_) = response.body() {
        return response;
    }
    const OUT_OF_RANGE: i32 = Code::OutOfRange as i32;
    if let Some(status) = response.headers_mut().get_mut("grpc-status")
        && status.to_str().ok().and_then(|code| code.parse().ok()) == Some(OUT_OF_RANGE)
    {
        *status = http::HeaderValue::from(Code::ResourceExhausted as i32);
    }
    response
}
