//! Sends messages to an OpenTelemetry collector, over gRPC or HTTP, with or without TLS.
//!
//! Spans and log records are built elsewhere. The exporters of `opentelemetry-otlp` are not used:
//! they report a failure as text only, and the decision log must know whether to send a record
//! again.

mod backoff;
mod client;
mod error;
mod http_client;

use std::path::PathBuf;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::config::otel::{CollectorConfig, Protocol};
pub(super) use backoff::Backoff;
pub(super) use client::OtlpClient;
pub(super) use error::{ExportError, shorten};
use http_client::HttpsClient;

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
    /// The endpoint is not a URL.
    #[error("`{0}` is not the URL of a collector")]
    Endpoint(String),
    /// TLS cannot be set up, for example with these CA certificates.
    #[error("cannot set up TLS to the collector: {0}")]
    Tls(String),
}

/// Returns the endpoint without user name and password, which a URL may contain.
#[must_use]
pub fn redacted_endpoint(config: &CollectorConfig) -> &str {
    let endpoint = &config.endpoint;
    endpoint.rsplit_once('@').map_or(endpoint, |(_, rest)| rest)
}

/// Returns the description of this service that goes with each message.
pub(super) fn resource(config: &CollectorConfig) -> Resource {
    let attributes = config.resource.iter();
    Resource {
        attributes: attributes
            .map(|(name, value)| attribute(name, value))
            .collect(),
        ..Resource::default()
    }
}

/// Returns the name of the code that records spans and decisions.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "cedar-pdp".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Makes an attribute with a text value.
pub(super) fn attribute(name: &str, value: &str) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(text(value)),
        ..KeyValue::default()
    }
}

/// Makes a text value.
pub(super) fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    }
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
    let Some(file) = config.certificate.clone() else {
        return Ok(None);
    };
    match std::fs::read(&file) {
        Ok(pem) => Ok(Some(pem)),
        Err(source) => Err(CollectorError::CertificateFile { file, source }),
    }
}
