//! What evaluating a condition can read: which entities it looks up, and what of the context.
//!
//! An evaluation looks up entities by uids that it holds: those of the request, the literals of
//! the policy, and what attributes and tags of looked-up entities hold. It cannot list a set or an
//! entity's ancestors. So the places at which a condition looks something up can be read off its
//! text, as paths such as `resource.owner.team`, and only what stands on those paths at a request
//! needs to be made into what Cedar evaluates with.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy_core::ast::{BinaryOp, EntityUID, Expr, ExprKind, Literal, SlotId, Var};
use smol_str::SmolStr;

/// What a condition can read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct ReadSet {
    /// The lookups that begin at the request and at the slots of a template, by where they begin.
    pub(in crate::pdp) roots: BTreeMap<Root, AccessTree>,
    /// The lookups that begin at a uid in the text.
    pub(in crate::pdp) literals: Vec<(EntityUID, AccessTree)>,
    /// The attributes of the context that are read; `None` when it is used as a whole.
    pub(in crate::pdp) context: Option<BTreeSet<SmolStr>>,
    /// Whether an entity is asked whether it is in what stands in a slot.
    pub(in crate::pdp) depends_on_slots: bool,
}

/// Which ancestors of an entity are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct Ancestors {
    /// Whichever a value names that only evaluation knows.
    pub(in crate::pdp) any: bool,
    /// Those that the text names.
    pub(in crate::pdp) named: Vec<NamedUid>,
}

/// A uid that stands in a policy's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::pdp) enum NamedUid {
    /// As it is.
    Literal(EntityUID),
    /// In a template's slot.
    Slot(SlotId),
}

impl Ancestors {
    /// None at all.
    const NONE: Self = Self {
        any: false,
        named: Vec::new(),
    };

    /// Those that the right side of an `in` asks for.
    fn of_operand(right: &Expr) -> Self {
        let named = |expr: &Expr| {
            if let ExprKind::Lit(Literal::EntityUID(uid)) = expr.expr_kind() {
                Some(NamedUid::Literal(uid.as_ref().clone()))
            } else if let ExprKind::Slot(slot) = expr.expr_kind() {
                Some(NamedUid::Slot(*slot))
            } else {
                None
            }
        };
        let all: Option<Vec<NamedUid>> = if let ExprKind::Set(members) = right.expr_kind() {
            members.iter().map(named).collect()
        } else {
            named(right).map(|one| vec![one])
        };
        match all {
            Some(named) => Self { any: false, named },
            None => Self {
                any: true,
                named: Vec::new(),
            },
        }
    }

    fn has_slot(&self) -> bool {
        let mut named = self.named.iter();
        named.any(|named| match named {
            NamedUid::Literal(_) => false,
            NamedUid::Slot(_) => true,
        })
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

/// A condition reads through more paths than are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the condition reads attributes along more than {MAX_PATHS} paths")]
pub(in crate::pdp) struct TooManyPaths;

/// Where a lookup begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::pdp) enum Root {
    Principal,
    Action,
    Resource,
    Context,
    Slot(SlotId),
}

/// The lookups at a value, and at what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::pdp) struct AccessTree {
    /// The value, if it is a uid, is looked up.
    pub(in crate::pdp) entity: bool,
    /// Whether it is asked what it is in, and of what.
    pub(in crate::pdp) ancestors: Ancestors,
    /// What it holds: attributes of an entity, or fields of a record.
    pub(in crate::pdp) fields: BTreeMap<SmolStr, AccessTree>,
    /// What its tags hold, whatever they are called.
    pub(in crate::pdp) tags: Option<Box<AccessTree>>,
}

/// Not by recursion, as it would be by itself: a snapshot ends on whatever thread lets go of it
/// last, and a path is as long as its author likes.
impl Drop for AccessTree {
    fn drop(&mut self) {
        let mut open: Vec<Self> = Vec::new();
        let take = |tree: &mut Self, open: &mut Vec<Self>| {
            open.extend(std::mem::take(&mut tree.fields).into_values());
            open.extend(tree.tags.take().map(|below| *below));
        };
        take(self, &mut open);
        while let Some(mut tree) = open.pop() {
            take(&mut tree, &mut open);
        }
    }
}

/// The most paths that are followed in one condition. Conditionals within one another and long
/// chains of attributes multiply; what people write has a few dozen.
const MAX_PATHS: usize = 20_000;

