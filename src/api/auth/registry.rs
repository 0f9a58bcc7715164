//! The list of callers as it is written, and found in.
//!
//! ```toml
//! [[caller]]
//! name = "orders"
//! spiffe = ["spiffe://shop/orders"]
//! rights = ["authorize"]
//! ```

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq};

use super::caller::{Caller, IdentityKind, Right};
use super::distinguished_name;
use super::peer::Peer;
use crate::watch::files::{FileReader, ReadError, ReadProblem};

/// The most callers in a list. Their names are labels of metrics, and each key is compared.
const MOST_CALLERS: usize = 1_000;

/// The shortest key that is taken.
const SHORTEST_KEY: usize = 16;

/// Why a list of callers is none.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is no TOML, or holds what does not belong there.
    #[error("`{}`, line {line}: {reason}", file.display())]
    Syntax {
        /// The list.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// It would let nobody in.
    #[error("`{}` lists no callers", file.display())]
    Empty {
        /// The list.
        file: PathBuf,
    },
    /// Too many to compare and to count by name.
    #[error("`{}` lists more than {MOST_CALLERS} callers", file.display())]
    TooMany {
        /// The list.
        file: PathBuf,
    },
    /// A name that is no label.
    #[error(
        "`{}`: `{name}` is no name of a caller; allowed: 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and `_`", file.display()
    )]
    Name {
        /// The list.
        file: PathBuf,
        /// What was written.
        name: String,
    },
    /// Two callers of one name.
    #[error("`{}`: `{name}` is listed twice", file.display())]
    Twice {
        /// The list.
        file: PathBuf,
        /// The name.
        name: String,
    },
    /// Nothing that it could be known by.
    #[error("`{}`: `{name}` has none of `spiffe`, `dns`, `subject`, `uid` and `bearer`", file.display())]
    Unrecognizable {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
    },
    /// A mark that says nothing, or is none of its kind.
    #[error("`{}`: `{name}` has a `{kind}` that nothing can be known by", file.display())]
    Mark {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
        /// The kind of mark.
        kind: &'static str,
    },
    /// A file of keys could not be read. It is named by where it is listed: whoever wrote a key
    /// there instead must not find it in a log.
    #[error("`{}`: cannot read file {number} of the `bearer` of `{name}`: {problem}", file.display())]
    KeyFile {
        /// The list.
        file: PathBuf,
        /// The caller.
        name: String,
        /// Counted from 1.
        number: usize,
        /// Why not.
        problem: ReadProblem,
    },
    /// What two callers are known by.
    #[error("`{}`: `{one}` and `{other}` are known by the same {mark}", file.display())]
    Ambiguous {
        /// The list.
        file: PathBuf,
        /// A caller.
        one: String,
        /// Another.
        other: String,
        /// What they share; of a key only that it is one.
        mark: String,
    },
    /// A key that is none.
    #[error(
        "`{}`, line {line}: no key of a caller: it needs {SHORTEST_KEY} or more visible ASCII characters", file.display()
    )]
    Key {
        /// The file of the key.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A file of keys without any.
    #[error("`{}` holds no key", file.display())]
    NoKey {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    caller: Vec<RawCaller>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCaller {
    name: String,
    #[serde(default)]
    spiffe: Vec<String>,
    #[serde(default)]
    dns: Vec<String>,
    #[serde(default)]
    subject: Vec<String>,
    #[serde(default)]
    uid: Vec<u32>,
    #[serde(default)]
    bearer: Vec<PathBuf>,
    rights: Vec<Right>,
    #[serde(default = "every_kind")]
    identities: Vec<IdentityKind>,
}

fn every_kind() -> Vec<IdentityKind> {
    vec![
        IdentityKind::Principal,
        IdentityKind::Token,
        IdentityKind::Anonymous,
    ]
}

/// SHA-256 of a key. Keys themselves are not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl ConstantTimeEq for KeyDigest {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest")
    }
}

