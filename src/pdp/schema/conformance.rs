//! What a schema declares of entity types, as far as the kind of a value tells whether it fits.
//!
//! Cedar's check of an entity walks types and values several times, and copies them on the way.
//! Nearly all entities are plain, for which it is enough to compare kinds. What does not certainly
//! fit by what stands here is not refused: Cedar is asked, and has the last word.

use std::collections::BTreeMap;

use cedar_policy_core::ast::{
    Entity, EntityType, EntityUID, Literal, PartialValue, Value, ValueKind,
};
use cedar_policy_core::entities::{EntityTypeDescription as _, Schema as _};
use cedar_policy_core::validator::types::{Attributes, BoolType, EntityKind, OpenTag, Type};
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use smol_str::SmolStr;

/// What is declared of an entity type.
#[derive(Debug)]
pub(in crate::pdp) struct Declared {
    pub(in crate::pdp) attributes: DeclaredFields,
    /// The types that a parent may have, as far as they are plain.
    pub(in crate::pdp) parents: Vec<EntityType>,
    pub(in crate::pdp) tags: Option<Expected>,
}

/// What is declared of the fields of a record, or the attributes of an entity.
#[derive(Debug, Default)]
pub(in crate::pdp) struct DeclaredFields {
    /// With each field, whether it is required.
    pub(in crate::pdp) fields: hashbrown::HashMap<SmolStr, (Expected, bool)>,
    pub(in crate::pdp) required: usize,
}

/// The type that a value must be of.
#[derive(Debug)]
pub(in crate::pdp) enum Expected {
    Bool,
    Long,
    String,
    Entity(EntityType),
    Set(Box<Expected>),
    Record(DeclaredFields),
    /// One whose values are left to Cedar.
    Other,
}

/// Types nested deeper are left to Cedar: common types that name one another make types whose size
/// doubles with each level.
const MOST_LEVELS: usize = 6;

/// Whether any id makes an entity of type `ty`: ids of an enumerated type are few and checked one
/// by one, and actions are the schema's.
pub(in crate::pdp) fn is_plain(core: &CoreSchema<'_>, ty: &EntityType) -> bool {
    let found = core.entity_type(ty);
    !ty.is_action() && found.is_some_and(|ty| ty.enum_entity_eids().is_none() && !ty.is_external())
}

/// The plain types of `schema`, with what it declares of them.
pub(in crate::pdp) fn entity_types(
    schema: &ValidatorSchema,
) -> impl Iterator<Item = (&EntityType, Declared)> {
    let core = CoreSchema::new(schema);
    schema.entity_types().filter_map(move |ty| {
        let description = core.entity_type(ty.name())?;
        if !is_plain(&core, ty.name()) || description.open_attributes() {
            return None;
        }
        let parents = description.allowed_parent_types();
        Some((
            ty.name(),
            Declared {
                attributes: DeclaredFields::of(ty.attributes(), MOST_LEVELS),
                parents: parents
                    .iter()
                    .filter(|parent| is_plain(&core, parent))
                    .cloned()
                    .collect(),
                tags: ty.tag_type().map(|ty| Expected::of(ty, MOST_LEVELS)),
            },
        ))
    })
}

impl Expected {
    fn of(ty: &Type, levels: usize) -> Self {
        if levels == 0 {
            return Self::Other;
        }
        match ty {
            Type::Bool(BoolType::AnyBool) => Self::Bool,
            Type::Long => Self::Long,
            Type::String => Self::String,
            Type::Entity(EntityKind::Entity(types)) => match types.get_single_entity() {
                Some(ty) => Self::Entity(ty.clone()),
                None => Self::Other,
            },
            Type::Set { element_type } => match element_type {
                Some(element) => Self::Set(Box::new(Self::of(element, levels - 1))),
                None => Self::Other,
            },
            Type::Record {
                attrs,
                open_attributes: OpenTag::ClosedAttributes,
            } => Self::Record(DeclaredFields::of(attrs, levels - 1)),
            Type::Record {
                open_attributes: OpenTag::OpenAttributes,
                ..
            }
            | Type::Bool(BoolType::True | BoolType::False)
            | Type::Entity(EntityKind::AnyEntity)
            | Type::Never
            | Type::ExtensionType { .. } => Self::Other,
        }
    }
}

