//! Sends the lines of the decision log to a collector, each as an OTLP log record.
//!
//! What a line says is not known here, but for what a collector looks at without reading it: when,
//! in which trace, and what came of it.

use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::TraceId;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::collector::{self, CollectorError, NotTaken, Records, Taken};
use crate::config::otel::CollectorConfig;
use crate::decision_log::{Collector, Rejected, SendError, WriteResult};

/// The most records in one message, and the most bytes of lines, a single line apart: collectors
/// take 4 MiB.
const MOST_RECORDS: usize = 512;
const MOST_BYTES: usize = 1 << 20;

/// What every record is an event of.
const EVENT: &str = "cedar_pdp.decision";

/// How long a collector that takes nothing is left alone: twice as long each time, and longer where
/// it says so.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The way to a collector.
#[derive(Debug)]
pub struct Decisions {
    records: Records,
    resource: Resource,
    /// Where sending is done, while the log's thread waits for it.
    runtime: Handle,
    /// After the next attempt that fails.
    pause: Duration,
}

/// Opens the way to the collector of `config`, for use within the runtime that this is called in.
/// Connects to no one yet.
///
/// # Errors
///
/// [`CollectorError`].
pub fn open(config: &CollectorConfig) -> Result<Decisions, CollectorError> {
    let attributes = config.resource.iter();
    Ok(Decisions {
        records: collector::of_records(config)?,
        resource: Resource {
            attributes: attributes
                .map(|(name, value)| attribute(name, value))
                .collect(),
            ..Resource::default()
        },
        runtime: Handle::current(),
        pause: FIRST_PAUSE,
    })
}

/// Of a line what a collector looks at.
#[derive(Default, Deserialize)]
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
    fn send(&mut self, lines: &[u8]) -> Result<WriteResult, SendError> {
        let mut bytes = 0;
        let mut log_records = Vec::new();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if log_records.len() == MOST_RECORDS || (bytes > 0 && bytes + line.len() > MOST_BYTES) {
                break;
            }
            bytes += line.len();
            log_records.push(record(&String::from_utf8_lossy(line)));
        }
        let count = log_records.len() as u64;
        let sending = self.records.send(self.message(log_records));
        let rejected = match self.runtime.block_on(sending) {
            Ok(Taken { refused: 0, .. }) => None,
            Ok(Taken { refused, reason }) => Some(Rejected {
                lines: refused.min(count),
                reason,
            }),
            Err(NotTaken::Ever { reason }) => Some(Rejected {
                lines: count,
                reason,
            }),
            Err(NotTaken::Now { reason, wait }) => {
                let asked = wait.unwrap_or_default().min(LONGEST_WAIT);
                let retry_after = Some(self.pause.max(asked));
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                return Err(SendError {
                    reason,
                    retry_after,
                });
            }
        };
        self.pause = FIRST_PAUSE;
        Ok(WriteResult { bytes, rejected })
    }
}

impl Decisions {
    fn message(&self, log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
        let scope = InstrumentationScope {
            name: "cedar-pdp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_logs = ScopeLogs {
            scope: Some(scope),
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

fn record(line: &str) -> LogRecord {
    let line = line.trim_end();
    // INVARIANT: the log writes lines of this form. One of another would be sent without what
    // stands beside it: nothing may come back for ever.
    let Seen {
        time,
        id,
        trace_id,
        method,
        decision,
        refused,
        revision,
    } = serde_json::from_str(line).unwrap_or_default();
    let at = humantime::parse_rfc3339(time)
        .ok()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .and_then(|at| u64::try_from(at.as_nanos()).ok())
        .unwrap_or_default();
    let trace_id = trace_id.and_then(|text| TraceId::from_hex(text).ok());
    let attributes = [
        ("cedar_pdp.decision_id", Some(id)),
        ("cedar_pdp.method", Some(method)),
        ("cedar_pdp.decision", decision),
        ("cedar_pdp.refused", refused),
        ("cedar_pdp.revision", revision),
    ];
    LogRecord {
        time_unix_nano: at,
        observed_time_unix_nano: at,
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        // As it stands in a file: whoever replays decisions reads the same.
        body: Some(text(line)),
        attributes: attributes
            .into_iter()
            .filter_map(|(name, value)| Some(attribute(name, value?)))
            .collect(),
        trace_id: trace_id.map_or_else(Vec::new, |id| id.to_bytes().to_vec()),
        event_name: EVENT.to_owned(),
        ..LogRecord::default()
    }
}

fn attribute(name: &str, value: &str) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(text(value)),
        ..KeyValue::default()
    }
}

fn text(text: &str) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(text.to_owned())),
    }
}
