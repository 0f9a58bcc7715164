//! The scope of a policy: constraints on principal, action and resource.

use std::sync::Arc;

use cedar_policy_core::ast::{
    ActionConstraint, BinaryOp, EntityReference, EntityUID, Expr, ExprKind, Literal, Policy,
    PrincipalOrResourceConstraint, SlotId, Var,
};
use smallvec::SmallVec;

use crate::pdp::entities::interner::{TooManyUids, TypeId, UidId, UidInterner};

/// What a policy asks of one variable of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum ScopeConstraint {
    /// To be this entity.
    Is(UidId),
    /// To be, or be in, one of these entities.
    In(SmallVec<[UidId; 2]>),
    /// To be of this type.
    OfType(TypeId),
}

/// A variable of the request that a scope speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) enum Variable {
    Principal,
    Action,
    Resource,
}

/// All that a policy demands of a request before its condition is evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pdp) struct Scope {
    pub(super) constraints: SmallVec<[(Variable, ScopeConstraint); 3]>,
    /// How many of them its scope makes; the others were taken from its condition.
    pub(super) scope_len: usize,
}

/// One variable of a request, as far as scopes can tell.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct RequestVariable {
    /// Its number; without one it is none that a policy names.
    pub(in crate::pdp) uid: Option<UidId>,
    /// Its type's number; without one it is of none that a policy names.
    pub(in crate::pdp) ty: Option<TypeId>,
    /// All that it is in, sorted.
    pub(in crate::pdp) ancestors: Vec<UidId>,
}

/// A request, as far as scopes can tell.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct RequestVariables {
    pub(in crate::pdp) principal: RequestVariable,
    pub(in crate::pdp) action: RequestVariable,
    pub(in crate::pdp) resource: RequestVariable,
}

/// What a policy is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) enum Key {
    /// The request's variable is this entity, or in it.
    Entity(Variable, UidId),
    /// The request's variable is of this type.
    Type(Variable, TypeId),
    /// Any request: the policy demands nothing.
    Any,
}

impl RequestVariable {
    pub(super) fn is_in(&self, uid: UidId) -> bool {
        self.uid == Some(uid) || self.ancestors.binary_search(&uid).is_ok()
    }

    pub(super) fn satisfies(&self, scope_constraint: &ScopeConstraint) -> bool {
        match scope_constraint {
            ScopeConstraint::Is(uid) => self.uid == Some(*uid),
            ScopeConstraint::In(any) => any.iter().any(|uid| self.is_in(*uid)),
            ScopeConstraint::OfType(ty) => self.ty == Some(*ty),
        }
    }

    pub(super) fn keys(&self, variable: Variable) -> impl Iterator<Item = Key> + '_ {
        let entities = self.uid.iter().chain(&self.ancestors);
        entities
            .map(move |uid| Key::Entity(variable, *uid))
            .chain(self.ty.map(|ty| Key::Type(variable, ty)))
    }
}

impl RequestVariables {
    pub(super) fn of(&self, variable: Variable) -> &RequestVariable {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }

    pub(super) fn satisfy(&self, constraints: &[(Variable, ScopeConstraint)]) -> bool {
        constraints
            .iter()
            .all(|(variable, scope_constraint)| self.of(*variable).satisfies(scope_constraint))
    }
}

impl Scope {
    /// What `policy` demands, its slots filled, and the first operands of its condition that are
    /// demands too.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left for a uid that it names.
    pub(in crate::pdp) fn of(
        policy: &Policy,
        interner: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let mut scope = Self::default();
        scope.add_constraint(
            Variable::Principal,
            policy.principal_constraint().as_inner(),
            interner,
        )?;
        match policy.action_constraint() {
            ActionConstraint::Any => {}
            ActionConstraint::Eq(uid) => {
                let uid = UidInterner::intern(interner, uid)?;
                scope
                    .constraints
                    .push((Variable::Action, ScopeConstraint::Is(uid)));
            }
            ActionConstraint::In(any) => {
                let any = intern_all(interner, any.iter().map(AsRef::as_ref))?;
                scope
                    .constraints
                    .push((Variable::Action, ScopeConstraint::In(any)));
            }
        }
        scope.add_constraint(
            Variable::Resource,
            policy.resource_constraint().as_inner(),
            interner,
        )?;
        scope.scope_len = scope.constraints.len();
        if let Some(condition) = policy.non_scope_constraints() {
            let slot = |slot: SlotId| policy.env().get(&slot);
            scope.absorb_leading(condition, &slot, interner)?;
        }
        Ok(scope)
    }

