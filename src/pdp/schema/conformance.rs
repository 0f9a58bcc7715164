//! Decides by the kinds of values whether a request or an entity conforms to the schema.
//!
//! Cedar's checks walk types and values several times and copy them on the way. Most contexts and
//! entities are a few plain values, for which comparing kinds is enough. A value that does not
//! definitely conform is not rejected here: Cedar checks it, and its result is final.

use std::collections::{BTreeMap, HashSet};

use cedar_policy_core::ast::{
    Entity, EntityType, EntityUID, Literal, PartialValue, Value, ValueKind,
};
use cedar_policy_core::entities::{EntityTypeDescription as _, Schema as _};
use cedar_policy_core::validator::types::{Attributes, BoolType, EntityKind, OpenTag, Type};
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use smol_str::SmolStr;

use crate::pdp::switches;

/// The types of a schema, for checks without Cedar.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Conformance {
    entities: hashbrown::HashMap<EntityType, EntitySpec>,
    actions: hashbrown::HashMap<EntityUID, ActionSpec>,
}

/// The declaration of an entity type.
#[derive(Debug)]
pub(in crate::pdp) struct EntitySpec {
    pub(in crate::pdp) attributes: RecordSpec,
    /// The plain types that a parent may have.
    pub(in crate::pdp) parents: Vec<EntityType>,
    pub(in crate::pdp) tags: Option<TypeTag>,
}

/// The declaration of an action: plain types of principal and resource, and the context.
#[derive(Debug)]
struct ActionSpec {
    principals: HashSet<EntityType>,
    resources: HashSet<EntityType>,
    context: RecordSpec,
}

/// The declared fields of a record, or attributes of an entity.
#[derive(Debug, Default)]
pub(in crate::pdp) struct RecordSpec {
    /// The type of each field, and whether the field is required.
    pub(in crate::pdp) fields: hashbrown::HashMap<SmolStr, (TypeTag, bool)>,
    pub(in crate::pdp) required: usize,
}

/// The declared type of a value.
#[derive(Debug)]
pub(in crate::pdp) enum TypeTag {
    Bool,
    Long,
    String,
    Entity(EntityType),
    Set(Box<TypeTag>),
    Record(RecordSpec),
    /// A type whose values only Cedar checks.
    Other,
}

/// The maximum depth of types that are compared; Cedar checks deeper ones. Common types that refer
/// to one another can double the size of a type with each level.
const MAX_LEVELS: usize = 6;

/// Returns whether `ty` accepts any id: it is neither enumerated nor an action type.
fn is_plain(core: &CoreSchema<'_>, ty: &EntityType) -> bool {
    let spec = core.entity_type(ty);
    !ty.is_action() && spec.is_some_and(|ty| ty.enum_entity_eids().is_none() && !ty.is_external())
}

/// Returns the plain entity types of `schema` with their declarations.
pub(in crate::pdp) fn entity_types(
    schema: &ValidatorSchema,
) -> impl Iterator<Item = (&EntityType, EntitySpec)> {
    let core = CoreSchema::new(schema);
    schema.entity_types().filter_map(move |ty| {
        let description = core.entity_type(ty.name())?;
        if !is_plain(&core, ty.name()) || description.open_attributes() {
            return None;
        }
        let parents = description.allowed_parent_types();
        Some((
            ty.name(),
            EntitySpec {
                attributes: RecordSpec::new(ty.attributes(), MAX_LEVELS),
                parents: parents
                    .iter()
                    .filter(|parent| is_plain(&core, parent))
                    .cloned()
                    .collect(),
                tags: ty.tag_type().map(|ty| TypeTag::new(ty, MAX_LEVELS)),
            },
        ))
    })
}

/// Returns the actions of `schema` with their declarations.
fn actions(schema: &ValidatorSchema) -> impl Iterator<Item = (EntityUID, ActionSpec)> {
    let core = CoreSchema::new(schema);
    schema.action_ids().filter_map(move |action| {
        let Some(Type::Record {
            attrs,
            open_attributes: OpenTag::ClosedAttributes,
        }) = action.context_type()
        else {
            return None;
        };
        let plain = |ty: &&EntityType| is_plain(&core, ty);
        let spec = ActionSpec {
            principals: action
                .applies_to_principals()
                .filter(plain)
                .cloned()
                .collect(),
            resources: action
                .applies_to_resources()
                .filter(plain)
                .cloned()
                .collect(),
            context: RecordSpec::new(attrs, MAX_LEVELS),
        };
        Some((action.name().clone(), spec))
    })
}

