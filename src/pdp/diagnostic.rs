//! What is wrong with a policy directory, and where: file, line, column, and the text with a caret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Refuses the load.
    Error,
    /// Is told, and loaded.
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

/// A place in a text: line and column from 1, the column counted in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl Position {
    /// The place of byte `offset` in `text`; an offset past the end is the end.
    ///
    /// Costs a walk over the text before the offset.
    #[must_use]
    pub fn of(text: &str, offset: usize) -> Self {
        let mut end = offset.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = text.get(..end).unwrap_or(text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        Self {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }
}

/// Where the lines of a text begin, for who needs many places in it.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    /// Walks over `text` once.
    pub(super) fn of(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(
            std::iter::once(0)
                .chain(breaks.map(|(at, _)| at + 1))
                .collect(),
        )
    }

    /// The place of byte `offset` in `text`, the one that these are the lines of.
    pub(super) fn position(&self, text: &str, offset: usize) -> Position {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = line
            .checked_sub(1)
            .and_then(|line| self.0.get(line))
            .copied()
            .unwrap_or(0);
        let within = Position::of(
            text.get(start..).unwrap_or_default(),
            offset.saturating_sub(start),
        );
        Position {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: within.column,
        }
    }

    /// The byte at `position` in `text`, the one that these are the lines of.
    pub(super) fn offset(&self, text: &str, position: Position) -> usize {
        let line = (position.line as usize).saturating_sub(1);
        let start = self.0.get(line).copied().unwrap_or(text.len());
        let rest = text.get(start..).unwrap_or_default();
        let column = (position.column as usize).saturating_sub(1);
        start + rest.chars().take(column).map(char::len_utf8).sum::<usize>()
    }
}

/// The text that a finding points into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The whole file.
    pub text: Arc<str>,
    /// The bytes that are meant.
    pub span: Range<usize>,
}

/// One finding in a policy directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The path relative to the directory; empty when the finding is about the whole directory.
    pub file: String,
    /// Where in the file, when that is known.
    pub position: Option<Position>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// How to mend it, when that is known.
    pub help: Option<String>,
    /// The text to draw the caret under.
    pub excerpt: Option<Excerpt>,
}

impl Diagnostic {
    /// A finding that refuses the load, about the file as a whole.
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

    /// A finding that is told and loaded, about the file as a whole.
    #[must_use]
    pub fn warning(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(file, message)
        }
    }

    /// The same finding, at these bytes of the file's text.
    #[must_use]
    pub fn at(mut self, text: &Arc<str>, span: Range<usize>) -> Self {
        self.position = Some(Position::of(text, span.start));
        self.excerpt = Some(Excerpt {
            text: Arc::clone(text),
            span,
        });
        self
    }

    /// The same finding with advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The finding as people read it: message, file, line and column, the source line, the caret.
    ///
    /// Several lines without a final newline. `color` adds terminal colours.
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
                let (text, span, first_line) = window(&excerpt.text, &excerpt.span);
                group = group.element(
                    Snippet::source(text)
                        .line_start(first_line)
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

/// The lines around `span`, the span within them, and the number of their first line.
///
/// The renderer walks its whole source for each finding; a window keeps that to the lines shown,
/// however large the file.
fn window(text: &str, span: &Range<usize>) -> (String, Range<usize>, usize) {
    let clamp = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (start, end) = (clamp(span.start), clamp(span.end.max(span.start)));
    let first = text
        .get(..start)
        .and_then(|t| t.rfind('\n'))
        .map_or(0, |at| at + 1);
    // A finding that spans many lines is shown by its first one.
    let last = text
        .get(start..)
        .and_then(|t| t.find('\n'))
        .map_or(text.len(), |at| start + at);
    let shown = text.get(first..last).unwrap_or_default();
    let line = text
        .get(..first)
        .unwrap_or_default()
        .bytes()
        .filter(|b| *b == b'\n')
        .count()
        + 1;
    (
        shown.to_owned(),
        (start - first)..(end.min(last) - first),
        line,
    )
}

/// The text with its control characters made visible, so that a file cannot write on a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let shown = !c.is_control() || c == '\n' || c == '\t';
            let (plain, escaped) = if shown {
                (Some(c), None)
            } else {
                (None, Some(c.escape_default()))
            };
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
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
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            assert_eq!(
                Lines::of(text).position(text, at),
                Position::of(text, at),
                "{at}"
            );
            assert_eq!(Lines::of(text).offset(text, Position::of(text, at)), at);
        }
    }

    #[test]
    fn a_finding_is_drawn_with_its_line_and_a_caret() {
        let text: Arc<str> = Arc::from("permit(principal, action, resource);\npermit(principl);\n");
        let at = text.find("principl").unwrap();
        let drawn = Diagnostic::error("a.cedar", "expected `principal`")
            .at(&text, at..at + 8)
            .render(false);
        assert!(drawn.contains("a.cedar:2:8"), "{drawn}");
        assert!(drawn.contains("permit(principl);"), "{drawn}");
        assert!(drawn.contains("       ^^^^^^^^"), "{drawn}");
    }

    #[test]
    fn control_characters_of_a_file_do_not_reach_a_terminal() {
        let text: Arc<str> = Arc::from("permit(\u{1b}[2J);");
        let drawn = Diagnostic::error("a\u{7}.cedar", "bad \u{1b}[2J")
            .at(&text, 7..8)
            .render(false);
        assert!(
            !drawn.contains('\u{1b}') && !drawn.contains('\u{7}'),
            "{drawn:?}"
        );
    }
}
