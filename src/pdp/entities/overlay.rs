//! A request's own entities on top of the stored ones.

use std::collections::{HashMap, HashSet};

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, PartialValue, Value};
use smallvec::SmallVec;

use super::hierarchy::{EXPECTED_ANCESTORS, HierarchyError, MAX_ANCESTORS, Step, UidSet};
use super::interner::{MAX_UIDS, TypeId, UidId};
use super::segment::{Stored, StoredRecord};
use super::store::EntityStore;
use crate::pdp::query::Uid;

/// The most steps from an entity to a parent that one request's own entities may cause.
///
/// A request within the limits of its size can still send a hierarchy whose closure costs the
/// cube of it; a request that brings a thousand entities with fifty ancestors each takes a
/// hundred thousand steps.
pub const MAX_REQUEST_HIERARCHY_STEPS: usize = 200_000;

/// Why a request's entities cannot join the stored ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum OverlayError {
    /// The fault lies with the entity of this index.
    Entity(usize, HierarchyError),
    /// All together take more than [`MAX_REQUEST_HIERARCHY_STEPS`].
    TooLarge,
}

/// The stored entities with a request's own before them: the union that the contract speaks of.
///
/// A sent entity replaces the stored one of its uid, for its descendants too. Uids that the store
/// has no number for get numbers here, for as long as the request is decided.
#[derive(Debug)]
pub(in crate::pdp) struct Overlay<'a> {
    store: &'a EntityStore,
    sent: Vec<Sent<'a>>,
    by_number: hashbrown::HashMap<UidId, usize>,
    unstored: Vec<EntityUID>,
    unstored_ids: HashMap<EntityUID, UidId>,
    steps_left: usize,
}

/// What a uid has numbers of.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct UidIds {
    /// Its own; a uid without one is no entity's, and no policy names it.
    pub(in crate::pdp) uid: Option<UidId>,
    /// That of its type, if a policy or a stored entity names it.
    pub(in crate::pdp) ty: Option<TypeId>,
}

/// What an entity has, where it stands.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Attributes<'a> {
    Stored(StoredRecord<'a>),
    Sent(&'a Entity),
}

impl<'a> Attributes<'a> {
    /// What it has under `name`.
    pub(in crate::pdp) fn get(self, name: &str) -> Attribute<'a> {
        match self {
            Self::Stored(record) => record
                .get(name)
                .map_or(Attribute::Missing, Attribute::Stored),
            Self::Sent(entity) => match entity.get(name) {
                Some(PartialValue::Value(value)) => Attribute::Sent(value),
                Some(PartialValue::Residual(_)) | None => Attribute::Missing,
            },
        }
    }
}

/// What an entity has under a name.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Attribute<'a> {
    /// This, in the store.
    Stored(Stored<'a>),
    /// This, in the request.
    Sent(&'a Value),
    /// Nothing.
    Missing,
}

/// An entity as a request brings it.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct BoundEntity {
    /// Without ancestors.
    pub(in crate::pdp) entity: Entity,
    /// The direct ones.
    pub(in crate::pdp) parents: Vec<EntityUID>,
}

/// An entity that a request brings, among the others.
#[derive(Debug)]
pub(in crate::pdp) struct Sent<'a> {
    /// Without ancestors.
    entity: Entity,
    number: UidId,
    parents: Vec<Step<'a>>,
}

impl<'a> Overlay<'a> {
    /// The stored entities alone.
    pub(in crate::pdp) fn of(store: &'a EntityStore) -> Self {
        Self {
            store,
            sent: Vec::new(),
            by_number: hashbrown::HashMap::new(),
            unstored: Vec::new(),
            unstored_ids: HashMap::new(),
            steps_left: MAX_REQUEST_HIERARCHY_STEPS,
        }
    }

    /// The stored entities with `sent` before them, no two of which have one uid.
    ///
    /// # Errors
    ///
    /// [`OverlayError`] when a sent entity is its own ancestor, or following the hierarchy takes
    /// too many steps.
    pub(in crate::pdp) fn with_entities(
        store: &'a EntityStore,
        mut sent: Vec<BoundEntity>,
    ) -> Result<Self, OverlayError> {
        let mut overlay = Self::of(store);
        for brought in &mut sent {
            // In order, so that of several faults the same is told each time.
            brought.parents.sort_unstable();
            brought.parents.dedup();
        }
        let named = sent.iter().flat_map(|BoundEntity { entity, parents }| {
            let uids = std::iter::once(entity.uid()).chain(parents);
            uids.map(|uid| {
                (
                    store.interner.find_type(uid.entity_type()),
                    uid.eid().as_ref(),
                )
            })
        });
        let mut numbers = store.interner.find_all(named).into_iter();
        let mut number = |overlay: &mut Self, uid: &EntityUID| {
            let stored = numbers.next().flatten();
            stored.unwrap_or_else(|| overlay.add(uid))
        };
        for (index, BoundEntity { entity, parents }) in sent.into_iter().enumerate() {
            let own = number(&mut overlay, entity.uid());
            let parents = parents
                .iter()
                .map(|parent| Step {
                    parent: number(&mut overlay, parent),
                    above: None,
                })
                .collect();
            overlay.by_number.insert(own, index);
            overlay.sent.push(Sent {
                entity,
                number: own,
                parents,
            });
        }
        overlay.resolve_parents();
        overlay.check_cycles()?;
        Ok(overlay)
    }

