//! Settings of the API: addresses' TLS, callers, services, and limits.

use std::path::PathBuf;

use super::decision::admission::AdmissionLimits;
use super::decision::rules::AuthorizationRules;
use super::transport::limits::ConnectionLimits;
use super::transport::tls::TlsSettings;
use crate::watch::WatchSettings;

/// What callers may send, and how they are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// What is spoken on TCP; `None` is no TLS.
    pub tls: Option<TlsSettings>,
    /// The list of those who may call; `None` is whoever can connect.
    pub callers: Option<PathBuf>,
    /// What is served beside decisions and health.
    pub services: Services,
    /// Whether callers from beyond this machine may be served without TLS.
    pub insecure: bool,
    /// The mode of Unix sockets' files.
    pub unix_socket_mode: u32,
    /// How the files that router are set by are followed.
    pub follow: WatchSettings,
    /// What a call to `AuthorizationService` may hold.
    pub authorization: AuthorizationRules,
    /// What a connection may do.
    pub connection: ConnectionLimits,
    /// What all of them may do together.
    pub admission: AdmissionLimits,
    /// The largest message that is taken, in bytes.
    pub max_message_bytes: usize,
    /// The most that is held of messages that come or wait, and of long answers that are not read,
    /// in bytes.
    pub max_pending_bytes: usize,
}

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// Server reflection.
    pub reflection: bool,
    /// `PolicyStoreService`.
    pub policy_store: bool,
}
