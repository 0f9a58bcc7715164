//! Brings together the entities that evaluating some policies can look up, and no others.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, SlotEnv, Value, ValueKind};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use super::entities::{OverlayError, View};
use super::index::Subjects;
use super::reads::{Lookups, Named, Reads, Root};
use super::snapshot::{Condition, Rule};
use super::uids::UidNumber;

/// The most entities that one request may look up. Attributes and tags lead from one to others, so
/// a policy that follows them through all tags of an entity could reach a great many.
pub const MAX_LOOKUPS: usize = 20_000;

/// Why the entities could not be brought together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookupError {
    /// The request's own entities make a hierarchy that is refused.
    Overlay(OverlayError),
    /// They are more than [`MAX_LOOKUPS`].
    TooMany,
}

impl From<OverlayError> for LookupError {
    fn from(error: OverlayError) -> Self {
        Self::Overlay(error)
    }
}

/// The variables of a request, as values.
#[derive(Debug)]
pub(super) struct Variables<'a> {
    pub(super) principal: &'a EntityUID,
    pub(super) action: &'a EntityUID,
    pub(super) resource: &'a EntityUID,
    pub(super) context: &'a BTreeMap<SmolStr, Value>,
    /// The same, as far as scopes can tell.
    pub(super) subjects: &'a Subjects,
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
}

struct Gathered {
    /// Without ancestors; `None` when there is no such entity.
    entity: Option<Arc<Entity>>,
    /// Whether all its ancestors are needed.
    all_ancestors: bool,
    /// The ancestors that are needed, if it has them.
    ancestors: Vec<EntityUID>,
}

/// What Cedar needs to evaluate `rules` for a request: the entities that their conditions can look
/// up, each with those of its ancestors that a condition can ask for.
///
/// # Errors
///
/// [`LookupError`].
pub(super) fn gather<'r>(
    view: &mut View<'_>,
    variables: &Variables<'_>,
    conditions: impl Iterator<Item = (&'r Condition, &'r Rule)>,
) -> Result<Entities, LookupError> {
    let mut gathering = Gathering {
        view,
        found: hashbrown::HashMap::new(),
    };
    // Policies are often of one pattern, and what one reads is then what all read; but a link's
    // slots are its own.
    let mut seen: Vec<*const Reads> = Vec::new();
    for (condition, rule) in conditions {
        let reads: *const Reads = Arc::as_ptr(&condition.reads);
        if rule.slots.is_none() {
            if seen.contains(&reads) {
                continue;
            }
            seen.push(reads);
        }
        gathering.add(&condition.reads, rule.slots(), variables)?;
    }
    gathering.finish(variables)
}

impl Gathering<'_, '_> {
    fn add(
        &mut self,
        reads: &Reads,
        slots: &SlotEnv,
        variables: &Variables<'_>,
    ) -> Result<(), LookupError> {
        for (root, lookups) in &reads.roots {
            match root {
                Root::Principal => self.uid(variables.principal, lookups, slots)?,
                Root::Action => self.uid(variables.action, lookups, slots)?,
                Root::Resource => self.uid(variables.resource, lookups, slots)?,
                Root::Context => {
                    for (name, below) in &lookups.fields {
                        if let Some(value) = variables.context.get(name) {
                            self.value(value, below, slots)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = slots.get(slot) {
                        self.uid(uid, lookups, slots)?;
                    }
                }
            }
        }
        for (uid, lookups) in &reads.literals {
            self.uid(uid, lookups, slots)?;
        }
        Ok(())
    }

    fn value(
        &mut self,
        value: &Value,
        lookups: &Lookups,
        slots: &SlotEnv,
    ) -> Result<(), LookupError> {
        match &value.value {
            ValueKind::Lit(Literal::EntityUID(uid)) => self.uid(uid, lookups, slots),
            ValueKind::Record(fields) => {
                for (name, below) in &lookups.fields {
                    if let Some(field) = fields.get(name) {
                        self.value(field, below, slots)?;
                    }
                }
                Ok(())
            }
            ValueKind::Lit(Literal::Bool(_) | Literal::Long(_) | Literal::String(_))
            | ValueKind::Set(_)
            | ValueKind::ExtensionValue(_) => Ok(()),
        }
    }

    /// Recurses as deep as a path in a policy is long.
    fn uid(
        &mut self,
        uid: &EntityUID,
        lookups: &Lookups,
        slots: &SlotEnv,
    ) -> Result<(), LookupError> {
        if !lookups.entity && lookups.fields.is_empty() && lookups.tags.is_none() {
            return Ok(());
        }
        let Some(number) = self.view.number(uid) else {
            return Ok(());
        };
        if self.found.len() >= MAX_LOOKUPS && !self.found.contains_key(&number) {
            return Err(LookupError::TooMany);
        }
        let view = &self.view;
        let gathered = self.found.entry(number).or_insert_with(|| Gathered {
            entity: view.entity(number, HashSet::new()).map(Arc::new),
            all_ancestors: false,
            ancestors: Vec::new(),
        });
        gathered.all_ancestors |= lookups.ancestors.any;
        for named in &lookups.ancestors.named {
            gathered.ancestors.extend(match named {
                Named::Literal(uid) => Some(uid.clone()),
                Named::Slot(slot) => slots.get(slot).cloned(),
            });
        }
        if lookups.fields.is_empty() && lookups.tags.is_none() {
            return Ok(());
        }
        let Some(entity) = gathered.entity.clone() else {
            return Ok(());
        };
        for (name, below) in &lookups.fields {
            if let Some(PartialValue::Value(value)) = entity.get(name) {
                self.value(value, below, slots)?;
            }
        }
        if let Some(below) = &lookups.tags {
            for (_, value) in entity.tags() {
                if let PartialValue::Value(value) = value {
                    self.value(value, below, slots)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self, variables: &Variables<'_>) -> Result<Entities, LookupError> {
        let Self { view, found } = self;
        let mut found_ancestors;
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (number, gathered) in found {
            let Some(mut entity) = gathered.entity else {
                continue;
            };
            if gathered.all_ancestors || !gathered.ancestors.is_empty() {
                let ancestors = match variables.ancestors_of(number) {
                    Some(known) => known,
                    None => {
                        found_ancestors = view.ancestors(number)?;
                        &found_ancestors
                    }
                };
                // The only handle on it, so nothing is copied.
                let entity = Arc::make_mut(&mut entity);
                if gathered.all_ancestors {
                    for uid in ancestors.iter().filter_map(|number| view.uid(*number)) {
                        entity.add_indirect_ancestor(uid);
                    }
                } else {
                    for uid in gathered.ancestors {
                        let number = view.number(&uid);
                        if number.is_some_and(|number| ancestors.binary_search(&number).is_ok()) {
                            entity.add_indirect_ancestor(uid);
                        }
                    }
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
