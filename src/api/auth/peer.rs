//! The other end of a connection, and the bearer key of a call.

use super::certificate::CertificateNames;
use super::clock::unix_seconds;

/// The identity of the other end of a connection, known before its first call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The names in its certificate, which the TLS handshake has verified.
    pub(crate) certificate: Option<CertificateNames>,
    /// The user id of the process, on a Unix socket.
    pub(crate) uid: Option<u32>,
}

impl Peer {
    /// Returns whether its certificate is still valid. A connection may outlive a certificate.
    pub(super) fn is_current(&self) -> bool {
        self.certificate
            .as_ref()
            .is_none_or(|names| !names.has_expired(unix_seconds()))
    }
}

/// Returns the key in `authorization: Bearer …`. Several headers yield a key that nobody has.
pub(super) fn bearer_key(headers: &http::HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    const UNKNOWN_KEY: &[u8] = b"";
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return Some(UNKNOWN_KEY);
    }
    let (scheme, key) = first.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| key.trim_ascii())
}
