//! The revocation list: tokens, subjects and keys that are rejected before they expire.
//!
//! A list is TOML or JSON, and is accepted or rejected as a whole.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;

use super::numeric_date::NumericDate;
use crate::pdp::json_object::Object;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRevocations {
    revoked: Option<Vec<Object<RawEntry>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    issuer: Option<String>,
    jti: Option<String>,
    sub: Option<String>,
    kid: Option<String>,
    not_before: Option<RawDate>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a point in time: seconds since 1970, or text such as \"2026-01-31T12:00:00Z\""
)]
enum RawDate {
    Seconds(i64),
    Text(String),
    Toml(toml::value::Datetime),
}

/// An error in a revocation list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationsError {
    /// The text is not TOML or JSON of the expected form.
    #[error("not a revocation list: {0}")]
    Syntax(String),
    /// An entry has none of the three keys, or several.
    #[error("entry {0} must have exactly one of `jti`, `sub` and `kid`")]
    NotExactlyOne(usize),
    /// A `sub` has no issuer, and subjects are only unique within an issuer.
    #[error("entry {0} has a `sub` and no `issuer`")]
    NoIssuer(usize),
    /// A `not_before` is not a date, or stands without `sub`.
    #[error(
        "entry {0}: `not_before` must be a point in time, seconds since 1970 or `2026-01-31T12:00:00Z` with `Z` or an offset such as `+01:00`, and is allowed with `sub` only"
    )]
    NotBefore(usize),
    /// The key `revoked` is missing, and the current list is not empty.
    #[error(
        "the list has no `revoked` and would remove {0} revocations; to empty the list, write `revoked = []`"
    )]
    MissingList(usize),
}

/// The properties of a token that revocations are matched against.
#[derive(Clone, Copy, Debug)]
pub(super) struct RevocableToken<'a> {
    pub(super) issuer: &'a str,
    pub(super) jti: Option<&'a str>,
    pub(super) sub: Option<&'a str>,
    /// The principal's id, which may come from another claim than `sub`.
    pub(super) id: Option<&'a str>,
    pub(super) kid: Option<&'a str>,
    pub(super) issued: Option<NumericDate>,
}

/// A revocation list. The default revokes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revocations {
    any_issuer: RevokedIds,
    by_issuer: HashMap<String, RevokedIds>,
    entries: usize,
    /// True if the file has the key `revoked`, even with an empty list.
    is_explicit: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RevokedIds {
    jti: HashSet<String>,
    kid: HashSet<String>,
    /// Subjects whose tokens are revoked if issued before the date; `None` revokes all of them.
    sub: HashMap<String, Option<NumericDate>>,
}

impl Revocations {
    /// Parses a list: JSON if the text begins with `{`, TOML otherwise.
    pub(super) fn parse(text: &[u8]) -> Result<Self, RevocationsError> {
        let text = std::str::from_utf8(text);
        let raw: Result<RawRevocations, _> = match text.map_err(|error| error.to_string()) {
            Ok(json) if json.trim_start().starts_with('{') => {
                serde_json::from_str(json).map_err(|error| error.to_string())
            }
            Ok(toml) => toml::from_str(toml).map_err(|error| error.message().to_owned()),
            Err(error) => Err(error),
        };
        let raw = raw.map_err(RevocationsError::Syntax)?;
        let is_explicit = raw.revoked.is_some();
        let entries = raw.revoked.unwrap_or_default();
        let mut list = Self {
            entries: entries.len(),
            is_explicit,
            ..Self::default()
        };
        for (number, entry) in (1..).zip(entries) {
            list.add(number, entry.0)?;
        }
        Ok(list)
    }

