//! Converts a query to Cedar's types, checks it against the schema, and finds its candidates.
//!
//! Errors name the field of the query that is invalid.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast;
use cedar_policy_core::ast::{Entity, EntityUID, PartialValue};
use cedar_policy_core::entities::Entities;
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use super::interpreter::Interpreter;
use super::invalid_query::{check_entity, hierarchy_error, request_mismatch};
use super::slicing::{Bindings, SliceError, slice_entities};
use super::token_entity;
use crate::pdp::answer::NoAnswer;
use crate::pdp::entities::interner::{TypeId, UidId};
use crate::pdp::entities::overlay::{BoundEntity, Overlay, OverlayError};
use crate::pdp::entities::store::EntityStore;
use crate::pdp::policies::index::TooManyCandidates;
use crate::pdp::policies::policy::{Rule, RuleIndex};
use crate::pdp::policies::postings::Posting;
use crate::pdp::policies::scope::{RequestVariable, RequestVariables};
use crate::pdp::query::{InvalidQuery, Problem, Query, RequestEntity};
use crate::pdp::settings::{MAX_LOOKUPS, Validation};
use crate::pdp::snapshot::Snapshot;
use crate::pdp::switches;

/// A query in Cedar's types, with its candidate policies and the entities that they need.
pub(in crate::pdp) struct BoundQuery<'a> {
    pub(in crate::pdp) request: ast::Request,
    /// The policies whose scope matches, in the order of the snapshot's rules.
    pub(in crate::pdp) candidates: Vec<Candidate>,
    /// The entities that Cedar needs to evaluate the undecided candidates.
    pub(in crate::pdp) entities: Entities,
    pub(in crate::pdp) bound_request: BoundRequest<'a>,
}

/// The variables of a request, and the overlay to look up more entities for an explanation.
pub(in crate::pdp) struct BoundRequest<'a> {
    overlay: Overlay<'a>,
    pub(in crate::pdp) bindings: Bindings,
}

impl BoundRequest<'_> {
    /// Returns the entities that Cedar needs to evaluate `rules` in full, within the limits of a
    /// decision.
    pub(in crate::pdp) fn slice_for(&mut self, rules: &[&Rule]) -> Result<Entities, SliceError> {
        self.overlay.reset_steps();
        let conditions = rules.iter().map(|rule| (&rule.condition, *rule));
        slice_entities(&mut self.overlay, &self.bindings, conditions)
    }
}

/// A policy whose scope matches the query.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Candidate {
    pub(in crate::pdp) rule: RuleIndex,
    /// The value of its condition; `None` if Cedar must evaluate it.
    pub(in crate::pdp) satisfied: Option<bool>,
}

/// Converts a query to Cedar's types, and finds the policies and entities to decide it.
pub(in crate::pdp) fn bind<'a>(
    snapshot: &Snapshot,
    stored: &'a EntityStore,
    query: &Query,
) -> Result<BoundQuery<'a>, NoAnswer> {
    let names = &snapshot.type_names;
    let uid = |uid, field| names.uid(uid).map_err(|error| error.within(field));
    let principal = uid(&query.principal, "principal")?;
    let action = uid(&query.action, "action")?;
    let resource = uid(&query.resource, "resource")?;
    let context = names.fields(&query.context);
    let context = Arc::new(context.map_err(|error| error.within("context"))?);

    let request_entities = query.entities.len();
    let mut entities = bind_entities(snapshot, &query.entities)?;
    let hierarchy_error = |error| hierarchy_error(error, request_entities);
    if let Some(claimed) = &query.claimed {
        let principal = (&query.principal, &principal);
        let entity = token_entity::bind(snapshot, stored, principal, claimed, &entities)?;
        entities.push(entity);
    }
    let mut overlay = Overlay::with_entities(stored, entities).map_err(hierarchy_error)?;
    let uids = (principal.clone(), action.clone(), resource.clone());
    let request = request(snapshot, query, uids, &context)?;

    let [principal_ids, action_ids, resource_ids] =
        overlay.find_named([&query.principal, &query.action, &query.resource]);
    let variables = RequestVariables {
        principal: bind_variable(&mut overlay, principal_ids).map_err(hierarchy_error)?,
        action: bind_variable(&mut overlay, action_ids).map_err(hierarchy_error)?,
        resource: bind_variable(&mut overlay, resource_ids).map_err(hierarchy_error)?,
    };
    for (field, uid, variable) in [
        ("principal", &query.principal, &variables.principal),
        ("resource", &query.resource, &variables.resource),
    ] {
        let required = snapshot.settings.require_known.as_ref();
        if required.is_some_and(|types| types.include(&uid.type_name))
            && !variable.uid.is_some_and(|uid| overlay.contains(uid))
        {
            let problem = Problem::UnknownEntity(uid.to_string());
            return Err(InvalidQuery::field(field, problem).into());
        }
    }
    let bindings = Bindings {
        principal,
        action,
        resource,
        context,
        variables,
    };
    let limit = snapshot.settings.max_candidates;
    let postings = snapshot.index.candidates(&bindings.variables, limit);
    let postings = postings.map_err(|TooManyCandidates| NoAnswer::TooManyPolicies { limit })?;
    // The stack must suffice for the deepest condition on any thread.
    let candidates = stacker::maybe_grow(snapshot.stack_bytes, snapshot.stack_bytes * 2, || {
        evaluate_fast(postings, &Interpreter::new(&overlay, &bindings))
    });
    let rule = |index: RuleIndex| snapshot.rules.get(index as usize).map(Arc::as_ref);
    let conditions = candidates
        .iter()
        .filter(|candidate| candidate.satisfied.is_none())
        .filter_map(|candidate| rule(candidate.rule))
        .map(|rule| (&rule.remainder, rule));
    let entities =
        slice_entities(&mut overlay, &bindings, conditions).map_err(|error| match error {
            SliceError::Overlay(error) => hierarchy_error(error).into(),
            SliceError::TooMany => NoAnswer::TooManyEntities { limit: MAX_LOOKUPS },
        })?;
    Ok(BoundQuery {
        request,
        candidates,
        entities,
        bound_request: BoundRequest { overlay, bindings },
    })
}

