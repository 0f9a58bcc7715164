//! The cache key of a query, beside its revision: the query as unambiguous bytes.
//!
//! A length precedes every string and list, and a type byte precedes every value. So different queries
//! have different keys, except for the values that the projection leaves out.
//!
//! # The projection
//!
//! Some context attributes are read by no policy for the action: a request id, a clock. They must
//! not make every request a new one. For such an attribute the key holds less than the value, and
//! the cache is still exact. An answer, or an error in its place, depends on the snapshot and on
//!
//! 1. what policies read. In the context these are the attributes in [`ContextReads`]; they stay
//!    in full. Error messages quote what a policy read. Beyond that they quote at most the names
//!    of a record's attributes, and all names stay in the key;
//! 2. what request validation reads. A name may be undeclared, or a declared name missing: all
//!    names stay. A value must have the declared type. For a bool, a long and a string the
//!    type byte suffices, so only that stays. Sets and records have types inside, and an entity may
//!    have an enumerated type: they stay in full. A value of an extension type is validated by
//!    parsing its text. If the text is definitely valid (`literals`), only the type byte stays;
//!    otherwise all of the text stays;
//! 3. what `explain` shows. With it, everything stays in full;
//! 4. which entities exist. Uids in the context lead to entities and stay in full. So do the
//!    request's own entities and the token's claims about the principal.
//!
//! So two requests with one key differ at most in the values of attributes that no policy reads
//! and that are equally valid: the answer to one is the answer to the other. An invalid request
//! has no answer, and nothing of it is cached.

mod literals;

use crate::pdp::ContextReads;
use crate::pdp::query::{Claimed, StoredPrincipal};
use crate::pdp::query_ref::{EntityRef, Fields, QueryRef, UidRef, ValueRef};

/// Appends the key of `query` to `out`. `reads` lists the context attributes that policies for the
/// query's action can read.
///
/// Within one snapshot, two queries have the same key exactly when they are equal, except for the
/// order and repetition of set members and for the values that the projection leaves out. The
/// order counts in sets that hold extension values.
pub fn encode(out: &mut Vec<u8>, reads: &ContextReads, query: &QueryRef<'_>) {
    let QueryRef {
        principal,
        action,
        resource,
        context,
        entities,
        claimed,
        explain,
    } = query;
    out.push(u8::from(*explain));
    uid(out, *principal);
    uid(out, *action);
    uid(out, *resource);
    length(out, context.len());
    for (name, field) in context.iter() {
        string(out, name);
        if *explain || reads.reads(name) {
            value(out, field);
        } else {
            unread_value(out, field);
        }
    }
    length(out, entities.len());
    for one in entities {
        entity(out, one);
    }
    match claimed {
        None => out.push(0),
        Some(claimed) => self::claimed(out, claimed),
    }
}

fn entity(out: &mut Vec<u8>, entity: &EntityRef<'_>) {
    let EntityRef {
        uid: entity_uid,
        attributes,
        parents,
        tags,
    } = entity;
    uid(out, *entity_uid);
    record(out, attributes);
    length(out, parents.len());
    for parent in parents {
        uid(out, *parent);
    }
    record(out, tags);
}

/// Writes all claims of a token. The first byte is never zero, which means "no token".
fn claimed(out: &mut Vec<u8>, claimed: &Claimed) {
    let Claimed {
        attributes,
        parents,
        stored,
    } = claimed;
    out.push(match stored {
        StoredPrincipal::Join => 1,
        StoredPrincipal::Replace => 2,
        StoredPrincipal::Require => 3,
    });
    record(out, &Fields::from(attributes));
    length(out, parents.len());
    for parent in parents {
        uid(out, parent.into());
    }
}

/// Marks the type byte of a value that is left out. All type bytes are lower.
const LEFT_OUT: u8 = 0x80;

/// Writes the part that request validation reads, for a value that no policy reads.
fn unread_value(out: &mut Vec<u8>, field: &ValueRef<'_>) {
    let type_suffices = match field {
        ValueRef::Bool(_) | ValueRef::Long(_) | ValueRef::String(_) => true,
        ValueRef::Decimal(text) => literals::is_decimal(text),
        ValueRef::Ip(text) => literals::is_ip(text),
        ValueRef::Datetime(text) => literals::is_datetime(text),
        ValueRef::Duration(text) => literals::is_duration(text),
        ValueRef::Entity(_) | ValueRef::Set(_) | ValueRef::Record(_) => false,
    };
    if type_suffices {
        out.push(LEFT_OUT | type_byte(field));
    } else {
        value(out, field);
    }
}

fn type_byte(value: &ValueRef<'_>) -> u8 {
    match value {
        ValueRef::Bool(_) => 0,
        ValueRef::Long(_) => 1,
        ValueRef::String(_) => 2,
        ValueRef::Entity(_) => 3,
        ValueRef::Set(_) => 4,
        ValueRef::Record(_) => 5,
        ValueRef::Decimal(_) => 6,
        ValueRef::Ip(_) => 7,
        ValueRef::Datetime(_) => 8,
        ValueRef::Duration(_) => 9,
    }
}