    fn add(&mut self, number: usize, entry: RawEntry) -> Result<(), RevocationsError> {
        let RawEntry {
            issuer,
            jti,
            sub,
            kid,
            not_before,
        } = entry;
        if not_before.is_some() && sub.is_none() {
            return Err(RevocationsError::NotBefore(number));
        }
        if sub.is_some() && issuer.is_none() {
            return Err(RevocationsError::NoIssuer(number));
        }
        let ids = match issuer {
            Some(issuer) => self.by_issuer.entry(issuer).or_default(),
            None => &mut self.any_issuer,
        };
        match (jti, sub, kid) {
            (Some(jti), None, None) => {
                ids.jti.insert(jti);
            }
            (None, None, Some(kid)) => {
                ids.kid.insert(kid);
            }
            (None, Some(sub), None) => {
                let before = not_before
                    .map(|date| parse_date(&date).ok_or(RevocationsError::NotBefore(number)))
                    .transpose()?;
                // If a subject is listed twice, the entry that revokes more tokens wins.
                let current = ids.sub.entry(sub).or_insert(before);
                *current = match (*current, before) {
                    (Some(one), Some(other)) => Some(one.max(other)),
                    (None, _) | (_, None) => None,
                };
            }
            _ => return Err(RevocationsError::NotExactlyOne(number)),
        }
        Ok(())
    }

