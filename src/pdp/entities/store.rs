//! The stored entities, and what a request's own entities change in them.
//!
//! Cedar's store holds every entity with all its ancestors as uids, and recomputes them all when
//! one entity joins. This one holds direct parents as numbers and goes up from an entity when it is
//! asked: what a request costs depends on the entities that it touches. Going up is iterative and
//! bounded.

use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID};

use super::hierarchy::{
    EXPECTED_ANCESTORS, Hierarchy, HierarchyError, MAX_ANCESTORS, Step, UidSet,
};
use super::interner::{UidId, UidInterner};
use super::segment::Segment;

/// So many entities are put in their places between two pauses.
const PAUSE_EACH: usize = 1_000;

/// The stored entities: the segments of their files, and where in them each uid stands.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct EntityStore {
    pub(in crate::pdp) interner: Arc<UidInterner>,
    pub(super) segments: Vec<Arc<Segment>>,
    /// By uid number; uids that are only named stand nowhere.
    pub(super) locations: Vec<Location>,
    pub(super) hierarchy: Arc<Hierarchy>,
}

/// Where an entity stands.
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
}

/// Two places that define one uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) struct DuplicateUid {
    pub(in crate::pdp) first: Location,
    pub(in crate::pdp) second: Location,
}

impl EntityStore {
    /// The store of `segments`, whose numbers are those of `interner`; and which uids stand in two
    /// places, of which the first counts.
    ///
    /// `supplied` come before all others, and may stand among those again: they are what the
    /// schema says of actions. `pause` is called every so often, as it is in
    /// [`Workers`](crate::pdp::Workers).
    pub(in crate::pdp) fn new(
        interner: Arc<UidInterner>,
        segments: Vec<Arc<Segment>>,
        supplied: Option<Segment>,
        pause: fn(),
    ) -> (Self, Vec<DuplicateUid>) {
        let mut store = Self {
            locations: vec![Location::NOWHERE; interner.len()],
            interner,
            segments: Vec::with_capacity(segments.len() + 1),
            hierarchy: Arc::default(),
        };
        // INVARIANT: there are at most 100,000 files, so the number after the last is one.
        let last = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        if let Some(supplied) = &supplied {
            store.place(supplied, last);
        }
        let mut twice = Vec::new();
        for (number, segment) in (0..).zip(segments) {
            pause();
            let found = store.place(&segment, number);
            twice.extend(
                found
                    .into_iter()
                    .filter(|twice| twice.first.segment != last),
            );
            store.segments.push(segment);
        }
        store.segments.extend(supplied.map(Arc::new));
        let parents = store
            .locations
            .iter()
            .enumerate()
            .map(|(number, location)| {
                if number % PAUSE_EACH == 0 {
                    pause();
                }
                let segment = store.segments.get(location.segment as usize);
                let parents = segment.map(|segment| segment.parents(location.slot as usize));
                parents.into_iter().flatten()
            });
        store.hierarchy = Arc::new(Hierarchy::of(parents));
        (store, twice)
    }

    pub(super) fn place(&mut self, segment: &Segment, number: u32) -> Vec<DuplicateUid> {
        let mut twice = Vec::new();
        for slot in 0..segment.len() {
            let here = Location {
                segment: number,
                // INVARIANT: a draft refuses what has no 32-bit offset.
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
            };
            let location = segment
                .uid(slot)
                .and_then(|uid| self.locations.get_mut(uid.index()));
            match location {
                Some(location) if *location == Location::NOWHERE => *location = here,
                Some(first) => twice.push(DuplicateUid {
                    first: *first,
                    second: here,
                }),
                // INVARIANT: the segment's numbers are those of the table.
                None => {}
            }
        }
        twice
    }

    /// The uid of the entity that stands here.
    pub(in crate::pdp) fn uid_at(&self, location: Location) -> Option<UidId> {
        self.segments
            .get(location.segment as usize)?
            .uid(location.slot as usize)
    }

    /// The first byte, in its file, of the entity that stands here.
    pub(in crate::pdp) fn origin(&self, location: Location) -> usize {
        self.segments
            .get(location.segment as usize)
            .map_or(0, |segment| segment.origin(location.slot as usize))
    }

    /// Where the entity with this uid stands.
    pub(in crate::pdp) fn location(&self, uid: UidId) -> Option<Location> {
        let found = self.locations.get(uid.index()).copied()?;
        (found != Location::NOWHERE).then_some(found)
    }

    pub(super) fn place_of(&self, uid: UidId) -> Option<(&Segment, usize)> {
        let Location { segment, slot } = self.location(uid)?;
        let segment = self.segments.get(segment as usize)?;
        Some((segment, slot as usize))
    }

