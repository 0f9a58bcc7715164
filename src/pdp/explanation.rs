//! Why an answer is what it is: the determining policies, or the permits that came close.
//!
//! The words only; `explain` finds them.

use super::diagnostic::Position;
use super::id::PolicyId;

/// Whether a policy permits or forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The policy permits.
    Permit,
    /// The policy forbids.
    Forbid,
}

/// Where a policy, template or link is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The path relative to the policy directory.
    pub file: String,
    /// Where in the file, when that is known.
    pub position: Option<Position>,
}

/// Why an answer is what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The determining policies, in the order of the answer.
    pub determining: Vec<ExplainedPolicy>,
    /// For a denial that no policy determined: permits whose scope matched, sorted by id, at most
    /// [`MAX_UNSATISFIED`] of them; none where evaluating those in full would look up more
    /// entities than a request may.
    pub unsatisfied: Vec<UnsatisfiedPermit>,
    /// How many such permits there are in all.
    pub unsatisfied_total: usize,
}

/// The most permits that an explanation lists.
pub const MAX_UNSATISFIED: usize = 20;

/// A policy that settled the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedPolicy {
    /// Which policy or link.
    pub policy: PolicyId,
    /// The template, for a link.
    pub template: Option<PolicyId>,
    /// Permit or forbid.
    pub effect: Effect,
    /// Its annotations, sorted by name.
    pub annotations: Vec<(String, String)>,
    /// Where it is written; for a link, where the link is.
    pub place: Place,
}

/// A permit whose scope matched and whose condition did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsatisfiedPermit {
    /// The permit.
    pub policy: ExplainedPolicy,
    /// The first part of its condition that did not hold.
    pub clause: Clause,
    /// Why it did not hold.
    pub outcome: ClauseOutcome,
}

/// A part of a policy's condition: the smallest `&&` operand that was not true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// `when` or `unless`.
    pub kind: ClauseKind,
    /// The whole clause as written, from `when` or `unless` to its closing brace.
    pub text: String,
    /// The operand of the clause's `&&` that settled it.
    pub operand: String,
    /// Where the operand begins.
    pub place: Place,
}

/// How a condition clause begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClauseKind {
    /// `when { … }`: must be true.
    When,
    /// `unless { … }`: must be false.
    Unless,
}

/// How a clause failed to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClauseOutcome {
    /// It was false (for `unless`: true).
    NotSatisfied,
    /// It could not be evaluated; what Cedar says of it.
    Failed(String),
}