    /// Checks that this list may replace `current`.
    ///
    /// A file without `revoked` may be half written, and must not undo revocations.
    pub(super) fn check_replaces(&self, current: &Self) -> Result<(), RevocationsError> {
        if current.entries > 0 && !self.is_explicit {
            return Err(RevocationsError::MissingList(current.entries));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.entries
    }

    pub(super) fn issuers(&self) -> BTreeSet<String> {
        self.by_issuer.keys().cloned().collect()
    }

    pub(super) fn contains(&self, token: RevocableToken<'_>) -> bool {
        let of_issuer = self.by_issuer.get(token.issuer);
        self.any_issuer.contains(token) || of_issuer.is_some_and(|ids| ids.contains(token))
    }
}

impl RevokedIds {
    fn contains(&self, token: RevocableToken<'_>) -> bool {
        let is_revoked_subject = |subject: &str| match (self.sub.get(subject), token.issued) {
            (None, _) => false,
            (Some(Some(before)), Some(issued)) => issued < *before,
            // A token without `iat` may have been issued before the date.
            (Some(None), _) | (_, None) => true,
        };
        token.jti.is_some_and(|jti| self.jti.contains(jti))
            || token.kid.is_some_and(|kid| self.kid.contains(kid))
            || token.sub.is_some_and(is_revoked_subject)
            || token.id.is_some_and(is_revoked_subject)
    }
}

fn parse_date(date: &RawDate) -> Option<NumericDate> {
    let text = match date {
        RawDate::Seconds(seconds) => return NumericDate::from_seconds(*seconds),
        RawDate::Text(text) => text.clone(),
        RawDate::Toml(datetime) => datetime.to_string(),
    };
    parse_rfc3339(&text)
}

/// Parses an RFC 3339 date in any time zone.
fn parse_rfc3339(text: &str) -> Option<NumericDate> {
    // humantime reads UTC only.
    let utc = |text: &str| humantime::parse_rfc3339(text).ok().map(NumericDate::from);
    let Some((local, offset)) = text
        .len()
        .checked_sub("+00:00".len())
        .and_then(|at| text.split_at_checked(at))
        .filter(|(_, offset)| offset.starts_with(['+', '-']))
    else {
        return utc(text);
    };
    let is_east = offset.starts_with('+');
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |text: &str, max: u64| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|number| *number <= max);
        number.filter(|_| is_number)
    };
    let minutes = number(hours, 23)? * 60 + number(minutes, 59)?;
    let local = utc(&format!("{local}Z"))?;
    let offset = Duration::from_secs(minutes * 60);
    Some(match is_east {
        true => local.minus(offset),
        false => local.plus(offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: RevocableToken<'static> = RevocableToken {
        issuer: "i",
        jti: Some("t"),
        sub: Some("s"),
        id: Some("s@example"),
        kid: Some("k"),
        issued: None,
    };

    fn issued(seconds: i64) -> RevocableToken<'static> {
        RevocableToken {
            issued: NumericDate::from_seconds(seconds),
            ..TOKEN
        }
    }

    fn list(entry: &str) -> Revocations {
        Revocations::parse(format!("[[revoked]]\n{entry}").as_bytes()).unwrap()
    }

    #[test]
    fn token_key_and_subject_can_be_revoked() {
        for matching in [
            "jti = \"t\"",
            "jti = \"t\"\nissuer = \"i\"",
            "kid = \"k\"",
            "sub = \"s\"\nissuer = \"i\"",
            "sub = \"s@example\"\nissuer = \"i\"",
        ] {
            assert!(list(matching).contains(TOKEN), "{matching}");
        }
        for other in [
            "jti = \"u\"",
            "jti = \"t\"\nissuer = \"j\"",
            "kid = \"l\"",
            "sub = \"s\"\nissuer = \"j\"",
        ] {
            assert!(!list(other).contains(TOKEN), "{other}");
        }
    }

    #[test]
    fn subject_can_be_revoked_before_a_date() {
        for time in [
            "1000",
            "\"1970-01-01T00:16:40Z\"",
            "1970-01-01T00:16:40Z",
            "\"1970-01-01T01:46:40+01:30\"",
            "1970-01-01T01:46:40+01:30",
            "1970-01-01 01:16:40.000+01:00",
            "1970-01-01T00:16:40-00:00",
        ] {
            let list = list(&format!("sub = \"s\"\nissuer = \"i\"\nnot_before = {time}"));
            assert!(list.contains(issued(999)), "{time}");
            assert!(!list.contains(issued(1_000)), "{time}");
            assert!(list.contains(TOKEN), "a token without `iat`");
        }
        let both = "sub = \"s\"\nissuer = \"i\"\nnot_before = 1000\n[[revoked]]\nsub = \"s\"\nissuer = \"i\"";
        assert!(
            list(both).contains(issued(2_000)),
            "the entry that revokes more"
        );
    }

    #[test]
    fn list_can_be_json() {
        let list = Revocations::parse(
            br#" {"revoked": [{"jti": "t"}, {"sub": "x", "issuer": "i", "not_before": 5}]}"#,
        );
        assert!(list.as_ref().unwrap().contains(TOKEN));
        assert_eq!(list.unwrap().len(), 2);
        assert_eq!(Revocations::parse(b"").unwrap(), Revocations::default());
    }

    #[test]
    fn file_without_revoked_empties_no_list() {
        let current = list("jti = \"t\"");
        let parse = |text: &str| Revocations::parse(text.as_bytes()).unwrap();
        for text in ["", "\n", "# being written", "{}"] {
            assert_eq!(
                parse(text).check_replaces(&current),
                Err(RevocationsError::MissingList(1)),
                "{text}"
            );
            assert_eq!(parse(text).check_replaces(&Revocations::default()), Ok(()));
        }
        for text in ["revoked = []", "{\"revoked\": []}"] {
            assert_eq!(parse(text).check_replaces(&current), Ok(()), "{text}");
        }
    }

    #[test]
    fn invalid_list_is_rejected_as_a_whole() {
        let error = |text: &str| Revocations::parse(text.as_bytes()).unwrap_err();
        let entry = |text: &str| error(&format!("[[revoked]]\n{text}"));
        assert_eq!(entry(""), RevocationsError::NotExactlyOne(1));
        assert_eq!(
            entry("jti = \"a\"\nkid = \"b\""),
            RevocationsError::NotExactlyOne(1)
        );
        assert_eq!(entry("sub = \"a\""), RevocationsError::NoIssuer(1));
        assert_eq!(
            entry("jti = \"a\"\nnot_before = 1"),
            RevocationsError::NotBefore(1)
        );
        for time in [
            "\"soon\"",
            "\"\"",
            "1970-01-01T00:16:40",
            "1970-01-01",
            "\"1970-01-01T00:16:40+24:00\"",
            "\"1970-01-01T00:16:40+0100\"",
            "\"1970-01-01T00:16:40++1:00\"",
        ] {
            assert_eq!(
                entry(&format!("sub = \"a\"\nissuer = \"i\"\nnot_before = {time}")),
                RevocationsError::NotBefore(1),
                "{time}"
            );
        }
        for text in [
            "{",
            "[]",
            "revoked = 1",
            "<html>",
            "[[revoked]]\njit = \"a\"",
            "[[revoke]]\njti = \"a\"",
        ] {
            assert!(matches!(error(text), RevocationsError::Syntax(_)), "{text}");
        }
    }
}
