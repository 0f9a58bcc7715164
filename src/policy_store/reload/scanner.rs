//! Scans the directory on its own thread, and waits for changes of what the scan has seen.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::StoreSettings;
use crate::pdp::diagnostic::Diagnostic;
use crate::policy_store::background::{BackgroundJob, Priority};
use crate::policy_store::directory::{self, DirectoryScan};
use crate::watch::{Changes, Watcher, watch};

/// Longest pause between two scans of a directory that keeps changing, unless the quiet period is
/// longer.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Scans and watches one policy directory.
#[derive(Debug)]
pub(super) struct Scanner {
    settings: Arc<StoreSettings>,
    /// `None` while the scanning thread has it.
    watcher: Option<Watcher>,
    changes: Changes,
    last_scan: Option<Arc<DirectoryScan>>,
    /// Time to wait after the latest scan: a large directory that changes all the time must not be
    /// read all the time.
    pub(super) backoff: Duration,
}

impl Scanner {
    pub(super) fn new(settings: Arc<StoreSettings>) -> Self {
        let (watcher, changes) = watch(settings.watch);
        Self {
            settings,
            watcher: Some(watcher),
            changes,
            last_scan: None,
            backoff: Duration::ZERO,
        }
    }

    /// Waits for the backoff, and then until the directory may have changed. Cancel-safe.
    pub(super) async fn wait_for_change(&mut self) {
        tokio::time::sleep(self.backoff).await;
        self.changes.next().await;
    }

    /// Scans the directory, and watches the paths that the scan has seen.
    pub(super) async fn scan(&mut self, priority: Priority) -> Arc<DirectoryScan> {
        let settings = Arc::clone(&self.settings);
        let previous = self.last_scan.take();
        let watcher = self.watcher.take();
        let started_at = Instant::now();
        let job = BackgroundJob::spawn(priority, move || {
            let (directory, limits) = (&settings.directory, &settings.limits);
            let scan = directory::scan(directory, limits, previous.as_deref(), &priority.workers());
            let watcher = watcher.map(|mut watcher| {
                watcher.set_paths(&scan.watched_paths);
                watcher
            });
            (scan, watcher)
        });
        let result = job.result().await;
        self.backoff = started_at.elapsed().saturating_mul(2).min(MAX_PAUSE);
        let scan = match result {
            Ok((scan, watcher)) => {
                self.watcher = watcher;
                scan
            }
            Err(error) => {
                // The watcher was lost with the thread.
                let (watcher, changes) = watch(self.settings.watch);
                (self.watcher, self.changes) = (Some(watcher), changes);
                let text = format!("internal error while reading: {error}");
                DirectoryScan::failed(Diagnostic::error("", text))
            }
        };
        let scan = Arc::new(scan);
        self.last_scan = Some(Arc::clone(&scan));
        scan
    }
}
