//! Counts the values of a request before it is decoded.
//!
//! Two bytes of a message can become a value of a hundred bytes when decoded, and of a thousand as
//! a Cedar value. Values are therefore counted in the encoded message, which takes no memory.

use super::fields::{FieldContent, Fields};
use crate::api::decision::rejection::Rejection;

/// A message type that can contain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Request,
    StreamItem,
    /// An entry of a map of values.
    Entry,
    Value,
    Set,
    Record,
    Entity,
}

/// Most nested messages. prost rejects more than 100.
const MAX_DEPTH: usize = 200;

impl MessageKind {
    /// Returns whether the field is a counted value, and which message it is if that can contain
    /// values.
    fn field(self, number: u64) -> (bool, Option<Self>) {
        match (self, number) {
            (Self::StreamItem, 2) => (false, Some(Self::Request)),
            (Self::Request, 5) | (Self::Entity, 2 | 4) | (Self::Record, 1) => {
                (true, Some(Self::Entry))
            }
            (Self::Request, 6) => (true, Some(Self::Entity)),
            // A parent, which is counted but contains no values.
            (Self::Entity, 3) => (true, None),
            (Self::Set, 1) => (true, Some(Self::Value)),
            (Self::Entry, 2) => (false, Some(Self::Value)),
            (Self::Value, 5) => (false, Some(Self::Set)),
            (Self::Value, 6) => (false, Some(Self::Record)),
            // If another field is repeated, prost keeps only one.
            _ => (false, None),
        }
    }
}

/// Rejects a message that holds more than `limit` values: attributes, members of sets, entities and
/// parents.
///
/// In a malformed message, the values before the fault are counted. prost reports the fault.
pub(crate) fn check(message: &[u8], kind: MessageKind, limit: usize) -> Result<(), Rejection> {
    // The shortest value has two bytes.
    if message.len() <= 2 * limit {
        return Ok(());
    }
    let mut count = 0;
    let mut open = vec![(kind, Fields(message))];
    while let Some((kind, fields)) = open.last_mut() {
        let Some((number, content)) = fields.next() else {
            open.pop();
            continue;
        };
        let (is_value, nested) = kind.field(number);
        count += usize::from(is_value);
        if count > limit {
            return Err(Rejection::TooManyItems {
                items: "attributes, members, entities and parents in one request",
                limit,
            });
        }
        if let (Some(nested), FieldContent::Bytes(message)) = (nested, content)
            && open.len() < MAX_DEPTH
        {
            open.push((nested, Fields(message)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::api::grpc::pb;

    fn long(n: i64) -> pb::Value {
        pb::Value {
            kind: Some(pb::value::Kind::Long(n)),
        }
    }

    fn set(values: Vec<pb::Value>) -> pb::Value {
        pb::Value {
            kind: Some(pb::value::Kind::Set(pb::ValueList { values })),
        }
    }

    fn record(fields: &[(&str, pb::Value)]) -> pb::Value {
        let fields = fields.iter().cloned();
        pb::Value {
            kind: Some(pb::value::Kind::Record(pb::ValueRecord {
                fields: fields
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            })),
        }
    }

    fn count(message: &[u8], kind: MessageKind) -> usize {
        (0..)
            .find(|limit| {
                // Padded, so that the message is counted for every limit.
                let padding = [0x7a, 0x80, 0x80, 0x04];
                let long = [&padding[..], &vec![0; 1 << 16], message].concat();
                check(&long, kind, *limit).is_ok()
            })
            .unwrap()
    }

    fn request() -> pb::AuthorizeRequest {
        let one = pb::Entity {
            uid: Some(pb::EntityUid::default()),
            attributes: [("a".to_owned(), set(vec![long(1), set(vec![long(2)])]))].into(),
            parents: vec![pb::EntityUid::default(); 3],
            tags: [("t".to_owned(), long(3))].into(),
        };
        pb::AuthorizeRequest {
            resource: Some(pb::EntityUid::default()),
            context: [
                ("plain".to_owned(), long(1)),
                (
                    "deep".to_owned(),
                    record(&[("x", long(1)), ("y", set(vec![]))]),
                ),
            ]
            .into(),
            entities: vec![one.clone(), one],
            ..pb::AuthorizeRequest::default()
        }
    }

    #[test]
    fn values_are_counted_at_every_level() {
        // Context: 2 entries, and 2 of the record. An entity: itself, its attribute with 3 members,
        // 3 parents, a tag.
        let counted = 4 + 2 * (1 + 1 + 3 + 3 + 1);
        assert_eq!(
            count(&request().encode_to_vec(), MessageKind::Request),
            counted
        );
        let item = pb::StreamAuthorizeRequest {
            correlation_id: 7,
            request: Some(request()),
        };
        assert_eq!(
            count(&item.encode_to_vec(), MessageKind::StreamItem),
            counted
        );
        assert_eq!(count(&[], MessageKind::Request), 0);
    }

    #[test]
    fn empty_values_are_counted() {
        for (kind, field, values) in [
            // Context entries, entities.
            (MessageKind::Request, &[0x2a, 0][..], 1),
            (MessageKind::Request, &[0x32, 0], 1),
            // An entity with a parent, an attribute and a tag.
            (
                MessageKind::Request,
                &[0x32, 6, 0x1a, 0, 0x12, 0, 0x22, 0],
                4,
            ),
            // A repeated set, whose members prost merges.
            (MessageKind::Value, &[0x2a, 2, 0x0a, 0], 1),
            // Repeated fields of which prost keeps only the last.
            (MessageKind::Request, &[0x1a, 0], 0),
            (MessageKind::Value, &[0x22, 0], 0),
        ] {
            assert_eq!(count(&field.repeat(10), kind), 10 * values, "{field:?}");
        }
    }

    #[test]
    fn malformed_message_is_left_to_prost() {
        for bytes in [
            &[0xff; 1_000][..],
            &[0x2a; 1_000],
            &[0x0f; 1_000],
            &[0x2b; 1_000],
        ] {
            assert!(check(bytes, MessageKind::Request, 400).is_ok(), "{bytes:?}");
        }
    }

    #[test]
    fn deep_nesting_takes_no_memory() {
        // A set with one member, which is again a set with one member.
        let tags = [0x0a, 0x2a].into_iter().cycle();
        let mut value = Vec::new();
        for tag in tags.take(20_000) {
            let mut outer = vec![tag];
            prost::encoding::encode_varint(value.len() as u64, &mut outer);
            outer.append(&mut value);
            value = outer;
        }
        // Values nested too deep are not counted. prost rejects them.
        assert!(check(&value, MessageKind::Value, 1_000).is_ok());
    }
}
