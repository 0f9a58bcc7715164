//! A query that borrows its text from a caller's bytes or from a [`Query`].
//!
//! The cache is searched with it before anything is copied. The code that builds one has checked
//! what a [`Query`] guarantees: type names are not empty.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use super::query::{Claimed, Query, Record, RequestEntity, Uid, Value};

/// A borrowed [`Uid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRef<'a> {
    /// The type's name.
    pub type_name: &'a str,
    /// The id.
    pub id: &'a str,
}

/// A borrowed [`Value`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are those of `Value`")]
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

/// Borrowed named values, sorted by name, each name once.
///
/// The order in which a request lists its fields does not matter: equal fields are equal here, and
/// have one cache key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a>(Vec<(&'a str, ValueRef<'a>)>);

impl<'a> Fields<'a> {
    /// Sorts the `entries` of a map. Returns `None` if a name occurs twice.
    #[must_use]
    pub fn from_entries(mut entries: Vec<(&'a str, ValueRef<'a>)>) -> Option<Self> {
        let in_order = |(one, _): &(&str, _), (next, _): &(&str, _)| one < next;
        // Many clients send their maps in order.
        if !entries.is_sorted_by(in_order) {
            entries.sort_unstable_by_key(|(name, _)| *name);
            if !entries.is_sorted_by(in_order) {
                return None;
            }
        }
        Some(Self(entries))
    }
}

impl<'a> From<BTreeMap<&'a str, ValueRef<'a>>> for Fields<'a> {
    fn from(fields: BTreeMap<&'a str, ValueRef<'a>>) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl<'a> Deref for Fields<'a> {
    type Target = [(&'a str, ValueRef<'a>)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A borrowed [`RequestEntity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityRef<'a> {
    /// The entity's uid.
    pub uid: UidRef<'a>,
    /// The entity's attributes.
    pub attributes: Fields<'a>,
    /// The entities that this one is a direct member of.
    pub parents: Vec<UidRef<'a>>,
    /// The entity's tags.
    pub tags: Fields<'a>,
}

/// A borrowed [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryRef<'a> {
    /// The principal that wants to act.
    pub principal: UidRef<'a>,
    /// The requested action.
    pub action: UidRef<'a>,
    /// The resource that the action applies to.
    pub resource: UidRef<'a>,
    /// The request's context.
    pub context: Fields<'a>,
    /// Entities that exist for this request only.
    pub entities: Vec<EntityRef<'a>>,
    /// The principal's attributes and parents from a verified token.
    pub claimed: Option<&'a Arc<Claimed>>,
    /// True if the answer must include an explanation.
    pub explain: bool,
}

impl QueryRef<'_> {
    /// Copies the query.
    #[must_use]
    pub fn to_query(&self) -> Query {
        Query {
            principal: self.principal.to_uid(),
            action: self.action.to_uid(),
            resource: self.resource.to_uid(),
            context: self.context.to_record(),
            entities: self.entities.iter().map(EntityRef::to_entity).collect(),
            claimed: self.claimed.cloned(),
            explain: self.explain,
        }
    }
}

impl EntityRef<'_> {
    fn to_entity(&self) -> RequestEntity {
        RequestEntity {
            uid: self.uid.to_uid(),
            attributes: self.attributes.to_record(),
            parents: self.parents.iter().map(|parent| parent.to_uid()).collect(),
            tags: self.tags.to_record(),
        }
    }
}

impl UidRef<'_> {
    fn to_uid(self) -> Uid {
        Uid::new(self.type_name, self.id)
    }
}

impl Fields<'_> {
    fn to_record(&self) -> Record {
        let fields = self.iter();
        fields
            .map(|(name, value)| ((*name).to_owned(), value.to_value()))
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

impl ValueRef<'_> {
    fn to_value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Long(value) => Value::Long(*value),
            Self::String(text) => Value::String((*text).to_owned()),
            Self::Entity(uid) => Value::Entity(uid.to_uid()),
            Self::Set(members) => Value::Set(members.iter().map(Self::to_value).collect()),
            Self::Record(fields) => Value::Record(fields.to_record()),
            Self::Decimal(text) => Value::Decimal((*text).to_owned()),
            Self::Ip(text) => Value::Ip((*text).to_owned()),
            Self::Datetime(text) => Value::Datetime((*text).to_owned()),
            Self::Duration(text) => Value::Duration((*text).to_owned()),
        }
    }
}

impl<'a> From<&'a Query> for QueryRef<'a> {
    fn from(query: &'a Query) -> Self {
        Self {
            principal: (&query.principal).into(),
            action: (&query.action).into(),
            resource: (&query.resource).into(),
            context: (&query.context).into(),
            entities: query.entities.iter().map(EntityRef::from).collect(),
            claimed: query.claimed.as_ref(),
            explain: query.explain,
        }
    }
}

impl<'a> From<&'a RequestEntity> for EntityRef<'a> {
    fn from(entity: &'a RequestEntity) -> Self {
        Self {
            uid: (&entity.uid).into(),
            attributes: (&entity.attributes).into(),
            parents: entity.parents.iter().map(UidRef::from).collect(),
            tags: (&entity.tags).into(),
        }
    }
}

impl<'a> From<&'a Uid> for UidRef<'a> {
    fn from(uid: &'a Uid) -> Self {
        let Uid { type_name, id } = uid;
        Self { type_name, id }
    }
}

impl<'a> From<&'a Record> for Fields<'a> {
    fn from(record: &'a Record) -> Self {
        // A record is sorted in the same way.
        let fields = record.iter().map(|(name, value)| (name, value.into()));
        Self(fields.collect())
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Long(value) => Self::Long(*value),
            Value::String(text) => Self::String(text),
            Value::Entity(uid) => Self::Entity(uid.into()),
            Value::Set(members) => Self::Set(members.iter().map(Self::from).collect()),
            Value::Record(record) => Self::Record(record.into()),
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
    fn order_of_fields_does_not_matter() {
        let in_order = Fields::from_entries(named(&["a", "ab", "b", "é"]));
        assert!(in_order.is_some());
        for other in [
            ["é", "b", "ab", "a"],
            ["ab", "a", "b", "é"],
            ["a", "ab", "é", "b"],
        ] {
            assert_eq!(Fields::from_entries(named(&other)), in_order, "{other:?}");
        }
        assert_eq!(Fields::from_entries(Vec::new()), Some(Fields::default()));
    }

    #[test]
    fn duplicate_field_names_are_rejected() {
        for names in [&["a", "a"][..], &["b", "a", "b"], &["a", "c", "b", "a"]] {
            assert_eq!(Fields::from_entries(named(names)), None, "{names:?}");
        }
    }
}
