//! The files of a policy directory as values: what each is called, what kind it is, what it says.
//!
//! Nothing here reads a disk: `policy_store::directory` does, and hands the result to
//! [`compile`](crate::pdp::compile()). That a name decides a file's kind is a rule of the policy
//! directory and so stands here, where every reader of a directory can ask it.
//!
//! Stored entities can be more text than there is memory for, so a file may leave its text where
//! it lies and fetch it when it is asked for, by a [`TextSource`] that somebody else provides.

mod file;
mod running_hash;
pub(in crate::pdp) mod scanner;

use std::sync::{Arc, OnceLock};

use super::diagnostic::Diagnostic;
use super::id::Revision;
pub use file::{ContentDigest, ContentHasher, FileKind, SourceFile, TextChanged, TextSource};
use running_hash::RunningHash;

/// Everything that was read of a policy directory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Of the served files, once somebody has asked.
    trail: OnceLock<Result<Arc<RunningHash>, TextChanged>>,
}

impl Sources {
    /// Takes what was read: `problems` are matching names that could not be read (they refuse the
    /// load), `warnings` are near misses and the like.
    #[must_use]
    pub fn new(
        mut files: Vec<SourceFile>,
        problems: Vec<Diagnostic>,
        warnings: Vec<Diagnostic>,
    ) -> Self {
        files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Self {
            files,
            problems,
            warnings,
            trail: OnceLock::new(),
        }
    }

    /// The files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// How many bytes are served of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.served().map(SourceFile::bytes).sum()
    }

    /// The files of one kind, sorted by path.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(move |file| file.kind == kind)
    }

    /// Why the directory cannot be loaded as it is; empty when everything could be read.
    #[must_use]
    pub fn problems(&self) -> &[Diagnostic] {
        &self.problems
    }

    /// What the author should look at, though it does not stop the load.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// The content digest: SHA-256 over the served files' pairs of path and bytes, sorted by
    /// path, each string preceded by its length in bytes as an unsigned 64-bit big-endian number.
    ///
    /// Equal content has an equal revision on any machine, and no two different contents share
    /// the hashed text, because the lengths make it unambiguous.
    ///
    /// Computed once: who asks meanwhile waits. Costs a hash over all files.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when a text is elsewhere and no longer what it was.
    pub fn revision(&self) -> Result<Revision, TextChanged> {
        self.revision_after(None)
    }

    /// The [`revision`](Self::revision), computed from that of `earlier` sources where these are
    /// known: costs a hash over the first file that differs and what comes after it.
    ///
    /// # Errors
    ///
    /// As [`revision`](Self::revision).
    pub fn revision_after(&self, earlier: Option<&Self>) -> Result<Revision, TextChanged> {
        let trail = self.trail.get_or_init(|| {
            let known = earlier.and_then(|earlier| match earlier.trail.get()? {
                Ok(trail) => Some((earlier, trail)),
                Err(TextChanged) => None,
            });
            let Some((earlier, trail)) = known else {
                return RunningHash::of(self.served(), None).map(Arc::new);
            };
            if self.served().eq(earlier.served()) {
                return Ok(Arc::clone(trail));
            }
            let both = self.served().zip(earlier.served());
            let same = both.take_while(|(one, other)| one == other).count();
            RunningHash::of(self.served(), Some((trail, same))).map(Arc::new)
        });
        match trail {
            Ok(trail) => Ok(trail.revision().clone()),
            Err(changed) => Err(*changed),
        }
    }

    /// The files that are served, sorted by path.
    pub fn served(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.kind.is_served())
    }
}

#[cfg(test)]
mod tests;
