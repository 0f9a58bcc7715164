//! Serves HTTP/2 connections: accepts, hands calls to the doors, and winds down when told.
//!
//! We drive hyper's connections ourselves instead of through tonic's server. What the contract
//! says of deadlines and sizes differs from tonic's words, and the place to say so is around the
//! call; and a call that is one match away from its service is a cheaper call.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tonic::{Code, Status};

use super::Doors;
use super::answer::AnswerBody;
use super::call::{Call, TraceId};
use super::callers::{Admitted, Callers, CertificateNames, Identification, Peer};
use super::connection::InConnection;
use super::deadline::Deadline;
use super::figures::{self, CallFigures, Method, Transport};
use super::greeting::{self, Opened};
use super::listen::{Connection, Listener};
use super::status::Rejection;
use super::tls::Tls;
use crate::readiness::ReadinessReader;
use crate::telemetry::traces::CallSpan;

/// What a connection may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most calls at once on one connection.
    pub max_concurrent_streams: u32,
    /// How long a connection may be silent before it is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// How long it has to give one.
    pub keepalive_timeout: Duration,
    /// How long a new connection may take to shake hands and to say that it speaks HTTP/2.
    pub handshake_timeout: Duration,
}

/// What every connection comes through.
pub(super) struct Entrance {
    pub(super) doors: Doors,
    /// What is spoken on TCP; `None` is no TLS.
    pub(super) tls: Option<Arc<Tls>>,
    /// Who may call.
    pub(super) callers: Arc<Callers>,
    pub(super) limits: ConnectionLimits,
    pub(super) readiness: ReadinessReader,
}

/// How long the accept loop rests when the system has no descriptor left to give: long enough
/// not to spin, short enough that a caller's connect does not time out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Held by every connection; when all are dropped, the last connection is gone.
pub(super) type Alive = mpsc::Sender<Infallible>;

