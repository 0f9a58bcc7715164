//! Routes a gRPC call to its service.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either};
use hyper::body::Incoming;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::authorization::Authorization;
use super::pb::policy_store_service_server::PolicyStoreServiceServer;
use super::wire::body::AnswerBody;
use super::wire::encoded_answer::EncodedAnswer;
use super::{health, pb, policy_store};
use crate::api::decision::call::Call;
use crate::api::decision::decide::Decider;
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
pub(crate) struct Backend {
    pub(crate) engine: Arc<Engine<EncodedAnswer>>,
    /// The token verifier; `None` rejects all tokens.
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) status: StatusReader,
    pub(crate) reloads: ReloadHandle,
    pub(crate) readiness: ReadinessReader,
    /// The counters of calls, if calls are counted.
    pub(crate) metrics: Option<Arc<CallMetrics>>,
    /// The traces of calls, if calls are traced.
    pub(crate) traces: Option<Traces>,
}

/// The gRPC services, dispatched by method without a router of tonic's on the hot path.
pub(crate) struct Router {
    authorization: Authorization,
    /// The services off the hot path. Unknown paths are UNIMPLEMENTED.
    others: Routes,
    traces: Option<Traces>,
}

impl Router {
    /// Builds the services that `settings` turn on. Fails if the embedded descriptors of the API are
    /// invalid.
    pub(crate) fn new(
        decider: Decider<EncodedAnswer>,
        backend: &Backend,
        settings: &ApiSettings,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let authorization = Authorization {
            decider,
            max_message_bytes: settings.max_message_bytes,
        };
        let has_store = settings.services.policy_store;
        let health = health::HealthService::new(backend.readiness.clone(), has_store);
        let health = HealthServer::new(health).max_decoding_message_size(MAX_HEALTH_BYTES);
        let mut others = Routes::new(health);
        if has_store {
            let store = policy_store::PolicyStore {
                authorization: authorization.clone(),
                status: backend.status.clone(),
                reloads: backend.reloads.clone(),
            };
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
            authorization,
            others: others.prepare(),
            traces: backend.traces.clone(),
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

    /// Returns the decision path of the services.
    pub(super) fn decider(&self) -> &Decider<EncodedAnswer> {
        &self.authorization.decider
    }

    async fn others(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.insert_into(request.map(|body| self.authorization.metered(body)));
        // INVARIANT: the routes' error type is `Infallible`.
        match self.others.clone().call(request).await {
            Ok(response) => response.map(AnswerBody::tonic),
            Err(never) => match never {},
        }
    }
}
