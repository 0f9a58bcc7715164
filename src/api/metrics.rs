//! Metrics of the gRPC server: calls by method and status, rejected requests, and connections.

mod labels;
mod method;

use std::fmt;
use std::time::Duration;

use tonic::Code;

pub(crate) use labels::{Closing, RejectionLabel, Transport, label};
pub(crate) use method::Method;

use crate::counters::page::{Export, NANOSECONDS, Page, metrics};
use crate::counters::{Counters, Histogram};
use crate::engine::metrics::{DURATION_BOUNDS, nanoseconds};
use crate::telemetry::traces::CallOutcome;

metrics! {
    REJECTIONS = Counter "cedar_pdp_requests_refused_total" ["reason"]
        "Rejected requests and items of batches and streams, by reason";
    CALLS = Counter "cedar_pdp_grpc_calls_total" ["method", "code"]
        "Calls that have ended, by method and gRPC status";
    CALL_SECONDS = Histogram "cedar_pdp_grpc_call_duration_seconds" ["method"]
        "Time from a unary call's headers to the end of its response";
    CONNECTIONS = Counter "cedar_pdp_connections_total" ["transport"]
        "Connections accepted";
    OPEN_CONNECTIONS = Gauge "cedar_pdp_open_connections" ["transport"]
        "Connections that are open";
    CLOSED_CONNECTIONS = Counter "cedar_pdp_connections_closed_total" ["reason"]
        "Connections closed by the service or before their first call, by reason";
}

/// Number of gRPC status codes.
const CODES: usize = 17;
const METHODS: usize = Method::ALL.len();

/// Counts of calls, rejected requests and connections since startup.
#[derive(Debug)]
pub(crate) struct CallMetrics {
    /// One counter for each method and code.
    calls: Counters<{ METHODS * CODES }>,
    /// One histogram for each method, in nanoseconds.
    durations: Vec<Histogram>,
    rejections: Counters<{ RejectionLabel::ALL.len() }>,
    opened: Counters<{ Transport::ALL.len() }>,
    closed: Counters<{ Transport::ALL.len() }>,
    closings: Counters<{ Closing::ALL.len() }>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        let durations = Method::ALL.iter().map(|_| Histogram::new(DURATION_BOUNDS));
        Self {
            calls: Counters::default(),
            durations: durations.collect(),
            rejections: Counters::default(),
            opened: Counters::default(),
            closed: Counters::default(),
            closings: Counters::default(),
        }
    }
}

impl CallMetrics {
    /// Counts a call that has ended. The duration of a unary call is counted too.
    pub(crate) fn count_call(&self, method: Method, code: Code, took: Duration) {
        self.calls.add_one(call_index(method, code as usize));
        if method.is_unary()
            && let Some(durations) = self.durations.get(method as usize)
        {
            durations.observe(nanoseconds(took));
        }
    }

    /// Counts a rejected request, or a rejected item of a batch or stream.
    pub(crate) fn count_rejection(&self, label: RejectionLabel) {
        self.rejections.add_one(label as usize);
    }

    pub(crate) fn count_opened(&self, transport: Transport) {
        self.opened.add_one(transport as usize);
    }

    /// Counts a connection that has ended, for whatever reason.
    pub(crate) fn count_closed(&self, transport: Transport) {
        self.closed.add_one(transport as usize);
    }

    /// Counts a connection that the service closes.
    pub(crate) fn count_closing(&self, reason: Closing) {
        self.closings.add_one(reason as usize);
    }

    /// Returns the number of calls by method and status. A status other than OK is left out until
    /// it has occurred.
    fn calls(&self) -> impl Iterator<Item = (Method, &'static str, u64)> {
        let all = (0..CODES).flat_map(|code| Method::ALL.iter().map(move |method| (code, *method)));
        all.filter_map(|(code, method)| {
            let count = self.calls.sum(call_index(method, code));
            (count > 0 || code == Code::Ok as usize).then(|| (method, code_label(code), count))
        })
    }

    /// Returns the histograms of unary methods.
    fn unary_durations(&self) -> impl Iterator<Item = (Method, &Histogram)> {
        let all = Method::ALL.iter().copied().zip(&self.durations);
        all.filter(|(method, _)| method.is_unary())
    }
}

impl Export for CallMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let rejections = RejectionLabel::ALL.iter();
        let rejections =
            rejections.map(|label| ([label.label()], self.rejections.sum(*label as usize)));
        page.counter(&REJECTIONS, rejections)?;
        let calls = self.calls();
        let calls = calls.map(|(method, code, count)| ([method.label(), code], count));
        page.counter(&CALLS, calls)?;
        let durations = self.unary_durations();
        let durations =
            durations.map(|(method, durations)| ([method.label()], durations.distribution()));
        page.histogram(&CALL_SECONDS, DURATION_BOUNDS, NANOSECONDS, durations)?;
        let connections = Transport::ALL.iter().map(|transport| {
            // Closed ones are read first: each of them was opened before.
            let closed = self.closed.sum(*transport as usize);
            let opened = self.opened.sum(*transport as usize);
            ([transport.label()], opened, opened.saturating_sub(closed))
        });
        let connections: Vec<_> = connections.collect();
        let all = connections.iter().map(|(label, all, _)| (*label, *all));
        page.counter(&CONNECTIONS, all)?;
        let open = (connections.iter()).map(|(label, _, open)| (*label, *open as f64));
        page.gauge(&OPEN_CONNECTIONS, open)?;
        let closings = Closing::ALL.iter();
        let closings =
            closings.map(|reason| ([reason.label()], self.closings.sum(*reason as usize)));
        page.counter(&CLOSED_CONNECTIONS, closings)
    }
}

fn call_index(method: Method, code: usize) -> usize {
    method as usize * CODES + code
}

/// Returns the outcome of a call, for its span.
pub(crate) fn call_outcome(method: Method, code: Code) -> CallOutcome {
    CallOutcome {
        method: method.span_name(),
        code: code_label(code as usize),
        // The caller causes all other errors.
        is_server_error: matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ),
    }
}

/// Returns the name of a gRPC status code.
pub(crate) fn code_label(code: usize) -> &'static str {
    const LABELS: [&str; CODES] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    LABELS.get(code).copied().unwrap_or("UNKNOWN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_is_counted_by_method_and_status() {
        let metrics = CallMetrics::default();
        metrics.count_call(Method::Authorize, Code::Ok, Duration::from_micros(20));
        metrics.count_call(Method::Other, Code::Unauthenticated, Duration::ZERO);
        metrics.count_call(Method::WatchStatus, Code::Cancelled, Duration::ZERO);
        let calls: Vec<_> = metrics.calls().filter(|(.., count)| *count > 0).collect();
        assert_eq!(
            calls,
            [
                (Method::Authorize, "OK", 1),
                (Method::WatchStatus, "CANCELLED", 1),
                (Method::Other, "UNAUTHENTICATED", 1),
            ]
        );
        let timed: Vec<_> = metrics
            .unary_durations()
            .filter(|(_, durations)| durations.distribution().count() > 0)
            .map(|(method, _)| method)
            .collect();
        assert_eq!(timed, [Method::Authorize, Method::Other]);
    }
}
