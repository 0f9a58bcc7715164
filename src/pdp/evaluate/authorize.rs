//! Decides one query on one snapshot.

use cedar_policy_core::ast;
use cedar_policy_core::authorizer::AuthorizationError;
use cedar_policy_core::evaluator::{EvaluationError, Evaluator};
use cedar_policy_core::extensions::Extensions;

use super::bind::{BoundQuery, Candidate, bind};
use super::explain::explain;
use crate::pdp::answer::{Answer, Decision, Diagnostics, NoAnswer, PolicyError};
use crate::pdp::compile::stored_entities::StoredEntities;
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
/// Costs what the policies cost whose scope matches and the entities that they look up, however
/// many others there are. Only to explain a denial that no policy determined takes one look at the
/// scope of every policy there is, since all permits are counted that came close; what the
/// explanation lists of them costs no more than deciding may.
///
/// # Errors
///
/// [`NoAnswer`] when the query is malformed or does not fit the snapshot's schema, or when deciding
/// it would take more than it may.
pub fn authorize(snapshot: &Snapshot, query: &Query) -> Result<Answer, NoAnswer> {
    authorize_on(snapshot, &snapshot.entities, query).map(|decided| decided.answer)
}

/// An answer, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The answer.
    pub answer: Answer,
    /// How many policies had a scope that matched.
    pub candidates: usize,
}

/// Decides `query` as [`authorize`] does, and tells what it took.
///
/// # Errors
///
/// As [`authorize`].
pub fn authorize_with_stats(snapshot: &Snapshot, query: &Query) -> Result<Decided, NoAnswer> {
    authorize_on(snapshot, &snapshot.entities, query)
}

/// Decides `query` as [`authorize`] does, with `entities` in place of the stored ones.
///
/// # Errors
///
/// As [`authorize`].
pub fn authorize_with_entities(
    snapshot: &Snapshot,
    entities: &StoredEntities,
    query: &Query,
) -> Result<Answer, NoAnswer> {
    authorize_on(snapshot, entities.store(), query).map(|decided| decided.answer)
}

/// How many policies deciding `query` evaluates: those whose scope matches it.
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
    // Cedar fails an evaluation for want of stack, and a `forbid` that fails is skipped: whatever
    // thread this is, the deepest condition must have room.
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
    let candidates = candidates
        .into_iter()
        // What certainly does not hold says nothing more.
        .filter(|candidate| candidate.satisfied != Some(false))
        .filter_map(|Candidate { rule, satisfied }| {
            let rule: &Rule = snapshot.rules.get(rule as usize)?;
            Some((rule, satisfied))
        });
    let mut permits: Vec<&Rule> = Vec::new();
    let mut forbids: Vec<&Rule> = Vec::new();
    let mut errors: Vec<PolicyError> = Vec::new();
    // Rules are sorted by id, and so is all that is collected from them.
    for (rule, satisfied) in candidates {
        let effect = rule.effect;
        let satisfied = match satisfied {
            Some(satisfied) => Ok(satisfied),
            None => evaluate(&evaluator, rule, &rule.remainder),
        };
        match (satisfied, effect) {
            (Ok(true), ast::Effect::Permit) => permits.push(rule),
            (Ok(true), ast::Effect::Forbid) => forbids.push(rule),
            (Ok(false), ast::Effect::Permit | ast::Effect::Forbid) => {}
            (Err(error), effect) => {
                errors.push(policy_error(rule, error));
                match (snapshot.settings.on_policy_error, effect) {
                    (OnPolicyError::Deny, ast::Effect::Forbid) => forbids.push(rule),
                    (OnPolicyError::Deny, ast::Effect::Permit) | (OnPolicyError::Skip, _) => {}
                }
            }
        }
    }
    let (decision, determining) = match (forbids.is_empty(), permits.is_empty()) {
        (false, _) => (Decision::Deny, forbids),
        (true, false) => (Decision::Allow, permits),
        (true, true) => (Decision::Deny, Vec::new()),
    };
    let explanation = explained.map(|(request, bound_request)| {
        Box::new(explain(snapshot, &determining, request, bound_request))
    });
    Answer {
        decision,
        diagnostics: Diagnostics {
            determining: determining.iter().map(|rule| rule.id.clone()).collect(),
            errors,
        },
        revision: snapshot.revision.clone(),
        explanation,
    }
}

/// Whether `condition` holds, of a policy whose scope does.
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
    // A condition that is no truth value is an error, and Cedar says in its words which: as the
    // operand that it is of the conjunction with the scope.
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
        // The text that users of Cedar's public authorizer see.
        message: bounded_text(&cedar_policy::AuthorizationError::from(error)),
    }
}

#[cfg(test)]
mod tests;
