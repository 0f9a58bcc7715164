//! Settings of the decision log.

use std::path::PathBuf;

use crate::pdp::is_type_name;

/// Settings of the decision log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLogConfig {
    /// Destination of the records.
    pub destination: Destination,
    /// Share of ALLOWs that are logged; every DENY is logged.
    pub allow_sample: Share,
    /// Effect of a full queue.
    pub when_full: WhenFull,
    /// Most bytes of records that wait to be written.
    pub queue_bytes: usize,
    /// Size beyond which a file is rotated, in bytes; 0 disables rotation.
    pub max_file_bytes: u64,
    /// Most files kept, the current one included.
    pub max_files: u32,
    /// Values that are logged unmasked.
    pub attributes: Vec<AttributePath>,
}

/// Destination of decision log records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Decisions are not logged.
    Off,
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// An OpenTelemetry collector, over OTLP.
    Otlp,
}

impl Destination {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "stdout" => Some(Self::Stdout),
            "otlp" => Some(Self::Otlp),
            other => {
                let path = other
                    .strip_prefix("file:")
                    .filter(|path| !path.is_empty())?;
                Some(Self::File(path.into()))
            }
        }
    }
}

/// Effect of a full queue on a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The decision is answered and not logged; the dropped record is counted.
    Drop,
    /// The call waits for room in the queue.
    Block,
}

/// A share from 0 to 1, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    const WHOLE: u32 = 1_000_000;

    /// The whole.
    pub const ALL: Self = Self(Self::WHOLE);

    /// Returns the share in millionths; at most a million.
    #[must_use]
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Parses a number from 0 to 1 with at most six decimals, or the same in percent: `0.1`, `10%`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, decimals) = match text.strip_suffix('%') {
            Some(percent) => (percent, 4),
            None => (text, 6),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || whole.len() > 3
            || part.len() > decimals
            || !are_digits(whole)
            || !are_digits(part)
        {
            return None;
        }
        let digits = format!("{whole}{part:0<decimals$}");
        let millionths = digits.parse().ok()?;
        (millionths <= Self::WHOLE).then_some(Self(millionths))
    }
}

/// Values of a record that are logged unmasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributePath {
    /// `*`: all values.
    All,
    /// `errors.message`: Cedar's message for a failed policy, which may quote values.
    ErrorMessages,
    /// `context.amount`, `context.*`: attributes of the context.
    Context(Name),
    /// `Shop::Order.owner`, `User.*`: attributes and tags of request entities of one type.
    Entity(String, Name),
}

/// One name, or all names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `*`: all names.
    Any,
    /// One name.
    One(String),
}

impl Name {
    fn new(text: &str) -> Self {
        match text {
            "*" => Self::Any,
            name => Self::One(name.to_owned()),
        }
    }
}

impl AttributePath {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        // Attribute names may have a dot, type names do not.
        match text.split_once('.')? {
            ("errors", "message") => Some(Self::ErrorMessages),
            (_, "") => None,
            ("context", name) => Some(Self::Context(Name::new(name))),
            (type_name, name) => {
                is_type_name(type_name).then(|| Self::Entity(type_name.to_owned(), Name::new(name)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_number_or_percentage() {
        for (text, millionths) in [
            ("0", 0),
            ("1", 1_000_000),
            ("0.1", 100_000),
            ("10%", 100_000),
            ("0.000001", 1),
            ("0.0001%", 1),
            ("100%", 1_000_000),
            ("1.000", 1_000_000),
        ] {
            let share = Share::parse(text).unwrap();
            assert_eq!(share.millionths(), millionths, "{text}");
        }
        for text in [
            "",
            "%",
            "1.1",
            "101%",
            "-1",
            "+1",
            "0.0000001",
            ".5",
            "1e-1",
            "9999999999",
        ] {
            assert_eq!(Share::parse(text), None, "{text}");
        }
    }

    #[test]
    fn destination_is_word_or_file() {
        let file = "file:/var/log/decisions.jsonl";
        for (text, destination) in [
            ("off", Destination::Off),
            ("stdout", Destination::Stdout),
            ("otlp", Destination::Otlp),
            (file, Destination::File("/var/log/decisions.jsonl".into())),
        ] {
            assert_eq!(Destination::parse(text), Some(destination));
        }
        for text in ["", "file", "file:", "Stdout", "/var/log/x"] {
            assert_eq!(Destination::parse(text), None, "{text}");
        }
    }

    #[test]
    fn path_names_attribute_of_context_or_type() {
        let name = |name: &str| Name::One(name.to_owned());
        let entity = |type_name: &str, name| AttributePath::Entity(type_name.to_owned(), name);
        for (text, path) in [
            ("*", AttributePath::All),
            ("errors.message", AttributePath::ErrorMessages),
            ("context.*", AttributePath::Context(Name::Any)),
            ("context.a.b", AttributePath::Context(name("a.b"))),
            ("User.name", entity("User", name("name"))),
            ("Shop::Order.*", entity("Shop::Order", Name::Any)),
        ] {
            assert_eq!(AttributePath::parse(text), Some(path));
        }
        for text in ["", "context", "context.", ".x", "a b.x", "User"] {
            assert_eq!(AttributePath::parse(text), None, "{text}");
        }
    }
}
