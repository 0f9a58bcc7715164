//! The scope of a policy: its constraints on principal, action and resource.

use std::sync::Arc;

use cedar_policy_core::ast::{
    ActionConstraint, BinaryOp, EntityReference, EntityUID, Expr, ExprKind, Literal, Policy,
    PrincipalOrResourceConstraint, SlotId, Var,
};
use smallvec::{SmallVec, smallvec};

use crate::pdp::entities::interner::{TooManyUids, TypeId, UidId, UidInterner};

/// A constraint on one variable of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum ScopeConstraint {
    /// The variable is this entity.
    Is(UidId),
    /// The variable is one of these entities, or in one.
    In(SmallVec<[UidId; 2]>),
    /// The variable is of this type.
    OfType(TypeId),
}

/// A variable of the request that a scope can constrain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) enum Variable {
    Principal,
    Action,
    Resource,
}

/// All constraints of a policy, of which each must hold before its condition is evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pdp) struct Scope {
    pub(super) constraints: SmallVec<[(Variable, ScopeConstraint); 3]>,
    /// The number of constraints written in the scope; the condition's operands follow them.
    pub(super) scope_len: usize,
}

/// The id, type and ancestors of one variable of a request.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct RequestVariable {
    /// The id of its uid; `None` if no policy names the uid.
    pub(in crate::pdp) uid: Option<UidId>,
    /// The id of its type; `None` if no policy names the type.
    pub(in crate::pdp) ty: Option<TypeId>,
    /// All its ancestors, sorted.
    pub(in crate::pdp) ancestors: Vec<UidId>,
}

/// The variables of a request, as scopes see them.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct RequestVariables {
    pub(in crate::pdp) principal: RequestVariable,
    pub(in crate::pdp) action: RequestVariable,
    pub(in crate::pdp) resource: RequestVariable,
}

/// A key of the scope index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) enum Key {
    /// The variable is this entity, or in it.
    Entity(Variable, UidId),
    /// The variable is of this type.
    Type(Variable, TypeId),
    /// Any request: the policy has no constraint.
    Any,
}

impl RequestVariable {
    /// Returns whether the variable is `uid`, or in it.
    pub(super) fn is_in(&self, uid: UidId) -> bool {
        self.uid == Some(uid) || self.ancestors.binary_search(&uid).is_ok()
    }

    /// Returns whether the variable satisfies `constraint`.
    fn satisfies(&self, constraint: &ScopeConstraint) -> bool {
        match constraint {
            ScopeConstraint::Is(uid) => self.uid == Some(*uid),
            ScopeConstraint::In(uids) => uids.iter().any(|uid| self.is_in(*uid)),
            ScopeConstraint::OfType(ty) => self.ty == Some(*ty),
        }
    }

    /// Returns the keys that the variable has.
    pub(super) fn keys(&self, variable: Variable) -> impl Iterator<Item = Key> + '_ {
        let entities = self.uid.iter().chain(&self.ancestors);
        entities
            .map(move |uid| Key::Entity(variable, *uid))
            .chain(self.ty.map(|ty| Key::Type(variable, ty)))
    }
}

impl RequestVariables {
    fn get(&self, variable: Variable) -> &RequestVariable {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }

    /// Returns whether the request satisfies all `constraints`.
    pub(super) fn satisfy(&self, constraints: &[(Variable, ScopeConstraint)]) -> bool {
        constraints
            .iter()
            .all(|(variable, constraint)| self.get(*variable).satisfies(constraint))
    }
}

