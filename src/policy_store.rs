//! Where policies come from, and which snapshot of them is in force.
//!
//! `source` reads the directory, `reload` decides when what was read replaces the snapshot in
//! force, `status` is what it tells about that. Nothing here evaluates a policy, and nothing here
//! answers a caller.

pub mod reload;
pub mod source;
pub mod status;
mod suspicion;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::pdp::snapshot::{Settings, Snapshot};
pub use reload::{OpenRefused, Opened, ReloadReport, Reloader, Reloads, ReloadsClosed, open};
pub use source::SourceLimits;
pub use status::{
    Loaded, RefusedReload, ReloadCounts, ReloadOutcome, StatusReader, StoreClosed, StoreStatus,
};

/// What the operator decided about the policy directory.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The policy directory, or a link to it.
    pub directory: PathBuf,
    /// How much is read of it at most.
    pub limits: SourceLimits,
    /// How its content is checked and decides.
    pub deciding: Settings,
    /// How changes are noticed.
    pub watch: crate::watch::Mode,
    /// The longest time from one look at the directory to the next.
    pub poll: Duration,
    /// A change is taken when nothing was written for this long.
    pub quiet: Duration,
    /// A change that does not come to rest within this is reported as held back.
    pub longest_delay: Duration,
    /// Whether what may be a mistake (a directory, schema or policy file that becomes empty) is
    /// loaded all the same.
    pub allow_empty: bool,
    /// Whether to wait for a directory that is bad at the start to become good.
    pub start_unready: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("./policies"),
            limits: SourceLimits::default(),
            deciding: Settings::default(),
            watch: crate::watch::Mode::default(),
            poll: Duration::from_secs(5),
            quiet: Duration::from_millis(50),
            longest_delay: Duration::from_secs(5),
            allow_empty: false,
            start_unready: false,
        }
    }
}

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

    /// Waits until a snapshot was put in force since this was last asked. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`StoreClosed`] when there will be no other.
    pub async fn changed(&mut self) -> Result<(), StoreClosed> {
        self.0.changed().await.map_err(|_| StoreClosed)
    }
}
