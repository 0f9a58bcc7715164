//! Routes a gRPC call to its service.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::authorization::Authorization;
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

/// Largest message of `grpc.health.v1`, which holds a service name, in bytes.
const MAX_HEALTH_BYTES: usize = 4 << 10;

/// The parts of the process that the services use.
#[derive(Debug)]
pub struct Backend {
    /// The engine that decides.
    pub engine: Arc<Engine<EncodedAnswer>>,
    /// The token verifier; `None` rejects all tokens.
    pub tokens: Option<Arc<Tokens>>,
    /// The status of the policy store.
    pub status: StatusReader,
    /// The handle that requests reloads.
    pub reloads: ReloadHandle,
    /// The readiness of the process, and whether it is draining.
    pub readiness: ReadinessReader,
    /// The counters of calls, if calls are counted.
    pub metrics: Option<Arc<CallMetrics>>,
    /// The traces of calls, if calls are traced.
    pub traces: Option<Traces>,
}

/// The gRPC services, dispatched by method without a router of tonic's on the hot path.
pub(crate) struct Router {
    authorization: Authorization,
    /// The services off the hot path. Unknown paths are UNIMPLEMENTED.
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
        let health = health::HealthService::new(readiness.clone(), settings.services.policy_store);
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

    /// Begins the span of a call with these headers, if the call is traced.
    pub(super) fn span(&self, method: Method, headers: &http::HeaderMap) -> Option<Arc<CallSpan>> {
        let traces = self.traces.as_ref().filter(|_| method.is_traced())?;
        traces.begin(|name| headers.get(name)?.to_str().ok())
    }

    /// Calls the service of `method`.
    ///
    /// The futures of the rarer methods are boxed, so that they do not enlarge every call.
    pub(super) fn call<'a>(
        &'a self,
        method: Method,
        request: http::Request<Incoming>,
        call: &'a Call,
    ) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
        let service = &self.authorization;
        let other: BoxFuture<'a, _> = match method {
            Method::Authorize => return Either::Left(service.authorize(request, call)),
            Method::BatchAuthorize => Box::pin(service.batch_authorize(request, call)),
            Method::StreamAuthorize => Box::pin(service.stream_authorize(request, call)),
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

    /// Counts a rejected call, and returns its whole response.
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
        let request = call.insert_into(request.map(|body| Body::new(metered(body, self.memory()))));
        // INVARIANT: the routes' error type is `Infallible`.
        match self.others.clone().call(request).await {
            Ok(response) => response.map(AnswerBody::tonic),
            Err(never) => match never {},
        }
    }
}
