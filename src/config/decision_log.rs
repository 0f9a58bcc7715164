//! What an operator may set of the decision log, as values that cannot be wrong.

use std::path::PathBuf;
use std::str::FromStr;

use crate::pdp::is_type_name;

/// What of the decisions is logged, where to, and what happens when that does not keep up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionLogConfig {
    /// Where records go.
    pub destination: Destination,
    /// The share of ALLOWs that are logged; of DENYs all are.
    pub allow_sample: Share,
    /// What becomes of a decision that the queue has no room for.
    pub when_full: WhenFull,
    /// The most bytes of records that wait to be written.
    pub queue_bytes: usize,
    /// A file that would become larger than this makes room for a new one; 0 is never.
    pub max_file_bytes: u64,
    /// How many files are kept, the one that is written included.
    pub max_files: u32,
    /// What leaves the process unmasked.
    pub attributes: Vec<AttributePath>,
}

impl Default for DecisionLogConfig {
    fn default() -> Self {
        Self {
            destination: Destination::Off,
            allow_sample: Share::of_millionths(100_000),
            when_full: WhenFull::Drop,
            queue_bytes: 8 << 20,
            max_file_bytes: 100 << 20,
            max_files: 10,
            attributes: Vec::new(),
        }
    }
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere: decisions are not logged.
    Off,
    /// To the standard output.
    Stdout,
    /// To this file.
    File(PathBuf),
    /// To a collector, over OTLP.
    Otlp,
}

impl Destination {
    /// The text that means it.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdout => "stdout".to_owned(),
            Self::File(path) => format!("file:{}", path.display()),
            Self::Otlp => "otlp".to_owned(),
        }
    }
}

/// A text that names no destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDestination;

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        match (text, text.strip_prefix("file:")) {
            ("off", _) => Ok(Self::Off),
            ("stdout", _) => Ok(Self::Stdout),
            ("otlp", _) => Ok(Self::Otlp),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            (_, Some(_) | None) => Err(NoDestination),
        }
    }
}

/// What becomes of a decision that the queue has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It is answered and not logged, and that is counted.
    #[default]
    Drop,
    /// The call waits until there is room.
    Block,
}

/// A part of a whole, from nothing to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    millionths: u32,
}

/// A text that is no share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoShare;

impl Share {
    const WHOLE: u32 = 1_000_000;

    /// All of it.
    pub const ALL: Self = Self {
        millionths: Self::WHOLE,
    };

    const fn of_millionths(millionths: u32) -> Self {
        Self { millionths }
    }

    /// How many of a million; at most a million.
    #[must_use]
    pub fn millionths(self) -> u32 {
        self.millionths
    }

    /// The text that means it: `0.1`.
    #[must_use]
    pub fn to_text(self) -> String {
        if self == Self::ALL {
            return "1".to_owned();
        }
        let digits = format!("0.{:06}", self.millionths);
        digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    }
}

/// A number from 0 to 1 with at most six decimals, or the same in percent: `0.1`, `10%`.
impl FromStr for Share {
    type Err = NoShare;

    fn from_str(text: &str) -> Result<Self, NoShare> {
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
            return Err(NoShare);
        }
        let digits = format!("{whole}{part:0<decimals$}");
        let millionths: u32 = digits.parse().map_err(|_| NoShare)?;
        match millionths <= Self::WHOLE {
            true => Ok(Self { millionths }),
            false => Err(NoShare),
        }
    }
}

/// Something of a record that leaves the process unmasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributePath {
    /// `*`: everything.
    All,
    /// `errors.message`: what Cedar says of a policy's failure, which may quote values.
    ErrorMessages,
    /// `context.amount`, `context.*`: an attribute of the context.
    Context(Name),
    /// `Shop::Order.owner`, `User.*`: an attribute or tag of a request's entities of one type.
    Entity {
        /// The type.
        type_name: String,
        /// The attribute or tag.
        name: Name,
    },
}

/// A name, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `*`
    Any,
    /// This one.
    One(String),
}

impl Name {
    fn new(text: &str) -> Self {
        match text {
            "*" => Self::Any,
            name => Self::One(name.to_owned()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Any => "*",
            Self::One(name) => name,
        }
    }
}

impl AttributePath {
    /// The text that means it.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::All => "*".to_owned(),
            Self::ErrorMessages => "errors.message".to_owned(),
            Self::Context(name) => format!("context.{}", name.text()),
            Self::Entity { type_name, name } => format!("{type_name}.{}", name.text()),
        }
    }
}

/// A text that is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPath;

impl FromStr for AttributePath {
    type Err = NoPath;

    fn from_str(text: &str) -> Result<Self, NoPath> {
        if text == "*" {
            return Ok(Self::All);
        }
        // No type's name has a dot, and an attribute's may.
        match text.split_once('.') {
            Some(("errors", "message")) => Ok(Self::ErrorMessages),
            Some((_, "")) | None => Err(NoPath),
            Some(("context", name)) => Ok(Self::Context(Name::new(name))),
            Some((type_name, name)) if is_type_name(type_name) => Ok(Self::Entity {
                type_name: type_name.to_owned(),
                name: Name::new(name),
            }),
            Some(_) => Err(NoPath),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_number_or_a_percentage() {
        for (text, millionths, again) in [
            ("0", 0, "0"),
            ("1", 1_000_000, "1"),
            ("0.1", 100_000, "0.1"),
            ("10%", 100_000, "0.1"),
            ("0.000001", 1, "0.000001"),
            ("0.0001%", 1, "0.000001"),
            ("100%", 1_000_000, "1"),
            ("1.000", 1_000_000, "1"),
        ] {
            let share: Share = text.parse().unwrap();
            assert_eq!(share.millionths(), millionths, "{text}");
            assert_eq!(share.to_text(), again);
            assert_eq!(again.parse(), Ok(share));
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
            assert_eq!(text.parse::<Share>(), Err(NoShare), "{text}");
        }
    }

    #[test]
    fn a_destination_is_a_word_or_a_file() {
        for text in ["off", "stdout", "otlp", "file:/var/log/decisions.jsonl"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_text(), text);
        }
        for text in ["", "file", "file:", "Stdout", "/var/log/x"] {
            assert_eq!(text.parse::<Destination>(), Err(NoDestination), "{text}");
        }
    }

    #[test]
    fn a_path_names_an_attribute_of_the_context_or_of_a_type() {
        for text in [
            "*",
            "errors.message",
            "context.*",
            "context.a.b",
            "User.name",
            "Shop::Order.*",
        ] {
            assert_eq!(text.parse::<AttributePath>().unwrap().to_text(), text);
        }
        for text in ["", "context", "context.", ".x", "a b.x", "User"] {
            assert_eq!(text.parse::<AttributePath>(), Err(NoPath), "{text}");
        }
    }
}
