//! Diagnostics collected during compilation, and their positions in texts.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::stack::COMPILE_STACK_BYTES;
use crate::pdp::diagnostic::{Diagnostic, Position, Severity};
use crate::pdp::sources::SourceFile;
use crate::pdp::sources::scanner::{self, Language};
use crate::pdp::values::with_causes;
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

    /// Returns the value of `result`, or adds its error about the file at `path`.
    pub(super) fn ok<T, E: ToString>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result
            .map_err(|error| self.add(Diagnostic::error(path, error.to_string())))
            .ok()
    }

    /// Returns the text of `file`, or adds an error if it has changed.
    pub(super) fn text(&mut self, file: &SourceFile) -> Option<Arc<str>> {
        self.ok(&file.path, file.text())
    }

    pub(super) fn by_severity(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0
            .into_iter()
            .partition(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Returns errors and warnings, each sorted by file and position.
    pub(super) fn sorted(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0
            .sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
        self.by_severity()
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

/// Returns the error about the file at `path` that Cedar's parser reports in `text`.
///
/// What is missing at the end of a statement is missed where the code ends, not at the next token,
/// which may be many lines below.
pub(super) fn syntax_error(
    path: &str,
    error: &dyn miette::Diagnostic,
    (text, language): (&Arc<str>, Language),
) -> Diagnostic {
    let diagnostic = located(Diagnostic::error(path, error.to_string()), error, text);
    let mut labels = error.labels().into_iter().flatten();
    let expects_end = |label: &miette::LabeledSpan| {
        let text = label.label().unwrap_or_default();
        text.contains("`;`") || label.is_empty()
    };
    match labels.next() {
        Some(label) if expects_end(&label) => {
            let end = scanner::code_end(text, label.offset(), language);
            diagnostic.at(text, end..end)
        }
        Some(_) | None => diagnostic,
    }
}

/// Adds the position, the label and the help of Cedar's `error` to `diagnostic`.
pub(in crate::pdp) fn located(
    diagnostic: Diagnostic,
    error: &dyn miette::Diagnostic,
    text: &Arc<str>,
) -> Diagnostic {
    let diagnostic = with_help(diagnostic, error);
    let Some(label) = error.labels().and_then(|mut labels| labels.next()) else {
        return diagnostic;
    };
    let message = match label.label() {
        Some(label) => format!("{}: {label}", diagnostic.message),
        None => diagnostic.message,
    };
    let diagnostic = Diagnostic {
        message,
        ..diagnostic
    };
    diagnostic.at(text, label.offset()..label.offset() + label.len())
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

/// Parses the JSON `text` of the file at `path`, with bounded nesting.
///
/// Returns `None` and adds an error at the offending byte when the text is not valid.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    path: &str,
    text: &'a Arc<str>,
    diagnostics: &mut DiagnosticSink,
) -> Option<T> {
    if !diagnostics.check_nesting(path, text, Language::Json) {
        return None;
    }
    serde_json::from_str(text)
        .map_err(|error| diagnostics.add(json_error(path, text, text, &error)))
        .ok()
}

/// The entries of a JSON object in order, duplicate names included.
///
/// A map would silently keep the last of two entries with the same name.
#[derive(Default)]
pub(super) struct Entries<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Returns the byte offset of `part` in `text`, of which it is a slice.
pub(super) fn offset_in(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize)
        .saturating_sub(text.as_ptr() as usize)
        .min(text.len())
}

/// Returns the error about the JSON file at `path` that a parser of `part` reports.
///
/// `part` is a part of `text`, the whole file. The JSON parser counts lines from the start of what
/// it reads, and writes its position at the end of the message.
#[must_use]
pub fn json_error(
    path: &str,
    text: &Arc<str>,
    part: &str,
    error: &(dyn std::error::Error + 'static),
) -> Diagnostic {
    let message = with_causes(error);
    let start = offset_in(text, part);
    let (message, offset) = match split_position(&message) {
        Some((message, line, column)) => {
            let lines = part.split_inclusive('\n').take(line.saturating_sub(1));
            let offset = lines.map(str::len).sum::<usize>() + column.saturating_sub(1);
            (message, start + offset.min(part.len()))
        }
        None => (message.as_str(), start),
    };
    Diagnostic::error(path, in_words_of_json(message)).at(text, offset..offset)
}

/// Replaces the JSON parser's names of Rust types by those of JSON.
fn in_words_of_json(message: &str) -> String {
    let replaced = |message: &str, words: &[(&str, &str)]| {
        let found = words
            .iter()
            .find_map(|(rust, json)| Some((message.strip_prefix(rust)?, json)));
        found.map_or_else(
            || message.to_owned(),
            |(rest, json)| format!("{json}{rest}"),
        )
    };
    if message.starts_with("EOF while parsing") {
        return "unexpected end of file".to_owned();
    }
    let split = ["invalid type: ", "invalid value: "].map(|kind| message.split_once(kind));
    let Some((before, found)) = split.into_iter().flatten().next() else {
        return message.to_owned();
    };
    let Some((found, expected)) = found.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let found = replaced(
        found,
        &[
            ("map", "an object"),
            ("sequence", "an array"),
            ("string", "the string"),
            ("integer", "the number"),
            ("floating point", "the number"),
            ("boolean", "the boolean"),
        ],
    );
    let expected = replaced(
        expected,
        &[
            ("a sequence", "an array"),
            ("a map", "an object"),
            ("u32", "a whole number"),
            ("i64", "a whole number"),
            ("u64", "a whole number"),
            ("usize", "a whole number"),
        ],
    );
    match expected.starts_with("struct ") {
        true => format!("{before}expected an object, found {found}"),
        false => format!("{before}expected {expected}, found {found}"),
    }
}

/// Splits ` at line L column C`, which ends the messages of the JSON parser.
fn split_position(message: &str) -> Option<(&str, usize, usize)> {
    let (message, position) = message.rsplit_once(" at line ")?;
    let (line, column) = position.split_once(" column ")?;
    Some((message, line.parse().ok()?, column.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_errors_use_the_words_of_json() {
        for (text, expected) in [
            ("{}", "expected an array, found an object"),
            ("\"x\"", "expected an array, found the string \"x\""),
            ("[1.5]", "expected a whole number, found the number `1.5`"),
            ("[[]]", "expected a whole number, found an array"),
            (
                "[true]",
                "expected a whole number, found the boolean `true`",
            ),
            ("[1", "unexpected end of file"),
            ("", "unexpected end of file"),
            ("[1,]", "trailing comma"),
        ] {
            let error = serde_json::from_str::<Vec<i64>>(text).unwrap_err();
            let text: Arc<str> = Arc::from(text);
            let found = json_error("a.json", &text, &text, &error);
            assert_eq!(found.message, expected, "{text}");
        }
    }
}
