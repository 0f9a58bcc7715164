//! What the PDP says: a decision, what settled it, and by which content.

use std::fmt;

use super::explanation::Explanation;
use super::id::{PolicyId, Revision};
use super::query::InvalidQuery;
use super::settings::MAX_LOOKUP_STEPS;

/// The answer to "may this principal do this action on this resource?".
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

/// A policy that was skipped because its evaluation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Which policy.
    pub policy: PolicyId,
    /// What Cedar says of the failure, in its own words.
    pub message: String,
}

/// What settled a decision, and what could not be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The satisfied policies that settled the decision, sorted by id.
    pub determining: Vec<PolicyId>,
    /// The policies skipped because their evaluation failed, sorted by id.
    pub errors: Vec<PolicyError>,
}

/// A decision with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Allow or deny.
    pub decision: Decision,
    /// Determining policies and evaluation errors.
    pub diagnostics: Diagnostics,
    /// Of the snapshot that decided.
    pub revision: Revision,
    /// Present exactly when the query asked for it.
    pub explanation: Option<Box<Explanation>>,
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It cannot be decided as it stands.
    #[error(transparent)]
    Invalid(#[from] InvalidQuery),
    /// The token's principal must be among the stored entities, and is not.
    #[error("the token's principal is not among the stored entities")]
    UnknownPrincipal,
    /// More policies match its principal, action and resource than may be evaluated.
    #[error(
        "more than {most} policies match this principal, action and resource; `max_candidates` \
         allows no more"
    )]
    TooManyPolicies {
        /// The most that may.
        most: usize,
    },
    /// Its policies read more entities than may be looked up, or reach them in too many steps.
    #[error(
        "the policies that match look up more than {most} entities, or take more than \
         {MAX_LOOKUP_STEPS} steps to reach them"
    )]
    TooManyEntities {
        /// The most that may.
        most: usize,
    },
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
