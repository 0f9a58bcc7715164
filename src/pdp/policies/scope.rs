//! The scope of a policy: its constraints on principal, action and resource.

use std::fmt;
use std::sync::Arc;

use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Literal, Policy, SlotEnv, Var};
use smallvec::SmallVec;

use super::read_set::NamedUid;
use crate::pdp::entities::interner::{TooManyUids, TypeId, UidId, UidInterner};

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

/// How closely a scope matches a request; the greater, the closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::pdp) struct ScopeMatch {
    /// The number of the variables whose constraints hold.
    variables: u8,
    // Among equal numbers, a person asks more likely about a policy for the action and the resource.
    action: bool,
    resource: bool,
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

/// A value for each variable of a request.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct PerVariable<T> {
    pub(in crate::pdp) principal: T,
    pub(in crate::pdp) action: T,
    pub(in crate::pdp) resource: T,
}

/// The variables of a request, as scopes see them.
pub(in crate::pdp) type RequestVariables = PerVariable<RequestVariable>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) enum Key {
    /// The variable is this entity, or in it.
    Entity(Variable, UidId),
    /// The variable is of this type.
    Type(Variable, TypeId),
    /// Any request: the policy has no constraint.
    Any,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "principal",
            Self::Action => "action",
            Self::Resource => "resource",
        })
    }
}

impl ScopeConstraint {
    /// Returns the constraint on `variable` in Cedar's syntax; its ids are those of `interner`.
    pub(in crate::pdp) fn display(
        &self,
        variable: Variable,
        interner: &UidInterner,
    ) -> impl fmt::Display {
        fmt::from_fn(move |f| match self {
            Self::Is(uid) => write!(f, "{variable} == {}", interner.uid(*uid)),
            Self::OfType(ty) => write!(f, "{variable} is {}", interner.entity_type(*ty)),
            Self::In(uids) => {
                write!(f, "{variable} in ")?;
                if let [uid] = uids.as_slice() {
                    return write!(f, "{}", interner.uid(*uid));
                }
                f.write_str("[")?;
                for (index, uid) in uids.iter().enumerate() {
                    let before = if index == 0 { "" } else { ", " };
                    write!(f, "{before}{}", interner.uid(*uid))?;
                }
                f.write_str("]")
            }
        })
    }
}

impl RequestVariable {
    /// Returns whether the variable is `uid`, or in it.
    pub(super) fn is_in(&self, uid: UidId) -> bool {
        self.uid == Some(uid) || self.ancestors.binary_search(&uid).is_ok()
    }

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

impl<T> PerVariable<T> {
    pub(super) fn get(&self, variable: Variable) -> &T {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }

    pub(super) fn get_mut(&mut self, variable: Variable) -> &mut T {
        match variable {
            Variable::Principal => &mut self.principal,
            Variable::Action => &mut self.action,
            Variable::Resource => &mut self.resource,
        }
    }
}

impl RequestVariables {
    /// Returns the variable with this uid.
    pub(in crate::pdp) fn find(&self, uid: UidId) -> Option<&RequestVariable> {
        [&self.principal, &self.action, &self.resource]
            .into_iter()
            .find(|variable| variable.uid == Some(uid))
    }

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
    pub(in crate::pdp) fn from_policy(
        policy: &Policy,
        interner: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let mut scope = Self::default();
        for written in [
            policy.principal_constraint().as_expr(),
            policy.action_constraint().as_expr(),
            policy.resource_constraint().as_expr(),
        ] {
            let is_any = matches!(written.expr_kind(), ExprKind::Lit(Literal::Bool(true)));
            // Never reached, as all of them have the form of a constraint, and slots are filled. An
            // error here is safe: it rejects the policy.
            if !is_any && !scope.absorb_leading(&written, policy.env(), interner)? {
                return Err(TooManyUids);
            }
        }
        scope.scope_len = scope.constraints.len();
        if let Some(condition) = policy.non_scope_constraints() {
            scope.absorb_leading(condition, policy.env(), interner)?;
        }
        Ok(scope)
    }

