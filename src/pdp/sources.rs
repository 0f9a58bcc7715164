//! The files of a policy directory as values: what each is called, what kind it is, what it says.
//!
//! Nothing here reads a disk: `policy_store::directory` does, and hands the result to
//! [`compile`](crate::pdp::compile()). That a name decides a file's kind is a rule of the policy
//! directory and so stands here, where every reader of a directory can ask it.
//!
//! Stored entities can be more text than there is memory for, so a file may leave its text where
//! it lies and fetch it when it is asked for, by a [`TextSource`] that somebody else provides.

mod trail;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::diagnostic::Diagnostic;
use super::id::Revision;
use trail::Trail;

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

/// SHA-256 of the bytes of one file: equal digests, equal files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// Makes a [`ContentDigest`] of bytes that come piece by piece.
#[derive(Clone, Debug, Default)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces together.
    #[must_use]
    pub fn finish(self) -> ContentDigest {
        ContentDigest(self.0.finalize().into())
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Revision::from_digest(&self.0))
    }
}

/// A text that was left where it lies is no longer what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changed while it was being loaded")]
pub struct TextChanged;

/// Where a text lies that nobody holds.
pub trait TextSource: fmt::Debug + Send + Sync {
    /// Fetches the whole text. May block.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when it is not, or cannot be shown to be, the text that was seen first.
    fn read(&self) -> Result<Arc<str>, TextChanged>;

    /// Gives the bytes of the text to `take`, piece by piece, without ever holding all. May block.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); what was given until then is worth nothing.
    fn stream(&self, take: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged>;
}

/// One file of a policy directory, as it was read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The path relative to the directory, its parts separated by `/`.
    pub path: String,
    /// What the file holds.
    pub kind: FileKind,
    /// The digest of its bytes.
    pub digest: ContentDigest,
    text: Text,
}

#[derive(Clone, Debug)]
enum Text {
    Held(Arc<str>),
    Elsewhere(Arc<Elsewhere>),
}

#[derive(Debug)]
struct Elsewhere {
    source: Box<dyn TextSource>,
    bytes: u64,
    /// It was asked for, and was no longer what it had been.
    has_changed: AtomicBool,
}

impl SourceFile {
    /// A file whose text is kept in memory.
    #[must_use]
    pub fn held(path: String, kind: FileKind, text: Arc<str>) -> Self {
        Self {
            path,
            kind,
            digest: ContentDigest::of(text.as_bytes()),
            text: Text::Held(text),
        }
    }

    /// A file whose text is left where it lies; `digest` and `bytes` are those of the text that
    /// was seen there.
    #[must_use]
    pub fn elsewhere(
        path: String,
        kind: FileKind,
        digest: ContentDigest,
        bytes: u64,
        source: Box<dyn TextSource>,
    ) -> Self {
        let text = Text::Elsewhere(Arc::new(Elsewhere {
            source,
            bytes,
            has_changed: AtomicBool::new(false),
        }));
        Self {
            path,
            kind,
            digest,
            text,
        }
    }

    /// How many bytes the text has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.text {
            Text::Held(text) => text.len() as u64,
            Text::Elsewhere(elsewhere) => elsewhere.bytes,
        }
    }

    /// The whole text. Free where it is held; else it is fetched, at each call anew.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when the text is elsewhere and no longer what it was.
    pub fn text(&self) -> Result<Arc<str>, TextChanged> {
        match &self.text {
            Text::Held(text) => Ok(Arc::clone(text)),
            Text::Elsewhere(elsewhere) => elsewhere.note(elsewhere.source.read()),
        }
    }

    /// The whole text where it is held, as that of every kind but [`FileKind::Entities`] is.
    #[must_use]
    pub fn held_text(&self) -> Option<&Arc<str>> {
        match &self.text {
            Text::Held(text) => Some(text),
            Text::Elsewhere(_) => None,
        }
    }

    /// Gives the bytes of the text to `take`, piece by piece.
    fn stream(&self, take: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        match &self.text {
            Text::Held(text) => {
                take(text.as_bytes());
                Ok(())
            }
            Text::Elsewhere(elsewhere) => {
                let mut given = 0;
                let streamed = elsewhere.source.stream(&mut |piece| {
                    given += piece.len() as u64;
                    take(piece);
                });
                elsewhere.note(match streamed {
                    Ok(()) if given == elsewhere.bytes => Ok(()),
                    Ok(()) | Err(TextChanged) => Err(TextChanged),
                })
            }
        }
    }

    /// Whether the text was asked for and was no longer what it had been.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        match &self.text {
            Text::Held(_) => false,
            Text::Elsewhere(elsewhere) => elsewhere.has_changed.load(Ordering::Relaxed),
        }
    }
}

impl Elsewhere {
    fn note<T>(&self, fetched: Result<T, TextChanged>) -> Result<T, TextChanged> {
        if fetched.is_err() {
            self.has_changed.store(true, Ordering::Relaxed);
        }
        fetched
    }
}

/// Files are equal when they are called alike, and hold the same: where that lies is no matter.
impl PartialEq for SourceFile {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.kind, self.digest) == (&other.path, other.kind, other.digest)
    }
}

impl Eq for SourceFile {}

/// Everything that was read of a policy directory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<SourceFile>,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Of the served files, once somebody has asked.
    trail: OnceLock<Result<Arc<Trail>, TextChanged>>,
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
            trail: OnceLock::new(),
        }
    }

    /// The files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// How many bytes are served of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.served().map(SourceFile::bytes).sum()
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
    ///
    /// Computed once: who asks meanwhile waits. Costs a hash over all files.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when a text is elsewhere and no longer what it was.
    pub fn revision(&self) -> Result<Revision, TextChanged> {
        self.revision_after(None)
    }

    /// The [`revision`](Self::revision), computed from that of `earlier` sources where these are
    /// known: costs a hash over the first file that differs and what comes after it.
    ///
    /// # Errors
    ///
    /// As [`revision`](Self::revision).
    pub fn revision_after(&self, earlier: Option<&Self>) -> Result<Revision, TextChanged> {
        let trail = self.trail.get_or_init(|| {
            let known = earlier.and_then(|earlier| match earlier.trail.get()? {
                Ok(trail) => Some((earlier, trail)),
                Err(TextChanged) => None,
            });
            let Some((earlier, trail)) = known else {
                return Trail::of(self.served(), None).map(Arc::new);
            };
            if self.served().eq(earlier.served()) {
                return Ok(Arc::clone(trail));
            }
            let both = self.served().zip(earlier.served());
            let same = both.take_while(|(one, other)| one == other).count();
            Trail::of(self.served(), Some((trail, same))).map(Arc::new)
        });
        match trail {
            Ok(trail) => Ok(trail.revision().clone()),
            Err(changed) => Err(*changed),
        }
    }

    /// The files that are served, sorted by path.
    pub fn served(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.kind.is_served())
    }
}

#[cfg(test)]
mod tests;
