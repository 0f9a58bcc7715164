//! Reads small files, and reads them again when they change: certificates, keys, caller lists.
//!
//! This module does not know what a file means. The caller decides whether new content replaces
//! the current content.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::links::resolve;
use super::{WatchSettings, WatchedPaths, Watcher, watch};

/// Most bytes read of one file. Certificate chains and caller lists are far smaller.
const MAX_BYTES: u64 = 1 << 20;

/// Time that files must stay unchanged: a certificate and its key are written one after the other.
const QUIET: Duration = Duration::from_millis(50);

/// Most reads of files that keep changing; then they are accepted as they are.
const MAX_READS: usize = 40;

/// An error from reading a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`: {problem}", file.display())]
pub struct ReadError {
    /// The file.
    pub file: PathBuf,
    /// The cause.
    pub problem: ReadProblem,
}

/// The cause of a [`ReadError`].
#[derive(Debug, thiserror::Error)]
pub enum ReadProblem {
    /// The system reported an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The path is a directory, a pipe or a device.
    #[error("not a regular file")]
    NotAFile,
    /// The file exceeds this many bytes.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
}

/// A reader of files that keeps a fingerprint of what it has read.
#[derive(Debug, Default)]
pub struct FileReader(Fingerprint);

/// The digests of the files that were read; `None` for a file that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl FileReader {
    /// Reads `file`, at most 1 MiB.
    ///
    /// # Errors
    ///
    /// [`ReadError`]. The fingerprint names the file all the same, so that it is watched until it
    /// can be read.
    pub fn read(&mut self, file: &Path) -> Result<Vec<u8>, ReadError> {
        self.read_up_to(file, MAX_BYTES)
    }

    /// Reads `file`, at most `max_bytes` of it.
    pub fn read_up_to(&mut self, file: &Path, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let read = read(file, max_bytes);
        let digest = read.as_ref().ok().map(|bytes| Sha256::digest(bytes).into());
        self.0.0.insert(file.to_owned(), digest);
        read.map_err(|problem| ReadError {
            file: file.to_owned(),
            problem,
        })
    }

    /// Returns the fingerprint of all files that were read.
    #[must_use]
    pub fn fingerprint(self) -> Fingerprint {
        self.0
    }
}

fn read(file: &Path, max_bytes: u64) -> Result<Vec<u8>, ReadProblem> {
    // Without `NONBLOCK`, opening a pipe would wait for its writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(ReadProblem::NotAFile);
    }
    let mut bytes = Vec::new();
    opened.take(max_bytes + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max_bytes {
        true => Err(ReadProblem::TooLarge(max_bytes)),
        false => Ok(bytes),
    }
}

/// Runs `load` again when its files may have changed. Passes the result to `on_change` if their
/// content did change, and waits for it. Never returns.
///
/// `loaded` is the fingerprint of the first load. `load` runs on a thread that may block.
pub async fn reload_on_change<T, L, F>(
    settings: WatchSettings,
    mut loaded: Fingerprint,
    load: L,
    mut on_change: impl FnMut(T) -> F,
) where
    L: Fn(&mut FileReader) -> T + Clone + Send + 'static,
    T: Send + 'static,
    F: Future<Output = ()>,
{
    let (watcher, mut changes) = watch(settings);
    // Lost only if its thread panics; then the poll alone reports changes.
    let mut watcher = Some(watcher);
    loop {
        if let Some(current) = watcher.take() {
            watcher = watch_files(current, loaded.clone()).await;
        }
        changes.next().await;
        let Some(first) = load_on_thread(&load).await else {
            continue;
        };
        if first.1 == loaded {
            continue;
        }
        let (result, fingerprint) = load_until_quiet(&load, first).await;
        // A change that was reverted meanwhile is no change.
        if fingerprint != loaded {
            loaded = fingerprint;
            on_change(result).await;
        }
    }
}

/// Loads again until two loads in a row read the same content, or [`MAX_READS`] is reached.
async fn load_until_quiet<T, L>(load: &L, first: (T, Fingerprint)) -> (T, Fingerprint)
where
    L: Fn(&mut FileReader) -> T + Clone + Send + 'static,
    T: Send + 'static,
{
    let mut last = first;
    for _ in 0..MAX_READS {
        tokio::time::sleep(QUIET).await;
        let Some(next) = load_on_thread(load).await else {
            break;
        };
        let is_quiet = next.1 == last.1;
        last = next;
        if is_quiet {
            break;
        }
    }
    last
}

/// Runs `load` where blocking is allowed; `None` if it panicked.
async fn load_on_thread<T, L>(load: &L) -> Option<(T, Fingerprint)>
where
    L: Fn(&mut FileReader) -> T + Clone + Send + 'static,
    T: Send + 'static,
{
    let load = load.clone();
    let loading = tokio::task::spawn_blocking(move || {
        let mut reader = FileReader::default();
        let result = load(&mut reader);
        (result, reader.fingerprint())
    });
    loading
        .await
        .inspect_err(|error| tracing::error!(%error, "reading watched files panicked"))
        .ok()
}

/// Watches the files of `fingerprint`, on a thread that may block: each link on the way is read,
/// and a mount may hang.
async fn watch_files(mut watcher: Watcher, fingerprint: Fingerprint) -> Option<Watcher> {
    let watching = tokio::task::spawn_blocking(move || {
        watcher.set_paths(&watched_paths(&fingerprint));
        watcher
    });
    watching
        .await
        .inspect_err(|error| tracing::error!(%error, "file watch panicked, relying on polling"))
        .ok()
}

