//! Turns a query into what Cedar evaluates, checked against the schema, and names the field that
//! does not fit.
//!
//! Most of this file runs only when something is wrong: Cedar says that a request does not fit,
//! and the caller should be told where.

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
use crate::pdp::entities::overlay::{BoundEntity, Overlay, OverlayError, UidIds};
use crate::pdp::entities::store::EntityStore;
use crate::pdp::policies::index::TooManyCandidates;
use crate::pdp::policies::policy::{Rule, RuleIndex};
use crate::pdp::policies::postings::Posting;
use crate::pdp::policies::scope::{RequestVariable, RequestVariables};
use crate::pdp::query::{InvalidQuery, Problem, Query, RequestEntity};
use crate::pdp::settings::{MAX_LOOKUPS, Validation};
use crate::pdp::snapshot::Snapshot;

/// A query as Cedar evaluates it.
pub(in crate::pdp) struct BoundQuery<'a> {
    pub(in crate::pdp) request: ast::Request,
    /// The policies whose scope it meets, in the order of the snapshot's rules.
    pub(in crate::pdp) candidates: Vec<Candidate>,
    /// What those can look up that are left to Cedar.
    pub(in crate::pdp) entities: Entities,
    /// What the query is about.
    pub(in crate::pdp) bound_request: BoundRequest<'a>,
}

/// What a query is about, and where more can be looked up to explain the answer.
pub(in crate::pdp) struct BoundRequest<'a> {
    overlay: Overlay<'a>,
    principal: EntityUID,
    action: EntityUID,
    resource: EntityUID,
    context: Arc<BTreeMap<SmolStr, ast::Value>>,
    variables: RequestVariables,
}

impl BoundRequest<'_> {
    /// The query, as far as scopes can tell.
    pub(in crate::pdp) fn variables(&self) -> &RequestVariables {
        &self.variables
    }

    /// What evaluating `rules` in full can look up, found in as many steps as deciding may take.
    ///
    /// # Errors
    ///
    /// [`SliceError`].
    pub(in crate::pdp) fn entities_of(&mut self, rules: &[&Rule]) -> Result<Entities, SliceError> {
        let Self {
            overlay,
            principal,
            action,
            resource,
            context,
            variables,
        } = self;
        overlay.reset_steps();
        let bindings = Bindings {
            principal,
            action,
            resource,
            context,
            variables,
        };
        let conditions = rules.iter().map(|rule| (&rule.condition, *rule));
        slice_entities(overlay, &bindings, conditions)
    }
}

/// A policy whose scope the query meets.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Candidate {
    pub(in crate::pdp) rule: RuleIndex,
    /// Whether its condition holds; `None` when Cedar must say.
    pub(in crate::pdp) satisfied: Option<bool>,
}

