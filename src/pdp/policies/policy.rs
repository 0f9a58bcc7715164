//! A policy or template link in the form that decisions use.

use std::sync::{Arc, LazyLock};

use cedar_policy_core::ast::{self, SlotEnv};
use cedar_policy_core::parser::Loc;
use smol_str::SmolStr;

use super::read_set::ReadSet;
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::Place;
use crate::pdp::id::PolicyId;

/// A policy or link, reduced to what decisions and explanations need, as there can be many.
#[derive(Debug)]
pub(in crate::pdp) struct Rule {
    pub(in crate::pdp) id: PolicyId,
    /// The template's id; `None` if this is not a link.
    pub(in crate::pdp) template: Option<PolicyId>,
    /// The file of the policy or link, and the position there.
    pub(in crate::pdp) file: Arc<str>,
    pub(in crate::pdp) position: Position,
    /// The file of the policy text; a link's template may be in another file than the link.
    pub(in crate::pdp) template_file: Arc<str>,
    /// The location in that text; `None` for a policy in JSON.
    pub(in crate::pdp) loc: Option<Loc>,
    pub(in crate::pdp) effect: ast::Effect,
    /// Annotations as name and value, sorted by name.
    pub(in crate::pdp) annotations: Box<[(SmolStr, SmolStr)]>,
    /// The values of the slots; `None` if this is not a link.
    pub(in crate::pdp) slots: Option<Box<SlotEnv>>,
    /// The whole condition.
    pub(in crate::pdp) condition: Condition,
    /// The condition without the operands that the scope has absorbed.
    pub(in crate::pdp) remainder: Condition,
}

/// The `when` and `unless` clauses of a policy, as one expression.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct Condition {
    /// The expression; `None` is always true.
    pub(in crate::pdp) expr: Option<Arc<ast::Expr>>,
    /// The entities and context attributes that the expression can read.
    pub(in crate::pdp) read_set: Arc<ReadSet>,
}

impl Rule {
    pub(in crate::pdp) fn slots(&self) -> &SlotEnv {
        static NONE: LazyLock<SlotEnv> = LazyLock::new(SlotEnv::new);
        self.slots.as_deref().unwrap_or(&NONE)
    }

    /// Returns the location of the policy or link.
    pub(in crate::pdp) fn place(&self) -> Place {
        Place {
            file: self.file.to_string(),
            position: Some(self.position),
        }
    }
}

/// The index of a policy among a snapshot's rules.
pub(in crate::pdp) type RuleIndex = u32;

/// Returns the operands of the condition's outermost `&&`s from left to right.
///
/// Iterative, as a chain of `&&` nests as deep as it is long.
pub(in crate::pdp) fn operands(condition: &Arc<ast::Expr>) -> Vec<&Arc<ast::Expr>> {
    let mut operands = Vec::new();
    let mut stack = vec![condition];
    while let Some(expr) = stack.pop() {
        if let ast::ExprKind::And { left, right } = expr.expr_kind() {
            stack.extend([right, left]);
        } else {
            operands.push(expr);
        }
    }
    operands
}

/// Returns `condition` without the first `count` operands; `None` if no operand is left.
pub(in crate::pdp) fn without_first(
    condition: &Arc<ast::Expr>,
    count: usize,
) -> Option<Arc<ast::Expr>> {
    if count == 0 {
        return Some(Arc::clone(condition));
    }
    let mut rest = operands(condition).into_iter().skip(count);
    let first = Arc::clone(rest.next()?);
    // Built from the left, as the parser does, so that it is no deeper than before.
    Some(rest.fold(first, |conjunction, operand| {
        Arc::new(ast::Expr::and(
            conjunction.as_ref().clone(),
            operand.as_ref().clone(),
        ))
    }))
}
