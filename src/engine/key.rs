//! What a remembered answer is found by, beside the revision: the query as unambiguous bytes.
//!
//! Every string and list is preceded by its length and every value by its kind, so no two
//! different queries share a key, but for what is said under "The projection".
//!
//! # The projection
//!
//! A context attribute that no policy for the action can read (a request id, a clock) must not
//! make every request a new one. Of such an attribute the key holds less than the value, and is
//! still exact. What an answer, or an error in its place, depends on is the snapshot and
//!
//! 1. what policies read: of the context that are the attributes in [`ContextReads`], which stay
//!    in full. Error messages quote what a policy read, and beyond it at most the names of a
//!    record's attributes, which all stay in the key;
//! 2. what checking the request reads. A name may be undeclared, or a declared one missing: all
//!    names stay. A value must be of the declared type. Of a bool, a long and a string the kind
//!    alone tells that, so the kind alone stays. Sets and records have types within, and entities
//!    may be of an enumerated type: they stay in full. A value of an extension type is checked
//!    by reading its text: the kind alone stays only where the text is certainly a good one
//!    (`certain`), and all of it where that is less than certain;
//! 3. what `explain` shows: with it, everything stays in full;
//! 4. which entities are there: uids in the context lead to them, and stay in full, as do the
//!    request's own entities, and what a token says of the principal.
//!
//! So two requests with one key differ at most in the values of attributes that no policy reads
//! and that are equally valid: the answer to one is the answer to the other. What is not valid is
//! never answered, nor remembered.

mod certain;

use super::query_ref::{EntityRef, QueryRef, UidRef, ValueRef, fields};
use crate::pdp::ContextReads;
use crate::pdp::query::{Claimed, StoredPrincipal};

/// Writes the key of `query` at the end of `out`; `reads` is what policies for the
/// query's action can read of the context.
///
/// Under one snapshot, queries have one key exactly when they are equal but for the order and
/// repetition of set members and for the values that the projection leaves out. Sets that hold
/// values of an extension type keep their order.
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
            unread(out, field);
        }
    }
    length(out, entities.len());
    for entity in entities {
        let EntityRef {
            uid: own,
            attributes,
            parents,
            tags,
        } = entity;
        uid(out, *own);
        record(out, attributes);
        length(out, parents.len());
        for parent in parents {
            uid(out, *parent);
        }
        record(out, tags);
    }
    match claimed {
        None => out.push(0),
        Some(claimed) => self::claimed(out, claimed),
    }
}

/// Writes what a token says, all of it. No byte that begins it is zero.
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
    record(out, &fields(attributes));
    length(out, parents.len());
    for parent in parents {
        uid(out, parent.into());
    }
}

/// Stands before the kind of a value that is left out. No kind is so high.
const LEFT_OUT: u8 = 0x80;

/// Writes of a value that no policy reads what checking the request reads.
fn unread(out: &mut Vec<u8>, field: &ValueRef<'_>) {
    let kind_alone_tells = match field {
        ValueRef::Bool(_) | ValueRef::Long(_) | ValueRef::String(_) => true,
        ValueRef::Decimal(text) => certain::is_decimal(text),
        ValueRef::Ip(text) => certain::is_ip(text),
        ValueRef::Datetime(text) => certain::is_datetime(text),
        ValueRef::Duration(text) => certain::is_duration(text),
        ValueRef::Entity(_) | ValueRef::Set(_) | ValueRef::Record(_) => false,
    };
    if kind_alone_tells {
        out.push(LEFT_OUT | kind(field));
    } else {
        value(out, field);
    }
}

