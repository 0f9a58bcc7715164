//! Answers as they travel: encoded once, remembered so, and sent so.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use tonic::Status;
use tonic::body::Body;

use super::{pb, to_proto};
use crate::engine::Rendered;
use crate::pdp::answer::{Answer, Decision};

/// gRPC's prefix of a message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;

/// An `AuthorizeResponse` with gRPC's prefix, as it goes out.
///
/// Not `Bytes`, which counts its holders in memory of its own: one more that is far away when
/// there are many answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedAnswer(Arc<[u8]>);

impl Rendered for EncodedAnswer {
    fn render(answer: Answer) -> Self {
        let response = to_proto::answer(&answer);
        let length = response.encoded_len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
        bytes.put_u8(0);
        // A message of 4 GiB would be refused by any caller, if it were ever made.
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        response.encode_raw(&mut bytes);
        Self(bytes.into())
    }

    fn decision(&self) -> Decision {
        // INVARIANT: the decision is the first field and is always set, so that its one byte
        // follows the first tag. Whatever else stood there would not be taken for an ALLOW.
        const ALLOW: u8 = pb::Decision::Allow as u8;
        match self.message() {
            [_, ALLOW, ..] => Decision::Allow,
            [..] => Decision::Deny,
        }
    }

    fn weight(&self) -> usize {
        // With the counts of those who hold it.
        self.0.len() + 2 * size_of::<usize>()
    }
}

impl EncodedAnswer {
    /// The message alone.
    pub(super) fn message(&self) -> &[u8] {
        self.0.get(PREFIX_BYTES..).unwrap_or_default()
    }

    /// The whole answer to a unary call.
    pub(super) fn into_response(self) -> http::Response<AnswerBody> {
        let mut response = http::Response::new(AnswerBody::Encoded(Bytes::from_owner(self.0)));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/grpc"),
        );
        response
    }
}

/// What a call is answered with: one encoded answer and the status OK, or what tonic made.
pub(super) enum AnswerBody {
    Encoded(Bytes),
    /// The answer is out, its status is not.
    StatusOk,
    Ended,
    Tonic(Body),
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        Poll::Ready(match me {
            Self::Tonic(body) => return Pin::new(body).poll_frame(context),
            Self::Encoded(_) => match std::mem::replace(me, Self::StatusOk) {
                Self::Encoded(bytes) => Some(Ok(Frame::data(bytes))),
                Self::StatusOk | Self::Ended | Self::Tonic(_) => None,
            },
            Self::StatusOk => {
                *me = Self::Ended;
                let mut trailers = http::HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::Ended => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Encoded(_) | Self::StatusOk => false,
            Self::Ended => true,
            Self::Tonic(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Trailers follow, and gRPC knows no length of a body.
            Self::Encoded(_) | Self::StatusOk | Self::Ended => SizeHint::default(),
            Self::Tonic(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::answer::Diagnostics;
    use crate::pdp::id::Revision;

    #[test]
    fn what_was_decided_can_be_read_off_what_is_sent() {
        for decision in [Decision::Allow, Decision::Deny] {
            let answer = Answer {
                decision,
                diagnostics: Diagnostics::default(),
                revision: Revision::from_digest(&[0; 32]),
                explanation: None,
            };
            assert_eq!(EncodedAnswer::render(answer).decision(), decision);
        }
    }
}
