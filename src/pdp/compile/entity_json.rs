//! Reads an entity that is written plainly, straight into a segment.
//!
//! Cedar's parser makes four trees of an entity on the way to its value, and a million entities
//! take it most of a minute. Nearly all of them are written in the plainest way there is: the
//! values are those that their type's declaration asks for, uids are `{"type": …, "id": …}`.
//! Such an entity is read here. Whatever is not certainly what Cedar would take, and take in the
//! same sense, is left to Cedar, which also has the word on what is wrong with it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use cedar_policy_core::ast::EntityType;
use cedar_policy_core::validator::ValidatorSchema;
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::segment::Draft;
use crate::pdp::schema::conformance::{self, EntitySpec, RecordSpec, TypeTag};
use crate::pdp::values::parse_type_name;

/// The entity is not written plainly, or not certainly right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPlain;

/// An entity as it is written plainly.
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

/// The fields of a JSON object, in the order in which they stand.
#[derive(Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// A JSON value of a kind that a Cedar value can have.
enum Json<'a> {
    Bool(bool),
    Long(i64),
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Fields<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value that Cedar has")
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
                fields(map).map(Json::Object)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                fields(map)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn fields<'de, A: MapAccess<'de>>(mut map: A) -> Result<Fields<'de>, A::Error> {
    /// A name, borrowed where its text has no escapes.
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
    let mut fields = Vec::new();
    while let Some((Name(name), value)) = map.next_entry()? {
        fields.push((name, value));
    }
    Ok(Fields(fields))
}

/// The entity types whose entities can be read here, under one schema or none.
pub(super) struct PlainTypes {
    /// By written name; `None` without a schema: then any type and any value will do.
    declared: Option<HashMap<String, EntitySpec>>,
}

impl PlainTypes {
    /// The types of `schema`.
    pub(super) fn of(schema: Option<&ValidatorSchema>) -> Self {
        Self {
            declared: schema.map(|schema| {
                let declared = conformance::entity_types(schema);
                declared
                    .map(|(ty, declared)| (ty.to_string(), declared))
                    .collect()
            }),
        }
    }

