//! Decides when what the directory holds replaces the snapshot in force.
//!
//! A tick leads to a look. A look that finds something new is followed by others until two in a
//! row agree; then it is compiled, and published or refused. One task does this, so that there is
//! one order of events; its long work runs on threads that give way to those that serve.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::background::{Aside, Manners, aside};
use super::directory::{self, Reading};
use super::shrink_guard::suspicions;
use super::status::{
    FINDINGS_TOLD, Loaded, RefusedReload, ReloadOutcome, StatusReader, StoreStatus,
};
use super::{Publisher, Reader, ReloadReport, Reloads, StoreSettings, Waiting, snapshots};
use crate::pdp::Workers;
use crate::pdp::compile::{CompileError, compile_from};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::{Settings, Snapshot};
use crate::pdp::sources::Sources;
use crate::watch::{Ticks, Watcher};

/// The longest pause between two looks at a directory that does not come to rest, unless the
/// quiet period is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Callers of [`Reloads::reload`] that wait for their turn to be noticed.
const MOST_WAITING: usize = 64;

/// A policy store whose first look is done.
#[derive(Debug)]
pub struct Opened {
    /// Gives the snapshot in force.
    pub reader: Reader,
    /// Tells how the store is.
    pub status: StatusReader,
    /// Asks for reloads.
    pub reloads: Reloads,
    /// The task to be run; while it does not run, nothing is reloaded.
    pub reloader: Reloader,
}

/// The directory cannot be loaded, and the store was not to wait for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy directory cannot be loaded; findings: {}", .diagnostics.len())]
pub struct OpenRefused {
    /// Every reason.
    pub diagnostics: Vec<Diagnostic>,
}

/// Loads the policy directory for the first time.
///
/// Takes the quiet period at least, because the first content too must be at rest, unless its time
/// stamps show that it has been for long.
///
/// # Errors
///
/// [`OpenRefused`] when the directory is bad or does not come to rest, unless `start_unready` is
/// set: then the store opens without a snapshot, and its status says why.
pub async fn open(settings: StoreSettings) -> Result<Opened, OpenRefused> {
    open_with(settings, compile_from).await
}

type Compile =
    fn(Option<&Snapshot>, &Sources, &Settings, &Workers) -> Result<Snapshot, CompileError>;

async fn open_with(settings: StoreSettings, compile: Compile) -> Result<Opened, OpenRefused> {
    let (publisher, reader) = snapshots();
    let (status, status_reader) = watch::channel(Arc::default());
    let (force, forced) = mpsc::channel(MOST_WAITING);
    let (watcher, ticks) = crate::watch::watch(settings.watch, settings.poll);
    let mut reloader = Reloader {
        settings: Arc::new(settings),
        compile,
        publisher,
        status,
        watcher: Some(watcher),
        ticks,
        rest: Duration::ZERO,
        forced,
        waiting: Vec::new(),
        last: None,
        in_force: None,
        refused: None,
        unsettled: None,
        compiling: Weak::new(),
    };
    reloader.first_look().await?;
    Ok(Opened {
        reader,
        status: StatusReader(status_reader),
        reloads: Reloads(force),
        reloader,
    })
}

/// Owns the decision what is in force.
#[derive(Debug)]
pub struct Reloader {
    settings: Arc<StoreSettings>,
    compile: Compile,
    publisher: Publisher,
    status: watch::Sender<Arc<StoreStatus>>,
    /// Away while a thread reads.
    watcher: Option<Watcher>,
    ticks: Ticks,
    /// How long to leave the directory alone after the latest reading, which took some time: a
    /// large one that changes all the time is not to be read all the time.
    rest: Duration,
    forced: mpsc::Receiver<Waiting>,
    /// Who asked before the latest reading began.
    waiting: Vec<Waiting>,
    last: Option<Arc<Reading>>,
    in_force: Option<InForce>,
    refused: Option<Refused>,
    unsettled: Option<Unsettled>,
    /// Lives as long as the latest thread that compiles, waited for or not.
    compiling: Weak<()>,
}

