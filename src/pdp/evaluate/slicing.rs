//! Entity slicing: collects only the entities that evaluating some policies can look up.

use std::collections::{BTreeMap, HashSet};
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
use crate::pdp::policies::read_set::{AccessTree, NamedUid, ReadSet, Root};
use crate::pdp::policies::scope::RequestVariables;
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
pub(in crate::pdp) struct Bindings<'a> {
    pub(in crate::pdp) principal: &'a EntityUID,
    pub(in crate::pdp) action: &'a EntityUID,
    pub(in crate::pdp) resource: &'a EntityUID,
    pub(in crate::pdp) context: &'a BTreeMap<SmolStr, Value>,
    /// The same variables as the scope index uses them.
    pub(in crate::pdp) variables: &'a RequestVariables,
}

impl Bindings<'_> {
    /// Returns the entity's ancestors, sorted, if it is one of the variables.
    fn ancestors_of(&self, uid: UidId) -> Option<&[UidId]> {
        let RequestVariables {
            principal,
            action,
            resource,
        } = self.variables;
        [principal, action, resource]
            .into_iter()
            .find(|variable| variable.uid == Some(uid))
            .map(|variable| variable.ancestors.as_slice())
    }
}

/// A slice under construction.
struct Slicer<'v, 'a> {
    overlay: &'v mut Overlay<'a>,
    found: hashbrown::HashMap<UidId, SlicedEntity>,
    /// The visited entities, each with a node of an access tree and the slots of a link.
    ///
    /// Nodes and slots are identified by their address, which is stable while slicing.
    visited: hashbrown::HashSet<(UidId, *const AccessTree, *const SlotEnv)>,
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

/// The entities to visit, each with a node of an access tree.
type Queue<'r> = Vec<(UidId, &'r AccessTree)>;

/// The parts of a visit that are the same for all paths of a condition.
#[derive(Clone, Copy)]
struct PathContext<'r> {
    slots: &'r SlotEnv,
    /// The address of the slots, if the reads depend on them; else null.
    ///
    /// With null, all links of a template read the same, so an entity is visited only once.
    slots_identity: *const SlotEnv,
}

/// Returns the entities that Cedar needs to evaluate these conditions.
///
/// These are the entities that the conditions can look up, each with those of its ancestors that a
/// condition can test.
///
/// # Errors
///
/// [`SliceError`].
pub(in crate::pdp) fn slice_entities<'r>(
    overlay: &mut Overlay<'_>,
    bindings: &Bindings<'_>,
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

impl<'v, 'a> Slicer<'v, 'a> {
    fn new(overlay: &'v mut Overlay<'a>) -> Self {
        Self {
            overlay,
            found: hashbrown::HashMap::new(),
            visited: hashbrown::HashSet::new(),
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
        read_set: &ReadSet,
        slots: &SlotEnv,
        bindings: &Bindings<'_>,
    ) -> Result<(), SliceError> {
        let context = PathContext {
            slots,
            slots_identity: match read_set.depends_on_slots {
                true => ptr::from_ref(slots),
                false => ptr::null(),
            },
        };
        // Iterative, as a policy's path may be long and the thread's stack small.
        let mut queue = Queue::new();
        for (root, tree) in &read_set.roots {
            match root {
                Root::Principal => {
                    self.enqueue_uid(bindings.principal, tree, context, &mut queue)?
                }
                Root::Action => self.enqueue_uid(bindings.action, tree, context, &mut queue)?,
                Root::Resource => self.enqueue_uid(bindings.resource, tree, context, &mut queue)?,
                Root::Context => {
                    for (name, below) in &tree.fields {
                        if let Some(value) = bindings.context.get(name) {
                            self.enqueue_value(value, below, context, &mut queue)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = slots.get(slot) {
                        self.enqueue_uid(uid, tree, context, &mut queue)?;
                    }
                }
            }
        }
        for (uid, tree) in &read_set.literals {
            self.enqueue_uid(uid, tree, context, &mut queue)?;
        }
        while let Some((uid, tree)) = queue.pop() {
            self.visit(uid, tree, context, &mut queue)?;
        }
        Ok(())
    }

    /// Enqueues the uids in `value` that are on a path of `tree`.
    fn enqueue_value<'r>(
        &mut self,
        value: &Value,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        queue: &mut Queue<'r>,
    ) -> Result<(), SliceError> {
        let mut values: SmallVec<[(&Value, &'r AccessTree); 4]> = smallvec![(value, tree)];
        while let Some((value, tree)) = values.pop() {
            self.spend(1)?;
            match &value.value {
                ValueKind::Lit(Literal::EntityUID(uid)) => {
                    self.enqueue_uid(uid, tree, context, queue)?
                }
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
    fn enqueue_uid<'r>(
        &mut self,
        uid: &EntityUID,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        queue: &mut Queue<'r>,
    ) -> Result<(), SliceError> {
        self.spend(1)?;
        if !tree.is_looked_up && tree.fields.is_empty() && tree.tags.is_none() {
            return Ok(());
        }
        let Some(uid) = self.overlay.find_uid(uid) else {
            return Ok(());
        };
        let visit = (uid, ptr::from_ref(tree), context.slots_identity);
        if self.visited.insert(visit) {
            queue.push((uid, tree));
        }
        Ok(())
    }

    /// Adds an entity to the slice, and enqueues the entities that its values refer to.
    fn visit<'r>(
        &mut self,
        uid: UidId,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        queue: &mut Queue<'r>,
    ) -> Result<(), SliceError> {
        if self.found.len() >= MAX_LOOKUPS && !self.found.contains_key(&uid) {
            return Err(SliceError::TooMany);
        }
        self.spend(tree.ancestors.named.len() + tree.fields.len())?;
        let overlay = &self.overlay;
        let sliced = self.found.entry(uid).or_insert_with(|| SlicedEntity {
            entity: overlay.entity(uid, HashSet::new()).map(Arc::new),
            all_ancestors: false,
            ancestors: Vec::new(),
        });
        sliced.all_ancestors |= tree.ancestors.any;
        for named in &tree.ancestors.named {
            let uid = match named {
                NamedUid::Literal(uid) => Some(uid),
                NamedUid::Slot(slot) => context.slots.get(slot),
            };
            // A uid that is not interned is no entity's ancestor.
            sliced
                .ancestors
                .extend(uid.and_then(|uid| overlay.find_uid(uid)));
        }
        if tree.fields.is_empty() && tree.tags.is_none() {
            return Ok(());
        }
        let Some(entity) = sliced.entity.clone() else {
            return Ok(());
        };
        for (name, below) in &tree.fields {
            if let Some(PartialValue::Value(value)) = entity.get(name) {
                self.enqueue_value(value, below, context, queue)?;
            }
        }
        if let Some(below) = &tree.tags {
            for (_, value) in entity.tags() {
                if let PartialValue::Value(value) = value {
                    self.enqueue_value(value, below, context, queue)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the needed ancestors to the entities.
    fn finish(mut self, bindings: &Bindings<'_>) -> Result<Entities, SliceError> {
        let mut computed;
        let found = std::mem::take(&mut self.found);
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (uid, mut sliced) in found {
            let Some(mut entity) = sliced.entity else {
                continue;
            };
            if sliced.all_ancestors || !sliced.ancestors.is_empty() {
                let ancestors = match bindings.ancestors_of(uid) {
                    Some(ancestors) => ancestors,
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
