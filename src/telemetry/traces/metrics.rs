//! Counts finished spans by result.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counters::Counters;
use crate::counters::page::{Export, Page, metrics};

metrics! {
    SPANS = Counter "cedar_pdp_spans_total" ["result"]
        "Finished spans: sent to the collector, failed to send, dropped (queue full)";
}

/// The number of finished spans by result, since the start of the process.
#[derive(Debug, Default)]
pub struct SpanMetrics {
    results: Counters<3>,
    /// The spans in the queue of the SDK, which does not report how many it drops.
    queued: AtomicUsize,
}

/// The result of a finished span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanResult {
    /// The collector accepted it.
    Sent,
    /// The collector rejected it or did not respond.
    Failed,
    /// The queue was full.
    Dropped,
}

impl SpanMetrics {
    /// Returns the number of spans with `result`.
    #[must_use]
    pub fn spans(&self, result: SpanResult) -> u64 {
        self.results.sum(result as usize)
    }

    /// Counts a span into the queue. Returns false, and counts it as dropped, if `max` are queued.
    pub(super) fn enter_queue(&self, max: usize) -> bool {
        // INVARIANT: a span leaves the queue of the SDK before `leave_queue` is called, so that
        // the SDK has room for each span that is admitted here.
        let has_space = self.queued.fetch_add(1, Ordering::AcqRel) < max;
        if !has_space {
            self.queued.fetch_sub(1, Ordering::AcqRel);
            self.count(SpanResult::Dropped, 1);
        }
        has_space
    }

    pub(super) fn leave_queue(&self, spans: usize) {
        self.queued.fetch_sub(spans, Ordering::AcqRel);
    }

    pub(super) fn count(&self, result: SpanResult, spans: usize) {
        self.results.add(result as usize, spans as u64);
    }
}

impl Export for SpanMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let results = [
            (["sent"], SpanResult::Sent),
            (["failed"], SpanResult::Failed),
            (["dropped"], SpanResult::Dropped),
        ];
        let counts = results.map(|(label, result)| (label, self.spans(result)));
        page.counter(&SPANS, counts)
    }
}
