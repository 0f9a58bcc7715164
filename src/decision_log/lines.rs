//! Puts lines somewhere, whole: what was written of a line before a failure is not written twice.

use std::fmt::Debug;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where lines go.
#[derive(Debug)]
pub struct Lines(To);

#[derive(Debug)]
enum To {
    Stdout(Open),
    File(LogFile),
    Collector(Box<dyn Collector>),
}

/// Takes lines that are not kept in a file.
pub trait Collector: Debug + Send {
    /// Sends some of `lines`, and waits for what comes of it.
    ///
    /// # Errors
    ///
    /// When none were taken, and they may be another time. They will be sent again.
    fn send(&mut self, lines: &[u8]) -> Result<Receipt, SendError>;
}

/// What became of lines that need not be written again.
#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    /// How many bytes of them, whole lines.
    pub bytes: usize,
    /// Those among them that were not taken and never will be.
    pub refusal: Option<Refusal>,
}

/// Lines that a collector refused for good.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// How many.
    pub lines: u64,
    /// What it says.
    pub reason: String,
}

/// Why no lines were written now.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SendError {
    /// The cause.
    pub reason: String,
    /// How long to wait at least before trying again, if that is known.
    pub wait: Option<Duration>,
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self {
            reason: error.to_string(),
            wait: None,
        }
    }
}

/// Why there is nowhere for lines to go.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be written to.
    #[error("cannot open the decision log `{}`: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The standard output cannot be written to.
    #[error("cannot write the decision log to the standard output: {0}")]
    Stdout(#[source] io::Error),
}

impl Lines {
    /// To the standard output.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn to_stdout() -> Result<Self, OpenError> {
        // Not `Stdout`, which looks for line ends in what is whole lines already.
        let owned = io::stdout().as_fd().try_clone_to_owned();
        let file = File::from(owned.map_err(OpenError::Stdout)?);
        Ok(Self(To::Stdout(Open::new(file, true))))
    }

    /// To the file at `path`, which may hold lines.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when it cannot be written to: whoever asks for a log should hear at the start
    /// that there is none.
    pub fn to_file(path: &Path, max_bytes: u64, max_files: u32) -> Result<Self, OpenError> {
        match LogFile::open(path, max_bytes, max_files) {
            Ok(file) => Ok(Self(To::File(file))),
            Err(source) => Err(OpenError::File {
                file: path.to_owned(),
                source,
            }),
        }
    }

    /// To `collector`.
    #[must_use]
    pub fn to_collector(collector: Box<dyn Collector>) -> Self {
        Self(To::Collector(collector))
    }

    /// Writes some of `lines`.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<Receipt, SendError> {
        let bytes = match &mut self.0 {
            To::Stdout(open) => open.write(lines, lines.len())?,
            To::File(file) => file.write(lines)?,
            To::Collector(collector) => return collector.send(lines),
        };
        Ok(Receipt {
            bytes,
            refusal: None,
        })
    }

    /// Has the disk keep what was written.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &mut self.0 {
            To::Stdout(_) | To::Collector(_) => Ok(()),
            To::File(file) => file.sync(),
        }
    }
}

/// A file that is written to.
#[derive(Debug)]
struct Open {
    file: File,
    /// So many bytes of the next line are there already.
    begun: usize,
    /// Whether what is there ends with a line.
    ends_line: bool,
}

impl Open {
    fn new(file: File, ends_line: bool) -> Self {
        Self {
            file,
            begun: 0,
            ends_line,
        }
    }

    /// Writes from the first `most` bytes of `lines`, of which some may have been written before.
    fn write(&mut self, lines: &[u8], most: usize) -> io::Result<usize> {
        if !self.ends_line {
            // Whoever wrote the last line did not come to its end.
            write_some(&mut self.file, b"\n")?;
            self.ends_line = true;
        }
        let rest = lines.get(self.begun..most).unwrap_or_default();
        let there = self.begun + write_some(&mut self.file, rest)?;
        let whole = whole_lines(lines, there);
        self.begun = there - whole;
        Ok(whole)
    }
}

