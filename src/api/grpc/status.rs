//! Converts rejections to gRPC statuses with details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::wire::body::AnswerBody;
use crate::api::auth::caller::Denied;
use crate::api::decision::admission::RETRY_AFTER;
use crate::api::decision::error_reason::{ErrorReason, RejectionCode};
use crate::api::decision::rejection::Rejection;
use crate::api::metrics::code_label;
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
        let class = rejection.code();
        let code = grpc_code(class);
        if !carries_reason(class) {
            return Self::new(code, message);
        }
        let metadata = missing_permission(&rejection);
        let mut details = ErrorDetails::with_error_info(rejection.reason(), ERROR_DOMAIN, metadata);
        if class == RejectionCode::Overloaded {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Self::with_error_details(code, message, details)
    }
}

const fn grpc_code(class: RejectionCode) -> Code {
    match class {
        RejectionCode::InvalidArgument => Code::InvalidArgument,
        RejectionCode::LimitExceeded | RejectionCode::Overloaded => Code::ResourceExhausted,
        RejectionCode::Unavailable => Code::Unavailable,
        RejectionCode::DeadlineExceeded => Code::DeadlineExceeded,
        RejectionCode::Unauthenticated => Code::Unauthenticated,
        RejectionCode::PermissionDenied => Code::PermissionDenied,
    }
}

/// Returns whether a status of this class names its reason in `ErrorInfo`.
const fn carries_reason(class: RejectionCode) -> bool {
    match class {
        RejectionCode::Unauthenticated
        | RejectionCode::PermissionDenied
        | RejectionCode::Overloaded => true,
        RejectionCode::InvalidArgument
        | RejectionCode::LimitExceeded
        | RejectionCode::Unavailable
        | RejectionCode::DeadlineExceeded => false,
    }
}

/// A reason for which requests are rejected, as the documentation lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedReason {
    /// The name in `ErrorInfo` and in the decision log.
    pub name: &'static str,
    /// The gRPC status of the rejection.
    pub status: &'static str,
    /// True if the status names the reason in `ErrorInfo`; else only the decision log does.
    pub is_sent: bool,
    /// The meaning, in one line.
    pub description: &'static str,
}

/// Returns all reasons but those of tokens, which [`RejectionReason`](crate::pip::RejectionReason)
/// lists.
#[must_use]
pub fn listed_reasons() -> Vec<ListedReason> {
    let listed = |reason: &ErrorReason| ListedReason {
        name: reason.name(),
        status: code_label(grpc_code(reason.code()) as usize),
        is_sent: carries_reason(reason.code()),
        description: reason.description(),
    };
    ErrorReason::ALL.iter().map(listed).collect()
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
