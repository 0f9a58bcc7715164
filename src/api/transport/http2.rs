//! Runs HTTP/2 on one connection, and closes it by age, idleness, unread answers or a drain.
//!
//! hyper's connections are driven here and not by tonic's server: the deadlines, sizes and
//! statuses of the contract differ from tonic's, and a call that reaches its service without
//! layers costs less.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::connection_task::ConnectionExecutor;
use super::lifetime::{CallTracker, Expiry, InFlight};
use super::tls::Tls;
use crate::api::auth::authenticator::ConnectionAuthenticator;
use crate::api::auth::callers::Callers;
use crate::api::decision::admission::{Admission, MonotonicNanos};
use crate::api::metrics::{CallMetrics, Closing};
use crate::config::api::ConnectionLimits;
use crate::readiness::ReadinessReader;

/// Most streams of a connection that are reset for protocol errors of its caller.
const MAX_ERROR_RESETS: usize = 1_024;

/// Most bytes of an answer that are buffered for a caller who does not read it. The rest is
/// produced once the caller reads.
const SEND_BUFFER_BYTES: usize = 16 << 10;

/// A service that connections run.
pub(crate) trait Service: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    /// Answers a call. The output is a `Result` for hyper: a wrapper around the future would be
    /// another copy of it for each call.
    fn call(
        self: Arc<Self>,
        arrival: Arrival,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<Self::Body>, Infallible>> + Send + 'static;
}

/// The caller, the connection and the arrival time of a call.
pub(crate) struct Arrival {
    pub(crate) caller: Arc<ConnectionAuthenticator>,
    /// The guard that counts the call as in flight on its connection.
    pub(crate) in_flight: InFlight,
    /// The time since which the call could have been read.
    pub(crate) at: MonotonicNanos,
}

/// State that all connections share.
pub(crate) struct ServerState<S> {
    pub(crate) service: Arc<S>,
    /// TLS on TCP; `None` is plaintext.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) callers: Arc<Callers>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) admission: Arc<Admission>,
    /// One permit for each open connection.
    pub(crate) connection_permits: Arc<Semaphore>,
    pub(crate) readiness: ReadinessReader,
    /// `None` if metrics are off.
    pub(crate) metrics: Option<Arc<CallMetrics>>,
}

impl<S> ServerState<S> {
    /// Counts a connection that the service closes.
    pub(crate) fn count_closed(&self, reason: Closing) {
        if let Some(metrics) = &self.metrics {
            metrics.count_closing(reason);
        }
    }
}

/// Serves HTTP/2 on `stream`. Once draining begins, no call is accepted, and the connection ends
/// after the last call in flight.
pub(crate) async fn serve<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    caller: Arc<ConnectionAuthenticator>,
    state: Arc<ServerState<S>>,
) {
    let mut draining = state.readiness.clone();
    let limits = state.limits.clone();
    let tracker = CallTracker::default();
    let executor =
        ConnectionExecutor::new(Arc::clone(&state.admission), limits.max_concurrent_streams);
    let readable_since = executor.readable_since();
    let service = Arc::clone(&state.service);
    let service_tracker = tracker.clone();
    let service = service_fn(move |request| {
        let arrival = Arrival {
            caller: Arc::clone(&caller),
            in_flight: service_tracker.begin(),
            at: readable_since.load().unwrap_or_else(MonotonicNanos::now),
        };
        Arc::clone(&service).call(arrival, request)
    });
    let serving = http2::Builder::new(executor.clone())
        .timer(TokioTimer::new())
        // gRPC does not use it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_bytes)
        // During overload, a caller whose deadlines pass resets all its streams, and is no
        // attacker. One that resets more streams than it may have open, before they are read, is
        // (Rapid Reset, CVE-2023-44487).
        .max_pending_accept_reset_streams(limits.max_concurrent_streams as usize)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = executor.drive(serving);
    let expiry = tokio::select! {
        ended = &mut serving => return log_end(ended),
        () = draining.draining() => None,
        expiry = limits.lifetime.expiry(&tracker) => Some(expiry),
    };
    Pin::new(serving.connection()).graceful_shutdown();
    if let Some(expiry) = expiry {
        state.count_closed(match expiry {
            Expiry::Age => Closing::Age,
            Expiry::Idle => Closing::Idle,
            Expiry::UnreadAnswer => Closing::UnreadAnswer,
        });
        tokio::select! {
            ended = &mut serving => return log_end(ended),
            () = tokio::time::sleep(limits.lifetime.age_grace) => return,
            () = draining.draining() => {}
        }
    }
    tokio::select! {
        ended = serving => log_end(ended),
        // hyper also waits for a caller that never answers its last ping.
        () = tracker.idle() => {}
    }
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        // A caller that disconnects, or does not speak HTTP/2, is no fault of the service.
        tracing::debug!(%error, "connection ended");
    }
}
