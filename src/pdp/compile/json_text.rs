//! JSON text with byte offsets for diagnostics.

use std::sync::Arc;

use serde::Deserialize;

use super::findings::DiagnosticSink;
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::Language;

/// Parses the JSON `text` of the file at `path`, with bounded nesting.
///
/// Returns `None` and adds an error at the offending byte when the text is not valid.
pub(in crate::pdp) fn parse_json<'a, T: Deserialize<'a>>(
    path: &str,
    text: &'a Arc<str>,
    diagnostics: &mut DiagnosticSink,
) -> Option<T> {
    if !diagnostics.check_nesting(path, text, Language::Json) {
        return None;
    }
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let diagnostic = Diagnostic::error(path, error.to_string());
            diagnostics.add(match json_offset(&error, text) {
                Some(offset) => diagnostic.at(text, offset..offset),
                None => diagnostic,
            });
            None
        }
    }
}

/// Returns the byte offset of `part` in `text`, of which it is a slice.
pub(in crate::pdp) fn offset_in(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize)
        .saturating_sub(text.as_ptr() as usize)
        .min(text.len())
}

/// Returns the byte offset of the first serde_json error among `error` and its causes.
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

/// Converts the line and column of `error` to a byte offset.
fn json_offset(error: &serde_json::Error, text: &str) -> Option<usize> {
    let line = error.line().checked_sub(1)?;
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    Some((start + error.column().saturating_sub(1)).min(text.len()))
}
