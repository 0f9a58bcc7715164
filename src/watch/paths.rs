//! The set of directories and names to watch.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::path::{Path, PathBuf};

/// A set of directories to watch, each with the names in it that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchedPaths(BTreeMap<PathBuf, Names>);

/// The names in a watched directory whose changes matter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    Only(BTreeSet<OsString>),
}

impl WatchedPaths {
    /// Adds `directory` with every name in it.
    pub fn add_directory(&mut self, directory: &Path) {
        self.0.insert(directory.to_owned(), Names::All);
    }

    /// Adds one name in `directory`. Changes of other names there do not matter.
    pub fn add_name(&mut self, directory: &Path, name: &OsStr) {
        let names = self
            .0
            .entry(directory.to_owned())
            .or_insert_with(|| Names::Only(BTreeSet::new()));
        match names {
            Names::All => {}
            Names::Only(names) => {
                names.insert(name.to_owned());
            }
        }
    }

    pub(super) fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys()
    }

    pub(super) fn has_directory(&self, directory: &Path) -> bool {
        self.0.contains_key(directory)
    }

    pub(super) fn contains(&self, path: &Path) -> bool {
        if self.has_directory(path) {
            return true;
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        self.0.get(directory).is_some_and(|names| match names {
            Names::All => true,
            Names::Only(names) => names.contains(name),
        })
    }

    /// Returns whether `path`, or a path below it, is a watched directory.
    pub(super) fn has_directory_at_or_below(&self, path: &Path) -> bool {
        // INVARIANT: paths are ordered by component, so the first key from `path` on is `path`
        // itself or a path below it, if there is one.
        self.0
            .range::<Path, _>((Bound::Included(path), Bound::Unbounded))
            .next()
            .is_some_and(|(directory, _)| directory.starts_with(path))
    }
}
