//! Turns a query's plain values into what Cedar evaluates, naming the field when it cannot.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock};

use cedar_policy_core::FromNormalizedStr as _;
use cedar_policy_core::ast::{self, EntityType, EntityUID, PartialValue};
use cedar_policy_core::extensions::Extensions;
use smol_str::SmolStr;

use super::query::{InvalidQuery, InvalidUid, MAX_UID_BYTES, Problem, Record, Uid, Value};
use super::sources::scanner::{self, Language};

/// The most sets and records within one another that a value may have, counting itself.
pub const MAX_VALUE_DEPTH: usize = 32;

/// The longest entity type name that is parsed, in bytes.
const MAX_TYPE_NAME_BYTES: usize = 4_096;

/// The entity types that a snapshot mentions, by their text.
///
/// Parsing a type's name costs more than all else that is done with a uid, and the names that
/// callers send are nearly always ones that the snapshot knows.
#[derive(Debug, Default)]
pub(super) struct TypeNames(HashMap<String, EntityType>);

impl TypeNames {
    /// The names of these types.
    pub(super) fn new(types: impl IntoIterator<Item = EntityType>) -> Self {
        Self(types.into_iter().map(|ty| (ty.to_string(), ty)).collect())
    }

    fn entity_type(&self, text: &str) -> Result<EntityType, InvalidQuery> {
        if let Some(known) = self.0.get(text) {
            return Ok(known.clone());
        }
        if text.is_empty() {
            return Err(InvalidQuery::field("type", Problem::EmptyType));
        }
        parse_type_name(text).ok_or_else(|| {
            InvalidQuery::field(
                "type",
                Problem::TypeName {
                    text: text.chars().take(64).collect(),
                },
            )
        })
    }

    /// The Cedar uid for `uid`.
    pub(super) fn uid(&self, uid: &Uid) -> Result<EntityUID, InvalidQuery> {
        Ok(EntityUID::from_components(
            self.entity_type(&uid.type_name)?,
            ast::Eid::new(uid.id.as_str()),
            None,
        ))
    }

    /// The Cedar value for `value`.
    pub(super) fn value(&self, value: &Value) -> Result<ast::Value, InvalidQuery> {
        self.value_at(value, 1)
    }

    fn value_at(&self, value: &Value, depth: usize) -> Result<ast::Value, InvalidQuery> {
        if depth > MAX_VALUE_DEPTH {
            return Err(InvalidQuery::here(Problem::TooDeep {
                limit: MAX_VALUE_DEPTH,
            }));
        }
        match value {
            Value::Bool(value) => Ok(ast::Value::from(*value)),
            Value::Long(value) => Ok(ast::Value::from(*value)),
            Value::String(value) => Ok(ast::Value::from(value.as_str())),
            Value::Entity(uid) => Ok(ast::Value::from(
                self.uid(uid).map_err(|e| e.within("entity"))?,
            )),
            Value::Set(values) => {
                let members = values
                    .iter()
                    .enumerate()
                    .map(|(index, member)| {
                        self.value_at(member, depth + 1)
                            .map_err(|e| e.at_index(index).within("set"))
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(ast::Value::set(members, None))
            }
            Value::Record(record) => {
                let fields = record
                    .iter()
                    .map(|(name, field)| {
                        let field = self
                            .value_at(field, depth + 1)
                            .map_err(|e| e.at_key(name).within("record"))?;
                        Ok((SmolStr::from(name), field))
                    })
                    .collect::<Result<BTreeMap<_, _>, InvalidQuery>>()?;
                Ok(ast::Value::record_arc(Arc::new(fields), None))
            }
            Value::Decimal(text) => EXTENSIONS.decimal.call(text),
            Value::Ip(text) => EXTENSIONS.ip.call(text),
            Value::Datetime(text) => EXTENSIONS.datetime.call(text),
            Value::Duration(text) => EXTENSIONS.duration.call(text),
        }
    }

    /// The Cedar values of `record`, by name.
    pub(super) fn fields(
        &self,
        record: &Record,
    ) -> Result<BTreeMap<SmolStr, ast::Value>, InvalidQuery> {
        record
            .iter()
            .map(|(name, value)| {
                Ok((
                    SmolStr::from(name),
                    self.value(value).map_err(|e| e.at_key(name))?,
                ))
            })
            .collect()
    }
}

impl std::str::FromStr for Uid {
    type Err = InvalidUid;

    /// Reads a uid as people write it: `User::"alice"`.
    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        if text.len() > MAX_UID_BYTES {
            return Err(InvalidUid::TooLong(text.len()));
        }
        // Not `cedar_policy::EntityUid`: that one refuses `User::"it's"`, whose normal form is
        // `it\'s`.
        let syntax = |reason: String| InvalidUid::Syntax {
            text: text.to_owned(),
            reason,
        };
        scanner::check(text, Language::Policies).map_err(|error| syntax(error.to_string()))?;
        let uid = EntityUID::from_str(text).map_err(|error| syntax(error.to_string()))?;
        Ok(plain_uid(&uid))
    }
}

/// The plain form of a Cedar uid.
pub(super) fn plain_uid(uid: &EntityUID) -> Uid {
    Uid::new(
        uid.entity_type().to_string(),
        AsRef::<str>::as_ref(uid.eid()),
    )
}

/// Whether Cedar can have an entity type of this name.
#[must_use]
pub fn is_type_name(text: &str) -> bool {
    parse_type_name(text).is_some()
}

/// The entity type with this name, if Cedar can have one.
///
/// Cedar's parser takes white space and comments between the parts of a name; a caller's type is
/// data, so only the one normal spelling is taken.
pub(super) fn parse_type_name(text: &str) -> Option<EntityType> {
    let is_identifier = |part: &str| {
        let mut bytes = part.bytes();
        bytes
            .next()
            .is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
            && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
    };
    let plain = text.len() <= MAX_TYPE_NAME_BYTES && text.split("::").all(is_identifier);
    // Cedar has the last word: `if::in` is made of identifiers, and of keywords. (The same by its
    // parser takes 10 us, for each type of a request that no policy names.)
    plain
        .then(|| ast::Name::from_normalized_str(text).ok())
        .flatten()
        .map(EntityType::from)
}

/// The constructor of an extension type.
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
            Ok(PartialValue::Residual(_)) => Err(invalid("it is not a value".to_owned())),
            Err(error) => Err(invalid(error.to_string())),
        }
    }
}

