//! Turns a query into what Cedar evaluates, checked against the schema, and names the field that
//! does not fit.
//!
//! Most of this file runs only when something is wrong: Cedar says that a request does not fit,
//! and the caller should be told where.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::{self, Entity, EntityUID, PartialValue};
use cedar_policy_core::entities::conformance::{
    EntitySchemaConformanceChecker, typecheck_value_against_schematype,
    validate_euids_in_partial_value,
};
use cedar_policy_core::entities::{Entities, EntityTypeDescription as _, Schema as _, SchemaType};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::types::Type;
use cedar_policy_core::validator::{CoreSchema, RequestValidationError, ValidatorSchema};
use smol_str::SmolStr;

use super::interpreter::Reading;
use super::slicing::{LookupError, MAX_LOOKUPS, Variables, gather};
use super::token_entity;
use crate::pdp::answer::NoAnswer;
use crate::pdp::entities::store::{
    Brought, EntityStore, HierarchyError, MAX_ANCESTORS, MAX_REQUEST_HIERARCHY_STEPS, Numbers,
    OverlayError, View,
};
use crate::pdp::policies::index::{RuleNumber, Subject, Subjects, TooManyCandidates};
use crate::pdp::policies::postings::Filed;
use crate::pdp::query::{InvalidQuery, Problem, Query, RequestEntity, Uid};
use crate::pdp::snapshot::{Rule, Snapshot, Validation};

/// A query as Cedar evaluates it.
pub(in crate::pdp) struct Bound<'a> {
    pub(in crate::pdp) request: ast::Request,
    /// The policies whose scope it meets, in the order of the snapshot's rules.
    pub(in crate::pdp) candidates: Vec<Candidate>,
    /// What those can look up that are left to Cedar.
    pub(in crate::pdp) entities: Entities,
    /// What the query is about.
    pub(in crate::pdp) asked: Asked<'a>,
}

/// What a query is about, and where more can be looked up to explain the answer.
pub(in crate::pdp) struct Asked<'a> {
    view: View<'a>,
    principal: EntityUID,
    action: EntityUID,
    resource: EntityUID,
    context: Arc<BTreeMap<SmolStr, ast::Value>>,
    subjects: Subjects,
}

impl Asked<'_> {
    /// The query, as far as scopes can tell.
    pub(in crate::pdp) fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// What evaluating `rules` in full can look up, found in as many steps as deciding may take.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub(in crate::pdp) fn entities_of(&mut self, rules: &[&Rule]) -> Result<Entities, LookupError> {
        let Self {
            view,
            principal,
            action,
            resource,
            context,
            subjects,
        } = self;
        view.renew_steps();
        let variables = Variables {
            principal,
            action,
            resource,
            context,
            subjects,
        };
        let conditions = rules.iter().map(|rule| (&rule.condition, *rule));
        gather(view, &variables, conditions)
    }
}

/// A policy whose scope the query meets.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Candidate {
    pub(in crate::pdp) rule: RuleNumber,
    /// Whether its condition holds; `None` when Cedar must say.
    pub(in crate::pdp) holds: Option<bool>,
}

