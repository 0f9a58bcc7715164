//! What a token says of the principal, as an entity of this question only.
//!
//! Whether the token is to be believed was settled before; here its claims meet the stored entity
//! of the same uid, the entities that the caller sent, and the schema.

use std::collections::{BTreeMap, HashSet};

use cedar_policy_core::ast::{Entity, EntityUID, PartialValue};
use smol_str::SmolStr;

use super::invalid_query::{FIELD, check_entity};
use crate::pdp::answer::NoAnswer;
use crate::pdp::entities::interner::UidId;
use crate::pdp::entities::overlay::BoundEntity;
use crate::pdp::entities::store::EntityStore;
use crate::pdp::query::{
    Claimed, InvalidQuery, Problem, RequestEntity, StoredPrincipal, Uid, Value,
};
use crate::pdp::snapshot::Snapshot;

/// The principal as the token tells of it, with its direct parents; `sent` are the entities that
/// the caller brought.
///
/// `--request-entity-types` says nothing of it: it is not the caller's, but the issuer's.
pub(super) fn entity(
    snapshot: &Snapshot,
    stored: &EntityStore,
    (uid, principal): (&Uid, &EntityUID),
    claimed: &Claimed,
    sent: &[BoundEntity],
) -> Result<BoundEntity, NoAnswer> {
    let parents = claimed_parents(snapshot, claimed)
        .map_err(|error| error.within("parents").within(FIELD))?;
    reject_redefined_claims(stored, uid, claimed, sent)?;
    let found = stored
        .interner
        .find_named(&uid.type_name, &uid.id)
        .and_then(|number| {
            let parents = stored.parents(number);
            Some(StoredPrincipalEntity {
                entity: stored.entity(number, HashSet::new())?,
                parents: parents.map(|parent| stored.interner.uid(parent)).collect(),
            })
        });
    if found.is_none() && claimed.stored == StoredPrincipal::Require {
        return Err(NoAnswer::UnknownPrincipal);
    }
    let stored_entity = match claimed.stored {
        StoredPrincipal::Join | StoredPrincipal::Require => found,
        StoredPrincipal::Replace => None,
    };
    let merged = merge(snapshot, principal, claimed, parents, stored_entity);
    Ok(merged.map_err(|error| error.within(FIELD))?)
}

/// The stored entity of the principal's uid, with its direct parents.
struct StoredPrincipalEntity {
    entity: Entity,
    parents: Vec<EntityUID>,
}

fn claimed_parents(snapshot: &Snapshot, claimed: &Claimed) -> Result<Vec<EntityUID>, InvalidQuery> {
    let parents = claimed.parents.iter().enumerate();
    parents
        .map(|(index, parent)| {
            let uid = snapshot.type_names.uid(parent);
            uid.map_err(|error| error.at_index(index))
        })
        .collect()
}

/// What an issuer says of the principal and of what it names, a caller cannot say otherwise; nor what
/// that is in as it is stored, or the caller could put the principal wherever it likes from there.
fn reject_redefined_claims(
    stored: &EntityStore,
    principal: &Uid,
    claimed: &Claimed,
    sent: &[BoundEntity],
) -> Result<(), InvalidQuery> {
    if sent.is_empty() {
        return Ok(());
    }
    let mut claimed_uids: Vec<&Uid> = claimed.parents.iter().collect();
    for (_, value) in claimed.attributes.iter() {
        collect_uids(value, &mut claimed_uids);
    }
    // Nothing is taken of a stored principal that is replaced, what it is in neither.
    let stored_entity = (claimed.stored != StoredPrincipal::Replace).then_some(principal);
    let mut above: HashSet<UidId> = HashSet::new();
    for uid in claimed_uids.iter().copied().chain(stored_entity) {
        if let Some(number) = stored.interner.find_named(&uid.type_name, &uid.id)
            && !above.contains(&number)
        {
            above.extend(stored.ancestors(number));
        }
    }
    claimed_uids.push(principal);
    let is_redefined = |uid: &EntityUID| match stored.interner.find_uid(uid) {
        Some(number) if above.contains(&number) => true,
        Some(_) | None => claimed_uids.iter().any(|claimed| is_named(uid, claimed)),
    };
    let uids = sent.iter().map(|bound| bound.entity.uid());
    reject_first(uids, is_redefined, |uid| Problem::ClaimedEntity { uid })
}

/// Refuses `entities` that tell anew of a principal, or of what that is stored to be in: for callers
/// who may not say who the principal is, and so not what it is either.
///
/// # Errors
///
/// [`Problem::AnonymousEntity`] at the first of them.
pub fn reject_redefined_principal(
    snapshot: &Snapshot,
    principal: &Uid,
    entities: &[RequestEntity],
) -> Result<(), InvalidQuery> {
    let stored = &snapshot.entities;
    let number = |uid: &Uid| stored.interner.find_named(&uid.type_name, &uid.id);
    let above = number(principal).map_or_else(Vec::new, |number| stored.ancestors(number));
    let is_redefined = |uid: &Uid| {
        uid == principal || number(uid).is_some_and(|number| above.binary_search(&number).is_ok())
    };
    let uids = entities.iter().map(|entity| &entity.uid);
    reject_first(uids, is_redefined, |uid| Problem::AnonymousEntity { uid })
}

/// Refuses a request's entities, which have these uids, for the first that `is_redefined` otherwise.
fn reject_first<'a, U: ToString + 'a>(
    uids: impl Iterator<Item = &'a U>,
    is_redefined: impl Fn(&U) -> bool,
    problem: impl FnOnce(String) -> Problem,
) -> Result<(), InvalidQuery> {
    let claimed_uids = uids.enumerate().find(|(_, uid)| is_redefined(uid));
    match claimed_uids {
        None => Ok(()),
        Some((index, uid)) => {
            let fault = InvalidQuery::field("uid", problem(uid.to_string()));
            Err(fault.at_index(index).within("entities"))
        }
    }
}

/// Adds the entities that `value` names.
fn collect_uids<'a>(value: &'a Value, named: &mut Vec<&'a Uid>) {
    match value {
        Value::Entity(uid) => named.push(uid),
        Value::Set(members) => members
            .iter()
            .for_each(|member| collect_uids(member, named)),
        Value::Record(fields) => fields
            .iter()
            .for_each(|(_, field)| collect_uids(field, named)),
        Value::Bool(_)
        | Value::Long(_)
        | Value::String(_)
        | Value::Decimal(_)
        | Value::Ip(_)
        | Value::Datetime(_)
        | Value::Duration(_) => {}
    }
}

fn is_named(uid: &EntityUID, name: &Uid) -> bool {
    AsRef::<str>::as_ref(uid.eid()) == name.id && uid.entity_type().to_string() == name.type_name
}

fn merge(
    snapshot: &Snapshot,
    principal: &EntityUID,
    claimed: &Claimed,
    mut parents: Vec<EntityUID>,
    stored_entity: Option<StoredPrincipalEntity>,
) -> Result<BoundEntity, InvalidQuery> {
    let claims = snapshot
        .type_names
        .fields(&claimed.attributes)
        .map_err(|error| error.within("attributes"))?;
    let mut attributes: BTreeMap<SmolStr, PartialValue> = BTreeMap::new();
    let mut tags = BTreeMap::new();
    if let Some(stored) = stored_entity {
        let (_, stored_attributes, _, _, stored_tags) = stored.entity.into_inner();
        attributes.extend(stored_attributes);
        tags.extend(stored_tags);
        parents.extend(stored.parents);
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
