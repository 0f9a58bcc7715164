//! The parsed request of every protocol, before its principal is identified.

use std::sync::Arc;

use super::rejection::Rejection;
use crate::api::auth::caller::IdentityKind;
use crate::pdp::query::{Claimed, InvalidQuery, Record, RequestEntity, Uid};
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

/// A [`Question`] that owns its texts, for parsers that copy them.
#[derive(Debug)]
pub(crate) struct OwnedQuestion {
    pub(crate) credential: OwnedCredential,
    pub(crate) explain: bool,
    pub(crate) operation: Result<OwnedOperation, Rejection>,
}

/// A [`Credential`] that owns its texts.
#[derive(Debug)]
pub(crate) enum OwnedCredential {
    Principal(Result<Uid, InvalidQuery>),
    Token(String),
    Anonymous,
}

/// An [`Operation`] that owns its texts.
#[derive(Debug)]
pub(crate) struct OwnedOperation {
    pub(crate) action: Uid,
    pub(crate) resource: Uid,
    pub(crate) context: Record,
    pub(crate) entities: Vec<RequestEntity>,
}

impl Parsed for OwnedQuestion {
    fn with_question<R>(self, decide: impl FnOnce(Question<'_>) -> R) -> R {
        decide(Question {
            credential: match &self.credential {
                OwnedCredential::Principal(Ok(uid)) => Credential::Principal(Ok(uid.into())),
                OwnedCredential::Principal(Err(fault)) => Credential::Principal(Err(fault.clone())),
                OwnedCredential::Token(token) => Credential::Token(token),
                OwnedCredential::Anonymous => Credential::Anonymous,
            },
            explain: self.explain,
            operation: match &self.operation {
                Ok(operation) => Ok(operation.borrow()),
                Err(fault) => Err(fault.clone()),
            },
        })
    }
}

impl OwnedOperation {
    fn borrow(&self) -> Operation<'_> {
        Operation {
            action: (&self.action).into(),
            resource: (&self.resource).into(),
            context: (&self.context).into(),
            entities: self.entities.iter().map(EntityRef::from).collect(),
        }
    }
}
