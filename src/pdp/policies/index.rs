//! Which policies a request must evaluate: those whose scope matches it, and no others.
//!
//! A policy's condition is its scope, then its `when` and `unless`, joined by a short-circuiting
//! `&&`; a scope cannot fail. So a policy whose scope does not match adds nothing to decision,
//! determining policies or errors, and is left out. The same holds for the first operands of the
//! `&&` that are of the same kind as a scope (`principal in Group::"x"`, `resource is Doc`): they
//! cannot fail either, and stand first. They are taken into the scope here.
//!
//! Every policy is filed under one key that a request must have for the policy to match: a uid
//! that its principal or resource must be or be in, an action, or a type; of those that it has,
//! the one that the fewest policies have. A request looks under all keys that it has, and
//! compares what it finds there with the whole scope.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy_core::ast::{
    ActionConstraint, BinaryOp, EntityReference, EntityUID, Expr, ExprKind, Literal, Policy,
    PrincipalOrResourceConstraint, SlotId, Var,
};
use smallvec::SmallVec;

use super::postings::{Bucket, Table};
use super::postings::{Filed, TooLong};
use crate::pdp::entities::interner::{TooManyUids, TypeNumber, UidNumber, Uids};
use crate::pdp::workers::Workers;

/// What a policy asks of one variable of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// To be this entity.
    Is(UidNumber),
    /// To be, or be in, one of these entities.
    IsIn(SmallVec<[UidNumber; 2]>),
    /// To be of this type.
    OfType(TypeNumber),
}

/// A variable of the request that a scope speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Variable {
    Principal,
    Action,
    Resource,
}

/// All that a policy demands of a request before its condition is evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::pdp) struct Scope {
    pub(super) demands: SmallVec<[(Variable, Demand); 3]>,
    /// How many of them its scope makes; the others were taken from its condition.
    of_scope: usize,
}

/// One variable of a request, as far as scopes can tell.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct Subject {
    /// Its number; without one it is none that a policy names.
    pub(in crate::pdp) uid: Option<UidNumber>,
    /// Its type's number; without one it is of none that a policy names.
    pub(in crate::pdp) ty: Option<TypeNumber>,
    /// All that it is in, sorted.
    pub(in crate::pdp) ancestors: Vec<UidNumber>,
}

/// A request, as far as scopes can tell.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct Subjects {
    pub(in crate::pdp) principal: Subject,
    pub(in crate::pdp) action: Subject,
    pub(in crate::pdp) resource: Subject,
}

/// What a policy is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// The request's variable is this entity, or in it.
    Entity(Variable, UidNumber),
    /// The request's variable is of this type.
    Type(Variable, TypeNumber),
    /// Any request: the policy demands nothing.
    Any,
}

/// The place of a policy among a snapshot's rules.
pub(in crate::pdp) type RuleNumber = u32;

/// The policies by what they demand.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Index {
    scopes: Vec<Scope>,
    table: Table,
    /// The policies that demand nothing.
    open: Vec<RuleNumber>,
    /// The policies under the key that has the most, of those that demand something.
    largest: Vec<RuleNumber>,
}

/// So many policies are filed between two pauses.
pub(super) const PAUSE_EACH: usize = 500;

/// Room for so many candidates is made at once.
const EXPECTED_CANDIDATES: usize = 64;

/// More policies match than may be evaluated for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct TooManyCandidates;

impl Subject {
    pub(super) fn is_in(&self, uid: UidNumber) -> bool {
        self.uid == Some(uid) || self.ancestors.binary_search(&uid).is_ok()
    }

    fn meets(&self, demand: &Demand) -> bool {
        match demand {
            Demand::Is(uid) => self.uid == Some(*uid),
            Demand::IsIn(any) => any.iter().any(|uid| self.is_in(*uid)),
            Demand::OfType(ty) => self.ty == Some(*ty),
        }
    }

    fn keys(&self, variable: Variable) -> impl Iterator<Item = Key> + '_ {
        let entities = self.uid.iter().chain(&self.ancestors);
        entities
            .map(move |uid| Key::Entity(variable, *uid))
            .chain(self.ty.map(|ty| Key::Type(variable, ty)))
    }
}

impl Subjects {
    fn of(&self, variable: Variable) -> &Subject {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }

    fn meet(&self, demands: &[(Variable, Demand)]) -> bool {
        demands
            .iter()
            .all(|(variable, demand)| self.of(*variable).meets(demand))
    }
}

impl Scope {
    /// What `policy` demands, its slots filled, and the first operands of its condition that are
    /// demands too.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left for a uid that it names.
    pub(in crate::pdp) fn of(policy: &Policy, uids: &mut Arc<Uids>) -> Result<Self, TooManyUids> {
        let mut scope = Self::default();
        scope.constraint(
            Variable::Principal,
            policy.principal_constraint().as_inner(),
            uids,
        )?;
        match policy.action_constraint() {
            ActionConstraint::Any => {}
            ActionConstraint::Eq(uid) => {
                let uid = Uids::number_in(uids, uid)?;
                scope.demands.push((Variable::Action, Demand::Is(uid)));
            }
            ActionConstraint::In(any) => {
                let any = numbers(uids, any.iter().map(AsRef::as_ref))?;
                scope.demands.push((Variable::Action, Demand::IsIn(any)));
            }
        }
        scope.constraint(
            Variable::Resource,
            policy.resource_constraint().as_inner(),
            uids,
        )?;
        scope.of_scope = scope.demands.len();
        if let Some(condition) = policy.non_scope_constraints() {
            let slot = |slot: SlotId| policy.env().get(&slot);
            scope.leading(condition, &slot, uids)?;
        }
        Ok(scope)
    }

    fn constraint(
        &mut self,
        variable: Variable,
        constraint: &PrincipalOrResourceConstraint,
        uids: &mut Arc<Uids>,
    ) -> Result<(), TooManyUids> {
        let mut demand = |demand| self.demands.push((variable, demand));
        let entity = |reference: &EntityReference, uids: &mut Arc<Uids>| match reference {
            EntityReference::EUID(uid) => Uids::number_in(uids, uid),
            // A policy's constraints come with their slots filled, so this is never met; were it,
            // the scope would be one that nothing meets, and evaluation would fail on the slot.
            EntityReference::Slot(_) => Err(TooManyUids),
        };
        match constraint {
            PrincipalOrResourceConstraint::Any => {}
            PrincipalOrResourceConstraint::Eq(reference) => {
                demand(Demand::Is(entity(reference, uids)?));
            }
            PrincipalOrResourceConstraint::In(reference) => {
                let any = std::iter::once(entity(reference, uids)?).collect();
                demand(Demand::IsIn(any));
            }
            PrincipalOrResourceConstraint::Is(ty) => {
                demand(Demand::OfType(Uids::type_number_in(uids, ty)));
            }
            PrincipalOrResourceConstraint::IsIn(ty, reference) => {
                let any = std::iter::once(entity(reference, uids)?).collect();
                demand(Demand::OfType(Uids::type_number_in(uids, ty)));
                demand(Demand::IsIn(any));
            }
        }
        Ok(())
    }