    pub(super) fn add_constraint(
        &mut self,
        variable: Variable,
        add_constraint: &PrincipalOrResourceConstraint,
        interner: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let mut scope_constraint =
            |scope_constraint| self.constraints.push((variable, scope_constraint));
        let entity = |reference: &EntityReference, interner: &mut Arc<UidInterner>| match reference
        {
            EntityReference::EUID(uid) => UidInterner::intern(interner, uid),
            // A policy's constraints come with their slots filled, so this is never met; were it,
            // the scope would be one that nothing meets, and evaluation would fail on the slot.
            EntityReference::Slot(_) => Err(TooManyUids),
        };
        match add_constraint {
            PrincipalOrResourceConstraint::Any => {}
            PrincipalOrResourceConstraint::Eq(reference) => {
                scope_constraint(ScopeConstraint::Is(entity(reference, interner)?));
            }
            PrincipalOrResourceConstraint::In(reference) => {
                let any = std::iter::once(entity(reference, interner)?).collect();
                scope_constraint(ScopeConstraint::In(any));
            }
            PrincipalOrResourceConstraint::Is(ty) => {
                scope_constraint(ScopeConstraint::OfType(UidInterner::intern_type(
                    interner, ty,
                )));
            }
            PrincipalOrResourceConstraint::IsIn(ty, reference) => {
                let any = std::iter::once(entity(reference, interner)?).collect();
                scope_constraint(ScopeConstraint::OfType(UidInterner::intern_type(
                    interner, ty,
                )));
                scope_constraint(ScopeConstraint::In(any));
            }
        }
        Ok(())
    }

    /// Takes demands from the front of `condition`'s `&&`, up to the first operand that is none.
    ///
    /// Sound because a demand is true or false and never an error: as long as all operands before
    /// one are demands, a false one makes the condition false and nothing before it can fail.
    pub(super) fn absorb_leading<'a>(
        &mut self,
        condition: &Expr,
        slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
        interner: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let mut open = vec![condition];
        while let Some(expr) = open.pop() {
            if let ExprKind::And { left, right } = expr.expr_kind() {
                open.extend([right.as_ref(), left.as_ref()]);
                continue;
            }
            match scope_constraint(expr, slot, interner)? {
                Some(found) => self.constraints.push(found),
                None => break,
            }
        }
        Ok(())
    }

    /// The same scope, numbered in another table.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let uid = |uid: &UidId, to: &mut Arc<UidInterner>| from.reinterned(*uid, to);
        let constraints = self
            .constraints
            .iter()
            .map(|(variable, scope_constraint)| {
                let scope_constraint = match scope_constraint {
                    ScopeConstraint::Is(one) => ScopeConstraint::Is(uid(one, to)?),
                    ScopeConstraint::In(any) => ScopeConstraint::In(
                        any.iter()
                            .map(|one| uid(one, to))
                            .collect::<Result<_, _>>()?,
                    ),
                    ScopeConstraint::OfType(ty) => {
                        ScopeConstraint::OfType(from.reinterned_type(*ty, to))
                    }
                };
                Ok((*variable, scope_constraint))
            })
            .collect::<Result<_, TooManyUids>>()?;
        Ok(Self {
            constraints,
            scope_len: self.scope_len,
        })
    }

    /// How many operands at the front of the condition's `&&` were taken as demands: where they
    /// are met, those operands are true.
    pub(in crate::pdp) fn absorbed_operands(&self) -> usize {
        self.constraints.len() - self.scope_len
    }

    /// The keys that a request must have one of, for each demand.
    pub(super) fn keys(&self) -> impl Iterator<Item = SmallVec<[Key; 2]>> + '_ {
        self.constraints
            .iter()
            .map(|(variable, scope_constraint)| match scope_constraint {
                ScopeConstraint::Is(uid) => std::iter::once(Key::Entity(*variable, *uid)).collect(),
                ScopeConstraint::In(any) => {
                    any.iter().map(|uid| Key::Entity(*variable, *uid)).collect()
                }
                ScopeConstraint::OfType(ty) => std::iter::once(Key::Type(*variable, *ty)).collect(),
            })
    }

    /// The actions that it demands, or `None` when it takes any; an action matches if it is one
    /// of these or in one.
    pub(in crate::pdp) fn actions(&self) -> Option<Vec<UidId>> {
        self.constraints
            .iter()
            .find_map(|(variable, scope_constraint)| match variable {
                Variable::Action => match scope_constraint {
                    ScopeConstraint::Is(uid) => Some(vec![*uid]),
                    ScopeConstraint::In(any) => Some(any.to_vec()),
                    ScopeConstraint::OfType(_) => None,
                },
                Variable::Principal | Variable::Resource => None,
            })
    }
}

