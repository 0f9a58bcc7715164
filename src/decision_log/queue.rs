//! A queue of lines to write, bounded in bytes, between many calls and one writer.
//!
//! A call appends its line to a buffer under a lock and continues; nothing here waits for a disk.
//! The writer takes the whole buffer at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::DecisionLogMetrics;
use crate::config::decision_log::WhenFull;

/// Time that a line waits for more lines to be written with it.
const BATCH_DELAY: Duration = Duration::from_millis(50);
/// Bytes that make a batch without waiting any longer.
const BATCH_BYTES: usize = 256 << 10;
/// Most memory that an empty buffer keeps between two batches, in bytes.
const MAX_IDLE_BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Queue {
    when_full: WhenFull,
    capacity_bytes: usize,
    state: Mutex<State>,
    has_lines: Condvar,
    /// True while the capacity is used up. Not in `state`, so that reading it takes no lock.
    is_full: AtomicBool,
    /// Wakes the calls that wait for room.
    space: Notify,
    /// Set from the warning that the queue is full until it has room, so that each is logged once.
    has_warned: AtomicBool,
    written: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    line_count: u64,
    /// Bytes that the writer took and has not written yet.
    taken_bytes: usize,
    /// Lines that the writer took and has not written yet.
    taken_count: u64,
    /// Bytes of lines at which the writer must be woken, if it sleeps.
    wake_at_bytes: Option<usize>,
    /// The writer's deadline, once the queue is closed.
    deadline: Option<Instant>,
    /// Set when the writer stops: no line is written any more.
    has_stopped: bool,
}

impl State {
    /// Returns the bytes that are queued or being written.
    fn held_bytes(&self) -> usize {
        self.lines.len() + self.taken_bytes
    }
}

