//! Draws requests, and variants that differ in one detail.

use std::collections::BTreeMap;

use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Uid, Value};

use crate::rng::Rng;
use crate::scenario::{Scenario, bend_record, entity, record};
use crate::shape::Attributes;
use crate::values::{
    ATTRIBUTES, CONTEXT, IDS, PRINCIPALS, RESOURCES, TYPES, id, other_value, uid, value,
};

/// Draws requests in families of variants.
pub(crate) fn draw(rng: &mut Rng, scenario: &Scenario, count: usize) -> Vec<Query> {
    let mut queries: Vec<Query> = Vec::new();
    while queries.len() < count {
        let query = match queries.len() {
            0 => draw_one(rng, scenario),
            _ if rng.chance(45) => draw_one(rng, scenario),
            _ => {
                let base = rng.pick(&queries);
                draw_variant(rng, scenario, base)
            }
        };
        if !queries.contains(&query) {
            queries.push(query);
        }
    }
    queries
}

fn draw_one(rng: &mut Rng, scenario: &Scenario) -> Query {
    let leaves = scenario.shape.leaves();
    let (action, applies) = rng.pick(&leaves);
    let mut action = action.uid();
    if rng.chance(3) {
        action = match rng.below(4) {
            0 | 1 => rng.pick(&scenario.shape.actions).uid(),
            2 => Uid::new("Action", "unheard of"),
            _ => Uid::new("User", id(rng)),
        };
    }
    let principal = match rng.chance(2) {
        true => rng.pick(&["Org", "Ghost", "Tier", "if", "Action", "User"]),
        false => rng.pick(&applies.principals),
    };
    let resource = match rng.chance(2) {
        true => rng.pick(&["Org", "Ghost", "Shop::Ghost", "9", "Action", "Doc"]),
        false => rng.pick(&applies.resources),
    };
    let mut context = record(rng, &applies.context, CONTEXT);
    if rng.chance(if scenario.validates() { 2 } else { 20 }) {
        context = bend_record(rng, &context);
    }
    let mut query = Query {
        principal: uid(rng, principal),
        action,
        resource: uid(rng, resource),
        context,
        entities: Vec::new(),
        claimed: None,
        explain: false,
    };
    if rng.chance(45) {
        for _ in 0..rng.between(1, 4) {
            let sent = request_entity(rng, scenario, &query);
            let is_new = query.entities.iter().all(|entity| entity.uid != sent.uid);
            if is_new || rng.chance(3) {
                query.entities.push(sent);
            }
        }
    }
    query
}

/// Draws an entity that replaces a stored one, supplies a missing parent, or has no effect.
fn request_entity(rng: &mut Rng, scenario: &Scenario, query: &Query) -> RequestEntity {
    let known = |uid: &Uid| {
        let sent = query.entities.iter().find(|entity| entity.uid == *uid);
        sent.or_else(|| scenario.stored(uid)).cloned()
    };
    let mut own = match rng.below(6) {
        0 | 1 => query.principal.clone(),
        2 | 3 => query.resource.clone(),
        _ => {
            let (type_name, _) = rng.pick(TYPES);
            uid(rng, type_name)
        }
    };
    // Walks up the hierarchy, to entities with many descendants.
    while rng.chance(45)
        && let Some(entity) = known(&own)
        && !entity.parents.is_empty()
    {
        own = rng.pick(&entity.parents);
    }
    if rng.chance(1) {
        own = Uid::new(
            rng.pick(&["Ghost", "Action", "Shop::Action", "Tier"]),
            id(rng),
        );
    }
    let mut sent = entity(rng, &scenario.shape, own);
    if rng.chance(if scenario.has_schema() { 2 } else { 20 }) {
        sent.attributes = bend_record(rng, &sent.attributes);
    }
    if rng.chance(1) {
        sent.tags = bend_record(rng, &sent.tags);
    }
    if rng.chance(4) {
        // May close a cycle, or have a parent type that the schema does not allow.
        let parent_type = match rng.chance(80) {
            true => sent.uid.type_name.clone(),
            false => rng.pick(TYPES).0.to_owned(),
        };
        sent.parents
            .push(Uid::new(parent_type, rng.pick(&IDS[..4])));
    }
    sent
}

