//! What was revoked before its time: single tokens, subjects, keys.
//!
//! A list is TOML or JSON, and taken as a whole or not at all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;

use super::moment::Moment;

/// The list as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRevocations {
    revoked: Option<Vec<RawRevoked>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRevoked {
    issuer: Option<String>,
    jti: Option<String>,
    sub: Option<String>,
    kid: Option<String>,
    not_before: Option<RawTime>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a point in time: seconds since 1970, or text such as \"2026-01-31T12:00:00Z\""
)]
enum RawTime {
    Seconds(i64),
    Text(String),
    Toml(toml::value::Datetime),
}

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationsError {
    /// It is neither TOML nor JSON of this form.
    #[error("it is no list of revocations: {0}")]
    Syntax(String),
    /// An entry says nothing, or too much.
    #[error("entry {0} must have just one of `jti`, `sub` and `kid`")]
    NotOne(usize),
    /// Subjects are an issuer's.
    #[error("entry {0} names a `sub` and no `issuer`")]
    NoIssuer(usize),
    /// A time makes no sense, or stands where it means nothing.
    #[error(
        "entry {0}: `not_before` is a point in time, seconds since 1970 or `2026-01-31T12:00:00Z` with `Z` or an offset such as `+01:00`, and stands with `sub` alone"
    )]
    NotBefore(usize),
    /// It may be half written, and would take back what is in force.
    #[error("it has no `revoked`, and would empty a list of {held}; `revoked = []` does so")]
    Silent {
        /// The entries of the list in force.
        held: usize,
    },
}

/// What of a token is looked for in the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) issuer: &'a str,
    pub(super) jti: Option<&'a str>,
    pub(super) sub: Option<&'a str>,
    /// What the issuer calls the principal, which need not stand in `sub`.
    pub(super) id: Option<&'a str>,
    pub(super) kid: Option<&'a str>,
    pub(super) issued: Option<Moment>,
}

/// What is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revocations {
    of_any: Listed,
    of_issuer: HashMap<String, Listed>,
    entries: usize,
    /// Whether the list was written, if only as an empty one.
    is_told: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    jti: HashSet<String>,
    kid: HashSet<String>,
    /// Tokens of this subject that were issued before; `None` are all.
    sub: HashMap<String, Option<Moment>>,
}

impl Revocations {
    /// The list in `text`: JSON when it begins as an object does, TOML otherwise.
    pub(super) fn parse(text: &[u8]) -> Result<Self, RevocationsError> {
        let text = std::str::from_utf8(text)
            .map_err(|error| RevocationsError::Syntax(error.to_string()))?;
        let raw: RawRevocations = if text.trim_start().starts_with('{') {
            serde_json::from_str(text)
                .map_err(|error| RevocationsError::Syntax(error.to_string()))?
        } else {
            toml::from_str(text)
                .map_err(|error| RevocationsError::Syntax(error.message().to_owned()))?
        };
        let is_told = raw.revoked.is_some();
        let revoked = raw.revoked.unwrap_or_default();
        let mut list = Self {
            entries: revoked.len(),
            is_told,
            ..Self::default()
        };
        for (number, revoked) in (1..).zip(revoked) {
            list.add(number, revoked)?;
        }
        Ok(list)
    }

    fn add(&mut self, number: usize, revoked: RawRevoked) -> Result<(), RevocationsError> {
        let RawRevoked {
            issuer,
            jti,
            sub,
            kid,
            not_before,
        } = revoked;
        if not_before.is_some() && sub.is_none() {
            return Err(RevocationsError::NotBefore(number));
        }
        if sub.is_some() && issuer.is_none() {
            return Err(RevocationsError::NoIssuer(number));
        }
        let listed = match issuer {
            Some(issuer) => self.of_issuer.entry(issuer).or_default(),
            None => &mut self.of_any,
        };
        match (jti, sub, kid) {
            (Some(jti), None, None) => {
                listed.jti.insert(jti);
            }
            (None, None, Some(kid)) => {
                listed.kid.insert(kid);
            }
            (None, Some(sub), None) => {
                let before = match not_before {
                    None => None,
                    Some(time) => Some(moment(&time).ok_or(RevocationsError::NotBefore(number))?),
                };
                // Of two entries the one that revokes more counts.
                let stands = listed.sub.entry(sub).or_insert(before);
                *stands = match (*stands, before) {
                    (Some(one), Some(other)) => Some(one.max(other)),
                    (None, _) | (_, None) => None,
                };
            }
            _ => return Err(RevocationsError::NotOne(number)),
        }
        Ok(())
    }

