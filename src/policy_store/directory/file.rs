//! Reads the files that the walk has found, several at once.
//!
//! The text of stored entities is hashed and not kept, because it may exceed the memory. It is
//! read again when needed, and rejected if it has changed.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::super::background::pause;
use super::fingerprint::Fingerprint;
use super::scan::DirectoryScan;
use crate::pdp::Workers;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::{
    ContentDigest, ContentHasher, FileKind, SourceFile, TextChanged, TextSource,
};

/// Bytes to read that are worth another thread.
const BYTES_PER_THREAD: u64 = 1 << 20;

/// The stack of a reading thread, as large as Rust's default.
const STACK_BYTES: usize = 2 << 20;

/// Bytes buffered while a text is streamed.
const CHUNK_BYTES: usize = 64 << 10;

/// A file that must be read, as found by the walk.
pub(super) struct FileToRead {
    /// The path relative to the policy directory.
    pub(super) path: String,
    pub(super) kind: FileKind,
    /// The path without links.
    pub(super) resolved: PathBuf,
    pub(super) fingerprint: Fingerprint,
    /// True if an equal fingerprint later proves equal content.
    pub(super) is_conclusive: bool,
}

pub(super) enum ReadOutcome {
    /// The file, and its size in bytes.
    Read(SourceFile, u64),
    /// The reason why there is none.
    Failed(ReadError),
}

/// The reason why a file has no text.
pub(super) enum ReadError {
    /// The file exceeds the limit; it has at least this many bytes.
    TooLarge(u64),
    /// The content is not valid.
    Invalid(Diagnostic),
    /// The path names another file than the walk has found.
    Changed,
    /// The system reported an error.
    Unreadable(io::Error),
}

/// Reads `files`, at most `max_bytes` of each, on several threads if that is worth it.
///
/// The outcomes are in the order of the files.
pub(super) fn read_all(
    files: &[FileToRead],
    max_bytes: u64,
    previous: Option<&DirectoryScan>,
    workers: &Workers,
) -> Vec<ReadOutcome> {
    let bytes = files.iter().map(|file| file.fingerprint.size).sum::<u64>();
    let workers = workers.one_per(BYTES_PER_THREAD, bytes);
    let read = |buffer: &mut Vec<u8>, file: &FileToRead| file.read(max_bytes, previous, buffer);
    workers.map_with(files, STACK_BYTES, Vec::new, read)
}

/// Reads the text of the file at `resolved`, which the walk has found with this `fingerprint`.
///
/// `name` is its path for diagnostics.
pub(super) fn read_text<'b>(
    name: &str,
    resolved: &Path,
    fingerprint: Fingerprint,
    max_bytes: u64,
    buffer: &'b mut Vec<u8>,
) -> Result<&'b str, ReadError> {
    let (mut file, found) = open(resolved).map_err(ReadError::Unreadable)?;
    if Fingerprint::of(&found) != fingerprint {
        return Err(ReadError::Changed);
    }
    let limit = max_bytes.saturating_add(1);
    read_into(buffer, &mut file, fingerprint.size, limit).map_err(ReadError::Unreadable)?;
    let bytes = buffer.len() as u64;
    if bytes > max_bytes {
        return Err(ReadError::TooLarge(bytes));
    }
    match str::from_utf8(buffer) {
        Ok(text) if text.starts_with(BYTE_ORDER_MARK) => {
            Err(ReadError::Invalid(byte_order_mark(name, text)))
        }
        Ok(text) => Ok(text),
        Err(error) => Err(ReadError::Invalid(not_utf8(
            name,
            error.valid_up_to(),
            buffer,
        ))),
    }
}

impl FileToRead {
    fn read(
        &self,
        max_bytes: u64,
        previous: Option<&DirectoryScan>,
        buffer: &mut Vec<u8>,
    ) -> ReadOutcome {
        match read_text(
            &self.path,
            &self.resolved,
            self.fingerprint,
            max_bytes,
            buffer,
        ) {
            Ok(text) => ReadOutcome::Read(self.source_file(text, previous), text.len() as u64),
            Err(error) => ReadOutcome::Failed(error),
        }
    }

