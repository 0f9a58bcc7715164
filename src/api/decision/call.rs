//! What is known of a call besides its message: who makes it, how long its caller waits, and which
//! trace it is part of.

use std::str;
use std::sync::Arc;

use crate::api::auth::authenticator::AuthenticatedCaller;
use crate::api::auth::caller::{Denied, IdentityKind, Right};
use crate::api::decision::deadline::Deadline;
use crate::api::decision::rejection::Rejection;
use crate::decision_log::{Method, Origin};
use crate::engine::{CachedAnswer, EngineAnswer};
use crate::pdp::Snapshot;
use crate::pdp::query::Uid;
use crate::pdp::query_ref::QueryRef;
use crate::telemetry::traces::{CallSpan, DecisionAttributes, TraceParent};

/// One call, from when its headers came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// Who makes it; by default nobody, who may nothing.
    pub(crate) caller: AuthenticatedCaller,
    /// When its caller stops waiting.
    pub(crate) deadline: Deadline,
    /// Which trace it is part of, where that is told.
    pub(crate) trace_id: Option<TraceId>,
    /// Its span, if it is traced.
    pub(crate) span: Option<Arc<CallSpan>>,
}

/// The id of a trace, as W3C's trace context has it: 32 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceId([u8; 32]);

impl TraceId {
    /// The trace of `span`, if there is one, or else the one that the headers name.
    pub(crate) fn of(span: Option<&CallSpan>, headers: &http::HeaderMap) -> Option<Self> {
        if let Some(span) = span {
            return Some(Self(span.trace_hex()));
        }
        const TRACEPARENT: http::HeaderName = http::HeaderName::from_static("traceparent");
        let header = headers.get(&TRACEPARENT)?.to_str().ok()?;
        TraceParent::parse(header).map(|parent| Self(parent.trace_hex))
    }

    fn as_str(&self) -> &str {
        // INVARIANT: they are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Call {
    /// Notes in its span, if it has one, what was answered to `query`.
    pub(crate) fn answered<A: CachedAnswer>(
        &self,
        answered: &EngineAnswer<A>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
    ) {
        if let Some(span) = &self.span {
            let decision = answered.answer.decision();
            span.record_decision(decision, answered.source, || DecisionAttributes {
                principal_type: query.principal.type_name.to_owned(),
                action: Uid::new(query.action.type_name, query.action.id).to_string(),
                resource_type: query.resource.type_name.to_owned(),
                revision: snapshot.revision().to_string(),
            });
        }
    }

    /// What the decision log tells of it.
    pub(crate) fn origin(&self, method: Method) -> Origin<'_> {
        Origin {
            method,
            trace_id: self.trace_id.as_ref().map(TraceId::as_str),
            caller: self.caller.listed_name(),
        }
    }

    /// Puts it with the call's request, for [`of`](Self::of).
    pub(crate) fn put_with<T>(&self, mut request: http::Request<T>) -> http::Request<T> {
        request.extensions_mut().insert(self.clone());
        request
    }

    /// What was put with the request when its headers came.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_default()
    }

    /// Whether its caller may name principals, and so tell of them what it likes.
    pub(crate) fn names_principals(&self) -> Result<bool, Rejection> {
        let caller = self.caller.current(Right::Authorize)?;
        Ok(caller.may_send(IdentityKind::Principal))
    }

    /// Whether its caller may ask on behalf of whom `identity` tells, and, if it `explains`, why.
    pub(crate) fn check(&self, identity: IdentityKind, explains: bool) -> Result<(), Rejection> {
        // A message may come, and a key or room in a log, long after the call was let in.
        let caller = self.caller.current(Right::Authorize)?;
        if !caller.may_send(identity) {
            return Err(Denied::IdentityNotAllowed(identity).into());
        }
        match explains {
            true => Ok(caller.check(Right::Explain)?),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_id(header: &str) -> Option<String> {
        let mut headers = http::HeaderMap::new();
        headers.insert("traceparent", header.parse().unwrap());
        TraceId::of(None, &headers).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn a_trace_is_known_by_its_id() {
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
