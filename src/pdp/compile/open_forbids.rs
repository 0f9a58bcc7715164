//! Finds forbids that do not forbid where an entity is unknown: neither stored nor sent.
//!
//! To read an attribute of an unknown entity is an error, and Cedar skips a policy with an error.
//! `has` is no error, but false, so `principal has suspended && principal.suspended` does not forbid
//! either. Only a condition that becomes true without the entity does:
//! `!(principal has suspended) || principal.suspended`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most kinds of expression are alike here"
)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy_core::ast::{
    self, ActionConstraint, BinaryOp, Effect, EntityType, EntityUID, Expr, ExprKind, Literal,
    PrincipalOrResourceConstraint, UnaryOp, Var,
};
use cedar_policy_core::validator::ValidatorSchema;
use cedar_policy_core::validator::types::{EntityKind, Type};

use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::entities::store::EntityStore;
use crate::pdp::id::PolicyId;
use crate::pdp::settings::{KnownTypes, OnPolicyError, Settings};

/// The annotation by which an author accepts an open forbid; its value is the reason.
const ACCEPTED: &str = "allow_unknown";

/// Most forbids that the warning lists.
const MAX_LISTED: usize = 100;

/// Most steps for one policy. A policy that takes more counts as open: it is longer than any that a
/// person wrote.
const MAX_STEPS: usize = 20_000;

/// A forbid that may not apply because an entity is unknown.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct OpenForbid {
    id: PolicyId,
    file: Arc<str>,
    position: Position,
    /// Set if an entity may be unknown whatever is stored.
    is_open: bool,
    /// Entities that the condition names and reads, which are known if they are stored.
    named: Vec<EntityUID>,
}

/// Returns the warning about all forbids that are open, with these entities stored.
pub(super) fn warning<'a>(
    forbids: impl Iterator<Item = &'a OpenForbid>,
    stored: &EntityStore,
) -> Option<Diagnostic> {
    let is_stored = |uid: &EntityUID| {
        let uid = stored.interner.find_uid(uid);
        uid.is_some_and(|uid| stored.location(uid).is_some())
    };
    let is_open = |forbid: &&OpenForbid| forbid.is_open || !forbid.named.iter().all(is_stored);
    let mut open: Vec<&OpenForbid> = forbids.filter(is_open).collect();
    open.sort_by(|one, other| (&one.file, one.position).cmp(&(&other.file, other.position)));
    let more = match open.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed = open.iter().take(MAX_LISTED).map(|forbid| {
        let OpenForbid { id, file, .. } = forbid;
        format!("`{id}` ({file}:{})", forbid.position.line)
    });
    let listed = listed.collect::<Vec<_>>().join(", ");
    let message = format!(
        "forbids that read an entity, and do not forbid where the entity is neither stored nor sent: \
         {listed}{more}"
    );
    let help = "list the entity type in `--require-known`, write \
                `!(principal has a) || principal.a`, or accept the forbid with `@allow_unknown(\"reason\")`";
    (!open.is_empty()).then(|| Diagnostic::warning("", message).with_help(help))
}

/// The settings and the schema by which an entity need be known.
#[derive(Clone, Copy)]
pub(in crate::pdp) struct OpenForbidCheck<'a> {
    pub(super) schema: Option<&'a ValidatorSchema>,
    pub(super) settings: &'a Settings,
}

impl OpenForbidCheck<'_> {
    /// Returns whether `policy`, which is defined at this place, is a forbid that may be open.
    pub(super) fn check(
        self,
        policy: &ast::Policy,
        (file, position): (&Arc<str>, Position),
    ) -> Option<OpenForbid> {
        let condition = policy.non_scope_constraints()?;
        let is_accepted = policy
            .annotations()
            .any(|(name, reason)| name.as_ref() == ACCEPTED && !reason.val.is_empty());
        if policy.effect() != Effect::Forbid || is_accepted {
            return None;
        }
        let mut search = Search {
            check: self,
            actions: self.actions(policy.action_constraint()),
            principals: None,
            resources: None,
            closed: Vec::new(),
            open: Vec::new(),
            is_open: false,
            named: Vec::new(),
            steps: Cell::new(0),
        };
        search.principals = search.types(Var::Principal, policy.principal_constraint().as_inner());
        search.resources = search.types(Var::Resource, policy.resource_constraint().as_inner());
        search.visit(condition, Leads::ByTrue);
        let Search { is_open, named, .. } = search;
        (is_open || !named.is_empty()).then(|| OpenForbid {
            id: PolicyId::new(policy.id().as_ref()),
            file: Arc::clone(file),
            position,
            is_open,
            named,
        })
    }

    /// Returns the schema's actions that match the scope.
    fn actions(self, constraint: &ActionConstraint) -> Vec<EntityUID> {
        let Some(schema) = self.schema else {
            return Vec::new();
        };
        let named = match constraint {
            ActionConstraint::Any => {
                return schema.action_ids().map(|id| id.name().clone()).collect();
            }
            ActionConstraint::Eq(action) => std::slice::from_ref(action),
            ActionConstraint::In(actions) => actions.as_slice(),
        };
        let mut actions = Vec::new();
        for action in named {
            actions.push(EntityUID::clone(action));
            if let Some(action) = schema.get_action_id(action) {
                actions.extend(action.descendants().cloned());
            }
        }
        actions
    }
}

