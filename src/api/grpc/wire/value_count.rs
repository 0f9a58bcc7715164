//! How many parts a request is made of, counted before it is decoded.
//!
//! Two bytes of a message can become a value of a hundred once it is decoded, and of a thousand on
//! the way to Cedar's. So the parts are counted where they lie, which takes no memory.

use prost::encoding::WireType;

use super::fields::Fields;
use crate::api::decision::rejection::Rejection;

/// A message, as far as parts can be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    /// `AuthorizeRequest`.
    Request,
    /// `StreamAuthorizeRequest`.
    StreamItem,
    /// An entry of a map of values.
    Entry,
    /// `Value`.
    Value,
    /// `ValueList`.
    Set,
    /// `ValueRecord`.
    Record,
    /// `Entity`.
    Entity,
}

/// What a field is to the count.
enum Field {
    /// A message that is no part by itself.
    Within(MessageKind),
    /// A part.
    Part(Option<MessageKind>),
    /// Nothing: however often it comes, one is kept.
    Other,
}

/// What is nested deeper is refused by the decoder, which goes no deeper than 100 messages.
const DEEPEST: usize = 200;

impl MessageKind {
    fn field(self, number: u64) -> Field {
        match (self, number) {
            (Self::StreamItem, 2) => Field::Within(Self::Request),
            (Self::Request, 5) | (Self::Entity, 2 | 4) | (Self::Record, 1) => {
                Field::Part(Some(Self::Entry))
            }
            (Self::Request, 6) => Field::Part(Some(Self::Entity)),
            // A parent.
            (Self::Entity, 3) => Field::Part(None),
            (Self::Set, 1) => Field::Part(Some(Self::Value)),
            (Self::Entry, 2) => Field::Within(Self::Value),
            (Self::Value, 5) => Field::Within(Self::Set),
            (Self::Value, 6) => Field::Within(Self::Record),
            (
                Self::Request
                | Self::StreamItem
                | Self::Entry
                | Self::Value
                | Self::Set
                | Self::Record
                | Self::Entity,
                _,
            ) => Field::Other,
        }
    }
}

/// Refuses a message that holds more than `most` parts: attributes, members of sets, entities and
/// parents.
///
/// Of bytes that are no message, those are counted that can be read; what they are is for the
/// decoder to say.
pub(crate) fn check(message: &[u8], shape: MessageKind, most: usize) -> Result<(), Rejection> {
    // The shortest part has two bytes.
    if message.len() <= 2 * most {
        return Ok(());
    }
    let mut count = 0;
    let mut open = vec![(shape, Fields(message))];
    while let Some((shape, fields)) = open.last_mut() {
        let Some((number, wire_type, content)) = fields.next() else {
            open.pop();
            continue;
        };
        let within = match shape.field(number) {
            Field::Within(within) => Some(within),
            Field::Part(within) => {
                count += 1;
                within
            }
            Field::Other => None,
        };
        if count > most {
            return Err(Rejection::TooManyItems {
                items: "attributes, members, entities and parents in one request",
                limit: most,
            });
        }
        if let (Some(within), WireType::LengthDelimited) = (within, wire_type)
            && open.len() < DEEPEST
        {
            open.push((within, Fields(content)));
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

    fn count(message: &[u8], shape: MessageKind) -> usize {
        (0..)
            .find(|most| {
                // So long that it is looked at, whatever `most` is.
                let padding = [0x7a, 0x80, 0x80, 0x04];
                let long = [&padding[..], &vec![0; 1 << 16], message].concat();
                check(&long, shape, *most).is_ok()
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
    fn attributes_members_entities_and_parents_are_counted_wherever_they_stand() {
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
    fn parts_that_say_nothing_count() {
        for (shape, part, parts) in [
            // Context entries, entities.
            (MessageKind::Request, &[0x2a, 0][..], 1),
            (MessageKind::Request, &[0x32, 0], 1),
            // An entity with a parent, an attribute and a tag.
            (
                MessageKind::Request,
                &[0x32, 6, 0x1a, 0, 0x12, 0, 0x22, 0],
                4,
            ),
            // The same field again, whose members are joined.
            (MessageKind::Value, &[0x2a, 2, 0x0a, 0], 1),
            // What is kept once only.
            (MessageKind::Request, &[0x1a, 0], 0),
            (MessageKind::Value, &[0x22, 0], 0),
        ] {
            assert_eq!(count(&part.repeat(10), shape), 10 * parts, "{part:?}");
        }
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
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
    fn nesting_without_end_takes_no_memory() {
        // A set of one member, which is a value that is a set of one member.
        let tags = [0x0a, 0x2a].into_iter().cycle();
        let mut value = Vec::new();
        for tag in tags.take(20_000) {
            let mut within = vec![tag];
            prost::encoding::encode_varint(value.len() as u64, &mut within);
            within.append(&mut value);
            value = within;
        }
        // Nested as far as that goes: not counted, and not refused here.
        assert!(check(&value, MessageKind::Value, 1_000).is_ok());
    }
}
