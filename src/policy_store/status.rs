//! Reports the state of the policy store: the current snapshot, the last rejection, and counts.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::id::Revision;
use crate::pdp::snapshot::Counts;
use crate::pdp::sources::LeftOutCounts;

/// Most diagnostics of one kind in a status.
pub const MAX_DIAGNOSTICS: usize = 100;

/// The state of the policy store at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// The current snapshot; `None` before the first load.
    pub loaded: Option<LoadedSnapshot>,
    /// The rejection of the directory's content; `None` if that content is loaded.
    pub rejected: Option<RejectedReload>,
    /// The first [`MAX_DIAGNOSTICS`] warnings for policy authors.
    pub warnings: Vec<Diagnostic>,
    /// The numbers of files that `.cedarignore` leaves out.
    pub left_out: LeftOutCounts,
    /// Counts since startup.
    pub reloads: ReloadCounts,
}

/// A summary of the current snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedSnapshot {
    /// The digest of its content.
    pub revision: Revision,
    /// The time at which it was published.
    pub at: SystemTime,
    /// The numbers of its policies, templates, links and entities.
    pub counts: Counts,
}

/// A change of the directory that was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedReload {
    /// The time of the rejection.
    pub at: SystemTime,
    /// The first [`MAX_DIAGNOSTICS`] reasons.
    pub diagnostics: Vec<Diagnostic>,
    /// The number of all reasons.
    pub total: usize,
}

impl RejectedReload {
    pub(super) fn now(diagnostics: &[Diagnostic]) -> Self {
        Self {
            at: SystemTime::now(),
            diagnostics: diagnostics.iter().take(MAX_DIAGNOSTICS).cloned().collect(),
            total: diagnostics.len(),
        }
    }
}

/// The numbers of reloads since startup, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReloadCounts {
    /// New content was published, the first included.
    pub reloaded: u64,
    /// The directory still held the current content. A change of this count wakes no reader.
    pub unchanged: u64,
    /// New content was rejected.
    #[serde(rename = "refused")]
    pub rejected: u64,
    /// Files were still being written when `max_reload_delay` had passed.
    pub held_back: u64,
}

/// The result of a requested reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReloadOutcome {
    /// New content was published.
    Reloaded,
    /// The directory holds the current content.
    Unchanged,
    /// The directory's content cannot be loaded, or is still being written.
    Rejected,
}

/// The error that the policy store has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy store has stopped")]
pub struct StoreClosed;

/// The read side of the status.
///
/// A revision appears here only after its snapshot was published.
#[derive(Clone, Debug)]
pub struct StatusReader(pub(super) watch::Receiver<Arc<StoreStatus>>);

impl StatusReader {
    /// Creates a reader of `status`, which never changes.
    #[cfg(test)]
    pub(crate) fn of(status: StoreStatus) -> Self {
        Self(watch::channel(Arc::new(status)).1)
    }

    /// Returns the current status.
    #[must_use]
    pub fn load(&self) -> Arc<StoreStatus> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for a status that this reader has not waited for yet. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), StoreClosed> {
        self.0.changed().await.map_err(|_| StoreClosed)
    }
}
