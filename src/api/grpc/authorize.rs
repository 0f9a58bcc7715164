//! `AuthorizationService`: reads a message, has it decided, and writes the answer.
//!
//! tonic's generated service is not used, but its parts are: messages arrive as bytes, are read in
//! place where their shape is plain, and are answered with the bytes that the engine caches. All
//! other messages are decoded by prost.

use std::future::Future;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

use super::wire::body::AnswerBody;
use super::wire::encoded_answer::{EncodedAnswer, PREFIX_BYTES, put_decision_id};
use super::wire::metered_body::metered;
use super::wire::unary_body::{self, NotWhole, Whole};
use super::wire::{borrowed_request, codec};
use super::{batch, decode, stream};
use crate::api::decision::call::Call;
use crate::api::decision::decide::{Decider, Outcome};
use crate::api::decision::rejection::Rejection;
use crate::decision_log::Method;
use crate::engine::{EngineAnswer, LogPermit};
use crate::pip::KeyMiss;

/// An answer, encoded.
pub(super) type Decided = EngineAnswer<EncodedAnswer>;

/// The result of a method, for tonic.
pub(super) type Answer<T> = Result<Response<T>, Status>;

/// Answers `pdp.v1.AuthorizationService`.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(super) decider: Decider<EncodedAnswer>,
    /// Largest message, in bytes.
    pub(super) max_message_bytes: usize,
}

impl Authorization {
    /// `Authorize`.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn has room for its arguments twice"
    )]
    pub(crate) fn authorize<'a>(
        &'a self,
        request: http::Request<Incoming>,
        call: &'a Call,
    ) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
        async move {
            let (head, body) = request.into_parts();
            let memory = &self.decider.memory;
            // tonic rejects an unknown encoding, and decompresses a known one.
            let body = if head.headers.contains_key("grpc-encoding") {
                Body::new(metered(body, memory))
            } else {
                match unary_body::read(body, self.max_message_bytes, memory).await {
                    Ok(bytes) => {
                        let message = bytes.get(PREFIX_BYTES..).unwrap_or_default();
                        let permit = match self.decider.log_permit(call, bytes.len()).await {
                            Ok(permit) => permit,
                            Err(rejection) => return self.reject(rejection),
                        };
                        match self.authorize_in_place(message, call, &permit) {
                            Some(Ok(answer)) => return answer.into_response(),
                            Some(Err(rejection)) => return response(rejection.into()),
                            None => Body::new(Whole(Some(bytes))),
                        }
                    }
                    Err(NotWhole::Partial(body)) => Body::new(metered(body, memory)),
                    Err(NotWhole::Rejected(rejection)) => return self.reject(rejection),
                }
            };
            let request = call.put_with(http::Request::from_parts(head, body));
            // Boxed: few calls come here, and all calls would have to reserve its size.
            Box::pin(async move { self.grpc().unary(Unary(self), request).await })
                .await
                .map(AnswerBody::tonic)
        }
    }

    /// `BatchAuthorize`.
    pub(crate) async fn batch_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| self.metered(body)));
        self.grpc()
            .unary(batch::BatchMethod(self), request)
            .await
            .map(AnswerBody::tonic)
    }

    /// `StreamAuthorize`.
    pub(crate) async fn stream_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| self.metered(body)));
        self.grpc()
            .streaming(stream::StreamMethod(self), request)
            .await
            .map(AnswerBody::tonic)
    }

    fn grpc(&self) -> Grpc<codec::Encoded> {
        Grpc::new(codec::Encoded).max_decoding_message_size(self.max_message_bytes)
    }

    fn metered(&self, body: Incoming) -> Body {
        Body::new(metered(body, &self.decider.memory))
    }

    /// Returns the status of a call that ends without an answer, and counts it.
    pub(super) fn ends(&self, rejection: Rejection) -> Status {
        self.decider.count(&rejection);
        rejection.into()
    }

    fn reject(&self, rejection: Rejection) -> http::Response<AnswerBody> {
        response(self.ends(rejection))
    }

    /// Decides a message of plain shape; `None` leaves the call to the general path, which
    /// rejects it or waits.
    fn authorize_in_place(
        &self,
        message: &[u8],
        call: &Call,
        permit: &LogPermit,
    ) -> Option<Result<Decided, Rejection>> {
        call.deadline.check().ok()?;
        let snapshot = self.decider.snapshot().ok()?;
        let question = borrowed_request::request(message, &self.decider.rules.request)?;
        let of = (call, Method::Authorize);
        match (self.decider).decide(&snapshot, question, of, permit, KeyMiss::Wait) {
            Outcome::Done(decided) => Some(decided),
            Outcome::Wait(_) => None,
        }
    }
}

fn response(status: Status) -> http::Response<AnswerBody> {
    status.into_http().map(AnswerBody::tonic)
}

/// `Authorize` for messages of any shape.
struct Unary<'a>(&'a Authorization);

impl UnaryService<Bytes> for Unary<'_> {
    type Response = Bytes;
    type Future = BoxFuture<'static, Answer<Bytes>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let call = Call::of(&request);
        let service = self.0.clone();
        Box::pin(async move {
            let message = request.get_ref();
            let decider = &service.decider;
            let ready = async {
                let permits = decider.permits(&call, message.len()).await?;
                Ok((permits, decider.snapshot()?))
            };
            let (permits, snapshot) = ready.await.map_err(|rejection| service.ends(rejection))?;
            let parse = || decode::request(message, &decider.rules.request);
            let of = (&call, Method::Authorize);
            let decided = decider
                .decide_waiting(&snapshot, (parse, message.len()), of, permits)
                .await??;
            let mut bytes = Vec::with_capacity(decided.message_len());
            decided.put_message(&mut bytes);
            let mut response = Response::new(bytes.into());
            let mut headers = std::mem::take(response.metadata_mut()).into_headers();
            put_decision_id(&mut headers, decided.decision_id);
            *response.metadata_mut() = MetadataMap::from_headers(headers);
            Ok(response)
        })
    }
}
