//! What the policy store tells about itself: what is in force, what was refused, what it has done.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::id::Revision;
use crate::pdp::snapshot::Counts;

/// Most findings that a status holds of one kind.
pub const FINDINGS_TOLD: usize = 100;

/// The state of the policy store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// What is in force; `None` when nothing has been loaded yet.
    pub loaded: Option<Loaded>,
    /// Why the content of the directory is not what is in force; `None` when it is.
    pub refused: Option<RefusedReload>,
    /// What the author should look at, the first [`FINDINGS_TOLD`].
    pub warnings: Vec<Diagnostic>,
    /// What was done since the start.
    pub reloads: ReloadCounts,
}

/// The snapshot in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its content digest.
    pub revision: Revision,
    /// When it was put in force.
    pub at: SystemTime,
    /// What it holds.
    pub counts: Counts,
}

/// A change of the directory that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedReload {
    /// When it was refused.
    pub at: SystemTime,
    /// Why: the first [`FINDINGS_TOLD`].
    pub diagnostics: Vec<Diagnostic>,
    /// How many reasons there are.
    pub total: usize,
}

impl RefusedReload {
    pub(super) fn now(diagnostics: &[Diagnostic]) -> Self {
        Self {
            at: SystemTime::now(),
            diagnostics: diagnostics.iter().take(FINDINGS_TOLD).cloned().collect(),
            total: diagnostics.len(),
        }
    }
}

/// How often each thing happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadCounts {
    /// New content was put in force, the first included.
    pub reloaded: u64,
    /// A look found the content in force. Changes of this count alone wake no reader.
    pub unchanged: u64,
    /// New content was refused.
    pub refused: u64,
    /// A change did not come to rest in time.
    pub held_back: u64,
}

/// What became of a reload that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReloadOutcome {
    /// New content is in force.
    Reloaded,
    /// The content in force is what the directory holds.
    Unchanged,
    /// What the directory holds cannot be loaded, or is still being written.
    Refused,
}

/// The policy store has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy store has ended")]
pub struct StoreClosed;

/// The read side of the status.
///
/// A revision is told here only after its snapshot was put in force.
#[derive(Clone, Debug)]
pub struct StatusReader(pub(super) watch::Receiver<Arc<StoreStatus>>);

impl StatusReader {
    /// One that tells `status` and nothing else.
    #[cfg(test)]
    pub(crate) fn of(status: StoreStatus) -> Self {
        Self(watch::channel(Arc::new(status)).1)
    }

    /// The status now.
    #[must_use]
    pub fn load(&self) -> Arc<StoreStatus> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until the status has changed since this was last asked. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`StoreClosed`] when it will not change any more.
    pub async fn changed(&mut self) -> Result<(), StoreClosed> {
        self.0.changed().await.map_err(|_| StoreClosed)
    }
}
