//! Entity slicing: collects only the entities that evaluating some policies can look up.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, SlotEnv, Value, ValueKind};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use smallvec::{SmallVec, smallvec};
use smol_str::SmolStr;

use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::overlay::{Overlay, OverlayError};
use crate::pdp::policies::policy::{Condition, Rule};
use crate::pdp::policies::read_set::{AccessTree, ReadSet, Root};
use crate::pdp::policies::scope::{RequestVariables, Variable};
use crate::pdp::settings::{MAX_LOOKUP_STEPS, MAX_LOOKUPS};

/// An error that stops slicing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum SliceError {
    /// The request's own entities make the hierarchy invalid.
    Overlay(OverlayError),
    /// The lookups exceed [`MAX_LOOKUPS`] entities or [`MAX_LOOKUP_STEPS`] steps.
    TooMany,
}

impl From<OverlayError> for SliceError {
    fn from(error: OverlayError) -> Self {
        Self::Overlay(error)
    }
}

/// The values of a request's variables.
#[derive(Debug)]
pub(in crate::pdp) struct Bindings {
    pub(in crate::pdp) principal: EntityUID,
    pub(in crate::pdp) action: EntityUID,
    pub(in crate::pdp) resource: EntityUID,
    pub(in crate::pdp) context: Arc<BTreeMap<SmolStr, Value>>,
    /// The same variables as the scope index uses them.
    pub(in crate::pdp) variables: RequestVariables,
}

impl Bindings {
    /// Returns the uid of a variable.
    pub(in crate::pdp) fn uid(&self, variable: Variable) -> &EntityUID {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }
}

/// A slice under construction.
struct Slicer<'v, 'a, 'r> {
    overlay: &'v mut Overlay<'a>,
    found: hashbrown::HashMap<UidId, SlicedEntity>,
    /// The entities to visit, each with a node of an access tree.
    ///
    /// A queue, not recursion, as a policy's path may be long and the thread's stack small.
    queue: Vec<(UidId, &'r AccessTree)>,
    /// The visited entities, each with a node of an access tree and the slots of a link.
    ///
    /// Nodes and slots are identified by their address, which is stable while slicing.
    visited: hashbrown::HashSet<(UidId, *const AccessTree, *const SlotEnv)>,
    /// The address of the current slots, if the reads depend on them; else null.
    ///
    /// With null, all links of a template read the same, so an entity is visited only once.
    slots_identity: *const SlotEnv,
    steps_left: usize,
}

struct SlicedEntity {
    /// The entity without ancestors; `None` if there is no such entity.
    entity: Option<Arc<Entity>>,
    /// True if the slice needs all its ancestors.
    all_ancestors: bool,
    /// The uids that the slice needs if they are ancestors; may contain duplicates.
    ancestors: Vec<UidId>,
}

/// Returns the entities that Cedar needs to evaluate these conditions.
///
/// These are the entities that the conditions can look up, each with those of its ancestors that a
/// condition can test.
pub(in crate::pdp) fn slice_entities<'r>(
    overlay: &mut Overlay<'_>,
    bindings: &Bindings,
    conditions: impl Iterator<Item = (&'r Condition, &'r Rule)>,
) -> Result<Entities, SliceError> {
    let mut slicer = Slicer::new(overlay);
    // Policies of the same pattern share a read set, which is followed once. A link is not skipped,
    // as its slots differ.
    let mut seen: hashbrown::HashSet<*const ReadSet> = hashbrown::HashSet::new();
    for (condition, rule) in conditions {
        if rule.slots.is_none() && !seen.insert(Arc::as_ptr(&condition.read_set)) {
            continue;
        }
        slicer.add(&condition.read_set, rule.slots(), bindings)?;
    }
    slicer.finish(bindings)
}

impl<'v, 'a, 'r> Slicer<'v, 'a, 'r> {
    fn new(overlay: &'v mut Overlay<'a>) -> Self {
        Self {
            overlay,
            found: hashbrown::HashMap::new(),
            queue: Vec::new(),
            visited: hashbrown::HashSet::new(),
            slots_identity: ptr::null(),
            steps_left: MAX_LOOKUP_STEPS,
        }
    }

