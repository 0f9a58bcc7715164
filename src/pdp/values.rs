//! Converts a query's plain values to Cedar values, or names the invalid field.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock};

use cedar_policy_core::FromNormalizedStr as _;
use cedar_policy_core::ast::{self, EntityType, EntityUID, PartialValue};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use super::query::{InvalidQuery, InvalidUid, MAX_UID_BYTES, Problem, Record, Uid, Value};
use super::sources::scanner::{self, Language};

/// The maximum nesting of sets and records in a value, the value itself included.
pub const MAX_VALUE_DEPTH: usize = 32;

const MAX_TYPE_NAME_BYTES: usize = 4_096;

/// The entity types of a snapshot by name.
///
/// Parsing a type name costs more than everything else that is done with a uid, and callers nearly
/// always send names that the snapshot contains.
#[derive(Debug, Default)]
pub(super) struct TypeNames(HashMap<String, EntityType>);

impl TypeNames {
    pub(super) fn new(types: impl IntoIterator<Item = EntityType>) -> Self {
        Self(types.into_iter().map(|ty| (ty.to_string(), ty)).collect())
    }

    fn entity_type(&self, text: &str) -> Result<EntityType, InvalidQuery> {
        if let Some(ty) = self.0.get(text) {
            return Ok(ty.clone());
        }
        if text.is_empty() {
            return Err(InvalidQuery::field("type", Problem::EmptyType));
        }
        parse_type_name(text).ok_or_else(|| {
            let text = text.chars().take(64).collect();
            InvalidQuery::field("type", Problem::TypeName(text))
        })
    }

    /// Converts `uid` to a Cedar uid.
    pub(super) fn uid(&self, uid: &Uid) -> Result<EntityUID, InvalidQuery> {
        Ok(EntityUID::from_components(
            self.entity_type(&uid.type_name)?,
            ast::Eid::new(uid.id.as_str()),
            None,
        ))
    }

    /// Converts all `uids` to Cedar uids.
    pub(super) fn uids(&self, uids: &[Uid]) -> Result<Vec<EntityUID>, InvalidQuery> {
        let uid = |(index, uid)| self.uid(uid).map_err(|error| error.at_index(index));
        uids.iter().enumerate().map(uid).collect()
    }

    /// Converts `value`, which is nested in `depth - 1` others, to a Cedar value.
    fn value_at_depth(&self, value: &Value, depth: usize) -> Result<ast::Value, InvalidQuery> {
        if depth > MAX_VALUE_DEPTH {
            return Err(InvalidQuery::here(Problem::TooDeep(MAX_VALUE_DEPTH)));
        }
        match value {
            Value::Bool(value) => Ok(ast::Value::from(*value)),
            Value::Long(value) => Ok(ast::Value::from(*value)),
            Value::String(value) => Ok(ast::Value::from(value.as_str())),
            Value::Entity(uid) => Ok(ast::Value::from(
                self.uid(uid).map_err(|error| error.within("entity"))?,
            )),
            Value::Set(members) => {
                let member = |(index, member)| {
                    self.value_at_depth(member, depth + 1)
                        .map_err(|error| error.at_index(index).within("set"))
                };
                let members = members.iter().enumerate().map(member);
                Ok(ast::Value::set(
                    members.collect::<Result<Vec<_>, _>>()?,
                    None,
                ))
            }
            Value::Record(record) => {
                let fields = self.fields_at_depth(record, depth + 1);
                let fields = fields.map_err(|error| error.within("record"))?;
                Ok(ast::Value::record_arc(Arc::new(fields), None))
            }
            Value::Decimal(text) => DECIMAL.call(text),
            Value::Ip(text) => IP.call(text),
            Value::Datetime(text) => DATETIME.call(text),
            Value::Duration(text) => DURATION.call(text),
        }
    }

    /// Converts `record` to Cedar values by name.
    pub(super) fn fields(
        &self,
        record: &Record,
    ) -> Result<BTreeMap<SmolStr, ast::Value>, InvalidQuery> {
        self.fields_at_depth(record, 1)
    }

