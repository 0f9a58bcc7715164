//! Reads a list of callers and the key files that it names.
//!
//! ```toml
//! [[caller]]
//! name = "orders"
//! spiffe = ["spiffe://shop/orders"]
//! rights = ["authorize"]
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{KeyDigest, MAX_CALLERS, MIN_KEY_BYTES, Registry};
use crate::api::auth::caller::{IdentityKind, Right};
use crate::api::auth::distinguished_name;
use crate::watch::files::{FileReader, ReadError, ReadProblem};

/// The reason why a list of callers is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The list is not valid TOML, or has an unknown field or a wrong type.
    #[error("`{}`, line {line}: {reason}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        reason: String,
    },
    /// The list is empty, so that every caller would be rejected.
    #[error("`{}` lists no callers", file.display())]
    Empty { file: PathBuf },
    /// The list has too many callers to compare keys and to use names as labels.
    #[error("`{}` lists more than {MAX_CALLERS} callers", file.display())]
    TooMany { file: PathBuf },
    #[error("`{}`: {problem}", file.display())]
    Caller {
        file: PathBuf,
        problem: CallerProblem,
    },
    /// A key is too short or has other characters than visible ASCII.
    #[error(
        "`{}`, line {line}: invalid key: at least {MIN_KEY_BYTES} visible ASCII characters are required", file.display()
    )]
    Key { file: PathBuf, line: usize },
    #[error("`{}` contains no key", file.display())]
    NoKey { file: PathBuf },
}

/// The reason why one caller of a list is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CallerProblem {
    /// A name cannot be used as a label.
    #[error("invalid caller name `{0}`; allowed: 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and `_`")]
    Name(String),
    #[error("`{0}` is listed twice")]
    Duplicate(String),
    #[error("`{0}` has none of `spiffe`, `dns`, `subject`, `uid` and `bearer`")]
    NoCredentials(String),
    /// A credential is empty or malformed, so that it would identify nobody.
    #[error("`{name}` has an invalid `{kind}`")]
    Credential { name: String, kind: &'static str },
    /// A key file cannot be read. The error gives its position in the list, counted from 1, instead
    /// of its path: if somebody wrote a key there by mistake, the key must not appear in a log.
    #[error("cannot read file {number} of the `bearer` of `{name}`: {problem}")]
    KeyFile {
        name: String,
        number: usize,
        problem: ReadProblem,
    },
    /// Two callers have the same credential.
    #[error("`{one}` and `{other}` have the same {credential}")]
    Ambiguous {
        one: String,
        other: String,
        /// The kind and the value; of a key only that it is one.
        credential: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    #[serde(default)]
    caller: Vec<ListedCaller>,
}

/// A caller as listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedCaller {
    pub(super) name: String,
    #[serde(default)]
    pub(super) spiffe: Vec<String>,
    #[serde(default)]
    pub(super) dns: Vec<String>,
    #[serde(default)]
    pub(super) subject: Vec<String>,
    #[serde(default)]
    pub(super) uid: Vec<u32>,
    #[serde(default)]
    bearer: Vec<PathBuf>,
    /// The keys in the files of `bearer`.
    #[serde(skip)]
    pub(super) keys: Vec<KeyDigest>,
    pub(super) rights: Vec<Right>,
    #[serde(default = "all_identity_kinds")]
    pub(super) identities: Vec<IdentityKind>,
}

fn all_identity_kinds() -> Vec<IdentityKind> {
    IdentityKind::ALL.to_vec()
}

/// Reads the list in `file` and its key files.
pub(crate) fn read(file: &Path, files: &mut FileReader) -> Result<Registry, CallersError> {
    let text = files.read(file)?;
    let callers = parse(file, &String::from_utf8_lossy(&text))?;
    // All key files are read before any error is returned, so that changes of each are noticed.
    let keys: Vec<_> = callers
        .iter()
        .map(|caller| read_keys(file, caller, files))
        .collect();
    let mut registry = Registry::default();
    for (mut caller, keys) in callers.into_iter().zip(keys) {
        caller.keys = keys?;
        let checked = caller.check(&registry);
        let added = checked.and_then(|()| registry.add(caller));
        added.map_err(|problem| in_list(file, problem))?;
    }
    Ok(registry)
}

