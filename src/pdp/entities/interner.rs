//! Interns entity uids: each uid that policies, links or stored entities name gets a 32-bit id.
//!
//! Cedar's uid takes a hundred bytes or more: type name, id and source location. The index, the
//! hierarchy and the store hold four. Ids are only ever added, so an interner can pass from one
//! snapshot to the next. Unused ids are dropped once they are too many
//! (`EntityStore::needs_compaction`).

use std::hash::{BuildHasher, Hasher as _};
use std::sync::Arc;

use cedar_policy_core::ast::{Eid, EntityType, EntityUID};
use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;
use smol_str::SmolStr;

/// The id of a uid in one [`UidInterner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) struct UidId(pub(in crate::pdp) u32);

/// The id of an entity type in one [`UidInterner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) struct TypeId(pub(in crate::pdp) u32);

impl UidId {
    pub(in crate::pdp) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The error that an interner has no id left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_UIDS} entities are named")]
pub(in crate::pdp) struct TooManyUids;

/// Most uids in an interner. The ids above are for uids that only one request names.
pub(in crate::pdp) const MAX_UIDS: u32 = 1 << 31;

/// A two-way table of uids and their ids.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct UidInterner {
    types: Vec<EntityType>,
    /// Keyed by the type's name as text, as requests name it.
    ids_by_type_name: hashbrown::HashMap<SmolStr, TypeId>,
    ids_of_types: hashbrown::HashMap<EntityType, TypeId>,
    entries: Vec<Entry>,
    /// The ids' text. Full pages are shared with all clones of the interner that wrote them.
    pages: Vec<Arc<String>>,
    /// Uid ids, hashed by the uid that they stand for.
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// The type of a uid, and the location of its id's text.
#[derive(Clone, Copy, Debug)]
struct Entry {
    ty: TypeId,
    page: u32,
    start: u32,
    length: u32,
}

impl Entry {
    #[expect(
        clippy::indexing_slicing,
        reason = "entries are created by their interner alone, for text that it has written"
    )]
    fn text(self, pages: &[Arc<String>]) -> &str {
        let start = self.start as usize;
        &pages[self.page as usize][start..start + self.length as usize]
    }
}

/// Bytes of a page of text; a longer id gets its own page.
const PAGE_BYTES: usize = 64 << 10;

impl UidInterner {
    pub(in crate::pdp) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the interned types, with or without a uid of that type.
    pub(in crate::pdp) fn types(&self) -> &[EntityType] {
        &self.types
    }

    /// Returns the id of the type whose name is the text `name`.
    pub(in crate::pdp) fn find_type_named(&self, name: &str) -> Option<TypeId> {
        self.ids_by_type_name.get(name).copied()
    }

