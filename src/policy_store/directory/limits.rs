//! Limits on how much of a policy directory is read.

use crate::config::store::SourceLimits;

/// The files and bytes counted so far against the limits of the whole directory.
pub(super) struct Usage<'a> {
    limits: &'a SourceLimits,
    files: usize,
    bytes: u64,
    is_exceeded: bool,
}

impl<'a> Usage<'a> {
    pub(super) fn new(limits: &'a SourceLimits) -> Self {
        Self {
            limits,
            files: 0,
            bytes: 0,
            is_exceeded: false,
        }
    }

    /// Returns whether a limit was exceeded, so that the rest of the directory is left out.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded
    }

    /// Counts one file or directory. Returns the problem if that exceeds a limit for the first
    /// time.
    pub(super) fn add_file(&mut self) -> Option<String> {
        self.files += 1;
        let allowed = self.limits.files;
        (self.files > allowed && !self.exceed())
            .then(|| format!("more than {allowed} files and directories"))
    }

    /// Counts `bytes` of a file. Returns the problem if that exceeds a limit for the first time.
    pub(super) fn add_bytes(&mut self, bytes: u64) -> Option<String> {
        self.bytes = self.bytes.saturating_add(bytes);
        let allowed = self.limits.total_bytes;
        (self.bytes > allowed && !self.exceed())
            .then(|| format!("the files hold more than the {allowed} bytes allowed together"))
    }

    /// Marks a limit as exceeded. Returns whether one was before.
    fn exceed(&mut self) -> bool {
        std::mem::replace(&mut self.is_exceeded, true)
    }
}
