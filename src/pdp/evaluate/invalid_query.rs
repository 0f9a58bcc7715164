//! Names the field of a request that does not match the schema.
//!
//! All of this runs only after Cedar has rejected a request or an entity.

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

/// Names the field that a request's validation failed for.
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

/// Names the attribute of the context that does not fit; the whole context when none is to blame
/// alone.
pub(in crate::pdp) fn context_mismatch(
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
                let fits = SchemaType::try_from((*attribute.attr_type).clone()).is_ok_and(|ty| {
                    typecheck_value_against_schematype(&value, &ty, Extensions::all_available())
                        .is_ok()
                });
                if !fits {
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

/// Names the entity whose parents make a hierarchy that is refused. After those that the caller
/// sent stands the one that a token tells of.
pub(in crate::pdp) fn hierarchy_error(error: OverlayError, sent_by_caller: usize) -> InvalidQuery {
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
            match index < sent_by_caller {
                true => fault.at_index(index).within("entities"),
                false => fault.within(FIELD),
            }
        }
    }
}

/// Checks one entity against the schema, as Cedar does when it takes entities, naming the field.
///
/// The schema is there in every validation mode, and entities must fit it.
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
    let above = parents.iter().cloned().collect();
    let whole = Entity::new_with_attr_partial_value(uid, attributes, HashSet::new(), above, tags);
    let Err(error) = checker.validate_entity(&whole) else {
        return Ok(());
    };

    // It does not fit; all that follows finds out where.
    let mismatch = |message: String| Problem::SchemaMismatch { message };
    let Some(declared) = schema.entity_type(entity.uid().entity_type()) else {
        let problem = Problem::UnknownType {
            type_name: entity.uid().entity_type().to_string(),
        };
        return Err(InvalidQuery::field("type", problem).within("uid"));
    };
    let attributes: HashMap<&SmolStr, &PartialValue> = entity.attrs().collect();
    let mut required: Vec<SmolStr> = declared.required_attrs().collect();
    required.sort();
    if let Some(missing) = required.iter().find(|name| !attributes.contains_key(name)) {
        let problem = mismatch("is missing; the schema requires it".to_owned());
        return Err(InvalidQuery::here(problem)
            .at_key(missing)
            .within("attributes"));
    }
    let fits = |value: &PartialValue, ty: Option<SchemaType>, open: bool| match ty {
        Some(ty) => {
            typecheck_value_against_schematype(value, &ty, extensions).is_ok()
                && validate_euids_in_partial_value(schema, value).is_ok()
        }
        None => open && validate_euids_in_partial_value(schema, value).is_ok(),
    };
    let mut mismatched: Vec<&SmolStr> = entity
        .attrs()
        .filter(|(name, value)| !fits(value, declared.attr_type(name), declared.open_attributes()))
        .map(|(name, _)| name)
        .collect();
    mismatched.sort();
    if let Some(name) = mismatched.first() {
        return Err(InvalidQuery::here(mismatch(error.to_string()))
            .at_key(name)
            .within("attributes"));
    }
    let one = |parent: &EntityUID| {
        checker.validate_entity_ancestors(entity.uid(), std::iter::once(parent), &declared)
    };
    if let Some((index, Err(error))) = parents
        .iter()
        .map(one)
        .enumerate()
        .find(|(_, result)| result.is_err())
    {
        return Err(InvalidQuery::here(mismatch(error.to_string()))
            .at_index(index)
            .within("parents"));
    }
    let mut mismatched: Vec<&SmolStr> = entity
        .tags()
        .filter(|(_, value)| !fits(value, declared.tag_type(), false))
        .map(|(name, _)| name)
        .collect();
    mismatched.sort();
    if let Some(name) = mismatched.first() {
        return Err(InvalidQuery::here(mismatch(error.to_string()))
            .at_key(name)
            .within("tags"));
    }
    Err(InvalidQuery::field("uid", mismatch(error.to_string())))
}

/// The field that is named when the claims do not fit.
pub(in crate::pdp) const FIELD: &str = "principal_token";
