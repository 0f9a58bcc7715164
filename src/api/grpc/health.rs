//! `grpc.health.v1`: SERVING once policies are loaded, until the process drains.
//!
//! A rejected reload does not change the health: the last good policies stay in use.

use futures_util::stream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::decision::call::Call;
use crate::api::decision::deadline::Deadline;
use crate::api::decision::rejection::Rejection;
use crate::readiness::{Health as Readiness, ReadinessReader};

/// The service names with a health status. The empty name is the whole process. The last service
/// can be disabled.
const SERVICES: [&str; 3] = [
    "",
    "pdp.v1.AuthorizationService",
    "pdp.v1.PolicyStoreService",
];

/// The service `grpc.health.v1.Health`.
#[derive(Clone, Debug)]
pub(crate) struct HealthService {
    readiness: ReadinessReader,
    services: &'static [&'static str],
}

impl HealthService {
    pub(crate) fn new(readiness: ReadinessReader, has_policy_store: bool) -> Self {
        Self {
            readiness,
            services: match has_policy_store {
                true => &SERVICES,
                false => SERVICES.split_last().map_or(&[], |(_, others)| others),
            },
        }
    }
}

/// Returns the health; that of an unknown service is unknown.
fn response(readiness: &ReadinessReader, is_known: bool) -> HealthCheckResponse {
    let status = match is_known {
        true if readiness.health() == Readiness::Serving => ServingStatus::Serving,
        true => ServingStatus::NotServing,
        false => ServingStatus::ServiceUnknown,
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.services.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(&self.readiness, true)))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watch = HealthWatch {
            is_known: self.services.contains(&request.get_ref().service.as_str()),
            readiness: self.readiness.clone(),
            drain: self.readiness.clone(),
            deadline: Call::from_request(&request).deadline,
            sent: None,
        };
        let statuses = Box::pin(stream::try_unfold(watch, HealthWatch::next));
        Ok(Response::new(statuses))
    }
}

/// One caller's watch: sends the current status, then each change. It ends after the status that
/// the process drains.
struct HealthWatch {
    /// False for an unknown service, which the protocol reports and watches all the same.
    is_known: bool,
    readiness: ReadinessReader,
    drain: ReadinessReader,
    deadline: Deadline,
    sent: Option<HealthCheckResponse>,
}

impl HealthWatch {
    /// Waits for the next status to send.
    async fn next(mut self) -> Result<Option<(HealthCheckResponse, Self)>, Status> {
        loop {
            let now = response(&self.readiness, self.is_known);
            if self.sent != Some(now) {
                self.sent = Some(now);
                return Ok(Some((now, self)));
            }
            tokio::select! {
                biased;
                _ = self.readiness.changed() => {}
                () = self.drain.draining() => {
                    if self.sent == Some(response(&self.readiness, self.is_known)) {
                        return Err(Rejection::ShuttingDown.into());
                    }
                }
                () = self.deadline.passed() => return Err(Rejection::DeadlineExceeded.into()),
            }
        }
    }
}
