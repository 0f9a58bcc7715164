//! The values that an operand of a condition reads, for people who ask why it is not true.

use std::collections::HashSet;
use std::fmt;

use cedar_policy_core::ast::{BinaryOp, BoundedDisplay, Expr, ExprKind, Value};
use cedar_policy_core::evaluator::Evaluator;

use crate::pdp::explanation::{MAX_VALUES, OperandValue};
use crate::pdp::policies::policy::Rule;
use crate::pdp::values::bounded_text;

/// Most members shown of a set or record.
const MAX_MEMBERS: usize = 10;

/// Returns the variables, attributes and tags in `operand`, each with its value.
///
/// An expression without a value is left out: the clause's error describes it.
pub(super) fn operand_values(
    evaluator: &Evaluator<'_>,
    rule: &Rule,
    operand: &Expr,
) -> Vec<OperandValue> {
    let mut shown = HashSet::new();
    let mut values = Vec::new();
    for read in reads(operand) {
        if values.len() == MAX_VALUES {
            break;
        }
        // Formatted, as its location is that of the whole chain of calls that it begins.
        let expression = bounded_text(read);
        if shown.contains(&expression) {
            continue;
        }
        if let Ok(value) = evaluator.interpret(read, rule.slots()) {
            values.push(OperandValue {
                expression: expression.clone(),
                value: bounded_text(&Members(&value)),
            });
            shown.insert(expression);
        }
    }
    values
}

/// Returns the expressions in `operand` that read something, in their order.
///
/// Of `resource.owner.name`, only the whole is returned.
fn reads(operand: &Expr) -> impl Iterator<Item = &Expr> {
    let mut inner: HashSet<*const Expr> = HashSet::new();
    let mut found = Vec::new();
    // An expression comes before those in it, and the right of two before the left.
    for expr in operand.subexpressions() {
        let read_from = read_from(expr);
        if read_from.is_none() && !matches!(expr.expr_kind(), ExprKind::Var(_)) {
            continue;
        }
        if !inner.contains(&std::ptr::from_ref(expr)) {
            found.push(expr);
        }
        inner.extend(read_from.map(std::ptr::from_ref));
    }
    found.into_iter().rev()
}

/// Returns the entity or record of which `expr` reads an attribute or tag.
fn read_from(expr: &Expr) -> Option<&Expr> {
    if let ExprKind::GetAttr { expr, .. } = expr.expr_kind() {
        return Some(expr);
    }
    if let ExprKind::BinaryApp { op, arg1, .. } = expr.expr_kind()
        && *op == BinaryOp::GetTag
    {
        return Some(arg1);
    }
    None
}

/// Shows a value with its first members.
struct Members<'a>(&'a Value);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        BoundedDisplay::fmt(self.0, f, Some(MAX_MEMBERS))
    }
}
