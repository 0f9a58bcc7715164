//! Who is in whom: the direct parents of all entities, and what is above those.
//!
//! Going up step by step, each step waits for the memory of the one before. So what is above a
//! parent, all of it, is kept with the parent: entities that have children are a small part of
//! all, and mostly in a few dozen others. Where that is not so, there is the way step by step.

use cedar_policy_core::ast::EntityUID;
use smallvec::SmallVec;

use super::interner::UidId;

/// The most ancestors that one entity may have.
///
/// A policy can ask whether an entity is in any of its ancestors, so each of them can cost a
/// request a step.
pub const MAX_ANCESTORS: usize = 1_000;

/// Why a hierarchy is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum HierarchyError {
    /// The entity is its own ancestor.
    Cycle(EntityUID),
    /// The entity has more than [`MAX_ANCESTORS`].
    TooManyAncestors(EntityUID),
}

/// Room for so many ancestors is made at once.
pub(in crate::pdp) const EXPECTED_ANCESTORS: usize = 64;

/// Uid numbers in the order in which they were found, each once.
#[derive(Debug, Default)]
pub(in crate::pdp) struct UidSet {
    pub(super) order: Vec<UidId>,
    /// Filled once looking through the list would take longer.
    pub(super) set: hashbrown::HashSet<UidId>,
}

impl UidSet {
    pub(super) const FEW: usize = 32;

    /// Adds `uid`; whether it is new.
    pub(super) fn insert(&mut self, uid: UidId) -> bool {
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

    pub(super) fn get(&self, at: usize) -> Option<UidId> {
        self.order.get(at).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn clear(&mut self) {
        self.order.clear();
        self.set.clear();
    }
}

/// What is above an entity is kept if it is no more than this.
const MAX_KEPT_ANCESTORS: usize = 64;

/// All that is kept is no more than so many times the parents there are.
const MAX_KEPT_PER_PARENT: usize = 4;

/// The direct parents of all entities, in one list, so that going up touches little memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Hierarchy {
    /// By uid number, where its parents begin; they end where the next one's begin.
    starts: Vec<u32>,
    parents: Vec<Parent>,
    /// What is above parents: each time how many, and then these, sorted.
    above: Vec<UidId>,
    /// By uid number, where what is above it stands in `above`: for parents that a request names. Each
    /// of `parents` has its own there too, so that going up from a stored entity needs no look here.
    places: Vec<u32>,
}

/// A direct parent, and where all that is above it stands.
#[derive(Clone, Copy, Debug)]
struct Parent {
    uid: UidId,
    above: u32,
}

impl Parent {
    /// What is above it is not kept.
    const UNKNOWN: u32 = u32::MAX;
}

/// A direct parent with all that is above it, sorted, where that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub(super) parent: UidId,
    pub(super) above: Option<&'a [UidId]>,
}

impl Hierarchy {
    /// The hierarchy of entities that have these parents, by uid number.
    pub(super) fn of<P: IntoIterator<Item = UidId>>(
        parents_of: impl ExactSizeIterator<Item = P>,
    ) -> Self {
        let mut starts = Vec::with_capacity(parents_of.len() + 1);
        let mut parents: Vec<Parent> = Vec::with_capacity(parents_of.len());
        // INVARIANT: a parent takes many bytes of its file, and a store's files are far below 2³²
        // times that.
        let offset = |parents: &[Parent]| u32::try_from(parents.len()).unwrap_or(u32::MAX);
        for of_one in parents_of {
            starts.push(offset(&parents));
            parents.extend(of_one.into_iter().map(|uid| Parent {
                uid,
                above: Parent::UNKNOWN,
            }));
        }
        starts.push(offset(&parents));
        parents.shrink_to_fit();
        Self {
            starts,
            parents,
            above: Vec::new(),
            places: Vec::new(),
        }
    }

    fn stored(&self, uid: UidId) -> &[Parent] {
        let at = |index: usize| self.starts.get(index).map(|start| *start as usize);
        match (at(uid.index()), at(uid.index() + 1)) {
            (Some(start), Some(end)) => self.parents.get(start..end).unwrap_or_default(),
            (Some(_) | None, _) => &[],
        }
    }

