//! Serves HTTP/2 connections: accepts, hands calls to the doors, and winds down when told.
//!
//! We drive hyper's connections ourselves instead of through tonic's server. What the contract
//! says of deadlines and sizes differs from tonic's words, and the place to say so is around the
//! call; and a call that is one match away from its service is a cheaper call.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tonic::{Code, Status};

use super::admission::{Admission, Moment, Place, RETRY_AFTER, Shed};
use super::answer::{AnswerBody, FRAME_BYTES};
use super::call::{Call, TraceId};
use super::callers::{Admitted, Callers, CertificateNames, Identification, Peer, Right};
use super::connection::InConnection;
use super::deadline::Deadline;
use super::figures::{self, CallFigures, Closing, Method, Transport};
use super::greeting::{self, Opened};
use super::lifetime::{Calls, InFlight, Over, Unread};
use super::linger::Lingering;
use super::listen::{Connection, Listener};
use super::pending::HeldBytes;
use super::status::Rejection;
use super::tls::Tls;
use super::{Doors, by_contract};
use crate::config::api::ConnectionLimits;
use crate::readiness::ReadinessReader;
use crate::telemetry::traces::CallSpan;

/// How many calls of a connection we may have had to reset for its caller's faults.
const MAX_ERROR_RESETS: usize = 1_024;

/// How much of a request is read that is refused whatever it holds.
const MOST_PASSED_OVER_BYTES: usize = 64 << 10;

/// The most bytes of an answer that wait for a caller who does not read it; the rest is not made
/// before it does.
const SEND_BUFFER_BYTES: usize = 16 << 10;

/// What every connection comes through.
pub(super) struct Entrance {
    pub(super) doors: Doors,
    /// What is spoken on TCP; `None` is no TLS.
    pub(super) tls: Option<Arc<Tls>>,
    /// Who may call.
    pub(super) callers: Arc<Callers>,
    pub(super) limits: ConnectionLimits,
    /// Whether a call is begun.
    pub(super) admission: Arc<Admission>,
    /// One for each connection.
    pub(super) seats: Arc<Semaphore>,
    pub(super) readiness: ReadinessReader,
}

/// How long the accept loop rests when the system has no descriptor left to give: long enough
/// not to spin, short enough that a caller's connect does not time out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that comes as the service goes may take to say what it wants: told then
/// that it is late, its caller knows that nothing was begun.
const LATE_GREETING: Duration = Duration::from_millis(250);

/// Held by every connection; when all are dropped, the last connection is gone.
pub(super) type Alive = mpsc::Sender<Infallible>;

