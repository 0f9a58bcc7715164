//! Encodes requests as bytes: in any order of fields and entries, and with faults.

use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Uid, Value};

use crate::rng::Rng;
use crate::values::CONTEXT;
use cedar_pdp_test_support::protobuf::{field, key, nested, varint};

/// The keys of a request's fields.
const PRINCIPAL: u8 = 0x0a;
const ACTION: u8 = 0x1a;
const RESOURCE: u8 = 0x22;
const CONTEXT_ENTRY: u8 = 0x2a;
const ENTITY: u8 = 0x32;

/// A request as separate fields.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<Vec<u8>>);

impl Request {
    pub(super) fn new(rng: &mut Rng, query: &Query, explain: bool) -> Self {
        let mut fields = vec![
            field(1, &uid(&query.principal)),
            field(3, &uid(&query.action)),
            field(4, &uid(&query.resource)),
        ];
        fields.extend(entries(rng, 5, &query.context));
        for sent in &query.entities {
            fields.push(field(6, &entity(rng, sent)));
        }
        if explain {
            fields.push(flag(7, 1));
        }
        if rng.chance(20) {
            rng.shuffle(&mut fields);
        }
        Self(fields)
    }

    /// Replaces the principal by a token.
    pub(super) fn with_token(mut self, token: &str) -> Self {
        self.remove(PRINCIPAL);
        self.0.push(field(2, token.as_bytes()));
        self
    }

    /// Removes the identity.
    pub(super) fn anonymous(mut self) -> Self {
        self.remove(PRINCIPAL);
        self
    }

    fn remove(&mut self, key: u8) {
        self.0.retain(|field| field[0] != key);
    }

    fn repeat(&mut self, key: u8) {
        let found = self.0.iter().find(|field| field[0] == key).cloned();
        self.0.extend(found);
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }

    /// Encodes the request with one fault, or with an unusual but valid part. A field that is
    /// appended twice is merged, as protobuf defines.
    pub(super) fn faulty(mut self, rng: &mut Rng) -> Vec<u8> {
        let typed = |type_name: &str| field(1, type_name.as_bytes());
        let (name, _) = rng.pick(CONTEXT);
        let entry =
            |content: &[u8]| field(5, &[field(1, name.as_bytes()), content.to_vec()].concat());
        let group = || uid(&Uid::new("Group", "x"));
        match rng.below(34) {
            0 => self.remove(PRINCIPAL),
            1 => self.remove(ACTION),
            2 => self.remove(RESOURCE),
            3 => self = self.with_token("no token"),
            4 => self.0.push(field(2, b"")),
            5 => self.0.push(field(1, b"")),
            6 => self.0.push(field(1, &typed(""))),
            7 => self.0.push(field(3, &typed(""))),
            8 => {
                let type_name = rng.pick(&["9x", "a b", "Doc::", "__cedar::X", "é", "if", "::Doc"]);
                self.0.push(field(4, &typed(type_name)));
            }
            9 => self.0.push(field(3, &field(2, b"unheard of"))),
            10 => {
                self.remove(PRINCIPAL);
                self.0.push(field(1, &typed("User")));
            }
            11 => self.0.push(entry(&field(2, b""))),
            12 => self.0.push(entry(&[])),
            13..=16 => {
                let text = rng.pick(&[
                    "one",
                    "1.23456",
                    "10.0.0.0/99",
                    "2024-13-01",
                    "1h1h",
                    "",
                    "1.0",
                    "1h",
                    "::1",
                ]);
                let kind = rng.between(7, 10) as u64;
                self.0.push(entry(&field(2, &field(kind, text.as_bytes()))));
            }
            17 => {
                let levels = rng.pick(&[1, 2, 3, 30, 31, 32, 33, 60, 120]);
                let path: &[u64] = rng.pick(&[&[5, 1], &[6, 1, 2]]);
                self.0
                    .push(entry(&field(2, &nested(path, levels, &flag(1, 1)))));
            }
            18 => self.0.push(entry(&field(2, &flag(1, 1)))),
            19 => self.0.push(field(99, b"unknown")),
            20 => self.0.push([key(98, 3), flag(1, 1), key(98, 4)].concat()),
            21 => self.0.push(flag(3, 1)),
            22 => self.0.push(field(6, b"")),
            23 => self.repeat(ENTITY),
            24 => self.repeat(CONTEXT_ENTRY),
            25 => {
                let action = uid(&Uid::new("Action", "read"));
                self.0.push(field(6, &field(1, &action)));
            }
            26 => {
                // More entries than borrowed decoding accepts.
                for number in 0..rng.pick(&[60, 70, 200]) {
                    let name = field(1, format!("more {number}").as_bytes());
                    self.0
                        .push(field(5, &[name, field(2, &flag(2, number))].concat()));
                }
            }
            27 => self.0.push(flag(7, rng.pick(&[0, 2, 300]))),
            28 => self.0.push(field(
                5,
                &[field(1, &[0xff]), field(2, &flag(1, 1))].concat(),
            )),
            29 => {
                for number in 0..rng.pick(&[5, 70]) {
                    let group = uid(&Uid::new("Group", format!("more {number}")));
                    self.0.push(field(6, &field(1, &group)));
                }
            }
            30 => self
                .0
                .push(field(6, &[field(1, &group()), field(3, &group())].concat())),
            31 => {
                let name = "é\"\n".repeat(rng.pick(&[1, 50, 900]));
                self.0.push(field(5, &field(1, name.as_bytes())));
            }
            32 => {
                let mut bytes = self.bytes();
                bytes.truncate(rng.below(bytes.len().max(1)));
                return bytes;
            }
            _ => {
                let mut bytes = self.bytes();
                for _ in 0..rng.between(1, 3) {
                    let at = rng.below(bytes.len());
                    bytes[at] ^= 1 << rng.below(8);
                }
                return bytes;
            }
        }
        self.bytes()
    }
}