    fn fields_at_depth(
        &self,
        record: &Record,
        depth: usize,
    ) -> Result<BTreeMap<SmolStr, ast::Value>, InvalidQuery> {
        let fields = record.iter().map(|(name, value)| {
            let value = self.value_at_depth(value, depth);
            Ok((name.into(), value.map_err(|error| error.at_key(name))?))
        });
        fields.collect()
    }
}

impl std::str::FromStr for Uid {
    type Err = InvalidUid;

    /// Parses a uid in Cedar syntax: `User::"alice"`.
    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        if text.len() > MAX_UID_BYTES {
            return Err(InvalidUid::TooLong(text.len()));
        }
        // `cedar_policy::EntityUid` would reject `User::"it's"`, whose normal form is `it\'s`.
        let syntax = |reason: String| InvalidUid::Syntax {
            text: text.to_owned(),
            reason,
        };
        scanner::check(text, Language::Policies).map_err(|error| syntax(error.to_string()))?;
        let uid = EntityUID::from_str(text).map_err(|error| syntax(error.to_string()))?;
        Ok(plain_uid(&uid))
    }
}

/// Converts a Cedar uid to a plain one.
pub(super) fn plain_uid(uid: &EntityUID) -> Uid {
    Uid::new(
        uid.entity_type().to_string(),
        AsRef::<str>::as_ref(uid.eid()),
    )
}

/// Returns whether `text` is a valid entity type name.
#[must_use]
pub fn is_type_name(text: &str) -> bool {
    parse_type_name(text).is_some()
}

/// Parses an entity type name.
///
/// Cedar's parser accepts white space and comments between the parts of a name. A caller's type is
/// data, so only the normal form is accepted.
pub(super) fn parse_type_name(text: &str) -> Option<EntityType> {
    let is_identifier = |part: &str| {
        let mut bytes = part.bytes();
        bytes
            .next()
            .is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
            && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
    };
    let is_name = text.len() <= MAX_TYPE_NAME_BYTES && text.split("::").all(is_identifier);
    if !is_name {
        return None;
    }
    // Cedar rejects keywords, such as `if::in`. Its parser would take 10 us for each type of a
    // request that no policy names.
    let name = ast::Name::from_normalized_str(text).ok();
    name.map(EntityType::from)
}

struct Constructor {
    type_name: &'static str,
    function: Option<&'static ast::ExtensionFunction>,
}

impl Constructor {
    fn new(type_name: &'static str) -> Self {
        let function = ast::Name::from_str(type_name)
            .ok()
            .and_then(|name| Extensions::all_available().func(&name).ok());
        Self {
            type_name,
            function,
        }
    }

    fn call(&self, text: &str) -> Result<ast::Value, InvalidQuery> {
        let invalid = |message: String| {
            InvalidQuery::here(Problem::ExtensionValue {
                type_name: self.type_name,
                message,
            })
        };
        let function = self
            .function
            .ok_or_else(|| invalid("this build of Cedar has no such type".to_owned()))?;
        match function.call(&[ast::Value::from(text)]) {
            Ok(PartialValue::Value(value)) => Ok(value),
            Ok(PartialValue::Residual(_)) => Err(invalid("the text gives no value".to_owned())),
            Err(error) => Err(invalid(error.to_string())),
        }
    }
}

static DECIMAL: LazyLock<Constructor> = LazyLock::new(|| Constructor::new("decimal"));
static IP: LazyLock<Constructor> = LazyLock::new(|| Constructor::new("ip"));
static DATETIME: LazyLock<Constructor> = LazyLock::new(|| Constructor::new("datetime"));
static DURATION: LazyLock<Constructor> = LazyLock::new(|| Constructor::new("duration"));

/// The maximum length of an error text in an answer, in bytes.
///
/// Cedar's errors quote values, and a value can be as long as a message. A thousand policies that
/// fail on one long id must not make a thousand copies of it.
const MAX_ERROR_BYTES: usize = 2_000;

/// Returns the text of `error`, truncated to [`MAX_ERROR_BYTES`].
pub(super) fn bounded_text(error: &impl std::fmt::Display) -> String {
    use std::fmt::Write as _;

    struct Truncated(String);

    impl std::fmt::Write for Truncated {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let remaining = MAX_ERROR_BYTES.saturating_sub(self.0.len());
            if text.len() <= remaining {
                self.0.push_str(text);
                return Ok(());
            }
            let end = text.floor_char_boundary(remaining);
            self.0.push_str(text.get(..end).unwrap_or_default());
            self.0.push('…');
            // The error ends the formatting, because all further text would be discarded.
            Err(std::fmt::Error)
        }
    }

    let mut text = Truncated(String::new());
    // An error means that the text was truncated, which the text shows itself.
    let _ = write!(text, "{error}");
    text.0
}

