//! The errors of loading TLS files.

use std::path::PathBuf;

use crate::watch::files::ReadError;

/// The reason why TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file contains no PEM section of the expected kind, or a truncated one.
    #[error("`{}` does not contain {expected} in PEM: {reason}", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// The expected content.
        expected: &'static str,
        /// The parser's message.
        reason: String,
    },
    /// A PEM section is not a valid X.509 certificate.
    #[error("`{}` contains an invalid certificate: {reason}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// The key does not match the certificate, or its kind is not supported.
    #[error("`{}` and `{}` are not a usable certificate and key: {reason}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// The message of the TLS library.
        reason: String,
    },
    /// No client certificate can be verified with these CA certificates.
    #[error("`{}` contains unusable client CA certificates: {reason}", file.display())]
    Authorities {
        /// The file.
        file: PathBuf,
        /// The message of the TLS library.
        reason: String,
    },
    /// The new certificate is not valid now, and the current one is.
    #[error("the certificate in `{}` {}", file.display(), match has_expired { true => "has expired", false => "is not valid yet" })]
    NotValidNow {
        /// The file.
        file: PathBuf,
        /// `false` if its validity has not begun.
        has_expired: bool,
    },
}