impl TypeTag {
    fn new(ty: &Type, levels: usize) -> Self {
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
                Some(element) => Self::Set(Box::new(Self::new(element, levels - 1))),
                None => Self::Other,
            },
            Type::Record {
                attrs,
                open_attributes: OpenTag::ClosedAttributes,
            } => Self::Record(RecordSpec::new(attrs, levels - 1)),
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

impl RecordSpec {
    fn new(attributes: &Attributes, levels: usize) -> Self {
        let fields: hashbrown::HashMap<SmolStr, (TypeTag, bool)> = attributes
            .iter()
            .map(|(name, attribute)| {
                let tag = TypeTag::new(&attribute.attr_type, levels);
                (name.clone(), (tag, attribute.is_required))
            })
            .collect();
        Self {
            required: fields.values().filter(|(_, required)| *required).count(),
            fields,
        }
    }
}

impl Conformance {
    /// Reads the types of `schema`.
    pub(in crate::pdp) fn new(schema: Option<&ValidatorSchema>) -> Self {
        let entities = schema.into_iter().flat_map(entity_types);
        Self {
            entities: entities.map(|(ty, spec)| (ty.clone(), spec)).collect(),
            actions: schema.into_iter().flat_map(actions).collect(),
        }
    }

    /// Returns whether Cedar's validation is certain to accept this request.
    pub(in crate::pdp) fn request_definitely_conforms(
        &self,
        principal: &EntityType,
        action: &EntityUID,
        resource: &EntityType,
        context: &BTreeMap<SmolStr, Value>,
    ) -> bool {
        switches::conformance()
            && self.actions.get(action).is_some_and(|action| {
                action.principals.contains(principal)
                    && action.resources.contains(resource)
                    && self.record_conforms(context, &action.context)
            })
    }

    /// Returns whether Cedar is certain to accept `entity`, whose only ancestors are `parents`.
    pub(in crate::pdp) fn entity_definitely_conforms(
        &self,
        entity: &Entity,
        parents: &[EntityUID],
    ) -> bool {
        if !switches::conformance() {
            return false;
        }
        let Some(spec) = self.entities.get(entity.uid().entity_type()) else {
            return false;
        };
        let conforms = |value: &PartialValue, tag: &TypeTag| match value {
            PartialValue::Value(value) => self.value_conforms(value, tag),
            PartialValue::Residual(_) => false,
        };
        let mut required = 0;
        parents
            .iter()
            .all(|parent| spec.parents.contains(parent.entity_type()))
            && entity.attrs().all(|(name, value)| {
                let field = spec.attributes.fields.get(name);
                field.is_some_and(|(tag, is_required)| {
                    required += usize::from(*is_required);
                    conforms(value, tag)
                })
            })
            && required == spec.attributes.required
            && entity
                .tags()
                .all(|(_, value)| spec.tags.as_ref().is_some_and(|tag| conforms(value, tag)))
    }

    /// Returns whether `value` has this type; recurses at most [`MAX_LEVELS`] deep.
    fn value_conforms(&self, value: &Value, tag: &TypeTag) -> bool {
        let value = &value.value;
        match tag {
            TypeTag::Bool => matches!(value, ValueKind::Lit(Literal::Bool(_))),
            TypeTag::Long => matches!(value, ValueKind::Lit(Literal::Long(_))),
            TypeTag::String => matches!(value, ValueKind::Lit(Literal::String(_))),
            TypeTag::Entity(ty) => {
                matches!(value, ValueKind::Lit(Literal::EntityUID(uid)) if uid.entity_type() == ty)
                    && self.entities.contains_key(ty)
            }
            TypeTag::Set(element) => {
                let conforms = |member: &Value| self.value_conforms(member, element);
                matches!(value, ValueKind::Set(members) if members.iter().all(conforms))
            }
            TypeTag::Record(spec) => {
                matches!(value, ValueKind::Record(fields) if self.record_conforms(fields, spec))
            }
            TypeTag::Other => false,
        }
    }

