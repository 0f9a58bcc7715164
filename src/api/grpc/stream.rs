//! `StreamAuthorize`: each item is read, decided and answered before the next one is read.

use futures_util::stream;
use hyper::body::Incoming;
use prost::Message as _;
use prost::bytes::Bytes;
use tonic::codegen::BoxStream;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::authorization::{Authorization, GrpcAnswer, MethodResult};
use super::decode;
use super::status::{map_out_of_range, to_message};
use super::wire::body::AnswerBody;
use super::wire::fields::append_field_head;
use super::wire::{borrowed_request, codec};
use crate::api::auth::caller::Right;
use crate::api::decision::call::Call;
use crate::api::decision::decide::Permits;
use crate::api::decision::rejection::Rejection;
use crate::api::decision::time_slice::TimeSlice;
use crate::decision_log::Method;

impl Authorization {
    pub(crate) async fn stream_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = request.map(|body| self.metered(body));
        self.grpc()
            .streaming(StreamMethod(self, call), request)
            .await
            .map(AnswerBody::tonic)
    }
}

/// `StreamAuthorize`, as tonic calls it.
struct StreamMethod<'a>(&'a Authorization, &'a Call);

impl StreamingService<Bytes> for StreamMethod<'_> {
    type Response = Bytes;
    type ResponseStream = BoxStream<Bytes>;
    type Future = std::future::Ready<MethodResult<Self::ResponseStream>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(service, call) = *self;
        let begin = || {
            let ready = call.deadline.check();
            // Without a snapshot the call is rejected before the stream begins. Later there always
            // is one.
            let ready = ready.and_then(|()| service.decider.snapshot());
            ready.map_err(|rejection| service.reject_call(rejection))?;
            let state = ResponseStream {
                service: service.clone(),
                items: request.into_inner(),
                call: call.clone(),
                slice: TimeSlice::begin(),
            };
            let responses = Box::pin(stream::try_unfold(state, ResponseStream::next));
            Ok(Response::new(responses as BoxStream<Bytes>))
        };
        std::future::ready(begin())
    }
}

/// The state of one call, which is both read from and written to.
///
/// If the caller does not read its responses, no further items are read, so that no memory grows.
struct ResponseStream {
    service: Authorization,
    items: Streaming<Bytes>,
    call: Call,
    slice: TimeSlice,
}

impl ResponseStream {
    /// Reads the next item, and returns its response.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Status> {
        self.slice.yield_when_over().await;
        let mut readiness = self.service.decider.readiness.clone();
        let item = tokio::select! {
            biased;
            () = readiness.draining() => Err(Rejection::ShuttingDown),
            () = self.call.deadline.passed() => Err(Rejection::DeadlineExceeded),
            item = self.items.message() => Ok(item.map_err(map_out_of_range)?),
        };
        let item = item.map_err(|rejection| self.service.reject_call(rejection))?;
        // The caller list may have changed since the last item.
        let renewed = self.call.caller.refresh(Right::Authorize);
        renewed.map_err(|denied| self.service.reject_call(denied.into()))?;
        let Some(message) = item else {
            return Ok(None);
        };
        let permits = self
            .service
            .decider
            .permits(&self.call, message.len())
            .await;
        let permits = permits.map_err(|rejection| self.service.reject_call(rejection))?;
        let (correlation_id, outcome) = self.decide(&message, permits).await?;
        Ok(Some((encode_response(correlation_id, outcome), self)))
    }

    /// Decides an item on the current snapshot, and returns its correlation id and the outcome.
    async fn decide(
        &self,
        message: &[u8],
        permits: Permits,
    ) -> Result<(u64, Result<GrpcAnswer, Rejection>), Status> {
        let decider = &self.service.decider;
        let correlation_id = match borrowed_request::stream_item(message) {
            Some((correlation_id, _)) => correlation_id,
            None => codec::decode::<CorrelationId>(message)?.correlation_id,
        };
        let snapshot = match decider.snapshot() {
            Ok(snapshot) => snapshot,
            Err(rejection) => {
                decider.count_request(&rejection, &self.call);
                return Ok((correlation_id, Err(rejection)));
            }
        };
        let parse = || decode::parse_stream_item(message, &decider.rules.request);
        let call = (&self.call, Method::StreamAuthorize);
        let outcome = decider
            .decide_waiting(&snapshot, (parse, message.len()), call, permits)
            .await?;
        Ok((correlation_id, outcome))
    }
}

/// The first field of a `StreamAuthorizeRequest` and of a `StreamAuthorizeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CorrelationId {
    #[prost(uint64, tag = "1")]
    correlation_id: u64,
}

/// Encodes a `StreamAuthorizeResponse`.
fn encode_response(correlation_id: u64, outcome: Result<GrpcAnswer, Rejection>) -> Bytes {
    const RESPONSE: u8 = 2;
    const ERROR: u8 = 3;
    // prost omits a correlation id of 0, as proto3 does.
    let mut response = CorrelationId { correlation_id }.encode_to_vec();
    match outcome {
        Ok(answer) => {
            append_field_head(&mut response, RESPONSE, answer.message_len());
            answer.append_message(&mut response);
        }
        Err(rejection) => {
            let error = to_message(&rejection.into()).encode_to_vec();
            append_field_head(&mut response, ERROR, error.len());
            response.extend(error);
        }
    }
    response.into()
}
