//! Warns of operations on values whose types cannot match, where no schema checks them.
//!
//! Only types that the text itself shows are compared: of literals, and of the results of operators.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most kinds of expression show no type"
)]

use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Literal, UnaryOp};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Bool,
    Long,
    String,
    Entity,
    Set,
    Record,
    /// A decimal, IP address, datetime or duration.
    Extension,
}

impl Shown {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "a Bool",
            Self::Long => "a Long",
            Self::String => "a String",
            Self::Entity => "an entity",
            Self::Set => "a Set",
            Self::Record => "a record",
            Self::Extension => "an extension value",
        }
    }
}

/// A mismatch of types: the expression, and the text of the warning.
pub(super) struct Mismatch<'e> {
    pub(super) expr: &'e Expr,
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
}

/// Returns the first operation of `condition` whose types cannot match.
pub(super) fn mismatch(condition: &Expr) -> Option<Mismatch<'_>> {
    condition.subexpressions().find_map(|expr| {
        let (message, help) = problem(expr)?;
        Some(Mismatch {
            expr,
            message,
            help,
        })
    })
}

fn problem(expr: &Expr) -> Option<(String, Option<&'static str>)> {
    let needs = |operator: &str, needed: &str, operand: &Expr, fits: &[Shown]| {
        let found = shown(operand).filter(|found| !fits.contains(found))?;
        Some((
            format!("`{operator}` needs {needed}, not {}", found.name()),
            None,
        ))
    };
    match expr.expr_kind() {
        ExprKind::BinaryApp { op, arg1, arg2 } => match op {
            BinaryOp::Eq => {
                let (one, other) = (shown(arg1)?, shown(arg2)?);
                let (left, right) = (one.name(), other.name());
                let message = format!("`==` compares {left} with {right}, which are never equal");
                (one != other).then_some((message, None))
            }
            BinaryOp::In => needs("in", "an entity on the left", arg1, &[Shown::Entity])
                .or_else(|| in_list(arg2)),
            BinaryOp::Less | BinaryOp::LessEq => [arg1, arg2].into_iter().find_map(|operand| {
                let fits = [Shown::Long, Shown::Extension];
                needs("<", "numbers, datetimes or durations", operand, &fits)
            }),
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => {
                let sign = match op {
                    BinaryOp::Add => "+",
                    BinaryOp::Sub => "-",
                    _ => "*",
                };
                [arg1, arg2]
                    .into_iter()
                    .find_map(|operand| needs(sign, "numbers", operand, &[Shown::Long]))
            }
            BinaryOp::Contains | BinaryOp::ContainsAll | BinaryOp::ContainsAny => {
                needs("contains", "a Set", arg1, &[Shown::Set])
            }
            _ => None,
        },
        ExprKind::Like { expr, .. } => needs("like", "a String", expr, &[Shown::String]),
        ExprKind::And { left, right } => [left, right]
            .into_iter()
            .find_map(|operand| needs("&&", "a Bool", operand, &[Shown::Bool])),
        ExprKind::Or { left, right } => [left, right]
            .into_iter()
            .find_map(|operand| needs("||", "a Bool", operand, &[Shown::Bool])),
        _ => None,
    }
}

/// Checks the right side of `in`: an entity, or a list of entities.
fn in_list(list: &Expr) -> Option<(String, Option<&'static str>)> {
    let members = match list.expr_kind() {
        ExprKind::Set(members) => members.as_slice(),
        _ => std::slice::from_ref(list),
    };
    let is_wrong = |member: &Expr| shown(member).filter(|found| *found != Shown::Entity);
    let found = members.iter().find_map(is_wrong)?;
    let message = format!("`in` needs entities on the right, not {}", found.name());
    let help = "whether a list holds a value is `[\"a\", \"b\"].contains(context.value)`";
    Some((message, Some(help)))
}

/// Returns the type of `expr`, if its text shows it.
fn shown(expr: &Expr) -> Option<Shown> {
    Some(match expr.expr_kind() {
        ExprKind::Lit(Literal::Bool(_)) => Shown::Bool,
        ExprKind::Lit(Literal::Long(_)) => Shown::Long,
        ExprKind::Lit(Literal::String(_)) => Shown::String,
        ExprKind::Lit(Literal::EntityUID(_)) => Shown::Entity,
        ExprKind::Set(_) => Shown::Set,
        ExprKind::Record(_) => Shown::Record,
        ExprKind::And { .. }
        | ExprKind::Or { .. }
        | ExprKind::HasAttr { .. }
        | ExprKind::ExtHasAttr { .. }
        | ExprKind::Like { .. }
        | ExprKind::Is { .. } => Shown::Bool,
        ExprKind::UnaryApp { op, .. } => match op {
            UnaryOp::Not | UnaryOp::IsEmpty => Shown::Bool,
            UnaryOp::Neg => Shown::Long,
        },
        ExprKind::BinaryApp { op, .. } => match op {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul => Shown::Long,
            BinaryOp::GetTag => return None,
            _ => Shown::Bool,
        },
        ExprKind::ExtensionFunctionApp { fn_name, .. } => match fn_name.to_string().as_str() {
            "decimal" | "ip" | "datetime" | "duration" => Shown::Extension,
            _ => return None,
        },
        _ => return None,
    })
}
