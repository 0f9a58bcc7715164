//! The entity hierarchy: the direct parents of all entities, and the parents' ancestors.
//!
//! A walk up the hierarchy waits for memory at every level. So the ancestors of each parent are
//! precomputed and stored with it: few entities are parents, and most of those have a few dozen
//! ancestors. A parent with too many has no list, and the walk continues from it level by level.

use cedar_policy_core::ast::EntityUID;
use smallvec::SmallVec;

use super::interner::UidId;

/// Most ancestors that one entity may have.
///
/// A policy can test an entity against any of its ancestors, so each ancestor can cost a request
/// one step.
pub const MAX_ANCESTORS: usize = 1_000;

/// An error that makes a hierarchy invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum HierarchyError {
    /// The entity is its own ancestor.
    Cycle(EntityUID),
    /// The entity has more than [`MAX_ANCESTORS`] ancestors.
    TooManyAncestors(EntityUID),
}

/// Initial capacity of a list of ancestors.
pub(in crate::pdp) const EXPECTED_ANCESTORS: usize = 64;

/// An insertion-ordered set of uid ids.
#[derive(Debug, Default)]
pub(in crate::pdp) struct UidSet {
    order: Vec<UidId>,
    /// Filled only once `order` is too long for a linear search.
    set: hashbrown::HashSet<UidId>,
}

impl UidSet {
    /// Longest list that is searched linearly.
    const MAX_LINEAR: usize = 32;

    /// Adds `uid`, and returns whether it is new.
    pub(super) fn insert(&mut self, uid: UidId) -> bool {
        if self.order.len() < Self::MAX_LINEAR {
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

    pub(super) fn get(&self, index: usize) -> Option<UidId> {
        self.order.get(index).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

/// Most ancestors that are precomputed for one parent.
const MAX_STORED_ANCESTORS: usize = 64;

/// Bound on all precomputed lists together, as a multiple of the number of parent edges.
const MAX_STORED_PER_PARENT: usize = 4;

/// The direct parents of all entities, in one array, so that a walk up touches little memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Hierarchy {
    /// The offset of each uid's parents in `parents`, by uid id; they end where the next begin.
    starts: Vec<u32>,
    parents: Vec<Parent>,
    /// The precomputed ancestors of parents. Each list is its length, then its members, sorted.
    ancestor_lists: Vec<UidId>,
    /// The offset of each parent's list in `ancestor_lists`, by uid id, for parents that a request
    /// names. The entries of `parents` repeat it, so a walk up from a stored entity skips this.
    list_offsets: Vec<u32>,
}

/// A direct parent, with the offset of its list of ancestors.
#[derive(Clone, Copy, Debug)]
struct Parent {
    uid: UidId,
    list_offset: u32,
}

impl Parent {
    /// The offset of a parent whose ancestors are not precomputed.
    const NO_LIST: u32 = u32::MAX;
}

/// A direct parent, with its own ancestors if they are precomputed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParentLink<'a> {
    pub(super) parent: UidId,
    /// All ancestors of `parent`, sorted.
    pub(super) ancestors: Option<&'a [UidId]>,
}

impl Hierarchy {
    /// Creates the hierarchy of entities with these parents, given in the order of uid ids.
    pub(super) fn new<P: IntoIterator<Item = UidId>>(
        parents_of: impl ExactSizeIterator<Item = P>,
    ) -> Self {
        let mut starts = Vec::with_capacity(parents_of.len() + 1);
        let mut parents: Vec<Parent> = Vec::with_capacity(parents_of.len());
        // INVARIANT: a parent takes many bytes of its file, and a store's files are far below 2³²
        // times that.
        let offset = |parents: &[Parent]| u32::try_from(parents.len()).unwrap_or(u32::MAX);
        for entity_parents in parents_of {
            starts.push(offset(&parents));
            parents.extend(entity_parents.into_iter().map(|uid| Parent {
                uid,
                list_offset: Parent::NO_LIST,
            }));
        }
        starts.push(offset(&parents));
        parents.shrink_to_fit();
        Self {
            starts,
            parents,
            ancestor_lists: Vec::new(),
            list_offsets: Vec::new(),
        }
    }

    fn stored_parents(&self, uid: UidId) -> &[Parent] {
        let start = |index: usize| self.starts.get(index).map(|start| *start as usize);
        match (start(uid.index()), start(uid.index() + 1)) {
            (Some(start), Some(end)) => self.parents.get(start..end).unwrap_or_default(),
            (Some(_) | None, _) => &[],
        }
    }

    /// Returns the direct parents of the entity with this uid. A parent need not exist.
    pub(super) fn parents(&self, uid: UidId) -> impl Iterator<Item = UidId> + '_ {
        self.stored_parents(uid).iter().map(|parent| parent.uid)
    }

    /// Returns the direct parents, each with its precomputed ancestors.
    pub(super) fn parent_links(&self, uid: UidId) -> impl Iterator<Item = ParentLink<'_>> {
        self.stored_parents(uid)
            .iter()
            .map(|Parent { uid, list_offset }| ParentLink {
                parent: *uid,
                ancestors: ancestor_list(&self.ancestor_lists, *list_offset),
            })
    }

