//! Single values: each function puts what was written where it belongs, or says what is allowed.
//!
//! Where nothing was written nothing is put, so that the default stays.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use cedar_policy::{EntityTypeName, EntityUid};
use tracing_subscriber::EnvFilter;

use super::listen::{InvalidAddress, Listen};
use crate::pdp::query::Uid;

/// The longest text that is read as a uid or a type name, in bytes: Cedar's parser is not for
/// text without bound.
const MAX_NAME_BYTES: usize = 4096;

/// A value that makes no sense, with the key to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct InvalidValue {
    /// The key, as in the configuration file.
    pub key: &'static str,
    /// What is wrong with its value.
    pub problem: Problem,
}

/// What can be wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There must be something.
    #[error("is empty")]
    Empty,
    /// Not one of the words for this key.
    #[error("is `{text}`; allowed: {allowed}")]
    Word {
        /// What was written.
        text: String,
        /// The words there are.
        allowed: String,
    },
    /// Too small or too large.
    #[error("is {value}; allowed: {lowest} to {highest}")]
    OutOfRange {
        /// What was written.
        value: String,
        /// The least that is allowed.
        lowest: String,
        /// The most that is allowed.
        highest: String,
    },
    /// Not a duration.
    #[error("is `{text}`, which is no duration such as `5s` or `50ms`: {reason}")]
    Duration {
        /// What was written.
        text: String,
        /// The parser's reason.
        reason: String,
    },
    /// Not an address.
    #[error("is wrong: {0}")]
    Address(InvalidAddress),
    /// Not a uid.
    #[error("is wrong: {0}")]
    Uid(InvalidUid),
    /// Not the name of an entity type.
    #[error("names `{text}`, which is no entity type such as `Shop::Order`")]
    EntityType {
        /// What was written.
        text: String,
    },
    /// Not a log filter.
    #[error("is `{text}`, which is no filter such as `info` or `cedar_pdp=debug,warn`: {reason}")]
    LogFilter {
        /// What was written.
        text: String,
        /// The parser's reason.
        reason: String,
    },
}

impl Problem {
    fn of(self, key: &'static str) -> InvalidValue {
        InvalidValue { key, problem: self }
    }
}

/// Why a text is no uid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUid {
    /// Longer than any uid that is read.
    #[error("a uid has at most {MAX_NAME_BYTES} bytes, not {0}")]
    TooLong(usize),
    /// Cedar does not read it.
    #[error("`{text}` is no uid such as `User::\"alice\"`: {reason}")]
    Syntax {
        /// What was written.
        text: String,
        /// The parser's reason.
        reason: String,
    },
}

/// Reads a uid as operators write it: `User::"alice"`.
///
/// # Errors
///
/// [`InvalidUid`] when the text is none.
pub fn parse_uid(text: &str) -> Result<Uid, InvalidUid> {
    if text.len() > MAX_NAME_BYTES {
        return Err(InvalidUid::TooLong(text.len()));
    }
    let uid: EntityUid =
        text.parse()
            .map_err(|error: cedar_policy::ParseErrors| InvalidUid::Syntax {
                text: text.to_owned(),
                reason: error.to_string(),
            })?;
    Ok(Uid::new(uid.type_name().to_string(), uid.id().unescaped()))
}

type Put = Result<(), InvalidValue>;

pub(super) fn path(place: &mut PathBuf, key: &'static str, text: Option<String>) -> Put {
    let Some(text) = text else { return Ok(()) };
    if text.is_empty() {
        return Err(Problem::Empty.of(key));
    }
    *place = text.into();
    Ok(())
}

pub(super) fn listen(
    place: &mut Vec<Listen>,
    key: &'static str,
    texts: Option<Vec<String>>,
) -> Put {
    let Some(texts) = texts else { return Ok(()) };
    if texts.is_empty() {
        return Err(Problem::Empty.of(key));
    }
    let addresses: Result<_, InvalidAddress> = texts.iter().map(|text| text.parse()).collect();
    *place = addresses.map_err(|error| Problem::Address(error).of(key))?;
    Ok(())
}

pub(super) fn uid(place: &mut Option<Uid>, key: &'static str, text: Option<String>) -> Put {
    let Some(text) = text else { return Ok(()) };
    *place = Some(parse_uid(&text).map_err(|error| Problem::Uid(error).of(key))?);
    Ok(())
}

pub(super) fn entity_types(
    place: &mut Option<BTreeSet<String>>,
    key: &'static str,
    names: Option<Vec<String>>,
) -> Put {
    let Some(names) = names else { return Ok(()) };
    let parse = |text: &String| {
        Some(text)
            .filter(|text| text.len() <= MAX_NAME_BYTES)
            .and_then(|text| text.parse::<EntityTypeName>().ok())
            .map(|name| name.to_string())
            .ok_or_else(|| Problem::EntityType { text: text.clone() }.of(key))
    };
    // An empty variable is a list of one empty text. It must mean that no type may be sent: a
    // restriction that someone emptied may not turn into no restriction.
    let types: Result<_, _> = names
        .iter()
        .filter(|text| !text.is_empty())
        .map(parse)
        .collect();
    *place = Some(types?);
    Ok(())
}

pub(super) fn word<T: Copy>(
    place: &mut T,
    key: &'static str,
    text: Option<String>,
    words: &[(&str, T)],
) -> Put {
    let Some(text) = text else { return Ok(()) };
    *place = words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| {
            let allowed = words
                .iter()
                .map(|(word, _)| *word)
                .collect::<Vec<_>>()
                .join(", ");
            Problem::Word { text, allowed }.of(key)
        })?;
    Ok(())
}

pub(super) fn switch(place: &mut bool, _: &'static str, on: Option<bool>) -> Put {
    *place = on.unwrap_or(*place);
    Ok(())
}

pub(super) fn number<T: TryFrom<i64>>(
    place: &mut T,
    key: &'static str,
    number: Option<i64>,
    range: RangeInclusive<i64>,
) -> Put {
    let Some(number) = number else { return Ok(()) };
    *place = Some(number)
        .filter(|number| range.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| out_of_range(key, number, &range))?;
    Ok(())
}

pub(super) fn duration(
    place: &mut Duration,
    key: &'static str,
    text: Option<String>,
    range: RangeInclusive<Duration>,
) -> Put {
    let Some(text) = text else { return Ok(()) };
    let duration = humantime::parse_duration(&text).map_err(|error| {
        let reason = error.to_string();
        Problem::Duration { text, reason }.of(key)
    })?;
    if !range.contains(&duration) {
        let show = humantime::format_duration;
        return Err(out_of_range(
            key,
            show(duration),
            &(show(*range.start())..=show(*range.end())),
        ));
    }
    *place = duration;
    Ok(())
}

pub(super) fn log_filter(place: &mut String, key: &'static str, text: Option<String>) -> Put {
    let Some(text) = text else { return Ok(()) };
    if text.trim().is_empty() {
        return Err(Problem::Empty.of(key));
    }
    if let Err(error) = EnvFilter::builder().parse(&text) {
        let reason = error.to_string();
        return Err(Problem::LogFilter { text, reason }.of(key));
    }
    *place = text;
    Ok(())
}

fn out_of_range<T: Display>(
    key: &'static str,
    value: T,
    range: &RangeInclusive<T>,
) -> InvalidValue {
    Problem::OutOfRange {
        value: value.to_string(),
        lowest: range.start().to_string(),
        highest: range.end().to_string(),
    }
    .of(key)
}