#[derive(Debug)]
struct InForce {
    /// The latest reading of this content.
    reading: Arc<Reading>,
    snapshot: Arc<Snapshot>,
    /// The snapshot's warnings without those about names in the directory, which may come and go
    /// while the content stays.
    warnings: Vec<Diagnostic>,
}

/// Content that was refused, and would be again.
#[derive(Debug)]
struct Refused {
    reading: Arc<Reading>,
    report: RefusedReload,
}

/// What became of loading content that was at rest.
enum Loading {
    /// It is in force.
    Published,
    /// It cannot be, for these reasons.
    Refused(Vec<Diagnostic>),
    /// It was at rest no more.
    Torn,
}

/// What compiling came to, and how long it took.
#[derive(Debug)]
struct Compiled {
    snapshot: Result<Snapshot, Vec<Diagnostic>>,
    took: Duration,
}

/// Content that is new, and that the next look has yet to confirm.
#[derive(Debug)]
struct Unsettled {
    reading: Arc<Reading>,
    /// Mostly it is confirmed, so what it compiles to is found out meanwhile.
    compiling: Option<Aside<Compiled>>,
    since: Instant,
    pause: Duration,
    is_held_back: bool,
}

impl Reloader {
    /// Follows the directory until `shutdown`.
    ///
    /// A read or a compilation that runs then ends by itself on its own thread, without effect.
    #[tracing::instrument(name = "policy_store", skip_all)]
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            never = self.follow() => match never {},
        }
    }

    async fn follow(&mut self) -> Infallible {
        loop {
            match &self.unsettled {
                Some(unsettled) => tokio::time::sleep(unsettled.pause).await,
                None => tokio::select! {
                    () = async {
                        tokio::time::sleep(self.rest).await;
                        self.ticks.next().await;
                    } => {}
                    Some(waiting) = self.forced.recv() => self.waiting.push(waiting),
                },
            }
            // What was refused is in the status and in the log.
            let _ = self.look().await;
        }
    }

    async fn first_look(&mut self) -> Result<(), OpenRefused> {
        loop {
            let looked = self.look().await;
            match (looked, &self.unsettled) {
                (Ok(()), None) => return Ok(()),
                (Err(_), _) if self.settings.start_unready => return Ok(()),
                (Err(diagnostics), _) => return Err(OpenRefused { diagnostics }),
                (Ok(()), Some(unsettled)) => tokio::time::sleep(unsettled.pause).await,
            }
        }
    }

    /// Looks at the directory once, and does what follows from what is seen.
    ///
    /// An error is a refusal that is new: all of its reasons.
    async fn look(&mut self) -> Result<(), Vec<Diagnostic>> {
        // Whoever asks from here on may have changed something that this reading misses.
        while let Ok(waiting) = self.forced.try_recv() {
            self.waiting.push(waiting);
        }
        let reading = self.read().await;
        if let Some(outcome) = self.known(&reading) {
            self.unsettled = None;
            self.answer(outcome);
            return Ok(());
        }
        match self.unsettled.take() {
            Some(mut earlier) if reading.confirms(&earlier.reading) => {
                match self.load(&mut earlier, &reading).await {
                    Loading::Published => {
                        self.answer(ReloadOutcome::Reloaded);
                        Ok(())
                    }
                    Loading::Refused(reasons) => {
                        self.answer(ReloadOutcome::Refused);
                        Err(reasons)
                    }
                    Loading::Torn => self.wait_longer(earlier, reading),
                }
            }
            Some(earlier) => self.wait_longer(earlier, reading),
            None => {
                let since = Instant::now();
                // What has been at rest for so long need not be waited for. What has not is new to
                // callers, who are served meanwhile and to whom time matters. But a directory that
                // is changed to and fro must not have ever more threads compile it.
                let is_at_rest = reading.is_at_rest(self.settings.quiet);
                let is_compiled_early = !is_at_rest
                    && !reading.is_torn()
                    && self.in_force.is_some()
                    && self.compiling.strong_count() == 0;
                self.unsettled = Some(Unsettled {
                    compiling: is_compiled_early.then(|| self.compile_aside(&reading)),
                    reading,
                    since,
                    pause: if is_at_rest {
                        Duration::ZERO
                    } else {
                        self.settings.quiet
                    },
                    is_held_back: false,
                });
                Ok(())
            }
        }
    }

    /// Reads the directory on a thread of its own, and listens where that reading has been.
    async fn read(&mut self) -> Arc<Reading> {
        let settings = Arc::clone(&self.settings);
        let previous = self.last.take();
        let watcher = self.watcher.take();
        let began = Instant::now();
        let manners = self.manners();
        let done = aside(manners, move || {
            let workers = manners.workers();
            let (directory, limits) = (&settings.directory, &settings.limits);
            let reading = directory::read(directory, limits, previous.as_deref(), &workers);
            let watcher = watcher.map(|mut watcher| {
                watcher.set(reading.places());
                watcher
            });
            (reading, watcher)
        })
        .outcome()
        .await;
        self.rest = began.elapsed().saturating_mul(2).min(LONGEST_PAUSE);
        let reading = match done {
            Ok((reading, watcher)) => {
                self.watcher = watcher;
                Arc::new(reading)
            }
            Err(error) => {
                // The watcher went down with the thread.
                let (watcher, ticks) = crate::watch::watch(self.settings.watch, self.settings.poll);
                (self.watcher, self.ticks) = (Some(watcher), ticks);
                let text = format!("the reading failed within cedar-pdp: {error}");
                Arc::new(Reading::of_problem(Diagnostic::error("", text)))
            }
        };
        self.last = Some(Arc::clone(&reading));
        reading
    }

    /// What is to be said of a reading whose content was judged before.
    fn known(&mut self, reading: &Arc<Reading>) -> Option<ReloadOutcome> {
        if reading.is_torn() {
            return None;
        }
        if let Some(in_force) = &mut self.in_force
            && reading.loads_like(&in_force.reading)
        {
            // The same files have the same revision, which the next change is to start from.
            let before = in_force.reading.sources();
            let _ = reading.sources().revision_after(Some(before));
            let before = std::mem::replace(&mut in_force.reading, Arc::clone(reading));
            let warnings = warnings(reading, &in_force.warnings);
            self.stand(&before, reading, warnings);
            return Some(ReloadOutcome::Unchanged);
        }
        let refused = self.refused.as_ref()?;
        if !reading.loads_like(&refused.reading) {
            return None;
        }
        if self.status.borrow().refused.as_ref() != Some(&refused.report) {
            let report = refused.report.clone();
            self.tell(|status| status.refused = Some(report));
        }
        Some(ReloadOutcome::Refused)
    }

    /// Notes that the directory holds what is in force, whatever it held between.
    fn stand(&mut self, before: &Reading, now: &Reading, warnings: Vec<Diagnostic>) {
        self.refused = None;
        let was_refused = self.status.borrow().refused.is_some();
        if was_refused {
            tracing::info!("the policy directory holds again what is in force");
        }
        let (known, found) = (before.sources().warnings(), now.sources().warnings());
        if was_refused || known != found {
            for warning in found.iter().filter(|warning| !known.contains(warning)) {
                log_finding(warning);
            }
            self.tell(|status| {
                status.refused = None;
                status.warnings = warnings;
            });
        }
        // Wakes nobody: it happens with every poll.
        self.status.send_if_modified(|status| {
            Arc::make_mut(status).reloads.unchanged += 1;
            false
        });
    }

    /// Goes on looking at a directory that two looks found different, and says so when that has
    /// been going on for too long.
    fn wait_longer(
        &mut self,
        earlier: Unsettled,
        reading: Arc<Reading>,
    ) -> Result<(), Vec<Diagnostic>> {
        let is_late = earlier.since.elapsed() >= self.settings.longest_delay;
        let pause = if is_late {
            earlier.pause.saturating_mul(2)
        } else {
            self.settings.quiet
        };
        let looked = if is_late && !earlier.is_held_back {
            Err(self.hold_back(&reading.changes_since(&earlier.reading)))
        } else {
            Ok(())
        };
        if is_late {
            self.answer(ReloadOutcome::Refused);
        }
        self.unsettled = Some(Unsettled {
            reading,
            // It changes while it is looked at, so compiling it early would be for nothing.
            compiling: None,
            since: earlier.since,
            pause: self.pause(pause),
            is_held_back: is_late,
        });
        looked
    }

    fn pause(&self, wanted: Duration) -> Duration {
        let longest = LONGEST_PAUSE.max(self.settings.quiet);
        wanted.max(self.rest).min(longest)
    }

    fn hold_back(&mut self, names: &BTreeSet<String>) -> Vec<Diagnostic> {
        let delay = self.settings.longest_delay;
        let held_back = |file: &str| {
            Diagnostic::error(
                file,
                format!("held back: still being written after {delay:?}"),
            )
        };
        let mut diagnostics: Vec<_> = names.iter().map(|name| held_back(name)).collect();
        if diagnostics.is_empty() {
            diagnostics.push(held_back(""));
        }
        if self.is_telling() {
            let files: Vec<_> = names.iter().take(FINDINGS_TOLD).collect();
            tracing::warn!(?files, count = names.len(), "reload held back");
        }
        let report = RefusedReload::now(&diagnostics);
        self.tell(|status| {
            status.refused = Some(report);
            status.reloads.held_back += 1;
        });
        diagnostics
    }

    /// Compiles content that is at rest, and puts it in force or refuses it.
    ///
    /// `reading` confirms `earlier`, so either may be compiled for the other.
    async fn load(&mut self, earlier: &mut Unsettled, reading: &Arc<Reading>) -> Loading {
        let compiling = earlier.compiling.take();
        let compiling = compiling.unwrap_or_else(|| self.compile_aside(reading));
        let compiled = compiling.outcome().await.unwrap_or_else(|error| {
            let text = format!("loading failed within cedar-pdp: {error}");
            Compiled {
                snapshot: Err(vec![Diagnostic::error("", text)]),
                took: Duration::ZERO,
            }
        });
        match compiled.snapshot {
            Ok(snapshot) => {
                // The same files have the same revision, which the next change is to start from.
                let before = earlier.reading.sources();
                let _ = reading.sources().revision_after(Some(before));
                self.publish(Arc::clone(reading), Arc::new(snapshot), compiled.took);
                Loading::Published
            }
            // What was found is as likely the fault of a text that changed under the compiler.
            Err(_) if reading.is_torn() || earlier.reading.is_torn() => Loading::Torn,
            Err(diagnostics) => {
                self.refuse(Arc::clone(reading), &diagnostics);
                Loading::Refused(diagnostics)
            }
        }
    }

    /// Begins to compile what was read, in the place of what is in force.
    fn compile_aside(&mut self, reading: &Arc<Reading>) -> Aside<Compiled> {
        let (settings, compile) = (Arc::clone(&self.settings), self.compile);
        let manners = self.manners();
        let old = self.in_force.as_ref().map(|in_force| {
            let (reading, snapshot) = (&in_force.reading, &in_force.snapshot);
            (Arc::clone(reading), Arc::clone(snapshot))
        });
        let content = Arc::clone(reading);
        let running = Arc::new(());
        self.compiling = Arc::downgrade(&running);
        aside(manners, move || {
            let _running = running;
            let began = Instant::now();
            let sources = content.sources();
            let workers = manners.workers().worth(sources.bytes());
            let (before, old) = old.unzip();
            let compiled = thread::scope(|scope| {
                // One hash over all files in order cannot be divided, so it is begun first. The
                // compiler asks for it last; without this thread it would then compute it.
                let hash = || {
                    (workers.begin)();
                    sources.revision_after(before.as_deref().map(Reading::sources))
                };
                if workers.threads.get() > 1 {
                    let _ = thread::Builder::new().spawn_scoped(scope, hash);
                }
                compile(old.as_deref(), sources, &settings.deciding, &workers)
            });
            let suspicions = match (&old, &compiled) {
                (Some(old), Ok(new)) if !settings.allow_empty => suspicions(old, new, sources),
                (Some(_) | None, Ok(_) | Err(_)) => Vec::new(),
            };
            let snapshot = match compiled {
                Ok(snapshot) if suspicions.is_empty() => Ok(snapshot),
                Ok(_) => Err(suspicions),
                Err(error) => Err(error.errors),
            };
            let took = began.elapsed();
            Compiled { snapshot, took }
        })
    }

    fn manners(&self) -> Manners {
        match self.in_force {
            Some(_) => Manners::GiveWay,
            None => Manners::Hurry,
        }
    }

    fn publish(&mut self, reading: Arc<Reading>, snapshot: Arc<Snapshot>, took: Duration) {
        let counts = snapshot.counts();
        let loaded = Loaded {
            revision: snapshot.revision().clone(),
            at: SystemTime::now(),
            counts,
        };
        let named = reading.sources().warnings();
        let of_content = snapshot.warnings().iter();
        let of_content: Vec<_> = of_content
            .filter(|warning| !named.contains(warning))
            .cloned()
            .collect();
        let warnings = warnings(&reading, &of_content);
        // The snapshot first: who reads a revision in the status must be able to load it.
        self.publisher.publish(Arc::clone(&snapshot));
        self.tell(|status| {
            status.loaded = Some(loaded);
            status.refused = None;
            status.warnings = warnings;
            status.reloads.reloaded += 1;
        });
        tracing::info!(
            revision = %snapshot.revision(),
            policies = counts.policies,
            templates = counts.templates,
            links = counts.links,
            entities = counts.entities,
            warnings = named.len() + of_content.len(),
            duration = ?took,
            "policies loaded"
        );
        for warning in named.iter().chain(&of_content) {
            log_finding(warning);
        }
        self.refused = None;
        let old = self.in_force.replace(InForce {
            reading,
            snapshot,
            warnings: of_content,
        });
        // Perhaps the last handle on it; a large snapshot takes long to drop.
        if old.is_some() {
            drop(aside(Manners::GiveWay, move || drop(old)));
        }
    }

    fn refuse(&mut self, reading: Arc<Reading>, diagnostics: &[Diagnostic]) {
        if self.is_telling() {
            tracing::warn!(count = diagnostics.len(), "reload refused");
            for diagnostic in diagnostics {
                log_finding(diagnostic);
            }
        }
        let report = RefusedReload::now(diagnostics);
        let told = report.clone();
        self.tell(|status| {
            status.refused = Some(told);
            status.reloads.refused += 1;
        });
        self.refused = Some(Refused { reading, report });
    }

    /// Whether a refusal belongs in the log. At the start it is the error that `open` returns,
    /// unless the store waits.
    fn is_telling(&self) -> bool {
        self.in_force.is_some() || self.settings.start_unready
    }

    fn tell(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.status
            .send_modify(|status| change(Arc::make_mut(status)));
    }

    fn answer(&mut self, outcome: ReloadOutcome) {
        let status = Arc::clone(&self.status.borrow());
        for waiting in self.waiting.drain(..) {
            // An error says that the caller waits no more.
            let _ = waiting.send(ReloadReport {
                outcome,
                status: Arc::clone(&status),
            });
        }
    }
}

/// The first warnings for the status: those of the directory's names, then those of its content.
fn warnings(reading: &Reading, of_content: &[Diagnostic]) -> Vec<Diagnostic> {
    let all = reading.sources().warnings().iter().chain(of_content);
    all.take(FINDINGS_TOLD).cloned().collect()
}

fn log_finding(finding: &Diagnostic) {
    let position = finding.position;
    tracing::warn!(
        file = finding.file.as_str(),
        line = position.map(|position| position.line),
        column = position.map(|position| position.column),
        severity = %finding.severity,
        finding = finding.message.as_str(),
        drawn = %finding.render(false),
        "finding in the policy directory"
    );
}

#[cfg(test)]
mod tests;
