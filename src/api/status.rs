//! Everything that is not an answer, as a gRPC status with details.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::admission::RETRY_AFTER;
use super::callers::{IdentityKind, Right};
use crate::pdp::answer::NoAnswer;
use crate::pdp::query::InvalidQuery;
use crate::pip::{RejectionReason, TokenRejection};

/// The `domain` of every `google.rpc.ErrorInfo` of ours.
pub const ERROR_DOMAIN: &str = "cedar-pdp";

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    /// The request is malformed or does not fit the schema.
    #[error(transparent)]
    Invalid(#[from] InvalidQuery),
    /// Deciding the request would take more than it may.
    #[error("{0}")]
    TooCostly(NoAnswer),
    /// The request holds more of something than is taken.
    #[error("more than {most} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The most that is taken.
        most: usize,
    },
    /// A token was sent that is not believed.
    #[error("{0}")]
    Token(TokenRejection),
    /// A token is believed, and the entity that it names must be stored and is not.
    #[error("{}", NoAnswer::UnknownPrincipal)]
    UnknownPrincipal,
    /// The list of callers knows nobody like this.
    #[error("the caller is unknown: it shows no certificate, key or user id that is listed")]
    CallerUnknown,
    /// A key was sent that is nobody's.
    #[error("the bearer key is unknown")]
    KeyUnknown,
    /// The caller is known, and may not.
    #[error("the caller has no right to `{0}`")]
    RightMissing(Right),
    /// The caller may not ask on behalf of whom it does.
    #[error("the caller may not send this identity: {0}")]
    IdentityNotAllowed(IdentityKind),
    /// Nobody is told why.
    #[error("explanations are turned off")]
    ExplainOff,
    /// No policy directory has been loaded yet.
    #[error("no policies have been loaded yet")]
    NothingLoaded,
    /// The caller's deadline passed.
    #[error("the deadline passed before there was an answer")]
    DeadlinePassed,
    /// More is asked than can be answered in time.
    #[error("more calls come than can be answered in time; send this one again later")]
    Overloaded,
    /// More calls wait than may.
    #[error("too many calls are waiting; send this one again later")]
    TooManyCalls,
    /// More is held of requests that have not come in full than may be.
    #[error("too much is held of requests that have not come in full; send this one again later")]
    TooMuchPending,
    /// The service is going down.
    #[error("the service is shutting down")]
    ShuttingDown,
}

impl Rejection {
    /// What the decision log calls it, and `ErrorInfo` where there is one.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::TooCostly(NoAnswer::TooManyPolicies { .. }) => "TOO_MANY_POLICIES",
            Self::TooCostly(_) => "TOO_MANY_ENTITIES",
            Self::TooMany { .. } => "TOO_MANY_ITEMS",
            Self::Token(TokenRejection { reason, .. }) => reason.code(),
            Self::UnknownPrincipal => RejectionReason::PrincipalUnknown.code(),
            Self::CallerUnknown => "CALLER_UNKNOWN",
            Self::KeyUnknown => "KEY_UNKNOWN",
            Self::RightMissing(_) => "RIGHT_MISSING",
            Self::IdentityNotAllowed(_) => "IDENTITY_NOT_ALLOWED",
            Self::ExplainOff => "EXPLAIN_OFF",
            Self::NothingLoaded => "NOTHING_LOADED",
            Self::DeadlinePassed => "DEADLINE_PASSED",
            Self::Overloaded => "OVERLOADED",
            Self::TooManyCalls => "TOO_MANY_CALLS",
            Self::TooMuchPending => "TOO_MUCH_PENDING",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }
}

/// The longest text of an error, and the longest field path, in bytes.
///
/// A status travels in HTTP headers, of which many callers take 8 KiB in all, and errors quote what
/// the caller sent.
const LONGEST_MESSAGE: usize = 600;
const LONGEST_FIELD: usize = 1_500;

/// `text`, cut off at a character before `most` bytes, and marked as cut.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

impl From<NoAnswer> for Rejection {
    fn from(no_answer: NoAnswer) -> Self {
        match no_answer {
            NoAnswer::Invalid(invalid) => Self::Invalid(invalid),
            NoAnswer::UnknownPrincipal => Self::UnknownPrincipal,
            NoAnswer::TooManyPolicies { .. } | NoAnswer::TooManyEntities { .. } => {
                Self::TooCostly(no_answer)
            }
        }
    }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let message = shortened(&rejection.to_string(), LONGEST_MESSAGE);
        let reason = rejection.reason();
        let refused = |code, about: Option<(&str, String)>| {
            let about: HashMap<_, _> = about
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect();
            let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, about);
            Self::with_error_details(code, message.clone(), details)
        };
        match rejection {
            Rejection::Invalid(InvalidQuery { field, problem }) => Self::with_error_details(
                Code::InvalidArgument,
                message,
                ErrorDetails::with_bad_request_violation(
                    shortened(field.as_str(), LONGEST_FIELD),
                    shortened(&problem.to_string(), LONGEST_MESSAGE),
                ),
            ),
            Rejection::Token(_)
            | Rejection::UnknownPrincipal
            | Rejection::CallerUnknown
            | Rejection::KeyUnknown => refused(Code::Unauthenticated, None),
            Rejection::RightMissing(right) => {
                refused(Code::PermissionDenied, Some(("right", right.to_string())))
            }
            Rejection::IdentityNotAllowed(kind) => {
                refused(Code::PermissionDenied, Some(("identity", kind.to_string())))
            }
            Rejection::ExplainOff => refused(Code::PermissionDenied, None),
            Rejection::Overloaded | Rejection::TooManyCalls | Rejection::TooMuchPending => {
                let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, []);
                details.set_retry_info(Some(RETRY_AFTER));
                Self::with_error_details(Code::ResourceExhausted, message, details)
            }
            Rejection::TooMany { .. } | Rejection::TooCostly(_) => {
                Self::resource_exhausted(message)
            }
            Rejection::NothingLoaded | Rejection::ShuttingDown => Self::unavailable(message),
            Rejection::DeadlinePassed => Self::deadline_exceeded(message),
        }
    }
}

/// A status as a message, for an item of a batch or stream.
pub(super) fn to_message(status: &Status) -> tonic_types::Status {
    use prost::Message as _;
    // A status with details carries itself, encoded, with the details; one without carries nothing.
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

/// What our contract calls what tonic says by itself.
///
/// tonic calls a message beyond the size limit OUT_OF_RANGE.
pub(super) fn by_contract(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message().to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => status,
    }
}
