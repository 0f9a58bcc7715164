//! Compiles settled content on its own thread.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::StoreSettings;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::settings::Settings;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Compiled, Workers};
use crate::policy_store::background::Priority;
use crate::policy_store::directory::DirectoryScan;
use crate::policy_store::losses;

/// The compiler: [`compile_from`](crate::pdp::compile::compile_from), or a test's own.
pub(super) type Compile =
    fn(Option<&Compiled>, &Sources, &Settings, &Workers) -> Result<Compiled, CompileError>;

pub(super) struct CompileJob {
    pub(super) settings: Arc<StoreSettings>,
    pub(super) compile: Compile,
    pub(super) priority: Priority,
    pub(super) scan: Arc<DirectoryScan>,
    /// The current snapshot and its scan, from which unchanged parts are reused.
    pub(super) current: Option<(Arc<DirectoryScan>, Arc<Compiled>)>,
}

#[derive(Debug)]
pub(super) struct CompileResult {
    /// The snapshot, or the reasons why it must not be published.
    pub(super) compiled: Result<Compiled, Vec<Diagnostic>>,
    pub(super) duration: Duration,
}

impl CompileJob {
    pub(super) fn run(self) -> CompileResult {
        let started_at = Instant::now();
        let compiled = self.compile().map_err(|error| error.errors);
        let compiled = compiled.and_then(|compiled| {
            let losses = self.losses(&compiled);
            match losses.is_empty() {
                true => Ok(compiled),
                false => Err(losses),
            }
        });
        CompileResult {
            compiled,
            duration: started_at.elapsed(),
        }
    }

    fn compile(&self) -> Result<Compiled, CompileError> {
        let sources = &self.scan.sources;
        let workers = self.priority.workers().scaled_to(sources.bytes());
        let current = self.current.as_ref();
        let old_sources = current.map(|(scan, _)| &scan.sources);
        let old = current.map(|(_, compiled)| &**compiled);
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
            (self.compile)(old, sources, &self.settings.pdp, &workers)
        })
    }

    /// Returns the reasons why `new` must not be published, unless emptiness is allowed.
    fn losses(&self, new: &Compiled) -> Vec<Diagnostic> {
        if self.settings.allow_empty {
            return Vec::new();
        }
        let (new, sources) = (&new.snapshot, &self.scan.sources);
        let mut found = losses::by_patterns(new, sources);
        if let Some((_, old)) = &self.current {
            found.extend(losses::since(&old.snapshot, new, sources));
        }
        found
    }
}
