//! The parsed request of every protocol, before its principal is identified.

use std::sync::Arc;

use super::rejection::Rejection;
use crate::api::auth::caller::IdentityKind;
use crate::pdp::query::{Claimed, InvalidQuery};
use crate::pdp::query_ref::{EntityRef, Fields, QueryRef, UidRef};

/// A request as a protocol parsed it.
pub(crate) trait Parsed {
    /// Calls `decide` with the request.
    ///
    /// A closure is needed, because a [`Question`] borrows texts that the parsed request may own.
    fn with_question<R>(self, decide: impl FnOnce(Question<'_>) -> R) -> R;
}

/// A parsed request whose principal is not identified yet.
///
/// The faults of credential and operation are separate, because the first fault in this order is
/// reported: the caller's rights, the credential, the operation.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) credential: Credential<'a>,
    /// True if an explanation is requested.
    pub(crate) explain: bool,
    pub(crate) operation: Result<Operation<'a>, Rejection>,
}

/// The identity that a request presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// A named principal, or the fault of its uid.
    Principal(Result<UidRef<'a>, InvalidQuery>),
    /// A JWT that must be verified. An empty text is a token too, and is rejected.
    Token(&'a str),
    /// No identity.
    Anonymous,
}

/// An action on a resource, with context and request entities.
#[derive(Clone, Debug)]
pub(crate) struct Operation<'a> {
    pub(crate) action: UidRef<'a>,
    pub(crate) resource: UidRef<'a>,
    pub(crate) context: Fields<'a>,
    /// Entities that exist for this request only.
    pub(crate) entities: Vec<EntityRef<'a>>,
}

impl Credential<'_> {
    /// Returns the kind of identity, which the caller must have the right to present.
    pub(crate) fn kind(&self) -> IdentityKind {
        match self {
            Self::Principal(_) => IdentityKind::Principal,
            Self::Token(_) => IdentityKind::Token,
            Self::Anonymous => IdentityKind::Anonymous,
        }
    }
}

impl<'a> Operation<'a> {
    /// Completes the query with a principal and the claims of its token.
    pub(crate) fn query<'q>(
        self,
        principal: UidRef<'q>,
        claimed: Option<&'q Arc<Claimed>>,
        explain: bool,
    ) -> QueryRef<'q>
    where
        'a: 'q,
    {
        let Self {
            action,
            resource,
            context,
            entities,
        } = self;
        QueryRef {
            principal,
            action,
            resource,
            context,
            entities,
            claimed,
            explain,
        }
    }
}
