//! The states of a reload, and the content that was loaded or rejected.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::compile_job::CompileResult;
use crate::pdp::Compiled;
use crate::pdp::diagnostic::Diagnostic;
use crate::policy_store::background::BackgroundJob;
use crate::policy_store::directory::DirectoryScan;
use crate::policy_store::status::RejectedReload;

/// The progress of a reload.
#[derive(Debug, Default)]
pub(super) enum State {
    /// No new content is known: waits for a change report or a reload request.
    #[default]
    Idle,
    /// New content was found: waits, and scans again.
    Settling(Settling),
    /// Two scans in a row were equal: waits for the compiler.
    Compiling(Compiling),
}

/// New content that the next scan must confirm.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) scan: Arc<DirectoryScan>,
    /// A compilation that did not wait for the next scan, which confirms most content.
    pub(super) early_compile: Option<BackgroundJob<CompileResult>>,
    pub(super) since: Instant,
    /// Time to wait before the next scan.
    pub(super) pause: Duration,
    pub(super) is_held_back: bool,
}

/// Settled content that is being compiled.
#[derive(Debug)]
pub(super) struct Compiling {
    pub(super) job: BackgroundJob<CompileResult>,
    /// The state before `scan` confirmed it.
    pub(super) settling: Settling,
    pub(super) scan: Arc<DirectoryScan>,
}

/// The current snapshot and its sources.
#[derive(Debug)]
pub(super) struct CurrentContent {
    /// The latest scan of this content.
    pub(super) scan: Arc<DirectoryScan>,
    pub(super) compiled: Arc<Compiled>,
    /// The snapshot's warnings without those about file names, which may come and go while the
    /// content stays the same.
    pub(super) content_warnings: Vec<Diagnostic>,
}

/// Content that was rejected, and would be again.
#[derive(Debug)]
pub(super) struct RejectedContent {
    pub(super) scan: Arc<DirectoryScan>,
    pub(super) report: RejectedReload,
}
