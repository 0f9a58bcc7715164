//! `PolicyStoreService`: status and list of the loaded policies, and reloads on demand.

use futures_util::stream;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::authorization::Authorization;
use super::pb;
use super::pb::policy_store_service_server::PolicyStoreService;
use super::wire::to_proto;
use crate::api::auth::caller::Right;
use crate::api::decision::call::Call;
use crate::api::decision::rejection::Rejection;
use crate::policy_store::{ReloadHandle, ReloadOutcome, StatusReader, StoreStatus};

/// Policies on a page, if the request sets no size.
const DEFAULT_PAGE_SIZE: usize = 100;
/// Most policies on a page.
const MAX_PAGE_SIZE: usize = 1_000;

/// The service `pdp.v1.PolicyStoreService`.
#[derive(Clone, Debug)]
pub(crate) struct PolicyStore {
    /// The holder of the engine, the readiness and the counters.
    pub(super) authorization: Authorization,
    pub(super) status: StatusReader,
    pub(super) reloads: ReloadHandle,
}

impl PolicyStore {
    /// Checks that the caller still has the right: the request may have taken long to arrive.
    fn check<T>(&self, request: &Request<T>, right: Right) -> Result<Call, Status> {
        let call = Call::from_request(request);
        match call.caller.recheck(right) {
            Ok(()) => Ok(call),
            Err(denied) => Err(self.reject(denied)),
        }
    }

    fn reject(&self, rejection: impl Into<Rejection>) -> Status {
        self.authorization.reject_call(rejection.into())
    }
}

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
            cache: Some(to_proto::cache_metrics(
                self.authorization.decider.engine.cache_metrics(),
            )),
        }))
    }

    type WatchStatusStream = BoxStream<pb::WatchStatusResponse>;

    async fn watch_status(
        &self,
        request: Request<pb::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let watch = StatusWatch {
            store: self.clone(),
            call: Call::from_request(&request),
            sent: None,
        };
        let statuses = Box::pin(stream::try_unfold(watch, StatusWatch::next));
        Ok(Response::new(statuses))
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
        let Some(snapshot) = self.authorization.decider.engine.snapshot() else {
            return Ok(Response::new(pb::ListPoliciesResponse::default()));
        };
        let revision = snapshot.revision().to_string();
        let first = match page_token.is_empty() {
            true => 0,
            false => page_start(&page_token, &revision)?,
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
        let next_page_token = match next < snapshot.policies().len() {
            true => format!("{revision}.{next}"),
            false => String::new(),
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
        let reloaded = self.reloads.reload().await;
        let report = reloaded.map_err(|_closed| self.reject(Rejection::ShuttingDown))?;
        // The caller list may have changed during the reload.
        let renewed = call.caller.refresh(Right::Administer);
        renewed.map_err(|denied| self.reject(denied))?;
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
    store: PolicyStore,
    call: Call,
    sent: Option<pb::StoreStatus>,
}

impl StatusWatch {
    /// Waits for the next status to send.
    async fn next(mut self) -> Result<Option<(pb::WatchStatusResponse, Self)>, Status> {
        let changed = self.changed_status().await;
        let status = Some(changed.map_err(|rejection| self.store.reject(rejection))?);
        Ok(Some((pb::WatchStatusResponse { status }, self)))
    }

    async fn changed_status(&mut self) -> Result<pb::StoreStatus, Rejection> {
        let readiness = &mut self.store.authorization.decider.readiness;
        loop {
            self.call.caller.refresh(Right::Store)?;
            let status = to_proto::store_status(&self.store.status.load());
            if self.sent.as_ref() != Some(&status) {
                self.sent = Some(status.clone());
                return Ok(status);
            }
            tokio::select! {
                biased;
                () = readiness.draining() => return Err(Rejection::ShuttingDown),
                () = self.call.deadline.passed() => return Err(Rejection::DeadlineExceeded),
                changed = self.store.status.changed() => if changed.is_err() {
                    return Err(Rejection::ShuttingDown);
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
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
