//! The reasons of rejections, except those of tokens: a closed list for callers and operators.
//!
//! The documentation lists them from here.

use crate::api::metrics::RejectionLabel;

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

/// Declares the reasons, each with its name on the wire, its class, its label in metrics and its
/// description.
macro_rules! reasons {
    ($($reason:ident $name:literal $code:ident $label:ident $description:literal;)+) => {
        /// The reason of a rejection that is not about a token.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ErrorReason {
            $(#[doc = $description] $reason,)+
        }

        impl ErrorReason {
            /// All reasons, in the order of the documentation.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$reason),+];

            /// Returns the reason as it is sent in `ErrorInfo` and written to the decision log.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)+
                }
            }

            pub(crate) const fn code(self) -> RejectionCode {
                match self {
                    $(Self::$reason => RejectionCode::$code,)+
                }
            }

            pub(crate) const fn label(self) -> RejectionLabel {
                match self {
                    $(Self::$reason => RejectionLabel::$label,)+
                }
            }

            /// Returns the meaning for the documentation, in one line.
            pub(crate) const fn description(self) -> &'static str {
                match self {
                    $(Self::$reason => $description,)+
                }
            }
        }
    };
}

reasons! {
    CallerUnknown "CALLER_UNKNOWN" Unauthenticated Caller
        "neither the certificate nor the Unix user nor a key identifies a listed caller";
    KeyUnknown "KEY_UNKNOWN" Unauthenticated Caller
        "the bearer key belongs to no caller; a key is checked before a certificate";
    RightMissing "RIGHT_MISSING" PermissionDenied Caller
        "the caller lacks the right that the metadata `right` names";
    IdentityNotAllowed "IDENTITY_NOT_ALLOWED" PermissionDenied Caller
        "the caller may not send the kind of identity that the metadata `identity` names";
    ExplainOff "EXPLAIN_OFF" PermissionDenied Caller
        "explanations are turned off by `explanations = \"off\"`";
    Overloaded "OVERLOADED" Overloaded Overloaded
        "the call was shed because calls wait longer than `overload_delay`; retry later";
    TooManyCalls "TOO_MANY_CALLS" Overloaded TooManyCalls
        "`max_concurrent_calls` is reached; retry later";
    BuffersFull "TOO_MUCH_PENDING" Overloaded BuffersFull
        "`max_pending_bytes` is reached; retry later";
    InvalidRequest "INVALID_REQUEST" InvalidArgument Invalid
        "a field is missing, malformed, nested too deep or does not fit the schema";
    TooManyItems "TOO_MANY_ITEMS" LimitExceeded TooManyItems
        "`max_batch_items`, `max_request_entities` or `max_request_values` is exceeded";
    TooManyPolicies "TOO_MANY_POLICIES" LimitExceeded TooManyPolicies
        "the scopes of more than `max_candidates` policies match the request";
    TooManyEntities "TOO_MANY_ENTITIES" LimitExceeded TooManyEntities
        "the matching policies look up too many entities";
    NothingLoaded "NOTHING_LOADED" Unavailable NothingLoaded
        "no policies have been loaded yet; retry later";
    ShuttingDown "SHUTTING_DOWN" Unavailable ShuttingDown
        "the service is shutting down; retry on another connection";
    DeadlineExceeded "DEADLINE_PASSED" DeadlineExceeded DeadlineExceeded
        "the deadline of the call, or `max_call_time`, passed before there was an answer";
}
