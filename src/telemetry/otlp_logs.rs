//! Sends decision log lines to a collector, each as the body of an OTLP log record.
//!
//! A few fields of a line become attributes, so that a collector can filter without parsing bodies.

use std::time::UNIX_EPOCH;

use opentelemetry::TraceId;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::collector::{self, Backoff, CollectorError, OtlpClient, attribute, shorten, text};
use crate::config::otel::CollectorConfig;
use crate::decision_log::{Collector, Rejected, SendError, WriteResult};

const GRPC_METHOD: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// The most records in one message.
const MAX_RECORDS: usize = 512;

/// The most bytes of lines in one message, unless a single line is longer. Collectors accept 4 MiB.
const MAX_BYTES: usize = 1 << 20;

const EVENT_NAME: &str = "cedar_pdp.decision";

/// The decision log's connection to a collector.
#[derive(Debug)]
pub struct OtlpLogs {
    client: OtlpClient,
    resource: Resource,
    /// The runtime that sends, while the thread of the decision log waits.
    runtime: Handle,
    backoff: Backoff,
}

/// Prepares the connection to the collector of `config`, which is opened with the first message.
/// Must be called within a tokio runtime.
pub fn open(config: &CollectorConfig) -> Result<OtlpLogs, CollectorError> {
    Ok(OtlpLogs {
        client: OtlpClient::new(config, GRPC_METHOD)?,
        resource: collector::resource(config),
        runtime: Handle::current(),
        backoff: Backoff::default(),
    })
}

impl Collector for OtlpLogs {
    fn send(&mut self, lines: &[u8]) -> Result<WriteResult, SendError> {
        let (bytes, log_records) = batch(lines);
        let records = log_records.len() as u64;
        let message = self.message(log_records);
        let sending = self.client.send(message, self.client.deadline());
        let rejected = match self.runtime.block_on(sending) {
            Ok(response) => partial_failure(response, records),
            Err(error) if error.is_retryable => {
                return Err(SendError {
                    reason: error.reason,
                    retry_after: Some(self.backoff.next_pause(error.pause)),
                });
            }
            Err(error) => Some(Rejected {
                lines: records,
                reason: error.reason,
            }),
        };
        self.backoff = Backoff::default();
        Ok(WriteResult { bytes, rejected })
    }
}

/// Converts log lines to records, as many as one OTLP message may hold; returns their bytes as well.
fn batch(lines: &[u8]) -> (usize, Vec<LogRecord>) {
    let mut bytes = 0;
    let mut records = Vec::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if records.len() == MAX_RECORDS || (bytes > 0 && bytes + line.len() > MAX_BYTES) {
            break;
        }
        bytes += line.len();
        records.push(record(&String::from_utf8_lossy(line)));
    }
    (bytes, records)
}

/// Returns the records that the collector rejected from a message that it accepted.
fn partial_failure(response: ExportLogsServiceResponse, records: u64) -> Option<Rejected> {
    let partial = response.partial_success?;
    let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
    (rejected > 0).then(|| Rejected {
        lines: rejected.min(records),
        reason: shorten(&partial.error_message),
    })
}

impl OtlpLogs {
    fn message(&self, log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
        let scope_logs = ScopeLogs {
            scope: Some(collector::scope()),
            log_records,
            ..ScopeLogs::default()
        };
        ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![scope_logs],
                ..ResourceLogs::default()
            }],
        }
    }
}

/// The fields of a line that a log record repeats.
#[derive(Default, Deserialize)]
struct LineFields<'a> {
    #[serde(borrow)]
    time: &'a str,
    id: &'a str,
    trace_id: Option<&'a str>,
    method: &'a str,
    decision: Option<&'a str>,
    refused: Option<&'a str>,
    revision: Option<&'a str>,
}

fn record(line: &str) -> LogRecord {
    let line = line.trim_end();
    // INVARIANT: the decision log writes lines with these fields. Any other line is sent without
    // attributes, because an error here would have the line sent again for ever.
    let fields: LineFields<'_> = serde_json::from_str(line).unwrap_or_default();
    let time = humantime::parse_rfc3339(fields.time)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .and_then(|time| u64::try_from(time.as_nanos()).ok())
        .unwrap_or_default();
    let trace_id = fields.trace_id.and_then(|id| TraceId::from_hex(id).ok());
    let attributes = [
        ("cedar_pdp.decision_id", Some(fields.id)),
        ("cedar_pdp.method", Some(fields.method)),
        ("cedar_pdp.decision", fields.decision),
        ("cedar_pdp.refused", fields.refused),
        ("cedar_pdp.revision", fields.revision),
    ];
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        // The same text as in a file, so that tools that replay decisions read both.
        body: Some(text(line)),
        attributes: attributes
            .into_iter()
            .filter_map(|(name, value)| Some(attribute(name, value?)))
            .collect(),
        trace_id: trace_id.map_or_else(Vec::new, |id| id.to_bytes().to_vec()),
        event_name: EVENT_NAME.to_owned(),
        ..LogRecord::default()
    }
}
