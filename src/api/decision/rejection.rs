//! The reasons for which a request is rejected.
//!
//! Each protocol converts a rejection to its own error, from `code`, `reason` and text.

use super::admission::Overload;
use crate::api::auth::caller::Denied;
use crate::api::metrics::RejectionLabel;
use crate::pdp::answer::NoAnswer;
use crate::pdp::query::InvalidQuery;
use crate::pip::{RejectionReason, TokenRejection};

/// A reason for which a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The request is malformed or does not fit the schema.
    #[error(transparent)]
    Invalid(#[from] InvalidQuery),
    /// Deciding the request would exceed a limit.
    #[error("{0}")]
    TooCostly(NoAnswer),
    /// The request holds more items than allowed.
    #[error("more than {limit} {items}")]
    TooManyItems {
        /// The kind of items.
        items: &'static str,
        /// Most items allowed.
        limit: usize,
    },
    /// The principal's token is invalid.
    #[error("{0}")]
    Token(TokenRejection),
    /// The token is valid, but its principal must be a stored entity and is not.
    #[error("{}", NoAnswer::UnknownPrincipal)]
    UnknownPrincipal,
    /// The caller may not make the call.
    #[error(transparent)]
    Caller(#[from] Denied),
    /// Explanations are disabled.
    #[error("explanations are turned off")]
    ExplainDisabled,
    /// No policy directory has been loaded yet.
    #[error("no policies have been loaded yet")]
    NothingLoaded,
    /// The call's deadline passed.
    #[error("the deadline passed before there was an answer")]
    DeadlineExceeded,
    /// The call was shed, because calls wait too long.
    #[error("overloaded: calls wait too long; retry later")]
    Overloaded,
    /// Too many calls are waiting.
    #[error("too many calls are waiting; retry later")]
    TooManyCalls,
    /// The memory budget of buffered requests and responses is spent.
    #[error("too many bytes of incomplete requests are buffered; retry later")]
    BuffersFull,
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
}

/// The class of a rejection, from which each protocol derives its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RejectionCode {
    /// The request is at fault.
    InvalidArgument,
    /// Caller or principal are not authenticated.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// A limit is exceeded by the request itself; a retry cannot succeed.
    LimitExceeded,
    /// The service is over capacity; a retry may succeed.
    Overloaded,
    /// The service cannot decide now.
    Unavailable,
    /// The deadline passed.
    DeadlineExceeded,
}

impl Rejection {
    /// Returns the class of the rejection.
    pub(crate) fn code(&self) -> RejectionCode {
        match self {
            Self::Invalid(_) => RejectionCode::InvalidArgument,
            Self::Token(_)
            | Self::UnknownPrincipal
            | Self::Caller(Denied::UnknownCaller | Denied::UnknownKey) => {
                RejectionCode::Unauthenticated
            }
            Self::Caller(Denied::MissingRight(_) | Denied::IdentityNotAllowed(_))
            | Self::ExplainDisabled => RejectionCode::PermissionDenied,
            Self::TooManyItems { .. } | Self::TooCostly(_) => RejectionCode::LimitExceeded,
            Self::Overloaded | Self::TooManyCalls | Self::BuffersFull => RejectionCode::Overloaded,
            Self::NothingLoaded | Self::ShuttingDown => RejectionCode::Unavailable,
            Self::DeadlineExceeded => RejectionCode::DeadlineExceeded,
        }
    }

    /// Returns the machine-readable reason, for `ErrorInfo` and the decision log.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::TooCostly(no_answer) => no_answer.reason(),
            Self::TooManyItems { .. } => "TOO_MANY_ITEMS",
            Self::Token(TokenRejection { reason, .. }) => reason.code(),
            Self::UnknownPrincipal => RejectionReason::PrincipalUnknown.code(),
            Self::Caller(Denied::UnknownCaller) => "CALLER_UNKNOWN",
            Self::Caller(Denied::UnknownKey) => "KEY_UNKNOWN",
            Self::Caller(Denied::MissingRight(_)) => "RIGHT_MISSING",
            Self::Caller(Denied::IdentityNotAllowed(_)) => "IDENTITY_NOT_ALLOWED",
            Self::ExplainDisabled => "EXPLAIN_OFF",
            Self::NothingLoaded => "NOTHING_LOADED",
            Self::DeadlineExceeded => "DEADLINE_PASSED",
            Self::Overloaded => "OVERLOADED",
            Self::TooManyCalls => "TOO_MANY_CALLS",
            Self::BuffersFull => "TOO_MUCH_PENDING",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }

    /// Returns the metric label that the rejection is counted under.
    pub(crate) fn label(&self) -> RejectionLabel {
        match self {
            Self::Invalid(_) | Self::TooCostly(NoAnswer::Invalid(_)) => RejectionLabel::Invalid,
            Self::TooCostly(NoAnswer::TooManyPolicies { .. }) => RejectionLabel::TooManyPolicies,
            Self::TooCostly(NoAnswer::TooManyEntities { .. }) => RejectionLabel::TooManyEntities,
            Self::TooManyItems { .. } => RejectionLabel::TooManyItems,
            Self::Caller(_) | Self::ExplainDisabled => RejectionLabel::Caller,
            Self::Token(_)
            | Self::UnknownPrincipal
            | Self::TooCostly(NoAnswer::UnknownPrincipal) => RejectionLabel::Token,
            Self::NothingLoaded => RejectionLabel::NothingLoaded,
            Self::DeadlineExceeded => RejectionLabel::DeadlineExceeded,
            Self::Overloaded => RejectionLabel::Overloaded,
            Self::TooManyCalls => RejectionLabel::TooManyCalls,
            Self::BuffersFull => RejectionLabel::BuffersFull,
            Self::ShuttingDown => RejectionLabel::ShuttingDown,
        }
    }
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

impl From<Overload> for Rejection {
    fn from(overload: Overload) -> Self {
        match overload {
            Overload::QueueDelay => Self::Overloaded,
            Overload::TooManyCalls => Self::TooManyCalls,
        }
    }
}