    pub(in crate::pdp) fn find_type(&self, ty: &EntityType) -> Option<TypeId> {
        self.ids_of_types.get(ty).copied()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "ids are created by this interner alone, and never removed"
    )]
    pub(in crate::pdp) fn entity_type(&self, ty: TypeId) -> &EntityType {
        &self.types[ty.0 as usize]
    }

    /// Returns the ids of all uids whose type `is_wanted`.
    pub(in crate::pdp) fn ids_of_types(
        &self,
        is_wanted: impl Fn(&EntityType) -> bool,
    ) -> impl Iterator<Item = UidId> + '_ {
        let wanted: Vec<bool> = self.types.iter().map(is_wanted).collect();
        (0..)
            .map(UidId)
            .zip(&self.entries)
            .filter(move |(_, entry)| wanted.get(entry.ty.0 as usize) == Some(&true))
            .map(|(uid, _)| uid)
    }

    /// Returns the id of the uid with this type and text, if it is interned.
    pub(in crate::pdp) fn find(&self, ty: TypeId, id: &str) -> Option<UidId> {
        self.table
            .find(self.hash(ty, id), |uid| self.parts(UidId(*uid)) == (ty, id))
            .map(|uid| UidId(*uid))
    }

    /// Returns the ids of the uids with these types and texts, where they are interned.
    ///
    /// In a large table a lookup waits for memory several times. Here each step is done for all
    /// uids before the next step, so that the memory accesses overlap.
    pub(in crate::pdp) fn find_all<'u>(
        &self,
        uids: impl Iterator<Item = (Option<TypeId>, &'u str)>,
    ) -> SmallVec<[Option<UidId>; 3]> {
        struct Lookup<'u> {
            uid: Option<(TypeId, &'u str)>,
            hash: Option<u64>,
            /// The first id with a matching hash tag: nearly always that of the uid itself.
            candidate: Option<u32>,
            entry: Option<Entry>,
        }
        let mut lookups: SmallVec<[Lookup<'u>; 3]> = uids
            .map(|(ty, id)| Lookup {
                uid: ty.map(|ty| (ty, id)),
                hash: ty.map(|ty| self.hash(ty, id)),
                candidate: None,
                entry: None,
            })
            .collect();
        for lookup in &mut lookups {
            let first = |hash| self.table.iter_hash(hash).next().copied();
            lookup.candidate = lookup.hash.and_then(first);
        }
        for lookup in &mut lookups {
            let index = lookup.candidate.map(|uid| uid as usize);
            lookup.entry = index.and_then(|index| self.entries.get(index).copied());
        }
        lookups
            .into_iter()
            .map(|lookup| {
                let (ty, id) = lookup.uid?;
                let candidate = lookup.candidate.zip(lookup.entry);
                match candidate.filter(|(_, entry)| entry.ty == ty && entry.text(&self.pages) == id)
                {
                    Some((uid, _)) => Some(UidId(uid)),
                    None => self.find(ty, id),
                }
            })
            .collect()
    }

    /// Returns the id of the uid with this type name and text, if it is interned.
    pub(in crate::pdp) fn find_named(&self, type_name: &str, id: &str) -> Option<UidId> {
        self.find(self.find_type_named(type_name)?, id)
    }

    /// Returns the id of `uid`, if it is interned.
    pub(in crate::pdp) fn find_uid(&self, uid: &EntityUID) -> Option<UidId> {
        self.find(self.find_type(uid.entity_type())?, uid.eid().as_ref())
    }

    /// Returns the id in `to` of the uid that has the id `uid` here, and interns it if needed.
    pub(in crate::pdp) fn reinterned(
        &self,
        uid: UidId,
        to: &mut Arc<Self>,
    ) -> Result<UidId, TooManyUids> {
        let (ty, id) = self.parts(uid);
        let ty = self.reinterned_type(ty, to);
        // Looked up first, as in `intern`.
        match to.find(ty, id) {
            Some(uid) => Ok(uid),
            None => Arc::make_mut(to).add(ty, id),
        }
    }

    /// Returns the id in `to` of the type that has the id `ty` here, and interns it if needed.
    pub(in crate::pdp) fn reinterned_type(&self, ty: TypeId, to: &mut Arc<Self>) -> TypeId {
        Self::intern_type(to, self.entity_type(ty))
    }

    /// Returns the type and the text of the uid with this id.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids are created by this interner alone, and never removed"
    )]
    pub(in crate::pdp) fn parts(&self, uid: UidId) -> (TypeId, &str) {
        let entry = self.entries[uid.index()];
        (entry.ty, entry.text(&self.pages))
    }

    /// Returns the uid with this id as Cedar's type.
    pub(in crate::pdp) fn uid(&self, uid: UidId) -> EntityUID {
        let (ty, id) = self.parts(uid);
        EntityUID::from_components(self.entity_type(ty).clone(), Eid::new(id), None)
    }

    /// Returns the id of the type `ty`, and interns it if needed.
    pub(in crate::pdp) fn add_type(&mut self, ty: &EntityType) -> TypeId {
        if let Some(id) = self.find_type(ty) {
            return id;
        }
        // INVARIANT: there are fewer types than uids and declarations, far below 2³².
        let id = TypeId(u32::try_from(self.types.len()).unwrap_or(u32::MAX));
        // The location is removed: it would keep the text of its file in memory.
        let ty = ty.with_loc(None);
        self.ids_by_type_name.insert(type_text(&ty), id);
        self.ids_of_types.insert(ty.clone(), id);
        self.types.push(ty);
        id
    }

    /// Returns the id of the uid with this type and text, and interns it if needed.
    pub(in crate::pdp) fn add(&mut self, ty: TypeId, id: &str) -> Result<UidId, TooManyUids> {
        if let Some(uid) = self.find(ty, id) {
            return Ok(uid);
        }
        let uid = u32::try_from(self.entries.len()).map_err(|_| TooManyUids)?;
        let length = u32::try_from(id.len()).map_err(|_| TooManyUids)?;
        if uid >= MAX_UIDS {
            return Err(TooManyUids);
        }
        let (page, start) = self.write(id)?;
        self.entries.push(Entry {
            ty,
            page,
            start,
            length,
        });
        let hash = self.hash(ty, id);
        let (entries, pages, hasher) = (&self.entries, &self.pages, &self.hasher);
        self.table.insert_unique(hash, uid, |other| {
            let entry = entries.get(*other as usize);
            entry.map_or(0, |entry| hash_of(hasher, entry.ty, entry.text(pages)))
        });
        Ok(UidId(uid))
    }

    /// Returns the id of `uid`, and interns it if needed.
    pub(in crate::pdp) fn add_uid(&mut self, uid: &EntityUID) -> Result<UidId, TooManyUids> {
        let ty = self.add_type(uid.entity_type());
        self.add(ty, uid.eid().as_ref())
    }

    /// Returns the id of `uid` in `uids`, and interns it if needed.
    pub(in crate::pdp) fn intern(
        uids: &mut Arc<Self>,
        uid: &EntityUID,
    ) -> Result<UidId, TooManyUids> {
        // Looked up first, here and below: a shared interner is copied only to add to it.
        match uids.find_uid(uid) {
            Some(id) => Ok(id),
            None => Arc::make_mut(uids).add_uid(uid),
        }
    }

    /// Returns the id of the type `ty` in `uids`, and interns it if needed.
    pub(in crate::pdp) fn intern_type(uids: &mut Arc<Self>, ty: &EntityType) -> TypeId {
        match uids.find_type(ty) {
            Some(id) => id,
            None => Arc::make_mut(uids).add_type(ty),
        }
    }

    /// Returns whether `other` is a clone of this interner with more uids, or the same one.
    ///
    /// Ids of this interner then mean the same in `other`.
    pub(in crate::pdp) fn is_ancestor_of(&self, other: &Self) -> bool {
        // A clone shares the first page; an interner that was created anew does not.
        match (self.pages.first(), other.pages.first()) {
            (None, _) => true,
            (Some(first), Some(other_first)) => Arc::ptr_eq(first, other_first),
            (Some(_), None) => false,
        }
    }

    /// Returns the heap memory in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.capacity()).sum();
        pages + self.entries.capacity() * size_of::<Entry>() + self.table.allocation_size()
    }

    /// Appends a text to the last page, and returns its page and offset.
    fn write(&mut self, id: &str) -> Result<(u32, u32), TooManyUids> {
        // A page that another interner shares is never written.
        let has_space = |page: &mut Arc<String>| {
            Arc::get_mut(page).is_some_and(|page| page.capacity() - page.len() >= id.len())
        };
        if !self.pages.last_mut().is_some_and(has_space) {
            let space = PAGE_BYTES.max(id.len());
            self.pages.push(Arc::new(String::with_capacity(space)));
        }
        let page = u32::try_from(self.pages.len() - 1).map_err(|_| TooManyUids)?;
        let Some(text) = self.pages.last_mut().and_then(Arc::get_mut) else {
            return Err(TooManyUids);
        };
        let start = u32::try_from(text.len()).map_err(|_| TooManyUids)?;
        text.push_str(id);
        Ok((page, start))
    }

    fn hash(&self, ty: TypeId, id: &str) -> u64 {
        hash_of(&self.hasher, ty, id)
    }
}