    /// Whether the request brings entities.
    pub(in crate::pdp) fn has_entities(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Lets as many steps be taken once more as a request may.
    pub(in crate::pdp) fn reset_steps(&mut self) {
        self.steps_left = MAX_REQUEST_HIERARCHY_STEPS;
    }

    /// The number of `uid`: a uid without one is no entity's, and no policy names it.
    pub(in crate::pdp) fn find_uid(&self, uid: &EntityUID) -> Option<UidId> {
        let stored = self.store.interner.find_uid(uid);
        stored.or_else(|| self.unstored_ids.get(uid).copied())
    }

    /// The numbers of uids as a request names them. Whatever a sent entity is called or is in has
    /// been given one.
    pub(in crate::pdp) fn find_named<const N: usize>(&self, uids: [&Uid; N]) -> [UidIds; N] {
        // All before anything is done with one, as in `UidInterner::find_all`.
        let types = uids.map(|uid| self.store.interner.find_type_named(&uid.type_name));
        let ids = uids.map(|uid| uid.id.as_str());
        let mut stored = self
            .store
            .interner
            .find_all(types.into_iter().zip(ids))
            .into_iter();
        let mut types = types.into_iter();
        uids.map(|uid| UidIds {
            uid: stored.next().flatten().or_else(|| self.find_unstored(uid)),
            ty: types.next().flatten(),
        })
    }

    /// The number of a uid that the store has none for.
    fn find_unstored(&self, uid: &Uid) -> Option<UidId> {
        let index = self.unstored.iter().position(|unstored| {
            let id: &str = unstored.eid().as_ref();
            id == uid.id && unstored.entity_type().to_string() == uid.type_name
        })?;
        Some(UidId(MAX_UIDS + u32::try_from(index).ok()?))
    }

    /// The attributes of the entity with this uid; `None` when there is no such entity.
    pub(in crate::pdp) fn attributes(&self, uid: UidId) -> Option<Attributes<'_>> {
        match self.by_number.get(&uid).and_then(|at| self.sent.get(*at)) {
            Some(sent) => Some(Attributes::Sent(&sent.entity)),
            None => {
                let (segment, slot) = self.store.place_of(uid)?;
                segment.attributes(slot).map(Attributes::Stored)
            }
        }
    }

    /// The number of the type of the uid with this number, if it has one.
    pub(in crate::pdp) fn type_of(&self, uid: UidId) -> Option<TypeId> {
        let index = uid.0.checked_sub(MAX_UIDS);
        match index.and_then(|index| self.unstored.get(index as usize)) {
            Some(uid) => self.find_type(uid.entity_type()),
            None => {
                let (ty, _) = self.store.interner.parts(uid);
                Some(ty)
            }
        }
    }

    /// The number of the type `ty`, if a policy or a stored entity names it.
    pub(in crate::pdp) fn find_type(&self, ty: &EntityType) -> Option<TypeId> {
        self.store.interner.find_type(ty)
    }

    /// The uid with this number.
    pub(in crate::pdp) fn uid(&self, number: UidId) -> Option<EntityUID> {
        match number.0.checked_sub(MAX_UIDS) {
            None => Some(self.store.interner.uid(number)),
            Some(index) => self.unstored.get(index as usize).cloned(),
        }
    }

    fn add(&mut self, uid: &EntityUID) -> UidId {
        if let Some(number) = self.find_uid(uid) {
            return number;
        }
        // INVARIANT: a request's message holds far fewer uids than there are numbers left.
        let index = u32::try_from(self.unstored.len()).unwrap_or(u32::MAX - MAX_UIDS);
        let number = UidId(MAX_UIDS + index);
        self.unstored.push(uid.clone());
        self.unstored_ids.insert(uid.clone(), number);
        number
    }

    fn is_sent(&self, uid: UidId) -> bool {
        self.by_number.contains_key(&uid)
    }

    /// Whether an entity with one of these uids, which are sorted, is sent.
    fn is_any_sent(&self, uids: &[UidId]) -> bool {
        const FEW: usize = 16;
        if self.sent.len() <= FEW {
            let mut sent = self.sent.iter();
            return sent.any(|sent| uids.binary_search(&sent.number).is_ok());
        }
        uids.iter().any(|uid| self.is_sent(*uid))
    }

