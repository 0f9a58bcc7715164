//! Tests file kinds, the equality of files, and the revision.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::*;

fn sources(files: &[(&str, &str)]) -> Sources {
    let files = files
        .iter()
        .map(|(path, text)| {
            let kind = FileKind::from_name(path).expect("a valid file name");
            SourceFile::in_memory((*path).to_owned(), kind, Arc::from(*text))
        })
        .collect();
    Sources::new(files, Vec::new(), Vec::new())
}

#[test]
fn file_names_decide_kinds() {
    for (name, kind) in [
        ("documents.cedar", Some(FileKind::Policies)),
        ("documents.cedar.json", Some(FileKind::PoliciesJson)),
        ("a.cedarschema", Some(FileKind::Schema)),
        ("a.cedarschema.json", Some(FileKind::SchemaJson)),
        ("entities.json", Some(FileKind::Entities)),
        ("users.entities.json", Some(FileKind::Entities)),
        ("cedarentities.json", Some(FileKind::Entities)),
        ("users.cedarentities.json", Some(FileKind::Entities)),
        ("cedarschema", Some(FileKind::Schema)),
        ("cedarschema.json", Some(FileKind::SchemaJson)),
        ("linked", Some(FileKind::Links)),
        ("a.cedartemplatelinks.json", Some(FileKind::Links)),
        ("unlinked", None),
        ("myentities.json", None),
        ("a.links.json", Some(FileKind::Links)),
        ("a.test.json", Some(FileKind::Tests)),
        ("README.md", None),
        ("cedar", None),
    ] {
        assert_eq!(FileKind::from_name(name), kind, "{name}");
    }
}