    /// Absorbs the operands of `condition`'s `&&` up to the first that is no scope constraint.
    ///
    /// Returns whether these are all. Sound because a scope constraint never fails. If all operands
    /// before one are constraints, a false one makes the condition false, and nothing before it can
    /// fail.
    fn absorb_leading(
        &mut self,
        condition: &Expr,
        slots: &SlotEnv,
        interner: &mut Arc<UidInterner>,
    ) -> Result<bool, TooManyUids> {
        let mut rest = vec![condition];
        while let Some(expr) = rest.last().copied() {
            if let ExprKind::And { left, right } = expr.expr_kind() {
                rest.pop();
                rest.extend([right.as_ref(), left.as_ref()]);
                continue;
            }
            match scope_constraint(expr, slots, interner)? {
                Some(found) => self.constraints.push(found),
                None => break,
            }
            rest.pop();
        }
        Ok(rest.is_empty())
    }

    /// Returns the same scope with the ids of another interner.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let mut reinterned = self.clone();
        for (_, constraint) in &mut reinterned.constraints {
            match constraint {
                ScopeConstraint::Is(uid) => *uid = from.reinterned(*uid, to)?,
                ScopeConstraint::In(uids) => {
                    for uid in uids {
                        *uid = from.reinterned(*uid, to)?;
                    }
                }
                ScopeConstraint::OfType(ty) => *ty = from.reinterned_type(*ty, to),
            }
        }
        Ok(reinterned)
    }

    /// Returns the constraints written in the scope that the request does not satisfy.
    pub(in crate::pdp) fn mismatches<'a>(
        &'a self,
        variables: &'a RequestVariables,
    ) -> impl Iterator<Item = &'a (Variable, ScopeConstraint)> {
        let written = self.constraints.get(..self.scope_len).unwrap_or_default();
        let satisfied = |(variable, constraint): &&(Variable, ScopeConstraint)| {
            variables.get(*variable).satisfies(constraint)
        };
        written.iter().filter(move |found| !satisfied(found))
    }

    /// Returns how closely the scope as written matches the request.
    pub(in crate::pdp) fn matched(&self, variables: &RequestVariables) -> ScopeMatch {
        let mut matched = PerVariable {
            principal: true,
            action: true,
            resource: true,
        };
        for (variable, _) in self.mismatches(variables) {
            *matched.get_mut(*variable) = false;
        }
        let PerVariable {
            principal,
            action,
            resource,
        } = matched;
        ScopeMatch {
            variables: u8::from(principal) + u8::from(action) + u8::from(resource),
            action,
            resource,
        }
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
        let mut constraints = self.constraints.iter();
        constraints.find_map(|constraint| match constraint {
            (Variable::Action, ScopeConstraint::Is(uid)) => Some(vec![*uid]),
            (Variable::Action, ScopeConstraint::In(uids)) => Some(uids.to_vec()),
            (Variable::Action, ScopeConstraint::OfType(_))
            | (Variable::Principal | Variable::Resource, _) => None,
        })
    }
}

/// Returns the scope constraint that `expr` expresses, if it has that form.
fn scope_constraint(
    expr: &Expr,
    slots: &SlotEnv,
    interner: &mut Arc<UidInterner>,
) -> Result<Option<(Variable, ScopeConstraint)>, TooManyUids> {
    if let ExprKind::Is { expr, entity_type } = expr.expr_kind() {
        return Ok(variable(expr).map(|variable| {
            let ty = UidInterner::intern_type(interner, entity_type);
            (variable, ScopeConstraint::OfType(ty))
        }));
    }
    let ExprKind::BinaryApp { op, arg1, arg2 } = expr.expr_kind() else {
        return Ok(None);
    };
    let uid = |expr: &Expr| NamedUid::from_expr(expr)?.uid(slots).cloned();
    if *op == BinaryOp::Eq {
        let sides = variable(arg1)
            .zip(uid(arg2))
            .or_else(|| variable(arg2).zip(uid(arg1)));
        if let Some((variable, uid)) = sides {
            let uid = UidInterner::intern(interner, &uid)?;
            return Ok(Some((variable, ScopeConstraint::Is(uid))));
        }
    }
    if *op == BinaryOp::In
        && let Some((variable, named)) = variable(arg1).zip(NamedUid::all_in(arg2))
        && let Some(uids) = named
            .iter()
            .map(|named| named.uid(slots))
            .collect::<Option<Vec<_>>>()
    {
        let uids = uids.into_iter();
        let uids = uids.map(|uid| UidInterner::intern(interner, uid));
        return Ok(Some((
            variable,
            ScopeConstraint::In(uids.collect::<Result<_, _>>()?),
        )));
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
