//! Brings together the entities that evaluating some policies can look up, and no others.

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

/// Why the entities could not be brought together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum SliceError {
    /// The request's own entities make a hierarchy that is refused.
    Overlay(OverlayError),
    /// They are more than [`MAX_LOOKUPS`], or take more than [`MAX_LOOKUP_STEPS`] to find.
    TooMany,
}

impl From<OverlayError> for SliceError {
    fn from(error: OverlayError) -> Self {
        Self::Overlay(error)
    }
}

/// The variables of a request, as values.
#[derive(Debug)]
pub(in crate::pdp) struct Bindings<'a> {
    pub(in crate::pdp) principal: &'a EntityUID,
    pub(in crate::pdp) action: &'a EntityUID,
    pub(in crate::pdp) resource: &'a EntityUID,
    pub(in crate::pdp) context: &'a BTreeMap<SmolStr, Value>,
    /// The same, as far as scopes can tell.
    pub(in crate::pdp) variables: &'a RequestVariables,
}

impl Bindings<'_> {
    /// All that the entity is in, sorted, if it is one of the variables.
    fn ancestors_of(&self, number: UidId) -> Option<&[UidId]> {
        let RequestVariables {
            principal,
            action,
            resource,
        } = self.variables;
        [principal, action, resource]
            .into_iter()
            .find(|variable| variable.uid == Some(number))
            .map(|variable| variable.ancestors.as_slice())
    }
}

/// The entities found so far.
struct Slicer<'v, 'a> {
    overlay: &'v mut Overlay<'a>,
    found: hashbrown::HashMap<UidId, SlicedEntity>,
    /// The entities that were visited already at a place on a path. A place and a link's slots
    /// are told from others by where they stand in memory, which outlives the gathering.
    visited: hashbrown::HashSet<(UidId, *const AccessTree, *const SlotEnv)>,
    steps_left: usize,
}

struct SlicedEntity {
    /// Without ancestors; `None` when there is no such entity.
    entity: Option<Arc<Entity>>,
    /// Whether all its ancestors are needed.
    all_ancestors: bool,
    /// The ancestors that are needed, if it has them; perhaps some several times.
    ancestors: Vec<UidId>,
}

/// The entities that are still to be visited, each at a place on a path.
type Open<'r> = Vec<(UidId, &'r AccessTree)>;

/// What is the same for all paths of a condition.
#[derive(Clone, Copy)]
struct PathContext<'r> {
    slots: &'r SlotEnv,
    /// Where the slots stand, if what is asked of an entity depends on them; else links of one
    /// template ask the same, and what one has visited no other need visit.
    slots_identity: *const SlotEnv,
}

