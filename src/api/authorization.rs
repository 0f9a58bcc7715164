//! The door of `pdp.v1.AuthorizationService`: parse, ask the engine, answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::deadline::Deadline;
use super::from_proto::{self, RequestRules};
use super::pb::authorization_service_server::AuthorizationService;
use super::status::{Rejection, by_contract, to_message};
use super::turn::Turn;
use super::{pb, to_proto};
use crate::engine::Engine;
use crate::pdp::Snapshot;
use crate::readiness::ReadinessReader;

/// What a call may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRules {
    /// What one request may hold.
    pub request: RequestRules,
    /// The most requests in one batch.
    pub max_batch_items: usize,
}

/// Answers `pdp.v1.AuthorizationService`.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    engine: Arc<Engine>,
    rules: Arc<AuthorizationRules>,
    draining: ReadinessReader,
}

impl Authorization {
    /// A door to `engine`; `draining` ends its streams.
    #[must_use]
    pub(super) fn new(
        engine: Arc<Engine>,
        rules: AuthorizationRules,
        draining: ReadinessReader,
    ) -> Self {
        Self {
            engine,
            rules: Arc::new(rules),
            draining,
        }
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, Rejection> {
        self.engine.snapshot().ok_or(Rejection::NothingLoaded)
    }

    fn decide(
        &self,
        snapshot: &Snapshot,
        request: pb::AuthorizeRequest,
    ) -> Result<pb::AuthorizeResponse, Rejection> {
        let query = from_proto::query(request, &self.rules.request)?;
        let answer = self.engine.authorize(snapshot, &query)?;
        Ok(to_proto::answer(&answer))
    }
}

/// The answers of one stream.
type Answers = Pin<Box<dyn Stream<Item = Result<pb::StreamAuthorizeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AuthorizationService for Authorization {
    async fn authorize(
        &self,
        request: Request<pb::AuthorizeRequest>,
    ) -> Result<Response<pb::AuthorizeResponse>, Status> {
        Deadline::of(&request).check()?;
        let snapshot = self.snapshot()?;
        Ok(Response::new(self.decide(&snapshot, request.into_inner())?))
    }

    async fn batch_authorize(
        &self,
        request: Request<pb::BatchAuthorizeRequest>,
    ) -> Result<Response<pb::BatchAuthorizeResponse>, Status> {
        let deadline = Deadline::of(&request);
        deadline.check()?;
        let requests = request.into_inner().requests;
        if requests.len() > self.rules.max_batch_items {
            return Err(Rejection::TooMany {
                what: "requests in one batch",
                most: self.rules.max_batch_items,
            }
            .into());
        }
        // Loaded once: every item is decided on one and the same revision.
        let snapshot = self.snapshot()?;
        let mut turn = Turn::begin();
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            turn.yield_when_over().await;
            deadline.check()?;
            results.push(pb::BatchAuthorizeResult {
                result: Some(match self.decide(&snapshot, request) {
                    Ok(response) => pb::batch_authorize_result::Result::Response(response),
                    Err(rejection) => {
                        pb::batch_authorize_result::Result::Error(to_message(&rejection.into()))
                    }
                }),
            });
        }
        let revision = snapshot.revision().to_string();
        Ok(Response::new(pb::BatchAuthorizeResponse {
            results,
            revision,
        }))
    }

    type StreamAuthorizeStream = Answers;

    async fn stream_authorize(
        &self,
        request: Request<Streaming<pb::StreamAuthorizeRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let deadline = Deadline::of(&request);
        deadline.check()?;
        // Nothing loaded is refused before the stream begins; later there always is something.
        self.snapshot()?;
        let state = AnswerStream {
            door: self.clone(),
            items: request.into_inner(),
            deadline,
            turn: Turn::begin(),
        };
        Ok(Response::new(Box::pin(stream::try_unfold(
            state,
            AnswerStream::next,
        ))))
    }
}

/// One caller's stream: an item is read, decided and answered before the next is read, so a
/// caller that does not read its answers is not read from either, and holds nothing but itself.
struct AnswerStream {
    door: Authorization,
    items: Streaming<pb::StreamAuthorizeRequest>,
    deadline: Deadline,
    turn: Turn,
}

impl AnswerStream {
    async fn next(mut self) -> Result<Option<(pb::StreamAuthorizeResponse, Self)>, Status> {
        self.turn.yield_when_over().await;
        let item = tokio::select! {
            biased;
            () = self.door.draining.draining() => return Err(Rejection::ShuttingDown.into()),
            () = self.deadline.passed() => return Err(Rejection::DeadlinePassed.into()),
            item = self.items.message() => item.map_err(by_contract)?,
        };
        let Some(pb::StreamAuthorizeRequest {
            correlation_id,
            request,
        }) = item
        else {
            return Ok(None);
        };
        // The snapshot in force when the item is read.
        let decided = self.door.snapshot().and_then(|snapshot| {
            // An item without a request lacks what every request needs.
            self.door.decide(&snapshot, request.unwrap_or_default())
        });
        let result = match decided {
            Ok(response) => pb::stream_authorize_response::Result::Response(response),
            Err(rejection) => {
                pb::stream_authorize_response::Result::Error(to_message(&rejection.into()))
            }
        };
        Ok(Some((
            pb::StreamAuthorizeResponse {
                correlation_id,
                result: Some(result),
            },
            self,
        )))
    }
}
