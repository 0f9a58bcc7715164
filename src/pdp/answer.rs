//! The answer to a query: the decision, its diagnostics and the revision that decided.

use std::fmt;

use super::explanation::{Effect, Explanation};
use super::id::{PolicyId, Revision};
use super::query::InvalidQuery;
use super::settings::MAX_LOOKUP_STEPS;

/// The outcome of a query: allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// At least one permit is satisfied, and no forbid.
    Allow,
    /// Everything else.
    Deny,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}

/// A policy whose evaluation failed. It is skipped, unless it is a forbid and
/// [`OnPolicyError`](super::settings::OnPolicyError) says that these deny.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The policy.
    pub policy: PolicyId,
    /// Permit or forbid.
    pub effect: Effect,
    /// Cedar's own error message, cut to a bounded length.
    pub message: String,
}

/// The policies that determined a decision, and those that failed to evaluate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The satisfied policies that determined the decision, sorted by id.
    pub determining: Vec<PolicyId>,
    /// The policies whose evaluation failed, sorted by id.
    pub errors: Vec<PolicyError>,
}

/// A decision with its diagnostics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Allow or deny.
    pub decision: Decision,
    /// Determining policies and evaluation errors.
    pub diagnostics: Diagnostics,
    /// The revision of the snapshot that decided.
    pub revision: Revision,
    /// `Some` exactly when the query asked for an explanation.
    pub explanation: Option<Box<Explanation>>,
}

/// An error that leaves a query without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants are")]
pub enum NoAnswer {
    #[error(transparent)]
    Invalid(#[from] InvalidQuery),
    /// The token's principal is not stored, and the issuer's mapping requires that it is.
    #[error("the token's principal is not among the stored entities")]
    UnknownPrincipal,
    #[error(
        "more than {limit} policies match this principal, action and resource; `max_candidates` \
         allows no more"
    )]
    TooManyPolicies { limit: usize },
    #[error(
        "the policies that match look up more than {limit} entities, or take more than \
         {MAX_LOOKUP_STEPS} steps to reach these entities"
    )]
    TooManyEntities { limit: usize },
}

impl NoAnswer {
    /// Returns the error's constant name on the wire, in metrics and in logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::UnknownPrincipal => "PRINCIPAL_UNKNOWN",
            Self::TooManyPolicies { .. } => "TOO_MANY_POLICIES",
            Self::TooManyEntities { .. } => "TOO_MANY_ENTITIES",
        }
    }
}
