//! `PolicyStoreService`: status and list of the loaded policies, and reloads on demand.

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

/// Policies on a page, if the request sets no size.
const DEFAULT_PAGE_SIZE: usize = 100;
/// Most policies on a page.
const MAX_PAGE_SIZE: usize = 1_000;

/// The service `pdp.v1.PolicyStoreService`.
#[derive(Clone, Debug)]
pub(crate) struct PolicyStore {
    engine: Arc<Engine<EncodedAnswer>>,
    status: StatusReader,
    reloads: ReloadHandle,
    readiness: ReadinessReader,
    metrics: Option<Arc<CallMetrics>>,
}

impl PolicyStore {
    /// Creates the service. Its watches end when the process drains, and `metrics` count its
    /// rejections.
    #[must_use]
    pub(crate) fn new(
        engine: Arc<Engine<EncodedAnswer>>,
        status: StatusReader,
        reloads: ReloadHandle,
        readiness: ReadinessReader,
        metrics: Option<Arc<CallMetrics>>,
    ) -> Self {
        Self {
            engine,
            status,
            reloads,
            readiness,
            metrics,
        }
    }

    /// Checks that the caller still has the right: the request may have taken long to arrive.
    fn check<T>(&self, request: &Request<T>, right: Right) -> Result<Call, Status> {
        let call = Call::from_request(request);
        match call.caller.recheck(right) {
            Ok(()) => Ok(call),
            Err(denied) => Err(reject_call(self.metrics.as_deref(), denied.into())),
        }
    }
}

/// Counts the rejection of a call, and returns its status.
fn reject_call(metrics: Option<&CallMetrics>, rejection: Rejection) -> Status {
    if let Some(metrics) = metrics {
        metrics.count_rejection(rejection.label());
    }
    rejection.into()
}

/// The stream of statuses of one watch.
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
            readiness: self.readiness.clone(),
            metrics: self.metrics.clone(),
            call: Call::from_request(&request),
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
            0 => DEFAULT_PAGE_SIZE,
            size => size.min(MAX_PAGE_SIZE),
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
            .map_err(|_closed| reject_call(self.metrics.as_deref(), Rejection::ShuttingDown))?;
        // The caller list may have changed during the reload.
        let renewed = call.caller.refresh(Right::Administer);
        renewed.map_err(|denied| reject_call(self.metrics.as_deref(), denied.into()))?;
        Ok(Response::new(pb::ReloadResponse {
            outcome: match report.outcome {
                ReloadOutcome::Reloaded => pb::ReloadOutcome::Reloaded,
                ReloadOutcome::Unchanged => pb::ReloadOutcome::Unchanged,
                ReloadOutcome::Rejected => pb::ReloadOutcome::Refused,
            }
            .into(),
            status: Some(readable_status(&report.status, &call)),
        }))
    }
}

/// Returns the part of the status that the caller may read.
///
/// Diagnostics may quote the content of a file, and the right to reload does not include the right
/// to read policies.
fn readable_status(status: &StoreStatus, call: &Call) -> pb::StoreStatus {
    let status = to_proto::store_status(status);
    match call.caller.may(Right::Store) {
        true => status,
        false => pb::StoreStatus {
            revision: status.revision,
            loaded_at: status.loaded_at,
            ..pb::StoreStatus::default()
        },
    }
}

/// Returns the index at which the page of `token` begins.
///
/// A token is valid only for the revision of its list.
fn page_start(token: &str, revision: &str) -> Result<usize, Status> {
    let invalid = |problem: &str| {
        let details = ErrorDetails::with_bad_request_violation("page_token", problem);
        Status::with_error_details(
            Code::InvalidArgument,
            format!("`page_token`: {problem}"),
            details,
        )
    };
    let (token_revision, next) = token
        .split_once('.')
        .ok_or_else(|| invalid("is not a page token of this service"))?;
    let next = next
        .parse()
        .map_err(|_| invalid("is not a page token of this service"))?;
    if token_revision != revision {
        return Err(invalid(
            "belongs to a replaced revision; list from the start",
        ));
    }
    Ok(next)
}

/// One caller's watch: sends the current status, then each change.
struct StatusWatch {
    status: StatusReader,
    readiness: ReadinessReader,
    metrics: Option<Arc<CallMetrics>>,
    call: Call,
    sent: Option<pb::StoreStatus>,
}

impl StatusWatch {
    /// Waits for the next status to send.
    async fn next(self) -> Result<Option<(pb::WatchStatusResponse, Self)>, Status> {
        let metrics = self.metrics.clone();
        let next = self.changed_status().await;
        next.map(Some)
            .map_err(|rejection| reject_call(metrics.as_deref(), rejection))
    }

    async fn changed_status(mut self) -> Result<(pb::WatchStatusResponse, Self), Rejection> {
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
                () = self.readiness.draining() => return Err(Rejection::ShuttingDown),
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
    fn diagnostics_need_the_right_to_the_store() {
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
        assert_eq!(
            readable_status(&status, &anyone),
            to_proto::store_status(&status)
        );
        // By default a caller has no right at all.
        assert_eq!(readable_status(&status, &Call::default()).refused, None);
    }
}
