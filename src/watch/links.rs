//! Resolves a path link by link, and collects the names whose change would alter the result.
//!
//! The system's own resolution does not report the links on the way. Kubernetes updates what it
//! mounts by swapping one of them.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::paths::WatchedPaths;

/// Most links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;

/// The reason why a path does not resolve.
#[derive(Debug)]
pub enum ResolveError {
    /// Nothing has this name.
    Missing(PathBuf),
    /// Links lead to each other without end.
    Loop,
    /// The system reported an error.
    Unreadable(io::Error),
}

/// Resolves `path`, starting in `directory`, which must not contain links itself.
///
/// Adds to `watched` each name whose change may alter the result, also if there is no result:
/// once a missing name is created, its directory reports it. Calls `on_link` with each link.
///
/// # Errors
///
/// [`ResolveError`] when a name is missing or unreadable, or links form a loop.
pub fn resolve(
    directory: &Path,
    path: &Path,
    watched: &mut WatchedPaths,
    mut on_link: impl FnMut(PathBuf, &Metadata),
) -> Result<PathBuf, ResolveError> {
    let mut resolved = directory.to_owned();
    // A stack: the next component is the last element.
    let mut remaining = reversed_components(path);
    let mut links = 0;
    while let Some(name) = remaining.pop() {
        if name == "/" {
            resolved = PathBuf::from("/");
            continue;
        } else if name == ".." {
            resolved.pop();
            continue;
        } else if name == "." {
            continue;
        }
        let next = resolved.join(&name);
        let found = fs::symlink_metadata(&next).map_err(|error| {
            watched.add_name(&resolved, &name);
            match is_missing(&error) {
                true => ResolveError::Missing(next.clone()),
                false => ResolveError::Unreadable(error),
            }
        })?;
        if !found.is_symlink() {
            resolved = next;
            continue;
        }
        watched.add_name(&resolved, &name);
        links += 1;
        if links > MAX_LINKS {
            return Err(ResolveError::Loop);
        }
        let target = fs::read_link(&next).map_err(ResolveError::Unreadable)?;
        on_link(next, &found);
        remaining.extend(reversed_components(&target));
    }
    if let (Some(parent), Some(name)) = (resolved.parent(), resolved.file_name()) {
        watched.add_name(parent, name);
    }
    Ok(resolved)
}

fn reversed_components(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
