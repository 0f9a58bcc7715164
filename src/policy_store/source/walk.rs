//! Walks a policy directory once, following links and judging what it meets.
//!
//! Links are resolved here step by step and not by the system, because every link on the way is
//! part of what was seen and a place to watch.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::{self, Outcome, Unread};
use super::{Fingerprint, Fingerprints, Reading, Seen, SourceLimits, Stamp};
use crate::pdp::Workers;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::watch::Places;

/// As many links in a row as Linux follows.
const LINKS_IN_A_ROW: usize = 40;

pub(super) fn walk(
    directory: &Path,
    limits: &SourceLimits,
    previous: Option<&Reading>,
    workers: &Workers,
    began: SystemTime,
) -> Reading {
    let mut walk = Walk {
        began,
        limits,
        previous,
        root: directory.to_owned(),
        ancestors: Vec::new(),
        files: Vec::new(),
        unread: Vec::new(),
        problems: Vec::new(),
        warnings: Vec::new(),
        prints: Fingerprints::default(),
        places: Places::default(),
        torn: BTreeSet::new(),
        bytes: 0,
        visited: 0,
        is_full: false,
        newest: None,
    };
    walk.root(directory);
    let has_read = walk.read(workers);
    walk.verify(has_read);
    Reading {
        sources: Sources::new(walk.files, walk.problems, walk.warnings),
        prints: walk.prints,
        places: walk.places,
        torn: walk.torn,
        began,
        newest: walk.newest,
    }
}

struct Walk<'a> {
    began: SystemTime,
    limits: &'a SourceLimits,
    previous: Option<&'a Reading>,
    /// The directory without links, once that is known.
    root: PathBuf,
    /// Device and inode of the directories that we are in, to see a link that leads back.
    ancestors: Vec<(u64, u64)>,
    files: Vec<SourceFile>,
    /// Files that cannot be taken from the previous reading.
    unread: Vec<Unread>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    prints: Fingerprints,
    places: Places,
    torn: BTreeSet<String>,
    bytes: u64,
    visited: usize,
    /// A limit of the whole directory is reached; it was reported, and the rest is left out.
    is_full: bool,
    newest: Option<Stamp>,
}

/// Why a path led nowhere.
enum Lost {
    /// Nothing has that name.
    Missing(PathBuf),
    Loop,
    Unreadable(io::Error),
}

