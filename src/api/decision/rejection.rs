//! The reasons for which a request is rejected.
//!
//! Each protocol converts a rejection to its own error, from `code`, `reason` and text.

use super::error_reason::{ErrorReason, RejectionCode};
use crate::api::auth::caller::Denied;
use crate::api::metrics::{CallMetrics, RejectionLabel};
use crate::pdp::answer::NoAnswer;
use crate::pdp::query::InvalidQuery;
use crate::pip::{RejectionReason, TokenRejection};

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
        let token = |reason: RejectionReason| {
            let code = RejectionCode::Unauthenticated;
            (code, reason.code(), RejectionLabel::Token)
        };
        let reason = match self {
            Self::Token(TokenRejection { reason, .. }) => return token(*reason),
            Self::NoAnswer(NoAnswer::UnknownPrincipal) => {
                return token(RejectionReason::PrincipalUnknown);
            }
            Self::NoAnswer(NoAnswer::Invalid(_)) => ErrorReason::InvalidRequest,
            Self::NoAnswer(NoAnswer::TooManyPolicies { .. }) => ErrorReason::TooManyPolicies,
            Self::NoAnswer(NoAnswer::TooManyEntities { .. }) => ErrorReason::TooManyEntities,
            Self::TooManyItems { .. } => ErrorReason::TooManyItems,
            Self::Caller(Denied::UnknownCaller) => ErrorReason::CallerUnknown,
            Self::Caller(Denied::UnknownKey) => ErrorReason::KeyUnknown,
            Self::Caller(Denied::MissingRight(_)) => ErrorReason::RightMissing,
            Self::Caller(Denied::IdentityNotAllowed(_)) => ErrorReason::IdentityNotAllowed,
            Self::ExplainDisabled => ErrorReason::ExplainOff,
            Self::NothingLoaded => ErrorReason::NothingLoaded,
            Self::DeadlineExceeded => ErrorReason::DeadlineExceeded,
            Self::Overloaded => ErrorReason::Overloaded,
            Self::TooManyCalls => ErrorReason::TooManyCalls,
            Self::BuffersFull => ErrorReason::BuffersFull,
            Self::ShuttingDown => ErrorReason::ShuttingDown,
        };
        (reason.code(), reason.name(), reason.label())
    }
}

impl From<InvalidQuery> for Rejection {
    fn from(invalid: InvalidQuery) -> Self {
        NoAnswer::Invalid(invalid).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_unique() {
        let reasons = ErrorReason::ALL.iter().map(|reason| reason.name());
        let tokens = RejectionReason::ALL.iter().map(|reason| reason.code());
        let names: BTreeSet<_> = reasons.chain(tokens).collect();
        let count = ErrorReason::ALL.len() + RejectionReason::ALL.len();
        assert_eq!(names.len(), count);
    }

    /// The engine logs such a rejection itself, by the reason of the core.
    #[test]
    fn core_names_reasons_alike() {
        for no_answer in [
            NoAnswer::UnknownPrincipal,
            NoAnswer::TooManyPolicies { limit: 1 },
            NoAnswer::TooManyEntities { limit: 1 },
        ] {
            let reason = no_answer.reason();
            assert_eq!(Rejection::from(no_answer).reason(), reason);
        }
    }
}
