//! The entities of one file in compact form: uids and parents as ids, values as bytes.
//!
//! A segment is written once, then shared by all snapshots that contain its file. It has its own
//! uid ids, so it stays unchanged when the store's ids change; a short table maps one to the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{Entity, EntityUID, Literal, PartialValue, Value, ValueKind};
use smol_str::SmolStr;

use super::interner::{TooManyUids, UidId, UidInterner};

/// A segment that is being written, with its own interner.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Draft {
    uids: UidInterner,
    body: Body,
    name_ids: HashMap<SmolStr, u32>,
}

/// The entities of one file.
#[derive(Debug)]
pub(in crate::pdp) struct Segment {
    body: Arc<Body>,
    /// The store's uid ids, by the segment's own.
    uids: Vec<UidId>,
}

/// The part of a segment that does not depend on the store's ids.
#[derive(Debug, Default)]
struct Body {
    entities: Vec<EntityOffsets>,
    /// The parents of all entities, concatenated.
    parents: Vec<u32>,
    /// The attributes and tags of all entities, concatenated, in the encoding of [`Draft`].
    values: Vec<u8>,
    /// Names of attributes, tags and record fields.
    names: Vec<SmolStr>,
    /// Values of extension types, which have no encoding.
    extension_values: Vec<Value>,
    has_actions: bool,
}

/// The offsets of an entity's parents and values; they end where the next entity's begin.
#[derive(Clone, Copy, Debug)]
struct EntityOffsets {
    uid: u32,
    parents: u32,
    values: u32,
    /// The byte offset of the entity in its file.
    origin: u32,
}

/// The first byte of an encoded value.
mod kind {
    pub(super) const FALSE: u8 = 0;
    pub(super) const TRUE: u8 = 1;
    pub(super) const LONG: u8 = 2;
    pub(super) const STRING: u8 = 3;
    pub(super) const ENTITY: u8 = 4;
    pub(super) const SET: u8 = 5;
    pub(super) const RECORD: u8 = 6;
    pub(super) const EXTENSION: u8 = 7;
}

/// The error that a file holds more than 32-bit offsets can address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file holds too many entities")]
pub(in crate::pdp) struct TooLarge;

impl From<TooManyUids> for TooLarge {
    fn from(TooManyUids: TooManyUids) -> Self {
        Self
    }
}

impl Draft {
    pub(in crate::pdp) fn uids(&mut self) -> &mut UidInterner {
        &mut self.uids
    }

    /// Begins an entity.
    ///
    /// The caller then writes each [`parent`](Self::parent), then the attributes, then the tags:
    /// a [`count`](Self::count) each, followed by that many pairs of [`name`](Self::name) and
    /// value.
    pub(in crate::pdp) fn begin(&mut self, uid: UidId, origin: usize) -> Result<(), TooLarge> {
        let offset = |offset: usize| u32::try_from(offset).map_err(|_| TooLarge);
        self.body.entities.push(EntityOffsets {
            uid: uid.0,
            parents: offset(self.body.parents.len())?,
            values: offset(self.body.values.len())?,
            origin: offset(origin)?,
        });
        Ok(())
    }

    /// Removes the entity begun last, with everything written for it.
    pub(in crate::pdp) fn discard_last(&mut self) {
        if let Some(stored) = self.body.entities.pop() {
            self.body.parents.truncate(stored.parents as usize);
            self.body.values.truncate(stored.values as usize);
        }
    }

    pub(in crate::pdp) fn parent(&mut self, uid: UidId) {
        self.body.parents.push(uid.0);
    }

    /// Writes the number of pairs or values that follow.
    pub(in crate::pdp) fn count(&mut self, count: usize) {
        self.varint(count as u64);
    }

    /// Writes the name of an attribute, a tag or a field.
    pub(in crate::pdp) fn name(&mut self, name: &str) {
        let id = match self.name_ids.get(name) {
            Some(id) => *id,
            None => {
                // INVARIANT: a name takes a byte of its file or more, and files are far below
                // 2³² bytes.
                let id = u32::try_from(self.body.names.len()).unwrap_or(u32::MAX);
                let name = SmolStr::from(name);
                self.body.names.push(name.clone());
                self.name_ids.insert(name, id);
                id
            }
        };
        self.varint(u64::from(id));
    }

    pub(in crate::pdp) fn bool(&mut self, value: bool) {
        self.body
            .values
            .push(if value { kind::TRUE } else { kind::FALSE });
    }

