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

use super::accept::ServerState;
use super::connection_task::ConnectionExecutor;
use super::lifetime::{Calls, InFlight, Over};
use crate::api::auth::authenticator::ConnectionAuthenticator;
use crate::api::decision::admission::MonotonicNanos;
use crate::api::metrics::Closing;

/// Most streams of a connection that may be reset for its caller's faults.
const MAX_ERROR_RESETS: usize = 1_024;

/// Most bytes of an answer that are buffered for a caller who does not read it; the rest is not
/// produced before it does.
const SEND_BUFFER_BYTES: usize = 16 << 10;

/// A service that connections run.
pub(crate) trait Service: Send + Sync + 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    /// Answers one call.
    fn call(
        self: Arc<Self>,
        arrival: Arrival,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = http::Response<Self::Body>> + Send + 'static;
}

/// The connection and the time on which a call arrived.
pub(crate) struct Arrival {
    /// Identifies the caller.
    pub(crate) caller: Arc<ConnectionAuthenticator>,
    /// Counts the call among those of its connection.
    pub(crate) in_flight: InFlight,
    /// When the call could first have been read.
    pub(crate) at: MonotonicNanos,
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
    let calls = Calls::default();
    let executor =
        ConnectionExecutor::new(Arc::clone(&state.admission), limits.max_concurrent_streams);
    let ready = executor.ready();
    let service = Arc::clone(&state.service);
    let of_connection = calls.clone();
    let service = service_fn(move |request| {
        let arrival = Arrival {
            caller: Arc::clone(&caller),
            in_flight: of_connection.begin(),
            at: ready.load().unwrap_or_else(MonotonicNanos::now),
        };
        let response = Arc::clone(&service).call(arrival, request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let serving = http2::Builder::new(executor.clone())
        .timer(TokioTimer::new())
        // gRPC does not use it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_bytes)
        // A caller whose deadlines pass while we are busy resets all its streams, and is no
        // attacker. One that resets more than it may have open, before we have read them, is
        // (Rapid Reset, CVE-2023-44487).
        .max_pending_accept_reset_streams(limits.max_concurrent_streams as usize)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = executor.drive(serving);
    let over = tokio::select! {
        ended = &mut serving => return log_end(ended),
        () = draining.draining() => None,
        over = limits.lifetime.over(&calls) => Some(over),
    };
    Pin::new(serving.connection()).graceful_shutdown();
    if let Some(over) = over {
        state.closes(match over {
            Over::Age => Closing::Age,
            Over::Idle => Closing::Idle,
            Over::UnreadAnswer => Closing::UnreadAnswer,
        });
        tokio::select! {
            ended = &mut serving => return log_end(ended),
            () = tokio::time::sleep(limits.lifetime.age_grace) => return,
            () = draining.draining() => {}
        }
    }
    tokio::select! {
        ended = serving => log_end(ended),
        // hyper would also wait for a caller that never answers its last ping.
        () = calls.over() => {}
    }
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        // A caller that disconnects, or does not speak HTTP/2, is no fault of the service.
        tracing::debug!(%error, "connection ended");
    }
}
