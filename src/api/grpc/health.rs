//! The door of `grpc.health.v1`: serving once policies are in force, and until the drain begins.
//!
//! A refused reload is not NOT_SERVING: the last good policies go on answering.

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::decision::call::Call;
use crate::api::decision::deadline::Deadline;
use crate::api::decision::rejection::Rejection;
use crate::readiness::{Health as Readiness, ReadinessReader};

/// The names that have a health of their own; the empty one stands for the whole process. The last
/// can be turned off.
const SERVICES: [&str; 3] = [
    "",
    "pdp.v1.AuthorizationService",
    "pdp.v1.PolicyStoreService",
];

/// Answers `grpc.health.v1.Health`.
#[derive(Clone, Debug)]
pub(crate) struct HealthDoor {
    readiness: ReadinessReader,
    services: &'static [&'static str],
}

impl HealthDoor {
    /// A door that tells `readiness`; its watches end when draining begins.
    #[must_use]
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

fn response(serving: bool) -> HealthCheckResponse {
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

/// The health statuses of one watch.
type Statuses = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for HealthDoor {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.services.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("no such service"));
        }
        Ok(Response::new(response(
            self.readiness.health() == Readiness::Serving,
        )))
    }

    type WatchStream = Statuses;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Statuses>, Status> {
        let watch = HealthWatch {
            known: self.services.contains(&request.get_ref().service.as_str()),
            readiness: self.readiness.clone(),
            draining: self.readiness.clone(),
            deadline: Call::of(&request).deadline,
            sent: None,
        };
        Ok(Response::new(Box::pin(stream::try_unfold(
            watch,
            HealthWatch::next,
        ))))
    }
}

/// One caller's watch: the status now, then each later one that differs; the last one said is
/// that the service drains, and then the stream ends.
struct HealthWatch {
    /// An unknown service is told as such and watched all the same, as the protocol has it.
    known: bool,
    readiness: ReadinessReader,
    draining: ReadinessReader,
    deadline: Deadline,
    sent: Option<HealthCheckResponse>,
}

impl HealthWatch {
    fn now(&self) -> HealthCheckResponse {
        if self.known {
            response(self.readiness.health() == Readiness::Serving)
        } else {
            HealthCheckResponse {
                status: ServingStatus::ServiceUnknown.into(),
            }
        }
    }

    async fn next(mut self) -> Result<Option<(HealthCheckResponse, Self)>, Status> {
        loop {
            let now = self.now();
            if self.sent != Some(now) {
                self.sent = Some(now);
                return Ok(Some((now, self)));
            }
            tokio::select! {
                biased;
                _ = self.readiness.changed() => {}
                () = self.draining.draining() => if self.sent == Some(self.now()) {
                    return Err(Rejection::ShuttingDown.into());
                },
                () = self.deadline.passed() => return Err(Rejection::DeadlineExceeded.into()),
            }
        }
    }
}
