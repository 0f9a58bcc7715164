//! The entities of one file, small: uids as numbers, parents as numbers, values as bytes.
//!
//! A segment is written once and then shared by every snapshot that its file stands in. Inside it
//! uids have numbers of its own, so that it stays as it is when the numbers outside change; one
//! short table leads from one to the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, Value, ValueKind};
use smol_str::SmolStr;

use super::interner::{TooManyUids, UidId, UidInterner};

/// A segment being written, its uids numbered in a table of its own.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Draft {
    uids: UidInterner,
    body: Body,
    name_numbers: HashMap<SmolStr, u32>,
}

/// The entities of one file.
#[derive(Debug)]
pub(in crate::pdp) struct Segment {
    body: Arc<Body>,
    /// From the segment's numbers to those of the store.
    uids: Vec<UidId>,
}

#[derive(Debug, Default)]
struct Body {
    entities: Vec<Slot>,
    /// The parents of all entities, one after the other.
    parents: Vec<u32>,
    /// The attributes and tags of all entities, one after the other, as [`Draft`] writes them.
    values: Vec<u8>,
    /// Names of attributes, tags and record fields.
    names: Vec<SmolStr>,
    /// Values that have no short form: those of extension types.
    others: Vec<Value>,
    has_actions: bool,
}

/// Where an entity's parts begin; they end where the next one's begin.
#[derive(Clone, Copy, Debug)]
struct Slot {
    uid: u32,
    parents: u32,
    values: u32,
    /// The entity's first byte in its file.
    origin: u32,
}

/// What a value is, in its first byte.
mod kind {
    pub(super) const FALSE: u8 = 0;
    pub(super) const TRUE: u8 = 1;
    pub(super) const LONG: u8 = 2;
    pub(super) const STRING: u8 = 3;
    pub(super) const ENTITY: u8 = 4;
    pub(super) const SET: u8 = 5;
    pub(super) const RECORD: u8 = 6;
    pub(super) const OTHER: u8 = 7;
}

/// The file holds more than a segment can: its offsets have 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file holds too many entities")]
pub(in crate::pdp) struct TooLarge;

impl From<TooManyUids> for TooLarge {
    fn from(TooManyUids: TooManyUids) -> Self {
        Self
    }
}

impl Draft {
    /// The segment's own table of uids.
    pub(in crate::pdp) fn uids(&mut self) -> &mut UidInterner {
        &mut self.uids
    }

    /// Begins an entity. What follows is, in this order: its [`parent`](Self::parent)s, then its
    /// attributes and its tags, each a [`count`](Self::count) and so many pairs of
    /// [`name`](Self::name) and value.
    pub(in crate::pdp) fn begin(&mut self, uid: UidId, origin: usize) -> Result<(), TooLarge> {
        let offset = |at: usize| u32::try_from(at).map_err(|_| TooLarge);
        self.body.entities.push(Slot {
            uid: uid.0,
            parents: offset(self.body.parents.len())?,
            values: offset(self.body.values.len())?,
            origin: offset(origin)?,
        });
        Ok(())
    }

    /// Takes back the entity begun last, and what was written of it.
    pub(in crate::pdp) fn discard_last(&mut self) {
        if let Some(stored) = self.body.entities.pop() {
            self.body.parents.truncate(stored.parents as usize);
            self.body.values.truncate(stored.values as usize);
        }
    }

    pub(in crate::pdp) fn parent(&mut self, uid: UidId) {
        self.body.parents.push(uid.0);
    }

    pub(in crate::pdp) fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    pub(in crate::pdp) fn name(&mut self, name: &str) {
        let number = match self.name_numbers.get(name) {
            Some(number) => *number,
            None => {
                // INVARIANT: a name takes a byte of its file at least, and files are far below
                // 2³² bytes.
                let number = u32::try_from(self.body.names.len()).unwrap_or(u32::MAX);
                let name = SmolStr::from(name);
                self.body.names.push(name.clone());
                self.name_numbers.insert(name, number);
                number
            }
        };
        self.number(u64::from(number));
    }