/// Returns the text of `error` and all its causes on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        let cause = cause.to_string();
        // Transparent errors repeat the text of their cause.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_at(value: Value) -> (String, Problem) {
        let error = TypeNames::default().value_at_depth(&value, 1).unwrap_err();
        (error.field, error.problem)
    }

    #[test]
    fn type_names_must_be_in_normal_form() {
        for good in ["User", "A::B", "_x9", "Shop::_::Order"] {
            assert!(parse_type_name(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "9",
            "A::",
            "::A",
            "A :: B",
            "A::B // x",
            "if",
            "A::in",
            "Ä",
            "A:B",
            "User::\"x\"",
            "a\0b",
        ] {
            assert!(parse_type_name(bad).is_none(), "{bad}");
        }
        assert!(parse_type_name(&"a::".repeat(100_000)).is_none());
    }

    #[test]
    fn type_names_are_those_of_cedar() {
        let words = "true false if then else in is like has __cedar permit forbid when unless \
                     principal action resource context Set String Long Bool Record Entity \
                     Extension ip decimal datetime duration ipaddr template where type _ __";
        for word in words.split_whitespace() {
            for text in [word.to_owned(), format!("{word}::A"), format!("A::{word}")] {
                let by_parser = ast::Name::from_str(&text).ok().map(EntityType::from);
                assert_eq!(parse_type_name(&text), by_parser, "{text}");
            }
        }
    }

    #[test]
    fn invalid_values_are_reported_with_their_path() {
        let deep = Value::Set(vec![
            Value::Bool(true),
            Value::Record(
                BTreeMap::from([("x".to_owned(), Value::Decimal("1.23456".to_owned()))]).into(),
            ),
        ]);
        let (field, problem) = problem_at(deep);
        assert_eq!(field, r#"set[1].record["x"]"#);
        assert!(matches!(
            problem,
            Problem::ExtensionValue {
                type_name: "decimal",
                ..
            }
        ));
    }

    #[test]
    fn uids_are_parsed_in_cedar_syntax() {
        assert_eq!(
            r#"A::B::"x \"y\"""#.parse(),
            Ok(Uid::new("A::B", "x \"y\""))
        );
        assert_eq!(r#"User::"it's""#.parse(), Ok(Uid::new("User", "it's")));
        for bad in [
            "User",
            "User::alice",
            "",
            "User::\"",
            "((((((((((",
            &"(".repeat(3_000),
            &"a::".repeat(3_000),
        ] {
            assert!(bad.parse::<Uid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn value_nesting_is_bounded() {
        let nested =
            |levels: usize| (1..levels).fold(Value::Bool(true), |inner, _| Value::Set(vec![inner]));
        let names = TypeNames::default();
        assert!(names.value_at_depth(&nested(MAX_VALUE_DEPTH), 1).is_ok());
        let (_, problem) = problem_at(nested(MAX_VALUE_DEPTH + 1));
        assert_eq!(problem, Problem::TooDeep(MAX_VALUE_DEPTH));
    }

    #[test]
    fn extension_values_are_those_of_cedar() {
        for (good, bad) in [
            (
                Value::Ip("10.0.0.0/8".to_owned()),
                Value::Ip("10.0.0".to_owned()),
            ),
            (
                Value::Datetime("2024-10-15T11:35:00Z".to_owned()),
                Value::Datetime("yesterday".to_owned()),
            ),
            (
                Value::Duration("1h30m".to_owned()),
                Value::Duration("1 hour".to_owned()),
            ),
            (
                Value::Decimal("12.50".to_owned()),
                Value::Decimal("12".to_owned()),
            ),
        ] {
            assert!(
                TypeNames::default().value_at_depth(&good, 1).is_ok(),
                "{good:?}"
            );
            assert!(
                TypeNames::default().value_at_depth(&bad, 1).is_err(),
                "{bad:?}"
            );
        }
    }
}
