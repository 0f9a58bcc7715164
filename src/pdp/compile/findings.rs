//! Diagnostics collected during compilation.

use std::sync::Arc;

use crate::pdp::diagnostic::{Diagnostic, Position, Severity};
use crate::pdp::sources::scanner;
use crate::pdp::sources::scanner::Language;

/// Why sources did not become a snapshot: every finding, warnings included, sorted by file and
/// place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy directory is refused; findings: {}, the first: {}", .errors.len(), first_text(.errors))]
pub struct CompileError {
    /// What refuses the load; never empty.
    pub errors: Vec<Diagnostic>,
    /// What was found besides.
    pub warnings: Vec<Diagnostic>,
}

pub(in crate::pdp) fn first_text(errors: &[Diagnostic]) -> String {
    errors.first().map(ToString::to_string).unwrap_or_default()
}

/// Findings as they are made.
#[derive(Debug, Default)]
pub(in crate::pdp) struct DiagnosticSink(pub(super) Vec<Diagnostic>);

impl DiagnosticSink {
    pub(super) fn add(&mut self, finding: Diagnostic) {
        self.0.push(finding);
    }

    /// Whether the text of the file at `path` nests no deeper than its parser can bear. If not, a finding says
    /// where.
    pub(super) fn check_nesting(
        &mut self,
        path: &str,
        text: &Arc<str>,
        language: Language,
    ) -> bool {
        let Err(deep) = scanner::check(text, language) else {
            return true;
        };
        let span = deep.offset..deep.offset + 1;
        self.add(Diagnostic::error(path, deep.to_string()).at(text, span));
        false
    }

    pub(super) fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// Errors and warnings, each sorted by file and place.
    pub(super) fn sorted(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0
            .sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        self.0
            .into_iter()
            .partition(|finding| finding.severity == Severity::Error)
    }
}

/// What is said of an id that something else has already.
pub(in crate::pdp) fn duplicate_id_message(id: &str, first_file: &str, first: Position) -> String {
    let Position { line, column } = first;
    format!("policy id `{id}` is defined twice, here and at {first_file}:{line}:{column}")
}

/// Adds the place and the help that Cedar gives with an error.
pub(in crate::pdp) fn located(
    finding: Diagnostic,
    error: &dyn miette::Diagnostic,
    text: &Arc<str>,
) -> Diagnostic {
    let finding = with_help(finding, error);
    match error.labels().and_then(|mut labels| labels.next()) {
        Some(label) => finding.at(text, label.offset()..label.offset() + label.len()),
        None => finding,
    }
}

pub(in crate::pdp) fn with_help(finding: Diagnostic, error: &dyn miette::Diagnostic) -> Diagnostic {
    match error.help() {
        Some(help) => finding.with_help(help.to_string()),
        None => finding,
    }
}
