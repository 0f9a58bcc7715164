//! Reads single values: each function turns the text of a key into its value, or says what is
//! allowed.

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
use crate::pdp::settings::KnownTypes;

/// A key with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct InvalidValue {
    /// The key, as in the configuration file.
    pub key: &'static str,
    /// The problem with its value.
    pub problem: Problem,
}

/// The problem with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The value is empty.
    #[error("must not be empty")]
    Empty,
    /// The key has no meaning without this other one, which is not set or contradicts it.
    #[error("needs `{0}`")]
    Needs(&'static str),
    /// The text is not one of the key's words.
    #[error("is `{0}`; allowed: {1}")]
    Word(String, String),
    /// The value is below the lowest or above the highest allowed one.
    #[error("is {0}; allowed: {1} to {2}")]
    OutOfRange(String, String, String),
    /// The text does not have the expected form.
    #[error("is `{0}`; expected {1}")]
    Form(String, &'static str),
    /// The text does not have the expected form, with the parser's message.
    #[error("is `{0}`; expected {1}: {2}")]
    Syntax(String, &'static str, String),
    /// An item of the list does not have the expected form.
    #[error("contains `{0}`; expected {1}")]
    Item(String, &'static str),
    /// The text is not an address.
    #[error("is not an address: {0}")]
    Address(InvalidAddress),
    /// The text is not an entity uid.
    #[error("is not an entity uid: {0}")]
    Uid(InvalidUid),
}

impl Problem {
    fn out_of_range<T: Display>(value: T, range: &RangeInclusive<T>) -> Self {
        let [value, lowest, highest] = [&value, range.start(), range.end()].map(T::to_string);
        Self::OutOfRange(value, lowest, highest)
    }
}

pub(super) fn path(text: String) -> Result<PathBuf, Problem> {
    match text.is_empty() {
        true => Err(Problem::Empty),
        false => Ok(text.into()),
    }
}

/// Reads three octal digits, with or without leading zeros.
pub(super) fn file_mode(text: String) -> Result<u32, Problem> {
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if is_octal && text.len() >= 3 && mode <= 0o777 => Ok(mode),
        Ok(_) | Err(_) => Err(Problem::Form(text, "an octal file mode such as `0660`")),
    }
}

pub(super) fn listen(texts: Vec<String>) -> Result<Vec<Listen>, Problem> {
    if texts.is_empty() {
        return Err(Problem::Empty);
    }
    let addresses: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    addresses.map_err(Problem::Address)
}

/// Reads an address; the word `off` is `None`.
pub(super) fn listen_or_off(text: String) -> Result<Option<Listen>, Problem> {
    match text == "off" {
        true => Ok(None),
        false => text.parse().map(Some).map_err(Problem::Address),
    }
}

pub(super) fn uid(text: String) -> Result<Uid, Problem> {
    text.parse().map_err(Problem::Uid)
}

pub(super) fn entity_types(names: Vec<String>) -> Result<BTreeSet<String>, Problem> {
    // An empty variable is a list of one empty text. It must allow no type: emptying a restriction
    // must not remove it.
    let names = names.into_iter().filter(|text| !text.is_empty());
    let checked = names.map(|text| match is_type_name(&text) {
        true => Ok(text),
        false => Err(Problem::Item(text, "entity types such as `Shop::Order`")),
    });
    checked.collect()
}

/// Parses a list of entity types, or `*` for all.
pub(super) fn known_types(names: Vec<String>) -> Result<KnownTypes, Problem> {
    match names.as_slice() {
        [all] if all == "*" => Ok(KnownTypes::All),
        _ => entity_types(names).map(KnownTypes::Named),
    }
}

pub(super) fn switch(on: bool) -> Result<bool, Problem> {
    Ok(on)
}

pub(super) fn word<T: Copy>(text: String, words: &[(&str, T)]) -> Result<T, Problem> {
    let meaning = words.iter().find(|(word, _)| *word == text);
    meaning.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let allowed: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Problem::Word(text, allowed.join(", "))
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

/// Reads a number; zero is `None`.
pub(super) fn number_or_none(
    number: i64,
    range: RangeInclusive<i64>,
) -> Result<Option<NonZeroU64>, Problem> {
    self::number(number, range).map(NonZeroU64::new)
}

/// Reads a duration; zero is `None`.
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
        Problem::Syntax(text, "a duration such as `5s` or `50ms`", error.to_string())
    })?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let shown = humantime::format_duration;
    let range = shown(*range.start())..=shown(*range.end());
    Err(Problem::out_of_range(shown(duration), &range))
}

pub(super) fn destination(text: String) -> Result<Destination, Problem> {
    Destination::parse(&text)
        .ok_or_else(|| Problem::Word(text, "off, stdout, file:PATH, otlp".to_owned()))
}

pub(super) fn share(text: String) -> Result<Share, Problem> {
    let expected = "a share from 0 to 1 such as `0.1` or `10%`";
    Share::parse(&text).ok_or(Problem::Form(text, expected))
}

pub(super) fn attribute_paths(paths: Vec<String>) -> Result<Vec<AttributePath>, Problem> {
    // An empty variable is a list of one empty text. It means the same as an empty list.
    let paths = paths.into_iter().filter(|text| !text.is_empty());
    let expected =
        "attributes such as `context.amount`, `Shop::Order.owner`, `User.*` or `errors.message`";
    let path = |text: String| AttributePath::parse(&text).ok_or(Problem::Item(text, expected));
    paths.map(path).collect()
}

/// Returns a parser of log filters. Regular expressions for field values are disabled: compiling
/// one may use all memory.
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
            let expected = "a filter such as `info` or `cedar_pdp=debug,warn`";
            Err(Problem::Syntax(text, expected, error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_filter_compiles_no_regular_expression() {
        // An automaton of this expression has 2^40 states.
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
            "its own text can be parsed"
        );
    }

    #[test]
    fn uid_is_written_as_in_policy() {
        check(r#"User::"alice""#, "User", "alice");
        check(r#"Shop::Order::"""#, "Shop::Order", "");
        check(r#"User::"it's""#, "User", "it's");
        check(r#"User::"it\'s""#, "User", "it's");
        check(r#"User::"\u{1F600} é \0 \" \\""#, "User", "😀 é \0 \" \\");
    }

    #[test]
    fn invalid_uid_is_rejected() {
        for text in [
            "",
            "User",
            r#"alice"#,
            r#""alice""#,
            r#"User::"a" x"#,
            r#"if::"a""#,
        ] {
            let parsed = text.parse::<Uid>();
            assert!(
                matches!(parsed, Err(InvalidUid::Syntax { .. })),
                "{text}: {parsed:?}"
            );
        }
    }

    #[test]
    fn long_and_nested_uids_are_rejected() {
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
