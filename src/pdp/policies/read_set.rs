//! Static analysis of a condition: the entities and context attributes that it can read.
//!
//! An evaluation looks up entities only by uids that it has: those of the request, literals of the
//! policy, and uids in attributes and tags of other entities. It cannot list a set or an entity's
//! ancestors. So the lookups can be derived from the text as paths such as `resource.owner.team`,
//! and Cedar needs only the entities on these paths.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy_core::ast::{BinaryOp, EntityUID, Expr, ExprKind, Literal, SlotEnv, SlotId, Var};
use smol_str::SmolStr;

/// The entities and context attributes that a condition can read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct ReadSet {
    /// The lookups by their start.
    pub(in crate::pdp) roots: BTreeMap<Root, AccessTree>,
    /// The attributes of the context that are read; `None` if it is used as a whole.
    pub(in crate::pdp) context: Option<BTreeSet<SmolStr>>,
    /// True if an entity is tested with `in` against a slot.
    pub(in crate::pdp) depends_on_slots: bool,
}

/// The ancestors of an entity that a condition can test with `in`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct Ancestors {
    /// True if any ancestor can be tested, by a uid known only at evaluation.
    pub(in crate::pdp) any: bool,
    /// The ancestors that the text names.
    pub(in crate::pdp) named: Vec<NamedUid>,
}

/// A uid that a policy names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::pdp) enum NamedUid {
    /// A uid literal.
    Literal(EntityUID),
    /// The uid in a template's slot.
    Slot(SlotId),
}

impl NamedUid {
    /// Returns the uid that `expr` is, if it is a literal or a slot.
    pub(super) fn from_expr(expr: &Expr) -> Option<Self> {
        if let ExprKind::Lit(Literal::EntityUID(uid)) = expr.expr_kind() {
            Some(Self::Literal(uid.as_ref().clone()))
        } else if let ExprKind::Slot(slot) = expr.expr_kind() {
            Some(Self::Slot(*slot))
        } else {
            None
        }
    }

    /// Returns the uids on the right side of an `in`; `None` if one is known only at evaluation.
    pub(super) fn all_in(right: &Expr) -> Option<Vec<Self>> {
        if let ExprKind::Set(members) = right.expr_kind() {
            members.iter().map(Self::from_expr).collect()
        } else {
            Self::from_expr(right).map(|uid| vec![uid])
        }
    }

    /// Returns the uid under these values of the slots.
    pub(in crate::pdp) fn uid<'u>(&'u self, slots: &'u SlotEnv) -> Option<&'u EntityUID> {
        match self {
            Self::Literal(uid) => Some(uid),
            Self::Slot(slot) => slots.get(slot),
        }
    }
}

impl Ancestors {
    /// Returns the ancestors that an `in` with this right side tests.
    fn from_operand(right: &Expr) -> Self {
        let named = NamedUid::all_in(right);
        Self {
            any: named.is_none(),
            named: named.unwrap_or_default(),
        }
    }

    fn has_slot(&self) -> bool {
        let mut named = self.named.iter();
        named.any(|named| matches!(named, NamedUid::Slot(_)))
    }

    fn join(&mut self, other: &Self) {
        self.any |= other.any;
        for named in &other.named {
            if !self.named.contains(named) {
                self.named.push(named.clone());
            }
        }
    }
}

/// The error that a condition reads along more than [`MAX_PATHS`] paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the condition reads attributes along more than {MAX_PATHS} paths")]
pub(in crate::pdp) struct TooManyPaths;

/// The start of a lookup: a variable of the request, a template's slot or a uid literal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::pdp) enum Root {
    Principal,
    Action,
    Resource,
    Context,
    Slot(SlotId),
    Literal(EntityUID),
}

/// The lookups of a value, and of the values that it contains or refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct AccessTree {
    /// True if the value, if it is a uid, is looked up as an entity.
    pub(in crate::pdp) is_looked_up: bool,
    /// The ancestors of the entity that are tested.
    pub(in crate::pdp) ancestors: Ancestors,
    /// The lookups of its attributes, if it is an entity, or of its fields, if it is a record.
    pub(in crate::pdp) fields: BTreeMap<SmolStr, AccessTree>,
    /// The lookups of the values of all its tags.
    pub(in crate::pdp) tags: Option<Box<AccessTree>>,
}

