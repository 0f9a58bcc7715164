//! A query that borrows its text from a caller's bytes or from a [`Query`].
//!
//! The cache is searched with it before anything is copied. The code that builds one has checked
//! what a [`Query`] guarantees: type names are not empty.

use std::sync::Arc;

use super::query::{Claimed, Query, Record, RequestEntity, Uid, Value};

/// A borrowed [`Uid`].
pub type UidRef<'a> = Uid<&'a str>;
/// A borrowed [`Value`].
pub type ValueRef<'a> = Value<&'a str>;
/// A borrowed [`Record`].
pub type Fields<'a> = Record<&'a str>;
/// A borrowed [`RequestEntity`].
pub type EntityRef<'a> = RequestEntity<&'a str>;

/// A borrowed [`Query`]; its fields are those of the query.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of `Query`")]
pub struct QueryRef<'a> {
    pub principal: UidRef<'a>,
    pub action: UidRef<'a>,
    pub resource: UidRef<'a>,
    pub context: Fields<'a>,
    pub entities: Vec<EntityRef<'a>>,
    pub claimed: Option<&'a Arc<Claimed>>,
    pub explain: bool,
}

impl QueryRef<'_> {
    /// Copies the query.
    #[must_use]
    pub fn to_query(&self) -> Query {
        let text = |text: &&str| (*text).to_owned();
        let entities = self.entities.iter();
        Query {
            principal: self.principal.convert(&text),
            action: self.action.convert(&text),
            resource: self.resource.convert(&text),
            context: self.context.convert(&text),
            entities: entities.map(|entity| entity.convert(&text)).collect(),
            claimed: self.claimed.cloned(),
            explain: self.explain,
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
        entity.convert(&String::as_str)
    }
}

impl<'a> From<&'a Uid> for UidRef<'a> {
    fn from(uid: &'a Uid) -> Self {
        uid.convert(&String::as_str)
    }
}

impl<'a> From<&'a Record> for Fields<'a> {
    fn from(record: &'a Record) -> Self {
        record.convert(&String::as_str)
    }
}

impl<'a> Record<&'a str> {
    /// Sorts the `entries` of a map. Returns `None` if a name occurs twice.
    ///
    /// The order in which a request lists its fields does not matter: equal fields are equal here,
    /// and have one cache key.
    #[must_use]
    pub fn from_entries(mut entries: Vec<(&'a str, Value<&'a str>)>) -> Option<Self> {
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

// Each `convert` converts every text of a value by one function, from owned to borrowed or back.

impl<T> Uid<T> {
    fn convert<'t, U>(&'t self, text: &impl Fn(&'t T) -> U) -> Uid<U> {
        Uid {
            type_name: text(&self.type_name),
            id: text(&self.id),
        }
    }
}

impl<T> Value<T> {
    fn convert<'t, U>(&'t self, text: &impl Fn(&'t T) -> U) -> Value<U> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Long(value) => Value::Long(*value),
            Self::String(value) => Value::String(text(value)),
            Self::Entity(uid) => Value::Entity(uid.convert(text)),
            Self::Set(members) => {
                Value::Set(members.iter().map(|member| member.convert(text)).collect())
            }
            Self::Record(fields) => Value::Record(fields.convert(text)),
            Self::Decimal(value) => Value::Decimal(text(value)),
            Self::Ip(value) => Value::Ip(text(value)),
            Self::Datetime(value) => Value::Datetime(text(value)),
            Self::Duration(value) => Value::Duration(text(value)),
        }
    }
}

impl<T> Record<T> {
    fn convert<'t, U>(&'t self, text: &impl Fn(&'t T) -> U) -> Record<U> {
        let fields = self.iter();
        Record(
            fields
                .map(|(name, value)| (text(name), value.convert(text)))
                .collect(),
        )
    }
}

impl<T> RequestEntity<T> {
    fn convert<'t, U>(&'t self, text: &impl Fn(&'t T) -> U) -> RequestEntity<U> {
        let parents = self.parents.iter();
        RequestEntity {
            uid: self.uid.convert(text),
            attributes: self.attributes.convert(text),
            parents: parents.map(|parent| parent.convert(text)).collect(),
            tags: self.tags.convert(text),
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
