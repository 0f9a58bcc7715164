//! Splits a condition into the operands of its outermost `&&`s.

use std::sync::Arc;

use cedar_policy_core::ast::{Expr, ExprKind};

/// Returns the operands of the condition's outermost `&&`s from left to right.
///
/// Iterative, as a chain of `&&` nests as deep as it is long.
pub(in crate::pdp) fn operands(condition: &Arc<Expr>) -> Vec<&Arc<Expr>> {
    let mut operands = Vec::new();
    let mut stack = vec![condition];
    while let Some(expr) = stack.pop() {
        if let ExprKind::And { left, right } = expr.expr_kind() {
            stack.extend([right, left]);
        } else {
            operands.push(expr);
        }
    }
    operands
}

/// Returns `condition` without the first `count` operands; `None` if no operand is left.
pub(in crate::pdp) fn without_first(condition: &Arc<Expr>, count: usize) -> Option<Arc<Expr>> {
    if count == 0 {
        return Some(Arc::clone(condition));
    }
    let mut rest = operands(condition).into_iter().skip(count);
    let first = Arc::clone(rest.next()?);
    // Built from the left, as the parser does, so that it is no deeper than before.
    Some(rest.fold(first, |conjunction, operand| {
        Arc::new(Expr::and(
            conjunction.as_ref().clone(),
            operand.as_ref().clone(),
        ))
    }))
}
