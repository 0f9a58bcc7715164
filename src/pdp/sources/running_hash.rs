//! Computes the revision of a list of files, starting from an earlier one if few files differ.
//!
//! By contract the revision is one hash over all files in order. So a changed file costs a hash of
//! all files from it to the end: at worst, two thirds of a second for a gigabyte. It is meant to be
//! computed in parallel with longer work. Reading texts ahead of the hash on another thread was
//! measured, and gains nothing.

use sha2::{Digest as _, Sha256};

use super::file::{SourceFile, TextChanged};
use crate::pdp::id::Revision;

/// The hash states before each of a list of files.
#[derive(Clone, Debug)]
pub(super) struct RunningHash {
    /// One state for each file, and one for the end.
    states: Vec<Sha256>,
    revision: Revision,
}

impl RunningHash {
    /// Hashes `files`, starting from an `earlier` hash whose first files are the same.
    ///
    /// `earlier` comes with the number of these files.
    pub(super) fn new<'a>(
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

    pub(super) fn revision(&self) -> &Revision {
        &self.revision
    }
}
