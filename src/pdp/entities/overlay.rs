//! The stored entities, overlaid with the entities of one request.

use std::collections::{HashMap, HashSet};

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, PartialValue, Value};
use smallvec::SmallVec;

use super::hierarchy::{EXPECTED_ANCESTORS, HierarchyError, MAX_ANCESTORS, ParentLink, UidSet};
use super::interner::{MAX_UIDS, TypeId, UidId};
use super::segment::{Stored, StoredRecord};
use super::store::EntityStore;
use crate::pdp::query::Uid;

/// Most steps from an entity to a parent that one request's own entities may cause.
///
/// A request within the size limits can still contain a hierarchy whose closure takes cubic time.
/// A request with 1,000 entities of 50 ancestors each takes 100,000 steps.
pub const MAX_REQUEST_HIERARCHY_STEPS: usize = 200_000;

/// An error in the hierarchy of a request's entities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum OverlayError {
    /// The entity with this index is in a cycle or has too many ancestors.
    Entity(usize, HierarchyError),
    /// All entities together take more than [`MAX_REQUEST_HIERARCHY_STEPS`].
    TooLarge,
}

/// The union of the stored entities and a request's own, which take precedence.
///
/// A request entity replaces the stored entity with its uid, for all its descendants too. Uids that
/// the store has not interned get ids here, for the duration of the request.
#[derive(Debug)]
pub(in crate::pdp) struct Overlay<'a> {
    store: &'a EntityStore,
    request_entities: Vec<OverlayEntity<'a>>,
    /// Indices into `request_entities`.
    index_by_uid: hashbrown::HashMap<UidId, usize>,
    /// The uids that the store has not interned; their ids count up from [`MAX_UIDS`].
    local_uids: Vec<EntityUID>,
    local_ids: HashMap<EntityUID, UidId>,
    /// The rest of [`MAX_REQUEST_HIERARCHY_STEPS`].
    steps_left: usize,
}

/// The attributes of an entity, in the form of their source.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Attributes<'a> {
    Stored(StoredRecord<'a>),
    Request(&'a Entity),
}

impl<'a> Attributes<'a> {
    pub(in crate::pdp) fn get(self, name: &str) -> Option<Attribute<'a>> {
        match self {
            Self::Stored(record) => record.get(name).map(Attribute::Stored),
            Self::Request(entity) => match entity.get(name)? {
                PartialValue::Value(value) => Some(Attribute::Request(value)),
                PartialValue::Residual(_) => None,
            },
        }
    }
}

/// The value of an attribute, in the form of its source.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Attribute<'a> {
    Stored(Stored<'a>),
    Request(&'a Value),
}

/// An entity of a request, converted to Cedar's type.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct BoundEntity {
    /// The entity, without ancestors.
    pub(in crate::pdp) entity: Entity,
    /// The direct parents.
    pub(in crate::pdp) parents: Vec<EntityUID>,
}

/// An entity of a request in the overlay.
#[derive(Debug)]
struct OverlayEntity<'a> {
    /// The entity, without ancestors.
    entity: Entity,
    uid: UidId,
    parents: Vec<ParentLink<'a>>,
}