    pub(in crate::pdp) fn long(&mut self, value: i64) {
        self.body.values.push(kind::LONG);
        // Zigzag: numbers close to zero are short, whatever their sign.
        self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    pub(in crate::pdp) fn string(&mut self, text: &str) {
        self.body.values.push(kind::STRING);
        self.varint(text.len() as u64);
        self.body.values.extend_from_slice(text.as_bytes());
    }

    pub(in crate::pdp) fn entity(&mut self, uid: UidId) {
        self.body.values.push(kind::ENTITY);
        self.varint(u64::from(uid.0));
    }

    /// Begins a set; `count` values follow.
    pub(in crate::pdp) fn set(&mut self, count: usize) {
        self.body.values.push(kind::SET);
        self.count(count);
    }

    /// Begins a record; a [`count`](Self::count) and that many pairs of [`name`](Self::name) and
    /// value follow.
    pub(in crate::pdp) fn begin_record(&mut self) {
        self.body.values.push(kind::RECORD);
    }

    /// Writes an entity of Cedar's type, whose ancestors are its direct parents only.
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
                // Only unknowns leave residuals, and stored entities contain none.
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
                self.body.values.push(kind::EXTENSION);
                self.varint(self.body.extension_values.len() as u64);
                self.body
                    .extension_values
                    .push(value.clone().with_maybe_source_loc(None));
            }
        }
        Ok(())
    }

    /// Writes a number in LEB128: seven bits a byte, low bits first, high bit set on all but the
    /// last byte.
    fn varint(&mut self, mut number: u64) {
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

    /// Ends the segment, and interns its uids in `uids`.
    pub(in crate::pdp) fn finish(self, uids: &mut Arc<UidInterner>) -> Result<Segment, TooLarge> {
        let Self {
            uids: local_uids,
            mut body,
            name_ids: _,
        } = self;
        body.entities.shrink_to_fit();
        body.parents.shrink_to_fit();
        body.values.shrink_to_fit();
        body.names.shrink_to_fit();
        let all =
            (0..local_uids.len()).map(|index| UidId(u32::try_from(index).unwrap_or(u32::MAX)));
        Ok(Segment {
            body: Arc::new(body),
            uids: reinterned_all(all, &local_uids, uids)?,
        })
    }
}

/// Returns the ids in `to` of the uids that have these ids in `from`.
fn reinterned_all(
    uids: impl Iterator<Item = UidId>,
    from: &UidInterner,
    to: &mut Arc<UidInterner>,
) -> Result<Vec<UidId>, TooManyUids> {
    uids.map(|uid| from.reinterned(uid, to)).collect()
}

impl Segment {
    pub(in crate::pdp) fn len(&self) -> usize {
        self.body.entities.len()
    }

    pub(in crate::pdp) fn has_actions(&self) -> bool {
        self.body.has_actions
    }

    /// Returns the number of distinct uids that it names.
    pub(in crate::pdp) fn uid_count(&self) -> usize {
        self.uids.len()
    }

    /// Returns the heap memory in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let Body {
            entities,
            parents,
            values,
            names,
            extension_values,
            has_actions: _,
        } = self.body.as_ref();
        entities.capacity() * size_of::<EntityOffsets>()
            + parents.capacity() * size_of::<u32>()
            + values.capacity()
            + names.capacity() * size_of::<SmolStr>()
            // The value itself is behind a pointer; its size was measured and rounded up.
            + extension_values.capacity() * (size_of::<Value>() + 256)
            + self.uids.capacity() * size_of::<UidId>()
    }

    /// Returns the same segment with the ids of another interner.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooLarge> {
        Ok(Self {
            body: Arc::clone(&self.body),
            uids: reinterned_all(self.uids.iter().copied(), from, to)?,
        })
    }

    pub(in crate::pdp) fn uid(&self, slot: usize) -> Option<UidId> {
        self.store_uid(self.body.entities.get(slot)?.uid)
    }

    /// Returns the byte offset, in its file, of the entity in `slot`.
    pub(in crate::pdp) fn origin(&self, slot: usize) -> usize {
        let stored = self.body.entities.get(slot);
        stored.map_or(0, |stored| stored.origin as usize)
    }

    /// Returns the direct parents of the entity in `slot`.
    pub(in crate::pdp) fn parents(&self, slot: usize) -> impl Iterator<Item = UidId> + '_ {
        let begin = |slot: usize| {
            let stored = self.body.entities.get(slot);
            stored.map(|stored| stored.parents as usize)
        };
        let end = begin(slot + 1).unwrap_or(self.body.parents.len());
        let parents = self.body.parents.get(begin(slot).unwrap_or(end)..end);
        let parents = parents.unwrap_or_default().iter();
        parents.filter_map(|parent| self.store_uid(*parent))
    }

    /// Returns the entity in `slot` as Cedar's type, with `ancestors`.
    pub(in crate::pdp) fn entity(
        &self,
        slot: usize,
        uids: &UidInterner,
        ancestors: HashSet<EntityUID>,
    ) -> Option<Entity> {
        let mut reader = self.values(slot)?;
        let attributes = reader.fields(uids);
        let tags = reader.fields(uids);
        Some(Entity::new_with_attr_partial_value(
            uids.uid(self.uid(slot)?),
            attributes,
            ancestors,
            HashSet::new(),
            tags,
        ))
    }

    /// Returns the encoded attributes of the entity in `slot`.
    pub(in crate::pdp) fn attributes(&self, slot: usize) -> Option<StoredRecord<'_>> {
        let mut reader = self.values(slot)?;
        Some(StoredRecord {
            count: reader.varint(),
            fields: reader,
        })
    }

    /// Returns a reader of the attributes and then the tags of the entity in `slot`.
    fn values(&self, slot: usize) -> Option<ValueReader<'_>> {
        let stored = self.body.entities.get(slot)?;
        Some(ValueReader {
            segment: self,
            bytes: self.body.values.get(stored.values as usize..)?,
        })
    }

    /// Returns the store's id of one of the segment's uids.
    fn store_uid(&self, local: u32) -> Option<UidId> {
        self.uids.get(local as usize).copied()
    }
}