/// Turns the query's values into Cedar's, checked against the schema, and finds the policies and
/// entities that it takes to decide it.
pub(in crate::pdp) fn bind<'a>(
    snapshot: &Snapshot,
    stored: &'a EntityStore,
    query: &Query,
) -> Result<Bound<'a>, NoAnswer> {
    let names = &snapshot.type_names;
    let principal = names
        .uid(&query.principal)
        .map_err(|error| error.within("principal"))?;
    let action = names
        .uid(&query.action)
        .map_err(|error| error.within("action"))?;
    let resource = names
        .uid(&query.resource)
        .map_err(|error| error.within("resource"))?;
    let context = names
        .fields(&query.context)
        .map_err(|error| error.within("context"))?;

    let sent_by_caller = query.entities.len();
    let mut sent = sent_entities(snapshot, &query.entities)?;
    let refused_hierarchy = |error| refused_hierarchy(error, sent_by_caller);
    if let Some(claimed) = &query.claimed {
        let principal = (&query.principal, &principal);
        let entity = token_entity::entity(snapshot, stored, principal, claimed, &sent)?;
        sent.push(entity);
    }
    let mut view = View::with_sent(stored, sent).map_err(refused_hierarchy)?;
    let context = Arc::new(context);
    let request = request(
        snapshot,
        query,
        (principal.clone(), action.clone(), resource.clone()),
        &context,
    )?;

    let most = snapshot.settings.max_candidates;
    let [of_principal, of_action, of_resource] =
        view.numbers_of([&query.principal, &query.action, &query.resource]);
    let subjects = Subjects {
        principal: subject(&mut view, of_principal).map_err(refused_hierarchy)?,
        action: subject(&mut view, of_action).map_err(refused_hierarchy)?,
        resource: subject(&mut view, of_resource).map_err(refused_hierarchy)?,
    };
    let too_many = |TooManyCandidates| NoAnswer::TooManyPolicies { most };
    let variables = Variables {
        principal: &principal,
        action: &action,
        resource: &resource,
        context: &context,
        subjects: &subjects,
    };
    let found = snapshot.index.candidates(&subjects, most);
    let found = found.map_err(too_many)?;
    // Conditions nest; whatever thread this is, the deepest must have room.
    let candidates = stacker::maybe_grow(snapshot.stack_bytes, snapshot.stack_bytes * 2, || {
        judge(found, &Reading::new(&view, &variables))
    });
    let rule = |number: RuleNumber| snapshot.rules.get(number as usize).map(Arc::as_ref);
    let conditions = candidates
        .iter()
        .filter(|candidate| candidate.holds.is_none())
        .filter_map(|candidate| rule(candidate.rule))
        .map(|rule| (&rule.rest, rule));
    let entities = gather(&mut view, &variables, conditions).map_err(|error| match error {
        LookupError::Overlay(error) => refused_hierarchy(error).into(),
        LookupError::TooMany => NoAnswer::TooManyEntities { most: MAX_LOOKUPS },
    })?;
    Ok(Bound {
        request,
        candidates,
        entities,
        asked: Asked {
            view,
            principal,
            action,
            resource,
            context,
            subjects,
        },
    })
}

/// What is certain of those that were found; each once, in order.
fn judge<'a>(found: Vec<Filed<'a>>, reading: &Reading<'a>) -> Vec<Candidate> {
    let mut judged: Vec<Candidate> = found
        .into_iter()
        .map(|filed| Candidate {
            rule: filed.rule,
            holds: match filed.condition() {
                Some(condition) => reading.holds(condition),
                None => Some(true),
            },
        })
        .collect();
    judged.sort_unstable_by_key(|candidate| candidate.rule);
    judged.dedup_by_key(|candidate| candidate.rule);
    judged
}

/// What scopes can tell of one variable of the request.
fn subject(view: &mut View<'_>, numbers: Numbers) -> Result<Subject, OverlayError> {
    let Numbers { uid, ty } = numbers;
    let ancestors = match uid {
        Some(uid) => view.ancestors(uid)?,
        None => Vec::new(),
    };
    Ok(Subject { uid, ty, ancestors })
}

fn request(
    snapshot: &Snapshot,
    query: &Query,
    (principal, action, resource): (EntityUID, EntityUID, EntityUID),
    context: &Arc<BTreeMap<SmolStr, ast::Value>>,
) -> Result<ast::Request, InvalidQuery> {
    let schema = match snapshot.settings.validation {
        Validation::Strict | Validation::Warn => snapshot.schema.as_ref(),
        Validation::Off => None,
    };
    let schema = schema.filter(|_| {
        let (principal, resource) = (principal.entity_type(), resource.entity_type());
        !snapshot
            .fit
            .is_certain(principal, &action, resource, context)
    });
    ast::Request::new(
        (principal, None),
        (action.clone(), None),
        (resource, None),
        ast::Context::Value(Arc::clone(context)),
        schema,
        Extensions::all_available(),
    )
    .map_err(|error| match schema {
        Some(schema) => unfit_request(&error, schema, query, &action, context),
        None => InvalidQuery::here(Problem::NotApplicable {
            message: error.to_string(),
        }),
    })
}

/// Names the field that a request's validation failed for.
fn unfit_request(
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
                unfit_context(schema, action, context, message)
            }
        }
        RequestValidationError::UndeclaredAction(_)
        | RequestValidationError::InvalidContext(_)
        | RequestValidationError::TypeOfContext(_) => {
            unfit_context(schema, action, context, message)
        }
    }
}