fn hash_of(hasher: &DefaultHashBuilder, ty: TypeId, id: &str) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write_u32(ty.0);
    hasher.write(id.as_bytes());
    hasher.finish()
}

/// Returns a type's name as requests write it.
fn type_text(ty: &EntityType) -> SmolStr {
    use std::fmt::Write as _;
    let mut text = smol_str::SmolStrBuilder::new();
    // INVARIANT: writing to a builder cannot fail.
    let _ = write!(text, "{ty}");
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(ty: &str, id: &str) -> EntityUID {
        EntityUID::with_eid_and_type(ty, id).unwrap()
    }

    #[test]
    fn uids_are_interned_once() {
        let mut uids = UidInterner::default();
        let alice = uids.add_uid(&uid("User", "alice")).unwrap();
        let other = uids.add_uid(&uid("Group", "alice")).unwrap();
        let empty = uids.add_uid(&uid("Group", "")).unwrap();
        assert_eq!(uids.add_uid(&uid("User", "alice")), Ok(alice));
        assert!(alice != other && other != empty);
        assert_eq!(uids.uid(other), uid("Group", "alice"));
        assert_eq!(uids.find_named("Group", ""), Some(empty));
        assert_eq!(uids.find_named("Group", "bob"), None);
        assert_eq!(uids.find_named("Nothing", "alice"), None);
        let (user, group) = (uids.find_type_named("User"), uids.find_type_named("Group"));
        let lookups = [
            (group, "alice"),
            (user, ""),
            (None, "alice"),
            (user, "alice"),
            (group, ""),
        ];
        let found = uids.find_all(lookups.into_iter());
        assert_eq!(
            found[..],
            [Some(other), None, None, Some(alice), Some(empty)]
        );
    }

    #[test]
    fn growing_clones_leave_the_original_unchanged() {
        let mut old = UidInterner::default();
        for n in 0..10_000 {
            old.add_uid(&uid("User", &format!("user-{n}"))).unwrap();
        }
        let mut new = old.clone();
        let huge = "x".repeat(PAGE_BYTES * 2);
        for id in ["another", huge.as_str(), "last"] {
            let added = new.add_uid(&uid("User", id)).unwrap();
            assert_eq!(new.parts(added).1, id);
            assert_eq!(old.find_named("User", id), None);
        }
        // Enough that some share the hash tag by which `find_all` finds candidates.
        let ids: Vec<String> = (0..20_000).map(|n| format!("user-{n}")).collect();
        let user = new.find_type_named("User");
        let found = new.find_all(ids.iter().map(|id| (user, id.as_str())));
        let expected = (0..20_000).map(|n| (n < 10_000).then_some(UidId(n)));
        assert!(found.into_iter().eq(expected));
        for n in 0..10_000 {
            let id = format!("user-{n}");
            assert_eq!(new.find_named("User", &id), Some(UidId(n)));
            assert_eq!(old.parts(UidId(n)).1, id);
        }
    }
}
