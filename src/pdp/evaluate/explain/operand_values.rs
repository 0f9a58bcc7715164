//! The values that an operand of a condition reads, for people who ask why it is not true.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most kinds of expression read nothing"
)]

use std::collections::HashSet;
use std::fmt;

use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Value, ValueKind};
use cedar_policy_core::evaluator::Evaluator;

use crate::pdp::explanation::{MAX_VALUES, OperandValue};
use crate::pdp::policies::policy::Rule;
use crate::pdp::values::bounded_text;

/// Most members shown of a set or record.
const MAX_MEMBERS: usize = 10;

/// Most expressions of one operand that are evaluated for it.
const MAX_READS: usize = 64;

/// Returns the variables, attributes and tags in `operand`, each with its value.
///
/// An expression without a value is left out: the clause's error describes it.
pub(super) fn operand_values(
    evaluator: &Evaluator<'_>,
    rule: &Rule,
    operand: &Expr,
) -> Vec<OperandValue> {
    let mut seen = HashSet::new();
    let mut values = Vec::new();
    for read in reads(operand) {
        if values.len() == MAX_VALUES || seen.len() == MAX_READS {
            break;
        }
        let Some(expression) = path(read).map(|path| bounded_text(&path)) else {
            continue;
        };
        // Evaluated once, even if it fails.
        if !seen.insert(expression.clone()) {
            continue;
        }
        if let Ok(value) = evaluator.interpret(read, rule.slots()) {
            values.push(OperandValue {
                expression,
                value: bounded_text(&FirstMembers(&value)),
            });
        }
    }
    values
}

/// Returns the expressions in `operand` that read something, in their order.
///
/// Of `resource.owner.name`, only the whole is returned.
fn reads(operand: &Expr) -> Vec<&Expr> {
    let mut inner: HashSet<*const Expr> = HashSet::new();
    let mut found = Vec::new();
    // An expression comes before those in it, and the right of two before the left.
    for expr in operand.subexpressions() {
        let read_from = match expr.expr_kind() {
            ExprKind::GetAttr { expr, .. } => Some(expr),
            ExprKind::BinaryApp {
                op: BinaryOp::GetTag,
                arg1,
                ..
            } => Some(arg1),
            _ => None,
        };
        let is_read = read_from.is_some() || matches!(expr.expr_kind(), ExprKind::Var(_));
        if is_read && !inner.contains(&std::ptr::from_ref(expr)) {
            found.push(expr);
        }
        inner.extend(read_from.map(|inner| std::ptr::from_ref(inner.as_ref())));
    }
    found.reverse();
    found
}

/// Returns the expression in Cedar's syntax, or `None` if it reads from something computed.
///
/// Not the text of the policy, where a receiver has the location of the calls that follow it.
fn path(mut expr: &Expr) -> Option<String> {
    let mut parts = Vec::new();
    loop {
        match expr.expr_kind() {
            ExprKind::GetAttr { expr: inner, attr } => {
                let is_name = attr.starts_with(|first: char| first.is_ascii_alphabetic())
                    && attr.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                parts.push(match is_name {
                    true => format!(".{attr}"),
                    false => format!("[\"{}\"]", attr.escape_debug()),
                });
                expr = inner;
            }
            ExprKind::BinaryApp {
                op: BinaryOp::GetTag,
                arg1,
                arg2,
            } => {
                parts.push(format!(".getTag({})", path(arg2)?));
                expr = arg1;
            }
            ExprKind::Var(variable) => {
                parts.push(variable.to_string());
                break;
            }
            ExprKind::Lit(literal) => {
                parts.push(literal.to_string());
                break;
            }
            _ => return None,
        }
    }
    parts.reverse();
    Some(parts.concat())
}

/// Shows a value in Cedar's syntax, of a set or record its first members.
///
/// Cedar's own display sorts all members before it shows some.
struct FirstMembers<'a>(&'a Value);

impl fmt::Display for FirstMembers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.value_kind() {
            ValueKind::Set(set) => {
                let members = set.authoritative.iter();
                let members = members.map(|member| (None, member));
                write_members(f, ['[', ']'], members, set.authoritative.len())
            }
            ValueKind::Record(record) => {
                let fields = record.iter();
                let fields = fields.map(|(name, value)| (Some(name.as_str()), value));
                write_members(f, ['{', '}'], fields, record.len())
            }
            ValueKind::Lit(literal) => write!(f, "{literal}"),
            ValueKind::ExtensionValue(_) => write!(f, "{}", self.0),
        }
    }
}

fn write_members<'a>(
    f: &mut fmt::Formatter<'_>,
    [open, close]: [char; 2],
    members: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    count: usize,
) -> fmt::Result {
    write!(f, "{open}")?;
    for (index, (name, value)) in members.take(MAX_MEMBERS).enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        if let Some(name) = name {
            write!(f, "\"{}\": ", name.escape_debug())?;
        }
        write!(f, "{}", FirstMembers(value))?;
    }
    if let Some(more @ 1..) = count.checked_sub(MAX_MEMBERS) {
        write!(f, ", … {more} more")?;
    }
    write!(f, "{close}")
}
