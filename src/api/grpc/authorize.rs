//! `Authorize`: parses a request, calls the decision path, and encodes the answer.
//!
//! The generated service is not used, only tonic's parts: a message of plain shape is parsed in
//! place, and the answer is the bytes that the engine caches. prost decodes all other messages.

use std::future::Future;

use http_body_util::Full;
use hyper::body::Incoming;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response};

use super::authorization::{Authorization, GrpcAnswer, MethodResult, Unary};
use super::decode;
use super::status::rejected;
use super::wire::body::AnswerBody;
use super::wire::borrowed_request;
use super::wire::encoded_answer::{PREFIX_BYTES, insert_decision_id};
use super::wire::metered_body::metered;
use super::wire::unary_body::{self, UnreadBody};
use crate::api::decision::call::Call;
use crate::api::decision::decide::Outcome;
use crate::api::decision::rejection::Rejection;
use crate::decision_log::Method;
use crate::engine::LogPermit;
use crate::pip::KeyMiss;

impl Authorization {
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
                            Err(rejection) => return self.rejection_response(rejection),
                        };
                        match self.authorize_in_place(message, call, &permit) {
                            Some(Ok(answer)) => return answer.into_response(),
                            Some(Err(rejection)) => return rejected(rejection),
                            None => Body::new(Full::new(bytes)),
                        }
                    }
                    Err(UnreadBody::Partial(body)) => Body::new(metered(body, memory)),
                    Err(UnreadBody::Rejected(rejection)) => {
                        return self.rejection_response(rejection);
                    }
                }
            };
            let request = http::Request::from_parts(head, body);
            let method = Unary(|request: Request<Bytes>| self.authorize_decoded(request, call));
            // Boxed, because few calls need it, and unboxed it would enlarge the future of every call.
            let response = Box::pin(async move { self.grpc().unary(method, request).await });
            response.await.map(AnswerBody::tonic)
        }
    }

    fn rejection_response(&self, rejection: Rejection) -> http::Response<AnswerBody> {
        self.decider.count(&rejection);
        rejected(rejection)
    }

    /// Decides a message of plain shape.
    ///
    /// `None` leaves the call to `authorize_decoded`, which decodes, rejects or waits.
    fn authorize_in_place(
        &self,
        message: &[u8],
        call: &Call,
        permit: &LogPermit,
    ) -> Option<Result<GrpcAnswer, Rejection>> {
        call.deadline.check().ok()?;
        let snapshot = self.decider.snapshot().ok()?;
        let question = borrowed_request::request(message, &self.decider.rules.request)?;
        let call = (call, Method::Authorize);
        match (self.decider).decide(&snapshot, question, call, permit, KeyMiss::Wait) {
            Outcome::Done(outcome) => Some(outcome),
            Outcome::Wait(_) => None,
        }
    }

    /// Decides a message of any shape.
    async fn authorize_decoded(&self, request: Request<Bytes>, call: &Call) -> MethodResult<Bytes> {
        let message = request.get_ref();
        let decider = &self.decider;
        let ready = async {
            let permits = decider.permits(call, message.len()).await?;
            Ok((permits, decider.snapshot()?))
        };
        let ready = ready.await.map_err(|rejection| self.reject_call(rejection));
        let (permits, snapshot) = ready?;
        let parse = || decode::parse_request(message, &decider.rules.request);
        let origin = (call, Method::Authorize);
        let answer = decider
            .decide_waiting(&snapshot, (parse, message.len()), origin, permits)
            .await??;
        let mut bytes = Vec::with_capacity(answer.message_len());
        answer.append_message(&mut bytes);
        let mut response = Response::new(bytes.into());
        let mut headers = std::mem::take(response.metadata_mut()).into_headers();
        insert_decision_id(&mut headers, answer.decision_id);
        *response.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(response)
    }
}
