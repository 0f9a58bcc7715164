//! Filters the events of the file system down to those that concern the watched paths.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind};
use tokio::sync::Notify;

use super::paths::WatchedPaths;

/// A filter of file system events, shared by the event thread, the `Watcher` and `Changes`.
#[derive(Debug, Default)]
pub(super) struct EventFilter {
    state: Mutex<FilterState>,
    pub(super) changed: Notify,
}

/// The watched paths, and those whose watch is no longer reliable.
#[derive(Debug, Default)]
pub(super) struct FilterState {
    pub(super) paths: WatchedPaths,
    /// Paths that were moved or removed since `paths` were last set. notify drops its watch of
    /// such a path, even if a new directory already has that name; it must be watched again.
    pub(super) stale: BTreeSet<PathBuf>,
}

impl EventFilter {
    pub(super) fn lock(&self) -> MutexGuard<'_, FilterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives an event from notify, and reports a change if the event may be one.
    pub(super) fn on_event(&self, event: notify::Result<Event>) {
        let is_change = match event {
            Ok(event) => self.lock().record(&event),
            // Any failure may have lost an event.
            Err(_) => true,
        };
        if is_change {
            self.changed.notify_one();
        }
    }
}

impl FilterState {
    /// Records the paths that `event` makes stale. Returns whether it may be a change.
    pub(super) fn record(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.stale.extend(self.paths.directories().cloned());
            return true;
        }
        let removes_path = match event.kind {
            // Our own reads must not trigger the next read.
            EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write) => {
                return false;
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
            EventKind::Any
            | EventKind::Access(_)
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Other => false,
        };
        let mut is_change = event.paths.is_empty();
        for path in &event.paths {
            is_change |= self.paths.contains(path);
            if removes_path && self.paths.has_directory_at_or_below(path) {
                self.stale.insert(path.clone());
                is_change = true;
            }
        }
        is_change
    }
}
