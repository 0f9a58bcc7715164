//! The stored entities of a snapshot.
//!
//! Cedar's store holds every entity with all its ancestors as uids, and recomputes all of them when
//! one entity is added. This store holds direct parents as ids and walks up from an entity on
//! demand, so a request pays only for the entities that it touches. The walk is iterative and
//! bounded.

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};

use super::hierarchy::{
    EXPECTED_ANCESTORS, Hierarchy, HierarchyError, MAX_ANCESTORS, ParentLink, UidSet,
};
use super::interner::{UidId, UidInterner};
use super::segment::Segment;

/// Entities processed between two calls of `pause`.
const PAUSE_EACH: usize = 1_000;

/// The stored entities: a segment for each file, and the location of each uid's entity.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct EntityStore {
    pub(in crate::pdp) interner: Arc<UidInterner>,
    pub(super) segments: Vec<Arc<Segment>>,
    /// The location of each entity, by uid id; uids without an entity are at `NOWHERE`.
    pub(super) locations: Vec<Location>,
    pub(super) hierarchy: Arc<Hierarchy>,
}

/// The segment of an entity, and its slot there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct Location {
    pub(in crate::pdp) segment: u32,
    pub(in crate::pdp) slot: u32,
}

impl Location {
    const NOWHERE: Self = Self {
        segment: u32::MAX,
        slot: u32::MAX,
    };

    fn new(segment: u32, slot: usize) -> Self {
        // INVARIANT: a draft rejects files that need larger offsets.
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        Self { segment, slot }
    }
}

/// Two locations that define the same uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct DuplicateUid {
    pub(in crate::pdp) first: Location,
    pub(in crate::pdp) second: Location,
}

impl EntityStore {
    /// Creates the store of `segments`, whose ids are those of `interner`.
    ///
    /// Also returns the uids with two locations; the first location is used. The entities in
    /// `schema_actions` take precedence over all others, which may define them again. `pause` is
    /// called regularly, as in [`Workers`](crate::pdp::Workers).
    pub(in crate::pdp) fn new(
        interner: Arc<UidInterner>,
        segments: Vec<Arc<Segment>>,
        schema_actions: Option<Segment>,
        pause: fn(),
    ) -> (Self, Vec<DuplicateUid>) {
        let mut store = Self {
            locations: vec![Location::NOWHERE; interner.len()],
            interner,
            segments: Vec::with_capacity(segments.len() + 1),
            hierarchy: Arc::default(),
        };
        // INVARIANT: there are at most 100,000 files, so the index after the last is valid.
        let last = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        if let Some(schema_actions) = &schema_actions {
            store.locate(schema_actions, last);
        }
        let mut duplicates = Vec::new();
        for (index, segment) in (0..).zip(segments) {
            pause();
            let found = store.locate(&segment, index).into_iter();
            duplicates.extend(found.filter(|duplicate| duplicate.first.segment != last));
            store.segments.push(segment);
        }
        store.segments.extend(schema_actions.map(Arc::new));
        let parents = store.locations.iter().enumerate().map(|(index, location)| {
            if index % PAUSE_EACH == 0 {
                pause();
            }
            let segment = store.segments.get(location.segment as usize);
            let parents = segment.map(|segment| segment.parents(location.slot as usize));
            parents.into_iter().flatten()
        });
        store.hierarchy = Arc::new(Hierarchy::new(parents));
        (store, duplicates)
    }

    /// Records the locations of a segment's entities, and returns the uids that had one already.
    fn locate(&mut self, segment: &Segment, segment_index: u32) -> Vec<DuplicateUid> {
        let mut duplicates = Vec::new();
        for slot in 0..segment.len() {
            let second = Location::new(segment_index, slot);
            let uid = segment.uid(slot);
            match uid.and_then(|uid| self.locations.get_mut(uid.index())) {
                Some(location) if *location == Location::NOWHERE => *location = second,
                Some(first) => duplicates.push(DuplicateUid {
                    first: *first,
                    second,
                }),
                // INVARIANT: the segment's ids are those of the interner.
                None => {}
            }
        }
        duplicates
    }

