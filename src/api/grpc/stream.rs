//! `StreamAuthorize`: each item is read, decided and answered before the next one is read.

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use prost::Message as _;
use prost::bytes::Bytes;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::authorize::{Answer, Authorization, Decided};
use super::decode;
use super::pb;
use super::status::{status_by_contract, to_message};
use super::wire::fields::put_head;
use super::wire::{borrowed_request, codec};
use crate::api::auth::caller::Right;
use crate::api::decision::call::Call;
use crate::api::decision::decide::Permits;
use crate::api::decision::rejection::Rejection;
use crate::api::decision::time_slice::TimeSlice;
use crate::decision_log::Method;

/// `StreamAuthorize`, as tonic calls it.
pub(super) struct StreamMethod<'a>(pub(super) &'a Authorization);

/// The responses of one stream.
type Responses = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for StreamMethod<'_> {
    type Response = Bytes;
    type ResponseStream = Responses;
    type Future = std::future::Ready<Answer<Responses>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let call = Call::of(&request);
        let begin = || {
            let ready = call.deadline.check();
            // Rejected before the stream begins if nothing is loaded; later there always is a
            // snapshot.
            let ready = ready.and_then(|()| self.0.decider.snapshot());
            ready.map_err(|rejection| self.0.ends(rejection))?;
            let state = ResponseStream {
                service: self.0.clone(),
                items: request.into_inner(),
                call,
                slice: TimeSlice::begin(),
            };
            let responses: Responses = Box::pin(stream::try_unfold(state, ResponseStream::next));
            Ok(Response::new(responses))
        };
        std::future::ready(begin())
    }
}

/// One caller's stream. A caller that does not read its responses is not read from either, and
/// holds no memory beyond this.
struct ResponseStream {
    service: Authorization,
    items: Streaming<Bytes>,
    call: Call,
    slice: TimeSlice,
}

impl ResponseStream {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Status> {
        self.slice.yield_when_over().await;
        let mut draining = self.service.decider.readiness.clone();
        let item = tokio::select! {
            biased;
            () = draining.draining() => Err(Rejection::ShuttingDown),
            () = self.call.deadline.passed() => Err(Rejection::DeadlineExceeded),
            item = self.items.message() => Ok(item.map_err(status_by_contract)?),
        };
        let item = item.map_err(|rejection| self.service.ends(rejection))?;
        // Looked up again, so that the caller has the rights of the list in force.
        let renewed = self.call.caller.refresh(Right::Authorize);
        renewed.map_err(|denied| self.service.ends(denied.into()))?;
        let Some(message) = item else {
            return Ok(None);
        };
        let permits = (self.service.decider)
            .permits(&self.call, message.len())
            .await;
        let permits = permits.map_err(|rejection| self.service.ends(rejection))?;
        let (correlation_id, decided) = self.decide(&message, permits).await?;
        Ok(Some((encode(correlation_id, decided), self)))
    }

    /// Decides an item on the snapshot now in force.
    async fn decide(
        &self,
        message: &[u8],
        permits: Permits,
    ) -> Result<(u64, Result<Decided, Rejection>), Status> {
        let decider = &self.service.decider;
        let rules = &decider.rules.request;
        let plain = borrowed_request::stream_item(message);
        let correlation_id = match plain {
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
        let parse = || match plain {
            Some((_, request)) => decode::request(request, rules),
            None => decode::decoded_stream_item(message, rules),
        };
        let of = (&self.call, Method::StreamAuthorize);
        let decided = decider
            .decide_waiting(&snapshot, (parse, message.len()), of, permits)
            .await?;
        Ok((correlation_id, decided))
    }
}

/// The first field of a `StreamAuthorizeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CorrelationId {
    #[prost(uint64, tag = "1")]
    correlation_id: u64,
}

/// Encodes a `StreamAuthorizeResponse`.
fn encode(correlation_id: u64, decided: Result<Decided, Rejection>) -> Bytes {
    const RESPONSE: u8 = 2;
    let error = match decided {
        Err(rejection) => to_message(&rejection.into()),
        Ok(decided) => {
            // proto3 omits a zero.
            let mut response = pb::StreamAuthorizeResponse {
                correlation_id,
                result: None,
            }
            .encode_to_vec();
            put_head(&mut response, RESPONSE, decided.message_len());
            decided.put_message(&mut response);
            return response.into();
        }
    };
    pb::StreamAuthorizeResponse {
        correlation_id,
        result: Some(pb::stream_authorize_response::Result::Error(error)),
    }
    .encode_to_vec()
    .into()
}
