//! Whether a request certainly fits the schema, found out without Cedar.
//!
//! Cedar's check walks the whole context several times and copies it on the way. Most contexts
//! are a few plain values, for which it is enough to compare kinds. What does not certainly fit
//! here is not refused: Cedar is asked, and has the last word.

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_policy_core::ast::{EntityType, EntityUID, Literal, Value, ValueKind};
use cedar_policy_core::validator::types::{BoolType, EntityKind, OpenTag, Type};
use cedar_policy_core::validator::{CoreSchema, ValidatorSchema};
use smol_str::SmolStr;

use super::conformance::is_plain;

/// What requests of each action must look like, for those actions where that is simple.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Fit(HashMap<EntityUID, Action>);

#[derive(Debug)]
struct Action {
    principals: HashSet<EntityType>,
    resources: HashSet<EntityType>,
    context: HashMap<SmolStr, Attribute>,
    required: usize,
}

#[derive(Debug)]
struct Attribute {
    kind: Kind,
    is_required: bool,
}

/// A type whose values are told by their kind.
#[derive(Debug)]
enum Kind {
    Bool,
    Long,
    String,
    /// Any entity of this type.
    Entity(EntityType),
}

impl Fit {
    /// Reads it off `schema`.
    pub(in crate::pdp) fn of(schema: Option<&ValidatorSchema>) -> Self {
        let Some(schema) = schema else {
            return Self::default();
        };
        let core = CoreSchema::new(schema);
        let is_plain = |ty: &EntityType| is_plain(&core, ty);
        let plain_types = |types: &mut dyn Iterator<Item = &EntityType>| -> HashSet<EntityType> {
            types.filter(|ty| is_plain(ty)).cloned().collect()
        };
        let kind = |ty: &Type| match ty {
            Type::Bool(BoolType::AnyBool) => Some(Kind::Bool),
            Type::Long => Some(Kind::Long),
            Type::String => Some(Kind::String),
            Type::Entity(EntityKind::Entity(types)) => {
                let ty = types.get_single_entity()?;
                is_plain(ty).then(|| Kind::Entity(ty.clone()))
            }
            Type::Bool(BoolType::True | BoolType::False)
            | Type::Entity(EntityKind::AnyEntity)
            | Type::Never
            | Type::Set { .. }
            | Type::Record { .. }
            | Type::ExtensionType { .. } => None,
        };
        let actions = schema.action_ids().filter_map(|action| {
            let Some(Type::Record {
                attrs,
                open_attributes,
            }) = action.context_type()
            else {
                return None;
            };
            if *open_attributes == OpenTag::OpenAttributes {
                return None;
            }
            let context: HashMap<SmolStr, Attribute> = attrs
                .iter()
                .map(|(name, attribute)| {
                    Some((
                        name.clone(),
                        Attribute {
                            kind: kind(&attribute.attr_type)?,
                            is_required: attribute.is_required,
                        },
                    ))
                })
                .collect::<Option<_>>()?;
            Some((
                action.name().clone(),
                Action {
                    principals: plain_types(&mut action.applies_to_principals()),
                    resources: plain_types(&mut action.applies_to_resources()),
                    required: context.values().filter(|found| found.is_required).count(),
                    context,
                },
            ))
        });
        Self(actions.collect())
    }

    /// Whether Cedar certainly takes a request of these.
    pub(in crate::pdp) fn is_certain(
        &self,
        principal: &EntityType,
        action: &EntityUID,
        resource: &EntityType,
        context: &BTreeMap<SmolStr, Value>,
    ) -> bool {
        let Some(action) = self.0.get(action) else {
            return false;
        };
        let mut required = 0;
        action.principals.contains(principal)
            && action.resources.contains(resource)
            && context.iter().all(|(name, value)| {
                action.context.get(name).is_some_and(|declared| {
                    required += usize::from(declared.is_required);
                    declared.kind.is_of(value)
                })
            })
            && required == action.required
    }
}

impl Kind {
    fn is_of(&self, value: &Value) -> bool {
        let ValueKind::Lit(literal) = &value.value else {
            return false;
        };
        match (self, literal) {
            (Self::Bool, Literal::Bool(_))
            | (Self::Long, Literal::Long(_))
            | (Self::String, Literal::String(_)) => true,
            (Self::Entity(ty), Literal::EntityUID(uid)) => uid.entity_type() == ty,
            (Self::Bool | Self::Long | Self::String | Self::Entity(_), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(text: &str) -> cedar_policy::Schema {
        text.parse().unwrap()
    }

    #[test]
    fn a_plain_request_certainly_fits_and_any_other_is_left_to_cedar() {
        let schema = schema(
            "entity User, Doc, Other; entity Level enum [\"a\"];
             action read appliesTo { principal: User, resource: Doc, context: { n: Long, b?: Bool, who?: User } };
             action rank appliesTo { principal: Level, resource: Doc };
             action deep appliesTo { principal: User, resource: Doc, context: { s: Set<Long> } };",
        );
        let fit = Fit::of(Some(schema.as_ref()));
        let ty = |name: &str| name.parse::<EntityType>().unwrap();
        let uid = |ty: &str, id: &str| EntityUID::with_eid_and_type(ty, id).unwrap();
        let certain = |principal: &str, action: &str, context: &[(&str, Value)]| {
            let context = context
                .iter()
                .map(|(name, value)| (SmolStr::from(*name), value.clone()))
                .collect();
            fit.is_certain(&ty(principal), &uid("Action", action), &ty("Doc"), &context)
        };
        let n = || ("n", Value::from(1));
        assert!(certain("User", "read", &[n()]));
        assert!(certain(
            "User",
            "read",
            &[
                n(),
                ("b", Value::from(true)),
                ("who", Value::from(uid("User", "x")))
            ]
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
            ("User", "deep", vec![("s", Value::set([], None))]),
        ] {
            assert!(
                !certain(principal, action, &context),
                "{principal} {action}"
            );
        }
    }
}
