//! One file of a policy directory: its kind, the digest of its content, and its text.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::pdp::id::Revision;

/// The kind of content of a policy directory file, by its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// `*.cedar`: policies and templates in Cedar syntax.
    Policies,
    /// `*.cedar.json`: policies, templates and links as a Cedar JSON policy set.
    PoliciesJson,
    /// `*.cedarschema` and `cedarschema`: schema in Cedar syntax.
    Schema,
    /// `*.cedarschema.json` and `cedarschema.json`: schema in JSON syntax.
    SchemaJson,
    /// `*.entities.json`, `*.cedarentities.json` and both without the first part: stored entities.
    Entities,
    /// `*.links.json`, `*.cedartemplatelinks.json` and `linked`: template links.
    Links,
    /// `*.test.json`: policy tests, which are read but not served and not in the revision.
    Tests,
}

impl FileKind {
    /// Returns the kind of a file by `name`, the last component of its path.
    ///
    /// Returns `None` for files that a policy directory ignores. The names of Cedar's own command
    /// line, editor extension and examples are accepted beside ours.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cedarschema" => return Some(Self::Schema),
            "cedarschema.json" => return Some(Self::SchemaJson),
            "entities.json" | "cedarentities.json" => return Some(Self::Entities),
            "linked" => return Some(Self::Links),
            _ => {}
        }
        // INVARIANT: no name ends in two of these.
        let kinds = [
            (".cedarschema.json", Self::SchemaJson),
            (".cedar.json", Self::PoliciesJson),
            (".cedarschema", Self::Schema),
            (".cedar", Self::Policies),
            (".entities.json", Self::Entities),
            (".cedarentities.json", Self::Entities),
            (".links.json", Self::Links),
            (".cedartemplatelinks.json", Self::Links),
            (".test.json", Self::Tests),
        ];
        kinds
            .into_iter()
            .find(|(ending, _)| name.ends_with(ending))
            .map(|(_, kind)| kind)
    }

    /// Returns the pattern that the author of `name` probably meant, if the name nearly matches.
    ///
    /// A misspelled file name must not be ignored silently: its policies would seem to be in force.
    #[must_use]
    pub fn near_miss(name: &str) -> Option<&'static str> {
        if Self::from_name(name).is_some() {
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
        // Only the case differs.
        (lower != name && Self::from_name(&lower).is_some())
            .then_some("the same name in lower case")
    }

    /// Returns whether files of this kind affect decisions, and so the revision.
    #[must_use]
    pub fn is_served(self) -> bool {
        self != Self::Tests
    }
}

/// The SHA-256 of a file's bytes; files with equal digests are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// An incremental hash that produces a [`ContentDigest`].
#[derive(Clone, Debug, Default)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes.
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

/// The error for an external text that changed since it was first read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changed during the load")]
pub struct TextChanged;

/// An external text, such as a file on disk, that is not kept in memory.
pub trait TextSource: fmt::Debug + Send + Sync {
    /// Reads the whole text. May block.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] unless the text is certainly the one that was read first.
    fn read(&self) -> Result<Arc<str>, TextChanged>;

    /// Passes the bytes of the text to `consume` in chunks, never holding all of them. May block.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); the chunks passed until then must be discarded.
    fn stream(&self, consume: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged>;
}

/// One file of a policy directory, as it was read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The path relative to the directory, its parts separated by `/`.
    pub path: String,
    /// The kind of its content.
    pub kind: FileKind,
    /// The digest of its bytes.
    pub digest: ContentDigest,
    text: Text,
}

#[derive(Clone, Debug)]
enum Text {
    InMemory(Arc<str>),
    External(Arc<ExternalText>),
}

#[derive(Debug)]
struct ExternalText {
    source: Box<dyn TextSource>,
    bytes: u64,
    /// Set once a read failed because the text had changed.
    has_changed: AtomicBool,
}

impl SourceFile {
    /// Creates a file with its text in memory.
    #[must_use]
    pub fn in_memory(path: String, kind: FileKind, text: Arc<str>) -> Self {
        Self {
            path,
            kind,
            digest: ContentDigest::of(text.as_bytes()),
            text: Text::InMemory(text),
        }
    }

    /// Creates a file whose text is read from `source` when needed.
    ///
    /// `digest` and `bytes` are those of the text that was read first.
    #[must_use]
    pub fn external(
        path: String,
        kind: FileKind,
        digest: ContentDigest,
        bytes: u64,
        source: Box<dyn TextSource>,
    ) -> Self {
        let text = Text::External(Arc::new(ExternalText {
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

    /// Returns the length of the policy file's text in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.text {
            Text::InMemory(text) => text.len() as u64,
            Text::External(text) => text.bytes,
        }
    }

    /// Returns the whole text. An external text is read again at each call.
    ///
    /// # Errors
    ///
    /// [`TextChanged`] when the text is external and has changed.
    pub fn text(&self) -> Result<Arc<str>, TextChanged> {
        match &self.text {
            Text::InMemory(text) => Ok(Arc::clone(text)),
            Text::External(text) => text.record_change(text.source.read()),
        }
    }

    /// Returns the whole text if it is in memory; only [`FileKind::Entities`] may be external.
    #[must_use]
    pub fn text_in_memory(&self) -> Option<&Arc<str>> {
        match &self.text {
            Text::InMemory(text) => Some(text),
            Text::External(_) => None,
        }
    }

    /// Passes the bytes of the text to `consume` in chunks.
    pub(in crate::pdp) fn stream(&self, consume: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        match &self.text {
            Text::InMemory(text) => {
                consume(text.as_bytes());
                Ok(())
            }
            Text::External(text) => {
                let mut streamed_bytes = 0;
                let streamed = text.source.stream(&mut |chunk| {
                    streamed_bytes += chunk.len() as u64;
                    consume(chunk);
                });
                text.record_change(match streamed {
                    Ok(()) if streamed_bytes == text.bytes => Ok(()),
                    Ok(()) | Err(TextChanged) => Err(TextChanged),
                })
            }
        }
    }

    /// Returns whether a read has found the text changed.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        match &self.text {
            Text::InMemory(_) => false,
            Text::External(text) => text.has_changed.load(Ordering::Relaxed),
        }
    }
}

impl ExternalText {
    fn record_change<T>(&self, result: Result<T, TextChanged>) -> Result<T, TextChanged> {
        if result.is_err() {
            self.has_changed.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// Files are equal when path, kind and content are equal, in memory or external.
impl PartialEq for SourceFile {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.kind, self.digest) == (&other.path, other.kind, other.digest)
    }
}

impl Eq for SourceFile {}
