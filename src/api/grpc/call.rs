//! One gRPC call, from its headers to the end of its response.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use prost::bytes::Bytes;
use tonic::{Code, Status};

use super::dispatch::Router;
use super::status::{map_out_of_range_header, rejected, retry_later};
use super::wire::body::{AnswerBody, FRAME_BYTES};

use crate::api::auth::authenticator::{AuthenticatedCaller, ConnectionAuthenticator};
use crate::api::auth::caller::Right;
use crate::api::decision::admission::{Admission, CallSlot, MonotonicNanos};
use crate::api::decision::call::{Call, TraceId};
use crate::api::decision::deadline::Deadline;
use crate::api::decision::memory::MemoryReservation;
use crate::api::decision::rejection::Rejection;
use crate::api::metrics::{self, Method};
use crate::api::transport::http2::{Arrival, Service};
use crate::api::transport::lifetime::{InFlight, UnreadAnswer};
use crate::telemetry::traces::CallSpan;

/// Most bytes drained from a rejected request's body.
const MAX_DRAINED_BYTES: usize = 64 << 10;

/// The gRPC services, as a connection calls them.
pub(crate) struct GrpcService {
    pub(crate) router: Router,
    pub(crate) admission: Arc<Admission>,
    /// Time limit of a unary call; `None` leaves it to the caller's deadline.
    pub(crate) max_call_time: Option<Duration>,
}

impl Service for GrpcService {
    type Body = CountedBody;

    fn call(
        self: Arc<Self>,
        arrival: Arrival,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<CountedBody>, Infallible>> + Send + 'static
    {
        let Arrival {
            caller,
            in_flight,
            at,
        } = arrival;
        let mut call = CallInFlight::begin(self, in_flight, &request);
        async move {
            let mut response = respond(&mut call, &caller, at, request).await;
            call.record_response(&mut response);
            Ok(response.map(|body| CountedBody { body, call }))
        }
    }
}

/// A call in flight. Dropping it counts the call and ends its span.
struct CallInFlight {
    in_flight: InFlight,
    /// The slot of a stream, or of a call that is not answered at once.
    slot: Option<CallSlot>,
    /// The reservation for a long response.
    response_reserved: Option<(Arc<MemoryReservation>, UnreadAnswer)>,
    service: Arc<GrpcService>,
    method: Method,
    /// When the headers arrived.
    begun: Instant,
    /// The status so far: CANCELLED until there is a response, because the caller may cancel.
    code: Code,
    /// The span of a traced call.
    span: Option<Arc<CallSpan>>,
}

impl CallInFlight {
    fn begin<T>(
        service: Arc<GrpcService>,
        in_flight: InFlight,
        request: &http::Request<T>,
    ) -> Self {
        let method = Method::from_path(request.uri().path());
        Self {
            in_flight,
            slot: None,
            response_reserved: None,
            method,
            span: service.router.span(method, request.headers()),
            begun: Instant::now(),
            service,
            code: Code::Cancelled,
        }
    }

    /// Records the status of a trailers-only response, and charges a long response to the memory
    /// budget until it is sent.
    fn record_response(&mut self, response: &mut http::Response<AnswerBody>) {
        if let AnswerBody::Encoded(bytes) = response.body()
            && bytes.len() > FRAME_BYTES
        {
            let decider = self.service.router.decider();
            match decider.memory.reserve(bytes.len()) {
                Ok(reserved) => self.reserve_response(Arc::new(reserved)),
                Err(rejection) => {
                    decider.count(&rejection);
                    *response = rejected(rejection);
                }
            }
        }
        match response.body() {
            AnswerBody::Encoded(_) | AnswerBody::StatusOk => {}
            AnswerBody::Tonic(_) => {
                self.record_status(response.headers());
                if let Some(reserved) = response.extensions_mut().remove() {
                    self.reserve_response(reserved);
                }
            }
            AnswerBody::Ended => {
                // Not a gRPC call. A gRPC client maps the HTTP status to this.
                self.code = Code::Unknown;
                self.record_status(response.headers());
            }
        }
    }

    fn reserve_response(&mut self, reserved: Arc<MemoryReservation>) {
        self.response_reserved = Some((reserved, self.in_flight.calls().begin_unread()));
    }

