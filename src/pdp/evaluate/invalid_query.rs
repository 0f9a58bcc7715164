//! Names the field of a query that does not conform to the schema.
//!
//! Runs only after Cedar has rejected a request, an entity or a hierarchy; only `check_entity` runs
//! for each entity.

use std::collections::{BTreeMap, HashSet};

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
    match error {
        RequestValidationError::UndeclaredPrincipalType(_) => {
            let ty = query.principal.type_name.clone();
            InvalidQuery::field("principal.type", Problem::UnknownType(ty))
        }
        RequestValidationError::UndeclaredResourceType(_) => {
            let ty = query.resource.type_name.clone();
            InvalidQuery::field("resource.type", Problem::UnknownType(ty))
        }
        RequestValidationError::InvalidPrincipalType(_) => {
            InvalidQuery::field("principal.type", Problem::NotApplicable(message))
        }
        RequestValidationError::InvalidResourceType(_) => {
            InvalidQuery::field("resource.type", Problem::NotApplicable(message))
        }
        RequestValidationError::ExternalAction(_) => {
            InvalidQuery::field("action", Problem::NotApplicable(message))
        }
        RequestValidationError::UndeclaredAction(_) if schema.get_action_id(action).is_none() => {
            InvalidQuery::field("action", Problem::UnknownAction(action.to_string()))
        }
        RequestValidationError::InvalidEnumEntity(error)
            if is_same_uid(&error.uid, &query.principal) =>
        {
            InvalidQuery::field("principal.id", Problem::SchemaMismatch(message))
        }
        RequestValidationError::InvalidEnumEntity(error)
            if is_same_uid(&error.uid, &query.resource) =>
        {
            InvalidQuery::field("resource.id", Problem::SchemaMismatch(message))
        }
        RequestValidationError::InvalidEnumEntity(_)
        | RequestValidationError::UndeclaredAction(_)
        | RequestValidationError::InvalidContext(_)
        | RequestValidationError::TypeOfContext(_) => {
            context_mismatch(schema, action, context, message)
        }
    }
}

/// Returns whether both uids name the same entity.
pub(super) fn is_same_uid(uid: &EntityUID, other: &Uid) -> bool {
    AsRef::<str>::as_ref(uid.eid()) == other.id && uid.entity_type().to_string() == other.type_name
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
        InvalidQuery::here(Problem::SchemaMismatch(message))
            .at_key(name)
            .within("context")
    };
    let action_id = schema.get_action_id(action);
    let Some(Type::Record {
        attrs: declared,
        open_attributes: _,
    }) = action_id.and_then(|action| action.context_type())
    else {
        return InvalidQuery::field("context", Problem::SchemaMismatch(message));
    };
    let schema = CoreSchema::new(schema);
    for (name, value) in context {
        let value = PartialValue::from(value.clone());
        let Some(attribute) = declared.get_attr(name) else {
            let message = format!("action `{action}` has no such context attribute");
            return at(name, message);
        };
        let ty = SchemaType::try_from((*attribute.attr_type).clone());
        let conforms = ty.is_ok_and(|ty| {
            typecheck_value_against_schematype(&value, &ty, Extensions::all_available()).is_ok()
        });
        if !conforms {
            return at(name, format!("must be of type {}", attribute.attr_type));
        }
        if let Err(error) = validate_euids_in_partial_value(&schema, &value) {
            return at(name, error.to_string());
        }
    }
    for (name, attribute) in declared.iter() {
        if attribute.is_required && !context.contains_key(name) {
            return at(name, format!("is missing; required by action `{action}`"));
        }
    }
    InvalidQuery::field("context", Problem::SchemaMismatch(message))
}

/// Names the entity whose parents make the hierarchy invalid.
///
/// The entity after the `request_entities` of the caller is that of the token.
pub(in crate::pdp) fn hierarchy_error(
    error: OverlayError,
    request_entities: usize,
) -> InvalidQuery {
    let (index, error) = match error {
        OverlayError::TooLarge => {
            let problem = Problem::HierarchyTooLarge(MAX_REQUEST_HIERARCHY_STEPS);
            return InvalidQuery::field("entities", problem);
        }
        OverlayError::Entity(index, error) => (index, error),
    };
    let problem = match error {
        HierarchyError::Cycle(uid) => Problem::Cycle(uid.to_string()),
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

/// Checks one entity against the schema, as Cedar does when it loads entities.
///
/// Entities must conform in every validation mode, if there is a schema.
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
    checker
        .validate_entity(&with_parents)
        .map_err(|error| entity_mismatch(schema, &checker, bound, &error.to_string()))
}

/// Names the field of an entity that does not conform.
fn entity_mismatch(
    schema: &CoreSchema<'_>,
    checker: &EntitySchemaConformanceChecker<'_, CoreSchema<'_>>,
    BoundEntity { entity, parents }: &BoundEntity,
    message: &str,
) -> InvalidQuery {
    let extensions = Extensions::all_available();
    let mismatch = |message: &str| InvalidQuery::here(Problem::SchemaMismatch(message.to_owned()));
    let Some(declared) = schema.entity_type(entity.uid().entity_type()) else {
        let ty = entity.uid().entity_type().to_string();
        return InvalidQuery::field("uid.type", Problem::UnknownType(ty));
    };
    let missing = declared
        .required_attrs()
        .filter(|name| entity.get(name).is_none());
    if let Some(missing) = missing.min() {
        let fault = mismatch("is missing; required by the schema");
        return fault.at_key(&missing).within("attributes");
    }
    let conforms = |value: &PartialValue, ty: Option<SchemaType>, open: bool| {
        ty.map_or(open, |ty| {
            typecheck_value_against_schematype(value, &ty, extensions).is_ok()
        }) && validate_euids_in_partial_value(schema, value).is_ok()
    };
    let mismatched = entity.attrs().filter(|(name, value)| {
        !conforms(value, declared.attr_type(name), declared.open_attributes())
    });
    if let Some(name) = mismatched.map(|(name, _)| name).min() {
        return mismatch(message).at_key(name).within("attributes");
    }
    for (index, parent) in parents.iter().enumerate() {
        let parent = std::iter::once(parent);
        let checked = checker.validate_entity_ancestors(entity.uid(), parent, &declared);
        if let Err(error) = checked {
            let fault = mismatch(&error.to_string());
            return fault.at_index(index).within("parents");
        }
    }
    let mismatched = entity
        .tags()
        .filter(|(_, value)| !conforms(value, declared.tag_type(), false));
    if let Some(name) = mismatched.map(|(name, _)| name).min() {
        return mismatch(message).at_key(name).within("tags");
    }
    mismatch(message).within("uid")
}

/// The field to which errors in a token's claims are attributed.
pub(in crate::pdp) const TOKEN_FIELD: &str = "principal_token";
