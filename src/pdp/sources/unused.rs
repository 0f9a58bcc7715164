//! Files of a policy directory that are not loaded, which must never go unnoticed.

use super::FileKind;
use crate::pdp::diagnostic::Diagnostic;

/// Most paths that a warning lists.
const MAX_LISTED: usize = 20;

/// The files that one read of a policy directory found and did not load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnusedFiles {
    /// Paths of files whose names stand for no kind of content, sorted. Names that begin with a dot
    /// are not among them.
    pub ignored: Vec<String>,
    /// The numbers of files that `.cedarignore` leaves out, by kind.
    pub left_out: LeftOutCounts,
}

/// The numbers of files that `.cedarignore` leaves out of a policy directory, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LeftOutCounts {
    /// Files of policies and templates, in both formats.
    pub policies: usize,
    /// Schema files, in both formats.
    pub schemas: usize,
    /// Files of stored entities.
    pub entities: usize,
    /// Files of template links.
    pub links: usize,
    /// Files of policy tests.
    pub tests: usize,
}

impl LeftOutCounts {
    /// Counts one file of `kind`.
    pub fn add(&mut self, kind: FileKind) {
        *match kind {
            FileKind::Policies | FileKind::PoliciesJson => &mut self.policies,
            FileKind::Schema | FileKind::SchemaJson => &mut self.schemas,
            FileKind::Entities => &mut self.entities,
            FileKind::Links => &mut self.links,
            FileKind::Tests => &mut self.tests,
        } += 1;
    }

    /// Returns whether policies and whether schemas are left out, which may count as becoming empty.
    #[must_use]
    pub fn has_policies_and_schemas(&self) -> (bool, bool) {
        (self.policies > 0, self.schemas > 0)
    }

    /// Returns whether there is no such file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl UnusedFiles {
    /// Returns the warning about ignored files, if there are any.
    #[must_use]
    pub fn warning(&self) -> Option<Diagnostic> {
        let count = self.ignored.len();
        let subject = match count {
            0 => return None,
            1 => "1 file is ignored".to_owned(),
            _ => format!("{count} files are ignored"),
        };
        let names = self.ignored.iter().take(MAX_LISTED);
        let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        let more = match count.saturating_sub(MAX_LISTED) {
            0 => String::new(),
            more => format!(" and {more} more (`validate --verbose` lists all)"),
        };
        let names = names.join(", ");
        let message = format!("{subject}, because of names without a meaning here: {names}{more}");
        let help = "rename what is to be loaded, and list the rest in `.cedarignore`";
        Some(Diagnostic::warning("", message).with_help(help))
    }
}