    /// Writes the entity in `json`, which begins at byte `origin` of its file, to `draft`; the
    /// draft is as it was when the entity is not plain.
    pub(super) fn read(
        &self,
        json: &str,
        origin: usize,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        let entity: PlainEntity<'_> = serde_json::from_str(json).map_err(|_| NotPlain)?;
        let declared = match &self.declared {
            None => None,
            Some(declared) => Some(declared.get(entity.uid.r#type.as_ref()).ok_or(NotPlain)?),
        };
        let uid = self.uid(&entity.uid, draft, types)?;
        draft.begin(uid, origin).map_err(|_| NotPlain)?;
        let written = self.write(&entity, declared, draft, types);
        if written.is_err() {
            draft.discard_last();
        }
        written
    }

    fn write(
        &self,
        entity: &PlainEntity<'_>,
        declared: Option<&EntitySpec>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        for parent in &entity.parents {
            if let Some(declared) = declared
                && !declared.parents.contains(types.of(&parent.r#type)?)
            {
                return Err(NotPlain);
            }
            let parent = self.uid(parent, draft, types)?;
            draft.parent(parent);
        }
        let attributes = declared.map(|declared| &declared.attributes);
        self.fields(&entity.attrs, attributes, draft, types)?;
        let Fields(tags) = &entity.tags;
        distinct(tags)?;
        draft.count(tags.len());
        for (name, value) in tags {
            let expected = match declared {
                None => None,
                Some(declared) => Some(declared.tags.as_ref().ok_or(NotPlain)?),
            };
            draft.name(name);
            self.value(value, expected, draft, types)?;
        }
        Ok(())
    }

    /// Writes `fields`, which must be those that are declared.
    fn fields(
        &self,
        Fields(fields): &Fields<'_>,
        declared: Option<&RecordSpec>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<(), NotPlain> {
        distinct(fields)?;
        draft.count(fields.len());
        let mut required = 0;
        for (name, value) in fields {
            let expected = match declared {
                None => None,
                Some(declared) => {
                    let (expected, is_required) =
                        declared.fields.get(name.as_ref()).ok_or(NotPlain)?;
                    required += usize::from(*is_required);
                    Some(expected)
                }
            };
            draft.name(name);
            self.value(value, expected, draft, types)?;
        }
        match declared {
            Some(declared) if declared.required != required => Err(NotPlain),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes `value`, which must be of the `expected` type where one is declared.
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
            (Json::Array(members), None) => {
                draft.set(members.len());
                for member in members {
                    self.value(member, None, draft, types)?;
                }
            }
            (Json::Array(members), Some(TypeTag::Set(element))) => {
                draft.set(members.len());
                for member in members {
                    self.value(member, Some(element), draft, types)?;
                }
            }
            (Json::Object(Fields(fields)), Some(TypeTag::Entity(ty))) => {
                let uid = uid_of(fields)?;
                if types.of(&uid.r#type)? != ty {
                    return Err(NotPlain);
                }
                let uid = self.uid(&uid, draft, types)?;
                draft.entity(uid);
            }
            // `__entity`, `__extn` and `__expr` are escapes.
            (Json::Object(Fields(fields)), _)
                if fields.iter().any(|(name, _)| name.starts_with("__")) =>
            {
                return Err(NotPlain);
            }
            (Json::Object(fields), None) => {
                draft.begin_record();
                self.fields(fields, None, draft, types)?;
            }
            (Json::Object(fields), Some(TypeTag::Record(declared))) => {
                draft.begin_record();
                self.fields(fields, Some(declared), draft, types)?;
            }
            (
                Json::Bool(_) | Json::Long(_) | Json::String(_) | Json::Array(_) | Json::Object(_),
                Some(_),
            ) => return Err(NotPlain),
        }
        Ok(())
    }

    fn uid(
        &self,
        uid: &PlainUid<'_>,
        draft: &mut Draft,
        types: &mut ParsedTypeNames,
    ) -> Result<UidId, NotPlain> {
        let PlainUid { r#type, id } = uid;
        if let Some(declared) = &self.declared
            && !declared.contains_key(r#type.as_ref())
        {
            // Of an enumerated type, an action, external, or unknown.
            return Err(NotPlain);
        }
        let ty = types.of(r#type)?;
        if ty.is_action() {
            return Err(NotPlain);
        }
        let ty = match draft.uids().find_type_named(r#type) {
            Some(number) => number,
            None => draft.uids().add_type(ty),
        };
        draft.uids().add(ty, id).map_err(|_| NotPlain)
    }
}

/// Entity types by their text, parsed once for each file.
#[derive(Default)]
pub(super) struct ParsedTypeNames(HashMap<String, EntityType>);

impl ParsedTypeNames {
    /// The type that `text` names in its normal spelling.
    fn of(&mut self, text: &str) -> Result<&EntityType, NotPlain> {
        if !self.0.contains_key(text) {
            let ty = parse_type_name(text).ok_or(NotPlain)?;
            self.0.insert(text.to_owned(), ty);
        }
        self.0.get(text).ok_or(NotPlain)
    }
}

fn uid_of<'a>(fields: &'a [(Cow<'_, str>, Json<'_>)]) -> Result<PlainUid<'a>, NotPlain> {
    let text = |value: &'a Json<'_>| match value {
        Json::String(text) => Ok(Cow::Borrowed(text.as_ref())),
        Json::Bool(_) | Json::Long(_) | Json::Array(_) | Json::Object(_) => Err(NotPlain),
    };
    match fields {
        [(one, a), (other, b)] if one == "type" && other == "id" => Ok(PlainUid {
            r#type: text(a)?,
            id: text(b)?,
        }),
        [(one, a), (other, b)] if one == "id" && other == "type" => Ok(PlainUid {
            r#type: text(b)?,
            id: text(a)?,
        }),
        [(escape, Json::Object(Fields(fields)))] if escape == "__entity" => uid_of(fields),
        _ => Err(NotPlain),
    }
}

/// Whether no name stands twice, which Cedar refuses.
fn distinct(fields: &[(Cow<'_, str>, Json<'_>)]) -> Result<(), NotPlain> {
    const FEW: usize = 16;
    let is_distinct = if fields.len() <= FEW {
        fields.iter().enumerate().all(|(at, (name, _))| {
            let before = fields.get(..at).unwrap_or_default();
            before.iter().all(|(other, _)| other != name)
        })
    } else {
        let names: std::collections::HashSet<&str> =
            fields.iter().map(|(name, _)| name.as_ref()).collect();
        names.len() == fields.len()
    };
    if is_distinct { Ok(()) } else { Err(NotPlain) }
}
