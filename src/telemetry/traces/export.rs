//! Sends spans to a collector in the background, from a queue that is bounded.
//!
//! A collector that is slow, down or refuses costs spans, which are counted, and nothing else.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::{SpanFate, SpanFigures, Traces};
use crate::config::otel::TracesConfig;
use crate::telemetry::collector::{self, CollectorError};

/// Where spans wait to be sent.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    figures: Arc<SpanFigures>,
}

impl Queue {
    /// Puts a span there, or drops it when there is no room.
    pub(super) fn put(&self, span: SpanData) {
        match self.spans.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.figures.count(SpanFate::Dropped, 1);
            }
        }
    }
}

/// Sends spans once [`run`](Self::run) is polled.
#[derive(Debug)]
pub struct Export {
    spans: mpsc::Receiver<SpanData>,
    exporter: SpanExporter,
    batch_spans: usize,
    delay: Duration,
    timeout: Duration,
    figures: Arc<SpanFigures>,
}

/// Traces as `config` has it, and what sends their spans. Connects to no one yet.
///
/// # Errors
///
/// [`CollectorError`].
pub fn open(
    config: &TracesConfig,
    figures: Arc<SpanFigures>,
) -> Result<(Traces, Export), CollectorError> {
    let exporter = collector::of_spans(&config.collector)?;
    Ok(with_exporter(config, exporter, figures))
}

fn with_exporter(
    config: &TracesConfig,
    exporter: SpanExporter,
    figures: Arc<SpanFigures>,
) -> (Traces, Export) {
    let (sender, spans) = mpsc::channel(config.queue_spans);
    let queue = Queue {
        spans: sender,
        figures: Arc::clone(&figures),
    };
    let traces = Traces::new(config.sampler, config.takes_context, queue);
    let export = Export {
        spans,
        exporter,
        batch_spans: config.batch_spans,
        delay: config.delay,
        timeout: config.collector.timeout,
        figures,
    };
    (traces, export)
}

/// How long sending may take when the service ends.
const LAST_EXPORT: Duration = Duration::from_secs(3);

impl Export {
    /// Sends spans until `stop` completes; then what still waits, if that takes no longer than a
    /// few seconds.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let mut is_failing = false;
        let mut batch = Vec::new();
        let mut stop = std::pin::pin!(stop);
        let end = loop {
            tokio::select! {
                biased;
                () = &mut stop => break Instant::now() + LAST_EXPORT,
                () = collect(&mut self.spans, &mut batch, self.batch_spans, self.delay) => {}
            }
            let batch = std::mem::take(&mut batch);
            let mut sending = std::pin::pin!(self.send(batch, &mut is_failing));
            tokio::select! {
                () = &mut sending => {}
                () = &mut stop => {
                    let end = Instant::now() + LAST_EXPORT;
                    let _in_time = tokio::time::timeout_at(end, sending).await;
                    break end;
                }
            }
        };
        self.spans.close();
        while self.spans.recv_many(&mut batch, self.batch_spans).await > 0 {}
        if !batch.is_empty() {
            let _in_time = tokio::time::timeout_at(end, self.send(batch, &mut is_failing)).await;
        }
    }

    async fn send(&self, batch: Vec<SpanData>, is_failing: &mut bool) {
        let timeout = self.timeout;
        // Counted as failed also when this is dropped half way.
        let mut fate = Fate {
            figures: &self.figures,
            spans: batch.len(),
            fate: SpanFate::Failed,
        };
        // The exporter keeps to its time only between its attempts.
        let problem = match tokio::time::timeout(timeout, self.exporter.export(batch)).await {
            Ok(Ok(())) => {
                fate.fate = SpanFate::Sent;
                if std::mem::take(is_failing) {
                    tracing::info!("spans are sent again");
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("the collector took longer than {timeout:?}"),
        };
        // Once for each time of trouble: it is met anew with every batch.
        if !std::mem::replace(is_failing, true) {
            tracing::warn!(problem, "cannot send spans");
        }
    }
}

/// What becomes of a batch.
struct Fate<'a> {
    figures: &'a SpanFigures,
    spans: usize,
    fate: SpanFate,
}

impl Drop for Fate<'_> {
    fn drop(&mut self) {
        self.figures.count(self.fate, self.spans);
    }
}

/// Waits for a span, and then for others until there are `most` or `delay` has passed.
///
/// Cancel safe: what it has taken stands in `batch`.
async fn collect(
    spans: &mut mpsc::Receiver<SpanData>,
    batch: &mut Vec<SpanData>,
    most: usize,
    delay: Duration,
) {
    if batch.is_empty() && spans.recv_many(batch, most).await == 0 {
        // No one is left who could send one.
        return std::future::pending().await;
    }
    let fill = async {
        while batch.len() < most {
            let room = most - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                return;
            }
        }
    };
    // Either way there is something to send.
    let _filled = tokio::time::timeout(delay, fill).await;
}
