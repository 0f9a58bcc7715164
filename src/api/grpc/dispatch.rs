//! Calls the service that a gRPC call names.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::authorize::Authorization;
use super::pb::policy_store_service_server::PolicyStoreServiceServer;
use super::status::rejected;
use super::wire::body::AnswerBody;
use super::wire::encoded_answer::EncodedAnswer;
use super::wire::metered_body::metered;
use super::{health, pb, policy_store};
use crate::api::decision::call::Call;
use crate::api::decision::decide::Decider;
use crate::api::decision::memory::MemoryBudget;
use crate::api::decision::rejection::Rejection;
use crate::api::metrics::{CallMetrics, Method};
use crate::config::api::ApiSettings;
use crate::engine::Engine;
use crate::pip::Tokens;
use crate::policy_store::{ReloadHandle, StatusReader};
use crate::readiness::ReadinessReader;
use crate::telemetry::traces::{CallSpan, Traces};

/// The largest message of `grpc.health.v1`, which names a service, in bytes.
const MAX_HEALTH_BYTES: usize = 4 << 10;

/// What stands behind the router.
#[derive(Debug)]
pub struct Backend {
    /// Decides.
    pub engine: Arc<Engine<EncodedAnswer>>,
    /// Verifies tokens; `None` where none is believed.
    pub tokens: Option<Arc<Tokens>>,
    /// Tells what is in force.
    pub status: StatusReader,
    /// Rereads on demand.
    pub reloads: ReloadHandle,
    /// Whether calls are welcome, and whether the end has begun.
    pub readiness: ReadinessReader,
    /// Where calls are counted, if they are.
    pub metrics: Option<Arc<CallMetrics>>,
    /// Traces calls, if they are traced.
    pub traces: Option<Traces>,
}

/// Every gRPC service, one match away from a call's path.
pub(crate) struct Router {
    authorization: Authorization,
    /// The services off the hot path; other paths are UNIMPLEMENTED.
    others: Routes,
    traces: Option<Traces>,
}

impl Router {
    /// Builds the services that `settings` turn on.
    ///
    /// # Errors
    ///
    /// The embedded descriptors of the API are invalid.
    pub(crate) fn new(
        decider: Decider<EncodedAnswer>,
        backend: &Backend,
        settings: &ApiSettings,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let Backend {
            engine,
            status,
            reloads,
            readiness,
            metrics,
            traces,
            ..
        } = backend;
        let health = health::HealthDoor::new(readiness.clone(), settings.services.policy_store);
        let health = HealthServer::new(health).max_decoding_message_size(MAX_HEALTH_BYTES);
        let mut others = Routes::new(health);
        if settings.services.policy_store {
            let store = policy_store::PolicyStore::new(
                Arc::clone(engine),
                status.clone(),
                reloads.clone(),
                readiness.clone(),
                metrics.clone(),
            );
            others = others.add_service(PolicyStoreServiceServer::new(store));
        }
        if settings.services.reflection {
            let reflection = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            others = others
                .add_service(reflection().build_v1()?)
                .add_service(reflection().build_v1alpha()?);
        }
        Ok(Self {
            authorization: Authorization {
                decider,
                max_message_bytes: settings.max_message_bytes,
            },
            others: others.prepare(),
            traces: traces.clone(),
        })
    }

    /// The span of a call that begins with these headers, if it is traced.
    pub(super) fn span(&self, method: Method, headers: &http::HeaderMap) -> Option<Arc<CallSpan>> {
        let traces = self.traces.as_ref().filter(|_| method.is_traced())?;
        traces.begin(|name| headers.get(name)?.to_str().ok())
    }

    /// Answers the call by its service.
    ///
    /// What most calls do not need is boxed: each call has room for all that is not.
    pub(super) fn call<'a>(
        &'a self,
        method: Method,
        request: http::Request<Incoming>,
        call: &'a Call,
    ) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
        let door = &self.authorization;
        let other: BoxFuture<'a, _> = match method {
            Method::Authorize => return Either::Left(door.authorize(request, call)),
            Method::BatchAuthorize => Box::pin(door.batch_authorize(request, call)),
            Method::StreamAuthorize => Box::pin(door.stream_authorize(request, call)),
            Method::GetStatus
            | Method::WatchStatus
            | Method::ListPolicies
            | Method::Reload
            | Method::HealthCheck
            | Method::HealthWatch
            | Method::Reflection
            | Method::OldReflection
            | Method::Other => Box::pin(self.others(request, call)),
        };
        Either::Right(other)
    }

    /// Returns the whole response of a call that is rejected, and counts it.
    pub(super) fn reject(&self, rejection: Rejection) -> http::Response<AnswerBody> {
        self.count(&rejection);
        rejected(rejection)
    }

    /// Counts a rejected call.
    pub(super) fn count(&self, rejection: &Rejection) {
        self.authorization.decider.count(rejection);
    }

    /// Returns the memory budget of requests and responses.
    pub(super) fn memory(&self) -> &MemoryBudget {
        &self.authorization.decider.memory
    }

    /// Returns the counters of calls, if calls are counted.
    pub(super) fn metrics(&self) -> Option<&CallMetrics> {
        self.authorization.decider.metrics.as_deref()
    }

    /// Returns whether decisions are logged.
    pub(super) fn is_logged(&self) -> bool {
        self.authorization.decider.engine.is_logged()
    }

    async fn others(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| Body::new(metered(body, self.memory()))));
        // INVARIANT: the routes' error type is `Infallible`.
        match self.others.clone().call(request).await {
            Ok(response) => response.map(AnswerBody::tonic),
            Err(never) => match never {},
        }
    }
}
