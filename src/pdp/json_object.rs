//! A JSON object, for files in which an array must not stand for one.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that is written as an object.
///
/// A derived `Deserialize` also accepts an array of the fields in order, which hides mistakes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: i32,
    }

    #[test]
    fn arrays_and_unknown_fields_are_rejected() {
        let parse = |json| serde_json::from_str::<Object<Point>>(json);
        assert_eq!(parse(r#"{"x": 1}"#).unwrap().0.x, 1);
        let error = parse("[1]").unwrap_err().to_string();
        assert!(error.contains("expected an object"), "{error}");
        let error = parse(r#"{"x": 1, "y": 2}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `y`"), "{error}");
        assert!(error.column() > 0, "{error}");
        assert!(serde_json::from_str::<Point>("[1]").is_ok(), "derived");
    }
}
