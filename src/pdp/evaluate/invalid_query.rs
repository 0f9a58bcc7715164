//! Names the field of a query that does not conform to the schema.
//!
//! Runs only after Cedar has rejected a request, an entity or a hierarchy; only `check_entity` runs
//! for each entity.

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_policy_core::ast;
use cedar_policy_core::ast::{Entity, EntityUID, PartialValue};
use cedar_policy_core::entities::conformance::{
    EntitySchemaConformanceChecker, typecheck_value_against_schematype,
    validate_euids_in_partial_value,
};
use cedar_policy_core::entities::{EntityTypeDescription as _, Schema as _, SchemaType};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::types::Type;
use cedar_policy_core::validator::{CoreSchema, RequestValidationError, ValidatorSchema};
use smol_str::SmolStr;

use crate::pdp::entities::hierarchy::{HierarchyError, MAX_ANCESTORS};
use crate::pdp::entities::overlay::{BoundEntity, MAX_REQUEST_HIERARCHY_STEPS, OverlayError};
use crate::pdp::query::{InvalidQuery, Problem, Query, Uid};
use crate::pdp::snapshot::Snapshot;

/// Names the field for which a request failed validation.
pub(in crate::pdp) fn request_mismatch(
    error: &RequestValidationError,
    schema: &ValidatorSchema,
    query: &Query,
    action: &EntityUID,
    context: &BTreeMap<SmolStr, ast::Value>,
) -> InvalidQuery {
    let message = error.to_string();
    let unknown = |field: &str, type_name: &str| {
        InvalidQuery::field(
            "type",
            Problem::UnknownType {
                type_name: type_name.to_owned(),
            },
        )
        .within(field)
    };
    match error {
        RequestValidationError::UndeclaredPrincipalType(_) => {
            unknown("principal", &query.principal.type_name)
        }
        RequestValidationError::UndeclaredResourceType(_) => {
            unknown("resource", &query.resource.type_name)
        }
        RequestValidationError::InvalidPrincipalType(_) => {
            InvalidQuery::field("type", Problem::NotApplicable { message }).within("principal")
        }
        RequestValidationError::InvalidResourceType(_) => {
            InvalidQuery::field("type", Problem::NotApplicable { message }).within("resource")
        }
        RequestValidationError::ExternalAction(_) => {
            InvalidQuery::field("action", Problem::NotApplicable { message })
        }
        RequestValidationError::UndeclaredAction(_) if schema.get_action_id(action).is_none() => {
            InvalidQuery::field(
                "action",
                Problem::UnknownAction {
                    action: action.to_string(),
                },
            )
        }
        RequestValidationError::InvalidEnumEntity(error) => {
            let names = |uid: &Uid| {
                uid.id == AsRef::<str>::as_ref(error.uid.eid())
                    && uid.type_name == error.uid.entity_type().to_string()
            };
            if names(&query.principal) {
                InvalidQuery::field("id", Problem::SchemaMismatch { message }).within("principal")
            } else if names(&query.resource) {
                InvalidQuery::field("id", Problem::SchemaMismatch { message }).within("resource")
            } else {
                context_mismatch(schema, action, context, message)
            }
        }
        RequestValidationError::UndeclaredAction(_)
        | RequestValidationError::InvalidContext(_)
        | RequestValidationError::TypeOfContext(_) => {
            context_mismatch(schema, action, context, message)
        }
    }
}

/// Names the attribute of the context that does not conform, or the whole context if no single
/// attribute is at fault.
fn context_mismatch(
    schema: &ValidatorSchema,
    action: &EntityUID,
    context: &BTreeMap<SmolStr, ast::Value>,
    message: String,
) -> InvalidQuery {
    let at = |name: &str, message: String| {
        InvalidQuery::here(Problem::SchemaMismatch { message })
            .at_key(name)
            .within("context")
    };
    let declared = match schema
        .get_action_id(action)
        .and_then(|action| action.context_type())
    {
        Some(Type::Record {
            attrs,
            open_attributes: _,
        }) => attrs,
        Some(
            Type::Never
            | Type::Bool(_)
            | Type::Long
            | Type::String
            | Type::Entity(_)
            | Type::Set { .. }
            | Type::ExtensionType { .. },
        )
        | None => return InvalidQuery::field("context", Problem::SchemaMismatch { message }),
    };
    let schema = CoreSchema::new(schema);
    for (name, value) in context {
        let value = PartialValue::from(value.clone());
        match declared.get_attr(name) {
            None => {
                return at(
                    name,
                    format!("action `{action}` has no such context attribute"),
                );
            }
            Some(attribute) => {
                let conforms =
                    SchemaType::try_from((*attribute.attr_type).clone()).is_ok_and(|ty| {
                        typecheck_value_against_schematype(&value, &ty, Extensions::all_available())
                            .is_ok()
                    });
                if !conforms {
                    return at(name, format!("must be of type {}", attribute.attr_type));
                }
            }
        }
        if let Err(error) = validate_euids_in_partial_value(&schema, &value) {
            return at(name, error.to_string());
        }
    }
    for (name, attribute) in declared.iter() {
        if attribute.is_required && !context.contains_key(name) {
            return at(name, format!("is missing; action `{action}` requires it"));
        }
    }
    InvalidQuery::field("context", Problem::SchemaMismatch { message })
}

