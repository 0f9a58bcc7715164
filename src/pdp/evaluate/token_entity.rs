//! Converts a token's claims to the entity of the principal, for one query only.
//!
//! The token was verified before. Its claims are merged here with the stored entity of the same
//! uid, checked against the caller's entities, and checked against the schema.

use std::collections::{BTreeMap, HashSet};

use cedar_policy_core::ast::{Entity, EntityUID, PartialValue};
use smol_str::SmolStr;

use super::invalid_query::{TOKEN_FIELD, check_entity, is_same_uid};
use crate::pdp::answer::NoAnswer;
use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::overlay::BoundEntity;
use crate::pdp::entities::store::EntityStore;
use crate::pdp::query::{
    Claimed, InvalidQuery, Problem, RequestEntity, StoredPrincipal, Uid, Value,
};
use crate::pdp::snapshot::Snapshot;

/// Returns the entity of the principal that the token describes, with its direct parents.
///
/// `--request-entity-types` does not apply: the issuer describes this entity, not the caller.
///
/// # Errors
///
/// [`NoAnswer`] if the principal must be stored and is not, if one of the `request_entities`
/// redefines a claim, or if the entity does not conform to the schema.
pub(super) fn bind(
    snapshot: &Snapshot,
    stored: &EntityStore,
    (uid, principal): (&Uid, &EntityUID),
    claimed: &Claimed,
    request_entities: &[BoundEntity],
) -> Result<BoundEntity, NoAnswer> {
    let parents = snapshot.type_names.uids(&claimed.parents);
    let parents = parents.map_err(|error| error.within("parents").within(TOKEN_FIELD))?;
    reject_redefined_claims(stored, uid, claimed, request_entities)?;
    let stored_principal = stored.interner.find_named(&uid.type_name, &uid.id);
    let stored_principal = stored_principal.filter(|uid| stored.location(*uid).is_some());
    let joined = match (claimed.stored, stored_principal) {
        (StoredPrincipal::Require, None) => return Err(NoAnswer::UnknownPrincipal),
        (StoredPrincipal::Join | StoredPrincipal::Require, joined) => joined,
        (StoredPrincipal::Replace, _) => None,
    };
    let merged = merge(snapshot, principal, claimed, parents, (stored, joined));
    Ok(merged.map_err(|error| error.within(TOKEN_FIELD))?)
}

/// Rejects request entities that redefine what the issuer describes.
///
/// These are the principal, the entities that the claims name, and all stored ancestors of both.
/// Otherwise a caller could put the principal into any group, by a new parent of one of them.
fn reject_redefined_claims(
    stored: &EntityStore,
    principal: &Uid,
    claimed: &Claimed,
    request_entities: &[BoundEntity],
) -> Result<(), InvalidQuery> {
    if request_entities.is_empty() {
        return Ok(());
    }
    let mut claimed_uids: Vec<&Uid> = claimed.parents.iter().collect();
    for (_, value) in claimed.attributes.iter() {
        collect_uids(value, &mut claimed_uids);
    }
    // A stored principal that is replaced contributes nothing, nor do its ancestors.
    let stored_principal = (claimed.stored != StoredPrincipal::Replace).then_some(principal);
    let mut ancestors: HashSet<UidId> = HashSet::new();
    for uid in claimed_uids.iter().copied().chain(stored_principal) {
        if let Some(uid) = stored.interner.find_named(&uid.type_name, &uid.id)
            && !ancestors.contains(&uid)
        {
            ancestors.extend(stored.ancestors(uid));
        }
    }
    claimed_uids.push(principal);
    let is_redefined = |uid: &EntityUID| match stored.interner.find_uid(uid) {
        Some(uid) if ancestors.contains(&uid) => true,
        Some(_) | None => claimed_uids.iter().any(|claimed| is_same_uid(uid, claimed)),
    };
    let uids = request_entities.iter().map(|bound| bound.entity.uid());
    reject_first(uids, is_redefined, Problem::ClaimedEntity)
}

/// Rejects `entities` that redefine the principal or one of its stored ancestors.
///
/// For callers that may not choose the principal, and so may not describe it either.
///
/// # Errors
///
/// [`Problem::AnonymousEntity`] at the first such entity.
pub fn reject_redefined_principal(
    snapshot: &Snapshot,
    principal: &Uid,
    entities: &[RequestEntity],
) -> Result<(), InvalidQuery> {
    let stored = &snapshot.entities;
    let find = |uid: &Uid| stored.interner.find_named(&uid.type_name, &uid.id);
    let ancestors = find(principal).map_or_else(Vec::new, |uid| stored.ancestors(uid));
    let is_redefined = |uid: &Uid| {
        uid == principal || find(uid).is_some_and(|uid| ancestors.binary_search(&uid).is_ok())
    };
    let uids = entities.iter().map(|entity| &entity.uid);
    reject_first(uids, is_redefined, Problem::AnonymousEntity)
}

/// Rejects a request for the first of its entities, given by their uids, that `is_redefined`.
fn reject_first<'a, U: ToString + 'a>(
    uids: impl Iterator<Item = &'a U>,
    is_redefined: impl Fn(&U) -> bool,
    problem: impl FnOnce(String) -> Problem,
) -> Result<(), InvalidQuery> {
    match uids.enumerate().find(|(_, uid)| is_redefined(uid)) {
        None => Ok(()),
        Some((index, uid)) => {
            let fault = InvalidQuery::field("uid", problem(uid.to_string()));
            Err(fault.at_index(index).within("entities"))
        }
    }
}

/// Adds the uids in `value` to `uids`.
fn collect_uids<'a>(value: &'a Value, uids: &mut Vec<&'a Uid>) {
    match value {
        Value::Entity(uid) => uids.push(uid),
        Value::Set(members) => members.iter().for_each(|member| collect_uids(member, uids)),
        Value::Record(fields) => fields
            .iter()
            .for_each(|(_, field)| collect_uids(field, uids)),
        Value::Bool(_)
        | Value::Long(_)
        | Value::String(_)
        | Value::Decimal(_)
        | Value::Ip(_)
        | Value::Datetime(_)
        | Value::Duration(_) => {}
    }
}

/// Merges the claims into the `joined` stored entity; a claim replaces a stored attribute.
fn merge(
    snapshot: &Snapshot,
    principal: &EntityUID,
    claimed: &Claimed,
    mut parents: Vec<EntityUID>,
    (stored, joined): (&EntityStore, Option<UidId>),
) -> Result<BoundEntity, InvalidQuery> {
    let claims = snapshot.type_names.fields(&claimed.attributes);
    let claims = claims.map_err(|error| error.within("attributes"))?;
    let mut attributes: BTreeMap<SmolStr, PartialValue> = BTreeMap::new();
    let mut tags = BTreeMap::new();
    if let Some(uid) = joined
        && let Some(entity) = stored.entity(uid, HashSet::new())
    {
        let (_, stored_attributes, _, _, stored_tags) = entity.into_inner();
        attributes.extend(stored_attributes);
        tags.extend(stored_tags);
        let stored_parents = stored.parents(uid);
        parents.extend(stored_parents.map(|parent| stored.interner.uid(parent)));
    }
    let claims = claims.into_iter();
    attributes.extend(claims.map(|(name, value)| (name, PartialValue::from(value))));
    let entity = Entity::new_with_attr_partial_value(
        principal.clone(),
        attributes,
        HashSet::new(),
        HashSet::new(),
        tags,
    );
    let bound = BoundEntity { entity, parents };
    check_entity(snapshot, &bound)?;
    Ok(bound)
}
