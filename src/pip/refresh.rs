//! Keeps keys and revocations current while requests are served: fetches keys, and applies changes
//! of key files and of the revocation list.

use std::fmt::Display;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::keys::refresh::KeyRefresher;
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, ReadError, reload_on_change};

/// Size of the largest file that is read, in bytes. Revocation lists can grow long.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The background work that keeps keys and revocations current.
#[must_use = "keys are fetched and files are reloaded only while this runs"]
pub struct Refresh {
    key_refreshers: Vec<KeyRefresher>,
    watched_files: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    settings: WatchSettings,
}

impl Refresh {
    /// Creates a refresh of nothing.
    pub(super) fn new(settings: WatchSettings) -> Self {
        Self {
            key_refreshers: Vec::new(),
            watched_files: Vec::new(),
            settings,
        }
    }

    /// Adds the fetches of one URL.
    pub(super) fn add_key_refresher(&mut self, refresher: KeyRefresher) {
        self.key_refreshers.push(refresher);
    }

    /// Reads `path`, and watches it for changes.
    ///
    /// `apply` gets each changed text. It returns a summary for the log, or an error if the text is
    /// rejected. `on_rejected` is called for each rejected change.
    pub(super) fn read_and_watch<E: Display>(
        &mut self,
        path: &Path,
        apply: impl Fn(&[u8]) -> Result<String, E> + Send + Sync + 'static,
        on_rejected: impl Fn() + Send + Sync + 'static,
    ) -> Result<Vec<u8>, ReadError> {
        let mut reading = FileReader::default();
        let text = reading.read_up_to(path, MAX_FILE_BYTES)?;
        let file = path.to_owned();
        let load = {
            let file = file.clone();
            move |reading: &mut FileReader| reading.read_up_to(&file, MAX_FILE_BYTES)
        };
        let (changed, changes) = watch::channel(None);
        let watching = reload_on_change(self.settings, reading.fingerprint(), load, move |read| {
            changed.send_replace(Some(Arc::new(read)));
        });
        let applying = apply_changes(changes, move |read: &Result<Vec<u8>, ReadError>| {
            let applied = match read {
                Ok(text) => {
                    apply(text).map_err(|problem| format!("`{}`: {problem}", file.display()))
                }
                Err(error) => Err(error.to_string()),
            };
            match applied {
                Ok(summary) => tracing::info!(file = %file.display(), "{summary}"),
                Err(problem) => {
                    on_rejected();
                    tracing::error!(%problem, "changed file rejected, keeping its last content");
                }
            }
        });
        self.watched_files.push(Box::pin(async move {
            tokio::join!(watching, applying);
        }));
        Ok(text)
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        for refresher in self.key_refreshers {
            tasks.spawn(refresher.run());
        }
        for file in self.watched_files {
            tasks.spawn(file);
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "keys or revocations are no longer refreshed");
            }
        }
    }
}

/// Passes each change to `apply`, or only the last of several, on a thread that may block.
///
/// A long list takes long to parse, and the other threads answer calls meanwhile.
async fn apply_changes<T: Send + Sync + 'static>(
    mut changes: watch::Receiver<Option<Arc<T>>>,
    apply: impl Fn(&T) + Send + Sync + 'static,
) {
    let apply = Arc::new(apply);
    while changes.changed().await.is_ok() {
        let Some(change) = changes.borrow_and_update().clone() else {
            continue;
        };
        let apply = Arc::clone(&apply);
        if let Err(error) = tokio::task::spawn_blocking(move || apply(&change)).await {
            tracing::error!(%error, "cannot apply a changed file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn change_is_applied_on_blocking_thread() {
        let (changed, changes) = watch::channel(None);
        let (sender, receiver) = mpsc::channel();
        let applying = tokio::spawn(apply_changes(changes, move |change: &u8| {
            sender.send((*change, std::thread::current().id())).unwrap();
        }));
        changed.send_replace(Some(Arc::new(7)));
        drop(changed);
        applying.await.unwrap();
        let (change, thread) = receiver.recv().unwrap();
        assert_eq!(change, 7);
        // All tasks of this test run on its own thread.
        assert_ne!(thread, std::thread::current().id());
    }
}