/// Accepts on `listener` until draining begins.
pub(super) async fn accept_loop(listener: Listener, entrance: Arc<Entrance>, alive: Alive) {
    let mut draining = entrance.readiness.clone();
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                is_failing = false;
                tokio::spawn(connection(accepted, Arc::clone(&entrance), alive.clone()));
            }
            // The caller left between its connect and our accept; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Once for each time of trouble: it is met anew at every attempt.
                if !is_failing {
                    tracing::warn!(%error, "cannot accept connections");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(accepted: Connection, entrance: Arc<Entrance>, _alive: Alive) {
    let mut draining = entrance.readiness.clone();
    let _counted = entrance.doors.figures.clone().map(|figures| {
        let transport = match &accepted {
            Connection::Tcp(_) => Transport::Tcp,
            Connection::Unix(_) => Transport::Unix,
        };
        OpenConnection::begin(figures, transport)
    });
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(
            entrance.limits.handshake_timeout,
            greeted(accepted, entrance.tls.as_deref()),
        ) => greeted,
        () = draining.draining() => return,
    };
    match greeted {
        Ok(Ok((Greeted::Tcp(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Ok((Greeted::Unix(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Ok((Greeted::Tls(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Err(error)) => tracing::debug!(%error, "connection ended before its first call"),
        Err(_elapsed) => tracing::debug!("connection closed: it never said what it wants"),
    }
}

/// A connection whose caller has said that it speaks HTTP/2, or something that is no greeting.
enum Greeted {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Opened<TlsStream<TcpStream>>>),
}

/// Waits for the handshake, where there is one, and for the greeting.
///
/// hyper asks a silent caller for a sign of life once it has said that it speaks HTTP/2, and waits
/// for that for ever.
async fn greeted(accepted: Connection, tls: Option<&Tls>) -> io::Result<(Greeted, Peer)> {
    let mut peer = Peer::default();
    let accepted = match (accepted, tls) {
        (Connection::Tcp(stream), Some(tls)) => {
            let stream = tls.accept(stream).await?;
            // Verified in the handshake, whenever it is there at all.
            let shown = stream.get_ref().1.peer_certificates();
            peer.certificate = shown
                .and_then(<[_]>::first)
                .and_then(|certificate| CertificateNames::of(certificate));
            let stream = Opened::greeted(stream).await?;
            return Ok((Greeted::Tls(Box::new(stream)), peer));
        }
        (accepted, _) => accepted,
    };
    greeting::awaited(&accepted).await?;
    Ok(match accepted {
        Connection::Tcp(stream) => (Greeted::Tcp(stream), peer),
        Connection::Unix(stream) => {
            peer.uid = Some(stream.peer_cred()?.uid());
            (Greeted::Unix(stream), peer)
        }
    })
}

/// A connection, counted for as long as it is open.
struct OpenConnection(Arc<CallFigures>, Transport);

impl OpenConnection {
    fn begin(figures: Arc<CallFigures>, transport: Transport) -> Self {
        figures.opened(transport);
        Self(figures, transport)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.closed(self.1);
    }
}

/// Serves HTTP/2 on `stream`; once draining begins it takes no new call and ends after the last one
/// in flight.
async fn serve_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    entrance: Arc<Entrance>,
) {
    let identification = Identification::new(Arc::clone(&entrance.callers), peer);
    let mut draining = entrance.readiness.clone();
    let limits = entrance.limits.clone();
    let calls = Calls::default();
    let in_flight = calls.clone();
    let service = service_fn(move |request| {
        let identification = Arc::clone(&identification);
        let mut begun = in_flight.begin(Arc::clone(&entrance), &request);
        async move {
            let response = call(&begun, &identification, request).await;
            begun.answers(&response);
            Ok::<_, Infallible>(response.map(|body| CountedBody { body, call: begun }))
        }
    });
    let executor = InConnection::default();
    let serving = http2::Builder::new(executor.clone())
        .timer(TokioTimer::new())
        // Nothing of gRPC looks at it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = executor.with_calls(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = draining.draining() => {
            Pin::new(serving.connection()).graceful_shutdown();
            tokio::select! {
                ended = serving => ended,
                // hyper would also wait for a caller that never answers its last ping.
                () = calls.over() => return,
            }
        }
    };
    if let Err(error) = ended {
        // A caller that goes away or speaks no HTTP/2 is its own affair.
        tracing::debug!(%error, "connection ended");
    }
}

/// Counts the calls in flight on one connection, their answers included until they are written.
#[derive(Clone, Debug, Default)]
struct Calls(Arc<AtomicUsize>);

/// One call in flight, from its headers to the end of its answer.
struct CallInFlight {
    of: Calls,
    entrance: Arc<Entrance>,
    method: Method,
    /// When its headers came; `None` when calls are not counted.
    begun: Option<Instant>,
    /// What it has been answered so far: nothing, for a caller that leaves before.
    code: Code,
    /// Its span, if it is traced.
    span: Option<Arc<CallSpan>>,
}

impl Calls {
    fn begin<T>(&self, entrance: Arc<Entrance>, request: &http::Request<T>) -> CallInFlight {
        self.0.fetch_add(1, Ordering::Relaxed);
        let method = Method::at(request.uri().path());
        CallInFlight {
            of: self.clone(),
            method,
            span: entrance.doors.span(method, request.headers()),
            begun: entrance.doors.figures.is_some().then(Instant::now),
            entrance,
            code: Code::Cancelled,
        }
    }

    /// Returns when no call was in flight at two looks in a row. Between them, what was written
    /// last finds its way out.
    async fn over(&self) {
        const PAUSE: Duration = Duration::from_millis(250);
        let mut quiet = 0;
        while quiet < 2 {
            tokio::time::sleep(PAUSE).await;
            quiet = if self.0.load(Ordering::Relaxed) == 0 {
                quiet + 1
            } else {
                0
            };
        }
    }
}

impl CallInFlight {
    /// Notes the status that stands in an answer's head, where an answer without a message has it.
    fn answers(&mut self, response: &http::Response<AnswerBody>) {
        match response.body() {
            AnswerBody::Encoded(_) | AnswerBody::StatusOk => {}
            AnswerBody::Tonic(_) => self.ends_with(response.headers()),
            // No call of gRPC; a caller of gRPC would take it for this.
            AnswerBody::Ended => self.code = Code::Unknown,
        }
    }

    /// Notes the status that stands in an answer's trailers.
    fn ends_with(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.of.0.fetch_sub(1, Ordering::Relaxed);
        if let (Some(begun), Some(figures)) = (self.begun, &self.entrance.doors.figures) {
            figures.called(self.method, self.code, begun.elapsed());
        }
        if let Some(span) = &self.span {
            span.end(figures::ended(self.method, self.code));
        }
    }
}

/// The body of an answer, which keeps its call in flight.
struct CountedBody {
    body: AnswerBody,
    call: CallInFlight,
}

impl hyper::body::Body for CountedBody {
    type Data = <AnswerBody as hyper::body::Body>::Data;
    type Error = <AnswerBody as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let me = &mut *self;
        if let AnswerBody::StatusOk = me.body {
            me.call.code = Code::Ok;
        }
        let polled = Pin::new(&mut me.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let AnswerBody::Tonic(_) = me.body
            && let Some(trailers) = frame.trailers_ref()
        {
            me.call.ends_with(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One call: its deadline kept, its status in the contract's words.
async fn call(
    begun: &CallInFlight,
    identification: &Arc<Identification>,
    request: http::Request<Incoming>,
) -> http::Response<AnswerBody> {
    let (doors, method) = (&begun.entrance.doors, begun.method);
    if !is_grpc(&request) {
        let mut refused = http::Response::new(AnswerBody::Ended);
        *refused.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return refused;
    }
    let caller = match identification.admit(request.headers()) {
        Ok(caller) => caller,
        // A prober has nothing to show, and is told nothing but whether to come back.
        Err(_unknown) if method.is_open_to_all() => Admitted::default(),
        Err(unknown) => return refused(unknown),
    };
    let call = Call {
        caller,
        deadline: Deadline::begin(request.headers()),
        trace_id: match doors.engine.is_logged() {
            true => TraceId::of(begun.span.as_deref(), request.headers()),
            false => None,
        },
        span: begun.span.clone(),
    };
    match call.deadline.at() {
        None => doors.call(method, request, &call).await,
        Some(at) => match tokio::time::timeout_at(at, doors.call(method, request, &call)).await {
            Ok(response) => response,
            Err(_elapsed) => refused(Rejection::DeadlinePassed),
        },
    }
}

/// The whole answer to a call that gets none.
pub(super) fn refused(rejection: Rejection) -> http::Response<AnswerBody> {
    Status::from(rejection).into_http().map(AnswerBody::Tonic)
}

/// Whether the call is one of gRPC, whose protocol asks for 415 otherwise.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn is_grpc(request: &http::Request<Incoming>) -> bool {
    let kind = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    request.method() == http::Method::POST
        && kind
            .and_then(|kind| kind.strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
