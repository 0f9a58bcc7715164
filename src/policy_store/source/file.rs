//! Reads one file that the walk has found, now or again later, and many of them at once.
//!
//! The text of stored entities is hashed and let go: there may be more of it than there is memory
//! for. Whoever needs it reads it again, and gets it only if it is still the same.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;
use std::thread;

use rustix::fs::{Mode, OFlags};

use super::super::aside::pause;
use super::{Fingerprint, Reading};
use crate::pdp::Workers;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::{
    ContentDigest, ContentHasher, FileKind, SourceFile, TextChanged, TextSource,
};

/// Fewer bytes than this are read sooner than a thread is started.
const WORTH_A_THREAD: u64 = 1 << 20;

/// The stack of a thread that reads; as large as threads have it where nothing is said.
const STACK_BYTES: usize = 2 << 20;

/// How many bytes of a text are held at once where the whole is not wanted.
const PIECE: usize = 64 << 10;

/// A file that is to be read.
pub(super) struct Unread {
    pub(super) path: String,
    pub(super) kind: FileKind,
    /// Where it really lies.
    pub(super) at: PathBuf,
    /// As the walk has met it.
    pub(super) print: Fingerprint,
    /// Whether whoever finds it with the same fingerprint later finds it with the same content.
    pub(super) is_certain: bool,
}

/// What became of reading one file.
pub(super) enum Outcome {
    /// It was read whole, and holds so many bytes.
    File(SourceFile, u64),
    /// It holds more than is allowed: so much at least.
    TooLarge(u64),
    /// It cannot be used as it is.
    Refused(Diagnostic),
    /// It is another file than the walk has met.
    Changed,
    Failed(io::Error),
}

/// Reads `files`, no more than `most` bytes of each, on several threads where that is worth it.
/// The outcomes are in the order of the files.
pub(super) fn read_all(
    files: &[Unread],
    most: u64,
    previous: Option<&Reading>,
    workers: &Workers,
) -> Vec<Outcome> {
    let bytes = files.iter().map(|file| file.print.size).sum::<u64>();
    let workers = workers.one_per(WORTH_A_THREAD, bytes);
    let read = |buffer: &mut Vec<u8>, file: &Unread| file.read(most, previous, buffer);
    workers.map_with(files, STACK_BYTES, Vec::new, read)
}

/// As many threads as the machine runs at once.
#[must_use]
pub fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

impl Unread {
    fn read(&self, most: u64, previous: Option<&Reading>, buffer: &mut Vec<u8>) -> Outcome {
        let read = open(&self.at).and_then(|(mut file, found)| {
            if Fingerprint::of(&found) != self.print {
                return Ok(false);
            }
            fill(buffer, &mut file, self.print.size, most.saturating_add(1))?;
            Ok(true)
        });
        match read {
            Ok(true) => {}
            Ok(false) => return Outcome::Changed,
            Err(error) => return Outcome::Failed(error),
        }
        let bytes = buffer.len() as u64;
        if bytes > most {
            return Outcome::TooLarge(bytes);
        }
        let text = match str::from_utf8(buffer) {
            Ok(text) => text,
            Err(error) => {
                return Outcome::Refused(not_utf8(&self.path, error.valid_up_to(), buffer));
            }
        };
        let (path, kind) = (self.path.clone(), self.kind);
        let file = match kind {
            FileKind::Entities => {
                let digest = ContentDigest::of(buffer);
                let source = FileText {
                    at: self.at.clone(),
                    print: self.print,
                    digest: (!self.is_certain).then_some(digest),
                };
                SourceFile::external(path, kind, digest, bytes, Box::new(source))
            }
            FileKind::Policies
            | FileKind::PoliciesJson
            | FileKind::Schema
            | FileKind::SchemaJson
            | FileKind::Links
            | FileKind::Tests => {
                let known = previous.and_then(|reading| reading.file(&path)?.text_in_memory());
                match known.filter(|known| ***known == *text) {
                    // One copy of a text that was read twice is enough.
                    Some(known) => SourceFile::in_memory(path, kind, Arc::clone(known)),
                    None => SourceFile::in_memory(path, kind, Arc::from(text)),
                }
            }
        };
        Outcome::File(file, bytes)
    }
}

/// A text that is left in its file.
#[derive(Debug)]
pub(super) struct FileText {
    pub(super) at: PathBuf,
    pub(super) print: Fingerprint,
    /// To be checked where the fingerprint is not enough.
    pub(super) digest: Option<ContentDigest>,
}

impl FileText {
    /// What `take` makes of the open file, if that is the same as ever before and after.
    fn fetch<T>(&self, take: impl FnOnce(&mut File) -> io::Result<T>) -> Result<T, TextChanged> {
        let fetch = || {
            let (mut file, found) = open(&self.at)?;
            if Fingerprint::of(&found) != self.print {
                return Ok(None);
            }
            let taken = take(&mut file)?;
            let is_same = Fingerprint::of(&file.metadata()?) == self.print;
            Ok(is_same.then_some(taken))
        };
        // Whatever fails, the next look at the directory finds out and tells.
        fetch()
            .map_err(|_: io::Error| TextChanged)?
            .ok_or(TextChanged)
    }

    fn check(&self, found: impl FnOnce() -> ContentDigest) -> Result<(), TextChanged> {
        match self.digest {
            Some(digest) if found() != digest => Err(TextChanged),
            Some(_) | None => Ok(()),
        }
    }
}

impl TextSource for FileText {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        let mut bytes = Vec::new();
        self.fetch(|file| fill(&mut bytes, file, self.print.size, u64::MAX))?;
        self.check(|| ContentDigest::of(&bytes))?;
        String::from_utf8(bytes)
            .map(Arc::from)
            .map_err(|_| TextChanged)
    }

    fn stream(&self, take: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        let mut digest = ContentHasher::default();
        self.fetch(|file| {
            let mut buffer = vec![0; PIECE];
            loop {
                let length = match file.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                let piece = buffer.get(..length).unwrap_or_default();
                if self.digest.is_some() {
                    digest.update(piece);
                }
                take(piece);
                pause();
            }
        })?;
        self.check(|| digest.finish())
    }
}

/// Opens the file at `at`, which may have become something else: a FIFO would block us, a link
/// lead elsewhere.
fn open(at: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(at, flags, Mode::empty())?);
    let found = file.metadata()?;
    Ok((file, found))
}

/// Makes `buffer` what `file`, said to be of `size`, holds, or its first `most` bytes.
fn fill(buffer: &mut Vec<u8>, file: &mut File, size: u64, most: u64) -> io::Result<()> {
    buffer.clear();
    // One byte more than there should be, so that the end is seen without another allocation.
    let size = usize::try_from(size.min(most)).unwrap_or_default();
    buffer.reserve_exact(size.saturating_add(1));
    file.take(most).read_to_end(buffer)?;
    Ok(())
}

fn not_utf8(path: &str, offset: usize, bytes: &[u8]) -> Diagnostic {
    // The line with the first bad byte is the last one that is shown.
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
