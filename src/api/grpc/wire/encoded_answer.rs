//! Answers as they travel: encoded once, remembered so, and sent so.

use std::sync::Arc;

use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};

use super::body::AnswerBody;
use crate::api::grpc::pb;
use crate::api::grpc::wire::borrowed_request::{Content, Fields};
use crate::api::grpc::wire::to_proto;
use crate::decision_log::{DecisionId, LoggableAnswer};
use crate::engine::{CacheEntry, CachedAnswer, EngineAnswer};
use crate::pdp::answer::{Answer, Decision};

/// Answers go out in frames of no more than this. HTTP/2 takes a frame whole as soon as there is room
/// for a part of it, and keeps it for as long as its caller likes; what it has not taken is on our
/// account.
pub(crate) const FRAME_BYTES: usize = 16 << 10;

/// gRPC's prefix of a message: whether it is compressed, and its length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// An `AuthorizeResponse` with gRPC's prefix, as it goes out.
///
/// One that is remembered has its key behind it. Not `Bytes`, which counts its holders in memory of
/// its own: one more that is far away when there are many answers.
#[derive(Clone, Debug)]
pub struct EncodedAnswer(Arc<[u8]>);

impl CachedAnswer for EncodedAnswer {
    type Entry = Self;

    fn from_answer(answer: Answer) -> Self {
        let response = to_proto::answer(&answer);
        let length = response.encoded_len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
        bytes.put_u8(0);
        // A message of 4 GiB would be refused by any caller, if it were ever made.
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        response.encode_raw(&mut bytes);
        Self(bytes.into())
    }

    fn weight(&self) -> usize {
        // With the counts of those who hold it.
        self.0.len() + 2 * size_of::<usize>()
    }
}

impl CacheEntry<Self> for EncodedAnswer {
    fn new(key: &[u8], answer: &Self) -> Self {
        Self([answer.as_ref(), key].concat().into())
    }

    fn key(&self) -> &[u8] {
        self.0.get(self.wire_len()..).unwrap_or_default()
    }

    fn answer(&self) -> Self {
        self.clone()
    }

    fn weight(&self) -> usize {
        CachedAnswer::weight(self)
    }
}

/// As it goes out.
impl AsRef<[u8]> for EncodedAnswer {
    fn as_ref(&self) -> &[u8] {
        self.0.get(..self.wire_len()).unwrap_or_default()
    }
}

/// Read from the message, for the decision log. Nothing but what `from_answer` wrote stands there.
impl LoggableAnswer for EncodedAnswer {
    fn decision(&self) -> Decision {
        // INVARIANT: the decision is the first field and is always set, so that its one byte
        // follows the first tag. Whatever else stood there would not be taken for an ALLOW.
        const ALLOW: u8 = pb::Decision::Allow as u8;
        match self.message() {
            [_, ALLOW, ..] => Decision::Allow,
            [..] => Decision::Deny,
        }
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        Fields(self.message()).filter_map(|field| match field {
            (2, Content::Bytes(id)) => Some(text(id)),
            (_, Content::Bytes(_) | Content::Varint(_)) => None,
        })
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        Fields(self.message()).filter_map(|field| match field {
            (3, Content::Bytes(error)) => {
                let part = |number: u8| {
                    let found = Fields(error).find_map(|(field, content)| match content {
                        Content::Bytes(part) if field == number => Some(text(part)),
                        Content::Bytes(_) | Content::Varint(_) => None,
                    });
                    found.unwrap_or_default()
                };
                Some((part(1), part(2)))
            }
            (_, Content::Bytes(_) | Content::Varint(_)) => None,
        })
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl EncodedAnswer {
    /// The length of prefix and message, which the prefix tells.
    fn wire_len(&self) -> usize {
        let length = self.0.get(1..).and_then(|bytes| bytes.first_chunk());
        PREFIX_BYTES + length.map_or(0, |length| u32::from_be_bytes(*length) as usize)
    }

    /// The message alone, as it is remembered.
    fn message(&self) -> &[u8] {
        self.as_ref().get(PREFIX_BYTES..).unwrap_or_default()
    }
}

/// The header that tells what the decision is called.
const DECISION_ID: http::HeaderName = http::HeaderName::from_static("cedar-pdp-decision-id");
/// The same as a field of the message: the tag of a text in field 6, and its length.
const ID_FIELD: [u8; 2] = [6 << 3 | 2, DecisionId::LENGTH as u8];

/// An answer with what is told of this decision alone, and never remembered.
impl EngineAnswer<EncodedAnswer> {
    /// How long the message is, in bytes.
    pub(crate) fn message_len(&self) -> usize {
        let id = self
            .decision_id
            .map_or(0, |_| ID_FIELD.len() + DecisionId::LENGTH);
        self.answer.message().len() + id
    }

    /// Writes the message at the end of `out`.
    pub(crate) fn put_message(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.answer.message());
        if let Some(id) = &self.decision_id {
            out.extend_from_slice(&ID_FIELD);
            out.extend_from_slice(id.as_bytes());
        }
    }

    /// The whole answer to a unary call.
    pub(crate) fn into_response(self) -> http::Response<AnswerBody> {
        let id = self.decision_id;
        let bytes = match id {
            None => Bytes::from_owner(self.answer),
            Some(_) => {
                let length = self.message_len();
                let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
                bytes.put_u8(0);
                bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                self.put_message(&mut bytes);
                bytes.into()
            }
        };
        let mut response = http::Response::new(AnswerBody::Encoded(bytes));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/grpc"),
        );
        put_decision_id(response.headers_mut(), id);
        response
    }
}

/// Tells the caller what the decision is called, if it is in the log.
pub(crate) fn put_decision_id(headers: &mut http::HeaderMap, id: Option<DecisionId>) {
    if let Some(id) = id
        && let Ok(mut value) = http::HeaderValue::from_bytes(id.as_bytes())
    {
        // It is never the same again: nothing is gained if HTTP/2 keeps it in its table.
        value.set_sensitive(true);
        headers.insert(DECISION_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::answer::{Diagnostics, PolicyError};
    use crate::pdp::id::{PolicyId, Revision};

    #[test]
    fn what_the_log_reads_of_an_encoded_answer_is_what_was_answered() {
        for decision in [Decision::Allow, Decision::Deny] {
            let answer = Answer {
                decision,
                diagnostics: Diagnostics {
                    determining: ["a", "b"].map(PolicyId::new).into(),
                    errors: [("c", "why"), ("d", "")]
                        .map(|(policy, message)| PolicyError {
                            policy: PolicyId::new(policy),
                            message: message.to_owned(),
                        })
                        .into(),
                },
                revision: Revision::from_digest(&[7; 32]),
                explanation: None,
            };
            let encoded = EncodedAnswer::from_answer(answer);
            assert_eq!(encoded.decision(), decision);
            assert_eq!(encoded.determining().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(
                encoded.errors().collect::<Vec<_>>(),
                [("c", "why"), ("d", "")]
            );
            // The same with a key behind it, and neither is the other's.
            for key in [&b"key"[..], b"", &[0; 300]] {
                let entry = EncodedAnswer::new(key, &encoded);
                assert_eq!(entry.key(), key);
                assert_eq!(entry.answer().as_ref(), encoded.as_ref());
                assert_eq!(EncodedAnswer::new(b"another", &entry).key(), b"another");
            }
            assert_eq!(encoded.key(), b"");
        }
    }
}
