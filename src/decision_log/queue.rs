//! Lines that wait to be written: bounded in bytes, filled by calls, emptied by one writer.
//!
//! A call puts its line at the end of a buffer under a lock and goes on; nothing here waits for a
//! disk. The writer takes the whole buffer at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::DecisionLogFigures;
use crate::config::decision_log::WhenFull;

/// How long a line waits for others to be written with.
const GATHER: Duration = Duration::from_millis(50);
/// So many bytes are a batch, whatever the time.
const BATCH_BYTES: usize = 256 << 10;
/// Between two batches the buffer's memory is kept, if it is no more than this.
const LARGEST_KEPT_BYTES: usize = 1 << 20;

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    when_full: WhenFull,
    capacity_bytes: usize,
    inner: Mutex<Inner>,
    /// Wakes the writer.
    arrived: Condvar,
    /// Whether as much waits as may. Told apart from `inner`, so that looking takes no lock.
    is_full: AtomicBool,
    /// Wakes the calls that wait for room.
    room: Notify,
    /// Whether it has been said that lines are dropped, or that calls wait.
    told: AtomicBool,
    written: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    lines: Vec<u8>,
    /// How many.
    count: u64,
    /// Bytes that the writer has taken and not yet written.
    taken: usize,
    /// How many lines that is.
    taken_count: u64,
    /// The writer waits for the first line of a batch, or for a batch to become large.
    waits_for: Option<usize>,
    /// When the writer must be done, once nothing more is to come.
    end: Option<Instant>,
    /// The writer has gone; nothing that comes now is ever written.
    ended: bool,
}

