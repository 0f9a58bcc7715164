//! The facts of a call besides its message: its caller, its deadline and its trace.

use std::str;
use std::sync::Arc;

use crate::api::auth::authenticator::AuthenticatedCaller;
use crate::api::auth::caller::{IdentityKind, Right};
use crate::api::decision::deadline::Deadline;
use crate::api::decision::rejection::Rejection;
use crate::decision_log::{Method, Origin};
use crate::engine::{CachedAnswer, EngineAnswer};
use crate::pdp::Snapshot;
use crate::pdp::query::Uid;
use crate::pdp::query_ref::QueryRef;
use crate::telemetry::traces::{CallSpan, DecisionAttributes, TraceParent};

/// One call, without its message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// The caller. By default it has no rights.
    pub(crate) caller: AuthenticatedCaller,
    /// The time at which the caller stops waiting.
    pub(crate) deadline: Deadline,
    /// The id of the call's trace, if decisions are logged.
    pub(crate) trace_id: Option<TraceId>,
    /// The call's span, if it is traced.
    pub(crate) span: Option<Arc<CallSpan>>,
}

/// The id of a trace: 32 lower-case hex digits, as in W3C's trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceId([u8; 32]);

impl TraceId {
    /// Returns the trace of `span`, or the one that the headers name if there is no span.
    pub(crate) fn from_headers(span: Option<&CallSpan>, headers: &http::HeaderMap) -> Option<Self> {
        if let Some(span) = span {
            return Some(Self(span.trace_hex()));
        }
        const TRACEPARENT: http::HeaderName = http::HeaderName::from_static("traceparent");
        let header = headers.get(&TRACEPARENT)?.to_str().ok()?;
        TraceParent::parse(header).map(|parent| Self(parent.trace_hex))
    }

    fn as_str(&self) -> &str {
        // INVARIANT: all digits are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Call {
    /// Records the answer to `query` in the call's span.
    pub(crate) fn trace_answer<A: CachedAnswer>(
        &self,
        answer: &EngineAnswer<A>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
    ) {
        if let Some(span) = &self.span {
            let decision = answer.answer.decision();
            span.record_decision(decision, answer.source, || DecisionAttributes {
                principal_type: query.principal.type_name.to_owned(),
                action: Uid::new(query.action.type_name, query.action.id).to_string(),
                resource_type: query.resource.type_name.to_owned(),
                revision: snapshot.revision().to_string(),
            });
        }
    }

    /// Returns the origin of the call's decisions, for the decision log.
    pub(crate) fn origin(&self, method: Method) -> Origin<'_> {
        Origin {
            method,
            trace_id: self.trace_id.as_ref().map(TraceId::as_str),
            caller: self.caller.listed_name(),
        }
    }

    /// Adds the call to its request's extensions, for [`from_request`](Self::from_request).
    pub(crate) fn insert_into<T>(&self, mut request: http::Request<T>) -> http::Request<T> {
        request.extensions_mut().insert(self.clone());
        request
    }

    /// Returns the call from its request's extensions. Without it, the caller has no rights.
    pub(crate) fn from_request<T>(request: &tonic::Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_default()
    }

    /// Returns whether the caller may name principals, and may therefore define their attributes.
    pub(crate) fn may_name_principals(&self) -> Result<bool, Rejection> {
        let caller = self.caller.current(Right::Authorize)?;
        Ok(caller.may_send(IdentityKind::Principal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_id(header: &str) -> Option<String> {
        let mut headers = http::HeaderMap::new();
        headers.insert("traceparent", header.parse().unwrap());
        TraceId::from_headers(None, &headers).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn trace_id_is_read_from_the_header() {
        const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        for good in [
            format!("00-{ID}-00f067aa0ba902b7-01"),
            format!("01-{ID}-00f067aa0ba902b7-01"),
            format!("01-{ID}-00f067aa0ba902b7-01-more"),
        ] {
            assert_eq!(trace_id(&good).as_deref(), Some(ID), "{good}");
        }
        for bad in [
            String::new(),
            ID.to_owned(),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}\"-00f067aa0ba902b7-01", &ID[1..]),
            format!("00_{ID}_00f067aa0ba902b7_01"),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }
}