impl DeclaredFields {
    fn of(attributes: &Attributes, levels: usize) -> Self {
        let fields: hashbrown::HashMap<SmolStr, (Expected, bool)> = attributes
            .iter()
            .map(|(name, attribute)| {
                let expected = Expected::of(&attribute.attr_type, levels);
                (name.clone(), (expected, attribute.is_required))
            })
            .collect();
        Self {
            required: fields.values().filter(|(_, required)| *required).count(),
            fields,
        }
    }
}

/// The entity types of a schema whose entities are told to fit by what they hold.
#[derive(Debug, Default)]
pub(in crate::pdp) struct DeclaredTypes(hashbrown::HashMap<EntityType, Declared>);

impl DeclaredTypes {
    /// Reads them off `schema`.
    pub(in crate::pdp) fn of(schema: Option<&ValidatorSchema>) -> Self {
        let declared = schema.into_iter().flat_map(entity_types);
        Self(
            declared
                .map(|(ty, declared)| (ty.clone(), declared))
                .collect(),
        )
    }

    /// Whether Cedar certainly takes `entity`, which has these direct parents and no other
    /// ancestors.
    pub(in crate::pdp) fn is_certain(&self, entity: &Entity, parents: &[EntityUID]) -> bool {
        let Some(declared) = self.0.get(entity.uid().entity_type()) else {
            return false;
        };
        let is_value = |value: &PartialValue, expected: &Expected| match value {
            PartialValue::Value(value) => self.is_of(value, expected),
            PartialValue::Residual(_) => false,
        };
        let mut required = 0;
        parents
            .iter()
            .all(|parent| declared.parents.contains(parent.entity_type()))
            && entity.attrs().all(|(name, value)| {
                let found = declared.attributes.fields.get(name);
                found.is_some_and(|(expected, is_required)| {
                    required += usize::from(*is_required);
                    is_value(value, expected)
                })
            })
            && required == declared.attributes.required
            && entity.tags().all(|(_, value)| {
                let expected = declared.tags.as_ref();
                expected.is_some_and(|expected| is_value(value, expected))
            })
    }

    /// Recurses as deep as types are followed.
    fn is_of(&self, value: &Value, expected: &Expected) -> bool {
        match (&value.value, expected) {
            (ValueKind::Lit(Literal::Bool(_)), Expected::Bool)
            | (ValueKind::Lit(Literal::Long(_)), Expected::Long)
            | (ValueKind::Lit(Literal::String(_)), Expected::String) => true,
            (ValueKind::Lit(Literal::EntityUID(uid)), Expected::Entity(ty)) => {
                uid.entity_type() == ty && self.0.contains_key(ty)
            }
            (ValueKind::Set(members), Expected::Set(element)) => {
                members.iter().all(|member| self.is_of(member, element))
            }
            (ValueKind::Record(fields), Expected::Record(declared)) => {
                self.are_of(fields, declared)
            }
            (
                ValueKind::Lit(_)
                | ValueKind::Set(_)
                | ValueKind::Record(_)
                | ValueKind::ExtensionValue(_),
                Expected::Bool
                | Expected::Long
                | Expected::String
                | Expected::Entity(_)
                | Expected::Set(_)
                | Expected::Record(_)
                | Expected::Other,
            ) => false,
        }
    }

