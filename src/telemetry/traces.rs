//! Records a span for each sampled call.
//!
//! Sampling comes first, so that a call that is not sampled costs a look at its headers and no
//! allocation. That is why the SDK's propagator and parent-based sampler, which allocate for every
//! call, are not used. A span is built when its call has ended, and sent in the background: no
//! caller waits for a collector. A span contains types and counts, but no principal, no resource and
//! nothing of the context.

mod exporter;
pub(crate) mod metrics;
mod trace_parent;

use std::io::Write as _;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, Sampler,
    SamplingDecision, ShouldSample as _, SpanData, SpanEvents, SpanLinks, SpanProcessor as _,
};

use super::collector::CollectorError;
use crate::config::otel::TracesConfig;
use crate::engine::Source;
use crate::pdp::answer::Decision;
use exporter::CountingExporter;
pub use metrics::{SpanMetrics, SpanResult};
pub use trace_parent::TraceParent;

/// The longest time that queued spans are sent for at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest text of a caller in a span, in characters.
const MAX_TEXT_CHARS: usize = 200;

/// Starts spans and queues finished ones. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Traces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sampler: CallSampler,
    joins_caller_trace: bool,
    processor: BatchSpanProcessor,
    metrics: Arc<SpanMetrics>,
    max_queued_spans: usize,
}

#[derive(Debug)]
struct CallSampler {
    /// True if a caller's sampling decision takes precedence.
    is_parent_based: bool,
    /// Decides on the other calls, by the trace id.
    root: Sampler,
    ids: RandomIdGenerator,
}

impl CallSampler {
    /// Returns the trace of a call if the call is sampled.
    fn sample(&self, parent: Option<TraceParent>) -> Option<TraceId> {
        if let Some(parent) = parent.filter(|_| self.is_parent_based) {
            return parent.is_sampled.then_some(parent.trace_id);
        }
        let trace_id = parent.map_or_else(|| self.ids.new_trace_id(), |parent| parent.trace_id);
        let kind = SpanKind::Server;
        let result = self.root.should_sample(None, trace_id, "", &kind, &[], &[]);
        (result.decision == SamplingDecision::RecordAndSample).then_some(trace_id)
    }
}

impl Traces {
    /// Starts the thread that sends spans. Connects to the collector when there are spans to send.
    /// Must be called within a tokio runtime.
    pub fn open(config: &TracesConfig, metrics: Arc<SpanMetrics>) -> Result<Self, CollectorError> {
        let exporter = CountingExporter::new(&config.collector, Arc::clone(&metrics))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(config.max_queued_spans)
            .with_max_export_batch_size(config.max_batch_spans)
            .with_scheduled_delay(config.schedule_delay)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        Ok(Self(Arc::new(Inner {
            sampler: CallSampler {
                is_parent_based: config.is_parent_based,
                root: Sampler::TraceIdRatioBased(config.ratio),
                ids: RandomIdGenerator::default(),
            },
            joins_caller_trace: config.joins_caller_trace,
            processor,
            metrics,
            max_queued_spans: config.max_queued_spans,
        })))
    }

    /// Starts the span of a call if the call is sampled. `header` looks up a header of the call.
    #[must_use]
    pub fn begin<'a>(
        &self,
        header: impl Fn(&'static str) -> Option<&'a str>,
    ) -> Option<Arc<CallSpan>> {
        let inner = &self.0;
        let parent = match inner.joins_caller_trace {
            true => header("traceparent").and_then(TraceParent::parse),
            false => None,
        };
        let trace_id = inner.sampler.sample(parent)?;
        let state = parent.and_then(|_| TraceState::from_str(header("tracestate")?).ok());
        Some(Arc::new(CallSpan {
            context: SpanContext::new(
                trace_id,
                inner.sampler.ids.new_span_id(),
                TraceFlags::SAMPLED,
                false,
                state.unwrap_or_default(),
            ),
            parent: parent.map(|parent| parent.span_id),
            started: (SystemTime::now(), Instant::now()),
            summary: Mutex::default(),
            traces: self.clone(),
        }))
    }

    /// Sends the queued spans for at most three seconds, and ends the thread.
    pub async fn shutdown(&self) {
        let traces = self.clone();
        // The processor blocks the thread that calls it.
        let ending = tokio::task::spawn_blocking(move || {
            traces.0.processor.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        });
        match ending.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "some queued spans were not sent"),
            Err(error) => tracing::error!(%error, "shutdown of traces failed"),
        }
    }
}

