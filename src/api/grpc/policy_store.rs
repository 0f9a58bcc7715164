//! The door of `pdp.v1.PolicyStoreService`: what is in force, and rereading on demand.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::api::auth::caller::Right;
use crate::api::decision::call::Call;
use crate::api::decision::rejection::Rejection;
use crate::api::grpc::pb;
use crate::api::grpc::pb::policy_store_service_server::PolicyStoreService;
use crate::api::grpc::wire::encoded_answer::EncodedAnswer;
use crate::api::grpc::wire::to_proto;
use crate::api::metrics::CallMetrics;
use crate::engine::Engine;
use crate::policy_store::{ReloadHandle, ReloadOutcome, StatusReader, StoreStatus};
use crate::readiness::ReadinessReader;

/// Policies on a page when the caller names no size, and the most on any page.
const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

/// Answers `pdp.v1.PolicyStoreService`.
#[derive(Clone, Debug)]
pub(crate) struct PolicyStore {
    engine: Arc<Engine<EncodedAnswer>>,
    status: StatusReader,
    reloads: ReloadHandle,
    draining: ReadinessReader,
    metrics: Option<Arc<CallMetrics>>,
}

impl PolicyStore {
    /// A door to the store; `draining` ends its watches, and `metrics` count what it refuses.
    #[must_use]
    pub(crate) fn new(
        engine: Arc<Engine<EncodedAnswer>>,
        status: StatusReader,
        reloads: ReloadHandle,
        draining: ReadinessReader,
        metrics: Option<Arc<CallMetrics>>,
    ) -> Self {
        Self {
            engine,
            status,
            reloads,
            draining,
            metrics,
        }
    }

    /// Whether the caller of `request`, which may have been long in coming, has the right still.
    fn check<T>(&self, request: &Request<T>, right: Right) -> Result<Call, Status> {
        let call = Call::of(request);
        match call.caller.recheck(right) {
            Ok(()) => Ok(call),
            Err(denied) => Err(ends(self.metrics.as_deref(), denied.into())),
        }
    }
}

/// The status of a call that ends without an answer, which is counted.
fn ends(metrics: Option<&CallMetrics>, rejection: Rejection) -> Status {
    if let Some(metrics) = metrics {
        metrics.count_rejection(rejection.label());
    }
    rejection.into()
}

/// The statuses of one watch.
type Statuses = Pin<Box<dyn Stream<Item = Result<pb::WatchStatusResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PolicyStoreService for PolicyStore {
    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        self.check(&request, Right::Store)?;
        let status = self.status.load();
        Ok(Response::new(pb::GetStatusResponse {
            status: Some(to_proto::store_status(&status)),
            reloads: Some(to_proto::reload_counts(status.reloads)),
            cache: Some(to_proto::cache_metrics(self.engine.cache_metrics())),
        }))
    }

    type WatchStatusStream = Statuses;

    async fn watch_status(
        &self,
        request: Request<pb::WatchStatusRequest>,
    ) -> Result<Response<Statuses>, Status> {
        let watch = StatusWatch {
            status: self.status.clone(),
            draining: self.draining.clone(),
            metrics: self.metrics.clone(),
            call: Call::of(&request),
            sent: None,
        };
        Ok(Response::new(Box::pin(stream::try_unfold(
            watch,
            StatusWatch::next,
        ))))
    }

    async fn list_policies(
        &self,
        request: Request<pb::ListPoliciesRequest>,
    ) -> Result<Response<pb::ListPoliciesResponse>, Status> {
        self.check(&request, Right::Store)?;
        let pb::ListPoliciesRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let Some(snapshot) = self.engine.snapshot() else {
            return Ok(Response::new(pb::ListPoliciesResponse::default()));
        };
        let revision = snapshot.revision().to_string();
        let first = if page_token.is_empty() {
            0
        } else {
            page_start(&page_token, &revision)?
        };
        let size = match page_size as usize {
            0 => DEFAULT_PAGE,
            size => size.min(LARGEST_PAGE),
        };
        let policies: Vec<pb::PolicySummary> = snapshot
            .policies()
            .skip(first)
            .take(size)
            .map(to_proto::policy_summary)
            .collect();
        let next = first + policies.len();
        let next_page_token = if next < snapshot.policies().len() {
            format!("{revision}.{next}")
        } else {
            String::new()
        };
        Ok(Response::new(pb::ListPoliciesResponse {
            policies,
            next_page_token,
            revision,
        }))
    }

    async fn reload(
        &self,
        request: Request<pb::ReloadRequest>,
    ) -> Result<Response<pb::ReloadResponse>, Status> {
        let mut call = self.check(&request, Right::Administer)?;
        let report = self
            .reloads
            .reload()
            .await
            .map_err(|_closed| ends(self.metrics.as_deref(), Rejection::ShuttingDown))?;
        // What it may read is what the list says now.
        let renewed = call.caller.refresh(Right::Administer);
        renewed.map_err(|denied| ends(self.metrics.as_deref(), denied.into()))?;
        Ok(Response::new(pb::ReloadResponse {
            outcome: match report.outcome {
                ReloadOutcome::Reloaded => pb::ReloadOutcome::Reloaded,
                ReloadOutcome::Unchanged => pb::ReloadOutcome::Unchanged,
                ReloadOutcome::Rejected => pb::ReloadOutcome::Refused,
            }
            .into(),
            status: Some(told(&report.status, &call)),
        }))
    }
}

