//! Requests reloads, for callers outside of the reload task.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::policy_store::status::{ReloadOutcome, StoreClosed, StoreStatus};

/// A handle that requests reloads and waits for their results.
#[derive(Clone, Debug)]
pub struct ReloadHandle(pub(super) mpsc::Sender<Reply>);

/// The channel for the answer to one request.
pub(super) type Reply = oneshot::Sender<ReloadReport>;

/// The result of a reload, and the status after it.
#[derive(Clone, Debug)]
pub struct ReloadReport {
    /// The result.
    pub outcome: ReloadOutcome,
    /// The status after the reload.
    pub status: Arc<StoreStatus>,
}

impl ReloadHandle {
    /// Requests a scan that begins after this call. Waits until its content is published,
    /// rejected, or known to be unchanged.
    ///
    /// A directory that is being written is waited for as in any reload. If it is held back, the
    /// outcome is [`ReloadOutcome::Rejected`]. Dropping the call does not cancel the reload.
    ///
    /// # Errors
    ///
    /// [`StoreClosed`] when the store has stopped.
    pub async fn reload(&self) -> Result<ReloadReport, StoreClosed> {
        let (reply, report) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| StoreClosed)?;
        report.await.map_err(|_| StoreClosed)
    }
}