/// Returns the names at which changes of these files show: their own, and each link on the way.
fn watched_paths(fingerprint: &Fingerprint) -> WatchedPaths {
    let mut watched = WatchedPaths::default();
    for file in fingerprint.0.keys() {
        // Without a current directory there is no path to watch.
        if let Ok(file) = std::path::absolute(file) {
            // A path that does not resolve yet is watched as far as it exists.
            let _ = resolve(Path::new("/"), &file, &mut watched, |_, _| {});
        }
    }
    watched
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::Future;
    use std::os::unix::fs::symlink;

    use tokio::sync::mpsc;

    use super::super::Mode;
    use super::*;

    /// Reloads `files` on change, and sends their content each time.
    fn reload_files(
        mode: Mode,
        files: Vec<PathBuf>,
    ) -> (
        mpsc::UnboundedReceiver<Vec<String>>,
        impl Future<Output = ()>,
    ) {
        let load = move |reader: &mut FileReader| -> Vec<String> {
            files
                .iter()
                .map(|file| match reader.read(file) {
                    Ok(bytes) => String::from_utf8(bytes).unwrap(),
                    Err(error) => error.problem.to_string(),
                })
                .collect()
        };
        let mut reader = FileReader::default();
        load(&mut reader);
        let settings = WatchSettings {
            mode,
            poll: match mode {
                Mode::Events => Duration::from_secs(3600),
                Mode::Poll => Duration::from_millis(10),
            },
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let reloading = reload_on_change(settings, reader.fingerprint(), load, move |contents| {
            sender.send(contents).unwrap();
            std::future::ready(())
        });
        (receiver, reloading)
    }

    async fn expect(
        receiver: &mut mpsc::UnboundedReceiver<Vec<String>>,
        reloading: &mut (impl Future<Output = ()> + Unpin),
        wanted: &[&str],
    ) {
        let waiting = async { while receiver.recv().await.unwrap() != wanted {} };
        tokio::select! {
            received = tokio::time::timeout(Duration::from_secs(20), waiting) => {
                assert!(received.is_ok(), "{wanted:?} was never received");
            }
            () = reloading => {}
        }
    }

    #[tokio::test]
    async fn replaced_written_and_removed_files_are_reloaded() {
        for mode in [Mode::Events, Mode::Poll] {
            let dir = tempfile::tempdir().unwrap();
            let (one, two) = (dir.path().join("one"), dir.path().join("two"));
            fs::write(&one, "1").unwrap();
            fs::write(&two, "2").unwrap();
            let (mut receiver, reloading) = reload_files(mode, vec![one.clone(), two.clone()]);
            let mut reloading = Box::pin(reloading);
            fs::write(dir.path().join("new"), "3").unwrap();
            fs::rename(dir.path().join("new"), &one).unwrap();
            expect(&mut receiver, &mut reloading, &["3", "2"]).await;
            fs::write(&two, "4").unwrap();
            expect(&mut receiver, &mut reloading, &["3", "4"]).await;
            fs::remove_file(&two).unwrap();
            let missing = "No such file or directory (os error 2)";
            expect(&mut receiver, &mut reloading, &["3", missing]).await;
            fs::write(&two, "5").unwrap();
            expect(&mut receiver, &mut reloading, &["3", "5"]).await;
        }
    }

    #[tokio::test]
    async fn kubernetes_link_swaps_are_reloaded_by_events() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", "old"), ("..2", "new"), ("..3", "newest")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let (mut receiver, reloading) = reload_files(Mode::Events, vec![at("tls.crt")]);
        let mut reloading = Box::pin(reloading);
        for (version, text) in [("..2", "new"), ("..3", "newest")] {
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            expect(&mut receiver, &mut reloading, &[text]).await;
        }
    }

    #[tokio::test]
    async fn directories_created_later_are_watched_by_events() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("tls");
        let file = directory.join("tls.crt");
        let (mut receiver, reloading) = reload_files(Mode::Events, vec![file.clone()]);
        let mut reloading = Box::pin(reloading);
        fs::create_dir(&directory).unwrap();
        fs::write(&file, "1").unwrap();
        expect(&mut receiver, &mut reloading, &["1"]).await;
        fs::write(&file, "2").unwrap();
        expect(&mut receiver, &mut reloading, &["2"]).await;
    }

    #[test]
    fn directories_pipes_and_large_files_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = FileReader::default();
        let error = reader.read(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("not a regular file"));
        let pipe = dir.path().join("pipe");
        let created = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(created.unwrap().success());
        assert!(reader.read(&pipe).is_err());
        let large = dir.path().join("large");
        fs::write(&large, vec![b'x'; (1 << 20) + 1]).unwrap();
        let error = reader.read(&large).unwrap_err();
        assert!(error.to_string().ends_with("larger than 1048576 bytes"));
    }

    #[test]
    fn link_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        symlink(&two, &one).unwrap();
        symlink(&one, &two).unwrap();
        let mut reader = FileReader::default();
        assert!(reader.read(&one).is_err());
        let _ = watched_paths(&reader.fingerprint());
    }
}
