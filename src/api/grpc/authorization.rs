//! `AuthorizationService`: the parts that its methods share.

use std::future::Future;

use hyper::body::Incoming;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

use super::wire::codec;
use super::wire::encoded_answer::EncodedAnswer;
use super::wire::metered_body::metered;
use crate::api::decision::decide::Decider;
use crate::api::decision::rejection::Rejection;
use crate::engine::EngineAnswer;

/// An engine's answer, encoded for gRPC.
pub(super) type GrpcAnswer = EngineAnswer<EncodedAnswer>;

/// The result of a method, as tonic expects it.
pub(super) type MethodResult<T> = Result<Response<T>, Status>;

/// The service `pdp.v1.AuthorizationService`.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(super) decider: Decider<EncodedAnswer>,
    /// Largest request message, in bytes.
    pub(super) max_message_bytes: usize,
}

impl Authorization {
    /// Returns the codec of tonic that decodes requests and encodes answers.
    pub(super) fn grpc(&self) -> Grpc<codec::Encoded> {
        Grpc::new(codec::Encoded).max_decoding_message_size(self.max_message_bytes)
    }

    /// Charges the messages of `body` to the memory budget.
    pub(super) fn metered(&self, body: Incoming) -> Body {
        Body::new(metered(body, &self.decider.memory))
    }

    /// Counts the rejection of a whole call, and returns its status.
    pub(super) fn reject_call(&self, rejection: Rejection) -> Status {
        self.decider.count(&rejection);
        rejection.into()
    }
}

/// A method with one request and one response, as tonic calls it.
pub(super) struct Unary<F>(pub(super) F);

impl<F, R> UnaryService<Bytes> for Unary<F>
where
    F: FnMut(Request<Bytes>) -> R,
    R: Future<Output = MethodResult<Bytes>>,
{
    type Response = Bytes;
    type Future = R;

    fn call(&mut self, request: Request<Bytes>) -> R {
        self.0(request)
    }
}
