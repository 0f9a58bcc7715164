//! Stack sizes for parsing, validating and evaluating.

use cedar_policy_core::ast::{Expr, ExprKind};

/// The stack that parsing and validating can need: a paren costs Cedar's parser some 14 KiB
/// (several times that unoptimised), an operator of a chain a few.
pub(in crate::pdp) const COMPILE_STACK_BYTES: usize = 256 << 20;

/// The stack that one level of an expression can need when it is evaluated, rounded up.
const EVALUATE_STACK_BYTES_PER_LEVEL: usize = if cfg!(debug_assertions) {
    16 << 10
} else {
    4 << 10
};

/// Cedar refuses to evaluate with less stack left than this, and so must never be brought there.
const EVALUATE_STACK_BYTES_RESERVED: usize = 256 << 10;

/// Returns the stack that evaluating a condition of this depth can need, in bytes.
pub(in crate::pdp) fn evaluation_bytes(depth: usize) -> usize {
    EVALUATE_STACK_BYTES_RESERVED + depth * EVALUATE_STACK_BYTES_PER_LEVEL
}

/// How many expressions stand within one another, found without recursing.
pub(in crate::pdp) fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        let below = depth + 1;
        match expr.expr_kind() {
            ExprKind::Lit(_) | ExprKind::Var(_) | ExprKind::Slot(_) | ExprKind::Unknown(_) => {}
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                open.extend([test_expr, then_expr, else_expr].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                open.extend([left, right].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::BinaryApp { op: _, arg1, arg2 } => {
                open.extend([arg1, arg2].map(|expr| (expr.as_ref(), below)));
            }
            ExprKind::UnaryApp { op: _, arg } => open.push((arg, below)),
            ExprKind::GetAttr { expr, attr: _ }
            | ExprKind::HasAttr { expr, attr: _ }
            | ExprKind::ExtHasAttr { expr, attrs: _ }
            | ExprKind::Like { expr, pattern: _ }
            | ExprKind::Is {
                expr,
                entity_type: _,
            } => open.push((expr, below)),
            ExprKind::ExtensionFunctionApp { fn_name: _, args } | ExprKind::Set(args) => {
                open.extend(args.iter().map(|expr| (expr, below)));
            }
            ExprKind::Record(fields) => open.extend(fields.values().map(|expr| (expr, below))),
        }
    }
    deepest
}