/// Returns the type of the entities that match a scope, if it names one.
fn scope_type(constraint: &PrincipalOrResourceConstraint) -> Option<&EntityType> {
    match constraint {
        PrincipalOrResourceConstraint::Is(ty) | PrincipalOrResourceConstraint::IsIn(ty, _) => {
            Some(ty)
        }
        PrincipalOrResourceConstraint::Eq(ast::EntityReference::EUID(uid)) => {
            Some(uid.entity_type())
        }
        PrincipalOrResourceConstraint::Any
        | PrincipalOrResourceConstraint::In(_)
        | PrincipalOrResourceConstraint::Eq(ast::EntityReference::Slot(_)) => None,
    }
}

/// The value of an expression that makes the policy forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    ByTrue,
    ByFalse,
    /// The expression is compared, or no boolean.
    Neither,
}

impl Leads {
    fn negated(self) -> Self {
        match self {
            Self::ByTrue => Self::ByFalse,
            Self::ByFalse => Self::ByTrue,
            Self::Neither => Self::Neither,
        }
    }

    fn is_by(self, value: bool) -> bool {
        self == if value { Self::ByTrue } else { Self::ByFalse }
    }
}

/// The type of a value, as far as it matters here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Entity(EntityType),
    Record(Type),
}

/// A walk over the condition of one forbid.
struct Search<'a> {
    check: OpenForbidCheck<'a>,
    /// The schema's actions that match the scope.
    actions: Vec<EntityUID>,
    /// The types that the principal may have, if the scope or a schema says so.
    principals: Option<BTreeSet<EntityType>>,
    resources: Option<BTreeSet<EntityType>>,
    /// Entities that exist where the walk is: without them, the policy forbids already.
    closed: Vec<Expr>,
    /// Entities that exist where the walk is: without them, the policy does not forbid.
    open: Vec<Expr>,
    is_open: bool,
    named: Vec<EntityUID>,
    /// Comparisons and types looked up so far.
    steps: Cell<usize>,
}

