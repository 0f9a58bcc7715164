//! Compares requests read in place with prost on the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;

use super::*;
use crate::api::grpc::pb;
use crate::api::grpc::wire::codec;
use crate::api::grpc::wire::from_proto;
use crate::pdp::query::{Claimed, StoredPrincipal, Uid};
use pb::authorize_request::Identity;
use pb::value::Kind;

fn rules(anonymous: Option<Uid>) -> RequestRules {
    RequestRules {
        anonymous_principal: anonymous,
        max_request_entities: 3,
        max_values: 100_000,
        max_value_depth: 32,
    }
}

/// Random values, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn text(&mut self) -> String {
        ["", "a", "b", "User", "Action", "id\u{0}", "ähnlich", "1.0"][self.below(8)].to_owned()
    }

    fn uid(&mut self) -> pb::EntityUid {
        pb::EntityUid {
            r#type: self.text(),
            id: (self.below(8) > 0).then(|| self.text()),
        }
    }

    fn value(&mut self, depth: usize) -> pb::Value {
        let kinds = if depth > 0 { 10 } else { 8 };
        let kind = match self.below(kinds) {
            0 => Kind::Bool(self.below(2) == 1),
            1 => Kind::Long([0, 1, -1, i64::MIN, i64::MAX][self.below(5)]),
            2 => Kind::String(self.text()),
            3 => Kind::Entity(self.uid()),
            4 => Kind::Decimal(self.text()),
            5 => Kind::Ip(self.text()),
            6 => Kind::Datetime(self.text()),
            7 => Kind::Duration(self.text()),
            8 => Kind::Set(pb::ValueList {
                values: (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            }),
            _ => Kind::Record(pb::ValueRecord {
                fields: self.fields(depth - 1),
            }),
        };
        pb::Value {
            kind: (self.below(20) > 0).then_some(kind),
        }
    }

    fn fields(&mut self, depth: usize) -> BTreeMap<String, pb::Value> {
        (0..self.below(4))
            .map(|_| (self.text(), self.value(depth)))
            .collect()
    }

    fn request(&mut self) -> pb::AuthorizeRequest {
        pb::AuthorizeRequest {
            identity: match self.below(12) {
                0 => None,
                1 => Some(Identity::PrincipalToken(self.text())),
                _ => Some(Identity::Principal(self.uid())),
            },
            action: (self.below(20) > 0).then(|| self.uid()),
            resource: (self.below(20) > 0).then(|| self.uid()),
            context: self.fields(3),
            entities: (0..self.below(5).saturating_sub(1))
                .map(|_| pb::Entity {
                    uid: (self.below(20) > 0).then(|| self.uid()),
                    attributes: self.fields(2),
                    parents: (0..self.below(3)).map(|_| self.uid()).collect(),
                    tags: self.fields(1),
                })
                .collect(),
            explain: self.below(3) == 0,
        }
    }

    /// Changes at most one byte or field.
    fn changed(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        let at = self.below(bytes.len());
        match self.below(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] = self.below(256) as u8,
            2 => bytes[at] ^= 1 << self.below(8),
            3 => bytes.insert(at, self.below(256) as u8),
            // An unknown field, or a second one of a known field.
            4 => {
                bytes.extend([[0x38, 1], [0x42, 0], [0x22, 0], [0x0a, 0], [0x3d, 0]][self.below(5)])
            }
            _ => {}
        }
        bytes
    }

    /// Reorders the fields of a message, and repeats some.
    fn shuffled(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut fields = Vec::new();
        let mut rest = Fields(bytes);
        let mut before = rest.0;
        while rest.next().is_some() {
            fields.push(&before[..before.len() - rest.0.len()]);
            before = rest.0;
        }
        let order: Vec<usize> = (0..fields.len()).collect();
        let mut order = order;
        for at in 0..order.len() {
            let other = self.below(order.len());
            order.swap(at, other);
        }
        if !order.is_empty() && self.below(4) == 0 {
            order.push(order[self.below(order.len())]);
        }
        order
            .into_iter()
            .flat_map(|at| fields[at])
            .copied()
            .collect()
    }
}

/// Parses `message` by prost; `None` if it is faulty.
fn decoded(message: &[u8], rules: &RequestRules) -> Option<pb::AuthorizeRequest> {
    let request: pb::AuthorizeRequest = codec::decode(message).ok()?;
    let question = from_proto::question(&request, rules);
    let faulty = matches!(&question.credential, Credential::Principal(Err(_)));
    (!faulty && question.operation.is_ok()).then_some(request)
}

/// Returns whether `message` was read in place, and checks that prost reads the same.
fn check(message: &[u8], rules: &RequestRules) -> bool {
    let Some(read) = request(message, rules) else {
        return false;
    };
    let decoded =
        decoded(message, rules).unwrap_or_else(|| panic!("{message:02x?} is no question"));
    let principal = Uid::new("User", "bearer");
    let claimed = Arc::new(Claimed {
        attributes: BTreeMap::new().into(),
        parents: Vec::new(),
        stored: StoredPrincipal::Join,
    });
    let query = |question: Question<'_>| {
        let operation = question.operation.unwrap();
        let query = operation.query((&principal).into(), Some(&claimed), question.explain);
        query.to_query()
    };
    let decoded = from_proto::question(&decoded, rules);
    assert_eq!(read.credential, decoded.credential, "{message:02x?}");
    assert_eq!(query(read), query(decoded), "{message:02x?}");
    true
}

