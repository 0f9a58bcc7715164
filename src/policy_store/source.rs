//! Reads a policy directory from disk: files, links followed, and what tells one reading from another.
//!
//! The only module that reads policy files. What a file means is not known here: that is
//! [`compile`](crate::pdp::compile()), which also reports the problems found here.

mod file;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::config::store::SourceLimits;
use crate::pdp::Workers;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::id::Revision;
use crate::pdp::sources::{SourceFile, Sources, TextChanged};
use crate::watch::Places;
pub use file::cores;

/// Reads all of `directory`.
///
/// Never fails: what could not be read is a problem in the sources. A file that has not changed
/// since `previous` is taken from there, the others are read on this thread and `workers`. Blocks;
/// costs a few system calls for each file, link and directory besides. Never waits for a FIFO or a
/// device, and keeps no text of stored entities.
#[must_use]
pub fn read(
    directory: &Path,
    limits: &SourceLimits,
    previous: Option<&Reading>,
    workers: &Workers,
) -> Reading {
    let began = SystemTime::now();
    walk::walk(directory, limits, previous, workers, began)
}

/// A policy directory as it was read once.
#[derive(Debug)]
pub struct Reading {
    sources: Sources,
    prints: Fingerprints,
    places: Places,
    /// What changed while it was read; a reading with such names may mix old and new.
    torn: BTreeSet<String>,
    began: SystemTime,
    /// When the last thing happened to a file, link or directory of these, as far as they tell.
    newest: Option<Stamp>,
}

impl Reading {
    /// A reading that found out nothing but `problem`.
    #[must_use]
    pub fn of_problem(problem: Diagnostic) -> Self {
        Self {
            sources: Sources::new(Vec::new(), vec![problem], Vec::new()),
            prints: Fingerprints::default(),
            places: Places::default(),
            torn: BTreeSet::new(),
            began: SystemTime::now(),
            newest: None,
        }
    }

    /// The files and what was wrong with them.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The files and what was wrong with them.
    #[must_use]
    pub fn into_sources(self) -> Sources {
        self.sources
    }

    /// The content digest. Costs a hash over all files.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when a file is not what was read any more.
    pub fn revision(&self) -> Result<Revision, TextChanged> {
        self.sources.revision()
    }

    /// Where a change must be heard for the next reading to differ from this one.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Whether something changed while this was read, or before a text that was left in its file
    /// was fetched from there, so that it may mix old and new.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        !self.torn.is_empty() || self.sources.files().iter().any(SourceFile::has_changed)
    }

    /// Whether nothing was written for at least `quiet` before this was read, by the time stamps of
    /// all that was met. Where these are coarse it takes longer for a directory to be at rest.
    #[must_use]
    pub fn is_at_rest(&self, quiet: Duration) -> bool {
        let quiet = quiet.max(RACY);
        !self.is_torn()
            && self
                .newest
                .is_some_and(|newest| newest.is_before(self.began, quiet))
    }

    /// Whether this and an `earlier` reading found the same, untouched between the two.
    #[must_use]
    pub fn confirms(&self, earlier: &Self) -> bool {
        !self.is_torn()
            && !earlier.is_torn()
            && self.prints == earlier.prints
            && self.sources.files() == earlier.sources.files()
            && self.sources.problems() == earlier.sources.problems()
    }

    /// Whether this would load like `other`: equal served files (so equal revisions), and equal
    /// problems. Costs little when files were taken over from one reading to the next.
    #[must_use]
    pub fn loads_like(&self, other: &Self) -> bool {
        self.sources.served().eq(other.sources.served())
            && self.sources.problems() == other.sources.problems()
    }

    /// What changed between an `earlier` reading and this, or while either was read: relative
    /// paths, absolute ones for links outside of the directory.
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.torn.union(&earlier.torn).cloned().collect();
        for (one, other) in [(self, earlier), (earlier, self)] {
            let changed = one.sources.files().iter().filter(|file| file.has_changed());
            names.extend(changed.map(|file| file.path.clone()));
            for (path, file) in &one.prints.files {
                if other.prints.files.get(path) != Some(file) || one.file(path) != other.file(path)
                {
                    names.insert(path.clone());
                }
            }
            for (path, link) in &one.prints.links {
                if other.prints.links.get(path) != Some(link) {
                    names.insert(path.clone());
                }
            }
        }
        names
    }

    fn file(&self, path: &str) -> Option<&SourceFile> {
        let files = self.sources.files();
        let found = files.binary_search_by(|file| file.path.as_bytes().cmp(path.as_bytes()));
        found.ok().and_then(|at| files.get(at))
    }

    /// The file that surely still says the same, because nothing about it has changed.
    fn unchanged(&self, path: &str, seen: &Seen) -> Option<&SourceFile> {
        // Git's rule for its index: a file written in the same tick of the clock after it was
        // read looks unchanged, so only what was old already when it was read is trusted.
        let is_certain =
            self.prints.files.get(path) == Some(seen) && seen.print.is_older_than(self.began);
        let file = is_certain.then(|| self.file(path)).flatten();
        file.filter(|file| !file.has_changed())
    }
}

/// What tells one state of a directory from another even when the content is the same.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fingerprints {
    /// By the relative path under which the file was seen.
    files: BTreeMap<String, Seen>,
    /// Every link on the way to a file or directory. A `..data` that is swapped twice within one
    /// reading leaves files as they were and mixes them nevertheless; only the link tells.
    links: BTreeMap<String, Seen>,
    directories: BTreeMap<PathBuf, (u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Where it really lies.
    at: PathBuf,
    print: Fingerprint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: Stamp,
    changed: Stamp,
}

/// A time stamp of a file: seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp(i64, i64);

impl Stamp {
    /// Whether this is more than `by` before `moment`.
    fn is_before(self, moment: SystemTime, by: Duration) -> bool {
        let limit = moment
            .checked_sub(by)
            .and_then(|limit| limit.duration_since(UNIX_EPOCH).ok())
            .and_then(|limit| {
                let seconds = i64::try_from(limit.as_secs()).ok()?;
                Some(Self(seconds, i64::from(limit.subsec_nanos())))
            });
        limit.is_some_and(|limit| self < limit)
    }
}

/// Longer than the coarsest time stamps that a file system keeps (FAT: 2 s).
const RACY: Duration = Duration::from_secs(2);

impl Fingerprint {
    fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: Stamp(found.mtime(), found.mtime_nsec()),
            changed: Stamp(found.ctime(), found.ctime_nsec()),
        }
    }

    /// When the last thing happened to it. A file that was renamed tells so in `changed` alone.
    fn newest(&self) -> Stamp {
        self.modified.max(self.changed)
    }

    fn is_older_than(&self, moment: SystemTime) -> bool {
        self.newest().is_before(moment, RACY)
    }
}

#[cfg(test)]
mod tests;