impl Search<'_> {
    fn types(
        &self,
        variable: Var,
        constraint: &PrincipalOrResourceConstraint,
    ) -> Option<BTreeSet<EntityType>> {
        if let Some(ty) = scope_type(constraint) {
            return Some([ty.clone()].into());
        }
        let schema = self.check.schema?;
        let actions = self
            .actions
            .iter()
            .filter_map(|uid| schema.get_action_id(uid));
        Some(match variable {
            Var::Principal => actions
                .flat_map(|action| action.applies_to_principals().cloned())
                .collect(),
            Var::Resource | Var::Action | Var::Context => actions
                .flat_map(|action| action.applies_to_resources().cloned())
                .collect(),
        })
    }

    fn visit(&mut self, expr: &Expr, leads: Leads) {
        self.is_open |= self.steps.get() > MAX_STEPS;
        if self.is_open {
            return;
        }
        match expr.expr_kind() {
            // The operands of a chain are evaluated in order, while all before are true, or false.
            ExprKind::And { .. } => self.visit_chain(expr, true, leads),
            ExprKind::Or { .. } => self.visit_chain(expr, false, leads),
            ExprKind::UnaryApp {
                op: UnaryOp::Not,
                arg,
            } => self.visit(arg, leads.negated()),
            ExprKind::If {
                test_expr,
                then_expr,
                else_expr,
            } => {
                let forbids = |branch| constant(branch).is_some_and(|value| leads.is_by(value));
                let test_leads = match (forbids(then_expr), forbids(else_expr)) {
                    (_, true) => Leads::ByFalse,
                    (true, false) => Leads::ByTrue,
                    (false, false) => Leads::Neither,
                };
                self.visit(test_expr, test_leads);
                self.visit_branch(then_expr, else_expr, (test_expr, true), leads);
                self.visit_branch(else_expr, then_expr, (test_expr, false), leads);
            }
            ExprKind::GetAttr { expr: base, .. }
            | ExprKind::BinaryApp {
                op: BinaryOp::GetTag,
                arg1: base,
                ..
            } => {
                self.visit_operands(expr);
                self.read(base);
            }
            ExprKind::HasAttr { .. }
            | ExprKind::ExtHasAttr { .. }
            | ExprKind::BinaryApp {
                op: BinaryOp::HasTag,
                ..
            } => {
                self.visit_operands(expr);
                // It is false without the entity.
                if leads != Leads::ByFalse {
                    for base in has_bases(expr) {
                        self.require(&base);
                    }
                }
            }
            _ => self.visit_operands(expr),
        }
    }

    /// Visits the operands of an expression whose value is no condition.
    fn visit_operands(&mut self, expr: &Expr) {
        match expr.expr_kind() {
            ExprKind::GetAttr { expr, .. }
            | ExprKind::HasAttr { expr, .. }
            | ExprKind::ExtHasAttr { expr, .. }
            | ExprKind::Like { expr, .. }
            | ExprKind::Is { expr, .. }
            | ExprKind::UnaryApp { arg: expr, .. } => self.visit(expr, Leads::Neither),
            ExprKind::BinaryApp { arg1, arg2, .. } => {
                self.visit(arg1, Leads::Neither);
                self.visit(arg2, Leads::Neither);
            }
            ExprKind::ExtensionFunctionApp { args, .. } | ExprKind::Set(args) => {
                for arg in args.iter() {
                    self.visit(arg, Leads::Neither);
                }
            }
            ExprKind::Record(fields) => {
                for field in fields.values() {
                    self.visit(field, Leads::Neither);
                }
            }
            ExprKind::Lit(_)
            | ExprKind::Var(_)
            | ExprKind::Slot(_)
            | ExprKind::Unknown(_)
            | ExprKind::If { .. }
            | ExprKind::And { .. }
            | ExprKind::Or { .. } => {}
        }
    }

    /// Visits the operands of a chain of `&&` (`holds`) or `||`.
    fn visit_chain(&mut self, chain: &Expr, holds: bool, leads: Leads) {
        let mut operands = Vec::new();
        flatten(chain, holds, &mut operands);
        let before = (self.closed.len(), self.open.len());
        for operand in operands {
            self.visit(operand, leads);
            self.assume(operand, holds, leads.is_by(!holds));
        }
        self.closed.truncate(before.0);
        self.open.truncate(before.1);
    }

    /// Visits a branch, which is evaluated only if `test` is `holds`.
    fn visit_branch(
        &mut self,
        branch: &Expr,
        other: &Expr,
        (test, holds): (&Expr, bool),
        leads: Leads,
    ) {
        let before = (self.closed.len(), self.open.len());
        let is_closed = constant(other).is_some_and(|value| leads.is_by(value));
        self.assume(test, holds, is_closed);
        self.visit(branch, leads);
        self.closed.truncate(before.0);
        self.open.truncate(before.1);
    }

    /// Adds the entities that exist if `test` is `holds`. If it is not, the policy forbids, if
    /// `is_closed`.
    fn assume(&mut self, test: &Expr, holds: bool, is_closed: bool) {
        let mut found = Tested::default();
        tested(test, holds, &mut found);
        let mut existing = found.existing;
        if !is_closed {
            // `in` is false for an unknown entity, but true for the entity itself.
            existing.append(&mut found.descendants);
        }
        existing.retain(|entity| is_literal(entity) || self.may_be_unknown(entity));
        match is_closed {
            true => self.closed.append(&mut existing),
            false => self.open.append(&mut existing),
        }
    }

    /// Records that an attribute or tag of `base` is read.
    fn read(&mut self, base: &Expr) {
        // Without the entity there is an error, unless `has` or `in` was asked before.
        let denies_errors = self.check.settings.on_policy_error == OnPolicyError::Deny;
        if !denies_errors || self.is_among(&self.open, base) {
            self.require(base);
        }
    }

    /// Records that the policy does not forbid if the entity `base` is unknown.
    fn require(&mut self, base: &Expr) {
        if let ExprKind::Lit(Literal::EntityUID(uid)) = base.expr_kind() {
            if !uid.is_action() && !self.is_among(&self.closed, base) {
                self.named.push(EntityUID::clone(uid));
            }
        } else if self.may_be_unknown(base) && !self.is_among(&self.closed, base) {
            self.is_open = true;
        }
    }

    fn is_among(&self, entities: &[Expr], entity: &Expr) -> bool {
        self.steps.set(self.steps.get() + entities.len());
        entities.iter().any(|known| known.eq_shape(entity))
    }

    /// Returns whether `expr` is an entity other than a literal, and need be neither stored nor sent.
    fn may_be_unknown(&self, expr: &Expr) -> bool {
        match expr.expr_kind() {
            ExprKind::Var(Var::Principal) => !self.is_required(self.principals.as_ref()),
            ExprKind::Var(Var::Resource) => !self.is_required(self.resources.as_ref()),
            ExprKind::Var(Var::Action | Var::Context) | ExprKind::Lit(_) => false,
            ExprKind::If {
                then_expr,
                else_expr,
                ..
            } => self.may_be_unknown(then_expr) || self.may_be_unknown(else_expr),
            // Without a schema, what is behind an attribute may be an entity. In a context it is
            // nearly always a record.
            _ => match (root(expr), self.check.schema) {
                (ExprKind::Var(Var::Context), None) => false,
                (ExprKind::Var(_) | ExprKind::Lit(_) | ExprKind::If { .. }, Some(_)) => self
                    .shapes(expr)
                    .iter()
                    .any(|shape| matches!(shape, Shape::Entity(_))),
                (_, _) => matches!(
                    expr.expr_kind(),
                    ExprKind::GetAttr { .. }
                        | ExprKind::BinaryApp {
                            op: BinaryOp::GetTag,
                            ..
                        }
                ),
            },
        }
    }

    /// Returns whether every entity of these types must be known.
    fn is_required(&self, types: Option<&BTreeSet<EntityType>>) -> bool {
        match (&self.check.settings.require_known, types) {
            (Some(KnownTypes::All), _) => true,
            // No type at all: the schema does not declare the action.
            (Some(_), Some(types)) if types.is_empty() => false,
            (Some(required), Some(types)) => {
                types.iter().all(|ty| required.include(&ty.to_string()))
            }
            (Some(_), None) | (None, _) => false,
        }
    }

    /// Returns the entity and record types that `expr` may have by the schema; none without one.
    fn shapes(&self, expr: &Expr) -> BTreeSet<Shape> {
        self.steps.set(self.steps.get() + 1);
        let Some(schema) = self.check.schema else {
            return BTreeSet::new();
        };
        let entities = |types: &Option<BTreeSet<EntityType>>| {
            let types = types.iter().flatten();
            types.cloned().map(Shape::Entity).collect()
        };
        match expr.expr_kind() {
            ExprKind::Var(Var::Principal) => entities(&self.principals),
            ExprKind::Var(Var::Resource) => entities(&self.resources),
            ExprKind::Var(Var::Context) => {
                let actions = self
                    .actions
                    .iter()
                    .filter_map(|uid| schema.get_action_id(uid));
                let contexts = actions.filter_map(|action| action.context_type());
                contexts.filter_map(shape).collect()
            }
            ExprKind::Lit(Literal::EntityUID(uid)) => {
                [Shape::Entity(uid.entity_type().clone())].into()
            }
            ExprKind::GetAttr { expr, attr } => {
                let of = |base: Shape| match base {
                    Shape::Entity(ty) => {
                        let attribute = schema.get_entity_type(&ty)?.attributes().get_attr(attr);
                        shape(&attribute?.attr_type)
                    }
                    Shape::Record(Type::Record { attrs, .. }) => {
                        shape(&attrs.get_attr(attr)?.attr_type)
                    }
                    Shape::Record(_) => None,
                };
                self.shapes(expr).into_iter().filter_map(of).collect()
            }
            ExprKind::BinaryApp {
                op: BinaryOp::GetTag,
                arg1,
                ..
            } => {
                let of = |base: Shape| match base {
                    Shape::Entity(ty) => shape(schema.get_entity_type(&ty)?.tag_type()?),
                    Shape::Record(_) => None,
                };
                self.shapes(arg1).into_iter().filter_map(of).collect()
            }
            ExprKind::If {
                then_expr,
                else_expr,
                ..
            } => &self.shapes(then_expr) | &self.shapes(else_expr),
            _ => BTreeSet::new(),
        }
    }
}

