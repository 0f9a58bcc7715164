//! Decides when the content of the directory replaces the current snapshot.
//!
//! A change report leads to a scan. If the scan finds new content, others follow until two in a
//! row are equal. Then the content is compiled, and published or rejected. One task does this, so
//! that events have one order. Scans and compilations run on threads that yield to those that
//! serve callers.

mod compile_job;
mod scanner;
mod status_writer;

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::background::{BackgroundJob, Priority, drop_in_background};
use super::directory::DirectoryScan;
use super::snapshots::{Publisher, Reader, snapshots};
use super::status::{RejectedReload, ReloadOutcome, StatusReader, StoreClosed, StoreStatus};
use crate::config::StoreSettings;
use crate::pdp::Compiled;
use crate::pdp::compile::compile_from;
use crate::pdp::diagnostic::Diagnostic;
use compile_job::{Compile, CompileJob, CompileResult};
use scanner::{MAX_PAUSE, Scanner};
use status_writer::StatusWriter;

/// Most reload requests queued before the next scan starts.
const MAX_QUEUED_REQUESTS: usize = 64;

/// A policy store that has loaded its directory for the first time.
#[derive(Debug)]
pub struct OpenedStore {
    /// The read side of the current snapshot.
    pub reader: Reader,
    /// The read side of the status.
    pub status: StatusReader,
    /// A handle that requests reloads.
    pub reloads: ReloadHandle,
    /// The task to run; nothing is reloaded before it runs.
    pub reloader: Reloader,
}

/// A handle that requests reloads and waits for their results.
#[derive(Clone, Debug)]
pub struct ReloadHandle(mpsc::Sender<Reply>);

/// The channel for the answer to one request.
type Reply = oneshot::Sender<ReloadReport>;

/// The result of a reload, and the status after it.
#[derive(Clone, Debug)]
pub struct ReloadReport {
    /// The result.
    pub outcome: ReloadOutcome,
    /// The status after the reload.
    pub status: Arc<StoreStatus>,
}

impl ReloadHandle {
    /// Requests a scan that begins after this call. Waits until its content is published,
    /// rejected, or known to be unchanged.
    ///
    /// A directory that is being written is waited for as in any reload. If it is held back, the
    /// outcome is [`ReloadOutcome::Rejected`]. Dropping the call does not cancel the reload.
    pub async fn reload(&self) -> Result<ReloadReport, StoreClosed> {
        let (reply, report) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| StoreClosed)?;
        report.await.map_err(|_| StoreClosed)
    }
}

/// The error that the policy directory cannot be loaded at startup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy directory cannot be loaded; findings: {}", .diagnostics.len())]
pub struct StoreOpenError {
    /// All reasons.
    pub diagnostics: Vec<Diagnostic>,
}

/// Loads the policy directory for the first time.
///
/// Takes at least the quiet period, because the first content must be settled too, unless its
/// timestamps show that it has long been.
///
/// # Errors
///
/// [`StoreOpenError`] when the directory is invalid or keeps changing. With `start_unready` the
/// store opens without a snapshot instead, and its status has the reasons.
pub async fn open(settings: StoreSettings) -> Result<OpenedStore, StoreOpenError> {
    open_with(settings, compile_from).await
}