/// The reads of `condition`.
///
/// Recurses as deep as the condition is nested.
///
/// # Errors
///
/// [`TooManyPaths`].
pub(in crate::pdp) fn analyze(condition: &Expr) -> Result<ReadSet, TooManyPaths> {
    let mut reads = ReadSet::nothing();
    let mut paths = 0;
    reads.analyze_expr(condition, &mut paths);
    if paths > MAX_PATHS {
        return Err(TooManyPaths);
    }
    Ok(reads)
}

/// A path to a value: where it begins, and the steps from there.
#[derive(Clone, Debug)]
struct AccessPath {
    from: PathStart,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum PathStart {
    Root(Root),
    Literal(EntityUID),
}

#[derive(Clone, Debug)]
enum Step {
    Field(SmolStr),
    AnyTag,
}

/// What is known of an expression's value.
#[derive(Clone, Debug)]
enum AbstractValue {
    /// It stands at one of these paths; with none, it is nothing that can be looked up.
    At(Vec<AccessPath>),
    /// It is a record with these fields.
    Record(BTreeMap<SmolStr, AbstractValue>),
    /// It is one or the other.
    Either(Vec<AbstractValue>),
}

impl AbstractValue {
    fn nothing() -> Self {
        Self::At(Vec::new())
    }

    fn at(from: PathStart) -> Self {
        Self::At(vec![AccessPath {
            from,
            steps: Vec::new(),
        }])
    }

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
                Self::Either(branches.into_iter().map(|known| known.step(step)).collect())
            }
        }
    }
}

impl ReadSet {
    /// The reads of a policy without condition.
    pub(in crate::pdp) fn nothing() -> Self {
        Self {
            context: Some(BTreeSet::new()),
            ..Self::default()
        }
    }

    /// Notes what evaluating `expr` looks up, and says where its value stands.
    fn analyze_expr(&mut self, expr: &Expr, paths: &mut usize) -> AbstractValue {
        if *paths > MAX_PATHS {
            return AbstractValue::nothing();
        }
        match expr.expr_kind() {
            ExprKind::Lit(Literal::EntityUID(uid)) => {
                AbstractValue::at(PathStart::Literal(uid.as_ref().clone()))
            }
            ExprKind::Lit(Literal::Bool(_) | Literal::Long(_) | Literal::String(_)) => {
                AbstractValue::nothing()
            }
            ExprKind::Var(var) => AbstractValue::at(PathStart::Root(match var {
                Var::Principal => Root::Principal,
                Var::Action => Root::Action,
                Var::Resource => Root::Resource,
                Var::Context => {
                    // Whoever reads but an attribute of it does not come here.
                    self.context = None;
                    Root::Context
                }
            })),
            ExprKind::Slot(slot) => AbstractValue::at(PathStart::Root(Root::Slot(*slot))),
            // Nothing that is loaded holds one, and nothing can be looked up by it.
            ExprKind::Unknown(_) => AbstractValue::nothing(),
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                self.analyze_expr(test_expr, paths);
                AbstractValue::Either(vec![
                    self.analyze_expr(then_expr, paths),
                    self.analyze_expr(else_expr, paths),
                ])
            }
            ExprKind::And { left, right } | ExprKind::Or { left, right } => {
                self.analyze_expr(left, paths);
                self.analyze_expr(right, paths);
                AbstractValue::nothing()
            }
            ExprKind::UnaryApp { op: _, arg } => {
                self.analyze_expr(arg, paths);
                AbstractValue::nothing()
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => {
                let left = self.analyze_expr(arg1, paths);
                self.analyze_expr(arg2, paths);
                match op {
                    BinaryOp::In => {
                        self.record(&left, &Ancestors::of_operand(arg2), paths);
                        AbstractValue::nothing()
                    }
                    BinaryOp::GetTag => {
                        self.record(&left, &Ancestors::NONE, paths);
                        left.step(&Step::AnyTag)
                    }
                    BinaryOp::HasTag => {
                        self.record(&left, &Ancestors::NONE, paths);
                        AbstractValue::nothing()
                    }
                    BinaryOp::Eq
                    | BinaryOp::Less
                    | BinaryOp::LessEq
                    | BinaryOp::Add
                    | BinaryOp::Sub
                    | BinaryOp::Mul
                    | BinaryOp::Contains
                    | BinaryOp::ContainsAll
                    | BinaryOp::ContainsAny => AbstractValue::nothing(),
                }
            }
            ExprKind::GetAttr { expr, attr } => {
                let analyze_holder = self.analyze_holder(expr, attr, paths);
                self.record(&analyze_holder, &Ancestors::NONE, paths);
                analyze_holder.step(&Step::Field(attr.clone()))
            }
            ExprKind::HasAttr { expr, attr } => {
                let analyze_holder = self.analyze_holder(expr, attr, paths);
                self.record(&analyze_holder, &Ancestors::NONE, paths);
                AbstractValue::nothing()
            }
            ExprKind::ExtHasAttr { expr, attrs } => {
                let mut analyze_holder = self.analyze_holder(expr, attrs.first(), paths);
                for attr in attrs {
                    self.record(&analyze_holder, &Ancestors::NONE, paths);
                    analyze_holder = analyze_holder.step(&Step::Field(attr.clone()));
                }
                AbstractValue::nothing()
            }
            ExprKind::Like { expr, pattern: _ }
            | ExprKind::Is {
                expr,
                entity_type: _,
            } => {
                self.analyze_expr(expr, paths);
                AbstractValue::nothing()
            }
            // The members of a set cannot be taken out of it again.
            ExprKind::ExtensionFunctionApp { fn_name: _, args } | ExprKind::Set(args) => {
                for arg in args.iter() {
                    self.analyze_expr(arg, paths);
                }
                AbstractValue::nothing()
            }
            ExprKind::Record(fields) => AbstractValue::Record(
                fields
                    .iter()
                    .map(|(name, field)| (name.clone(), self.analyze_expr(field, paths)))
                    .collect(),
            ),
        }
    }

