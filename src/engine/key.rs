//! What a remembered answer is found by: the revision and the whole query, as unambiguous bytes.
//!
//! Every string and list is preceded by its length and every value by its kind, so no two
//! different queries share a key. The key holds all of the query: a part left out would be a
//! wrong answer the day a policy reads it.

use crate::pdp::id::Revision;
use crate::pdp::query::{Query, Record, RequestEntity, Uid, Value};

/// Writes the key of `query` under `revision` to `out`, which is cleared first.
pub(super) fn encode(out: &mut Vec<u8>, revision: &Revision, query: &Query) {
    let Query {
        principal,
        action,
        resource,
        context,
        entities,
        explain,
    } = query;
    out.clear();
    string(out, revision.as_str());
    out.push(u8::from(*explain));
    uid(out, principal);
    uid(out, action);
    uid(out, resource);
    record(out, context);
    length(out, entities.len());
    for entity in entities {
        let RequestEntity {
            uid: own,
            attributes,
            parents,
            tags,
        } = entity;
        uid(out, own);
        record(out, attributes);
        length(out, parents.len());
        for parent in parents {
            uid(out, parent);
        }
        record(out, tags);
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

fn uid(out: &mut Vec<u8>, uid: &Uid) {
    let Uid { type_name, id } = uid;
    string(out, type_name);
    string(out, id);
}

fn record(out: &mut Vec<u8>, record: &Record) {
    length(out, record.len());
    for (name, field) in record.iter() {
        string(out, name);
        value(out, field);
    }
}

/// Writes `value`; whether it holds a value of an extension type.
fn value(out: &mut Vec<u8>, value: &Value) -> bool {
    match value {
        Value::Bool(value) => {
            out.extend_from_slice(&[0, u8::from(*value)]);
            false
        }
        Value::Long(value) => {
            out.push(1);
            out.extend_from_slice(&value.to_le_bytes());
            false
        }
        Value::String(text) => {
            out.push(2);
            string(out, text);
            false
        }
        Value::Entity(entity) => {
            out.push(3);
            uid(out, entity);
            false
        }
        Value::Set(members) => {
            out.push(4);
            set(out, members)
        }
        Value::Record(fields) => {
            out.push(5);
            length(out, fields.len());
            let mut extension = false;
            for (name, field) in fields.iter() {
                string(out, name);
                extension |= self::value(out, field);
            }
            extension
        }
        // Extension values are keyed by their text: `1.0` is `1.00`, but a policy's error
        // message quotes what was written, and the answer carries the message.
        Value::Decimal(text) => extension(out, 6, text),
        Value::Ip(text) => extension(out, 7, text),
        Value::Datetime(text) => extension(out, 8, text),
        Value::Duration(text) => extension(out, 9, text),
    }
}

fn extension(out: &mut Vec<u8>, kind: u8, text: &str) -> bool {
    out.push(kind);
    string(out, text);
    true
}

/// A set is written sorted and without repetition, which mean nothing in Cedar.
///
/// Not so when it holds extension values: of two that are equal but written differently Cedar
/// keeps one, by order, and may quote it.
fn set(out: &mut Vec<u8>, members: &[Value]) -> bool {
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

    use super::*;

    fn query() -> Query {
        Query {
            principal: Uid::new("User", "alice"),
            action: Uid::new("Action", "read"),
            resource: Uid::new("Doc", "1"),
            context: Record::default(),
            entities: Vec::new(),
            explain: false,
        }
    }

    fn key(query: &Query) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        encode(&mut out, &Revision::from_digest(&[7; 32]), query);
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

    #[test]
    fn the_revision_is_in_the_key() {
        let mut other = Vec::new();
        encode(&mut other, &Revision::from_digest(&[8; 32]), &query());
        assert_ne!(key(&query()), other);
    }
}
