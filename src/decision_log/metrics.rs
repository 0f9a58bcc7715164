//! Metrics of the decision log.

use std::fmt;

use crate::counters::page::{Export, Page, metrics};

metrics! {
    RECORDS = Counter "cedar_pdp_decision_log_records_total" ["result"]
        "Decision log records, by result (written, dropped, refused by the collector)";
    WRITE_FAILURES = Counter "cedar_pdp_decision_log_write_failures_total" []
        "Failed attempts to write the decision log; they are retried";
    QUEUE_BYTES = Gauge "cedar_pdp_decision_log_queue_bytes" []
        "Memory of records waiting to be written to the decision log, in bytes";
}

/// Counts of the log since startup, and the size of its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecisionLogMetrics {
    /// Records that were written.
    pub written: u64,
    /// Records that were dropped: the queue was full, or the time at shutdown was over.
    pub dropped: u64,
    /// Records that a collector rejected permanently.
    pub refused: u64,
    /// Attempts to write that failed; they are repeated.
    pub failed: u64,
    /// Bytes of records that are queued or being written now.
    pub queue_bytes: u64,
}

impl Export for DecisionLogMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let results = [
            (["written"], self.written),
            (["dropped"], self.dropped),
            (["refused"], self.refused),
        ];
        page.counter(&RECORDS, results)?;
        page.counter(&WRITE_FAILURES, [([], self.failed)])?;
        page.value(&QUEUE_BYTES, self.queue_bytes as f64)
    }
}
