//! Holds the current snapshot: one side publishes it, many read it.

use std::sync::Arc;

use tokio::sync::watch;

use super::status::StoreClosed;
use crate::pdp::snapshot::Snapshot;

/// The write side of the current snapshot. One per process, so not `Clone`.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Option<Arc<Snapshot>>>);

/// The read side of the current snapshot.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Option<Arc<Snapshot>>>);

/// Creates both sides, without a snapshot.
#[must_use]
pub fn snapshots() -> (Publisher, Reader) {
    let (publisher, reader) = watch::channel(None);
    (Publisher(publisher), Reader(reader))
}

impl Publisher {
    /// Makes `snapshot` the current one, for every later [`load`](Reader::load).
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.0.send_replace(Some(snapshot));
    }
}

impl Reader {
    /// Returns the current snapshot; `None` before the first load.
    #[must_use]
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.0.borrow().clone()
    }

    /// Marks the current snapshot as seen: [`changed`](Self::changed) waits for a later one.
    pub fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for a snapshot that this reader has not seen yet. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), StoreClosed> {
        self.0.changed().await.map_err(|_| StoreClosed)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::pdp::compile;
    use crate::pdp::settings::Settings;
    use crate::pdp::sources::Sources;

    #[test]
    fn seen_snapshots_are_no_change() {
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