/// Writes a length as a varint: no length is a prefix of another.
fn length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn uid(out: &mut Vec<u8>, uid: UidRef<'_>) {
    let UidRef { type_name, id } = uid;
    string(out, type_name);
    string(out, id);
}

/// Writes `fields`. Returns whether one of them holds an extension value.
fn record(out: &mut Vec<u8>, fields: &[(&str, ValueRef<'_>)]) -> bool {
    length(out, fields.len());
    let mut has_extension = false;
    for (name, field) in fields {
        string(out, name);
        has_extension |= value(out, field);
    }
    has_extension
}

/// Writes `value`. Returns whether it is or contains an extension value.
fn value(out: &mut Vec<u8>, value: &ValueRef<'_>) -> bool {
    out.push(type_byte(value));
    match value {
        ValueRef::Bool(value) => {
            out.push(u8::from(*value));
            false
        }
        ValueRef::Long(value) => {
            out.extend_from_slice(&value.to_le_bytes());
            false
        }
        ValueRef::String(text) => {
            string(out, text);
            false
        }
        ValueRef::Entity(entity) => {
            uid(out, *entity);
            false
        }
        ValueRef::Set(members) => set(out, members),
        ValueRef::Record(fields) => record(out, fields),
        // Extension values are keyed by their text. `1.0` equals `1.00`, but a policy's error
        // message quotes the text, and the answer carries the message.
        ValueRef::Decimal(text)
        | ValueRef::Ip(text)
        | ValueRef::Datetime(text)
        | ValueRef::Duration(text) => {
            string(out, text);
            true
        }
    }
}

/// Writes a set sorted and without repetition: in Cedar neither order nor repetition counts.
///
/// A set that holds extension values keeps its order. If two of them are equal but written
/// differently, Cedar keeps one, chosen by order, and may quote it.
fn set(out: &mut Vec<u8>, members: &[ValueRef<'_>]) -> bool {
    let mut has_extension = false;
    let mut encoded: Vec<Vec<u8>> = members
        .iter()
        .map(|member| {
            let mut bytes = Vec::new();
            has_extension |= value(&mut bytes, member);
            bytes
        })
        .collect();
    if !has_extension {
        encoded.sort_unstable();
        encoded.dedup();
    }
    length(out, encoded.len());
    for member in encoded {
        out.extend_from_slice(&member);
    }
    has_extension
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::pdp::query::{Query, Record, RequestEntity, Uid, Value};

    fn query() -> Query {
        Query {
            principal: Uid::new("User", "alice"),
            action: Uid::new("Action", "read"),
            resource: Uid::new("Doc", "1"),
            context: Record::default(),
            entities: Vec::new(),
            claimed: None,
            explain: false,
        }
    }

    fn key(query: &Query) -> Vec<u8> {
        key_with_reads(&ContextReads::All, query)
    }

    fn key_with_reads(reads: &ContextReads, query: &Query) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, reads, &QueryRef::from(query));
        out
    }

    fn with_context(values: &[(&str, Value)]) -> Query {
        let fields: BTreeMap<String, Value> = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        Query {
            context: fields.into(),
            ..query()
        }
    }

    fn with_claims(
        stored: StoredPrincipal,
        attributes: &[(&str, Value)],
        parents: &[Uid],
    ) -> Query {
        let attributes: BTreeMap<String, Value> = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        Query {
            claimed: Some(Arc::new(Claimed {
                attributes: attributes.into(),
                parents: parents.to_vec(),
                stored,
            })),
            ..query()
        }
    }

    fn long(n: i64) -> Value {
        Value::Long(n)
    }

    #[test]
    fn different_queries_have_different_keys() {
        let entity = RequestEntity {
            uid: Uid::new("User", "bob"),
            attributes: Record::default(),
            parents: vec![],
            tags: Record::default(),
        };
        let attributes: Record = BTreeMap::from([("a".to_owned(), long(1))]).into();
        let different = [
            query(),
            Query {
                explain: true,
                ..query()
            },
            Query {
                principal: Uid::new("User", "alic"),
                action: Uid::new("eAction", "read"),
                ..query()
            },
            Query {
                principal: Uid::new("Usera", "lice"),
                ..query()
            },
            Query {
                resource: Uid::new("Doc", ""),
                ..query()
            },
            with_context(&[("a", long(1))]),
            with_context(&[("a", Value::String("1".to_owned()))]),
            with_context(&[("a", Value::Bool(true))]),
            with_context(&[("a", Value::Set(vec![long(1)]))]),
            with_context(&[("a", Value::Set(vec![Value::Set(vec![long(1)])]))]),
            with_context(&[("a", Value::Set(vec![Value::Set(vec![]), long(1)]))]),
            with_context(&[(
                "a",
                Value::Record(BTreeMap::from([("b".to_owned(), long(1))]).into()),
            )]),
            with_context(&[("a", Value::Decimal("1.0".to_owned()))]),
            with_context(&[("a", Value::Ip("1.0".to_owned()))]),
            Query {
                entities: vec![entity.clone()],
                ..query()
            },
            with_claims(StoredPrincipal::Join, &[], &[]),
            with_claims(StoredPrincipal::Replace, &[], &[]),
            with_claims(StoredPrincipal::Require, &[], &[]),
            with_claims(StoredPrincipal::Join, &[("a", long(1))], &[]),
            with_claims(StoredPrincipal::Join, &[("a", long(2))], &[]),
            with_claims(StoredPrincipal::Join, &[], &[Uid::new("User", "bob")]),
            with_claims(StoredPrincipal::Join, &[], &[Uid::new("Userb", "ob")]),
            Query {
                entities: vec![RequestEntity {
                    attributes: attributes.clone(),
                    ..entity.clone()
                }],
                ..query()
            },
            Query {
                entities: vec![RequestEntity {
                    tags: attributes,
                    ..entity.clone()
                }],
                ..query()
            },
            Query {
                entities: vec![RequestEntity {
                    parents: vec![Uid::new("G", "g")],
                    ..entity.clone()
                }],
                ..query()
            },
            Query {
                entities: vec![entity.clone(), entity],
                ..query()
            },
        ];
        for (i, one) in different.iter().enumerate() {
            for (j, other) in different.iter().enumerate() {
                assert_eq!(key(one) == key(other), i == j, "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn set_order_and_repetition_do_not_matter() {
        let one = with_context(&[("a", Value::Set(vec![long(1), long(2), long(1)]))]);
        let other = with_context(&[("a", Value::Set(vec![long(2), long(1)]))]);
        assert_eq!(key(&one), key(&other));
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    /// Returns whether requests that differ in an unread attribute have one key.
    fn share_key_when_unread(one: Value, other: Value) -> bool {
        let reads = ContextReads::Named(vec!["read".to_owned()]);
        let query = |value: Value| with_context(&[("at", value), ("read", long(1))]);
        let (one, other) = (query(one), query(other));
        assert_ne!(key(&one), key(&other));
        let explained = |query: &Query| Query {
            explain: true,
            ..query.clone()
        };
        assert_ne!(
            key_with_reads(&reads, &explained(&one)),
            key_with_reads(&reads, &explained(&other)),
            "an explanation may show it"
        );
        key_with_reads(&reads, &one) == key_with_reads(&reads, &other)
    }

    #[test]
    fn key_holds_only_the_type_of_unread_attributes() {
        let time = |text: &str| Value::Datetime(text.to_owned());
        let decimal = |text: &str| Value::Decimal(text.to_owned());
        let user = |id: &str| Value::Entity(Uid::new("User", id));
        assert!(share_key_when_unread(text("a"), text("b")));
        assert!(share_key_when_unread(long(1), long(2)));
        assert!(share_key_when_unread(Value::Bool(true), Value::Bool(false)));
        assert!(share_key_when_unread(
            time("2026-01-01T00:00:00Z"),
            time("2026-01-02T00:00:00Z")
        ));
        assert!(share_key_when_unread(
            time("2026-01-30T00:00:00Z"),
            time("2024-02-29T12:00:00.000+0100")
        ));
        assert!(!share_key_when_unread(
            time("2026-01-30T00:00:00Z"),
            time("2026-02-29T00:00:00Z")
        ));
        assert!(!share_key_when_unread(text("1"), long(1)));
        assert!(!share_key_when_unread(decimal("1.0"), decimal("1.x")));
        assert!(!share_key_when_unread(decimal("1.y"), decimal("1.x")));
        assert!(!share_key_when_unread(decimal("1.0"), text("1.0")));
        assert!(!share_key_when_unread(user("a"), user("b")));
        assert!(!share_key_when_unread(
            Value::Set(vec![long(1)]),
            Value::Set(vec![text("1")])
        ));
    }

    #[test]
    fn key_holds_the_names_of_unread_attributes() {
        let none = ContextReads::Named(Vec::new());
        let keys = [
            with_context(&[]),
            with_context(&[("a", long(1))]),
            with_context(&[("b", long(1))]),
        ]
        .map(|query| key_with_reads(&none, &query));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    #[test]
    fn key_holds_attributes_that_policies_read() {
        let reads = ContextReads::Named(vec!["a".to_owned()]);
        assert_ne!(
            key_with_reads(&reads, &with_context(&[("a", long(1))])),
            key_with_reads(&reads, &with_context(&[("a", long(2))])),
        );
    }
}