    pub(in crate::pdp) fn bool(&mut self, value: bool) {
        self.body
            .values
            .push(if value { kind::TRUE } else { kind::FALSE });
    }

    pub(in crate::pdp) fn long(&mut self, value: i64) {
        self.body.values.push(kind::LONG);
        // Small numbers of either sign are short.
        self.number(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    pub(in crate::pdp) fn string(&mut self, text: &str) {
        self.body.values.push(kind::STRING);
        self.number(text.len() as u64);
        self.body.values.extend_from_slice(text.as_bytes());
    }

    pub(in crate::pdp) fn entity(&mut self, uid: UidId) {
        self.body.values.push(kind::ENTITY);
        self.number(u64::from(uid.0));
    }

    /// Begins a set; so many values follow.
    pub(in crate::pdp) fn set(&mut self, count: usize) {
        self.body.values.push(kind::SET);
        self.count(count);
    }

    /// Begins a record; a [`count`](Self::count) and so many pairs of [`name`](Self::name) and
    /// value follow.
    pub(in crate::pdp) fn begin_record(&mut self) {
        self.body.values.push(kind::RECORD);
    }

    /// Writes an entity as Cedar has read it, its direct parents alone among its ancestors.
    pub(in crate::pdp) fn add(&mut self, entity: &Entity, origin: usize) -> Result<(), TooLarge> {
        self.body.has_actions |= entity.uid().is_action();
        let uid = self.uids.add_uid(entity.uid())?;
        self.begin(uid, origin)?;
        for parent in entity.ancestors() {
            let parent = self.uids.add_uid(parent)?;
            self.parent(parent);
        }
        self.fields(entity.attrs_len(), entity.attrs())?;
        self.fields(entity.tags_len(), entity.tags())
    }

    fn fields<'a>(
        &mut self,
        count: usize,
        fields: impl Iterator<Item = (&'a SmolStr, &'a PartialValue)>,
    ) -> Result<(), TooLarge> {
        self.count(count);
        for (name, value) in fields {
            self.name(name);
            match value {
                PartialValue::Value(value) => self.value(value)?,
                // Without unknowns there is none; should there be one, it is no value we know.
                PartialValue::Residual(_) => return Err(TooLarge),
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Value) -> Result<(), TooLarge> {
        match &value.value {
            ValueKind::Lit(Literal::Bool(value)) => self.bool(*value),
            ValueKind::Lit(Literal::Long(value)) => self.long(*value),
            ValueKind::Lit(Literal::String(text)) => self.string(text),
            ValueKind::Lit(Literal::EntityUID(uid)) => {
                let uid = self.uids.add_uid(uid)?;
                self.entity(uid);
            }
            ValueKind::Set(members) => {
                self.set(members.len());
                for member in members.iter() {
                    self.value(member)?;
                }
            }
            ValueKind::Record(fields) => {
                self.begin_record();
                self.count(fields.len());
                for (name, field) in fields.iter() {
                    self.name(name);
                    self.value(field)?;
                }
            }
            ValueKind::ExtensionValue(_) => {
                self.body.values.push(kind::OTHER);
                self.number(self.body.others.len() as u64);
                self.body
                    .others
                    .push(value.clone().with_maybe_source_loc(None));
            }
        }
        Ok(())
    }

    /// Seven bits a byte, low ones first, the high bit set on all but the last.
    fn number(&mut self, mut number: u64) {
        loop {
            let low = (number & 0x7f) as u8;
            number >>= 7;
            if number == 0 {
                self.body.values.push(low);
                return;
            }
            self.body.values.push(low | 0x80);
        }
    }

    /// Ends the draft: its uids get their numbers in `uids`.
    pub(in crate::pdp) fn finish(self, uids: &mut Arc<UidInterner>) -> Result<Segment, TooLarge> {
        let Self {
            uids: own,
            mut body,
            name_numbers: _,
        } = self;
        body.entities.shrink_to_fit();
        body.parents.shrink_to_fit();
        body.values.shrink_to_fit();
        body.names.shrink_to_fit();
        let all = (0..own.len()).map(|at| UidId(u32::try_from(at).unwrap_or(u32::MAX)));
        Ok(Segment {
            body: Arc::new(body),
            uids: renumbered(all, &own, uids)?,
        })
    }
}

/// The numbers in `to` of uids that have these numbers in `from`.
fn renumbered(
    numbers: impl Iterator<Item = UidId>,
    from: &UidInterner,
    to: &mut Arc<UidInterner>,
) -> Result<Vec<UidId>, TooManyUids> {
    numbers.map(|number| from.reinterned(number, to)).collect()
}

impl Segment {
    /// How many entities it holds.
    pub(in crate::pdp) fn len(&self) -> usize {
        self.body.entities.len()
    }

    /// Whether actions are among its entities.
    pub(in crate::pdp) fn has_actions(&self) -> bool {
        self.body.has_actions
    }

    /// How many uids it names.
    pub(in crate::pdp) fn uid_count(&self) -> usize {
        self.uids.len()
    }

    /// The memory that it holds, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let Body {
            entities,
            parents,
            values,
            names,
            others,
            has_actions: _,
        } = self.body.as_ref();
        entities.capacity() * size_of::<Slot>()
            + parents.capacity() * size_of::<u32>()
            + values.capacity()
            + names.capacity() * size_of::<SmolStr>()
            // The value itself stands behind a pointer; measured, rounded up.
            + others.capacity() * (size_of::<Value>() + 256)
            + self.uids.capacity() * size_of::<UidId>()
    }

    /// The same segment for another table of uids.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooLarge> {
        Ok(Self {
            body: Arc::clone(&self.body),
            uids: renumbered(self.uids.iter().copied(), from, to)?,
        })
    }

