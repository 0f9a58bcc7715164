//! Explains why the JSON of an entity is not valid, where Cedar's own text says too little.
//!
//! Cedar's parser tries several forms of a value and, if none fits, names neither the attribute nor
//! what is wrong with it.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::pdp::compile::findings::{Entries, offset_in};
use crate::pdp::diagnostic::Diagnostic;

/// An error in the JSON of an entity, with the part of the text that is at fault.
struct EntityError<'a> {
    part: &'a str,
    message: String,
    help: Option<&'static str>,
}

const FORMAT: &str =
    r#"an entity is {"uid": {"type": "User", "id": "ann"}, "attrs": {…}, "parents": […]}"#;

const VERIFIED_PERMISSIONS: &str = r#"Cedar's format is {"uid": {"type": "User", "id": "ann"}, "attrs": {"age": 12}, "parents": []}"#;

const DECIMAL: &str = r#"a decimal is written as {"__extn": {"fn": "decimal", "arg": "12.5"}}, and a Long has no fraction"#;

/// Explains an error in `json`, the entity in the file at `path` that Cedar rejects.
///
/// Returns `None` if nothing is found that explains it better than Cedar does.
pub(super) fn explain(path: &str, text: &Arc<str>, json: &str) -> Option<Diagnostic> {
    let error = entity_error(json)?;
    let start = offset_in(text, error.part);
    let diagnostic = Diagnostic::error(path, error.message);
    let diagnostic = diagnostic.at(text, start..start + error.part.len());
    Some(match error.help {
        Some(help) => diagnostic.with_help(help),
        None => diagnostic,
    })
}

fn entity_error(json: &str) -> Option<EntityError<'_>> {
    let error = |part, message: String, help| EntityError {
        part,
        message,
        help: Some(help),
    };
    let Ok(Entries(fields)) = serde_json::from_str::<Entries<'_>>(json) else {
        return Some(error(
            json,
            "an entity must be an object".to_owned(),
            FORMAT,
        ));
    };
    let find = |name: &str| fields.iter().find(|(field, _)| field == name);
    if let Some((_, identifier)) = find("identifier") {
        let message = "the entity is in the format of Amazon Verified Permissions (`identifier`)";
        return Some(error(
            identifier.get(),
            message.to_owned(),
            VERIFIED_PERMISSIONS,
        ));
    }
    let is_known = |name: &str| matches!(name, "uid" | "attrs" | "parents" | "tags");
    if let Some((name, value)) = fields.iter().find(|(name, _)| !is_known(name)) {
        let message = format!("unknown field `{name}` of an entity");
        return Some(error(value.get(), message, FORMAT));
    }
    for name in ["uid", "attrs", "parents"] {
        if find(name).is_none() {
            let message = format!("the entity has no field `{name}`");
            return Some(error(json, message, FORMAT));
        }
    }
    let mut values = ["attrs", "tags"].into_iter().filter_map(find);
    values.find_map(|(name, fields)| value_error(name, fields))
}

/// Returns the first value below `json` that no Cedar value is written as. `path` leads to it.
///
/// Recursion is bounded by the nesting that the file's scan allows.
fn value_error<'a>(path: &str, json: &'a RawValue) -> Option<EntityError<'a>> {
    let part = json.get();
    match part.as_bytes().first()? {
        b'{' => {
            let Entries(fields) = serde_json::from_str(part).ok()?;
            fields.iter().find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                value_error(&path, value)
            })
        }
        b'[' => {
            let members: Vec<&RawValue> = serde_json::from_str(part).ok()?;
            members.into_iter().enumerate().find_map(|(index, value)| {
                let path = format!("{path}[{index}]");
                value_error(&path, value)
            })
        }
        b'n' => Some(EntityError {
            part,
            message: format!("`{path}` is null, which is no Cedar value"),
            help: Some("leave the attribute out"),
        }),
        b'-' | b'0'..=b'9' if part.parse::<i64>().is_err() => {
            let (problem, help) = match part.contains(['.', 'e', 'E']) {
                true => ("has a fraction or an exponent", Some(DECIMAL)),
                false => ("is outside of the range of a Long, 64 bits with sign", None),
            };
            Some(EntityError {
                part,
                message: format!("`{path}` is {part}, which {problem}"),
                help,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(json: &str) -> String {
        let text: Arc<str> = Arc::from(json);
        let found = explain("e.json", &text, &text);
        found.map_or("nothing".to_owned(), |found| found.to_string())
    }

    #[test]
    fn values_without_cedar_counterpart_are_named() {
        let entity = |attrs: &str| {
            format!(r#"{{"uid": {{"type": "A", "id": "a"}}, "attrs": {attrs}, "parents": []}}"#)
        };
        for (attrs, expected) in [
            (
                r#"{"hours": 37.5}"#,
                "1:54: `attrs.hours` is 37.5, which has a fraction",
            ),
            (
                r#"{"a": {"b": [1, 2e3]}}"#,
                "`attrs.a.b[1]` is 2e3, which has a fraction",
            ),
            (
                r#"{"a": 9223372036854775808}"#,
                "which is outside of the range of a Long",
            ),
            (r#"{"a": [true, null]}"#, "`attrs.a[1]` is null"),
            (r#"{"a": -9223372036854775808}"#, "nothing"),
        ] {
            let found = explained(&entity(attrs));
            assert!(found.contains(expected), "{attrs}: {found}");
        }
    }

    #[test]
    fn other_formats_are_recognised() {
        for (json, expected) in [
            (
                r#"{"identifier": {}, "attributes": {}}"#,
                "Amazon Verified Permissions",
            ),
            (
                r#"{"uid": {}, "attributes": {}}"#,
                "unknown field `attributes`",
            ),
            (
                r#"{"uid": {}, "attrs": {}}"#,
                "the entity has no field `parents`",
            ),
            (r#"["A", "a"]"#, "an entity must be an object"),
            (r#"{"uid": 1, "attrs": {}, "parents": []}"#, "nothing"),
        ] {
            let found = explained(json);
            assert!(found.contains(expected), "{json}: {found}");
        }
    }
}
