//! The stored entities with their hierarchy closed, and what a request's own entities change in it.
//!
//! Cedar's own closure recurses and recomputes the whole store when one entity joins. Ours is
//! iterative and bounded, and a request pays for the entities that its evaluation can reach.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, Value, ValueKind};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;

/// The most ancestors that one entity may have.
///
/// The ancestors of every entity are held as a set; a chain of some thousand entities would
/// otherwise cost its length squared.
pub const MAX_ANCESTORS: usize = 1_000;

/// The most steps from an entity to a parent that closing the hierarchy for one request may take.
///
/// A request within the limits of its size can still send a hierarchy whose closure costs the
/// cube of it; a request that brings a thousand entities with fifty ancestors each takes a
/// hundred thousand steps.
pub const MAX_REQUEST_HIERARCHY_STEPS: usize = 200_000;

/// Why a request's entities cannot join the stored ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OverlayError {
    /// The fault lies with the entity of this index.
    Entity(usize, HierarchyError),
    /// All together take more than [`MAX_REQUEST_HIERARCHY_STEPS`].
    TooLarge,
}

/// Why a hierarchy cannot be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HierarchyError {
    /// The entity is its own ancestor.
    Cycle(EntityUID),
    /// The entity has more than [`MAX_ANCESTORS`].
    TooManyAncestors(EntityUID),
}

/// The stored entities, each with all its ancestors.
#[derive(Debug, Default)]
pub(super) struct EntityStore {
    closed: Entities,
    by_uid: HashMap<EntityUID, Arc<Entity>>,
}

impl EntityStore {
    /// Closes the hierarchy of `entities`, which hold direct parents only and no uid twice.
    pub(super) fn close(entities: Vec<Entity>) -> Result<Self, HierarchyError> {
        let mut by_uid: HashMap<EntityUID, Entity> = entities
            .into_iter()
            .map(|entity| (entity.uid().clone(), entity))
            .collect();
        let ancestors = indirect_ancestors(&by_uid)?;
        for (uid, indirect) in ancestors {
            if let Some(entity) = by_uid.get_mut(&uid) {
                for ancestor in indirect {
                    entity.add_indirect_ancestor(ancestor);
                }
            }
        }
        Ok(Self::of_closed(by_uid.into_values().map(Arc::new)))
    }

    /// Takes entities whose ancestors are complete.
    fn of_closed(entities: impl Iterator<Item = Arc<Entity>>) -> Self {
        let by_uid: HashMap<EntityUID, Arc<Entity>> = entities
            .map(|entity| (entity.uid().clone(), entity))
            .collect();
        let closed = cedar_entities(by_uid.values().map(Arc::clone));
        Self { closed, by_uid }
    }

    /// Adds entities whose ancestors are complete and that replace those of the same uid: the
    /// schema's actions.
    pub(super) fn with_closed(self, entities: impl Iterator<Item = Arc<Entity>>) -> Self {
        let mut by_uid = self.by_uid;
        by_uid.extend(entities.map(|entity| (entity.uid().clone(), entity)));
        Self::of_closed(by_uid.into_values())
    }

    /// All of them, closed, as Cedar evaluates with.
    pub(super) fn all(&self) -> &Entities {
        &self.closed
    }

    /// Every entity.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Entity>> {
        self.by_uid.values()
    }

    /// What Cedar evaluates a request with that brings `sent` along: the union of the stored and
    /// the sent ones, a sent one replacing the stored one of its uid, closed anew, and of that
    /// union the part that evaluation can reach from `roots`.
    ///
    /// `sent` hold direct parents only and no uid twice. `roots` are the uids of the request
    /// itself (principal, action, resource, those in the context) and the literals of policy
    /// conditions.
    ///
    /// The part is as good as the whole: an evaluation looks up entities by uids that it holds,
    /// and it holds only the roots and what attributes and tags of looked-up entities hold. It
    /// can test a uid against ancestors but cannot list them. So an entity that is not reached
    /// from the roots through attributes and tags is never looked up.
    ///
    /// # Errors
    ///
    /// [`OverlayError`].
    pub(super) fn overlay(
        &self,
        sent: Vec<Entity>,
        roots: impl Iterator<Item = EntityUID>,
    ) -> Result<Entities, OverlayError> {
        let union = Union {
            stored: self,
            order: sent
                .iter()
                .enumerate()
                .map(|(index, entity)| (entity.uid().clone(), index))
                .collect(),
            sent: sent
                .into_iter()
                .map(|entity| (entity.uid().clone(), entity))
                .collect(),
        };
        let mut steps = Steps {
            left: MAX_REQUEST_HIERARCHY_STEPS,
        };
        union.check_cycles(&mut steps)?;
        union.reachable(roots, &mut steps)
    }
}

