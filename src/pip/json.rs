//! A strict JSON reader for token headers and claims: no duplicate members, bounded nesting.
//!
//! `serde_json::Value` keeps the last of two members with one name. Other readers keep the first,
//! and a token that two readers read differently is an attack.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
pub(super) use serde_json::Value as Json;

/// Most nested objects and arrays, the outermost counting as one.
pub(super) const MAX_DEPTH: usize = 16;

pub(super) type Object = serde_json::Map<String, Json>;

/// The problems with a text that is not a JSON object in the strict sense.
const INVALID: &str = "is not valid JSON, repeats a member, or is nested too deep";
const NOT_OBJECT: &str = "is not a JSON object";

/// Parses a JSON object, which must be the whole text. The error is the problem with the text.
pub(super) fn parse_object(text: &[u8]) -> Result<Object, &'static str> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let limited = DepthLimited {
        remaining: MAX_DEPTH,
    };
    let value = limited.deserialize(&mut reader).map_err(|_| INVALID)?;
    reader.end().map_err(|_| INVALID)?;
    let Json::Object(members) = value else {
        return Err(NOT_OBJECT);
    };
    Ok(members)
}

/// A deserializer of one value with a limit on the levels inside it.
#[derive(Clone, Copy)]
struct DepthLimited {
    remaining: usize,
}

impl DepthLimited {
    /// Returns the deserializer for the values one level deeper.
    fn descend<E: serde::de::Error>(self) -> Result<Self, E> {
        let remaining = self.remaining.checked_sub(1);
        Ok(Self {
            remaining: remaining.ok_or_else(|| E::custom("nested too deep"))?,
        })
    }
}

impl<'de> DeserializeSeed<'de> for DepthLimited {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DepthLimited {
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
        Ok(Json::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::from(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let inner = self.descend()?;
        let mut members = Vec::new();
        while let Some(member) = list.next_element_seed(inner)? {
            members.push(member);
        }
        Ok(Json::Array(members))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let inner = self.descend()?;
        let mut members = Object::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_member_is_rejected_at_any_level() {
        for text in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"{"x": [{"a": 1, "a": 2}]}"#,
        ] {
            assert_eq!(parse_object(text.as_bytes()), Err(INVALID), "{text}");
        }
        assert!(parse_object(br#"{"a": {"a": 1}}"#).is_ok());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested =
            |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(parse_object(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(parse_object(nested(MAX_DEPTH).as_bytes()), Err(INVALID));
        assert_eq!(parse_object(nested(1_000_000).as_bytes()), Err(INVALID));
        let open = r#"{"a":"#.repeat(1_000_000);
        assert_eq!(parse_object(open.as_bytes()), Err(INVALID));
    }

    #[test]
    fn only_one_object_is_accepted() {
        for text in ["[]", "1", "null", "\"\""] {
            assert_eq!(parse_object(text.as_bytes()), Err(NOT_OBJECT), "{text}");
        }
        for text in ["", "{} {}", "{}x", "{\"a\":}", "\u{feff}{}", "{'a':1}"] {
            assert_eq!(parse_object(text.as_bytes()), Err(INVALID), "{text}");
        }
        assert_eq!(parse_object(b"{\"a\":\"\xff\"}"), Err(INVALID));
    }
}