fn kind(value: &ValueRef<'_>) -> u8 {
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

/// Seven bits a byte, the last byte's high bit clear: no length is a prefix of another.
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

/// Writes `fields`; whether there is a value of an extension type among them.
fn record(out: &mut Vec<u8>, fields: &[(&str, ValueRef<'_>)]) -> bool {
    length(out, fields.len());
    let mut extension = false;
    for (name, field) in fields {
        string(out, name);
        extension |= value(out, field);
    }
    extension
}

/// Writes `value`; whether it holds a value of an extension type.
fn value(out: &mut Vec<u8>, value: &ValueRef<'_>) -> bool {
    out.push(kind(value));
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
        // Extension values are keyed by their text: `1.0` is `1.00`, but a policy's error
        // message quotes what was written, and the answer carries the message.
        ValueRef::Decimal(text)
        | ValueRef::Ip(text)
        | ValueRef::Datetime(text)
        | ValueRef::Duration(text) => {
            string(out, text);
            true
        }
    }
}

/// A set is written sorted and without repetition, which mean nothing in Cedar.
///
/// Not so when it holds extension values: of two that are equal but written differently Cedar
/// keeps one, by order, and may quote it.
fn set(out: &mut Vec<u8>, members: &[ValueRef<'_>]) -> bool {
    let mut extension = false;
    let mut encoded: Vec<Vec<u8>> = members
        .iter()
        .map(|member| {
            let mut bytes = Vec::new();
            extension |= value(&mut bytes, member);
            bytes
        })
        .collect();
    if !extension {
        encoded.sort_unstable();
        encoded.dedup();
    }
    length(out, encoded.len());
    for member in encoded {
        out.extend_from_slice(&member);
    }
    extension
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
        key_where(&ContextReads::All, query)
    }

    fn key_where(reads: &ContextReads, query: &Query) -> Vec<u8> {
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

    fn claiming(stored: StoredPrincipal, attributes: &[(&str, Value)], parents: &[Uid]) -> Query {
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
    fn whatever_differs_in_the_query_differs_in_the_key() {
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
            claiming(StoredPrincipal::Join, &[], &[]),
            claiming(StoredPrincipal::Replace, &[], &[]),
            claiming(StoredPrincipal::Require, &[], &[]),
            claiming(StoredPrincipal::Join, &[("a", long(1))], &[]),
            claiming(StoredPrincipal::Join, &[("a", long(2))], &[]),
            claiming(StoredPrincipal::Join, &[], &[Uid::new("User", "bob")]),
            claiming(StoredPrincipal::Join, &[], &[Uid::new("Userb", "ob")]),
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
    fn order_and_repetition_in_a_set_do_not_matter() {
        let one = with_context(&[("a", Value::Set(vec![long(1), long(2), long(1)]))]);
        let other = with_context(&[("a", Value::Set(vec![long(2), long(1)]))]);
        assert_eq!(key(&one), key(&other));
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    /// Whether requests that differ in an unread attribute have one key.
    fn is_one_unread(one: Value, other: Value) -> bool {
        let reads = ContextReads::Named(vec!["read".to_owned()]);
        let query = |value: Value| with_context(&[("at", value), ("read", long(1))]);
        let (one, other) = (query(one), query(other));
        assert_ne!(key(&one), key(&other));
        let explained = |query: &Query| Query {
            explain: true,
            ..query.clone()
        };
        assert_ne!(
            key_where(&reads, &explained(&one)),
            key_where(&reads, &explained(&other)),
            "an explanation may show it"
        );
        key_where(&reads, &one) == key_where(&reads, &other)
    }

    #[test]
    fn of_an_attribute_that_no_policy_reads_only_what_its_type_depends_on_is_in_the_key() {
        let time = |text: &str| Value::Datetime(text.to_owned());
        let decimal = |text: &str| Value::Decimal(text.to_owned());
        let user = |id: &str| Value::Entity(Uid::new("User", id));
        assert!(is_one_unread(text("a"), text("b")));
        assert!(is_one_unread(long(1), long(2)));
        assert!(is_one_unread(Value::Bool(true), Value::Bool(false)));
        assert!(is_one_unread(
            time("2026-01-01T00:00:00Z"),
            time("2026-01-02T00:00:00Z")
        ));
        assert!(is_one_unread(
            time("2026-01-30T00:00:00Z"),
            time("2024-02-29T12:00:00.000+0100")
        ));
        assert!(!is_one_unread(
            time("2026-01-30T00:00:00Z"),
            time("2026-02-29T00:00:00Z")
        ));
        assert!(!is_one_unread(text("1"), long(1)));
        assert!(!is_one_unread(decimal("1.0"), decimal("1.x")));
        assert!(!is_one_unread(decimal("1.y"), decimal("1.x")));
        assert!(!is_one_unread(decimal("1.0"), text("1.0")));
        assert!(!is_one_unread(user("a"), user("b")));
        assert!(!is_one_unread(
            Value::Set(vec![long(1)]),
            Value::Set(vec![text("1")])
        ));
    }

    #[test]
    fn the_name_of_an_unread_attribute_and_whether_it_is_there_are_in_the_key() {
        let none = ContextReads::Named(Vec::new());
        let keys = [
            with_context(&[]),
            with_context(&[("a", long(1))]),
            with_context(&[("b", long(1))]),
        ]
        .map(|query| key_where(&none, &query));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    #[test]
    fn what_a_policy_reads_is_in_the_key() {
        let reads = ContextReads::Named(vec!["a".to_owned()]);
        assert_ne!(
            key_where(&reads, &with_context(&[("a", long(1))])),
            key_where(&reads, &with_context(&[("a", long(2))])),
        );
    }
}
