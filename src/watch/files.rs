//! Small files that are followed: read whole, read again when something may have changed, and
//! handed on when what they hold is different and has come to rest.
//!
//! Certificates, keys and lists of callers live so. What a file means is not known here, and
//! nothing here decides whether what was read replaces what is in force.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::watch::{self, Mode, Places, Watcher};

/// The largest file that is read: chains and lists of callers are far smaller.
const MAX_BYTES: u64 = 1 << 20;

/// How long a change rests before it is taken: a pair of files is written one after the other.
const QUIET: Duration = Duration::from_millis(50);

/// How often a change that does not rest is looked at before it is taken as it is.
const MOST_LOOKS: usize = 40;

/// As many links as the system itself would follow.
const MAX_LINKS: usize = 40;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`: {problem}", file.display())]
pub struct ReadError {
    /// The file.
    pub file: PathBuf,
    /// Why not.
    pub problem: ReadProblem,
}

/// What keeps a file from being read.
#[derive(Debug, thiserror::Error)]
pub enum ReadProblem {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("it is no regular file")]
    NoFile,
    /// Larger than anything that belongs here.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
}

/// Reads files, and keeps a trace of what they held.
#[derive(Debug, Default)]
pub struct Reading(Trace);

/// What each file held; `None` for one that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl Reading {
    /// What `file` holds.
    ///
    /// # Errors
    ///
    /// [`ReadError`], which leaves its trace too: the file is followed until it can be read.
    pub fn read(&mut self, file: &Path) -> Result<Vec<u8>, ReadError> {
        self.read_up_to(file, MAX_BYTES)
    }

    /// What `file` holds, which may be so many bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_up_to(&mut self, file: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
        let read = read(file, most);
        let digest = read.as_ref().ok().map(|bytes| Sha256::digest(bytes).into());
        self.0.0.insert(file.to_owned(), digest);
        read.map_err(|problem| ReadError {
            file: file.to_owned(),
            problem,
        })
    }

    /// The trace of everything that was read.
    #[must_use]
    pub fn trace(self) -> Trace {
        self.0
    }
}

fn read(file: &Path, most: u64) -> Result<Vec<u8>, ReadProblem> {
    // Opening a pipe would wait for its writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(ReadProblem::NoFile);
    }
    let mut bytes = Vec::new();
    opened.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(ReadProblem::TooLarge(most)),
        false => Ok(bytes),
    }
}

/// How files are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowSettings {
    /// How a change is noticed.
    pub watch: Mode,
    /// How often the files are reread even though no event came.
    pub poll: Duration,
}

/// Runs `load` again whenever something may have changed, and hands its result to `take` when the
/// files hold something else than they did before. Never returns.
///
/// `first` is the trace of the first load. `load` runs where blocking is allowed.
pub async fn follow<T, L>(settings: FollowSettings, first: Trace, load: L, mut take: impl FnMut(T))
where
    L: Fn(&mut Reading) -> T + Clone + Send + 'static,
    T: Send + 'static,
{
    let look = async || {
        let load = load.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let mut reading = Reading::default();
            let loaded = load(&mut reading);
            (loaded, reading.trace())
        });
        match looking.await {
            Ok(looked) => Some(looked),
            Err(error) => {
                tracing::error!(%error, "files that are followed could not be read");
                None
            }
        }
    };
    let (watcher, mut ticks) = watch::watch(settings.watch, settings.poll);
    // Lost only with a thread that failed; then the poll alone tells.
    let mut watcher = Some(watcher);
    let mut taken = first;
    loop {
        if let Some(watcher_now) = watcher.take() {
            watcher = watches(watcher_now, taken.clone()).await;
        }
        ticks.next().await;
        let Some((mut loaded, mut trace)) = look().await else {
            continue;
        };
        if trace == taken {
            continue;
        }
        for _ in 0..MOST_LOOKS {
            tokio::time::sleep(QUIET).await;
            let Some((again, now)) = look().await else {
                break;
            };
            let rests = now == trace;
            (loaded, trace) = (again, now);
            if rests {
                break;
            }
        }
        // What came and went while it was looked at is no change.
        if trace != taken {
            taken = trace;
            take(loaded);
        }
    }
}

/// Has `watcher` listen where changes of these files show, which takes a look at each link on the
/// way: on a mount that hangs that takes as long as reading does, and no thread of calls must wait
/// for it.
async fn watches(mut watcher: Watcher, trace: Trace) -> Option<Watcher> {
    let set = tokio::task::spawn_blocking(move || {
        watcher.set(&places(&trace));
        watcher
    });
    set.await
        .inspect_err(|error| tracing::error!(%error, "files are followed without events"))
        .ok()
}

/// Where changes of these files show: at their names, and at each link on the way to them, which
/// is how Kubernetes swaps what it has mounted.
fn places(trace: &Trace) -> Places {
    let mut places = Places::default();
    for file in trace.0.keys() {
        add_places(&mut places, file);
    }
    places
}

fn add_places(places: &mut Places, file: &Path) {
    // Without a present directory there is nothing that could be watched.
    let Ok(file) = std::path::absolute(file) else {
        return;
    };
    let mut ahead: Vec<PathBuf> = vec![file];
    let mut links = 0;
    let mut at = PathBuf::new();
    while let Some(path) = ahead.pop() {
        let mut parts = path.components();
        let Some(part) = parts.next() else {
            continue;
        };
        let rest = parts.as_path().to_owned();
        let is_last = rest.as_os_str().is_empty() && ahead.iter().all(|p| p.as_os_str().is_empty());
        ahead.push(rest);
        match part {
            Component::RootDir | Component::Prefix(_) => at = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => {
                at.pop();
            }
            Component::Normal(name) => {
                let target = fs::read_link(at.join(name));
                if is_last || target.is_ok() {
                    places.add_name(&at, name);
                }
                match target {
                    Ok(target) if links < MAX_LINKS => {
                        links += 1;
                        ahead.push(target);
                    }
                    Ok(_) => return,
                    Err(_) => at.push(name),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::os::unix::fs::symlink;

    use tokio::sync::mpsc;

    use super::*;

    /// Follows `files`, and tells what they hold each time.
    fn follow_all(
        watch: Mode,
        files: Vec<PathBuf>,
    ) -> (
        mpsc::UnboundedReceiver<Vec<String>>,
        impl Future<Output = ()>,
    ) {
        let load = move |reading: &mut Reading| -> Vec<String> {
            files
                .iter()
                .map(|file| match reading.read(file) {
                    Ok(bytes) => String::from_utf8(bytes).unwrap(),
                    Err(error) => error.problem.to_string(),
                })
                .collect()
        };
        let mut reading = Reading::default();
        load(&mut reading);
        let settings = FollowSettings {
            watch,
            poll: match watch {
                Mode::Events => Duration::from_secs(3600),
                Mode::Poll => Duration::from_millis(10),
            },
        };
        let (told, heard) = mpsc::unbounded_channel();
        let following = follow(settings, reading.trace(), load, move |held| {
            told.send(held).unwrap();
        });
        (heard, following)
    }

    async fn expect(
        heard: &mut mpsc::UnboundedReceiver<Vec<String>>,
        following: &mut (impl Future<Output = ()> + Unpin),
        wanted: &[&str],
    ) {
        let waiting = async {
            loop {
                let held = heard.recv().await.unwrap();
                if held == wanted {
                    return;
                }
            }
        };
        tokio::select! {
            told = tokio::time::timeout(Duration::from_secs(20), waiting) => {
                assert!(told.is_ok(), "{wanted:?} was never told");
            }
            () = following => {}
        }
    }

    #[tokio::test]
    async fn what_is_renamed_over_written_or_gone_is_told() {
        for watch in [Mode::Events, Mode::Poll] {
            let dir = tempfile::tempdir().unwrap();
            let (one, two) = (dir.path().join("one"), dir.path().join("two"));
            fs::write(&one, "1").unwrap();
            fs::write(&two, "2").unwrap();
            let (mut heard, following) = follow_all(watch, vec![one.clone(), two.clone()]);
            let mut following = Box::pin(following);
            fs::write(dir.path().join("new"), "3").unwrap();
            fs::rename(dir.path().join("new"), &one).unwrap();
            expect(&mut heard, &mut following, &["3", "2"]).await;
            fs::write(&two, "4").unwrap();
            expect(&mut heard, &mut following, &["3", "4"]).await;
            fs::remove_file(&two).unwrap();
            expect(
                &mut heard,
                &mut following,
                &["3", "No such file or directory (os error 2)"],
            )
            .await;
            fs::write(&two, "5").unwrap();
            expect(&mut heard, &mut following, &["3", "5"]).await;
        }
    }

    #[tokio::test]
    async fn a_swap_as_kubernetes_does_it_is_told_by_events() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", "old"), ("..2", "new"), ("..3", "newest")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let (mut heard, following) = follow_all(Mode::Events, vec![at("tls.crt")]);
        let mut following = Box::pin(following);
        for (version, text) in [("..2", "new"), ("..3", "newest")] {
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            expect(&mut heard, &mut following, &[text]).await;
        }
    }

    #[test]
    fn what_is_no_file_of_a_sensible_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut reading = Reading::default();
        let refused = reading.read(dir.path()).unwrap_err();
        assert!(refused.to_string().ends_with("it is no regular file"));
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert!(reading.read(&pipe).is_err());
        let large = dir.path().join("large");
        fs::write(&large, vec![b'x'; (1 << 20) + 1]).unwrap();
        let refused = reading.read(&large).unwrap_err();
        assert!(refused.to_string().ends_with("1048576 bytes"));
    }

    #[test]
    fn links_that_go_in_circles_are_followed_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        symlink(&two, &one).unwrap();
        symlink(&one, &two).unwrap();
        let mut reading = Reading::default();
        assert!(reading.read(&one).is_err());
        let _ = places(&reading.trace());
    }
}
