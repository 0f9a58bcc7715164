//! The stored entities, and what a request's own entities change in them.
//!
//! Cedar's store holds every entity with all its ancestors as uids, and recomputes them all when
//! one entity joins. This one holds direct parents as numbers and goes up from an entity when it is
//! asked: what a request costs depends on the entities that it touches. Going up is iterative and
//! bounded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityType, EntityUID, PartialValue, Value};
use smallvec::SmallVec;

use super::hierarchy::{Hierarchy, Step};
use super::interner::{MOST_UIDS, TypeNumber, UidNumber, Uids};
use super::segment::{Segment, Stored, StoredRecord};
use crate::pdp::query::Uid;

/// The most ancestors that one entity may have.
///
/// A policy can ask whether an entity is in any of its ancestors, so each of them can cost a
/// request a step.
pub const MAX_ANCESTORS: usize = 1_000;

/// The most steps from an entity to a parent that one request's own entities may cause.
///
/// A request within the limits of its size can still send a hierarchy whose closure costs the
/// cube of it; a request that brings a thousand entities with fifty ancestors each takes a
/// hundred thousand steps.
pub const MAX_REQUEST_HIERARCHY_STEPS: usize = 200_000;

/// So many entities are put in their places between two pauses.
const PAUSE_EACH: usize = 1_000;

/// Why a request's entities cannot join the stored ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum OverlayError {
    /// The fault lies with the entity of this index.
    Entity(usize, HierarchyError),
    /// All together take more than [`MAX_REQUEST_HIERARCHY_STEPS`].
    TooLarge,
}

/// Why a hierarchy is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum HierarchyError {
    /// The entity is its own ancestor.
    Cycle(EntityUID),
    /// The entity has more than [`MAX_ANCESTORS`].
    TooManyAncestors(EntityUID),
}

/// The stored entities: the segments of their files, and where in them each uid stands.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct EntityStore {
    pub(in crate::pdp) uids: Arc<Uids>,
    segments: Vec<Arc<Segment>>,
    /// By uid number; uids that are only named stand nowhere.
    locations: Vec<Location>,
    hierarchy: Arc<Hierarchy>,
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
pub(in crate::pdp) struct Twice {
    pub(in crate::pdp) first: Location,
    pub(in crate::pdp) second: Location,
}

