//! Numbers for entity uids: each uid that policies, links and stored entities name has one.
//!
//! A uid as Cedar holds it is a type name, an id and a place, a hundred bytes and more; the index,
//! the hierarchy and the store hold four. Numbers are only ever added, so that a table may be
//! carried from one snapshot to the next; what is left over is cleared when too much of it has
//! gathered (`entities::EntityStore::needs_compaction`).

use std::hash::{BuildHasher, Hasher as _};
use std::sync::Arc;

use cedar_policy_core::ast::{Eid, EntityType, EntityUID};
use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;
use smol_str::SmolStr;

/// The number of a uid in one [`UidInterner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) struct UidId(pub(in crate::pdp) u32);

/// The number of an entity type in one [`UidInterner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pdp) struct TypeId(pub(in crate::pdp) u32);

impl UidId {
    pub(in crate::pdp) fn index(self) -> usize {
        self.0 as usize
    }
}

/// More uids were named than can be numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_UIDS} entities are named")]
pub(in crate::pdp) struct TooManyUids;

/// The most uids that are numbered; the numbers above are for those that one request brings.
pub(in crate::pdp) const MAX_UIDS: u32 = 1 << 31;

/// Uids by number and numbers by uid.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct UidInterner {
    types: Vec<EntityType>,
    /// By the type's written name: how requests name it.
    ids_by_type_name: hashbrown::HashMap<SmolStr, TypeId>,
    ids_of_types: hashbrown::HashMap<EntityType, TypeId>,
    entries: Vec<Entry>,
    /// Full pages are shared by all tables that descend from the one that wrote them.
    pages: Vec<Arc<String>>,
    /// Numbers, hashed by what they stand for.
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// Where a uid's parts stand.
#[derive(Clone, Copy, Debug)]
struct Entry {
    ty: TypeId,
    page: u32,
    start: u32,
    length: u32,
}

/// Ids are kept in pages of this many bytes; a longer one has a page of its own.
const PAGE_BYTES: usize = 64 << 10;

impl UidInterner {
    /// How many there are.
    pub(in crate::pdp) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The types that some uid has, or that were added for themselves.
    pub(in crate::pdp) fn types(&self) -> &[EntityType] {
        &self.types
    }

    /// The number of the type that is written `name`.
    pub(in crate::pdp) fn find_type_named(&self, name: &str) -> Option<TypeId> {
        self.ids_by_type_name.get(name).copied()
    }

    /// The number of the type `ty`.
    pub(in crate::pdp) fn find_type(&self, ty: &EntityType) -> Option<TypeId> {
        self.ids_of_types.get(ty).copied()
    }

