//! Parses entities in plain JSON straight into a segment.
//!
//! Cedar's parser builds four trees for an entity, and takes most of a minute for a million. Nearly
//! all entities are plain: values have the declared types, and uids are `{"type": …, "id": …}`.
//! These are parsed here. An entity that Cedar might reject, or might read differently, is left to
//! Cedar, which also reports its errors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use cedar_policy_core::ast::EntityType;
use cedar_policy_core::validator::ValidatorSchema;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::segment::Draft;
use crate::pdp::schema::conformance::{self, EntitySpec, RecordSpec, TypeTag};
use crate::pdp::values::parse_type_name;

/// The error for an entity that only Cedar parses: not plain, or not definitely valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPlain;

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

            /// Reads the fields of a JSON object, duplicates included.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                /// A field name, borrowed if its text has no escapes.
                #[derive(Deserialize)]
                #[serde(transparent)]
                struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
                let mut fields = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Json::Object(Fields(fields)))
            }
        }
        deserializer.deserialize_any(JsonVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Json::Object(fields) = Json::deserialize(deserializer)? else {
            return Err(D::Error::custom("not an object"));
        };
        Ok(fields)
    }
}

/// A parser of plain entities, under a schema or without one.
pub(super) struct PlainEntityParser {
    /// Declarations by type name. `None` without a schema: then all types and values are accepted.
    specs: Option<HashMap<String, EntitySpec>>,
}

impl PlainEntityParser {
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
        let specs = self.specs.as_ref();
        let mut writer = EntityWriter {
            specs,
            draft,
            types,
        };
        let uid = writer.uid(&entity.uid)?;
        writer.draft.begin(uid, origin).map_err(|_| NotPlain)?;
        let written = writer.entity(&entity, spec);
        if written.is_err() {
            draft.discard_last();
        }
        written
    }
}

/// A writer of one file's plain entities.
struct EntityWriter<'a> {
    specs: Option<&'a HashMap<String, EntitySpec>>,
    draft: &'a mut Draft,
    types: &'a mut ParsedTypeNames,
}

impl EntityWriter<'_> {
    fn entity(
        &mut self,
        entity: &PlainEntity<'_>,
        spec: Option<&EntitySpec>,
    ) -> Result<(), NotPlain> {
        for parent in &entity.parents {
            if let Some(spec) = spec
                && !spec.parents.contains(self.types.parse(&parent.r#type)?)
            {
                return Err(NotPlain);
            }
            let parent = self.uid(parent)?;
            self.draft.parent(parent);
        }
        self.record(&entity.attrs, spec.map(|spec| &spec.attributes))?;
        self.fields(&entity.tags, |_| match spec {
            None => Ok(None),
            Some(spec) => spec.tags.as_ref().ok_or(NotPlain).map(Some),
        })
    }

    /// Writes attributes or the fields of a record, which must be the declared ones.
    fn record(&mut self, fields: &Fields<'_>, spec: Option<&RecordSpec>) -> Result<(), NotPlain> {
        let mut required = 0;
        self.fields(fields, |name| {
            let Some(spec) = spec else {
                return Ok(None);
            };
            let (expected, is_required) = spec.fields.get(name).ok_or(NotPlain)?;
            required += usize::from(*is_required);
            Ok(Some(expected))
        })?;
        match spec {
            Some(spec) if spec.required != required => Err(NotPlain),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes `fields`, which must have distinct names and the `expected` types.
    fn fields<'t>(
        &mut self,
        Fields(fields): &Fields<'_>,
        mut expected: impl FnMut(&str) -> Result<Option<&'t TypeTag>, NotPlain>,
    ) -> Result<(), NotPlain> {
        check_distinct(fields)?;
        self.draft.count(fields.len());
        for (name, value) in fields {
            let expected = expected(name)?;
            self.draft.name(name);
            self.value(value, expected)?;
        }
        Ok(())
    }

    /// Writes `value`, which must have the `expected` type if there is one.
    fn value(&mut self, value: &Json<'_>, expected: Option<&TypeTag>) -> Result<(), NotPlain> {
        match (value, expected) {
            (Json::Bool(value), None | Some(TypeTag::Bool)) => self.draft.bool(*value),
            (Json::Long(value), None | Some(TypeTag::Long)) => self.draft.long(*value),
            (Json::String(text), None | Some(TypeTag::String)) => self.draft.string(text),
            (Json::Array(members), None) => self.set(members, None)?,
            (Json::Array(members), Some(TypeTag::Set(element))) => {
                self.set(members, Some(element))?;
            }
            (Json::Object(Fields(fields)), Some(TypeTag::Entity(ty))) => {
                let uid = plain_uid(fields)?;
                if self.types.parse(&uid.r#type)? != ty {
                    return Err(NotPlain);
                }
                let uid = self.uid(&uid)?;
                self.draft.entity(uid);
            }
            // `__entity`, `__extn` and `__expr` have a special meaning.
            (Json::Object(Fields(fields)), _)
                if fields.iter().any(|(name, _)| name.starts_with("__")) =>
            {
                return Err(NotPlain);
            }
            (Json::Object(fields), None) => {
                self.draft.begin_record();
                self.record(fields, None)?;
            }
            (Json::Object(fields), Some(TypeTag::Record(spec))) => {
                self.draft.begin_record();
                self.record(fields, Some(spec))?;
            }
            (
                Json::Bool(_) | Json::Long(_) | Json::String(_) | Json::Array(_) | Json::Object(_),
                Some(_),
            ) => return Err(NotPlain),
        }
        Ok(())
    }

    fn set(&mut self, members: &[Json<'_>], element: Option<&TypeTag>) -> Result<(), NotPlain> {
        self.draft.set(members.len());
        members
            .iter()
            .try_for_each(|member| self.value(member, element))
    }

    fn uid(&mut self, PlainUid { r#type, id }: &PlainUid<'_>) -> Result<UidId, NotPlain> {
        if let Some(specs) = self.specs
            && !specs.contains_key(r#type.as_ref())
        {
            // The type is enumerated, an action type, external or unknown.
            return Err(NotPlain);
        }
        let ty = self.types.parse(r#type)?;
        if ty.is_action() {
            return Err(NotPlain);
        }
        let uids = self.draft.uids();
        let ty = match uids.find_type_named(r#type) {
            Some(ty) => ty,
            None => uids.add_type(ty),
        };
        uids.add(ty, id).map_err(|_| NotPlain)
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
    let text = |value: &'a Json<'_>| {
        let Json::String(text) = value else {
            return Err(NotPlain);
        };
        Ok(Cow::Borrowed(text.as_ref()))
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
    let names = fields.iter().map(|(name, _)| name.as_ref());
    let mut names: SmallVec<[&str; 16]> = names.collect();
    names.sort_unstable();
    match names.is_sorted_by(|one, next| one < next) {
        true => Ok(()),
        false => Err(NotPlain),
    }
}