/// The span of a sampled call.
#[derive(Debug)]
pub struct CallSpan {
    context: SpanContext,
    parent: Option<SpanId>,
    started: (SystemTime, Instant),
    summary: Mutex<CallSummary>,
    traces: Traces,
}

/// The requests of a call so far.
#[derive(Debug, Default)]
struct CallSummary {
    allowed: i64,
    denied: i64,
    cached: i64,
    rejected: i64,
    /// The attributes of the first decision.
    first: Option<DecisionAttributes>,
}

/// The parts of a decision that a span shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionAttributes {
    /// The entity type of the principal.
    pub principal_type: String,
    /// The action in Cedar syntax.
    pub action: String,
    /// The entity type of the resource.
    pub resource_type: String,
    /// The revision that decided.
    pub revision: String,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// The full name of the method.
    pub method: &'static str,
    /// The name of the status code.
    pub code: &'static str,
    /// True if the status blames the service.
    pub is_server_error: bool,
}

impl CallSpan {
    /// Returns the trace id as 32 hex digits.
    #[must_use]
    pub fn trace_hex(&self) -> [u8; 32] {
        // INVARIANT: a trace id is written as 32 digits.
        let mut hex = [b'0'; 32];
        let _ = write!(&mut hex[..], "{}", self.context.trace_id());
        hex
    }

    /// Records a decision. `attributes` is called for the first decision of the call only.
    pub fn record_decision(
        &self,
        decision: Decision,
        source: Source,
        attributes: impl FnOnce() -> DecisionAttributes,
    ) {
        self.update(|summary| {
            match decision {
                Decision::Allow => summary.allowed += 1,
                Decision::Deny => summary.denied += 1,
            }
            if source == Source::Cache {
                summary.cached += 1;
            }
            summary.first.get_or_insert_with(attributes);
        });
    }

    /// Records a request that was rejected.
    pub fn record_rejection(&self) {
        self.update(|summary| summary.rejected += 1);
    }

    fn update<T>(&self, update: impl FnOnce(&mut CallSummary) -> T) -> T {
        // A panic elsewhere leaves the counts valid.
        update(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the span and queues it, or drops it if the queue is full.
    pub fn end(&self, outcome: CallOutcome) {
        let inner = &self.traces.0;
        if !inner.metrics.enter_queue(inner.max_queued_spans) {
            return;
        }
        let (started_at, clock) = self.started;
        inner.processor.on_end(SpanData {
            span_context: self.context.clone(),
            parent_span_id: self.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: self.parent.is_some(),
            span_kind: SpanKind::Server,
            name: outcome.method.into(),
            start_time: started_at,
            end_time: started_at + clock.elapsed(),
            attributes: self.update(|summary| attributes(outcome, summary)),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: match outcome.is_server_error {
                true => Status::error(""),
                false => Status::Unset,
            },
            // The exporter writes the scope once for each message.
            instrumentation_scope: InstrumentationScope::default(),
        });
    }
}

/// Returns the attributes of OpenTelemetry's conventions for calls, and ours.
/// <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>
fn attributes(outcome: CallOutcome, summary: &mut CallSummary) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", outcome.method),
        KeyValue::new("rpc.response.status_code", outcome.code),
    ];
    if outcome.is_server_error {
        attributes.push(KeyValue::new("error.type", outcome.code));
    }
    for (name, count) in [
        ("cedar_pdp.allowed", summary.allowed),
        ("cedar_pdp.denied", summary.denied),
        ("cedar_pdp.remembered", summary.cached),
        ("cedar_pdp.refused", summary.rejected),
    ] {
        if count > 0 {
            attributes.push(KeyValue::new(name, count));
        }
    }
    let Some(first) = summary.first.take() else {
        return attributes;
    };
    attributes.push(KeyValue::new("cedar_pdp.revision", first.revision));
    // The first of several decisions does not describe the others.
    if summary.allowed + summary.denied == 1 {
        for (name, text) in [
            ("cedar_pdp.principal.type", first.principal_type),
            ("cedar_pdp.action", first.action),
            ("cedar_pdp.resource.type", first.resource_type),
        ] {
            let text: String = text.chars().take(MAX_TEXT_CHARS).collect();
            attributes.push(KeyValue::new(name, text));
        }
    }
    attributes
}

#[cfg(test)]
mod tests;
