//! Brings together the entities that evaluating some policies can look up, and no others.

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, Value, ValueKind};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;

use super::entities::{OverlayError, View};
use super::reads::{Lookups, Reads, Root};
use super::snapshot::Rule;
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
    pub(super) context: &'a std::collections::BTreeMap<smol_str::SmolStr, Value>,
}

/// The entities found so far.
struct Gathering<'v, 'a> {
    view: &'v mut View<'a>,
    found: hashbrown::HashMap<UidNumber, Gathered>,
}

struct Gathered {
    /// Without ancestors; `None` when there is no such entity.
    entity: Option<Arc<Entity>>,
    needs_ancestors: bool,
}

/// What Cedar needs to evaluate `rules` for a request: the entities that their conditions can look
/// up, each with all its ancestors where a condition asks for them.
///
/// # Errors
///
/// [`LookupError`].
pub(super) fn gather<'r>(
    view: &mut View<'_>,
    variables: &Variables<'_>,
    rules: impl Iterator<Item = &'r Rule>,
) -> Result<Entities, LookupError> {
    let mut gathering = Gathering {
        view,
        found: hashbrown::HashMap::new(),
    };
    // Policies are often of one pattern, and what one reads is then what all read; but a link's
    // slots are its own.
    let mut seen: Vec<*const Reads> = Vec::new();
    for rule in rules {
        let reads: *const Reads = Arc::as_ptr(&rule.reads);
        let is_static = rule.template.is_none();
        if is_static && seen.contains(&reads) {
            continue;
        }
        if is_static {
            seen.push(reads);
        }
        gathering.rule(rule, variables)?;
    }
    gathering.finish()
}

impl Gathering<'_, '_> {
    fn rule(&mut self, rule: &Rule, variables: &Variables<'_>) -> Result<(), LookupError> {
        for (root, lookups) in &rule.reads.roots {
            match root {
                Root::Principal => self.uid(variables.principal, lookups)?,
                Root::Action => self.uid(variables.action, lookups)?,
                Root::Resource => self.uid(variables.resource, lookups)?,
                Root::Context => {
                    for (name, below) in &lookups.fields {
                        if let Some(value) = variables.context.get(name) {
                            self.value(value, below)?;
                        }
                    }
                }
                Root::Slot(slot) => {
                    if let Some(uid) = rule.policy.env().get(slot) {
                        self.uid(uid, lookups)?;
                    }
                }
            }
        }
        for (uid, lookups) in &rule.reads.literals {
            self.uid(uid, lookups)?;
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, lookups: &Lookups) -> Result<(), LookupError> {
        match &value.value {
            ValueKind::Lit(Literal::EntityUID(uid)) => self.uid(uid, lookups),
            ValueKind::Record(fields) => {
                for (name, below) in &lookups.fields {
                    if let Some(field) = fields.get(name) {
                        self.value(field, below)?;
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
    fn uid(&mut self, uid: &EntityUID, lookups: &Lookups) -> Result<(), LookupError> {
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
            needs_ancestors: false,
        });
        gathered.needs_ancestors |= lookups.ancestors;
        if lookups.fields.is_empty() && lookups.tags.is_none() {
            return Ok(());
        }
        let Some(entity) = gathered.entity.clone() else {
            return Ok(());
        };
        for (name, below) in &lookups.fields {
            if let Some(PartialValue::Value(value)) = entity.get(name) {
                self.value(value, below)?;
            }
        }
        if let Some(below) = &lookups.tags {
            for (_, value) in entity.tags() {
                if let PartialValue::Value(value) = value {
                    self.value(value, below)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Entities, LookupError> {
        let Self { view, found } = self;
        let mut entities: Vec<Arc<Entity>> = Vec::with_capacity(found.len());
        for (number, gathered) in found {
            let Some(mut entity) = gathered.entity else {
                continue;
            };
            if gathered.needs_ancestors {
                let ancestors = view.ancestors(number)?;
                // The only handle on it, so nothing is copied.
                let entity = Arc::make_mut(&mut entity);
                for ancestor in ancestors {
                    if let Some(uid) = view.uid(ancestor) {
                        entity.add_indirect_ancestor(uid);
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