async fn open_with(
    settings: StoreSettings,
    compile: Compile,
) -> Result<OpenedStore, StoreOpenError> {
    let (publisher, reader) = snapshots();
    let (status, status_reader) = StatusWriter::new(settings.start_unready);
    let (requester, requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let settings = Arc::new(settings);
    let mut reloader = Reloader {
        scanner: Scanner::new(Arc::clone(&settings)),
        settings,
        compile,
        publisher,
        status,
        requests,
        waiting: Vec::new(),
        state: State::Idle,
        current: None,
        rejected: None,
        compile_thread: Weak::new(),
    };
    reloader.load_first().await?;
    Ok(OpenedStore {
        reader,
        status: status_reader,
        reloads: ReloadHandle(requester),
        reloader,
    })
}

/// The task that reloads the policy directory. It alone publishes snapshots.
#[derive(Debug)]
pub struct Reloader {
    settings: Arc<StoreSettings>,
    compile: Compile,
    publisher: Publisher,
    status: StatusWriter,
    scanner: Scanner,
    requests: mpsc::Receiver<Reply>,
    /// Requests that arrived before the latest scan began.
    waiting: Vec<Reply>,
    state: State,
    current: Option<CurrentContent>,
    rejected: Option<RejectedContent>,
    /// Alive while the latest compile thread runs, whether or not its result is awaited.
    compile_thread: Weak<()>,
}

#[derive(Debug, Default)]
enum State {
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
struct Settling {
    scan: Arc<DirectoryScan>,
    /// A compilation that did not wait for the next scan, which confirms most content.
    early_compile: Option<BackgroundJob<CompileResult>>,
    since: Instant,
    /// Time to wait before the next scan.
    pause: Duration,
    is_held_back: bool,
}

/// Settled content that is being compiled.
#[derive(Debug)]
struct Compiling {
    job: BackgroundJob<CompileResult>,
    /// The state before `scan` confirmed it.
    settling: Settling,
    scan: Arc<DirectoryScan>,
}

/// The current snapshot and its sources.
#[derive(Debug)]
struct CurrentContent {
    /// The latest scan of this content.
    scan: Arc<DirectoryScan>,
    compiled: Arc<Compiled>,
    /// The snapshot's warnings without those about file names, which may come and go while the
    /// content stays the same.
    content_warnings: Vec<Diagnostic>,
}

/// Content that was rejected, and would be again.
#[derive(Debug)]
struct RejectedContent {
    scan: Arc<DirectoryScan>,
    report: RejectedReload,
}

/// The result of a step: all reasons, if it rejected or held back new content.
type StepResult = Result<(), Vec<Diagnostic>>;

impl Reloader {
    /// Reloads the directory on change until `shutdown`.
    ///
    /// A scan or compilation that runs then ends on its own thread, without effect.
    #[tracing::instrument(name = "policy_store", skip_all)]
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            never = self.run_forever() => match never {},
        }
    }

    async fn run_forever(&mut self) -> Infallible {
        loop {
            // Rejections are already in the status and in the log.
            let _ = self.step().await;
        }
    }

    /// Scans at once, and then steps until the content is loaded or rejected.
    async fn load_first(&mut self) -> Result<(), StoreOpenError> {
        let scan = self.scan().await;
        let mut result = self.on_scan(scan, None);
        while result.is_ok() && !matches!(self.state, State::Idle) {
            result = self.step().await;
        }
        match result {
            Err(diagnostics) if !self.settings.start_unready => Err(StoreOpenError { diagnostics }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Waits as the current state requires, and moves to the next state.
    async fn step(&mut self) -> StepResult {
        match std::mem::take(&mut self.state) {
            State::Idle => {
                self.wait_for_change().await;
                let scan = self.scan().await;
                self.on_scan(scan, None)
            }
            State::Settling(settling) => {
                tokio::time::sleep(settling.pause).await;
                let scan = self.scan().await;
                self.on_scan(scan, Some(settling))
            }
            State::Compiling(compiling) => self.finish_compiling(compiling).await,
        }
    }

    async fn wait_for_change(&mut self) {
        tokio::select! {
            () = self.scanner.wait_for_change() => {}
            Some(request) = self.requests.recv() => self.waiting.push(request),
        }
    }

    async fn scan(&mut self) -> Arc<DirectoryScan> {
        // Requests that arrive from here on may be about a change that this scan misses.
        while let Ok(request) = self.requests.try_recv() {
            self.waiting.push(request);
        }
        self.scanner.scan(self.priority()).await
    }

    /// Compares `scan` with the content that is known, and moves to the next state.
    fn on_scan(&mut self, scan: Arc<DirectoryScan>, settling: Option<Settling>) -> StepResult {
        if let Some(outcome) = self.known_outcome(&scan) {
            self.reply(outcome);
            return Ok(());
        }
        match settling {
            Some(mut settling) if scan.same_as(&settling.scan) => {
                // The scans are equal, so either may be compiled for the other.
                let job = match settling.early_compile.take() {
                    Some(job) => job,
                    None => self.start_compiling(&scan),
                };
                self.state = State::Compiling(Compiling {
                    job,
                    settling,
                    scan,
                });
                Ok(())
            }
            Some(settling) => self.keep_settling(&settling, scan),
            None => {
                self.start_settling(scan);
                Ok(())
            }
        }
    }

    /// Returns the outcome for content that is already loaded or rejected.
    fn known_outcome(&mut self, scan: &Arc<DirectoryScan>) -> Option<ReloadOutcome> {
        if scan.is_inconsistent() {
            return None;
        }
        if let Some(current) = &mut self.current
            && scan.same_content_as(&current.scan)
        {
            reuse_revision(scan, &current.scan);
            let previous = std::mem::replace(&mut current.scan, Arc::clone(scan));
            self.rejected = None;
            self.status
                .unchanged(&previous, scan, &current.content_warnings);
            return Some(ReloadOutcome::Unchanged);
        }
        let rejected = self.rejected.as_ref()?;
        if !scan.same_content_as(&rejected.scan) {
            return None;
        }
        self.status.still_rejected(&rejected.report);
        Some(ReloadOutcome::Rejected)
    }

    fn start_settling(&mut self, scan: Arc<DirectoryScan>) {
        // Content that has long been settled needs no pause. Other content is compiled early, if
        // callers are being served: they wait for it. But a directory that changes back and forth
        // must not start more and more compile threads.
        let is_settled = scan.is_settled(self.settings.quiet_period);
        let compiles_early = !is_settled
            && !scan.is_inconsistent()
            && self.current.is_some()
            && self.compile_thread.strong_count() == 0;
        self.state = State::Settling(Settling {
            early_compile: compiles_early.then(|| self.start_compiling(&scan)),
            scan,
            since: Instant::now(),
            pause: match is_settled {
                true => Duration::ZERO,
                false => self.settings.quiet_period,
            },
            is_held_back: false,
        });
    }

    /// Continues to scan a directory that changed between two scans. Reports the change as held
    /// back if that takes longer than `max_reload_delay`.
    fn keep_settling(&mut self, settling: &Settling, scan: Arc<DirectoryScan>) -> StepResult {
        let is_late = settling.since.elapsed() >= self.settings.max_reload_delay;
        let mut pause = self.settings.quiet_period;
        let mut result = Ok(());
        if is_late {
            pause = settling.pause.saturating_mul(2);
            if !settling.is_held_back {
                let names = scan.changes_since(&settling.scan);
                let delay = self.settings.max_reload_delay;
                result = Err(self.status.held_back(&names, delay));
            }
            self.reply(ReloadOutcome::Rejected);
        }
        let longest = MAX_PAUSE.max(self.settings.quiet_period);
        self.state = State::Settling(Settling {
            scan,
            // It changes between scans, so an early compilation would be wasted.
            early_compile: None,
            since: settling.since,
            pause: pause.max(self.scanner.backoff).min(longest),
            is_held_back: is_late,
        });
        result
    }

    /// Starts to compile `scan`, to replace the current snapshot.
    fn start_compiling(&mut self, scan: &Arc<DirectoryScan>) -> BackgroundJob<CompileResult> {
        let priority = self.priority();
        let current = self.current.as_ref();
        let job = CompileJob {
            settings: Arc::clone(&self.settings),
            compile: self.compile,
            priority,
            scan: Arc::clone(scan),
            current: current.map(|it| (Arc::clone(&it.scan), Arc::clone(&it.compiled))),
        };
        let running = Arc::new(());
        self.compile_thread = Arc::downgrade(&running);
        BackgroundJob::spawn(priority, move || {
            let _running = running;
            job.run()
        })
    }

    async fn finish_compiling(&mut self, compiling: Compiling) -> StepResult {
        let Compiling {
            job,
            settling,
            scan,
        } = compiling;
        let result = job.result().await.unwrap_or_else(|error| {
            let text = format!("internal error while loading: {error}");
            CompileResult {
                compiled: Err(vec![Diagnostic::error("", text)]),
                duration: Duration::ZERO,
            }
        });
        match result.compiled {
            Ok(compiled) => {
                reuse_revision(&scan, &settling.scan);
                self.publish(scan, Arc::new(compiled), result.duration);
                self.reply(ReloadOutcome::Reloaded);
                Ok(())
            }
            // The cause may be a text that changed during the compilation.
            Err(_) if scan.is_inconsistent() || settling.scan.is_inconsistent() => {
                self.keep_settling(&settling, scan)
            }
            Err(diagnostics) => {
                let report = self.status.rejected(&diagnostics);
                self.rejected = Some(RejectedContent { scan, report });
                self.reply(ReloadOutcome::Rejected);
                Err(diagnostics)
            }
        }
    }

    fn publish(&mut self, scan: Arc<DirectoryScan>, compiled: Arc<Compiled>, duration: Duration) {
        let snapshot = &compiled.snapshot;
        let name_warnings = scan.sources.warnings();
        let warnings = snapshot.warnings().iter();
        let content_warnings: Vec<_> = warnings
            .filter(|warning| !name_warnings.contains(warning))
            .cloned()
            .collect();
        // The snapshot first: a revision in the status must be available to readers.
        self.publisher.publish(Arc::clone(snapshot));
        self.status
            .loaded(&scan, snapshot, &content_warnings, duration);
        self.rejected = None;
        let old = self.current.replace(CurrentContent {
            scan,
            compiled,
            content_warnings,
        });
        // This may be the last reference, and dropping a large snapshot takes long.
        if old.is_some() {
            drop_in_background(old);
        }
    }

    fn priority(&self) -> Priority {
        match self.current {
            Some(_) => Priority::Background,
            None => Priority::Foreground,
        }
    }

    /// Answers all requests that arrived before the latest scan.
    fn reply(&mut self, outcome: ReloadOutcome) {
        let status = self.status.load();
        for request in self.waiting.drain(..) {
            // An error means that the caller has stopped waiting.
            let _ = request.send(ReloadReport {
                outcome,
                status: Arc::clone(&status),
            });
        }
    }
}

/// Copies the hash state of `known`, which has the same files, so that the next revision is
/// computed from there.
fn reuse_revision(scan: &DirectoryScan, known: &DirectoryScan) {
    let _ = scan.sources.revision_after(Some(&known.sources));
}

#[cfg(test)]
mod tests;