impl Scope {
    /// Returns the scope of `policy`, with its slots filled.
    ///
    /// Absorbs the leading operands of the condition that have the form of a scope constraint.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] if there is no id left for a uid in the scope.
    pub(in crate::pdp) fn from_policy(
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
            ActionConstraint::In(uids) => {
                let uids = intern_all(interner, uids.iter().map(AsRef::as_ref))?;
                scope
                    .constraints
                    .push((Variable::Action, ScopeConstraint::In(uids)));
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

    fn add_constraint(
        &mut self,
        variable: Variable,
        constraint: &PrincipalOrResourceConstraint,
        interner: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let mut add = |constraint| self.constraints.push((variable, constraint));
        let intern = |reference: &EntityReference, interner: &mut Arc<UidInterner>| match reference
        {
            EntityReference::EUID(uid) => UidInterner::intern(interner, uid),
            // Never reached, as the slots are filled. An error here is safe: it rejects the policy.
            EntityReference::Slot(_) => Err(TooManyUids),
        };
        match constraint {
            PrincipalOrResourceConstraint::Any => {}
            PrincipalOrResourceConstraint::Eq(reference) => {
                add(ScopeConstraint::Is(intern(reference, interner)?));
            }
            PrincipalOrResourceConstraint::In(reference) => {
                add(ScopeConstraint::In(smallvec![intern(reference, interner)?]));
            }
            PrincipalOrResourceConstraint::Is(ty) => {
                let ty = UidInterner::intern_type(interner, ty);
                add(ScopeConstraint::OfType(ty));
            }
            PrincipalOrResourceConstraint::IsIn(ty, reference) => {
                let uids = smallvec![intern(reference, interner)?];
                let ty = UidInterner::intern_type(interner, ty);
                add(ScopeConstraint::OfType(ty));
                add(ScopeConstraint::In(uids));
            }
        }
        Ok(())
    }

    /// Absorbs the operands of `condition`'s `&&` up to the first that is no scope constraint.
    ///
    /// Sound because a scope constraint never fails. If all operands before one are constraints,
    /// a false one makes the condition false, and nothing before it can fail.
    fn absorb_leading<'a>(
        &mut self,
        condition: &Expr,
        slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
        interner: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let mut stack = vec![condition];
        while let Some(expr) = stack.pop() {
            if let ExprKind::And { left, right } = expr.expr_kind() {
                stack.extend([right.as_ref(), left.as_ref()]);
                continue;
            }
            match scope_constraint(expr, slot, interner)? {
                Some(found) => self.constraints.push(found),
                None => break,
            }
        }
        Ok(())
    }

    /// Returns the same scope with the ids of another interner.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] if there is no id left.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let uid = |uid: &UidId, to: &mut Arc<UidInterner>| from.reinterned(*uid, to);
        let constraints = self
            .constraints
            .iter()
            .map(|(variable, constraint)| {
                let constraint = match constraint {
                    ScopeConstraint::Is(one) => ScopeConstraint::Is(uid(one, to)?),
                    ScopeConstraint::In(uids) => ScopeConstraint::In(
                        uids.iter()
                            .map(|one| uid(one, to))
                            .collect::<Result<_, _>>()?,
                    ),
                    ScopeConstraint::OfType(ty) => {
                        ScopeConstraint::OfType(from.reinterned_type(*ty, to))
                    }
                };
                Ok((*variable, constraint))
            })
            .collect::<Result<_, TooManyUids>>()?;
        Ok(Self {
            constraints,
            scope_len: self.scope_len,
        })
    }

    /// Returns the number of absorbed operands, which are true if the scope matches.
    pub(in crate::pdp) fn absorbed_operands(&self) -> usize {
        self.constraints.len() - self.scope_len
    }

    /// Returns, for each constraint, the keys of which a matching request has one or more.
    pub(super) fn keys(&self) -> impl Iterator<Item = SmallVec<[Key; 2]>> + '_ {
        self.constraints
            .iter()
            .map(|(variable, constraint)| match constraint {
                ScopeConstraint::Is(uid) => std::iter::once(Key::Entity(*variable, *uid)).collect(),
                ScopeConstraint::In(uids) => uids
                    .iter()
                    .map(|uid| Key::Entity(*variable, *uid))
                    .collect(),
                ScopeConstraint::OfType(ty) => std::iter::once(Key::Type(*variable, *ty)).collect(),
            })
    }

    /// Returns the actions that match, with all actions in them; `None` if every action matches.
    pub(in crate::pdp) fn actions(&self) -> Option<Vec<UidId>> {
        self.constraints
            .iter()
            .find_map(|(variable, constraint)| match variable {
                Variable::Action => match constraint {
                    ScopeConstraint::Is(uid) => Some(vec![*uid]),
                    ScopeConstraint::In(uids) => Some(uids.to_vec()),
                    ScopeConstraint::OfType(_) => None,
                },
                Variable::Principal | Variable::Resource => None,
            })
    }
}

/// Returns the scope constraint that `expr` expresses, if it has that form.
fn scope_constraint<'a>(
    expr: &Expr,
    slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
    interner: &mut Arc<UidInterner>,
) -> Result<Option<(Variable, ScopeConstraint)>, TooManyUids> {
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
            let ty = UidInterner::intern_type(interner, entity_type);
            (variable, ScopeConstraint::OfType(ty))
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
            let uid = UidInterner::intern(interner, &uid)?;
            return Ok(Some((variable, ScopeConstraint::Is(uid))));
        }
    }
    if *op == BinaryOp::In {
        let uids: Option<Vec<EntityUID>> = if let ExprKind::Set(members) = arg2.expr_kind() {
            members.iter().map(uid).collect()
        } else {
            uid(arg2).map(|uid| vec![uid])
        };
        if let Some((variable, uids)) = variable(arg1).zip(uids) {
            let uids = intern_all(interner, uids.iter())?;
            return Ok(Some((variable, ScopeConstraint::In(uids))));
        }
    }
    Ok(None)
}

/// Returns the variable that `expr` is, unless it is `context` or another expression.
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

fn intern_all<'a>(
    interner: &mut Arc<UidInterner>,
    uids: impl Iterator<Item = &'a EntityUID>,
) -> Result<SmallVec<[UidId; 2]>, TooManyUids> {
    uids.map(|uid| UidInterner::intern(interner, uid)).collect()
}
