//! What names tell, when files are equal, and what the revision is of.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::*;

fn sources(files: &[(&str, &str)]) -> Sources {
    let files = files
        .iter()
        .map(|(path, text)| {
            let kind = FileKind::of(path).expect("a name that matches");
            SourceFile::held((*path).to_owned(), kind, Arc::from(*text))
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
    assert_eq!(one.revision().unwrap(), other.revision().unwrap());
}

#[test]
fn the_revision_is_the_hash_of_lengths_paths_and_bytes() {
    let sources = sources(&[("b.cedar", "22"), ("a.cedar", "1")]);
    let mut text = Vec::new();
    for part in ["a.cedar", "1", "b.cedar", "22"] {
        text.extend((part.len() as u64).to_be_bytes());
        text.extend(part.as_bytes());
    }
    let wanted = Revision::from_digest(&Sha256::digest(text).into());
    assert_eq!(sources.revision().unwrap(), wanted);
}

#[test]
fn the_revision_after_any_changes_is_that_from_scratch() {
    // Knuth's multiplicative generator: what it draws is the same in every run.
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
        let (now, scratch) = (sources(&files), sources(&files));
        let revision = now.revision_after(earlier.as_ref()).unwrap();
        assert_eq!(revision, scratch.revision().unwrap(), "{files:?}");
        earlier = Some(now);
    }
}

#[test]
fn the_revision_after_a_change_asks_for_no_text_before_it() {
    let kind = FileKind::Entities;
    let gone = |path: &str| {
        let digest = ContentDigest::of(b"[]");
        SourceFile::elsewhere(path.into(), kind, digest, 2, Box::new(Gone))
    };
    let held = |path: &str, text: &str| SourceFile::held(path.into(), kind, text.into());
    let of = |files: Vec<SourceFile>| Sources::new(files, vec![], vec![]);

    let earlier = of(vec![held("a", "[]"), held("b", "[]")]);
    earlier.revision().unwrap();
    let now = of(vec![gone("a"), held("b", "[1]"), held("c", "[]")]);
    let scratch = of(vec![held("a", "[]"), held("b", "[1]"), held("c", "[]")]);
    assert_eq!(now.revision_after(Some(&earlier)), scratch.revision());
    let changed = of(vec![held("a", "[2]"), gone("b")]);
    assert_eq!(changed.revision_after(Some(&earlier)), Err(TextChanged));
}

/// A text that comes in pieces, and perhaps ends early.
#[derive(Debug)]
struct Pieces {
    text: String,
    is_cut: bool,
}

impl TextSource for Pieces {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        Ok(self.text.as_str().into())
    }

    fn stream(&self, take: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        let cut = self.text.len() / 2;
        let end = if self.is_cut { cut } else { self.text.len() };
        self.text.as_bytes()[..end].chunks(1000).for_each(take);
        Ok(())
    }
}

#[test]
fn texts_elsewhere_have_the_revision_that_they_have_when_held() {
    let kind = FileKind::Entities;
    let of = |is_elsewhere: bool, cut: Option<u64>| {
        let file = |n: u64| {
            let text = format!("{n}").repeat(3_000);
            let path = format!("{n}.entities.json");
            if is_elsewhere && !n.is_multiple_of(3) {
                let (digest, bytes) = (ContentDigest::of(text.as_bytes()), text.len() as u64);
                let is_cut = cut == Some(n);
                let source = Box::new(Pieces { text, is_cut });
                SourceFile::elsewhere(path, kind, digest, bytes, source)
            } else {
                SourceFile::held(path, kind, text.into())
            }
        };
        Sources::new((0..10).map(file).collect(), vec![], vec![])
    };
    let held = of(false, None).revision().unwrap();
    assert_eq!(of(true, None).revision(), Ok(held));
    for cut in [1, 8] {
        let sources = of(true, Some(cut));
        assert_eq!(sources.revision(), Err(TextChanged));
        let changed = sources.files().iter().filter(|file| file.has_changed());
        assert_eq!(Vec::from_iter(changed.map(|file| &file.path)).len(), 1);
    }
}

#[test]
fn moving_bytes_between_name_and_content_changes_the_revision() {
    let one = sources(&[("a.cedar", "b.cedar")]);
    let other = sources(&[("a.cedarb.cedar", "")]);
    assert_ne!(one.revision(), other.revision());
}

/// A text that is another by the time it is asked for.
#[derive(Debug)]
struct Gone;

impl TextSource for Gone {
    fn read(&self) -> Result<Arc<str>, TextChanged> {
        Err(TextChanged)
    }

    fn stream(&self, _: &mut dyn FnMut(&[u8])) -> Result<(), TextChanged> {
        Err(TextChanged)
    }
}

#[test]
fn a_text_that_changed_elsewhere_is_noticed_and_has_no_revision() {
    let digest = ContentDigest::of(b"[]");
    let file = SourceFile::elsewhere(
        "entities.json".into(),
        FileKind::Entities,
        digest,
        2,
        Box::new(Gone),
    );
    let sources = Sources::new(vec![file.clone()], vec![], vec![]);
    assert!(!file.has_changed(), "nobody has asked yet");
    assert_eq!(sources.revision(), Err(TextChanged));
    assert!(file.has_changed());
}

#[test]
fn files_of_one_name_and_content_are_equal_wherever_the_text_lies() {
    let kind = FileKind::Entities;
    let held = SourceFile::held("entities.json".into(), kind, "[]".into());
    let digest = ContentDigest::of(b"[]");
    let elsewhere = SourceFile::elsewhere("entities.json".into(), kind, digest, 2, Box::new(Gone));
    assert_eq!(held, elsewhere);
    assert_ne!(
        held,
        SourceFile::held("entities.json".into(), kind, "[1]".into())
    );
}

#[test]
fn policy_tests_are_not_in_the_revision() {
    let without = sources(&[("a.cedar", "1")]);
    let with = sources(&[("a.cedar", "1"), ("a.test.json", "[]")]);
    assert_eq!(without.revision(), with.revision());
}
