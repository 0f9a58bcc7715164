//! Diagnostics collected during compilation.

use std::sync::Arc;

use super::stack::COMPILE_STACK_BYTES;
use crate::pdp::diagnostic::{Diagnostic, Position, Severity};
use crate::pdp::sources::SourceFile;
use crate::pdp::sources::scanner::{self, Language};
use crate::pdp::workers::Workers;

/// Every diagnostic of sources that do not compile, sorted by file and position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy directory is rejected; errors: {}, the first: {}", .errors.len(), first_text(.errors))]
pub struct CompileError {
    /// The errors; never empty.
    pub errors: Vec<Diagnostic>,
    /// The warnings.
    pub warnings: Vec<Diagnostic>,
}

fn first_text(errors: &[Diagnostic]) -> String {
    errors.first().map(ToString::to_string).unwrap_or_default()
}

/// Diagnostics in the order in which they are found.
#[derive(Debug, Default)]
pub(in crate::pdp) struct DiagnosticSink(pub(super) Vec<Diagnostic>);

impl DiagnosticSink {
    pub(super) fn add(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Returns whether the parser can bear the nesting of `text`, and reports an error if not.
    pub(super) fn check_nesting(
        &mut self,
        path: &str,
        text: &Arc<str>,
        language: Language,
    ) -> bool {
        let Err(error) = scanner::check(text, language) else {
            return true;
        };
        let span = error.offset..error.offset + 1;
        self.add(Diagnostic::error(path, error.to_string()).at(text, span));
        false
    }

    pub(super) fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Returns errors and warnings, each sorted by file and position.
    pub(super) fn sorted(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0
            .sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        self.0
            .into_iter()
            .partition(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Reads `files` on all workers, and returns the results in the order of the files.
pub(super) fn read_files<T: Send>(
    files: &[&SourceFile],
    workers: Workers,
    diagnostics: &mut DiagnosticSink,
    read: impl Fn(&SourceFile, &mut DiagnosticSink) -> T + Sync,
) -> Vec<T> {
    let read_one = |(): &mut (), file: &&SourceFile| {
        let mut diagnostics = DiagnosticSink::default();
        (read(file, &mut diagnostics), diagnostics)
    };
    workers
        .map_with(files, COMPILE_STACK_BYTES, || (), read_one)
        .into_iter()
        .map(|(result, found)| {
            diagnostics.0.extend(found.0);
            result
        })
        .collect()
}

/// Returns the message for a policy id that is in use already.
pub(in crate::pdp) fn duplicate_id_message(id: &str, first_file: &str, first: Position) -> String {
    let Position { line, column } = first;
    format!("policy id `{id}` is defined twice, here and at {first_file}:{line}:{column}")
}

/// Adds the position and the help of Cedar's `error` to `diagnostic`.
pub(in crate::pdp) fn located(
    diagnostic: Diagnostic,
    error: &dyn miette::Diagnostic,
    text: &Arc<str>,
) -> Diagnostic {
    let diagnostic = with_help(diagnostic, error);
    match error.labels().and_then(|mut labels| labels.next()) {
        Some(label) => diagnostic.at(text, label.offset()..label.offset() + label.len()),
        None => diagnostic,
    }
}

/// Adds the help of Cedar's `error` to `diagnostic`.
pub(in crate::pdp) fn with_help(
    diagnostic: Diagnostic,
    error: &dyn miette::Diagnostic,
) -> Diagnostic {
    match error.help() {
        Some(help) => diagnostic.with_help(help.to_string()),
        None => diagnostic,
    }
}