/// `condition` without the first `taken` operands of its `&&`, which are true; `None` when nothing
/// is left of it.
pub(in crate::pdp) fn remaining_condition(
    condition: &Arc<Expr>,
    taken: usize,
) -> Option<Arc<Expr>> {
    if taken == 0 {
        return Some(Arc::clone(condition));
    }
    let mut operands = Vec::new();
    let mut open = vec![condition];
    while let Some(expr) = open.pop() {
        match expr.expr_kind() {
            ExprKind::And { left, right } => open.extend([right, left]),
            ExprKind::Lit(_)
            | ExprKind::Var(_)
            | ExprKind::Slot(_)
            | ExprKind::Unknown(_)
            | ExprKind::If { .. }
            | ExprKind::Or { .. }
            | ExprKind::UnaryApp { .. }
            | ExprKind::BinaryApp { .. }
            | ExprKind::ExtensionFunctionApp { .. }
            | ExprKind::GetAttr { .. }
            | ExprKind::HasAttr { .. }
            | ExprKind::ExtHasAttr { .. }
            | ExprKind::Like { .. }
            | ExprKind::Is { .. }
            | ExprKind::Set(_)
            | ExprKind::Record(_) => operands.push(expr),
        }
    }
    let mut left = operands.into_iter().skip(taken);
    let first = Arc::clone(left.next()?);
    // Built up from the left, as the parser does it, so that it is no deeper than it was.
    Some(left.fold(first, |all, operand| {
        Arc::new(Expr::and(all.as_ref().clone(), operand.as_ref().clone()))
    }))
}

/// The demand that `expr` is, if it is one.
pub(in crate::pdp) fn scope_constraint<'a>(
    expr: &Expr,
    slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
    interner: &mut Arc<UidInterner>,
) -> Result<Option<(Variable, ScopeConstraint)>, TooManyUids> {
    fn variable(expr: &Expr) -> Option<Variable> {
        let ExprKind::Var(var) = expr.expr_kind() else {
            return None;
        };
        match var {
            Var::Principal => Some(Variable::Principal),
            Var::Action => Some(Variable::Action),
            Var::Resource => Some(Variable::Resource),
            Var::Context => None,
        }
    }
    let uid = |expr: &Expr| {
        if let ExprKind::Lit(Literal::EntityUID(uid)) = expr.expr_kind() {
            Some(uid.as_ref().clone())
        } else if let ExprKind::Slot(id) = expr.expr_kind() {
            slot(*id).cloned()
        } else {
            None
        }
    };
    if let ExprKind::Is { expr, entity_type } = expr.expr_kind() {
        return Ok(variable(expr).map(|variable| {
            (
                variable,
                ScopeConstraint::OfType(UidInterner::intern_type(interner, entity_type)),
            )
        }));
    }
    let ExprKind::BinaryApp { op, arg1, arg2 } = expr.expr_kind() else {
        return Ok(None);
    };
    if *op == BinaryOp::Eq {
        let sides = variable(arg1)
            .zip(uid(arg2))
            .or_else(|| variable(arg2).zip(uid(arg1)));
        if let Some((variable, uid)) = sides {
            return Ok(Some((
                variable,
                ScopeConstraint::Is(UidInterner::intern(interner, &uid)?),
            )));
        }
    }
    if *op == BinaryOp::In {
        let any: Option<Vec<EntityUID>> = if let ExprKind::Set(members) = arg2.expr_kind() {
            members.iter().map(uid).collect()
        } else {
            uid(arg2).map(|uid| vec![uid])
        };
        if let Some((variable, any)) = variable(arg1).zip(any) {
            return Ok(Some((
                variable,
                ScopeConstraint::In(intern_all(interner, any.iter())?),
            )));
        }
    }
    Ok(None)
}

pub(in crate::pdp) fn intern_all<'a>(
    interner: &mut Arc<UidInterner>,
    of: impl Iterator<Item = &'a EntityUID>,
) -> Result<SmallVec<[UidId; 2]>, TooManyUids> {
    of.map(|uid| UidInterner::intern(interner, uid)).collect()
}