    /// The uids of all actions that are entities.
    pub(in crate::pdp) fn actions(&self) -> impl Iterator<Item = UidId> + '_ {
        self.interner
            .ids_of_types(|ty| ty.is_action())
            .filter(|number| self.location(*number).is_some())
    }

    /// The actions that stand in the segments, in order, with their direct parents.
    pub(in crate::pdp) fn stored_actions(&self) -> Vec<(Location, Entity)> {
        let mut found = Vec::new();
        let segments = (0..).zip(&self.segments);
        for (number, segment) in segments.filter(|(_, segment)| segment.has_actions()) {
            for slot in 0..segment.len() {
                let parents = segment
                    .parents(slot)
                    .map(|parent| self.interner.uid(parent));
                let here = Location {
                    segment: number,
                    // INVARIANT: a draft refuses what has no 32-bit offset.
                    slot: u32::try_from(slot).unwrap_or(u32::MAX),
                };
                let entity = segment.entity(slot, &self.interner, parents.collect());
                found.extend(
                    entity
                        .filter(|entity| entity.uid().is_action())
                        .map(|entity| (here, entity)),
                );
            }
        }
        found
    }

    /// How many entities there are.
    pub(in crate::pdp) fn len(&self) -> usize {
        let placed = self.locations.iter();
        placed
            .filter(|location| **location != Location::NOWHERE)
            .count()
    }

    /// The memory that it holds, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let segments: usize = self.segments.iter().map(|segment| segment.bytes()).sum();
        segments
            + self.interner.bytes()
            + self.locations.capacity() * size_of::<Location>()
            + self.hierarchy.bytes()
    }

    /// Whether much of the uid table is left over from what is gone, `by_policies` being how many
    /// uids policies name.
    pub(in crate::pdp) fn needs_compaction(&self, by_policies: usize) -> bool {
        const MIN_COMPACTED_UIDS: usize = 10_000;
        let by_entities: usize = self
            .segments
            .iter()
            .map(|segment| segment.uid_count())
            .sum();
        self.interner.len() > MIN_COMPACTED_UIDS + 2 * (by_entities + by_policies)
    }

    /// The direct parents of the entity with this uid, which may exist nowhere.
    pub(in crate::pdp) fn parents(&self, uid: UidId) -> impl Iterator<Item = UidId> + '_ {
        self.hierarchy.parents(uid)
    }

    /// The entity with this uid as Cedar holds it, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        uid: UidId,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        let (segment, slot) = self.place_of(uid)?;
        segment.entity(slot, &self.interner, ancestors)
    }

    /// All ancestors of the entity with this uid, those that exist nowhere too, sorted.
    pub(in crate::pdp) fn ancestors(&self, uid: UidId) -> Vec<UidId> {
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Those whose own ancestors are not kept with their children.
        let mut ahead = UidSet::default();
        let mut next = Some(uid);
        let mut done = 0;
        while let Some(uid) = next {
            for Step { parent, above } in self.hierarchy.steps(uid) {
                all.push(parent);
                match above {
                    Some(above) => all.extend(above),
                    None => _ = ahead.insert(parent),
                }
            }
            next = ahead.get(done);
            done += 1;
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Adds all ancestors to `found`, or stops when there are more than `most`.
    pub(super) fn collect_ancestors(&self, uid: UidId, found: &mut UidSet, most: usize) {
        let mut next = Some(uid);
        let mut done = 0;
        while let Some(uid) = next {
            for parent in self.parents(uid) {
                found.insert(parent);
                if found.len() > most {
                    return;
                }
            }
            next = found.get(done);
            done += 1;
        }
    }

    /// Takes over the hierarchy of `other`, which was checked, if it is the very same; the numbers
    /// of both must be of one line. Whether it is.
    pub(in crate::pdp) fn reuse_hierarchy(&mut self, other: &Self) -> bool {
        let has_same_parents = self.hierarchy.has_same_parents(&other.hierarchy);
        if has_same_parents {
            self.hierarchy = Arc::clone(&other.hierarchy);
        }
        has_same_parents
    }

    /// Makes the hierarchy, which was checked, fast to go up.
    pub(in crate::pdp) fn close_hierarchy(&mut self) {
        Arc::make_mut(&mut self.hierarchy).close();
    }

    /// Checks that no entity is its own ancestor and that none has more than [`MAX_ANCESTORS`].
    ///
    /// Takes one pass over all parents, and for an entity that may have too many one way up.
    pub(in crate::pdp) fn check_hierarchy(&self) -> Result<(), HierarchyError> {
        /// What is known of an entity: nothing yet, that it is on the way up from here, or a
        /// number that its ancestors do not exceed.
        const UNKNOWN: u32 = u32::MAX;
        const OPEN: u32 = u32::MAX - 1;
        let mut bounds: Vec<u32> = vec![UNKNOWN; self.interner.len()];
        let bound = |bounds: &[u32], uid: UidId| bounds.get(uid.index()).copied().unwrap_or(0);
        let set = |bounds: &mut [u32], uid: UidId, to: u32| {
            if let Some(bound) = bounds.get_mut(uid.index()) {
                *bound = to;
            }
        };
        let most = u32::try_from(MAX_ANCESTORS).unwrap_or(OPEN - 1);
        let mut found = UidSet::default();
        for segment in &self.segments {
            for root in (0..segment.len()).filter_map(|slot| segment.uid(slot)) {
                if bound(&bounds, root) != UNKNOWN {
                    continue;
                }
                set(&mut bounds, root, OPEN);
                let mut path = vec![(root, self.parents(root))];
                while let Some((uid, unvisited)) = path.last_mut() {
                    let uid = *uid;
                    if let Some(parent) = unvisited.next() {
                        match bound(&bounds, parent) {
                            OPEN => return Err(HierarchyError::Cycle(self.interner.uid(parent))),
                            UNKNOWN => {
                                set(&mut bounds, parent, OPEN);
                                path.push((parent, self.parents(parent)));
                            }
                            _ => {}
                        }
                        continue;
                    }
                    path.pop();
                    // Ancestors that are reached two ways are counted twice here, so this may be
                    // too much; only then are they counted one by one.
                    let mut at_most = self.parents(uid).fold(0_u32, |sum, parent| {
                        sum.saturating_add(1).saturating_add(bound(&bounds, parent))
                    });
                    if at_most > most {
                        found.clear();
                        self.collect_ancestors(uid, &mut found, MAX_ANCESTORS);
                        if found.len() > MAX_ANCESTORS {
                            return Err(HierarchyError::TooManyAncestors(self.interner.uid(uid)));
                        }
                        at_most = u32::try_from(found.len()).unwrap_or(most);
                    }
                    set(&mut bounds, uid, at_most);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