/// Drops iteratively: any thread may drop a snapshot, and a path may be long.
impl Drop for AccessTree {
    fn drop(&mut self) {
        let mut stack: Vec<Self> = Vec::new();
        let take = |tree: &mut Self, stack: &mut Vec<Self>| {
            stack.extend(std::mem::take(&mut tree.fields).into_values());
            stack.extend(tree.tags.take().map(|below| *below));
        };
        take(self, &mut stack);
        while let Some(mut tree) = stack.pop() {
            take(&mut tree, &mut stack);
        }
    }
}

/// Most paths of one condition. Nested conditionals and long attribute chains multiply; policies
/// that people write have a few dozen.
const MAX_PATHS: usize = 20_000;

/// Returns the read set of `condition`.
///
/// Recurses as deep as the condition is nested.
pub(in crate::pdp) fn analyze(condition: &Expr) -> Result<ReadSet, TooManyPaths> {
    let mut analysis = Analysis {
        read_set: ReadSet::nothing(),
        paths: 0,
    };
    analysis.expr(condition);
    if analysis.paths > MAX_PATHS {
        return Err(TooManyPaths);
    }
    Ok(analysis.read_set)
}

/// A path to a value: its start, and the steps from there.
#[derive(Clone, Debug)]
struct AccessPath {
    start: Root,
    steps: Vec<Step>,
}

/// A step of a path: an attribute or field, or any tag.
#[derive(Clone, Debug)]
enum Step {
    Field(SmolStr),
    AnyTag,
}

/// The static knowledge of an expression's value.
#[derive(Clone, Debug)]
enum AbstractValue {
    /// The value is at one of these paths; without paths, it contains nothing to look up.
    At(Vec<AccessPath>),
    /// The value is a record with these fields.
    Record(BTreeMap<SmolStr, AbstractValue>),
    /// The value is one of these.
    Either(Vec<AbstractValue>),
}

impl AbstractValue {
    fn nothing() -> Self {
        Self::At(Vec::new())
    }

    fn at(start: Root) -> Self {
        Self::At(vec![AccessPath {
            start,
            steps: Vec::new(),
        }])
    }

    /// Returns the value after one more step.
    fn step(self, step: &Step) -> Self {
        match self {
            Self::At(mut paths) => {
                for path in &mut paths {
                    path.steps.push(step.clone());
                }
                Self::At(paths)
            }
            Self::Record(mut fields) => match step {
                Step::Field(name) => fields.remove(name).unwrap_or_else(Self::nothing),
                Step::AnyTag => Self::nothing(),
            },
            Self::Either(branches) => {
                Self::Either(branches.into_iter().map(|value| value.step(step)).collect())
            }
        }
    }
}

impl ReadSet {
    /// Returns the read set of a policy without condition.
    pub(in crate::pdp) fn nothing() -> Self {
        Self {
            context: Some(BTreeSet::new()),
            ..Self::default()
        }
    }
}

struct Analysis {
    read_set: ReadSet,
    paths: usize,
}