/// Names the entity whose parents make the hierarchy invalid.
///
/// The entity after the `request_entities` of the caller is that of the token.
pub(in crate::pdp) fn hierarchy_error(
    error: OverlayError,
    request_entities: usize,
) -> InvalidQuery {
    match error {
        OverlayError::TooLarge => {
            let problem = Problem::HierarchyTooLarge {
                limit: MAX_REQUEST_HIERARCHY_STEPS,
            };
            InvalidQuery::field("entities", problem)
        }
        OverlayError::Entity(index, error) => {
            let problem = match error {
                HierarchyError::Cycle(uid) => Problem::Cycle {
                    uid: uid.to_string(),
                },
                HierarchyError::TooManyAncestors(uid) => Problem::TooManyAncestors {
                    uid: uid.to_string(),
                    limit: MAX_ANCESTORS,
                },
            };
            let fault = InvalidQuery::field("parents", problem);
            match index < request_entities {
                true => fault.at_index(index).within("entities"),
                false => fault.within(TOKEN_FIELD),
            }
        }
    }
}

/// Checks one entity against the schema, as Cedar does when it loads entities.
///
/// Entities must conform in every validation mode, if there is a schema.
///
/// # Errors
///
/// [`InvalidQuery`], which names the field of the entity.
pub(in crate::pdp) fn check_entity(
    snapshot: &Snapshot,
    bound: &BoundEntity,
) -> Result<(), InvalidQuery> {
    let BoundEntity { entity, parents } = bound;
    let Some(schema) = &snapshot.schema else {
        return Ok(());
    };
    if snapshot
        .conformance
        .entity_definitely_conforms(entity, parents)
    {
        return Ok(());
    }
    let schema = &CoreSchema::new(schema);
    let extensions = Extensions::all_available();
    let checker = EntitySchemaConformanceChecker::new(schema, extensions);
    let (uid, attributes, _, _, tags) = entity.clone().into_inner();
    let ancestors = parents.iter().cloned().collect();
    let with_parents =
        Entity::new_with_attr_partial_value(uid, attributes, HashSet::new(), ancestors, tags);
    match checker.validate_entity(&with_parents) {
        Ok(()) => Ok(()),
        Err(error) => Err(entity_mismatch(schema, &checker, bound, &error.to_string())),
    }
}

/// Names the field of an entity that does not conform.
fn entity_mismatch(
    schema: &CoreSchema<'_>,
    checker: &EntitySchemaConformanceChecker<'_, CoreSchema<'_>>,
    BoundEntity { entity, parents }: &BoundEntity,
    message: &str,
) -> InvalidQuery {
    let extensions = Extensions::all_available();
    let mismatch = |message: String| Problem::SchemaMismatch { message };
    let Some(declared) = schema.entity_type(entity.uid().entity_type()) else {
        let problem = Problem::UnknownType {
            type_name: entity.uid().entity_type().to_string(),
        };
        return InvalidQuery::field("type", problem).within("uid");
    };
    let attributes: HashMap<&SmolStr, &PartialValue> = entity.attrs().collect();
    let missing = declared
        .required_attrs()
        .filter(|name| !attributes.contains_key(name));
    if let Some(missing) = missing.min() {
        let problem = mismatch("is missing; the schema requires it".to_owned());
        return InvalidQuery::here(problem)
            .at_key(&missing)
            .within("attributes");
    }
    let conforms = |value: &PartialValue, ty: Option<SchemaType>, open: bool| match ty {
        Some(ty) => {
            typecheck_value_against_schematype(value, &ty, extensions).is_ok()
                && validate_euids_in_partial_value(schema, value).is_ok()
        }
        None => open && validate_euids_in_partial_value(schema, value).is_ok(),
    };
    let mismatched = entity.attrs().filter(|(name, value)| {
        !conforms(value, declared.attr_type(name), declared.open_attributes())
    });
    if let Some(name) = mismatched.map(|(name, _)| name).min() {
        return InvalidQuery::here(mismatch(message.to_owned()))
            .at_key(name)
            .within("attributes");
    }
    let check_parent = |parent: &EntityUID| {
        checker.validate_entity_ancestors(entity.uid(), std::iter::once(parent), &declared)
    };
    if let Some((index, Err(error))) = parents
        .iter()
        .map(check_parent)
        .enumerate()
        .find(|(_, result)| result.is_err())
    {
        return InvalidQuery::here(mismatch(error.to_string()))
            .at_index(index)
            .within("parents");
    }
    let mismatched = entity
        .tags()
        .filter(|(_, value)| !conforms(value, declared.tag_type(), false));
    if let Some(name) = mismatched.map(|(name, _)| name).min() {
        return InvalidQuery::here(mismatch(message.to_owned()))
            .at_key(name)
            .within("tags");
    }
    InvalidQuery::field("uid", mismatch(message.to_owned()))
}

/// The field to which errors in a token's claims are attributed.
pub(in crate::pdp) const TOKEN_FIELD: &str = "principal_token";
