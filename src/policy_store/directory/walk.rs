//! Walks a policy directory once, follows its links and collects its files.
//!
//! Links are resolved here and not by the system, because each link on the way is part of the
//! scan and must be watched.

use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{self, FileToRead, ReadError, ReadOutcome};
use super::fingerprint::{Fingerprint, ResolvedFile};
use super::ignore_file::{self, IgnorePatterns};
use super::scan::DirectoryScan;
use crate::config::SourceLimits;
use crate::pdp::Workers;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::{FileKind, SourceFile, Sources, UnusedFiles};
use crate::watch::links::{ResolveError, resolve};

/// Reads all of `directory`.
///
/// Never fails: a file that cannot be read is a problem in the sources. Files unchanged since
/// `previous` are reused; the others are read on this thread and `workers`. Blocks, but never
/// waits for a FIFO or a device. Costs a few system calls for each file, link and directory. Does
/// not keep the text of stored entities.
#[must_use]
pub fn scan(
    directory: &Path,
    limits: &SourceLimits,
    previous: Option<&DirectoryScan>,
    workers: &Workers,
) -> DirectoryScan {
    let mut walk = Walk {
        limits,
        previous,
        root: directory.to_owned(),
        ancestors: Vec::new(),
        files: Vec::new(),
        to_read: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
        patterns: IgnorePatterns::none(),
        unused: UnusedFiles::default(),
        left_out_entries: 0,
        file_count: 0,
        byte_count: 0,
        is_limit_exceeded: false,
        scan: DirectoryScan::begin(),
    };
    walk.visit_root(directory);
    let has_read = walk.read_files(workers);
    walk.verify(has_read);
    let sources = Sources::new(walk.files, walk.problems, walk.warnings).with_unused(walk.unused);
    DirectoryScan {
        sources,
        ..walk.scan
    }
}

/// Directories that operating systems make on a volume. Nobody keeps policies there, and often
/// nobody may read them.
const SYSTEM_DIRECTORIES: [&str; 3] = ["lost+found", "$RECYCLE.BIN", "System Volume Information"];

struct Walk<'a> {
    limits: &'a SourceLimits,
    previous: Option<&'a DirectoryScan>,
    /// The policy directory, without links once it is resolved.
    root: PathBuf,
    /// Device and inode of the directories being visited, to detect a link back to one of them.
    ancestors: Vec<(u64, u64)>,
    files: Vec<SourceFile>,
    /// Files that cannot be reused from the previous scan.
    to_read: Vec<FileToRead>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// The patterns of `.cedarignore`.
    patterns: IgnorePatterns,
    unused: UnusedFiles,
    /// Entries seen so far in directories that are left out.
    left_out_entries: usize,
    /// Files and directories so far, counted against the limit of the whole directory.
    file_count: usize,
    /// Bytes of files so far, likewise.
    byte_count: u64,
    /// Set once a limit is exceeded; the rest of the directory is left out.
    is_limit_exceeded: bool,
    /// The result so far, without sources.
    scan: DirectoryScan,
}

