//! JSON as a token holds it: every member once, and nothing nested deeper than anyone needs.
//!
//! `serde_json::Value` keeps the last of two members of one name. Others keep the first, and a token
//! that two readers read differently is an attack.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

/// The most objects and lists within one another, the outermost counting as one.
pub(super) const MAX_DEPTH: usize = 16;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that is no 64-bit signed integer.
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(Object),
}

/// The members of a JSON object.
pub(super) type Object = BTreeMap<String, Json>;

/// Why a text is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsound {
    /// It is no JSON, holds a member twice, or is nested too deep.
    Json,
    /// It is JSON, and no object.
    NoObject,
}

/// Reads an object, the whole text.
pub(super) fn object(text: &[u8]) -> Result<Object, Unsound> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Nested { left: MAX_DEPTH }
        .deserialize(&mut reader)
        .map_err(|_| Unsound::Json)?;
    reader.end().map_err(|_| Unsound::Json)?;
    match value {
        Json::Object(members) => Ok(members),
        Json::Null
        | Json::Bool(_)
        | Json::Integer(_)
        | Json::Float(_)
        | Json::String(_)
        | Json::Array(_) => Err(Unsound::NoObject),
    }
}

/// Reads a value within which so many levels may come.
#[derive(Clone, Copy)]
struct Nested {
    left: usize,
}

impl Nested {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1);
        Ok(Self {
            left: left.ok_or_else(|| E::custom("nested too deep"))?,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "what is no 64-bit signed integer is only ever compared as a float"
    )]
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Float(value as f64), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let within = self.deeper()?;
        let mut members = Vec::new();
        while let Some(member) = list.next_element_seed(within)? {
            members.push(member);
        }
        Ok(Json::Array(members))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let within = self.deeper()?;
        let mut members = Object::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(within)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member twice"));
            }
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_stands_twice_is_refused_wherever_it_stands() {
        for text in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"{"x": [{"a": 1, "a": 2}]}"#,
        ] {
            assert_eq!(object(text.as_bytes()), Err(Unsound::Json), "{text}");
        }
        assert!(object(br#"{"a": {"a": 1}}"#).is_ok());
    }

    #[test]
    fn nesting_is_bounded_however_deep_it_is() {
        let nested =
            |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(object(nested(MAX_DEPTH).as_bytes()), Err(Unsound::Json));
        assert_eq!(object(nested(1_000_000).as_bytes()), Err(Unsound::Json));
        let open = r#"{"a":"#.repeat(1_000_000);
        assert_eq!(object(open.as_bytes()), Err(Unsound::Json));
    }

    #[test]
    fn what_is_no_object_or_more_than_one_is_refused() {
        for text in ["[]", "1", "null", "\"\""] {
            assert_eq!(object(text.as_bytes()), Err(Unsound::NoObject), "{text}");
        }
        for text in ["", "{} {}", "{}x", "{\"a\":}", "\u{feff}{}", "{'a':1}"] {
            assert_eq!(object(text.as_bytes()), Err(Unsound::Json), "{text}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(Unsound::Json));
    }
}