impl Walk<'_> {
    fn root(&mut self, directory: &Path) {
        let found = std::path::absolute(directory)
            .map_err(Lost::Unreadable)
            .and_then(|path| self.resolve(Path::new("/"), path.as_os_str()));
        match found {
            Ok(path) => {
                self.root.clone_from(&path);
                self.directory(&path, "");
            }
            Err(lost) => {
                let why = match lost {
                    Lost::Missing(at) if at == directory => "does not exist".to_owned(),
                    Lost::Missing(at) => format!("does not exist: there is no `{}`", at.display()),
                    Lost::Loop => "is a link that loops".to_owned(),
                    Lost::Unreadable(error) => format!("cannot be read: {}", reason(&error)),
                };
                self.problem(
                    "",
                    format!("the policy directory `{}` {why}", directory.display()),
                );
            }
        }
    }

    /// Reads the directory at `at`, a path without links, which callers see as `shown`.
    fn directory(&mut self, at: &Path, shown: &str) {
        let identity = match fs::symlink_metadata(at) {
            Ok(found) => {
                self.met(&Fingerprint::of(&found));
                (found.dev(), found.ino())
            }
            Err(error) => return self.lost(shown, &error),
        };
        if self.ancestors.contains(&identity) {
            return self.problem(shown, "leads back to a directory that it stands in".into());
        }
        if self.ancestors.len() > self.limits.depth {
            let text = format!("stands deeper than {} directories", self.limits.depth);
            return self.problem(shown, text);
        }
        if !self.has_room() {
            return;
        }
        self.places.add(at);
        self.prints.directories.insert(at.to_owned(), identity);
        let entries = match list(at) {
            Ok(entries) => entries,
            Err(error) => return self.lost(shown, &error),
        };
        self.ancestors.push(identity);
        for (name, kind) in entries {
            if self.is_full {
                break;
            }
            if !name.as_bytes().starts_with(b".") {
                self.entry(at, shown, &name, kind);
            }
        }
        self.ancestors.pop();
    }

    fn entry(&mut self, directory: &Path, shown: &str, name: &OsStr, entry: FileType) {
        let text = name.to_string_lossy();
        let path = if shown.is_empty() {
            text.clone().into_owned()
        } else {
            format!("{shown}/{text}")
        };
        let kind = FileKind::from_name(&text);
        if kind.is_some() && name.to_str().is_none() {
            return self.problem(&path, "the name is not UTF-8".into());
        }
        let mut at = directory.join(name);
        let mut is_directory = entry.is_dir();
        if entry.is_symlink() {
            match self.resolve(directory, name) {
                Ok(target) => {
                    is_directory = target.is_dir();
                    at = target;
                }
                Err(lost) => return self.astray(&path, kind.is_some(), &at, lost),
            }
        }
        match kind {
            Some(kind) => self.file(at, path, kind),
            None if is_directory && name.to_str().is_some() => self.directory(&at, &path),
            None if is_directory => {
                self.warning(&path, "passed over: the name is not UTF-8".into());
            }
            None => {
                if let Some(meant) = FileKind::near_miss(&text) {
                    self.warning(&path, format!("passed over: the name is nearly {meant}"));
                }
            }
        }
    }

    fn file(&mut self, at: PathBuf, path: String, kind: FileKind) {
        if !self.has_room() {
            return;
        }
        // Looked at before it is opened: opening a device may do something.
        let found = match fs::symlink_metadata(&at) {
            Ok(found) => found,
            Err(error) => return self.lost(&path, &error),
        };
        let print = Fingerprint::of(&found);
        self.met(&print);
        if !self.is_acceptable(&path, &found) || !self.has_room_for(found.len()) {
            return;
        }
        let seen = Seen {
            at: at.clone(),
            print,
        };
        let known = self
            .previous
            .and_then(|reading| reading.unchanged(&path, &seen));
        match known {
            Some(file) => self.files.push(file.clone()),
            None => self.unread.push(Unread {
                path: path.clone(),
                kind,
                at,
                print,
                is_certain: print.is_older_than(self.began),
            }),
        }
        self.prints.files.insert(path, seen);
    }

    /// Reads what must be read; true when there was any.
    fn read(&mut self, workers: &Workers) -> bool {
        let unread = std::mem::take(&mut self.unread);
        let outcomes = file::read_all(&unread, self.limits.file_bytes, self.previous, workers);
        for (file, outcome) in unread.iter().zip(outcomes) {
            match outcome {
                Outcome::File(found, bytes) => {
                    // Some files hold more than the system says, those of `/proc` for example.
                    if self.has_room_for(bytes.saturating_sub(file.print.size)) {
                        self.files.push(found);
                    }
                }
                Outcome::TooLarge(bytes) => self.too_large(&file.path, bytes),
                Outcome::Refused(problem) => self.problems.push(problem),
                Outcome::Changed => {
                    self.torn.insert(file.path.clone());
                }
                Outcome::Failed(error) => self.lost(&file.path, &error),
            }
        }
        !unread.is_empty()
    }

    fn is_acceptable(&mut self, path: &str, found: &Metadata) -> bool {
        if !found.is_file() {
            let text = format!("is {}, not a regular file", what(found.file_type()));
            self.problem(path, text);
            return false;
        }
        if found.len() > self.limits.file_bytes {
            self.too_large(path, found.len());
            return false;
        }
        true
    }

    fn too_large(&mut self, path: &str, bytes: u64) {
        let allowed = self.limits.file_bytes;
        let text = format!("holds {bytes} bytes, more than the {allowed} allowed");
        self.problem(path, text);
    }

    fn has_room(&mut self) -> bool {
        self.visited += 1;
        if self.visited > self.limits.files && !self.is_full {
            self.is_full = true;
            let text = format!("more than {} files and directories", self.limits.files);
            self.problem("", text);
        }
        !self.is_full
    }

    /// Takes `bytes` from what all files together may hold.
    fn has_room_for(&mut self, bytes: u64) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.total_bytes && !self.is_full {
            self.is_full = true;
            let allowed = self.limits.total_bytes;
            let text = format!("the files hold more than the {allowed} bytes allowed together");
            self.problem("", text);
        }
        !self.is_full
    }

    /// Follows `path`, from a directory that is no link, to where it leads.
    fn resolve(&mut self, from: &Path, path: &OsStr) -> Result<PathBuf, Lost> {
        let mut at = from.to_owned();
        let mut ahead: Vec<OsString> = Vec::new();
        let push = |ahead: &mut Vec<OsString>, path: &Path| {
            let parts = path.components().rev();
            ahead.extend(parts.map(|part| part.as_os_str().to_owned()));
        };
        push(&mut ahead, Path::new(path));
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == "/" {
                at = PathBuf::from("/");
            } else if name == ".." {
                at.pop();
            } else if name != "." {
                let next = at.join(&name);
                let found = match fs::symlink_metadata(&next) {
                    Ok(found) => found,
                    Err(error) => {
                        // Once it is made, or may be read, this directory tells.
                        self.places.add_name(&at, &name);
                        let is_missing =
                            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
                        return Err(if is_missing {
                            Lost::Missing(next)
                        } else {
                            Lost::Unreadable(error)
                        });
                    }
                };
                if found.is_symlink() {
                    self.places.add_name(&at, &name);
                    links += 1;
                    if links > LINKS_IN_A_ROW {
                        return Err(Lost::Loop);
                    }
                    let target = fs::read_link(&next).map_err(Lost::Unreadable)?;
                    let seen = Seen {
                        print: Fingerprint::of(&found),
                        at: next,
                    };
                    self.met(&seen.print);
                    let name = self.shown(&seen.at);
                    // Many files may come through one link; it must be the same for all.
                    let first = self
                        .prints
                        .links
                        .entry(name.clone())
                        .or_insert(seen.clone());
                    if *first != seen {
                        self.torn.insert(name);
                    }
                    push(&mut ahead, &target);
                } else {
                    at = next;
                }
            }
        }
        if let (Some(directory), Some(name)) = (at.parent(), at.file_name()) {
            self.places.add_name(directory, name);
        }
        Ok(at)
    }

    /// Reports a link that could not be followed.
    fn astray(&mut self, path: &str, is_match: bool, link: &Path, lost: Lost) {
        let text = match lost {
            Lost::Missing(at) if at == link => {
                self.torn.insert(path.to_owned());
                return;
            }
            Lost::Missing(at) => {
                format!(
                    "is a link that leads nowhere: there is no `{}`",
                    at.display()
                )
            }
            Lost::Loop => "is a link that loops".to_owned(),
            Lost::Unreadable(error) => format!("cannot be followed: {}", reason(&error)),
        };
        // Without a matching name it may be anything, but perhaps a directory of policies.
        if is_match {
            self.problem(path, text);
        } else {
            self.warning(path, format!("passed over: {text}"));
        }
    }

    /// Reports what was listed but could not be read.
    fn lost(&mut self, path: &str, error: &io::Error) {
        let is_gone = error.kind() == ErrorKind::NotFound
            || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
        if is_gone {
            // Listed a moment ago, so the directory is changing under us; the next reading says
            // what it has become.
            self.torn.insert(path.to_owned());
        } else if path.is_empty() {
            let root = self.root.display();
            let text = format!(
                "the policy directory `{root}` cannot be read: {}",
                reason(error)
            );
            self.problem("", text);
        } else {
            self.problem(path, format!("cannot be read: {}", reason(error)));
        }
    }

    /// Looks once more at everything that was seen: what differs now may have been read half old
    /// and half new.
    fn verify(&mut self, has_read: bool) {
        let is_as_before =
            |previous: &Reading| !has_read && !previous.is_torn() && previous.prints == self.prints;
        if self.previous.is_some_and(is_as_before) {
            return;
        }
        let now = |path: &Path| fs::symlink_metadata(path).ok();
        let seen = self.prints.files.iter().chain(&self.prints.links);
        for (path, seen) in seen {
            if now(&seen.at).map(|found| Fingerprint::of(&found)) != Some(seen.print) {
                self.torn.insert(path.clone());
            }
        }
        for (path, identity) in &self.prints.directories {
            if now(path).map(|found| (found.dev(), found.ino())) != Some(*identity) {
                self.torn.insert(self.shown(path));
            }
        }
    }

    fn met(&mut self, print: &Fingerprint) {
        self.newest = self.newest.max(Some(print.newest()));
    }

    fn shown(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        relative.display().to_string()
    }

    fn problem(&mut self, path: &str, text: String) {
        self.problems.push(Diagnostic::error(path, text));
    }

    fn warning(&mut self, path: &str, text: String) {
        self.warnings.push(Diagnostic::warning(path, text));
    }
}

/// What is in a directory, sorted by name.
fn list(directory: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        entries.push((entry.file_name(), entry.file_type()?));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

fn what(kind: FileType) -> &'static str {
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

fn reason(error: &io::Error) -> String {
    if error.kind() == ErrorKind::PermissionDenied {
        "permission denied".to_owned()
    } else if error.kind() == ErrorKind::NotADirectory {
        "it is not a directory".to_owned()
    } else {
        error.to_string()
    }
}