    /// The uid of the entity in `slot`.
    pub(in crate::pdp) fn uid(&self, slot: usize) -> Option<UidId> {
        self.global(self.body.entities.get(slot)?.uid)
    }

    /// The first byte, in its file, of the entity in `slot`.
    pub(in crate::pdp) fn origin(&self, slot: usize) -> usize {
        self.body
            .entities
            .get(slot)
            .map_or(0, |stored| stored.origin as usize)
    }

    /// The direct parents of the entity in `slot`.
    pub(in crate::pdp) fn parents(&self, slot: usize) -> impl Iterator<Item = UidId> + '_ {
        let entities = &self.body.entities;
        let start = entities
            .get(slot)
            .map_or(0, |stored| stored.parents as usize);
        let end = entities
            .get(slot + 1)
            .map_or(self.body.parents.len(), |next| next.parents as usize);
        let parents = self.body.parents.get(start..end).unwrap_or_default();
        parents.iter().filter_map(|parent| self.global(*parent))
    }

    /// The entity in `slot` as Cedar holds it, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        slot: usize,
        uids: &UidInterner,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        let stored = self.body.entities.get(slot)?;
        let mut cursor = Cursor {
            segment: self,
            bytes: self.body.values.get(stored.values as usize..)?,
        };
        let attributes = cursor.fields(uids);
        let tags = cursor.fields(uids);
        Some(Entity::new_with_attr_partial_value(
            uids.uid(self.global(stored.uid)?),
            attributes,
            ancestors,
            HashSet::new(),
            tags,
        ))
    }

    /// The attributes of the entity in `slot`, where they stand.
    pub(in crate::pdp) fn attributes(&self, slot: usize) -> Option<StoredRecord<'_>> {
        let stored = self.body.entities.get(slot)?;
        let mut cursor = Cursor {
            segment: self,
            bytes: self.body.values.get(stored.values as usize..)?,
        };
        let count = cursor.number();
        Some(StoredRecord {
            count,
            fields: cursor,
        })
    }

    fn global(&self, number: u32) -> Option<UidId> {
        self.uids.get(number as usize).copied()
    }
}