/// Callers, by what they are known by.
#[derive(Debug, Default)]
pub(crate) struct List {
    callers: Vec<Arc<Caller>>,
    spiffe: HashMap<String, usize>,
    dns: HashMap<String, usize>,
    subject: HashMap<String, usize>,
    uid: HashMap<u32, usize>,
    keys: HashMap<KeyDigest, usize>,
    /// The same, to be compared one by one.
    digests: Vec<(KeyDigest, u32)>,
}

impl List {
    pub(crate) fn len(&self) -> usize {
        self.callers.len()
    }

    pub(crate) fn has_keys(&self) -> bool {
        !self.digests.is_empty()
    }

    pub(crate) fn has_certificates(&self) -> bool {
        !(self.spiffe.is_empty() && self.dns.is_empty() && self.subject.is_empty())
    }

    /// Whose key it is.
    ///
    /// In a time that says nothing of the keys there are: all are compared, to the end.
    pub(crate) fn by_key(&self, key: &KeyDigest) -> Option<Arc<Caller>> {
        let mut found = u32::MAX;
        for (digest, owner) in &self.digests {
            found = u32::conditional_select(&found, owner, digest.ct_eq(key));
        }
        self.callers.get(usize::try_from(found).ok()?).cloned()
    }

    /// Who is at the other end of a connection: its SPIFFE id is asked for first, then its DNS
    /// names, its subject, and the user that it runs as.
    pub(crate) fn by_peer(&self, peer: &Peer) -> Option<Arc<Caller>> {
        let by_certificate = peer.certificate.as_ref().and_then(|names| {
            names
                .spiffe
                .as_ref()
                .and_then(|id| self.spiffe.get(id))
                .or_else(|| names.dns.iter().find_map(|name| self.dns.get(name)))
                .or_else(|| self.subject.get(&names.subject))
        });
        let number = by_certificate.or_else(|| self.uid.get(&peer.uid?))?;
        self.callers.get(*number).cloned()
    }
}

/// Reads the list in `file`, and the files of keys that it names.
pub(crate) fn read(file: &Path, reading: &mut FileReader) -> Result<List, CallersError> {
    let text = reading.read(file)?;
    let text = String::from_utf8_lossy(&text);
    let RawList { caller: callers } =
        toml::from_str(&text).map_err(|error| CallersError::Syntax {
            file: file.to_owned(),
            line: 1 + error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(0, |before| before.matches('\n').count()),
            reason: without_values(error.message()),
        })?;
    if callers.is_empty() {
        let file = file.to_owned();
        return Err(CallersError::Empty { file });
    }
    if callers.len() > MOST_CALLERS {
        let file = file.to_owned();
        return Err(CallersError::TooMany { file });
    }
    // Every file of keys is read before any is found wrong: each leaves its trace.
    let keys: Vec<_> = callers
        .iter()
        .map(|caller| keys(file, caller, reading))
        .collect();
    let mut list = List::default();
    for (caller, keys) in callers.into_iter().zip(keys) {
        add(&mut list, file, caller, keys?)?;
    }
    list.digests = list
        .keys
        .iter()
        .filter_map(|(digest, owner)| Some((*digest, u32::try_from(*owner).ok()?)))
        .collect();
    Ok(list)
}