impl Queue {
    pub(super) fn new(when_full: WhenFull, capacity_bytes: usize) -> Self {
        Self {
            when_full,
            capacity_bytes,
            inner: Mutex::default(),
            arrived: Condvar::new(),
            is_full: AtomicBool::new(false),
            room: Notify::new(),
            told: AtomicBool::new(false),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Whether a decision may be made now.
    pub(super) fn has_room(&self) -> bool {
        match self.when_full {
            WhenFull::Drop => true,
            WhenFull::Block => !self.is_full.load(Ordering::Acquire),
        }
    }

    /// Returns when a decision may be made.
    ///
    /// Calls that were let in together add a line each, so at most one line for each thread comes
    /// on top of the capacity.
    pub(super) async fn wait_for_room(&self) {
        while !self.has_room() {
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!("the decision log does not keep up: calls wait for it");
            }
            let made = self.room.notified();
            tokio::pin!(made);
            // From here on it hears of room, so none is missed that comes after this look.
            made.as_mut().enable();
            if self.has_room() {
                return;
            }
            made.await;
        }
    }

    /// Adds a line; `false` when it was dropped, which is counted.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut inner = self.lock();
        let held = inner.lines.len() + inner.taken;
        let fits = match self.when_full {
            WhenFull::Drop => held + line.len() <= self.capacity_bytes,
            // Whoever comes here was told that there is room.
            WhenFull::Block => true,
        };
        if inner.ended || !fits {
            drop(inner);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!("the decision log does not keep up: decisions are not logged");
            }
            return false;
        }
        inner.lines.extend_from_slice(line);
        inner.count += 1;
        if held + line.len() >= self.capacity_bytes {
            self.is_full.store(true, Ordering::Release);
        }
        let wakes = inner
            .waits_for
            .is_some_and(|bytes| inner.lines.len() >= bytes);
        if wakes {
            inner.waits_for = None;
        }
        drop(inner);
        if wakes {
            self.arrived.notify_one();
        }
        true
    }

    /// Swaps what has come into `batch`, which is empty, once there is enough of it or the first
    /// has waited for a while; `false` when nothing more will come.
    pub(super) fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.shrink_to(LARGEST_KEPT_BYTES);
        let mut inner = self.lock();
        loop {
            // Not woken by the first line, while they come all the time: there will be more.
            inner = self.gather(inner);
            if !inner.lines.is_empty() {
                break;
            }
            if inner.end.is_some() {
                self.ended(&mut inner);
                return false;
            }
            inner.waits_for = Some(1);
            while inner.lines.is_empty() && inner.end.is_none() {
                inner = self.wait(inner);
            }
        }
        inner.waits_for = None;
        std::mem::swap(&mut inner.lines, batch);
        inner.taken = batch.len();
        inner.taken_count = std::mem::take(&mut inner.count);
        true
    }

    /// Waits until there is a batch, for a while at most.
    fn gather<'a>(&self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let gathered = Instant::now() + GATHER;
        while inner.lines.len() < BATCH_BYTES && inner.end.is_none() {
            let left = gathered.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner.waits_for = Some(BATCH_BYTES);
            inner = self.wait_at_most(inner, left);
        }
        inner
    }

    /// Notes that these lines of the batch need no more be written: so many were refused, the others
    /// are where they belong.
    pub(super) fn settled(&self, lines: &[u8], refused: u64) {
        let mut inner = self.lock();
        inner.taken = inner.taken.saturating_sub(lines.len());
        let count = match inner.taken {
            // Mostly it is all of them, which need not be counted again.
            0 => inner.taken_count,
            _ => count(lines).min(inner.taken_count),
        };
        inner.taken_count -= count;
        let refused = refused.min(count);
        self.written.fetch_add(count - refused, Ordering::Relaxed);
        self.refused.fetch_add(refused, Ordering::Relaxed);
        let held = inner.lines.len() + inner.taken;
        let has_room = held < self.capacity_bytes && !inner.ended;
        if has_room {
            self.is_full.store(false, Ordering::Release);
        }
        drop(inner);
        if has_room {
            self.room.notify_waiters();
        }
        // Half is enough not to say the same again at once.
        if held <= self.capacity_bytes / 2 && self.told.swap(false, Ordering::Relaxed) {
            let dropped = self.dropped.load(Ordering::Relaxed);
            tracing::info!(dropped, "the decision log keeps up again");
        }
    }

    /// Notes that writing failed.
    pub(super) fn write_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets `pause` pass before writing is tried again; `false` when there is no time for that. When
    /// the end is near, no more than `last_pause` passes: there may be no other chance.
    pub(super) fn rest(&self, pause: Duration, last_pause: Duration) -> bool {
        let begun = Instant::now();
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            if inner.end.is_some_and(|end| now >= end) {
                return false;
            }
            let pause = inner.end.map_or(pause, |_| pause.min(last_pause));
            let left = (begun + pause).saturating_duration_since(now);
            if left.is_zero() {
                return true;
            }
            let left = inner
                .end
                .map_or(left, |end| left.min(end.saturating_duration_since(now)));
            inner = self.wait_at_most(inner, left);
        }
    }

    /// Says that nothing more will come, and that what is here should be written by `end`.
    pub(super) fn close(&self, end: Instant) {
        self.lock().end = Some(end);
        self.arrived.notify_one();
    }

    /// Gives up what is not written; how many lines that is.
    pub(super) fn abandon(&self) -> u64 {
        let mut inner = self.lock();
        self.ended(&mut inner);
        inner.lines = Vec::new();
        let lost = std::mem::take(&mut inner.count) + std::mem::take(&mut inner.taken_count);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
        lost
    }

    /// From here on a call that waits for room waits for the end of the process.
    fn ended(&self, inner: &mut Inner) {
        inner.ended = true;
        self.is_full.store(true, Ordering::Release);
    }

    pub(super) fn figures(&self) -> DecisionLogFigures {
        let inner = self.lock();
        let queue_bytes = (inner.lines.len() + inner.taken) as u64;
        drop(inner);
        DecisionLogFigures {
            written: self.written.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            queue_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock can fail half way but for want of memory, which ends
        // the process.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.arrived
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_at_most<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        most: Duration,
    ) -> MutexGuard<'a, Inner> {
        let waited = self.arrived.wait_timeout(inner, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How many lines these are.
fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests;
