//! A query whose texts lie elsewhere: in a caller's bytes, or in a [`Query`].
//!
//! The cache is asked with it before anything is copied. Whoever makes one has checked what a
//! [`Query`] promises: no type empty.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::pdp::query::{Claimed, Query, Record, RequestEntity, Uid, Value};

/// An entity's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRef<'a> {
    /// The type's name.
    pub type_name: &'a str,
    /// The id.
    pub id: &'a str,
}

/// A value, as [`Value`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the kinds of `Value`")]
pub enum ValueRef<'a> {
    Bool(bool),
    Long(i64),
    String(&'a str),
    Entity(UidRef<'a>),
    Set(Vec<ValueRef<'a>>),
    Record(Fields<'a>),
    Decimal(&'a str),
    Ip(&'a str),
    Datetime(&'a str),
    Duration(&'a str),
}

/// Named values, sorted by name and each name once: whatever order they came in, they are equal, and
/// make one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a>(Vec<(&'a str, ValueRef<'a>)>);

impl<'a> Fields<'a> {
    /// The `entries` of a map as they came, or nothing if a name stands among them twice.
    #[must_use]
    pub fn of(mut entries: Vec<(&'a str, ValueRef<'a>)>) -> Option<Self> {
        let in_order = |(one, _): &(&str, _), (next, _): &(&str, _)| one < next;
        // Many a client writes its maps in order.
        if !entries.is_sorted_by(in_order) {
            entries.sort_unstable_by_key(|(name, _)| *name);
            if !entries.is_sorted_by(in_order) {
                return None;
            }
        }
        Some(Self(entries))
    }
}

impl<'a> Deref for Fields<'a> {
    type Target = [(&'a str, ValueRef<'a>)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// An entity that a request brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityRef<'a> {
    /// Its identity.
    pub uid: UidRef<'a>,
    /// What is known of it.
    pub attributes: Fields<'a>,
    /// The entities it is directly in.
    pub parents: Vec<UidRef<'a>>,
    /// Its tags.
    pub tags: Fields<'a>,
}

/// One question, as [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryRef<'a> {
    /// Who asks to act.
    pub principal: UidRef<'a>,
    /// What is to be done.
    pub action: UidRef<'a>,
    /// What it is to be done to.
    pub resource: UidRef<'a>,
    /// The circumstances.
    pub context: Fields<'a>,
    /// Entities that exist for this question only.
    pub entities: Vec<EntityRef<'a>>,
    /// What a token says of the principal.
    pub claimed: Option<&'a Arc<Claimed>>,
    /// Whether the answer must say why.
    pub explain: bool,
}

impl QueryRef<'_> {
    /// The same query, its texts copied.
    #[must_use]
    pub fn to_query(&self) -> Query {
        let Self {
            principal,
            action,
            resource,
            context,
            entities,
            claimed,
            explain,
        } = self;
        Query {
            principal: principal.to_uid(),
            action: action.to_uid(),
            resource: resource.to_uid(),
            context: to_record(context),
            entities: entities
                .iter()
                .map(
                    |EntityRef {
                         uid,
                         attributes,
                         parents,
                         tags,
                     }| RequestEntity {
                        uid: uid.to_uid(),
                        attributes: to_record(attributes),
                        parents: parents.iter().map(|parent| parent.to_uid()).collect(),
                        tags: to_record(tags),
                    },
                )
                .collect(),
            claimed: claimed.cloned(),
            explain: *explain,
        }
    }
}

impl UidRef<'_> {
    fn to_uid(self) -> Uid {
        Uid::new(self.type_name, self.id)
    }
}

fn to_record(fields: &Fields<'_>) -> Record {
    fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.to_value()))
        .collect::<BTreeMap<_, _>>()
        .into()
}

impl ValueRef<'_> {
    fn to_value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Long(value) => Value::Long(*value),
            Self::String(text) => Value::String((*text).to_owned()),
            Self::Entity(uid) => Value::Entity(uid.to_uid()),
            Self::Set(members) => Value::Set(members.iter().map(Self::to_value).collect()),
            Self::Record(fields) => Value::Record(to_record(fields)),
            Self::Decimal(text) => Value::Decimal((*text).to_owned()),
            Self::Ip(text) => Value::Ip((*text).to_owned()),
            Self::Datetime(text) => Value::Datetime((*text).to_owned()),
            Self::Duration(text) => Value::Duration((*text).to_owned()),
        }
    }
}

impl<'a> From<&'a Query> for QueryRef<'a> {
    fn from(query: &'a Query) -> Self {
        let Query {
            principal,
            action,
            resource,
            context,
            entities,
            claimed,
            explain,
        } = query;
        Self {
            principal: principal.into(),
            action: action.into(),
            resource: resource.into(),
            context: fields(context),
            entities: entities.iter().map(EntityRef::from).collect(),
            claimed: claimed.as_ref(),
            explain: *explain,
        }
    }
}

impl<'a> From<&'a RequestEntity> for EntityRef<'a> {
    fn from(entity: &'a RequestEntity) -> Self {
        let RequestEntity {
            uid,
            attributes,
            parents,
            tags,
        } = entity;
        Self {
            uid: uid.into(),
            attributes: fields(attributes),
            parents: parents.iter().map(UidRef::from).collect(),
            tags: fields(tags),
        }
    }
}

impl<'a> From<&'a Uid> for UidRef<'a> {
    fn from(uid: &'a Uid) -> Self {
        let Uid { type_name, id } = uid;
        Self { type_name, id }
    }
}

/// The fields of `record`, where they lie.
#[must_use]
pub fn fields(record: &Record) -> Fields<'_> {
    // A record is sorted as these are.
    Fields(
        record
            .iter()
            .map(|(name, value)| (name, value.into()))
            .collect(),
    )
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Long(value) => Self::Long(*value),
            Value::String(text) => Self::String(text),
            Value::Entity(uid) => Self::Entity(uid.into()),
            Value::Set(members) => Self::Set(members.iter().map(Self::from).collect()),
            Value::Record(record) => Self::Record(fields(record)),
            Value::Decimal(text) => Self::Decimal(text),
            Value::Ip(text) => Self::Ip(text),
            Value::Datetime(text) => Self::Datetime(text),
            Value::Duration(text) => Self::Duration(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(names: &[&'a str]) -> Vec<(&'a str, ValueRef<'a>)> {
        let value = |name: &'a str| (name, ValueRef::String(name));
        names.iter().copied().map(value).collect()
    }

    #[test]
    fn fields_are_equal_in_whatever_order_they_came() {
        let in_order = Fields::of(named(&["a", "ab", "b", "é"]));
        assert!(in_order.is_some());
        for other in [
            ["é", "b", "ab", "a"],
            ["ab", "a", "b", "é"],
            ["a", "ab", "é", "b"],
        ] {
            assert_eq!(Fields::of(named(&other)), in_order, "{other:?}");
        }
        assert_eq!(Fields::of(Vec::new()), Some(Fields::default()));
    }

    #[test]
    fn a_name_that_stands_twice_makes_no_fields() {
        for names in [&["a", "a"][..], &["b", "a", "b"], &["a", "c", "b", "a"]] {
            assert_eq!(Fields::of(named(names)), None, "{names:?}");
        }
    }
}
