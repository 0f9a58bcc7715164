//! Keeps keys and revocations current while requests are served: fetches keys, and applies changes
//! of key files and of the revocation list.

use std::fmt::Display;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::{JoinSet, spawn_blocking};

use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, ReadError, reload_on_change};

/// Size of the largest file that is read, in bytes. Revocation lists can grow long.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The background work that keeps keys and revocations current.
#[must_use = "keys are fetched and files are reloaded only while this runs"]
pub struct Refresh {
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    settings: WatchSettings,
}

impl Refresh {
    pub(super) fn new(settings: WatchSettings) -> Self {
        let tasks = Vec::new();
        Self { tasks, settings }
    }

    /// Adds a task that never ends.
    pub(super) fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Reads `path`, and watches it for changes.
    ///
    /// `apply` gets each changed text. It returns a summary for the log, or an error if the text is
    /// rejected. `on_rejected` is called for each rejected change. Both run on a thread that may
    /// block: a long list takes long to parse, and the other threads answer calls meanwhile.
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
        let apply = Arc::new(move |read: Result<Vec<u8>, ReadError>| {
            let applied = match read {
                Ok(text) => {
                    apply(&text).map_err(|problem| format!("`{}`: {problem}", file.display()))
                }
                Err(error) => Err(error.to_string()),
            };
            match applied {
                Ok(summary) => tracing::info!(file = %file.display(), "{summary}"),
                Err(problem) => {
                    on_rejected();
                    tracing::error!(%problem, "changed file rejected, keeping the last good content");
                }
            }
        });
        let on_change = move |read| {
            let apply = Arc::clone(&apply);
            let applying = spawn_blocking(move || apply(read));
            async move {
                if let Err(error) = applying.await {
                    tracing::error!(%error, "cannot apply a changed file");
                }
            }
        };
        let loaded = reading.fingerprint();
        self.add(reload_on_change(self.settings, loaded, load, on_change));
        Ok(text)
    }

    /// Refreshes the keys and the revocations, until dropped.
    pub async fn run(self) {
        let mut tasks: JoinSet<()> = self.tasks.into_iter().collect();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "keys or revocations are no longer refreshed");
            }
        }
    }
}
