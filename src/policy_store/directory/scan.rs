//! The result of one scan of a policy directory, and its comparison with another.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::fingerprint::{Fingerprints, ResolvedFile, TIMESTAMP_RESOLUTION, Timestamp};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::id::Revision;
use crate::pdp::sources::{SourceFile, Sources, TextChanged};
use crate::watch::WatchedPaths;

/// The content of a policy directory, as one scan read it.
#[derive(Debug)]
pub struct DirectoryScan {
    /// The files and their problems.
    pub sources: Sources,
    pub(super) fingerprints: Fingerprints,
    /// The paths whose change may alter the next scan.
    pub watched_paths: WatchedPaths,
    /// Names that changed during the scan. If there are any, the scan may mix old and new content.
    pub(super) changed_names: BTreeSet<String>,
    pub(super) started_at: SystemTime,
    /// The latest timestamp of all files, links and directories.
    pub(super) last_change: Option<Timestamp>,
}

impl DirectoryScan {
    /// Begins a scan, which has found nothing yet.
    pub(super) fn begin() -> Self {
        Self {
            sources: Sources::new(Vec::new(), Vec::new(), Vec::new()),
            fingerprints: Fingerprints::default(),
            watched_paths: WatchedPaths::default(),
            changed_names: BTreeSet::new(),
            started_at: SystemTime::now(),
            last_change: None,
        }
    }

    /// Creates a scan that found nothing but `problem`.
    #[must_use]
    pub fn failed(problem: Diagnostic) -> Self {
        Self {
            sources: Sources::new(Vec::new(), vec![problem], Vec::new()),
            ..Self::begin()
        }
    }

    /// Returns the content digest. Hashes all files.
    pub fn revision(&self) -> Result<Revision, TextChanged> {
        self.sources.revision()
    }

    /// Returns whether the scan may mix old and new content: a file changed during the scan, or
    /// before a text that was left on disk was read.
    #[must_use]
    pub fn is_inconsistent(&self) -> bool {
        !self.changed_names.is_empty() || self.sources.files().iter().any(SourceFile::has_changed)
    }

    /// Returns whether nothing was written for `quiet` before the scan, by all timestamps.
    ///
    /// The period is at least the resolution of timestamps.
    #[must_use]
    pub fn is_settled(&self, quiet: Duration) -> bool {
        let quiet = quiet.max(TIMESTAMP_RESOLUTION);
        let is_before = |last: Timestamp| last.is_before(self.started_at, quiet);
        !self.is_inconsistent() && self.last_change.is_some_and(is_before)
    }

    /// Returns whether this and an `earlier` scan found the same, with no write between the two.
    #[must_use]
    pub fn same_as(&self, earlier: &Self) -> bool {
        !self.is_inconsistent()
            && !earlier.is_inconsistent()
            && self.fingerprints == earlier.fingerprints
            && self.sources.files() == earlier.sources.files()
            && self.sources.problems() == earlier.sources.problems()
    }

    /// Returns whether this and `other` compile to the same: equal served files, so equal
    /// revisions, and equal problems. Cheap if one scan reused files of the other.
    #[must_use]
    pub fn same_content_as(&self, other: &Self) -> bool {
        let left_out = |scan: &Self| scan.sources.unused().left_out.has_policies_and_schemas();
        self.sources.served().eq(other.sources.served())
            && self.sources.problems() == other.sources.problems()
            && left_out(self) == left_out(other)
    }

    /// Returns the names that changed between an `earlier` scan and this one, or during either:
    /// relative paths, but absolute ones for links outside of the directory.
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> BTreeSet<String> {
        let mut names = &self.changed_names | &earlier.changed_names;
        for (one, other) in [(self, earlier), (earlier, self)] {
            let changed = one.sources.files().iter().filter(|file| file.has_changed());
            names.extend(changed.map(|file| file.path.clone()));
            for (path, file) in &one.fingerprints.files {
                if other.fingerprints.files.get(path) != Some(file)
                    || one.file(path) != other.file(path)
                {
                    names.insert(path.clone());
                }
            }
            for (path, link) in &one.fingerprints.links {
                if other.fingerprints.links.get(path) != Some(link) {
                    names.insert(path.clone());
                }
            }
        }
        names
    }

    pub(super) fn file(&self, path: &str) -> Option<&SourceFile> {
        let files = self.sources.files();
        let found = files.binary_search_by(|file| file.path.as_bytes().cmp(path.as_bytes()));
        found.ok().and_then(|at| files.get(at))
    }

    /// Returns the file as read by this scan, if `now` proves that its content is still the same.
    pub(super) fn unchanged_file(&self, path: &str, now: &ResolvedFile) -> Option<&SourceFile> {
        let is_unchanged = self.fingerprints.files.get(path) == Some(now)
            && now.fingerprint.is_conclusive_at(self.started_at);
        let file = is_unchanged.then(|| self.file(path)).flatten();
        file.filter(|file| !file.has_changed())
    }
}