impl EntityStore {
    /// The store of `segments`, whose numbers are those of `uids`; and which uids stand in two
    /// places, of which the first counts.
    ///
    /// `supplied` come before all others, and may stand among those again: they are what the
    /// schema says of actions. `pause` is called every so often, as it is in
    /// [`Workers`](crate::pdp::Workers).
    pub(in crate::pdp) fn new(
        uids: Arc<Uids>,
        segments: Vec<Arc<Segment>>,
        supplied: Option<Segment>,
        pause: fn(),
    ) -> (Self, Vec<Twice>) {
        let mut store = Self {
            locations: vec![Location::NOWHERE; uids.len()],
            uids,
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

    fn place(&mut self, segment: &Segment, number: u32) -> Vec<Twice> {
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
                Some(first) => twice.push(Twice {
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
    pub(in crate::pdp) fn uid_at(&self, location: Location) -> Option<UidNumber> {
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
    pub(in crate::pdp) fn location(&self, uid: UidNumber) -> Option<Location> {
        let found = self.locations.get(uid.index()).copied()?;
        (found != Location::NOWHERE).then_some(found)
    }

    fn place_of(&self, uid: UidNumber) -> Option<(&Segment, usize)> {
        let Location { segment, slot } = self.location(uid)?;
        let segment = self.segments.get(segment as usize)?;
        Some((segment, slot as usize))
    }

    /// The uids of all actions that are entities.
    pub(in crate::pdp) fn actions(&self) -> impl Iterator<Item = UidNumber> + '_ {
        self.uids
            .numbers_of(|ty| ty.is_action())
            .filter(|number| self.location(*number).is_some())
    }

    /// The actions that stand in the segments, in order, with their direct parents.
    pub(in crate::pdp) fn stored_actions(&self) -> Vec<(Location, Entity)> {
        let mut found = Vec::new();
        let segments = (0..).zip(&self.segments);
        for (number, segment) in segments.filter(|(_, segment)| segment.has_actions()) {
            for slot in 0..segment.len() {
                let parents = segment.parents(slot).map(|parent| self.uids.uid(parent));
                let here = Location {
                    segment: number,
                    // INVARIANT: a draft refuses what has no 32-bit offset.
                    slot: u32::try_from(slot).unwrap_or(u32::MAX),
                };
                let entity = segment.entity(slot, &self.uids, parents.collect());
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
            + self.uids.bytes()
            + self.locations.capacity() * size_of::<Location>()
            + self.hierarchy.bytes()
    }

    /// Whether much of the uid table is left over from what is gone, `by_policies` being how many
    /// uids policies name.
    pub(in crate::pdp) fn is_littered(&self, by_policies: usize) -> bool {
        const KEPT_ANYWAY: usize = 10_000;
        let by_entities: usize = self.segments.iter().map(|segment| segment.named()).sum();
        self.uids.len() > KEPT_ANYWAY + 2 * (by_entities + by_policies)
    }

    /// The direct parents of the entity with this uid, which may exist nowhere.
    pub(in crate::pdp) fn parents(&self, uid: UidNumber) -> impl Iterator<Item = UidNumber> + '_ {
        self.hierarchy.parents(uid)
    }

    /// The entity with this uid as Cedar holds it, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        uid: UidNumber,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        let (segment, slot) = self.place_of(uid)?;
        segment.entity(slot, &self.uids, ancestors)
    }

    /// All ancestors of the entity with this uid, those that exist nowhere too, sorted.
    pub(in crate::pdp) fn ancestors(&self, uid: UidNumber) -> Vec<UidNumber> {
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Those whose own ancestors are not kept with their children.
        let mut ahead = Found::default();
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
    fn ascend(&self, uid: UidNumber, found: &mut Found, most: usize) {
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
    pub(in crate::pdp) fn takes_hierarchy_of(&mut self, other: &Self) -> bool {
        let is_like = self.hierarchy.is_like(&other.hierarchy);
        if is_like {
            self.hierarchy = Arc::clone(&other.hierarchy);
        }
        is_like
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
        let mut bounds: Vec<u32> = vec![UNKNOWN; self.uids.len()];
        let bound = |bounds: &[u32], uid: UidNumber| bounds.get(uid.index()).copied().unwrap_or(0);
        let set = |bounds: &mut [u32], uid: UidNumber, to: u32| {
            if let Some(bound) = bounds.get_mut(uid.index()) {
                *bound = to;
            }
        };
        let most = u32::try_from(MAX_ANCESTORS).unwrap_or(OPEN - 1);
        let mut found = Found::default();
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
                            OPEN => return Err(HierarchyError::Cycle(self.uids.uid(parent))),
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
                        self.ascend(uid, &mut found, MAX_ANCESTORS);
                        if found.len() > MAX_ANCESTORS {
                            return Err(HierarchyError::TooManyAncestors(self.uids.uid(uid)));
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

/// Room for so many ancestors is made at once.
const EXPECTED_ANCESTORS: usize = 64;

/// Uid numbers in the order in which they were found, each once.
#[derive(Debug, Default)]
struct Found {
    order: Vec<UidNumber>,
    /// Filled once looking through the list would take longer.
    set: hashbrown::HashSet<UidNumber>,
}

impl Found {
    const FEW: usize = 32;

    /// Adds `uid`; whether it is new.
    fn insert(&mut self, uid: UidNumber) -> bool {
        if self.order.len() < Self::FEW {
            if self.order.contains(&uid) {
                return false;
            }
        } else {
            if self.set.is_empty() {
                self.set.extend(&self.order);
            }
            if !self.set.insert(uid) {
                return false;
            }
        }
        self.order.push(uid);
        true
    }

    fn get(&self, at: usize) -> Option<UidNumber> {
        self.order.get(at).copied()
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    fn clear(&mut self) {
        self.order.clear();
        self.set.clear();
    }
}

/// The stored entities with a request's own before them: the union that the contract speaks of.
///
/// A sent entity replaces the stored one of its uid, for its descendants too. Uids that the store
/// has no number for get numbers here, for as long as the request is decided.
#[derive(Debug)]
pub(in crate::pdp) struct View<'a> {
    store: &'a EntityStore,
    sent: Vec<Sent<'a>>,
    by_number: hashbrown::HashMap<UidNumber, usize>,
    others: Vec<EntityUID>,
    other_numbers: HashMap<EntityUID, UidNumber>,
    steps_left: usize,
}

/// What a uid has numbers of.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Numbers {
    /// Its own; a uid without one is no entity's, and no policy names it.
    pub(in crate::pdp) uid: Option<UidNumber>,
    /// That of its type, if a policy or a stored entity names it.
    pub(in crate::pdp) ty: Option<TypeNumber>,
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
pub(in crate::pdp) struct Brought {
    /// Without ancestors.
    pub(in crate::pdp) entity: Entity,
    /// The direct ones.
    pub(in crate::pdp) parents: Vec<EntityUID>,
}

/// An entity that a request brings, among the others.
#[derive(Debug)]
struct Sent<'a> {
    /// Without ancestors.
    entity: Entity,
    number: UidNumber,
    parents: Vec<Step<'a>>,
}

impl<'a> View<'a> {
    /// The stored entities alone.
    pub(in crate::pdp) fn of(store: &'a EntityStore) -> Self {
        Self {
            store,
            sent: Vec::new(),
            by_number: hashbrown::HashMap::new(),
            others: Vec::new(),
            other_numbers: HashMap::new(),
            steps_left: MAX_REQUEST_HIERARCHY_STEPS,
        }
    }

    /// The stored entities with `sent` before them, no two of which have one uid.
    ///
    /// # Errors
    ///
    /// [`OverlayError`] when a sent entity is its own ancestor, or following the hierarchy takes
    /// too many steps.
    pub(in crate::pdp) fn with_sent(
        store: &'a EntityStore,
        mut sent: Vec<Brought>,
    ) -> Result<Self, OverlayError> {
        let mut view = Self::of(store);
        for brought in &mut sent {
            // In order, so that of several faults the same is told each time.
            brought.parents.sort_unstable();
            brought.parents.dedup();
        }
        let named = sent.iter().flat_map(|Brought { entity, parents }| {
            let uids = std::iter::once(entity.uid()).chain(parents);
            uids.map(|uid| {
                (
                    store.uids.type_number_of(uid.entity_type()),
                    uid.eid().as_ref(),
                )
            })
        });
        let mut numbers = store.uids.numbers(named).into_iter();
        let mut number = |view: &mut Self, uid: &EntityUID| {
            let stored = numbers.next().flatten();
            stored.unwrap_or_else(|| view.add(uid))
        };
        for (index, Brought { entity, parents }) in sent.into_iter().enumerate() {
            let own = number(&mut view, entity.uid());
            let parents = parents
                .iter()
                .map(|parent| Step {
                    parent: number(&mut view, parent),
                    above: None,
                })
                .collect();
            view.by_number.insert(own, index);
            view.sent.push(Sent {
                entity,
                number: own,
                parents,
            });
        }
        view.look_up();
        view.check_cycles()?;
        Ok(view)
    }

    /// Whether the request brings entities.
    pub(in crate::pdp) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Lets as many steps be taken once more as a request may.
    pub(in crate::pdp) fn renew_steps(&mut self) {
        self.steps_left = MAX_REQUEST_HIERARCHY_STEPS;
    }

    /// The number of `uid`: a uid without one is no entity's, and no policy names it.
    pub(in crate::pdp) fn number(&self, uid: &EntityUID) -> Option<UidNumber> {
        let stored = self.store.uids.number_of_uid(uid);
        stored.or_else(|| self.other_numbers.get(uid).copied())
    }

    /// The numbers of uids as a request names them. Whatever a sent entity is called or is in has
    /// been given one.
    pub(in crate::pdp) fn numbers_of<const N: usize>(&self, uids: [&Uid; N]) -> [Numbers; N] {
        // All before anything is done with one, as in `Uids::numbers`.
        let types = uids.map(|uid| self.store.uids.type_number(&uid.type_name));
        let ids = uids.map(|uid| uid.id.as_str());
        let mut stored = self
            .store
            .uids
            .numbers(types.into_iter().zip(ids))
            .into_iter();
        let mut types = types.into_iter();
        uids.map(|uid| Numbers {
            uid: stored.next().flatten().or_else(|| self.other(uid)),
            ty: types.next().flatten(),
        })
    }

    /// The number of a uid that the store has none for.
    fn other(&self, uid: &Uid) -> Option<UidNumber> {
        let other = self.others.iter().position(|other| {
            let id: &str = other.eid().as_ref();
            id == uid.id && other.entity_type().to_string() == uid.type_name
        })?;
        Some(UidNumber(MOST_UIDS + u32::try_from(other).ok()?))
    }

    /// The attributes of the entity with this uid; `None` when there is no such entity.
    pub(in crate::pdp) fn attributes(&self, uid: UidNumber) -> Option<Attributes<'_>> {
        match self.by_number.get(&uid).and_then(|at| self.sent.get(*at)) {
            Some(sent) => Some(Attributes::Sent(&sent.entity)),
            None => {
                let (segment, slot) = self.store.place_of(uid)?;
                segment.attributes(slot).map(Attributes::Stored)
            }
        }
    }

    /// The number of the type of the uid with this number, if it has one.
    pub(in crate::pdp) fn type_of(&self, uid: UidNumber) -> Option<TypeNumber> {
        let other = uid.0.checked_sub(MOST_UIDS);
        match other.and_then(|other| self.others.get(other as usize)) {
            Some(uid) => self.type_number_of(uid.entity_type()),
            None => {
                let (ty, _) = self.store.uids.parts(uid);
                Some(ty)
            }
        }
    }

    /// The number of the type `ty`, if a policy or a stored entity names it.
    pub(in crate::pdp) fn type_number_of(&self, ty: &EntityType) -> Option<TypeNumber> {
        self.store.uids.type_number_of(ty)
    }

    /// The uid with this number.
    pub(in crate::pdp) fn uid(&self, number: UidNumber) -> Option<EntityUID> {
        match number.0.checked_sub(MOST_UIDS) {
            None => Some(self.store.uids.uid(number)),
            Some(other) => self.others.get(other as usize).cloned(),
        }
    }

    fn add(&mut self, uid: &EntityUID) -> UidNumber {
        if let Some(number) = self.number(uid) {
            return number;
        }
        // INVARIANT: a request's message holds far fewer uids than there are numbers left.
        let other = u32::try_from(self.others.len()).unwrap_or(u32::MAX - MOST_UIDS);
        let number = UidNumber(MOST_UIDS + other);
        self.others.push(uid.clone());
        self.other_numbers.insert(uid.clone(), number);
        number
    }

    fn is_sent(&self, uid: UidNumber) -> bool {
        self.by_number.contains_key(&uid)
    }

    /// Whether an entity with one of these uids, which are sorted, is sent.
    fn is_any_sent(&self, uids: &[UidNumber]) -> bool {
        const FEW: usize = 16;
        if self.sent.len() <= FEW {
            let mut sent = self.sent.iter();
            return sent.any(|sent| uids.binary_search(&sent.number).is_ok());
        }
        uids.iter().any(|uid| self.is_sent(*uid))
    }

    /// The parents of an entity, each with all that is above it where that is known and is as the
    /// store says: where no sent entity is among them.
    fn steps(&self, uid: UidNumber) -> impl Iterator<Item = Step<'_>> {
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
    fn unchanged<'s>(
        &self,
        parent: UidNumber,
        above: Option<&'s [UidNumber]>,
    ) -> Option<&'s [UidNumber]> {
        above.filter(|above| !self.is_sent(parent) && !self.is_any_sent(above))
    }

    /// Finds what is above the parents of the sent entities.
    fn look_up(&mut self) {
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
    pub(in crate::pdp) fn ancestors(
        &mut self,
        uid: UidNumber,
    ) -> Result<Vec<UidNumber>, OverlayError> {
        if !self.has_sent() {
            return Ok(self.store.ancestors(uid));
        }
        let mut steps = self.steps_left;
        let mut all = Vec::with_capacity(EXPECTED_ANCESTORS);
        // Those whose own ancestors are not known beforehand.
        let mut ahead = Found::default();
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
    fn too_many_ancestors(&self, uid: UidNumber) -> OverlayError {
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
        uid: UidNumber,
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
        let mut done: hashbrown::HashMap<UidNumber, bool> = hashbrown::HashMap::new();
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

#[cfg(test)]
mod tests;
