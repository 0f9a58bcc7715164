//! Reports that watched paths may have changed: by file system events, and by a slow poll.
//!
//! A report is a hint: the receiver reads the files again and compares. This module reads no file
//! content and knows no policies. Only this module names notify.

mod event_filter;
pub mod files;
pub mod links;
mod paths;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use event_filter::EventFilter;
pub use paths::WatchedPaths;

/// The source of change reports: file system events or polling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// File system events, backed up by polling.
    #[default]
    Events,
    /// Polling alone, for file systems without events.
    Poll,
}

/// Settings for watching files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// The source of change reports.
    pub mode: Mode,
    /// Longest time from one report to the next, even if no event arrives.
    pub poll: Duration,
}

/// Starts watching. No path is watched until [`Watcher::set_paths`].
#[must_use]
pub fn watch(settings: WatchSettings) -> (Watcher, Changes) {
    let filter = Arc::new(EventFilter::default());
    let mut watcher = Watcher {
        events: None,
        watched: BTreeMap::new(),
        filter: Arc::clone(&filter),
        has_warned: false,
    };
    match settings.mode {
        Mode::Events => {
            let receiver = Arc::clone(&filter);
            match notify::recommended_watcher(move |event| receiver.on_event(event)) {
                Ok(events) => watcher.events = Some(events),
                Err(error) => watcher.warn_once(&error),
            }
        }
        Mode::Poll => {}
    }
    let poll = settings.poll;
    (watcher, Changes { filter, poll })
}

/// The receiver of change reports. Reports that nobody waited for are merged into one.
#[derive(Debug)]
pub struct Changes {
    filter: Arc<EventFilter>,
    poll: Duration,
}

impl Changes {
    /// Waits until a watched path may have changed, or until the next poll is due.
    ///
    /// Cancel-safe: a report that was not returned is not lost.
    pub async fn next(&mut self) {
        tokio::select! {
            () = self.filter.changed.notified() => {}
            () = tokio::time::sleep(self.poll) => {}
        }
    }
}

/// A subscription to the events of the watched directories.
#[derive(Debug)]
pub struct Watcher {
    /// `None` when polling alone.
    events: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, DirectoryId>,
    filter: Arc<EventFilter>,
    has_warned: bool,
}

/// Device and inode. Two directories that had the same path one after the other differ in it.
type DirectoryId = (u64, u64);

fn directory_id(path: &Path) -> Option<DirectoryId> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Watcher {
    /// Watches `paths` from now on, and no others.
    ///
    /// Reports a change if a directory is newly watched, because it may have changed before.
    /// If the system refuses a watch, logs that once and relies on the poll. Blocks for some
    /// system calls per directory.
    pub fn set_paths(&mut self, paths: &WatchedPaths) {
        let Some(mut events) = self.events.take() else {
            return;
        };
        self.unwatch_old(&mut events, paths);
        let is_new = self.watch_new(&mut events, paths);
        self.events = Some(events);
        if is_new {
            self.filter.changed.notify_one();
        }
    }

    /// Drops the watches of directories that are not in `paths`, or that were replaced.
    fn unwatch_old(&mut self, events: &mut RecommendedWatcher, paths: &WatchedPaths) {
        let stale = {
            let mut filter = self.filter.lock();
            filter.paths = paths.clone();
            std::mem::take(&mut filter.stale)
        };
        self.watched.retain(|path, id| {
            let is_valid = paths.has_directory(path)
                && !stale.iter().any(|moved| path.starts_with(moved))
                && directory_id(path) == Some(*id);
            if !is_valid {
                // An error means that the system has dropped the watch already.
                let _ = events.unwatch(path);
            }
            is_valid
        });
    }

    /// Watches the directories of `paths` that are not watched yet. Returns whether there are any.
    fn watch_new(&mut self, events: &mut RecommendedWatcher, paths: &WatchedPaths) -> bool {
        // The system watches an inode once, under one name. Of two paths of one directory (bind
        // mounts) only one is watched, and its events count for both.
        let watched = self.watched.iter();
        let mut path_of: BTreeMap<DirectoryId, PathBuf> =
            watched.map(|(path, id)| (*id, path.clone())).collect();
        let mut is_new = false;
        for path in paths.directories() {
            if self.watched.contains_key(path) {
                continue;
            }
            let Some(id) = directory_id(path) else {
                continue;
            };
            if let Some(other) = path_of.get(&id) {
                self.filter.lock().paths.add_directory(other);
                continue;
            }
            match events.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    is_new = true;
                    path_of.insert(id, path.clone());
                    self.watched.insert(path.clone(), id);
                }
                // Removed in the meantime; its parent is watched too and reports that.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => self.warn_once(&error),
            }
        }
        is_new
    }

    fn warn_once(&mut self, error: &notify::Error) {
        if !self.has_warned {
            self.has_warned = true;
            tracing::warn!(%error, "file watch failed, relying on polling");
        }
    }
}

#[cfg(test)]
mod tests;
