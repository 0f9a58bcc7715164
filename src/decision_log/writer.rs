//! The thread that writes: takes what has come, puts it where it belongs, and does not give up.
//!
//! What cannot be written is tried again until it can, or until the process must end. Meanwhile the
//! queue fills, and what becomes of further decisions is its affair. Only what a collector refuses
//! for good is let go: all that comes after would wait behind it.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::lines::{Lines, Receipt, Refusal, SendError};
use super::queue::Queue;

/// Between two attempts at writing, at least.
const PAUSE: Duration = Duration::from_millis(250);

/// The writing end of the log. Dropped without [`finish`](Self::finish), it loses what waits.
#[must_use]
#[derive(Debug)]
pub struct Writer {
    queue: Arc<Queue>,
    /// Says that the thread has come to its end.
    ended: oneshot::Receiver<()>,
}

impl Writer {
    pub(super) fn start(queue: &Arc<Queue>, lines: Lines) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let of_thread = Arc::clone(queue);
        thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(move || {
                write_all(&of_thread, lines);
                // Nobody may be waiting for it.
                let _ = end.send(());
            })?;
        Ok(Self {
            queue: Arc::clone(queue),
            ended,
        })
    }

    /// Writes what waits and ends, at the latest after `within`. What is not written then is
    /// counted as dropped, and told.
    pub async fn finish(self, within: Duration) {
        let Self { queue, ended } = self;
        queue.close(Instant::now() + within);
        // The thread gives up by itself, unless it hangs in a write.
        let patience = within + PAUSE;
        match tokio::time::timeout(patience, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                tracing::error!("the thread that writes the decision log has failed");
                lost(queue.abandon());
            }
            Err(_elapsed) => lost(queue.abandon()),
        }
    }
}

fn lost(decisions: u64) {
    if decisions > 0 {
        tracing::warn!(decisions, "the decision log ends without these");
    }
}

/// Writes until nothing more comes.
fn write_all(queue: &Queue, mut lines: Lines) {
    let mut batch = Vec::new();
    let mut trouble = Trouble::default();
    while queue.take(&mut batch) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            match lines.write(rest) {
                Ok(Receipt { bytes, refusal }) => {
                    let (there, left) = rest.split_at_checked(bytes).unwrap_or((rest, &[]));
                    queue.settled(there, refusal.as_ref().map_or(0, |refusal| refusal.lines));
                    rest = left;
                    // A part of a line says nothing yet.
                    if bytes > 0 {
                        trouble.is_over(refusal.as_ref());
                    }
                }
                Err(error) => {
                    queue.write_failed();
                    trouble.is_met(&error);
                    let pause = error.wait.map_or(PAUSE, |wait| wait.max(PAUSE));
                    if !queue.rest(pause, PAUSE) {
                        return lost(queue.abandon());
                    }
                }
            }
        }
        batch.clear();
    }
    if let Err(error) = lines.sync() {
        tracing::warn!(%error, "cannot tell whether the disk holds all of the decision log");
    }
}

/// What has been said of trouble with writing: once for each time of it, for it is met anew at every
/// attempt.
#[derive(Default)]
struct Trouble {
    is_failing: bool,
    is_refused: bool,
}

impl Trouble {
    /// Something cannot be written now.
    fn is_met(&mut self, error: &SendError) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(%error, "cannot write the decision log");
        }
    }

    /// Lines are settled, if only by a `refusal`.
    fn is_over(&mut self, refusal: Option<&Refusal>) {
        match refusal {
            None => {
                if self.is_failing || self.is_refused {
                    tracing::info!("the decision log is written again");
                }
                *self = Self::default();
            }
            Some(Refusal { lines, reason }) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(
                        decisions = lines,
                        error = reason,
                        "the collector refuses decisions for good: they are dropped",
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::lines::Collector;
    use super::*;
    use crate::config::decision_log::WhenFull;

    const LINE: &[u8] = b"1234567\n";

    /// Does not come back from the first attempt before it is told to.
    #[derive(Debug)]
    struct Hangs {
        called: mpsc::Sender<()>,
        may_end: mpsc::Receiver<()>,
    }

    impl Collector for Hangs {
        fn send(&mut self, lines: &[u8]) -> Result<Receipt, SendError> {
            self.called.send(()).unwrap();
            self.may_end.recv().unwrap();
            Ok(Receipt {
                bytes: lines.len(),
                refusal: None,
            })
        }
    }

    /// Fails as nothing should.
    #[derive(Debug)]
    struct Panics;

    impl Collector for Panics {
        fn send(&mut self, _: &[u8]) -> Result<Receipt, SendError> {
            std::panic::resume_unwind(Box::new("nothing to send with"))
        }
    }

    fn start(collector: Box<dyn Collector>) -> (Arc<Queue>, Writer) {
        let queue = Arc::new(Queue::new(WhenFull::Drop, 1 << 10));
        let writer = Writer::start(&queue, Lines::to_collector(collector)).unwrap();
        (queue, writer)
    }

    #[tokio::test]
    async fn what_a_thread_that_hangs_had_taken_is_lost_and_counted_once() {
        let (called, is_called) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let (queue, writer) = start(Box::new(Hangs { called, may_end }));
        for _ in 0..3 {
            assert!(queue.push(LINE));
        }
        is_called.recv().unwrap();
        assert!(queue.push(LINE));
        writer.finish(Duration::from_millis(1)).await;
        assert_eq!(queue.figures().dropped, 4);
        // What comes of it after all is not counted as written, too.
        end.send(()).unwrap();
        while Arc::strong_count(&queue) > 1 {
            tokio::task::yield_now().await;
        }
        let figures = queue.figures();
        assert_eq!((figures.written, figures.dropped), (0, 4));
    }

    #[tokio::test]
    async fn what_a_thread_that_failed_had_taken_is_lost_and_counted() {
        let (queue, writer) = start(Box::new(Panics));
        for _ in 0..3 {
            assert!(queue.push(LINE));
        }
        writer.finish(Duration::from_secs(60)).await;
        assert_eq!(queue.figures().dropped, 3);
    }
}
