//! Compiles settled content on its own thread.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::pdp::Workers;
use crate::pdp::compile::CompileError;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::{Settings, Snapshot};
use crate::pdp::sources::Sources;
use crate::policy_store::background::Priority;
use crate::policy_store::directory::DirectoryScan;
use crate::policy_store::settings::StoreSettings;
use crate::policy_store::shrink_guard::unexpected_losses;

/// The compiler: [`compile_from`](crate::pdp::compile::compile_from), or a test's own.
pub(super) type Compile =
    fn(Option<&Snapshot>, &Sources, &Settings, &Workers) -> Result<Snapshot, CompileError>;

/// A compilation of one scan.
pub(super) struct CompileJob {
    pub(super) settings: Arc<StoreSettings>,
    pub(super) compile: Compile,
    pub(super) priority: Priority,
    pub(super) scan: Arc<DirectoryScan>,
    /// The current snapshot and its scan, from which unchanged parts are reused.
    pub(super) current: Option<(Arc<DirectoryScan>, Arc<Snapshot>)>,
}

/// The result of a compilation.
#[derive(Debug)]
pub(super) struct Compiled {
    /// The snapshot, or the reasons why it must not be published.
    pub(super) snapshot: Result<Snapshot, Vec<Diagnostic>>,
    pub(super) duration: Duration,
}

impl CompileJob {
    pub(super) fn run(self) -> Compiled {
        let started_at = Instant::now();
        let snapshot = match self.compile() {
            Ok(snapshot) => {
                let losses = self.unexpected_losses(&snapshot);
                if losses.is_empty() {
                    Ok(snapshot)
                } else {
                    Err(losses)
                }
            }
            Err(error) => Err(error.errors),
        };
        Compiled {
            snapshot,
            duration: started_at.elapsed(),
        }
    }

    fn compile(&self) -> Result<Snapshot, CompileError> {
        let sources = self.scan.sources();
        let workers = self.priority.workers().worth(sources.bytes());
        let current = self.current.as_ref();
        let old_sources = current.map(|(scan, _)| scan.sources());
        let old_snapshot = current.map(|(_, snapshot)| &**snapshot);
        thread::scope(|scope| {
            // The hash over all files in order cannot be divided, so it is started first. The
            // compiler needs it last, and computes it itself if there is no thread for it.
            if workers.threads.get() > 1 {
                let hash = || {
                    (workers.begin)();
                    sources.revision_after(old_sources)
                };
                let _ = thread::Builder::new().spawn_scoped(scope, hash);
            }
            (self.compile)(old_snapshot, sources, &self.settings.pdp, &workers)
        })
    }

    fn unexpected_losses(&self, new: &Snapshot) -> Vec<Diagnostic> {
        match &self.current {
            Some((_, old)) if !self.settings.allow_empty => {
                unexpected_losses(old, new, self.scan.sources())
            }
            Some(_) | None => Vec::new(),
        }
    }
}