/// A value where it stands in a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Stored<'a> {
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(UidId),
    Set(StoredSet<'a>),
    Record(StoredRecord<'a>),
    /// A value of an extension type.
    Other,
}

/// A set where it stands in a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct StoredSet<'a> {
    count: u64,
    members: Cursor<'a>,
}

/// A record where it stands in a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct StoredRecord<'a> {
    count: u64,
    fields: Cursor<'a>,
}

impl<'a> StoredSet<'a> {
    /// The members; one that was written twice comes twice.
    pub(in crate::pdp) fn members(self) -> impl Iterator<Item = Stored<'a>> {
        let mut cursor = self.members;
        (0..self.count).map(move |_| cursor.next())
    }
}

impl<'a> StoredRecord<'a> {
    /// The field `name`.
    pub(in crate::pdp) fn get(self, name: &str) -> Option<Stored<'a>> {
        let mut cursor = self.fields;
        for _ in 0..self.count {
            let is_wanted = cursor.name() == name;
            let value = cursor.next();
            if is_wanted {
                return Some(value);
            }
        }
        None
    }
}

/// Reads back what a [`Draft`] has written.
///
/// INVARIANT: a segment's bytes were written by a draft and never changed, so every read finds
/// what it expects. What stands for "not found" is never met.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    segment: &'a Segment,
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The next value, which is passed over with all that it holds.
    ///
    /// Recurses as deep as the value is nested, which its file's text bounds.
    fn next(&mut self) -> Stored<'a> {
        match self.byte() {
            kind::TRUE => Stored::Bool(true),
            kind::LONG => {
                let number = self.number();
                Stored::Long((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
            }
            kind::STRING => {
                let length = usize::try_from(self.number()).unwrap_or(usize::MAX);
                let (text, rest) = self.bytes.split_at_checked(length).unwrap_or_default();
                self.bytes = rest;
                Stored::Text(std::str::from_utf8(text).unwrap_or_default())
            }
            kind::ENTITY => {
                let number = u32::try_from(self.number()).unwrap_or(u32::MAX);
                match self.segment.global(number) {
                    Some(number) => Stored::Uid(number),
                    None => Stored::Other,
                }
            }
            kind::SET => {
                let count = self.number();
                let members = *self;
                for _ in 0..count {
                    self.next();
                }
                Stored::Set(StoredSet { count, members })
            }
            kind::RECORD => {
                let count = self.number();
                let fields = *self;
                for _ in 0..count {
                    self.name();
                    self.next();
                }
                Stored::Record(StoredRecord { count, fields })
            }
            kind::OTHER => {
                self.number();
                Stored::Other
            }
            _ => Stored::Bool(false),
        }
    }

    fn fields(&mut self, uids: &UidInterner) -> Vec<(SmolStr, PartialValue)> {
        (0..self.number())
            .map(|_| (self.name().clone(), PartialValue::Value(self.value(uids))))
            .collect()
    }

    /// The next value as Cedar holds it.
    fn value(&mut self, uids: &UidInterner) -> Value {
        let here = *self;
        match self.next() {
            Stored::Bool(value) => Value::from(value),
            Stored::Long(value) => Value::from(value),
            Stored::Text(text) => Value::from(text),
            Stored::Uid(number) => Value::from(uids.uid(number)),
            Stored::Set(StoredSet { count, mut members }) => {
                let members: Vec<Value> = (0..count).map(|_| members.value(uids)).collect();
                Value::set(members, None)
            }
            Stored::Record(StoredRecord { count, mut fields }) => {
                let fields: BTreeMap<SmolStr, Value> = (0..count)
                    .map(|_| (fields.name().clone(), fields.value(uids)))
                    .collect();
                Value::record_arc(Arc::new(fields), None)
            }
            Stored::Other => {
                let mut here = here;
                here.byte();
                let at = usize::try_from(here.number()).unwrap_or(usize::MAX);
                let other = self.segment.body.others.get(at);
                other.cloned().unwrap_or_else(|| Value::from(false))
            }
        }
    }

    fn name(&mut self) -> &'a SmolStr {
        static NONE: SmolStr = SmolStr::new_static("");
        let at = usize::try_from(self.number()).unwrap_or(usize::MAX);
        self.segment.body.names.get(at).unwrap_or(&NONE)
    }

    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *byte
    }

    fn number(&mut self) -> u64 {
        let mut number = 0;
        let mut shift = 0;
        loop {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 63 {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(id: &str) -> EntityUID {
        EntityUID::with_eid_and_type("Node", id).unwrap()
    }

    #[test]
    fn an_entity_comes_back_as_it_was_written() {
        let record: BTreeMap<SmolStr, Value> = BTreeMap::from([
            ("inner".into(), Value::from(uid("deep"))),
            ("n".into(), Value::from(i64::MIN)),
        ]);
        let attributes = [
            ("yes", Value::from(true)),
            ("no", Value::from(false)),
            ("small", Value::from(-1)),
            ("large", Value::from(i64::MAX)),
            ("text", Value::from("größe\0")),
            ("who", Value::from(uid("w"))),
            ("set", Value::set([Value::from(1), Value::from("a")], None)),
            ("record", Value::record_arc(Arc::new(record), None)),
        ];
        let partial = |(name, value): (&str, Value)| (name.into(), PartialValue::Value(value));
        let entity = Entity::new_with_attr_partial_value(
            uid("e"),
            attributes.map(partial),
            HashSet::new(),
            HashSet::from([uid("p"), uid("q")]),
            [("tag", Value::from("t"))].map(partial),
        );
        let mut draft = Draft::default();
        draft.add(&Entity::with_uid(uid("before")), 0).unwrap();
        draft.add(&entity, 17).unwrap();
        draft.add(&Entity::with_uid(uid("after")), 90).unwrap();

        let mut uids = Arc::new(UidInterner::default());
        Arc::make_mut(&mut uids)
            .add_uid(&uid("something else"))
            .unwrap();
        let segment = draft.finish(&mut uids).unwrap();
        let ancestors: HashSet<EntityUID> =
            segment.parents(1).map(|parent| uids.uid(parent)).collect();
        assert_eq!(ancestors, HashSet::from([uid("p"), uid("q")]));
        assert_eq!(segment.origin(1), 17);
        let back = segment.entity(1, &uids, ancestors).unwrap();
        assert!(back.deep_eq(&entity), "{back:?}");

        // In another table it has other numbers and says the same.
        let mut other = Arc::new(UidInterner::default());
        let reinterned = segment.reinterned(&uids, &mut other).unwrap();
        let ancestors = reinterned
            .parents(1)
            .map(|parent| other.uid(parent))
            .collect();
        assert!(
            reinterned
                .entity(1, &other, ancestors)
                .unwrap()
                .deep_eq(&entity)
        );
    }

    #[test]
    fn an_entity_that_was_taken_back_leaves_no_trace() {
        let mut draft = Draft::default();
        let node = draft.uids().add_uid(&uid("gone")).unwrap();
        draft.begin(node, 0).unwrap();
        draft.parent(node);
        draft.count(1);
        draft.name("x");
        draft.discard_last();
        draft.add(&Entity::with_uid(uid("stays")), 5).unwrap();
        let mut uids = Arc::default();
        let segment = draft.finish(&mut uids).unwrap();
        assert_eq!(segment.len(), 1);
        assert_eq!(segment.parents(0).count(), 0);
        let back = segment.entity(0, &uids, HashSet::new()).unwrap();
        assert!(back.deep_eq(&Entity::with_uid(uid("stays"))));
    }
}