impl Queue {
    pub(super) fn new(when_full: WhenFull, capacity_bytes: usize) -> Self {
        Self {
            when_full,
            capacity_bytes,
            state: Mutex::default(),
            has_lines: Condvar::new(),
            is_full: AtomicBool::new(false),
            space: Notify::new(),
            has_warned: AtomicBool::new(false),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Returns whether a decision may be made now.
    pub(super) fn has_space(&self) -> bool {
        match self.when_full {
            WhenFull::Drop => true,
            WhenFull::Block => !self.is_full.load(Ordering::Acquire),
        }
    }

    /// Waits until a decision may be made.
    ///
    /// All waiting calls continue together. So the queue exceeds its capacity by at most one line
    /// for each thread.
    pub(super) async fn wait_for_space(&self) {
        while !self.has_space() {
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!("decision log queue is full, blocking calls");
            }
            let notified = self.space.notified();
            tokio::pin!(notified);
            // Registers before the next check, so that no notification after it is missed.
            notified.as_mut().enable();
            if self.has_space() {
                return;
            }
            notified.await;
        }
    }

    /// Appends a line. Returns `false` if it was dropped, which is counted.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        let bytes = state.held_bytes() + line.len();
        let fits = match self.when_full {
            WhenFull::Drop => bytes <= self.capacity_bytes,
            // The caller has a log permit.
            WhenFull::Block => true,
        };
        if state.has_stopped || !fits {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!("decision log queue is full, dropping records");
            }
            return false;
        }
        state.lines.extend_from_slice(line);
        state.line_count += 1;
        if bytes >= self.capacity_bytes {
            self.is_full.store(true, Ordering::Release);
        }
        let wakes_writer = (state.wake_at_bytes).is_some_and(|at| state.lines.len() >= at);
        if wakes_writer {
            state.wake_at_bytes = None;
        }
        drop(state);
        if wakes_writer {
            self.has_lines.notify_one();
        }
        true
    }

    /// Waits for a batch, and swaps it into `batch`, which must be empty. Returns `false` at the
    /// end.
    pub(super) fn take_batch(&self, batch: &mut Vec<u8>) -> bool {
        batch.shrink_to(MAX_IDLE_BUFFER_BYTES);
        let mut state = self.lock();
        loop {
            // Under steady load the first line need not wake the writer: more will come.
            state = self.wait_for_batch(state);
            if !state.lines.is_empty() {
                break;
            }
            if state.deadline.is_some() {
                self.stop(&mut state);
                return false;
            }
            state.wake_at_bytes = Some(1);
            while state.lines.is_empty() && state.deadline.is_none() {
                state = (self.has_lines.wait(state)).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.wake_at_bytes = None;
        std::mem::swap(&mut state.lines, batch);
        state.taken_bytes = batch.len();
        state.taken_count = std::mem::take(&mut state.line_count);
        true
    }

    /// Waits until there is a full batch, at most `BATCH_DELAY`.
    fn wait_for_batch<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let end = Instant::now() + BATCH_DELAY;
        while state.lines.len() < BATCH_BYTES && state.deadline.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.wake_at_bytes = Some(BATCH_BYTES);
            state = self.wait_timeout(state, left);
        }
        state
    }

    /// Removes these lines of the batch: `refused` of them were rejected permanently, the others
    /// were written.
    pub(super) fn complete(&self, lines: &[u8], refused: u64) {
        let mut state = self.lock();
        state.taken_bytes = state.taken_bytes.saturating_sub(lines.len());
        let count = match state.taken_bytes {
            // Usually all lines are complete, and need not be counted again.
            0 => state.taken_count,
            _ => count_lines(lines).min(state.taken_count),
        };
        state.taken_count -= count;
        let refused = refused.min(count);
        self.written.fetch_add(count - refused, Ordering::Relaxed);
        self.refused.fetch_add(refused, Ordering::Relaxed);
        let bytes = state.held_bytes();
        let has_space = bytes < self.capacity_bytes && !state.has_stopped;
        if has_space {
            self.is_full.store(false, Ordering::Release);
        }
        drop(state);
        if has_space {
            self.space.notify_waiters();
        }
        // Not before it is half empty: otherwise the same messages would be logged again at once.
        if bytes <= self.capacity_bytes / 2 && self.has_warned.swap(false, Ordering::Relaxed) {
            let dropped = self.dropped.load(Ordering::Relaxed);
            tracing::info!(dropped, "decision log queue is no longer full");
        }
    }

    pub(super) fn count_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for `pause` before a retry. Returns `false` if the deadline has passed.
    ///
    /// Once the queue is closed, it waits for `last_pause` at most: there may be no later chance.
    pub(super) fn wait_to_retry(&self, pause: Duration, last_pause: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let end = match state.deadline {
                Some(deadline) if now >= deadline => return false,
                Some(deadline) => deadline.min(start + pause.min(last_pause)),
                None => start + pause,
            };
            let left = end.saturating_duration_since(now);
            if left.is_zero() {
                return true;
            }
            state = self.wait_timeout(state, left);
        }
    }

    /// Closes the queue: the writer must write all lines by `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        self.lock().deadline = Some(deadline);
        self.has_lines.notify_one();
    }

    /// Drops all lines that are not written. Returns their number.
    pub(super) fn abandon(&self) -> u64 {
        let mut state = self.lock();
        self.stop(&mut state);
        state.lines = Vec::new();
        let lost = std::mem::take(&mut state.line_count) + std::mem::take(&mut state.taken_count);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
        lost
    }

    /// Stops writing. Calls that wait for room from here on wait until the process ends.
    fn stop(&self, state: &mut State) {
        state.has_stopped = true;
        self.is_full.store(true, Ordering::Release);
    }

    pub(super) fn metrics(&self) -> DecisionLogMetrics {
        let queue_bytes = self.lock().held_bytes() as u64;
        DecisionLogMetrics {
            written: self.written.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            queue_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Under the lock only an allocation can fail half-way, which aborts the process: a poisoned
        // state is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_timeout<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Duration,
    ) -> MutexGuard<'a, State> {
        let waited = self.has_lines.wait_timeout(state, timeout);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests;