#[test]
fn similar_names_are_near_misses() {
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
fn revision_is_independent_of_order() {
    let one = sources(&[("a.cedar", "1"), ("b.cedar", "2")]);
    let other = sources(&[("b.cedar", "2"), ("a.cedar", "1")]);
    assert_eq!(one.revision().unwrap(), other.revision().unwrap());
}

#[test]
fn revision_hashes_lengths_paths_and_bytes() {
    let sources = sources(&[("b.cedar", "22"), ("a.cedar", "1")]);
    let mut text = Vec::new();
    for part in ["a.cedar", "1", "b.cedar", "22"] {
        text.extend((part.len() as u64).to_be_bytes());
        text.extend(part.as_bytes());
    }
    let expected = Revision::from_digest(&Sha256::digest(text).into());
    assert_eq!(sources.revision().unwrap(), expected);
}

#[test]
fn incremental_revision_equals_full_revision() {
    // Knuth's multiplicative generator draws the same numbers in every run.
    let mut seed: u64 = 1;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut earlier: Option<Sources> = None;
    for _ in 0..2_000 {
        for _ in 0..draw(4) {
            let ending = ["cedar", "entities.json", "test.json"][draw(3) as usize];
            let path = format!("{}.{ending}", draw(12));
            if draw(3) == 0 {
                files.remove(&path);
            } else {
                files.insert(path, "x".repeat(draw(200) as usize));
            }
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let (incremental, full) = (sources(&files), sources(&files));
        let revision = incremental.revision_after(earlier.as_ref()).unwrap();
        assert_eq!(revision, full.revision().unwrap(), "{files:?}");
        earlier = Some(incremental);
    }
}

#[test]
fn incremental_revision_skips_unchanged_leading_files() {
    let kind = FileKind::Entities;
    let unreadable = |path: &str| {
        let digest = ContentDigest::of(b"[]");
        SourceFile::external(path.into(), kind, digest, 2, Box::new(ChangedText))
    };
    let in_memory = |path: &str, text: &str| SourceFile::in_memory(path.into(), kind, text.into());
    let sources = |files: Vec<SourceFile>| Sources::new(files, vec![], vec![]);

    let earlier = sources(vec![in_memory("a", "[]"), in_memory("b", "[]")]);
    earlier.revision().unwrap();
    let current = sources(vec![
        unreadable("a"),
        in_memory("b", "[1]"),
        in_memory("c", "[]"),
    ]);
    let full = sources(vec![
        in_memory("a", "[]"),
        in_memory("b", "[1]"),
        in_memory("c", "[]"),
    ]);
    assert_eq!(current.revision_after(Some(&earlier)), full.revision());
    let changed = sources(vec![in_memory("a", "[2]"), unreadable("b")]);
    assert_eq!(changed.revision_after(Some(&earlier)), Err(TextChanged));
}

/// An external text that is streamed in chunks, and may end early.
#[derive(Debug)]
struct ChunkedText {
    text: String,
    is_truncated: bool,
}

impl TextSource for ChunkedText {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        Ok(self.text.as_str().into())
    }

    fn stream(&self, consume: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        let half = self.text.len() / 2;
        let end = if self.is_truncated {
            half
        } else {
            self.text.len()
        };
        self.text.as_bytes()[..end].chunks(1000).for_each(consume);
        Ok(())
    }
}

#[test]
fn external_texts_have_the_same_revision() {
    let kind = FileKind::Entities;
    let sources = |is_external: bool, truncated: Option<u64>| {
        let file = |n: u64| {
            let text = format!("{n}").repeat(3_000);
            let path = format!("{n}.entities.json");
            if is_external && !n.is_multiple_of(3) {
                let (digest, bytes) = (ContentDigest::of(text.as_bytes()), text.len() as u64);
                let is_truncated = truncated == Some(n);
                let source = Box::new(ChunkedText { text, is_truncated });
                SourceFile::external(path, kind, digest, bytes, source)
            } else {
                SourceFile::in_memory(path, kind, text.into())
            }
        };
        Sources::new((0..10).map(file).collect(), vec![], vec![])
    };
    let in_memory = sources(false, None).revision().unwrap();
    assert_eq!(sources(true, None).revision(), Ok(in_memory));
    for truncated in [1, 8] {
        let sources = sources(true, Some(truncated));
        assert_eq!(sources.revision(), Err(TextChanged));
        let changed = sources.files().iter().filter(|file| file.has_changed());
        assert_eq!(Vec::from_iter(changed.map(|file| &file.path)).len(), 1);
    }
}

#[test]
fn revision_separates_names_from_content() {
    let one = sources(&[("a.cedar", "b.cedar")]);
    let other = sources(&[("a.cedarb.cedar", "")]);
    assert_ne!(one.revision(), other.revision());
}

/// An external text that has changed before the first read.
#[derive(Debug)]
struct ChangedText;

impl TextSource for ChangedText {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        Err(TextChanged)
    }

    fn stream(&self, _: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        Err(TextChanged)
    }
}

#[test]
fn changed_external_text_has_no_revision() {
    let digest = ContentDigest::of(b"[]");
    let file = SourceFile::external(
        "entities.json".into(),
        FileKind::Entities,
        digest,
        2,
        Box::new(ChangedText),
    );
    let sources = Sources::new(vec![file.clone()], vec![], vec![]);
    assert!(!file.has_changed(), "nothing was read yet");
    assert_eq!(sources.revision(), Err(TextChanged));
    assert!(file.has_changed());
}

#[test]
fn external_files_equal_files_in_memory() {
    let kind = FileKind::Entities;
    let in_memory = SourceFile::in_memory("entities.json".into(), kind, "[]".into());
    let digest = ContentDigest::of(b"[]");
    let external = SourceFile::external(
        "entities.json".into(),
        kind,
        digest,
        2,
        Box::new(ChangedText),
    );
    assert_eq!(in_memory, external);
    assert_ne!(
        in_memory,
        SourceFile::in_memory("entities.json".into(), kind, "[1]".into())
    );
}

#[test]
fn policy_tests_do_not_affect_revision() {
    let without = sources(&[("a.cedar", "1")]);
    let with = sources(&[("a.cedar", "1"), ("a.test.json", "[]")]);
    assert_eq!(without.revision(), with.revision());
}