impl Analysis {
    /// Records the lookups of `expr`, and returns its abstract value.
    fn expr(&mut self, expr: &Expr) -> AbstractValue {
        if self.paths > MAX_PATHS {
            return AbstractValue::nothing();
        }
        match expr.expr_kind() {
            ExprKind::Lit(Literal::EntityUID(uid)) => {
                return AbstractValue::at(Root::Literal(uid.as_ref().clone()));
            }
            // Loaded policies contain no unknowns.
            ExprKind::Lit(Literal::Bool(_) | Literal::Long(_) | Literal::String(_))
            | ExprKind::Unknown(_) => {}
            ExprKind::Var(var) => {
                return AbstractValue::at(match var {
                    Var::Principal => Root::Principal,
                    Var::Action => Root::Action,
                    Var::Resource => Root::Resource,
                    Var::Context => {
                        // `holder` handles reads of a single attribute.
                        self.read_set.context = None;
                        Root::Context
                    }
                });
            }
            ExprKind::Slot(slot) => return AbstractValue::at(Root::Slot(*slot)),
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                self.expr(test_expr);
                let branches = vec![self.expr(then_expr), self.expr(else_expr)];
                return AbstractValue::Either(branches);
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                self.expr(left);
                self.expr(right);
            }
            ExprKind::UnaryApp { op: _, arg: expr }
            | ExprKind::Like { expr, pattern: _ }
            | ExprKind::Is {
                expr,
                entity_type: _,
            } => {
                self.expr(expr);
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => return self.binary(*op, arg1, arg2),
            ExprKind::GetAttr { expr, attr } => {
                let holder = self.holder(expr, attr);
                self.record(&holder, &Ancestors::default());
                return holder.step(&Step::Field(attr.clone()));
            }
            ExprKind::HasAttr { expr, attr } => {
                let holder = self.holder(expr, attr);
                self.record(&holder, &Ancestors::default());
            }
            ExprKind::ExtHasAttr { expr, attrs } => {
                let mut holder = self.holder(expr, attrs.first());
                for attr in attrs {
                    self.record(&holder, &Ancestors::default());
                    holder = holder.step(&Step::Field(attr.clone()));
                }
            }
            // A member of a set cannot be read.
            ExprKind::ExtensionFunctionApp { fn_name: _, args } | ExprKind::Set(args) => {
                for arg in args.iter() {
                    self.expr(arg);
                }
            }
            ExprKind::Record(fields) => {
                let fields = fields.iter();
                let fields = fields.map(|(name, field)| (name.clone(), self.expr(field)));
                return AbstractValue::Record(fields.collect());
            }
        }
        AbstractValue::nothing()
    }

    fn binary(&mut self, op: BinaryOp, arg1: &Expr, arg2: &Expr) -> AbstractValue {
        let left = self.expr(arg1);
        self.expr(arg2);
        match op {
            BinaryOp::In => self.record(&left, &Ancestors::from_operand(arg2)),
            BinaryOp::GetTag => {
                self.record(&left, &Ancestors::default());
                return left.step(&Step::AnyTag);
            }
            BinaryOp::HasTag => self.record(&left, &Ancestors::default()),
            BinaryOp::Eq
            | BinaryOp::Less
            | BinaryOp::LessEq
            | BinaryOp::Add
            | BinaryOp::Sub
            | BinaryOp::Mul
            | BinaryOp::Contains
            | BinaryOp::ContainsAll
            | BinaryOp::ContainsAny => {}
        }
        AbstractValue::nothing()
    }

    /// Analyzes `expr`, of which only the attribute `attr` is read.
    fn holder(&mut self, expr: &Expr, attr: &SmolStr) -> AbstractValue {
        if let ExprKind::Var(Var::Context) = expr.expr_kind() {
            if let Some(names) = &mut self.read_set.context {
                names.insert(attr.clone());
            }
            return AbstractValue::at(Root::Context);
        }
        self.expr(expr)
    }

    /// Records that `value`, if it is a uid, is looked up with these ancestors.
    fn record(&mut self, value: &AbstractValue, ancestors: &Ancestors) {
        match value {
            AbstractValue::At(found) => {
                self.paths += found.len();
                self.read_set.depends_on_slots |= ancestors.has_slot();
                for path in found {
                    self.record_path(path, ancestors);
                }
            }
            // A record is not an entity.
            AbstractValue::Record(_) => {}
            AbstractValue::Either(branches) => {
                for branch in branches {
                    self.record(branch, ancestors);
                }
            }
        }
    }

