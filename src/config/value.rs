//! Single values: each function reads what was written under a key, or says what is allowed.
//!
//! Which key a value stands under is not known here, except to the error's reader.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Builder;

use super::decision_log::{AttributePath, Destination, Share};
use super::listen::{InvalidAddress, Listen};
use crate::pdp::is_type_name;
use crate::pdp::query::{InvalidUid, Uid};

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
    /// It says nothing by itself.
    #[error("needs `{other}`")]
    Needs {
        /// The key that is missing, or that says otherwise.
        other: &'static str,
    },
    /// Not the mode of a file.
    #[error("is `{text}`, which is no mode of a file such as `0660`")]
    FileMode {
        /// What was written.
        text: String,
    },
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
    /// Not a place for decisions.
    #[error("is `{text}`; allowed: off, stdout, file:PATH, otlp")]
    Destination {
        /// What was written.
        text: String,
    },
    /// Not a share.
    #[error("is `{text}`, which is no share from 0 to 1 such as `0.1` or `10%`")]
    Share {
        /// What was written.
        text: String,
    },
    /// Not the path of an attribute.
    #[error(
        "names `{text}`, which is no attribute such as `context.amount`, `Shop::Order.owner`, `User.*` or `errors.message`"
    )]
    AttributePath {
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
    fn out_of_range<T: Display>(value: T, range: &RangeInclusive<T>) -> Self {
        Self::OutOfRange {
            value: value.to_string(),
            lowest: range.start().to_string(),
            highest: range.end().to_string(),
        }
    }
}

pub(super) fn path(text: String) -> Result<PathBuf, Problem> {
    match text.is_empty() {
        true => Err(Problem::Empty),
        false => Ok(text.into()),
    }
}

pub(super) fn some_path(text: String) -> Result<Option<PathBuf>, Problem> {
    path(text).map(Some)
}

/// Three octal digits, with or without zeros before them.
pub(super) fn file_mode(text: String) -> Result<u32, Problem> {
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if is_octal && text.len() >= 3 && mode <= 0o777 => Ok(mode),
        Ok(_) | Err(_) => Err(Problem::FileMode { text }),
    }
}

pub(super) fn listen(texts: Vec<String>) -> Result<Vec<Listen>, Problem> {
    if texts.is_empty() {
        return Err(Problem::Empty);
    }
    let addresses: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    addresses.map_err(Problem::Address)
}

/// What stands for no address.
pub(super) const OFF: &str = "off";

pub(super) fn listen_or_off(text: String) -> Result<Option<Listen>, Problem> {
    match text == OFF {
        true => Ok(None),
        false => text.parse().map(Some).map_err(Problem::Address),
    }
}

pub(super) fn uid(text: String) -> Result<Option<Uid>, Problem> {
    text.parse().map(Some).map_err(Problem::Uid)
}

pub(super) fn entity_types(names: Vec<String>) -> Result<Option<BTreeSet<String>>, Problem> {
    // An empty variable is a list of one empty text. It must mean that no type may be sent: a
    // restriction that someone emptied may not turn into no restriction.
    let names = names.into_iter().filter(|text| !text.is_empty());
    let types: Result<_, _> = names.map(entity_type).collect();
    types.map(Some)
}

fn entity_type(text: String) -> Result<String, Problem> {
    match is_type_name(&text) {
        true => Ok(text),
        false => Err(Problem::EntityType { text }),
    }
}

pub(super) fn switch(on: bool) -> Result<bool, Problem> {
    Ok(on)
}

pub(super) fn word<T: Copy>(text: String, words: &[(&str, T)]) -> Result<T, Problem> {
    let meaning = words.iter().find(|(word, _)| *word == text);
    meaning.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let allowed: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let allowed = allowed.join(", ");
        Problem::Word { text, allowed }
    })
}