/// Evaluates the postings with the interpreter; returns each rule once, in order.
fn evaluate_fast<'a>(postings: Vec<Posting<'a>>, interpreter: &Interpreter<'a>) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = postings
        .into_iter()
        .map(|posting| Candidate {
            rule: posting.rule,
            satisfied: match posting.condition() {
                Some(_) if !switches::interpreter() => None,
                Some(condition) => interpreter.eval(condition),
                None => Some(true),
            },
        })
        .collect();
    candidates.sort_unstable_by_key(|candidate| candidate.rule);
    candidates.dedup_by_key(|candidate| candidate.rule);
    candidates
}

/// Returns one variable of the request as the scope index uses it.
fn bind_variable(
    overlay: &mut Overlay<'_>,
    (uid, ty): (Option<UidId>, Option<TypeId>),
) -> Result<RequestVariable, OverlayError> {
    let ancestors = match uid {
        Some(uid) => overlay.ancestors(uid)?,
        None => Vec::new(),
    };
    Ok(RequestVariable { uid, ty, ancestors })
}

/// Builds Cedar's request, and validates it unless it definitely conforms to the schema.
fn request(
    snapshot: &Snapshot,
    query: &Query,
    (principal, action, resource): (EntityUID, EntityUID, EntityUID),
    context: &Arc<BTreeMap<SmolStr, ast::Value>>,
) -> Result<ast::Request, InvalidQuery> {
    let conformance = &snapshot.conformance;
    let schema = snapshot.schema.as_ref().filter(|_| {
        let (principal, resource) = (principal.entity_type(), resource.entity_type());
        snapshot.settings.validation != Validation::Off
            && !conformance.request_definitely_conforms(principal, &action, resource, context)
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
        Some(schema) => request_mismatch(&error, schema, query, &action, context),
        None => InvalidQuery::here(Problem::NotApplicable(error.to_string())),
    })
}

/// Converts the entities of a request, with their direct parents.
fn bind_entities(
    snapshot: &Snapshot,
    request_entities: &[RequestEntity],
) -> Result<Vec<BoundEntity>, InvalidQuery> {
    let mut seen: HashSet<EntityUID> = HashSet::with_capacity(request_entities.len());
    let mut entities = Vec::with_capacity(request_entities.len());
    for (index, entity) in request_entities.iter().enumerate() {
        let within = |error: InvalidQuery| error.at_index(index).within("entities");
        let bound = bind_entity(snapshot, entity).map_err(within)?;
        let uid = bound.entity.uid();
        if !seen.insert(uid.clone()) {
            let problem = Problem::DuplicateEntity(uid.to_string());
            return Err(within(InvalidQuery::field("uid", problem)));
        }
        entities.push(bound);
    }
    Ok(entities)
}

/// Converts one entity of a request, with its direct parents, and checks it against the schema.
fn bind_entity(snapshot: &Snapshot, request: &RequestEntity) -> Result<BoundEntity, InvalidQuery> {
    let names = &snapshot.type_names;
    let within = |field| move |error: InvalidQuery| error.within(field);
    let uid = names.uid(&request.uid).map_err(within("uid"))?;
    let rejected_type = |problem: fn(String) -> Problem| {
        let ty = request.uid.type_name.clone();
        Err(InvalidQuery::field("uid.type", problem(ty)))
    };
    if uid.is_action() {
        return rejected_type(Problem::ActionEntity);
    }
    if let Some(accepted) = &snapshot.settings.request_entity_types
        && !accepted.contains(&request.uid.type_name)
    {
        return rejected_type(Problem::TypeNotAccepted);
    }
    let attributes = names.fields(&request.attributes);
    let attributes = attributes.map_err(within("attributes"))?;
    let tags = names.fields(&request.tags).map_err(within("tags"))?;
    let parents = names.uids(&request.parents).map_err(within("parents"))?;
    let partial = |(name, value)| (name, PartialValue::from(value));
    let entity = Entity::new_with_attr_partial_value(
        uid,
        attributes.into_iter().map(partial),
        HashSet::new(),
        HashSet::new(),
        tags.into_iter().map(partial),
    );
    let bound = BoundEntity { entity, parents };
    check_entity(snapshot, &bound)?;
    Ok(bound)
}