    /// The direct parents of the entity with this uid, which may exist nowhere.
    pub(super) fn parents(&self, uid: UidId) -> impl Iterator<Item = UidId> + '_ {
        self.stored(uid).iter().map(|parent| parent.uid)
    }

    /// The same, each with what is above it.
    pub(super) fn steps(&self, uid: UidId) -> impl Iterator<Item = Step<'_>> {
        self.stored(uid).iter().map(|Parent { uid, above }| Step {
            parent: *uid,
            above: kept(&self.above, *above),
        })
    }

    /// All that is above each of these entities, sorted: of one that is somebody's parent, where that
    /// is kept.
    ///
    /// As with [`UidInterner::find_all`](crate::pdp::entities::interner::UidInterner), a step is made for each before the next is
    /// made for any.
    pub(super) fn above(
        &self,
        uids: impl Iterator<Item = UidId>,
    ) -> SmallVec<[Option<&[UidId]>; 16]> {
        let places: SmallVec<[Option<u32>; 16]> = uids
            .map(|uid| self.places.get(uid.index()).copied())
            .collect();
        let above = places.into_iter();
        above.map(|place| kept(&self.above, place?)).collect()
    }

    /// Whether all have the same parents in `other`.
    pub(super) fn has_same_parents(&self, other: &Self) -> bool {
        self.starts == other.starts
            && self.parents.len() == other.parents.len()
            && self
                .parents
                .iter()
                .zip(&other.parents)
                .all(|(one, other)| one.uid == other.uid)
    }

    /// Finds out what is above each parent. Nobody may be above himself.
    pub(super) fn close(&mut self) {
        /// Nothing is known of an entity yet.
        const OPEN: u32 = u32::MAX - 1;
        let mut places: Vec<u32> = vec![OPEN; self.starts.len()];
        let mut left = self.parents.len().saturating_mul(MAX_KEPT_PER_PARENT);
        let mut above = Vec::new();
        let mut found: Vec<UidId> = Vec::new();
        let mut path: Vec<UidId> = Vec::new();
        for Parent { uid: root, .. } in &self.parents {
            path.push(*root);
            while let Some(uid) = path.last().copied() {
                let place = |uid: UidId| places.get(uid.index()).copied();
                if place(uid) != Some(OPEN) {
                    path.pop();
                    continue;
                }
                let parents = self.stored(uid);
                let waiting = path.len();
                let is_open = |parent: &&Parent| place(parent.uid) == Some(OPEN);
                path.extend(parents.iter().filter(is_open).map(|parent| parent.uid));
                if path.len() > waiting {
                    continue;
                }
                path.pop();
                let is_kept = above_all(parents, &above, place, &mut found) && found.len() < left;
                let here = match u32::try_from(above.len()) {
                    Ok(here) if is_kept && here < OPEN => here,
                    Ok(_) | Err(_) => Parent::UNKNOWN,
                };
                if here != Parent::UNKNOWN {
                    left -= found.len() + 1;
                    above.push(UidId(u32::try_from(found.len()).unwrap_or(0)));
                    above.extend(&found);
                }
                if let Some(place) = places.get_mut(uid.index()) {
                    *place = here;
                }
            }
        }
        for Parent { uid, above } in &mut self.parents {
            *above = match places.get(uid.index()) {
                Some(&OPEN) | None => Parent::UNKNOWN,
                Some(place) => *place,
            };
        }
        above.shrink_to_fit();
        self.above = above;
        for place in &mut places {
            if *place == OPEN {
                *place = Parent::UNKNOWN;
            }
        }
        self.places = places;
    }

    /// The memory that it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>()
            + self.parents.capacity() * size_of::<Parent>()
            + self.above.capacity() * size_of::<UidId>()
            + self.places.capacity() * size_of::<u32>()
    }
}