    /// The parents of an entity, each with all that is above it where that is known and is as the
    /// store says: where no sent entity is among them.
    fn steps(&self, uid: UidId) -> impl Iterator<Item = Step<'_>> {
        let sent = self.by_number.get(&uid).and_then(|at| self.sent.get(*at));
        let stored = match sent {
            Some(_) => None,
            None => Some(self.store.hierarchy.steps(uid)),
        };
        let stored = stored.into_iter().flatten().map(|step| Step {
            above: self.unchanged(step.parent, step.above),
            ..step
        });
        let sent = sent.into_iter().flat_map(|sent| &sent.parents);
        sent.copied().chain(stored)
    }

    /// What the store says is above `parent`, if no sent entity is there.
    fn unchanged<'s>(&self, parent: UidId, above: Option<&'s [UidId]>) -> Option<&'s [UidId]> {
        above.filter(|above| !self.is_sent(parent) && !self.is_any_sent(above))
    }

    /// Finds what is above the parents of the sent entities.
    fn resolve_parents(&mut self) {
        let parents = || self.sent.iter().flat_map(|sent| &sent.parents);
        let above = self
            .store
            .hierarchy
            .above(parents().map(|step| step.parent));
        let above: SmallVec<[_; 16]> = parents()
            .zip(above)
            .map(|(step, above)| self.unchanged(step.parent, above))
            .collect();
        let steps = self.sent.iter_mut().flat_map(|sent| &mut sent.parents);
        for (step, above) in steps.zip(above) {
            step.above = above;
        }
    }

    /// All ancestors of the entity with this uid, those that exist nowhere too, sorted.
    ///
    /// # Errors
    ///
    /// [`OverlayError`] when the sent entities give it more than [`MAX_ANCESTORS`], or following
    /// the hierarchy takes too many steps.
    pub(in crate::pdp) fn ancestors(&mut self, uid: UidId) -> Result<Vec<UidId>, OverlayError> {
        if !self.has_entities() {
            return Ok(self.store.ancestors(uid));
        }
        let mut steps = self.steps_left;
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Those whose own ancestors are not known beforehand.
        let mut ahead = UidSet::default();
        let mut next = Some(uid);
        let mut done = 0;
        while let Some(below) = next {
            for Step { parent, above } in self.steps(below) {
                let above_too = above.unwrap_or_default();
                steps = steps
                    .checked_sub(1 + above_too.len())
                    .ok_or(OverlayError::TooLarge)?;
                all.push(parent);
                all.extend(above_too);
                if above.is_none() {
                    ahead.insert(parent);
                }
            }
            if ahead.len() > MAX_ANCESTORS {
                return Err(self.too_many_ancestors(uid));
            }
            next = ahead.get(done);
            done += 1;
        }
        self.steps_left = steps;
        all.sort_unstable();
        all.dedup();
        if all.len() > MAX_ANCESTORS {
            return Err(self.too_many_ancestors(uid));
        }
        Ok(all)
    }

    /// A stored entity can come to have too many only by the sent ones together.
    fn too_many_ancestors(&self, uid: UidId) -> OverlayError {
        match (self.by_number.get(&uid), self.uid(uid)) {
            (Some(index), Some(uid)) => {
                OverlayError::Entity(*index, HierarchyError::TooManyAncestors(uid))
            }
            (Some(_) | None, _) => OverlayError::TooLarge,
        }
    }

    /// The entity with this uid as Cedar holds it, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        uid: UidId,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        match self.by_number.get(&uid).and_then(|at| self.sent.get(*at)) {
            None => self.store.entity(uid, ancestors),
            Some(sent) => {
                let mut entity = sent.entity.clone();
                for ancestor in ancestors {
                    entity.add_indirect_ancestor(ancestor);
                }
                Some(entity)
            }
        }
    }

    /// Finds a cycle by going up from every sent entity, each entity on the way once.
    ///
    /// Stored entities alone have none, so every cycle passes through a sent one.
    fn check_cycles(&mut self) -> Result<(), OverlayError> {
        let mut steps = self.steps_left;
        // False while an entity is on the way up from here, true once all above it is seen.
        let mut done: hashbrown::HashMap<UidId, bool> = hashbrown::HashMap::new();
        for (index, Sent { number: root, .. }) in self.sent.iter().enumerate() {
            if done.contains_key(root) {
                continue;
            }
            done.insert(*root, false);
            let mut path = vec![(*root, self.steps(*root))];
            while let Some((uid, unvisited)) = path.last_mut() {
                let Some(Step { parent, above }) = unvisited.next() else {
                    done.insert(*uid, true);
                    path.pop();
                    continue;
                };
                steps = steps.checked_sub(1).ok_or(OverlayError::TooLarge)?;
                // From here the way leads to stored entities alone.
                if above.is_some() {
                    continue;
                }
                match done.get(&parent) {
                    Some(true) => {}
                    None => {
                        done.insert(parent, false);
                        path.push((parent, self.steps(parent)));
                    }
                    Some(false) => {
                        // Of the sent entities on the cycle, the first is named.
                        let of_cycle = path.iter().map(|(uid, _)| *uid);
                        let sent = of_cycle
                            .skip_while(|uid| *uid != parent)
                            .filter_map(|uid| self.by_number.get(&uid))
                            .min();
                        let cycle = match self.uid(parent) {
                            Some(uid) => HierarchyError::Cycle(uid),
                            None => return Err(OverlayError::TooLarge),
                        };
                        return Err(OverlayError::Entity(*sent.unwrap_or(&index), cycle));
                    }
                }
            }
        }
        self.steps_left = steps;
        Ok(())
    }
}