struct Constructors {
    decimal: Constructor,
    ip: Constructor,
    datetime: Constructor,
    duration: Constructor,
}

static EXTENSIONS: LazyLock<Constructors> = LazyLock::new(|| Constructors {
    decimal: Constructor::new("decimal"),
    ip: Constructor::new("ip"),
    datetime: Constructor::new("datetime"),
    duration: Constructor::new("duration"),
});

/// The longest text of an error that an answer carries, in bytes.
///
/// Cedar's errors quote values, and a value can be as long as a message; a thousand policies that
/// fail on one long id must not make a thousand copies of it.
const MAX_ERROR_BYTES: usize = 2_000;

/// The text of `error`, cut off where it becomes too long to be carried.
pub(super) fn bounded_text(error: &impl std::fmt::Display) -> String {
    use std::fmt::Write as _;

    struct Truncated(String);

    impl std::fmt::Write for Truncated {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let mut room = MAX_ERROR_BYTES.saturating_sub(self.0.len());
            if text.len() <= room {
                self.0.push_str(text);
                return Ok(());
            }
            while !text.is_char_boundary(room) {
                room -= 1;
            }
            self.0.push_str(text.get(..room).unwrap_or_default());
            self.0.push('…');
            // Ends the formatting: what follows would be thrown away.
            Err(std::fmt::Error)
        }
    }

    let mut text = Truncated(String::new());
    // An error says that the text was cut, which it shows itself.
    let _ = write!(text, "{error}");
    text.0
}

/// An error with all its causes on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Transparent errors repeat what stands already.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_at(value: Value) -> (String, Problem) {
        let error = TypeNames::default().value(&value).unwrap_err();
        (error.field.as_str().to_owned(), error.problem)
    }

    #[test]
    fn only_the_normal_spelling_of_a_type_is_a_type() {
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
    fn a_type_is_what_the_parser_takes() {
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
    fn a_bad_value_is_named_by_its_path() {
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
    fn uids_are_read_as_people_write_them() {
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
    fn values_nest_to_a_bound() {
        let nested =
            |levels: usize| (1..levels).fold(Value::Bool(true), |inner, _| Value::Set(vec![inner]));
        assert!(TypeNames::default().value(&nested(MAX_VALUE_DEPTH)).is_ok());
        let (_, problem) = problem_at(nested(MAX_VALUE_DEPTH + 1));
        assert_eq!(
            problem,
            Problem::TooDeep {
                limit: MAX_VALUE_DEPTH
            }
        );
    }

    #[test]
    fn extension_values_are_those_that_cedar_reads() {
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
            assert!(TypeNames::default().value(&good).is_ok(), "{good:?}");
            assert!(TypeNames::default().value(&bad).is_err(), "{bad:?}");
        }
    }
}