    fn record_conforms(&self, fields: &BTreeMap<SmolStr, Value>, spec: &RecordSpec) -> bool {
        let mut required = 0;
        fields.iter().all(|(name, value)| {
            let field = spec.fields.get(name);
            field.is_some_and(|(tag, is_required)| {
                required += usize::from(*is_required);
                self.value_conforms(value, tag)
            })
        }) && required == spec.required
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a `User` definitely conforms, and asserts that Cedar then accepts it.
    fn entity_conforms(
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
        let conforms =
            Conformance::new(Some(schema.as_ref())).entity_definitely_conforms(&entity, parents);
        let core = CoreSchema::new(schema.as_ref());
        let cedar = EntitySchemaConformanceChecker::new(&core, Extensions::all_available());
        if conforms {
            cedar.validate_entity(&entity).unwrap();
        }
        conforms
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
    fn plain_entities_definitely_conform() {
        let n = || ("n", Value::from(1));
        let set = || Value::set([Value::from(1), Value::from(2)], None);
        assert!(entity_conforms(&[n()], &[], &[]));
        assert!(entity_conforms(
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
    fn other_entities_are_left_to_cedar() {
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
            assert!(!entity_conforms(&attributes, &[], &[]), "{attributes:?}");
        }
        for parent in [uid("Other", "x"), uid("User", "v"), uid("Level", "low")] {
            assert!(
                !entity_conforms(&[n()], std::slice::from_ref(&parent), &[]),
                "{parent}"
            );
        }
        assert!(!entity_conforms(&[n()], &[], &[("tag", Value::from("t"))]));
    }

    #[test]
    fn undeclared_types_are_left_to_cedar() {
        let entity = Entity::with_uid(uid("User", "u"));
        assert!(!Conformance::new(None).entity_definitely_conforms(&entity, &[]));
    }

    #[test]
    fn only_plain_requests_definitely_conform() {
        let schema: cedar_policy::Schema = "entity User, Doc, Other; entity Level enum [\"a\"];
             action read appliesTo { principal: User, resource: Doc, context: { n: Long, b?: Bool, who?: User } };
             action rank appliesTo { principal: Level, resource: Doc };
             action deep appliesTo { principal: User, resource: Doc, context: { s: Set<Long> } };
             action open appliesTo { principal: User, resource: Doc, context: { d: datetime } };"
            .parse()
            .unwrap();
        let conformance = Conformance::new(Some(schema.as_ref()));
        let ty = |name: &str| name.parse::<EntityType>().unwrap();
        let conforms = |principal: &str, action: &str, context: &[(&str, Value)]| {
            let context = context
                .iter()
                .map(|(name, value)| (SmolStr::from(*name), value.clone()))
                .collect();
            conformance.request_definitely_conforms(
                &ty(principal),
                &uid("Action", action),
                &ty("Doc"),
                &context,
            )
        };
        let n = || ("n", Value::from(1));
        assert!(conforms("User", "read", &[n()]));
        assert!(conforms(
            "User",
            "read",
            &[
                n(),
                ("b", Value::from(true)),
                ("who", Value::from(uid("User", "x")))
            ]
        ));
        assert!(conforms(
            "User",
            "deep",
            &[("s", Value::set([Value::from(1)], None))]
        ));
        for (principal, action, context) in [
            ("Other", "read", vec![n()]),
            ("User", "write", vec![n()]),
            ("User", "read", vec![]),
            ("User", "read", vec![("n", Value::from("1"))]),
            ("User", "read", vec![n(), ("more", Value::from(1))]),
            (
                "User",
                "read",
                vec![n(), ("who", Value::from(uid("Doc", "x")))],
            ),
            ("Level", "rank", vec![]),
            (
                "User",
                "deep",
                vec![("s", Value::set([Value::from("a")], None))],
            ),
            ("User", "open", vec![("d", Value::from("2024-01-01"))]),
        ] {
            assert!(
                !conforms(principal, action, &context),
                "{principal} {action}"
            );
        }
    }
}
