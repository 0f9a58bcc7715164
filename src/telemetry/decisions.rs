//! Sends the lines of the decision log to a collector, each as an OTLP log record.
//!
//! What a line says is not known here, but for what a collector looks at without reading it: when,
//! in which trace, and what came of it.

use std::io;
use std::time::Duration;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::{InstrumentationScope, SpanId, TraceId};
use opentelemetry_otlp::LogExporter;
use opentelemetry_sdk::logs::{
    LogBatch, LogExporter as _, SdkLogRecord, SdkLogger, SdkLoggerProvider,
};
use serde::Deserialize;
use tokio::runtime::Handle;

use super::collector::{self, CollectorError};
use crate::config::otel::CollectorConfig;
use crate::decision_log::Collector;

/// The most records in one message, and the most bytes of lines, a single line apart: collectors
/// take 4 MiB.
const MOST_RECORDS: usize = 512;
const MOST_BYTES: usize = 1 << 20;

/// What every record is an event of.
const EVENT: &str = "cedar_pdp.decision";

/// The way to a collector.
#[derive(Debug)]
pub struct Decisions {
    exporter: LogExporter,
    /// Makes empty records. It is never given one.
    logger: SdkLogger,
    scope: InstrumentationScope,
    /// Where sending is done, while the log's thread waits for it.
    runtime: Handle,
    timeout: Duration,
}

/// Opens the way to the collector of `config`, for use within the runtime that this is called in.
/// Connects to no one yet.
///
/// # Errors
///
/// [`CollectorError`].
pub fn open(config: &CollectorConfig) -> Result<Decisions, CollectorError> {
    let scope = InstrumentationScope::builder("cedar-pdp")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    Ok(Decisions {
        exporter: collector::of_records(config)?,
        logger: SdkLoggerProvider::builder()
            .build()
            .logger_with_scope(scope.clone()),
        scope,
        runtime: Handle::current(),
        timeout: config.timeout,
    })
}

/// Of a line what a collector looks at.
#[derive(Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    time: &'a str,
    id: &'a str,
    trace_id: Option<&'a str>,
    method: &'a str,
    decision: Option<&'a str>,
    refused: Option<&'a str>,
    revision: Option<&'a str>,
}

impl Collector for Decisions {
    fn send(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut bytes = 0;
        let mut records = Vec::new();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if records.len() == MOST_RECORDS || (bytes > 0 && bytes + line.len() > MOST_BYTES) {
                break;
            }
            bytes += line.len();
            records.push(self.record(line)?);
        }
        let batch: Vec<_> = records.iter().map(|record| (record, &self.scope)).collect();
        let sending = self.exporter.export(LogBatch::new(&batch));
        // The exporter keeps to its time only between its attempts.
        let sent = self
            .runtime
            .block_on(async { tokio::time::timeout(self.timeout, sending).await });
        match sent {
            Ok(Ok(())) => Ok(bytes),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Decisions {
    fn record(&self, line: &[u8]) -> io::Result<SdkLogRecord> {
        let line = std::str::from_utf8(line).map_err(io::Error::other)?;
        let line = line.trim_end();
        let Seen {
            time,
            id,
            trace_id,
            method,
            decision,
            refused,
            revision,
        } = serde_json::from_str(line)?;
        let mut record = self.logger.create_log_record();
        record.set_event_name(EVENT);
        record.set_severity_number(Severity::Info);
        record.set_severity_text("INFO");
        let at = humantime::parse_rfc3339(time).map_err(io::Error::other)?;
        record.set_timestamp(at);
        record.set_observed_timestamp(at);
        if let Some(trace_id) = trace_id.and_then(|text| TraceId::from_hex(text).ok()) {
            record.set_trace_context(trace_id, SpanId::INVALID, None);
        }
        // As it stands in a file: whoever replays decisions reads the same.
        record.set_body(AnyValue::from(line.to_owned()));
        for (name, value) in [
            ("cedar_pdp.decision_id", Some(id)),
            ("cedar_pdp.method", Some(method)),
            ("cedar_pdp.decision", decision),
            ("cedar_pdp.refused", refused),
            ("cedar_pdp.revision", revision),
        ] {
            if let Some(value) = value {
                record.add_attribute(name, value.to_owned());
            }
        }
        Ok(record)
    }
}