/// Accepts on `listener` until draining begins.
pub(super) async fn accept_loop(listener: Listener, entrance: Arc<Entrance>, alive: Alive) {
    let mut draining = entrance.readiness.clone();
    let mut is_failing = false;
    let mut is_full = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.draining() => match listener.accept().now_or_never() {
                // They have connected; closed with the listener, they would be reset.
                Some(accepted) => accepted,
                None => return,
            },
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                is_failing = false;
                // Closed at once, which its caller notices: left unaccepted, it would wait.
                let Ok(seat) = Arc::clone(&entrance.seats).try_acquire_owned() else {
                    if !is_full {
                        tracing::warn!(
                            most = entrance.limits.max_connections,
                            "no connection is left for others: new ones are closed",
                        );
                    }
                    is_full = true;
                    entrance.closes(Closing::TooMany);
                    continue;
                };
                is_full = false;
                let stay = (alive.clone(), seat);
                tokio::spawn(connection(accepted, Arc::clone(&entrance), stay));
            }
            // The caller left between its connect and our accept; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Once for each time of trouble: it is met anew at every attempt.
                if draining.is_draining() {
                    return;
                }
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
async fn connection(
    accepted: Connection,
    entrance: Arc<Entrance>,
    _stay: (Alive, OwnedSemaphorePermit),
) {
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
        () = async {
            draining.draining().await;
            tokio::time::sleep(LATE_GREETING).await;
        } => return,
    };
    match greeted {
        Ok(Ok((Greeted::Tcp(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Ok((Greeted::Unix(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Ok((Greeted::Tls(stream), peer))) => serve_http2(stream, peer, entrance).await,
        Ok(Err(error)) => {
            entrance.closes(Closing::Handshake);
            tracing::debug!(%error, "connection ended before its first call");
        }
        Err(_elapsed) => {
            entrance.closes(Closing::HandshakeTimeout);
            tracing::debug!("connection closed: it never said what it wants");
        }
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
    let executor = InConnection::new(
        Arc::clone(&entrance.admission),
        limits.max_concurrent_streams,
    );
    let ready = executor.ready();
    let of_calls = Arc::clone(&entrance);
    let service = service_fn(move |request| {
        let identification = Arc::clone(&identification);
        let arrived = ready.load().unwrap_or_else(Moment::now);
        let mut begun = CallInFlight::begin(&in_flight, Arc::clone(&of_calls), &request);
        async move {
            let mut response = call(&mut begun, &identification, arrived, request).await;
            begun.answers(&mut response);
            Ok::<_, Infallible>(response.map(|body| CountedBody { body, call: begun }))
        }
    });
    let serving = http2::Builder::new(executor.clone())
        .timer(TokioTimer::new())
        // Nothing of gRPC looks at it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_header_bytes)
        // A caller whose deadlines pass while we are busy resets all that it has open, and is none
        // that attacks; one that resets more than it may have open before we have looked does
        // (Rapid Reset).
        .max_pending_accept_reset_streams(limits.max_concurrent_streams as usize)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .serve_connection(TokioIo::new(Lingering::new(stream)), service);
    let mut serving = executor.with_calls(serving);
    let over = tokio::select! {
        ended = &mut serving => return told(ended),
        () = draining.draining() => None,
        over = limits.lifetime.over(&calls) => Some(over),
    };
    Pin::new(serving.connection()).graceful_shutdown();
    if let Some(over) = over {
        entrance.closes(match over {
            Over::Age => Closing::Age,
            Over::Idle => Closing::Idle,
            Over::Unread => Closing::Unread,
        });
        tokio::select! {
            ended = &mut serving => return told(ended),
            () = tokio::time::sleep(limits.lifetime.age_grace) => return,
            () = draining.draining() => {}
        }
    }
    tokio::select! {
        ended = serving => told(ended),
        // hyper would also wait for a caller that never answers its last ping.
        () = calls.over() => {}
    }
}

/// Tells how a connection ended.
fn told(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        // A caller that goes away or speaks no HTTP/2 is its own affair.
        tracing::debug!(%error, "connection ended");
    }
}

/// One call in flight, from its headers to the end of its answer.
struct CallInFlight {
    counted: InFlight,
    /// Held by one that is not answered at once.
    place: Option<Place>,
    /// Its answer, if that is long.
    answer_held: Option<(Arc<HeldBytes>, Unread)>,
    entrance: Arc<Entrance>,
    method: Method,
    /// When its headers came.
    begun: Instant,
    /// What it has been answered so far: nothing, for a caller that leaves before.
    code: Code,
    /// Its span, if it is traced.
    span: Option<Arc<CallSpan>>,
}

impl CallInFlight {
    fn begin<T>(calls: &Calls, entrance: Arc<Entrance>, request: &http::Request<T>) -> Self {
        let method = Method::at(request.uri().path());
        Self {
            counted: calls.begin(),
            place: None,
            answer_held: None,
            method,
            span: entrance.doors.span(method, request.headers()),
            begun: Instant::now(),
            entrance,
            code: Code::Cancelled,
        }
    }

    /// Notes the status that stands in an answer's head, where an answer without a message has it, and
    /// keeps a long answer on the account until it is written.
    fn answers(&mut self, response: &mut http::Response<AnswerBody>) {
        if let AnswerBody::Encoded(bytes) = response.body()
            && bytes.len() > FRAME_BYTES
        {
            match self.entrance.doors.pending.hold(bytes.len()) {
                Ok(held) => self.holds(Arc::new(held)),
                Err(rejection) => *response = self.entrance.doors.refuse(rejection),
            }
        }
        match response.body() {
            AnswerBody::Encoded(_) | AnswerBody::StatusOk => {}
            AnswerBody::Tonic(_) => {
                self.ends_with(response.headers());
                if let Some(held) = response.extensions_mut().remove() {
                    self.holds(held);
                }
            }
            AnswerBody::Ended => {
                // No call of gRPC; a caller of gRPC would take it for this.
                self.code = Code::Unknown;
                self.ends_with(response.headers());
            }
        }
    }

    fn holds(&mut self, answer: Arc<HeldBytes>) {
        self.answer_held = Some((answer, self.counted.calls().begin_unread()));
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
        if let Some(figures) = &self.entrance.doors.figures {
            figures.called(self.method, self.code, self.begun.elapsed());
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
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn has room for its arguments twice"
)]
fn call<'a>(
    begun: &'a mut CallInFlight,
    identification: &'a Arc<Identification>,
    arrived: Moment,
    request: http::Request<Incoming>,
) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
    async move {
        if !is_grpc(&request) {
            let mut refused = http::Response::new(AnswerBody::Ended);
            *refused.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return refused;
        }
        let CallInFlight {
            entrance,
            method,
            place,
            span,
            begun: came,
            ..
        } = begun;
        let (entrance, method) = (&**entrance, *method);
        let doors = &entrance.doors;
        let budget = match method.is_unary() {
            true => entrance.limits.max_call_time,
            // A stream or watch lasts as long as its caller likes.
            false => None,
        };
        let deadline = Deadline::begin(request.headers(), *came, budget);
        // Before anything is spent on it: a call that is shed should cost next to nothing.
        if method.right() == Some(Right::Authorize)
            && let Err(shed) = entrance.admission.begin(arrived, Moment::now())
        {
            pass_over(method, request.into_body(), deadline).await;
            return entrance.sheds(shed);
        }
        let caller = match identification.admit(request.headers()) {
            Ok(caller) => caller,
            // A prober has nothing to show, and is told nothing but whether to come back.
            Err(_unknown) if method.is_open_to_all() => Admitted::default(),
            Err(unknown) => {
                pass_over(method, request.into_body(), deadline).await;
                return doors.refuse(unknown);
            }
        };
        if let Some(right) = method.right()
            && let Err(missing) = caller.check(right)
        {
            pass_over(method, request.into_body(), deadline).await;
            return doors.refuse(missing);
        }
        let call = Call {
            caller,
            deadline,
            trace_id: match doors.engine.is_logged() {
                true => TraceId::of(span.as_deref(), request.headers()),
                false => None,
            },
            span: span.clone(),
        };
        if !method.is_unary() {
            match entrance.admission.place_for_stream() {
                Ok(taken) => *place = Some(taken),
                Err(shed) => return entrance.sheds(shed),
            }
        }
        let mut answering = pin!(doors.call(method, request, &call));
        let mut timer = None;
        poll_fn(|context| {
            if let Poll::Ready(response) = answering.as_mut().poll(context) {
                return Poll::Ready(by_contract(response));
            }
            // Most are answered at once, and are spared a place and a timer; of health everyone is told.
            if place.is_none() && method != Method::HealthCheck {
                match entrance.admission.place() {
                    Ok(taken) => *place = Some(taken),
                    Err(shed) => return Poll::Ready(entrance.sheds(shed)),
                }
            }
            let Some(at) = call.deadline.at() else {
                return Poll::Pending;
            };
            let passed = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            match passed.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(doors.refuse(Rejection::DeadlinePassed)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// Reads a request that is refused in any case, which costs little, as it is small.
///
/// Refused unread, the call would have to be reset, and so would every frame of it that is still
/// on its way; of a caller for whom much is reset, HTTP/2 must think that it attacks.
async fn pass_over(method: Method, mut body: Incoming, deadline: Deadline) {
    let reading = async {
        let mut left = MOST_PASSED_OVER_BYTES;
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // What a stream brings has no end to wait for.
    if method.is_unary() {
        tokio::select! {
            biased;
            () = reading => {}
            () = deadline.passed() => {}
        }
    }
}

impl Entrance {
    /// The answer to a call that is shed: made once, for it is given when there is no time.
    fn sheds(&self, shed: Shed) -> http::Response<AnswerBody> {
        static OVERLOADED: LazyLock<http::HeaderMap> =
            LazyLock::new(|| head(Rejection::Overloaded));
        static TOO_MANY: LazyLock<http::HeaderMap> =
            LazyLock::new(|| head(Rejection::TooManyCalls));
        let (rejection, head) = match shed {
            Shed::Overloaded => (Rejection::Overloaded, &*OVERLOADED),
            Shed::TooManyCalls => (Rejection::TooManyCalls, &*TOO_MANY),
        };
        self.doors.count(&rejection);
        let mut response = http::Response::new(AnswerBody::Ended);
        *response.headers_mut() = head.clone();
        response
    }

    /// Counts a connection that we close.
    fn closes(&self, closing: Closing) {
        if let Some(figures) = &self.doors.figures {
            figures.closes(closing);
        }
    }
}

/// The head of an answer that is nothing but a refusal to be sent again later.
fn head(rejection: Rejection) -> http::HeaderMap {
    let mut headers = refused(rejection).headers().clone();
    // What clients with a retry policy read, says gRPC (proposal A6).
    let pause = u64::try_from(RETRY_AFTER.as_millis()).unwrap_or(u64::MAX);
    headers.insert("grpc-retry-pushback-ms", pause.into());
    headers
}

/// The whole answer to a call that gets none.
pub(super) fn refused(rejection: Rejection) -> http::Response<AnswerBody> {
    Status::from(rejection).into_http().map(AnswerBody::tonic)
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
