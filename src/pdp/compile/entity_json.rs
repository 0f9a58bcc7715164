//! Parses entities in plain JSON straight into a segment.
//!
//! Cedar's parser builds four trees for an entity, and takes most of a minute for a million. Nearly
//! all entities are plain: values have the declared types, and uids are `{"type": …, "id": …}`.
//! These are parsed here. An entity that Cedar might reject, or might read differently, is left to
//! Cedar, which also reports its errors.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use cedar_policy_core::ast::EntityType;
use cedar_policy_core::validator::ValidatorSchema;
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::segment::Draft;
use crate::pdp::schema::conformance::{self, EntitySpec, RecordSpec, TypeTag};
use crate::pdp::values::parse_type_name;

/// The error for an entity that only Cedar parses: not plain, or not definitely valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPlain;

/// An entity in plain JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainEntity<'a> {
    #[serde(borrow)]
    uid: PlainUid<'a>,
    #[serde(borrow)]
    attrs: Fields<'a>,
    #[serde(borrow)]
    parents: Vec<PlainUid<'a>>,
    #[serde(borrow, default)]
    tags: Fields<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainUid<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// The fields of a JSON object, in order.
#[derive(Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// A JSON value that has a Cedar counterpart: no null, and no fraction.
enum Json<'a> {
    Bool(bool),
    Long(i64),
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Fields<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct JsonVisitor;
        impl<'de> Visitor<'de> for JsonVisitor {
            type Value = Json<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, integer, string, array or object")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(Json::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Json::Long(value))
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
                i64::try_from(value).map(Json::Long).map_err(E::custom)
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Json::String(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Json::String(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = seq.next_element()? {
                    members.push(member);
                }
                Ok(Json::Array(members))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                read_fields(map).map(Json::Object)
            }
        }
        deserializer.deserialize_any(JsonVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                read_fields(map)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Reads the fields of a JSON object, duplicates included.
fn read_fields<'de, A: MapAccess<'de>>(mut map: A) -> Result<Fields<'de>, A::Error> {
    /// A field name, borrowed if its text has no escapes.
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
    let mut fields = Vec::new();
    while let Some((Name(name), value)) = map.next_entry()? {
        fields.push((name, value));
    }
    Ok(Fields(fields))
}

/// A parser of plain entities, under a schema or without one.
pub(super) struct PlainEntityParser {
    /// Declarations by type name. `None` without a schema: then all types and values are accepted.
    specs: Option<HashMap<String, EntitySpec>>,
}

impl PlainEntityParser {
    /// Reads the entity types of `schema`.
    pub(super) fn new(schema: Option<&ValidatorSchema>) -> Self {
        Self {
            specs: schema.map(|schema| {
                let specs = conformance::entity_types(schema);
                specs.map(|(ty, spec)| (ty.to_string(), spec)).collect()
            }),
        }
    }

    /// Writes the entity in `json`, which begins at byte `origin` of its file, to `draft`.
    ///
    /// Leaves `draft` unchanged when the entity is not plain.
    pub(super) fn read(
        &self,
        json: &str,
        origin: usize,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        let entity: PlainEntity<'_> = serde_json::from_str(json).map_err(|_| NotPlain)?;
        let spec = match &self.specs {
            None => None,
            Some(specs) => Some(specs.get(entity.uid.r#type.as_ref()).ok_or(NotPlain)?),
        };
        let uid = self.uid(&entity.uid, draft, types)?;
        draft.begin(uid, origin).map_err(|_| NotPlain)?;
        let written = self.write(&entity, spec, draft, types);
        if written.is_err() {
            draft.discard_last();
        }
        written
    }

    /// Writes parents, attributes and tags.
    fn write(
        &self,
        entity: &PlainEntity<'_>,
        spec: Option<&EntitySpec>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        for parent in &entity.parents {
            if let Some(spec) = spec
                && !spec.parents.contains(types.parse(&parent.r#type)?)
            {
                return Err(NotPlain);
            }
            let parent = self.uid(parent, draft, types)?;
            draft.parent(parent);
        }
        let attributes = spec.map(|spec| &spec.attributes);
        self.fields(&entity.attrs, attributes, draft, types)?;
        let Fields(tags) = &entity.tags;
        check_distinct(tags)?;
        draft.count(tags.len());
        for (name, value) in tags {
            let expected = match spec {
                None => None,
                Some(spec) => Some(spec.tags.as_ref().ok_or(NotPlain)?),
            };
            draft.name(name);
            self.value(value, expected, draft, types)?;
        }
        Ok(())
    }

    /// Writes `fields`, which must be the declared ones.
    fn fields(
        &self,
        Fields(fields): &Fields<'_>,
        spec: Option<&RecordSpec>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        check_distinct(fields)?;
        draft.count(fields.len());
        let mut required = 0;
        for (name, value) in fields {
            let expected = match spec {
                None => None,
                Some(spec) => {
                    let (expected, is_required) = spec.fields.get(name.as_ref()).ok_or(NotPlain)?;
                    required += usize::from(*is_required);
                    Some(expected)
                }
            };
            draft.name(name);
            self.value(value, expected, draft, types)?;
        }
        match spec {
            Some(spec) if spec.required != required => Err(NotPlain),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes `value`, which must have the `expected` type if there is one.
    fn value(
        &self,
        value: &Json<'_>,
        expected: Option<&TypeTag>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        match (value, expected) {
            (Json::Bool(value), None | Some(TypeTag::Bool)) => draft.bool(*value),
            (Json::Long(value), None | Some(TypeTag::Long)) => draft.long(*value),
            (Json::String(text), None | Some(TypeTag::String)) => draft.string(text),
            (Json::Array(members), None) => self.set(members, None, draft, types)?,
            (Json::Array(members), Some(TypeTag::Set(element))) => {
                self.set(members, Some(element), draft, types)?;
            }
            (Json::Object(Fields(fields)), Some(TypeTag::Entity(ty))) => {
                let uid = plain_uid(fields)?;
                if types.parse(&uid.r#type)? != ty {
                    return Err(NotPlain);
                }
                let uid = self.uid(&uid, draft, types)?;
                draft.entity(uid);
            }
            // `__entity`, `__extn` and `__expr` have a special meaning.
            (Json::Object(Fields(fields)), _)
                if fields.iter().any(|(name, _)| name.starts_with("__")) =>
            {
                return Err(NotPlain);
            }
            (Json::Object(fields), None) => {
                draft.begin_record();
                self.fields(fields, None, draft, types)?;
            }
            (Json::Object(fields), Some(TypeTag::Record(spec))) => {
                draft.begin_record();
                self.fields(fields, Some(spec), draft, types)?;
            }
            (
                Json::Bool(_) | Json::Long(_) | Json::String(_) | Json::Array(_) | Json::Object(_),
                Some(_),
            ) => return Err(NotPlain),
        }
        Ok(())
    }

    fn set(
        &self,
        members: &[Json<'_>],
        element: Option<&TypeTag>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        draft.set(members.len());
        members
            .iter()
            .try_for_each(|member| self.value(member, element, draft, types))
    }

    fn uid(
        &self,
        uid: &PlainUid<'_>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<UidId, NotPlain> {
        let PlainUid { r#type, id } = uid;
        if let Some(specs) = &self.specs
            && !specs.contains_key(r#type.as_ref())
        {
            // The type is enumerated, an action type, external or unknown.
            return Err(NotPlain);
        }
        let ty = types.parse(r#type)?;
        if ty.is_action() {
            return Err(NotPlain);
        }
        let ty = match draft.uids().find_type_named(r#type) {
            Some(ty) => ty,
            None => draft.uids().add_type(ty),
        };
        draft.uids().add(ty, id).map_err(|_| NotPlain)
    }
}

/// A cache of parsed entity type names, one for each file.
#[derive(Default)]
pub(super) struct ParsedTypeNames(HashMap<String, EntityType>);

impl ParsedTypeNames {
    /// Returns the type named by `text`, which must be in normal form.
    fn parse(&mut self, text: &str) -> Result<&EntityType, NotPlain> {
        if !self.0.contains_key(text) {
            let ty = parse_type_name(text).ok_or(NotPlain)?;
            self.0.insert(text.to_owned(), ty);
        }
        self.0.get(text).ok_or(NotPlain)
    }
}

/// Returns the uid in the fields of a JSON object.
fn plain_uid<'a>(fields: &'a [(Cow<'_, str>, Json<'_>)]) -> Result<PlainUid<'a>, NotPlain> {
    let text = |value: &'a Json<'_>| match value {
        Json::String(text) => Ok(Cow::Borrowed(text.as_ref())),
        Json::Bool(_) | Json::Long(_) | Json::Array(_) | Json::Object(_) => Err(NotPlain),
    };
    let (ty, id) = match fields {
        [(first, ty), (second, id)] if first == "type" && second == "id" => (ty, id),
        [(first, id), (second, ty)] if first == "id" && second == "type" => (ty, id),
        [(escape, Json::Object(Fields(fields)))] if escape == "__entity" => {
            return plain_uid(fields);
        }
        _ => return Err(NotPlain),
    };
    Ok(PlainUid {
        r#type: text(ty)?,
        id: text(id)?,
    })
}

/// Rejects duplicate names, as Cedar does.
fn check_distinct(fields: &[(Cow<'_, str>, Json<'_>)]) -> Result<(), NotPlain> {
    /// Up to this number of names, comparing all pairs is faster than hashing.
    const MAX_COMPARED: usize = 16;
    let is_distinct = if fields.len() <= MAX_COMPARED {
        fields.iter().enumerate().all(|(index, (name, _))| {
            let earlier = fields.get(..index).unwrap_or_default();
            earlier.iter().all(|(other, _)| other != name)
        })
    } else {
        let names: HashSet<&str> = fields.iter().map(|(name, _)| name.as_ref()).collect();
        names.len() == fields.len()
    };
    if is_distinct { Ok(()) } else { Err(NotPlain) }
}