/// Turns the query's values into Cedar's, checked against the schema, and finds the policies and
/// entities that it takes to decide it.
pub(in crate::pdp) fn bind<'a>(
    snapshot: &Snapshot,
    stored: &'a EntityStore,
    query: &Query,
) -> Result<BoundQuery<'a>, NoAnswer> {
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
    let mut sent = bind_entities(snapshot, &query.entities)?;
    let hierarchy_error = |error| hierarchy_error(error, sent_by_caller);
    if let Some(claimed) = &query.claimed {
        let principal = (&query.principal, &principal);
        let entity = token_entity::entity(snapshot, stored, principal, claimed, &sent)?;
        sent.push(entity);
    }
    let mut overlay = Overlay::with_entities(stored, sent).map_err(hierarchy_error)?;
    let context = Arc::new(context);
    let request = request(
        snapshot,
        query,
        (principal.clone(), action.clone(), resource.clone()),
        &context,
    )?;

    let most = snapshot.settings.max_candidates;
    let [of_principal, of_action, of_resource] =
        overlay.find_named([&query.principal, &query.action, &query.resource]);
    let variables = RequestVariables {
        principal: bind_variable(&mut overlay, of_principal).map_err(hierarchy_error)?,
        action: bind_variable(&mut overlay, of_action).map_err(hierarchy_error)?,
        resource: bind_variable(&mut overlay, of_resource).map_err(hierarchy_error)?,
    };
    let too_many = |TooManyCandidates| NoAnswer::TooManyPolicies { most };
    let bindings = Bindings {
        principal: &principal,
        action: &action,
        resource: &resource,
        context: &context,
        variables: &variables,
    };
    let found = snapshot.index.candidates(&variables, most);
    let found = found.map_err(too_many)?;
    // Conditions nest; whatever thread this is, the deepest must have room.
    let candidates = stacker::maybe_grow(snapshot.stack_bytes, snapshot.stack_bytes * 2, || {
        evaluate_fast(found, &Interpreter::new(&overlay, &bindings))
    });
    let rule = |number: RuleIndex| snapshot.rules.get(number as usize).map(Arc::as_ref);
    let conditions = candidates
        .iter()
        .filter(|candidate| candidate.satisfied.is_none())
        .filter_map(|candidate| rule(candidate.rule))
        .map(|rule| (&rule.remainder, rule));
    let entities =
        slice_entities(&mut overlay, &bindings, conditions).map_err(|error| match error {
            SliceError::Overlay(error) => hierarchy_error(error).into(),
            SliceError::TooMany => NoAnswer::TooManyEntities { most: MAX_LOOKUPS },
        })?;
    Ok(BoundQuery {
        request,
        candidates,
        entities,
        bound_request: BoundRequest {
            overlay,
            principal,
            action,
            resource,
            context,
            variables,
        },
    })
}

/// What is certain of those that were found; each once, in order.
fn evaluate_fast<'a>(found: Vec<Posting<'a>>, interpreter: &Interpreter<'a>) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = found
        .into_iter()
        .map(|posting| Candidate {
            rule: posting.rule,
            satisfied: match posting.condition() {
                Some(condition) => interpreter.eval(condition),
                None => Some(true),
            },
        })
        .collect();
    candidates.sort_unstable_by_key(|candidate| candidate.rule);
    candidates.dedup_by_key(|candidate| candidate.rule);
    candidates
}

/// What scopes can tell of one variable of the request.
fn bind_variable(
    overlay: &mut Overlay<'_>,
    numbers: UidIds,
) -> Result<RequestVariable, OverlayError> {
    let UidIds { uid, ty } = numbers;
    let ancestors = match uid {
        Some(uid) => overlay.ancestors(uid)?,
        None => Vec::new(),
    };
    Ok(RequestVariable { uid, ty, ancestors })
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
            .conformance
            .request_definitely_conforms(principal, &action, resource, context)
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
        None => InvalidQuery::here(Problem::NotApplicable {
            message: error.to_string(),
        }),
    })
}

/// The entities that the request brings, with their direct parents.
fn bind_entities(
    snapshot: &Snapshot,
    sent: &[RequestEntity],
) -> Result<Vec<BoundEntity>, InvalidQuery> {
    let mut seen: HashSet<EntityUID> = HashSet::with_capacity(sent.len());
    let mut entities = Vec::with_capacity(sent.len());
    for (index, entity) in sent.iter().enumerate() {
        let bound = bind_entity(snapshot, entity)
            .map_err(|error| error.at_index(index).within("entities"))?;
        let uid = bound.entity.uid();
        if !seen.insert(uid.clone()) {
            let problem = Problem::DuplicateEntity {
                uid: uid.to_string(),
            };
            return Err(InvalidQuery::field("uid", problem)
                .at_index(index)
                .within("entities"));
        }
        entities.push(bound);
    }
    Ok(entities)
}

/// One entity of a request, with its direct parents, checked against the schema.
fn bind_entity(snapshot: &Snapshot, sent: &RequestEntity) -> Result<BoundEntity, InvalidQuery> {
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
    let bound = BoundEntity { entity, parents };
    check_entity(snapshot, &bound)?;
    Ok(bound)
}
