//! The files of a policy directory as values: what each is called, what kind it is, what it says.
//!
//! Nothing here reads a disk: `policy_store::source` does, and hands the result to
//! [`compile`](crate::pdp::compile()). That a name decides a file's kind is a rule of the policy
//! directory and so stands here, where every reader of a directory can ask it.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::diagnostic::Diagnostic;
use super::id::Revision;

/// What a file of a policy directory holds, told by its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// `*.cedar`: policies and templates, Cedar syntax.
    Policies,
    /// `*.cedar.json`: the same, as a Cedar JSON policy set.
    PoliciesJson,
    /// `*.cedarschema`: schema, Cedar syntax.
    Schema,
    /// `*.cedarschema.json`: schema, JSON syntax.
    SchemaJson,
    /// `*.entities.json` and `entities.json`: stored entities.
    Entities,
    /// `*.links.json`: template links.
    Links,
    /// `*.test.json`: policy tests, which are read but not served and not in the revision.
    Tests,
}

impl FileKind {
    /// The kind of a file called `name` (its last component), or `None` when a policy directory
    /// has no use for it.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        // Longer endings first: `.cedar.json` also ends in `.json`, and no ending here is a
        // suffix of one that stands above it.
        let kinds = [
            (".cedarschema.json", Self::SchemaJson),
            (".cedar.json", Self::PoliciesJson),
            (".cedarschema", Self::Schema),
            (".cedar", Self::Policies),
            (".entities.json", Self::Entities),
            (".links.json", Self::Links),
            (".test.json", Self::Tests),
        ];
        if name == "entities.json" {
            return Some(Self::Entities);
        }
        kinds
            .into_iter()
            .find(|(ending, _)| name.ends_with(ending))
            .map(|(_, kind)| kind)
    }

    /// What the author of `name` probably meant, when the name is no match but nearly one.
    ///
    /// A file that is silently passed over is the worst typo there is: the policy in it seems
    /// to be in force and is not.
    #[must_use]
    pub fn near_miss(name: &str) -> Option<&'static str> {
        if Self::of(name).is_some() {
            return None;
        }
        let lower = name.to_ascii_lowercase();
        let near: [(&str, &[&str]); 6] = [
            (
                "`*.cedar`",
                &[".cedar.txt", ".ceder", ".cedars", ".policy", ".policies"],
            ),
            (
                "`*.cedar.json`",
                &["policies.json", "policy.json", ".cedar.jsonc"],
            ),
            (
                "`*.cedarschema` or `*.cedarschema.json`",
                &["schema.json", ".schema", ".cedarschemas", ".cedar-schema"],
            ),
            (
                "`*.entities.json` or `entities.json`",
                &["entity.json", "entites.json", "entities.jsonc"],
            ),
            (
                "`*.links.json`",
                &["link.json", "links.json", "templatelinks.json"],
            ),
            ("`*.test.json`", &["tests.json", ".spec.json"]),
        ];
        if let Some((meant, _)) = near
            .into_iter()
            .find(|(_, endings)| endings.iter().any(|ending| lower.ends_with(ending)))
        {
            return Some(meant);
        }
        // Right but for its capitals.
        (lower != name && Self::of(&lower).is_some()).then_some("the same name in lower case")
    }

    /// Whether a file of this kind is served, and so counts in the revision.
    #[must_use]
    pub fn is_served(self) -> bool {
        match self {
            Self::Policies
            | Self::PoliciesJson
            | Self::Schema
            | Self::SchemaJson
            | Self::Entities
            | Self::Links => true,
            Self::Tests => false,
        }
    }
}

/// One file of a policy directory, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path relative to the directory, its parts separated by `/`.
    pub path: String,
    /// What the file holds.
    pub kind: FileKind,
    /// The whole content.
    pub text: Arc<str>,
}

/// Everything that was read of a policy directory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Sources {
    /// Takes what was read: `problems` are matching names that could not be read (they refuse the
    /// load), `warnings` are near misses and the like.
    #[must_use]
    pub fn new(
        mut files: Vec<SourceFile>,
        problems: Vec<Diagnostic>,
        warnings: Vec<Diagnostic>,
    ) -> Self {
        files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Self {
            files,
            problems,
            warnings,
        }
    }

    /// The files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The files of one kind, sorted by path.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(move |file| file.kind == kind)
    }

    /// Why the directory cannot be loaded as it is; empty when everything could be read.
    #[must_use]
    pub fn problems(&self) -> &[Diagnostic] {
        &self.problems
    }

    /// What the author should look at, though it does not stop the load.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// The content digest: SHA-256 over the served files' pairs of path and bytes, sorted by
    /// path, each string preceded by its length in bytes as an unsigned 64-bit big-endian number.
    ///
    /// Equal content has an equal revision on any machine, and no two different contents share
    /// the hashed text, because the lengths make it unambiguous.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let mut digest = Sha256::new();
        for file in self.files.iter().filter(|file| file.kind.is_served()) {
            for part in [file.path.as_bytes(), file.text.as_bytes()] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
        Revision::from_digest(&digest.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Sources {
        let files = files
            .iter()
            .map(|(path, text)| SourceFile {
                path: (*path).to_owned(),
                kind: FileKind::of(path).expect("a name that matches"),
                text: Arc::from(*text),
            })
            .collect();
        Sources::new(files, Vec::new(), Vec::new())
    }

    #[test]
    fn a_name_tells_what_a_file_holds() {
        for (name, kind) in [
            ("documents.cedar", Some(FileKind::Policies)),
            ("documents.cedar.json", Some(FileKind::PoliciesJson)),
            ("a.cedarschema", Some(FileKind::Schema)),
            ("a.cedarschema.json", Some(FileKind::SchemaJson)),
            ("entities.json", Some(FileKind::Entities)),
            ("users.entities.json", Some(FileKind::Entities)),
            ("myentities.json", None),
            ("a.links.json", Some(FileKind::Links)),
            ("a.test.json", Some(FileKind::Tests)),
            ("README.md", None),
            ("cedar", None),
        ] {
            assert_eq!(FileKind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn names_that_nearly_match_are_near_misses() {
        for name in [
            "schema.json",
            "users.entity.json",
            "Documents.CEDAR",
            "links.json",
        ] {
            assert!(FileKind::near_miss(name).is_some(), "{name}");
        }
        for name in ["README.md", "notes.txt", "documents.cedar", "package.json"] {
            assert_eq!(FileKind::near_miss(name), None, "{name}");
        }
    }

    #[test]
    fn the_revision_depends_on_content_alone_and_not_on_order() {
        let one = sources(&[("a.cedar", "1"), ("b.cedar", "2")]);
        let other = sources(&[("b.cedar", "2"), ("a.cedar", "1")]);
        assert_eq!(one.revision(), other.revision());
    }

    #[test]
    fn moving_bytes_between_name_and_content_changes_the_revision() {
        let one = sources(&[("a.cedar", "b.cedar")]);
        let other = sources(&[("a.cedarb.cedar", "")]);
        assert_ne!(one.revision(), other.revision());
    }

    #[test]
    fn policy_tests_are_not_in_the_revision() {
        let without = sources(&[("a.cedar", "1")]);
        let with = sources(&[("a.cedar", "1"), ("a.test.json", "[]")]);
        assert_eq!(without.revision(), with.revision());
    }
}