    pub(in crate::pdp) fn uid_at(&self, location: Location) -> Option<UidId> {
        self.segments
            .get(location.segment as usize)?
            .uid(location.slot as usize)
    }

    /// Returns the byte offset, in its file, of the entity at `location`.
    pub(in crate::pdp) fn origin(&self, location: Location) -> usize {
        self.segments
            .get(location.segment as usize)
            .map_or(0, |segment| segment.origin(location.slot as usize))
    }

    /// Returns the location of the entity with this uid; `None` if there is no such entity.
    pub(in crate::pdp) fn location(&self, uid: UidId) -> Option<Location> {
        let found = self.locations.get(uid.index()).copied()?;
        (found != Location::NOWHERE).then_some(found)
    }

    /// Returns the segment of the entity with this uid, and its slot there.
    pub(super) fn segment_slot(&self, uid: UidId) -> Option<(&Segment, usize)> {
        let Location { segment, slot } = self.location(uid)?;
        let segment = self.segments.get(segment as usize)?;
        Some((segment, slot as usize))
    }

    /// Returns the uids of all actions that are entities.
    pub(in crate::pdp) fn actions(&self) -> impl Iterator<Item = UidId> + '_ {
        self.interner
            .ids_of_types(|ty| ty.is_action())
            .filter(|uid| self.location(*uid).is_some())
    }

    /// Returns the actions of all segments in order, with their direct parents.
    pub(in crate::pdp) fn stored_actions(&self) -> Vec<(Location, Entity)> {
        let segments = (0..).zip(&self.segments);
        let with_actions = segments.filter(|(_, segment)| segment.has_actions());
        let slots = with_actions.flat_map(|(index, segment)| {
            (0..segment.len()).map(move |slot| (Location::new(index, slot), segment, slot))
        });
        let actions = slots.filter_map(|(location, segment, slot)| {
            let parents = segment.parents(slot);
            let parents = parents.map(|parent| self.interner.uid(parent));
            let entity = segment.entity(slot, &self.interner, parents.collect())?;
            entity.uid().is_action().then_some((location, entity))
        });
        actions.collect()
    }

    pub(in crate::pdp) fn len(&self) -> usize {
        let locations = self.locations.iter();
        locations
            .filter(|location| **location != Location::NOWHERE)
            .count()
    }

    /// Returns the heap memory in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let segments: usize = self.segments.iter().map(|segment| segment.bytes()).sum();
        segments
            + self.interner.bytes()
            + self.locations.capacity() * size_of::<Location>()
            + self.hierarchy.bytes()
    }

    /// Returns whether most interned uids are unused, given how many the policies name.
    pub(in crate::pdp) fn needs_compaction(&self, policy_uids: usize) -> bool {
        const MIN_COMPACTED_UIDS: usize = 10_000;
        let entity_uids: usize = self
            .segments
            .iter()
            .map(|segment| segment.uid_count())
            .sum();
        self.interner.len() > MIN_COMPACTED_UIDS + 2 * (entity_uids + policy_uids)
    }

    /// Returns the direct parents of the entity with this uid. A parent need not exist.
    pub(in crate::pdp) fn parents(&self, uid: UidId) -> impl Iterator<Item = UidId> + '_ {
        self.hierarchy.parents(uid)
    }

    /// Returns the entity with this uid as Cedar's type, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        uid: UidId,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        let (segment, slot) = self.segment_slot(uid)?;
        segment.entity(slot, &self.interner, ancestors)
    }

    /// Returns all ancestors of the entity with this uid, sorted. Some need not exist.
    pub(in crate::pdp) fn ancestors(&self, uid: UidId) -> Vec<UidId> {
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Ancestors whose own ancestors are not precomputed.
        let mut unexpanded = UidSet::default();
        let mut next = Some(uid);
        let mut expanded = 0;
        while let Some(uid) = next {
            for ParentLink { parent, ancestors } in self.hierarchy.parent_links(uid) {
                all.push(parent);
                match ancestors {
                    Some(ancestors) => all.extend(ancestors),
                    None => _ = unexpanded.insert(parent),
                }
            }
            next = unexpanded.get(expanded);
            expanded += 1;
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Shares the checked hierarchy of `other` if both are equal, and returns whether they are.
    ///
    /// The interner of `other` must be an ancestor of this store's.
    pub(in crate::pdp) fn reuse_hierarchy(&mut self, other: &Self) -> bool {
        let has_same_parents = self.hierarchy.has_same_parents(&other.hierarchy);
        if has_same_parents {
            self.hierarchy = Arc::clone(&other.hierarchy);
        }
        has_same_parents
    }

    /// Precomputes ancestors in the hierarchy, which must have passed `check_hierarchy`.
    pub(in crate::pdp) fn close_hierarchy(&mut self) {
        Arc::make_mut(&mut self.hierarchy).compute_closure();
    }

    /// Checks that no entity is its own ancestor, and that none has more than [`MAX_ANCESTORS`].
    ///
    /// Takes one pass over all parents, and one walk up from each entity that may have too many.
    pub(in crate::pdp) fn check_hierarchy(&self) -> Result<(), HierarchyError> {
        let mut bounds = AncestorBounds(vec![AncestorBounds::UNVISITED; self.interner.len()]);
        for segment in &self.segments {
            for root in (0..segment.len()).filter_map(|slot| segment.uid(slot)) {
                if bounds.get(root) == AncestorBounds::UNVISITED {
                    self.check_above(root, &mut bounds)?;
                }
            }
        }
        Ok(())
    }

    /// Checks `root` and all its ancestors that were not visited yet.
    fn check_above(&self, root: UidId, bounds: &mut AncestorBounds) -> Result<(), HierarchyError> {
        bounds.set(root, AncestorBounds::ON_PATH);
        let mut path = vec![(root, self.parents(root))];
        while let Some((uid, unvisited)) = path.last_mut() {
            let uid = *uid;
            if let Some(parent) = unvisited.next() {
                match bounds.get(parent) {
                    AncestorBounds::ON_PATH => {
                        return Err(HierarchyError::Cycle(self.interner.uid(parent)));
                    }
                    AncestorBounds::UNVISITED => {
                        bounds.set(parent, AncestorBounds::ON_PATH);
                        path.push((parent, self.parents(parent)));
                    }
                    _ => {}
                }
                continue;
            }
            path.pop();
            bounds.set(uid, self.ancestor_bound(uid, bounds)?);
        }
        Ok(())
    }

    /// Returns an upper bound of an entity's number of ancestors, given the bounds of its parents.
    fn ancestor_bound(&self, uid: UidId, bounds: &AncestorBounds) -> Result<u32, HierarchyError> {
        let limit = u32::try_from(MAX_ANCESTORS).unwrap_or(AncestorBounds::ON_PATH - 1);
        // The sum counts an ancestor once for each way to it, so it may be too high. Only if it is
        // over the limit are the ancestors counted one by one.
        let sum = self.parents(uid).fold(0_u32, |sum, parent| {
            sum.saturating_add(1).saturating_add(bounds.get(parent))
        });
        if sum <= limit {
            return Ok(sum);
        }
        match u32::try_from(self.ancestors(uid).len()) {
            Ok(count) if count <= limit => Ok(count),
            Ok(_) | Err(_) => Err(HierarchyError::TooManyAncestors(self.interner.uid(uid))),
        }
    }
}

/// Upper bounds of the numbers of ancestors, by uid id.
struct AncestorBounds(Vec<u32>);

impl AncestorBounds {
    /// The mark of an entity that was not visited yet.
    const UNVISITED: u32 = u32::MAX;
    /// The mark of an entity on the path that is being walked.
    const ON_PATH: u32 = u32::MAX - 1;

    fn get(&self, uid: UidId) -> u32 {
        self.0.get(uid.index()).copied().unwrap_or(0)
    }

    fn set(&mut self, uid: UidId, bound: u32) {
        if let Some(entry) = self.0.get_mut(uid.index()) {
            *entry = bound;
        }
    }
}

#[cfg(test)]
pub(in crate::pdp::entities) mod tests;
