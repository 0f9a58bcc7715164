//! Sends messages to an OpenTelemetry collector, over gRPC or HTTP, with or without TLS.
//!
//! Spans and log records are built elsewhere. The exporters of `opentelemetry-otlp` are not used:
//! they report a failure as text only, and the decision log must know whether to send a record
//! again.

mod client;
mod error;

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::config::otel::CollectorConfig;
pub(super) use client::OtlpClient;
pub(super) use error::{ExportError, shorten};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// The longest pause that a collector may request.
const MAX_REQUESTED_PAUSE: Duration = Duration::from_secs(30);

/// An error that prevents the use of a collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The file of CA certificates cannot be read.
    #[error("cannot read `{file}`: {1}", file = .0.display())]
    CertificateFile(PathBuf, #[source] std::io::Error),
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
    let attributes = attributes.map(|(name, value)| attribute(name, value));
    Resource {
        attributes: attributes.collect(),
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

pub(super) fn attribute(name: &str, value: &str) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(text(value)),
        ..KeyValue::default()
    }
}

pub(super) fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    }
}

/// A pause that doubles with each failed attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Backoff {
    /// Returns the pause before the next attempt: at least the one that the collector requested.
    pub(super) fn next_pause(&mut self, requested: Option<Duration>) -> Duration {
        let requested = requested.unwrap_or_default().min(MAX_REQUESTED_PAUSE);
        let pause = self.next.max(requested);
        self.next = (self.next * 2).min(MAX_PAUSE);
        pause
    }
}