    /// Whether it may take the place of `held`: a file that says nothing may be one that is being
    /// written, and must not bring back what was revoked.
    pub(super) fn check_after(&self, held: &Self) -> Result<(), RevocationsError> {
        match held.entries {
            held if held > 0 && !self.is_told => Err(RevocationsError::Silent { held }),
            _ => Ok(()),
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// The issuers that are named.
    pub(super) fn issuers(&self) -> BTreeSet<&str> {
        self.of_issuer.keys().map(String::as_str).collect()
    }

    /// Whether a token of these facts is revoked.
    pub(super) fn cover(&self, facts: Facts<'_>) -> bool {
        self.of_any.cover(facts)
            || self
                .of_issuer
                .get(facts.issuer)
                .is_some_and(|listed| listed.cover(facts))
    }
}

impl Listed {
    fn cover(&self, facts: Facts<'_>) -> bool {
        let Facts {
            issuer: _,
            jti,
            sub,
            id,
            kid,
            issued,
        } = facts;
        let subjects = [sub, id.filter(|id| sub != Some(id))];
        jti.is_some_and(|jti| self.jti.contains(jti))
            || kid.is_some_and(|kid| self.kid.contains(kid))
            || subjects
                .into_iter()
                .flatten()
                .filter_map(|subject| self.sub.get(subject))
                .any(|before| match (before, issued) {
                    (Some(before), Some(issued)) => issued < *before,
                    // A token that does not say when it was issued may be an old one.
                    (None, _) | (_, None) => true,
                })
    }
}

fn moment(time: &RawTime) -> Option<Moment> {
    let text = match time {
        RawTime::Seconds(seconds) => return Moment::of_seconds(*seconds),
        RawTime::Text(text) => text.clone(),
        RawTime::Toml(datetime) => datetime.to_string(),
    };
    with_offset(&text)
}

/// A point in time as RFC 3339 writes it, in whatever zone.
fn with_offset(text: &str) -> Option<Moment> {
    let utc = |text: &str| humantime::parse_rfc3339(text).ok().map(Moment::from);
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
    let number = |text: &str, most: u64| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|number| *number <= most);
        number.filter(|_| is_number)
    };
    let minutes = number(hours, 23)? * 60 + number(minutes, 59)?;
    let (local, offset) = (
        utc(&format!("{local}Z"))?,
        Duration::from_secs(minutes * 60),
    );
    Some(match is_east {
        true => local.before(offset),
        false => local.after(offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'static> = Facts {
        issuer: "i",
        jti: Some("t"),
        sub: Some("s"),
        id: Some("s@example"),
        kid: Some("k"),
        issued: None,
    };

    fn issued(seconds: i64) -> Facts<'static> {
        Facts {
            issued: Moment::of_seconds(seconds),
            ..FACTS
        }
    }

    fn list(entry: &str) -> Revocations {
        Revocations::parse(format!("[[revoked]]\n{entry}").as_bytes()).unwrap()
    }

    #[test]
    fn a_token_a_key_and_a_subject_can_be_revoked() {
        for covering in [
            "jti = \"t\"",
            "jti = \"t\"\nissuer = \"i\"",
            "kid = \"k\"",
            "sub = \"s\"\nissuer = \"i\"",
            "sub = \"s@example\"\nissuer = \"i\"",
        ] {
            assert!(list(covering).cover(FACTS), "{covering}");
        }
        for other in [
            "jti = \"u\"",
            "jti = \"t\"\nissuer = \"j\"",
            "kid = \"l\"",
            "sub = \"s\"\nissuer = \"j\"",
        ] {
            assert!(!list(other).cover(FACTS), "{other}");
        }
    }

    #[test]
    fn of_a_subject_what_was_issued_before_is_revoked() {
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
            assert!(list.cover(issued(999)), "{time}");
            assert!(!list.cover(issued(1_000)), "{time}");
            assert!(list.cover(FACTS), "a token that does not say when");
        }
        let both = "sub = \"s\"\nissuer = \"i\"\nnot_before = 1000\n[[revoked]]\nsub = \"s\"\nissuer = \"i\"";
        assert!(list(both).cover(issued(2_000)), "the one that revokes more");
    }

    #[test]
    fn a_list_in_json_says_the_same() {
        let list = Revocations::parse(
            br#" {"revoked": [{"jti": "t"}, {"sub": "x", "issuer": "i", "not_before": 5}]}"#,
        );
        assert!(list.as_ref().unwrap().cover(FACTS));
        assert_eq!(list.unwrap().len(), 2);
        assert_eq!(Revocations::parse(b"").unwrap(), Revocations::default());
    }

    #[test]
    fn a_file_that_says_nothing_empties_no_list() {
        let held = list("jti = \"t\"");
        let parse = |text: &str| Revocations::parse(text.as_bytes()).unwrap();
        for silent in ["", "\n", "# being written", "{}"] {
            assert_eq!(
                parse(silent).check_after(&held),
                Err(RevocationsError::Silent { held: 1 }),
                "{silent}"
            );
            assert_eq!(parse(silent).check_after(&Revocations::default()), Ok(()));
        }
        for told in ["revoked = []", "{\"revoked\": []}"] {
            assert_eq!(parse(told).check_after(&held), Ok(()), "{told}");
        }
    }

    #[test]
    fn a_list_that_is_not_sure_is_refused_whole() {
        let refused = |text: &str| Revocations::parse(text.as_bytes()).unwrap_err();
        let entry = |text: &str| refused(&format!("[[revoked]]\n{text}"));
        assert_eq!(entry(""), RevocationsError::NotOne(1));
        assert_eq!(
            entry("jti = \"a\"\nkid = \"b\""),
            RevocationsError::NotOne(1)
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
            assert!(
                matches!(refused(text), RevocationsError::Syntax(_)),
                "{text}"
            );
        }
    }
}
