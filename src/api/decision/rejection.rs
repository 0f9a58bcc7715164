//! The reasons for which a request is rejected.
//!
//! Each protocol converts a rejection to its own error, from `code`, `reason` and text.

use crate::api::auth::caller::Denied;
use crate::api::metrics::{CallMetrics, RejectionLabel};
use crate::pdp::answer::NoAnswer;
use crate::pdp::query::InvalidQuery;
use crate::pip::TokenRejection;

/// A reason for which a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The request is invalid, or deciding it would exceed a limit.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("more than {limit} {items}")]
    TooManyItems { items: &'static str, limit: usize },
    /// The principal's token is invalid.
    #[error("{0}")]
    Token(TokenRejection),
    /// The caller may not make the call.
    #[error(transparent)]
    Caller(#[from] Denied),
    #[error("explanations are turned off")]
    ExplainDisabled,
    #[error("no policies have been loaded yet")]
    NothingLoaded,
    #[error("the deadline passed before there was an answer")]
    DeadlineExceeded,
    /// The call was shed, because it and others wait too long.
    #[error("overloaded: calls wait too long; retry later")]
    Overloaded,
    #[error("too many calls are waiting; retry later")]
    TooManyCalls,
    /// The memory budget of buffered requests and responses is spent.
    #[error("too many bytes of incomplete requests are buffered; retry later")]
    BuffersFull,
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
    DeadlineExceeded,
}

impl Rejection {
    pub(crate) fn code(&self) -> RejectionCode {
        self.classify().0
    }

    /// Returns the machine-readable reason, for `ErrorInfo` and the decision log.
    pub(crate) fn reason(&self) -> &'static str {
        self.classify().1
    }

    /// Counts the rejection under its label, if rejections are counted.
    pub(crate) fn count(&self, metrics: Option<&CallMetrics>) {
        if let Some(metrics) = metrics {
            metrics.count_rejection(self.classify().2);
        }
    }

    fn classify(&self) -> (RejectionCode, &'static str, RejectionLabel) {
        use RejectionCode as Code;
        use RejectionLabel as Label;
        match self {
            Self::NoAnswer(no_answer) => {
                let (code, label) = match no_answer {
                    NoAnswer::Invalid(_) => (Code::InvalidArgument, Label::Invalid),
                    NoAnswer::UnknownPrincipal => (Code::Unauthenticated, Label::Token),
                    NoAnswer::TooManyPolicies { .. } => {
                        (Code::LimitExceeded, Label::TooManyPolicies)
                    }
                    NoAnswer::TooManyEntities { .. } => {
                        (Code::LimitExceeded, Label::TooManyEntities)
                    }
                };
                (code, no_answer.reason(), label)
            }
            Self::TooManyItems { .. } => {
                (Code::LimitExceeded, "TOO_MANY_ITEMS", Label::TooManyItems)
            }
            Self::Token(TokenRejection { reason, .. }) => {
                (Code::Unauthenticated, reason.code(), Label::Token)
            }
            Self::Caller(denied) => {
                let (code, reason) = match denied {
                    Denied::UnknownCaller => (Code::Unauthenticated, "CALLER_UNKNOWN"),
                    Denied::UnknownKey => (Code::Unauthenticated, "KEY_UNKNOWN"),
                    Denied::MissingRight(_) => (Code::PermissionDenied, "RIGHT_MISSING"),
                    Denied::IdentityNotAllowed(_) => {
                        (Code::PermissionDenied, "IDENTITY_NOT_ALLOWED")
                    }
                };
                (code, reason, Label::Caller)
            }
            Self::ExplainDisabled => (Code::PermissionDenied, "EXPLAIN_OFF", Label::Caller),
            Self::NothingLoaded => (Code::Unavailable, "NOTHING_LOADED", Label::NothingLoaded),
            Self::DeadlineExceeded => (
                Code::DeadlineExceeded,
                "DEADLINE_PASSED",
                Label::DeadlineExceeded,
            ),
            Self::Overloaded => (Code::Overloaded, "OVERLOADED", Label::Overloaded),
            Self::TooManyCalls => (Code::Overloaded, "TOO_MANY_CALLS", Label::TooManyCalls),
            Self::BuffersFull => (Code::Overloaded, "TOO_MUCH_PENDING", Label::BuffersFull),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN", Label::ShuttingDown),
        }
    }
}

impl From<InvalidQuery> for Rejection {
    fn from(invalid: InvalidQuery) -> Self {
        NoAnswer::Invalid(invalid).into()
    }
}