    /// Returns the precomputed ancestors of each of these uids, if it is a parent and has a list.
    ///
    /// As in `UidInterner::find_all`, each step is done for all uids before the next step, so that
    /// the memory accesses overlap.
    pub(super) fn precomputed_ancestors(
        &self,
        uids: impl Iterator<Item = UidId>,
    ) -> SmallVec<[Option<&[UidId]>; 16]> {
        let offsets: SmallVec<[Option<u32>; 16]> = uids
            .map(|uid| self.list_offsets.get(uid.index()).copied())
            .collect();
        let offsets = offsets.into_iter();
        offsets
            .map(|offset| ancestor_list(&self.ancestor_lists, offset?))
            .collect()
    }

    /// Returns whether every entity has the same parents in `other`.
    pub(super) fn has_same_parents(&self, other: &Self) -> bool {
        self.starts == other.starts
            && self.parents.len() == other.parents.len()
            && self
                .parents
                .iter()
                .zip(&other.parents)
                .all(|(one, other)| one.uid == other.uid)
    }

    /// Computes the ancestors of each parent. The hierarchy must have no cycle.
    pub(super) fn compute_closure(&mut self) {
        /// The offset of an entity that was not visited yet.
        const UNVISITED: u32 = u32::MAX - 1;
        let mut offsets: Vec<u32> = vec![UNVISITED; self.starts.len()];
        let mut space = self.parents.len().saturating_mul(MAX_STORED_PER_PARENT);
        let mut lists = Vec::new();
        let mut found: Vec<UidId> = Vec::new();
        let mut path: Vec<UidId> = Vec::new();
        for Parent { uid: root, .. } in &self.parents {
            path.push(*root);
            while let Some(uid) = path.last().copied() {
                let offset = |uid: UidId| offsets.get(uid.index()).copied();
                if offset(uid) != Some(UNVISITED) {
                    path.pop();
                    continue;
                }
                // The parents' lists come first.
                let parents = self.stored_parents(uid);
                let depth = path.len();
                let is_unvisited = |parent: &&Parent| offset(parent.uid) == Some(UNVISITED);
                path.extend(parents.iter().filter(is_unvisited).map(|parent| parent.uid));
                if path.len() > depth {
                    continue;
                }
                path.pop();
                let is_stored =
                    collect_ancestors(parents, &lists, offset, &mut found) && found.len() < space;
                let list_offset = match u32::try_from(lists.len()) {
                    Ok(offset) if is_stored && offset < UNVISITED => offset,
                    Ok(_) | Err(_) => Parent::NO_LIST,
                };
                if list_offset != Parent::NO_LIST {
                    space -= found.len() + 1;
                    lists.push(UidId(u32::try_from(found.len()).unwrap_or(0)));
                    lists.extend(&found);
                }
                if let Some(offset) = offsets.get_mut(uid.index()) {
                    *offset = list_offset;
                }
            }
        }
        let unvisited = offsets.iter_mut().filter(|offset| **offset == UNVISITED);
        unvisited.for_each(|offset| *offset = Parent::NO_LIST);
        for Parent { uid, list_offset } in &mut self.parents {
            let offset = offsets.get(uid.index()).copied();
            *list_offset = offset.unwrap_or(Parent::NO_LIST);
        }
        lists.shrink_to_fit();
        self.ancestor_lists = lists;
        self.list_offsets = offsets;
    }

    /// Returns the heap memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u32>()
            + self.parents.capacity() * size_of::<Parent>()
            + self.ancestor_lists.capacity() * size_of::<UidId>()
            + self.list_offsets.capacity() * size_of::<u32>()
    }
}