impl Walk<'_> {
    fn visit_root(&mut self, directory: &Path) {
        let resolved = std::path::absolute(directory)
            .map_err(ResolveError::Unreadable)
            .and_then(|path| self.resolve(Path::new("/"), &path));
        let why = match resolved {
            Ok(path) => {
                self.root.clone_from(&path);
                self.read_patterns();
                return self.visit_directory(&path, "");
            }
            Err(ResolveError::Missing(at)) if at == directory => "does not exist".to_owned(),
            Err(ResolveError::Missing(at)) => {
                format!("does not exist: there is no `{}`", at.display())
            }
            Err(ResolveError::Loop) => "is a link loop".to_owned(),
            Err(ResolveError::Unreadable(error)) => {
                format!("cannot be read: {}", error_text(&error))
            }
        };
        let text = format!("the policy directory `{}` {why}", directory.display());
        self.problem("", text);
    }

    /// Visits the directory at `path`, which has no links; authors know it as `name`.
    fn visit_directory(&mut self, path: &Path, name: &str) {
        let id = match fs::symlink_metadata(path) {
            Ok(found) => {
                self.record_change_time(&Fingerprint::of(&found));
                (found.dev(), found.ino())
            }
            Err(error) => return self.unreadable(name, &error),
        };
        if self.ancestors.contains(&id) {
            return self.problem(name, "leads back to a parent directory".into());
        }
        if self.ancestors.len() > self.limits.depth {
            let text = format!("is nested deeper than {} directories", self.limits.depth);
            return self.problem(name, text);
        }
        if !self.count_file() {
            return;
        }
        self.scan.watched_paths.add_directory(path);
        self.scan
            .fingerprints
            .directories
            .insert(path.to_owned(), id);
        let entries = match list(path) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(name, &error),
        };
        self.ancestors.push(id);
        for (entry, kind) in entries {
            if self.is_limit_exceeded {
                break;
            }
            if !entry.as_bytes().starts_with(b".") {
                self.visit_entry(path, name, &entry, kind);
            }
        }
        self.ancestors.pop();
    }

    fn visit_entry(&mut self, directory: &Path, parent: &str, entry: &OsStr, entry_kind: FileType) {
        let text = entry.to_string_lossy();
        let name = if parent.is_empty() {
            text.clone().into_owned()
        } else {
            format!("{parent}/{text}")
        };
        let kind = FileKind::from_name(&text);
        let mut path = directory.join(entry);
        let mut is_directory = entry_kind.is_dir();
        if entry_kind.is_symlink() {
            match self.resolve(directory, Path::new(entry)) {
                Ok(target) => {
                    is_directory = target.is_dir();
                    path = target;
                }
                Err(_) if self.patterns.leave_out(&name, false) => return self.leave_out(kind),
                Err(error) => return self.bad_link(&name, kind.is_some(), &path, error),
            }
        }
        if self.patterns.leave_out(&name, is_directory) {
            return match is_directory {
                true => self.leave_out_directory(&path),
                false => self.leave_out(kind),
            };
        }
        let is_utf8 = entry.to_str().is_some();
        // Names without an ending, such as `linked`, are also usual for directories.
        match kind.filter(|_| !is_directory || text.contains('.')) {
            Some(_) if !is_utf8 => self.problem(&name, "the name is not UTF-8".into()),
            Some(kind) => self.visit_file(path, name, kind),
            None if is_directory && SYSTEM_DIRECTORIES.contains(&&*text) => {
                self.unused.ignored.push(format!("{name}/"));
            }
            None if is_directory && is_utf8 => self.visit_directory(&path, &name),
            None if is_directory => self.warning(&name, "ignored: the name is not UTF-8".into()),
            None => match FileKind::near_miss(&text) {
                Some(meant) => self.warning(&name, format!("ignored: did you mean {meant}?")),
                None => self.unused.ignored.push(name),
            },
        }
    }

    /// Reads the patterns of `.cedarignore`, if there is one at the root.
    fn read_patterns(&mut self) {
        let name = ignore_file::NAME;
        let root = self.root.clone();
        let mut path = root.join(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => match self.resolve(&root, Path::new(name)) {
                Ok(target) => {
                    path = target;
                    fs::symlink_metadata(&path)
                }
                Err(error) => return self.bad_link(name, true, &path, error),
            },
            found => found,
        };
        let found = match found {
            Ok(found) => found,
            // There is none, or the policy directory itself is none, which is reported for it.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return;
            }
            Err(error) => return self.unreadable(name, &error),
        };
        let fingerprint = Fingerprint::of(&found);
        self.record_change_time(&fingerprint);
        if !self.count_file() || !self.is_acceptable(name, &found) {
            return;
        }
        let mut buffer = Vec::new();
        let limit = self.limits.file_bytes;
        match file::read_text(name, &path, fingerprint, limit, &mut buffer) {
            Ok(text) => match IgnorePatterns::parse(&Arc::from(text)) {
                Ok(patterns) => self.patterns = patterns,
                Err(problems) => self.problems.extend(problems),
            },
            Err(error) => self.failed_read(name, error),
        }
        let file = ResolvedFile { path, fingerprint };
        self.scan.fingerprints.files.insert(name.to_owned(), file);
    }

    /// Counts a file that is left out.
    fn leave_out(&mut self, kind: Option<FileKind>) {
        if let Some(kind) = kind {
            self.unused.left_out.add(kind);
        }
    }

    /// Counts the files below a directory that is left out. Follows no link, and needs no
    /// permission: nothing in there matters. Stops at the limit of files, so that the count of a
    /// huge directory is too low.
    fn leave_out_directory(&mut self, path: &Path) {
        let mut pending = vec![path.to_owned()];
        while let Some(directory) = pending.pop() {
            for (entry, kind) in list(&directory).unwrap_or_default() {
                self.left_out_entries += 1;
                if self.left_out_entries > self.limits.files {
                    return;
                }
                if kind.is_dir() {
                    pending.push(directory.join(entry));
                } else {
                    self.leave_out(FileKind::from_name(&entry.to_string_lossy()));
                }
            }
        }
    }

    fn visit_file(&mut self, path: PathBuf, name: String, kind: FileKind) {
        if !self.count_file() {
            return;
        }
        // Metadata first: opening a device may have an effect.
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) => return self.unreadable(&name, &error),
        };
        let fingerprint = Fingerprint::of(&found);
        self.record_change_time(&fingerprint);
        if !self.is_acceptable(&name, &found) || !self.count_bytes(found.len()) {
            return;
        }
        let file = ResolvedFile { path, fingerprint };
        let unchanged = self
            .previous
            .and_then(|scan| scan.unchanged_file(&name, &file));
        match unchanged {
            Some(file) => self.files.push(file.clone()),
            None => self.to_read.push(FileToRead {
                path: name.clone(),
                kind,
                resolved: file.path.clone(),
                fingerprint,
                is_conclusive: fingerprint.is_conclusive_at(self.scan.started_at),
            }),
        }
        self.scan.fingerprints.files.insert(name, file);
    }

    /// Reads the files that cannot be reused. Returns whether there were any.
    fn read_files(&mut self, workers: &Workers) -> bool {
        let files = std::mem::take(&mut self.to_read);
        let outcomes = file::read_all(&files, self.limits.file_bytes, self.previous, workers);
        for (file, outcome) in files.iter().zip(outcomes) {
            match outcome {
                ReadOutcome::Read(found, bytes) => {
                    // Some files hold more than their metadata says, for example in `/proc`.
                    if self.count_bytes(bytes.saturating_sub(file.fingerprint.size)) {
                        self.files.push(found);
                    }
                }
                ReadOutcome::Failed(error) => self.failed_read(&file.path, error),
            }
        }
        !files.is_empty()
    }

    /// Reports a file that was found and could not be read.
    fn failed_read(&mut self, name: &str, error: ReadError) {
        match error {
            ReadError::TooLarge(bytes) => self.too_large(name, bytes),
            ReadError::Invalid(problem) => self.problems.push(problem),
            ReadError::Changed => {
                self.scan.changed_names.insert(name.to_owned());
            }
            ReadError::Unreadable(error) => self.unreadable(name, &error),
        }
    }

    /// Looks again at everything that was seen. What differs may have been read half old, half new.
    fn verify(&mut self, has_read: bool) {
        let is_as_before = |previous: &DirectoryScan| {
            !has_read
                && !previous.is_inconsistent()
                && previous.fingerprints == self.scan.fingerprints
        };
        if self.previous.is_some_and(is_as_before) {
            return;
        }
        let now = |path: &Path| fs::symlink_metadata(path).ok();
        let seen = &self.scan.fingerprints;
        for (name, seen) in seen.files.iter().chain(&seen.links) {
            if now(&seen.path).map(|found| Fingerprint::of(&found)) != Some(seen.fingerprint) {
                self.scan.changed_names.insert(name.clone());
            }
        }
        for (path, id) in &self.scan.fingerprints.directories {
            if now(path).map(|found| (found.dev(), found.ino())) != Some(*id) {
                self.scan
                    .changed_names
                    .insert(relative_name(&self.root, path));
            }
        }
    }

    /// Resolves `path`, and records the links on the way.
    fn resolve(&mut self, from: &Path, path: &Path) -> Result<PathBuf, ResolveError> {
        let mut links = Vec::new();
        let resolved = resolve(from, path, &mut self.scan.watched_paths, |path, found| {
            let fingerprint = Fingerprint::of(found);
            links.push(ResolvedFile { path, fingerprint });
        });
        for link in links {
            self.record_change_time(&link.fingerprint);
            let name = relative_name(&self.root, &link.path);
            // Many files may be reached through one link. It must be the same for all.
            let known = self.scan.fingerprints.links.entry(name.clone());
            if *known.or_insert_with(|| link.clone()) != link {
                self.scan.changed_names.insert(name);
            }
        }
        resolved
    }

    fn record_change_time(&mut self, fingerprint: &Fingerprint) {
        self.scan.last_change = self.scan.last_change.max(Some(fingerprint.last_change()));
    }

    fn is_acceptable(&mut self, name: &str, found: &Metadata) -> bool {
        if !found.is_file() {
            let kind = file_type_name(found.file_type());
            self.problem(name, format!("is {kind}, not a regular file"));
            return false;
        }
        if found.len() > self.limits.file_bytes {
            self.too_large(name, found.len());
            return false;
        }
        true
    }

    /// Counts one file or directory. Returns whether the limits allow it.
    fn count_file(&mut self) -> bool {
        self.file_count += 1;
        let allowed = self.limits.files;
        let text = || format!("more than {allowed} files and directories");
        self.check_limit(self.file_count > allowed, text)
    }

    /// Counts `bytes` of a file. Returns whether the limits allow them.
    fn count_bytes(&mut self, bytes: u64) -> bool {
        self.byte_count = self.byte_count.saturating_add(bytes);
        let allowed = self.limits.total_bytes;
        let text = || format!("the files have more than {allowed} bytes in total");
        self.check_limit(self.byte_count > allowed, text)
    }

    /// Reports the first limit that is exceeded. Returns whether none is.
    fn check_limit(&mut self, is_exceeded: bool, text: impl FnOnce() -> String) -> bool {
        if is_exceeded && !std::mem::replace(&mut self.is_limit_exceeded, true) {
            self.problem("", text());
        }
        !self.is_limit_exceeded
    }

    fn too_large(&mut self, name: &str, bytes: u64) {
        let allowed = self.limits.file_bytes;
        let text = format!("has {bytes} bytes; at most {allowed} are allowed");
        self.problem(name, text);
    }

    fn bad_link(&mut self, name: &str, is_policy_file: bool, link: &Path, error: ResolveError) {
        let text = match error {
            ResolveError::Missing(at) if at == link => {
                self.scan.changed_names.insert(name.to_owned());
                return;
            }
            ResolveError::Missing(at) => {
                format!("is a dangling link: there is no `{}`", at.display())
            }
            ResolveError::Loop => "is a link loop".to_owned(),
            ResolveError::Unreadable(error) => {
                format!("is a link that cannot be followed: {}", error_text(&error))
            }
        };
        // With any other name the target is unknown, but may be a directory of policies.
        if is_policy_file {
            self.problem(name, text);
        } else {
            self.warning(name, format!("ignored: {text}"));
        }
    }

    /// Reports a listed name that could not be read.
    fn unreadable(&mut self, name: &str, error: &io::Error) {
        let is_gone = error.kind() == ErrorKind::NotFound
            || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
        let why = error_text(error);
        if is_gone {
            // It was listed a moment ago, so the directory is changing. The next scan finds the
            // result.
            self.scan.changed_names.insert(name.to_owned());
        } else if name.is_empty() {
            let root = self.root.display();
            let text = format!("the policy directory `{root}` cannot be read: {why}");
            self.problem("", text);
        } else {
            self.problem(name, format!("cannot be read: {why}"));
        }
    }

    fn problem(&mut self, name: &str, text: String) {
        self.problems.push(Diagnostic::error(name, text));
    }

    fn warning(&mut self, name: &str, text: String) {
        self.warnings.push(Diagnostic::warning(name, text));
    }
}

fn file_type_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_symlink() {
        "a link"
    } else {
        "a device"
    }
}

/// Describes an error of the system, in terms of the policy directory.
fn error_text(error: &io::Error) -> String {
    if error.kind() == ErrorKind::PermissionDenied {
        "permission denied".to_owned()
    } else if error.kind() == ErrorKind::NotADirectory {
        "not a directory".to_owned()
    } else {
        error.to_string()
    }
}

/// Returns `path` relative to the policy directory, or as it is if it lies outside.
fn relative_name(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    relative.display().to_string()
}

/// Lists a directory, sorted by name.
fn list(directory: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        entries.push((entry.file_name(), entry.file_type()?));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}