/// The steps that closing may still take.
struct Steps {
    left: usize,
}

impl Steps {
    fn take(&mut self, steps: usize) -> Result<(), OverlayError> {
        self.left = self.left.checked_sub(steps).ok_or(OverlayError::TooLarge)?;
        Ok(())
    }
}

/// The stored entities with a request's own before them.
struct Union<'a> {
    stored: &'a EntityStore,
    sent: HashMap<EntityUID, Entity>,
    /// Where each sent entity stands in the request.
    order: HashMap<EntityUID, usize>,
}

impl Union<'_> {
    fn direct(&self, uid: &EntityUID) -> Option<&Entity> {
        self.sent
            .get(uid)
            .or_else(|| self.stored.by_uid.get(uid).map(Arc::as_ref))
    }

    /// Finds a cycle by going up from every sent entity, each entity on the way once.
    ///
    /// Stored entities alone have none, so every cycle passes through a sent one.
    fn check_cycles(&self, steps: &mut Steps) -> Result<(), OverlayError> {
        let mut indices: Vec<(&usize, &EntityUID)> =
            self.order.iter().map(|(uid, index)| (index, uid)).collect();
        indices.sort_unstable();
        // False while an entity is on the way up from here, true once all above it is seen.
        let mut done: HashMap<&EntityUID, bool> = HashMap::new();
        for (index, root) in indices {
            if done.contains_key(root) {
                continue;
            }
            let mut path: Vec<(&EntityUID, Vec<&EntityUID>)> = Vec::new();
            let mut next = Some(root);
            loop {
                if let Some(uid) = next.take() {
                    done.insert(uid, false);
                    let parents: Vec<&EntityUID> = self
                        .direct(uid)
                        .map(|entity| entity.parents().collect())
                        .unwrap_or_default();
                    steps.take(parents.len())?;
                    path.push((uid, parents));
                }
                let Some((uid, unvisited)) = path.last_mut() else {
                    break;
                };
                match unvisited.pop() {
                    Some(parent) => match done.get(parent) {
                        None => next = Some(parent),
                        Some(true) => {}
                        Some(false) => {
                            // Of the sent entities on the cycle, the first is named.
                            let of_cycle = path
                                .iter()
                                .map(|(uid, _)| *uid)
                                .skip_while(|uid| *uid != parent);
                            let sent = of_cycle
                                .filter_map(|uid| self.order.get(uid))
                                .min()
                                .unwrap_or(index);
                            let cycle = HierarchyError::Cycle(parent.clone());
                            return Err(OverlayError::Entity(*sent, cycle));
                        }
                    },
                    None => {
                        done.insert(uid, true);
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }

    /// All that is reached going up from `uid`; more than [`MAX_ANCESTORS`] are an error.
    fn ancestors(
        &self,
        uid: &EntityUID,
        steps: &mut Steps,
    ) -> Result<HashSet<&EntityUID>, OverlayError> {
        let mut found: HashSet<&EntityUID> = HashSet::new();
        let mut open: Vec<&Entity> = self.direct(uid).into_iter().collect();
        while let Some(entity) = open.pop() {
            for parent in entity.parents() {
                steps.take(1)?;
                if found.insert(parent) {
                    open.extend(self.direct(parent));
                }
            }
            if found.len() > MAX_ANCESTORS {
                let too_many = HierarchyError::TooManyAncestors(uid.clone());
                // A stored entity can come to have too many only by the sent ones together.
                return Err(match self.order.get(uid) {
                    Some(index) => OverlayError::Entity(*index, too_many),
                    None => OverlayError::TooLarge,
                });
            }
        }
        Ok(found)
    }

    /// The part of the union that evaluation can look up, beginning at `roots`.
    fn reachable(
        &self,
        roots: impl Iterator<Item = EntityUID>,
        steps: &mut Steps,
    ) -> Result<Entities, OverlayError> {
        let mut seen: HashSet<EntityUID> = HashSet::new();
        let mut open: Vec<EntityUID> = roots.collect();
        let mut reached: Vec<Arc<Entity>> = Vec::new();
        while let Some(uid) = open.pop() {
            if !seen.insert(uid.clone()) {
                continue;
            }
            let Some(entity) = self.closed(&uid, steps)? else {
                continue;
            };
            for (_, value) in entity.attrs().chain(entity.tags()) {
                if let PartialValue::Value(value) = value {
                    uids_in(value, &mut open);
                }
            }
            reached.push(entity);
        }
        Ok(cedar_entities(reached))
    }

    /// The entity of this uid, its ancestors complete.
    fn closed(
        &self,
        uid: &EntityUID,
        steps: &mut Steps,
    ) -> Result<Option<Arc<Entity>>, OverlayError> {
        // A stored entity with no sent ancestor keeps its ancestors: every way up from it stands
        // in the store alone.
        if !self.sent.contains_key(uid)
            && let Some(stored) = self.stored.by_uid.get(uid)
            && !self.is_below_sent(stored)
        {
            return Ok(Some(Arc::clone(stored)));
        }
        let Some(direct) = self.direct(uid) else {
            return Ok(None);
        };
        let mut entity = direct.clone();
        entity.remove_all_indirect_ancestors();
        for ancestor in self.ancestors(uid, steps)? {
            entity.add_indirect_ancestor(ancestor.clone());
        }
        Ok(Some(Arc::new(entity)))
    }

    /// Whether a sent entity is among the ancestors that `stored` has in the store. Looks through
    /// whichever are fewer.
    fn is_below_sent(&self, stored: &Entity) -> bool {
        if stored.ancestors().take(self.sent.len() + 1).count() <= self.sent.len() {
            stored
                .ancestors()
                .any(|ancestor| self.sent.contains_key(ancestor))
        } else {
            self.sent.keys().any(|sent| stored.is_descendant_of(sent))
        }
    }
}

/// Adds the uids that `value` holds to `found`.
pub(super) fn uids_in(value: &Value, found: &mut Vec<EntityUID>) {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match &value.value {
            ValueKind::Lit(Literal::EntityUID(uid)) => found.push(uid.as_ref().clone()),
            ValueKind::Lit(Literal::Bool(_) | Literal::Long(_) | Literal::String(_))
            | ValueKind::ExtensionValue(_) => {}
            ValueKind::Set(members) => open.extend(members.iter()),
            ValueKind::Record(fields) => open.extend(fields.values()),
        }
    }
}

/// Cedar's view of entities whose ancestors are complete and whose uids are distinct.
#[expect(
    clippy::expect_used,
    reason = "adding fails by a schema (there is none), by the closure (it is assumed), or by two \
              entities of one uid, and callers pass each uid once; to go on without the entities \
              would be to lose what a forbid reads"
)]
fn cedar_entities(entities: impl IntoIterator<Item = Arc<Entity>>) -> Entities {
    Entities::new()
        .add_entities(
            entities,
            None::<&NoEntitiesSchema>,
            TCComputation::AssumeAlreadyComputed,
            Extensions::all_available(),
        )
        .expect("distinct uids")
}