fn in_list(file: &Path, problem: CallerProblem) -> CallersError {
    let file = file.to_owned();
    CallersError::Caller { file, problem }
}

fn parse(file: &Path, text: &str) -> Result<Vec<ListedCaller>, CallersError> {
    let list: Result<RawList, _> = toml::from_str(text);
    let file = file.to_owned();
    match list {
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start));
            Err(CallersError::Syntax {
                file,
                line: 1 + before.map_or(0, |before| before.matches('\n').count()),
                reason: without_values(error.message()),
            })
        }
        Ok(list) if list.caller.is_empty() => Err(CallersError::Empty { file }),
        Ok(list) if list.caller.len() > MAX_CALLERS => Err(CallersError::TooMany { file }),
        Ok(list) => Ok(list.caller),
    }
}

/// Returns the parser's message without values of the list, because one might be a key.
fn without_values(message: &str) -> String {
    let quotes_a_value = ["invalid type", "invalid value", "unknown variant"]
        .iter()
        .any(|start| message.starts_with(start));
    match quotes_a_value {
        true => match message.rsplit_once(", expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => "a value of the wrong kind".to_owned(),
        },
        false => message.to_owned(),
    }
}

impl ListedCaller {
    /// Checks the name and the credentials. `registry` holds the callers before this one.
    fn check(&self, registry: &Registry) -> Result<(), CallerProblem> {
        let Self {
            spiffe,
            dns,
            subject,
            uid,
            keys,
            ..
        } = self;
        let name = || self.name.clone();
        if !is_label(&self.name) {
            return Err(CallerProblem::Name(name()));
        }
        if (registry.callers.iter()).any(|other| other.name() == self.name) {
            return Err(CallerProblem::Duplicate(name()));
        }
        if spiffe.is_empty()
            && dns.is_empty()
            && subject.is_empty()
            && uid.is_empty()
            && keys.is_empty()
        {
            return Err(CallerProblem::NoCredentials(name()));
        }
        let is_spiffe_id =
            |id: &String| id.len() > "spiffe://".len() && id.starts_with("spiffe://");
        let is_blank = |text: &String| text.trim().is_empty();
        // Workload certificates have an empty subject: an empty one would match all of them.
        let is_subject =
            |text: &String| !is_blank(text) && distinguished_name::is_printable_ascii(text);
        for (kind, is_valid) in [
            ("spiffe", spiffe.iter().all(is_spiffe_id)),
            ("dns", !dns.iter().any(is_blank)),
            ("subject", subject.iter().all(is_subject)),
        ] {
            if !is_valid {
                let name = name();
                return Err(CallerProblem::Credential { name, kind });
            }
        }
        Ok(())
    }
}

/// Returns whether `name` can be used as a label.
fn is_label(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Reads the key files of `caller`. Each holds one key per line.
fn read_keys(
    list: &Path,
    caller: &ListedCaller,
    files: &mut FileReader,
) -> Result<Vec<KeyDigest>, CallersError> {
    // Relative to the list, because a list and its keys are mounted together.
    let directory = list.parent().unwrap_or(Path::new(""));
    let paths = caller.bearer.iter().map(|path| directory.join(path));
    let texts: Vec<_> = paths.map(|file| (files.read(&file), file)).collect();
    let mut keys = Vec::new();
    for (number, (text, file)) in (1..).zip(texts) {
        let text = text.map_err(|ReadError { problem, .. }| {
            let name = caller.name.clone();
            in_list(
                list,
                CallerProblem::KeyFile {
                    name,
                    number,
                    problem,
                },
            )
        })?;
        keys.extend(parse_keys(&file, &text)?);
    }
    Ok(keys)
}

fn parse_keys(file: &Path, text: &[u8]) -> Result<Vec<KeyDigest>, CallersError> {
    let mut keys = Vec::new();
    let file = || file.to_owned();
    for (line, key) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let key = key.trim_ascii();
        if key.is_empty() {
            continue;
        }
        if key.len() < MIN_KEY_BYTES || !key.iter().all(u8::is_ascii_graphic) {
            return Err(CallersError::Key { file: file(), line });
        }
        keys.push(KeyDigest::of(key));
    }
    match keys.is_empty() {
        true => Err(CallersError::NoKey { file: file() }),
        false => Ok(keys),
    }
}
