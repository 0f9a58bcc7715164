//! The files of a policy directory as values: path, kind and content.
//!
//! Nothing here reads a disk: `policy_store` does, and passes the result to
//! [`compile`](crate::pdp::compile()). That a file's name decides its kind is a rule of the policy
//! directory, so it is defined here for all readers.
//!
//! Stored entities can exceed the memory, so a file can refer to an external [`TextSource`], from
//! which its text is read when needed.

mod file;
pub(in crate::pdp) mod scanner;
mod unused;

use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use super::diagnostic::Diagnostic;
use super::id::Revision;
pub use file::{ContentDigest, ContentHasher, FileKind, SourceFile, TextChanged, TextSource};
pub use unused::{LeftOutCounts, UnusedFiles};

/// The content of a policy directory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    unused: UnusedFiles,
    /// The hash of the served files, once it was computed.
    hash: OnceLock<Result<Arc<RunningHash>, TextChanged>>,
}

impl Sources {
    /// Creates sources from what was read.
    ///
    /// `problems` are matching files that could not be read, with which no load succeeds.
    /// `warnings` are about names that nearly match, for example.
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
            unused: UnusedFiles::default(),
            hash: OnceLock::new(),
        }
    }

    /// Returns these sources with the files that were found and not loaded.
    #[must_use]
    pub fn with_unused(self, unused: UnusedFiles) -> Self {
        Self { unused, ..self }
    }

    /// Returns the files that were found and not loaded.
    #[must_use]
    pub fn unused(&self) -> &UnusedFiles {
        &self.unused
    }

    /// Returns the files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Returns the total length of the served files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.served().map(SourceFile::bytes).sum()
    }

    /// Returns the files of one kind, sorted by path.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(move |file| file.kind == kind)
    }

    /// Returns the errors for which the directory cannot be loaded.
    #[must_use]
    pub fn problems(&self) -> &[Diagnostic] {
        &self.problems
    }

    /// Returns the warnings about single names, with which the directory can still be loaded.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Returns the revision: a digest of the served files.
    ///
    /// It is the SHA-256 over pairs of path and bytes, sorted by path. Each string is preceded by
    /// its length in bytes as an unsigned 64-bit big-endian number. Equal content has an equal
    /// revision on any machine. The lengths make the hashed text unambiguous, so different content
    /// has different text.
    ///
    /// Computed once, while other callers wait. Costs a hash over all files.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when an external text has changed.
    pub fn revision(&self) -> Result<Revision, TextChanged> {
        self.revision_after(None)
    }

    /// Returns the [`revision`](Self::revision), computed from that of `earlier` sources if known.
    ///
    /// Costs a hash over the first file that differs and all files after it.
    ///
    /// # Errors
    ///
    /// As [`revision`](Self::revision).
    pub fn revision_after(&self, earlier: Option<&Self>) -> Result<Revision, TextChanged> {
        let hash = self.hash.get_or_init(|| {
            let earlier_hash = earlier.and_then(|earlier| earlier.hash.get()?.as_ref().ok());
            let (Some(earlier), Some(earlier_hash)) = (earlier, earlier_hash) else {
                return RunningHash::new(self.served(), None).map(Arc::new);
            };
            if self.served().eq(earlier.served()) {
                return Ok(Arc::clone(earlier_hash));
            }
            let pairs = self.served().zip(earlier.served());
            let same_files = pairs.take_while(|(one, other)| one == other).count();
            RunningHash::new(self.served(), Some((earlier_hash, same_files))).map(Arc::new)
        });
        match hash {
            Ok(hash) => Ok(hash.revision.clone()),
            Err(error) => Err(*error),
        }
    }

    /// Returns the files that affect decisions, sorted by path.
    pub fn served(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.kind.is_served())
    }
}

/// The hash states before each of a list of files.
///
/// By contract the revision is one hash over all files in order. So a changed file costs a hash of
/// all files from it to the end: at worst, two thirds of a second for a gigabyte. It is meant to be
/// computed in parallel with longer work. Reading texts ahead of the hash on another thread was
/// measured, and gains nothing.
#[derive(Clone, Debug)]
struct RunningHash {
    /// One state for each file, and one for the end.
    states: Vec<Sha256>,
    revision: Revision,
}

impl RunningHash {
    /// Hashes `files`, starting from an `earlier` hash whose first files are the same.
    ///
    /// `earlier` comes with the number of these files.
    fn new<'a>(
        files: impl Iterator<Item = &'a SourceFile>,
        earlier: Option<(&Self, usize)>,
    ) -> Result<Self, TextChanged> {
        let (mut states, same_files) = match earlier {
            Some((earlier, same_files)) => {
                let states = earlier.states.iter().take(same_files + 1);
                (states.cloned().collect(), same_files)
            }
            None => (vec![Sha256::new()], 0),
        };
        let mut hash = states.last().cloned().unwrap_or_default();
        for file in files.skip(same_files) {
            for part in [
                &(file.path.len() as u64).to_be_bytes(),
                file.path.as_bytes(),
                &file.bytes().to_be_bytes(),
            ] {
                hash.update(part);
            }
            file.stream(&mut |chunk| hash.update(chunk))?;
            states.push(hash.clone());
        }
        let revision = Revision::from_digest(&hash.finalize().into());
        Ok(Self { states, revision })
    }
}

#[cfg(test)]
mod tests;
