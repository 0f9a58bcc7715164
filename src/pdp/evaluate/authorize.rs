//! Decides one query on one snapshot.

use cedar_policy_core::ast;
use cedar_policy_core::authorizer::AuthorizationError;
use cedar_policy_core::evaluator::{EvaluationError, Evaluator};
use cedar_policy_core::extensions::Extensions;

use super::bind::{BoundQuery, Candidate, bind};
use super::explain::explain;
use crate::pdp::answer::{Answer, Decision, Diagnostics, NoAnswer, PolicyError};
use crate::pdp::compile::entities::StoredEntities;
use crate::pdp::entities::store::EntityStore;
use crate::pdp::id::PolicyId;
use crate::pdp::policies::policy::{Condition, Rule};
use crate::pdp::query::Query;
use crate::pdp::settings::OnPolicyError;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::values::bounded_text;

/// Decides `query` against one snapshot.
///
/// Pure: the same snapshot and query always give the same answer, which is what lets answers be
/// cached by snapshot and query. A policy that fails to evaluate is skipped and named in the
/// diagnostics. It is Cedar's answer: `cedar_policy::Authorizer` over the whole policy set and
/// entities gives the same decision, determining policies and errors.
///
/// The cost depends on the policies whose scope matches and the entities that they look up, not on
/// how many others there are. Only the explanation of a denial that no policy determined checks the
/// scope of every policy, as it counts all permits that came close. Listing some of them is bounded
/// like a decision.
///
/// # Errors
///
/// [`NoAnswer`] if the query is malformed or does not conform to the snapshot's schema, or if it
/// exceeds a limit.
pub fn authorize(snapshot: &Snapshot, query: &Query) -> Result<Answer, NoAnswer> {
    authorize_with_stats(snapshot, query).map(|decided| decided.answer)
}

/// An answer, with the number of policies evaluated for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The answer.
    pub answer: Answer,
    /// The number of policies whose scope matched.
    pub candidates: usize,
}

/// Decides `query` like [`authorize`], and returns the number of candidate policies too.
///
/// # Errors
///
/// As [`authorize`].
pub fn authorize_with_stats(snapshot: &Snapshot, query: &Query) -> Result<Decided, NoAnswer> {
    authorize_on(snapshot, &snapshot.entities, query)
}

/// Decides `query` like [`authorize`], with `entities` in place of the stored ones.
///
/// # Errors
///
/// As [`authorize`].
pub fn authorize_with_entities(
    snapshot: &Snapshot,
    entities: &StoredEntities,
    query: &Query,
) -> Result<Answer, NoAnswer> {
    authorize_on(snapshot, &entities.0, query).map(|decided| decided.answer)
}

/// Returns the number of policies whose scope matches `query`, and so are evaluated for it.
///
/// # Errors
///
/// As [`authorize`].
pub fn candidates(snapshot: &Snapshot, query: &Query) -> Result<usize, NoAnswer> {
    bind(snapshot, &snapshot.entities, query).map(|bound| bound.candidates.len())
}

fn authorize_on(
    snapshot: &Snapshot,
    stored: &EntityStore,
    query: &Query,
) -> Result<Decided, NoAnswer> {
    let bound = bind(snapshot, stored, query)?;
    let candidates = bound.candidates.len();
    // Cedar fails an evaluation that lacks stack, and a failed `forbid` is skipped. So the stack
    // must suffice for the deepest condition on any thread.
    stacker::maybe_grow(snapshot.stack_bytes, snapshot.stack_bytes * 2, || {
        Ok(Decided {
            answer: decide(snapshot, query, bound),
            candidates,
        })
    })
}

fn decide(snapshot: &Snapshot, query: &Query, bound: BoundQuery<'_>) -> Answer {
    let BoundQuery {
        request,
        candidates,
        entities,
        bound_request,
    } = bound;
    let explained = query.explain.then(|| (request.clone(), bound_request));
    let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
    let outcome = evaluate_all(snapshot, &evaluator, candidates);
    let (decision, determining) = match (outcome.forbids.is_empty(), outcome.permits.is_empty()) {
        (false, _) => (Decision::Deny, outcome.forbids),
        (true, false) => (Decision::Allow, outcome.permits),
        (true, true) => (Decision::Deny, Vec::new()),
    };
    let explanation = explained.map(|(request, bound_request)| {
        Box::new(explain(snapshot, &determining, request, bound_request))
    });
    Answer {
        decision,
        diagnostics: Diagnostics {
            determining: determining.iter().map(|rule| rule.id.clone()).collect(),
            errors: outcome.errors,
        },
        revision: snapshot.revision.clone(),
        explanation,
    }
}

/// The satisfied policies by effect, and the evaluation errors; each list sorted by policy id.
#[derive(Default)]
struct Outcome<'a> {
    permits: Vec<&'a Rule>,
    forbids: Vec<&'a Rule>,
    errors: Vec<PolicyError>,
}

fn evaluate_all<'a>(
    snapshot: &'a Snapshot,
    evaluator: &Evaluator<'_>,
    candidates: Vec<Candidate>,
) -> Outcome<'a> {
    let mut outcome = Outcome::default();
    // Rules are sorted by id, so the outcome's lists are too.
    for Candidate { rule, satisfied } in candidates {
        let Some(rule) = snapshot.rules.get(rule as usize) else {
            continue;
        };
        let satisfied = match satisfied {
            Some(satisfied) => Ok(satisfied),
            None => evaluate(evaluator, rule, &rule.remainder),
        };
        match (satisfied, rule.effect) {
            (Ok(true), ast::Effect::Permit) => outcome.permits.push(rule),
            (Ok(true), ast::Effect::Forbid) => outcome.forbids.push(rule),
            (Ok(false), ast::Effect::Permit | ast::Effect::Forbid) => {}
            (Err(error), effect) => {
                outcome.errors.push(policy_error(rule, error));
                let on_error = snapshot.settings.on_policy_error;
                if on_error == OnPolicyError::Deny && effect == ast::Effect::Forbid {
                    outcome.forbids.push(rule);
                }
            }
        }
    }
    outcome
}

/// Evaluates `condition` with Cedar, for a policy whose scope matches.
fn evaluate(
    evaluator: &Evaluator<'_>,
    rule: &Rule,
    condition: &Condition,
) -> Result<bool, EvaluationError> {
    let Some(condition) = condition.expr.as_deref() else {
        return Ok(true);
    };
    if let ast::ValueKind::Lit(ast::Literal::Bool(satisfied)) =
        evaluator.interpret(condition, rule.slots())?.value
    {
        return Ok(satisfied);
    }
    // A condition that is not a boolean is an error. Cedar reports it as an operand of the
    // conjunction with the scope, so the same conjunction gives the same message.
    let operand = ast::Expr::and(ast::Expr::val(true), condition.clone());
    evaluator
        .interpret(&operand, rule.slots())
        .map(|value| matches!(value.value, ast::ValueKind::Lit(ast::Literal::Bool(true))))
}

fn policy_error(rule: &Rule, error: EvaluationError) -> PolicyError {
    let error = AuthorizationError::PolicyEvaluationError {
        id: ast::PolicyID::from_string(rule.id.as_str()),
        error,
    };
    PolicyError {
        policy: PolicyId::clone(&rule.id),
        effect: rule.effect.into(),
        // The same text as Cedar's public authorizer reports.
        message: bounded_text(&cedar_policy::AuthorizationError::from(error)),
    }
}

#[cfg(test)]
mod tests;
