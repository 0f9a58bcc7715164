//! Fingerprints of files, links and directories, which detect changes without reading content.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longer than the coarsest resolution of file timestamps (FAT: 2 s).
pub(super) const TIMESTAMP_RESOLUTION: Duration = Duration::from_secs(2);

/// The fingerprints of everything in a directory.
///
/// They tell two states of a directory apart even if their content is the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprints {
    /// By path relative to the policy directory.
    pub(super) files: BTreeMap<String, ResolvedFile>,
    /// All links on the way to a file or directory. If `..data` is swapped twice during one scan,
    /// the scan mixes two versions although each file looks unchanged. Only the link tells.
    pub(super) links: BTreeMap<String, ResolvedFile>,
    /// Device and inode, by path without links.
    pub(super) directories: BTreeMap<PathBuf, (u64, u64)>,
}

/// A path without links in its directories, and the fingerprint of what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvedFile {
    pub(super) path: PathBuf,
    pub(super) fingerprint: Fingerprint,
}

/// The metadata of a file that changes when the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: Timestamp,
    changed: Timestamp,
}

impl Fingerprint {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: Timestamp(metadata.mtime(), metadata.mtime_nsec()),
            changed: Timestamp(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns the time of the last change. A rename shows in `changed` alone.
    pub(super) fn last_change(&self) -> Timestamp {
        self.modified.max(self.changed)
    }

    /// Returns whether a file that has this fingerprint at `time`, and again later, has the same
    /// content.
    ///
    /// Git has the same rule for its index. A file written right after it was read, within the
    /// resolution of its timestamps, looks unchanged. So the last change must be older than that.
    pub(super) fn is_conclusive_at(&self, time: SystemTime) -> bool {
        self.last_change().is_before(time, TIMESTAMP_RESOLUTION)
    }
}

/// A timestamp of a file: seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp(i64, i64);

impl Timestamp {
    /// Returns whether this is before `time` by more than `margin`.
    pub(super) fn is_before(self, time: SystemTime, margin: Duration) -> bool {
        let limit = time
            .checked_sub(margin)
            .and_then(|limit| limit.duration_since(UNIX_EPOCH).ok())
            .and_then(|limit| {
                let seconds = i64::try_from(limit.as_secs()).ok()?;
                Some(Self(seconds, i64::from(limit.subsec_nanos())))
            });
        limit.is_some_and(|limit| self < limit)
    }
}
