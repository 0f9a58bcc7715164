//! Encoded answers: encoded once, cached and sent as the same bytes.

use std::sync::Arc;

use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};

use super::body::AnswerBody;
use crate::api::grpc::pb;
use crate::api::grpc::wire::fields::{FieldContent, Fields, tag};
use crate::api::grpc::wire::to_proto;
use crate::decision_log::{DecisionId, LoggableAnswer};
use crate::engine::{CacheEntry, CachedAnswer, EngineAnswer};
use crate::pdp::answer::{Answer, Decision};

/// The length of gRPC's message prefix: a compression flag, and the message's length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// An encoded `AuthorizeResponse` with gRPC's prefix.
///
/// In the cache, its key follows the message. `Bytes` is not used, because its reference count lies
/// in a separate allocation, which costs another cache miss when there are many answers.
#[derive(Clone, Debug)]
pub(crate) struct EncodedAnswer(Arc<[u8]>);

impl CachedAnswer for EncodedAnswer {
    type Entry = Self;

    fn from_answer(answer: Answer) -> Self {
        let response = to_proto::answer(&answer);
        let mut bytes = with_prefix(response.encoded_len());
        response.encode_raw(&mut bytes);
        Self(bytes.into())
    }

    fn weight(&self) -> usize {
        // Including the two reference counts of the `Arc`.
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

/// The bytes on the wire: prefix and message.
impl AsRef<[u8]> for EncodedAnswer {
    fn as_ref(&self) -> &[u8] {
        self.0.get(..self.wire_len()).unwrap_or_default()
    }
}

/// For the decision log, the encoded message is read back. Only `from_answer` writes it.
impl LoggableAnswer for EncodedAnswer {
    fn decision(&self) -> Decision {
        // INVARIANT: the decision is the first field and is always set, so that its one byte
        // follows the first tag. Any other byte would be read as DENY.
        const ALLOW: u8 = pb::Decision::Allow as u8;
        match self.message() {
            [_, ALLOW, ..] => Decision::Allow,
            [..] => Decision::Deny,
        }
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        Fields(self.message()).filter_map(|field| match field {
            (2, FieldContent::Bytes(id)) => Some(text(id)),
            _ => None,
        })
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        Fields(self.message()).filter_map(|field| match field {
            (3, FieldContent::Bytes(error)) => {
                let text_field = |number| {
                    let found = Fields(error).find_map(|field| match field {
                        (found, FieldContent::Bytes(bytes)) if found == number => Some(text(bytes)),
                        _ => None,
                    });
                    found.unwrap_or_default()
                };
                Some((text_field(1), text_field(2)))
            }
            _ => None,
        })
    }
}

/// Returns a buffer for a message of `length` bytes, with the prefix.
fn with_prefix(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // No response has 4 GiB, and no caller would accept one.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl EncodedAnswer {
    /// Returns the length of prefix and message, which the prefix holds.
    fn wire_len(&self) -> usize {
        let length = self.0.get(1..).and_then(|bytes| bytes.first_chunk());
        PREFIX_BYTES + length.map_or(0, |length| u32::from_be_bytes(*length) as usize)
    }

    /// Returns the message without prefix and key.
    fn message(&self) -> &[u8] {
        self.as_ref().get(PREFIX_BYTES..).unwrap_or_default()
    }
}

/// The response header that holds the decision id.
const DECISION_ID: http::HeaderName = http::HeaderName::from_static("cedar-pdp-decision-id");
/// The head of the message field that holds the decision id.
const ID_FIELD_HEAD: [u8; 2] = [tag(6), DecisionId::LENGTH as u8];

/// The decision id belongs to one decision, so it is added to the cached message.
impl EngineAnswer<EncodedAnswer> {
    /// Returns the length of the message in bytes.
    pub(crate) fn message_len(&self) -> usize {
        let id_bytes = (self.decision_id).map_or(0, |_| ID_FIELD_HEAD.len() + DecisionId::LENGTH);
        self.answer.message().len() + id_bytes
    }

    /// Appends the message to `out`.
    pub(crate) fn append_message(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.answer.message());
        if let Some(id) = &self.decision_id {
            out.extend_from_slice(&ID_FIELD_HEAD);
            out.extend_from_slice(id.as_bytes());
        }
    }

    /// Returns the whole response to a unary call.
    pub(crate) fn into_response(self) -> http::Response<AnswerBody> {
        let id = self.decision_id;
        let bytes = match id {
            None => Bytes::from_owner(self.answer),
            Some(_) => {
                let mut bytes = with_prefix(self.message_len());
                self.append_message(&mut bytes);
                bytes.into()
            }
        };
        let mut response = http::Response::new(AnswerBody::Encoded(bytes));
        let headers = response.headers_mut();
        let content_type = http::HeaderValue::from_static("application/grpc");
        headers.insert(http::header::CONTENT_TYPE, content_type);
        insert_decision_id(headers, id);
        response
    }
}

/// Inserts the header with the decision id, if the decision was logged.
pub(crate) fn insert_decision_id(headers: &mut http::HeaderMap, id: Option<DecisionId>) {
    if let Some(id) = id
        && let Ok(mut value) = http::HeaderValue::from_bytes(id.as_bytes())
    {
        // Each id is used once, so HTTP/2 need not keep it in its header table.
        value.set_sensitive(true);
        headers.insert(DECISION_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::answer::{Diagnostics, PolicyError};
    use crate::pdp::explanation::Effect;
    use crate::pdp::id::{PolicyId, Revision};

    #[test]
    fn log_reads_the_same_answer_back() {
        for decision in [Decision::Allow, Decision::Deny] {
            let answer = Answer {
                decision,
                diagnostics: Diagnostics {
                    determining: ["a", "b"].map(PolicyId::new).into(),
                    errors: [("c", "why"), ("d", "")]
                        .map(|(policy, message)| PolicyError {
                            policy: PolicyId::new(policy),
                            effect: Effect::Forbid,
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
            // A cache entry keeps its answer and its key apart.
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
