//! Brings together the entities that evaluating some policies can look up, and no others.

use std::collections::{BTreeMap, HashSet};
use std::ptr;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, SlotEnv, Value, ValueKind};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use smallvec::{SmallVec, smallvec};
use smol_str::SmolStr;

use crate::pdp::entities::interner::UidNumber;
use crate::pdp::entities::store::{OverlayError, View};
use crate::pdp::policies::index::Subjects;
use crate::pdp::policies::read_set::{Lookups, Named, Reads, Root};
use crate::pdp::snapshot::{Condition, Rule};

/// The most entities that one request may look up. Attributes and tags lead from one to others, so
/// a policy that follows them through all tags of an entity could reach a great many.
pub const MAX_LOOKUPS: usize = 20_000;

/// The most steps that finding them may take: one for each attribute and tag that is looked at and
/// each uid that is found there, and one for each ancestor that an entity is asked for or has.
///
/// Entities may be few and the ways to them many: each policy has its own, through all tags of an
/// entity. Twenty thousand entities with a hundred ancestors each take two million steps.
pub const MAX_LOOKUP_STEPS: usize = 2_000_000;

/// Why the entities could not be brought together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum LookupError {
    /// The request's own entities make a hierarchy that is refused.
    Overlay(OverlayError),
    /// They are more than [`MAX_LOOKUPS`], or take more than [`MAX_LOOKUP_STEPS`] to find.
    TooMany,
}

impl From<OverlayError> for LookupError {
    fn from(error: OverlayError) -> Self {
        Self::Overlay(error)
    }
}

/// The variables of a request, as values.
#[derive(Debug)]
pub(in crate::pdp) struct Variables<'a> {
    pub(in crate::pdp) principal: &'a EntityUID,
    pub(in crate::pdp) action: &'a EntityUID,
    pub(in crate::pdp) resource: &'a EntityUID,
    pub(in crate::pdp) context: &'a BTreeMap<SmolStr, Value>,
    /// The same, as far as scopes can tell.
    pub(in crate::pdp) subjects: &'a Subjects,
}

impl Variables<'_> {
    /// All that the entity is in, sorted, if it is one of the variables.
    fn ancestors_of(&self, number: UidNumber) -> Option<&[UidNumber]> {
        let Subjects {
            principal,
            action,
            resource,
        } = self.subjects;
        [principal, action, resource]
            .into_iter()
            .find(|subject| subject.uid == Some(number))
            .map(|subject| subject.ancestors.as_slice())
    }
}

/// The entities found so far.
struct Gathering<'v, 'a> {
    view: &'v mut View<'a>,
    found: hashbrown::HashMap<UidNumber, Gathered>,
    /// The entities that were visited already at a place on a path. A place and a link's slots
    /// are told from others by where they stand in memory, which outlives the gathering.
    visited: hashbrown::HashSet<(UidNumber, *const Lookups, *const SlotEnv)>,
    steps_left: usize,
}

struct Gathered {
    /// Without ancestors; `None` when there is no such entity.
    entity: Option<Arc<Entity>>,
    /// Whether all its ancestors are needed.
    all_ancestors: bool,
    /// The ancestors that are needed, if it has them; perhaps some several times.
    ancestors: Vec<UidNumber>,
}

/// The entities that are still to be visited, each at a place on a path.
type Open<'r> = Vec<(UidNumber, &'r Lookups)>;

/// What is the same for all paths of a condition.
#[derive(Clone, Copy)]
struct Walk<'r> {
    slots: &'r SlotEnv,
    /// Where the slots stand, if what is asked of an entity depends on them; else links of one
    /// template ask the same, and what one has visited no other need visit.
    of_slots: *const SlotEnv,
}

/// What Cedar needs to evaluate `rules` for a request: the entities that their conditions can look
/// up, each with those of its ancestors that a condition can ask for.
///
/// # Errors
///
/// [`LookupError`].
pub(in crate::pdp) fn gather<'r>(
    view: &mut View<'_>,
    variables: &Variables<'_>,
    conditions: impl Iterator<Item = (&'r Condition, &'r Rule)>,
) -> Result<Entities, LookupError> {
    let mut gathering = Gathering::new(view);
    // Policies are often of one pattern, and what one reads is then what all read; but a link's
    // slots are its own.
    let mut seen: hashbrown::HashSet<*const Reads> = hashbrown::HashSet::new();
    for (condition, rule) in conditions {
        if rule.slots.is_none() && !seen.insert(Arc::as_ptr(&condition.reads)) {
            continue;
        }
        gathering.add(&condition.reads, rule.slots(), variables)?;
    }
    gathering.finish(variables)
}

impl<'v, 'a> Gathering<'v, 'a> {
    fn new(view: &'v mut View<'a>) -> Self {
        Self {
            view,
            found: hashbrown::HashMap::new(),
            visited: hashbrown::HashSet::new(),
            steps_left: MAX_LOOKUP_STEPS,
        }
    }