impl<'a> Overlay<'a> {
    /// Creates an overlay with these entities of a request, whose uids must be distinct.
    ///
    /// # Errors
    ///
    /// [`OverlayError`] if a request entity is its own ancestor, or if walking the hierarchy takes
    /// too many steps.
    pub(in crate::pdp) fn with_entities(
        store: &'a EntityStore,
        mut entities: Vec<BoundEntity>,
    ) -> Result<Self, OverlayError> {
        let mut overlay = Self {
            store,
            request_entities: Vec::new(),
            index_by_uid: hashbrown::HashMap::new(),
            local_uids: Vec::new(),
            local_ids: HashMap::new(),
            steps_left: MAX_REQUEST_HIERARCHY_STEPS,
        };
        for entity in &mut entities {
            // Sorted, so that of several errors the same one is reported each time.
            entity.parents.sort_unstable();
            entity.parents.dedup();
        }
        let named = entities.iter().flat_map(|BoundEntity { entity, parents }| {
            let uids = std::iter::once(entity.uid()).chain(parents);
            let find_type = |uid: &EntityUID| store.interner.find_type(uid.entity_type());
            uids.map(move |uid| (find_type(uid), uid.eid().as_ref()))
        });
        // INVARIANT: `intern` is called in the order of `named`: an entity, then its parents.
        let mut store_ids = store.interner.find_all(named).into_iter();
        let mut intern = |overlay: &mut Self, uid: &EntityUID| {
            let store_id = store_ids.next().flatten();
            store_id.unwrap_or_else(|| overlay.intern_local(uid))
        };
        for (index, BoundEntity { entity, parents }) in entities.into_iter().enumerate() {
            let uid = intern(&mut overlay, entity.uid());
            let parents = parents
                .iter()
                .map(|parent| ParentLink {
                    parent: intern(&mut overlay, parent),
                    ancestors: None,
                })
                .collect();
            overlay.index_by_uid.insert(uid, index);
            overlay.request_entities.push(OverlayEntity {
                entity,
                uid,
                parents,
            });
        }
        overlay.resolve_ancestors();
        overlay.check_cycles()?;
        Ok(overlay)
    }

    /// Resets the step budget to that of a new request.
    pub(in crate::pdp) fn reset_steps(&mut self) {
        self.steps_left = MAX_REQUEST_HIERARCHY_STEPS;
    }

    /// Returns the id of `uid`; `None` if neither an entity nor a policy names it.
    pub(in crate::pdp) fn find_uid(&self, uid: &EntityUID) -> Option<UidId> {
        let store_id = self.store.interner.find_uid(uid);
        store_id.or_else(|| self.local_ids.get(uid).copied())
    }

    /// Returns the ids of uids as a request names them, and of their types.
    ///
    /// All request entities and their parents have an id. A uid has none if neither an entity nor a
    /// policy names it, and a type if neither a stored entity nor a policy does.
    pub(in crate::pdp) fn find_named<const N: usize>(
        &self,
        uids: [&Uid; N],
    ) -> [(Option<UidId>, Option<TypeId>); N] {
        let interner = &self.store.interner;
        // All are looked up together, as `UidInterner::find_all` explains.
        let mut types = uids
            .map(|uid| interner.find_type_named(&uid.type_name))
            .into_iter();
        let ids = uids.map(|uid| uid.id.as_str());
        let mut store_ids = interner.find_all(types.clone().zip(ids)).into_iter();
        uids.map(|uid| {
            let store_id = store_ids.next().flatten();
            let id = store_id.or_else(|| self.find_local(uid));
            (id, types.next().flatten())
        })
    }

    /// Returns the id of a uid that the store has not interned.
    fn find_local(&self, uid: &Uid) -> Option<UidId> {
        let index = self.local_uids.iter().position(|local| {
            let id: &str = local.eid().as_ref();
            id == uid.id && local.entity_type().to_string() == uid.type_name
        })?;
        Some(UidId(MAX_UIDS + u32::try_from(index).ok()?))
    }

    /// Returns whether there is an entity with this uid, stored or of the request.
    pub(in crate::pdp) fn contains(&self, uid: UidId) -> bool {
        self.request_entity(uid).is_some() || self.store.location(uid).is_some()
    }

