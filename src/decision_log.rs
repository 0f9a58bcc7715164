//! The decision log: one line for each logged decision, enough to explain and repeat it later.
//!
//! The engine logs every decision here, so that no protocol can forget to. The deciding thread
//! formats and masks the line in memory; the log's own thread writes it to its destination.
//! Nothing here decides, and nothing here keeps an answer.

mod id;
mod json;
pub(crate) mod metrics;
mod queue;
mod record;
mod redaction;
mod sink;
mod writer;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

pub use id::DecisionId;
pub use metrics::DecisionLogMetrics;
pub use record::{CacheStatus, LogEntry, LoggableAnswer};
pub use sink::{Collector, OpenError, Rejected, SendError, Sink, WriteResult};
pub use writer::Writer;

use crate::config::decision_log::{DecisionLogConfig, Share};
use crate::counters::page::{Export, Page};
use crate::pdp::answer::Decision;
use crate::pdp::settings::OnPolicyError;
use id::Sampler;
use queue::Queue;
use record::{RecordFormat, RecordId};
use redaction::Redaction;

/// The recording side of the log.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    allow_sample: Share,
    format: Arc<RecordFormat>,
    queue: Arc<Queue>,
}

/// The call that a decision was made for: method, trace and caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// The RPC method.
    pub method: Method,
    /// The id of the caller's trace: 32 hex digits.
    pub trace_id: Option<&'a str>,
    /// The caller's name, if it is known.
    pub caller: Option<&'a str>,
}

/// An RPC method that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Decides one query.
    #[default]
    Authorize,
    /// Decides a list of queries.
    BatchAuthorize,
    /// Decides queries one by one as they arrive.
    StreamAuthorize,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Authorize => "Authorize",
            Self::BatchAuthorize => "BatchAuthorize",
            Self::StreamAuthorize => "StreamAuthorize",
        }
    }
}

/// Opens a log that writes to `sink`, and starts its thread. [`Writer::finish`] ends it.
///
/// # Errors
///
/// The system's error if the thread cannot be started.
pub fn open(
    config: &DecisionLogConfig,
    on_policy_error: OnPolicyError,
    sink: Sink,
) -> io::Result<(DecisionLog, Writer)> {
    let queue = Arc::new(Queue::new(config.when_full, config.queue_bytes));
    let writer = Writer::start(&queue, sink)?;
    let log = DecisionLog {
        allow_sample: config.allow_sample,
        format: Arc::new(RecordFormat {
            redaction: Redaction::new(&config.attributes),
            on_policy_error,
        }),
        queue,
    };
    Ok((log, writer))
}

/// A thread's buffer for one line, and its sampler.
#[derive(Default)]
struct LineBuffer {
    line: Vec<u8>,
    sampler: Sampler,
}

/// Most memory that a thread keeps for lines between two records, in bytes.
const MAX_IDLE_LINE_BYTES: usize = 16 << 10;

thread_local! {
    static LINE_BUFFER: RefCell<LineBuffer> = RefCell::default();
}

impl DecisionLog {
    /// Returns whether a decision may be made now, without waiting for the log.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.queue.has_space()
    }

    /// Waits until a decision may be made.
    pub async fn wait_for_space(&self) {
        self.queue.wait_for_space().await;
    }

    /// Logs a decision. Returns its id, or `None` if it was sampled out or dropped.
    pub fn record(
        &self,
        origin: &Origin<'_>,
        entry: &LogEntry<'_, impl LoggableAnswer>,
    ) -> Option<DecisionId> {
        LINE_BUFFER.with_borrow_mut(|buffer| {
            let is_logged = match entry.answer.decision() {
                Decision::Deny => true,
                Decision::Allow => buffer.sampler.is_sampled(self.allow_sample),
            };
            if !is_logged {
                return None;
            }
            self.push(buffer, |format, line, id| {
                format.write_decision(line, id, origin, entry);
            })
        })
    }

    /// Logs a rejected request. `reason` is one of a fixed set of labels.
    pub fn record_rejection(
        &self,
        origin: &Origin<'_>,
        reason: &'static str,
    ) -> Option<DecisionId> {
        LINE_BUFFER.with_borrow_mut(|buffer| {
            self.push(buffer, |format, line, id| {
                format.write_rejection(line, id, origin, reason);
            })
        })
    }

    /// Returns the counts since startup.
    #[must_use]
    pub fn metrics(&self) -> DecisionLogMetrics {
        self.queue.metrics()
    }

    fn push(
        &self,
        buffer: &mut LineBuffer,
        write: impl FnOnce(&RecordFormat, &mut Vec<u8>, &RecordId),
    ) -> Option<DecisionId> {
        let LineBuffer { line, sampler } = buffer;
        // A clock set before 1970 reads as 1970: it is not worth an error.
        let time = UNIX_EPOCH.elapsed().unwrap_or_default();
        let id = DecisionId::new(time, sampler.next_random());
        line.clear();
        line.shrink_to(MAX_IDLE_LINE_BYTES);
        write(&self.format, line, &RecordId { time, id });
        self.queue.push(line).then_some(id)
    }
}

/// Without a decision log, all values are zero.
impl Export for Option<DecisionLog> {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let metrics = self.as_ref().map(DecisionLog::metrics);
        metrics.unwrap_or_default().export(page)
    }
}