    fn take(&mut self, steps: usize) -> Result<(), LookupError> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.ok_or(LookupError::TooMany)?;
        Ok(())
    }

    fn add(
        &mut self,
        reads: &Reads,
        slots: &SlotEnv,
        variables: &Variables<'_>,
    ) -> Result<(), LookupError> {
        let walk = Walk {
            slots,
            of_slots: match reads.asks_for_slots {
                true => ptr::from_ref(slots),
                false => ptr::null(),
            },
        };
        // Not by recursion: a path is as long as its author likes, on whatever stack this runs.
        let mut open = Open::new();
        for (root, lookups) in &reads.roots {
            match root {
                Root::Principal => self.reach(variables.principal, lookups, walk, &mut open)?,
                Root::Action => self.reach(variables.action, lookups, walk, &mut open)?,
                Root::Resource => self.reach(variables.resource, lookups, walk, &mut open)?,
                Root::Context => {
                    for (name, below) in &lookups.fields {
                        if let Some(value) = variables.context.get(name) {
                            self.value(value, below, walk, &mut open)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = slots.get(slot) {
                        self.reach(uid, lookups, walk, &mut open)?;
                    }
                }
            }
        }
        for (uid, lookups) in &reads.literals {
            self.reach(uid, lookups, walk, &mut open)?;
        }
        while let Some((number, lookups)) = open.pop() {
            self.visit(number, lookups, walk, &mut open)?;
        }
        Ok(())
    }

    /// Opens the uids that stand on a path in `value`.
    fn value<'r>(
        &mut self,
        value: &Value,
        lookups: &'r Lookups,
        walk: Walk<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), LookupError> {
        let mut values: SmallVec<[(&Value, &'r Lookups); 4]> = smallvec![(value, lookups)];
        while let Some((value, lookups)) = values.pop() {
            self.take(1)?;
            match &value.value {
                ValueKind::Lit(Literal::EntityUID(uid)) => self.reach(uid, lookups, walk, open)?,
                ValueKind::Record(fields) => {
                    self.take(lookups.fields.len())?;
                    for (name, below) in &lookups.fields {
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
    fn reach<'r>(
        &mut self,
        uid: &EntityUID,
        lookups: &'r Lookups,
        walk: Walk<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), LookupError> {
        self.take(1)?;
        if !lookups.entity && lookups.fields.is_empty() && lookups.tags.is_none() {
            return Ok(());
        }
        let Some(number) = self.view.number(uid) else {
            return Ok(());
        };
        let place = (number, ptr::from_ref(lookups), walk.of_slots);
        if self.visited.insert(place) {
            open.push((number, lookups));
        }
        Ok(())
    }

    /// Notes what is asked of an entity, and opens what it leads to.
    fn visit<'r>(
        &mut self,
        number: UidNumber,
        lookups: &'r Lookups,
        walk: Walk<'r>,
        open: &mut Open<'r>,
    ) -> Result<(), LookupError> {
        if self.found.len() >= MAX_LOOKUPS && !self.found.contains_key(&number) {
            return Err(LookupError::TooMany);
        }
        self.take(lookups.ancestors.named.len() + lookups.fields.len())?;
        let view = &self.view;
        let gathered = self.found.entry(number).or_insert_with(|| Gathered {
            entity: view.entity(number, HashSet::new()).map(Arc::new),
            all_ancestors: false,
            ancestors: Vec::new(),
        });
        gathered.all_ancestors |= lookups.ancestors.any;
        for named in &lookups.ancestors.named {
            let uid = match named {
                Named::Literal(uid) => Some(uid),
                Named::Slot(slot) => walk.slots.get(slot),
            };
            // A uid without a number is above nothing.
            gathered
                .ancestors
                .extend(uid.and_then(|uid| view.number(uid)));
        }
        if lookups.fields.is_empty() && lookups.tags.is_none() {
            return Ok(());
        }
        let Some(entity) = gathered.entity.clone() else {
            return Ok(());
        };
        for (name, below) in &lookups.fields {
            if let Some(PartialValue::Value(value)) = entity.get(name) {
                self.value(value, below, walk, open)?;
            }
        }
        if let Some(below) = &lookups.tags {
            for (_, value) in entity.tags() {
                if let PartialValue::Value(value) = value {
                    self.value(value, below, walk, open)?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, variables: &Variables<'_>) -> Result<Entities, LookupError> {
        let mut found_ancestors;
        let found = std::mem::take(&mut self.found);
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (number, mut gathered) in found {
            let Some(mut entity) = gathered.entity else {
                continue;
            };
            if gathered.all_ancestors || !gathered.ancestors.is_empty() {
                let ancestors = match variables.ancestors_of(number) {
                    Some(known) => known,
                    None => {
                        found_ancestors = self.view.ancestors(number)?;
                        &found_ancestors
                    }
                };
                self.take(ancestors.len())?;
                if !gathered.all_ancestors {
                    let needed = &mut gathered.ancestors;
                    needed.sort_unstable();
                    needed.dedup();
                    needed.retain(|number| ancestors.binary_search(number).is_ok());
                }
                let needed = match gathered.all_ancestors {
                    true => ancestors,
                    false => &gathered.ancestors,
                };
                // The only handle on it, so nothing is copied.
                let entity = Arc::make_mut(&mut entity);
                for uid in needed.iter().filter_map(|number| self.view.uid(*number)) {
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