#[test]
fn borrowed_and_decoded_requests_are_equal() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut in_place, mut good, mut changed) = (0, 0, 0);
    for round in 0..60_000 {
        let rules = rules((round % 2 == 0).then(|| Uid::new("User", "nobody")));
        let message = random.request().encode_to_vec();
        let is_good = decoded(&message, &rules).is_some();
        good += usize::from(is_good);
        let is_read = check(&message, &rules);
        in_place += usize::from(is_read);
        // prost omits fields with default values, and so an empty name.
        assert!(is_good || !is_read);
        let shuffled = random.shuffled(&message);
        check(&shuffled, &rules);
        let near = random.changed(shuffled);
        changed += usize::from(check(&near, &rules));
    }
    println!("of {good} good requests {in_place} were read in place; {changed} that were changed");
    assert!(in_place * 10 > good * 5 && changed > 1_000);
}

fn plain() -> pb::AuthorizeRequest {
    let uid = |type_name: &str, id: &str| pb::EntityUid {
        r#type: type_name.to_owned(),
        id: Some(id.to_owned()),
    };
    let value = |kind| pb::Value { kind: Some(kind) };
    pb::AuthorizeRequest {
        identity: Some(Identity::Principal(uid("User", "alice"))),
        action: Some(uid("", "read")),
        resource: Some(uid("Doc", "")),
        context: BTreeMap::from([
            ("a".to_owned(), value(Kind::Long(-1))),
            (
                "b".to_owned(),
                value(Kind::Set(pb::ValueList { values: vec![] })),
            ),
        ]),
        entities: Vec::new(),
        explain: false,
    }
}

#[test]
fn plain_fields_are_read_in_any_order() {
    let message = plain().encode_to_vec();
    assert!(check(&message, &rules(None)));
    let mut random = Random(7);
    let mut in_place = 0;
    for _ in 0..100 {
        in_place += usize::from(check(&random.shuffled(&message), &rules(None)));
    }
    assert!(in_place > 50);
}

#[test]
fn other_shapes_are_left_to_prost() {
    let plain = plain().encode_to_vec();
    let with = |more: &[u8]| [&plain, more].concat();
    let rules = rules(None);
    for (what, message) in [
        ("an unknown field", with(&[0x42, 0])),
        ("a second resource", with(&[0x22, 0])),
        ("a token beside the principal", with(&[0x12, 0])),
        (
            "a name twice",
            with(&[0x2a, 7, 0x0a, 1, b'a', 0x12, 2, 0x08, 1]),
        ),
        ("an entry without value", with(&[0x2a, 3, 0x0a, 1, b'c'])),
        ("an entry without name", with(&[0x2a, 4, 0x12, 2, 0x08, 1])),
        (
            "a value of two kinds",
            with(&[0x2a, 9, 0x0a, 1, b'c', 0x12, 4, 0x08, 1, 0x10, 1]),
        ),
        ("a bool of two", with(&[0x38, 2])),
        (
            "text that is no UTF-8",
            with(&[0x2a, 8, 0x0a, 1, b'c', 0x12, 3, 0x1a, 1, 0xff]),
        ),
        ("a group", with(&[0x43, 0x44])),
        ("less than the declared length", with(&[0x2a, 9])),
        ("nothing", Vec::new()),
    ] {
        assert!(!check(&message, &rules), "{what}");
    }
}

#[test]
fn nested_values_are_read_to_a_depth() {
    let rules = rules(None);
    for record in [false, true] {
        let mut value = pb::Value {
            kind: Some(Kind::Bool(true)),
        };
        for depth in 1..=40 {
            let mut request = plain();
            request.context.insert("deep".to_owned(), value.clone());
            let is_read = check(&request.encode_to_vec(), &rules);
            assert_eq!(is_read, depth <= MAX_DEPTH);
            let kind = if record {
                Kind::Record(pb::ValueRecord {
                    fields: BTreeMap::from([("x".to_owned(), value)]),
                })
            } else {
                Kind::Set(pb::ValueList {
                    values: vec![value],
                })
            };
            value = pb::Value { kind: Some(kind) };
        }
    }
}

#[test]
fn stream_item_is_read_in_place() {
    for correlation_id in [0, 1, u64::MAX] {
        let item = pb::StreamAuthorizeRequest {
            correlation_id,
            request: Some(plain()),
        };
        assert_eq!(
            stream_item(&item.encode_to_vec()),
            Some((correlation_id, &*plain().encode_to_vec()))
        );
    }
    assert_eq!(stream_item(&[0x08, 1]), None, "it has no request");
}
