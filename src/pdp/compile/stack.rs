//! Stack sizes for parsing, validating and evaluating.

use cedar_policy_core::ast::{Expr, ExprKind};

/// Stack for parsing and validating, in bytes.
///
/// Cedar's parser uses some 14 KiB for a parenthesis, and a few KiB for an operator of a chain.
/// Unoptimised builds use several times as much.
pub(in crate::pdp) const COMPILE_STACK_BYTES: usize = 256 << 20;

/// Stack for evaluating one level of an expression, in bytes, rounded up. Unoptimised, Cedar's
/// evaluator uses several times as much.
const EVALUATE_STACK_BYTES_PER_LEVEL: usize = if cfg!(debug_assertions) {
    64 << 10
} else {
    4 << 10
};

/// Stack that must stay free: Cedar fails an evaluation that has less, in bytes.
const EVALUATE_STACK_BYTES_RESERVED: usize = 256 << 10;

/// Returns the stack that evaluating a condition of this depth can need, in bytes.
pub(in crate::pdp) fn evaluation_bytes(depth: usize) -> usize {
    EVALUATE_STACK_BYTES_RESERVED + depth * EVALUATE_STACK_BYTES_PER_LEVEL
}

/// Returns the nesting depth of `expr`, without recursion.
pub(in crate::pdp) fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    let mut pending = vec![(expr, 1)];
    while let Some((expr, depth)) = pending.pop() {
        deepest = deepest.max(depth);
        let child_depth = depth + 1;
        match expr.expr_kind() {
            ExprKind::Lit(_) | ExprKind::Var(_) | ExprKind::Slot(_) | ExprKind::Unknown(_) => {}
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                pending.extend(
                    [test_expr, then_expr, else_expr].map(|expr| (expr.as_ref(), child_depth)),
                );
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                pending.extend([left, right].map(|expr| (expr.as_ref(), child_depth)));
            }
            ExprKind::BinaryApp { op: _, arg1, arg2 } => {
                pending.extend([arg1, arg2].map(|expr| (expr.as_ref(), child_depth)));
            }
            ExprKind::UnaryApp { op: _, arg } => pending.push((arg, child_depth)),
            ExprKind::GetAttr { expr, attr: _ }
            | ExprKind::HasAttr { expr, attr: _ }
            | ExprKind::ExtHasAttr { expr, attrs: _ }
            | ExprKind::Like { expr, pattern: _ }
            | ExprKind::Is {
                expr,
                entity_type: _,
            } => pending.push((expr, child_depth)),
            ExprKind::ExtensionFunctionApp { fn_name: _, args } | ExprKind::Set(args) => {
                pending.extend(args.iter().map(|expr| (expr, child_depth)));
            }
            ExprKind::Record(fields) => {
                pending.extend(fields.values().map(|expr| (expr, child_depth)))
            }
        }
    }
    deepest
}