/// The indirect ancestors of every entity, by uid.
fn indirect_ancestors(
    by_uid: &HashMap<EntityUID, Entity>,
) -> Result<HashMap<EntityUID, Vec<EntityUID>>, HierarchyError> {
    enum State<'a> {
        /// On the way down from here; meeting it again is a cycle.
        Open,
        /// Every ancestor is known.
        Done(HashSet<&'a EntityUID>),
    }
    let mut states: HashMap<&EntityUID, State<'_>> = HashMap::with_capacity(by_uid.len());
    for (root, entity) in by_uid {
        if states.contains_key(root) {
            continue;
        }
        states.insert(root, State::Open);
        let mut path: Vec<(&EntityUID, Vec<&EntityUID>)> = vec![(root, entity.parents().collect())];
        while let Some((uid, unvisited)) = path.last_mut() {
            let uid = *uid;
            if let Some(parent) = unvisited.pop() {
                match (states.get(parent), by_uid.get(parent)) {
                    (Some(State::Open), _) => return Err(HierarchyError::Cycle(parent.clone())),
                    (Some(State::Done(_)), _) => {}
                    (None, Some(entity)) => {
                        states.insert(parent, State::Open);
                        path.push((parent, entity.parents().collect()));
                    }
                    // A parent that exists nowhere has no parents.
                    (None, None) => {
                        states.insert(parent, State::Done(HashSet::new()));
                    }
                }
                continue;
            }
            path.pop();
            let mut ancestors: HashSet<&EntityUID> = HashSet::new();
            for parent in by_uid.get(uid).into_iter().flat_map(Entity::parents) {
                ancestors.insert(parent);
                if let Some(State::Done(further)) = states.get(parent) {
                    ancestors.extend(further);
                }
                if ancestors.len() > MAX_ANCESTORS {
                    return Err(HierarchyError::TooManyAncestors(uid.clone()));
                }
            }
            states.insert(uid, State::Done(ancestors));
        }
    }
    Ok(by_uid
        .iter()
        .map(|(uid, entity)| {
            let indirect = match states.get(uid) {
                Some(State::Done(ancestors)) => ancestors
                    .iter()
                    .filter(|a| !entity.is_child_of(a))
                    .map(|a| (*a).clone())
                    .collect(),
                Some(State::Open) | None => Vec::new(),
            };
            (uid.clone(), indirect)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use cedar_policy_core::entities::Dereference;

    use super::*;

    fn uid(id: &str) -> EntityUID {
        EntityUID::with_eid_and_type("Node", id).unwrap()
    }

    fn entity(id: &str, parents: &[&str]) -> Entity {
        Entity::new_with_attr_partial_value(
            uid(id),
            [],
            HashSet::new(),
            parents.iter().map(|parent| uid(parent)).collect(),
            [],
        )
    }

    fn ancestors(entities: &Entities, id: &str) -> Vec<String> {
        let mut ids: Vec<String> = match entities.entity(&uid(id)) {
            Dereference::Data(entity) => entity
                .ancestors()
                .map(|uid| AsRef::<str>::as_ref(uid.eid()).to_owned())
                .collect(),
            Dereference::NoSuchEntity | Dereference::Residual(_) => panic!("no `{id}`"),
        };
        ids.sort();
        ids
    }

    #[test]
    fn every_entity_has_all_its_ancestors_those_that_exist_nowhere_too() {
        let store = EntityStore::close(vec![
            entity("a", &["b", "c"]),
            entity("b", &["d"]),
            entity("c", &["d"]),
            entity("d", &["nowhere"]),
        ])
        .unwrap();
        assert_eq!(ancestors(store.all(), "a"), ["b", "c", "d", "nowhere"]);
        assert_eq!(ancestors(store.all(), "d"), ["nowhere"]);
    }

    #[test]
    fn cycles_and_self_parents_are_refused() {
        for entities in [
            vec![entity("a", &["a"])],
            vec![
                entity("a", &["b"]),
                entity("b", &["c"]),
                entity("c", &["a"]),
            ],
        ] {
            assert!(matches!(
                EntityStore::close(entities),
                Err(HierarchyError::Cycle(_))
            ));
        }
    }

    #[test]
    fn a_long_chain_is_an_error_and_no_overflow() {
        let chain = (0..50_000)
            .map(|n| entity(&n.to_string(), &[&(n + 1).to_string()]))
            .collect();
        assert!(matches!(
            EntityStore::close(chain),
            Err(HierarchyError::TooManyAncestors(_))
        ));
    }

    #[test]
    fn a_sent_entity_replaces_the_stored_one_for_its_descendants_too() {
        let store = EntityStore::close(vec![
            entity("a", &["b"]),
            entity("b", &["old"]),
            entity("other", &["x"]),
        ])
        .unwrap();
        let union = store
            .overlay(
                vec![entity("b", &["new"])],
                [uid("a"), uid("b")].into_iter(),
            )
            .unwrap();
        assert_eq!(ancestors(&union, "a"), ["b", "new"]);
        assert_eq!(ancestors(&union, "b"), ["new"]);
    }

    #[test]
    fn a_sent_entity_can_supply_a_parent_that_the_store_only_names() {
        let store = EntityStore::close(vec![entity("a", &["missing"])]).unwrap();
        let union = store
            .overlay(vec![entity("missing", &["top"])], [uid("a")].into_iter())
            .unwrap();
        assert_eq!(ancestors(&union, "a"), ["missing", "top"]);
    }

    #[test]
    fn a_cycle_through_stored_entities_is_refused_at_the_sent_one() {
        let store = EntityStore::close(vec![entity("a", &["b"]), entity("b", &["c"])]).unwrap();
        let sent = vec![entity("x", &[]), entity("c", &["a"])];
        assert!(matches!(
            store.overlay(sent, std::iter::empty()),
            Err(OverlayError::Entity(1, HierarchyError::Cycle(_)))
        ));
    }

    #[test]
    fn a_hierarchy_whose_closure_costs_too_much_is_refused() {
        let ids: Vec<String> = (0..700).map(|n| n.to_string()).collect();
        let sent = ids
            .iter()
            .enumerate()
            .map(|(n, id)| {
                entity(
                    id,
                    &ids[n + 1..].iter().map(String::as_str).collect::<Vec<_>>(),
                )
            })
            .collect();
        let refused = EntityStore::default().overlay(sent, std::iter::empty());
        assert_eq!(refused.unwrap_err(), OverlayError::TooLarge);
    }
}
