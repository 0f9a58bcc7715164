//! Finds why a decision is what it is.
//!
//! Only when a caller asks, and after deciding, which is the same with an explanation as without:
//! of a denial that no policy determined it evaluates in full what deciding left out early.

use cedar_policy_core::ast;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use super::bind::BoundRequest;
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::{
    Clause, ClauseKind, ClauseOutcome, Effect, ExplainedPolicy, Explanation, MAX_UNSATISFIED,
    Place, UnsatisfiedPermit,
};
use crate::pdp::policies::policy::Rule;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::scanner;
use crate::pdp::values::bounded_text;

/// Explains a decision that the rules `determining` settled.
///
/// Where there are none, all scopes of the snapshot are gone through: what came close is told with
/// how many there are.
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
    for number in snapshot.index.matching_scope(bound_request.variables()) {
        let rule = snapshot.rules.get(number as usize);
        let Some(rule) = rule.filter(|rule| rule.effect == ast::Effect::Permit) else {
            continue;
        };
        explanation.unsatisfied_total += 1;
        if first.len() < MAX_UNSATISFIED {
            first.push(rule);
        }
    }
    // They can look up what deciding did not, and more than may be: the decision stands then all
    // the same.
    let Ok(entities) = bound_request.entities_of(&first) else {
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
        effect: match rule.effect {
            ast::Effect::Permit => Effect::Permit,
            ast::Effect::Forbid => Effect::Forbid,
        },
        annotations: annotations.collect(),
        place: rule.place(),
    }
}

fn is_true(value: &ast::Value) -> bool {
    matches!(value.value, ast::ValueKind::Lit(ast::Literal::Bool(true)))
}

/// The first operand of the condition's `&&`, in source order, that is not true.
fn first_unsatisfied(evaluator: &Evaluator<'_>, rule: &Rule) -> Option<(Clause, ClauseOutcome)> {
    for operand in operands(rule.condition.expr.as_deref()?) {
        // An operand that is no truth value fails as an operand, and Cedar says how.
        let operand_and_true = ast::Expr::and(operand.clone(), ast::Expr::val(true));
        let outcome = match evaluator.interpret(&operand_and_true, rule.slots()) {
            Ok(value) if is_true(&value) => continue,
            Ok(_) => ClauseOutcome::NotSatisfied,
            Err(error) => ClauseOutcome::Failed(bounded_text(&error)),
        };
        return Some((clause_of(rule, operand), outcome));
    }
    None
}

/// The operands of a condition's outermost `&&`s from left to right, found without recursing.
pub(in crate::pdp) fn operands(condition: &ast::Expr) -> Vec<&ast::Expr> {
    let mut found = Vec::new();
    let mut open = vec![condition];
    while let Some(expr) = open.pop() {
        match expr.expr_kind() {
            ast::ExprKind::And { left, right } => open.extend([right.as_ref(), left.as_ref()]),
            ast::ExprKind::Lit(_)
            | ast::ExprKind::Var(_)
            | ast::ExprKind::Slot(_)
            | ast::ExprKind::Unknown(_)
            | ast::ExprKind::If { .. }
            | ast::ExprKind::Or { .. }
            | ast::ExprKind::UnaryApp { .. }
            | ast::ExprKind::BinaryApp { .. }
            | ast::ExprKind::ExtensionFunctionApp { .. }
            | ast::ExprKind::GetAttr { .. }
            | ast::ExprKind::HasAttr { .. }
            | ast::ExprKind::ExtHasAttr { .. }
            | ast::ExprKind::Like { .. }
            | ast::ExprKind::Is { .. }
            | ast::ExprKind::Set(_)
            | ast::ExprKind::Record(_) => found.push(expr),
        }
    }
    found
}

/// The clause that `operand` stands in, as it is written.
///
/// A policy in JSON has no text; its operand is rendered as Cedar syntax.
fn clause_of(rule: &Rule, operand: &ast::Expr) -> Clause {
    let written = || {
        let policy = rule.loc.as_ref()?;
        let text = policy.snippet()?;
        // Cedar makes `unless { x }` the operand `!x` and gives it the place of the clause.
        let (operand, place) = match (operand.source_loc()?, operand.expr_kind()) {
            (
                place,
                ast::ExprKind::UnaryApp {
                    op: ast::UnaryOp::Not,
                    arg,
                },
            ) if place
                .snippet()
                .is_some_and(|text| text.starts_with("unless")) =>
            {
                (arg.as_ref(), arg.source_loc()?)
            }
            (place, _) => (operand, place),
        };
        let start = place.start().checked_sub(policy.start())?;
        let (kind, clause) = scanner::clauses(text)
            .into_iter()
            .find(|(_, clause)| clause.contains(&start))?;
        Some(Clause {
            kind,
            text: text.get(clause)?.to_owned(),
            operand: place
                .snippet()
                .map_or_else(|| operand.to_string(), str::to_owned),
            place: Place {
                file: rule.template_file.to_string(),
                position: Some(Position::of(&place.src, place.start())),
            },
        })
    };
    written().unwrap_or_else(|| Clause {
        kind: ClauseKind::When,
        text: format!("when {{ {operand} }}"),
        operand: operand.to_string(),
        place: rule.place(),
    })
}
