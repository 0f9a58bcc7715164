//! Errors and warnings about a policy directory, with file, line, column and an excerpt.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// The effect of a diagnostic on the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The load is rejected.
    Error,
    /// The load succeeds, and the warning is reported.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A line and column in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1, in characters.
    pub column: u32,
}

impl Position {
    /// Returns the position of byte `offset` in `text`; an offset past the end means the end.
    ///
    /// Costs a scan of the text before the offset.
    #[must_use]
    pub fn of(text: &str, offset: usize) -> Self {
        let end = text.floor_char_boundary(offset);
        let before = text.get(..end).unwrap_or(text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        let column = last_line.chars().count() + 1;
        Self {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

/// The byte offsets at which the lines of a text begin, for finding many positions.
pub(super) struct LineStarts(Vec<usize>);

impl LineStarts {
    /// Scans `text` once.
    pub(super) fn new(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = breaks.map(|(offset, _)| offset + 1);
        Self(std::iter::once(0).chain(starts).collect())
    }

    /// Returns the position of byte `offset` in `text`, the scanned text.
    pub(super) fn position(&self, text: &str, offset: usize) -> Position {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|line| self.0.get(line));
        let start = start.copied().unwrap_or(0);
        let rest = text.get(start..).unwrap_or_default();
        Position {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: Position::of(rest, offset.saturating_sub(start)).column,
        }
    }

    /// Returns the byte offset of `position` in `text`, the scanned text.
    pub(super) fn offset(&self, text: &str, position: Position) -> usize {
        let line = (position.line as usize).saturating_sub(1);
        let start = self.0.get(line).copied().unwrap_or(text.len());
        let rest = text.get(start..).unwrap_or_default();
        let column = (position.column as usize).saturating_sub(1);
        start + rest.chars().take(column).map(char::len_utf8).sum::<usize>()
    }
}

/// The text that a diagnostic refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The whole file.
    pub text: Arc<str>,
    /// The bytes that are at fault.
    pub span: Range<usize>,
}

/// An error or warning about a policy directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The effect on the load.
    pub severity: Severity,
    /// The path relative to the directory; empty for the directory as a whole.
    pub file: String,
    /// The position in the file, if known.
    pub position: Option<Position>,
    /// The fault, in lower case, without a full stop.
    pub message: String,
    /// Advice on fixing it, if known.
    pub help: Option<String>,
    /// The text under which the caret is rendered.
    pub excerpt: Option<Excerpt>,
}

impl Diagnostic {
    /// Creates an error about the file as a whole.
    #[must_use]
    pub fn error(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            position: None,
            message: message.into(),
            help: None,
            excerpt: None,
        }
    }

    /// Creates a warning about the file as a whole.
    #[must_use]
    pub fn warning(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(file, message)
        }
    }

    /// Returns this diagnostic, placed at these bytes of the file's text.
    #[must_use]
    pub fn at(mut self, text: &Arc<str>, span: Range<usize>) -> Self {
        self.position = Some(Position::of(text, span.start));
        self.excerpt = Some(Excerpt {
            text: Arc::clone(text),
            span,
        });
        self
    }

    /// Returns this diagnostic with advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Renders message, position and source line with a caret, for a terminal.
    ///
    /// Returns several lines without a final newline. `color` adds terminal colors.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level
            .primary_title(printable(&self.message))
            .elements(None::<annotate_snippets::Message<'_>>);
        match &self.excerpt {
            Some(excerpt) => {
                let (text, span, line) = first_line(&excerpt.text, &excerpt.span);
                group = group.element(
                    Snippet::source(text)
                        .line_start(line)
                        .path(printable(&self.file))
                        .annotation(AnnotationKind::Primary.span(span)),
                );
            }
            None if !self.file.is_empty() => {
                group = group.element(annotate_snippets::Origin::path(printable(&self.file)));
            }
            None => {}
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        renderer.render(&[group])
    }
}

/// Returns the first line of `span`, the part of `span` in it, and its line number.
///
/// The renderer scans its whole source for each diagnostic; one line keeps that short, however
/// large the file.
fn first_line(text: &str, span: &Range<usize>) -> (String, Range<usize>, usize) {
    let start = text.floor_char_boundary(span.start);
    let end = text.floor_char_boundary(span.end.max(span.start));
    let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = after
        .find('\n')
        .map_or(text.len(), |newline| start + newline);
    let line = text.get(line_start..line_end).unwrap_or_default();
    let number = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (
        line.to_owned(),
        (start - line_start)..(end.min(line_end) - line_start),
        number,
    )
}

/// Escapes the control characters of `text`, so that a file cannot control a terminal.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if let Some(Position { line, column }) = self.position {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_in_characters() {
        let text = "a\nüß x";
        let x = text.find('x').unwrap();
        assert_eq!(Position::of(text, x), Position { line: 2, column: 4 });
        assert_eq!(Position::of(text, 999), Position { line: 2, column: 5 });
        for offset in (0..text.len()).filter(|offset| text.is_char_boundary(*offset)) {
            assert_eq!(
                LineStarts::new(text).position(text, offset),
                Position::of(text, offset),
                "{offset}"
            );
            assert_eq!(
                LineStarts::new(text).offset(text, Position::of(text, offset)),
                offset
            );
        }
    }

    #[test]
    fn rendering_shows_line_and_caret() {
        let text: Arc<str> = Arc::from("permit(principal, action, resource);\npermit(principl);\n");
        let start = text.find("principl").unwrap();
        let rendered = Diagnostic::error("a.cedar", "expected `principal`")
            .at(&text, start..start + 8)
            .render(false);
        assert!(rendered.contains("a.cedar:2:8"), "{rendered}");
        assert!(rendered.contains("permit(principl);"), "{rendered}");
        assert!(rendered.contains("       ^^^^^^^^"), "{rendered}");
    }

    #[test]
    fn control_characters_are_escaped() {
        let text: Arc<str> = Arc::from("permit(\u{1b}[2J);");
        let rendered = Diagnostic::error("a\u{7}.cedar", "bad \u{1b}[2J")
            .at(&text, 7..8)
            .render(false);
        assert!(
            !rendered.contains('\u{1b}') && !rendered.contains('\u{7}'),
            "{rendered:?}"
        );
    }
}