    fn source_file(&self, text: &str, previous: Option<&DirectoryScan>) -> SourceFile {
        let (path, kind) = (self.path.clone(), self.kind);
        match kind {
            FileKind::Entities => {
                let digest = ContentDigest::of(text.as_bytes());
                let on_disk = TextOnDisk {
                    path: self.resolved.clone(),
                    fingerprint: self.fingerprint,
                    digest: (!self.is_conclusive).then_some(digest),
                };
                SourceFile::external(path, kind, digest, text.len() as u64, Box::new(on_disk))
            }
            FileKind::Policies
            | FileKind::PoliciesJson
            | FileKind::Schema
            | FileKind::SchemaJson
            | FileKind::Links
            | FileKind::Tests => {
                let known = previous.and_then(|scan| scan.file(&path)?.text_in_memory());
                // Two scans share one copy of an equal text.
                let text = match known.filter(|known| ***known == *text) {
                    Some(known) => Arc::clone(known),
                    None => Arc::from(text),
                };
                SourceFile::in_memory(path, kind, text)
            }
        }
    }
}

/// A text that stays on disk and is read when needed.
#[derive(Debug)]
pub(super) struct TextOnDisk {
    pub(super) path: PathBuf,
    pub(super) fingerprint: Fingerprint,
    /// The digest to compare; `None` if the fingerprint proves that the text is unchanged.
    pub(super) digest: Option<ContentDigest>,
}

impl TextOnDisk {
    /// Reads the file by `read`, if its fingerprint is the same before and after.
    fn read_unchanged<T>(
        &self,
        read: impl FnOnce(&mut File) -> io::Result<T>,
    ) -> Result<T, TextChanged> {
        let read = || {
            let (mut file, found) = open(&self.path)?;
            if Fingerprint::of(&found) != self.fingerprint {
                return Ok(None);
            }
            let content = read(&mut file)?;
            let is_same = Fingerprint::of(&file.metadata()?) == self.fingerprint;
            Ok(is_same.then_some(content))
        };
        // The next scan finds and reports the cause.
        read()
            .map_err(|_: io::Error| TextChanged)?
            .ok_or(TextChanged)
    }

    fn check(&self, digest: impl FnOnce() -> ContentDigest) -> Result<(), TextChanged> {
        match self.digest {
            Some(expected) if digest() != expected => Err(TextChanged),
            Some(_) | None => Ok(()),
        }
    }
}

impl TextSource for TextOnDisk {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        let mut bytes = Vec::new();
        self.read_unchanged(|file| read_into(&mut bytes, file, self.fingerprint.size, u64::MAX))?;
        self.check(|| ContentDigest::of(&bytes))?;
        String::from_utf8(bytes)
            .map(Arc::from)
            .map_err(|_| TextChanged)
    }

    fn stream(&self, take: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        let mut digest = ContentHasher::default();
        self.read_unchanged(|file| {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let length = match file.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                let chunk = buffer.get(..length).unwrap_or_default();
                if self.digest.is_some() {
                    digest.update(chunk);
                }
                take(chunk);
                pause();
            }
        })?;
        self.check(|| digest.finish())
    }
}

/// Opens the file at `path`, which may have been replaced: a FIFO must not block, and a link must
/// not be followed.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    Ok((file, found))
}

/// Replaces the content of `buffer` by that of `file`, up to `limit` bytes. `size` is expected.
fn read_into(buffer: &mut Vec<u8>, file: &mut File, size: u64, limit: u64) -> io::Result<()> {
    buffer.clear();
    // With one byte more than expected, the end is found without another allocation.
    let size = usize::try_from(size.min(limit)).unwrap_or_default();
    buffer.reserve_exact(size.saturating_add(1));
    file.take(limit).read_to_end(buffer)?;
    Ok(())
}

/// Some editors begin a file with this invisible character. No parser of ours accepts it.
const BYTE_ORDER_MARK: char = '\u{feff}';

fn byte_order_mark(path: &str, text: &str) -> Diagnostic {
    let line: Arc<str> = Arc::from(text.lines().next().unwrap_or_default());
    Diagnostic::error(
        path,
        "begins with a byte order mark, an invisible character",
    )
    .at(&line, 0..BYTE_ORDER_MARK.len_utf8())
    .with_help("save the file as UTF-8 without a byte order mark (BOM)")
}

fn not_utf8(path: &str, offset: usize, bytes: &[u8]) -> Diagnostic {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Diagnostic::error(path, "is UTF-16, not UTF-8")
            .with_help("save the file as UTF-8 without a byte order mark (BOM)");
    }
    // The diagnostic shows the text up to the end of the line with the first invalid byte.
    let line = bytes
        .get(offset..)
        .and_then(|rest| rest.iter().position(|byte| *byte == b'\n'));
    let shown = bytes
        .get(..line.map_or(bytes.len(), |length| offset + length))
        .unwrap_or(bytes);
    let text: Arc<str> = Arc::from(String::from_utf8_lossy(shown));
    let bad = char::REPLACEMENT_CHARACTER.len_utf8();
    Diagnostic::error(path, "is not UTF-8").at(&text, offset..offset + bad)
}
