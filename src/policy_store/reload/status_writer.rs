//! Writes the results of reloads to the status and to the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::LeftOutCounts;
use crate::policy_store::directory::DirectoryScan;
use crate::policy_store::status::{
    LoadedSnapshot, MAX_DIAGNOSTICS, RejectedReload, StatusReader, StoreStatus,
};

/// The write side of the status, which also logs.
#[derive(Debug)]
pub(super) struct StatusWriter {
    sender: watch::Sender<Arc<StoreStatus>>,
    /// Logs rejections before the first load. Otherwise `open` returns them.
    logs_first_rejection: bool,
}

impl StatusWriter {
    /// Creates the write side and the read side of an empty status.
    pub(super) fn new(logs_first_rejection: bool) -> (Self, StatusReader) {
        let (sender, reader) = watch::channel(Arc::default());
        let writer = Self {
            sender,
            logs_first_rejection,
        };
        (writer, StatusReader(reader))
    }

    pub(super) fn load(&self) -> Arc<StoreStatus> {
        Arc::clone(&self.sender.borrow())
    }

    pub(super) fn loaded(
        &self,
        scan: &DirectoryScan,
        snapshot: &Snapshot,
        content_warnings: &[Diagnostic],
        duration: Duration,
    ) {
        let counts = snapshot.counts();
        let loaded = LoadedSnapshot {
            revision: snapshot.revision().clone(),
            at: SystemTime::now(),
            counts,
        };
        self.update(|status| {
            status.loaded = Some(loaded);
            status.rejected = None;
            status.warnings = first_warnings(scan, content_warnings);
            status.left_out = scan.sources.unused().left_out;
            status.reloads.reloaded += 1;
        });
        let warnings = all_warnings(scan, content_warnings);
        tracing::info!(
            revision = %snapshot.revision(),
            policies = counts.policies,
            templates = counts.templates,
            links = counts.links,
            entities = counts.entities,
            warnings = warnings.len(),
            ?duration,
            "policies loaded"
        );
        log_left_out(scan.sources.unused().left_out);
        for warning in &warnings {
            log_diagnostic(warning);
        }
    }

    /// Reports that `scan` found the current content, which `previous` also has.
    pub(super) fn unchanged(
        &self,
        previous: &DirectoryScan,
        scan: &DirectoryScan,
        content_warnings: &[Diagnostic],
    ) {
        let was_rejected = self.sender.borrow().rejected.is_some();
        if was_rejected {
            tracing::info!(
                "rejection cleared, the policy directory holds the current policies again"
            );
        }
        let (known, found) = (all_warnings(previous, &[]), all_warnings(scan, &[]));
        let left_out = scan.sources.unused().left_out;
        let left_out_changed = previous.sources.unused().left_out != left_out;
        if was_rejected || known != found || left_out_changed {
            for warning in found.iter().filter(|warning| !known.contains(warning)) {
                log_diagnostic(warning);
            }
            if left_out_changed {
                log_left_out(left_out);
            }
            self.update(|status| {
                status.rejected = None;
                status.warnings = first_warnings(scan, content_warnings);
                status.left_out = left_out;
            });
        }
        // Wakes no reader, because this happens at every poll.
        self.sender.send_if_modified(|status| {
            Arc::make_mut(status).reloads.unchanged += 1;
            false
        });
    }

    pub(super) fn rejected(&self, diagnostics: &[Diagnostic]) -> RejectedReload {
        if self.logs_rejections() {
            tracing::warn!(
                count = diagnostics.len(),
                "reload rejected, keeping the current policies"
            );
            for diagnostic in diagnostics {
                log_diagnostic(diagnostic);
            }
        }
        let report = RejectedReload::now(diagnostics);
        self.update(|status| {
            status.rejected = Some(report.clone());
            status.reloads.rejected += 1;
        });
        report
    }

    /// Reports that the directory again holds content that was rejected before.
    pub(super) fn still_rejected(&self, report: &RejectedReload) {
        if self.sender.borrow().rejected.as_ref() != Some(report) {
            self.update(|status| status.rejected = Some(report.clone()));
        }
    }

    /// Reports that the files `names` are still being written after `delay`. Returns a diagnostic
    /// for each.
    pub(super) fn held_back(&self, names: &BTreeSet<String>, delay: Duration) -> Vec<Diagnostic> {
        let diagnostic = |file: &str| {
            let text = format!("held back: files are still being written after {delay:?}");
            Diagnostic::error(file, text)
        };
        let mut diagnostics: Vec<_> = names.iter().map(|name| diagnostic(name)).collect();
        if diagnostics.is_empty() {
            diagnostics.push(diagnostic(""));
        }
        if self.logs_rejections() {
            let files: Vec<_> = names.iter().take(MAX_DIAGNOSTICS).collect();
            tracing::warn!(
                ?files,
                count = names.len(),
                "reload held back, policy files are still being written"
            );
        }
        let report = RejectedReload::now(&diagnostics);
        self.update(|status| {
            status.rejected = Some(report);
            status.reloads.held_back += 1;
        });
        diagnostics
    }

    fn logs_rejections(&self) -> bool {
        self.logs_first_rejection || self.sender.borrow().loaded.is_some()
    }

    fn update(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.sender
            .send_modify(|status| change(Arc::make_mut(status)));
    }
}

/// Returns the warnings about single file names, those about content, and the one about ignored
/// files.
fn all_warnings(scan: &DirectoryScan, content_warnings: &[Diagnostic]) -> Vec<Diagnostic> {
    let single = scan.sources.warnings().iter().chain(content_warnings);
    let ignored = scan.sources.unused().warning();
    single.cloned().chain(ignored).collect()
}

/// Returns the first warnings for the status, and always the one about ignored files, the last.
fn first_warnings(scan: &DirectoryScan, content_warnings: &[Diagnostic]) -> Vec<Diagnostic> {
    let mut warnings = all_warnings(scan, content_warnings);
    if warnings.len() > MAX_DIAGNOSTICS {
        let last = warnings.pop();
        warnings.truncate(MAX_DIAGNOSTICS - 1);
        warnings.extend(last);
    }
    warnings
}

fn log_left_out(left_out: LeftOutCounts) {
    if !left_out.is_empty() {
        tracing::info!(
            policies = left_out.policies,
            schemas = left_out.schemas,
            entities = left_out.entities,
            links = left_out.links,
            tests = left_out.tests,
            "files left out by .cedarignore"
        );
    }
}

fn log_diagnostic(diagnostic: &Diagnostic) {
    let position = diagnostic.position;
    tracing::warn!(
        file = diagnostic.file.as_str(),
        line = position.map(|position| position.line),
        column = position.map(|position| position.column),
        severity = %diagnostic.severity,
        diagnostic = diagnostic.message.as_str(),
        rendered = %diagnostic.render(false),
        "policy file diagnostic"
    );
}