    /// Takes demands from the front of `condition`'s `&&`, up to the first operand that is none.
    ///
    /// Sound because a demand is true or false and never an error: as long as all operands before
    /// one are demands, a false one makes the condition false and nothing before it can fail.
    fn leading<'a>(
        &mut self,
        condition: &Expr,
        slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
        uids: &mut Arc<Uids>,
    ) -> Result<(), TooManyUids> {
        let mut open = vec![condition];
        while let Some(expr) = open.pop() {
            if let ExprKind::And { left, right } = expr.expr_kind() {
                open.extend([right.as_ref(), left.as_ref()]);
                continue;
            }
            match demand(expr, slot, uids)? {
                Some(found) => self.demands.push(found),
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
    pub(in crate::pdp) fn moved(
        &self,
        from: &Uids,
        to: &mut Arc<Uids>,
    ) -> Result<Self, TooManyUids> {
        let uid = |uid: &UidNumber, to: &mut Arc<Uids>| from.moved(*uid, to);
        let demands = self
            .demands
            .iter()
            .map(|(variable, demand)| {
                let demand = match demand {
                    Demand::Is(one) => Demand::Is(uid(one, to)?),
                    Demand::IsIn(any) => Demand::IsIn(
                        any.iter()
                            .map(|one| uid(one, to))
                            .collect::<Result<_, _>>()?,
                    ),
                    Demand::OfType(ty) => Demand::OfType(from.moved_type(*ty, to)),
                };
                Ok((*variable, demand))
            })
            .collect::<Result<_, TooManyUids>>()?;
        Ok(Self {
            demands,
            of_scope: self.of_scope,
        })
    }

    /// How many operands at the front of the condition's `&&` were taken as demands: where they
    /// are met, those operands are true.
    pub(in crate::pdp) fn operands_taken(&self) -> usize {
        self.demands.len() - self.of_scope
    }

    /// The keys that a request must have one of, for each demand.
    fn keys(&self) -> impl Iterator<Item = SmallVec<[Key; 2]>> + '_ {
        self.demands.iter().map(|(variable, demand)| match demand {
            Demand::Is(uid) => std::iter::once(Key::Entity(*variable, *uid)).collect(),
            Demand::IsIn(any) => any.iter().map(|uid| Key::Entity(*variable, *uid)).collect(),
            Demand::OfType(ty) => std::iter::once(Key::Type(*variable, *ty)).collect(),
        })
    }

    /// The actions that it demands, or `None` when it takes any; an action matches if it is one
    /// of these or in one.
    pub(in crate::pdp) fn actions(&self) -> Option<Vec<UidNumber>> {
        self.demands
            .iter()
            .find_map(|(variable, demand)| match variable {
                Variable::Action => match demand {
                    Demand::Is(uid) => Some(vec![*uid]),
                    Demand::IsIn(any) => Some(any.to_vec()),
                    Demand::OfType(_) => None,
                },
                Variable::Principal | Variable::Resource => None,
            })
    }
}

/// `condition` without the first `taken` operands of its `&&`, which are true; `None` when nothing
/// is left of it.
pub(in crate::pdp) fn rest(condition: &Arc<Expr>, taken: usize) -> Option<Arc<Expr>> {
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
fn demand<'a>(
    expr: &Expr,
    slot: &impl Fn(SlotId) -> Option<&'a EntityUID>,
    uids: &mut Arc<Uids>,
) -> Result<Option<(Variable, Demand)>, TooManyUids> {
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
                Demand::OfType(Uids::type_number_in(uids, entity_type)),
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
            return Ok(Some((variable, Demand::Is(Uids::number_in(uids, &uid)?))));
        }
    }
    if *op == BinaryOp::In {
        let any: Option<Vec<EntityUID>> = if let ExprKind::Set(members) = arg2.expr_kind() {
            members.iter().map(uid).collect()
        } else {
            uid(arg2).map(|uid| vec![uid])
        };
        if let Some((variable, any)) = variable(arg1).zip(any) {
            return Ok(Some((variable, Demand::IsIn(numbers(uids, any.iter())?))));
        }
    }
    Ok(None)
}

fn numbers<'a>(
    uids: &mut Arc<Uids>,
    of: impl Iterator<Item = &'a EntityUID>,
) -> Result<SmallVec<[UidNumber; 2]>, TooManyUids> {
    of.map(|uid| Uids::number_in(uids, uid)).collect()
}

