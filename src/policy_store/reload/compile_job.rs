//! Compiles settled content on its own thread, and rejects what looks like a mistake: policies or a
//! schema that are suddenly gone.
//!
//! An empty directory is valid, and denies everything. But one that *becomes* empty is more often
//! a failed mount or a truncated file than intended.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::StoreSettings;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::settings::Settings;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::Sources;
use crate::pdp::{CompileError, Compiled, Workers};
use crate::policy_store::background::Priority;
use crate::policy_store::directory::DirectoryScan;

/// The compiler: [`compile_from`](crate::pdp::compile::compile_from), or a test's own.
pub(super) type Compile =
    fn(Option<&Compiled>, &Sources, &Settings, &Workers) -> Result<Compiled, CompileError>;

const HELP: &str = "if this is intended, start with `--allow-empty`";

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
            let losses = self.unexpected_losses(&compiled);
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

    fn unexpected_losses(&self, new: &Compiled) -> Vec<Diagnostic> {
        match &self.current {
            Some((_, old)) if !self.settings.allow_empty => {
                unexpected_losses(&old.snapshot, &new.snapshot, &self.scan.sources)
            }
            Some(_) | None => Vec::new(),
        }
    }
}

/// Returns the reasons why `new`, compiled from `sources`, must not replace `old`.
fn unexpected_losses(old: &Snapshot, new: &Snapshot, sources: &Sources) -> Vec<Diagnostic> {
    let mut losses = Vec::new();
    let policies_and_links =
        |snapshot: &Snapshot| snapshot.counts().policies + snapshot.counts().links;
    let before = policies_and_links(old);
    if before > 0 && policies_and_links(new) == 0 {
        let text =
            format!("all {before} policies and links were removed: every request would be denied");
        losses.push(Diagnostic::error("", text).with_help(HELP));
    }
    if old.has_schema() && !new.has_schema() {
        let text = "all schema files were removed: nothing would be validated";
        losses.push(Diagnostic::error("", text).with_help(HELP));
    }
    let policies_in = |snapshot: &Snapshot, file: &str| {
        let count = snapshot.policies_per_file().get(file);
        count.copied().unwrap_or_default()
    };
    for file in sources.files() {
        let before = policies_in(old, &file.path);
        if before > 0 && policies_in(new, &file.path) == 0 {
            let text = format!("all policies of this file ({before}) were removed");
            losses.push(Diagnostic::error(&file.path, text).with_help(HELP));
        }
    }
    losses
}
