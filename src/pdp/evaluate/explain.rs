//! Explains a decision, if the query asks for it.
//!
//! Runs after the decision and never changes it. For a denial that no policy determined, it
//! evaluates in full the conditions that the decision skipped or ended early.

use cedar_policy_core::ast;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

mod operand_values;

use super::bind::BoundRequest;
use super::slicing::Bindings;
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::{
    Clause, ClauseKind, ClauseOutcome, ExplainedPolicy, Explanation, MAX_UNSATISFIED,
    NearestPermit, Place, ScopeMismatch, UnsatisfiedPermit,
};
use crate::pdp::policies::policy::{Rule, operands};
use crate::pdp::policies::scope::{Scope, ScopeMatch};
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::scanner;
use crate::pdp::values::bounded_text;

/// Explains a decision with these determining rules.
///
/// Without any, it checks the scopes of all policies, then counts and lists the permits that match.
pub(in crate::pdp) fn explain(
    snapshot: &Snapshot,
    determining: &[&Rule],
    request: ast::Request,
    mut bound_request: BoundRequest<'_>,
) -> Explanation {
    let mut explanation = Explanation {
        determining: determining.iter().map(|rule| explained(rule)).collect(),
        ..Explanation::default()
    };
    if !determining.is_empty() {
        return explanation;
    }
    let mut first: Vec<&Rule> = Vec::new();
    for index in snapshot
        .index
        .matching_scope(&bound_request.bindings.variables)
    {
        let rule = snapshot.rules.get(index as usize);
        let Some(rule) = rule.filter(|rule| rule.effect == ast::Effect::Permit) else {
            continue;
        };
        explanation.unsatisfied_total += 1;
        if first.len() < MAX_UNSATISFIED {
            first.push(rule);
        }
    }
    if explanation.unsatisfied_total == 0 {
        explanation.nearest = nearest_permit(snapshot, &bound_request.bindings);
        return explanation;
    }
    // These permits may look up more entities than the decision did, and exceed the limit. The
    // decision stands even then.
    let Ok(entities) = bound_request.slice_for(&first) else {
        return explanation;
    };
    let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
    let unsatisfied = |rule: &&Rule| {
        let (clause, outcome) = first_unsatisfied(&evaluator, rule)?;
        Some(UnsatisfiedPermit {
            policy: explained(rule),
            clause,
            outcome,
        })
    };
    explanation.unsatisfied = first.iter().filter_map(unsatisfied).collect();
    explanation
}

fn explained(rule: &Rule) -> ExplainedPolicy {
    let annotations = rule.annotations.iter();
    let annotations = annotations.map(|(name, value)| (name.to_string(), value.to_string()));
    ExplainedPolicy {
        policy: rule.id.clone(),
        template: rule.template.clone(),
        effect: rule.effect.into(),
        annotations: annotations.collect(),
        place: rule.place(),
    }
}

/// Returns the first operand of the condition's `&&`, in source order, that is not true.
fn first_unsatisfied(evaluator: &Evaluator<'_>, rule: &Rule) -> Option<(Clause, ClauseOutcome)> {
    for operand in operands(rule.condition.expr.as_ref()?) {
        // A value that is not a boolean fails as an operand of `&&`, with Cedar's message.
        let operand_and_true = ast::Expr::and(operand.as_ref().clone(), ast::Expr::val(true));
        let outcome = match evaluator.interpret(&operand_and_true, rule.slots()) {
            Ok(value) if value == ast::Value::from(true) => continue,
            Ok(_) => ClauseOutcome::NotSatisfied,
            Err(error) => ClauseOutcome::Failed(bounded_text(&error)),
        };
        let mut clause = clause_of(rule, operand);
        clause.values = operand_values::operand_values(evaluator, rule, operand);
        return Some((clause, outcome));
    }
    None
}

/// Returns the permit whose scope differs least from the request.
fn nearest_permit(snapshot: &Snapshot, bindings: &Bindings) -> Option<NearestPermit> {
    let mut nearest: Option<(ScopeMatch, &Rule, &Scope)> = None;
    for (index, rule) in (0..).zip(&snapshot.rules) {
        let Some(scope) = snapshot.index.scope(index) else {
            continue;
        };
        if rule.effect != ast::Effect::Permit {
            continue;
        }
        let matched = scope.matched(&bindings.variables);
        if nearest.as_ref().is_none_or(|(best, ..)| *best < matched) {
            nearest = Some((matched, rule, scope));
        }
    }
    let (_, rule, scope) = nearest?;
    let interner = &snapshot.entities.interner;
    let mismatches = scope.mismatches(&bindings.variables);
    Some(NearestPermit {
        policy: explained(rule),
        mismatches: mismatches
            .map(|(variable, constraint)| ScopeMismatch {
                constraint: bounded_text(&constraint.display(*variable, interner)),
                actual: bounded_text(bindings.uid(*variable)),
            })
            .collect(),
    })
}

/// Returns the clause that contains `operand`, as written in the policy's text.
///
/// A policy in JSON has no text; its operand is formatted in Cedar syntax.
fn clause_of(rule: &Rule, operand: &ast::Expr) -> Clause {
    let clause_in_text = || {
        let policy = rule.loc.as_ref()?;
        let text = policy.snippet()?;
        let (mut operand, mut loc) = (operand, operand.source_loc()?);
        // Cedar turns `unless { x }` into the operand `!x`, with the location of the clause.
        if let ast::ExprKind::UnaryApp {
            op: ast::UnaryOp::Not,
            arg,
        } = operand.expr_kind()
            && loc.snippet().is_some_and(|text| text.starts_with("unless"))
        {
            (operand, loc) = (arg.as_ref(), arg.source_loc()?);
        }
        let start = loc.start().checked_sub(policy.start())?;
        let (kind, clause) = scanner::clauses(text)
            .into_iter()
            .find(|(_, clause)| clause.contains(&start))?;
        Some(Clause {
            kind,
            text: text.get(clause)?.to_owned(),
            operand: loc
                .snippet()
                .map_or_else(|| operand.to_string(), str::to_owned),
            place: Place {
                file: rule.template_file.to_string(),
                position: Some(Position::of(&loc.src, loc.start())),
            },
            values: Vec::new(),
        })
    };
    clause_in_text().unwrap_or_else(|| Clause {
        kind: ClauseKind::When,
        text: format!("when {{ {operand} }}"),
        operand: operand.to_string(),
        place: rule.place(),
        values: Vec::new(),
    })
}
