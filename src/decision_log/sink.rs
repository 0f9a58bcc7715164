//! The destination of log lines: standard output, a file or a collector.
//!
//! Lines are written whole: what was written of a line before a failure is not written twice.

mod rotating_file;

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rotating_file::RotatingFile;

/// The destination of log lines.
#[derive(Debug)]
pub struct Sink(Destination);

#[derive(Debug)]
enum Destination {
    Stdout(OpenFile),
    File(RotatingFile),
    Collector(Box<dyn Collector>),
}

/// A remote destination of log lines.
pub trait Collector: Debug + Send {
    /// Sends the first of `lines`, and waits for the response.
    ///
    /// # Errors
    ///
    /// [`SendError`] if no line was accepted and a retry may succeed.
    fn send(&mut self, lines: &[u8]) -> Result<WriteResult, SendError>;
}

/// The lines that need not be written again.
#[derive(Debug, PartialEq, Eq)]
pub struct WriteResult {
    /// Bytes of whole lines that are complete: written, or rejected permanently.
    pub bytes: usize,
    /// Those of them that were rejected permanently.
    pub rejected: Option<Rejected>,
}

/// Lines that a collector rejected permanently.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The number of lines.
    pub lines: u64,
    /// The collector's message.
    pub reason: String,
}

/// A failed write that should be retried.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SendError {
    /// The cause.
    pub reason: String,
    /// The least time to wait before a retry, if the collector or its client sets one.
    pub retry_after: Option<Duration>,
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self {
            reason: error.to_string(),
            retry_after: None,
        }
    }
}

/// A destination that cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened for writing.
    #[error("cannot open the decision log `{file}`: {1}", file = .0.display())]
    File(PathBuf, #[source] io::Error),
    /// The standard output cannot be written to.
    #[error("cannot write the decision log to standard output: {0}")]
    Stdout(#[source] io::Error),
}

impl Sink {
    /// Opens the standard output.
    pub fn to_stdout() -> Result<Self, OpenError> {
        // `Stdout` would search for line ends, but only whole lines are written here.
        let owned = io::stdout().as_fd().try_clone_to_owned();
        let file = File::from(owned.map_err(OpenError::Stdout)?);
        Ok(Self(Destination::Stdout(OpenFile::new(file, true))))
    }

    /// Opens the file at `path`, which may already have lines.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the file cannot be written to: that must fail at startup, not later.
    pub fn to_file(path: &Path, max_bytes: u64, max_files: u32) -> Result<Self, OpenError> {
        let file = RotatingFile::open(path, max_bytes, max_files)
            .map_err(|error| OpenError::File(path.to_owned(), error))?;
        Ok(Self(Destination::File(file)))
    }

    /// Creates a sink that sends lines to `collector`.
    #[must_use]
    pub fn to_collector(collector: Box<dyn Collector>) -> Self {
        Self(Destination::Collector(collector))
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> Result<WriteResult, SendError> {
        let bytes = match &mut self.0 {
            Destination::Stdout(file) => file.write(lines, lines.len())?,
            Destination::File(file) => file.write(lines)?,
            Destination::Collector(collector) => return collector.send(lines),
        };
        Ok(WriteResult {
            bytes,
            rejected: None,
        })
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Destination::Stdout(_) | Destination::Collector(_) => Ok(()),
            Destination::File(file) => file.sync(),
        }
    }
}

/// A file that is open for writing, with the state of its last line.
#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Bytes of the next line that are already written.
    partial_bytes: usize,
    /// True if the file's content ends with a line end.
    ends_line: bool,
}

impl OpenFile {
    fn new(file: File, ends_line: bool) -> Self {
        Self {
            file,
            partial_bytes: 0,
            ends_line,
        }
    }

    /// Writes from the first `max_bytes` of `lines`, skipping what is already written. Returns the
    /// bytes of the lines that are now complete.
    fn write(&mut self, lines: &[u8], max_bytes: usize) -> io::Result<usize> {
        if !self.ends_line {
            // An earlier process did not complete its last line.
            write_some(&mut self.file, b"\n")?;
            self.ends_line = true;
        }
        let rest = lines.get(self.partial_bytes..max_bytes).unwrap_or_default();
        let written = self.partial_bytes + write_some(&mut self.file, rest)?;
        let complete = whole_lines(lines, written);
        self.partial_bytes = written - complete;
        Ok(complete)
    }
}

/// Writes at least one byte. Returns the number of bytes written.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// Returns the length of the whole lines in the first `max_bytes` of `lines`.
fn whole_lines(lines: &[u8], max_bytes: usize) -> usize {
    let first = lines.get(..max_bytes).unwrap_or(lines);
    let end = first.iter().rposition(|byte| *byte == b'\n');
    end.map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests;