/// Returns the list at `offset` in `lists`; `None` for [`Parent::NO_LIST`].
fn ancestor_list(lists: &[UidId], offset: u32) -> Option<&[UidId]> {
    let (UidId(count), rest) = lists.get(offset as usize..)?.split_first()?;
    rest.get(..*count as usize)
}

/// Collects in `found`, sorted, all ancestors of an entity with these parents.
///
/// Returns `false` if a parent has no list, or if the ancestors are too many to store.
fn collect_ancestors(
    parents: &[Parent],
    lists: &[UidId],
    list_offset: impl Fn(UidId) -> Option<u32>,
    found: &mut Vec<UidId>,
) -> bool {
    found.clear();
    if parents.len() > MAX_STORED_ANCESTORS {
        return false;
    }
    for parent in parents {
        found.push(parent.uid);
        match list_offset(parent.uid).and_then(|offset| ancestor_list(lists, offset)) {
            Some(ancestors) => found.extend(ancestors),
            None => return false,
        }
    }
    found.sort_unstable();
    found.dedup();
    found.len() <= MAX_STORED_ANCESTORS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(numbers: &[u32]) -> Vec<UidId> {
        numbers.iter().copied().map(UidId).collect()
    }

    fn hierarchy(parents: &[&[u32]]) -> Hierarchy {
        let mut hierarchy = Hierarchy::new(parents.iter().map(|parents| uids(parents)));
        hierarchy.compute_closure();
        hierarchy
    }

    #[test]
    fn parents_hold_their_ancestors() {
        // 5 is a parent that is not an entity.
        let hierarchy = hierarchy(&[&[1, 2], &[3], &[3, 4], &[5], &[], &[]]);
        let links = |uid| -> Vec<_> {
            let links = hierarchy.parent_links(UidId(uid));
            links
                .map(|link| (link.parent.0, link.ancestors.map(<[UidId]>::to_vec)))
                .collect()
        };
        let ancestors = |numbers| Some(uids(numbers));
        assert_eq!(
            links(0),
            [(1, ancestors(&[3, 5])), (2, ancestors(&[3, 4, 5]))]
        );
        // 0 is no entity's parent, and 77 does not exist.
        let found = hierarchy.precomputed_ancestors(uids(&[3, 0, 2, 77]).into_iter());
        let found: Vec<_> = found.iter().map(|list| list.map(<[_]>::to_vec)).collect();
        assert_eq!(found, [ancestors(&[5]), None, ancestors(&[3, 4, 5]), None]);
        assert_eq!(links(3), [(5, ancestors(&[]))]);
        assert_eq!(links(5), []);
        assert_eq!(links(77), []);
        assert!(
            hierarchy.has_same_parents(&Hierarchy::new(
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
    fn long_ancestor_lists_are_not_stored() {
        // A list that depends on an omitted one is omitted too. In a chain down from 0, entity `n` is
        // in all before it; many more entities are in 0.
        let chain = (0..200).map(|n: u32| n.checked_sub(1).map(UidId));
        let chain: Vec<Option<UidId>> = chain.chain([Some(UidId(0)); 1_000]).collect();
        let mut hierarchy = Hierarchy::new(chain.into_iter());
        hierarchy.compute_closure();
        let list_length = |uid: u32| {
            let link = hierarchy.parent_links(UidId(uid)).next().unwrap();
            link.ancestors.map(<[UidId]>::len)
        };
        assert_eq!(list_length(65), Some(64));
        assert_eq!(list_length(66), None);
        assert_eq!(list_length(199), None);
    }

    #[test]
    fn ancestor_lists_are_bounded_by_parents() {
        // Chains of 50: the lists would be far longer than the number of parents.
        let wide: Vec<Vec<UidId>> = (0..10_000)
            .map(|n: u32| match n % 50 {
                0 => vec![],
                _ => vec![UidId(n - 1)],
            })
            .collect();
        let mut hierarchy = Hierarchy::new(wide.into_iter());
        hierarchy.compute_closure();
        let limit = hierarchy.parents.len() * MAX_STORED_PER_PARENT;
        let stored = hierarchy.ancestor_lists.len();
        assert!(stored <= limit, "{stored}");
        assert!(stored > limit / 2);
    }
}
