//! Sends batches of spans to a collector and counts them by result.
//!
//! The SDK's batch processor calls the exporter on a thread of its own, which has no timers. So the
//! tokio runtime sends each batch, and that thread waits for it. When the runtime ends, it cancels a
//! batch that is still being sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::metrics::{SpanMetrics, SpanResult};
use crate::config::otel::CollectorConfig;
use crate::telemetry::collector::{self, Backoff, CollectorError, OtlpClient};

const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// An exporter that counts spans as sent or failed.
#[derive(Debug)]
pub(super) struct CountingExporter {
    client: Arc<OtlpClient>,
    resource: Resource,
    runtime: Handle,
    metrics: Arc<SpanMetrics>,
    /// True if the last batch failed.
    is_failing: AtomicBool,
}

impl CountingExporter {
    /// Prepares an exporter, which connects when it sends.
    pub(super) fn new(
        config: &CollectorConfig,
        metrics: Arc<SpanMetrics>,
    ) -> Result<Self, CollectorError> {
        Ok(Self {
            client: Arc::new(OtlpClient::new(config, GRPC_METHOD)?),
            resource: collector::resource(config),
            runtime: Handle::current(),
            metrics,
            is_failing: AtomicBool::new(false),
        })
    }

    fn message(&self, batch: Vec<SpanData>) -> ExportTraceServiceRequest {
        let scope_spans = ScopeSpans {
            scope: Some(collector::scope()),
            spans: batch.into_iter().map(Span::from).collect(),
            ..ScopeSpans::default()
        };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![scope_spans],
                ..ResourceSpans::default()
            }],
        }
    }
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.metrics.leave_queue(spans);
        let sending = send(Arc::clone(&self.client), self.message(batch));
        let sent = self.runtime.spawn(sending).await;
        match sent.unwrap_or_else(|cancelled| Err(cancelled.to_string())) {
            Ok(()) => {
                self.metrics.count(SpanResult::Sent, spans);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("spans are sent again");
                }
                Ok(())
            }
            Err(problem) => {
                self.metrics.count(SpanResult::Failed, spans);
                // One warning for each outage, not for each batch.
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(problem, "cannot send spans");
                }
                Err(OTelSdkError::InternalFailure(problem))
            }
        }
    }
}

/// Sends a batch, with retries until the deadline.
async fn send(client: Arc<OtlpClient>, message: ExportTraceServiceRequest) -> Result<(), String> {
    let deadline = client.deadline();
    let mut backoff = Backoff::default();
    loop {
        let error = match client.send(message.clone(), deadline).await {
            Ok(ExportTraceServiceResponse { .. }) => return Ok(()),
            Err(error) => error,
        };
        let retry = Instant::now() + backoff.next_pause(error.pause);
        if !error.is_retryable || retry >= deadline {
            return Err(error.reason);
        }
        tokio::time::sleep_until(retry).await;
    }
}
