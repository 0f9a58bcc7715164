//! How a collector of OpenTelemetry's is reached: over gRPC or HTTP, with TLS or without.
//!
//! What is sent to it is not known here.

mod http_client;
mod records;

use std::path::{Path, PathBuf};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::config::otel::{CollectorConfig, Protocol};
use http_client::{HttpsClient, InvalidRoots};
pub(super) use records::{NotTaken, Records, Taken, open as of_records};

/// Why nothing can be sent to a collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The authorities' file cannot be read.
    #[error("cannot read `{}`: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There are no authorities to verify the collector by.
    #[error(transparent)]
    Roots(#[from] InvalidRoots),
    /// The address is none.
    #[error("`{0}` is no address of a collector")]
    Address(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// The address or another setting of OpenTelemetry's makes no sense.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// What sends spans to the collector of `config`. Connects to no one yet.
///
/// # Errors
///
/// [`CollectorError`].
pub(super) fn of_spans(config: &CollectorConfig) -> Result<SpanExporter, CollectorError> {
    let builder = SpanExporter::builder();
    let mut exporter = match config.protocol {
        Protocol::Grpc => over_grpc(builder.with_tonic(), config)?.build()?,
        Protocol::HttpProtobuf => over_http(builder.with_http(), config)?.build()?,
    };
    exporter.set_resource(&resource(config));
    Ok(exporter)
}

// What is not set here (headers, compression), the exporter reads of the environment itself.

fn over_grpc<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    config: &CollectorConfig,
) -> Result<B, CollectorError> {
    let builder = builder
        .with_endpoint(&config.endpoint)
        .with_timeout(config.timeout);
    Ok(match client_tls(config)? {
        None => builder,
        Some(tls) => builder.with_tls_config(tls),
    })
}

/// How TLS is spoken over gRPC; `None` where the address has none.
fn client_tls(config: &CollectorConfig) -> Result<Option<ClientTlsConfig>, CollectorError> {
    if !config.endpoint.starts_with("https:") {
        return Ok(None);
    }
    Ok(Some(match authorities(config)? {
        None => ClientTlsConfig::new().with_enabled_roots(),
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
    }))
}

fn over_http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    config: &CollectorConfig,
) -> Result<B, CollectorError> {
    let authorities = authorities(config)?;
    Ok(builder
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(&config.endpoint)
        .with_timeout(config.timeout)
        .with_http_client(HttpsClient::new(authorities.as_deref())?))
}

fn authorities(config: &CollectorConfig) -> Result<Option<Vec<u8>>, CollectorError> {
    config.certificate.as_deref().map(read).transpose()
}

fn read(file: &Path) -> Result<Vec<u8>, CollectorError> {
    std::fs::read(file).map_err(|source| CollectorError::Unreadable {
        file: file.to_owned(),
        source,
    })
}

fn resource(config: &CollectorConfig) -> Resource {
    let attributes = config.resource.iter();
    let attributes = attributes.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}