/// How many bytes were written, which is at least one.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// How many of the first `most` bytes of `lines` are whole lines.
fn whole_lines(lines: &[u8], most: usize) -> usize {
    let first = lines.get(..most).unwrap_or(lines);
    first
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1)
}

/// A file of lines at a path, which makes room for the next when it is large enough.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// 0 is without bound.
    max_bytes: u64,
    max_files: u32,
    open: Option<Open>,
    /// Whether it has been said that there is no making room.
    told: bool,
}

impl LogFile {
    /// Opens the file at `path`, which may hold lines.
    ///
    /// # Errors
    ///
    /// The system's, when it cannot be written to.
    fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let mut file = Self {
            path: path.to_owned(),
            max_bytes,
            max_files,
            open: None,
            told: false,
        };
        file.opened()?;
        Ok(file)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let (begun, size) = self.opened()?;
        let room = match self.max_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(size),
        };
        let room = begun + usize::try_from(room).unwrap_or(usize::MAX);
        // A line that was begun here ends here.
        let mut most = whole_lines(lines, room);
        if most == 0 && begun == 0 && size > 0 {
            match self.rotate() {
                // The new file has room for a line of any length.
                Ok(()) => return self.write(lines),
                Err(error) => {
                    if !self.told {
                        let file = self.path.display();
                        tracing::warn!(%file, %error, "cannot rotate the decision log, it grows");
                    }
                    self.told = true;
                    most = lines.len();
                }
            }
        }
        if most == 0 {
            most = first_line(lines);
        }
        match &mut self.open {
            Some(open) => open.write(lines, most),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Sees to it that what is open is what the path names now, for a file may be renamed or
    /// removed by others. How much of the next line is in it, and how large it is.
    fn opened(&mut self) -> io::Result<(usize, u64)> {
        let named = match std::fs::metadata(&self.path) {
            Ok(named) => Some(named),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_same = |of: &Metadata| {
            named
                .as_ref()
                .is_some_and(|named| (named.dev(), named.ino()) == (of.dev(), of.ino()))
        };
        if let Some(open) = &self.open {
            let of = open.file.metadata()?;
            if is_same(&of) {
                return Ok((open.begun, size(&of)));
            }
        }
        // A line that was begun in another file begins anew in this one.
        self.open = None;
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o640)
            .open(&self.path)?;
        let size = size(&file.metadata()?);
        let mut last = *b"\n";
        if let Some(at) = size.checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        self.open = Some(Open::new(file, last == *b"\n"));
        Ok((0, size))
    }

    /// Renames each file to the next older name, and then removes the oldest.
    ///
    /// However often it fails, and whatever it fails at, nothing is removed before the file that is
    /// written has its new name: files are renamed up to the first name that is free, which after a
    /// failure is one that was left.
    fn rotate(&mut self) -> io::Result<()> {
        match self.max_files {
            1 => std::fs::remove_file(&self.path)?,
            // One more than is kept.
            most => {
                for n in (1..=self.first_free(most)?).rev() {
                    let from = match n {
                        1 => self.path.clone(),
                        n => self.older(n - 1),
                    };
                    rename(&from, &self.older(n))?;
                }
                match std::fs::remove_file(self.older(most)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        let file = self.older(most);
                        let file = file.display();
                        tracing::warn!(%file, %error, "cannot remove an old decision log");
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        self.told = false;
        self.open = None;
        Ok(())
    }

    /// The first of the older names up to `most` that no file has; that one, when all are taken.
    fn first_free(&self, most: u32) -> io::Result<u32> {
        for n in 1..most {
            match std::fs::symlink_metadata(self.older(n)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(n),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(most)
    }

    fn older(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    fn sync(&mut self) -> io::Result<()> {
        match &self.open {
            Some(open) => open.file.sync_all(),
            None => Ok(()),
        }
    }
}

/// Renames a file, if it is there: others may have taken it away.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Only of a regular file does the size say what is in it.
fn size(of: &Metadata) -> u64 {
    if of.is_file() { of.len() } else { 0 }
}

fn first_line(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |at| at + 1)
}

#[cfg(test)]
mod tests;