    fn are_of(&self, fields: &BTreeMap<SmolStr, Value>, declared: &DeclaredFields) -> bool {
        let mut required = 0;
        fields.iter().all(|(name, value)| {
            let found = declared.fields.get(name);
            found.is_some_and(|(expected, is_required)| {
                required += usize::from(*is_required);
                self.is_of(value, expected)
            })
        }) && required == declared.required
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Whether a `User` with these attributes, parents and tags certainly fits; what Cedar says of
    /// it must be the same where it does.
    fn is_certain(
        attributes: &[(&str, Value)],
        parents: &[EntityUID],
        tags: &[(&str, Value)],
    ) -> bool {
        use cedar_policy_core::entities::conformance::EntitySchemaConformanceChecker;
        use cedar_policy_core::extensions::Extensions;

        let schema: cedar_policy::Schema = "
            entity Level enum [\"low\"];
            entity Group, Other;
            entity User in [Group, Level] = {
              n: Long, name?: String, boss?: User, level?: Level,
              set?: Set<Long>, home?: { city: String, zip?: Long }, since?: datetime,
            } tags Set<String>;"
            .parse()
            .unwrap();
        let partial = |fields: &[(&str, Value)]| -> Vec<(SmolStr, PartialValue)> {
            let field =
                |(name, value): &(&str, Value)| (SmolStr::from(*name), value.clone().into());
            fields.iter().map(field).collect()
        };
        let entity = Entity::new_with_attr_partial_value(
            uid("User", "u"),
            partial(attributes),
            HashSet::new(),
            parents.iter().cloned().collect(),
            partial(tags),
        );
        let certain = DeclaredTypes::of(Some(schema.as_ref())).is_certain(&entity, parents);
        let core = CoreSchema::new(schema.as_ref());
        let cedar = EntitySchemaConformanceChecker::new(&core, Extensions::all_available());
        if certain {
            cedar.validate_entity(&entity).unwrap();
        }
        certain
    }

    fn uid(ty: &str, id: &str) -> EntityUID {
        EntityUID::with_eid_and_type(ty, id).unwrap()
    }

    fn record(fields: &[(&str, Value)]) -> Value {
        let field = |(name, value): &(&str, Value)| (SmolStr::from(*name), value.clone());
        Value::record_arc(
            std::sync::Arc::new(fields.iter().map(field).collect()),
            None,
        )
    }

    #[test]
    fn a_plain_entity_certainly_fits() {
        let n = || ("n", Value::from(1));
        let set = || Value::set([Value::from(1), Value::from(2)], None);
        assert!(is_certain(&[n()], &[], &[]));
        assert!(is_certain(
            &[
                n(),
                ("name", Value::from("ann")),
                ("boss", Value::from(uid("User", "bob"))),
                ("set", set()),
                ("home", record(&[("city", Value::from("X"))])),
            ],
            &[uid("Group", "g")],
            &[
                ("any", Value::set([Value::from("t")], None)),
                ("none", Value::set([], None))
            ],
        ));
    }

    #[test]
    fn any_other_entity_is_left_to_cedar() {
        let n = || ("n", Value::from(1));
        for attributes in [
            vec![],
            vec![("n", Value::from("1"))],
            vec![n(), ("more", Value::from(1))],
            vec![n(), ("boss", Value::from(uid("Other", "x")))],
            vec![n(), ("level", Value::from(uid("Level", "low")))],
            vec![n(), ("level", Value::from(uid("Level", "high")))],
            vec![n(), ("set", Value::set([Value::from("a")], None))],
            vec![n(), ("set", Value::from(1))],
            vec![n(), ("home", record(&[]))],
            vec![
                n(),
                (
                    "home",
                    record(&[("city", Value::from("X")), ("more", Value::from(1))]),
                ),
            ],
            vec![n(), ("since", Value::from("2024-01-01"))],
        ] {
            assert!(!is_certain(&attributes, &[], &[]), "{attributes:?}");
        }
        for parent in [uid("Other", "x"), uid("User", "v"), uid("Level", "low")] {
            assert!(
                !is_certain(&[n()], std::slice::from_ref(&parent), &[]),
                "{parent}"
            );
        }
        assert!(!is_certain(&[n()], &[], &[("tag", Value::from("t"))]));
    }

    #[test]
    fn an_entity_of_no_plain_type_is_left_to_cedar() {
        let entity = Entity::with_uid(uid("User", "u"));
        assert!(!DeclaredTypes::of(None).is_certain(&entity, &[]));
    }
}
