//! The explanation of an answer: the determining policies, or the permits that came close.
//!
//! Only the types; `evaluate::explain` computes them.

use cedar_policy_core::ast;

use super::diagnostic::Position;
use super::id::PolicyId;

/// A policy's effect: permit or forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The policy permits.
    Permit,
    /// The policy forbids.
    Forbid,
}

impl From<ast::Effect> for Effect {
    fn from(effect: ast::Effect) -> Self {
        match effect {
            ast::Effect::Permit => Self::Permit,
            ast::Effect::Forbid => Self::Forbid,
        }
    }
}

/// The file and position at which a policy, template or link is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The path relative to the policy directory.
    pub file: String,
    /// The position in the file; `None` if unknown.
    pub position: Option<Position>,
}

/// The explanation of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The determining policies, in the order of the answer.
    pub determining: Vec<ExplainedPolicy>,
    /// For a denial that no policy determined: permits whose scope matched, sorted by id.
    ///
    /// At most [`MAX_UNSATISFIED`] are listed, and none if evaluating them in full would look up
    /// more entities than a request may.
    pub unsatisfied: Vec<UnsatisfiedPermit>,
    /// The number of all permits whose scope matched, listed or not.
    pub unsatisfied_total: usize,
    /// For a denial that no policy determined, without any permit whose scope matched: the permit of
    /// which most matched. `None` if there is no permit at all.
    pub nearest: Option<NearestPermit>,
}

/// Most permits that an explanation lists.
pub const MAX_UNSATISFIED: usize = 20;

/// Most values that an explanation shows for one clause.
pub const MAX_VALUES: usize = 8;

/// A policy or template link, as an explanation describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedPolicy {
    /// The id of the policy or link.
    pub policy: PolicyId,
    /// The template's id; `None` if the policy is not a link.
    pub template: Option<PolicyId>,
    /// Permit or forbid.
    pub effect: Effect,
    /// Its annotations, sorted by name.
    pub annotations: Vec<(String, String)>,
    /// The location of the policy; for a link, of the link itself.
    pub place: Place,
}

/// A permit whose scope matched and whose condition was not satisfied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsatisfiedPermit {
    /// The permit.
    pub policy: ExplainedPolicy,
    /// The first clause of its condition that was not satisfied.
    pub clause: Clause,
    /// The reason: the clause was false, or it failed.
    pub outcome: ClauseOutcome,
}

/// The permit whose scope differs least from a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestPermit {
    /// The permit.
    pub policy: ExplainedPolicy,
    /// The constraints of its scope that the request does not satisfy.
    pub mismatches: Vec<ScopeMismatch>,
}

/// A constraint of a policy's scope that a request does not satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeMismatch {
    /// The constraint in Cedar's syntax, such as `principal in Group::"a"`; a long one is cut.
    pub constraint: String,
    /// The uid that the request has in its place.
    pub actual: String,
}

/// An expression in a clause, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperandValue {
    /// The expression in Cedar's syntax: a variable, an attribute or a tag.
    pub expression: String,
    /// Its value in Cedar's syntax; a long one is cut.
    pub value: String,
}

/// A clause of a policy's condition, with the `&&` operand in it that was not true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// `when` or `unless`.
    pub kind: ClauseKind,
    /// The whole clause as written, from `when` or `unless` to its closing brace.
    pub text: String,
    /// The operand of the clause's `&&` that was not true.
    pub operand: String,
    /// The location at which the operand begins.
    pub place: Place,
    /// The values that the operand reads, in its order; at most [`MAX_VALUES`].
    pub values: Vec<OperandValue>,
}

/// The keyword of a condition clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClauseKind {
    /// `when { … }`: must be true.
    When,
    /// `unless { … }`: must be false.
    Unless,
}

/// The reason why a clause was not satisfied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClauseOutcome {
    /// The clause was false (for `unless`: true).
    NotSatisfied,
    /// Evaluation failed, with this error message of Cedar.
    Failed(String),
}