fn draw_variant(rng: &mut Rng, scenario: &Scenario, base: Query) -> Query {
    let mut query = base;
    match rng.below(10) {
        0 => {
            let type_name = match rng.chance(80) {
                true => query.principal.type_name.clone(),
                false => rng.pick(PRINCIPALS).to_owned(),
            };
            query.principal = uid(rng, &type_name);
        }
        1 => {
            let type_name = match rng.chance(80) {
                true => query.resource.type_name.clone(),
                false => rng.pick(RESOURCES).to_owned(),
            };
            query.resource = uid(rng, &type_name);
        }
        2 => {
            let leaves = scenario.shape.leaves();
            let (action, applies) = rng.pick(&leaves);
            query.action = action.uid();
            if scenario.validates() && rng.chance(80) {
                query.principal = {
                    let type_name = rng.pick(&applies.principals);
                    uid(rng, type_name)
                };
                query.resource = {
                    let type_name = rng.pick(&applies.resources);
                    uid(rng, type_name)
                };
                query.context = record(rng, &applies.context, CONTEXT);
            }
        }
        3 => query.context = change_field(rng, &query.context, CONTEXT),
        4 => query.context = toggle_attribute(rng, scenario, &query),
        5 if !query.entities.is_empty() => {
            let at = rng.below(query.entities.len());
            query.entities.remove(at);
        }
        6 if !query.entities.is_empty() => {
            let at = rng.below(query.entities.len());
            let sent = &mut query.entities[at];
            sent.attributes = change_field(rng, &sent.attributes, ATTRIBUTES);
        }
        7 if !query.entities.is_empty() => {
            let at = rng.below(query.entities.len());
            let sent = &mut query.entities[at];
            if sent.parents.is_empty() || rng.chance(30) {
                sent.parents = entity(rng, &scenario.shape, sent.uid.clone()).parents;
            } else {
                let at = rng.below(sent.parents.len());
                let type_name = sent.parents[at].type_name.clone();
                sent.parents[at] = uid(rng, &type_name);
            }
        }
        9 if !query.entities.is_empty() => {
            let at = rng.below(query.entities.len());
            let sent = &mut query.entities[at];
            sent.tags = entity(rng, &scenario.shape, sent.uid.clone()).tags;
        }
        8 if !scenario.validates() => {
            let known: Attributes = query
                .context
                .iter()
                .filter_map(|(name, _)| CONTEXT.iter().find(|(known, _)| *known == name))
                .map(|(name, _)| (*name, true))
                .collect();
            query.context = record(rng, &known, CONTEXT);
        }
        _ => {
            let sent = request_entity(rng, scenario, &query);
            if query.entities.iter().all(|entity| entity.uid != sent.uid) {
                query.entities.push(sent);
            }
        }
    }
    query
}

/// Adds or removes one attribute of the context, mostly a declared optional one.
fn toggle_attribute(rng: &mut Rng, scenario: &Scenario, query: &Query) -> Record {
    let mut fields: BTreeMap<String, Value> = query
        .context
        .iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    let leaves = scenario.shape.leaves();
    let declared = leaves
        .iter()
        .find(|(action, _)| action.uid() == query.action)
        .map(|(_, applies)| applies.context.clone())
        .unwrap_or_default();
    let optional: Vec<&str> = declared
        .iter()
        .filter_map(|(name, required)| (!required).then_some(*name))
        .collect();
    let (any, ty) = rng.pick(CONTEXT);
    let any_percent = if scenario.validates() { 12 } else { 50 };
    let (name, ty) = match optional.is_empty() || rng.chance(any_percent) {
        true => (any, ty),
        false => {
            let name = rng.pick(&optional);
            let declared = CONTEXT.iter().find(|(known, _)| *known == name);
            (name, declared.map_or(ty, |(_, ty)| *ty))
        }
    };
    if fields.remove(name).is_none() {
        fields.insert(name.to_owned(), value(rng, ty));
    }
    fields.into()
}

/// Changes the value of one field, or the order of a set in it.
fn change_field(rng: &mut Rng, record: &Record, types: &[(&str, crate::values::Ty)]) -> Record {
    let mut fields: BTreeMap<String, Value> = record
        .iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    let names: Vec<String> = fields.keys().cloned().collect();
    if names.is_empty() {
        return record.clone();
    }
    let name = rng.pick(&names);
    let Some((_, ty)) = types.iter().find(|(known, _)| *known == name) else {
        return record.clone();
    };
    if let Some(Value::Set(members)) = fields.get_mut(&name)
        && members.len() > 1
        && rng.chance(60)
    {
        rng.shuffle(members);
        let again = members[0].clone();
        members.push(again);
        return fields.into();
    }
    let drawn = match rng.chance(4) {
        true => other_value(rng, *ty),
        false => value(rng, *ty),
    };
    fields.insert(name, drawn);
    fields.into()
}