    fn record_path(&mut self, AccessPath { start, steps }: &AccessPath, ancestors: &Ancestors) {
        let mut tree = self.read_set.roots.entry(start.clone()).or_default();
        for step in steps {
            tree = match step {
                Step::Field(name) => tree.fields.entry(name.clone()).or_default(),
                Step::AnyTag => tree.tags.get_or_insert_default(),
            };
        }
        tree.is_looked_up = true;
        tree.ancestors.join(ancestors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(condition: &str) -> ReadSet {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy_core::parser::parse_policy(None, &text).unwrap();
        let policy: cedar_policy_core::ast::Policy = policy.into();
        analyze(policy.non_scope_constraints().unwrap()).unwrap()
    }

    /// Lists the paths that are looked up.
    ///
    /// A `^` marks that any ancestor can be tested; ancestors tested by name follow the path.
    fn tree(condition: &str) -> Vec<String> {
        fn list(at: &str, tree: &AccessTree, found: &mut Vec<String>) {
            if tree.is_looked_up {
                let Ancestors { any, named } = &tree.ancestors;
                let mark = if *any { "^" } else { "" };
                let named: String = named
                    .iter()
                    .map(|named| match named {
                        NamedUid::Literal(uid) => format!(" in {uid}"),
                        NamedUid::Slot(slot) => format!(" in {slot}"),
                    })
                    .collect();
                found.push(format!("{at}{mark}{named}"));
            }
            for (name, below) in &tree.fields {
                list(&format!("{at}.{name}"), below, found);
            }
            if let Some(below) = &tree.tags {
                list(&format!("{at}.*"), below, found);
            }
        }
        let reads = reads(condition);
        let mut found = Vec::new();
        for (root, below) in &reads.roots {
            let root = match root {
                Root::Literal(uid) => uid.to_string(),
                Root::Principal | Root::Action | Root::Resource | Root::Context | Root::Slot(_) => {
                    format!("{root:?}")
                }
            };
            list(&root, below, &mut found);
        }
        found
    }

    #[test]
    fn attributes_tags_and_ancestors_cause_lookups() {
        for (condition, expected) in [
            ("principal == resource", vec![]),
            ("principal is User", vec![]),
            ("principal.a > 1", vec!["Principal"]),
            ("principal has a", vec!["Principal"]),
            (
                r#"principal in Group::"g""#,
                vec![r#"Principal in Group::"g""#],
            ),
            (
                r#"principal in [Group::"g", Group::"h"] && principal in Group::"g""#,
                vec![r#"Principal in Group::"g" in Group::"h""#],
            ),
            (r#"principal in [Group::"g", resource]"#, vec!["Principal^"]),
            ("principal in resource", vec!["Principal^"]),
            (r#"principal.hasTag("t")"#, vec!["Principal"]),
            ("resource.owner == principal", vec!["Resource"]),
            (
                "resource.owner.team == principal.team",
                vec!["Principal", "Resource", "Resource.owner"],
            ),
            (
                r#"resource.getTag("t") in principal.a"#,
                vec!["Principal", "Resource", "Resource.*^"],
            ),
            (
                "principal has a.b.c",
                vec!["Principal", "Principal.a", "Principal.a.b"],
            ),
            (
                r#"User::"x".a && action in Action::"y""#,
                vec![r#"Action in Action::"y""#, r#"User::"x""#],
            ),
            (
                r#"context.who in Group::"g""#,
                vec!["Context", r#"Context.who in Group::"g""#],
            ),
        ] {
            assert_eq!(tree(condition), expected, "{condition}");
        }
    }

    #[test]
    fn values_are_followed_through_records_and_branches() {
        for (condition, expected) in [
            ("{a: principal}.a.x", vec!["Principal"]),
            (
                "(if context.b then principal else resource.owner).x",
                vec!["Principal", "Resource", "Resource.owner"],
            ),
            (
                "(if true then {a: principal} else {a: resource}).a has x",
                vec!["Principal", "Resource"],
            ),
            (
                "[principal, resource.owner].contains(principal)",
                vec!["Resource"],
            ),
        ] {
            let mut found = tree(condition);
            found.retain(|path| !path.starts_with("Context"));
            assert_eq!(found, expected, "{condition}");
        }
    }

    #[test]
    fn context_reads_are_the_named_attributes() {
        let named = |names: &[&str]| Some(names.iter().map(|name| SmolStr::from(*name)).collect());
        for (condition, expected) in [
            ("principal.a", named(&[])),
            ("context.a && context has b", named(&["a", "b"])),
            ("context has a.b && context.c.d", named(&["a", "c"])),
            ("principal.x == context", None),
            ("(if true then context else context).a", None),
            ("{c: context}.c.a", None),
        ] {
            assert_eq!(reads(condition).context, expected, "{condition}");
        }
    }

    #[test]
    fn conditions_with_too_many_paths_are_rejected() {
        let base = (0..100).fold("principal".to_owned(), |base, _| {
            format!("(if context.b then {base} else resource)")
        });
        let condition = format!("{base}{}", ".a".repeat(400));
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let parse = || cedar_policy_core::parser::parse_policy(None, &text);
        let policy: cedar_policy_core::ast::Policy = stacker::grow(64 << 20, parse).unwrap().into();
        let read = stacker::grow(64 << 20, || {
            analyze(policy.non_scope_constraints().unwrap())
        });
        assert_eq!(read, Err(TooManyPaths));
    }
}
