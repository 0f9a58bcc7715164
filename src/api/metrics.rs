//! What the router count: connections, calls by method and status, and requests that were refused.

use std::time::Duration;

use tonic::Code;

use crate::api::auth::caller::Right;
use crate::counters::{Counters, Distribution, Histogram};
use crate::engine::metrics::{DURATION_BOUNDS, nanoseconds};
use crate::telemetry::traces::CallOutcome;

/// Declares an enum of which every value has a text: a closed set of values for a label.
macro_rules! label {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As it is written in a label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

label! {
    /// A method that callers may call.
    Method {
        /// Decides one request.
        Authorize = "pdp.v1.AuthorizationService/Authorize",
        /// Decides many.
        BatchAuthorize = "pdp.v1.AuthorizationService/BatchAuthorize",
        /// Decides as they come.
        StreamAuthorize = "pdp.v1.AuthorizationService/StreamAuthorize",
        /// Tells what is in force.
        GetStatus = "pdp.v1.PolicyStoreService/GetStatus",
        /// Tells it again at each change.
        WatchStatus = "pdp.v1.PolicyStoreService/WatchStatus",
        /// Lists the policies in force.
        ListPolicies = "pdp.v1.PolicyStoreService/ListPolicies",
        /// Rereads the directory.
        Reload = "pdp.v1.PolicyStoreService/Reload",
        /// Tells whether calls are welcome.
        HealthCheck = "grpc.health.v1.Health/Check",
        /// Tells it again at each change.
        HealthWatch = "grpc.health.v1.Health/Watch",
        /// Describes the services.
        Reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        /// Describes them to older callers.
        OldReflection = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        /// Any other, which is not implemented.
        Other = "other",
    }
}

impl Method {
    /// The method that is called at this path.
    pub(crate) fn at(path: &str) -> Self {
        let Some(called) = path.strip_prefix('/') else {
            return Self::Other;
        };
        // The first is the one that nearly all calls are for.
        let known = Self::ALL.iter().find(|method| method.label() == called);
        known.copied().unwrap_or(Self::Other)
    }

    /// What a caller must have the right to.
    pub(crate) const fn right(self) -> Option<Right> {
        match self {
            Self::Authorize | Self::BatchAuthorize | Self::StreamAuthorize => {
                Some(Right::Authorize)
            }
            Self::GetStatus | Self::WatchStatus | Self::ListPolicies => Some(Right::Store),
            Self::Reload => Some(Right::Administer),
            Self::HealthCheck
            | Self::HealthWatch
            | Self::Reflection
            | Self::OldReflection
            | Self::Other => None,
        }
    }

    /// Whether nobody is asked who they are. Watching lasts, and what lasts is not for everybody.
    pub(crate) const fn is_open_to_all(self) -> bool {
        matches!(self, Self::HealthCheck)
    }

    /// Whether calls to it are traced: not those that ask whether the service lives, every few
    /// seconds and for no one's sake.
    pub(crate) const fn is_traced(self) -> bool {
        match self {
            Self::HealthCheck | Self::HealthWatch => false,
            Self::Authorize
            | Self::BatchAuthorize
            | Self::StreamAuthorize
            | Self::GetStatus
            | Self::WatchStatus
            | Self::ListPolicies
            | Self::Reload
            | Self::Reflection
            | Self::OldReflection
            | Self::Other => true,
        }
    }

    /// Whether a call to it is over when it is answered; a stream or watch lasts as long as its
    /// caller likes.
    #[must_use]
    pub const fn is_unary(self) -> bool {
        match self {
            Self::Authorize
            | Self::BatchAuthorize
            | Self::GetStatus
            | Self::ListPolicies
            | Self::Reload
            | Self::HealthCheck
            | Self::Other => true,
            Self::StreamAuthorize
            | Self::WatchStatus
            | Self::HealthWatch
            | Self::Reflection
            | Self::OldReflection => false,
        }
    }
}

label! {
    /// The classes of rejected requests.
    RejectionLabel {
        /// The request is malformed or does not fit the schema.
        Invalid = "invalid",
        /// The request holds more items than allowed.
        TooManyItems = "too_many",
        /// More policies match than may be evaluated.
        TooManyPolicies = "too_many_policies",
        /// The policies look up more entities than allowed.
        TooManyEntities = "too_many_entities",
        /// The principal's token is invalid.
        Token = "token",
        /// The caller is unknown, or may not send the request.
        Caller = "caller",
        /// Nothing has been loaded yet.
        NothingLoaded = "nothing_loaded",
        /// The deadline passed.
        DeadlineExceeded = "deadline_passed",
        /// The call was shed, because calls wait too long.
        Overloaded = "overloaded",
        /// Too many calls were waiting.
        TooManyCalls = "too_many_calls",
        /// The memory budget of buffered requests and responses was spent.
        BuffersFull = "too_much_pending",
        /// The service is shutting down.
        ShuttingDown = "shutting_down",
    }
}

label! {
    /// Why a connection was closed by the service.
    Closing {
        /// There were too many.
        TooMany = "too_many",
        /// It did not come to its first call: no TLS, no certificate, no HTTP/2, or gone.
        Handshake = "handshake",
        /// It took too long to come to its first call.
        HandshakeTimeout = "handshake_timeout",
        /// Nobody called on it.
        Idle = "idle",
        /// It was too old.
        Age = "age",
        /// Its caller did not read a long answer.
        UnreadAnswer = "unread",
    }
}

label! {
    /// What a connection runs over.
    Transport {
        /// TCP.
        Tcp = "tcp",
        /// A Unix socket.
        Unix = "unix",
    }
}

/// The statuses of gRPC, as their numbers.
const CODES: usize = 17;
const METHODS: usize = Method::ALL.len();

/// What the router have seen since the start of the process.
#[derive(Debug)]
pub struct CallFigures {
    calls: Counters<{ METHODS * CODES }>,
    durations: Vec<Histogram>,
    rejections: Counters<{ RejectionLabel::ALL.len() }>,
    opened: Counters<{ Transport::ALL.len() }>,
    closed: Counters<{ Transport::ALL.len() }>,
    closings: Counters<{ Closing::ALL.len() }>,
}

impl Default for CallFigures {
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

impl CallFigures {
    /// Counts a call that is over.
    pub(crate) fn called(&self, method: Method, code: Code, took: Duration) {
        self.calls.add_one(method as usize * CODES + code as usize);
        if method.is_unary()
            && let Some(durations) = self.durations.get(method as usize)
        {
            durations.observe(nanoseconds(took));
        }
    }

    /// Counts a request, or an item of a batch or stream, that was not decided.
    pub(crate) fn rejected(&self, label: RejectionLabel) {
        self.rejections.add_one(label as usize);
    }

    /// Counts a connection.
    pub(crate) fn opened(&self, transport: Transport) {
        self.opened.add_one(transport as usize);
    }

    /// Counts the end of a connection.
    pub(crate) fn closed(&self, transport: Transport) {
        self.closed.add_one(transport as usize);
    }

    /// Counts a connection that the service closes.
    pub(crate) fn closes(&self, closing: Closing) {
        self.closings.add_one(closing as usize);
    }

    /// How often calls ended so: every status that there was, and OK.
    pub fn calls(&self) -> impl Iterator<Item = (Method, &'static str, u64)> {
        let codes =
            (0..CODES).flat_map(|code| Method::ALL.iter().map(move |method| (code, *method)));
        codes.filter_map(|(code, method)| {
            let count = self.calls.sum(method as usize * CODES + code);
            (count > 0 || code == Code::Ok as usize).then(|| (method, code_label(code), count))
        })
    }

    /// How long unary calls took, in nanoseconds, up to the end of their answer.
    pub fn durations(&self) -> impl Iterator<Item = (Method, Distribution)> {
        let all = Method::ALL.iter().zip(&self.durations);
        all.filter(|(method, _)| method.is_unary())
            .map(|(method, durations)| (*method, durations.distribution()))
    }

    /// Returns how many requests were rejected under this label.
    #[must_use]
    pub fn rejections(&self, label: RejectionLabel) -> u64 {
        self.rejections.sum(label as usize)
    }

    /// How many connections the service closed for this.
    #[must_use]
    pub fn closings(&self, closing: Closing) -> u64 {
        self.closings.sum(closing as usize)
    }

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self, transport: Transport) -> u64 {
        self.opened.sum(transport as usize)
    }

    /// How many connections there are.
    #[must_use]
    pub fn open_connections(&self, transport: Transport) -> u64 {
        // First those that ended: each of them was opened before.
        let closed = self.closed.sum(transport as usize);
        self.connections(transport).saturating_sub(closed)
    }
}

/// How a call ended, for its span.
pub(crate) fn ended(method: Method, code: Code) -> CallOutcome {
    CallOutcome {
        method: match method {
            Method::Other => "_OTHER",
            Method::Authorize
            | Method::BatchAuthorize
            | Method::StreamAuthorize
            | Method::GetStatus
            | Method::WatchStatus
            | Method::ListPolicies
            | Method::Reload
            | Method::HealthCheck
            | Method::HealthWatch
            | Method::Reflection
            | Method::OldReflection => method.label(),
        },
        code: code_label(code as usize),
        is_server_error: match code {
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => true,
            // The caller's doing, or its affair.
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unauthenticated => false,
        },
    }
}

/// The name of a status, by its number.
fn code_label(code: usize) -> &'static str {
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
    fn a_path_is_known_as_its_method_and_any_other_is_other() {
        for method in Method::ALL {
            let path = format!("/{}", method.label());
            assert_eq!(Method::at(&path), *method);
        }
        for path in ["", "/", "other", "/pdp.v1.AuthorizationService/authorize"] {
            assert_eq!(Method::at(path), Method::Other, "{path}");
        }
    }

    #[test]
    fn a_call_is_counted_under_its_method_and_status() {
        let figures = CallFigures::default();
        figures.called(Method::Authorize, Code::Ok, Duration::from_micros(20));
        figures.called(Method::Other, Code::Unauthenticated, Duration::ZERO);
        figures.called(Method::WatchStatus, Code::Cancelled, Duration::ZERO);
        let calls: Vec<_> = figures.calls().filter(|(.., count)| *count > 0).collect();
        assert_eq!(
            calls,
            [
                (Method::Authorize, "OK", 1),
                (Method::WatchStatus, "CANCELLED", 1),
                (Method::Other, "UNAUTHENTICATED", 1),
            ]
        );
        let durations: Vec<_> = figures
            .durations()
            .filter(|(_, all)| all.count() > 0)
            .collect();
        let methods: Vec<_> = durations.iter().map(|(method, _)| *method).collect();
        assert_eq!(methods, [Method::Authorize, Method::Other]);
    }
}
