//! Settings of the gRPC API: TLS, callers, services, and limits.

use std::path::PathBuf;
use std::time::Duration;

use crate::pdp::query::Uid;
use crate::watch::WatchSettings;

/// Settings of the gRPC API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// TLS on TCP; `None` is plaintext.
    pub tls: Option<TlsSettings>,
    /// The list of callers; `None` accepts every caller.
    pub callers: Option<PathBuf>,
    /// The optional services.
    pub services: Services,
    /// Allows plaintext on addresses that other machines can reach.
    pub insecure: bool,
    /// File mode of Unix sockets.
    pub unix_socket_mode: u32,
    /// Detection of changes of certificates and of the list of callers.
    pub follow: WatchSettings,
    /// Limits of a call to `AuthorizationService`.
    pub authorization: AuthorizationRules,
    /// Limits of one connection, and of their number.
    pub connection: ConnectionLimits,
    /// Limits of all calls together.
    pub admission: AdmissionLimits,
    /// Largest request message, in bytes.
    pub max_message_bytes: usize,
    /// Most memory for partial and waiting requests and large unread responses, in bytes.
    pub max_pending_bytes: usize,
}

impl ApiSettings {
    /// Returns whether TCP callers need not authenticate.
    #[must_use]
    pub fn accepts_unknown_callers(&self) -> bool {
        let clients = self.tls.as_ref().map(|tls| &tls.clients);
        self.callers.is_none() && !matches!(clients, Some(ClientCertificates::Required(_)))
    }
}

/// Files of the server's certificate, its key and the CA certificates for clients, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The rule for client certificates.
    pub clients: ClientCertificates,
}

/// The rule for client certificates, and the file of the CA certificates that verify them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked for a certificate.
    None,
    /// A certificate that is sent must be valid.
    Optional(PathBuf),
    /// Every client must send a valid certificate.
    Required(PathBuf),
}

/// The optional services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// Server reflection.
    pub reflection: bool,
    /// `PolicyStoreService`.
    pub policy_store: bool,
}

/// Limits of a call to `AuthorizationService`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRules {
    /// Limits of one request.
    pub request: RequestRules,
    /// Most requests in one batch.
    pub max_batch_items: usize,
    /// Explains decisions to callers that request it.
    pub explain: bool,
}

/// Limits of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// Principal of a request that names none; `None` rejects it.
    pub anonymous_principal: Option<Uid>,
    /// Most entities in one request.
    pub max_request_entities: usize,
    /// Most attributes, set members, entities and parents of one request, in total.
    pub max_values: usize,
    /// Deepest nesting of sets and records; a plain value counts as one.
    pub max_value_depth: usize,
}

/// Limits of one connection, and of their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most concurrent calls on one connection.
    pub max_concurrent_streams: u32,
    /// Interval between pings on a silent connection.
    pub keepalive_interval: Duration,
    /// Time limit for the reply to a ping.
    pub keepalive_timeout: Duration,
    /// Time limit for the TLS handshake and HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Most connections.
    pub max_connections: usize,
    /// Limits of a connection's lifetime.
    pub lifetime: LifetimeLimits,
    /// Largest header list, in bytes as HTTP/2 counts them: each header counts 32 bytes more.
    pub max_header_bytes: u32,
    /// Time limit of a unary call; `None` leaves it to the caller's deadline.
    pub max_call_time: Option<Duration>,
}

/// Limits of a connection's lifetime; `None` is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifetimeLimits {
    /// Age, give or take a tenth: connections opened together need not close together.
    pub age: Option<Duration>,
    /// Time for calls to finish after that.
    pub age_grace: Duration,
    /// Time without a call.
    pub idle: Option<Duration>,
    /// Time in which a large response stays unread.
    pub unread: Option<Duration>,
}

/// Limits of all calls together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Target queueing delay; `None` never sheds calls for their delay.
    pub delay: Option<Duration>,
    /// Most concurrent calls that are not answered at once.
    pub calls: usize,
}