    /// Takes `steps` from the budget.
    fn spend(&mut self, steps: usize) -> Result<(), SliceError> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.ok_or(SliceError::TooMany)?;
        Ok(())
    }

    /// Adds the entities that a read set reaches.
    fn add(
        &mut self,
        read_set: &'r ReadSet,
        slots: &SlotEnv,
        bindings: &Bindings,
    ) -> Result<(), SliceError> {
        self.slots_identity = match read_set.depends_on_slots {
            true => ptr::from_ref(slots),
            false => ptr::null(),
        };
        for (root, tree) in &read_set.roots {
            match root {
                Root::Principal => self.enqueue_uid(&bindings.principal, tree)?,
                Root::Action => self.enqueue_uid(&bindings.action, tree)?,
                Root::Resource => self.enqueue_uid(&bindings.resource, tree)?,
                Root::Context => {
                    for (name, below) in &tree.fields {
                        if let Some(value) = bindings.context.get(name) {
                            self.enqueue_value(value, below)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = slots.get(slot) {
                        self.enqueue_uid(uid, tree)?;
                    }
                }
                Root::Literal(uid) => self.enqueue_uid(uid, tree)?,
            }
        }
        while let Some((uid, tree)) = self.queue.pop() {
            self.visit(uid, tree, slots)?;
        }
        Ok(())
    }

    /// Enqueues the uids in `value` that are on a path of `tree`.
    fn enqueue_value(&mut self, value: &Value, tree: &'r AccessTree) -> Result<(), SliceError> {
        let mut values: SmallVec<[(&Value, &'r AccessTree); 4]> = smallvec![(value, tree)];
        while let Some((value, tree)) = values.pop() {
            self.spend(1)?;
            match &value.value {
                ValueKind::Lit(Literal::EntityUID(uid)) => self.enqueue_uid(uid, tree)?,
                ValueKind::Record(fields) => {
                    self.spend(tree.fields.len())?;
                    for (name, below) in &tree.fields {
                        values.extend(fields.get(name).map(|field| (field, below)));
                    }
                }
                ValueKind::Lit(Literal::Bool(_) | Literal::Long(_) | Literal::String(_))
                | ValueKind::Set(_)
                | ValueKind::ExtensionValue(_) => {}
            }
        }
        Ok(())
    }

    /// Enqueues `uid`, unless it is not looked up or was visited here before.
    fn enqueue_uid(&mut self, uid: &EntityUID, tree: &'r AccessTree) -> Result<(), SliceError> {
        self.spend(1)?;
        if !tree.is_looked_up && tree.fields.is_empty() && tree.tags.is_none() {
            return Ok(());
        }
        if let Some(uid) = self.overlay.find_uid(uid) {
            let visit = (uid, ptr::from_ref(tree), self.slots_identity);
            if self.visited.insert(visit) {
                self.queue.push((uid, tree));
            }
        }
        Ok(())
    }

    /// Adds an entity to the slice, and enqueues the entities that its values refer to.
    fn visit(
        &mut self,
        uid: UidId,
        tree: &'r AccessTree,
        slots: &SlotEnv,
    ) -> Result<(), SliceError> {
        if self.found.len() >= MAX_LOOKUPS && !self.found.contains_key(&uid) {
            return Err(SliceError::TooMany);
        }
        self.spend(tree.ancestors.named.len() + tree.fields.len())?;
        let overlay = &self.overlay;
        let sliced = self.found.entry(uid).or_insert_with(|| SlicedEntity {
            entity: overlay.entity(uid).map(Arc::new),
            all_ancestors: false,
            ancestors: Vec::new(),
        });
        sliced.all_ancestors |= tree.ancestors.any;
        for named in &tree.ancestors.named {
            // A uid that is not interned is no entity's ancestor.
            let uid = named.uid(slots).and_then(|uid| overlay.find_uid(uid));
            sliced.ancestors.extend(uid);
        }
        if tree.fields.is_empty() && tree.tags.is_none() {
            return Ok(());
        }
        let Some(entity) = sliced.entity.clone() else {
            return Ok(());
        };
        let fields = tree.fields.iter();
        let fields = fields.filter_map(|(name, below)| Some((entity.get(name)?, below)));
        let tags = tree.tags.iter();
        let tags = tags.flat_map(|below| entity.tags().map(|(_, value)| (value, below.as_ref())));
        for (value, below) in fields.chain(tags) {
            if let PartialValue::Value(value) = value {
                self.enqueue_value(value, below)?;
            }
        }
        Ok(())
    }

    /// Adds the needed ancestors to the entities.
    fn finish(mut self, bindings: &Bindings) -> Result<Entities, SliceError> {
        let mut computed;
        let found = std::mem::take(&mut self.found);
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (uid, mut sliced) in found {
            let Some(mut entity) = sliced.entity else {
                continue;
            };
            if sliced.all_ancestors || !sliced.ancestors.is_empty() {
                let ancestors = match bindings.variables.find(uid) {
                    Some(variable) => variable.ancestors.as_slice(),
                    None => {
                        computed = self.overlay.ancestors(uid)?;
                        &computed
                    }
                };
                self.spend(ancestors.len())?;
                if !sliced.all_ancestors {
                    let needed = &mut sliced.ancestors;
                    needed.sort_unstable();
                    needed.dedup();
                    needed.retain(|uid| ancestors.binary_search(uid).is_ok());
                }
                let needed = match sliced.all_ancestors {
                    true => ancestors,
                    false => &sliced.ancestors,
                };
                // This is the only reference, so nothing is copied.
                let entity = Arc::make_mut(&mut entity);
                for uid in needed.iter().filter_map(|uid| self.overlay.uid(*uid)) {
                    entity.add_indirect_ancestor(uid);
                }
            }
            entities.push(entity);
        }
        Ok(cedar_entities(entities))
    }
}

/// Converts entities with complete ancestors and distinct uids to Cedar's collection.
#[expect(
    clippy::expect_used,
    reason = "adding fails by a schema (there is none), by the closure (it is assumed), or by a \
              duplicate uid (callers pass each uid once); without the entities, a forbid could lose \
              what it reads"
)]
fn cedar_entities(entities: Vec<Arc<Entity>>) -> Entities {
    Entities::new()
        .add_entities(
            entities,
            None::<&NoEntitiesSchema>,
            TCComputation::AssumeAlreadyComputed,
            Extensions::all_available(),
        )
        .expect("distinct uids")
}

#[cfg(test)]
mod tests;