/// An encoded value of a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Stored<'a> {
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(UidId),
    Set(StoredSet<'a>),
    Record(StoredRecord<'a>),
    /// A value of an extension type.
    Extension,
}

/// An encoded set of a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct StoredSet<'a> {
    count: u64,
    members: ValueReader<'a>,
}

/// An encoded record of a segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct StoredRecord<'a> {
    count: u64,
    fields: ValueReader<'a>,
}

impl<'a> StoredSet<'a> {
    /// Returns the members; a member that was written twice is returned twice.
    pub(in crate::pdp) fn members(self) -> impl Iterator<Item = Stored<'a>> {
        let mut reader = self.members;
        (0..self.count).map(move |_| reader.next())
    }
}

impl<'a> StoredRecord<'a> {
    /// Returns the value of the field `name`.
    pub(in crate::pdp) fn get(self, name: &str) -> Option<Stored<'a>> {
        let mut reader = self.fields;
        for _ in 0..self.count {
            let is_wanted = reader.name() == name;
            let value = reader.next();
            if is_wanted {
                return Some(value);
            }
        }
        None
    }
}

/// A decoder of the bytes that a [`Draft`] has written.
///
/// INVARIANT: a segment's bytes were written by a draft and never changed, so every read finds
/// what it expects. The defaults for missing bytes are never used.
#[derive(Clone, Copy, Debug)]
struct ValueReader<'a> {
    segment: &'a Segment,
    bytes: &'a [u8],
}

impl<'a> ValueReader<'a> {
    /// Returns the next value and skips its contents.
    ///
    /// Recurses as deep as the value is nested; the limit on nesting in files bounds this.
    fn next(&mut self) -> Stored<'a> {
        match self.byte() {
            kind::TRUE => Stored::Bool(true),
            kind::LONG => {
                let number = self.varint();
                Stored::Long((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
            }
            kind::STRING => {
                let length = usize::try_from(self.varint()).unwrap_or(usize::MAX);
                let (text, rest) = self.bytes.split_at_checked(length).unwrap_or_default();
                self.bytes = rest;
                Stored::Text(std::str::from_utf8(text).unwrap_or_default())
            }
            kind::ENTITY => {
                let local = u32::try_from(self.varint()).unwrap_or(u32::MAX);
                match self.segment.store_uid(local) {
                    Some(uid) => Stored::Uid(uid),
                    None => Stored::Extension,
                }
            }
            kind::SET => {
                let count = self.varint();
                let members = *self;
                for _ in 0..count {
                    self.next();
                }
                Stored::Set(StoredSet { count, members })
            }
            kind::RECORD => {
                let count = self.varint();
                let fields = *self;
                for _ in 0..count {
                    self.name();
                    self.next();
                }
                Stored::Record(StoredRecord { count, fields })
            }
            kind::EXTENSION => {
                self.varint();
                Stored::Extension
            }
            _ => Stored::Bool(false),
        }
    }

    fn fields(&mut self, uids: &UidInterner) -> Vec<(SmolStr, PartialValue)> {
        (0..self.varint())
            .map(|_| (self.name().clone(), PartialValue::Value(self.value(uids))))
            .collect()
    }

    /// Returns the next value as Cedar's type.
    fn value(&mut self, uids: &UidInterner) -> Value {
        let mut start = *self;
        match self.next() {
            Stored::Bool(value) => Value::from(value),
            Stored::Long(value) => Value::from(value),
            Stored::Text(text) => Value::from(text),
            Stored::Uid(uid) => Value::from(uids.uid(uid)),
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
            Stored::Extension => {
                start.byte();
                let index = usize::try_from(start.varint()).unwrap_or(usize::MAX);
                let value = self.segment.body.extension_values.get(index);
                value.cloned().unwrap_or_else(|| Value::from(false))
            }
        }
    }

    fn name(&mut self) -> &'a SmolStr {
        static NONE: SmolStr = SmolStr::new_static("");
        let index = usize::try_from(self.varint()).unwrap_or(usize::MAX);
        self.segment.body.names.get(index).unwrap_or(&NONE)
    }

    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *byte
    }

    fn varint(&mut self) -> u64 {
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
    fn entities_are_read_as_written() {
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

        // With another interner the ids differ, and the entity is the same.
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
    fn discarded_entity_leaves_nothing() {
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