pub(super) fn number<T: TryFrom<i64>>(
    number: i64,
    range: RangeInclusive<i64>,
) -> Result<T, Problem> {
    match T::try_from(number) {
        Ok(checked) if range.contains(&number) => Ok(checked),
        Ok(_) | Err(_) => Err(Problem::out_of_range(number, &range)),
    }
}

/// Zero is none.
pub(super) fn number_or_none(
    number: i64,
    range: RangeInclusive<i64>,
) -> Result<Option<NonZeroU64>, Problem> {
    self::number(number, range).map(NonZeroU64::new)
}

/// Zero is none.
pub(super) fn duration_or_none(
    text: String,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Problem> {
    match humantime::parse_duration(&text) {
        Ok(Duration::ZERO) => Ok(None),
        Ok(_) | Err(_) => duration(text, range).map(Some),
    }
}

pub(super) fn duration(text: String, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let duration = humantime::parse_duration(&text).map_err(|error| {
        let reason = error.to_string();
        Problem::Duration { text, reason }
    })?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let shown = humantime::format_duration;
    let range = shown(*range.start())..=shown(*range.end());
    Err(Problem::out_of_range(shown(duration), &range))
}

pub(super) fn destination(text: String) -> Result<Destination, Problem> {
    text.parse().map_err(|_| Problem::Destination { text })
}

pub(super) fn share(text: String) -> Result<Share, Problem> {
    text.parse().map_err(|_| Problem::Share { text })
}

pub(super) fn attribute_paths(paths: Vec<String>) -> Result<Vec<AttributePath>, Problem> {
    // An empty variable is a list of one empty text, and means what an empty list means.
    let paths = paths.into_iter().filter(|text| !text.is_empty());
    let path = |text: String| text.parse().map_err(|_| Problem::AttributePath { text });
    paths.map(path).collect()
}

/// Reads filters of the log. Values of fields are compared as they are written: compiling a regular
/// expression may take all the memory that there is.
pub(crate) fn log_filters() -> Builder {
    EnvFilter::builder().with_regex(false)
}

pub(crate) fn log_filter(text: String) -> Result<String, Problem> {
    if text.trim().is_empty() {
        return Err(Problem::Empty);
    }
    match log_filters().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let reason = error.to_string();
            Err(Problem::LogFilter { text, reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_the_log_compiles_no_regular_expression() {
        // An automaton for it has a state for each of 2^40 texts.
        let text = format!("[{{x=\"[ab]*a{}\"}}]=trace", "[ab]".repeat(40));
        assert!(log_filter(text).is_ok());
    }

    #[track_caller]
    fn check(text: &str, type_name: &str, id: &str) {
        let uid = text.parse::<Uid>().unwrap();
        assert_eq!(uid, Uid::new(type_name, id));
        assert_eq!(
            uid.to_string().parse::<Uid>(),
            Ok(uid),
            "what is shown can be read"
        );
    }

    #[test]
    fn a_uid_is_written_as_in_a_policy() {
        check(r#"User::"alice""#, "User", "alice");
        check(r#"Shop::Order::"""#, "Shop::Order", "");
        check(r#"User::"it's""#, "User", "it's");
        check(r#"User::"it\'s""#, "User", "it's");
        check(r#"User::"\u{1F600} é \0 \" \\""#, "User", "😀 é \0 \" \\");
    }

    #[test]
    fn a_text_that_is_no_uid_is_refused() {
        for text in [
            "",
            "User",
            r#"alice"#,
            r#""alice""#,
            r#"User::"a" x"#,
            r#"if::"a""#,
        ] {
            let refused = text.parse::<Uid>();
            assert!(
                matches!(refused, Err(InvalidUid::Syntax { .. })),
                "{text}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_uid_of_any_length_and_shape_does_not_harm_the_parser() {
        for shape in ["(", "a::", "\"", "{", "/", "\u{0}"] {
            let text = shape.repeat(4096 / shape.len());
            assert!(text.parse::<Uid>().is_err());
        }
        assert_eq!(
            "x".repeat(4097).parse::<Uid>(),
            Err(InvalidUid::TooLong(4097))
        );
    }
}