fn shape(ty: &Type) -> Option<Shape> {
    match ty {
        Type::Entity(EntityKind::Entity(entity)) => {
            Some(Shape::Entity(entity.get_single_entity()?.clone()))
        }
        Type::Record { .. } => Some(Shape::Record(ty.clone())),
        Type::Entity(EntityKind::AnyEntity)
        | Type::Never
        | Type::Bool(_)
        | Type::Long
        | Type::String
        | Type::Set { .. }
        | Type::ExtensionType { .. } => None,
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Lit(_))
}

/// Returns the expression at the start of a path such as `principal.home.city`.
fn root(expr: &Expr) -> &ExprKind {
    let mut expr = expr;
    while let ExprKind::GetAttr { expr: base, .. }
    | ExprKind::BinaryApp {
        op: BinaryOp::GetTag,
        arg1: base,
        ..
    } = expr.expr_kind()
    {
        expr = base;
    }
    expr.expr_kind()
}

/// Returns the entities and records that a `has` looks into: those of `principal has home.city` are
/// `principal` and `principal.home`.
fn has_bases(has: &Expr) -> Vec<Expr> {
    match has.expr_kind() {
        ExprKind::ExtHasAttr { expr, attrs } => {
            let mut base = Expr::clone(expr);
            let mut bases = Vec::with_capacity(attrs.len());
            for attr in attrs.iter() {
                let next = Expr::get_attr(base.clone(), attr.clone());
                bases.push(std::mem::replace(&mut base, next));
            }
            bases
        }
        ExprKind::HasAttr { expr: base, .. }
        | ExprKind::BinaryApp {
            op: BinaryOp::HasTag,
            arg1: base,
            ..
        } => vec![Expr::clone(base)],
        _ => Vec::new(),
    }
}

