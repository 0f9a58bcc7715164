//! Sends messages to an OpenTelemetry collector, over gRPC or HTTP, with or without TLS.
//!
//! Spans and log records are built elsewhere. The exporters of `opentelemetry-otlp` are not used:
//! they report a failure as text only, and the decision log must know whether to send a record
//! again.

mod backoff;
mod client;
mod error;
mod http_client;

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig};

use crate::config::otel::{CollectorConfig, Protocol};
pub(super) use backoff::Backoff;
pub(super) use client::OtlpClient;
pub(super) use error::{ExportError, shorten};
use http_client::{HttpsClient, RootsError};

/// An error that prevents the use of a collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The file of CA certificates cannot be read.
    #[error("cannot read `{}`: {source}", file.display())]
    CertificateFile {
        /// The path.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The CA certificates cannot be used.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The endpoint is not a URL.
    #[error("`{0}` is not the URL of a collector")]
    Endpoint(String),
    /// The TLS settings of gRPC are invalid.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] tonic::transport::Error),
}

/// Returns the endpoint without user name and password, which a URL may contain.
#[must_use]
pub fn redacted_endpoint(config: &CollectorConfig) -> &str {
    let endpoint = &config.endpoint;
    endpoint.rsplit_once('@').map_or(endpoint, |(_, rest)| rest)
}

/// Returns the TLS settings of gRPC; `None` if the endpoint uses no TLS.
fn grpc_tls(config: &CollectorConfig) -> Result<Option<ClientTlsConfig>, CollectorError> {
    if !config.endpoint.starts_with("https:") {
        return Ok(None);
    }
    Ok(Some(match ca_certificates(config)? {
        None => ClientTlsConfig::new().with_enabled_roots(),
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
    }))
}

/// Reads the CA certificates as PEM; `None` if those of the system apply.
fn ca_certificates(config: &CollectorConfig) -> Result<Option<Vec<u8>>, CollectorError> {
    let read = |file: &Path| {
        std::fs::read(file).map_err(|source| CollectorError::CertificateFile {
            file: file.to_owned(),
            source,
        })
    };
    config.certificate.as_deref().map(read).transpose()
}