impl Index {
    /// Files policies with these scopes, each under the number of its place among them, with what
    /// is left of its condition in shorthand; with the pauses of `workers`.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    pub(in crate::pdp) fn new(
        scopes: Vec<Scope>,
        conditions: &[&[u8]],
        workers: Workers,
    ) -> Result<Self, TooLong> {
        let mut popularity: HashMap<Key, u32> = HashMap::new();
        let pausing = workers.pausing(scopes.iter(), PAUSE_EACH);
        for key in pausing.flat_map(Scope::keys).flatten() {
            *popularity.entry(key).or_default() += 1;
        }
        let popular = |keys: &SmallVec<[Key; 2]>| -> u64 {
            keys.iter()
                .map(|key| u64::from(popularity.get(key).copied().unwrap_or(0)))
                .sum()
        };
        let mut pairs: Vec<(Key, RuleNumber)> = Vec::with_capacity(scopes.len());
        for (number, scope) in workers.pausing(scopes.iter(), PAUSE_EACH).enumerate() {
            // INVARIANT: fewer policies than 2³² fit in memory.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            match scope.keys().min_by_key(popular) {
                Some(keys) => pairs.extend(keys.into_iter().map(|key| (key, number))),
                None => pairs.push((Key::Any, number)),
            }
        }
        pairs.sort_unstable();
        // `principal in [A, A]` has one key twice.
        pairs.dedup();
        let buckets = || pairs.chunk_by(|(one, _), (other, _)| one == other);
        let rules = |bucket: Option<&[(Key, RuleNumber)]>| {
            let bucket = bucket.unwrap_or_default().iter();
            bucket.map(|(_, number)| *number).collect()
        };
        let is_open = |bucket: &&[(Key, RuleNumber)]| matches!(bucket, [(Key::Any, _), ..]);
        let demanding = buckets().filter(|bucket| !is_open(bucket));
        Ok(Self {
            table: Table::new(&pairs, &scopes, conditions, workers)?,
            open: rules(buckets().find(is_open)),
            largest: rules(demanding.max_by_key(|bucket| bucket.len())),
            scopes,
        })
    }

    /// The policies whose scope a request meets, as they stand in memory: in no order that means
    /// anything, and one that is filed under several keys perhaps several times.
    ///
    /// # Errors
    ///
    /// [`TooManyCandidates`] when they are more than `most`.
    pub(in crate::pdp) fn candidates(
        &self,
        subjects: &Subjects,
        most: usize,
    ) -> Result<Vec<Filed<'_>>, TooManyCandidates> {
        let keys = subjects
            .principal
            .keys(Variable::Principal)
            .chain(subjects.action.keys(Variable::Action))
            .chain(subjects.resource.keys(Variable::Resource))
            .chain(std::iter::once(Key::Any));
        // Where they stand is found for all keys first, and how many they are: what is fetched
        // from memory for one key does not wait for that of another.
        let buckets: Vec<Bucket<'_>> = keys.filter_map(|key| self.table.bucket(key)).collect();
        let filed: usize = buckets.iter().map(|bucket| bucket.len()).sum();
        let room = filed.min(EXPECTED_CANDIDATES);
        let filed = buckets.into_iter().flatten();
        collect(filed.filter(|filed| filed.is_met(subjects)), room, most)
    }

    /// The policies whose scope alone a request meets, in order, whatever their conditions say.
    ///
    /// Looks at every policy there is: they are filed by what their conditions demand, too.
    pub(in crate::pdp) fn of_scope<'a>(
        &'a self,
        subjects: &'a Subjects,
    ) -> impl Iterator<Item = RuleNumber> + 'a {
        let meets = |scope: &Scope| {
            let demands = scope.demands.get(..scope.of_scope).unwrap_or_default();
            subjects.meet(demands)
        };
        let numbered = (0..).zip(&self.scopes);
        numbered
            .filter(move |(_, scope)| meets(scope))
            .map(|(number, _)| number)
    }

    /// The scope of a policy.
    pub(in crate::pdp) fn scope(&self, number: RuleNumber) -> Option<&Scope> {
        self.scopes.get(number as usize)
    }

    /// The policies that every request must evaluate.
    pub(in crate::pdp) fn open(&self) -> &[RuleNumber] {
        &self.open
    }

    /// The most policies that are filed under one key, of those that demand something.
    pub(in crate::pdp) fn largest_bucket(&self) -> &[RuleNumber] {
        &self.largest
    }

    /// The memory that it holds, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        self.scopes.capacity() * size_of::<Scope>()
            + self.table.bytes()
            + (self.open.capacity() + self.largest.capacity()) * size_of::<RuleNumber>()
    }
}

/// The policies that are `met`, with room for so many at first; stops at the first that is one
/// too many.
fn collect<'a>(
    met: impl Iterator<Item = Filed<'a>>,
    room: usize,
    most: usize,
) -> Result<Vec<Filed<'a>>, TooManyCandidates> {
    let mut found: Vec<Filed<'a>> = Vec::with_capacity(room);
    // Where so many are found that they may be too many, each is counted once: one that is filed
    // under several keys comes several times.
    let mut counted: Option<hashbrown::HashSet<RuleNumber>> = None;
    for filed in met {
        if found.len() >= most {
            let rules = || found.iter().map(|filed| filed.rule).collect();
            let counted = counted.get_or_insert_with(rules);
            if !counted.insert(filed.rule) {
                continue;
            }
            if counted.len() > most {
                return Err(TooManyCandidates);
            }
        }
        found.push(filed);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
