//! A log file at a path, which is rotated when it has reached its size limit.

use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{OpenFile, whole_lines};

/// A log file that is rotated: `log` becomes `log.1`, `log.1` becomes `log.2`, and so on.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    /// Size limit of a file, in bytes; 0 is no limit.
    max_bytes: u64,
    /// Most files that are kept, the current one included.
    max_files: u32,
    pub(super) open: Option<OpenFile>,
    /// Set from a failed rotation until one succeeds, so that the failure is logged once.
    has_warned: bool,
}

impl RotatingFile {
    /// Opens the file at `path`, which may already have lines.
    pub(super) fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let mut file = Self {
            path: path.to_owned(),
            max_bytes,
            max_files,
            open: None,
            has_warned: false,
        };
        file.reopen_if_moved()?;
        Ok(file)
    }

    /// Writes the first of `lines`. Returns the bytes of the lines that are now complete.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let (partial, size) = self.reopen_if_moved()?;
        let space = match self.max_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(size),
        };
        // A line that has begun in this file must end in it.
        let space = partial + usize::try_from(space).unwrap_or(usize::MAX);
        let mut max_bytes = whole_lines(lines, space);
        if max_bytes == 0 && partial == 0 && size > 0 {
            match self.rotate() {
                // A new file has room for a line of any length.
                Ok(()) => return self.write(lines),
                Err(error) => {
                    self.warn_cannot_rotate(&error);
                    max_bytes = lines.len();
                }
            }
        }
        if max_bytes == 0 {
            max_bytes = first_line(lines);
        }
        match &mut self.open {
            Some(open) => open.write(lines, max_bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn warn_cannot_rotate(&mut self, error: &io::Error) {
        if !self.has_warned {
            let file = self.path.display();
            tracing::warn!(%file, %error, "cannot rotate the decision log, the file keeps growing");
        }
        self.has_warned = true;
    }

    /// Opens the file at the path again if it was renamed or removed by others. Returns the bytes
    /// of the next line that it has, and its size.
    fn reopen_if_moved(&mut self) -> io::Result<(usize, u64)> {
        let at_path = match fs::metadata(&self.path) {
            Ok(metadata) => Some((metadata.dev(), metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(open) = &self.open {
            let metadata = open.file.metadata()?;
            if at_path == Some((metadata.dev(), metadata.ino())) {
                return Ok((open.partial_bytes, size(&metadata)));
            }
        }
        // A line that had begun in the other file begins again in this one.
        self.open = None;
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o640)
            .open(&self.path)?;
        let size = size(&file.metadata()?);
        let mut last_byte = *b"\n";
        if let Some(offset) = size.checked_sub(1) {
            file.read_exact_at(&mut last_byte, offset)?;
        }
        self.open = Some(OpenFile::new(file, last_byte == *b"\n"));
        Ok((0, size))
    }

    /// Renames each file to the next older name, and removes the oldest.
    ///
    /// A failed rotation removes nothing, at whatever step it fails and however often. Files are
    /// renamed up to the first free name; after a failure that is the name that was left free.
    /// The oldest file is removed after the current one has its new name.
    fn rotate(&mut self) -> io::Result<()> {
        match self.max_files {
            1 => fs::remove_file(&self.path)?,
            // For a moment there is one file more than is kept.
            max => {
                for n in (1..=self.first_free(max)?).rev() {
                    let from = match n {
                        1 => self.path.clone(),
                        n => self.older(n - 1),
                    };
                    ignore_missing(fs::rename(&from, self.older(n)))?;
                }
                let oldest = self.older(max);
                if let Err(error) = ignore_missing(fs::remove_file(&oldest)) {
                    let file = oldest.display();
                    tracing::warn!(%file, %error, "cannot remove an old decision log");
                }
            }
        }
        self.has_warned = false;
        self.open = None;
        Ok(())
    }

    /// Returns the number of the first older name below `max` that is free, or else `max`.
    fn first_free(&self, max: u32) -> io::Result<u32> {
        for n in 1..max {
            match fs::symlink_metadata(self.older(n)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(n),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(max)
    }

    fn older(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &self.open {
            Some(open) => open.file.sync_all(),
            None => Ok(()),
        }
    }
}

/// Turns the error of a missing file into success: others may have removed it.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Returns the size of a regular file, and 0 for others, such as pipes and devices.
fn size(metadata: &Metadata) -> u64 {
    if metadata.is_file() {
        metadata.len()
    } else {
        0
    }
}

fn first_line(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |end| end + 1)
}
