//! The other end of a connection, and the bearer key of a call.

use super::certificate::CertificateNames;
use super::clock::unix_seconds;

/// What is known of the other end of a connection before it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// What its certificate says, which was verified when the connection began.
    pub(crate) certificate: Option<CertificateNames>,
    /// Who it runs as, on a Unix socket.
    pub(crate) uid: Option<u32>,
}

impl Peer {
    /// Whether what it showed is still good: a connection may last longer than a certificate.
    pub(super) fn is_current(&self) -> bool {
        self.certificate
            .as_ref()
            .is_none_or(|names| !names.has_expired(unix_seconds()))
    }
}

/// The key in `authorization: Bearer …`; of several headers none is believed.
pub(super) fn bearer(headers: &http::HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    const NOBODYS: &[u8] = b"";
    let mut sent = headers.get_all(http::header::AUTHORIZATION).iter();
    let first = sent.next()?;
    if sent.next().is_some() {
        return Some(NOBODYS);
    }
    let (scheme, key) = first.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| key.trim_ascii())
}
