//! Where policies come from, and which snapshot of them is in force.
//!
//! `source` reads the directory, `reload` decides when what was read replaces the snapshot in
//! force, `status` is what it tells about that; `aside` runs the long work of both. Nothing here
//! evaluates a policy, and nothing here answers a caller.

mod aside;
pub mod reload;
pub mod source;
pub mod status;
mod suspicion;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

pub use crate::config::store::{SourceLimits, StoreSettings};
use crate::pdp::snapshot::Snapshot;
pub use reload::{OpenRefused, Opened, Reloader, open};
pub use status::{
    Loaded, RefusedReload, ReloadCounts, ReloadOutcome, StatusReader, StoreClosed, StoreStatus,
};

/// The write side of the snapshot in force. One per process, so not `Clone`.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Option<Arc<Snapshot>>>);

/// The read side of the snapshot in force.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Option<Arc<Snapshot>>>);

/// Both sides, with no snapshot in force yet.
#[must_use]
pub fn snapshots() -> (Publisher, Reader) {
    let (publisher, reader) = watch::channel(None);
    (Publisher(publisher), Reader(reader))
}

impl Publisher {
    /// Puts `snapshot` in force: who loads from now on gets this one.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.0.send_replace(Some(snapshot));
    }
}

impl Reader {
    /// The snapshot in force; `None` when nothing has been loaded yet.
    #[must_use]
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.0.borrow().clone()
    }

    /// Has the snapshot in force count as asked for: only a later one ends
    /// [`changed`](Self::changed).
    pub fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits until a snapshot was put in force since this was last asked. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`StoreClosed`] when there will be no other.
    pub async fn changed(&mut self) -> Result<(), StoreClosed> {
        self.0.changed().await.map_err(|_| StoreClosed)
    }
}

/// Asks for reloads, and waits for them.
#[derive(Clone, Debug)]
pub struct Reloads(mpsc::Sender<Waiting>);

/// A caller of [`Reloads::reload`].
type Waiting = oneshot::Sender<ReloadReport>;

/// What became of a reload, and how the store was then.
#[derive(Clone, Debug)]
pub struct ReloadReport {
    /// What became of it.
    pub outcome: ReloadOutcome,
    /// The status after it.
    pub status: Arc<StoreStatus>,
}

/// The store has ended, or ended before it could say what became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy store reloads no more")]
pub struct ReloadsClosed;

impl Reloads {
    /// Has the directory read again, by a reading that begins after this call, and waits until
    /// its content is in force, known to be in force already, or refused.
    ///
    /// Waits for a directory that is being written as long as any other reload would: its content
    /// is then held back, which is [`ReloadOutcome::Refused`]. Dropping the call leaves the reload
    /// to go on.
    ///
    /// # Errors
    ///
    /// [`ReloadsClosed`] when the store has ended.
    pub async fn reload(&self) -> Result<ReloadReport, ReloadsClosed> {
        let (answer, report) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| ReloadsClosed)?;
        report.await.map_err(|_| ReloadsClosed)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::pdp::compile;
    use crate::pdp::snapshot::Settings;
    use crate::pdp::sources::Sources;

    #[test]
    fn what_was_marked_as_seen_is_no_change() {
        let empty = Sources::new(Vec::new(), Vec::new(), Vec::new());
        let snapshot = Arc::new(compile(&empty, &Settings::default()).unwrap());
        let (mut publisher, mut reader) = snapshots();
        let mut context = Context::from_waker(Waker::noop());
        publisher.publish(Arc::clone(&snapshot));
        reader.mark_seen();
        assert!(pin!(reader.changed()).poll(&mut context).is_pending());
        publisher.publish(snapshot);
        assert!(pin!(reader.changed()).poll(&mut context).is_ready());
    }
}