/// What Cedar needs to evaluate `rules` for a request: the entities that their conditions can look
/// up, each with those of its ancestors that a condition can ask for.
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
    // Policies are often of one pattern, and what one reads is then what all read; but a link's
    // slots are its own.
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

    fn spend(&mut self, steps: usize) -> Result<(), SliceError> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.ok_or(SliceError::TooMany)?;
        Ok(())
    }

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
        // Not by recursion: a path is as long as its author likes, on whatever stack this runs.
        let mut open = Open::new();
        for (root, tree) in &read_set.roots {
            match root {
                Root::Principal => {
                    self.enqueue_uid(bindings.principal, tree, context, &mut open)?
                }
                Root::Action => self.enqueue_uid(bindings.action, tree, context, &mut open)?,
                Root::Resource => self.enqueue_uid(bindings.resource, tree, context, &mut open)?,
                Root::Context => {
                    for (name, below) in &tree.fields {
                        if let Some(value) = bindings.context.get(name) {
                            self.value(value, below, context, &mut open)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = slots.get(slot) {
                        self.enqueue_uid(uid, tree, context, &mut open)?;
                    }
                }
            }
        }
        for (uid, tree) in &read_set.literals {
            self.enqueue_uid(uid, tree, context, &mut open)?;
        }
        while let Some((number, tree)) = open.pop() {
            self.visit(number, tree, context, &mut open)?;
        }
        Ok(())
    }

    /// Opens the uids that stand on a path in `value`.
    fn value<'r>(
        &mut self,
        value: &Value,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), SliceError> {
        let mut values: SmallVec<[(&Value, &'r AccessTree); 4]> = smallvec![(value, tree)];
        while let Some((value, tree)) = values.pop() {
            self.spend(1)?;
            match &value.value {
                ValueKind::Lit(Literal::EntityUID(uid)) => {
                    self.enqueue_uid(uid, tree, context, open)?
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

    /// Opens `uid`, unless it is none that is looked up or was here before.
    fn enqueue_uid<'r>(
        &mut self,
        uid: &EntityUID,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), SliceError> {
        self.spend(1)?;
        if !tree.entity && tree.fields.is_empty() && tree.tags.is_none() {
            return Ok(());
        }
        let Some(number) = self.overlay.find_uid(uid) else {
            return Ok(());
        };
        let place = (number, ptr::from_ref(tree), context.slots_identity);
        if self.visited.insert(place) {
            open.push((number, tree));
        }
        Ok(())
    }

    /// Notes what is asked of an entity, and opens what it leads to.
    fn visit<'r>(
        &mut self,
        number: UidId,
        tree: &'r AccessTree,
        context: PathContext<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), SliceError> {
        if self.found.len() >= MAX_LOOKUPS && !self.found.contains_key(&number) {
            return Err(SliceError::TooMany);
        }
        self.spend(tree.ancestors.named.len() + tree.fields.len())?;
        let overlay = &self.overlay;
        let sliced = self.found.entry(number).or_insert_with(|| SlicedEntity {
            entity: overlay.entity(number, HashSet::new()).map(Arc::new),
            all_ancestors: false,
            ancestors: Vec::new(),
        });
        sliced.all_ancestors |= tree.ancestors.any;
        for named in &tree.ancestors.named {
            let uid = match named {
                NamedUid::Literal(uid) => Some(uid),
                NamedUid::Slot(slot) => context.slots.get(slot),
            };
            // A uid without a number is above nothing.
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
                self.value(value, below, context, open)?;
            }
        }
        if let Some(below) = &tree.tags {
            for (_, value) in entity.tags() {
                if let PartialValue::Value(value) = value {
                    self.value(value, below, context, open)?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, bindings: &Bindings<'_>) -> Result<Entities, SliceError> {
        let mut found_ancestors;
        let found = std::mem::take(&mut self.found);
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (number, mut sliced) in found {
            let Some(mut entity) = sliced.entity else {
                continue;
            };
            if sliced.all_ancestors || !sliced.ancestors.is_empty() {
                let ancestors = match bindings.ancestors_of(number) {
                    Some(known) => known,
                    None => {
                        found_ancestors = self.overlay.ancestors(number)?;
                        &found_ancestors
                    }
                };
                self.spend(ancestors.len())?;
                if !sliced.all_ancestors {
                    let needed = &mut sliced.ancestors;
                    needed.sort_unstable();
                    needed.dedup();
                    needed.retain(|number| ancestors.binary_search(number).is_ok());
                }
                let needed = match sliced.all_ancestors {
                    true => ancestors,
                    false => &sliced.ancestors,
                };
                // The only handle on it, so nothing is copied.
                let entity = Arc::make_mut(&mut entity);
                for uid in needed.iter().filter_map(|number| self.overlay.uid(*number)) {
                    entity.add_indirect_ancestor(uid);
                }
            }
            entities.push(entity);
        }
        Ok(cedar_entities(entities))
    }
}

/// Cedar's view of entities whose ancestors are complete and whose uids are distinct.
#[expect(
    clippy::expect_used,
    reason = "adding fails by a schema (there is none), by the closure (it is assumed), or by two \
              entities of one uid, and callers pass each uid once; to go on without the entities \
              would be to lose what a forbid reads"
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