pub(super) fn flag(number: u64, value: u64) -> Vec<u8> {
    [key(number, 0), varint(value)].concat()
}

fn uid(uid: &Uid) -> Vec<u8> {
    [
        field(1, uid.type_name.as_bytes()),
        field(2, uid.id.as_bytes()),
    ]
    .concat()
}

/// Encodes the entries of a map in random order.
fn entries(rng: &mut Rng, number: u64, record: &Record) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = record
        .iter()
        .map(|(name, content)| {
            let content = field(2, &value(rng, content));
            field(number, &[field(1, name.as_bytes()), content].concat())
        })
        .collect();
    rng.shuffle(&mut entries);
    entries
}

fn entity(rng: &mut Rng, entity: &RequestEntity) -> Vec<u8> {
    let mut fields = vec![field(1, &uid(&entity.uid))];
    fields.extend(entries(rng, 2, &entity.attributes));
    fields.extend(entity.parents.iter().map(|parent| field(3, &uid(parent))));
    fields.extend(entries(rng, 4, &entity.tags));
    fields.concat()
}

fn value(rng: &mut Rng, value: &Value) -> Vec<u8> {
    match value {
        Value::Bool(value) => flag(1, u64::from(*value)),
        Value::Long(value) => flag(2, value.cast_unsigned()),
        Value::String(text) => field(3, text.as_bytes()),
        Value::Entity(entity) => field(4, &uid(entity)),
        Value::Set(members) => {
            let members = members
                .iter()
                .map(|member| field(1, &self::value(rng, member)));
            let members = members.collect::<Vec<_>>().concat();
            field(5, &members)
        }
        Value::Record(record) => field(6, &entries(rng, 1, record).concat()),
        Value::Decimal(text) => field(7, text.as_bytes()),
        Value::Ip(text) => field(8, text.as_bytes()),
        Value::Datetime(text) => field(9, text.as_bytes()),
        Value::Duration(text) => field(10, text.as_bytes()),
    }
}