    /// Records the status in headers or trailers.
    fn record_status(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        if let Some(metrics) = &self.service.router.decider().metrics {
            metrics.count_call(self.method, self.code, self.begun.elapsed());
        }
        if let Some(span) = &self.span {
            span.end(metrics::call_outcome(self.method, self.code));
        }
    }
}

/// A response body that keeps its call in flight.
pub(crate) struct CountedBody {
    body: AnswerBody,
    call: CallInFlight,
}

impl hyper::body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if let AnswerBody::StatusOk = this.body {
            this.call.code = Code::Ok;
        }
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let AnswerBody::Tonic(_) = this.body
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.record_status(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Responds to a call: admits it, calls its service, and enforces its deadline.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn has room for its arguments twice"
)]
fn respond<'a>(
    in_flight: &'a mut CallInFlight,
    caller: &'a Arc<ConnectionAuthenticator>,
    arrived: MonotonicNanos,
    request: http::Request<Incoming>,
) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
    async move {
        if !is_grpc(&request) {
            let mut response = http::Response::new(AnswerBody::Ended);
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let CallInFlight {
            service,
            method,
            slot,
            span,
            begun,
            ..
        } = in_flight;
        let (service, method) = (&**service, *method);
        // Streams and watches have no time limit.
        let max_time = service.max_call_time.filter(|_| method.is_unary());
        let deadline = Deadline::new(request.headers(), *begun, max_time);
        let caller = match service.admit(method, caller, arrived, request.headers()) {
            Ok(caller) => caller,
            Err(rejection) => {
                drain(method, request.into_body(), deadline).await;
                return service.reject(rejection);
            }
        };
        let call = Call {
            caller,
            deadline,
            trace_id: match service.router.decider().engine.is_logged() {
                true => TraceId::from_headers(span.as_deref(), request.headers()),
                false => None,
            },
            span: span.clone(),
        };
        if !method.is_unary() {
            match service.admission.stream_slot() {
                Ok(acquired) => *slot = Some(acquired),
                Err(rejection) => return service.reject(rejection),
            }
        }
        let mut answering = pin!(service.router.call(method, request, &call));
        let mut timer = None;
        poll_fn(|context| {
            if let Poll::Ready(response) = answering.as_mut().poll(context) {
                return Poll::Ready(map_out_of_range_header(response));
            }
            // Only a call that is not answered at once needs a slot and a timer. A health check
            // needs no slot: it is answered even under overload.
            if slot.is_none() && method != Method::HealthCheck {
                match service.admission.slot() {
                    Ok(acquired) => *slot = Some(acquired),
                    Err(rejection) => return Poll::Ready(service.reject(rejection)),
                }
            }
            let Some(at) = call.deadline.at() else {
                return Poll::Pending;
            };
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            match timer.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(service.reject(Rejection::DeadlineExceeded)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

impl GrpcService {
    /// Admits a call: sheds it under overload, authenticates its caller, and checks its right.
    fn admit(
        &self,
        method: Method,
        caller: &Arc<ConnectionAuthenticator>,
        arrived: MonotonicNanos,
        headers: &http::HeaderMap,
    ) -> Result<AuthenticatedCaller, Rejection> {
        // First of all: a call that is shed should cost next to nothing.
        if method.required_right() == Some(Right::Authorize) {
            self.admission.admit(arrived, MonotonicNanos::now())?;
        }
        let caller = match caller.authenticate(headers) {
            Ok(caller) => caller,
            // A prober has no credentials, and learns only whether the service is up.
            Err(_unknown) if method.is_open_to_all() => AuthenticatedCaller::default(),
            Err(unknown) => return Err(unknown.into()),
        };
        if let Some(right) = method.required_right() {
            caller.check(right)?;
        }
        Ok(caller)
    }

    /// Counts a rejected call, and returns its whole response.
    fn reject(&self, rejection: Rejection) -> http::Response<AnswerBody> {
        // Encoded once, because these are sent under overload.
        static QUEUE_DELAY: LazyLock<http::HeaderMap> =
            LazyLock::new(|| retry_later(Rejection::Overloaded));
        static TOO_MANY_CALLS: LazyLock<http::HeaderMap> =
            LazyLock::new(|| retry_later(Rejection::TooManyCalls));
        self.router.decider().count(&rejection);
        let headers = if rejection == Rejection::Overloaded {
            &*QUEUE_DELAY
        } else if rejection == Rejection::TooManyCalls {
            &*TOO_MANY_CALLS
        } else {
            return rejected(rejection);
        };
        let mut response = http::Response::new(AnswerBody::Ended);
        *response.headers_mut() = headers.clone();
        response
    }
}

/// Drains the body of a rejected request, if it is small.
///
/// If the body were left unread, the call and each of its later frames would be reset. HTTP/2
/// treats a caller with many resets as an attacker.
async fn drain(method: Method, mut body: Incoming, deadline: Deadline) {
    let reading = async {
        let mut left = MAX_DRAINED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // The body of a stream may have no end.
    if method.is_unary() {
        tokio::select! {
            biased;
            () = reading => {}
            () = deadline.passed() => {}
        }
    }
}

/// Returns whether the request is gRPC. The protocol requires 415 otherwise.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn is_grpc(request: &http::Request<Incoming>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    let rest = kind.and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    request.method() == http::Method::POST
        && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