/// Names the attribute of the context that does not fit; the whole context when none is to blame
/// alone.
fn unfit_context(
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

/// The entities that the request brings, with their direct parents.
fn sent_entities(
    snapshot: &Snapshot,
    sent: &[RequestEntity],
) -> Result<Vec<Brought>, InvalidQuery> {
    let mut seen: HashSet<EntityUID> = HashSet::with_capacity(sent.len());
    let mut entities = Vec::with_capacity(sent.len());
    for (index, entity) in sent.iter().enumerate() {
        let brought = request_entity(snapshot, entity)
            .map_err(|error| error.at_index(index).within("entities"))?;
        let uid = brought.entity.uid();
        if !seen.insert(uid.clone()) {
            let problem = Problem::DuplicateEntity {
                uid: uid.to_string(),
            };
            return Err(InvalidQuery::field("uid", problem)
                .at_index(index)
                .within("entities"));
        }
        entities.push(brought);
    }
    Ok(entities)
}

/// Names the entity whose parents make a hierarchy that is refused. After those that the caller
/// sent stands the one that a token tells of.
fn refused_hierarchy(error: OverlayError, sent_by_caller: usize) -> InvalidQuery {
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
                false => fault.within(token_entity::FIELD),
            }
        }
    }
}

/// One entity of a request, with its direct parents, checked against the schema.
fn request_entity(snapshot: &Snapshot, sent: &RequestEntity) -> Result<Brought, InvalidQuery> {
    let names = &snapshot.type_names;
    let uid = names.uid(&sent.uid).map_err(|error| error.within("uid"))?;
    let in_type = |problem: Problem| Err(InvalidQuery::field("type", problem).within("uid"));
    let type_name = || sent.uid.type_name.clone();
    if uid.is_action() {
        return in_type(Problem::ActionEntity {
            type_name: type_name(),
        });
    }
    if let Some(accepted) = &snapshot.settings.request_entity_types
        && !accepted.contains(&sent.uid.type_name)
    {
        return in_type(Problem::TypeNotAccepted {
            type_name: type_name(),
        });
    }
    let attributes = names
        .fields(&sent.attributes)
        .map_err(|error| error.within("attributes"))?;
    let tags = names
        .fields(&sent.tags)
        .map_err(|error| error.within("tags"))?;
    let parents = sent
        .parents
        .iter()
        .enumerate()
        .map(|(index, parent)| {
            names
                .uid(parent)
                .map_err(|error| error.at_index(index).within("parents"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let partial = |fields: BTreeMap<SmolStr, ast::Value>| {
        fields
            .into_iter()
            .map(|(name, value)| (name, PartialValue::from(value)))
    };
    let entity = Entity::new_with_attr_partial_value(
        uid,
        partial(attributes),
        HashSet::new(),
        HashSet::new(),
        partial(tags),
    );
    let brought = Brought { entity, parents };
    fits_schema(snapshot, &brought)?;
    Ok(brought)
}

/// Checks one entity against the schema, as Cedar does when it takes entities, naming the field.
///
/// The schema is there in every validation mode, and entities must fit it.
pub(super) fn fits_schema(snapshot: &Snapshot, brought: &Brought) -> Result<(), InvalidQuery> {
    let Brought { entity, parents } = brought;
    let Some(schema) = &snapshot.schema else {
        return Ok(());
    };
    if snapshot.declared.is_certain(entity, parents) {
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
    let mut unfit: Vec<&SmolStr> = entity
        .attrs()
        .filter(|(name, value)| !fits(value, declared.attr_type(name), declared.open_attributes()))
        .map(|(name, _)| name)
        .collect();
    unfit.sort();
    if let Some(name) = unfit.first() {
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
    let mut unfit: Vec<&SmolStr> = entity
        .tags()
        .filter(|(_, value)| !fits(value, declared.tag_type(), false))
        .map(|(name, _)| name)
        .collect();
    unfit.sort();
    if let Some(name) = unfit.first() {
        return Err(InvalidQuery::here(mismatch(error.to_string()))
            .at_key(name)
            .within("tags"));
    }
    Err(InvalidQuery::field("uid", mismatch(error.to_string())))
}