    /// The type with this number.
    #[expect(
        clippy::indexing_slicing,
        reason = "numbers are given out by this table alone, and never taken back"
    )]
    pub(in crate::pdp) fn entity_type(&self, number: TypeId) -> &EntityType {
        &self.types[number.0 as usize]
    }

    /// The numbers of the uids whose type `is_wanted`.
    pub(in crate::pdp) fn ids_of_types(
        &self,
        is_wanted: impl Fn(&EntityType) -> bool,
    ) -> impl Iterator<Item = UidId> + '_ {
        let wanted: Vec<bool> = self.types.iter().map(is_wanted).collect();
        (0..)
            .map(UidId)
            .zip(&self.entries)
            .filter(move |(_, entry)| wanted.get(entry.ty.0 as usize) == Some(&true))
            .map(|(number, _)| number)
    }

    /// The number of the uid with this type and id, if it has one.
    pub(in crate::pdp) fn find(&self, ty: TypeId, id: &str) -> Option<UidId> {
        self.table
            .find(self.hash(ty, id), |number| self.is(*number, ty, id))
            .map(|number| UidId(*number))
    }

    /// The numbers of the uids with these types and ids, where they have one.
    ///
    /// In a large table each lookup waits for memory several times. Here all wait together: a
    /// step is made for each before the next is made for any.
    pub(in crate::pdp) fn find_all<'u>(
        &self,
        uids: impl Iterator<Item = (Option<TypeId>, &'u str)>,
    ) -> SmallVec<[Option<UidId>; 3]> {
        struct Lookup<'u> {
            uid: Option<(TypeId, &'u str)>,
            hash: Option<u64>,
            /// Of the first whose hash is likely the same: nearly always of the uid itself.
            number: Option<u32>,
            entry: Option<Entry>,
        }
        let mut lookups: SmallVec<[Lookup<'u>; 3]> = uids
            .map(|(ty, id)| Lookup {
                uid: ty.map(|ty| (ty, id)),
                hash: ty.map(|ty| self.hash(ty, id)),
                number: None,
                entry: None,
            })
            .collect();
        for lookup in &mut lookups {
            let likely = |hash| self.table.iter_hash(hash).next().copied();
            lookup.number = lookup.hash.and_then(likely);
        }
        for lookup in &mut lookups {
            let number = lookup.number.map(|number| number as usize);
            lookup.entry = number.and_then(|number| self.entries.get(number).copied());
        }
        lookups
            .into_iter()
            .map(
                |Lookup {
                     uid, number, entry, ..
                 }| {
                    let (ty, id) = uid?;
                    let likely = number.zip(entry);
                    match likely.filter(|(_, entry)| entry.ty == ty && self.id(*entry) == id) {
                        Some((number, _)) => Some(UidId(number)),
                        None => self.find(ty, id),
                    }
                },
            )
            .collect()
    }

    /// The number of the uid whose type is written `type_name`, if it has one.
    pub(in crate::pdp) fn find_named(&self, type_name: &str, id: &str) -> Option<UidId> {
        self.find(self.find_type_named(type_name)?, id)
    }

    /// The number of `uid`, if it has one.
    pub(in crate::pdp) fn find_uid(&self, uid: &EntityUID) -> Option<UidId> {
        self.find(self.find_type(uid.entity_type())?, uid.eid().as_ref())
    }

    /// The number in `to`, given now if it had none, of the uid that has `number` here.
    pub(in crate::pdp) fn reinterned(
        &self,
        number: UidId,
        to: &mut Arc<Self>,
    ) -> Result<UidId, TooManyUids> {
        let (ty, id) = self.parts(number);
        let ty = self.reinterned_type(ty, to);
        // Looked up first, as in `intern`.
        match to.find(ty, id) {
            Some(number) => Ok(number),
            None => Arc::make_mut(to).add(ty, id),
        }
    }

    /// The number in `to`, given now if it had none, of the type that has `number` here.
    pub(in crate::pdp) fn reinterned_type(&self, number: TypeId, to: &mut Arc<Self>) -> TypeId {
        Self::intern_type(to, self.entity_type(number))
    }

    /// The type and the id of the uid with this number.
    #[expect(
        clippy::indexing_slicing,
        reason = "numbers are given out by this table alone, and never taken back"
    )]
    pub(in crate::pdp) fn parts(&self, number: UidId) -> (TypeId, &str) {
        let entry = self.entries[number.index()];
        (entry.ty, self.id(entry))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "entries are made by this table alone, of what it has written"
    )]
    fn id(&self, entry: Entry) -> &str {
        let start = entry.start as usize;
        &self.pages[entry.page as usize][start..start + entry.length as usize]
    }

    /// The uid with this number, as Cedar holds it.
    pub(in crate::pdp) fn uid(&self, number: UidId) -> EntityUID {
        let (ty, id) = self.parts(number);
        EntityUID::from_components(self.entity_type(ty).clone(), Eid::new(id), None)
    }

    /// The number of the type `ty`, given now if it had none.
    pub(in crate::pdp) fn add_type(&mut self, ty: &EntityType) -> TypeId {
        if let Some(number) = self.find_type(ty) {
            return number;
        }
        // INVARIANT: there are fewer types than uids and declarations, far below 2³².
        let number = TypeId(u32::try_from(self.types.len()).unwrap_or(u32::MAX));
        // Without the place it was first written at, which would keep that file's text.
        let ty = ty.with_loc(None);
        self.ids_by_type_name.insert(type_text(&ty), number);
        self.ids_of_types.insert(ty.clone(), number);
        self.types.push(ty);
        number
    }

    /// The number of the uid with this type and id, given now if it had none.
    pub(in crate::pdp) fn add(&mut self, ty: TypeId, id: &str) -> Result<UidId, TooManyUids> {
        if let Some(number) = self.find(ty, id) {
            return Ok(number);
        }
        let number = u32::try_from(self.entries.len()).map_err(|_| TooManyUids)?;
        let length = u32::try_from(id.len()).map_err(|_| TooManyUids)?;
        if number >= MAX_UIDS {
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
        self.table.insert_unique(hash, number, |other| {
            let entry = entries.get(*other as usize);
            entry.map_or(0, |entry| {
                let page = pages.get(entry.page as usize);
                let start = entry.start as usize;
                let id = page.and_then(|page| page.get(start..start + entry.length as usize));
                hash_of(hasher, entry.ty, id.unwrap_or_default())
            })
        });
        Ok(UidId(number))
    }

    /// The number of `uid`, given now if it had none.
    pub(in crate::pdp) fn add_uid(&mut self, uid: &EntityUID) -> Result<UidId, TooManyUids> {
        let ty = self.add_type(uid.entity_type());
        self.add(ty, uid.eid().as_ref())
    }

    /// The number in `uids` of `uid`, given now if it had none.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left.
    pub(in crate::pdp) fn intern(
        uids: &mut Arc<Self>,
        uid: &EntityUID,
    ) -> Result<UidId, TooManyUids> {
        // Looked up first, here and below: a table that is shared is copied only for what is new
        // in it.
        match uids.find_uid(uid) {
            Some(number) => Ok(number),
            None => Arc::make_mut(uids).add_uid(uid),
        }
    }

    /// The number in `uids` of the type `ty`, given now if it had none.
    pub(in crate::pdp) fn intern_type(uids: &mut Arc<Self>, ty: &EntityType) -> TypeId {
        match uids.find_type(ty) {
            Some(number) => number,
            None => Arc::make_mut(uids).add_type(ty),
        }
    }

    /// Whether `other` descends from this table, or is it, so that numbers mean the same in both.
    pub(in crate::pdp) fn is_ancestor_of(&self, other: &Self) -> bool {
        // A table that descends shares the first page, and a table that was begun anew does not.
        match (self.pages.first(), other.pages.first()) {
            (None, _) => true,
            (Some(own), Some(others)) => Arc::ptr_eq(own, others),
            (Some(_), None) => false,
        }
    }

    /// The memory that the table holds, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.capacity()).sum();
        pages + self.entries.capacity() * size_of::<Entry>() + self.table.allocation_size()
    }

    fn write(&mut self, id: &str) -> Result<(u32, u32), TooManyUids> {
        // A page that an older table shares is left as it is.
        let has_room = |page: &mut Arc<String>| {
            Arc::get_mut(page).is_some_and(|page| page.capacity() - page.len() >= id.len())
        };
        if !self.pages.last_mut().is_some_and(has_room) {
            let room = PAGE_BYTES.max(id.len());
            self.pages.push(Arc::new(String::with_capacity(room)));
        }
        let page = u32::try_from(self.pages.len() - 1).map_err(|_| TooManyUids)?;
        let Some(text) = self.pages.last_mut().and_then(Arc::get_mut) else {
            return Err(TooManyUids);
        };
        let start = u32::try_from(text.len()).map_err(|_| TooManyUids)?;
        text.push_str(id);
        Ok((page, start))
    }

    fn is(&self, number: u32, ty: TypeId, id: &str) -> bool {
        self.parts(UidId(number)) == (ty, id)
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

/// A type's name as requests write it.
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
    fn a_uid_has_one_number_and_is_found_again_by_it() {
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
        let asked = [
            (group, "alice"),
            (user, ""),
            (None, "alice"),
            (user, "alice"),
            (group, ""),
        ];
        let found = uids.find_all(asked.into_iter());
        assert_eq!(
            found[..],
            [Some(other), None, None, Some(alice), Some(empty)]
        );
    }

    #[test]
    fn a_table_that_grows_leaves_the_one_it_descends_from_as_it_was() {
        let mut old = UidInterner::default();
        for n in 0..10_000 {
            old.add_uid(&uid("User", &format!("user-{n}"))).unwrap();
        }
        let mut new = old.clone();
        let huge = "x".repeat(PAGE_BYTES * 2);
        for id in ["another", huge.as_str(), "last"] {
            let number = new.add_uid(&uid("User", id)).unwrap();
            assert_eq!(new.parts(number).1, id);
            assert_eq!(old.find_named("User", id), None);
        }
        // So many that some have the same few bits of their hash, by which they are found.
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