    /// Follows `expr`, of which only the attribute `attr` is read.
    fn analyze_holder(&mut self, expr: &Expr, attr: &SmolStr, paths: &mut usize) -> AbstractValue {
        if let ExprKind::Var(Var::Context) = expr.expr_kind() {
            if let Some(read) = &mut self.context {
                read.insert(attr.clone());
            }
            return AbstractValue::at(PathStart::Root(Root::Context));
        }
        self.analyze_expr(expr, paths)
    }

    /// Notes that `value` is looked up if it is a uid.
    fn record(&mut self, value: &AbstractValue, ancestors: &Ancestors, paths: &mut usize) {
        match value {
            AbstractValue::At(found) => {
                *paths += found.len();
                self.depends_on_slots |= ancestors.has_slot();
                for AccessPath { from, steps } in found {
                    let mut tree = match from {
                        PathStart::Root(root) => self.roots.entry(*root).or_default(),
                        PathStart::Literal(uid) => {
                            let known = self.literals.iter().position(|(known, _)| known == uid);
                            let at = known.unwrap_or_else(|| {
                                self.literals.push((uid.clone(), AccessTree::default()));
                                self.literals.len() - 1
                            });
                            match self.literals.get_mut(at) {
                                Some((_, tree)) => tree,
                                None => continue,
                            }
                        }
                    };
                    for step in steps {
                        tree = match step {
                            Step::Field(name) => tree.fields.entry(name.clone()).or_default(),
                            Step::AnyTag => tree.tags.get_or_insert_default(),
                        };
                    }
                    tree.entity = true;
                    tree.ancestors.join(ancestors);
                }
            }
            // A record has attributes, and is no entity.
            AbstractValue::Record(_) => {}
            AbstractValue::Either(branches) => {
                for branch in branches {
                    self.record(branch, ancestors, paths);
                }
            }
        }
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

    /// The looked-up paths; an `^` behind those of which any ancestor can be asked for, and those
    /// that are asked for by name.
    fn tree(condition: &str) -> Vec<String> {
        fn list(at: &str, tree: &AccessTree, found: &mut Vec<String>) {
            if tree.entity {
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
            list(&format!("{root:?}"), below, &mut found);
        }
        for (uid, below) in &reads.literals {
            list(&uid.to_string(), below, &mut found);
        }
        found
    }

    #[test]
    fn an_entity_is_looked_up_for_its_attributes_its_tags_and_what_it_is_in() {
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
    fn a_value_is_followed_through_records_and_branches() {
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
    fn of_the_context_only_what_the_text_names_is_read() {
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
    fn a_condition_with_very_many_paths_is_refused() {
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
