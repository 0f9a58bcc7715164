//! Types, values and uids of scenarios, and their encodings.
//!
//! A value is modelled by the query's own plain [`Value`]. The test verifies that it means the same
//! to Cedar, so this code writes all of Cedar's input itself.

use std::collections::BTreeMap;

use cedar_pdp::pdp::query::{Record, Uid, Value};
use cedar_policy::{EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use serde_json::json;

use crate::rng::Rng;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ty {
    Bool,
    Long,
    String,
    Entity(&'static str),
    Set(&'static Ty),
    /// The only record type: [`RECORD`].
    Record,
    Decimal,
    Ip,
    Datetime,
    Duration,
}

/// A name has the same type on every entity, so that policies can be drawn before their entities
/// are known.
pub(crate) const ATTRIBUTES: &[(&str, Ty)] = &[
    ("level", Ty::Long),
    ("limit", Ty::Long),
    ("odd key", Ty::Long),
    ("name", Ty::String),
    ("active", Ty::Bool),
    ("owner", Ty::Entity("User")),
    ("manager", Ty::Entity("User")),
    ("home", Ty::Entity("Folder")),
    ("teams", Ty::Set(&Ty::Entity("Group"))),
    ("labels", Ty::Set(&Ty::String)),
    ("scores", Ty::Set(&Ty::Long)),
    ("rates", Ty::Set(&Ty::Decimal)),
    ("profile", Ty::Record),
    ("price", Ty::Decimal),
    ("net", Ty::Ip),
    ("since", Ty::Datetime),
    ("ttl", Ty::Duration),
    ("tier", Ty::Entity("Tier")),
];

pub(crate) const CONTEXT: &[(&str, Ty)] = &[
    ("amount", Ty::Long),
    ("mfa", Ty::Bool),
    ("key", Ty::String),
    ("subject", Ty::Entity("User")),
    ("seen", Ty::Set(&Ty::Entity("User"))),
    ("labels", Ty::Set(&Ty::String)),
    ("profile", Ty::Record),
    ("cost", Ty::Decimal),
    ("from", Ty::Ip),
    ("at", Ty::Datetime),
    ("span", Ty::Duration),
    ("tier", Ty::Entity("Tier")),
];

/// The number of leading entries whose type follows from the kind of a value.
pub(crate) const PLAIN: usize = 4;

/// Name, type and whether it is required.
pub(crate) const RECORD: &[(&str, Ty, bool)] = &[
    ("dept", Ty::String, true),
    ("rank", Ty::Long, true),
    ("boss", Ty::Entity("User"), false),
];

/// Returns the type of tags on entities of `type_name`, where the schema allows tags.
pub(crate) fn tag_type(type_name: &str) -> Ty {
    match type_name {
        "User" => Ty::Entity("Doc"),
        "Doc" | "Shop::Order" => Ty::Entity("User"),
        "Folder" => Ty::Set(&Ty::String),
        _ => Ty::Long,
    }
}

pub(crate) const TAGS: &[&str] = &["k0", "k1", "x"];

/// Types with a hierarchy, and their parent types. An entity's parents of its own type come later
/// in [`IDS`], so that generated stores have no cycles.
pub(crate) const TYPES: &[(&str, &[&str])] = &[
    ("User", &["Group", "Org"]),
    ("Group", &["Group", "Org"]),
    ("Org", &[]),
    ("Doc", &["Folder"]),
    ("Folder", &["Folder", "Org"]),
    ("Shop::Order", &["Folder", "Group"]),
];

pub(crate) const PRINCIPALS: &[&str] = &["User", "User", "User", "Group"];
pub(crate) const RESOURCES: &[&str] = &["Doc", "Doc", "Folder", "Shop::Order"];

pub(crate) const IDS: &[&str] = &["a", "b", "c", "d", "e", "", "q\"é\n\0"];

/// Ids of groups and folders in a long chain, in scenarios that have one: the lowest has some tens
/// of ancestors. In others only policies name them.
pub(crate) const CHAIN: &[&str] = &[
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
    "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31", "32",
    "33", "34", "35", "36", "37", "38", "39",
];

/// The types of the chains.
pub(crate) const CHAIN_TYPES: &[&str] = &["Group", "Folder"];

/// Returns the ids that parents of the same type may have.
pub(crate) fn parent_ids(id: &str) -> &'static [&'static str] {
    match IDS.iter().position(|known| *known == id) {
        Some(rank) => &IDS[rank + 1..],
        // An entity of a chain has no other parents of its type, which could lead back below it.
        None => &[],
    }
}

pub(crate) fn id(rng: &mut Rng) -> &'static str {
    // Few ids, so that policies, entities and requests match often.
    match rng.below(100) {
        0..=88 => IDS[rng.below(4)],
        89 => "nobody",
        _ => rng.pick(IDS),
    }
}

pub(crate) fn uid(rng: &mut Rng, type_name: &str) -> Uid {
    if type_name == "Tier" {
        return Uid::new("Tier", rng.pick(&["gold", "silver"]));
    }
    if CHAIN_TYPES.contains(&type_name) && rng.chance(12) {
        return Uid::new(type_name, rng.pick(CHAIN));
    }
    Uid::new(type_name, id(rng))
}

pub(crate) fn value(rng: &mut Rng, ty: Ty) -> Value {
    let text = |rng: &mut Rng, texts: &[&str]| (rng.pick(texts)).to_owned();
    match ty {
        Ty::Bool => Value::Bool(rng.chance(60)),
        Ty::Long => Value::Long(rng.pick(&[0, 1, 2, 3, 5, 8, -1, 4, 6, i64::MAX, i64::MIN])),
        Ty::String => Value::String(text(rng, &["x", "y", "xyz", "", "k0", "1.50", "é\"\n"])),
        Ty::Entity(type_name) => Value::Entity(uid(rng, type_name)),
        Ty::Set(member) => Value::Set((0..rng.below(4)).map(|_| value(rng, *member)).collect()),
        Ty::Record => {
            let mut fields = BTreeMap::new();
            for (name, ty, required) in RECORD {
                if *required || rng.chance(50) {
                    fields.insert((*name).to_owned(), value(rng, *ty));
                }
            }
            Value::Record(fields.into())
        }
        Ty::Decimal => Value::Decimal(text(rng, &["0.0", "1.0", "1.00", "1.5", "-2.25", "9.9999"])),
        Ty::Ip => Value::Ip(text(
            rng,
            &[
                "10.0.0.1",
                "10.0.0.1/32",
                "10.0.0.0/8",
                "192.168.1.7",
                "::1",
            ],
        )),
        Ty::Datetime => Value::Datetime(text(
            rng,
            &[
                "2024-01-01",
                "2024-10-15T11:35:00Z",
                "2024-10-15T13:35:00.000+0200",
                "1970-01-01",
            ],
        )),
        Ty::Duration => Value::Duration(text(rng, &["1h", "60m", "-1d", "1d2h3m4s5ms", "0ms"])),
    }
}

/// Draws a value that most likely has another type than `ty`.
pub(crate) fn other_value(rng: &mut Rng, ty: Ty) -> Value {
    let mut other = rng.pick(ATTRIBUTES).1;
    if other == ty {
        other = if ty == Ty::Bool { Ty::Long } else { Ty::Bool };
    }
    value(rng, other)
}

pub(crate) fn cedar_uid(uid: &Uid) -> Result<EntityUid, String> {
    let type_name: EntityTypeName = uid.type_name.parse().map_err(|error| format!("{error}"))?;
    Ok(EntityUid::from_type_name_and_id(
        type_name,
        EntityId::new(&uid.id),
    ))
}

/// Writes a uid in policy syntax.
pub(crate) fn uid_text(uid: &Uid) -> String {
    cedar_uid(uid).unwrap().to_string()
}

pub(crate) fn string_text(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

/// Writes a value in policy syntax.
pub(crate) fn literal(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Long(value) => value.to_string(),
        Value::String(text) => string_text(text),
        Value::Entity(uid) => uid_text(uid),
        Value::Set(members) => {
            let members: Vec<String> = members.iter().map(literal).collect();
            format!("[{}]", members.join(", "))
        }
        Value::Record(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, field)| format!("{}: {}", string_text(name), literal(field)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::Decimal(text) => format!("decimal({})", string_text(text)),
        Value::Ip(text) => format!("ip({})", string_text(text)),
        Value::Datetime(text) => format!("datetime({})", string_text(text)),
        Value::Duration(text) => format!("duration({})", string_text(text)),
    }
}

/// Writes a value for an entity file; `implicit` omits what the schema implies.
pub(crate) fn json(value: &Value, implicit: bool) -> serde_json::Value {
    let extension = |function: &str, text: &str| match implicit {
        true => json!(text),
        false => json!({"__extn": {"fn": function, "arg": text}}),
    };
    match value {
        Value::Bool(value) => json!(value),
        Value::Long(value) => json!(value),
        Value::String(text) => json!(text),
        Value::Entity(uid) => {
            let uid = json!({"type": uid.type_name, "id": uid.id});
            if implicit {
                uid
            } else {
                json!({"__entity": uid})
            }
        }
        Value::Set(members) => members
            .iter()
            .map(|member| json(member, implicit))
            .collect(),
        Value::Record(fields) => fields
            .iter()
            .map(|(name, field)| (name.to_owned(), json(field, implicit)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Decimal(text) => extension("decimal", text),
        Value::Ip(text) => extension("ip", text),
        Value::Datetime(text) => extension("datetime", text),
        Value::Duration(text) => extension("duration", text),
    }
}

/// Converts a value for Cedar's public API.
pub(crate) fn expression(value: &Value) -> Result<RestrictedExpression, String> {
    Ok(match value {
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Long(value) => RestrictedExpression::new_long(*value),
        Value::String(text) => RestrictedExpression::new_string(text.clone()),
        Value::Entity(uid) => RestrictedExpression::new_entity_uid(cedar_uid(uid)?),
        Value::Set(members) => RestrictedExpression::new_set(
            members
                .iter()
                .map(expression)
                .collect::<Result<Vec<_>, _>>()?,
        ),
        Value::Record(fields) => RestrictedExpression::new_record(expressions(fields)?)
            .map_err(|error| error.to_string())?,
        Value::Decimal(text) => RestrictedExpression::new_decimal(text),
        Value::Ip(text) => RestrictedExpression::new_ip(text),
        Value::Datetime(text) => RestrictedExpression::new_datetime(text),
        Value::Duration(text) => RestrictedExpression::new_duration(text),
    })
}

pub(crate) fn expressions(fields: &Record) -> Result<Vec<(String, RestrictedExpression)>, String> {
    fields
        .iter()
        .map(|(name, field)| Ok((name.to_owned(), expression(field)?)))
        .collect()
}
