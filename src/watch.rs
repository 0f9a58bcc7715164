//! Tells that something may have changed in a set of directories: by events, and by a slow poll.
//!
//! A tick is a hint, never a fact: who hears one looks for itself. Nothing here reads a file, and
//! nothing here knows what a policy is. The only module that names notify.

pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// How changes are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By the events of the file system, backed up by the poll.
    #[default]
    Events,
    /// By the poll alone, for file systems that tell no events.
    Poll,
}

/// Directories, and what in each of them is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<PathBuf, Interest>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Interest {
    Everything,
    Names(BTreeSet<OsString>),
}

impl Places {
    /// Adds all that happens to `directory` and to the names in it.
    pub fn add(&mut self, directory: &Path) {
        self.0.insert(directory.to_owned(), Interest::Everything);
    }

    /// Adds what happens to `name` in `directory`, which may hold much that is of no interest.
    pub fn add_name(&mut self, directory: &Path, name: &OsStr) {
        let interest = self
            .0
            .entry(directory.to_owned())
            .or_insert_with(|| Interest::Names(BTreeSet::new()));
        match interest {
            Interest::Everything => {}
            Interest::Names(names) => {
                names.insert(name.to_owned());
            }
        }
    }

    fn concern(&self, path: &Path) -> bool {
        if self.0.contains_key(path) {
            return true;
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        self.0
            .get(directory)
            .is_some_and(|interest| match interest {
                Interest::Everything => true,
                Interest::Names(names) => names.contains(name),
            })
    }

    /// Whether `path` or something below it is one of the directories.
    fn reach_below(&self, path: &Path) -> bool {
        // INVARIANT: paths are ordered by components, so what is below a path follows it at once.
        self.0
            .range::<Path, _>((Bound::Included(path), Bound::Unbounded))
            .next()
            .is_some_and(|(directory, _)| directory.starts_with(path))
    }
}

/// Starts watching, at first no place at all.
///
/// `poll` is the longest time from one tick to the next.
#[must_use]
pub fn watch(mode: Mode, poll: Duration) -> (Watcher, Ticks) {
    let ear = Arc::new(Ear::default());
    let mut watcher = Watcher {
        events: None,
        armed: BTreeMap::new(),
        ear: Arc::clone(&ear),
        complained: false,
    };
    match mode {
        Mode::Events => {
            let heard = Arc::clone(&ear);
            match notify::recommended_watcher(move |event| heard.hear(event)) {
                Ok(events) => watcher.events = Some(events),
                Err(error) => watcher.complain(&error),
            }
        }
        Mode::Poll => {}
    }
    (watcher, Ticks { ear, poll })
}

/// The side that hears. Ticks that nobody waited for are one tick.
#[derive(Debug)]
pub struct Ticks {
    ear: Arc<Ear>,
    poll: Duration,
}

impl Ticks {
    /// Waits until something may have changed, or until it is time to look again anyway.
    ///
    /// Cancel-safe: a tick that was not returned is not lost.
    pub async fn next(&mut self) {
        tokio::select! {
            () = self.ear.tick.notified() => {}
            () = tokio::time::sleep(self.poll) => {}
        }
    }
}

/// The side that says where to listen.
#[derive(Debug)]
pub struct Watcher {
    events: Option<RecommendedWatcher>,
    armed: BTreeMap<PathBuf, Identity>,
    ear: Arc<Ear>,
    complained: bool,
}

/// Device and inode: two directories of one path, one after the other, differ in it.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path)
        .ok()
        .map(|found| (found.dev(), found.ino()))
}

impl Watcher {
    /// Listens at `places` from now on, and nowhere else.
    ///
    /// Ticks when it listens anywhere for the first time, because something may have happened
    /// there before. Where the system lets it listen no more, it says so once in the log and
    /// leaves the rest to the poll. Blocks for some system calls per place.
    pub fn set(&mut self, places: &Places) {
        let Some(mut events) = self.events.take() else {
            return;
        };
        let disturbed = {
            let mut listening = self.ear.listening();
            listening.places = places.clone();
            std::mem::take(&mut listening.disturbed)
        };
        self.armed.retain(|path, armed| {
            let stands = places.0.contains_key(path)
                && !disturbed.iter().any(|moved| path.starts_with(moved))
                && identity(path) == Some(*armed);
            if !stands {
                // An error only says that the system has dropped it already.
                let _ = events.unwatch(path);
            }
            stands
        });
        // The system watches an inode once, whatever it is called: of two names for one directory
        // (bind mounts) only one is armed, and hears for both.
        let mut names: BTreeMap<Identity, PathBuf> = self
            .armed
            .iter()
            .map(|(path, identity)| (*identity, path.clone()))
            .collect();
        let mut is_new = false;
        for path in places.0.keys() {
            if self.armed.contains_key(path) {
                continue;
            }
            let Some(identity) = identity(path) else {
                continue;
            };
            if let Some(other) = names.get(&identity) {
                self.ear.listening().places.add(other);
                continue;
            }
            match events.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    is_new = true;
                    names.insert(identity, path.clone());
                    self.armed.insert(path.clone(), identity);
                }
                // Gone meanwhile; what holds it is watched too and will tell.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => self.complain(&error),
            }
        }
        self.events = Some(events);
        if is_new {
            self.ear.tick.notify_one();
        }
    }

    fn complain(&mut self, error: &notify::Error) {
        if !self.complained {
            self.complained = true;
            tracing::warn!(%error, "not every change will be heard: relying on the poll");
        }
    }
}

/// Shared by the thread that brings events and by those who set places and wait for ticks.
#[derive(Debug, Default)]
struct Ear {
    listening: Mutex<Listening>,
    tick: Notify,
}

#[derive(Debug, Default)]
struct Listening {
    places: Places,
    /// What was moved or removed since places were last set. notify drops its watch of a path that
    /// an event says is gone, even when a new directory has the path by then; such paths are armed
    /// anew.
    disturbed: BTreeSet<PathBuf>,
}

impl Ear {
    fn listening(&self) -> MutexGuard<'_, Listening> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: notify::Result<Event>) {
        let is_tick = match event {
            Ok(event) => self.listening().takes(&event),
            // Whatever failed, an event may have been lost by it.
            Err(_) => true,
        };
        if is_tick {
            self.tick.notify_one();
        }
    }
}

impl Listening {
    /// Notes `event`; true when it may be a change.
    fn takes(&mut self, event: &Event) -> bool {
        if event.need_rescan() {
            self.disturbed.extend(self.places.0.keys().cloned());
            return true;
        }
        let is_gone = match event.kind {
            // Our own reading would wake us without end.
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
        let mut is_tick = event.paths.is_empty();
        for path in &event.paths {
            is_tick |= self.places.concern(path);
            if is_gone && self.places.reach_below(path) {
                self.disturbed.insert(path.clone());
                is_tick = true;
            }
        }
        is_tick
    }
}

#[cfg(test)]
mod tests;