    fn request_entity(&self, uid: UidId) -> Option<&OverlayEntity<'a>> {
        let index = self.index_by_uid.get(&uid)?;
        self.request_entities.get(*index)
    }

    /// Returns the attributes of the entity with this uid; `None` if there is no such entity.
    pub(in crate::pdp) fn attributes(&self, uid: UidId) -> Option<Attributes<'_>> {
        match self.request_entity(uid) {
            Some(request) => Some(Attributes::Request(&request.entity)),
            None => {
                let (segment, slot) = self.store.segment_slot(uid)?;
                segment.attributes(slot).map(Attributes::Stored)
            }
        }
    }

    /// Returns the type of the uid with this id, if the store has interned the type.
    pub(in crate::pdp) fn type_of(&self, uid: UidId) -> Option<TypeId> {
        match uid.0.checked_sub(MAX_UIDS) {
            None => Some(self.store.interner.parts(uid).0),
            Some(index) => self.find_type(self.local_uids.get(index as usize)?.entity_type()),
        }
    }

    /// Returns the id of the type `ty`, if a policy or a stored entity names it.
    pub(in crate::pdp) fn find_type(&self, ty: &EntityType) -> Option<TypeId> {
        self.store.interner.find_type(ty)
    }

    pub(in crate::pdp) fn uid(&self, uid: UidId) -> Option<EntityUID> {
        match uid.0.checked_sub(MAX_UIDS) {
            None => Some(self.store.interner.uid(uid)),
            Some(index) => self.local_uids.get(index as usize).cloned(),
        }
    }

    /// Returns the id of `uid`, and gives it one for this request if it has none.
    fn intern_local(&mut self, uid: &EntityUID) -> UidId {
        if let Some(id) = self.find_uid(uid) {
            return id;
        }
        // INVARIANT: a request's message holds far fewer uids than there are ids left.
        let index = u32::try_from(self.local_uids.len()).unwrap_or(u32::MAX - MAX_UIDS);
        let id = UidId(MAX_UIDS + index);
        self.local_uids.push(uid.clone());
        self.local_ids.insert(uid.clone(), id);
        id
    }

    fn is_request_entity(&self, uid: UidId) -> bool {
        self.index_by_uid.contains_key(&uid)
    }

    /// Returns whether a request entity is among these sorted uids.
    fn has_request_entity(&self, uids: &[UidId]) -> bool {
        const MAX_SEARCHES: usize = 16;
        if self.request_entities.len() <= MAX_SEARCHES {
            let mut entities = self.request_entities.iter();
            return entities.any(|entity| uids.binary_search(&entity.uid).is_ok());
        }
        uids.iter().any(|uid| self.is_request_entity(*uid))
    }

    /// Returns the direct parents of an entity.
    ///
    /// A parent's precomputed ancestors are included if no request entity is among them.
    fn parent_links(&self, uid: UidId) -> impl Iterator<Item = ParentLink<'_>> {
        let request = self.request_entity(uid);
        let stored = match request {
            Some(_) => None,
            None => Some(self.store.hierarchy.parent_links(uid)),
        };
        let stored = stored.into_iter().flatten().map(|link| ParentLink {
            ancestors: self.if_unchanged(link.parent, link.ancestors),
            ..link
        });
        let request = request.into_iter().flat_map(|entity| &entity.parents);
        request.copied().chain(stored)
    }

    /// Returns the stored ancestors of `parent`, unless a request entity changes them.
    fn if_unchanged<'s>(
        &self,
        parent: UidId,
        ancestors: Option<&'s [UidId]>,
    ) -> Option<&'s [UidId]> {
        ancestors.filter(|ancestors| {
            !self.is_request_entity(parent) && !self.has_request_entity(ancestors)
        })
    }

    /// Looks up the precomputed ancestors of the request entities' parents.
    fn resolve_ancestors(&mut self) {
        let entities = &self.request_entities;
        let links = || entities.iter().flat_map(|entity| &entity.parents);
        let parents = links().map(|link| link.parent);
        let ancestors = self.store.hierarchy.precomputed_ancestors(parents);
        let ancestors: SmallVec<[_; 16]> = links()
            .zip(ancestors)
            .map(|(link, ancestors)| self.if_unchanged(link.parent, ancestors))
            .collect();
        let entities = &mut self.request_entities;
        let links = entities.iter_mut().flat_map(|entity| &mut entity.parents);
        for (link, ancestors) in links.zip(ancestors) {
            link.ancestors = ancestors;
        }
    }

    /// Returns all ancestors of the entity with this uid, sorted. Some need not exist.
    ///
    /// # Errors
    ///
    /// [`OverlayError`] if the request entities give it more than [`MAX_ANCESTORS`], or if walking
    /// the hierarchy takes too many steps.
    pub(in crate::pdp) fn ancestors(&mut self, uid: UidId) -> Result<Vec<UidId>, OverlayError> {
        if self.request_entities.is_empty() {
            return Ok(self.store.ancestors(uid));
        }
        let mut steps = self.steps_left;
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Ancestors whose own ancestors are not precomputed.
        let mut unexpanded = UidSet::default();
        let mut next = Some(uid);
        let mut expanded = 0;
        while let Some(child) = next {
            for ParentLink { parent, ancestors } in self.parent_links(child) {
                let precomputed = ancestors.unwrap_or_default();
                steps = steps
                    .checked_sub(1 + precomputed.len())
                    .ok_or(OverlayError::TooLarge)?;
                all.push(parent);
                all.extend(precomputed);
                if ancestors.is_none() {
                    unexpanded.insert(parent);
                }
            }
            if unexpanded.len() > MAX_ANCESTORS {
                return Err(self.too_many_ancestors(uid));
            }
            next = unexpanded.get(expanded);
            expanded += 1;
        }
        self.steps_left = steps;
        all.sort_unstable();
        all.dedup();
        if all.len() > MAX_ANCESTORS {
            return Err(self.too_many_ancestors(uid));
        }
        Ok(all)
    }

    /// Returns the error for an entity with too many ancestors.
    ///
    /// A stored entity is not blamed: only the request entities together can give it too many.
    fn too_many_ancestors(&self, uid: UidId) -> OverlayError {
        match (self.index_by_uid.get(&uid), self.uid(uid)) {
            (Some(index), Some(uid)) => {
                OverlayError::Entity(*index, HierarchyError::TooManyAncestors(uid))
            }
            (Some(_) | None, _) => OverlayError::TooLarge,
        }
    }

    /// Returns the entity with this uid as Cedar's type, without ancestors.
    pub(in crate::pdp) fn entity(&self, uid: UidId) -> Option<Entity> {
        match self.request_entity(uid) {
            Some(request) => Some(request.entity.clone()),
            None => self.store.entity(uid, HashSet::new()),
        }
    }

    /// Checks that the hierarchy has no cycle, by a walk up from every request entity.
    ///
    /// Stored entities alone have no cycle, so every cycle passes through a request entity. Each
    /// entity is visited once.
    fn check_cycles(&mut self) -> Result<(), OverlayError> {
        let mut steps = self.steps_left;
        // `false` while the entity is on the path, `true` once all its ancestors were visited.
        let mut done: hashbrown::HashMap<UidId, bool> = hashbrown::HashMap::new();
        for (index, OverlayEntity { uid: root, .. }) in self.request_entities.iter().enumerate() {
            if done.contains_key(root) {
                continue;
            }
            done.insert(*root, false);
            let mut path = vec![(*root, self.parent_links(*root))];
            while let Some((uid, unvisited)) = path.last_mut() {
                let Some(ParentLink { parent, ancestors }) = unvisited.next() else {
                    done.insert(*uid, true);
                    path.pop();
                    continue;
                };
                steps = steps.checked_sub(1).ok_or(OverlayError::TooLarge)?;
                // All ancestors are stored entities.
                if ancestors.is_some() {
                    continue;
                }
                match done.get(&parent) {
                    Some(true) => {}
                    None => {
                        done.insert(parent, false);
                        path.push((parent, self.parent_links(parent)));
                    }
                    Some(false) => {
                        // The error names the first request entity on the cycle.
                        let path = path.iter().map(|(uid, _)| *uid);
                        let cycle = path.skip_while(|uid| *uid != parent);
                        let first = cycle.filter_map(|uid| self.index_by_uid.get(&uid)).min();
                        let uid = self.uid(parent).ok_or(OverlayError::TooLarge)?;
                        let error = HierarchyError::Cycle(uid);
                        return Err(OverlayError::Entity(*first.unwrap_or(&index), error));
                    }
                }
            }
        }
        self.steps_left = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