fn add(
    list: &mut List,
    file: &Path,
    caller: RawCaller,
    keys: Vec<KeyDigest>,
) -> Result<(), CallersError> {
    let file = || file.to_owned();
    let RawCaller {
        name,
        spiffe,
        dns,
        subject,
        uid,
        bearer: _,
        rights,
        identities,
    } = caller;
    let is_label = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if !is_label {
        return Err(CallersError::Name { file: file(), name });
    }
    if list.callers.iter().any(|other| *other.name == name) {
        return Err(CallersError::Twice { file: file(), name });
    }
    let marks = [
        spiffe.len(),
        dns.len(),
        subject.len(),
        uid.len(),
        keys.len(),
    ];
    if marks.iter().sum::<usize>() == 0 {
        return Err(CallersError::Unrecognizable { file: file(), name });
    }
    let is_id = |id: &String| id.len() > "spiffe://".len() && id.starts_with("spiffe://");
    let is_empty = |text: &String| text.trim().is_empty();
    let senseless = [
        ("spiffe", !spiffe.iter().all(is_id)),
        ("dns", dns.iter().any(is_empty)),
        // Certificates of workloads have no subject: an empty one would be all of them.
        (
            "subject",
            !subject
                .iter()
                .all(|text| !is_empty(text) && distinguished_name::may_be(text)),
        ),
    ];
    if let Some((kind, _)) = senseless.iter().find(|(_, is_so)| *is_so) {
        return Err(CallersError::Mark {
            file: file(),
            name,
            kind,
        });
    }
    let number = list.callers.len();
    let List {
        callers,
        spiffe: by_spiffe,
        dns: by_dns,
        subject: by_subject,
        uid: by_uid,
        keys: by_key,
        digests: _,
    } = list;
    let ambiguous = |(other, mark): (usize, String)| CallersError::Ambiguous {
        file: file(),
        one: callers
            .get(other)
            .map_or_else(|| name.clone(), |other| other.name.to_string()),
        other: name.clone(),
        mark,
    };
    let dns = dns.into_iter().map(|name| name.to_ascii_lowercase());
    mark(by_spiffe, spiffe, number, |id| format!("SPIFFE id `{id}`")).map_err(ambiguous)?;
    mark(by_dns, dns, number, |dns| format!("DNS name `{dns}`")).map_err(ambiguous)?;
    mark(by_subject, subject, number, |it| format!("subject `{it}`")).map_err(ambiguous)?;
    mark(by_uid, uid, number, |uid| format!("user id {uid}")).map_err(ambiguous)?;
    mark(by_key, keys, number, |_| "key".to_owned()).map_err(ambiguous)?;
    callers.push(Arc::new(Caller {
        name: name.into(),
        rights: rights.into_iter().collect(),
        identities: identities.into_iter().collect(),
    }));
    Ok(())
}

/// What the parser says, without what was written: it might be a key.
fn without_values(message: &str) -> String {
    let is_about_a_value = ["invalid type", "invalid value", "unknown variant"]
        .iter()
        .any(|beginning| message.starts_with(beginning));
    match is_about_a_value {
        true => match message.rsplit_once(", expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => "a value of the wrong kind".to_owned(),
        },
        false => message.to_owned(),
    }
}

/// Notes what the caller of this number is known by; an error is who was known by it before, and
/// by what.
fn mark<K: Hash + Eq>(
    known: &mut HashMap<K, usize>,
    marks: impl IntoIterator<Item = K>,
    number: usize,
    shown: impl Fn(&K) -> String,
) -> Result<(), (usize, String)> {
    for mark in marks {
        let text = shown(&mark);
        match known.insert(mark, number) {
            Some(other) if other != number => return Err((other, text)),
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// The keys in these files, one a line.
fn keys(
    list: &Path,
    caller: &RawCaller,
    reading: &mut FileReader,
) -> Result<Vec<KeyDigest>, CallersError> {
    let texts: Vec<_> = caller
        .bearer
        .iter()
        .map(|named| {
            // A list and its keys are mounted together.
            let file = list.parent().unwrap_or(Path::new("")).join(named);
            let text = reading.read(&file);
            (file, text)
        })
        .collect();
    let mut keys = Vec::new();
    for (at, (file, text)) in texts.into_iter().enumerate() {
        let text = text.map_err(|ReadError { problem, .. }| CallersError::KeyFile {
            file: list.to_owned(),
            name: caller.name.clone(),
            number: at + 1,
            problem,
        })?;
        let before = keys.len();
        for (line, key) in text.split(|byte| *byte == b'\n').enumerate() {
            let key = key.trim_ascii();
            if key.is_empty() {
                continue;
            }
            if key.len() < SHORTEST_KEY || !key.iter().all(u8::is_ascii_graphic) {
                let line = line + 1;
                return Err(CallersError::Key { file, line });
            }
            keys.push(KeyDigest::of(key));
        }
        if keys.len() == before {
            return Err(CallersError::NoKey { file });
        }
    }
    Ok(keys)
}