/// The entities that a condition has asked about.
#[derive(Default)]
struct Tested {
    /// Those that certainly exist, because `has` found them.
    existing: Vec<Expr>,
    /// Those that are `in` another entity.
    descendants: Vec<Expr>,
}

/// Collects the operands of a chain of `&&`, or of `||`, in the order of evaluation.
fn flatten<'e>(expr: &'e Expr, is_and: bool, operands: &mut Vec<&'e Expr>) {
    match expr.expr_kind() {
        ExprKind::And { left, right } if is_and => {
            flatten(left, is_and, operands);
            flatten(right, is_and, operands);
        }
        ExprKind::Or { left, right } if !is_and => {
            flatten(left, is_and, operands);
            flatten(right, is_and, operands);
        }
        _ => operands.push(expr),
    }
}

/// Collects the entities about which something is known if `expr` is `holds`.
fn tested(expr: &Expr, holds: bool, found: &mut Tested) {
    match expr.expr_kind() {
        ExprKind::HasAttr { .. }
        | ExprKind::ExtHasAttr { .. }
        | ExprKind::BinaryApp {
            op: BinaryOp::HasTag,
            ..
        } if holds => found.existing.extend(has_bases(expr)),
        ExprKind::BinaryApp {
            op: BinaryOp::In,
            arg1,
            ..
        } if holds => found.descendants.push(Expr::clone(arg1)),
        ExprKind::And { left, right } if holds => {
            tested(left, true, found);
            tested(right, true, found);
        }
        ExprKind::Or { left, right } if !holds => {
            tested(left, false, found);
            tested(right, false, found);
        }
        ExprKind::UnaryApp {
            op: UnaryOp::Not,
            arg,
        } => tested(arg, !holds, found),
        _ => {}
    }
}

fn constant(expr: &Expr) -> Option<bool> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::Bool(value)) => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::pdp::compile;
    use crate::pdp::settings::{KnownTypes, OnPolicyError, Settings, Validation};
    use crate::pdp::sources::{FileKind, SourceFile, Sources};

    const SCHEMA: &str = r#"
