//! Sends batches of spans to a collector and counts them by result.
//!
//! The SDK's batch processor calls the exporter on a thread of its own, which has no timers. So the
//! tokio runtime sends each batch, and that thread waits for it. When the runtime ends, it cancels a
//! batch that is still being sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;

use super::metrics::{SpanMetrics, SpanResult};
use crate::config::otel::CollectorConfig;
use crate::telemetry::collector::{Backoff, CollectorError, ExportError, OtlpClient};

const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// An exporter that counts spans as sent or failed.
#[derive(Debug)]
pub(super) struct CountingExporter {
    client: Arc<OtlpClient>,
    resource: ResourceAttributesWithSchema,
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
        let attributes = config.resource.iter();
        let resource = Resource::builder_empty()
            .with_attributes(attributes.map(|(k, v)| KeyValue::new(k.clone(), v.clone())))
            .build();
        Ok(Self {
            client: Arc::new(OtlpClient::new(config, GRPC_METHOD)?),
            resource: (&resource).into(),
            runtime: Handle::current(),
            metrics,
            is_failing: AtomicBool::new(false),
        })
    }
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.metrics.leave_queue(spans);
        let message = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let sending = self.runtime.spawn(send(Arc::clone(&self.client), message));
        let result = sending
            .await
            .unwrap_or_else(|cancelled| Err(cancelled.to_string()));
        match result {
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

/// Sends a batch, with retries within the timeout.
async fn send(client: Arc<OtlpClient>, message: ExportTraceServiceRequest) -> Result<(), String> {
    let timeout = client.timeout();
    let started = tokio::time::Instant::now();
    let attempts = async {
        let mut backoff = Backoff::default();
        loop {
            let sending = client.send::<_, ExportTraceServiceResponse>(message.clone());
            let (reason, pause) = match sending.await {
                Ok(_accepted) => return Ok(()),
                Err(ExportError::Permanent { reason }) => return Err(reason),
                Err(ExportError::Retryable { reason, pause }) => (reason, pause),
            };
            let pause = backoff.next_pause(pause);
            if started.elapsed() + pause >= timeout {
                return Err(reason);
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::time::timeout(timeout, attempts)
        .await
        .unwrap_or_else(|_elapsed| Err(format!("no response within {timeout:?}")))
}
