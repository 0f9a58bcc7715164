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

use super::{CallersError, Conflict, Credentials, KeyDigest, MAX_CALLERS, MIN_KEY_BYTES, Registry};
use crate::api::auth::caller::{Caller, IdentityKind, Right};
use crate::api::auth::distinguished_name;
use crate::watch::files::{FileReader, ReadError};

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
    #[serde(default = "all_identity_kinds")]
    identities: Vec<IdentityKind>,
}

fn all_identity_kinds() -> Vec<IdentityKind> {
    vec![
        IdentityKind::Principal,
        IdentityKind::Token,
        IdentityKind::Anonymous,
    ]
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
    for (caller, keys) in callers.into_iter().zip(keys) {
        let (caller, credentials) = check(file, &registry, caller, keys?)?;
        let name = caller.name().to_owned();
        if let Err(Conflict { other, credential }) = registry.add(caller, credentials) {
            return Err(CallersError::Ambiguous {
                file: file.to_owned(),
                one: registry.name(other).unwrap_or(&name).to_owned(),
                other: name,
                credential,
            });
        }
    }
    Ok(registry.finish())
}

fn parse(file: &Path, text: &str) -> Result<Vec<RawCaller>, CallersError> {
    let list: Result<RawList, _> = toml::from_str(text);
    let RawList { caller: callers } = list.map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        CallersError::Syntax {
            file: file.to_owned(),
            line: 1 + before.map_or(0, |before| before.matches('\n').count()),
            reason: without_values(error.message()),
        }
    })?;
    let file = || file.to_owned();
    match callers.len() {
        0 => Err(CallersError::Empty { file: file() }),
        1..=MAX_CALLERS => Ok(callers),
        _ => Err(CallersError::TooMany { file: file() }),
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

/// Checks the name and the credentials of a caller. `registry` holds the callers before it.
fn check(
    file: &Path,
    registry: &Registry,
    caller: RawCaller,
    keys: Vec<KeyDigest>,
) -> Result<(Caller, Credentials), CallersError> {
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
    if !is_label(&name) {
        return Err(CallersError::Name { file: file(), name });
    }
    if registry.find_by_name(&name).is_some() {
        return Err(CallersError::Twice { file: file(), name });
    }
    let credentials = Credentials {
        spiffe,
        dns,
        subject,
        uid,
        keys,
    };
    if credentials.is_empty() {
        return Err(CallersError::NoCredentials { file: file(), name });
    }
    if let Some(kind) = credentials.invalid_kind() {
        let file = file();
        return Err(CallersError::Credential { file, name, kind });
    }
    let caller = Caller {
        name: name.into(),
        rights: rights.into_iter().collect(),
        identities: identities.into_iter().collect(),
    };
    Ok((caller, credentials))
}

/// Returns whether `name` can be used as a label.
fn is_label(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

impl Credentials {
    fn is_empty(&self) -> bool {
        let Self {
            spiffe,
            dns,
            subject,
            uid,
            keys,
        } = self;
        spiffe.is_empty()
            && dns.is_empty()
            && subject.is_empty()
            && uid.is_empty()
            && keys.is_empty()
    }

    /// Returns the kind of a credential that cannot identify anybody.
    fn invalid_kind(&self) -> Option<&'static str> {
        let is_spiffe_id =
            |id: &String| id.len() > "spiffe://".len() && id.starts_with("spiffe://");
        let is_blank = |text: &String| text.trim().is_empty();
        // Workload certificates have an empty subject: an empty one would match all of them.
        let is_subject =
            |text: &String| !is_blank(text) && distinguished_name::is_printable_ascii(text);
        let checks = [
            ("spiffe", self.spiffe.iter().all(is_spiffe_id)),
            ("dns", !self.dns.iter().any(is_blank)),
            ("subject", self.subject.iter().all(is_subject)),
        ];
        checks
            .into_iter()
            .find(|check| !check.1)
            .map(|check| check.0)
    }
}

/// Reads the key files of `caller`. Each holds one key per line.
fn read_keys(
    list: &Path,
    caller: &RawCaller,
    files: &mut FileReader,
) -> Result<Vec<KeyDigest>, CallersError> {
    // Relative to the list, because a list and its keys are mounted together.
    let directory = list.parent().unwrap_or(Path::new(""));
    let texts: Vec<_> = caller
        .bearer
        .iter()
        .map(|path| {
            let file = directory.join(path);
            let text = files.read(&file);
            (file, text)
        })
        .collect();
    let mut keys = Vec::new();
    for (number, (file, text)) in (1..).zip(texts) {
        let text = text.map_err(|ReadError { problem, .. }| CallersError::KeyFile {
            file: list.to_owned(),
            name: caller.name.clone(),
            number,
            problem,
        })?;
        keys.extend(parse_keys(&file, &text)?);
    }
    Ok(keys)
}

fn parse_keys(file: &Path, text: &[u8]) -> Result<Vec<KeyDigest>, CallersError> {
    let mut keys = Vec::new();
    for (line, key) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let key = key.trim_ascii();
        if key.is_empty() {
            continue;
        }
        if key.len() < MIN_KEY_BYTES || !key.iter().all(u8::is_ascii_graphic) {
            let file = file.to_owned();
            return Err(CallersError::Key { file, line });
        }
        keys.push(KeyDigest::of(key));
    }
    match keys.is_empty() {
        true => Err(CallersError::NoKey {
            file: file.to_owned(),
        }),
        false => Ok(keys),
    }
}
