//! The thread that takes lines from the queue, writes them to the sink, and retries.
//!
//! A failed write is retried until it succeeds or the process must end. Meanwhile the queue fills
//! up and handles further records. Only lines that a collector rejects permanently are given up:
//! otherwise all later lines would wait behind them.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::queue::Queue;
use super::sink::{Rejected, SendError, Sink, WriteResult};

/// Least time between two attempts to write.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The writing side of the log. Dropping it without [`finish`](Self::finish) loses queued lines.
#[must_use]
#[derive(Debug)]
pub struct Writer {
    queue: Arc<Queue>,
    /// Resolves when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl Writer {
    pub(super) fn start(queue: &Arc<Queue>, sink: Sink) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let thread_queue = Arc::clone(queue);
        thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(move || {
                write_all(&thread_queue, sink);
                // The receiver may be gone.
                let _ = end.send(());
            })?;
        Ok(Self {
            queue: Arc::clone(queue),
            ended,
        })
    }

    /// Writes the queued lines and ends, after `timeout` at the latest. Lines that are not written
    /// by then are counted as dropped, and logged.
    pub async fn finish(self, timeout: Duration) {
        let Self { queue, ended } = self;
        queue.close(Instant::now() + timeout);
        // The thread observes the deadline itself, unless a write hangs.
        match tokio::time::timeout(timeout + RETRY_PAUSE, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                tracing::error!("decision log writer thread has failed");
                warn_lost(queue.abandon());
            }
            Err(_elapsed) => warn_lost(queue.abandon()),
        }
    }
}

fn warn_lost(decisions: u64) {
    if decisions > 0 {
        tracing::warn!(decisions, "decision log ended, dropping unwritten records");
    }
}

fn write_all(queue: &Queue, mut sink: Sink) {
    let mut batch = Vec::new();
    let mut failures = FailureReport::default();
    while queue.take_batch(&mut batch) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            match sink.write(rest) {
                Ok(WriteResult { bytes, rejected }) => {
                    let (done, left) = rest.split_at_checked(bytes).unwrap_or((rest, &[]));
                    queue.complete(done, rejected.as_ref().map_or(0, |rejected| rejected.lines));
                    rest = left;
                    // A partial line does not yet prove that writing works.
                    if bytes > 0 {
                        failures.log_success(rejected.as_ref());
                    }
                }
                Err(error) => {
                    queue.count_failure();
                    failures.log_failure(&error);
                    let pause = error.retry_after.unwrap_or_default().max(RETRY_PAUSE);
                    if !queue.wait_to_retry(pause, RETRY_PAUSE) {
                        return warn_lost(queue.abandon());
                    }
                }
            }
        }
        batch.clear();
    }
    if let Err(error) = sink.sync() {
        tracing::warn!(%error, "cannot sync the decision log to disk");
    }
}

/// The failures that are logged: each kind once, until writing works again.
#[derive(Default)]
struct FailureReport {
    is_failing: bool,
    is_rejected: bool,
}

impl FailureReport {
    /// Logs a failed write, unless the last one failed, too.
    fn log_failure(&mut self, error: &SendError) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(%error, "cannot write the decision log");
        }
    }

    /// Logs lines that were rejected permanently, or that writing works again.
    fn log_success(&mut self, rejected: Option<&Rejected>) {
        match rejected {
            None => {
                if self.is_failing || self.is_rejected {
                    tracing::info!("the decision log is written again");
                }
                *self = Self::default();
            }
            Some(Rejected { lines, reason }) => {
                if !std::mem::replace(&mut self.is_rejected, true) {
                    tracing::warn!(
                        decisions = lines,
                        error = reason,
                        "collector rejected records permanently, dropping records",
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::sink::Collector;
    use super::*;
    use crate::config::decision_log::WhenFull;

    const LINE: &[u8] = b"1234567\n";

    /// A collector whose first call hangs until the test ends it.
    #[derive(Debug)]
    struct HangingCollector {
        called: mpsc::Sender<()>,
        may_end: mpsc::Receiver<()>,
    }

    impl Collector for HangingCollector {
        fn send(&mut self, lines: &[u8]) -> Result<WriteResult, SendError> {
            self.called.send(()).unwrap();
            self.may_end.recv().unwrap();
            Ok(WriteResult {
                bytes: lines.len(),
                rejected: None,
            })
        }
    }

    /// A collector that panics.
    #[derive(Debug)]
    struct PanickingCollector;

    impl Collector for PanickingCollector {
        fn send(&mut self, _: &[u8]) -> Result<WriteResult, SendError> {
            std::panic::resume_unwind(Box::new("nothing to send with"))
        }
    }

    fn start(collector: Box<dyn Collector>) -> (Arc<Queue>, Writer) {
        let queue = Arc::new(Queue::new(WhenFull::Drop, 1 << 10));
        let writer = Writer::start(&queue, Sink::to_collector(collector)).unwrap();
        (queue, writer)
    }

    #[tokio::test]
    async fn lines_of_a_hanging_write_are_dropped_once() {
        let (called, is_called) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let (queue, writer) = start(Box::new(HangingCollector { called, may_end }));
        for _ in 0..3 {
            assert!(queue.push(LINE));
        }
        is_called.recv().unwrap();
        assert!(queue.push(LINE));
        writer.finish(Duration::from_millis(1)).await;
        assert_eq!(queue.metrics().dropped, 4);
        // If the write succeeds later, it is not counted as written, too.
        end.send(()).unwrap();
        while Arc::strong_count(&queue) > 1 {
            tokio::task::yield_now().await;
        }
        let metrics = queue.metrics();
        assert_eq!((metrics.written, metrics.dropped), (0, 4));
    }

    #[tokio::test]
    async fn lines_of_a_failed_thread_are_dropped() {
        let (queue, writer) = start(Box::new(PanickingCollector));
        for _ in 0..3 {
            assert!(queue.push(LINE));
        }
        writer.finish(Duration::from_secs(60)).await;
        assert_eq!(queue.metrics().dropped, 3);
    }
}
