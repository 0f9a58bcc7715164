//! JSON text with byte offsets for diagnostics.

use std::sync::Arc;

use serde::Deserialize;

use super::findings::DiagnosticSink;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::Language;

/// Reads the JSON `text` of the file at `path`, bounded in depth, or adds a finding at the place it breaks.
pub(in crate::pdp) fn parse_json<'a, T: Deserialize<'a>>(
    path: &str,
    text: &'a Arc<str>,
    findings: &mut DiagnosticSink,
) -> Option<T> {
    if !findings.check_nesting(path, text, Language::Json) {
        return None;
    }
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let finding = Diagnostic::error(path, error.to_string());
            findings.add(match json_offset(&error, text) {
                Some(at) => finding.at(text, at..at),
                None => finding,
            });
            None
        }
    }
}

/// The byte at which `part` begins in `text`, of which it is a slice.
pub(in crate::pdp) fn offset_in(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize)
        .saturating_sub(text.as_ptr() as usize)
        .min(text.len())
}

/// The byte at which serde_json gave up, when one of the causes is its.
pub(in crate::pdp) fn json_position(
    error: &(dyn std::error::Error + 'static),
    text: &str,
) -> Option<usize> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<serde_json::Error>() {
            return json_offset(error, text);
        }
        cause = error.source();
    }
    None
}

/// The byte that serde_json's line and column mean.
pub(in crate::pdp) fn json_offset(error: &serde_json::Error, text: &str) -> Option<usize> {
    let line = error.line().checked_sub(1)?;
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    Some((start + error.column().saturating_sub(1)).min(text.len()))
}