/// What stands at `place` in `above`, if anything is kept there.
fn kept(above: &[UidId], place: u32) -> Option<&[UidId]> {
    let (UidId(count), rest) = above.get(place as usize..)?.split_first()?;
    rest.get(..*count as usize)
}

/// Puts into `found`, sorted, all that an entity with these parents is in; whether that is known,
/// and not too much to be kept.
fn above_all(
    parents: &[Parent],
    above: &[UidId],
    place: impl Fn(UidId) -> Option<u32>,
    found: &mut Vec<UidId>,
) -> bool {
    found.clear();
    if parents.len() > MAX_KEPT_ANCESTORS {
        return false;
    }
    for parent in parents {
        found.push(parent.uid);
        match place(parent.uid).and_then(|place| kept(above, place)) {
            Some(above) => found.extend(above),
            None => return false,
        }
    }
    found.sort_unstable();
    found.dedup();
    found.len() <= MAX_KEPT_ANCESTORS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(numbers: &[u32]) -> Vec<UidId> {
        numbers.iter().copied().map(UidId).collect()
    }

    fn closed(parents: &[&[u32]]) -> Hierarchy {
        let mut hierarchy = Hierarchy::of(parents.iter().map(|of_one| uids(of_one)));
        hierarchy.close();
        hierarchy
    }

    #[test]
    fn what_is_above_a_parent_is_kept_with_it() {
        // 5 is a parent that exists nowhere.
        let hierarchy = closed(&[&[1, 2], &[3], &[3, 4], &[5], &[], &[]]);
        let steps = |uid| -> Vec<_> {
            let steps = hierarchy.steps(UidId(uid));
            steps
                .map(|step| (step.parent.0, step.above.map(<[UidId]>::to_vec)))
                .collect()
        };
        let above = |numbers| Some(uids(numbers));
        assert_eq!(steps(0), [(1, above(&[3, 5])), (2, above(&[3, 4, 5]))]);
        // Nobody is in 0, and nobody is called 77.
        let found = hierarchy.above(uids(&[3, 0, 2, 77]).into_iter());
        let found: Vec<_> = found.iter().map(|above| above.map(<[_]>::to_vec)).collect();
        assert_eq!(found, [above(&[5]), None, above(&[3, 4, 5]), None]);
        assert_eq!(steps(3), [(5, above(&[]))]);
        assert_eq!(steps(5), []);
        assert_eq!(steps(77), []);
        assert!(
            hierarchy.has_same_parents(&Hierarchy::of(
                [
                    uids(&[1, 2]),
                    uids(&[3]),
                    uids(&[3, 4]),
                    uids(&[5]),
                    vec![],
                    vec![]
                ]
                .into_iter()
            ))
        );
    }

    #[test]
    fn what_is_too_much_is_not_kept_and_nothing_that_rests_on_it() {
        // A chain downwards from 0: the entity `n` is in all before it. And many that are in 0.
        let chain = (0..200).map(|n: u32| n.checked_sub(1).map(UidId));
        let chain: Vec<Option<UidId>> = chain.chain([Some(UidId(0)); 1_000]).collect();
        let mut hierarchy = Hierarchy::of(chain.into_iter());
        hierarchy.close();
        let above = |uid: u32| {
            let step = hierarchy.steps(UidId(uid)).next().unwrap();
            step.above.map(<[UidId]>::len)
        };
        assert_eq!(above(65), Some(64));
        assert_eq!(above(66), None);
        assert_eq!(above(199), None);
    }

    #[test]
    fn all_that_is_kept_is_little_beside_the_parents() {
        // Many entities, each in the last of a chain of its own: as much above as parents.
        let wide: Vec<Vec<UidId>> = (0..10_000)
            .map(|n: u32| match n % 50 {
                0 => vec![],
                _ => vec![UidId(n - 1)],
            })
            .collect();
        let mut hierarchy = Hierarchy::of(wide.into_iter());
        hierarchy.close();
        let most = hierarchy.parents.len() * MAX_KEPT_PER_PARENT;
        assert!(hierarchy.above.len() <= most, "{}", hierarchy.above.len());
        assert!(hierarchy.above.len() > most / 2);
    }
}