/// The status after a reload, as far as its caller may read it: what is wrong with a file may quote
/// what the file holds, and whoever may have policies reread need not be one who may read them.
fn told(status: &StoreStatus, call: &Call) -> pb::StoreStatus {
    let told = to_proto::store_status(status);
    match call.caller.may(Right::Store) {
        true => told,
        false => pb::StoreStatus {
            revision: told.revision,
            loaded_at: told.loaded_at,
            ..pb::StoreStatus::default()
        },
    }
}

/// The index that `token` continues at; a token is good for the revision that it was given under.
fn page_start(token: &str, revision: &str) -> Result<usize, Status> {
    let refuse = |problem: &str| {
        let details = ErrorDetails::with_bad_request_violation("page_token", problem);
        Status::with_error_details(
            Code::InvalidArgument,
            format!("`page_token`: {problem}"),
            details,
        )
    };
    let (of, next) = token
        .split_once('.')
        .ok_or_else(|| refuse("is not one that this service gave"))?;
    let next = next
        .parse()
        .map_err(|_| refuse("is not one that this service gave"))?;
    if of != revision {
        return Err(refuse(
            "belongs to a revision that is no longer in force; list from the start",
        ));
    }
    Ok(next)
}

/// One caller's watch: the status now, then each later one that differs.
struct StatusWatch {
    status: StatusReader,
    draining: ReadinessReader,
    metrics: Option<Arc<CallMetrics>>,
    call: Call,
    sent: Option<pb::StoreStatus>,
}

impl StatusWatch {
    async fn next(self) -> Result<Option<(pb::WatchStatusResponse, Self)>, Status> {
        let metrics = self.metrics.clone();
        let next = self.status().await;
        next.map(Some)
            .map_err(|rejection| ends(metrics.as_deref(), rejection))
    }

    async fn status(mut self) -> Result<(pb::WatchStatusResponse, Self), Rejection> {
        loop {
            self.call.caller.refresh(Right::Store)?;
            let status = to_proto::store_status(&self.status.load());
            if self.sent.as_ref() != Some(&status) {
                self.sent = Some(status.clone());
                return Ok((
                    pb::WatchStatusResponse {
                        status: Some(status),
                    },
                    self,
                ));
            }
            tokio::select! {
                biased;
                () = self.draining.draining() => return Err(Rejection::ShuttingDown),
                () = self.call.deadline.passed() => return Err(Rejection::DeadlineExceeded),
                changed = self.status.changed() => if changed.is_err() {
                    return Err(Rejection::ShuttingDown);
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::api::auth::authenticator::ConnectionAuthenticator;
    use crate::api::auth::callers::Callers;
    use crate::api::auth::peer::Peer;
    use crate::pdp::diagnostic::{Diagnostic, Severity};
    use crate::policy_store::RejectedReload;

    #[test]
    fn who_may_not_read_the_store_is_not_told_what_a_file_holds() {
        let status = StoreStatus {
            rejected: Some(RejectedReload {
                at: SystemTime::now(),
                diagnostics: vec![Diagnostic {
                    file: "users.json".to_owned(),
                    position: None,
                    message: "the attribute `salary` is 12000".to_owned(),
                    severity: Severity::Error,
                    help: None,
                    excerpt: None,
                }],
                total: 1,
            }),
            ..StoreStatus::default()
        };
        let anyone = ConnectionAuthenticator::new(Arc::new(Callers::Anyone), Peer::default());
        let anyone = Call {
            caller: anyone.authenticate(&http::HeaderMap::new()).unwrap(),
            ..Call::default()
        };
        assert_eq!(told(&status, &anyone), to_proto::store_status(&status));
        // By default a caller has no right at all.
        assert_eq!(told(&status, &Call::default()).refused, None);
    }
}