entity Tenant = { frozen?: Bool };
entity User = { suspended?: Bool, tenant: Tenant, home: { city: String, tenant: Tenant } } tags Bool;
entity Visitor;
entity Doc = { owner: User, locked: Bool };
action read appliesTo { principal: [User, Visitor], resource: Doc, context: { by?: User, mfa: Bool } };
action write appliesTo { principal: User, resource: Doc };
"#;

    /// Returns whether a warning names the forbid with this scope and condition.
    fn is_open(schema: bool, settings: &Settings, scope: &str, condition: &str) -> bool {
        let settings = Settings {
            validation: Validation::Warn,
            ..settings.clone()
        };
        is_open_by(schema, &settings, scope, condition)
    }

    fn is_open_by(schema: bool, settings: &Settings, scope: &str, condition: &str) -> bool {
        let policy = format!("@id(\"f\") forbid ({scope}) {condition};");
        let file = |path: &str, kind, text: &str| {
            SourceFile::in_memory(path.to_owned(), kind, text.into())
        };
        let mut files = vec![file("a.cedar", FileKind::Policies, &policy)];
        if schema {
            files.push(file("a.cedarschema", FileKind::Schema, SCHEMA));
        }
        let stored = r#"[{"uid": {"type": "Tenant", "id": "stored"}, "attrs": {}, "parents": []}]"#;
        files.push(file("entities.json", FileKind::Entities, stored));
        let snapshot = compile(&Sources::new(files, vec![], vec![]), settings).unwrap();
        let warning = snapshot
            .warnings()
            .iter()
            .find(|found| found.message.contains("do not forbid"));
        if let Some(warning) = warning {
            assert!(warning.message.contains("`f` (a.cedar:1)"), "{warning}");
        }
        warning.is_some()
    }

    const ANY: &str = "principal, action, resource";

    #[test]
    fn only_closed_conditions_forbid_without_the_entity() {
        for (condition, open) in [
            ("", false),
            ("when { context.mfa }", false),
            ("when { principal in Group::\"g\" }", false),
            ("when { resource.locked }", true),
            (
                "when { principal has suspended && principal.suspended }",
                true,
            ),
            ("when { principal has suspended }", true),
            (
                "when { !(principal has suspended) || principal.suspended }",
                false,
            ),
            (
                "unless { principal has suspended && !principal.suspended }",
                false,
            ),
            ("unless { principal has suspended }", false),
            ("unless { principal.suspended }", true),
            (
                "when { if principal has suspended then principal.suspended else true }",
                false,
            ),
            (
                "when { if principal has suspended then principal.suspended else false }",
                true,
            ),
            (
                "when { if !(principal has a) then true else principal.suspended }",
                false,
            ),
            (
                "unless { if principal has a then principal.a else false }",
                false,
            ),
            ("when { !(principal has a) || resource.locked }", true),
            (
                "when { !(principal has a || context.mfa) || principal.b }",
                true,
            ),
            (
                "when { !(principal has a && context.mfa) || principal.b }",
                false,
            ),
            (
                "when { principal.hasTag(\"x\") && principal.getTag(\"x\") }",
                true,
            ),
            (
                "when { !principal.hasTag(\"x\") || principal.getTag(\"x\") }",
                false,
            ),
            ("when { [principal.a, 1].contains(2) }", true),
            ("when { {a: resource.b} == context }", true),
            (
                "when { if principal has a then context.n > 3 else false }",
                true,
            ),
            (
                "when { if principal.hasTag(\"x\") then true else false }",
                true,
            ),
            ("when { if principal has a then false else true }", false),
            ("when { (principal has a) == true }", true),
            ("when { resource.owner.suspended }", true),
            ("when { context.device.blocked }", false),
            (
                "when { (if context.x then principal else resource).locked }",
                true,
            ),
            ("when { {p: principal}.p.suspended }", true),
            (
                "when { !(resource has a) || (resource in Folder::\"f\" && resource.a) }",
                false,
            ),
            ("when { Tenant::\"other\" has frozen }", true),
            ("when { Tenant::\"stored\" has frozen }", false),
            ("unless { Tenant::\"other\" has frozen }", false),
            ("when { Tenant::\"stored\".frozen }", false),
            ("when { Tenant::\"other\".frozen }", true),
        ] {
            let found = is_open(false, &Settings::default(), ANY, condition);
            assert_eq!(found, open, "{condition}");
        }
    }

    #[test]
    fn errors_close_a_forbid_that_denies_on_error() {
        let deny = Settings {
            on_policy_error: OnPolicyError::Deny,
            ..Settings::default()
        };
        for (condition, open) in [
            ("when { resource.locked }", false),
            (
                "when { principal has suspended && principal.suspended }",
                true,
            ),
            (
                "when { if principal has a then principal.a else false }",
                true,
            ),
        ] {
            assert_eq!(is_open(false, &deny, ANY, condition), open, "{condition}");
        }
    }

    #[test]
    fn required_types_are_known() {
        let require = |types: &[&str]| {
            let types = types.iter().map(ToString::to_string).collect();
            Settings {
                require_known: Some(KnownTypes::Named(types)),
                ..Settings::default()
            }
        };
        let all = Settings {
            require_known: Some(KnownTypes::All),
            ..Settings::default()
        };
        let reads_both =
            "when { principal has suspended && principal.suspended && resource.locked }";
        let user = "principal is User, action, resource";
        let write = "principal, action == Action::\"write\", resource";
        for (schema, settings, scope, condition, open) in [
            (false, &all, ANY, reads_both, false),
            (false, &require(&["User", "Doc"]), ANY, reads_both, true),
            (
                false,
                &require(&["User"]),
                user,
                "when { principal.suspended }",
                false,
            ),
            (true, &require(&["User", "Doc"]), ANY, reads_both, true),
            (
                true,
                &require(&["User", "Visitor", "Doc"]),
                ANY,
                reads_both,
                false,
            ),
            (true, &require(&["User", "Doc"]), user, reads_both, false),
            (true, &require(&["User", "Doc"]), write, reads_both, false),
            (true, &require(&["User"]), write, reads_both, true),
            // Entities behind attributes are required by no setting; records are no entities.
            (
                true,
                &all,
                write,
                "when { principal.tenant == Tenant::\"a\" }",
                false,
            ),
            (
                true,
                &all,
                write,
                "when { principal.home.city == \"x\" }",
                false,
            ),
            (
                true,
                &all,
                write,
                "when { principal.tenant has frozen && principal.tenant.frozen }",
                true,
            ),
            (
                true,
                &all,
                write,
                "when { !(principal.tenant has frozen) || principal.tenant.frozen }",
                false,
            ),
            (
                true,
                &all,
                write,
                "when { principal.home.tenant.frozen }",
                true,
            ),
            (
                true,
                &all,
                write,
                "when { resource.owner.getTag(\"x\") }",
                true,
            ),
            (
                true,
                &all,
                ANY,
                "when { context has by && context.by.suspended }",
                true,
            ),
        ] {
            let found = is_open(schema, settings, scope, condition);
            assert_eq!(found, open, "{schema} {settings:?} {scope} {condition}");
        }
    }

    #[test]
    fn unenforced_schema_counts_for_nothing() {
        let settings = Settings {
            validation: Validation::Off,
            require_known: Some(KnownTypes::Named(
                ["User", "Visitor", "Doc"].map(str::to_owned).into(),
            )),
            ..Settings::default()
        };
        assert!(is_open_by(
            true,
            &settings,
            ANY,
            "when { principal.suspended }"
        ));
    }

    #[test]
    fn endless_conditions_count_as_open() {
        let path = ".a".repeat(100);
        let operand = |number: usize| format!("!(context.b{number}{path} has x)");
        let chain = (0..60).map(operand).collect::<Vec<_>>().join(" || ");
        let reads = format!("!(principal has a) || {chain} || principal.a");
        assert!(!is_open(
            false,
            &Settings::default(),
            ANY,
            &format!("when {{ {reads} }}")
        ));
        let operand = |number: usize| format!("!(resource.b{number}{path} has x)");
        let chain = (0..60).map(operand).collect::<Vec<_>>().join(" || ");
        assert!(is_open(
            false,
            &Settings::default(),
            ANY,
            &format!("when {{ {chain} }}")
        ));
    }

    #[test]
    fn authors_accept_an_open_forbid_with_a_reason() {
        for (annotation, open) in [
            ("@allow_unknown(\"no permit for strangers\")", false),
            ("@allow_unknown", true),
        ] {
            let policy = format!(
                "{annotation} @id(\"f\") forbid (principal, action, resource) when {{ resource.locked }};"
            );
            let file =
                SourceFile::in_memory("a.cedar".to_owned(), FileKind::Policies, policy.into());
            let sources = Sources::new(vec![file], vec![], vec![]);
            let snapshot = compile(&sources, &Settings::default()).unwrap();
            let mut warnings = snapshot.warnings().iter();
            let found = warnings.any(|found| found.message.contains("do not forbid"));
            assert_eq!(found, open, "{annotation}");
        }
    }
}
