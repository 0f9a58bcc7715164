//! `.cedarignore`: patterns of the files and directories that a policy directory leaves out.

use std::path::Path;
use std::sync::Arc;

use ignore::Error;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::pdp::diagnostic::Diagnostic;

/// The name of the file, which stands at the root of the policy directory alone.
pub(super) const NAME: &str = ".cedarignore";

/// The patterns of one `.cedarignore`, in the syntax of [gitignore](https://git-scm.com/docs/gitignore).
pub(super) struct IgnorePatterns(Gitignore);

impl IgnorePatterns {
    /// Returns patterns that leave out nothing.
    pub(super) fn none() -> Self {
        Self(Gitignore::empty())
    }

    /// Parses the text of a `.cedarignore`.
    ///
    /// # Errors
    ///
    /// A diagnostic for each line that is no valid pattern.
    pub(super) fn parse(text: &Arc<str>) -> Result<Self, Vec<Diagnostic>> {
        // Names below the directory have no `./` in front, so nothing is stripped from them.
        let mut builder = GitignoreBuilder::new(".");
        // Git accepts a `[` without `]`, and matches nothing by it.
        builder.allow_unclosed_class(false);
        let mut problems = Vec::new();
        let mut start = 0;
        while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
            let line = rest.lines().next().unwrap_or_default();
            if let Err(error) = builder.add_line(None, line) {
                let message = format!("`{line}` is not a valid pattern: {}", reason(error));
                let diagnostic = Diagnostic::error(NAME, message);
                problems.push(diagnostic.at(text, start..start + line.len()));
            }
            start += rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        }
        match builder.build() {
            Ok(patterns) if problems.is_empty() => Ok(Self(patterns)),
            Ok(_) => Err(problems),
            Err(error) => {
                problems.push(Diagnostic::error(NAME, reason(error)));
                Err(problems)
            }
        }
    }

    /// Returns whether the patterns leave out `name`, a path relative to the policy directory.
    ///
    /// Does not look at the directories above it: what is in a directory that is left out is left
    /// out too.
    pub(super) fn leave_out(&self, name: &str, is_directory: bool) -> bool {
        self.0.matched(Path::new(name), is_directory).is_ignore()
    }
}

fn reason(error: Error) -> String {
    // The pattern itself is quoted already.
    if let Error::Glob { err, .. } = error {
        return err;
    }
    error.to_string()
}
